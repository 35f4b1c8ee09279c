//! Notices tables whose rows were written anew with other values: a column came with a default that is computed for
//! each row (`random()`; `nextval()`, as of serial and identity columns), or one got another type. No change stream
//! has these values, so that such a table is read anew, as if it had left and were back.
//!
//! So is one whose values print in another way, as a type that people made is another ([`Texts`]).
//!
//! Its file changes whenever a table is written anew, also where all values stay (VACUUM FULL, CLUSTER, another
//! tablespace), and when it is emptied: what it was, the columns tell. Where the file stays no value has changed; what
//! rows have in a column that came is in the catalog then.
//!
//! So is one of which it is not known what changes say, as a column was dropped and made again, or not whether all were
//! sent, as more of it is published than before.
//!
//! | fact | what |
//! |---|---|
//! | `source/doubt/<table id>` | it is to be read anew for such a reason; goes with the plan of what was read before |
//! | `source/remade/<table id>` | the number of the last column that was made again and for which it was |
//!
//! **Invariant:** a file is taken for known only together with the columns that were there by then.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    catalog::{Described, Listed},
    chunks::Plan,
    error::SourceError,
    gone,
    repair::{self, Stage},
    session::Shared,
    snapshot::{plan_fact, progress},
    texts::{self, Texts},
    wire::Wire,
};
use crate::{
    facts::{self, FactBatch, FactDamaged, Facts, FactsError},
    source::{
        fate::{Fate, fate_fact, rewritten_fact},
        reread::{Span, span_fact},
    },
    units::Position,
};

/// The columns of a table that have values of their own.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Layout {
    /// How many columns there ever were, dropped ones among them.
    attributes: u16,
    /// By number.
    columns: BTreeMap<u16, Kept>,
    /// What their values are made of beside the rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    texts: Option<Texts>,
}

/// What is known of a column.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Kept {
    /// Its type as declared, and its modifier.
    of: (u32, i32),
    /// The transaction that wrote its row in the catalog last; `ALTER … TYPE` always does, though the type be the same.
    by: u32,
    /// Whether rows before it have its value from the catalog; all do no more once they are written anew.
    missing: bool,
}

/// What a file and its columns say of the rows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Judgment {
    /// Nothing has changed.
    Known,
    /// There are others, and no value changed unseen.
    Harmless,
    /// Values changed that no stream has.
    Anew,
}

/// What is known of tables since the process started.
#[derive(Default)]
pub(crate) struct Rewritten {
    /// File and number of columns of those that need no closer look.
    known: BTreeMap<u32, (u32, u16)>,
    /// What the texts were made of at the last look.
    fingerprint: String,
    /// Of tables that have any.
    texts: BTreeMap<u32, Texts>,
    /// Tables for which they are others than before, until that is judged; and whether values of it print in another way.
    others: BTreeMap<u32, bool>,
    /// Where the log ended before the last look.
    looked: Option<Position>,
    /// And before the last one at texts.
    glanced: Option<Position>,
}

impl Layout {
    /// How many columns there ever were, dropped ones among them.
    pub(crate) fn attributes(&self) -> u16 {
        self.attributes
    }

    /// Whether some column of it has, in rows that are there, values that a table of this layout had not, if all rows
    /// were written anew (`is_rewritten`) since, or if not.
    pub(crate) fn is_changed(&self, since: &Self, is_rewritten: bool) -> bool {
        let mut texts = self.texts.iter().zip(&since.texts);
        let mut columns = self.columns.iter();
        texts.any(|(now, before)| now.is_changed(before))
            || columns.any(|(number, column)| match since.columns.get(number) {
                Some(before) => is_rewritten && column.is_changed(before),
                // One that is not new was computed until then.
                None => is_rewritten || *number <= since.attributes,
            })
    }
}

impl Kept {
    /// Whether its values may be others, now that all rows were written anew.
    fn is_changed(&self, before: &Self) -> bool {
        // Whatever writes the rows anew takes note that none misses a value any more.
        let is_noted = before.missing && !self.missing;
        self.of != before.of || (self.by != before.by && !is_noted)
    }
}

/// What became of a table since its plan was made, or looked at last.
fn judge(plan: &Plan, file: u32, layout: &Layout) -> Judgment {
    match &plan.layout {
        Some(known) if layout.is_changed(known, plan.filenode != file) => Judgment::Anew,
        Some(known) if plan.filenode == file && known == layout => Judgment::Known,
        // Of what an older firmware read, or a box before this one, nothing else is known.
        Some(_) | None => Judgment::Harmless,
    }
}

impl Rewritten {
    /// Looks at the tables of a `listing` that was made when the log ended at `position` or later, while no part of
    /// any is read. Those that are read anew from now on.
    pub(crate) async fn look(
        &mut self,
        shared: &Shared,
        wire: &mut Wire,
        listing: &BTreeMap<u32, Listed>,
        position: Position,
    ) -> Result<BTreeSet<u32>, SourceError> {
        let facts = &*shared.facts;
        self.known.retain(|id, _| listing.contains_key(id));
        self.glance(wire, position).await?;
        let (doubted, mut anew, mut batch) =
            (doubted(facts), BTreeSet::new(), FactBatch::default());
        for id in doubted.iter().filter(|id| !listing.contains_key(id)) {
            batch.delete(doubt_fact(*id));
        }
        let plans = self.in_question(shared, listing, &doubted, &mut batch)?;
        let layouts = layouts(wire, plans.keys()).await?;
        for (id, (plan, since)) in plans {
            let Some((file, layout)) = layouts.get(&id) else { continue };
            let is_renamed = self.others.get(&id).copied().unwrap_or_default();
            let judged = match doubted.contains(&id) || is_renamed {
                true => Judgment::Anew,
                false => judge(&plan, *file, layout),
            };
            match judged {
                Judgment::Known => {}
                // While parts are missing it is the plan's own, that they cover its file.
                Judgment::Harmless if !plan.done => continue,
                Judgment::Harmless => {
                    let mut plan = plan;
                    plan.see(*file, layout.clone());
                    batch.put(plan_fact(id), &plan);
                }
                Judgment::Anew => {
                    read_anew(facts, (id, &plan), since, &mut batch)?;
                    batch.delete(doubt_fact(id));
                    anew.insert(id);
                    continue;
                }
            }
            self.known.insert(id, (*file, layout.attributes));
        }
        if !batch.changes.is_empty() {
            shared.facts.record(batch).await?;
        }
        self.looked = Some(position);
        self.others.clear();
        Ok(anew)
    }

    /// The plans of tables that are to be looked at closely, and where the log ended at the last look at each. Of what
    /// is in `doubted` and waits for something else, there is no doubt any more.
    fn in_question(
        &mut self,
        shared: &Shared,
        listing: &BTreeMap<u32, Listed>,
        doubted: &BTreeSet<u32>,
        batch: &mut FactBatch,
    ) -> Result<BTreeMap<u32, (Plan, Option<Position>)>, SourceError> {
        let mut plans = BTreeMap::new();
        for (id, listed) in listing {
            let seen = (listed.filenode, listed.attributes);
            let (known, is_doubted) = (self.known.get(id), doubted.contains(id));
            if known == Some(&seen) && !is_doubted && !self.others.contains_key(id) {
                continue;
            }
            let since = self.looked.filter(|_| known.is_some() && !is_doubted);
            let Some(plan) = progress(shared, *id)? else { continue };
            // What waits to be compared with the database gets its values by that.
            let waits = plan.gone
                || plan.is_to_be_made()
                || repair::stage(&*shared.facts, *id) == Stage::Waiting;
            let as_read = plan.layout.as_ref().is_some_and(|layout| {
                (plan.filenode, layout.attributes) == seen
                    && layout.texts.as_ref() == self.texts.get(id)
            });
            let is_renamed = self.others.get(id).copied().unwrap_or_default();
            match as_read && !is_doubted && !is_renamed {
                _ if waits => {
                    self.known.remove(id);
                    if is_doubted {
                        batch.delete(doubt_fact(*id));
                    }
                }
                true => drop(self.known.insert(*id, seen)),
                false => drop(plans.insert(*id, (plan, since))),
            }
        }
        Ok(plans)
    }

    /// Looks what values are made of beside the rows, and for which tables that has changed since the last look; judges
    /// nothing. A label may come and get another name while parts are read.
    pub(crate) async fn glance(
        &mut self,
        wire: &mut Wire,
        position: Position,
    ) -> Result<(), SourceError> {
        if self.glanced == Some(position) {
            return Ok(());
        }
        let fingerprint = texts::fingerprint(wire).await?;
        if fingerprint != self.fingerprint {
            let (texts, none) = (texts::load(wire, None).await?, Texts::default());
            for id in texts.keys().chain(self.texts.keys()) {
                let (now, before) = (texts.get(id), self.texts.get(id));
                if now != before {
                    let is_renamed = now.unwrap_or(&none).is_changed(before.unwrap_or(&none));
                    *self.others.entry(*id).or_default() |= is_renamed;
                }
            }
            (self.fingerprint, self.texts) = (fingerprint, texts);
        }
        self.glanced = Some(position);
        Ok(())
    }
}

/// Has tables read anew of whose changes, or of what they say, not all is known.
pub(crate) async fn doubt(facts: &dyn Facts, tables: &BTreeSet<u32>) -> Result<(), FactsError> {
    if tables.is_empty() {
        return Ok(());
    }
    let mut batch = FactBatch::default();
    for id in tables {
        batch.put(doubt_fact(*id), &true);
    }
    facts.record(batch).await
}

/// [`doubt`] of a table in which the column of this number was made again; once for each, as the stream may come there
/// again and again before seal does. Whether it is the first time.
pub(crate) async fn doubt_remade(
    facts: &dyn Facts,
    table_id: u32,
    number: u16,
) -> Result<bool, SourceError> {
    let fact = format!("{REMADE_FACTS}{table_id:010}");
    let known: Option<u16> = facts::read(facts, &fact)?;
    if known.is_some_and(|known| known >= number) {
        return Ok(false);
    }
    let mut batch = FactBatch::default();
    batch.put(fact, &number).put(doubt_fact(table_id), &true);
    facts.record(batch).await?;
    Ok(true)
}

/// Tables of [`doubt`] that are still to be read anew.
pub(crate) fn doubted(facts: &dyn Facts) -> BTreeSet<u32> {
    let keys = facts.scan(DOUBT_FACTS);
    let ids = keys.iter().map(|(key, _)| key.strip_prefix(DOUBT_FACTS)?.parse().ok());
    ids.flatten().collect()
}

fn doubt_fact(table_id: u32) -> String {
    format!("{DOUBT_FACTS}{table_id:010}")
}

const DOUBT_FACTS: &str = "source/doubt/";
const REMADE_FACTS: &str = "source/remade/";

/// Says of a table what rows have in columns that came to its file since that was seen first.
pub(crate) fn settle(
    facts: &dyn Facts,
    table_id: u32,
    described: &mut Described,
) -> Result<(), FactDamaged> {
    if !described.is_unsettled() {
        return Ok(());
    }
    let Some(plan) = facts::read::<Plan>(facts, &plan_fact(table_id))? else { return Ok(()) };
    if let Some(columns) = plan.columns_of(plan.filenode) {
        described.settle(plan.filenode, columns);
    }
    Ok(())
}

/// Has a table read anew whose values changed behind `since`. No part of it may be under way.
pub(crate) fn read_anew(
    facts: &dyn Facts,
    (table_id, plan): (u32, &Plan),
    since: Option<Position>,
    batch: &mut FactBatch,
) -> Result<(), FactDamaged> {
    let table = &plan.table;
    tracing::warn!(
        table,
        "a statement changed values of it that are in no stream: all of it is read anew"
    );
    // Of a table that was not looked at since the process started it was behind its reading.
    let span = || facts::read::<Span>(facts, &span_fact(table_id));
    let since = match since {
        Some(position) => position,
        None => span()?.map(|span| span.last).unwrap_or_default(),
    };
    gone::read_anew(facts, table_id, plan, batch);
    batch.put(rewritten_fact(table_id), &since);
    if plan.done {
        batch.put(fate_fact(table_id, Fate::Left), &Fate::Left);
    }
    Ok(())
}

/// The files and columns of tables, as one statement sees both of each, and what values are made of besides.
pub(crate) async fn layouts(
    wire: &mut Wire,
    tables: impl Iterator<Item = &u32>,
) -> Result<BTreeMap<u32, (u32, Layout)>, SourceError> {
    let ids: Vec<String> = tables.map(u32::to_string).collect();
    let mut found: BTreeMap<u32, (u32, Layout)> = BTreeMap::new();
    for ids in ids.chunks(TABLES_AT_ONCE) {
        let sql = LAYOUTS.replace("{ids}", &ids.join(","));
        for row in wire.query("look at columns", &sql).await? {
            let none = Layout { attributes: row.parse_as(2)?, ..Layout::default() };
            let new = (row.parse_as(1)?, none);
            let (_, layout) = found.entry(row.parse_as(0)?).or_insert(new);
            if row.optional(3).is_some() {
                let of = (row.parse_as(4)?, row.parse_as(5)?);
                let column = Kept { of, by: row.parse_as(6)?, missing: row.flag(7) };
                layout.columns.insert(row.parse_as(3)?, column);
            }
        }
        for (id, texts) in texts::load(wire, Some(ids)).await? {
            if let Some((_, layout)) = found.get_mut(&id) {
                layout.texts = Some(texts);
            }
        }
    }
    Ok(found)
}

/// Bounds the answer: 1,600 columns each.
const TABLES_AT_ONCE: usize = 200;
/// 0 table, 1 file, 2 how many columns there ever were, 3 a column's number, 4 its type, 5 its modifier, 6 who wrote
/// that, 7 whether rows before it miss it. Of a table without columns one row, without a column. The file is that of the catalog's row, and not the one that
/// `pg_relation_filenode` knows of: it may be younger than the columns.
const LAYOUTS: &str = "SELECT c.oid, c.relfilenode, c.relnatts, a.attnum, a.atttypid, a.atttypmod, a.xmin, a.atthasmissing
    FROM pg_class c LEFT JOIN pg_attribute a
    ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    WHERE c.oid IN ({ids})";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::MemoryFacts,
        source::{ChunkDone, chunk_fact},
    };

    fn layout(attributes: u16, columns: &[(u16, u32)]) -> Layout {
        let column = |of| Kept { of: (of, -1), by: 700, missing: false };
        let columns = columns.iter().map(|(at, of)| (*at, column(*of))).collect();
        Layout { attributes, columns, texts: None }
    }

    fn judged(before: &Layout, file: u32, after: &Layout) -> Judgment {
        let plan = Plan {
            filenode: 9,
            done: true,
            layout: Some(before.clone()),
            ..Plan::empty("public.t".into())
        };
        judge(&plan, file, after)
    }

    #[test]
    fn only_another_file_with_a_new_or_another_column_has_other_values() {
        let before = layout(3, &[(1, 23), (3, 25)]);
        let (same, other) = (9, 10);
        for (file, after, expected) in [
            (same, before.clone(), Judgment::Known),
            // VACUUM FULL, TRUNCATE.
            (other, before.clone(), Judgment::Harmless),
            (same, layout(4, &[(1, 23), (3, 25), (4, 23)]), Judgment::Harmless),
            (other, layout(4, &[(1, 23), (3, 25), (4, 23)]), Judgment::Anew),
            // varchar to text, and int to bigint.
            (same, layout(3, &[(1, 23), (3, 1043)]), Judgment::Harmless),
            (other, layout(3, &[(1, 20), (3, 25)]), Judgment::Anew),
            // Dropped; then VACUUM FULL.
            (same, layout(3, &[(1, 23)]), Judgment::Harmless),
            (other, layout(3, &[(1, 23)]), Judgment::Harmless),
            // It was computed until then.
            (same, layout(3, &[(1, 23), (2, 23), (3, 25)]), Judgment::Anew),
        ] {
            assert_eq!(judged(&before, file, &after), expected, "{file} {after:?}");
        }
        let third = |change: fn(&mut Kept)| {
            let mut changed = before.clone();
            changed.columns.entry(3).and_modify(change);
            changed
        };
        let narrower = third(|column| column.of.1 = 10);
        assert_eq!(judged(&before, other, &narrower), Judgment::Anew, "its modifier");
        // ALTER … TYPE to the type that it has, with another value; SET NOT NULL.
        let same_type = third(|column| column.by = 800);
        assert_eq!(judged(&before, other, &same_type), Judgment::Anew);
        assert_eq!(judged(&before, same, &same_type), Judgment::Harmless);
        // VACUUM FULL of a table to which a column had come with a constant.
        let constant = third(|column| column.missing = true);
        assert_eq!(judged(&constant, other, &same_type), Judgment::Harmless);
        assert_eq!(judged(&constant, other, &narrower), Judgment::Anew);
    }

    #[test]
    fn it_is_kept_how_many_columns_there_were_when_a_file_was_seen_first() {
        let with = |columns| layout(columns, &[(1, 23)]);
        let mut plan = Plan { filenode: 9, ..Plan::empty("public.t".into()) };
        assert_eq!(plan.columns_of(9), None);
        plan.see(9, with(3));
        assert_eq!((plan.columns_of(9), plan.columns_of(8)), (Some(3), None));
        plan.see(9, with(4));
        plan.see(9, with(5));
        assert_eq!(plan.columns_of(9), Some(3));
        assert_eq!(plan.see(10, with(6)), Some(with(5)));
        assert_eq!((plan.columns_of(10), plan.columns_of(9)), (Some(6), None));
        assert_eq!(plan.anew().columns_of(10), None);
    }

    #[tokio::test]
    async fn a_column_that_was_made_again_is_doubted_once() {
        let facts = MemoryFacts::default();
        assert!(doubt_remade(&facts, 7, 3).await.unwrap());
        assert_eq!(doubted(&facts), [7].into());
        facts.record_blocking(FactBatch { changes: [(doubt_fact(7), None)].into() }).unwrap();
        assert!(!doubt_remade(&facts, 7, 3).await.unwrap());
        assert!(doubted(&facts).is_empty());
        assert!(doubt_remade(&facts, 7, 4).await.unwrap());
    }

    #[test]
    fn of_a_plan_of_an_older_firmware_nothing_is_known() {
        let plan = Plan { filenode: 9, done: true, ..Plan::empty("public.t".into()) };
        assert_eq!(judge(&plan, 10, &layout(1, &[(1, 23)])), Judgment::Harmless);
    }

    #[test]
    fn of_a_table_that_is_read_anew_no_part_is_left_and_it_is_said_behind_what() {
        for done in [false, true] {
            let (facts, mut known) = (MemoryFacts::default(), FactBatch::default());
            let plan = Plan { done, ..Plan::empty("public.t".into()) };
            let span = Span::with(Some(Span::begun(Position(10), false)), Position(20), done);
            let part = ChunkDone { position: Position(20), rows: 1 };
            known.put(plan_fact(7), &plan).put(span_fact(7), &span).put(chunk_fact(7, 0), &part);
            facts.record_blocking(known).unwrap();
            for (since, told) in [(Some(Position(30)), 30), (None, 20)] {
                let mut batch = FactBatch::default();
                read_anew(&facts, (7, &plan), since, &mut batch).unwrap();
                let after = MemoryFacts::default();
                after.record_blocking(batch).unwrap();
                let at: Option<Position> = facts::read(&after, &rewritten_fact(7)).unwrap();
                assert_eq!(at, Some(Position(told)));
                let anew: Plan = facts::read(&after, &plan_fact(7)).unwrap().unwrap();
                assert!(anew.is_to_be_made(), "{anew:?}");
                assert_eq!(after.get(&fate_fact(7, Fate::Left)).is_some(), done);
            }
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let json = serde_json::to_string(&layout(3, &[(1, 23), (3, 25)])).unwrap();
        let column = |of| format!(r#"{{"of":[{of},-1],"by":700,"missing":false}}"#);
        let columns = format!(r#"{{"1":{},"3":{}}}"#, column(23), column(25));
        assert_eq!(json, format!(r#"{{"attributes":3,"columns":{columns}}}"#));
        assert_eq!(serde_json::from_str::<Layout>(&json).unwrap(), layout(3, &[(1, 23), (3, 25)]));
    }
}
