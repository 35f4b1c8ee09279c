//! The demo's chapters, in their order: begin, work (with one SIGKILL), drain, judge.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    DemoError, DemoOptions, DemoReport, SOURCE, STALL_S, TABLES,
    bucket::Bucket,
    cluster::{Cluster, ClusterError, ClusterOptions, SUPERUSER},
    compare::compare,
    copied,
    gateway::{Gateway, end_stray},
    ground::{clear, free_port, random_hex, random_key},
    progress::Screen,
    site::{self, Site},
    system,
    workload::{Rows, Tally, Workload, mark, schema},
};
use crate::{
    clock::Clock,
    disk,
    shutdown::Tasks,
    telemetry::board::{SourceStatus, TableProgress},
    units::ByteSize,
};

/// Everything that the demo has started, and what it has seen.
pub(super) struct Story {
    // Dropped in this order: the gateway before what it talks to.
    gateway: Gateway,
    cluster: Cluster,
    bucket: Bucket,
    _hold: disk::Hold,
    clock: Arc<dyn Clock>,
    screen: Screen,
    began: Instant,
    dir: PathBuf,
    minutes: f64,
    audit: PathBuf,
    workload: Workload,
    tally: Tally,
    worked_s: f64,
    drained_s: f64,
    kills: u32,
    /// Bytes read by the gateway's lives before this one, and by this one.
    read_before: u64,
    read_now: u64,
}

impl Story {
    /// Makes the folder, the database, the store and the gateway's configuration; starts the gateway.
    pub(super) async fn begin(
        options: &DemoOptions,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
        screen: Screen,
    ) -> Result<Self, DemoError> {
        let began = clock.now();
        let (dir, hold) = fresh_dir(&options.dir)?;
        let cluster = Cluster::create(&ClusterOptions {
            dir: dir.join(POSTGRES),
            ..ClusterOptions::default()
        })?;
        screen.say(&format!(
            "PostgreSQL    its own, {} in {}, port {}",
            cluster.version()?,
            dir.join(POSTGRES).display(),
            cluster.port()
        ));
        let bucket =
            Bucket::open(&dir.join(LAKE), true).await.map_err(system("start the S3 store"))?;
        screen.say(&format!("S3 store      embedded, {}", bucket.lake("").endpoint));
        let (workload, password) = fill(&cluster, tasks, &screen).await?;
        let page = format!("127.0.0.1:{}", free_port()?);
        let (site, audit) = configure(&dir, &cluster, &bucket, password, &page)?;
        let binary = std::env::current_exe().map_err(system("find this program"))?;
        let mut gateway = Gateway::new(&binary, &site, &dir.join(LOG), SOURCE);
        gateway.start().map_err(system("start the gateway"))?;
        note_pid(&dir, &gateway);
        screen.say(&format!(
            "Gateway       lakehead run --config {}, log in {}",
            site.display(),
            dir.join(LOG).display()
        ));
        screen.say(&format!("Status page   http://{page}"));
        Ok(Self {
            gateway,
            cluster,
            bucket,
            _hold: hold,
            clock,
            screen,
            dir,
            began,
            minutes: options.minutes,
            audit,
            workload,
            tally: Tally::default(),
            worked_s: 0.0,
            drained_s: 0.0,
            kills: 0,
            read_before: 0,
            read_now: 0,
        })
    }

    /// Works on the database while the gateway copies it; kills the gateway once, half way.
    pub(super) async fn work(&mut self, tasks: &Tasks) -> Result<(), DemoError> {
        let left_s = self.minutes * 60.0 - self.seconds_since(self.began) - TAIL_S;
        let span = Duration::from_secs_f64(left_s.clamp(WORK_S_MIN, WORK_S_MAX));
        let seconds = span.as_secs();
        self.screen.say(&format!("Workload      {seconds} s of inserts, updates, deletes; SIGKILL to the gateway half way"));
        let (workload, tally) = (self.workload.clone(), self.tally.clone());
        let (stop, failed) = (CancellationToken::new(), CancellationToken::new());
        let began = self.clock.now();
        let work = async {
            let result = workload.run(&tally, tasks, &stop).await;
            failed.cancel();
            result
        };
        let large = async {
            if failed.run_until_cancelled(tokio::time::sleep(span / 4)).await.is_none() {
                return Ok(());
            }
            workload.large(LARGE_ROWS, &tally, tasks).await
        };
        let watch = async {
            let result = self.watch(span, &failed).await;
            stop.cancel();
            result
        };
        let (worked, large, watched) = tokio::join!(work, large, watch);
        watched?;
        worked?;
        large?;
        self.worked_s = self.seconds_since(began);
        Ok(())
    }

    /// Waits until all tables are read, and the ledger covers everything that was committed.
    pub(super) async fn drain(&mut self, tasks: &Tasks) -> Result<(), DemoError> {
        let began = self.clock.now();
        let admin = self.cluster.connect(SOURCE, tasks).await?;
        let mut wanted = self.cluster.position(&admin).await?;
        mark(&admin).await?;
        self.screen
            .say(&format!("Workload      stopped at {wanted}; waiting until the ledger is there"));
        let (mut moved, mut is_whole) = ((self.clock.now(), None), false);
        loop {
            let seen = self.look(None).await?;
            if !is_whole && seen.as_ref().is_some_and(is_read) {
                // Of what was read last the ledger tells before it tells of what happens now.
                is_whole = true;
                wanted = self.cluster.position(&admin).await?;
                mark(&admin).await?;
            } else if is_whole
                && seen.as_ref().is_some_and(|status| status.shipped.position >= wanted)
            {
                break;
            }
            let seen = seen.map(|status| {
                let parts: u32 = status.snapshot.values().map(|table| table.chunks_done).sum();
                (status.shipped, status.sealed, status.durable, status.entry, parts)
            });
            if seen != moved.1 {
                moved = (self.clock.now(), seen);
            }
            if self.seconds_since(moved.0) > STALL_S {
                let shipped =
                    seen.map_or_else(|| "nowhere".into(), |seen| seen.0.position.to_string());
                return Err(DemoError::Stalled {
                    shipped,
                    wanted: wanted.to_string(),
                    said: self.gateway.log_end(),
                });
            }
            tokio::time::sleep(TICK).await;
        }
        self.screen.finish();
        self.drained_s = self.seconds_since(began);
        self.screen.say(&format!(
            "Ledger        covers {wanted}, {:.1} s after the last commit",
            self.drained_s
        ));
        Ok(())
    }

    /// Verifies the lake, restores it into a second database, and compares.
    pub(super) async fn judge(mut self, tasks: &Tasks) -> Result<DemoReport, DemoError> {
        let audit = self.audit.clone();
        let screen = &self.screen;
        let mut show = |line: &str| screen.say(&format!("    {line}"));
        let verified = self.gateway.ask_aloud(&["verify"], Some(&audit), &mut show).await;
        let verified = verified.map_err(system("run lakehead verify"))?;
        // On the other side there was its progress; or, if it failed, why.
        let why = if verified.code == 0 { "" } else { &verified.stderr };
        let said = format!("{}{why}", verified.stdout).trim().to_owned();
        said.lines().for_each(|line| self.screen.say(&format!("Verify        {line}")));
        let began = self.clock.now();
        let admin = self.cluster.connect("postgres", tasks).await?;
        admin
            .batch_execute(&format!("CREATE DATABASE {RESTORED}"))
            .await
            .map_err(|why| ClusterError::Sql { what: "make the second database", why })?;
        self.restore().await?;
        let restored_s = self.seconds_since(began);
        self.screen.say(&format!("Restore       into database {RESTORED}, {restored_s:.1} s"));
        self.screen.say("Compare       every row of every table");
        let source = self.cluster.connect(SOURCE, tasks).await?;
        let restored = self.cluster.connect(RESTORED, tasks).await?;
        let tables = compare(&source, &restored, copied).await?;
        let gateway = self.gateway.usage();
        match self.gateway.stop().await {
            Some(0) => {}
            code => {
                let said = self.gateway.log_end();
                return Err(DemoError::GatewayEnded { code: code.unwrap_or(-9), said });
            }
        }
        let (lake_objects, lake_bytes) = self.bucket.holds().map_err(system("list the lake"))?;
        Ok(DemoReport {
            took_s: self.seconds_since(self.began),
            worked_s: self.worked_s,
            rows_initial: self.workload.rows.total(),
            done: self.tally.read(),
            kills: self.kills,
            drained_s: self.drained_s,
            read_bytes: self.read_before + self.read_now,
            lake_bytes,
            lake_objects,
            gateway,
            proven: verified.code == 0,
            verify: said,
            restored_s,
            tables,
        })
    }

    async fn restore(&mut self) -> Result<(), DemoError> {
        let password = self.dir.join(PASSWORD);
        disk::write_durably(&password, self.cluster.password().as_bytes())
            .map_err(system("write the password"))?;
        let url = self.cluster.url(SUPERUSER, RESTORED);
        let (url, password) = (url.as_str(), password.to_string_lossy());
        let words = ["restore", "--source", SOURCE, "--to", url, "--password-file", &password];
        let screen = &self.screen;
        let mut show = |line: &str| screen.say(&format!("    {line}"));
        let ended = self.gateway.ask_aloud(&words, Some(&self.audit), &mut show).await;
        let ended = ended.map_err(system("run lakehead restore"))?;
        if ended.code != 0 {
            let said = format!("{}{}", ended.stdout, ended.stderr);
            return Err(DemoError::Command { command: "restore".into(), code: ended.code, said });
        }
        Ok(())
    }

    async fn watch(&mut self, span: Duration, failed: &CancellationToken) -> Result<(), DemoError> {
        let began = self.clock.now();
        while self.clock.now().duration_since(began) < span {
            let left = span.saturating_sub(self.clock.now().duration_since(began));
            self.look(Some(left)).await?;
            if self.kills == 0 && self.clock.now().duration_since(began) >= span / 2 {
                self.kill()?;
            }
            if failed.run_until_cancelled(tokio::time::sleep(TICK)).await.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Looks at the gateway once: shows what it says, notices its end.
    async fn look(&mut self, left: Option<Duration>) -> Result<Option<SourceStatus>, DemoError> {
        if let Some(code) = self.gateway.ended() {
            return Err(DemoError::GatewayEnded { code, said: self.gateway.log_end() });
        }
        let seen = self.gateway.status().await;
        match &seen {
            Some(status) => {
                let copied: u64 = status.snapshot.values().map(|table| table.bytes).sum();
                self.read_now = status.stream_bytes + copied;
                let (now, wall) = (self.clock.now(), self.clock.wall());
                self.screen.show((now, wall, left), status, &self.tally.read());
            }
            None => self.screen.silent("    starting"),
        }
        Ok(seen)
    }

    fn kill(&mut self) -> Result<(), DemoError> {
        let pid = self.gateway.pid().unwrap_or_default();
        self.gateway.kill();
        self.kills += 1;
        self.read_before += std::mem::take(&mut self.read_now);
        self.screen.say(&format!(
            "SIGKILL       to the gateway, process {pid}, in the middle of its work"
        ));
        self.gateway.start().map_err(system("start the gateway again"))?;
        note_pid(&self.dir, &self.gateway);
        let pid = self.gateway.pid().unwrap_or_default();
        self.screen.say(&format!("Gateway       started again, process {pid}"));
        Ok(())
    }

    fn seconds_since(&self, then: Instant) -> f64 {
        self.clock.now().duration_since(then).as_secs_f64()
    }
}

/// The demo's folder, emptied of what an earlier demo left, and held against a second one.
fn fresh_dir(dir: &Path) -> Result<(PathBuf, disk::Hold), DemoError> {
    let empty = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    if dir.exists() && !empty && !dir.join(MARKER).is_file() {
        return Err(DemoError::Foreign(dir.into()));
    }
    fs::create_dir_all(dir).map_err(system("make the folder"))?;
    let dir = fs::canonicalize(dir).map_err(system("find the folder"))?;
    fs::write(dir.join(MARKER), MARKER_TEXT).map_err(system("write into the folder"))?;
    let hold = disk::Hold::take(&dir).map_err(system("lock the folder"))?;
    let hold = hold.ok_or_else(|| DemoError::Busy(dir.clone()))?;
    let pid = fs::read_to_string(dir.join(PID)).ok().and_then(|text| text.trim().parse().ok());
    if let Some(pid) = pid {
        end_stray(pid, &["run", &dir.join(SITE).join("site.toml").to_string_lossy()]);
    }
    clear(&dir.join(POSTGRES)).map_err(system("remove the old database"))?;
    for name in [LAKE, SITE] {
        match fs::remove_dir_all(dir.join(name)) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => {
                return Err(system("remove the old data")(why));
            }
            _ => {}
        }
    }
    for name in [LOG, PID, PASSWORD] {
        disk::remove(&dir.join(name)).map_err(system("remove the old data"))?;
    }
    Ok((dir, hold))
}

/// Makes roles, database and tables, and fills them.
async fn fill(
    cluster: &Cluster,
    tasks: &Tasks,
    screen: &Screen,
) -> Result<(Workload, String), DemoError> {
    let (shop, lakehead) = (random_hex()?, random_hex()?);
    let failed = |why| ClusterError::Sql { what: "make the shop's database", why };
    let admin = cluster.connect("postgres", tasks).await?;
    admin.batch_execute(&schema::roles(&shop, &lakehead)).await.map_err(failed)?;
    admin.batch_execute(&format!("CREATE DATABASE {SOURCE}")).await.map_err(failed)?;
    let admin = cluster.connect(SOURCE, tasks).await?;
    admin.batch_execute(&schema::grants(SOURCE)).await.map_err(failed)?;
    let rows = Rows::of(INITIAL_BYTES);
    let workload = Workload {
        url: cluster.url("shop", SOURCE),
        password: shop,
        seed: SEED,
        sessions: SESSIONS,
        transactions_per_s: TRANSACTIONS_PER_S,
        rows,
    };
    screen.say(&format!("Filling       {} rows, about {}", rows.total(), ByteSize(INITIAL_BYTES)));
    workload.prepare(tasks).await?;
    Ok((workload, lakehead))
}

/// Writes the gateway's configuration: `site.toml` and `audit.toml`.
fn configure(
    dir: &Path,
    cluster: &Cluster,
    bucket: &Bucket,
    password: String,
    page: &str,
) -> Result<(PathBuf, PathBuf), DemoError> {
    let site = Site {
        dir: dir.join(SITE),
        source: SOURCE.into(),
        url: cluster.url("lakehead", SOURCE),
        password,
        tables: TABLES.map(String::from).to_vec(),
        release: "auto".into(),
        lake: bucket.lake("raw"),
        encryption: site::CLIENT.into(),
        journal_max: "4 GiB".into(),
        object_bytes: "8 MiB".into(),
        object_age: "5 s".into(),
        integers: "rising".into(),
        uuids: "uuid".into(),
        listen: Some(page.into()),
    };
    site.write(&random_key()?).map_err(system("write the configuration"))
}

/// Whether all parts of all tables were read.
fn is_read(status: &SourceStatus) -> bool {
    !status.snapshot.is_empty() && status.snapshot.values().all(TableProgress::is_whole)
}

fn note_pid(dir: &Path, gateway: &Gateway) {
    // Only for the next demo, if this one is killed: without it, it would meet a gateway at work.
    let pid = gateway.pid().unwrap_or_default();
    fs::write(dir.join(PID), pid.to_string()).ok();
}

const RESTORED: &str = "restored";
const MARKER: &str = ".lakehead-demo";
const MARKER_TEXT: &str =
    "Made by `lakehead demo`, which removes what is in this folder when it runs again.
";
const POSTGRES: &str = "postgres";
const LAKE: &str = "lake";
const SITE: &str = "site";
const LOG: &str = "gateway.log";
const PID: &str = "gateway.pid";
const PASSWORD: &str = "restore.password";
const TICK: Duration = Duration::from_millis(400);
/// What verify, restore and compare are expected to take.
const TAIL_S: f64 = 25.0;
const WORK_S_MIN: f64 = 20.0;
const WORK_S_MAX: f64 = 7.0 * 86_400.0;
const LARGE_ROWS: u64 = 100_000;
const INITIAL_BYTES: u64 = 200_000_000;
const SEED: u64 = 20_261_121;
const SESSIONS: u32 = 3;
const TRANSACTIONS_PER_S: f64 = 150.0;
