//! The database that a restore fills: its session, its own record of progress, tables and rows.
//!
//! Schema `lakehead_restore` holds `progress` (how far the changes are in), `objects` (which objects of
//! snapshots are in), `tables` (each table's definition as it is now) and `types`. **Invariant:** each is written
//! in the transaction that it speaks of, so that a restore cut anywhere goes on where it was.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use futures_util::SinkExt;
use memchr::{memchr, memchr3};
use tokio_postgres::{Client, CopyInSink, Statement, error::DbError, types::ToSql};

use super::{
    ReplayError,
    apply::{Matching, RowKey, Shape, Step, merge_from},
    evolve::{self, Alteration, Otherwise},
    restore_types::Types,
    schema,
};
use crate::{
    journal::Identity,
    ledger::EntryObject,
    seal::Table,
    units::{Point, Position, Sequence, UnitError},
};

/// The target, through one connection.
pub(super) struct Target<'a> {
    pub(super) client: &'a Client,
    pub(super) source: &'a str,
    statements: HashMap<String, Statement>,
    /// Of types that people made.
    pub(super) types: Types,
    /// Sentences about what could not be made again.
    pub(super) notes: Vec<String>,
}

/// Rows that lack values which the server left out: by table id, their keys.
pub(super) type Lacking = BTreeMap<u32, BTreeSet<RowKey>>;

/// What a step did, where it was not what it was to do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Missed {
    /// Keys of rows that were not there, and were inserted with NULL in what the server left out.
    pub(super) inserted: Vec<RowKey>,
    /// Rows that were not there, and were not inserted.
    pub(super) unmatched: u64,
    /// Whether the step's own statement touched nothing, and the one instead of it did.
    pub(super) instead: bool,
}

impl<'a> Target<'a> {
    /// Prepares the session and the record of progress, and takes the lock.
    pub(super) async fn open(
        client: &'a Client,
        source: &'a str,
        types: Types,
    ) -> Result<Self, ReplayError> {
        let target = Self { client, source, statements: HashMap::new(), types, notes: vec![] };
        target.run("prepare the session", SESSION).await?;
        let lock = "SELECT pg_try_advisory_lock(hashtext('lakehead_restore'), hashtext($1))";
        let row = client.query_one(lock, &[&source]).await;
        let row = row.map_err(|why| refused("take the restore's lock", &why))?;
        if !row.get::<_, bool>(0) {
            return Err(ReplayError::Busy);
        }
        target.run("make schema lakehead_restore", RECORD).await?;
        Ok(target)
    }

    /// How far the changes are in, and the rows that lack values; `None` before the first.
    pub(super) async fn progress(&self) -> Result<Option<(Point, Lacking)>, ReplayError> {
        let query =
            "SELECT sequence, position, lacking FROM lakehead_restore.progress WHERE source = $1";
        let row = self.client.query_opt(query, &[&self.source]).await;
        let row = row.map_err(|why| refused("read lakehead_restore.progress", &why))?;
        let Some(row) = row else { return Ok(None) };
        let damaged = |why| ReplayError::object("lakehead_restore.progress", why);
        let sequence = Sequence(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0));
        let position =
            row.get::<_, &str>(1).parse().map_err(|why: UnitError| damaged(why.to_string()))?;
        let lacking = serde_json::from_str(row.get(2)).map_err(|why| damaged(why.to_string()))?;
        Ok(Some((Point { sequence, position }, lacking)))
    }

    /// Notes how far the changes are in, and the rows that lack values. In the transaction of the changes.
    pub(super) async fn record(&self, point: Point, lacking: &Lacking) -> Result<(), ReplayError> {
        let sql = "INSERT INTO lakehead_restore.progress (source, sequence, position, lacking) VALUES ($1, $2, $3, $4) \
            ON CONFLICT (source) DO UPDATE SET sequence = EXCLUDED.sequence, position = EXCLUDED.position, lacking = EXCLUDED.lacking";
        let lacking = serde_json::to_string(lacking).expect("keys are plain data");
        let sequence = i64::try_from(point.sequence.0).unwrap_or(i64::MAX);
        let position = point.position.to_string();
        let done = self.client.execute(sql, &[&self.source, &sequence, &position, &lacking]).await;
        done.map(drop).map_err(|why| refused("record progress", &why))
    }

    /// Tables that are there, with their definitions and where their rows were read anew.
    pub(super) async fn tables(&self) -> Result<BTreeMap<u32, (Table, Position)>, ReplayError> {
        let query = "SELECT definition, anew FROM lakehead_restore.tables WHERE source = $1";
        let rows = self.client.query(query, &[&self.source]).await;
        let rows = rows.map_err(|why| refused("read lakehead_restore.tables", &why))?;
        let tables = rows.iter().map(|row| {
            let damaged = |why: String| ReplayError::object("lakehead_restore.tables", why);
            let table: Table =
                serde_json::from_str(row.get(0)).map_err(|why| damaged(why.to_string()))?;
            let anew = row.get::<_, &str>(1).parse();
            Ok((table.id, (table, anew.map_err(|why: UnitError| damaged(why.to_string()))?)))
        });
        tables.collect()
    }

    /// Keys of the snapshot objects that are in, with their hashes.
    pub(super) async fn objects(&self) -> Result<HashMap<String, String>, ReplayError> {
        let query = "SELECT key, sha256 FROM lakehead_restore.objects WHERE source = $1";
        let rows = self.client.query(query, &[&self.source]).await;
        let rows = rows.map_err(|why| refused("read lakehead_restore.objects", &why))?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Makes a table, with its schema and types, for rows that were read `anew` there, as it was told `at` a position.
    pub(super) async fn create(
        &mut self,
        table: &Table,
        (anew, at): (Position, Position),
    ) -> Result<(), ReplayError> {
        self.begin().await?;
        self.make_types(table, at).await?;
        let doing = format!("create table {}", table.qualified());
        if schema::of_extension(table) {
            // It is there with its extension, with rows of its own: the source's are taken instead.
            self.run(&doing, &format!("DELETE FROM {}", schema::qualified(table))).await?;
        } else {
            self.make(&doing, table).await?;
        }
        self.remember(table).await?;
        let sql = "UPDATE lakehead_restore.tables SET anew = $3 WHERE source = $1 AND id = $2";
        let (id, anew) = (i64::from(table.id), anew.to_string());
        let done = self.client.execute(sql, &[&self.source, &id, &anew]).await;
        done.map_err(|why| refused("record a table", &why))?;
        self.commit().await
    }

    async fn make(&mut self, doing: &str, table: &Table) -> Result<(), ReplayError> {
        self.run(doing, &schema::create_schema(&table.schema)).await?;
        self.run(doing, &schema::create_table(table)).await?;
        if matches!(table.identity, Identity::Full | Identity::Nothing) {
            self.run(doing, &schema::replica_identity(table)).await?;
        }
        let defaults = table.columns.iter().filter_map(|column| schema::set_default(table, column));
        self.try_all(defaults.collect()).await?;
        self.notes.extend(schema::left_out(table));
        Ok(())
    }

    /// Turns a table into its next version, told `at` a position, within the transaction, as far as its rows let it. Gives
    /// what it is then.
    pub(super) async fn alter(
        &mut self,
        (from, to): (&Table, &Table),
        at: Position,
    ) -> Result<Table, ReplayError> {
        self.make_types(to, at).await?;
        self.run("alter a table", &schema::create_schema(&to.schema)).await?;
        let doing = format!("alter table {}", to.qualified());
        let mut made = evolve::eased(from, to);
        for Alteration { sql, otherwise } in evolve::alter(from, to) {
            match otherwise {
                None => self.run(&doing, &sql).await?,
                Some(otherwise) => self.run_or(&doing, &sql, (&otherwise, &mut made)).await?,
            }
        }
        self.try_all(evolve::defaults(from, to)).await?;
        self.remember(&made).await?;
        Ok(made)
    }

    /// Runs a statement; where rows that are there refuse it, what is to be done then, and what that makes of the
    /// table is said.
    async fn run_or(
        &mut self,
        doing: &str,
        sql: &str,
        (otherwise, table): (&Otherwise, &mut Table),
    ) -> Result<(), ReplayError> {
        self.run(doing, "SAVEPOINT lakehead_rows").await?;
        if let Err(why) = self.client.batch_execute(sql).await {
            // Data exceptions, constraints, and no way from one type to the other.
            let code = why.code().map(tokio_postgres::error::SqlState::code).unwrap_or_default();
            let is_of_rows = code.starts_with("22") || code.starts_with("23") || code == "42846";
            let refused = refused(doing, &why);
            if !is_of_rows || matches!(refused, ReplayError::Domain { .. }) {
                return Err(refused);
            }
            self.run(doing, "ROLLBACK TO SAVEPOINT lakehead_rows").await?;
            self.client.batch_execute(&otherwise.sql).await.map_err(|_| refused)?;
            evolve::set_not_null(table, std::slice::from_ref(&otherwise.nullable), false);
            let note = otherwise.note.as_ref();
            self.notes.extend(note.map(|note| format!("{}: {note}", table.qualified())));
        }
        self.run(doing, "RELEASE SAVEPOINT lakehead_rows").await
    }

    /// Removes a table that another one of the same name replaces, or another reading of it.
    pub(super) async fn drop_table(&self, table: &Table) -> Result<(), ReplayError> {
        let doing = format!("drop table {}", table.qualified());
        self.begin().await?;
        let name = schema::qualified(table);
        let drop = match schema::of_extension(table) {
            true => format!("DELETE FROM {name}"),
            false => format!("DROP TABLE IF EXISTS {name}"),
        };
        self.run(&doing, &drop).await?;
        let sql = "DELETE FROM lakehead_restore.tables WHERE source = $1 AND id = $2";
        let done = self.client.execute(sql, &[&self.source, &i64::from(table.id)]).await;
        done.map_err(|why| refused(&doing, &why))?;
        self.commit().await
    }

    /// Begins to load an object's rows into these columns of the table: in place, or, where rows with
    /// the same key may be there, beside it.
    pub(super) async fn copy_in(
        &self,
        shape: &Shape,
        columns: &[usize],
        beside: bool,
    ) -> Result<Loading, ReplayError> {
        let doing = format!("load {}", shape.name);
        let list = columns.iter().map(|at| schema::identifier(&shape.columns[*at].name));
        let list = list.collect::<Vec<_>>().join(", ");
        let mut into = shape.name.clone();
        if beside {
            into = "pg_temp.lakehead_rows".into();
            let make = format!(
                "CREATE TEMP TABLE lakehead_rows ON COMMIT DROP AS SELECT {} FROM {} LIMIT 0",
                list, shape.name
            );
            self.run(&doing, &make).await?;
        }
        // A table without columns has rows all the same, and no list.
        let list = if list.is_empty() { list } else { format!(" ({list})") };
        let sql = format!("COPY {into}{list} FROM STDIN");
        let sink = self.client.copy_in(&sql).await.map_err(|why| refused(&doing, &why))?;
        Ok(Loading { sink: Box::pin(sink), buffer: Vec::new(), doing })
    }

    /// Ends loading, and notes that the object is in. Within the transaction. Gives the number of rows.
    pub(super) async fn loaded(
        &self,
        loading: Loading,
        shape: &Shape,
        columns: &[usize],
        beside: bool,
        object: &EntryObject,
    ) -> Result<u64, ReplayError> {
        let doing = loading.doing.clone();
        let rows = loading.finish().await?;
        if let (true, Matching::Key(key) | Matching::Ordered(key)) = (beside, &shape.matching) {
            let merge = merge_from(shape, key, columns, "pg_temp.lakehead_rows");
            self.run(&doing, &merge).await?;
        }
        self.record_object(object, rows).await?;
        Ok(rows)
    }

    /// Notes that an object is in. Within the transaction.
    pub(super) async fn record_object(
        &self,
        object: &EntryObject,
        rows: u64,
    ) -> Result<(), ReplayError> {
        let sql = "INSERT INTO lakehead_restore.objects (source, key, sha256, rows) VALUES ($1, $2, $3, $4)";
        let count = i64::try_from(rows).unwrap_or(i64::MAX);
        let done =
            self.client.execute(sql, &[&self.source, &object.key, &object.sha256, &count]).await;
        done.map(drop).map_err(|why| refused("record an object", &why))
    }

    /// Runs one step of changes.
    pub(super) async fn step(&mut self, table: &str, step: &Step) -> Result<Missed, ReplayError> {
        let mut missed = Missed::default();
        let mut touched = self.execute(table, &step.sql, &step.parameters).await?;
        let Some(wanted) = step.rows.and_then(|rows| u64::try_from(rows).ok()) else {
            return Ok(missed);
        };
        if let (true, Some(then)) = (touched >= wanted, &step.then) {
            self.execute(table, then, &step.parameters).await?;
        }
        if let (0, Some(instead)) = (touched, &step.instead) {
            touched = self.execute(table, instead, &step.parameters).await?;
            missed.instead = touched > 0;
        }
        if touched < wanted {
            if let Some(insert) = &step.insert {
                missed.inserted = self.insert(table, insert, &step.parameters).await?;
            }
            let inserted = u64::try_from(missed.inserted.len()).unwrap_or(u64::MAX);
            missed.unmatched = (wanted - touched).saturating_sub(inserted);
        }
        Ok(missed)
    }

    async fn execute(
        &mut self,
        table: &str,
        sql: &str,
        values: &[Vec<Option<String>>],
    ) -> Result<u64, ReplayError> {
        let statement = self.prepared(table, sql).await?;
        let done = self.client.execute(&statement, &parameters(values)).await;
        done.map_err(|why| refused(&applying(table), &why))
    }

    pub(super) async fn prepared(
        &mut self,
        table: &str,
        sql: &str,
    ) -> Result<Statement, ReplayError> {
        if let Some(known) = self.statements.get(sql) {
            return Ok(known.clone());
        }
        if self.statements.len() >= STATEMENTS_MAX {
            self.statements.clear();
        }
        let made = self.client.prepare(sql).await;
        let made = made.map_err(|why| refused(&applying(table), &why))?;
        self.statements.insert(sql.to_owned(), made.clone());
        Ok(made)
    }

    pub(super) async fn begin(&self) -> Result<(), ReplayError> {
        self.run("begin", "BEGIN").await
    }

    pub(super) async fn commit(&self) -> Result<(), ReplayError> {
        self.run("commit", "COMMIT").await
    }

    /// Runs statements that may fail without harm to the rows: defaults.
    async fn try_all(&mut self, statements: Vec<String>) -> Result<(), ReplayError> {
        for statement in statements {
            self.run("set a default", "SAVEPOINT lakehead_default").await?;
            if let Err(error) = self.run("set a default", &statement).await {
                self.run("set a default", "ROLLBACK TO SAVEPOINT lakehead_default").await?;
                self.notes.push(format!("left out: {statement}: {error}"));
            }
            self.run("set a default", "RELEASE SAVEPOINT lakehead_default").await?;
        }
        Ok(())
    }

    /// Records a table as it is now, within the transaction.
    pub(super) async fn remember(&self, table: &Table) -> Result<(), ReplayError> {
        let sql = "INSERT INTO lakehead_restore.tables (source, id, definition) VALUES ($1, $2, $3) \
            ON CONFLICT (source, id) DO UPDATE SET definition = EXCLUDED.definition";
        let json = serde_json::to_string(table).expect("a table is plain data");
        let done = self.client.execute(sql, &[&self.source, &i64::from(table.id), &json]).await;
        done.map(drop).map_err(|why| refused("record a table", &why))
    }

    pub(super) async fn run(&self, doing: &str, sql: &str) -> Result<(), ReplayError> {
        self.client.batch_execute(sql).await.map_err(|why| refused(doing, &why))
    }
}

/// Rows on their way into a table, in COPY's text format.
pub(super) struct Loading {
    sink: std::pin::Pin<Box<CopyInSink<Bytes>>>,
    buffer: Vec<u8>,
    doing: String,
}

impl Loading {
    /// Appends a value; the first of a row begins it.
    pub(super) fn value(&mut self, first: bool, text: Option<&str>) {
        if !first {
            self.buffer.push(b'\t');
        }
        let Some(text) = text else {
            self.buffer.extend_from_slice(b"\\N");
            return;
        };
        escape(text, &mut self.buffer);
    }

    /// Ends a row.
    pub(super) async fn end_row(&mut self) -> Result<(), ReplayError> {
        self.buffer.push(b'\n');
        if self.buffer.len() >= COPY_BYTES { self.send().await } else { Ok(()) }
    }

    async fn send(&mut self) -> Result<(), ReplayError> {
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        self.sink.send(chunk).await.map_err(|why| refused(&self.doing, &why))
    }

    async fn finish(mut self) -> Result<u64, ReplayError> {
        self.send().await?;
        self.sink.as_mut().finish().await.map_err(|why| refused(&self.doing, &why))
    }
}

/// Appends a text as COPY has it. Most have nothing to escape, which a library finds by many bytes at once.
fn escape(text: &str, into: &mut Vec<u8>) {
    for mut rest in text.as_bytes().chunks(LOOKED_AT) {
        if memchr3(b'\\', b'\n', b'\r', rest).is_none() && memchr(b'\t', rest).is_none() {
            into.extend_from_slice(rest);
            continue;
        }
        while let Some(at) =
            rest.iter().position(|byte| matches!(byte, b'\\' | b'\n' | b'\r' | b'\t'))
        {
            into.extend_from_slice(&rest[..at]);
            into.push(b'\\');
            into.push(match rest[at] {
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                other => other,
            });
            rest = &rest[at + 1..];
        }
        into.extend_from_slice(rest);
    }
}

pub(super) fn parameters(values: &[Vec<Option<String>>]) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|column| column as &(dyn ToSql + Sync)).collect()
}

pub(super) fn applying(table: &str) -> String {
    format!("apply changes of {table}")
}

/// What the target said, without values: messages of data errors quote them.
pub(super) fn refused(doing: &str, why: &tokio_postgres::Error) -> ReplayError {
    let said = |error: &DbError| {
        let code = error.code().code();
        if !matches!(code.get(..2), Some("22" | "23")) {
            return format!("{} ({code})", error.message());
        }
        let place = [error.table(), error.column(), error.datatype(), error.constraint()];
        let place = place.into_iter().flatten().collect::<Vec<_>>().join(" ");
        format!("SQLSTATE {code} {place}")
    };
    let error = why.as_db_error();
    let domain = error.and_then(|error| {
        let is_of_values = matches!(error.code().code(), "23502" | "23514");
        let name = error.schema().zip(error.datatype()).filter(|_| is_of_values);
        name.map(|(schema, name)| {
            format!("{}.{}", schema::identifier(schema), schema::identifier(name))
        })
    });
    let (doing, why) = (doing.into(), error.map_or_else(|| why.to_string(), said));
    match domain {
        Some(domain) => ReplayError::Domain { domain, doing, why },
        None => ReplayError::Target { doing, why },
    }
}

/// The settings under which the lake's text was printed.
const SESSION: &str = "SET client_encoding = 'UTF8'; SET datestyle = 'ISO, MDY'; SET intervalstyle = 'postgres'; \
    SET timezone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = 'hex'; SET xmloption = 'content'; \
    SET standard_conforming_strings = on; SET search_path = pg_catalog, public; SET synchronous_commit = off; \
    SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
    SET check_function_bodies = off; SET client_min_messages = warning";

const RECORD: &str = "CREATE SCHEMA IF NOT EXISTS lakehead_restore; \
    CREATE TABLE IF NOT EXISTS lakehead_restore.progress (source text PRIMARY KEY, sequence bigint NOT NULL, position text NOT NULL, lacking text NOT NULL); \
    CREATE TABLE IF NOT EXISTS lakehead_restore.objects (source text, key text, sha256 text NOT NULL, rows bigint NOT NULL, PRIMARY KEY (source, key)); \
    CREATE TABLE IF NOT EXISTS lakehead_restore.sequences (source text, id bigint, definition text NOT NULL, tight boolean NOT NULL, PRIMARY KEY (source, id)); \
    CREATE TABLE IF NOT EXISTS lakehead_restore.large_objects (source text, id oid, PRIMARY KEY (source, id)); \
    CREATE TABLE IF NOT EXISTS lakehead_restore.types (source text, name text, position text NOT NULL, definition text NOT NULL, wanted text NOT NULL, PRIMARY KEY (source, name)); \
    CREATE TABLE IF NOT EXISTS lakehead_restore.tables (source text, id bigint, definition text NOT NULL, PRIMARY KEY (source, id)); \
    ALTER TABLE lakehead_restore.tables ADD COLUMN IF NOT EXISTS anew text NOT NULL DEFAULT '00000000/00000000'";

/// Sent to COPY at once.
const COPY_BYTES: usize = 256 << 10;
/// Bytes of a text that are looked at together.
const LOOKED_AT: usize = 4 << 10;
const STATEMENTS_MAX: usize = 2_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_copy_has_of_a_text_is_that_text(
            parts in prop::collection::vec(("[a-zé\\\\\n\r\t]{0,9}", 0..5000_usize), 0..5),
        ) {
            let text: String = parts.iter().map(|(text, more)| format!("{text}{}", "x".repeat(*more))).collect();
            let mut escaped = vec![];
            escape(&text, &mut escaped);
            let escaped = String::from_utf8(escaped).unwrap();
            prop_assert!(!escaped.contains(['\n', '\r', '\t']));
            let known = text.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t");
            prop_assert_eq!(escaped, known);
        }
    }
}
