//! What the database holds at one position, asked for while others write to it.
//!
//! A temporary slot gives the position and a snapshot that stands there. One transaction takes the snapshot over
//! and holds it: it reads nothing and locks nothing. Then the connection that made the slot ends, and with it the
//! slot, so that no log is kept. Each part of a table is read in a transaction of its own, so that the table is
//! locked (ACCESS SHARE) for seconds, as when it was copied.
//!
//! **Invariants:** nothing stays in the database, however this ends; the snapshot, which keeps the server from
//! cleaning up (P5), is let go when it has been held for as long as allowed; a table that cannot be read as the
//! snapshot knows it is said to be so, and never taken for one with other rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{
    catalog::{self, Described, Listed, Refusal, literal},
    chunks::Plan,
    connect::Target,
    digest::{self, Measure, Statements},
    error::SourceError,
    exported::{begin, lock_unchanged},
    login::Purpose,
    message::unknown,
    name::Names,
    own_url,
    pattern::Patterns,
    reread,
    size::size,
    slot,
    url::Url,
    wire::Wire,
};
use crate::{
    clock::Clock,
    config,
    source::{
        Table,
        digest::{Hash, Sum},
        reread::Unchanged,
    },
    units::Position,
};

/// How a witness is called.
#[derive(Debug)]
pub struct Calling<'a> {
    /// The source.
    pub source: &'a config::Source,
    /// Another way to it than the configured one, with its password.
    pub instead: Option<Url>,
    /// The appliance's name: names begin with it.
    pub appliance: &'a str,
    /// How long transactions that are open on the server are waited for.
    pub wait_max: Duration,
    /// How long the snapshot may be held.
    pub age_max: Duration,
}

/// A snapshot that is held, and what stands in it.
pub struct Witness {
    target: Target,
    /// Holds the snapshot for as long as it lives.
    _holder: Wire,
    snapshot: String,
    position: Position,
    system_identifier: String,
    tables: BTreeMap<u32, Known>,
    /// Tables that are not copied, and why.
    refused: BTreeMap<String, Refusal>,
    excluded: BTreeSet<u32>,
    utf8: bool,
    idle: Mutex<Vec<Wire>>,
    received: AtomicU64,
    clock: Arc<dyn Clock>,
    since: Instant,
    age_max: Duration,
}

/// A table under the snapshot.
struct Known {
    listed: Listed,
    described: Described,
}

/// Why a table was not read.
#[derive(Debug)]
pub enum Unread {
    /// It alone was not: a sentence.
    Table(String),
    /// Nothing can be read any more.
    All(SourceError),
}

impl From<SourceError> for Unread {
    fn from(error: SourceError) -> Self {
        match &error {
            SourceError::Server { error, .. }
                if error.code == "42501" && error.message.contains("row-level") =>
            {
                let remedy = "give the role BYPASSRLS, or another one with --source-url";
                Self::Table(format!(
                    "a row-level security policy hides rows from this role: {remedy}"
                ))
            }
            SourceError::Server { error, .. } if error.code == "55000" => {
                Self::Table(error.message.clone())
            }
            // Not the message: it may quote values.
            SourceError::Server { doing, error } => {
                Self::Table(format!("the database refused ({doing}, SQLSTATE {})", error.code))
            }
            _ => Self::All(error),
        }
    }
}

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Witness").field("position", &self.position).finish_non_exhaustive()
    }
}

impl Witness {
    /// Takes a snapshot, and reads the catalog under it.
    ///
    /// # Errors
    ///
    /// No connection, no privilege, no free slot, or transactions on the server that do not end.
    pub async fn call(calling: Calling<'_>, clock: Arc<dyn Clock>) -> Result<Self, SourceError> {
        let Calling { source, instead, appliance, wait_max, age_max } = calling;
        let target = match &instead {
            Some(url) => Target::of(url)?,
            None => Target::load(source, &own_url(source)?)?,
        };
        let patterns = Patterns::new(&source.tables)?;
        let name = Names::new(appliance, source).temporary();
        let mut maker = target.open(Purpose::Replication).await?;
        let system_identifier = slot::identify(&mut maker).await?.system_identifier;
        let made = timeout(wait_max, slot::create(maker, &name, true, &*clock));
        let made = made.await.map_err(|_| {
            SourceError::broken(
                "take a snapshot",
                "transactions that are open on the server did not end in time",
            )
        })??;
        let mut holder = target.open(Purpose::Sql).await?;
        begin(&mut holder, &made.snapshot).await?;
        let since = clock.now();
        let rows = holder
            .query(
                "hand the snapshot on",
                "SELECT pg_export_snapshot(), current_setting('server_encoding')",
            )
            .await?;
        let row = rows.first().ok_or_else(|| unknown("no snapshot", "no row"))?;
        let (snapshot, utf8) = (row.text(0)?.to_owned(), row.text(1)? == "UTF8");
        let position = made.position;
        // The slot ends with its connection: from here on no log is kept.
        drop(made);
        let mut wire = target.open(Purpose::Sql).await?;
        begin(&mut wire, &snapshot).await?;
        let every = Patterns::new(&["*".to_owned()])?;
        let mut listing = catalog::list(&mut wire, &every).await?;
        let described = catalog::describe(&mut wire, listing.tables.keys().copied()).await?;
        wire.query("end a part", "COMMIT").await?;
        let mut excluded = BTreeSet::new();
        let known = described.into_iter().filter_map(|(id, described)| {
            let listed = listing.tables.remove(&id)?;
            if !patterns.include(&listed.schema, &listed.name) {
                excluded.insert(id);
            }
            Some((id, Known { listed, described }))
        });
        Ok(Self {
            tables: known.collect(),
            refused: listing.refused,
            excluded,
            target,
            _holder: holder,
            snapshot,
            position,
            system_identifier,
            utf8,
            idle: Mutex::new(vec![wire]),
            received: AtomicU64::new(0),
            clock,
            since,
            age_max,
        })
    }

    /// Where the snapshot stands.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The server's `system_identifier`.
    pub fn system_identifier(&self) -> &str {
        &self.system_identifier
    }

    /// The tables, by id, and whether `tables` takes them in.
    pub fn tables(&self) -> impl Iterator<Item = (&Table, bool)> {
        self.tables.iter().map(|(id, known)| (&known.described.table, !self.excluded.contains(id)))
    }

    /// A table.
    pub fn table(&self, id: u32) -> Option<&Table> {
        self.tables.get(&id).map(|known| &known.described.table)
    }

    /// Whether UPDATE and DELETE of a table are in the change stream.
    pub fn is_identified(&self, id: u32) -> bool {
        self.tables.get(&id).is_some_and(|known| known.listed.identified)
    }

    /// Whether a table of this name is there that is never copied.
    pub fn is_refused(&self, qualified: &str) -> bool {
        self.refused.contains_key(qualified)
    }

    /// How long the snapshot has been held.
    pub fn age(&self) -> Duration {
        self.clock.now().saturating_duration_since(self.since)
    }

    /// Bytes of answers so far, about.
    pub fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// The digest of each bucket of a table that has rows. `read` is told of parts that were read, and of all.
    ///
    /// # Errors
    ///
    /// The table, or nothing more, can be read.
    pub async fn sums(
        &self,
        id: u32,
        measure: &Measure,
        read: &mut (dyn FnMut(u32, u32) + Send),
    ) -> Result<BTreeMap<u16, Sum>, Unread> {
        let known = self.known(id)?;
        let statements = Statements { described: &known.described, measure, utf8: self.utf8 };
        let mut sums = BTreeMap::<u16, Sum>::new();
        let mut wire = self.wire().await?;
        let (plan, filenode) = self.plan(&mut wire, known).await?;
        for part in 0..plan.count() {
            read(part, plan.count());
            let condition = plan.condition(part).unwrap_or_default();
            self.begin(&mut wire, known, filenode).await?;
            // So many buckets do not spill.
            let memory = wire.query("digest a table", "SET LOCAL work_mem = '64MB'").await;
            self.whole(&mut wire, memory).await?;
            let sql = statements.sums(&condition);
            let rows = wire.query_within(self.left()?, "digest a table", &sql).await;
            for row in self.whole(&mut wire, rows).await? {
                let text = row.optional(0).unwrap_or_default();
                self.count(text.len() + ROW_BYTES);
                let part = digest::read_sums(text)
                    .ok_or_else(|| Unread::from(unknown("digests", "no such text")))?;
                for (bucket, sum) in part {
                    sums.entry(bucket).or_default().merge(&sum);
                }
            }
            wire.query("end a part", "COMMIT").await?;
        }
        self.give_back(wire);
        Ok(sums)
    }

    /// Every row of some buckets: the stamps of its key, its hash, and that of its sure columns.
    ///
    /// # Errors
    ///
    /// As [`Witness::sums`]; or what `take` gives.
    pub async fn rows<E: From<Unread>>(
        &self,
        id: u32,
        measure: &Measure,
        buckets: &[u16],
        take: &mut (dyn FnMut(&str, Hash, Hash) -> Result<(), E> + Send),
    ) -> Result<(), E> {
        let known = self.known(id)?;
        let statements = Statements { described: &known.described, measure, utf8: self.utf8 };
        let all = buckets.len() >> measure.bits > 0;
        let buckets = (!all).then_some(buckets);
        let mut wire = self.wire().await.map_err(E::from)?;
        let (plan, filenode) = self.plan(&mut wire, known).await?;
        for part in 0..plan.count() {
            let condition = plan.condition(part).unwrap_or_default();
            self.begin(&mut wire, known, filenode).await?;
            self.left()?;
            let sql = statements.rows(&condition, buckets);
            let gulp = wire.copy_out(READING, &sql).await;
            let mut gulp = self.whole(&mut wire, gulp).await?;
            loop {
                let rows = wire.rows(READING, &mut gulp, usize::MAX).await;
                let Some(rows) = self.whole(&mut wire, rows).await? else { break };
                self.count(rows.bytes.len());
                let mut rest = &rows.bytes[..];
                while !rest.is_empty() {
                    let (row, after) =
                        row(rest).ok_or_else(|| Unread::from(unknown("a row", "cut short")))?;
                    take(row.key, row.hash, row.sure.unwrap_or(row.hash))?;
                    rest = after;
                }
            }
            wire.query("end a part", "COMMIT").await.map_err(Unread::from)?;
        }
        self.give_back(wire);
        Ok(())
    }

    /// The rows of these keys, as they are: stamps of the key, and of all columns. One that is not there is left out.
    ///
    /// # Errors
    ///
    /// As [`Witness::sums`].
    pub async fn stamps(
        &self,
        id: u32,
        measure: &Measure,
        keys: &[Vec<String>],
    ) -> Result<Vec<(String, String)>, Unread> {
        let known = self.known(id)?;
        let statements = Statements { described: &known.described, measure, utf8: self.utf8 };
        let mut wire = self.wire().await?;
        let (_, filenode) = self.plan(&mut wire, known).await?;
        let mut found = vec![];
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let asked = Unchanged {
                columns: measure.key.clone(),
                keys: keys.iter().cloned().collect(),
                gone: None,
            };
            let condition = reread::condition(&known.described, &asked)
                .ok_or_else(|| Unread::Table("its key is not what it was".into()))?;
            self.begin(&mut wire, known, filenode).await?;
            let rows =
                wire.query_within(self.left()?, READING, &statements.stamps(&condition)).await;
            for row in self.whole(&mut wire, rows).await? {
                let (key, all) = (row.text(0)?.to_owned(), row.text(1)?.to_owned());
                self.count(key.len() + all.len() + ROW_BYTES);
                found.push((key, all));
            }
            wire.query("end a part", "COMMIT").await?;
        }
        self.give_back(wire);
        Ok(found)
    }

    /// Has the server write something into its log, so that what follows it hears of the position although nobody
    /// else writes. A server that does not let this role do so is left alone.
    pub async fn nudge(&self) {
        let nudge = async {
            let mut wire = self.wire().await?;
            wire.query("write a message into the log", NUDGE).await?;
            self.give_back(wire);
            Ok::<_, Unread>(())
        };
        if let Err(Unread::Table(why) | Unread::All(SourceError::Unknown(why))) = nudge.await {
            tracing::debug!(why, "no message was written into the log");
        }
    }

    fn known(&self, id: u32) -> Result<&Known, Unread> {
        let known = self.tables.get(&id).ok_or_else(|| Unread::Table("it is not there".into()))?;
        match known.listed.selectable {
            true => Ok(known),
            false => {
                let name = known.listed.quoted();
                let role = literal(&self.target.url.user);
                Err(Unread::Table(format!(
                    "the role {role} may not read it: GRANT SELECT ON {name}"
                )))
            }
        }
    }

    /// The parts by which a table is read, and its file.
    async fn plan(&self, wire: &mut Wire, known: &Known) -> Result<(Plan, u32), Unread> {
        begin(wire, &self.snapshot).await?;
        // Under one snapshot parts fit together, whatever names a row.
        let listed = Listed { addressable: true, ..known.listed.clone() };
        let size = size(wire, known.described.table.id, &listed).await;
        let size = self.whole(wire, size).await?;
        wire.query("end a part", "COMMIT").await?;
        let Some((filenode, size)) = size else {
            return Err(Unread::Table(
                "it was rewritten, emptied or dropped since the snapshot".into(),
            ));
        };
        Ok((Plan::new(listed.qualified(), filenode, size.extent), filenode))
    }

    async fn begin(&self, wire: &mut Wire, known: &Known, filenode: u32) -> Result<(), Unread> {
        self.left()?;
        begin(wire, &self.snapshot).await?;
        let locked = lock_unchanged(wire, &known.described.table, filenode).await;
        self.whole(wire, locked).await
    }

    /// Ends the transaction if the server refused, so that the connection can be used again.
    async fn whole<T>(&self, wire: &mut Wire, done: Result<T, SourceError>) -> Result<T, Unread> {
        match done {
            Err(error @ SourceError::Server { .. }) => {
                wire.query("end a part", "ROLLBACK").await?;
                Err(error.into())
            }
            done => Ok(done?),
        }
    }

    /// How long the snapshot may still be held.
    fn left(&self) -> Result<Duration, Unread> {
        let left = self.age_max.saturating_sub(self.age());
        match left.is_zero() {
            false => Ok(left),
            true => Err(Unread::Table(format!(
                "the snapshot had been held for {} s, as long as --snapshot-age allows",
                self.age_max.as_secs()
            ))),
        }
    }

    async fn wire(&self) -> Result<Wire, Unread> {
        let idle = lock(&self.idle).pop();
        match idle {
            Some(wire) => Ok(wire),
            None => Ok(self.target.open(Purpose::Sql).await?),
        }
    }

    fn give_back(&self, wire: Wire) {
        lock(&self.idle).push(wire);
    }

    fn count(&self, bytes: usize) {
        self.received.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// A row of [`Statements::rows`].
struct Row<'a> {
    key: &'a str,
    hash: Hash,
    sure: Option<Hash>,
}

/// The first tuple of binary COPY, and what follows it.
fn row(bytes: &[u8]) -> Option<(Row<'_>, &[u8])> {
    let (columns, rest) = bytes.split_first_chunk::<2>()?;
    let (key, rest) = field(rest)?;
    let (hash, rest) = field(rest)?;
    let (sure, rest) = field(rest)?;
    let row = Row {
        key: str::from_utf8(key?).ok()?,
        hash: hash?.try_into().ok()?,
        sure: sure.map(TryInto::try_into).transpose().ok()?,
    };
    (i16::from_be_bytes(*columns) == 3).then_some((row, rest))
}

/// A field, `None` if NULL, and what follows it.
fn field(bytes: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    match i32::from_be_bytes(*length) {
        -1 => Some((None, rest)),
        length => {
            let (field, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            Some((Some(field), rest))
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const READING: &str = "read rows to compare them";
const NUDGE: &str = "SELECT pg_logical_emit_message(false, 'lakehead', 'verify')";
/// What the protocol adds to a row's text.
const ROW_BYTES: usize = 23;
/// Keys in one statement.
const KEYS_AT_ONCE: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_three_fields_is_read_and_another_refused() {
        let bytes = |fields: &[Option<&[u8]>]| {
            let mut bytes = i16::try_from(fields.len()).unwrap().to_be_bytes().to_vec();
            for field in fields {
                let length = field.map_or(-1, |field| i32::try_from(field.len()).unwrap());
                bytes.extend(length.to_be_bytes());
                bytes.extend(field.unwrap_or_default());
            }
            bytes
        };
        let two = [bytes(&[Some(b"=1:7"), Some(&[1; 16]), None]), b"rest".to_vec()].concat();
        let (first, rest) = row(&two).unwrap();
        assert_eq!(
            (first.key, first.hash, first.sure, rest),
            ("=1:7", [1; 16], None, &b"rest"[..])
        );
        let sure = bytes(&[Some(b""), Some(&[1; 16]), Some(&[2; 16])]);
        assert_eq!(row(&sure).unwrap().0.sure, Some([2; 16]));
        for wrong in
            [bytes(&[Some(b"x"), Some(&[1; 15]), None]), bytes(&[None, Some(&[1; 16]), None])]
        {
            assert!(row(&wrong).is_none());
        }
        assert!((0..sure.len()).all(|cut| row(&sure[..cut]).is_none()));
    }
}
