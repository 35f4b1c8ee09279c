//! Reads under an exported snapshot, and holds a table as that snapshot knows it.

use super::{
    catalog::{literal, quoted},
    error::{ServerError, SourceError},
    message::TextRow,
    wire::Wire,
};
use crate::source::Table;

/// A transaction under the snapshot.
pub(super) async fn begin(wire: &mut Wire, snapshot: &str) -> Result<(), SourceError> {
    let sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
        literal(snapshot)
    );
    wire.query("read under the snapshot", &sql).await.map(drop)
}

/// Locks a table for reading, until the transaction's end. An error if it is not the file any more that
/// the snapshot knows.
pub(super) async fn lock_unchanged(
    wire: &mut Wire,
    table: &Table,
    filenode: u32,
) -> Result<(), SourceError> {
    let name = quoted(&table.schema, &table.name);
    wire.query("lock a table for reading", &format!("LOCK TABLE ONLY {name} IN ACCESS SHARE MODE"))
        .await?;
    let sql = format!(
        "SELECT relfilenode, pg_relation_filenode(oid), {0}::regclass::oid = oid FROM pg_class WHERE oid = {1}",
        literal(&name),
        table.id
    );
    let rows = wire.query("look at a table's file", &sql).await?;
    let file = filenode.to_string();
    let same = |row: &TextRow| {
        row.optional(0) == Some(&file) && row.optional(1) == Some(&file) && row.flag(2)
    };
    match rows.first().is_some_and(same) {
        true => Ok(()),
        false => Err(changed(&table.qualified())),
    }
}

fn changed(table: &str) -> SourceError {
    SourceError::Server {
        doing: "look at a table's file",
        error: ServerError {
            code: "55000".into(),
            message: format!("{table} was rewritten, emptied or renamed since the snapshot"),
            detail: String::new(),
        },
    }
}
