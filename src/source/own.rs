//! Tables that are none of the database's: what this box says of it, in the lake beside the customer's. Pure.
//!
//! No customer's table can have their names: PostgreSQL keeps schemas that begin with `pg_` for itself. Each has the
//! number of the catalog whose content it tells, which no customer's table can have.

use super::{Column, Identity, LakeType, Table};

/// Their schema.
pub const OWN_SCHEMA: &str = "pg_lakehead";

/// Where a restore keeps its progress, in a database that it fills: tables there are none of a customer's either.
pub const RESTORE_SCHEMA: &str = "lakehead_restore";

/// One of them: columns by name and type, of which the first `key` are the key.
pub fn own_table(id: u32, name: &str, columns: &[(&str, &str)], key: usize) -> Table {
    let made = columns.iter().enumerate().map(|(at, (name, type_name))| {
        let (type_id, lake) = match *type_name {
            "bigint" => (20, LakeType::Int64),
            "boolean" => (16, LakeType::Boolean),
            "bytea" => (17, LakeType::Binary),
            "integer" => (23, LakeType::Int32),
            _ => (25, LakeType::Text),
        };
        Column {
            name: (*name).into(),
            source_type: (*type_name).into(),
            type_id,
            type_modifier: -1,
            lake,
            identity: at < key,
            not_null: at < key,
            default: None,
            generated: None,
            number: None,
            before: None,
        }
    });
    Table {
        id,
        schema: OWN_SCHEMA.into(),
        name: name.into(),
        version: 0,
        columns: made.collect(),
        key: columns[..key].iter().map(|(name, _)| (*name).into()).collect(),
        identity: Identity::Default,
        types: vec![],
    }
}
