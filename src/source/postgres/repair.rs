//! Repairs tables behind a gap by the keys of the rows that differ (`after_gap = "compare"`).
//!
//! This box cannot read the lake. So its tables wait until somebody who can has compared them with the database,
//! and orders what is to be read ([`Order`]). Of the keys ordered the rows are read, as notes are (`reread`); those
//! that are gone are written as deleted where the comparison stands. Everything that happened after the gap is in the
//! stream.
//!
//! | fact | what |
//! |---|---|
//! | `source/compare/<table id>` | [`Waiting`]: the table waits for an order |
//! | `source/compared/<table id>` | [`Taken`]: it is repaired by keys |
//! | `source/order` | SHA-256 of the last order that was taken |
//!
//! **Invariants:** a table waits from the record of its gap on, under a span that is open from there: a row that gets
//! another key meanwhile, without all its values, is noted. What is ordered becomes durable in one record. What
//! cannot be repaired by keys is read anew as a whole.

use std::io;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::{catalog::Listed, chunks::Plan, error::SourceError, gone, session::Shared, snapshot};
use crate::{
    config::AfterGap,
    facts::{self, FactBatch, FactDamaged, Facts},
    source::{
        ORIGIN_FACT, Origin,
        fate::{Fate, fate_fact, repaired_fact},
        order::{FILE_BYTES_MAX, How, Keys, Order},
        reread::{Span, Unchanged, reread_facts, span_fact, unchanged_all_fact, unchanged_facts},
    },
    units::Position,
};

/// Of a table that waits to be compared.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Waiting {
    /// Where the last gap ends.
    behind: Position,
}

/// Of a table that is repaired by keys.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Taken {
    /// From here on it is as the database has it, once all is read.
    position: Position,
}

/// Where a table stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stage {
    /// There was no gap, or it is read anew.
    None,
    /// It waits for an order.
    Waiting,
    /// It is repaired by keys.
    Taken,
}

/// Says where a table stands.
pub(crate) fn stage(facts: &dyn Facts, table_id: u32) -> Stage {
    if facts.get(&compare_fact(table_id)).is_some() {
        Stage::Waiting
    } else if facts.get(&compared_fact(table_id)).is_some() {
        Stage::Taken
    } else {
        Stage::None
    }
}

/// Names of the tables that wait.
pub(crate) fn waiting(facts: &dyn Facts) -> Result<Vec<String>, FactDamaged> {
    let mut names = vec![];
    for id in ids(facts, COMPARE_FACTS) {
        names.extend(plan(facts, id)?.map(|plan| plan.table));
    }
    Ok(names)
}

/// A gap came, behind which the log goes on at `to`: the tables that can be compared wait for that. Of the others
/// some rows are not in the lake, or lack values.
pub(crate) fn wait(
    facts: &dyn Facts,
    after_gap: AfterGap,
    to: Position,
    batch: &mut FactBatch,
) -> Result<(), FactDamaged> {
    for (fact, plan) in facts::read_all::<Plan>(facts, snapshot::PLAN_FACTS)? {
        let id = fact.strip_prefix(snapshot::PLAN_FACTS).and_then(|id| id.parse().ok());
        let Some(id) = id else { continue };
        let known: Option<Span> = facts::read(facts, &span_fact(id))?;
        let begun = match (stage(facts, id), known) {
            // What was noted since an earlier gap is still to be read.
            (Stage::Waiting | Stage::Taken, Some(span)) => span.first,
            (Stage::None, Some(span)) if is_settled(facts, id, &plan, &span) => to,
            _ => continue,
        };
        if after_gap == AfterGap::Compare {
            batch
                .put(compare_fact(id), &Waiting { behind: to })
                .put(span_fact(id), &Span::begun(begun, true))
                .delete(compared_fact(id))
                // Said in an entry behind the gap they would be wrong.
                .delete(fate_fact(id, Fate::Whole))
                .delete(repaired_fact(id));
        } else {
            forget(id, batch);
        }
    }
    Ok(())
}

/// Whether the lake has all of it, as the ledger was told.
fn is_settled(facts: &dyn Facts, id: u32, plan: &Plan, span: &Span) -> bool {
    let open = [unchanged_facts(id), reread_facts(id)];
    plan.done && !plan.gone && span.told && open.iter().all(|open| facts.scan(open).is_empty())
}

/// It is read anew, or gone.
pub(crate) fn forget(table_id: u32, batch: &mut FactBatch) {
    batch.delete(compare_fact(table_id)).delete(compared_fact(table_id));
}

/// Has a table read anew as a whole after all, as it cannot be repaired by keys: `why`.
pub(crate) async fn give_up(
    shared: &Shared,
    table_id: u32,
    plan: &Plan,
    why: &str,
) -> Result<(), SourceError> {
    let table = &plan.table;
    tracing::warn!(table, why, "the table is read anew as a whole behind the gap");
    let mut batch = FactBatch::default();
    gone::read_anew(&*shared.facts, table_id, plan, &mut batch);
    Ok(shared.facts.record(batch).await?)
}

/// Rows of it were read up to `position`, and are forgotten.
pub(crate) fn reached(
    facts: &dyn Facts,
    table_id: u32,
    position: Position,
    batch: &mut FactBatch,
) -> Result<(), FactDamaged> {
    if let Some(taken) = facts::read::<Taken>(facts, &compared_fact(table_id))? {
        let position = taken.position.max(position);
        batch.put(compared_fact(table_id), &Taken { position });
    }
    Ok(())
}

/// All of it is there: the ledger is to say so.
pub(crate) fn tell(
    facts: &dyn Facts,
    table_id: u32,
    batch: &mut FactBatch,
) -> Result<(), FactDamaged> {
    if let Some(Taken { position }) = facts::read(facts, &compared_fact(table_id))? {
        let fate = Fate::Repaired(position);
        batch.put(fate_fact(table_id, fate), &fate);
        forget(table_id, batch);
    }
    Ok(())
}

/// Looks for an order, and takes it. `Err` as a value: why it was refused, for people.
pub(crate) async fn look(shared: &Shared) -> Result<Result<(), String>, SourceError> {
    if shared.order_file.as_os_str().is_empty() {
        return Ok(Ok(()));
    }
    let waiting = ids(&*shared.facts, COMPARE_FACTS);
    let bytes = match read(shared).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(Ok(())),
        Err(why) => return Ok(Err(why)),
    };
    let hash = hex::encode(digest(&SHA256, &bytes));
    if facts::read::<String>(&*shared.facts, ORDER_FACT)?.as_ref() == Some(&hash) {
        // Its record was durable, and its file not gone.
        remove(shared).await;
        return Ok(Ok(()));
    }
    if waiting.is_empty() {
        // It holds keys of rows: nobody needs it any more.
        tracing::warn!("no table waits behind a gap: the order to repair tables is removed");
        remove(shared).await;
        return Ok(Ok(()));
    }
    let order = match Order::read(&bytes, &shared.config.name) {
        Ok(order) => order,
        Err(why) => return Ok(Err(why)),
    };
    match take(&*shared.facts, &order, &waiting)? {
        Ok(mut batch) => {
            batch.put(ORDER_FACT, &hash);
            shared.facts.record(batch).await?;
            remove(shared).await;
            Ok(Ok(()))
        }
        Err(why) => Ok(Err(why)),
    }
}

/// What taking an order changes. `Err` as a value: why it is refused.
fn take(
    facts: &dyn Facts,
    order: &Order,
    waiting: &[u32],
) -> Result<Result<FactBatch, String>, FactDamaged> {
    let origin: Option<Origin> = facts::read(facts, ORIGIN_FACT)?;
    let own = origin.map(|origin| origin.system_identifier).unwrap_or_default();
    if order.system_identifier != own {
        let found = &order.system_identifier;
        return Ok(Err(format!("it was made beside the server {found}, this box follows {own}")));
    }
    let (mut batch, mut taken) = (FactBatch::default(), 0);
    for ordered in order.tables.iter().filter(|ordered| waiting.contains(&ordered.id)) {
        let Some(Waiting { behind }) = facts::read(facts, &compare_fact(ordered.id))? else {
            continue;
        };
        if order.behind != behind || order.position < behind {
            return Ok(Err(format!(
                "it was made at {} behind a gap that ended at {}, and this box waits behind one that ended at {behind}: compare again",
                order.position, order.behind
            )));
        }
        let Some(plan) = plan(facts, ordered.id)? else { continue };
        taken += 1;
        match &ordered.how {
            How::Anew(why) => {
                tracing::warn!(table = plan.table, why, "the table is read anew behind the gap");
                gone::read_anew(facts, ordered.id, &plan, &mut batch);
            }
            How::Keys(keys) => {
                let (read, gone) = (keys.read.len(), keys.gone.len());
                let table = &plan.table;
                tracing::warn!(table, read, gone, "the table is repaired by keys behind the gap");
                by_keys(facts, order, (ordered.id, keys), &mut batch)?;
            }
        }
    }
    match taken {
        0 => Ok(Err("no table of it waits to be compared".into())),
        _ => Ok(Ok(batch)),
    }
}

/// Notes the rows of a table that are to be read, and those that are gone.
fn by_keys(
    facts: &dyn Facts,
    order: &Order,
    (id, ordered): (u32, &Keys),
    batch: &mut FactBatch,
) -> Result<(), FactDamaged> {
    let position = order.position;
    // What was read for an order before this one, and is noted still, is open again.
    for (fact, _) in facts.scan(&reread_facts(id)) {
        batch.delete(fact);
    }
    let note = |keys: &[Vec<String>], gone| Unchanged {
        columns: ordered.columns.clone(),
        keys: keys.iter().cloned().collect(),
        gone,
    };
    // Of a key that is gone too: should the row be there after all, it stands behind that.
    let read: Vec<Vec<String>> = ordered.read.iter().chain(&ordered.gone).cloned().collect();
    // What was read for an order before this one is not what this one asks for: each has names of its own.
    let name = |what: &str, number: usize| {
        format!("{}{what}-{}-{number:08}", unchanged_facts(id), position.key())
    };
    for (number, part) in read.chunks(NOTE_KEYS_MAX).enumerate() {
        batch.put(name("order", number), &note(part, None));
    }
    for (number, part) in ordered.gone.chunks(NOTE_KEYS_MAX).enumerate() {
        batch.put(name("gone", number), &note(part, Some(position)));
    }
    let known: Option<Span> = facts::read(facts, &span_fact(id))?;
    let first = known.map_or(order.behind, |span| span.first);
    // Not at one position: notes are looked at until all of them are settled.
    let last = position.max(Position(first.0 + 1));
    let span = Span { last, whole: true, ..Span::begun(first, true) };
    batch
        .put(span_fact(id), &span)
        .put(compared_fact(id), &Taken { position })
        .delete(compare_fact(id));
    Ok(())
}

/// Why a table that waits is to be read anew as a whole, and not to wait any longer.
pub(crate) fn hopeless(shared: &Shared, table_id: u32, listed: &Listed) -> Option<&'static str> {
    // The configuration may have changed since.
    if shared.config.after_gap == AfterGap::Reread {
        Some("`after_gap` is \"reread\"")
    } else if !listed.keyed || !listed.identified {
        Some("it has no primary key, or not all of its changes are in the stream")
    } else if shared.facts.get(&unchanged_all_fact(table_id)).is_some() {
        Some(TOO_MANY)
    } else {
        None
    }
}

/// The bytes of the order's file, if there is one. `Err`: why it cannot be read.
async fn read(shared: &Shared) -> Result<Option<Vec<u8>>, String> {
    let path = &shared.order_file;
    let unreadable = |why: io::Error| format!("{}: {why}", path.display());
    match tokio::fs::metadata(path).await {
        Ok(meta) if meta.len() > FILE_BYTES_MAX => {
            Err(format!("{}: it is larger than {FILE_BYTES_MAX} bytes", path.display()))
        }
        Ok(_) => tokio::fs::read(path).await.map(Some).map_err(unreadable),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(unreadable(why)),
    }
}

async fn remove(shared: &Shared) {
    if let Err(why) = tokio::fs::remove_file(&shared.order_file).await {
        tracing::warn!(%why, "the order that was taken cannot be removed");
    }
}

fn plan(facts: &dyn Facts, table_id: u32) -> Result<Option<Plan>, FactDamaged> {
    facts::read(facts, &snapshot::plan_fact(table_id))
}

fn ids(facts: &dyn Facts, prefix: &str) -> Vec<u32> {
    let keys = facts.scan(prefix).into_iter();
    keys.filter_map(|(key, _)| key.strip_prefix(prefix)?.parse().ok()).collect()
}

fn compare_fact(table_id: u32) -> String {
    format!("{COMPARE_FACTS}{table_id:010}")
}

fn compared_fact(table_id: u32) -> String {
    format!("source/compared/{table_id:010}")
}

const COMPARE_FACTS: &str = "source/compare/";
const ORDER_FACT: &str = "source/order";
/// Why a table cannot be repaired by keys.
pub(crate) const TOO_MANY: &str = "too many rows may lack values, or their keys cannot be read";
/// Keys in one note, which is read as one part at most.
const NOTE_KEYS_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::MemoryFacts,
        source::{
            order::{Ordered, VERSION},
            postgres::chunks::Extent,
            reread::{Reread, reread_fact, unchanged_fact},
        },
    };

    const BEHIND: Position = Position(50);

    /// Facts of the tables 1, which is whole, 2, whose rows lack values, 3, which is being read, and 4, which
    /// has left.
    fn known() -> MemoryFacts {
        let (facts, mut batch) = (MemoryFacts::default(), FactBatch::default());
        let extent = Extent { blocks: 1, block_bytes: 8192, divisible: true };
        for id in 1..=4 {
            let plan = Plan::new(format!("public.t{id}"), 9, extent);
            let plan = Plan { done: id != 3, gone: id == 4, ..plan };
            let span = Span { told: id != 3, ..Span::settled(Position(10)) };
            batch.put(snapshot::plan_fact(id), &plan).put(span_fact(id), &span);
        }
        let origin = r#"{"system_identifier":"7","timeline":1,"database":"erp","slot":"s","publication":"p","consistent_point":"00000000/00000001"}"#;
        batch.changes.push((ORIGIN_FACT.into(), Some(origin.as_bytes().into())));
        batch
            .put(unchanged_fact(2, 3), &Unchanged::default())
            .put(fate_fact(1, Fate::Whole), &Fate::Whole);
        facts.record_blocking(batch).unwrap();
        facts
    }

    fn wait_at(facts: &MemoryFacts, after_gap: AfterGap, to: u64) {
        let mut batch = FactBatch::default();
        wait(facts, after_gap, Position(to), &mut batch).unwrap();
        facts.record_blocking(batch).unwrap();
    }

    fn stages(facts: &MemoryFacts) -> Vec<Stage> {
        (1..=4).map(|id| stage(facts, id)).collect()
    }

    fn span(facts: &MemoryFacts, id: u32) -> Span {
        facts::read(facts, &span_fact(id)).unwrap().unwrap()
    }

    fn order(position: u64, how: How) -> Order {
        let tables = vec![Ordered { id: 1, table: "public.t1".into(), how }];
        Order {
            version: VERSION,
            source: "erp".into(),
            system_identifier: "7".into(),
            behind: BEHIND,
            position: Position(position),
            tables,
        }
    }

    fn keys(read: &[&str], gone: &[&str]) -> How {
        let of = |keys: &[&str]| keys.iter().map(|key| vec![(*key).to_owned()]).collect();
        How::Keys(Keys { columns: vec!["id".into()], read: of(read), gone: of(gone) })
    }

    fn taken(facts: &MemoryFacts, order: &Order) -> Result<(), String> {
        let batch = take(facts, order, &ids(facts, COMPARE_FACTS)).unwrap()?;
        facts.record_blocking(batch).unwrap();
        Ok(())
    }

    #[test]
    fn behind_a_gap_the_tables_that_are_whole_wait_from_its_record_on() {
        let facts = known();
        wait_at(&facts, AfterGap::Reread, 40);
        assert_eq!(stages(&facts), [Stage::None; 4]);
        wait_at(&facts, AfterGap::Compare, 40);
        assert_eq!(stages(&facts), [Stage::Waiting, Stage::None, Stage::None, Stage::None]);
        assert_eq!(span(&facts, 1), Span::begun(Position(40), true));
        assert_eq!(facts.get(&fate_fact(1, Fate::Whole)), None, "it is not, behind the gap");
        assert_eq!(waiting(&facts).unwrap(), ["public.t1"]);
        // A row that gets another key there without its values is noted, whatever comes.
        assert!(Span::may_lose(Some(&span(&facts, 1)), Position(41), true));
        // Another gap: what is noted since the first one counts on, and what was to be said is not said behind it.
        let mut late = FactBatch::default();
        late.put(repaired_fact(1), &Fate::Repaired(Position(45)));
        facts.record_blocking(late).unwrap();
        wait_at(&facts, AfterGap::Compare, 50);
        assert_eq!(span(&facts, 1), Span::begun(Position(40), true));
        assert_eq!(facts.get(&repaired_fact(1)), None);
        wait_at(&facts, AfterGap::Reread, 60);
        assert_eq!(stages(&facts), [Stage::None; 4]);
    }

    #[test]
    fn an_order_is_taken_where_it_fits_and_refused_where_it_does_not() {
        let facts = known();
        wait_at(&facts, AfterGap::Compare, BEHIND.0);
        let stranger = Order { system_identifier: "8".into(), ..order(60, keys(&[], &[])) };
        assert!(taken(&facts, &stranger).unwrap_err().contains("server 8"));
        let older = Order { behind: Position(40), ..order(60, keys(&[], &[])) };
        assert!(taken(&facts, &older).unwrap_err().contains("compare again"));
        let early = order(49, keys(&[], &[]));
        assert!(taken(&facts, &early).unwrap_err().contains("compare again"));
        let mut other = order(60, keys(&[], &[]));
        other.tables[0].id = 2;
        assert!(taken(&facts, &other).unwrap_err().contains("no table of it"));
        assert_eq!(stage(&facts, 1), Stage::Waiting);
        taken(&facts, &order(60, keys(&["1"], &["2"]))).unwrap();
        assert_eq!(stage(&facts, 1), Stage::Taken);
        let span = span(&facts, 1);
        assert!(span.whole && !span.is_one() && !span.told, "{span:?}");
        // The key that is gone is looked for, too.
        let notes = facts::read_all::<Unchanged>(&facts, &unchanged_facts(1)).unwrap();
        let notes: Vec<_> = notes
            .into_iter()
            .map(|(_, note)| (note.gone, note.keys.into_iter().flatten().collect::<Vec<_>>()))
            .collect();
        assert_eq!(
            notes,
            [
                (Some(Position(60)), vec!["2".to_owned()]),
                (None, vec!["1".to_owned(), "2".to_owned()])
            ]
        );
        // Another gap while it is repaired: it waits again, and what is ordered then is read whatever was read before.
        wait_at(&facts, AfterGap::Compare, 90);
        assert_eq!(stage(&facts, 1), Stage::Waiting);
        let names = |facts: &MemoryFacts| {
            let notes = facts.scan(&unchanged_facts(1)).into_iter();
            notes.map(|(key, _)| key).collect::<Vec<_>>()
        };
        let before = names(&facts);
        let again = Order { behind: Position(90), ..order(99, keys(&["1"], &["2"])) };
        taken(&facts, &again).unwrap();
        let news = names(&facts).into_iter().filter(|name| !before.contains(name));
        assert_eq!(news.count(), 2);
    }

    #[test]
    fn a_table_of_which_all_is_ordered_begins_anew() {
        let facts = known();
        wait_at(&facts, AfterGap::Compare, BEHIND.0);
        taken(&facts, &order(60, How::Anew("it changed".into()))).unwrap();
        assert_eq!(stage(&facts, 1), Stage::None);
        assert!(plan(&facts, 1).unwrap().unwrap().is_to_be_made());
    }

    #[test]
    fn it_is_as_the_database_has_it_from_the_last_row_on_that_was_read() {
        let facts = known();
        wait_at(&facts, AfterGap::Compare, BEHIND.0);
        taken(&facts, &order(60, keys(&["1"], &[]))).unwrap();
        for position in [80, 70] {
            let mut batch = FactBatch::default();
            let read = Reread { position: Position(position), group: 3, notes: vec![] };
            batch.put(reread_fact(1, read.position, 0), &read);
            reached(&facts, 1, read.position, &mut batch).unwrap();
            facts.record_blocking(batch).unwrap();
        }
        let mut batch = FactBatch::default();
        tell(&facts, 1, &mut batch).unwrap();
        facts.record_blocking(batch).unwrap();
        let said = Fate::Repaired(Position(80));
        assert_eq!(facts::read(&facts, &fate_fact(1, said)).unwrap(), Some(said));
        assert_eq!(stage(&facts, 1), Stage::None);
        // Of a table that was never behind a gap nothing is said.
        let mut batch = FactBatch::default();
        tell(&facts, 2, &mut batch).unwrap();
        assert!(batch.changes.is_empty());
    }
}
