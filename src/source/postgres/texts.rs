//! What the texts of values are made of beside the rows: labels of enums, attributes of composite types. Where a label
//! gets another name, or an attribute comes, goes, or gets another type, values of all rows change at once, and no stream
//! says so.
//!
//! **Invariant:** of a type whose rows print as before, what is kept of it stays, or grows at its end.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{error::SourceError, wire::Wire};

/// Types that people made, with what the values of a table's columns take from them, in whatever way they hold them
/// (arrays, domains, ranges, composites). The row type of a table is none of them: the table tells of itself.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Texts {
    /// By the type's number: `e`, how many labels, and a sum of them in the order in which they came; or `c` and a sum of
    /// the attributes.
    types: BTreeMap<u32, String>,
    /// Sums of single parts, as long as they are known.
    #[serde(skip)]
    parts: BTreeMap<u32, Arc<[u32]>>,
}

impl PartialEq for Texts {
    fn eq(&self, other: &Self) -> bool {
        self.types == other.types
    }
}

impl Eq for Texts {}

impl Texts {
    fn add(&mut self, id: u32, made: &Made) {
        self.types.insert(id, made.kept(made.parts.len()));
        if made.is_enum {
            self.parts.insert(id, Arc::clone(&made.parts));
        }
    }

    /// Whether values that were printed with `before` may print in another way now.
    pub(crate) fn is_changed(&self, before: &Self) -> bool {
        // A type that is new came with its column.
        self.types.iter().any(|(id, now)| {
            before.types.get(id).is_some_and(|before| now != before && !self.has_grown(*id, before))
        })
    }

    /// Whether an enum has all labels that it had, and more: those are in no row yet.
    fn has_grown(&self, id: u32, before: &str) -> bool {
        let Some(parts) = self.parts.get(&id) else { return false };
        let count = before.strip_prefix(ENUM).and_then(|rest| rest.split(':').next()?.parse().ok());
        let made = Made { is_enum: true, parts: Arc::clone(parts) };
        count.is_some_and(|count| count <= parts.len() && made.kept(count) == before)
    }
}

/// A type, as the catalog has it.
#[derive(Clone, Debug)]
struct Made {
    is_enum: bool,
    parts: Arc<[u32]>,
}

impl Made {
    /// What is kept of its first parts.
    fn kept(&self, count: usize) -> String {
        let bytes: Vec<u8> =
            self.parts.iter().take(count).flat_map(|of| of.to_be_bytes()).collect();
        let sum = crc32c::crc32c(&bytes);
        match self.is_enum {
            true => format!("{ENUM}{count}:{sum:08x}"),
            false => format!("{COMPOSITE}{sum:08x}"),
        }
    }
}

/// What changes whenever something of what [`load`] reads does.
pub(crate) async fn fingerprint(wire: &mut Wire) -> Result<String, SourceError> {
    let rows = wire.query("look at types", FINGERPRINT).await?;
    rows.first().map_or(Ok(String::new()), |row| row.text(0).map(Into::into))
}

/// Reads the texts of `tables`, of all if `None`; those without any are left out.
pub(crate) async fn load(
    wire: &mut Wire,
    tables: Option<&[String]>,
) -> Result<BTreeMap<u32, Texts>, SourceError> {
    let which = tables.map(|ids| format!("AND a.attrelid IN ({})", ids.join(",")));
    let multiranges = if wire.version() >= MULTIRANGES_SINCE { MULTIRANGES } else { "" };
    let sql = USED.replace("{which}", &which.unwrap_or_default());
    let rows = wire.query("look at types", &sql.replace("{multiranges}", multiranges)).await?;
    let used = rows.iter().map(|row| Ok((row.parse_as(0)?, row.parse_as(1)?, row.flag(2))));
    let used = used.collect::<Result<Vec<(u32, u32, bool)>, SourceError>>()?;
    // One may have no parts yet.
    let mut parts: BTreeMap<u32, (bool, Vec<u32>)> =
        used.iter().map(|(_, id, is_enum)| (*id, (*is_enum, vec![]))).collect();
    let types: Vec<String> = parts.keys().map(ToString::to_string).collect();
    for ids in types.chunks(TYPES_AT_ONCE) {
        let sql = PARTS.replace("{ids}", &ids.join(","));
        for row in wire.query("look at types", &sql).await? {
            if let Some((_, parts)) = parts.get_mut(&row.parse_as(0)?) {
                parts.push(crc32c::crc32c(row.text(2)?.as_bytes()));
            }
        }
    }
    let made = |(id, (is_enum, parts)): (u32, (bool, Vec<u32>))| {
        (id, Made { is_enum, parts: parts.into() })
    };
    let known: BTreeMap<u32, Made> = parts.into_iter().map(made).collect();
    let mut texts: BTreeMap<u32, Texts> = BTreeMap::new();
    for (table, id, _) in used {
        if let Some(made) = known.get(&id) {
            texts.entry(table).or_default().add(id, made);
        }
    }
    Ok(texts)
}

const ENUM: char = 'e';
const COMPOSITE: char = 'c';
const MULTIRANGES_SINCE: u32 = 140_000;
/// Bounds the answer.
const TYPES_AT_ONCE: usize = 200;
const FINGERPRINT: &str = "SELECT concat_ws(',', (SELECT concat(count(*), ':', sum(xmin::text::int8)) FROM pg_enum),
    (SELECT concat(count(*), ':', sum(a.xmin::text::int8 * a.attnum)) FROM pg_class r JOIN pg_attribute a ON a.attrelid = r.oid
        WHERE r.relkind = 'c' AND a.attnum > 0))";
/// 0 table, 1 a type that its columns are made of, and that has labels or attributes, 2 whether it is an enum. `{which}`: attributes `a`.
const USED: &str = "WITH RECURSIVE used(holder, type) AS (
    SELECT a.attrelid, a.atttypid FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r'
    WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND a.atttypid >= 16384 {which}
    UNION SELECT u.holder, p.type FROM used u JOIN pg_type t ON t.oid = u.type CROSS JOIN LATERAL (
        SELECT t.typelem UNION ALL SELECT t.typbasetype
        UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid {multiranges}
        UNION ALL SELECT a.atttypid FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.oid = t.typrelid AND c.relkind = 'c'
    ) p(type) WHERE p.type >= 16384)
    SELECT u.holder, u.type, t.typtype = 'e' FROM used u JOIN pg_type t ON t.oid = u.type
    WHERE t.typtype = 'e' OR EXISTS (SELECT FROM pg_class c WHERE c.oid = t.typrelid AND c.relkind = 'c')";
const MULTIRANGES: &str =
    "UNION ALL SELECT r.rngtypid FROM pg_range r WHERE r.rngmultitypid = t.oid";
/// 0 type, 1 number of a part, 2 what makes it. Labels in the order in which they came, each with
/// who wrote it last: one may have had another name for a while. Attributes that went, too: rows may have had values in
/// them.
const PARTS: &str = "SELECT enumtypid, oid::int8, concat(xmin, ' ', enumlabel) FROM pg_enum WHERE enumtypid IN ({ids})
    UNION ALL SELECT t.oid, a.attnum, concat(a.attnum, ' ', a.atttypid, ' ', a.atttypmod, ' ', a.attisdropped)
    FROM pg_type t JOIN pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 WHERE t.oid IN ({ids}) ORDER BY 1, 2";

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(is_enum: bool, parts: &[u32]) -> Texts {
        let mut texts = Texts::default();
        texts.add(20_000, &Made { is_enum, parts: parts.into() });
        texts
    }

    #[test]
    fn a_label_that_comes_changes_nothing_and_whatever_else_does() {
        for (before, now, changed) in [
            (texts(true, &[1, 2]), texts(true, &[1, 2]), false),
            (texts(true, &[1, 2]), texts(true, &[1, 2, 3]), false),
            (texts(true, &[1, 2]), texts(true, &[1, 4]), true),
            (texts(true, &[1, 2]), texts(true, &[4, 2, 3]), true),
            (texts(true, &[1, 2]), texts(true, &[1]), true),
            (texts(true, &[]), texts(true, &[1]), false),
            (texts(false, &[1, 2]), texts(false, &[1, 2]), false),
            (texts(false, &[1, 2]), texts(false, &[1, 2, 3]), true),
            (texts(false, &[1, 2]), texts(false, &[1]), true),
            // The column came, and went.
            (Texts::default(), texts(false, &[1]), false),
            (texts(false, &[1]), Texts::default(), false),
        ] {
            // As it is kept.
            let json = serde_json::to_string(&before).unwrap();
            let before: Texts = serde_json::from_str(&json).unwrap();
            assert_eq!(now.is_changed(&before), changed, "{before:?} {now:?}");
            assert_eq!(now == before, now.types == before.types);
        }
    }

    #[test]
    fn it_is_kept_in_few_words() {
        let json = |texts: &Texts| serde_json::to_string(texts).unwrap();
        assert_eq!(json(&texts(true, &[1])), r#"{"types":{"20000":"e1:ba0cc8c4"}}"#);
        assert_eq!(json(&texts(false, &[1])), r#"{"types":{"20000":"cba0cc8c4"}}"#);
    }
}
