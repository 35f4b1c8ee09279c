//! A world for each story: its own database cluster, bucket, configuration and gateway.
//!
//! Everything lies under `target/it/<story>` (or the folder that `LAKEHEAD_STORIES` names), which stays when the story fails.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use lakehead::{
    demo::{
        bucket::{BUCKET, Bucket},
        cluster::{Cluster, ClusterOptions, SUPERUSER, ServerTls, connect},
        compare::{Compared, compare},
        gateway::{Ended, Gateway, run},
        ground::{clear, find_binaries, random_hex, random_key},
        proxy::Proxy,
        site::{self, Site},
        workload::{Rows, Workload, schema},
    },
    error::Cause,
    ledger::{Entry, EntryKind},
    shutdown::Tasks,
    telemetry::board::{SourceState, SourceStatus, TableProgress},
    units::Position,
};
use serde_json::{Value, json};
use tokio_postgres::Client;

/// What a story needs otherwise than others.
pub(crate) struct Setup {
    pub(crate) settings: Vec<(String, String)>,
    /// What follows `CREATE DATABASE` and its name.
    pub(crate) database: String,
    pub(crate) encryption: String,
    pub(crate) release: String,
    pub(crate) tables: Vec<String>,
    pub(crate) object_bytes: String,
    pub(crate) object_age: String,
    pub(crate) integers: String,
    pub(crate) uuids: String,
    pub(crate) journal_max: String,
    pub(crate) tls: bool,
    /// What the database serves TLS with, if it does.
    pub(crate) certificate: Option<ServerTls>,
    /// Whether the gateway reaches database and store through [`Lanes`].
    pub(crate) proxied: bool,
}

/// The ways that the gateway's connections take, if they can be disturbed.
pub(crate) struct Lanes {
    pub(crate) source: Proxy,
    pub(crate) lake: Proxy,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            settings: vec![],
            database: String::new(),
            encryption: site::CLIENT.into(),
            release: "auto".into(),
            tables: ["*.*", "!public.scratch_*"].map(String::from).to_vec(),
            object_bytes: "8 MiB".into(),
            object_age: "1 s".into(),
            integers: "rising".into(),
            uuids: "uuid".into(),
            journal_max: "4 GiB".into(),
            tls: false,
            certificate: None,
            proxied: false,
        }
    }
}

/// The world of one story.
pub(crate) struct World {
    // Dropped in this order: the gateway before what it talks to.
    pub(crate) gateway: Gateway,
    pub(crate) cluster: Cluster,
    pub(crate) bucket: Bucket,
    pub(crate) lanes: Option<Lanes>,
    pub(crate) site: Site,
    pub(crate) dir: PathBuf,
    pub(crate) audit: PathBuf,
    pub(crate) tasks: Tasks,
    pub(crate) shop_password: String,
}

impl World {
    /// A cluster with the database [`SOURCE`] and roles, an empty bucket, a configured gateway that
    /// does not run yet.
    pub(crate) async fn new(story: &str, setup: Setup) -> Self {
        let dir = fresh_dir(story);
        let tasks = Tasks::new();
        let options = ClusterOptions {
            dir: dir.join("postgres"),
            settings: setup.settings,
            tls: setup.certificate,
            kept: FIRST.replace(false).then(|| stories_dir().join(".initdb")),
            ..ClusterOptions::default()
        };
        let cluster = Cluster::create(&options).unwrap();
        let (shop_password, lakehead) = (random_hex().unwrap(), random_hex().unwrap());
        let admin = cluster.connect("postgres", &tasks).await.unwrap();
        admin.batch_execute(&schema::roles(&shop_password, &lakehead)).await.unwrap();
        admin.batch_execute(&format!("CREATE DATABASE {SOURCE} {}", setup.database)).await.unwrap();
        let admin = cluster.connect(SOURCE, &tasks).await.unwrap();
        admin.batch_execute(&schema::grants(SOURCE)).await.unwrap();
        admin.batch_execute(MARK).await.unwrap();
        let bucket = Bucket::open(&dir.join("lake"), setup.tls).await.unwrap();
        let (mut url, mut lake) = (cluster.url("lakehead", SOURCE), bucket.lake("raw"));
        let lanes = match setup.proxied {
            true => Some(Lanes::before(&cluster, &mut url, &mut lake).await),
            false => None,
        };
        let site = Site {
            dir: dir.join("site"),
            source: SOURCE.into(),
            url,
            password: lakehead,
            tables: setup.tables,
            release: setup.release,
            lake,
            encryption: setup.encryption,
            journal_max: setup.journal_max,
            object_bytes: setup.object_bytes,
            object_age: setup.object_age,
            integers: setup.integers,
            uuids: setup.uuids,
            listen: None,
        };
        let (path, audit) = site.write(&random_key().unwrap()).unwrap();
        let gateway = outside(&path, &dir);
        Self { gateway, cluster, bucket, lanes, site, dir, audit, tasks, shop_password }
    }

    /// A world of a server that is not older than this major version.
    pub(crate) async fn since(major: u32, story: &str, setup: Setup) -> Option<Self> {
        match known_since(major, story) {
            true => Some(Self::new(story, setup).await),
            false => None,
        }
    }

    /// A gateway, or commands, on this machine.
    pub(crate) fn outside(&self) -> Gateway {
        outside(&self.site.dir.join("site.toml"), &self.dir)
    }

    /// Has the next start copy these tables.
    pub(crate) fn copy_only(&self, tables: &[&str]) {
        let path = self.site.dir.join("site.toml");
        let config = fs::read_to_string(&path).unwrap();
        let line = config.lines().find(|line| line.starts_with("tables = [")).unwrap();
        let config = config.replace(line, &format!("tables = {tables:?}"));
        lakehead::disk::write_durably(&path, config.as_bytes()).unwrap();
    }

    /// Drops the box's slot.
    pub(crate) async fn drop_slot(&self) {
        let drop = format!("SELECT pg_drop_replication_slot('{SLOT}')");
        for _ in 0..100 {
            // Who reads from it may still be on its way out.
            if self.admin().await.batch_execute(&drop).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the slot cannot be dropped");
    }

    /// Has the next start, and whoever compares, repair tables behind a gap by their keys, or not.
    pub(crate) fn compare_after_gap(&self, compare: bool) {
        let path = self.site.dir.join("site.toml");
        let config = fs::read_to_string(&path).unwrap();
        let config = config.replace("after_gap = \"compare\"\n", "");
        let line = "[[source]]\n";
        let key = if compare { "after_gap = \"compare\"\n" } else { "" };
        let config = config.replace(line, &format!("{line}{key}"));
        lakehead::disk::write_durably(&path, config.as_bytes()).unwrap();
    }

    /// Has the next start find another line in place of `line`.
    pub(crate) fn reconfigure(&self, line: &str, other: &str) {
        let path = self.site.dir.join("site.toml");
        let config = fs::read_to_string(&path).unwrap();
        assert!(config.contains(line), "{config}");
        let config = config.replace(line, other);
        lakehead::disk::write_durably(&path, config.as_bytes()).unwrap();
    }

    /// Has the next start find `line` in the source's table.
    pub(crate) fn configure(&self, line: &str) {
        let path = self.site.dir.join("site.toml");
        let config = fs::read_to_string(&path).unwrap();
        let table = "[[source]]\n";
        let config = config.replace(table, &format!("{table}{line}\n"));
        lakehead::disk::write_durably(&path, config.as_bytes()).unwrap();
    }

    /// A session as superuser in the source's database.
    pub(crate) async fn admin(&self) -> Client {
        self.cluster.connect(SOURCE, &self.tasks).await.unwrap()
    }

    /// A session as the tables' owner.
    pub(crate) async fn shop(&self) -> Client {
        let url = self.cluster.url("shop", SOURCE);
        connect(&url, &self.shop_password, &self.tasks).await.unwrap()
    }

    /// The shop's workload on tables of about `bytes`, made and filled.
    pub(crate) async fn workload(
        &self,
        seed: u64,
        bytes: u64,
        transactions_per_s: f64,
    ) -> Workload {
        let workload = Workload {
            url: self.cluster.url("shop", SOURCE),
            password: self.shop_password.clone(),
            seed,
            sessions: 3,
            transactions_per_s,
            rows: Rows::of(bytes),
        };
        workload.prepare(&self.tasks).await.unwrap();
        workload
    }

    /// Runs statements, each ended by `;` and a new line, one by one as the tables' owner.
    pub(crate) async fn execute_each(&self, sql: &str) {
        let shop = self.shop().await;
        for statement in sql.split(";\n") {
            shop.batch_execute(statement).await.unwrap();
        }
    }

    /// The server's major version.
    pub(crate) fn major(&self) -> u32 {
        major_of(&self.cluster.version().unwrap())
    }

    /// Runs SQL as one transaction of the tables' owner.
    pub(crate) async fn execute(&self, sql: &str) {
        self.shop().await.batch_execute(sql).await.unwrap();
    }

    /// Has the database know `noise(seed, bytes)`, up to so many bytes that no compression makes fewer: to make 100 MiB of
    /// hashes takes a server many seconds. Of seeds from 0 to 200; the next one's begins 5,000 bytes later.
    pub(crate) async fn noisy(&self, bytes: u64) {
        let mut noise = vec![0; usize::try_from(bytes).unwrap() + (1 << 20)];
        fastrand::Rng::with_seed(bytes).fill(&mut noise);
        let shop = self.shop().await;
        shop.batch_execute(
            "CREATE UNLOGGED TABLE scratch_noise (body bytea);
             ALTER TABLE scratch_noise ALTER body SET STORAGE EXTERNAL;
             CREATE FUNCTION noise(seed integer, bytes integer) RETURNS bytea LANGUAGE sql
             AS $$ SELECT substr(body, 1 + seed * 5000, bytes) FROM scratch_noise $$",
        )
        .await
        .unwrap();
        shop.execute("INSERT INTO scratch_noise VALUES ($1)", &[&noise]).await.unwrap();
    }

    /// Starts the gateway.
    pub(crate) fn start(&mut self) {
        self.gateway.start().unwrap();
    }

    /// What the gateway says of the source, waiting until it answers.
    pub(crate) async fn status(&mut self) -> SourceStatus {
        for _ in 0..600 {
            if let Some(status) = self.gateway.status().await {
                return status;
            }
            self.must_run();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the gateway does not answer:\n{}", self.gateway.log_end());
    }

    /// Waits until `ready` says so of the status.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        ready: impl Fn(&SourceStatus) -> bool,
    ) -> SourceStatus {
        for _ in 0..PATIENCE_TICKS {
            let status = self.status().await;
            if ready(&status) {
                return status;
            }
            self.must_run();
            tokio::time::sleep(TICK).await;
        }
        let status = self.status().await;
        panic!("not in time: {what}; {status:#?}\n{}", self.gateway.log_end());
    }

    /// Waits until the alarm is over.
    pub(crate) async fn calm(&mut self, cause: Cause) -> SourceStatus {
        let met =
            |status: &SourceStatus| status.alarms.values().any(|alarm| alarm.cause == cause.name());
        self.until("the alarm is over", |status| !met(status)).await
    }

    /// Waits until the ledger tells of a gap, and nothing is left to repair.
    pub(crate) async fn repaired(&mut self) {
        let open = |status: &SourceStatus| {
            let causes = [Cause::SourceGap, Cause::SourceRepair, Cause::SourceCompare];
            let causes = causes.map(|cause| cause.name());
            status.alarms.values().any(|alarm| causes.contains(&alarm.cause.as_str()))
        };
        for _ in 0..PATIENCE_TICKS {
            let status = self.status().await;
            let gap = self.ledger().iter().any(|entry| entry.kind == EntryKind::Gap);
            if gap && status.state == SourceState::Streaming && !open(&status) {
                return;
            }
            self.must_run();
            tokio::time::sleep(TICK).await;
        }
        panic!("not repaired: {:#?}\n{}", self.status().await, self.gateway.log_end());
    }

    /// Waits until the snapshots of so many tables, and of that of the marks, are whole and in the ledger.
    pub(crate) async fn whole(&mut self, tables: usize) {
        self.until("the snapshot is whole", |status| {
            let whole = status.snapshot.values().all(TableProgress::is_whole);
            whole && status.snapshot.len() > tables
        })
        .await;
        self.caught_up().await;
    }

    /// Waits until the box has seen what became of tables by now, all that is to be read of them is whole, and the
    /// ledger covers it.
    pub(crate) async fn settled(&mut self) -> Position {
        let admin = self.admin().await;
        let wanted = self.cluster.position(&admin).await.unwrap();
        // So that the log goes on.
        admin.batch_execute("INSERT INTO public.mark VALUES (clock_timestamp())").await.unwrap();
        self.until("it has settled", |status| {
            let is_seen = status.catalog >= wanted;
            assert!(
                !is_seen || !status.snapshot.is_empty(),
                "what it saw is not said: {status:#?}"
            );
            is_seen && status.snapshot.values().all(TableProgress::is_whole)
        })
        .await;
        self.caught_up().await
    }

    /// Waits until the ledger covers everything committed so far. A mark committed before the slot was made
    /// comes in the snapshot and moves nothing: so marks are committed until one moves the ledger.
    pub(crate) async fn caught_up(&mut self) -> Position {
        let admin = self.admin().await;
        let wanted = self.cluster.position(&admin).await.unwrap();
        for tick in 0..PATIENCE_TICKS {
            if tick % MARK_TICKS == 0 {
                let mark = "INSERT INTO public.mark VALUES (clock_timestamp())";
                admin.batch_execute(mark).await.unwrap();
            }
            if self.status().await.shipped.position > wanted {
                return wanted;
            }
            self.must_run();
            tokio::time::sleep(TICK).await;
        }
        panic!("the ledger does not reach {wanted}:\n{}", self.gateway.log_end());
    }

    /// `lakehead verify` says PROVEN.
    pub(crate) async fn assert_proven(&self) {
        let ended = self.audit(&["verify"]).await;
        assert!(ended.code == 0 && ended.stdout.contains("PROVEN"), "{ended:?}");
    }

    /// `tests/verify.py`, which shares nothing with ours, says so too, with these keys beside the box's own.
    pub(crate) async fn assert_proven_independently(&self, keys: &[&Path]) {
        let folder = self.dir.join("copy");
        for key in self.bucket.double.keys(BUCKET, "raw/") {
            let path = folder.join(&key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, self.bucket.double.object(BUCKET, &key).unwrap()).unwrap();
        }
        let mut command = Command::new(interpreter());
        command.arg("tests/verify.py").arg(&folder).arg(SOURCE).args(keys);
        command.arg(self.site.data_dir().join("identity.pub")).args(["--prefix", "raw", "--deep"]);
        let ended = run(command, &self.dir.join("python")).await.unwrap();
        assert_eq!(ended.code, 0, "{ended:?}");
    }

    /// The entries, in order.
    pub(crate) fn ledger(&self) -> Vec<Entry> {
        let keys = self.bucket.double.keys(BUCKET, &format!("raw/_ledger/{SOURCE}/"));
        let bytes = keys.iter().map(|key| self.bucket.double.object(BUCKET, key).unwrap());
        let line = |bytes: Vec<u8>| bytes.split(|byte| *byte == b'\n').next().unwrap().to_vec();
        bytes.map(|bytes| serde_json::from_slice(&line(bytes)).unwrap()).collect()
    }

    /// Restores into a fresh database and compares every table with the source.
    pub(crate) async fn assert_restored_equal(&self) {
        let restored = self.restored("restored", &[]).await;
        let admin = self.admin().await;
        let tables = compare(&admin, &restored, copied).await.unwrap();
        assert_all_equal(&tables);
    }

    /// Restores into a fresh database, with more words for the command.
    pub(crate) async fn restored(&self, database: &str, words: &[&str]) -> Client {
        let admin = self.cluster.connect("postgres", &self.tasks).await.unwrap();
        admin.batch_execute(&format!("CREATE DATABASE {database}")).await.unwrap();
        let into = self.cluster.connect(database, &self.tasks).await.unwrap();
        into.batch_execute(EXTENSIONS).await.unwrap();
        let mut ended = self.restore(database, words).await;
        for _ in 0..SNAPSHOT_TRIES {
            // Beside much else a snapshot takes longer than the stream does to catch up.
            if !ended.stderr.contains("its snapshot is not complete") {
                break;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            ended = self.restore(database, words).await;
        }
        assert_eq!(ended.code, 0, "{ended:?}");
        into
    }

    /// `lakehead restore` into a database that is there.
    pub(crate) async fn restore(&self, database: &str, words: &[&str]) -> Ended {
        let password = self.dir.join("restore.password");
        lakehead::disk::write_durably(&password, self.cluster.password().as_bytes()).unwrap();
        let url = self.cluster.url(SUPERUSER, database);
        let password = password.to_str().unwrap();
        let all = ["restore", "--source", SOURCE, "--to", &url, "--password-file", password];
        self.audit(&[&all, words].concat()).await
    }

    /// A command with the auditor's credentials.
    pub(crate) async fn audit(&self, words: &[&str]) -> Ended {
        self.gateway.ask(words, Some(&self.audit)).await.unwrap()
    }

    /// DuckDB and pyarrow open every object, and find each change once. Gives what they counted.
    pub(crate) async fn assert_readable(&mut self) -> Value {
        if self.gateway.pid().is_some() {
            self.assert_no_upload_is_open().await;
        }
        self.assert_read_by(&interpreter(), "readers.py").await
    }

    /// A script of `tests/py` finds nothing wrong in the lake: what it counted.
    pub(crate) async fn assert_read_by(&self, interpreter: &Path, script: &str) -> Value {
        let lake = &self.site.lake;
        let ca = lake.ca_pem.as_ref().map(|_| self.site.dir.join("lake-ca.pem"));
        let key = (self.site.encryption == site::CLIENT).then(|| self.site.key_file());
        let site = json!({
            "endpoint": lake.endpoint, "bucket": lake.bucket, "prefix": lake.prefix, "source": SOURCE,
            "key": lake.reader.id, "secret": lake.reader.secret, "ca": ca, "key_file": key,
            "dir": self.dir.join("read"), "box": { "key": lake.writer.id, "secret": lake.writer.secret },
        });
        let ended = python(interpreter, script, &site, &self.dir).await;
        assert_eq!(ended.code, 0, "{}\n{}", ended.stdout, ended.stderr);
        serde_json::from_str(&ended.stdout).unwrap()
    }

    /// Whatever was begun is completed or aborted; of the ledger, what nobody used is an hour later.
    pub(crate) async fn assert_no_upload_is_open(&mut self) {
        let (mut open, mut quiet_ticks) = (vec![], 0);
        for _ in 0..UPLOAD_TICKS {
            open = self.bucket.double.open_uploads(BUCKET);
            if open.is_empty() {
                self.bucket.double.age_uploads_s(0);
                return;
            }
            let ledger = open.iter().all(|(key, _)| key.contains("/_ledger/"));
            quiet_ticks = if ledger { quiet_ticks + 1 } else { 0 };
            if quiet_ticks == HOUR_TICK {
                self.bucket.double.age_uploads_s(3600);
                self.gateway.kill();
                self.start();
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        panic!("uploads are left open: {open:?}");
    }

    /// No key was stored twice, and of each part at most what a kill can have cut was sent again.
    pub(crate) fn assert_sent_once(&self, kills: usize) {
        let sent = self.bucket.sent();
        let twice: Vec<_> = sent.stored.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "stored twice: {twice:?}");
        let again: usize = sent.parts.values().map(|times| times - 1).sum();
        assert!(again <= kills * REQUESTS, "{again} parts sent again after {kills} kills");
    }

    /// The most memory that any life of the gateway had resident.
    pub(crate) fn peak_bytes(&mut self) -> u64 {
        self.gateway.usage().peak_bytes
    }

    /// Fails the story if the gateway ended by itself.
    pub(crate) fn must_run(&mut self) {
        if let Some(code) = self.gateway.ended() {
            panic!("the gateway ended with {code}:\n{}", self.gateway.log_end());
        }
    }

    /// Ends everything, and removes the story's folder: it went well.
    pub(crate) async fn end(mut self) {
        let code = self.gateway.stop().await;
        assert!(code.is_none_or(|code| code == 0), "{code:?}:\n{}", self.gateway.log_end());
        self.cluster.remove().unwrap();
        self.bucket.close().await;
        self.tasks.stop().await;
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

impl Lanes {
    /// Puts a proxy before the database and one before the store, and turns the site to them.
    async fn before(cluster: &Cluster, url: &mut String, lake: &mut site::Lake) -> Self {
        let source = Proxy::start(([127, 0, 0, 1], cluster.port()).into()).await.unwrap();
        *url = url
            .replace(&format!(":{}/", cluster.port()), &format!(":{}/", source.address().port()));
        let (scheme, upstream) = lake.endpoint.split_once("://").unwrap();
        let proxy = Proxy::start(upstream.parse().unwrap()).await.unwrap();
        lake.endpoint = format!("{scheme}://{}", proxy.address());
        Self { source, lake: proxy }
    }
}

fn outside(config: &Path, dir: &Path) -> Gateway {
    Gateway::new(&binary(), config, &dir.join("gateway.log"), SOURCE)
}

/// Whether the server is not older than this major version. If it is, what is left out is said.
pub(crate) fn known_since(major: u32, what: &str) -> bool {
    let probe = find_binaries(None).unwrap().join("postgres");
    let said = Command::new(probe).arg("--version").output().unwrap().stdout;
    let found = major_of(&String::from_utf8_lossy(&said));
    if found < major {
        eprintln!("PostgreSQL {found}: left out, it came with {major}: {what}");
    }
    found >= major
}

/// Of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`: 15.
fn major_of(version: &str) -> u32 {
    let number =
        version.split(' ').find(|word| word.starts_with(|sign: char| sign.is_ascii_digit()));
    number.unwrap().split('.').next().unwrap().trim().parse().unwrap()
}

/// Every table is there on both sides and equal.
pub(crate) fn assert_all_equal(tables: &[Compared]) {
    let said: Vec<String> = tables.iter().filter_map(Compared::difference).collect();
    assert!(!tables.is_empty() && said.is_empty(), "differ:\n{}", said.join("\n"));
}

/// Whether the lake has it.
pub(crate) fn copied(table: &str) -> bool {
    // What `caught_up` commits last lies behind the position that it waits for.
    !table.starts_with("public.scratch_")
        && !table.starts_with("lakehead")
        && table != "public.mark"
}

/// Runs one of the scripts in tests/py by an interpreter that has the libraries that it wants.
async fn python(interpreter: &Path, script: &str, input: &Value, dir: &Path) -> Ended {
    let file = dir.join("input.json");
    fs::write(&file, input.to_string()).unwrap();
    let mut command = Command::new("sh");
    command.arg("-c").arg("exec \"$0\" \"$1\" < \"$2\"");
    command.arg(interpreter).arg(Path::new("tests/py").join(script)).arg(&file);
    run(command, &dir.join("python")).await.unwrap()
}

/// The readers' own client, in Python, sees what the store holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_readers_list_and_get_what_the_store_holds() {
    let dir = fresh_dir("readers");
    let bucket = Bucket::open(&dir.join("lake"), true).await.unwrap();
    let key = "raw/shop/B%C3%BCro.a b+c/dt=2026-11-21/ü.parquet";
    bucket.double.tamper(BUCKET, key, Some(b"bytes")).unwrap();
    let lake = bucket.lake("raw");
    let ca = dir.join("ca.pem");
    fs::write(&ca, lake.ca_pem.as_ref().unwrap()).unwrap();
    let script = "import sys; sys.path.insert(0, 'tests/py'); from lake import Lake; a = sys.argv; \
        reads = Lake(a[1], a[2], a[3], a[4], ca=a[7]); writes = Lake(a[1], a[2], a[5], a[6], ca=a[7]); \
        keys = reads.keys('raw/'); print(keys, reads.get(keys[0])[0], writes.uploads())";
    let mut command = Command::new(interpreter());
    command.args([
        "-c",
        script,
        &lake.endpoint,
        &lake.bucket,
        &lake.reader.id,
        &lake.reader.secret,
    ]);
    command.args([&lake.writer.id, &lake.writer.secret, ca.to_str().unwrap()]);
    let ended = run(command, &dir.join("python")).await.unwrap();
    assert_eq!(ended.stdout.trim(), format!("['{key}'] b'bytes' []"), "{}", ended.stderr);
    assert_eq!(bucket.holds().unwrap(), (1, 5));
    bucket.close().await;
}

pub(crate) fn interpreter() -> PathBuf {
    let interpreter = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/py/bin/python");
    assert!(interpreter.is_file(), "run `make python` first");
    interpreter
}

/// The binary that cargo built for this test, or the one that `LAKEHEAD_BINARY` names.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("LAKEHEAD_BINARY")
        .map_or_else(|| env!("CARGO_BIN_EXE_lakehead").into(), PathBuf::from)
}

pub(crate) fn fresh_dir(story: &str) -> PathBuf {
    let dir = stories_dir().join(story);
    clear(&dir.join("postgres")).unwrap();
    fs::remove_dir_all(&dir).ok();
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn stories_dir() -> PathBuf {
    let stories = std::env::var_os("LAKEHEAD_STORIES").unwrap_or("target/it".into());
    Path::new(env!("CARGO_MANIFEST_DIR")).join(stories)
}

thread_local! {
    /// Whether no world was made in this story yet. A second server is to be another one to who follows the first.
    static FIRST: Cell<bool> = const { Cell::new(true) };
}

/// The database, and the name of the source.
pub(crate) const SOURCE: &str = "shop";
/// The box's slot, as it is named after appliance and source.
pub(crate) const SLOT: &str = "lakehead_demo_a_shop";
/// A table that stories move the position with; the shop has one already.
const MARK: &str = "CREATE TABLE IF NOT EXISTS mark (at timestamptz NOT NULL PRIMARY KEY); ALTER TABLE mark OWNER TO shop";
/// What the restored database must have before: types of extensions are not ours to create.
const EXTENSIONS: &str = "CREATE EXTENSION IF NOT EXISTS hstore";
/// `[ship] requests` as it is by default: parts in flight at once.
const REQUESTS: usize = 4;
const TICK: Duration = Duration::from_millis(250);
/// 10 minutes.
const SNAPSHOT_TRIES: usize = 30;
const PATIENCE_TICKS: u32 = 2_400;
/// Between two marks.
const MARK_TICKS: u32 = 20;
/// 90 s for what was begun to end.
const UPLOAD_TICKS: u32 = 360;
/// After 4 s with nothing but the ledger's an hour passes.
const HOUR_TICK: u32 = 16;
