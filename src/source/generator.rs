//! Sequence generators of the database (`CREATE SEQUENCE`, serial, identity), as rows of a table of ours. Pure.
//!
//! A database calls them sequences; [`Sequence`](crate::units::Sequence) here is the number of a change. They are in
//! no change stream: so they are looked at again and again, and what changed since the last look goes to the lake as
//! rows of [`table`], at the position where the log ended before the look. No customer's table can have its name:
//! PostgreSQL keeps schemas that begin with `pg_` for itself.
//!
//! | fact | what |
//! |---|---|
//! | `source/generators` | [`Look`]: the last one that is in the lake, or on its way there |
//! | `source/generator/<id>` | a [`Generator`] as the lake has it |
//!
//! **Invariant:** a look's position is read before its values. So whatever value a transaction has used that was
//! committed up to there, the generator stands at it or beyond, if nobody set it back since. Rows, facts and what
//! the ledger says of a look are one record.

use serde::{Deserialize, Serialize};

use super::{Table, own::own_table};
use crate::units::Position;

/// A sequence generator, and where it stood.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Generator {
    /// The database's own number for it (PostgreSQL: its OID).
    pub id: u32,
    /// Schema, as the catalog spells it.
    pub schema: String,
    /// Name, as the catalog spells it.
    pub name: String,
    /// `smallint`, `integer` or `bigint`.
    pub data_type: String,
    /// The value that it began with, and is set back to.
    pub start: i64,
    /// The smallest value.
    pub min: i64,
    /// The greatest value.
    pub max: i64,
    /// From one value to the next; not 0.
    pub increment: i64,
    /// Whether it begins again at its end.
    pub cycle: bool,
    /// Values that a session takes at once.
    pub cache: i64,
    /// Where it stood; `None`: it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stands: Option<Stands>,
    /// The column that it goes with, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

/// Where a generator stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stands {
    /// The value that it gave last, or gives next.
    pub last: i64,
    /// Whether it gave it.
    pub called: bool,
}

/// The column that a generator goes with.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Owner {
    /// The table's number in the database.
    pub table_id: u32,
    /// The table's schema.
    pub schema: String,
    /// The table's name.
    pub table: String,
    /// The column's name.
    pub column: String,
    /// Of an identity column: `always` or `by default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

/// The last look. Fact: [`LOOK_FACT`].
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Look {
    /// Where the log ended before it.
    pub position: Position,
    /// Looks since the last one that wrote all of them.
    pub since_whole: u32,
}

/// A value of a row of ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Datum<'a> {
    /// Of a text column.
    Text(Option<&'a str>),
    /// Of a 64-bit column.
    Int(Option<i64>),
    /// Of a boolean column.
    Boolean(Option<bool>),
}

impl Generator {
    /// `schema.name`, for people.
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Its row of [`table`], in the order of [`COLUMNS`].
    pub fn row(&self) -> [Datum<'_>; COLUMNS.len()] {
        let (stands, owner) = (self.stands, self.owner.as_ref());
        [
            Datum::Text(Some(&self.schema)),
            Datum::Text(Some(&self.name)),
            Datum::Int(Some(self.id.into())),
            Datum::Text(Some(&self.data_type)),
            Datum::Int(Some(self.start)),
            Datum::Int(Some(self.min)),
            Datum::Int(Some(self.max)),
            Datum::Int(Some(self.increment)),
            Datum::Boolean(Some(self.cycle)),
            Datum::Int(Some(self.cache)),
            Datum::Int(stands.map(|stands| stands.last)),
            Datum::Boolean(stands.map(|stands| stands.called)),
            Datum::Int(owner.map(|owner| owner.table_id.into())),
            Datum::Text(owner.map(|owner| owner.schema.as_str())),
            Datum::Text(owner.map(|owner| owner.table.as_str())),
            Datum::Text(owner.map(|owner| owner.column.as_str())),
            Datum::Text(owner.and_then(|owner| owner.identity.as_deref())),
        ]
    }

    /// The row by which one that is gone is named.
    pub fn row_gone(&self) -> [Datum<'_>; COLUMNS.len()] {
        let mut row = self.row();
        for datum in &mut row[KEY..] {
            *datum = match datum {
                Datum::Text(_) => Datum::Text(None),
                Datum::Int(_) => Datum::Int(None),
                Datum::Boolean(_) => Datum::Boolean(None),
            };
        }
        row
    }

    /// Whether `one` lies farther on its way than `other`.
    pub fn is_beyond(&self, one: i64, other: i64) -> bool {
        if self.increment < 0 { one < other } else { one > other }
    }
}

/// The table that holds the generators of a source.
pub fn table() -> Table {
    own_table(TABLE_ID, TABLE_NAME, &COLUMNS, KEY)
}

/// Key of a [`Generator`] as the lake has it.
pub fn generator_fact(id: u32) -> String {
    format!("{GENERATOR_FACTS}{id:010}")
}

/// Prefix of all [`generator_fact`]s.
pub const GENERATOR_FACTS: &str = "source/generator/";
/// Key of the last [`Look`].
pub const LOOK_FACT: &str = "source/generators";
/// The name of the table that holds the generators.
pub const TABLE_NAME: &str = "sequences";
/// That of the catalog `pg_sequence`, which no customer's table can have.
pub const TABLE_ID: u32 = 2224;
/// The first columns are the key.
const KEY: usize = 2;
/// Names as in PostgreSQL's view `pg_sequences`, where it has them; and types.
pub const COLUMNS: [(&str, &str); 17] = [
    ("schemaname", "text"),
    ("sequencename", "text"),
    ("sequence_id", "bigint"),
    ("data_type", "text"),
    ("start_value", "bigint"),
    ("min_value", "bigint"),
    ("max_value", "bigint"),
    ("increment_by", "bigint"),
    ("cycle", "boolean"),
    ("cache_size", "bigint"),
    ("last_value", "bigint"),
    ("is_called", "boolean"),
    ("owner_id", "bigint"),
    ("owner_schema", "text"),
    ("owner_table", "text"),
    ("owner_column", "text"),
    ("identity", "text"),
];

#[cfg(test)]
pub(crate) mod sample {
    //! For tests.

    use super::*;

    /// `public.<name>`, which stands at `last`.
    pub(crate) fn generator(id: u32, name: &str, last: i64) -> Generator {
        Generator {
            id,
            schema: "public".into(),
            name: name.into(),
            data_type: "bigint".into(),
            start: 1,
            min: 1,
            max: i64::MAX,
            increment: 1,
            cycle: false,
            cache: 1,
            stands: Some(Stands { last, called: true }),
            owner: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_tables_columns_and_the_facts_are_pinned() {
        let owner = Owner {
            table_id: 7,
            schema: "public".into(),
            table: "t".into(),
            column: "id".into(),
            identity: Some("always".into()),
        };
        let one = Generator { owner: Some(owner), ..sample::generator(9, "t_id_seq", 41) };
        for (datum, (name, of)) in one.row().iter().zip(COLUMNS) {
            let found = match datum {
                Datum::Text(_) => "text",
                Datum::Int(_) => "bigint",
                Datum::Boolean(_) => "boolean",
            };
            assert_eq!(found, of, "{name}");
        }
        assert!(one.row_gone()[..KEY].iter().eq(&one.row()[..KEY]));
        assert!(one.row_gone()[KEY..].iter().all(|datum| matches!(
            datum,
            Datum::Text(None) | Datum::Int(None) | Datum::Boolean(None)
        )));
        assert_eq!(table().qualified(), "pg_lakehead.sequences");
        assert_eq!(generator_fact(9), "source/generator/0000000009");
        assert_eq!(
            serde_json::to_string(&one).unwrap(),
            r#"{"id":9,"schema":"public","name":"t_id_seq","data_type":"bigint","start":1,"min":1,"max":9223372036854775807,"increment":1,"cycle":false,"cache":1,"stands":{"last":41,"called":true},"owner":{"table_id":7,"schema":"public","table":"t","column":"id","identity":"always"}}"#
        );
        let look = Look { position: Position(0xAB), since_whole: 3 };
        let json = r#"{"position":"00000000/000000AB","since_whole":3}"#;
        assert_eq!(serde_json::to_string(&look).unwrap(), json);
    }
}
