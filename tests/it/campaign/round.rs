//! One round: strikes, heals, proves.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fastrand::Rng;
use lakehead::{
    demo::{
        bucket::BUCKET,
        compare::compare,
        proxy::{Proxy, Way},
        s3::{self, Role},
        workload::{Tally, Workload},
    },
    shutdown::Tasks,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::faults::{Fault, Lane, draw};
use crate::harness::{Lanes, Setup, World, assert_all_equal, copied};

/// The appliance under fire. Its lake is rebuilt in a second database, which goes on round by round.
pub(super) struct Campaign {
    world: World,
    workload: Workload,
    seed: u64,
    /// How often each kind of fault struck.
    struck: BTreeMap<String, u32>,
    /// Whether this life was to meet an error of the disk, which it may end of.
    doomed: bool,
}

impl Campaign {
    pub(super) async fn new(seed: u64) -> Self {
        let setup = Setup {
            object_bytes: "6 MiB".into(),
            proxied: true,
            settings: vec![("wal_sender_timeout".into(), "20s".into())],
            ..Setup::default()
        };
        let mut world = World::new("campaign", setup).await;
        let config = world.site.dir.join("site.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let parts = format!("{text}\n[ship]\npart_bytes = \"5 MiB\"\n");
        lakehead::disk::write_durably(&config, parts.as_bytes()).unwrap();
        let workload = world.workload(seed, 20_000_000, 150.0).await;
        world.start();
        world.caught_up().await;
        drop(world.restored(FOLLOWED, &[]).await);
        Self { world, workload, seed, struck: BTreeMap::new(), doomed: false }
    }

    /// Round `number` of `of`.
    pub(super) async fn round(&mut self, number: u64, of: u64) {
        let mut rng = Rng::with_seed(self.seed.wrapping_mul(1_000_003).wrapping_add(number));
        let faults = draw(&mut rng);
        eprintln!("round {} of {of}, seed {}: {faults:?}", number + 1, self.seed);
        let stop = CancellationToken::new();
        let workload = Workload { seed: self.seed.wrapping_add(number), ..self.workload.clone() };
        let tasks = self.world.tasks.clone();
        let work = work(&workload, &tasks, &stop, rng.u32(0..4) == 0);
        let strike = async {
            self.strike(faults).await;
            stop.cancel();
        };
        tokio::join!(work, strike);
        self.heal().await;
        self.prove().await;
    }

    /// Lets the faults strike, each at its moment, on top of those that still last.
    async fn strike(&mut self, faults: Vec<(Duration, Fault)>) {
        let mut past = Duration::ZERO;
        let mut healing: Duration = Duration::ZERO;
        for (at, fault) in faults {
            sleep(at.saturating_sub(past)).await;
            past = at;
            let kind = format!("{fault:?}");
            let kind = kind.split(['(', ' ', '{']).next().unwrap_or_default().to_owned();
            *self.struck.entry(kind).or_default() += 1;
            let lasts = self.apply(fault).await;
            healing = healing.max(at + lasts);
            self.revive();
        }
        sleep(healing.saturating_sub(past) + Duration::from_millis(200)).await;
    }

    /// Begins a fault; how long it lasts.
    async fn apply(&mut self, fault: Fault) -> Duration {
        let now = Duration::ZERO;
        match fault {
            Fault::Kill => self.world.gateway.kill(),
            Fault::KillTwice(between) => {
                self.world.gateway.kill();
                self.world.start();
                sleep(between).await;
                self.world.gateway.kill();
            }
            Fault::Terminate => {
                let code = self.world.gateway.stop().await;
                assert!(code.is_none_or(|code| code == 0) || self.doomed, "SIGTERM: {code:?}");
            }
            Fault::Freeze(long) => {
                self.signal(Signal::SIGSTOP);
                sleep(long).await;
                self.signal(Signal::SIGCONT);
            }
            Fault::Call(call) => {
                self.world.gateway.kill();
                let inject = call.injection();
                // The tracer is a grandchild: the child is the gateway itself.
                let words = ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e"];
                let trace = format!("trace={}", call.name);
                let last = [trace.as_str(), "-e", inject.as_str()];
                self.world.gateway.wrap(&[&words[..], &last[..]].concat());
                self.world.start();
                self.world.gateway.wrap(&[]);
                self.doomed = true;
            }
            Fault::Way(lane, way, long) => {
                self.lane(lane).set(way);
                return long;
            }
            Fault::Cut(lane) => self.lane(lane).cut(),
            Fault::Lake(rule, long) => {
                self.world.bucket.double.fault(rule);
                return long;
            }
            Fault::Expired(long) => {
                self.keys(false);
                return long;
            }
            Fault::Skewed(seconds, long) => {
                self.world.bucket.skew(seconds);
                return long;
            }
            Fault::Server(how) => {
                tokio::task::block_in_place(|| self.world.cluster.restart(how)).unwrap();
            }
        }
        now
    }

    /// Starts the gateway if it is not there. One that was to meet an error of the disk may have ended.
    fn revive(&mut self) {
        if let Some(code) = self.world.gateway.ended() {
            assert!(self.doomed, "ended with {code}:\n{}", self.world.gateway.log_end());
            assert_ne!(code, 3, "fenced:\n{}", self.world.gateway.log_end());
        }
        if self.world.gateway.pid().is_none() {
            self.doomed = false;
            self.world.start();
        }
    }

    /// Takes every fault away.
    async fn heal(&mut self) {
        self.world.bucket.double.heal();
        self.world.bucket.skew(0);
        self.keys(true);
        for lane in [Lane::Source, Lane::Lake] {
            self.lane(lane).set(Way::Open);
        }
        if self.doomed {
            // Its calls could fail still.
            self.world.gateway.kill();
        }
        self.revive();
    }

    /// All that must hold after a round.
    async fn prove(&mut self) {
        self.world.caught_up().await;
        self.world.assert_proven().await;
        self.assert_once();
        self.world.assert_no_upload_is_open().await;
        let ended = self.world.restore(FOLLOWED, &[]).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        let admin = self.world.admin().await;
        let restored = self.world.cluster.connect(FOLLOWED, &self.world.tasks).await.unwrap();
        assert_all_equal(&compare(&admin, &restored, copied).await.unwrap());
    }

    /// Of each table, no change stands in two objects, and no chunk of its snapshot.
    fn assert_once(&self) {
        let keys = self.world.bucket.double.keys(BUCKET, "");
        let mut ranges: BTreeMap<&str, Vec<(u64, u64, &str)>> = BTreeMap::new();
        let mut others = BTreeSet::new();
        for key in keys.iter().filter(|key| key.ends_with(".parquet")) {
            let (folder, file) = key.rsplit_once('/').unwrap();
            let table = folder.rsplit_once("/dt=").unwrap().0;
            let (name, _hash) = file.rsplit_once('-').unwrap();
            let mut words = name.split('-');
            if words.next() == Some("changes") {
                let mut number = || words.next().unwrap().parse::<u64>().unwrap();
                ranges.entry(table).or_default().push((number(), number(), key));
            } else {
                assert!(others.insert((table, name)), "twice: {key}");
            }
        }
        for (table, mut ranges) in ranges {
            ranges.sort_unstable();
            for pair in ranges.windows(2) {
                assert!(pair[0].1 < pair[1].0, "{table}: {} and {}", pair[0].2, pair[1].2);
            }
        }
    }

    /// The lake as a whole, by readers that are not ours, and rebuilt from nothing.
    pub(super) async fn end(mut self) {
        let read = self.world.assert_readable().await;
        self.world.assert_restored_equal().await;
        let peak = self.world.peak_bytes() >> 20;
        eprintln!("struck: {:?}; {peak} MiB resident at most; the lake: {read}", self.struck);
        self.world.end().await;
    }

    fn lane(&self, lane: Lane) -> &Proxy {
        let Lanes { source, lake } = self.world.lanes.as_ref().unwrap();
        match lane {
            Lane::Source => source,
            Lane::Lake => lake,
        }
    }

    /// The store knows the box's credentials, or does not.
    fn keys(&self, known: bool) {
        let lake = &self.world.site.lake;
        let key = |key: &lakehead::demo::site::Key, role| s3::Key::new(&key.id, &key.secret, role);
        let mut keys = vec![key(&lake.reader, Role::Reader)];
        if known {
            keys.push(key(&lake.writer, Role::Writer));
        }
        self.world.bucket.double.set_keys(keys);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.world.gateway.pid() {
            kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
        }
    }
}

/// Works until `stop`, also over restarts of the server.
async fn work(workload: &Workload, tasks: &Tasks, stop: &CancellationToken, large: bool) {
    let tally = Tally::default();
    if large {
        // The server may go away under it: then it is rolled back.
        drop(workload.large(20_000, &tally, tasks).await);
    }
    while !stop.is_cancelled() {
        if workload.run(&tally, tasks, stop).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The database that follows.
const FOLLOWED: &str = "followed";
