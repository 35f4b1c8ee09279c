//! What the demo found, for people and as JSON. Pure.

use std::fmt;

use serde::Serialize;

use super::{compare::Compared, gateway::Usage, workload::Done};
use crate::{error::Exit, units::ByteSize};

/// The end of a demo.
#[derive(Clone, Debug, Serialize)]
pub struct DemoReport {
    /// From the first to the last thing done, in seconds.
    pub took_s: f64,
    /// Of which the workload ran, in seconds.
    pub worked_s: f64,
    /// Rows that the tables began with.
    pub rows_initial: u64,
    /// What the workload did.
    pub done: Done,
    /// How often the gateway was killed.
    pub kills: u32,
    /// Seconds from the end of the workload until all was in the ledger.
    pub drained_s: f64,
    /// Bytes that the gateway read from the database: snapshot and stream.
    pub read_bytes: u64,
    /// Bytes of the objects in the lake.
    pub lake_bytes: u64,
    /// Objects in the lake, the ledger's included.
    pub lake_objects: u64,
    /// What the gateway used.
    pub gateway: Usage,
    /// Whether `lakehead verify` ended well.
    pub proven: bool,
    /// What `lakehead verify` said.
    pub verify: String,
    /// How long `lakehead restore` took, in seconds.
    pub restored_s: f64,
    /// Each table on both sides.
    pub tables: Vec<Compared>,
}

impl DemoReport {
    /// Whether every table is equal, and there is one.
    pub fn equal(&self) -> bool {
        !self.tables.is_empty() && self.tables.iter().all(Compared::equal)
    }

    /// How the process ends.
    pub fn exit(&self) -> Exit {
        if self.proven && self.equal() { Exit::Done } else { Exit::Wanting }
    }
}

impl fmt::Display for DemoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.tables.iter().map(|table| table.table.chars().count()).max().unwrap_or(0);
        writeln!(f, "Source and restored database, table by table:")?;
        for table in &self.tables {
            let rows = table.source.as_ref().map_or(0, |digest| digest.rows);
            let verdict = table.difference().unwrap_or_else(|| "equal".into());
            writeln!(f, "  {:<width$}  {rows:>9} rows  {verdict}", table.table)?;
        }
        writeln!(f)?;
        let Done { transactions, inserted, updated, deleted, truncated } = self.done;
        writeln!(
            f,
            "  workload   {transactions} transactions in {:.0} s on {} initial rows: {inserted} inserted, {updated} updated, {deleted} deleted, {truncated} tables emptied",
            self.worked_s, self.rows_initial
        )?;
        let ratio = ratio(self.read_bytes, self.lake_bytes);
        writeln!(
            f,
            "  bytes      {} read, {} in the lake in {} objects ({ratio:.1} : 1)",
            ByteSize(self.read_bytes),
            ByteSize(self.lake_bytes),
            self.lake_objects
        )?;
        writeln!(
            f,
            "  gateway    killed {}×, {:.1} CPU-seconds, at most {} resident",
            self.kills,
            self.gateway.cpu_s,
            ByteSize(self.gateway.peak_bytes)
        )?;
        writeln!(
            f,
            "  time       {:.0} s in all; drained in {:.1} s, restored in {:.1} s",
            self.took_s, self.drained_s, self.restored_s
        )?;
        let verdict = match (self.proven, self.equal()) {
            (true, true) => "PROVEN, and the restored database is equal.",
            (true, false) => "PROVEN, but the restored database DIFFERS.",
            (false, true) => "NOT PROVEN, though the restored database is equal.",
            (false, false) => "NOT PROVEN, and the restored database DIFFERS.",
        };
        write!(f, "\n{verdict}")
    }
}

#[expect(clippy::cast_precision_loss, reason = "for the eye")]
fn ratio(read: u64, written: u64) -> f64 {
    read as f64 / written.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::compare::Digest;

    fn report(restored: Option<Digest>) -> DemoReport {
        let source = Digest { shape: "n integer".into(), rows: 3, sum: "7".into() };
        DemoReport {
            took_s: 1.0,
            worked_s: 1.0,
            rows_initial: 3,
            done: Done::default(),
            kills: 1,
            drained_s: 1.0,
            read_bytes: 300,
            lake_bytes: 100,
            lake_objects: 1,
            gateway: Usage::default(),
            proven: true,
            verify: String::new(),
            restored_s: 1.0,
            tables: vec![Compared { table: "public.t".into(), source: Some(source), restored }],
        }
    }

    #[test]
    fn only_equal_and_proven_is_done() {
        let equal = report(Some(Digest { shape: "n integer".into(), rows: 3, sum: "7".into() }));
        assert_eq!(equal.exit(), Exit::Done);
        assert!(equal.to_string().ends_with("PROVEN, and the restored database is equal."));
        assert!(equal.to_string().contains("3.0 : 1"));
        let less = report(Some(Digest { shape: "n integer".into(), rows: 2, sum: "7".into() }));
        assert_eq!(less.exit(), Exit::Wanting);
        assert!(less.to_string().contains("3 rows, restored 2"));
        assert_eq!(report(None).exit(), Exit::Wanting);
        let mut broken = equal;
        broken.proven = false;
        assert_eq!(broken.exit(), Exit::Wanting);
        broken.proven = true;
        broken.tables.clear();
        assert_eq!(broken.exit(), Exit::Wanting);
    }
}
