//! Compares two databases, table by table: columns, keys, and a digest over all rows.
//!
//! The digest is computed by the server: the sum of a 64-bit hash of each row's text, so the order
//! of rows does not matter and equal rows count as often as they are there.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio_postgres::Client;

use super::cluster::ClusterError;

/// What one table holds.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Digest {
    /// Columns with types and NOT NULL, in order, and the primary key.
    pub shape: String,
    /// Rows.
    pub rows: u64,
    /// Sum of the rows' hashes.
    pub sum: String,
}

/// One table on both sides; `None` where it is missing.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Compared {
    /// `schema.table`.
    pub table: String,
    /// Where the rows come from.
    pub source: Option<Digest>,
    /// Where they were restored.
    pub restored: Option<Digest>,
}

impl Compared {
    /// Whether nothing differs.
    pub fn equal(&self) -> bool {
        self.source.is_some() && self.source == self.restored
    }

    /// What differs, in one line; `None` if nothing does.
    pub fn difference(&self) -> Option<String> {
        let said = match (&self.source, &self.restored) {
            (Some(source), Some(restored)) if source.rows != restored.rows => {
                format!("{} rows, restored {}", source.rows, restored.rows)
            }
            (Some(source), Some(restored)) if source.shape != restored.shape => {
                format!("({}), restored ({})", source.shape, restored.shape)
            }
            (Some(source), Some(restored)) if source.sum != restored.sum => {
                format!("{} rows on both sides, but not the same", source.rows)
            }
            (Some(_), Some(_)) => return None,
            (Some(_), None) => "missing in the restored database".into(),
            (None, _) => "only in the restored database".into(),
        };
        Some(format!("{}: {said}", self.table))
    }
}

/// Digests every table outside the system's schemas that `wanted` names, by `schema.table`.
///
/// # Errors
///
/// What the server said.
pub async fn digests(
    client: &Client,
    wanted: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, Digest>, ClusterError> {
    let failed = |why| ClusterError::Sql { what: "digest a table", why };
    client.batch_execute(SETTINGS).await.map_err(failed)?;
    let mut found = BTreeMap::new();
    for row in client.query(TABLES, &[]).await.map_err(failed)? {
        let table: String = row.get(0);
        if !wanted(&table) {
            continue;
        }
        let (quoted, shape): (String, String) = (row.get(1), row.get(2));
        let sql = format!(
            "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM ONLY {quoted} AS t"
        );
        let sums = client.query_one(&sql, &[]).await.map_err(failed)?;
        let rows = u64::try_from(sums.get::<_, i64>(0)).expect("a count is not negative");
        found.insert(table, Digest { shape, rows, sum: sums.get(1) });
    }
    client.batch_execute("COMMIT").await.map_err(failed)?;
    Ok(found)
}

/// Compares all tables that `wanted` names and either side has.
///
/// # Errors
///
/// What a server said.
pub async fn compare(
    source: &Client,
    restored: &Client,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Compared>, ClusterError> {
    let (source, restored) =
        tokio::try_join!(digests(source, &wanted), digests(restored, &wanted))?;
    Ok(pair(source, restored))
}

/// Puts two sides together.
pub fn pair(
    mut source: BTreeMap<String, Digest>,
    mut restored: BTreeMap<String, Digest>,
) -> Vec<Compared> {
    let mut names: Vec<String> = source.keys().chain(restored.keys()).cloned().collect();
    names.sort();
    names.dedup();
    let both = names.into_iter().map(|table| Compared {
        source: source.remove(&table),
        restored: restored.remove(&table),
        table,
    });
    both.collect()
}

/// How values are printed does not depend on either server's settings; all tables are of one moment.
const SETTINGS: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
     SET LOCAL datestyle = 'ISO, YMD'; SET LOCAL intervalstyle = postgres; SET LOCAL timezone = 'UTC';
     SET LOCAL extra_float_digits = 3; SET LOCAL bytea_output = hex; SET LOCAL lc_monetary = 'C';
     SET LOCAL xmloption = content; SET LOCAL search_path = ''";

/// Name for people, name for SQL, and shape: NOT NULL that holds for all rows, the key without its exclusion.
const TABLES: &str = "
    SELECT n.nspname || '.' || c.relname, format('%I.%I', n.nspname, c.relname),
        (SELECT coalesce(string_agg(format('%I %s%s', a.attname, format_type(a.atttypid, a.atttypmod),
                CASE WHEN a.attnotnull AND NOT EXISTS (SELECT FROM pg_constraint n
                    WHERE n.conrelid = c.oid AND n.contype = 'n' AND NOT n.convalidated AND n.conkey[1] = a.attnum) THEN ' not null' END), ', ' ORDER BY a.attnum), '')
            FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
        || coalesce((SELECT '; key ' || replace(pg_get_constraintdef(k.oid), ' WITHOUT OVERLAPS', '') FROM pg_constraint k
            WHERE k.conrelid = c.oid AND k.contype = 'p'), '')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname <> 'information_schema'
        AND n.nspname !~ '^pg_' ORDER BY 1";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        demo::cluster::{Cluster, ClusterOptions},
        shutdown::Tasks,
    };

    #[tokio::test]
    async fn order_does_not_matter_and_everything_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let options = ClusterOptions { dir: dir.path().join("c"), ..ClusterOptions::default() };
        let cluster = Cluster::create(&options).unwrap();
        let tasks = Tasks::new();
        let one = cluster.connect("postgres", &tasks).await.unwrap();
        one.batch_execute("CREATE DATABASE two").await.unwrap();
        let two = cluster.connect("two", &tasks).await.unwrap();
        let make =
            "CREATE TABLE \"A b\" (n int, at timestamptz, f float8); INSERT INTO \"A b\" VALUES ";
        let rows = "(1, '2025-01-01Z', 'NaN'), (2, NULL, '-0'), (2, NULL, '-0')";
        one.batch_execute(&format!("{make}{rows}")).await.unwrap();
        let turned = "(2, NULL, '-0'), (1, '2025-01-01Z', 'NaN'), (2, NULL, '-0')";
        for (change, difference) in [
            ("SET timezone = 'Asia/Tokyo'; SET extra_float_digits = 0", None),
            ("UPDATE \"A b\" SET f = 0.0 WHERE n = 2", Some("not the same")),
            ("DELETE FROM \"A b\" WHERE n = 1", Some("3 rows, restored 2")),
            ("ALTER TABLE \"A b\" ALTER n SET NOT NULL", Some("n integer not null")),
            ("DROP TABLE \"A b\"", Some("missing")),
        ] {
            let fresh = "SET search_path = public; DROP TABLE IF EXISTS \"A b\"; ";
            two.batch_execute(&format!("{fresh}{make}{turned}; {change}")).await.unwrap();
            let said: Vec<Option<String>> = compare(&one, &two, |_| true)
                .await
                .unwrap()
                .iter()
                .map(Compared::difference)
                .collect();
            let told = said[0].as_deref();
            assert!(
                said.len() == 1
                    && difference.map_or(told.is_none(), |part| told
                        .is_some_and(|said| said.contains(part))),
                "{change}: {said:?}"
            );
        }
        cluster.remove().unwrap();
        tasks.stop().await;
    }
}
