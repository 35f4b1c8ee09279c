//! Statements of DDL, as the event triggers of `statements.sql` tell them in the stream. Pure.
//!
//! A logical message with the prefix `lakehead.ddl` holds one statement as JSON. Each of its objects becomes an INSERT into
//! a table of ours, `pg_lakehead.statements`, as the server would send it: in the transaction of the statement, in
//! order with its rows. What the statement says of a table's columns is not believed, but what the catalog says then:
//! if it still is what the statement made, its definition stands right here.
//!
//! **Invariant:** whoever may write a logical message may forge one. It makes rows of this table, and nothing else: not
//! what rows are decoded by, no SQL, no error, and no more of them than a few times the message. One that does not read
//! is a row of NULLs.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};

use super::{
    super::{Table, own::OWN_SCHEMA},
    catalog::Described,
    pattern::Patterns,
};

/// What installs the event triggers, for a superuser.
pub const SCRIPT: &str = include_str!("statements.sql");

/// A statement.
#[derive(Debug, Deserialize)]
pub(crate) struct Told {
    event: String,
    command: String,
    role: String,
    session_role: String,
    search_path: String,
    statement: Option<String>,
    cut: bool,
    #[serde(deserialize_with = "few")]
    objects: Vec<Object>,
    /// Whether there were more objects than it names.
    more: bool,
}

/// One of its objects.
#[derive(Debug, Deserialize)]
struct Object {
    #[serde(rename = "type")]
    kind: Option<String>,
    schema: Option<String>,
    identity: Option<String>,
    id: Option<i64>,
    tag: Option<String>,
    /// The table that it is or is of.
    table: Option<u32>,
    table_schema: Option<String>,
    table_name: Option<String>,
    #[serde(flatten)]
    shape: Shape,
}

/// A table as a statement left it.
#[derive(Debug, Deserialize)]
pub(crate) struct Shape {
    replica_identity: Option<String>,
    key: Option<Vec<String>>,
    columns: Option<Vec<ToldColumn>>,
}

#[derive(Debug, Deserialize)]
struct ToldColumn {
    name: String,
    #[serde(rename = "type")]
    type_id: u32,
    modifier: i32,
    not_null: bool,
    default: Option<String>,
}

/// Of a row, a value as the server prints it.
type Row = [Option<String>; COLUMNS.len()];

impl Told {
    /// Reads a message's content.
    pub(crate) fn parse(content: &[u8]) -> Option<Self> {
        if content.len() > BYTES_MAX { None } else { serde_json::from_slice(content).ok() }
    }

    /// An INSERT for each object that is meant. A text that may name others stays where it is. So many objects of so long
    /// a text that all would be more than [`ROWS_BYTES_MAX`] are as those that the message does not name.
    pub(crate) fn inserts(&self, patterns: &Patterns) -> Vec<Vec<u8>> {
        let meant = self.objects.iter().filter(|object| object.is_meant(patterns));
        let (mut rows, mut bytes, mut more) = (vec![], 0, self.more);
        for object in meant {
            let row = insert(&self.row(Some(object), patterns));
            bytes += row.len();
            if bytes > ROWS_BYTES_MAX && !rows.is_empty() {
                more = true;
                break;
            }
            rows.push(row);
        }
        if more {
            rows.push(insert(&self.row(None, patterns)));
        }
        rows
    }

    /// Tables as the statement left them, each once.
    pub(crate) fn shapes(&self, patterns: &Patterns) -> Vec<(u32, &Shape)> {
        let meant = self.objects.iter().filter(|object| object.is_meant(patterns));
        let shaped = meant.filter(|object| object.shape.columns.is_some());
        let mut shapes: Vec<_> =
            shaped.filter_map(|object| Some((object.table?, &object.shape))).collect();
        shapes.sort_by_key(|(id, _)| *id);
        shapes.dedup_by_key(|(id, _)| *id);
        shapes
    }

    fn row(&self, object: Option<&Object>, patterns: &Patterns) -> Row {
        let tag = object.and_then(|object| object.tag.as_ref());
        let flag = |is: bool| Some(if is { "t" } else { "f" }.to_owned());
        let text = self.statement.clone().filter(|text| {
            patterns.are_all()
                || object.is_some_and(|object| object.place().is_some())
                    && is_alone(text, &self.command)
        });
        let cut = self.cut || text.is_none() && self.statement.is_some();
        [
            Some(tag.unwrap_or(&self.command).clone()),
            object.and_then(|object| object.kind.clone()),
            object.and_then(|object| object.schema.clone()),
            object.and_then(|object| object.identity.clone()),
            object.and_then(|object| object.id).map(|id| id.to_string()),
            object.and_then(|object| object.table).map(|id| id.to_string()),
            flag(self.event == DROP),
            Some(self.role.clone()),
            Some(self.session_role.clone()),
            Some(self.search_path.clone()),
            text,
            flag(cut),
        ]
    }
}

impl Object {
    /// What patterns go by: the table that it is of, or its own schema and name.
    fn place(&self) -> Option<(&str, &str)> {
        if let (Some(schema), Some(name)) = (&self.table_schema, &self.table_name) {
            return Some((schema, name));
        }
        let schema = self.schema.as_deref()?;
        let identity = self.identity.as_deref().unwrap_or_default();
        let name = identity.split('(').next().unwrap_or_default();
        let name = name.rsplit('.').next().unwrap_or_default();
        Some((schema, name.trim_matches('"')))
    }

    /// Whether it is in no schema, or `tables` includes it.
    fn is_meant(&self, patterns: &Patterns) -> bool {
        self.place().is_none_or(|(schema, name)| patterns.include(schema, name))
    }
}

impl Shape {
    /// Whether the catalog still has the table so.
    pub(crate) fn is_that_of(&self, known: &Described) -> bool {
        let Some(columns) = &self.columns else { return false };
        let key = self.key.as_deref().filter(|key| known.is_key(key)).unwrap_or_default();
        let told = columns.iter().map(|column| {
            let ToldColumn { name, type_id, modifier, not_null, default } = column;
            (name.as_str(), *type_id, *modifier, *not_null, default.as_deref())
        });
        known.table.key == key
            && self.replica_identity.as_deref() == Some(known.identity_letter())
            && known.declared().eq(told)
    }
}

/// The content of a logical message that tells a statement. `body` follows the kind:
/// `flags u8 | position u64 | prefix cstring | length u32 | content`.
pub(crate) fn content(body: &[u8]) -> Option<&[u8]> {
    let content = prefixed(body)?.strip_prefix(PREFIX.as_bytes())?.strip_prefix(b"\0")?;
    let (length, content) = content.split_first_chunk::<4>()?;
    (usize::try_from(u32::from_be_bytes(*length)).ok()? == content.len()).then_some(content)
}

/// Whether a logical message has a prefix that is kept for this box, whoever wrote it.
pub(crate) fn is_reserved(body: &[u8]) -> bool {
    prefixed(body).is_some_and(|prefix| prefix.starts_with(RESERVED))
}

/// From the prefix on.
fn prefixed(body: &[u8]) -> Option<&[u8]> {
    body.get(9..)
}

/// What describes `pg_lakehead.statements` in the stream.
pub(crate) fn relation() -> Vec<u8> {
    let mut message = [&b"R"[..], &TABLE_ID.to_be_bytes()].concat();
    message.extend([OWN_SCHEMA.as_bytes(), b"\0", TABLE_NAME.as_bytes(), b"\0n"].concat());
    message.extend(count(COLUMNS.len()));
    for (name, type_id) in COLUMNS {
        message.push(0);
        message.extend([name.as_bytes(), b"\0"].concat());
        message.extend(type_id.to_be_bytes());
        message.extend((-1i32).to_be_bytes());
    }
    message
}

/// The row of a message that does not read.
pub(crate) fn unread() -> Vec<u8> {
    insert(&[const { None }; COLUMNS.len()])
}

/// A message by which the journal is told of a table's definition.
pub(crate) fn definition(table: &Table) -> Vec<u8> {
    let json = serde_json::to_vec(table).expect("a table is plain data");
    let length = u32::try_from(json.len()).expect("a definition is below 4 GiB");
    let head = [&b"M\x01"[..], &[0; 8], DEFINITION.as_bytes(), b"\0"].concat();
    [&head[..], &length.to_be_bytes(), &json].concat()
}

/// As many objects as the script names at most: each is held many times as large as it can be written.
fn few<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Object>, D::Error> {
    struct Few;

    impl<'de> Visitor<'de> for Few {
        type Value = Vec<Object>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {OBJECTS_MAX} objects")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut objects: A) -> Result<Vec<Object>, A::Error> {
            let mut few = vec![];
            while let Some(object) = objects.next_element()? {
                if few.len() == OBJECTS_MAX {
                    return Err(A::Error::invalid_length(few.len() + 1, &self));
                }
                few.push(object);
            }
            Ok(few)
        }
    }

    deserializer.deserialize_seq(Few)
}

fn insert(row: &Row) -> Vec<u8> {
    let mut message = [&b"I"[..], &TABLE_ID.to_be_bytes(), b"N"].concat();
    message.extend(count(COLUMNS.len()));
    for value in row {
        match value {
            None => message.push(b'n'),
            Some(text) => {
                let length = u32::try_from(text.len()).expect("no longer than the message");
                message.push(b't');
                message.extend(length.to_be_bytes());
                message.extend(text.as_bytes());
            }
        }
    }
    message
}

fn count(columns: usize) -> [u8; 2] {
    u16::try_from(columns).expect("some columns").to_be_bytes()
}

/// Whether a text is that of one statement alone, and not of a function or a block that ran it.
fn is_alone(text: &str, command: &str) -> bool {
    let word = |text: &str| text.split_whitespace().next().unwrap_or_default().to_uppercase();
    let one = text.trim_end().trim_end_matches(';');
    !one.contains(';') && word(one) == word(command)
}

/// The prefix of messages of statements.
const PREFIX: &str = "lakehead.ddl";
/// The prefix of messages of definitions, which are in the journal only.
pub(crate) const DEFINITION: &str = "lakehead.definition";
const RESERVED: &[u8] = b"lakehead.";
const DROP: &str = "sql_drop";
/// A longer message is not read: what is read of it takes ten times as much while it is read.
const BYTES_MAX: usize = 8 << 20;
/// As `statements.sql` has it.
const OBJECTS_MAX: usize = 1000;
/// The rows of a message: a thousand objects of a text of 16 Ki bytes.
const ROWS_BYTES_MAX: usize = 20 << 20;
/// The table that holds the statements of a source.
const TABLE_NAME: &str = "statements";
/// That of the catalog `pg_event_trigger`, which no customer's table can have.
pub(crate) const TABLE_ID: u32 = 3466;
const TEXT: u32 = 25;
const BIGINT: u32 = 20;
const BOOLEAN: u32 = 16;
/// Names and types.
const COLUMNS: [(&str, u32); 12] = [
    ("command", TEXT),
    ("object_type", TEXT),
    ("schema_name", TEXT),
    ("object_identity", TEXT),
    ("object_id", BIGINT),
    ("table_id", BIGINT),
    ("is_drop", BOOLEAN),
    ("role", TEXT),
    ("session_role", TEXT),
    ("search_path", TEXT),
    ("statement", TEXT),
    ("is_cut", BOOLEAN),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::{Cell, Decode, Event, RecordKind, postgres::pgoutput::PgDecoder};

    fn patterns(texts: &[&str]) -> Patterns {
        Patterns::new(&texts.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    fn told(statement: &str, objects: &str) -> Told {
        let json = format!(
            r#"{{"event":"ddl_command_end","command":"ALTER TABLE","role":"a","session_role":"b","search_path":"public",
            "statement":{statement:?},"cut":false,"objects":[{objects}],"more":false}}"#
        );
        Told::parse(json.as_bytes()).unwrap()
    }

    const TABLE: &str = r#"{"type":"table","schema":"public","identity":"public.t","id":7,"tag":"ALTER TABLE","table":7,
        "table_schema":"public","table_name":"t","replica_identity":"d","key":null,"columns":[]}"#;
    const SECRET: &str =
        r#"{"type":"function","schema":"hidden","identity":"hidden.f(integer)","id":8}"#;
    const NOWHERE: &str = r#"{"type":"extension","schema":null,"identity":"hstore","id":9}"#;

    /// The rows as the journal's reader has them.
    fn rows(inserts: &[Vec<u8>]) -> Vec<Vec<Option<String>>> {
        let mut decoder = PgDecoder::default();
        decoder.decode(RecordKind::Message, &relation()).unwrap();
        let read = inserts.iter().map(|insert| {
            let Ok(Event::Change(change)) = decoder.decode(RecordKind::Message, insert) else {
                panic!("no row");
            };
            let text = |cell: &Cell| match cell {
                Cell::Text(range) => Some(String::from_utf8(insert[range.clone()].into()).unwrap()),
                _ => None,
            };
            change.new.unwrap().iter().map(text).collect()
        });
        read.collect()
    }

    #[test]
    fn each_object_that_is_meant_is_a_row_of_a_table_of_ours() {
        let one = told("ALTER TABLE t ADD a int;", &[TABLE, SECRET, NOWHERE].join(","));
        let all = rows(&one.inserts(&patterns(&["*"])));
        assert_eq!(all.len(), 3);
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(all[0][..6], ["ALTER TABLE", "table", "public", "public.t", "7", "7"].map(text));
        assert_eq!(
            all[0][6..],
            ["f", "a", "b", "public", "ALTER TABLE t ADD a int;", "f"].map(text)
        );
        assert_eq!(all[2][10], text("ALTER TABLE t ADD a int;"));
        let some = rows(&one.inserts(&patterns(&["public.*"])));
        let seen: Vec<_> = some.iter().map(|row| (row[3].clone(), row[10].is_some())).collect();
        assert_eq!(seen, [(text("public.t"), true), (text("hstore"), false)]);
        assert_eq!(some[1][11], text("t"));
        assert_eq!(rows(&[unread()]), [vec![None; COLUMNS.len()]]);
    }

    #[test]
    fn a_text_that_may_name_others_stays_where_it_is() {
        for (statement, stays) in [
            ("alter table t add a int", false),
            ("INSERT INTO hidden VALUES ('x'); ALTER TABLE t ADD a int", true),
            ("SELECT f('x')", true),
        ] {
            let rows = rows(&told(statement, TABLE).inserts(&patterns(&["public.*"])));
            assert_eq!(rows[0][10].is_none(), stays, "{statement}");
        }
    }

    #[test]
    fn no_message_makes_more_than_a_few_times_its_bytes() {
        let all = patterns(&["*"]);
        let objects = |count: usize| vec!["{}"; count].join(",");
        let long = "x".repeat(1 << 20);
        let rows = told(&long, &objects(OBJECTS_MAX)).inserts(&all);
        let bytes: usize = rows.iter().map(Vec::len).sum();
        assert!(bytes <= ROWS_BYTES_MAX + (2 << 20), "{bytes} bytes");
        // What is left out is said as that which the message does not name.
        let as_most = told(&"x".repeat(16 << 10), &objects(OBJECTS_MAX)).inserts(&all);
        assert_eq!(as_most.len(), OBJECTS_MAX);
        for count in [OBJECTS_MAX + 1, BYTES_MAX / 3] {
            let json = format!(
                r#"{{"event":"","command":"","role":"","session_role":"","search_path":"","cut":false,"more":false,"objects":[{}]}}"#,
                objects(count)
            );
            assert!(Told::parse(json.as_bytes()).is_none());
        }
    }

    #[test]
    fn a_message_is_known_by_its_prefix_and_length() {
        let body = |prefix: &str, length: u32| {
            let head = [&b"\x01"[..], &[0; 8], prefix.as_bytes(), b"\0"].concat();
            [&head[..], &length.to_be_bytes(), b"{}"].concat()
        };
        assert_eq!(content(&body(PREFIX, 2)), Some(&b"{}"[..]));
        assert_eq!(content(&body(PREFIX, 3)), None);
        assert_eq!(content(&body("lakehead.ddl2", 2)), None);
        assert!(is_reserved(&body(DEFINITION, 2)) && !is_reserved(&body("lakehead", 2)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(content(&bytes).is_none_or(|content| content.len() < bytes.len()));
            is_reserved(&bytes);
            drop(Told::parse(&bytes));
        }
    }
}
