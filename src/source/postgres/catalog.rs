//! Reads the catalog: which tables there are, and what they look like.
//!
//! A [`Table`] here has its generated columns too, so that they can be made again; but neither the
//! change stream (before PostgreSQL 18, and then only if asked) nor the snapshot sends their values.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{
    definition::{self, Types},
    error::SourceError,
    message::TextRow,
    pattern::Patterns,
    pgoutput::sent,
    relation::Named,
    types::{lake_type, renders_binary},
    wire::Wire,
};
use crate::{
    error::Cause,
    source::{Before, Column, Identity, Table},
};

/// The tables that a source is to copy, and those that it cannot.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// By id.
    pub(crate) tables: BTreeMap<u32, Listed>,
    /// Qualified names of tables that match and are not copied, and why.
    pub(crate) refused: BTreeMap<String, Refusal>,
}

/// Why a table that matches is not copied.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) cause: Cause,
    pub(crate) why: String,
}

/// A table that matches.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Listed {
    pub(crate) schema: String,
    pub(crate) name: String,
    /// Whether it has a primary key.
    pub(crate) keyed: bool,
    /// Whether UPDATE and DELETE can name the old row. Where not, publishing them would make them
    /// fail on the source (P5).
    pub(crate) identified: bool,
    /// Which generated columns name the old row, if the server is particular about them.
    pub(crate) computed: Computed,
    /// Whether there are generated columns in the key that would name them: their values are in no stream.
    pub(crate) computed_key: bool,
    /// Whether a row can be told from all others, so that parts read at different times fit together.
    pub(crate) addressable: bool,
    /// Whether this role may read it.
    pub(crate) selectable: bool,
    /// Changes when the table is rewritten or emptied.
    pub(crate) filenode: u32,
    /// How many columns there ever were, dropped ones among them.
    pub(crate) attributes: u16,
}

/// Whether generated columns name a table's old rows. PostgreSQL 18 refuses UPDATE and DELETE to the customer where
/// a publication carries them without these columns; earlier versions do not ask.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Computed {
    #[default]
    None,
    /// Stored ones: a publication can be told to carry them.
    Stored,
    /// Virtual ones: none can.
    Virtual,
}

/// A table's definition, and what it takes to read it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Described {
    pub(crate) table: Table,
    printed: Vec<Printed>,
    /// Its file, of the same moment.
    file: u32,
}

/// What the stream and COPY need to know of a column beside its definition.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Printed {
    /// Its type as declared.
    declared: u32,
    /// Its modifier.
    modifier: i32,
    /// The function that prints it, as SQL spells it; `None` for a domain.
    output: Option<String>,
    /// Whether its values are made of an enum's labels.
    labelled: bool,
    /// Whether it has a default and the catalog has no value for rows before it: it came without one, or all rows were
    /// written anew since.
    is_given_none: bool,
}

impl Printed {
    /// The text of the value that is called `name`.
    fn text(&self, name: &str) -> String {
        match &self.output {
            Some(output) => format!("pg_catalog.textin({output}({name}))"),
            // `format` finds the function of the base; of NULL it would make ''. A row of NULLs is
            // no NULL, and IS DISTINCT FROM says so.
            None => format!(
                "CASE WHEN {name} IS DISTINCT FROM NULL THEN pg_catalog.format('%s', {name}) END"
            ),
        }
    }
}

impl Listed {
    /// `schema.table`, for people.
    pub(crate) fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Qualified and quoted, for SQL.
    pub(crate) fn quoted(&self) -> String {
        quoted(&self.schema, &self.name)
    }

    /// Why only inserts and truncates of it are captured, and what mends that; for people.
    pub(crate) fn append_only(&self) -> String {
        let table = self.quoted();
        match self.computed {
            Computed::Virtual => format!(
                "PostgreSQL publishes no old rows with virtual columns: ALTER TABLE {table} REPLICA IDENTITY DEFAULT, with a primary key"
            ),
            _ if self.computed_key => format!(
                "its key has a generated column, whose values are not in the stream: ALTER TABLE {table} REPLICA IDENTITY FULL"
            ),
            Computed::None | Computed::Stored => format!(
                "nothing names its old rows: ALTER TABLE {table} REPLICA IDENTITY FULL, or give it a primary key"
            ),
        }
    }
}

impl Described {
    /// Whether all its columns are read in binary form.
    pub(crate) fn renders_binary(&self) -> bool {
        let mut sent = self.table.columns.iter().filter(|column| !column.is_computed());
        sent.all(|column| renders_binary(column.type_id))
    }

    /// Whether all columns that the stream named are read in binary form.
    pub(crate) fn renders_binary_as(&self, named: &[Named]) -> bool {
        let Ok(sent) = sent(&self.table, named.len()) else { return false };
        let mut sent = self.table.columns.iter().filter(|column| sent(column));
        sent.all(|column| renders_binary(column.type_id))
    }

    /// The columns as a list for SELECT: in binary form where it is read, else as the type's own
    /// output function prints them. A cast to text would not do: `inet::text` prints other text.
    pub(crate) fn select_list(&self) -> String {
        let columns = self.table.columns.iter().zip(&self.printed);
        let sent = columns.filter(|(column, _)| !column.is_computed());
        let columns = sent.map(|(column, printed)| match renders_binary(column.type_id) {
            true => identifier(&column.name),
            false => printed.text(&identifier(&column.name)),
        });
        columns.collect::<Vec<_>>().join(", ")
    }

    /// A column as the type's own output function prints it.
    pub(crate) fn text_of(&self, column: &str) -> Option<String> {
        let mut own = self.table.columns.iter().zip(&self.printed);
        let (_, printed) = own.find(|(own, _)| own.name == column)?;
        Some(printed.text(&identifier(column)))
    }

    /// Whether its columns are those that the stream named, generated ones aside.
    pub(crate) fn has_columns(&self, named: &[Named]) -> bool {
        let Ok(sent) = sent(&self.table, named.len()) else { return false };
        let own = self.table.columns.iter().zip(&self.printed);
        let own = own.filter(|(column, _)| sent(column));
        let own = own.map(|(column, printed)| (column.name.as_str(), printed.declared));
        own.eq(named.iter().map(|named| (named.name.as_str(), named.type_id)))
    }

    /// Its columns: name, type as declared and its modifier, NOT NULL, default.
    pub(crate) fn declared(&self) -> impl Iterator<Item = (&str, u32, i32, bool, Option<&str>)> {
        self.table.columns.iter().zip(&self.printed).map(|(column, printed)| {
            let Column { name, not_null, default, .. } = column;
            let Printed { declared, modifier, .. } = printed;
            (name.as_str(), *declared, *modifier, *not_null, default.as_deref())
        })
    }

    /// Whether rows can be told from others by these columns: in a generated one they have no value.
    pub(crate) fn is_key(&self, columns: &[String]) -> bool {
        let mut computed = self.table.columns.iter().filter(|column| column.is_computed());
        computed.all(|column| !columns.contains(&column.name))
    }

    /// Its replica identity, as the catalog spells it.
    pub(crate) fn identity_letter(&self) -> &'static str {
        match self.table.identity {
            Identity::Default => "d",
            Identity::Index => "i",
            Identity::Full => "f",
            Identity::Nothing => "n",
        }
    }

    /// Whether more can be said of rows before its columns by [`Described::settle`].
    pub(crate) fn is_unsettled(&self) -> bool {
        let mut own = self.table.columns.iter().zip(&self.printed);
        own.any(|(column, printed)| printed.is_given_none && column.before.is_none())
    }

    /// Says what rows have in columns that came to a `file` when it had `columns` already, dropped ones counted: with
    /// the same file nothing was written anew, so that it is NULL where the catalog has no value.
    pub(crate) fn settle(&mut self, file: u32, columns: u16) {
        let own = self.table.columns.iter_mut().zip(&self.printed);
        let given_none = own.filter(|(_, printed)| printed.is_given_none && file == self.file);
        for (column, _) in given_none {
            if column.number.is_some_and(|number| number > columns) {
                column.before.get_or_insert(Before::Null);
            }
        }
    }

    /// Whether the values of a column are made of an enum's labels.
    pub(crate) fn is_labelled(&self, column: &str) -> bool {
        let mut own = self.table.columns.iter().zip(&self.printed);
        own.any(|(own, printed)| own.name == column && printed.labelled)
    }
}

/// Lists the tables that match. System and temporary schemas are never looked at.
pub(crate) async fn list(wire: &mut Wire, patterns: &Patterns) -> Result<Listing, SourceError> {
    let mut listing = Listing::default();
    let computed = if wire.version() >= COMPUTED_SINCE { COMPUTED } else { "NULL" };
    let sql = LIST.replace("{computed}", computed).replace("{generated}", KEY_GENERATED);
    for row in wire.query("list tables", &sql).await? {
        let (schema, name) = (row.text(1)?.to_owned(), row.text(2)?.to_owned());
        if !patterns.include(&schema, &name) {
            continue;
        }
        let keyed = row.flag(6);
        let identity = identity(row.text(5)?);
        let computed = match row.optional(10) {
            Some("s") => Computed::Stored,
            Some("v") => Computed::Virtual,
            _ => Computed::None,
        };
        let listed = Listed {
            keyed,
            identified: match identity {
                _ if computed == Computed::Virtual => false,
                Identity::Default => keyed,
                Identity::Index => row.flag(7),
                Identity::Full => true,
                Identity::Nothing => false,
            },
            computed,
            computed_key: row.flag(12),
            addressable: keyed || row.flag(7),
            selectable: row.flag(8),
            filenode: row.parse_as(9)?,
            attributes: row.parse_as(11)?,
            schema,
            name,
        };
        let refusal = match (row.text(3)?, row.text(4)?) {
            ("f", _) => Some("it is a foreign table: its changes happen elsewhere"),
            (_, "u") => Some("it is unlogged: its changes are not in the log"),
            _ => None,
        };
        match refusal {
            Some(why) => {
                let refusal = Refusal { cause: Cause::TableRefused, why: why.into() };
                listing.refused.insert(listed.qualified(), refusal);
            }
            None => {
                listing.tables.insert(row.parse_as(0)?, listed);
            }
        }
    }
    Ok(listing)
}

/// Describes tables. One that is not there any more is left out.
pub(crate) async fn describe(
    wire: &mut Wire,
    ids: impl IntoIterator<Item = u32>,
) -> Result<BTreeMap<u32, Described>, SourceError> {
    let ids: Vec<String> = ids.into_iter().map(|id| id.to_string()).collect();
    let (mut described, mut types) = (BTreeMap::new(), Types::default());
    for some in ids.chunks(TABLES_AT_ONCE) {
        described.append(&mut describe_some(wire, &some.join(","), &mut types).await?);
    }
    Ok(described)
}

async fn describe_some(
    wire: &mut Wire,
    ids: &str,
    types: &mut Types,
) -> Result<BTreeMap<u32, Described>, SourceError> {
    let rows = wire.query("describe tables", &COLUMNS.replace("{ids}", ids)).await?;
    let used = rows.iter().map(|row| row.parse_as(5)).collect::<Result<Vec<u32>, _>>()?;
    types.load(wire, used).await?;
    let mut given = definition::given(wire, ids).await?;
    let mut drafts: BTreeMap<u32, Draft> = BTreeMap::new();
    for row in &rows {
        let id: u32 = row.parse_as(0)?;
        let draft = match drafts.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Draft::new(id, row)?),
        };
        // A table without columns has one row, without a column.
        if row.optional(4).is_some() {
            draft.add(row, types)?;
        }
    }
    let described = drafts.into_iter().map(|(id, draft)| {
        let mut described = draft.finish(types);
        described.table.types.splice(0..0, given.remove(&id));
        (id, described)
    });
    Ok(described.collect())
}

/// A table whose columns are being read.
struct Draft {
    described: Described,
    /// The primary key's columns, with their places in it.
    key: Vec<(u32, String)>,
    /// The columns' types as declared.
    used: Vec<u32>,
}

impl Draft {
    fn new(id: u32, row: &TextRow) -> Result<Self, SourceError> {
        let table = Table {
            id,
            schema: row.text(1)?.into(),
            name: row.text(2)?.into(),
            version: 0,
            columns: vec![],
            key: vec![],
            identity: identity(row.text(3)?),
            types: vec![],
        };
        let described = Described { table, printed: vec![], file: row.parse_as(17)? };
        Ok(Self { described, key: vec![], used: vec![] })
    }

    fn add(&mut self, row: &TextRow, types: &Types) -> Result<(), SourceError> {
        let name = row.text(4)?.to_owned();
        let declared: u32 = row.parse_as(5)?;
        let modifier = row.parse_as(6)?;
        let (type_id, type_modifier) = types.base(declared, modifier);
        let in_key = row.optional(10).is_some();
        if in_key {
            self.key.push((row.parse_as(10)?, name.clone()));
        }
        self.used.push(declared);
        let (output, labelled) = (types.output(declared), types.has_labels(declared));
        let is_given_none = row.flag(16);
        let printed = Printed { declared, modifier, output, labelled, is_given_none };
        self.described.printed.push(printed);
        let table = &mut self.described.table;
        table.columns.push(Column {
            name,
            source_type: row.text(7)?.into(),
            type_id,
            type_modifier,
            lake: lake_type(type_id, type_modifier),
            identity: match table.identity {
                Identity::Default => in_key && row.flag(13),
                Identity::Index => row.flag(11),
                Identity::Full => true,
                Identity::Nothing => false,
            },
            not_null: row.flag(8),
            default: row.optional(9).map(Into::into),
            generated: match row.optional(12) {
                Some("s") => Some("stored".into()),
                Some("v") => Some("virtual".into()),
                Some("a") => Some("always".into()),
                Some("d") => Some("by default".into()),
                _ => None,
            },
            number: row.optional(14).and_then(|number| number.parse().ok()),
            before: row.optional(15).map(|value| Before::Value(value.into())),
        });
        Ok(())
    }

    fn finish(mut self, types: &Types) -> Described {
        self.key.sort();
        let key: Vec<String> = self.key.into_iter().map(|(_, name)| name).collect();
        if self.described.is_key(&key) {
            self.described.table.key = key;
        }
        self.described.table.types = types.definitions(&self.used);
        // The file that it was made with has its number: nothing was ever written anew.
        self.described.settle(self.described.table.id, 0);
        self.described
    }
}

fn identity(letter: &str) -> Identity {
    match letter {
        "f" => Identity::Full,
        "i" => Identity::Index,
        "n" => Identity::Nothing,
        _ => Identity::Default,
    }
}

/// A name as SQL spells it, always quoted.
pub(crate) fn identifier(name: &str) -> String {
    postgres_protocol::escape::escape_identifier(name)
}

/// A string as SQL spells it.
pub(crate) fn literal(text: &str) -> String {
    postgres_protocol::escape::escape_literal(text)
}

/// A qualified name as SQL spells it, always quoted.
pub(crate) fn quoted(schema: &str, name: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(name))
}

/// The first version whose publications can carry generated columns, and that refuses statements where they lack them.
pub(crate) const COMPUTED_SINCE: u32 = 180_000;

/// Numbers below it are the server's own (`FirstNormalObjectId`).
pub(crate) const FIRST_USER_ID: u32 = 16384;

/// 0 id, 1 schema, 2 name, 3 kind, 4 persistence, 5 identity, 6 has a usable primary key, 7 has an identity index, 8
/// readable, 9 file number, 10 [`COMPUTED`], 11 columns there ever were, 12 whether what would name its old rows has
/// generated columns. Partitioned tables hold no rows; their leaves do.
const LIST: &str = "SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relreplident,
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND i.indisvalid AND NOT {generated}),
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid AND NOT {generated}),
    has_table_privilege(c.oid, 'SELECT'), coalesce(pg_relation_filenode(c.oid), 0), {computed}, c.relnatts,
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND {generated} AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'f') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'";

/// Whether an index is of generated columns, those aside that it only includes.
const KEY_GENERATED: &str =
    "EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attgenerated <> ''
    AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))";

/// How the generated columns are made that name a table's old rows: `v` if one is virtual, else `s`.
const COMPUTED: &str = "(SELECT max(a.attgenerated::text) FROM pg_attribute a
    WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped AND (c.relreplident = 'f' OR EXISTS
    (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND a.attnum = ANY (i.indkey)
    AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END)))";

/// Described by one query: [`Wire::query`] holds its answer.
const TABLES_AT_ONCE: usize = 100;
/// 0 table, 1 schema, 2 name, 3 identity, 4 column, 5 type, 6 modifier, 7 type as printed, 8 not null in
/// all rows (since PostgreSQL 18 older ones may be excepted), 9 default, 10 place in the primary key, 11 in
/// the identity index, 12 how generated, 13 whether the primary key can name old rows, 14 the column's number, 15 what
/// rows before it have in it, 16 whether it has a default and not that, 17 file. The file is that of the catalog's row, as the columns are.
const COLUMNS: &str = "SELECT c.oid, n.nspname, c.relname, c.relreplident, a.attname, coalesce(a.atttypid, 25),
    a.atttypmod, format_type(a.atttypid, a.atttypmod),
    a.attnotnull AND NOT EXISTS (SELECT FROM pg_constraint n WHERE n.conrelid = c.oid AND n.contype = 'n' AND NOT n.convalidated AND n.conkey[1] = a.attnum),
    pg_get_expr(d.adbin, d.adrelid),
    CASE WHEN array_position(p.indkey::int2[], a.attnum) < p.indnkeyatts THEN array_position(p.indkey::int2[], a.attnum) END,
    a.attnum = ANY ((r.indkey::int2[])[0:r.indnkeyatts - 1]), coalesce(nullif(a.attidentity, ''), a.attgenerated), p.indimmediate, a.attnum,
    CASE WHEN a.atthasmissing THEN array_to_string(a.attmissingval, '') END,
    a.atthasdef AND NOT a.atthasmissing AND a.attgenerated = '', c.relfilenode
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    LEFT JOIN pg_index p ON p.indrelid = c.oid AND p.indisprimary
    LEFT JOIN pg_index r ON r.indrelid = c.oid AND r.indisreplident
    WHERE c.oid IN ({ids}) ORDER BY c.oid, a.attnum";

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, type_id: u32) -> Column {
        Column {
            name: name.into(),
            source_type: String::new(),
            type_id,
            type_modifier: -1,
            lake: lake_type(type_id, -1),
            identity: false,
            not_null: false,
            default: None,
            generated: None,
            number: None,
            before: None,
        }
    }

    #[test]
    fn a_type_that_is_not_read_in_binary_form_is_printed_by_its_own_output_function() {
        let table = Table {
            id: 1,
            schema: "public".into(),
            name: "t".into(),
            version: 0,
            columns: vec![column("id", 23), column("odd \"name\"", 100_000)],
            key: vec![],
            identity: Identity::Default,
            types: vec![],
        };
        let printed = [(23, "int4out"), (100_000, "public.odd_out")];
        let printed = printed.map(|(declared, output)| {
            let output = Some(output.into());
            Printed { declared, modifier: -1, output, labelled: false, is_given_none: false }
        });
        let printed = printed.into();
        let described = Described { table, printed, file: 1 };
        assert!(!described.renders_binary());
        assert_eq!(
            described.select_list(),
            r#""id", pg_catalog.textin(public.odd_out("odd ""name"""))"#
        );
    }

    #[test]
    fn rows_before_a_column_have_null_in_it_if_it_came_to_the_file_that_is_there() {
        let before = |file: u32, columns: u16| {
            let mut columns_of_it = vec![column("id", 23), column("a", 23), column("b", 23)];
            (1..).zip(&mut columns_of_it).for_each(|(number, column)| column.number = Some(number));
            columns_of_it[1].before = Some(Before::Value("7".into()));
            let printed = [false, true, true].map(|is_given_none| Printed {
                declared: 23,
                modifier: -1,
                output: None,
                labelled: false,
                is_given_none,
            });
            let table = Table { columns: columns_of_it, ..crate::source::generator::table() };
            let mut described = Described { table, printed: printed.into(), file: 9 };
            assert!(described.is_unsettled());
            described.settle(file, columns);
            let told: Vec<_> = described.table.columns.into_iter().map(|own| own.before).collect();
            assert_eq!(told[..2], [None, Some(Before::Value("7".into()))]);
            told[2].clone()
        };
        assert_eq!(before(9, 2), Some(Before::Null));
        assert_eq!(before(9, 0), Some(Before::Null));
        // It was there when the file was seen first, or that is another one.
        assert_eq!(before(9, 3), None);
        assert_eq!(before(8, 2), None);
    }
}
