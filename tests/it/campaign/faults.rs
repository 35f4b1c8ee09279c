//! What can strike in a round, drawn from its seed.

use std::time::Duration;

use fastrand::Rng;
use lakehead::demo::{
    cluster::Stop,
    proxy::Way,
    s3::{Fault as LakeFault, Rule},
};

use super::refusals;

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
    /// The store refuses the credentials, and takes them, or others, again in the end.
    Credentials(Credentials, Duration),
    /// The store's clock is this many seconds ahead for a while.
    StoreClock(i64, Duration),
    /// The box's clock jumps by so many seconds, and back in the end.
    BoxClock(i64),
    /// The database server stops and starts.
    Server(Stop),
    /// The database server is lost, and its standby promoted: with the slot, or without.
    Failover { slot: bool },
    /// The replication slot is dropped.
    SlotDropped,
    /// With the store away and so many bytes free, changes come until the disk is full; as small it stays
    /// until the lake has caught up.
    Filled(u64),
    /// A stranger's file takes all that is free, again and again, for a while.
    Crowded(Duration),
}

/// Which connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Lane {
    Source,
    Lake,
}

/// Why the store refuses the credentials.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Credentials {
    /// It does not know them.
    Unknown,
    /// They have expired.
    Expired,
    /// They have expired, and new ones come into the file.
    Replaced,
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

/// What a round is to bring.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// What strikes, and when, from the round's beginning: ascending.
    pub(super) faults: Vec<(Duration, Fault)>,
    /// What the store answers to a few requests besides.
    pub(super) refusals: Vec<Rule>,
    /// Whether a transaction comes that is larger than any queue.
    pub(super) large: bool,
    /// Whether the box has to find out by itself that the store does not answer any more what it was asked;
    /// else these connections are broken in the end.
    pub(super) patient: bool,
}

/// What a site is made of beyond what all have.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Ground {
    /// The box's data lies on a small file system.
    pub(super) small: bool,
    /// The box has a clock of its own.
    pub(super) clock: bool,
}

impl Ground {
    /// In words.
    pub(super) fn name(self) -> &'static str {
        match (self.small, self.clock) {
            (false, false) => "a site",
            (true, true) => "a site with a small disk and a clock of its own",
            (true, false) => "a site with a small disk",
            (false, true) => "a site with a clock of its own",
        }
    }
}

impl Call {
    /// As `strace -e` wants it.
    pub(super) fn injection(&self) -> String {
        let Self { name, error, nth, times } = self;
        format!("inject={name}:error={error}:when={nth}..{}", nth + times - 1)
    }
}

impl Fault {
    /// What it is counted as.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::Kill => "SIGKILL".into(),
            Self::KillTwice(_) => "SIGKILL, and in the recovery".into(),
            Self::Terminate => "SIGTERM".into(),
            Self::Freeze(_) => "SIGSTOP".into(),
            Self::Call(call) => format!("{} from {}", call.error, call.name),
            Self::Way(lane, way, _) => format!("{lane:?} {way:?}"),
            Self::Cut(lane) => format!("{lane:?} Cut"),
            Self::Lake(rule, _) => format!("Store {:?}", rule.fault),
            Self::Credentials(how, _) => format!("Credentials {how:?}"),
            Self::StoreClock(..) => "StoreClock".into(),
            Self::BoxClock(_) => "BoxClock".into(),
            Self::Server(how) => format!("Server {how:?}"),
            Self::Failover { slot: true } => "Failover with the slot".into(),
            Self::Failover { slot: false } => "Failover without the slot".into(),
            Self::SlotDropped => "SlotDropped".into(),
            Self::Filled(_) => "Disk filled by the journal".into(),
            Self::Crowded(_) => "Disk filled by a stranger".into(),
        }
    }

    /// Of these, a round has one.
    fn is_rare(&self) -> bool {
        matches!(self, Self::Failover { .. } | Self::SlotDropped | Self::Filled(_))
    }
}

/// What strikes in round `number`.
pub(super) fn draw(rng: &mut Rng, number: u64, ground: Ground) -> Plan {
    let moment = |rng: &mut Rng| Duration::from_millis(rng.u64(100..3000));
    let mut faults: Vec<_> =
        (0..rng.usize(1..4)).map(|_| (moment(rng), fault(rng, ground))).collect();
    let mut rare = false;
    faults.retain(|(_, fault)| !fault.is_rare() || !std::mem::replace(&mut rare, true));
    let kill = match rng.u32(0..5) {
        0 => Fault::KillTwice(Duration::from_millis(rng.u64(1..400))),
        _ => Fault::Kill,
    };
    faults.push((moment(rng), kill));
    faults.sort_by_key(|(at, _)| *at);
    let refusals = (0..2).map(|n| refusals::nth(2 * number + n, rng.u32(0..2), rng.u32(1..3)));
    let refusals = refusals.collect();
    Plan { faults, refusals, large: rng.u32(0..4) == 0, patient: rng.u32(0..4) == 0 }
}

fn fault(rng: &mut Rng, ground: Ground) -> Fault {
    let long = Duration::from_millis(rng.u64(200..4000));
    match rng.u32(0..120) {
        0..6 => Fault::Terminate,
        6..14 => Fault::Freeze(long),
        14..28 => Fault::Call(call(rng)),
        28..48 => Fault::Way(lane(rng), way(rng), long),
        48..56 => Fault::Cut(lane(rng)),
        56..76 => Fault::Lake(rule(rng), long),
        76..82 => {
            let how =
                *one(rng, &[Credentials::Unknown, Credentials::Expired, Credentials::Replaced]);
            Fault::Credentials(how, long)
        }
        82..85 => Fault::StoreClock(*one(rng, &[-1200, 1200]), long),
        85..92 if ground.clock => {
            Fault::BoxClock(*one(rng, &[-90_000, -1200, -200, 200, 1200, 90_000]))
        }
        92..104 if ground.small => match rng.bool() {
            true => Fault::Filled(rng.u64(1..24) << 20),
            false => Fault::Crowded(long),
        },
        104..107 => Fault::Server(Stop::Fast),
        107..110 => Fault::Server(Stop::Immediate),
        110..113 => Fault::Failover { slot: true },
        113..116 => Fault::Failover { slot: false },
        116..118 => Fault::SlotDropped,
        _ => Fault::Freeze(long),
    }
}

fn call(rng: &mut Rng) -> Call {
    let (name, error) = *one(
        rng,
        &[
            ("fdatasync", "EIO"),
            ("fdatasync", "ENOSPC"),
            ("fsync", "EIO"),
            ("fsync", "ENOSPC"),
            ("pwrite64", "EIO"),
            ("pwrite64", "ENOSPC"),
            ("write", "EIO"),
            ("write", "ENOSPC"),
            ("fallocate", "ENOSPC"),
            ("rename", "EIO"),
        ],
    );
    let nth = match name {
        "fsync" => rng.u32(1..40),
        "rename" => rng.u32(1..4),
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
    let fault = match rng.u32(0..10) {
        0 => LakeFault::Refuse(503, "SlowDown"),
        1 => LakeFault::Refuse(500, "InternalError"),
        2 => LakeFault::Refuse(403, "AccessDenied"),
        3 => LakeFault::Delay(Duration::from_millis(rng.u64(1..1500))),
        4 => LakeFault::Cut(rng.u64(0..200_000)),
        5 => LakeFault::LoseAnswer,
        6 => LakeFault::ErrorBody,
        7 => LakeFault::ErrorBodyAfter,
        8 => LakeFault::Stall,
        _ => LakeFault::Corrupt,
    };
    let operation = match rng.u32(0..4) {
        0 => "",
        _ => *one(rng, &refusals::CALLS),
    };
    let chance = *one(rng, &[0.1, 0.5, 1.0]);
    Rule { skip: rng.u32(0..3), ..Rule::often(operation, chance, fault) }
}

fn one<'a, T>(rng: &mut Rng, of: &'a [T]) -> &'a T {
    &of[rng.usize(..of.len())]
}

#[test]
fn the_same_round_draws_the_same() {
    let ground = Ground { small: true, clock: true };
    for number in 0..200 {
        let said = || format!("{:?}", draw(&mut Rng::with_seed(number), number, ground));
        assert_eq!(said(), said());
        let plan = draw(&mut Rng::with_seed(number), number, ground);
        assert!(
            plan.faults.iter().any(|(_, fault)| matches!(fault, Fault::Kill | Fault::KillTwice(_)))
        );
        assert!(plan.faults.iter().filter(|(_, fault)| fault.is_rare()).count() <= 1);
    }
}
