//! The appliance under fire, and all that a round can break around it.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use lakehead::{
    demo::{
        cluster::{Cluster, connect},
        ground::clear,
        proxy::Proxy,
        workload::{Tally, Workload},
    },
    disk,
};
use tokio::{task::block_in_place, time::sleep};
use tokio_util::sync::CancellationToken;

use super::faults::{Ground, Lane};
use crate::{
    harness::{Lanes, SLOT, Setup, World},
    small_disk::SmallDisk,
};

/// A site: one appliance, its database and its store, for some rounds. Its lake is rebuilt in a second
/// database, which goes on round by round.
pub(super) struct Site {
    // Dropped before what it stands on.
    pub(super) world: World,
    pub(super) disk: Option<SmallDisk>,
    /// The file that sets the box's clock, if it has one of its own.
    clock: Option<PathBuf>,
    /// By this address the shop reaches whichever server is the primary.
    front: Proxy,
    pub(super) standby: Option<Cluster>,
    standbys: u32,
    workload: Workload,
    /// Gaps that the ledger must tell of by now, and no others.
    pub(super) gaps: usize,
    /// Whether this life was to meet an error of the disk, which it may end of.
    pub(super) doomed: bool,
    /// What the store took, once each.
    pub(super) stored: BTreeSet<String>,
}

impl Site {
    /// A site that streams, copied and restored for the first time. Site `number` of a seed.
    pub(super) async fn new(seed: u64, number: u64, ground: Ground) -> Self {
        let story = format!("campaign-{seed}");
        sweep(&story);
        let release = ["auto", "journal", "lake"][usize::try_from(number % 3).unwrap()];
        let setup = Setup {
            object_bytes: "6 MiB".into(),
            proxied: true,
            release: release.into(),
            journal_max: if ground.small { "512 MiB" } else { "4 GiB" }.into(),
            // A standby has all that a slot may need.
            settings: [
                ("wal_sender_timeout", "20s"),
                ("wal_keep_size", "1GB"),
                ("wal_retrieve_retry_interval", "200ms"),
            ]
            .map(|(name, value)| (name.into(), value.into()))
            .to_vec(),
            ..Setup::default()
        };
        let world = World::new(&story, setup).await;
        configure(&world.site.dir.join("site.toml"));
        let front = Proxy::start(address(&world.cluster)).await.unwrap();
        let mut workload = world.workload(seed, WORKLOAD_BYTES, 150.0).await;
        let port = format!(":{}/", world.cluster.port());
        workload.url = workload.url.replace(&port, &format!(":{}/", front.address().port()));
        world.execute_each(FILLER).await;
        let disk = ground.small.then(|| SmallDisk::mount(&world.site.data_dir(), SMALL_BYTES));
        let mut site = Self {
            world,
            disk,
            clock: None,
            front,
            standby: None,
            standbys: 0,
            workload,
            gaps: 0,
            doomed: false,
            stored: BTreeSet::new(),
        };
        if ground.clock {
            site.give_clock();
        }
        site.start(&[]);
        site.world.caught_up().await;
        drop(site.world.restored(FOLLOWED, &[]).await);
        site
    }

    /// Starts the gateway, through these words if there are any.
    pub(super) fn start(&mut self, through: &[&str]) {
        let around = self.disk.as_ref().map_or(vec![], SmallDisk::around);
        let base: Vec<&str> = around.iter().map(String::as_str).collect();
        self.world.gateway.wrap(&[&base[..], through].concat());
        self.world.start();
        self.world.gateway.wrap(&base);
    }

    /// The way from the box to its database, or to its store.
    pub(super) fn lane(&self, lane: Lane) -> &Proxy {
        let Lanes { source, lake } = self.world.lanes.as_ref().unwrap();
        match lane {
            Lane::Source => source,
            Lane::Lake => lake,
        }
    }

    /// Where the box keeps its data, for those outside.
    pub(super) fn data_dir(&self) -> PathBuf {
        self.disk.as_ref().map_or_else(|| self.world.site.data_dir(), SmallDisk::outside)
    }

    /// Has the box's clock go so many seconds ahead.
    pub(super) fn set_clock(&self, ahead_s: i64) {
        if let Some(path) = &self.clock {
            disk::write_durably(path, format!("{ahead_s:+}").as_bytes()).unwrap();
        }
    }

    fn give_clock(&mut self) {
        let path = self.world.dir.join("clock");
        let library = LIBRARIES.iter().find(|path| Path::new(path).is_file());
        let library = library.expect("libfaketime is installed: make test-tools");
        for (name, value) in [
            ("LD_PRELOAD", *library),
            ("FAKETIME_TIMESTAMP_FILE", path.to_str().unwrap()),
            ("FAKETIME_CACHE_DURATION", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_DISABLE_SHM", "1"),
            ("NO_FAKE_STAT", "1"),
        ] {
            self.world.gateway.set(name, value);
        }
        self.clock = Some(path);
        self.set_clock(0);
    }

    /// Makes a standby that has all that the slot needs, so that it can take it over.
    pub(super) async fn ready_standby(&mut self) {
        self.standbys += 1;
        let dir = self.world.dir.join(format!("{STANDBY}{}", self.standbys));
        self.standby = Some(block_in_place(|| self.world.cluster.standby(&dir)).unwrap());
        let admin = self.world.admin().await;
        let since = "SELECT redo_lsn::text FROM pg_control_checkpoint()";
        let since: String = admin.query_one(since, &[]).await.unwrap().get(0);
        let ripe = format!(
            "SELECT FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND restart_lsn >= '{since}'"
        );
        for tick in 0..RIPE_TICKS {
            if admin.query(&ripe, &[]).await.unwrap().len() == 1 {
                return;
            }
            if tick % 8 == 0 {
                let on = "CHECKPOINT; INSERT INTO public.mark VALUES (clock_timestamp())";
                for statement in on.split("; ") {
                    admin.batch_execute(statement).await.unwrap();
                }
            }
            self.world.must_run();
            sleep(Duration::from_millis(250)).await;
        }
        panic!("the slot stays behind {since}:\n{}", self.world.gateway.log_end());
    }

    /// All who look for the primary find this one from now on.
    pub(super) fn turn_to_primary(&self) {
        self.front.turn(address(&self.world.cluster));
        self.lane(Lane::Source).turn(address(&self.world.cluster));
    }

    /// Works until `stop`, also over restarts of the server, with keys of its own.
    pub(super) fn work(
        &self,
        seed: u64,
        round: u64,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let (tally, tasks) = (Tally::default(), self.world.tasks.clone());
        let mut workload = Workload { seed, ..self.workload.clone() };
        workload.rows.made = round * KEYS_PER_ROUND;
        async move {
            while !stop.is_cancelled() {
                if workload.run(&tally, &tasks, &stop).await.is_err() {
                    sleep(Duration::from_millis(100)).await;
                    // What was begun may have been committed.
                    workload.rows.made += KEYS_PER_RUN;
                }
            }
        }
    }

    /// A transaction that is larger than any queue, and one with an object of several parts. The server may
    /// go away under them.
    pub(super) fn work_large(&self, seed: u64) -> impl Future<Output = ()> + use<> {
        let (tally, tasks) = (Tally::default(), self.world.tasks.clone());
        let workload = Workload { seed, ..self.workload.clone() };
        async move {
            drop(workload.large(20_000, &tally, &tasks).await);
            if let Ok(shop) = connect(&workload.url, &workload.password, &tasks).await {
                drop(shop.batch_execute(&filler(70)).await);
            }
        }
    }

    /// How much its lake holds.
    pub(super) fn holds(&self) -> String {
        let (objects, bytes) = self.world.bucket.holds().unwrap();
        format!("{objects} objects, {} MiB", bytes >> 20)
    }

    /// Ends it, and removes its folder: it went well.
    pub(super) async fn end(self) {
        self.world.end().await;
        drop(self.disk);
        self.front.stop().await;
    }
}

/// Adds rows that cannot be compressed, of 100 kB.
pub(super) fn filler(rows: u32) -> String {
    format!(
        "INSERT INTO filler (body) SELECT noise((random() * 1e9)::bigint, 100000) \
         FROM generate_series(1, {rows}) AS n"
    )
}

/// Several parts for an object, and several segments for a small journal.
fn configure(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    let text = text.replace("[journal]\n", "[journal]\nsegment_bytes = \"4 MiB\"\n");
    let text = format!("{text}\n[ship]\npart_bytes = \"5 MiB\"\n");
    disk::write_durably(path, text.as_bytes()).unwrap();
}

/// Removes the servers that a campaign before, which failed, has left.
fn sweep(story: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/it").join(story);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(STANDBY) {
            clear(&entry.path()).unwrap();
        }
    }
}

fn address(cluster: &Cluster) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, cluster.port()).into()
}

/// The database that follows.
pub(super) const FOLLOWED: &str = "followed";
/// What fills disks.
const FILLER: &str = "CREATE TABLE filler (id bigserial PRIMARY KEY, body bytea)";
const WORKLOAD_BYTES: u64 = 20_000_000;
/// Enough for the segments of a few seconds, the reserve (32 MiB), and what is sealed.
const SMALL_BYTES: u64 = 160 << 20;
const STANDBY: &str = "standby-";
/// 60 s.
const RIPE_TICKS: u32 = 240;
const KEYS_PER_RUN: u64 = 10_000;
const KEYS_PER_ROUND: u64 = 1_000_000;
/// Where Debian has it.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
];
