//! Whether a server that was started since it was last followed still has the log that was followed.
//!
//! A database that is put back to a backup on the same timeline (its files copied back, a disk's image) shows
//! it by a log that ends before what this box holds: until that has grown past it. Then only what the server sends
//! tells. So behind a start of the server all after what the slot holds confirmed is asked for once more, and
//! nothing new is taken before the last transaction that is held came again; or, if it lies before that, as long as
//! others come that are not held.
//!
//! | fact | what |
//! |---|---|
//! | `source/started` | when the server that was believed was started, as it prints it |
//! | `source/last` | the last transaction before a mark, as [`Last`] |
//! | `source/first` | where the chain begins, of a box that began it: before that nothing is held |
//!
//! **Invariants:** a start is remembered only once the server is believed, before the first run that it sends; until
//! then nothing is confirmed that was not: a slot confirmed up to what is held sends nothing of it again.

use serde::{Deserialize, Serialize};

use super::{error::SourceError, session::Shared, wire::Wire};
use crate::{
    facts::{self, FactBatch, FactDamaged, Facts},
    source::Durable,
    units::{Position, Timestamp},
};

/// A transaction, as the server tells of it each time that it sends it. Where its commit record lies is not enough:
/// another log has another of the same size there.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(from = "Stored")]
pub(crate) struct Last {
    /// Where its commit record begins.
    pub(crate) begins: Position,
    /// Its commit time, if that is known.
    pub(crate) at: Option<Timestamp>,
}

/// As a firmware before commit times wrote it, too.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    Known { begins: Position, at: Option<Timestamp> },
    Place(Position),
}

impl From<Stored> for Last {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Known { begins, at } => Self { begins, at },
            Stored::Place(begins) => Self { begins, at: None },
        }
    }
}

impl Last {
    /// Whether it is the transaction that begins and was committed so.
    pub(crate) fn is(self, begins: Position, at: Timestamp) -> bool {
        self.begins == begins && self.at.is_none_or(|own| own == at)
    }
}

/// What a server that may have been put back to a backup sends again, if it was not, of what is held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Proof {
    /// A transaction that is held, as far as is known the last.
    Last(Last),
    /// The last transaction that is held, and up to a mark behind it none in which something happened to our tables.
    LastBeforeMark(Last),
    /// None in which something happened to our tables.
    Nothing,
}

/// How far the server is believed when a session begins.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Belief {
    /// What it has to send again first.
    pub(crate) proof: Option<Proof>,
    /// Its start, if it is to be remembered once it is believed.
    pub(crate) news: Option<String>,
    /// The last transaction that is held, if it is known.
    pub(crate) last: Option<Last>,
}

/// When the server was started.
pub(crate) async fn started(sql: &mut Wire) -> Result<String, SourceError> {
    let ask = "SELECT extract(epoch FROM pg_postmaster_start_time())::text";
    let rows = sql.query("ask when the server was started", ask).await?;
    Ok(rows.first().and_then(|row| row.optional(0)).unwrap_or_default().into())
}

/// Judges a server that was started at `started`, whose slot is confirmed up to `confirmed`.
pub(crate) fn judge(
    facts: &dyn Facts,
    durable: Durable,
    confirmed: Position,
    started: String,
) -> Result<Belief, FactDamaged> {
    let remembered: Option<Last> = facts::read(facts, LAST_FACT)?;
    let last = match durable.is_mark() {
        true => remembered.filter(|last| last.begins <= durable.begins),
        false => {
            let at = Some(durable.at).filter(|at| *at != Timestamp(0));
            Some(Last { begins: durable.begins, at })
        }
    };
    let known: Option<String> = facts::read(facts, STARTED_FACT)?;
    if known.as_ref() == Some(&started) {
        return Ok(Belief { last, ..Belief::default() });
    }
    let doubted = known.is_some() && confirmed < durable.point.position;
    // A point to which the journal went back has no time: it looks like a mark, and others may lie before it.
    let marked = durable.is_mark() && durable.at != Timestamp(0);
    let first: Option<Position> = facts::read(facts, FIRST_FACT)?;
    let proof = match last.filter(|_| doubted) {
        Some(last) if last.begins < confirmed => {
            (marked || !durable.is_mark()).then_some(Proof::Nothing)
        }
        Some(last) if marked => Some(Proof::LastBeforeMark(last)),
        Some(last) => Some(Proof::Last(last)),
        // Marks alone are held, from the beginning on.
        None => {
            let alone = doubted && marked && remembered.is_none();
            first.filter(|first| alone && *first <= confirmed).map(|_| Proof::Nothing)
        }
    };
    Ok(Belief { proof, news: Some(started), last })
}

/// The chain begins at `position`: of what lies before nothing is held.
pub(crate) fn begin(position: Position, batch: &mut FactBatch) {
    batch.put(FIRST_FACT, &position);
}

/// Remembers the start of a server that is believed.
pub(crate) async fn remember_start(shared: &Shared, started: &str) -> Result<(), SourceError> {
    let mut batch = FactBatch::default();
    batch.put(STARTED_FACT, &started);
    Ok(shared.facts.record(batch).await?)
}

/// Before a mark: remembers the last transaction before it.
pub(crate) async fn remember_last(shared: &Shared, last: Option<Last>) -> Result<(), SourceError> {
    let known: Option<Last> = facts::read(&*shared.facts, LAST_FACT)?;
    if let Some(last) = last.filter(|last| known != Some(*last)) {
        let mut batch = FactBatch::default();
        batch.put(LAST_FACT, &last);
        shared.facts.record(batch).await?;
    }
    Ok(())
}

const STARTED_FACT: &str = "source/started";
const LAST_FACT: &str = "source/last";
const FIRST_FACT: &str = "source/first";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{facts::MemoryFacts, units::Point};

    fn durable(begins: u64, position: u64) -> Durable {
        let point = Point { position: Position(position), ..Point::default() };
        Durable { point, begins: Position(begins), at: AT, ..Durable::default() }
    }

    const AT: Timestamp = Timestamp(77);

    fn last(begins: u64) -> Last {
        Last { begins: Position(begins), at: Some(AT) }
    }

    async fn facts(known: &[(&str, &str)]) -> MemoryFacts {
        let facts = MemoryFacts::default();
        let mut batch = FactBatch::default();
        for (key, value) in known {
            batch.changes.push(((*key).into(), Some(value.as_bytes().into())));
        }
        facts.record(batch).await.unwrap();
        facts
    }

    #[tokio::test]
    async fn a_server_started_since_sends_again_what_is_held_and_not_confirmed() {
        let before = facts(&[(STARTED_FACT, "\"7\"")]).await;
        let proof = |facts: &MemoryFacts, durable, confirmed, started: &str| {
            judge(facts, durable, Position(confirmed), started.into()).unwrap().proof
        };
        let held = durable(90, 100);
        assert_eq!(proof(&before, held, 50, "7"), None, "it was not started since");
        assert_eq!(proof(&before, held, 50, "8"), Some(Proof::Last(last(90))));
        assert_eq!(proof(&before, held, 90, "8"), Some(Proof::Last(last(90))));
        assert_eq!(proof(&before, held, 91, "8"), Some(Proof::Nothing));
        assert_eq!(proof(&before, held, 100, "8"), None, "nothing is held that is not confirmed");
        assert_eq!(proof(&MemoryFacts::default(), held, 50, "8"), None, "nothing was believed");
        let believed = judge(&before, held, Position(100), "8".into()).unwrap();
        assert_eq!(believed.news.as_deref(), Some("8"));
    }

    #[tokio::test]
    async fn behind_a_mark_the_last_transaction_is_remembered() {
        let fact = serde_json::to_string(&last(90)).unwrap();
        let known = facts(&[(STARTED_FACT, "\"7\""), (LAST_FACT, &fact)]).await;
        let mark = durable(199, 200);
        let judged = judge(&known, mark, Position(50), "8".into()).unwrap();
        assert_eq!(judged.proof, Some(Proof::LastBeforeMark(last(90))));
        let judged = judge(&known, mark, Position(95), "8".into()).unwrap();
        assert_eq!(judged.proof, Some(Proof::Nothing));
        // The journal went back to there: transactions of ours may lie between.
        let back = Durable { at: Timestamp(0), ..mark };
        let proof = |confirmed| judge(&known, back, Position(confirmed), "8".into()).unwrap().proof;
        assert_eq!([50, 95].map(proof), [Some(Proof::Last(last(90))), None]);
        // As a firmware wrote it that did not keep its time.
        let place = serde_json::to_string(&Position(90)).unwrap();
        let known = facts(&[(STARTED_FACT, "\"7\""), (LAST_FACT, &place)]).await;
        let judged = judge(&known, mark, Position(50), "8".into()).unwrap();
        let without = Last { begins: Position(90), at: None };
        assert_eq!(judged.proof, Some(Proof::LastBeforeMark(without)));
        // The journal went back to before it: which one is the last then is not known.
        let earlier = judge(&known, durable(79, 80), Position(50), "8".into()).unwrap();
        assert_eq!((earlier.proof, earlier.last), (None, None));
        // Marks alone are held: whatever comes before the last of them is of another log. But what the slot sends of
        // before the beginning was never held.
        let known = facts(&[(STARTED_FACT, "\"7\"")]).await;
        let mut batch = FactBatch::default();
        begin(Position(50), &mut batch);
        known.record(batch).await.unwrap();
        let proof = |confirmed| judge(&known, mark, Position(confirmed), "8".into()).unwrap().proof;
        assert_eq!([50, 49].map(proof), [Some(Proof::Nothing), None]);
        let held = judge(&known, durable(90, 100), Position(50), "8".into()).unwrap();
        assert_eq!(held.proof, Some(Proof::Last(last(90))));
    }
}
