//! What an object's key says, read from its end, so that no prefix is needed. Pure.

use percent_encoding::percent_decode_str;

use crate::units::Position;

/// A table's name, as the catalog spells it: schema and table.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name {
    /// The schema.
    pub schema: String,
    /// The table.
    pub table: String,
}

/// What an object is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Content {
    /// `…/<table>/dt=…/snapshot-<position>-<chunk>[-<part>]-<hash>.parquet`, or `repair-…`.
    Rows {
        /// Where the snapshot stands.
        position: Position,
    },
    /// `…/<table>/dt=…/changes-<from>-<to>[-<part>]-<hash>.parquet`
    Changes {
        /// `_sequence` of the first change.
        from: u64,
        /// From 1, if there are several; else 0.
        part: u32,
    },
    /// `…/_schema/<source>/<table>/<version>.json`
    Schema {
        /// The version.
        version: u32,
    },
}

impl Name {
    /// `schema.table`, as [`Table::qualified`](crate::seal::Table::qualified) gives it.
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }
}

/// Reads a key. `None`: it is none of a table's objects.
pub fn parse(key: &str) -> Option<(Name, Content)> {
    let mut parts = key.rsplit('/');
    let file = parts.next()?;
    if let Some(text) = file.strip_suffix(".json") {
        // As it is written: not `007`, not `+7`.
        let version: u32 = text.parse().ok().filter(|version: &u32| version.to_string() == text)?;
        let name = parse_name(parts.next()?)?;
        parts.next()?;
        return (parts.next()? == "_schema").then_some((name, Content::Schema { version }));
    }
    parts.next()?.strip_prefix("dt=")?;
    let name = parse_name(parts.next()?)?;
    let words: Vec<&str> = file.strip_suffix(".parquet")?.split('-').collect();
    let (kind, first, part) = match words[..] {
        [kind, first, _, _] => (kind, first, "0"),
        [kind, first, _, part, _] => (kind, first, part),
        _ => return None,
    };
    let content = match kind {
        "snapshot" | "repair" => {
            Content::Rows { position: Position(u64::from_str_radix(first, 16).ok()?) }
        }
        "changes" => Content::Changes { from: first.parse().ok()?, part: part.parse().ok()? },
        _ => return None,
    };
    Some((name, content))
}

fn parse_name(folder: &str) -> Option<Name> {
    let (schema, table) = folder.split_once('.')?;
    let decode = |name| percent_decode_str(name).decode_utf8().ok().map(String::from);
    Some(Name { schema: decode(schema)?, table: decode(table)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_table_kind_and_place() {
        let name = |schema: &str, table: &str| Name { schema: schema.into(), table: table.into() };
        let read = |key: &str| parse(key).unwrap();
        assert_eq!(
            read(
                "raw/erp/public.a%2Eb/dt=2026-11-21/snapshot-00000016B374D848-00000003-0123456789abcdef.parquet"
            ),
            (name("public", "a.b"), Content::Rows { position: Position(0x16_B374_D848) })
        );
        assert_eq!(
            read(
                "erp/public.t/dt=2026-11-21/changes-00000000000000000041-00000000000000000050-0002-0123456789abcdef.parquet"
            ),
            (name("public", "t"), Content::Changes { from: 41, part: 2 })
        );
        assert_eq!(
            read("_schema/erp/public.t/7.json"),
            (name("public", "t"), Content::Schema { version: 7 })
        );
    }

    #[test]
    fn other_keys_are_not_ours() {
        for key in [
            "",
            "a",
            "_ledger/erp/00000000000000000001.json",
            "_schema/erp/public.t/007.json",
            "_schema/erp/public.t/+7.json",
            "erp/t/dt=1/x-1-2-3.parquet",
            "erp/p.t/changes-1-2-3.parquet",
        ] {
            assert_eq!(parse(key), None, "{key}");
        }
    }
}
