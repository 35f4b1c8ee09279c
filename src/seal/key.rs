//! Object keys (DESIGN §7). Pure.
//!
//! ```text
//! <prefix>/<source>/<schema>.<table>/dt=YYYY-MM-DD/snapshot-<position, 16 hex>-<chunk, 8 digits>[-<part, 4 digits>]-<hash>.parquet
//! <prefix>/<source>/<schema>.<table>/dt=YYYY-MM-DD/repair-<position, 16 hex>-<chunk, 8 digits>[-<part, 4 digits>]-<hash>.parquet
//! <prefix>/<source>/<schema>.<table>/dt=YYYY-MM-DD/changes-<from, 20 digits>-<to, 20 digits>[-<part, 4 digits>]-<hash>.parquet
//! <prefix>/_schema/<source>/<schema>.<table>/<version>.json
//! ```
//! `<from>` and `<to>` are the first and the last `_sequence` in the object; parts are numbered from 1
//! where a table has several objects in one epoch or chunk. `<hash>`: the first 16 hex digits of the
//! SHA-256 of the bytes sent.
//!
//! **Invariant:** within a table, the order of the keys of one kind and date is log order; and no two
//! tables share a folder.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::Table;
use crate::units::{Position, Sequence, Timestamp};

/// Makes and reads the keys under one prefix.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Keys {
    prefix: String,
}

/// What the key of an object says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DataKey {
    /// The source.
    pub source: String,
    /// Schema, as the catalog spells it.
    pub schema: String,
    /// Table, as the catalog spells it.
    pub table: String,
    /// `YYYY-MM-DD`
    pub date: String,
    /// What it covers.
    pub stem: Stem,
    /// 16 hex digits.
    pub hash: String,
}

/// What the key of a schema says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SchemaKey {
    /// The source.
    pub source: String,
    /// Schema, as the catalog spells it.
    pub schema: String,
    /// Table, as the catalog spells it.
    pub table: String,
    /// The version.
    pub version: u32,
}

/// What an object covers, as the first part of its name says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stem {
    /// A chunk of a snapshot, or a part of one.
    Snapshot {
        /// Where the snapshot stands.
        position: Position,
        /// From 0.
        chunk: u32,
        /// From 1, if there are several.
        part: Option<u32>,
    },
    /// Rows read again.
    Repair {
        /// Where the snapshot stands that they were read under.
        position: Position,
        /// Which of those read there.
        chunk: u32,
        /// From 1, if there are several.
        part: Option<u32>,
    },
    /// Changes of an epoch, or a part of them.
    Changes {
        /// Of the first change in it.
        from: Sequence,
        /// Of the last change in it.
        to: Sequence,
        /// From 1, if there are several.
        part: Option<u32>,
    },
}

impl Keys {
    /// `prefix` has no slashes at its ends, and may be empty.
    pub fn new(prefix: &str) -> Self {
        let slash = if prefix.is_empty() { "" } else { "/" };
        Self { prefix: format!("{prefix}{slash}") }
    }

    /// The key of an object of `table`, from the SHA-256 of its bytes.
    pub fn data(
        &self,
        source: &str,
        table: &Table,
        at: Timestamp,
        stem: Stem,
        sha256: &str,
    ) -> String {
        let folder = folder(&table.schema, &table.name);
        let hash = &sha256[..HASH_DIGITS];
        format!("{}{source}/{folder}/dt={}/{stem}-{hash}.parquet", self.prefix, at.date())
    }

    /// The key of a version of a table's schema.
    pub fn schema(&self, source: &str, table: &Table) -> String {
        let folder = folder(&table.schema, &table.name);
        format!("{}_schema/{source}/{folder}/{}.json", self.prefix, table.version)
    }

    /// What all objects of a source begin with.
    pub fn source(&self, source: &str) -> String {
        format!("{}{source}/", self.prefix)
    }

    /// What all schemas of a source begin with.
    pub fn schemas(&self, source: &str) -> String {
        format!("{}_schema/{source}/", self.prefix)
    }

    /// What all that seal makes for a source begins with.
    pub fn all(&self, source: &str) -> [String; 2] {
        [self.source(source), self.schemas(source)]
    }

    /// Reads the key of an object. `None`: it is none of ours.
    pub fn parse_data(&self, key: &str) -> Option<DataKey> {
        let mut parts = key.strip_prefix(&self.prefix)?.split('/');
        let source = parts.next()?.to_owned();
        let (schema, table) = parse_folder(parts.next()?)?;
        let date = parts.next()?.strip_prefix("dt=")?.to_owned();
        let (stem, hash) = parts.next()?.strip_suffix(".parquet")?.rsplit_once('-')?;
        let hashed = hash.len() == HASH_DIGITS && hash.bytes().all(|c| c.is_ascii_hexdigit());
        if parts.next().is_some() || !hashed {
            return None;
        }
        Some(DataKey { source, schema, table, date, stem: Stem::parse(stem)?, hash: hash.into() })
    }

    /// What the last part of a key of rows says, under whatever prefix. `None`: it is none of ours.
    pub fn stem(key: &str) -> Option<Stem> {
        let name = key.rsplit('/').next()?.strip_suffix(".parquet")?;
        Stem::parse(name.rsplit_once('-')?.0)
    }

    /// Reads the key of a schema. `None`: it is none of ours.
    pub fn parse_schema(&self, key: &str) -> Option<SchemaKey> {
        let mut parts = key.strip_prefix(&self.prefix)?.strip_prefix("_schema/")?.split('/');
        let source = parts.next()?.to_owned();
        let (schema, table) = parse_folder(parts.next()?)?;
        let number = parts.next()?.strip_suffix(".json")?;
        let version: u32 = number.parse().ok()?;
        if parts.next().is_some() || version.to_string() != number {
            return None;
        }
        Some(SchemaKey { source, schema, table, version })
    }
}

impl Stem {
    fn parse(text: &str) -> Option<Self> {
        Self::read(text).filter(|read| read.to_string() == text)
    }

    /// Reads it, written in any way.
    fn read(text: &str) -> Option<Self> {
        let mut words = text.split('-');
        let kind = words.next()?;
        let (first, second) = (words.next()?, words.next()?);
        let part = words.next();
        if words.next().is_some() || part.is_some_and(|part| part.len() < PART_DIGITS) {
            return None;
        }
        let part = part.map(str::parse).transpose().ok()?;
        match (kind, first.len(), second.len()) {
            ("snapshot", 16, 8..) => Some(Self::Snapshot {
                position: Position(u64::from_str_radix(first, 16).ok()?),
                chunk: second.parse().ok()?,
                part,
            }),
            ("repair", 16, 8..) => Some(Self::Repair {
                position: Position(u64::from_str_radix(first, 16).ok()?),
                chunk: second.parse().ok()?,
                part,
            }),
            ("changes", 20, 20) => Some(Self::Changes {
                from: Sequence(first.parse().ok()?),
                to: Sequence(second.parse().ok()?),
                part,
            }),
            _ => None,
        }
    }
}

impl fmt::Display for Stem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match *self {
            Self::Snapshot { position, chunk, part } => {
                write!(f, "snapshot-{}-{chunk:08}", position.key())?;
                part
            }
            Self::Repair { position, chunk, part } => {
                write!(f, "repair-{}-{chunk:08}", position.key())?;
                part
            }
            Self::Changes { from, to, part } => {
                write!(f, "changes-{:020}-{:020}", from.0, to.0)?;
                part
            }
        };
        part.map_or(Ok(()), |part| write!(f, "-{part:0PART_DIGITS$}"))
    }
}

fn folder(schema: &str, table: &str) -> String {
    let (schema, table) =
        (utf8_percent_encode(schema, ENCODED), utf8_percent_encode(table, ENCODED));
    format!("{schema}.{table}")
}

fn parse_folder(text: &str) -> Option<(String, String)> {
    let (schema, table) = text.split_once('.')?;
    let decode = |name| percent_decode_str(name).decode_utf8().ok().map(String::from);
    let (schema, table) = (decode(schema)?, decode(table)?);
    (folder(&schema, &table) == text).then_some((schema, table))
}

/// All but `[A-Za-z0-9_-]`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'-');
const HASH_DIGITS: usize = 16;
const PART_DIGITS: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::journal::Identity;

    fn table(schema: &str, name: &str) -> Table {
        Table {
            id: 1,
            schema: schema.into(),
            name: name.into(),
            version: 3,
            columns: vec![],
            key: vec![],
            identity: Identity::Default,
            types: vec![],
        }
    }

    const SHA256: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const AT: Timestamp = Timestamp(1_795_230_000_000_000);

    #[test]
    fn keys_are_spelled_as_the_design_says() {
        let keys = Keys::new("raw");
        let stem = Stem::Snapshot { position: Position(0x16_B374_D848), chunk: 7, part: None };
        assert_eq!(
            keys.data("erp", &table("public", "orders"), AT, stem, SHA256),
            "raw/erp/public.orders/dt=2026-11-21/snapshot-00000016B374D848-00000007-0123456789abcdef.parquet"
        );
        let stem = Stem::Changes { from: Sequence(42), to: Sequence(50), part: Some(2) };
        assert_eq!(
            Keys::new("").data("erp", &table("public", "a.b/ü"), AT, stem, SHA256),
            "erp/public.a%2Eb%2F%C3%BC/dt=2026-11-21/changes-00000000000000000042-00000000000000000050-0002-0123456789abcdef.parquet"
        );
        assert_eq!(
            keys.schema("erp", &table("public", "orders")),
            "raw/_schema/erp/public.orders/3.json"
        );
    }

    #[test]
    fn a_dot_in_a_name_does_not_lead_into_another_table() {
        assert_ne!(folder("a.b", "c"), folder("a", "b.c"));
    }

    #[test]
    fn what_is_not_ours_is_none() {
        let keys = Keys::new("raw");
        for key in [
            "erp/public.t/dt=2026-11-21/changes-00000000000000000042-00000000000000000050-0123456789abcdef.parquet",
            "raw/erp/public.t/dt=2026-11-21/changes-42-50-0123456789abcdef.parquet",
            "raw/erp/public.t/dt=2026-11-21/changes-00000000000000000042-00000000000000000050-0123.parquet",
            "raw/erp/public/dt=2026-11-21/snapshot-00000016B374D848-00000007-0123456789abcdef.parquet",
            "raw/erp/public.t/dt=2026-11-21/snapshot-00000016B374D848-00000007-0123456789abcdef.parquet/x",
            "raw/_ledger/erp/00000000000000000001.json",
            "raw/erp/public.a%2eb/dt=2026-11-21/snapshot-00000016B374D848-00000007-0123456789abcdef.parquet",
            "raw/erp/public.t/dt=2026-11-21/snapshot-00000016b374d848-00000007-0123456789abcdef.parquet",
            "raw/erp/public.t/dt=2026-11-21/snapshot-00000016B374D848-+0000007-0123456789abcdef.parquet",
        ] {
            assert_eq!(keys.parse_data(key), None, "{key}");
        }
        assert_eq!(keys.parse_schema("raw/_schema/erp/public.t/x.json"), None);
        assert_eq!(keys.parse_schema("raw/_schema/erp/public.t/+7.json"), None);
    }

    fn stems() -> impl Strategy<Value = Stem> {
        let part = prop::option::of(1_u32..20_000);
        prop_oneof![
            (any::<u64>(), any::<u32>(), part.clone()).prop_map(|(position, chunk, part)| {
                Stem::Snapshot { position: Position(position), chunk, part }
            }),
            (any::<u64>(), any::<u64>(), part).prop_map(|(from, to, part)| {
                Stem::Changes { from: Sequence(from), to: Sequence(to), part }
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_key_reads_back(
            prefix in "[a-z]{0,3}(/[a-z]{1,3})?", schema in "\\PC{1,20}", name in "\\PC{1,20}", stem in stems(),
        ) {
            let keys = Keys::new(prefix.trim_matches('/'));
            let table = table(&schema, &name);
            let key = keys.data("erp", &table, AT, stem, SHA256);
            let folder = key.split('/').rev().nth(2).unwrap();
            prop_assert!(folder.bytes().all(|c| c.is_ascii_alphanumeric() || b"_-%.".contains(&c)));
            let read = keys.parse_data(&key).unwrap();
            prop_assert_eq!((&read.schema, &read.table, read.stem), (&schema, &name, stem));
            prop_assert_eq!((read.source.as_str(), read.date.as_str()), ("erp", "2026-11-21"));
            let read = keys.parse_schema(&keys.schema("erp", &table)).unwrap();
            prop_assert_eq!((read.schema, read.table, read.version), (schema, name, 3));
        }

        #[test]
        fn key_order_is_log_order(mut all in prop::collection::vec((any::<u64>(), any::<u64>()), 2..9)) {
            all.sort_unstable();
            let names: Vec<_> = all.iter().map(|(from, to)| {
                Stem::Changes { from: Sequence(*from), to: Sequence(*to), part: None }.to_string()
            }).collect();
            prop_assert!(names.is_sorted());
        }
    }
}
