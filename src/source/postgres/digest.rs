//! Digests of a table as statements of SQL: the same sums that [`digest`](crate::source::digest) makes of the
//! lake's values. Pure.
//!
//! Each value is printed once, by its type's own output function, under the settings that every connection
//! pins; only functions are called that PostgreSQL 12 has, and none that FIPS forbids.

use super::catalog::{Described, identifier, quoted};
use crate::source::{
    LakeType,
    digest::{BITS_MAX, SHORT_BYTEA_BYTES, SHORT_BYTES},
};

/// What of a table is measured.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Measure {
    /// Names of columns, in order; those of the key among them.
    pub columns: Vec<String>,
    /// What names a row, in order; empty if only all columns do.
    pub key: Vec<String>,
    /// Columns whose values are sure: a row has a second hash of these alone.
    pub sure: Vec<String>,
    /// 2^`bits` buckets.
    pub bits: u32,
}

/// The statements for one table.
pub(super) struct Statements<'a> {
    pub(super) described: &'a Described,
    pub(super) measure: &'a Measure,
    /// Whether the server keeps text in UTF-8.
    pub(super) utf8: bool,
}

impl Statements<'_> {
    /// Number and sums of each bucket's rows: bucket, rows, high, low. `condition` begins with WHERE.
    pub(super) fn sums(&self, condition: &str) -> String {
        let hashes = self.hashes(condition);
        let half =
            |from: u32| format!("('x' || encode(substr(h, {from}, 8), 'hex'))::bit(64)::int8");
        format!(
            "SELECT b, count(*), sum(high), sum(low) FROM (SELECT b, {} AS high, {} AS low FROM ({hashes}) AS y) AS z GROUP BY b",
            half(1),
            half(9)
        )
    }

    /// The rows of some buckets, or of all: stamps of the key, hash, hash of the sure columns.
    pub(super) fn rows(&self, condition: &str, buckets: Option<&[u16]>) -> String {
        let hashes = self.hashes(condition);
        let of = buckets.map(|buckets| {
            let list: Vec<String> = buckets.iter().map(ToString::to_string).collect();
            format!(" WHERE b = ANY ('{{{}}}'::int4[])", list.join(","))
        });
        format!(
            "COPY (SELECT key, h, s FROM ({hashes}) AS y{}) TO STDOUT (FORMAT binary)",
            of.unwrap_or_default()
        )
    }

    /// Stamps of single rows: of the key, and of all columns.
    pub(super) fn stamps(&self, condition: &str) -> String {
        let (key, all) = (self.run(&self.measure.key), self.run(&self.measure.columns));
        format!("SELECT {key}, {all} FROM ({}) AS x", self.texts(condition))
    }

    /// Of each row: `key`, its stamps; `b`, its bucket; `h` and `s`, the hashes of all and of the sure columns.
    fn hashes(&self, condition: &str) -> String {
        let Measure { columns, key, sure, bits } = self.measure;
        let hash = |names: &[String]| {
            format!("substr(sha256(convert_to({}, 'UTF8')), 1, 16)", self.run(names))
        };
        let named = if key.is_empty() { "h".to_owned() } else { hash(key) };
        let shift = BITS_MAX - (*bits).min(BITS_MAX);
        format!(
            "SELECT key, (get_byte(k, 0) * 256 + get_byte(k, 1)) >> {shift} AS b, h, s FROM \
             (SELECT key, {} AS k, h, s FROM (SELECT {} AS key, {} AS h, {} AS s, x.* FROM ({}) AS x OFFSET 0) AS x) AS x",
            named,
            self.run(key),
            hash(columns),
            // The same run is computed once more only where it differs.
            if sure == columns { "NULL::bytea".to_owned() } else { hash(sure) },
            self.texts(condition)
        )
    }

    /// The columns as text, `c0`, `c1`, …, each printed once; a `bytea` as it is.
    fn texts(&self, condition: &str) -> String {
        let table = &self.described.table;
        let columns = self.measure.columns.iter().enumerate().map(|(at, name)| {
            let text = match self.is_raw(name) {
                true => Some(identifier(name)),
                false => self.described.text_of(name),
            };
            format!("{} AS c{at}", text.unwrap_or_else(|| "NULL::text".into()))
        });
        let columns = columns.collect::<Vec<_>>().join(", ");
        let from = quoted(&table.schema, &table.name);
        format!("SELECT {columns} FROM ONLY {from}{condition} OFFSET 0")
    }

    /// The stamps of columns, one behind the other.
    fn run(&self, names: &[String]) -> String {
        let stamps: Vec<String> = names.iter().filter_map(|name| self.stamp(name)).collect();
        match stamps.len() {
            0 => "''".into(),
            _ => concat(stamps),
        }
    }

    fn stamp(&self, name: &str) -> Option<String> {
        let at = self.measure.columns.iter().position(|own| own == name)?;
        let column = format!("c{at}");
        let long = !self.measure.key.iter().any(|own| own == name);
        if self.is_raw(name) {
            let short = format!(
                "coalesce('=' || 2 + 2 * octet_length({column}) || ':' || chr(92) || 'x' || encode({column}, 'hex'), '-')"
            );
            return Some(match long {
                true => format!(
                    "CASE WHEN octet_length({column}) > {SHORT_BYTEA_BYTES} THEN '#' || encode(sha256({column}), 'hex') ELSE {short} END"
                ),
                false => short,
            });
        }
        let length = match self.utf8 {
            true => format!("octet_length({column})"),
            false => format!("octet_length(convert_to({column}, 'UTF8'))"),
        };
        let short = format!("coalesce('=' || {length} || ':' || {column}, '-')");
        Some(match long && !self.is_short(name) {
            true => format!(
                "CASE WHEN {length} > {SHORT_BYTES} THEN '#' || encode(sha256(convert_to({column}, 'UTF8')), 'hex') ELSE {short} END"
            ),
            false => short,
        })
    }

    /// Whether it is a `bytea`: its bytes are measured, not their text.
    fn is_raw(&self, name: &str) -> bool {
        self.lake(name) == Some(LakeType::Binary)
    }

    /// Whether no value of it has a long text.
    fn is_short(&self, name: &str) -> bool {
        !matches!(self.lake(name), Some(LakeType::Text | LakeType::Binary) | None)
    }

    fn lake(&self, name: &str) -> Option<LakeType> {
        let column = self.described.table.columns.iter().find(|column| column.name == name);
        column.map(|column| column.lake)
    }
}

/// Texts one behind the other: a function takes 100 arguments at most.
fn concat(mut texts: Vec<String>) -> String {
    while texts.len() > 1 {
        let groups = texts.chunks(ARGUMENTS_MAX);
        texts = groups.map(|group| format!("concat({})", group.join(", "))).collect();
    }
    texts.pop().unwrap_or_default()
}

/// `FUNC_MAX_ARGS` is 100.
const ARGUMENTS_MAX: usize = 90;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_columns_are_put_together_in_groups() {
        let names: Vec<String> = (0..200).map(|n| format!("c{n}")).collect();
        let text = concat(names);
        assert!(text.starts_with("concat(concat(c0, c1, "), "{text}");
        assert_eq!(text.matches("concat(").count(), 4);
        assert_eq!(concat(vec!["a".into()]), "a");
    }
}
