//! Digests of tables, computed alike from the lake's values and, in SQL, by the database (`postgres::digest`). Pure.
//!
//! What stands for a value is its [`Stamp`], whose bytes end by themselves, so that a run of them reads in one
//! way only:
//!
//! | value | bytes |
//! |---|---|
//! | NULL | `-` |
//! | of at most [`SHORT_BYTES`] bytes as the database prints it, or part of a key | `=<length>:<text>` |
//! | longer | `#<SHA-256, 64 hex digits>`: of the text; of `bytea` of the bytes themselves |
//!
//! A row's hash is the first 16 bytes of the SHA-256 of its columns' stamps, a key's those of its key columns'.
//! The digest of rows is their number and the sum of their hashes, as two numbers of 64 bits, modulo 2^64: it does
//! not depend on their order, and counts equal rows as often as they are there. A *bucket* holds the rows whose
//! key's hash begins with the same bits.

use std::str;

use aws_lc_rs::digest::{self, SHA256};

use super::{LakeType, Value};

/// What stands for a value in a digest.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Stamp {
    /// SQL NULL.
    Null,
    /// The value's text.
    Short(Box<str>),
    /// SHA-256 of its text or bytes.
    Long([u8; 32]),
    /// The value is not known. It equals nothing that a database gives.
    Open,
}

/// The first 16 bytes of a SHA-256.
pub type Hash = [u8; 16];

/// The digest of some rows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Sum {
    /// How many.
    pub rows: i128,
    /// Sum of the first halves of their hashes, modulo 2^64.
    pub high: i64,
    /// Sum of the second halves, too.
    pub low: i64,
}

/// A value's text of up to this many bytes stands for itself.
pub const SHORT_BYTES: usize = 64;
/// The same of a `bytea`, whose text has two digits for each byte, and `\x` in front.
pub const SHORT_BYTEA_BYTES: usize = (SHORT_BYTES - 2) / 2;
/// There are at most 65,536 buckets.
pub const BITS_MAX: u32 = 16;

impl Stamp {
    /// Of a value as the database prints it. Not of a `bytea`.
    pub fn of_text(text: &str) -> Self {
        match text.len() > SHORT_BYTES {
            true => Self::Long(sha256(text.as_bytes())),
            false => Self::Short(text.into()),
        }
    }

    /// Of a value of the lake. `scratch` is written over.
    pub fn of_value(value: &Value<'_>, lake: LakeType, scratch: &mut String) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bytes(bytes) if lake == LakeType::Binary && bytes.len() > SHORT_BYTEA_BYTES => {
                Self::Long(sha256(bytes))
            }
            Value::Text(text) | Value::Exact(text) => Self::of_text(text),
            printed => {
                scratch.clear();
                printed.print(lake, scratch);
                Self::of_text(scratch)
            }
        }
    }

    /// Appends its bytes.
    pub fn write(&self, into: &mut Vec<u8>) {
        match self {
            Self::Null => into.push(b'-'),
            Self::Open => into.push(b'?'),
            Self::Short(text) => {
                into.extend_from_slice(format!("={}:", text.len()).as_bytes());
                into.extend_from_slice(text.as_bytes());
            }
            Self::Long(sum) => {
                into.push(b'#');
                into.extend_from_slice(hex::encode(sum).as_bytes());
            }
        }
    }

    /// Reads a run of stamps. `None`: it is none.
    pub fn read_all(text: &str) -> Option<Vec<Self>> {
        let (mut rest, mut found) = (text, vec![]);
        while let Some(kind) = rest.chars().next() {
            let after = &rest[kind.len_utf8()..];
            let (stamp, length) = match kind {
                '-' => (Self::Null, 0),
                '=' => {
                    let (digits, text) = after.split_once(':')?;
                    let length: usize = digits.parse().ok()?;
                    (Self::Short(text.get(..length)?.into()), digits.len() + 1 + length)
                }
                '#' => {
                    let mut sum = [0; 32];
                    hex::decode_to_slice(after.get(..64)?, &mut sum).ok()?;
                    (Self::Long(sum), 64)
                }
                _ => return None,
            };
            rest = after.get(length..)?;
            found.push(stamp);
        }
        Some(found)
    }

    /// Its text, if that stands for itself.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Short(text) => Some(text),
            Self::Null | Self::Long(_) | Self::Open => None,
        }
    }
}

impl Sum {
    /// With `times` rows more of this hash; fewer, if negative.
    pub fn add(&mut self, hash: &Hash, times: i64) {
        let (halves, _) = hash.as_chunks::<8>();
        let half = |at: usize| halves.get(at).map_or(0, |half| i64::from_be_bytes(*half));
        self.rows += i128::from(times);
        self.high = self.high.wrapping_add(half(0).wrapping_mul(times));
        self.low = self.low.wrapping_add(half(1).wrapping_mul(times));
    }

    /// With all rows of another.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.high = self.high.wrapping_add(other.high);
        self.low = self.low.wrapping_add(other.low);
    }
}

/// The hash of a run of stamps, given as its bytes.
pub fn hash(bytes: &[u8]) -> Hash {
    let [front, _] = halves(sha256(bytes));
    front
}

/// The hash of stamps. `scratch` is written over.
pub fn hash_of<'a>(stamps: impl IntoIterator<Item = &'a Stamp>, scratch: &mut Vec<u8>) -> Hash {
    scratch.clear();
    stamps.into_iter().for_each(|stamp| stamp.write(scratch));
    hash(scratch)
}

/// The bucket of a key's hash among 2^`bits`.
pub fn bucket(key: &Hash, bits: u32) -> u16 {
    let front = u32::from(u16::from_be_bytes([key[0], key[1]]));
    u16::try_from(front >> (BITS_MAX - bits.min(BITS_MAX))).unwrap_or(0)
}

/// How many bits name the buckets of a table of about so many rows.
pub fn bits(rows: u64) -> u32 {
    (rows / ROWS_PER_BUCKET).checked_ilog2().map_or(0, |log| (log + 1).min(BITS_MAX))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    sum.copy_from_slice(digest::digest(&SHA256, bytes).as_ref());
    sum
}

fn halves(sum: [u8; 32]) -> [Hash; 2] {
    let (mut front, mut back) = ([0; 16], [0; 16]);
    front.copy_from_slice(&sum[..16]);
    back.copy_from_slice(&sum[16..]);
    [front, back]
}

/// About so many rows share a bucket, as long as there are buckets.
const ROWS_PER_BUCKET: u64 = 64;

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;

    use super::*;

    fn stamp() -> impl Strategy<Value = Stamp> {
        prop_oneof![
            Just(Stamp::Null),
            ".{0,80}".prop_map(|text| Stamp::of_text(&text)),
            "[-=#:0-9]{0,9}".prop_map(|text| Stamp::of_text(&text)),
        ]
    }

    fn bytes(stamps: &[Stamp]) -> String {
        let mut bytes = vec![];
        stamps.iter().for_each(|stamp| stamp.write(&mut bytes));
        String::from_utf8(bytes).unwrap()
    }

    proptest! {
        #[test]
        fn a_run_of_stamps_reads_in_one_way(stamps in prop::collection::vec(stamp(), 0..6)) {
            prop_assert_eq!(Stamp::read_all(&bytes(&stamps)), Some(stamps));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,40}") {
            drop(Stamp::read_all(&text));
        }
    }

    #[test]
    fn null_empty_and_the_border_between_columns_are_told_apart() {
        let text = Stamp::of_text;
        let runs = [
            vec![Stamp::Null, text("")],
            vec![text(""), Stamp::Null],
            vec![text("ab"), text("c")],
            vec![text("a"), text("bc")],
            vec![text("-"), text("")],
        ];
        let mut seen: Vec<String> = runs.iter().map(|run| bytes(run)).collect();
        assert_eq!(seen, ["-=0:", "=0:-", "=2:ab=1:c", "=1:a=2:bc", "=1:-=0:"]);
        seen.dedup();
        assert_eq!(seen.len(), 5);
        assert_eq!(Stamp::read_all("=9:short"), None);
        assert_eq!(Stamp::read_all("?"), None, "what is not known comes from no database");
    }

    #[test]
    fn a_value_has_the_stamp_of_its_text_and_a_long_bytea_that_of_its_bytes() {
        let mut scratch = String::new();
        let mut of = |value: Value<'_>, lake| Stamp::of_value(&value, lake, &mut scratch);
        let short = |text: &str| Stamp::Short(text.into());
        assert_eq!(of(Value::Boolean(true), LakeType::Boolean), short("t"));
        let decimal = LakeType::Decimal { precision: 5, scale: 2 };
        assert_eq!(of(Value::Decimal(100), decimal), short("1.00"));
        let raw = |length| Value::Bytes(Cow::Owned(vec![7; length]));
        assert_eq!(of(raw(2), LakeType::Binary), short("\\x0707"));
        let Stamp::Short(text) = of(raw(SHORT_BYTEA_BYTES), LakeType::Binary) else { panic!() };
        assert_eq!(text.len(), SHORT_BYTES);
        assert_eq!(of(raw(32), LakeType::Binary), Stamp::Long(sha256(&[7; 32])));
        let long = "x".repeat(SHORT_BYTES + 1);
        let text = Value::Text(Cow::Borrowed(&long));
        assert_eq!(of(text, LakeType::Text), Stamp::Long(sha256(long.as_bytes())));
    }

    #[test]
    fn the_hashes_are_pinned_and_their_sum_does_not_depend_on_order() {
        let key = hash(b"=1:7");
        assert_eq!(hex::encode(key), "e597c5eb0f5da13eea2f0f21b8258798");
        let (mut one, mut other) = (Sum::default(), Sum::default());
        let rows = [hash(b"a"), hash(b"b"), hash(b"b")];
        rows.iter().for_each(|row| one.add(row, 1));
        rows.iter().rev().for_each(|row| other.add(row, 1));
        assert_eq!(one, other);
        other.add(&rows[1], -1);
        assert_ne!(one, other);
        other.merge(&Sum { rows: 0, high: 1, low: -1 });
        assert_eq!(other.rows, 2);
    }

    #[test]
    fn buckets_are_as_many_as_the_rows_ask_for() {
        let counts = [0, 63, 64, 300_000, 5_000_000, u64::MAX].map(bits);
        assert_eq!(counts, [0, 0, 1, 13, BITS_MAX, BITS_MAX]);
        let key = [0xAB; 16];
        assert_eq!([0, 1, 4, 16].map(|bits| bucket(&key, bits)), [0, 1, 0xA, 0xABAB]);
    }
}
