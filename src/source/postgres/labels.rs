//! The labels of enums, which come without a word in the change stream: read again, and put into the
//! definitions under which rows are recorded.
//!
//! **Invariant:** a label of a row that is recorded stands in a definition under which that row, or one
//! after it, is recorded: only such definitions reach the ledger.

use std::collections::{BTreeMap, BTreeSet};

use super::{catalog::literal, error::SourceError, wire::Wire};
use crate::source::{RecordKind, Run, Table, TypeDefinition, records};

/// Gives the enums that `tables` use the labels that the catalog has now. The tables for which that changed
/// something.
pub(crate) async fn relabel_all(
    wire: &mut Wire,
    tables: Vec<&mut Table>,
) -> Result<BTreeSet<u32>, SourceError> {
    let types = tables.iter().flat_map(|table| &table.types);
    let enums = types.filter(|known| known.labels.is_some()).map(|known| known.id).collect();
    let labels = labels(wire, &enums).await?;
    let changed = tables.into_iter().filter_map(|table| {
        let changed = relabel(&mut table.types, &labels);
        changed.then(|| {
            tracing::info!(table = table.qualified(), "an enum has other labels than before");
            table.id
        })
    });
    Ok(changed.collect())
}

/// Gives the definitions in a run the labels that `described` has: one that was made before a label came
/// may wait in front of the rows that use it, and is the one that they are sealed under. Of the tables in
/// `relabelled` that the run does not define, the definition comes before it.
pub(crate) fn restate(
    run: &mut Run,
    described: &BTreeMap<u32, Table>,
    mut relabelled: BTreeSet<u32>,
) {
    let json = |table: &Table| serde_json::to_vec(table).expect("a table is plain data");
    let defines = |record: Option<(RecordKind, &[u8])>| {
        record.is_some_and(|(kind, _)| kind == RecordKind::Definition)
    };
    if records(&run.bytes).any(defines) {
        let bytes = std::mem::take(&mut run.bytes);
        for (kind, payload) in records(&bytes).flatten() {
            let table = match kind {
                RecordKind::Definition => serde_json::from_slice::<Table>(payload).ok(),
                RecordKind::Message => None,
            };
            let known =
                table.and_then(|table| described.get(&table.id).map(|known| (table, known)));
            let Some((mut table, known)) = known else {
                run.push(kind, payload);
                continue;
            };
            relabelled.remove(&table.id);
            let labels = known.types.iter().filter_map(|of| Some((of.id, of.labels.clone()?)));
            match relabel(&mut table.types, &labels.collect()) {
                true => run.push(kind, &json(&table)),
                false => run.push(kind, payload),
            }
        }
    }
    for table in relabelled.iter().filter_map(|id| described.get(id)) {
        run.put_before(RecordKind::Definition, &json(table));
    }
}

/// Gives the enums among `types` the labels that the catalog has now, where it has any. Whether that
/// changed something.
pub(super) fn relabel(types: &mut [TypeDefinition], labels: &BTreeMap<u32, Vec<String>>) -> bool {
    let mut changed = false;
    for definition in types {
        if let (Some(before), Some(now)) = (&mut definition.labels, labels.get(&definition.id))
            && before != now
        {
            definition.create = create_enum(&definition.name, now);
            before.clone_from(now);
            changed = true;
        }
    }
    changed
}

/// The labels of enums, by type; of one that is gone none.
pub(super) async fn labels(
    wire: &mut Wire,
    enums: &BTreeSet<u32>,
) -> Result<BTreeMap<u32, Vec<String>>, SourceError> {
    let ids: Vec<String> = enums.iter().map(ToString::to_string).collect();
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let sql = format!(
        "SELECT enumtypid, enumlabel FROM pg_enum WHERE enumtypid IN ({}) \
         ORDER BY enumtypid, enumsortorder",
        ids.join(",")
    );
    let mut labels: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for row in wire.query("read the labels of enums", &sql).await? {
        labels.entry(row.parse_as(0)?).or_default().push(row.text(1)?.into());
    }
    Ok(labels)
}

pub(super) fn create_enum(name: &str, labels: &[String]) -> String {
    let labels: Vec<_> = labels.iter().map(|label| literal(label)).collect();
    format!("CREATE TYPE {name} AS ENUM ({})", labels.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Identity, Piece};

    #[test]
    fn a_definition_that_waits_in_a_run_gets_the_labels_that_came_meanwhile() {
        let mood = |labels: &[&str]| {
            let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
            let create = create_enum("mood", &labels);
            let mood = TypeDefinition::new(20_001, "mood".into(), create);
            TypeDefinition { labels: Some(labels), ..mood }
        };
        let table = |id, labels: &[&str]| Table {
            id,
            version: 0,
            schema: "public".into(),
            name: format!("t{id}"),
            columns: vec![],
            key: vec![],
            identity: Identity::Default,
            types: vec![mood(labels)],
        };
        let json = |table: &Table| serde_json::to_vec(table).unwrap();
        let described = BTreeMap::from([1, 3].map(|id| (id, table(id, &["a", "b"]))));
        let run = |tables: &[Table]| {
            let mut run = Run::new(Piece::Whole);
            for table in tables {
                run.push(RecordKind::Definition, &json(table));
                run.push(RecordKind::Message, b"I");
            }
            run
        };
        let mut waiting = run(&[table(1, &["a"]), table(2, &["a"])]);
        restate(&mut waiting, &described, BTreeSet::from([1, 3]));
        let mut wanted = run(&[described[&1].clone(), table(2, &["a"])]);
        wanted.put_before(RecordKind::Definition, &json(&described[&3]));
        assert_eq!(waiting, wanted);
    }
}
