//! Digests of a table as statements of SQL: the same sums that [`digest`](crate::source::digest) makes of the
//! lake's values. Pure.
//!
//! Each value is printed once, by its type's own output function, under the settings that every connection
//! pins; only functions are called that PostgreSQL 12 has, and none that FIPS forbids.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::catalog::{Described, identifier, quoted};
use crate::source::{
    LakeType,
    digest::{BITS_MAX, SHORT_BYTEA_BYTES, SHORT_BYTES, Sum},
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
    /// Number and sums of each bucket's rows, as one text: see [`read_sums`]. `condition` begins with WHERE.
    pub(super) fn sums(&self, condition: &str) -> String {
        let hashes = self.hashes(condition);
        let half =
            |from: u32| format!("('x' || encode(substr(h, {from}, 8), 'hex'))::bit(64)::int8");
        // Of the sum, which has no bounds, the number of 64 bits that is congruent to it.
        let wrapped = |sum: &str| {
            let positive = format!("(({sum} % {TWO_TO_64} + {TWO_TO_64}) % {TWO_TO_64})");
            format!(
                "int8send(({positive} - CASE WHEN {positive} >= {TWO_TO_63} THEN {TWO_TO_64} ELSE 0 END)::int8)"
            )
        };
        format!(
            "SELECT encode(string_agg(int4send(b) || int4send(n::int4) || {} || {}, ''), 'base64') FROM \
             (SELECT b, count(*) AS n, sum(high) AS high, sum(low) AS low FROM \
             (SELECT b, {} AS high, {} AS low FROM ({hashes}) AS y) AS z GROUP BY b) AS z",
            wrapped("high"),
            wrapped("low"),
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

/// Reads the answer to [`Statements::sums`]: base64, in lines, of 24 bytes for each bucket that has rows. Big-endian:
/// bucket i32, rows i32, high i64, low i64. `None`: it is none.
pub(super) fn read_sums(text: &str) -> Option<Vec<(u16, Sum)>> {
    let lines: String = text.split_ascii_whitespace().collect();
    let bytes = STANDARD.decode(lines).ok()?;
    let (buckets, rest) = bytes.as_chunks::<24>();
    let sums = buckets.iter().map(|bucket| {
        let (number, bucket) = bucket.split_first_chunk()?;
        let (rows, bucket) = bucket.split_first_chunk()?;
        let (high, low) = bucket.split_first_chunk()?;
        let sum = Sum {
            rows: i32::from_be_bytes(*rows).into(),
            high: i64::from_be_bytes(*high),
            low: i64::from_be_bytes(low.try_into().ok()?),
        };
        Some((u16::try_from(i32::from_be_bytes(*number)).ok()?, sum))
    });
    rest.is_empty().then(|| sums.collect())?
}

/// Texts one behind the other: a function takes 100 arguments at most.
fn concat(mut texts: Vec<String>) -> String {
    while texts.len() > 1 {
        let groups = texts.chunks(ARGUMENTS_MAX);
        texts = groups.map(|group| format!("concat({})", group.join(", "))).collect();
    }
    texts.pop().unwrap_or_default()
}

const TWO_TO_64: &str = "18446744073709551616";
const TWO_TO_63: &str = "9223372036854775808";
/// `FUNC_MAX_ARGS` is 100.
const ARGUMENTS_MAX: usize = 90;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_of_buckets_are_read_from_one_text() {
        let bytes = |number: i32, rows: i32, high: i64, low: i64| {
            let (number, rows) = (number.to_be_bytes(), rows.to_be_bytes());
            [&number[..], &rows, &high.to_be_bytes(), &low.to_be_bytes()].concat()
        };
        let all = [bytes(65_535, 3, -1, i64::MIN), bytes(0, 1, 2, 3)].concat();
        let mut text = STANDARD.encode(&all);
        text.insert(40, '\n');
        let sum = |rows, high, low| Sum { rows, high, low };
        let expected = vec![(65_535, sum(3, -1, i64::MIN)), (0, sum(1, 2, 3))];
        assert_eq!(read_sums(&text), Some(expected));
        assert_eq!(read_sums(""), Some(vec![]));
        for wrong in [&all[..47], &bytes(65_536, 1, 0, 0)[..], &bytes(-1, 1, 0, 0)] {
            assert_eq!(read_sums(&STANDARD.encode(wrong)), None);
        }
        assert_eq!(read_sums("?"), None);
    }

    #[test]
    fn many_columns_are_put_together_in_groups() {
        let names: Vec<String> = (0..200).map(|n| format!("c{n}")).collect();
        let text = concat(names);
        assert!(text.starts_with("concat(concat(c0, c1, "), "{text}");
        assert_eq!(text.matches("concat(").count(), 4);
        assert_eq!(concat(vec!["a".into()]), "a");
    }
}
