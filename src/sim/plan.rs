//! What a seed stands for: the sizes, the rules, the weather and the accidents of one run.

use std::time::Duration;

use super::{appliance::Setup, lake::Weather};
use crate::{
    config::{self, AfterGap, LargeTransactions, Release, SnapshotPace, SourceKind},
    source::postgres::batch::Sizes,
};

/// What is drawn before the run begins.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) setup: Setup,
    pub(crate) release: Release,
    /// Appliances on the source.
    pub(crate) boxes: usize,
    /// The server goes on from what was confirmed, whatever it is asked for.
    pub(crate) resends: bool,
    pub(crate) chaos: Duration,
    /// The longest pause between two things that the world does, in ms.
    pub(crate) pace_ms: u64,
    /// How wild it is: 0 calm to 3.
    pub(crate) wildness: u64,
}

/// What the world does next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Act {
    /// Some transactions are committed.
    Commit,
    /// Log that concerns nobody.
    Grow,
    /// A table gets a column.
    Alter,
    /// A box dies after some more effects.
    Kill,
    /// A box is asked to stop, as by SIGTERM.
    Stop,
    /// The next sync fails.
    BreakSync,
    /// The disk is nearly full, for a while.
    FillDisk,
    /// The lake's weather changes.
    Weather,
    /// The sessions are cut.
    Cut,
    /// The server crashes, or stops, for a while.
    Crash,
    /// A box's wall clock jumps.
    Jump,
    /// A standby takes over.
    Promote,
    /// A slot is dropped, or given up.
    LoseSlot,
    /// The database is put back to a backup.
    Restore,
}

impl Plan {
    /// Draws it.
    pub(crate) fn draw(random: &mut fastrand::Rng) -> Self {
        let rules = [Release::Auto, Release::Journal, Release::Lake];
        let release = rules[random.usize(..rules.len())];
        let small = random.bool();
        let source = config::Source {
            name: "erp".into(),
            kind: SourceKind::Postgres,
            url: "postgresql://lakehead@model:5432/erp?sslmode=disable".into(),
            password_file: None,
            client: None,
            tables: vec!["public.*".into(), "!public.scratch_*".into()],
            release,
            release_wal_max: if random.bool() { 2_000 } else { 1 << 30 },
            snapshot_workers: 1,
            snapshot_pace: SnapshotPace::Full,
            snapshot_age: Duration::from_secs(300),
            large_transactions: LargeTransactions::AsTheyCome,
            after_gap: AfterGap::Reread,
            sequence_interval: Duration::from_secs(60),
            large_objects: config::LargeObjects::Copy,
            publication: None,
            slot: None,
        };
        let run_bytes = random.usize(200..3_000);
        let setup = Setup {
            source,
            sizes: Sizes { run_bytes, piece_bytes: run_bytes + random.usize(0..3_000) },
            journal_bytes: if small { 160 << 10 } else { 4 << 20 },
            segment_bytes: random.u64(2_000..30_000),
            object_bytes: random.u64(300..6_000),
            object_age: Duration::from_millis(random.u64(200..6_000)),
            part_bytes: random.u64(600..2_000),
            requests: random.usize(1..5),
        };
        Self {
            setup,
            release,
            boxes: if random.u8(..7) == 0 { 2 } else { 1 },
            resends: random.bool(),
            chaos: Duration::from_millis(random.u64(4_000..30_000)),
            pace_ms: random.u64(60..1_200),
            wildness: random.u64(0..4),
        }
    }

    /// What comes next.
    pub(crate) fn act(&self, random: &mut fastrand::Rng) -> Act {
        let wild = self.wildness;
        let weights = [
            (Act::Commit, 60),
            (Act::Grow, 6),
            (Act::Alter, 1),
            (Act::Kill, 2 + 4 * wild),
            (Act::BreakSync, wild),
            (Act::FillDisk, wild),
            (Act::Weather, 3 + 2 * wild),
            (Act::Cut, 1 + wild),
            (Act::Crash, wild),
            (Act::Stop, 1 + wild),
            (Act::Jump, wild),
            (Act::Promote, wild.min(1)),
            (Act::LoseSlot, 0),
        ];
        let all: u64 = weights.iter().map(|(_, weight)| weight).sum();
        let mut dice = random.u64(..all);
        for (act, weight) in weights {
            if dice < weight {
                return match act {
                    Act::Promote => match random.u8(..8) {
                        0 => Act::LoseSlot,
                        1 if self.boxes == 1 => Act::Restore,
                        _ => Act::Promote,
                    },
                    act => act,
                };
            }
            dice -= weight;
        }
        Act::Commit
    }

    /// The weather.
    pub(crate) fn weather(&self, random: &mut fastrand::Rng) -> Weather {
        if random.u8(..6) == 0 {
            return Weather { down: true, ..Weather::default() };
        }
        let most = [5, 30, 80, 160][usize::try_from(self.wildness).unwrap_or(0).min(3)];
        let mut some = || random.u16(0..most);
        Weather {
            dropped: some(),
            lost: some(),
            late: some(),
            twice: some(),
            busy: some(),
            conflict: some(),
            denied: some() / 8,
            stalled: some() / 4,
            stale: some() * 4,
            down: false,
        }
    }
}
