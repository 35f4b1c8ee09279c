//! What can strike in a round, drawn from its seed.

use std::time::Duration;

use fastrand::Rng;
use lakehead::demo::{
    cluster::Stop,
    proxy::Way,
    s3::{Fault as LakeFault, Rule},
};

/// Something that goes wrong.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// SIGKILL, and a new start.
    Kill,
    /// SIGKILL, and again while it recovers.
    KillTwice(Duration),
    /// SIGTERM, and a new start.
    Terminate,
    /// SIGSTOP for a while, then SIGCONT.
    Freeze(Duration),
    /// The next life meets an error at the n-th call of a kind.
    Call(Call),
    /// Its connections to the database, or to the store, go this way for a while.
    Way(Lane, Way, Duration),
    /// These connections are broken.
    Cut(Lane),
    /// The store does this to one kind of request for a while.
    Lake(Rule, Duration),
    /// The store does not know the credentials for a while.
    Expired(Duration),
    /// The store's clock is this much ahead for a while.
    Skewed(i64, Duration),
    /// The database server stops and starts.
    Server(Stop),
}

/// Which connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Lane {
    Source,
    Lake,
}

/// A system call that fails.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// Its name.
    pub(super) name: &'static str,
    /// What it answers.
    pub(super) error: &'static str,
    /// Which one, from 1.
    pub(super) nth: u32,
    /// How many in a row.
    pub(super) times: u32,
}

impl Call {
    /// As `strace -e` wants it.
    pub(super) fn injection(&self) -> String {
        let Self { name, error, nth, times } = self;
        format!("inject={name}:error={error}:when={nth}..{}", nth + times - 1)
    }
}

/// What strikes in a round, and when, from its beginning: ascending.
pub(super) fn draw(rng: &mut Rng) -> Vec<(Duration, Fault)> {
    let moment = |rng: &mut Rng| Duration::from_millis(rng.u64(100..3000));
    let mut drawn: Vec<_> = (0..rng.usize(1..3)).map(|_| (moment(rng), fault(rng))).collect();
    let kill = match rng.u32(0..5) {
        0 => Fault::KillTwice(Duration::from_millis(rng.u64(1..400))),
        _ => Fault::Kill,
    };
    drawn.push((moment(rng), kill));
    drawn.sort_by_key(|(at, _)| *at);
    drawn
}

fn fault(rng: &mut Rng) -> Fault {
    let long = Duration::from_millis(rng.u64(200..4000));
    match rng.u32(0..100) {
        0..6 => Fault::Terminate,
        6..14 => Fault::Freeze(long),
        14..26 => Fault::Call(call(rng)),
        26..46 => Fault::Way(lane(rng), way(rng), long),
        46..56 => Fault::Cut(lane(rng)),
        56..88 => Fault::Lake(rule(rng), long),
        88..91 => Fault::Expired(long),
        91..94 => Fault::Skewed(*one(rng, &[-900, 900]), long),
        94..97 => Fault::Server(Stop::Fast),
        _ => Fault::Server(Stop::Immediate),
    }
}

fn call(rng: &mut Rng) -> Call {
    let (name, error) = *one(
        rng,
        &[
            ("fdatasync", "EIO"),
            ("fsync", "EIO"),
            ("pwrite64", "EIO"),
            ("pwrite64", "ENOSPC"),
            ("write", "ENOSPC"),
            ("fallocate", "ENOSPC"),
        ],
    );
    let nth = match name {
        "fsync" => rng.u32(1..40),
        _ => rng.u32(1..200),
    };
    Call { name, error, nth, times: rng.u32(1..4) }
}

fn lane(rng: &mut Rng) -> Lane {
    *one(rng, &[Lane::Source, Lane::Lake])
}

fn way(rng: &mut Rng) -> Way {
    *one(rng, &[Way::Refuse, Way::Stall, Way::HalfOpen, Way::Slow(50_000), Way::Slow(1_000_000)])
}

fn rule(rng: &mut Rng) -> Rule {
    let operation = *one(
        rng,
        &[
            "PutObject",
            "CreateMultipartUpload",
            "UploadPart",
            "CompleteMultipartUpload",
            "AbortMultipartUpload",
            "ListParts",
            "ListMultipartUploads",
            "",
        ],
    );
    let fault = match rng.u32(0..12) {
        0 => LakeFault::Refuse(503, "SlowDown"),
        1 => LakeFault::Refuse(500, "InternalError"),
        2 => LakeFault::Refuse(403, "AccessDenied"),
        3 => LakeFault::Refuse(409, "ConditionalRequestConflict"),
        4 => LakeFault::Refuse(400, "RequestTimeout"),
        5 => LakeFault::Delay(Duration::from_millis(rng.u64(1..1500))),
        6 => LakeFault::Cut(rng.u64(0..200_000)),
        7 => LakeFault::LoseAnswer,
        8 => LakeFault::ErrorBody,
        9 => LakeFault::ErrorBodyAfter,
        10 => LakeFault::Stall,
        _ => LakeFault::Corrupt,
    };
    let chance = *one(rng, &[0.1, 0.5, 1.0]);
    Rule { skip: rng.u32(0..3), ..Rule::often(operation, chance, fault) }
}

fn one<'a, T>(rng: &mut Rng, of: &'a [T]) -> &'a T {
    &of[rng.usize(..of.len())]
}
