//! What a box is to repair behind a gap, from what a comparison found. Pure.
//!
//! A table that the ledger has not whole behind a gap, and that was compared with the database as if it were, waits
//! for this. What the comparison cannot name by keys is read anew as a whole, and why is said.

use std::collections::BTreeMap;

use super::{
    ReplayError,
    apply::{Matching, Shape},
    plan::{Definitions, Plan, plan_whole},
    proof_lake::Lakeside,
    proof_report::{Differences, OrderedAs, RowState, TableProof, Verdict},
};
use crate::{
    journal::{Column, Identity},
    ledger::{Entry, EntryKind},
    seal::Table,
    source::{
        order::{How, KEYS_BYTES_MAX, Keys, Order, Ordered, VERSION},
        postgres::Witness,
    },
};

/// Makes the order for the tables of `plan`, which were compared as `found`. `None`: no table waits for one.
pub(super) fn order(
    source: &str,
    (entries, known): (&[Entry], &Definitions),
    plan: &Plan,
    (lakeside, witness): (&Lakeside<'_>, &Witness),
    found: &[TableProof],
) -> Result<Option<Order>, ReplayError> {
    let Some(gap) = entries.iter().rfind(|entry| entry.kind == EntryKind::Gap) else {
        return Ok(None);
    };
    let (said, _) = plan_whole(entries, known, Some(witness.position()))?;
    let (mut tables, mut bytes) = (vec![], 0);
    for id in plan.tables.keys().filter(|id| !said.tables.contains_key(id)) {
        let (Some(held), Some(now)) = (lakeside.held(*id), witness.table(*id)) else { continue };
        let table = held.last.qualified();
        let Some(proof) = found.iter().find(|proof| proof.id == *id) else { continue };
        let how = match held.problem.clone().or_else(|| obstacle(&held.last, now)) {
            Some(why) => Some(How::Anew(why)),
            None => how(proof, &held.layout.key, &mut bytes),
        };
        tables.extend(how.map(|how| Ordered { id: *id, table, how }));
    }
    let order = Order {
        version: VERSION,
        source: source.into(),
        system_identifier: witness.system_identifier().into(),
        behind: gap.to.position,
        position: witness.position(),
        tables,
    };
    Ok((!order.tables.is_empty()).then_some(order))
}

/// Why a table cannot be repaired by keys, whatever differs.
fn obstacle(lake: &Table, source: &Table) -> Option<String> {
    let alike = |one: &Column, other: &Column| {
        let of = |column: &Column| {
            let Column { name, source_type, type_id, type_modifier, generated, .. } = column;
            (name.clone(), source_type.clone(), *type_id, *type_modifier, generated.clone())
        };
        of(one) == of(other)
    };
    let columns = lake.columns.len() == source.columns.len()
        && lake.columns.iter().zip(&source.columns).all(|(one, other)| alike(one, other));
    if !columns || lake.types != source.types {
        return Some("its columns or their types changed in between".into());
    }
    if source.identity == Identity::Nothing {
        return Some("not all of its changes are in the stream".into());
    }
    match Shape::new(source).matching {
        Matching::Key(_) if lake.key == source.key => None,
        Matching::Key(_) | Matching::Ordered(_) | Matching::Whole => {
            Some("it has no one key that names its rows".into())
        }
    }
}

/// How a table is repaired; `None`: it was not compared, and is left to wait.
fn how(proof: &TableProof, key: &[String], bytes: &mut usize) -> Option<How> {
    let found = match (&proof.verdict, &proof.differences) {
        (Verdict::Equal, _) => Some(Keys { columns: key.to_vec(), ..Keys::default() }),
        (Verdict::Different, Some(found)) => keys(found, key.to_vec()),
        (Verdict::Unknown, _) if proof.overflows => None,
        (Verdict::Different | Verdict::Unknown | Verdict::Untold, _) => return None,
    };
    let (Some(mut keys), Some(unknown)) = (found, &proof.unknown_rows) else {
        let why = "more rows differ than an order holds, or their keys are too long";
        return Some(How::Anew(why.into()));
    };
    // What is not known is read, too.
    keys.read.extend(unknown.iter().cloned());
    if *bytes + keys.bytes() > KEYS_BYTES_MAX {
        return Some(How::Anew("the keys of the rows that differ do not fit the order".into()));
    }
    *bytes += keys.bytes();
    Some(How::Keys(keys))
}

/// The keys of all rows that differ, if they are all there.
fn keys(found: &Differences, columns: Vec<String>) -> Option<Keys> {
    let told = found.rows.iter().all(|row| row.key.len() == columns.len());
    if !told || u64::try_from(found.rows.len()).ok() != Some(found.count()) {
        return None;
    }
    let of = |gone: bool| {
        let rows = found.rows.iter();
        let rows = rows.filter(move |row| (row.what == RowState::MissingInSource) == gone);
        rows.map(|row| row.key.clone()).collect()
    };
    let (read, gone) = (of(false), of(true));
    Some(Keys { columns, read, gone })
}

/// What an order says, without its keys.
pub(super) fn in_short(order: &Order) -> BTreeMap<String, OrderedAs> {
    let tables = order.tables.iter().map(|ordered| {
        let how = match &ordered.how {
            How::Anew(why) => OrderedAs::Anew(why.clone()),
            How::Keys(keys) => OrderedAs::Keys(keys.read.len() + keys.gone.len()),
        };
        (ordered.table.clone(), how)
    });
    tables.collect()
}

/// Rows of a table that are looked at one by one where an order is asked for.
pub(super) const ORDER_ROWS_MAX: usize = 50_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::{
        proof_report::RowDifference,
        sample::{column, table},
    };

    fn row(key: &str, what: RowState) -> RowDifference {
        let key = if key.is_empty() { vec![] } else { vec![key.to_owned()] };
        RowDifference { key, what, columns: vec![] }
    }

    fn different(rows: Vec<RowDifference>, altered: u64) -> TableProof {
        let differences = Differences {
            altered,
            missing_in_lake: 1,
            missing_in_source: 1,
            rows,
            ..Differences::default()
        };
        let (verdict, differences) = (Verdict::Different, Some(differences));
        let unknown_rows = Some(vec![]);
        TableProof { verdict, differences, unknown_rows, ..TableProof::default() }
    }

    fn asked(proof: &TableProof, bytes: usize) -> Option<How> {
        how(proof, &["id".to_owned()], &mut bytes.clone())
    }

    #[test]
    fn what_differs_is_ordered_by_its_keys_and_as_a_whole_where_they_are_not_all_there() {
        let lake = || row("1", RowState::MissingInLake);
        let gone = || row("2", RowState::MissingInSource);
        let other = || row("3", RowState::Altered);
        let Some(How::Keys(keys)) = asked(&different(vec![lake(), gone(), other()], 1), 0) else {
            panic!("not by keys")
        };
        assert_eq!(keys.columns, ["id"]);
        assert_eq!(
            (keys.read.concat(), keys.gone.concat()),
            (vec!["1".to_owned(), "3".to_owned()], vec!["2".to_owned()])
        );
        let whole = |proof: &TableProof, bytes| matches!(asked(proof, bytes), Some(How::Anew(_)));
        assert!(whole(&different(vec![lake(), gone()], 1), 0), "one is not named");
        let long = row("", RowState::Altered);
        assert!(whole(&different(vec![lake(), gone(), long], 1), 0), "a key is too long");
        let fits = different(vec![lake(), gone()], 0);
        assert!(!whole(&fits, 0) && whole(&fits, KEYS_BYTES_MAX - 1));
        let equal = |unknown_rows| TableProof {
            verdict: Verdict::Equal,
            unknown_rows,
            ..TableProof::default()
        };
        assert!(whole(&equal(None), 0), "of which more is unknown than was kept");
        let read = vec![vec!["5".to_owned()]];
        assert_eq!(
            asked(&equal(Some(read.clone())), 0),
            Some(How::Keys(Keys { columns: vec!["id".into()], read, gone: vec![] }))
        );
        assert_eq!(asked(&TableProof::default(), 0), None, "it was not compared");
    }

    #[test]
    fn a_table_that_is_not_what_it_was_is_read_anew_as_a_whole() {
        let of = |name: &str, id: u32, key: &[&str]| {
            table("t", vec![column("id", "bigint", 20, -1), column(name, "text", id, -1)], key)
        };
        let plain = of("note", 25, &["id"]);
        assert_eq!(obstacle(&plain, &plain), None);
        for other in [of("other", 25, &["id"]), of("note", 1043, &["id"])] {
            assert!(obstacle(&plain, &other).unwrap().contains("columns"));
        }
        let keyless = of("note", 25, &[]);
        assert!(obstacle(&keyless, &keyless).unwrap().contains("no one key"));
        let silent = Table { identity: Identity::Nothing, ..plain };
        assert!(obstacle(&silent, &silent).unwrap().contains("stream"));
    }
}
