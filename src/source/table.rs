//! Tables as the lake describes them: columns, keys, and the types that people made for them. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::own::OWN_SCHEMA;

/// A table at one version of its schema: what `_schema/…/<version>.json` holds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Table {
    /// The database's own number for it (PostgreSQL: its OID).
    pub id: u32,
    /// Schema, as the catalog spells it.
    pub schema: String,
    /// Name, as the catalog spells it.
    pub name: String,
    /// Number of this version, from 1, given by seal; 0 before that.
    #[serde(default)]
    pub version: u32,
    /// Columns in the table's order, without dropped ones.
    pub columns: Vec<Column>,
    /// Names of the primary key's columns, in its order; empty without one.
    #[serde(default)]
    pub key: Vec<String>,
    /// What an UPDATE or DELETE names the old row by.
    pub identity: Identity,
    /// Types that the columns use and a fresh database lacks, in an order in which they can be created.
    #[serde(default)]
    pub types: Vec<TypeDefinition>,
}

/// What names the old row of a change.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Identity {
    /// The primary key.
    Default,
    /// A unique index: the columns with [`Column::identity`].
    Index,
    /// The whole old row.
    Full,
    /// Nothing.
    Nothing,
}

/// A column.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Column {
    /// Name, as the catalog spells it.
    pub name: String,
    /// The source's type as the source prints it: `numeric(12,2)`, `timestamp with time zone`, `public.mood`.
    pub source_type: String,
    /// The type's number in the source.
    pub type_id: u32,
    /// The type's modifier in the source, -1 if none.
    pub type_modifier: i32,
    /// What the lake's column holds. How the files have it, `[seal] uuids` may say otherwise, from one to the next.
    pub lake: LakeType,
    /// Whether it names the old row of a change.
    #[serde(default)]
    pub identity: bool,
    /// NOT NULL.
    #[serde(default)]
    pub not_null: bool,
    /// The default's expression, if the catalog was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// `stored` or `virtual`, or the identity kind (`always`, `by default`), if generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<String>,
    /// The column's own number in its table, if the catalog was read: one that is dropped and made again under its name
    /// has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u16>,
    /// What rows have in it that were there when it was added, if the catalog says; not said of one without a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
}

/// What a column that was added holds in the rows before.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Before {
    /// NULL: the default came later, or there are none.
    Null,
    /// A value, as the database prints it.
    Value(String),
}

impl Column {
    /// Whether the database computes it: it is not copied.
    pub fn is_computed(&self) -> bool {
        matches!(self.generated.as_deref(), Some("stored" | "virtual"))
    }

    /// Whether it is computed whenever it is read (PostgreSQL 18): the change stream never has it.
    pub fn is_virtual(&self) -> bool {
        self.generated.as_deref() == Some("virtual")
    }
}

/// What a column is in Parquet (DESIGN §7).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LakeType {
    /// BOOLEAN
    Boolean,
    /// INT(16)
    Int16,
    /// INT(32)
    Int32,
    /// INT(64); PostgreSQL's oid too
    Int64,
    /// FLOAT
    Float32,
    /// DOUBLE
    Float64,
    /// DATE
    Date,
    /// TIMESTAMP(µs), no zone
    Timestamp,
    /// TIMESTAMP(µs, UTC)
    TimestampUtc,
    /// DECIMAL(precision, scale), precision 1–38, scale 0–precision
    Decimal {
        /// Digits in all.
        #[serde(deserialize_with = "digits")]
        precision: u8,
        /// Digits after the point.
        #[serde(deserialize_with = "digits")]
        scale: u8,
    },
    /// BINARY
    Binary,
    /// FIXED_LEN_BYTE_ARRAY(16), UUID; or UTF8, if `[seal] uuids` asks for that
    Uuid,
    /// UTF8: as the source prints the value
    Text,
}

/// Of a decimal: 38 at most, so that its number fits 128 bits.
fn digits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    match u8::deserialize(deserializer)? {
        digits @ ..=38 => Ok(digits),
        more => Err(D::Error::custom(format_args!("{more} digits, 38 at most"))),
    }
}

/// A type of the source that restore has to create.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TypeDefinition {
    /// The type's number in the source.
    pub id: u32,
    /// Qualified and quoted, as SQL spells it.
    pub name: String,
    /// The statement that creates it.
    pub create: String,
    /// Of an enum: its labels, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// Of a domain: what it is made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Domain>,
    /// Of a composite type: its attributes, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Vec<Attribute>>,
}

/// A domain.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Domain {
    /// The type below it, with its collation, as SQL spells them.
    pub base: String,
    /// The default's expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// NOT NULL.
    #[serde(default)]
    pub not_null: bool,
    /// What its values have to be, by the constraint's name: `CHECK (…)`, perhaps `NOT VALID`.
    #[serde(default)]
    pub checks: BTreeMap<String, String>,
}

/// An attribute of a composite type.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Attribute {
    /// Name, as the catalog spells it.
    pub name: String,
    /// Its type as the source prints it.
    pub source_type: String,
    /// Its own number in the type.
    pub number: u16,
    /// Its type's number in the source.
    pub type_id: u32,
    /// Its type's modifier in the source, -1 if none.
    pub type_modifier: i32,
}

impl TypeDefinition {
    /// One of which no parts are told.
    pub fn new(id: u32, name: String, create: String) -> Self {
        Self { id, name, create, labels: None, domain: None, attributes: None }
    }
}

impl Table {
    /// `schema.table`, as the source spells it: for people and the ledger.
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Whether it is none of the database's: what this box says of the database.
    pub fn is_own(&self) -> bool {
        self.schema == OWN_SCHEMA
    }

    /// Whether two versions describe the same columns, key and identity (their own numbers, and what was before, aside). One whose columns
    /// have no numbers is the same as one whose columns have.
    pub fn same_shape(&self, other: &Self) -> bool {
        let numbered = self.is_numbered();
        let plain = |table: &Self| {
            let mut shape = table.shape();
            shape.columns.iter_mut().for_each(|own| own.number = own.number.filter(|_| numbered));
            shape
        };
        plain(self) == plain(other)
    }

    /// Whether rows of the one are read as rows of the other: their columns are the same, whatever else has changed.
    pub fn reads_like(&self, other: &Self) -> bool {
        let of = |column: &Column| {
            let Column { name, type_id, type_modifier, lake, identity, .. } = column;
            (name.clone(), *type_id, *type_modifier, *lake, *identity, column.generated.clone())
        };
        (self.id, self.identity) == (other.id, other.identity)
            && self.columns.iter().map(of).eq(other.columns.iter().map(of))
    }

    /// What it describes, without what is of a version.
    pub fn shape(&self) -> Self {
        let mut shape = Self { version: 0, ..self.clone() };
        shape.columns.iter_mut().for_each(|column| column.before = None);
        shape
    }

    /// Whether each column's number is known.
    pub fn is_numbered(&self) -> bool {
        self.columns.iter().all(|column| column.number.is_some())
    }
}
