//! State machine of one object on its way. Pure: answers in, the next request out.
//!
//! ```text
//! New ──put──────────────────────────────────────────────▶ Shipped
//!  └──create──▶ Open ──every part acknowledged──▶ Closing ──complete──▶ Shipped
//!                 └──────restart──────┴──▶ Leaving ──abort──▶ New, or Shipped if the key exists
//! ```
//!
//! **Invariant (I21):** a state names at most one upload id, and an id is left only completed, aborted
//! or unknown to S3. (I20) Complete follows only when the parts make the whole object.
//!
//! Facts, so that a restart goes on from here: `ship/upload/<key>` holds [`Begun`] from the answer to
//! Create until the end; `ship/part/<key>/<number, 5 digits>` holds [`PartFact`]; `ship/done/<key>`
//! stands for `Shipped` until the ledger has the group. No upload fact is `New`. `ship/lost/<key>`: the spool does not
//! give its bytes any more; seal makes them anew at the next start.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{StoredPart, plan::PartPlan};
use crate::facts::{FactBatch, Facts};

/// Where one object stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Upload {
    /// S3 holds nothing of it that we know of.
    New,
    /// An upload is open; some parts are acknowledged.
    Open {
        /// As issued by S3.
        id: String,
        /// How the object is cut.
        plan: PartPlan,
        /// The acknowledged parts by number.
        parts: BTreeMap<u32, StoredPart>,
    },
    /// Every part is acknowledged. Complete may have been sent, even answered.
    Closing {
        /// As issued by S3.
        id: String,
        /// How the object is cut.
        plan: PartPlan,
        /// All parts by number.
        parts: BTreeMap<u32, StoredPart>,
    },
    /// The upload is of no more use and must be gone before another may be begun.
    Leaving {
        /// As issued by S3.
        id: String,
        /// Whether the object exists.
        shipped: bool,
    },
    /// The object exists under its key.
    Shipped,
}

/// What S3 answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// An upload id was issued.
    Created(String, PartPlan),
    /// A part was stored.
    PartStored(StoredPart),
    /// PutObject or Complete succeeded.
    Stored,
    /// The key exists: its name holds the hash of the content, so these very bytes are there.
    Exists,
    /// The upload cannot be finished: gone, conflicted with another, or not what was sealed.
    Restart,
    /// The upload was aborted, or is unknown to S3.
    Left,
}

/// What is to be done next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Send the object: whole, or by a new upload.
    Begin,
    /// Send the parts of these numbers, in any order, at once.
    Parts(Vec<u32>),
    /// Send Complete.
    Complete,
    /// Send Abort.
    Abort,
    /// Nothing.
    Done,
}

/// Value of the fact `ship/upload/<key>`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Begun {
    /// The upload's id.
    pub upload: String,
    /// Length of every part but the last.
    pub part_bytes: u64,
}

/// Value of the fact `ship/part/<key>/<number>`. Counts only beside the [`Begun`] of the same upload.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PartFact {
    /// The upload's id.
    pub upload: String,
    /// What S3 acknowledged.
    pub part: StoredPart,
}

impl Upload {
    /// Advances by one answer. An answer that does not belong to the state changes nothing: after a
    /// retry S3 may repeat itself.
    #[must_use]
    pub fn on(self, event: Event) -> Self {
        match (self, event) {
            (Self::New, Event::Created(id, plan)) => {
                Self::Open { id, plan, parts: BTreeMap::new() }
            }
            (Self::New, Event::Stored | Event::Exists) => Self::Shipped,
            (Self::Open { id, plan, mut parts }, Event::PartStored(part)) => {
                if fits(&plan, &part) {
                    parts.insert(part.number, part);
                }
                if parts.len() == usize::try_from(plan.parts()).unwrap_or(usize::MAX) {
                    Self::Closing { id, plan, parts }
                } else {
                    Self::Open { id, plan, parts }
                }
            }
            (Self::Closing { .. }, Event::Stored) => Self::Shipped,
            (Self::Closing { id, .. }, Event::Exists) => Self::Leaving { id, shipped: true },
            (Self::Open { id, .. } | Self::Closing { id, .. }, Event::Restart) => {
                Self::Leaving { id, shipped: false }
            }
            (Self::Leaving { shipped: true, .. }, Event::Left) => Self::Shipped,
            (Self::Leaving { shipped: false, .. }, Event::Left) => Self::New,
            (state, _) => state,
        }
    }

    /// What is to be done now, whether the process has just started or never stopped.
    pub fn next(&self) -> Effect {
        match self {
            Self::New => Effect::Begin,
            Self::Open { plan, parts, .. } => {
                Effect::Parts((1..=plan.parts()).filter(|n| !parts.contains_key(n)).collect())
            }
            Self::Closing { .. } => Effect::Complete,
            Self::Leaving { .. } => Effect::Abort,
            Self::Shipped => Effect::Done,
        }
    }

    /// The upload that S3 may hold open, if any.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Open { id, .. } | Self::Closing { id, .. } | Self::Leaving { id, .. } => Some(id),
            Self::New | Self::Shipped => None,
        }
    }

    /// The state that the facts tell of: `parts` may hold those of earlier uploads.
    pub fn recall(begun: Begun, plan: PartPlan, parts: impl IntoIterator<Item = PartFact>) -> Self {
        let open = Self::New.on(Event::Created(begun.upload.clone(), plan));
        let ours = parts.into_iter().filter(|fact| fact.upload == begun.upload);
        ours.fold(open, |state, fact| state.on(Event::PartStored(fact.part)))
    }
}

/// Whether a part is one of the plan's.
fn fits(plan: &PartPlan, part: &StoredPart) -> bool {
    plan.range(part.number).is_some_and(|range| range.end - range.start == part.bytes)
}

/// Key of the [`Begun`] of an object.
pub fn upload_fact(key: &str) -> String {
    format!("{UPLOAD_FACTS}{key}")
}

/// Prefix of an object's [`PartFact`]s.
pub fn part_facts(key: &str) -> String {
    format!("ship/part/{key}/")
}

/// Key of a [`PartFact`].
pub fn part_fact(key: &str, number: u32) -> String {
    format!("ship/part/{key}/{number:05}")
}

/// Key of the fact that an object is acknowledged.
pub fn done_fact(key: &str) -> String {
    format!("ship/done/{key}")
}

/// Key of the fact that the spool does not give an object's bytes.
pub fn lost_fact(key: &str) -> String {
    format!("{LOST_FACTS}{key}")
}

/// Keys of the objects whose bytes the spool does not give.
pub fn lost(facts: &dyn Facts) -> BTreeSet<String> {
    let found = facts.scan(LOST_FACTS).into_iter();
    found.map(|(fact, _)| fact[LOST_FACTS.len()..].to_owned()).collect()
}

/// Deletes what the facts hold of an object that is made anew. The next sweep aborts its upload.
pub fn abandon(facts: &dyn Facts, key: &str, batch: &mut FactBatch) {
    left(facts, key, batch);
    batch.delete(lost_fact(key));
}

/// Deletes what the facts hold of an object's upload.
pub(super) fn left(facts: &dyn Facts, key: &str, batch: &mut FactBatch) {
    if facts.get(&upload_fact(key)).is_some() {
        batch.delete(upload_fact(key));
    }
    for (fact, _) in facts.scan(&part_facts(key)) {
        batch.delete(fact);
    }
}

/// Prefix of all [`upload_fact`]s.
pub const UPLOAD_FACTS: &str = "ship/upload/";
/// Prefix of all [`lost_fact`]s.
const LOST_FACTS: &str = "ship/lost/";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ship::plan::Limits;

    fn plan() -> PartPlan {
        Limits::S3.cut(12 << 20, 5 << 20).unwrap().unwrap()
    }

    fn stored(number: u32) -> Event {
        let range = plan().range(number).unwrap_or(0..7);
        Event::PartStored(StoredPart {
            number,
            bytes: range.end - range.start,
            etag: format!("e{number}"),
            crc64nvme: String::new(),
        })
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0u32..3).prop_map(|n| Event::Created(format!("u{n}"), plan())),
            (0u32..5).prop_map(stored),
            (0u32..5).prop_map(stored),
            (0u32..5).prop_map(stored),
            Just(Event::Stored),
            Just(Event::Exists),
            Just(Event::Restart),
            Just(Event::Left),
        ]
    }

    proptest! {
        #[test]
        fn whatever_s3_answers_no_upload_is_forgotten_and_none_completed_short(
            events in proptest::collection::vec(any_event(), 0..60),
        ) {
            let mut state = Upload::New;
            for event in events {
                let before = state.clone();
                state = state.on(event.clone());
                if let (Some(old), new) = (before.id(), state.id()) {
                    let left = match (&event, &before) {
                        (Event::Stored, Upload::Closing { .. }) => true,
                        (Event::Left, Upload::Leaving { .. }) => true,
                        _ => new == Some(old),
                    };
                    prop_assert!(left, "{before:?} forgot its upload on {event:?}");
                }
                if let Upload::Closing { plan, parts, .. } = &state {
                    let whole: Vec<u32> = parts.keys().copied().collect();
                    prop_assert_eq!(whole, (1..=plan.parts()).collect::<Vec<_>>());
                    let bytes: u64 = parts.values().map(|part| part.bytes).sum();
                    prop_assert_eq!(bytes, plan.object_bytes());
                }
                if state == Upload::Shipped && before != Upload::Shipped {
                    let proof = matches!(event, Event::Stored | Event::Exists)
                        || matches!(before, Upload::Leaving { shipped: true, .. });
                    prop_assert!(proof, "shipped without proof: {before:?} on {event:?}");
                }
            }
        }
    }

    #[test]
    fn facts_of_another_upload_do_not_count() {
        let begun = Begun { upload: "u2".into(), part_bytes: 5 << 20 };
        let fact = |upload: &str, number| {
            let Event::PartStored(part) = stored(number) else { unreachable!() };
            PartFact { upload: upload.into(), part }
        };
        let state = Upload::recall(begun, plan(), [fact("u1", 1), fact("u2", 2)]);
        assert_eq!(state.next(), Effect::Parts(vec![1, 3]));
    }

    #[test]
    fn a_lost_complete_ends_with_the_proof_of_412() {
        let open = Upload::New.on(Event::Created("u1".into(), plan()));
        let closing = (1..=3).map(stored).fold(open, Upload::on);
        assert_eq!(closing.next(), Effect::Complete);
        // Complete took effect, its answer was lost, S3 no longer knows the upload.
        let leaving = closing.on(Event::Restart);
        assert_eq!(leaving.next(), Effect::Abort);
        let new = leaving.on(Event::Left);
        assert_eq!(new.next(), Effect::Begin);
        let again =
            (1..=3).map(stored).fold(new.on(Event::Created("u2".into(), plan())), Upload::on);
        let exists = again.on(Event::Exists);
        assert_eq!((exists.next(), exists.id()), (Effect::Abort, Some("u2")));
        assert_eq!(exists.on(Event::Left), Upload::Shipped);
    }

    #[test]
    fn the_facts_are_pinned() {
        let begun = Begun { upload: "u1".into(), part_bytes: 5 << 20 };
        let json = serde_json::to_string(&begun).unwrap();
        assert_eq!(json, r#"{"upload":"u1","part_bytes":5242880}"#);
        let Event::PartStored(part) = stored(3) else { unreachable!() };
        let json = serde_json::to_string(&PartFact { upload: "u1".into(), part }).unwrap();
        assert_eq!(
            json,
            r#"{"upload":"u1","part":{"number":3,"bytes":2097152,"etag":"e3","crc64nvme":""}}"#
        );
        assert_eq!(part_fact("a/b", 3), "ship/part/a/b/00003");
    }
}
