//! Divides a table by its key, where all of it is read again.
//!
//! **Invariant:** every row is in exactly one part, and stays in it for as long as it keeps its key. Of
//! ranges of blocks that is not so: any update can move a row from one to another. So what is read again
//! this way misses only rows that get another key meanwhile, however long it takes and whatever else
//! happens to the table.

use serde::{Deserialize, Serialize};

use super::{
    catalog::{Described, identifier, literal, quoted},
    error::SourceError,
    wire::Wire,
};
use crate::source::{Identity, Table};

/// Parts of a table, by its key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Ranges {
    /// What names a row.
    columns: Vec<Named>,
    /// The greatest key of each part but the last, ascending, as text.
    bounds: Vec<Vec<String>>,
}

/// A column of the key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Named {
    name: String,
    /// Its type, as SQL spells it.
    of: String,
}

impl Ranges {
    /// About `count` parts of a table that has `blocks`, by a sample of its keys. `None`: nothing names
    /// its rows.
    pub(crate) async fn divide(
        wire: &mut Wire,
        described: &Described,
        blocks: u32,
        count: u32,
    ) -> Result<Option<Self>, SourceError> {
        let columns = named(&described.table);
        if columns.is_empty() {
            return Ok(None);
        }
        let rows = match count {
            0 | 1 => vec![],
            _ => {
                let sql = sample(&described.table, &columns, blocks, count);
                wire.query("sample a table's keys", &sql).await?
            }
        };
        let text = |at: usize, row: &super::message::TextRow| row.text(at).map(str::to_owned);
        let bounds = rows.iter().map(|row| (0..columns.len()).map(|at| text(at, row)).collect());
        let bounds = bounds.collect::<Result<Vec<_>, SourceError>>()?;
        Ok(Some(Self { columns, bounds: thinned(bounds) }))
    }

    /// Whether the table's rows are still named so.
    pub(crate) fn fits(&self, table: &Table) -> bool {
        self.columns == named(table)
    }

    /// Its bounds are no values of the columns any more: they fit no table.
    pub(crate) fn spoil(&mut self) {
        self.columns.clear();
    }

    /// How many parts there are.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.bounds.len() + 1).unwrap_or(u32::MAX)
    }

    /// The condition on the rows of a part, with its WHERE; empty for the whole table.
    pub(crate) fn condition(&self, number: u32) -> String {
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        let after = at.checked_sub(1).and_then(|before| self.bounds.get(before));
        let after = after.map(|bound| self.compare(">", bound));
        let to = self.bounds.get(at).map(|bound| self.compare("<=", bound));
        match (after, to) {
            (None, None) => String::new(),
            (Some(one), None) | (None, Some(one)) => format!(" WHERE {one}"),
            (Some(after), Some(to)) => format!(" WHERE {after} AND {to}"),
        }
    }

    fn compare(&self, with: &str, bound: &[String]) -> String {
        let names: Vec<String> = self.columns.iter().map(|own| identifier(&own.name)).collect();
        let values = bound.iter().zip(&self.columns);
        let values = values.map(|(text, own)| format!("{}::{}", literal(text), own.of));
        format!("({}) {with} ({})", names.join(","), values.collect::<Vec<_>>().join(","))
    }
}

/// The columns that name a row: those that seal notes its key by; in the order of the primary key, whose
/// index then finds the rows of a part.
fn named(table: &Table) -> Vec<Named> {
    let names = |name: &String, identity: bool| match table.identity {
        Identity::Default | Identity::Index => identity,
        Identity::Full | Identity::Nothing => table.key.contains(name),
    };
    let mut own: Vec<_> =
        table.columns.iter().filter(|column| names(&column.name, column.identity)).collect();
    own.sort_by_key(|column| table.key.iter().position(|name| *name == column.name));
    let named = own.into_iter();
    named.map(|own| Named { name: own.name.clone(), of: own.source_type.clone() }).collect()
}

/// Asks for keys of some blocks that divide them into `count` parts.
fn sample(table: &Table, columns: &[Named], blocks: u32, count: u32) -> String {
    let names: Vec<String> = columns.iter().map(|own| identifier(&own.name)).collect();
    let texts = names.iter().zip(0..).map(|(name, at)| format!("{name}::text AS lakehead_{at}"));
    let places: Vec<String> = (0..names.len()).map(|at| format!("lakehead_{at}")).collect();
    let wanted = f64::from(count) * SAMPLE_BLOCKS;
    let percent = (100.0 * wanted / f64::from(blocks.max(1))).min(100.0);
    format!(
        "SELECT {} FROM (SELECT {}, row_number() OVER (ORDER BY {}) AS lakehead_n, \
         count(*) OVER () AS lakehead_of FROM ONLY {} TABLESAMPLE SYSTEM ({percent:.6})) AS lakehead_s \
         WHERE lakehead_n % greatest(lakehead_of / {count}, 1) = 0 AND lakehead_n < lakehead_of \
         ORDER BY lakehead_n",
        places.join(","),
        texts.collect::<Vec<_>>().join(","),
        names.join(","),
        quoted(&table.schema, &table.name),
    )
}

/// As many of the bounds as a fact may hold.
fn thinned(mut bounds: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let bytes = |bounds: &[Vec<String>]| bounds.iter().flatten().map(String::len).sum::<usize>();
    while bounds.len() > 1 && bytes(&bounds) > BOUNDS_BYTES_MAX {
        let mut at = 0;
        bounds.retain(|_| {
            at += 1;
            at % 2 == 0
        });
    }
    bounds
}

/// Blocks that are sampled for each part: the rows of one block are often neighbours.
const SAMPLE_BLOCKS: f64 = 20.0;
/// Keeps the plan's fact small: beyond, the parts are fewer.
const BOUNDS_BYTES_MAX: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Column, LakeType};

    fn column(name: &str, of: &str, identity: bool) -> Column {
        Column {
            name: name.into(),
            source_type: of.into(),
            type_id: 25,
            type_modifier: -1,
            lake: LakeType::Text,
            identity,
            not_null: true,
            default: None,
            generated: None,
            number: None,
            before: None,
        }
    }

    fn table() -> Table {
        Table {
            id: 7,
            schema: "public".into(),
            name: "t".into(),
            version: 0,
            columns: vec![
                column("site", "text", true),
                column("note", "text", false),
                column("number", "bigint", true),
            ],
            key: vec!["number".into(), "site".into()],
            identity: Identity::Default,
            types: vec![],
        }
    }

    fn ranges(bounds: &[[&str; 2]]) -> Ranges {
        let bounds = bounds.iter().map(|key| key.map(str::to_owned).to_vec()).collect();
        Ranges { columns: named(&table()), bounds }
    }

    #[test]
    fn the_parts_cover_every_key_once_and_are_named_in_the_order_of_the_index() {
        let parts = ranges(&[["7", "a'b"], ["9", "c"]]);
        assert_eq!(parts.count(), 3);
        let first = r#"("number","site") <= ('7'::bigint,'a''b'::text)"#;
        assert_eq!(parts.condition(0), format!(" WHERE {first}"));
        let after = first.replace("<=", ">");
        let to = r#"("number","site") <= ('9'::bigint,'c'::text)"#;
        assert_eq!(parts.condition(1), format!(" WHERE {after} AND {to}"));
        assert_eq!(parts.condition(2), format!(" WHERE {}", to.replace("<=", ">")));
        assert_eq!(ranges(&[]).condition(0), "");
    }

    #[test]
    fn rows_that_are_named_otherwise_are_divided_anew() {
        let parts = ranges(&[["7", "a"]]);
        assert!(parts.fits(&table()));
        let mut retyped = table();
        retyped.columns[2].source_type = "numeric".into();
        assert!(!parts.fits(&retyped));
        // With the whole old row in the stream it is the primary key all the same.
        let full = Table { identity: Identity::Full, ..table() };
        assert!(parts.fits(&full));
        assert!(named(&Table { key: vec![], ..full }).is_empty());
    }

    #[test]
    fn keys_that_are_large_make_fewer_parts() {
        let bounds: Vec<Vec<String>> = (0..1000).map(|_| vec!["k".repeat(1000)]).collect();
        let kept = thinned(bounds).len();
        assert!((200..=262).contains(&kept), "{kept}");
        assert_eq!(thinned(vec![vec!["k".repeat(BOUNDS_BYTES_MAX * 2)]]).len(), 1);
    }

    #[test]
    fn keys_are_sampled_where_there_are_many() {
        let sql = sample(&table(), &named(&table()), 1 << 20, 100);
        assert!(sql.contains("SYSTEM (0.190735)"), "{sql}");
        assert!(sql.contains(r#"OVER (ORDER BY "number","site")"#), "{sql}");
        assert!(sample(&table(), &named(&table()), 3, 2).contains("SYSTEM (100.000000)"));
    }
}
