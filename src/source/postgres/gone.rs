//! Takes leave of tables that are not listed any more: they were dropped, or are excluded or unreadable.
//!
//! What was copied of them stays in the lake. What this box knows of their parts and rows goes: no row of
//! them is read again, and what is noted of them would take the room of others. While they are away their
//! span says that nothing of them is to be noted: the journal may still hold changes of them.
//!
//! The ledger says that they left: a box that takes the chain over has to know it when they come back.
//!
//! **Invariant:** a table that comes back is read anew, under a span that begins with its new snapshot, and the
//! ledger says so: what was read of it before counts no more (I12).

use std::collections::{BTreeMap, BTreeSet};

use super::{
    chunks::Plan,
    repair::{self, Stage},
    reread::delete_all,
    snapshot::{PLAN_FACTS, plan_fact},
};
use crate::{
    facts::{self, FactBatch, FactDamaged, Facts},
    source::{
        fate::{FIRST_FACTS, Fate, anew_fact, fate_fact, first_fact, repaired_fact},
        generator, large_object,
        reread::{Span, UNCHANGED_FACTS, span_fact},
    },
    units::Position,
};

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    /// Tables that went since the last look.
    pub(crate) left: Vec<Plan>,
    /// Names of tables that are there again, and are to be read anew.
    pub(crate) back: Vec<String>,
}

/// What seal had noted of tables before they were listed: a table that it knew and the list lacks is gone.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    /// Those of which rows are to be read again.
    pub(crate) rows: BTreeSet<u32>,
    /// Those of which something came to the lake for the first time, and their names.
    first: BTreeMap<u32, String>,
}

impl Noted {
    /// Reads what is noted now.
    ///
    /// # Errors
    ///
    /// A fact does not read.
    pub(crate) fn read(facts: &dyn Facts) -> Result<Self, FactDamaged> {
        let keys = facts.scan(UNCHANGED_FACTS).into_iter();
        let rows = keys
            .filter_map(|(key, _)| key[UNCHANGED_FACTS.len()..].split('/').next()?.parse().ok());
        let first = facts::read_all::<String>(facts, FIRST_FACTS)?.into_iter();
        let first = first
            .filter_map(|(key, name)| Some((key.strip_prefix(FIRST_FACTS)?.parse().ok()?, name)));
        Ok(Self { rows: rows.collect(), first: first.collect() })
    }
}

/// Looks which tables are not `listed` any more, and which are again. `noted`: what was noted before the list
/// was made. While a pass is `running`, nothing is changed of tables that are back.
///
/// # Errors
///
/// A fact does not read.
pub(crate) fn look(
    facts: &dyn Facts,
    listed: impl Fn(u32) -> bool,
    noted: &Noted,
    running: bool,
    batch: &mut FactBatch,
) -> Result<Gone, FactDamaged> {
    let (mut gone, mut planned) = (Gone::default(), BTreeSet::new());
    for (fact, plan) in facts::read_all::<Plan>(facts, PLAN_FACTS)? {
        let Some(id) = fact.strip_prefix(PLAN_FACTS).and_then(|id| id.parse().ok()) else {
            continue;
        };
        planned.insert(id);
        if !listed(id) {
            release(facts, id, batch)?;
            if !plan.told {
                batch.put(fact, &plan.parted()).put(fate_fact(id, Fate::Left), &Fate::Left);
            }
            if !plan.gone {
                gone.left.push(plan);
            }
        } else if plan.gone && !running {
            read_anew(facts, id, &plan, batch);
            if !plan.told {
                // A firmware before this one saw it go.
                batch.put(fate_fact(id, Fate::Left), &Fate::Left);
            }
            gone.back.push(plan.table);
        }
    }
    // Of tables that came and went between two looks there is no plan.
    for id in noted.rows.iter().filter(|id| !listed(**id) && !planned.contains(id)) {
        release(facts, *id, batch)?;
    }
    for (id, name) in &noted.first {
        let known = planned.contains(id);
        if !known && !listed(*id) {
            let plan = Plan::empty(name.clone());
            release(facts, *id, batch)?;
            batch.put(plan_fact(*id), &plan.parted()).put(fate_fact(*id, Fate::Left), &Fate::Left);
            gone.left.push(plan);
        }
        if known || !listed(*id) {
            batch.delete(first_fact(*id));
        }
    }
    Ok(gone)
}

/// Has all tables that are known read anew, as if each had left and were back; but for those that wait to be compared.
///
/// # Errors
///
/// A fact does not read.
pub(crate) fn all_anew(facts: &dyn Facts, batch: &mut FactBatch) -> Result<(), FactDamaged> {
    for (fact, plan) in facts::read_all::<Plan>(facts, PLAN_FACTS)? {
        let Some(id) = fact.strip_prefix(PLAN_FACTS).and_then(|id| id.parse().ok()) else {
            continue;
        };
        if !plan.gone && repair::stage(facts, id) != Stage::Waiting {
            read_anew(facts, id, &plan, batch);
        }
    }
    Ok(())
}

/// Has a table read anew, as if it had left and were back.
pub(crate) fn read_anew(facts: &dyn Facts, table_id: u32, plan: &Plan, batch: &mut FactBatch) {
    delete_all(facts, table_id, batch);
    repair::forget(table_id, batch);
    batch
        .delete(span_fact(table_id))
        .delete(fate_fact(table_id, Fate::Whole))
        .delete(repaired_fact(table_id));
    batch.put(plan_fact(table_id), &plan.anew()).put(anew_fact(table_id), &true);
}

/// Has read again what is in no change stream of a table, since some of it got lost on its way to the lake.
///
/// # Errors
///
/// A fact does not read.
pub(crate) fn read_again(
    facts: &dyn Facts,
    table_id: u32,
    batch: &mut FactBatch,
) -> Result<(), FactDamaged> {
    match table_id {
        generator::TABLE_ID => {
            batch.delete(generator::LOOK_FACT);
        }
        large_object::TABLE_ID => {
            let last: Option<large_object::Look> = facts::read(facts, large_object::LOOK_FACT)?;
            let number = last.map_or(0, |last| last.number);
            let none = large_object::Look { number, ..Default::default() };
            batch.put(large_object::LOOK_FACT, &none);
        }
        _ => {
            let plan: Option<Plan> = facts::read(facts, &plan_fact(table_id))?;
            if let Some(plan) = plan.filter(|plan| !plan.gone) {
                read_anew(facts, table_id, &plan, batch);
            }
        }
    }
    Ok(())
}

/// Removes what is known of a table's parts and rows. What seal adds meanwhile goes with the next look.
fn release(facts: &dyn Facts, table_id: u32, batch: &mut FactBatch) -> Result<(), FactDamaged> {
    delete_all(facts, table_id, batch);
    repair::forget(table_id, batch);
    let span: Option<Span> = facts::read(facts, &span_fact(table_id))?;
    if !span.is_some_and(|span| span.is_one()) {
        batch.put(span_fact(table_id), &Span::settled(Position(0)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::MemoryFacts,
        source::postgres::chunks::Extent,
        source::{
            ChunkDone, chunk_fact,
            reread::{Reread, Unchanged, reread_fact, unchanged_all_fact, unchanged_fact},
        },
    };

    fn plan(done: bool) -> Plan {
        let extent = Extent { blocks: 40_000, block_bytes: 8192, divisible: true };
        Plan { done, ..Plan::new("public.t".into(), 9, extent) }
    }

    /// Facts of a table that was read at two positions, and of which rows are to be read again.
    fn known(id: u32, plan: Option<&Plan>) -> MemoryFacts {
        let (facts, mut batch) = (MemoryFacts::default(), FactBatch::default());
        let position = Position(20);
        let span = Span::with(Some(Span::begun(Position(10), false)), position, true);
        let reread = Reread { position, group: 3, notes: vec![] };
        batch
            .put(chunk_fact(id, 0), &ChunkDone { position, rows: 1 })
            .put(span_fact(id), &span)
            .put(unchanged_fact(id, 4), &Unchanged::default())
            .put(unchanged_all_fact(id), &true)
            .put(reread_fact(id, position, 0), &reread);
        if let Some(plan) = plan {
            batch.put(plan_fact(id), plan);
        }
        facts.record_blocking(batch).unwrap();
        facts
    }

    fn noted(facts: &MemoryFacts) -> Noted {
        Noted::read(facts).unwrap()
    }

    fn look_once(facts: &MemoryFacts, listed: bool, running: bool) -> Gone {
        let mut batch = FactBatch::default();
        let gone = look(facts, |_| listed, &noted(facts), running, &mut batch).unwrap();
        facts.record_blocking(batch).unwrap();
        gone
    }

    fn span(facts: &MemoryFacts) -> Option<Span> {
        facts::read(facts, &span_fact(7)).unwrap()
    }

    fn left() -> String {
        fate_fact(7, Fate::Left)
    }

    /// All keys but those of the plan, the span and what is to be said.
    fn rest(facts: &MemoryFacts) -> Vec<String> {
        let keys = facts.scan("").into_iter().map(|(key, _)| key);
        let told = |key: &String| *key == plan_fact(7) || *key == span_fact(7) || *key == left();
        keys.filter(|key| !told(key)).collect()
    }

    #[test]
    fn of_a_table_that_is_gone_nothing_is_kept_and_nothing_is_noted() {
        for done in [false, true] {
            let facts = known(7, Some(&plan(done)));
            let gone = look_once(&facts, false, true);
            assert_eq!((gone.left.len(), gone.back.len()), (1, 0));
            assert_eq!(rest(&facts), [""; 0]);
            assert!(!Span::may_lose(span(&facts).as_ref(), Position(99), true));
            // A part or an epoch that was under way comes behind it.
            let mut late = FactBatch::default();
            late.put(unchanged_fact(7, 5), &Unchanged::default());
            late.put(span_fact(7), &Span::with(span(&facts), Position(30), false));
            facts.record_blocking(late).unwrap();
            assert!(look_once(&facts, false, false).left.is_empty());
            assert_eq!(rest(&facts), [""; 0]);
            assert!(span(&facts).is_some_and(|span| span.is_one()));
            // Whether it was whole stays known, for people.
            let kept: Plan = facts::read(&facts, &plan_fact(7)).unwrap().unwrap();
            assert_eq!((kept.done, kept.gone, kept.count()), (done, true, 0));
        }
    }

    #[test]
    fn what_got_lost_on_its_way_is_read_again_whatever_it_is_of() {
        let again = |facts: &MemoryFacts, id| {
            let mut batch = FactBatch::default();
            read_again(facts, id, &mut batch).unwrap();
            facts.record_blocking(batch).unwrap();
        };
        let facts = known(7, Some(&plan(true)));
        again(&facts, 7);
        assert_eq!(rest(&facts), [anew_fact(7)], "no part of it counts");
        let now: Plan = facts::read(&facts, &plan_fact(7)).unwrap().unwrap();
        assert!(now.is_to_be_made() && span(&facts).is_none());

        // One that is gone stays so.
        look_once(&facts, false, false);
        let before = facts.scan("");
        again(&facts, 7);
        assert_eq!(facts.scan(""), before);

        let facts = MemoryFacts::default();
        let (position, mut looks) = (Position(9), FactBatch::default());
        looks.put(generator::LOOK_FACT, &generator::Look { position, since_whole: 3 }).put(
            large_object::LOOK_FACT,
            &large_object::Look { position, begun: None, number: 12 },
        );
        facts.record_blocking(looks).unwrap();
        again(&facts, generator::TABLE_ID);
        again(&facts, large_object::TABLE_ID);
        assert_eq!(facts.get(generator::LOOK_FACT), None);
        let look: large_object::Look =
            facts::read(&facts, large_object::LOOK_FACT).unwrap().unwrap();
        assert_eq!((look.stands(), look.number), (Position(0), 12), "no number is given twice");
    }

    #[test]
    fn a_table_that_comes_back_is_read_anew_under_a_span_of_its_own() {
        for done in [false, true] {
            let facts = known(7, Some(&plan(done)));
            look_once(&facts, false, false);
            let mut whole = FactBatch::default();
            whole.put(fate_fact(7, Fate::Whole), &Fate::Whole);
            facts.record_blocking(whole).unwrap();
            assert_eq!(look_once(&facts, true, true).back, [""; 0]);
            assert!(span(&facts).is_some(), "a part of it may be on its way");
            assert_eq!(look_once(&facts, true, false).back, ["public.t"]);
            assert_eq!((span(&facts), rest(&facts)), (None, vec![anew_fact(7)]));
            let plan: Plan = facts::read(&facts, &plan_fact(7)).unwrap().unwrap();
            assert!(plan.is_to_be_made() && !plan.gone, "{plan:?}");
            // Once it is so, nothing is taken from under its parts.
            let mut part = FactBatch::default();
            part.put(chunk_fact(7, 0), &ChunkDone { position: Position(50), rows: 1 });
            facts.record_blocking(part).unwrap();
            assert_eq!(look_once(&facts, true, false).back, [""; 0]);
            assert_eq!(rest(&facts).len(), 2);
        }
    }

    #[test]
    fn that_a_table_left_is_told_once_also_of_what_an_older_firmware_saw() {
        let facts = known(7, Some(&plan(true)));
        let told = |facts: &MemoryFacts, listed| {
            look_once(facts, listed, false);
            let told = facts.get(&left()).is_some();
            let mut said = FactBatch::default();
            said.delete(left());
            facts.record_blocking(said).unwrap();
            told
        };
        assert_eq!(
            [true, false, false, true].map(|listed| told(&facts, listed)),
            [false, true, false, false]
        );
        for listed in [false, true] {
            let facts = known(7, Some(&Plan { gone: true, ..plan(true) }));
            assert_eq!([listed, listed].map(|listed| told(&facts, listed)), [true, false]);
        }
    }

    #[test]
    fn a_table_that_was_gone_before_it_was_planned_is_released_too() {
        let facts = known(7, None);
        assert_eq!(noted(&facts).rows, BTreeSet::from([7]));
        look_once(&facts, true, false);
        assert_eq!(rest(&facts).len(), 4, "it is listed");
        look_once(&facts, false, false);
        assert_eq!((rest(&facts).len(), noted(&facts).rows.len()), (0, 0));
    }

    #[test]
    fn of_a_table_that_came_to_the_lake_and_went_between_two_looks_the_ledger_is_told() {
        let first = |plan: Option<&Plan>| {
            let (facts, mut batch) = (known(7, plan), FactBatch::default());
            batch.put(first_fact(7), &"public.t".to_owned());
            facts.record_blocking(batch).unwrap();
            facts
        };
        let told =
            |facts: &MemoryFacts| [left(), first_fact(7)].map(|key| facts.get(&key).is_some());
        let facts = first(None);
        assert!(look_once(&facts, true, false).left.is_empty());
        assert_eq!(told(&facts), [false, true], "it is listed, and will be planned");
        let gone = look_once(&facts, false, true);
        assert_eq!((gone.left.len(), told(&facts)), (1, [true, false]));
        let plan: Plan = facts::read(&facts, &plan_fact(7)).unwrap().unwrap();
        assert!(plan.gone && plan.told && !plan.done, "{plan:?}");
        assert!(span(&facts).is_some_and(|span| span.is_one()));
        // One that is planned takes leave as others do.
        let facts = first(Some(&Plan::empty("public.t".into())));
        look_once(&facts, true, false);
        assert_eq!(told(&facts), [false, false]);
    }
}
