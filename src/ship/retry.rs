//! What an error of a request means, and how long to wait. Pure.
//!
//! **Invariant (I28):** every pause is jittered and between [`PAUSE_MIN`] and [`PAUSE_MAX`]; nothing is
//! given up that time or a person can heal.

use std::time::Duration;

use super::{Request, ShipError};
use crate::error::{Cause, Classified, Disposition};

/// What follows an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    /// The key exists: its name holds the hash of the content, so these very bytes are there.
    Exists,
    /// The upload cannot be finished: all parts again, by a new one.
    Restart,
    /// The same request again, after a pause.
    Retry(Pace),
    /// Nothing that this process could do.
    Fail,
}

/// How pauses grow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pace {
    /// Time heals it.
    Fast,
    /// S3 asks for fewer requests.
    Slow,
    /// A person must act.
    Steady,
}

/// The table.
pub fn decide(request: Request, error: &ShipError) -> Decision {
    let writes = matches!(request, Request::Put | Request::Complete);
    let uploads = matches!(request, Request::Part | Request::Complete);
    match error {
        ShipError::Exists { .. } if writes => Decision::Exists,
        ShipError::NoSuchUpload { .. } if uploads => Decision::Restart,
        ShipError::Conflict { .. } if uploads => Decision::Restart,
        // S3 or the proxy before it contradicts itself; looked at again, slowly, and loudly.
        ShipError::Exists { .. } | ShipError::NoSuchUpload { .. } => Decision::Retry(Pace::Steady),
        ShipError::Conflict { .. } | ShipError::Unanswered { .. } => Decision::Retry(Pace::Fast),
        ShipError::Failed { cause: Cause::LakeChecksum, .. } if request == Request::Complete => {
            Decision::Restart
        }
        ShipError::Failed { cause: Cause::LakeSlowDown, .. } => Decision::Retry(Pace::Slow),
        ShipError::Failed { .. } | ShipError::Setup { .. } => match error.cause().disposition() {
            Disposition::Retry(_) => Decision::Retry(Pace::Fast),
            Disposition::Halt(_) => Decision::Retry(Pace::Steady),
            Disposition::Fatal(_) | Disposition::Fenced(_) => Decision::Fail,
        },
        ShipError::TooLong { .. }
        | ShipError::Spool { .. }
        | ShipError::Lost { .. }
        | ShipError::Facts(_)
        | ShipError::Stopped => Decision::Fail,
    }
}

/// Pauses between tries of one request: exponential, with full jitter.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    least: Duration,
    most: Duration,
    tries: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::between(PAUSE_MIN, PAUSE_MAX)
    }
}

impl Backoff {
    /// Pauses within these bounds.
    pub fn between(least: Duration, most: Duration) -> Self {
        Self { least, most, tries: 0 }
    }

    /// How often it was asked for a pause.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// The next pause. `random` is uniform in 0..1.
    pub fn pause(&mut self, pace: Pace, random: f64) -> Duration {
        let first = match pace {
            Pace::Fast => 2,
            Pace::Slow => 5,
            Pace::Steady => 10,
        };
        let grown = 1u32.checked_shl(self.tries.min(20)).unwrap_or(u32::MAX).saturating_mul(first);
        self.tries = self.tries.saturating_add(1);
        let ceiling = self.least.saturating_mul(grown).clamp(self.least, self.most);
        self.least + (ceiling - self.least).mul_f64(random.clamp(0.0, 1.0))
    }
}

/// The shortest pause.
pub const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
pub const PAUSE_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failed(cause: Cause) -> ShipError {
        ShipError::Failed {
            request: "x",
            key: "k".into(),
            status: 500,
            code: "c".into(),
            message: "m".into(),
            cause,
        }
    }

    fn key() -> String {
        "k".into()
    }

    #[test]
    fn the_lost_answers_are_ordinary_cases() {
        let lost = ShipError::Unanswered { request: "x", key: key(), why: "reset".into() };
        for request in [Request::Put, Request::Create, Request::Part, Request::Complete] {
            assert_eq!(decide(request, &lost), Decision::Retry(Pace::Fast));
        }
        let exists = ShipError::Exists { key: key() };
        assert_eq!(decide(Request::Put, &exists), Decision::Exists);
        assert_eq!(decide(Request::Complete, &exists), Decision::Exists);
        let gone = ShipError::NoSuchUpload { key: key() };
        assert_eq!(decide(Request::Part, &gone), Decision::Restart);
        assert_eq!(decide(Request::Complete, &gone), Decision::Restart);
        let conflict = ShipError::Conflict { key: key() };
        assert_eq!(decide(Request::Put, &conflict), Decision::Retry(Pace::Fast));
        assert_eq!(decide(Request::Complete, &conflict), Decision::Restart);
        let sum = failed(Cause::LakeChecksum);
        assert_eq!(decide(Request::Part, &sum), Decision::Retry(Pace::Fast));
        assert_eq!(decide(Request::Complete, &sum), Decision::Restart);
    }

    #[test]
    fn only_lost_trust_in_this_box_gives_up() {
        for cause in Cause::ALL {
            let gives_up = decide(Request::Put, &failed(*cause)) == Decision::Fail;
            let fatal =
                matches!(cause.disposition(), Disposition::Fatal(_) | Disposition::Fenced(_));
            assert_eq!(gives_up, fatal, "{}", cause.name());
        }
        let spool = ShipError::Spool { path: key(), why: key() };
        let lost = ShipError::Lost { path: key(), why: key() };
        for gone in [spool, lost] {
            assert_eq!(decide(Request::Put, &gone), Decision::Fail);
        }
    }

    proptest! {
        #[test]
        fn every_pause_is_bounded_and_their_ceiling_grows(
            paces in proptest::collection::vec(0u8..3, 1..64), random in 0f64..1.0,
        ) {
            let (mut any, mut ceiling) = (Backoff::default(), Backoff::default());
            let mut before = Duration::ZERO;
            for pace in paces {
                let pace = [Pace::Fast, Pace::Slow, Pace::Steady][usize::from(pace)];
                let pause = any.pause(pace, random);
                prop_assert!((PAUSE_MIN..=PAUSE_MAX).contains(&pause));
                let most = ceiling.pause(Pace::Fast, 1.0);
                prop_assert!(most >= before);
                before = most;
            }
        }
    }

    #[test]
    fn pauses_are_jittered_over_their_whole_range() {
        let at = |random| {
            let mut backoff = Backoff::default();
            for _ in 0..12 {
                backoff.pause(Pace::Fast, 0.5);
            }
            backoff.pause(Pace::Fast, random)
        };
        assert_eq!((at(0.0), at(1.0)), (PAUSE_MIN, PAUSE_MAX));
    }
}
