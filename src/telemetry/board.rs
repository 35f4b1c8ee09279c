//! The board: one place where every room writes what it has done, and from which the status page,
//! the admin socket and the metrics read. A number that two of them show is the same number.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Cause, Disposition},
    units::{Point, Position, Timestamp},
};

/// What one source's road has done. Counters grow from 0 at each start of the process, unless they say otherwise.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct SourceStatus {
    /// What the source room is doing.
    pub state: SourceState,
    /// The release rule in force: `journal` or `lake`.
    pub release: String,
    /// The server's version as it says it.
    pub server_version: String,
    /// End of the server's log, as last heard.
    pub server: Position,
    /// Where the server's log ended, or later, when its catalog was looked at last while nothing was read of tables, and
    /// the journal had all that was found. Each table that lacked something then stands in `snapshot`.
    #[serde(default)]
    pub catalog: Position,
    /// Received from the server.
    pub received: Position,
    /// Fsynced in the journal: whole transactions.
    pub durable: Point,
    /// Sealed into the spool.
    pub sealed: Point,
    /// Acknowledged by S3 and in the ledger.
    pub shipped: Point,
    /// Confirmed to the server.
    pub confirmed: Position,
    /// Commit time of the last transaction received, and of the last in the ledger.
    pub received_at: Option<Timestamp>,
    /// As above.
    pub shipped_at: Option<Timestamp>,
    /// Number of the ledger's last entry.
    pub entry: u64,
    /// Transactions received since the process started.
    pub transactions: u64,
    /// Transactions skipped because the journal holds them already.
    pub transactions_skipped: u64,
    /// Changes received.
    pub changes: u64,
    /// Payload bytes received from the change stream.
    pub stream_bytes: u64,
    /// Bytes kept of transactions that have not ended.
    #[serde(default)]
    pub in_progress_bytes: u64,
    /// Transactions that this box ever made durable in its journal, over all starts.
    pub transactions_durable: u64,
    /// Those of them that are in the ledger.
    pub transactions_shipped: u64,
    /// Bytes of segment files, and their limit.
    pub journal_bytes: u64,
    /// As above.
    pub journal_bytes_max: u64,
    /// Seconds until the limit is reached if nothing were shipped any more, at the present rate.
    pub journal_seconds_left: Option<u64>,
    /// Group commits (fdatasyncs of a segment).
    pub journal_syncs: u64,
    /// Bytes that segment files grew by.
    pub journal_written_bytes: u64,
    /// Whether reading from the source is paused because the journal is full.
    pub journal_full: bool,
    /// Bytes of closed segments that were read again and checked.
    pub journal_scrubbed_bytes: u64,
    /// Damaged ranges found.
    pub journal_damage: Vec<String>,
    /// Rows sealed.
    pub sealed_rows: u64,
    /// Objects sealed.
    pub sealed_objects: u64,
    /// Bytes of sealed objects.
    pub sealed_bytes: u64,
    /// Bytes waiting in the spool.
    pub spool_bytes: u64,
    /// Objects acknowledged by S3.
    pub shipped_objects: u64,
    /// Bytes of bodies sent to S3, those sent again included.
    pub sent_bytes: u64,
    /// Requests to S3.
    pub requests: u64,
    /// Requests sent again, by cause.
    pub retries: BTreeMap<String, u64>,
    /// What the snapshot is held back to, so that nobody in the database feels it.
    #[serde(default)]
    pub snapshot_rate_bytes_per_s: Option<u64>,
    /// The snapshot's progress by qualified table.
    pub snapshot: BTreeMap<String, TableProgress>,
    /// What is wrong now, by room; empty when all is well.
    pub alarms: BTreeMap<String, Alarm>,
}

/// What the source room is doing.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// Recovering the journal, or before the first connection.
    #[default]
    Starting,
    /// Connecting, or waiting to.
    Connecting,
    /// Reading the snapshot; the change stream runs too.
    Snapshot,
    /// Following the change stream.
    Streaming,
    /// A person must act: see the alarms.
    Blocked,
    /// Another appliance owns the source.
    Fenced,
    /// Stopped by request.
    Stopped,
}

/// How far the snapshot of one table is.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct TableProgress {
    /// Chunks done (sealed, durable).
    pub chunks_done: u32,
    /// Chunks in all; 0 before the table is measured.
    pub chunks: u32,
    /// Rows read so far.
    pub rows: u64,
    /// Those of the chunks that are done.
    #[serde(default)]
    pub rows_done: u64,
    /// Rows in all, as the server estimates.
    pub rows_estimated: u64,
    /// Bytes of COPY read so far.
    pub bytes: u64,
    /// Bytes on the server's disk.
    pub bytes_estimated: u64,
}

/// Something that is wrong.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Alarm {
    /// Name of its cause.
    pub cause: String,
    /// What happened.
    pub what: String,
    /// What to do.
    pub remedy: String,
    /// Whether it can heal without a person.
    pub heals: bool,
    /// Since when.
    pub since: Timestamp,
}

/// What a link is and does.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct LinkStatus {
    /// Its network interface.
    pub interface: String,
    /// The most that leaves.
    pub rate_bytes_per_s: u64,
    /// Whether the interface is up; not known before it was looked at.
    pub up: Option<bool>,
    /// Bytes on the wire since the process started, frames and what TCP sent again included.
    pub sent_bytes: u64,
    /// What is wrong now.
    pub alarm: Option<Alarm>,
}

/// One link's part of the [`Board`].
#[derive(Clone, Debug, Default)]
pub struct LinkBoard(Arc<Mutex<LinkStatus>>);

/// One source's part of the [`Board`].
#[derive(Clone, Debug, Default)]
pub struct SourceBoard(Arc<Mutex<SourceStatus>>);

/// All sources and links, by name.
#[derive(Clone, Debug, Default)]
pub struct Board {
    sources: Arc<Mutex<BTreeMap<String, SourceBoard>>>,
    links: Arc<Mutex<BTreeMap<String, LinkBoard>>>,
}

impl TableProgress {
    /// Whether all parts are done. One that is known to be missing, and not measured yet, has none.
    pub fn is_whole(&self) -> bool {
        self.chunks > 0 && self.chunks_done >= self.chunks
    }

    /// How much of it is read, from 0 to 1: the parts that are done, and of those under way what their rows let expect.
    pub fn share(&self) -> f64 {
        if self.chunks == 0 {
            return 0.0;
        }
        let (done, parts) = (f64::from(self.chunks_done), f64::from(self.chunks));
        let rows_a_part = match self.chunks_done {
            0 => self.rows_estimated as f64 / parts,
            _ => self.rows_done as f64 / done,
        };
        let rows = self.rows.saturating_sub(self.rows_done) as f64;
        let under_way = if rows_a_part > 0.0 { rows / rows_a_part } else { 0.0 };
        ((done + under_way) / parts).min(1.0)
    }
}

impl Alarm {
    /// `since` is that of the alarm `before`, where its cause was the same.
    fn new(cause: Cause, mut what: String, before: Option<&Self>, now: Timestamp) -> Self {
        if let Some((end, _)) = what.char_indices().nth(WHAT_CHARS_MAX) {
            what.truncate(end);
            what.push('…');
        }
        let disposition = cause.disposition();
        Self {
            cause: cause.name().into(),
            what,
            remedy: disposition.remedy().into(),
            heals: matches!(disposition, Disposition::Retry(_)),
            since: before
                .filter(|alarm| alarm.cause == cause.name())
                .map_or(now, |alarm| alarm.since),
        }
    }
}

impl LinkBoard {
    /// Changes the status.
    pub fn write(&self, change: impl FnOnce(&mut LinkStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A copy of the status.
    pub fn read(&self) -> LinkStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Raises the alarm. `since` is kept while the cause stays the same.
    pub fn alarm(&self, cause: Cause, what: &dyn std::fmt::Display, now: Timestamp) {
        self.write(|status| {
            let alarm = Alarm::new(cause, what.to_string(), status.alarm.as_ref(), now);
            status.alarm = Some(alarm);
        });
    }

    /// Takes the alarm down.
    pub fn calm(&self) {
        self.write(|status| status.alarm = None);
    }
}

impl SourceBoard {
    /// Changes the status.
    pub fn write(&self, change: impl FnOnce(&mut SourceStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What `look` finds in the status. A copy of it is as large as the list of tables.
    pub fn look<T>(&self, look: impl FnOnce(&SourceStatus) -> T) -> T {
        look(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A copy of the status.
    pub fn read(&self) -> SourceStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Raises `room`'s alarm. `since` is kept while the cause stays the same.
    pub fn alarm(&self, room: &str, cause: Cause, what: &dyn std::fmt::Display, now: Timestamp) {
        self.write(|status| {
            let alarm = Alarm::new(cause, what.to_string(), status.alarms.get(room), now);
            status.alarms.insert(room.into(), alarm);
        });
    }

    /// Takes `room`'s alarm down.
    pub fn calm(&self, room: &str) {
        self.write(|status| drop(status.alarms.remove(room)));
    }
}

impl Board {
    /// The part of `source`, made at its first use.
    pub fn source(&self, source: &str) -> SourceBoard {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.entry(source.into()).or_default().clone()
    }

    /// The part of `link`, made at its first use.
    pub fn link(&self, link: &str) -> LinkBoard {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.entry(link.into()).or_default().clone()
    }

    /// A copy of all sources.
    pub fn sources(&self) -> BTreeMap<String, SourceStatus> {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.iter().map(|(name, board)| (name.clone(), board.read())).collect()
    }

    /// A copy of all links.
    pub fn links(&self) -> BTreeMap<String, LinkStatus> {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.iter().map(|(name, board)| (name.clone(), board.read())).collect()
    }
}

/// What is wrong, for a person to read: of ten thousand tables not each.
const WHAT_CHARS_MAX: usize = 8_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_is_as_long_as_a_person_reads() {
        let board = SourceBoard::default();
        board.alarm("tables", Cause::TableRefused, &"ä".repeat(100_000), Timestamp(1));
        assert_eq!(board.read().alarms["tables"].what.chars().count(), WHAT_CHARS_MAX + 1);
    }

    #[test]
    fn an_alarm_keeps_its_beginning_while_its_cause_stays() {
        let board = SourceBoard::default();
        board.alarm("ship", Cause::LakeUnavailable, &"503", Timestamp(1));
        board.alarm("ship", Cause::LakeUnavailable, &"reset", Timestamp(9));
        assert_eq!(board.read().alarms["ship"].since, Timestamp(1));
        board.alarm("ship", Cause::LakeCredentials, &"403", Timestamp(9));
        assert_eq!(board.read().alarms["ship"].since, Timestamp(9));
        board.calm("ship");
        assert!(board.read().alarms.is_empty());
    }
}
