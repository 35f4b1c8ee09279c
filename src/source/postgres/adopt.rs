//! Takes over what a lost box made on the server: which slot that is, and whether it still has what
//! comes next.
//!
//! The slot keeps the name that the box gave it which made it: the first to write the chain. What the
//! server was allowed to forget before the lake had it is lost with the box, and is said
//! beforehand; a session judges it again, and stops there.

use super::{
    SourceError,
    chunks::Plan,
    connect::Target,
    login::Purpose,
    name::Names,
    origin::{self, Server, Slot},
    own_url, slot,
    snapshot::plan_fact,
};
use crate::{
    config,
    facts::FactBatch,
    source::{
        Origin,
        reread::{Span, span_fact},
    },
    units::Position,
};

/// What a chain says of the database that it was written from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chain {
    /// The appliances that wrote it, the first one first.
    pub appliances: Vec<String>,
    /// PostgreSQL's `system_identifier`.
    pub system_identifier: String,
    /// PostgreSQL's timeline.
    pub timeline: u32,
    /// Where its changes end; `None`: it has none yet.
    pub reached: Option<Position>,
    /// Where its oldest snapshot stands.
    pub snapshot: Option<Position>,
}

/// Whether the server has what comes after a chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outlook {
    /// All of it.
    Continues,
    /// Not all: a whole sentence.
    Gap(String),
    /// It could not be asked: why.
    Unknown(String),
}

/// A slot that is taken over.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Succession {
    /// To be recorded as this box's own.
    pub origin: Origin,
    /// What the server says.
    pub outlook: Outlook,
}

/// Looks for the slot of a chain. Changes nothing on the server.
///
/// # Errors
///
/// The configuration cannot be used; or the chain has no changes yet, so that only the server can say
/// where its slot begins, and it cannot be asked.
pub async fn succeed(config: &config::Source, chain: &Chain) -> Result<Succession, SourceError> {
    let url = own_url(config)?;
    let names: Vec<Names> =
        chain.appliances.iter().map(|appliance| Names::new(appliance, config)).collect();
    let seen = look(config, &names).await;
    let found = match &seen {
        Ok((_, Some((at, _)))) => *at,
        Ok((_, None)) | Err(_) => 0,
    };
    let names = names.get(found).ok_or_else(|| SourceError::Unknown("a chain of nobody".into()))?;
    match seen {
        Ok((server, found)) => {
            let slot = found.map(|(_, slot)| slot);
            let origin = origin(chain, names, &url.database, slot.as_ref());
            let outlook = outlook(chain, &origin, &server, slot.as_ref());
            Ok(Succession { origin, outlook })
        }
        Err(error) if chain.reached.is_none() => Err(error),
        Err(error) => {
            let origin = origin(chain, names, &url.database, None);
            Ok(Succession { origin, outlook: Outlook::Unknown(error.to_string()) })
        }
    }
}

/// Refuses while somebody reads from the slot of a chain that `appliances` wrote: its box is not lost, and
/// with `release = "journal"` it may hold what nobody else has. A server that cannot be asked is no
/// obstacle: [`succeed`] says so.
///
/// # Errors
///
/// [`SourceError::InUse`], or the configuration cannot be used.
pub async fn unused(config: &config::Source, appliances: &[String]) -> Result<(), SourceError> {
    own_url(config)?;
    let names: Vec<Names> =
        appliances.iter().map(|appliance| Names::new(appliance, config)).collect();
    match look(config, &names).await {
        Ok((_, Some((at, slot)))) if slot.active => {
            Err(SourceError::InUse { slot: names[at].slot.clone() })
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// What a chain says of a table.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Said {
    /// All its rows are in the lake, with all their values. Else they are read anew.
    pub whole: bool,
    /// It was not copied any more for a while, or is not.
    pub left: bool,
}

/// Adds the facts of a table that is whole, or left.
pub fn put_said(batch: &mut FactBatch, table_id: u32, qualified: &str, said: Said) {
    let Said { whole: done, left } = said;
    let plan = Plan { done, gone: left, told: left, ..Plan::empty(qualified.into()) };
    batch.put(plan_fact(table_id), &plan);
    batch.put(span_fact(table_id), &Span::settled(Position(0)));
}

/// The server, and the first of the slots that is there.
async fn look(
    config: &config::Source,
    names: &[Names],
) -> Result<(Server, Option<(usize, Slot)>), SourceError> {
    let target = Target::load(config, &own_url(config)?)?;
    let mut sql = target.open(Purpose::Sql).await?;
    let server = slot::identify(&mut target.open(Purpose::Replication).await?).await?;
    for (at, names) in names.iter().enumerate() {
        if let Some(slot) = slot::look(&mut sql, &names.slot).await? {
            return Ok((server, Some((at, slot))));
        }
    }
    Ok((server, None))
}

fn origin(chain: &Chain, names: &Names, database: &str, slot: Option<&Slot>) -> Origin {
    // Without changes in the chain the slot still stands where it was made; were it beyond the oldest
    // snapshot, what lies between would be nowhere.
    let confirmed = slot.and_then(|slot| slot.confirmed);
    let begins = || chain.snapshot.into_iter().chain(confirmed).min();
    Origin {
        system_identifier: chain.system_identifier.clone(),
        timeline: chain.timeline,
        database: database.into(),
        slot: names.slot.clone(),
        publication: names.publication.clone(),
        append: names.append.clone(),
        consistent_point: chain.reached.or_else(begins).unwrap_or_default(),
        made: false,
    }
}

fn outlook(chain: &Chain, origin: &Origin, server: &Server, slot: Option<&Slot>) -> Outlook {
    let held = (chain.reached.unwrap_or_default(), Position::default());
    let why = match origin::check(origin, server, slot, held, None) {
        Ok(_) => return Outlook::Continues,
        Err(broken) => broken.what,
    };
    let (from, name) = (origin.consistent_point, &origin.slot);
    let confirmed = slot.and_then(|slot| slot.confirmed).filter(|confirmed| *confirmed > from);
    let sentence = match (slot, confirmed) {
        (None, _) => format!(
            "{why}; if the lost box's configuration named another `slot`, name it in this one's"
        ),
        (_, Some(to)) => format!(
            "changes between {from} and {to} are lost: the lost box had let the database forget \
             them (`release` = \"journal\") before they were in the lake; or the slot `{name}` was made anew"
        ),
        (Some(_), None) => why,
    };
    Outlook::Gap(sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(reached: Option<u64>, snapshot: Option<u64>) -> Chain {
        Chain {
            appliances: vec!["a".into()],
            system_identifier: "7".into(),
            timeline: 1,
            reached: reached.map(Position),
            snapshot: snapshot.map(Position),
        }
    }

    fn server() -> Server {
        Server {
            system_identifier: "7".into(),
            timeline: 1,
            database: "erp".into(),
            log_end: Position(1000),
            history: vec![],
        }
    }

    fn slot(confirmed: u64) -> Slot {
        Slot {
            plugin: "pgoutput".into(),
            database: "erp".into(),
            restart: Some(Position(50)),
            confirmed: Some(Position(confirmed)),
            wal_status: "reserved".into(),
            ..Slot::default()
        }
    }

    fn judged(chain: &Chain, slot: Option<&Slot>) -> (Position, Outlook) {
        let names = Names {
            slot: "s".into(),
            slot_given: false,
            publication: "p".into(),
            append: Some("p_append".into()),
        };
        let origin = origin(chain, &names, "erp", slot);
        assert_eq!((&*origin.slot, origin.append.as_deref()), ("s", Some("p_append")));
        (origin.consistent_point, outlook(chain, &origin, &server(), slot))
    }

    #[test]
    fn a_slot_at_or_behind_the_chain_continues_it() {
        for confirmed in [100, 500] {
            let seen = judged(&chain(Some(500), Some(100)), Some(&slot(confirmed)));
            assert_eq!(seen, (Position(500), Outlook::Continues));
        }
    }

    #[test]
    fn a_slot_beyond_the_chain_or_gone_is_a_gap_that_names_what_is_lost() {
        let (_, Outlook::Gap(lost)) = judged(&chain(Some(500), None), Some(&slot(600))) else {
            panic!("no gap");
        };
        assert!(lost.contains("between 00000000/000001F4 and 00000000/00000258"), "{lost}");
        let (_, Outlook::Gap(gone)) = judged(&chain(Some(500), None), None) else {
            panic!("no gap");
        };
        assert!(gone.contains("gone") && gone.contains("`slot`"), "{gone}");
    }

    #[test]
    fn before_the_first_change_the_slot_must_not_be_beyond_a_snapshot() {
        // As it was made: the first snapshot stands there, or was read again later.
        for snapshot in [Some(100), Some(300), None] {
            let seen = judged(&chain(None, snapshot), Some(&slot(100)));
            assert_eq!(seen, (Position(100), Outlook::Continues), "{snapshot:?}");
        }
        let seen = judged(&chain(None, Some(100)), Some(&slot(101)));
        assert!(matches!(seen, (Position(100), Outlook::Gap(_))), "{seen:?}");
    }

    #[test]
    fn a_table_that_is_whole_is_not_read_again() {
        let mut batch = FactBatch::default();
        put_said(&mut batch, 7, "public.t", Said { whole: true, left: false });
        let [(plan_key, plan), (span_key, span)] = &batch.changes[..] else { panic!("{batch:?}") };
        assert_eq!(plan_key, "source/snapshot/0000000007");
        let plan: Plan = serde_json::from_slice(plan.as_ref().unwrap()).unwrap();
        assert_eq!(*span_key, span_fact(7));
        let span: Span = serde_json::from_slice(span.as_ref().unwrap()).unwrap();
        assert!(!Span::may_lose(Some(&span), Position(5), true), "no change of it is noted");
        assert_eq!(plan.missing(&std::collections::BTreeSet::new()).count(), 0);
    }
}
