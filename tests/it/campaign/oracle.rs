//! All that must hold after a round, and at a site's end.

use std::{collections::BTreeMap, fs, process::Command, time::Duration};

use lakehead::{
    demo::{bucket::BUCKET, compare::compare, gateway::run},
    error::Cause,
    ledger::EntryKind,
    telemetry::board::Alarm,
};
use tokio::time::sleep;

use super::site::{FOLLOWED, Site};
use crate::harness::{SOURCE, assert_all_equal, copied, interpreter};

impl Site {
    /// Proves the round.
    pub(super) async fn prove(&mut self) {
        self.gaps_are_repaired().await;
        self.world.caught_up().await;
        if let Some(small) = &self.disk {
            // As full as it was, it has caught up.
            small.relieve();
        }
        self.world.execute("TRUNCATE filler").await;
        self.world.caught_up().await;
        // Of a table without a key, only inserts are copied, and the box says so as long as it is there.
        let calm = |alarm: &Alarm| alarm.cause == Cause::TableRefused.name();
        self.world.until("no alarm is left", |status| status.alarms.values().all(calm)).await;
        self.assert_gaps();
        self.world.assert_proven().await;
        self.assert_proven_independently().await;
        self.assert_once();
        self.world.assert_no_upload_is_open().await;
        self.assert_stored_once();
        let ended = self.world.restore(FOLLOWED, &[]).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        let admin = self.world.admin().await;
        let restored = self.world.cluster.connect(FOLLOWED, &self.world.tasks).await.unwrap();
        assert_all_equal(&compare(&admin, &restored, copied).await.unwrap());
    }

    /// The lake as a whole, by readers that are not ours, and rebuilt from nothing.
    pub(super) async fn prove_whole(&mut self) -> String {
        let read = self.world.assert_readable().await;
        self.world.assert_restored_equal().await;
        read.to_string()
    }

    /// Waits until the ledger tells of every gap that there was, and all is read anew behind the last.
    async fn gaps_are_repaired(&mut self) {
        for tick in 0..GAP_TICKS {
            if self.told_gaps().len() >= self.gaps {
                if self.gaps > 0 {
                    self.world.repaired().await;
                }
                return;
            }
            if tick % 8 == 0 {
                // A standby that lacked changes must have grown past them.
                let admin = self.world.admin().await;
                admin.batch_execute("SELECT pg_switch_wal()").await.unwrap();
            }
            self.world.must_run();
            sleep(Duration::from_millis(250)).await;
        }
        let status = self.world.status().await;
        panic!("a gap is not said: {status:#?}\n{}", self.world.gateway.log_end());
    }

    fn assert_gaps(&self) {
        let told = self.told_gaps();
        assert_eq!(told.len(), self.gaps, "the ledger tells of: {told:?}");
    }

    /// What the ledger says of gaps.
    fn told_gaps(&self) -> Vec<String> {
        let entries = self.world.ledger().into_iter();
        let gaps = entries.filter(|entry| entry.kind == EntryKind::Gap);
        gaps.map(|gap| format!("entry {}: {}", gap.entry, gap.lost.unwrap_or_default())).collect()
    }

    /// `tests/verify.py` says PROVEN of a copy of the lake, which grows with it: what was stored is not
    /// stored again, see [`Site::assert_stored_once`].
    async fn assert_proven_independently(&self) {
        let folder = self.world.dir.join("copy");
        for key in self.world.bucket.double.keys(BUCKET, "raw/") {
            let path = folder.join(&key);
            if !path.exists() {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, self.world.bucket.double.object(BUCKET, &key).unwrap()).unwrap();
            }
        }
        let mut command = Command::new(interpreter());
        command.arg("tests/verify.py").arg(&folder).arg(SOURCE);
        command.arg(self.data_dir().join("identity.pub")).args(["--prefix", "raw", "--deep"]);
        let ended = run(command, &self.world.dir.join("python")).await.unwrap();
        assert!(ended.code == 0 && ended.stdout.contains("PROVEN"), "{ended:?}");
    }

    /// Of each table, no change stands in two objects, and no chunk that was read.
    fn assert_once(&self) {
        let keys = self.world.bucket.double.keys(BUCKET, "");
        let mut ranges: BTreeMap<&str, Vec<(u64, u64, &str)>> = BTreeMap::new();
        let mut names = BTreeMap::new();
        for key in keys.iter().filter(|key| key.ends_with(".parquet")) {
            let (folder, file) = key.rsplit_once('/').unwrap();
            let table = folder.rsplit_once("/dt=").unwrap().0;
            let (name, _hash) = file.rsplit_once('-').unwrap();
            let before = names.insert((table, name), key);
            assert!(before.is_none(), "twice: {key} and {before:?}");
            let mut words = name.split('-');
            if words.next() == Some("changes") {
                let mut number = || words.next().unwrap().parse::<u64>().unwrap();
                ranges.entry(table).or_default().push((number(), number(), key));
            }
        }
        for (table, mut ranges) in ranges {
            ranges.sort_unstable();
            for pair in ranges.windows(2) {
                let parts = (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1);
                assert!(parts || pair[0].1 < pair[1].0, "{table}: {} and {}", pair[0].2, pair[1].2);
            }
        }
    }

    /// No key was stored a second time.
    fn assert_stored_once(&mut self) {
        for (key, times) in self.world.bucket.sent().stored {
            assert!(times == 1 && self.stored.insert(key.clone()), "stored again: {key}");
        }
        self.world.bucket.double.forget_requests();
    }
}

/// 10 minutes.
const GAP_TICKS: u32 = 2_400;
