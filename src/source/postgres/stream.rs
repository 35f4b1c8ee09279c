//! Follows the change stream: reads the server's messages, hands runs to the journal, confirms.
//!
//! **Invariants:** the server hears of us at least every few seconds, also while the journal is full and
//! nothing is read; nothing is read while the journal has not taken what was read before.
//!
//! Where nothing of ours happens, the journal is given a mark now and then (`confirm.rs`), so that the
//! server need not keep its log for us.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval, timeout},
};

use super::{
    batch::{Batcher, Last, POSTGRES_EPOCH_US, Seen, Then},
    belief, bridge, catalog,
    confirm::{Confirm, Now},
    error::SourceError,
    labels,
    lull::NAP,
    message::unknown,
    relation::Relation,
    session::{Session, Shared},
    standby::{start_statement, status_update},
    vocabulary::Vocabulary,
    wire::{SMALL_READ_BYTES, Wire},
};
use crate::{
    source::{Durable, Run, Table},
    units::{Point, Position, Timestamp},
};

/// A session under way.
pub(crate) struct Stream {
    line: Line,
    sql: Wire,
    batcher: Batcher,
    binary: bool,
    /// What was recorded of each table in this session.
    described: BTreeMap<u32, Table>,
    /// Tables that are not ours, and were spoken of.
    told: BTreeSet<String>,
    vocabulary: Vocabulary,
    /// Tables with rows whose labels the recorded definitions may lack.
    unproven: BTreeSet<u32>,
    /// The start of the server, to be remembered once it is believed.
    believed: Option<String>,
    /// The last transaction that is held, or was given to the journal.
    last: Option<Last>,
    /// Whether an enum has got labels, so that definitions that wait to be recorded may lack them.
    relabelled: bool,
}

/// Why a stream ended without an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// A column came whose binary form is not read: again, in text.
    NeedsText,
}

/// The connection, and all that a status update is made of.
struct Line {
    wire: Wire,
    shared: Arc<Shared>,
    confirm: Confirm,
    durable: watch::Receiver<Durable>,
    shipped: watch::Receiver<Point>,
    tick: Interval,
    now: Now,
    seen: Seen,
    /// What of `seen` the board has been told.
    told: Seen,
    /// The position in the last status update, and when that was.
    sent: Position,
    sent_at: Instant,
    /// The server is not believed yet: nothing more is confirmed to it.
    doubts: bool,
    /// An answer is owed.
    owes: bool,
    /// When the server named `now.quiet`, by its clock.
    quiet_at: Timestamp,
    /// When a mark was last given to the journal.
    marked_at: Option<Instant>,
    /// When the server was last heard.
    heard_at: Instant,
}

impl Stream {
    /// Starts replication.
    pub(crate) async fn start(
        session: Session,
        shared: Arc<Shared>,
        shipped: watch::Receiver<Point>,
        text_only: bool,
    ) -> Result<Self, SourceError> {
        let Session { mut wire, sql, durable, confirmed, binary, belief, .. } = session;
        let binary = binary && !text_only && wire.version() >= 140_000;
        let from = if belief.proof.is_some() { confirmed } else { durable.point.position };
        let sql_start = start_statement(&shared, wire.version(), from, binary);
        shared.server_leaves.store(false, Ordering::Relaxed);
        wire.copy_both("start replication", &sql_start).await?;
        tracing::info!(from = %durable.point.position.max(confirmed), binary, host = wire.host(), "streaming");
        let config = &shared.config;
        let confirm = Confirm::new(config.release, config.release_wal_max, confirmed);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = shared.clock.now();
        let batcher =
            Batcher::new(durable.begins, durable.point.position, shared.sizes).demand(belief.proof);
        let line = Line {
            wire,
            durable: shared.keep.durable(),
            confirm,
            shipped,
            tick,
            now: Now { recorded: durable.point.position, ..Now::default() },
            seen: batcher.seen,
            told: batcher.seen,
            sent: Position::default(),
            sent_at: now,
            doubts: belief.proof.is_some(),
            owes: false,
            quiet_at: Timestamp::default(),
            marked_at: None,
            heard_at: now,
            shared,
        };
        Ok(Self {
            line,
            sql,
            batcher,
            binary,
            described: BTreeMap::new(),
            told: BTreeSet::new(),
            vocabulary: Vocabulary::default(),
            unproven: BTreeSet::new(),
            believed: belief.news,
            last: belief.last,
            relabelled: false,
        })
    }

    /// Streams until something ends it. Dropped to stop; then [`Stream::leave`].
    pub(crate) async fn run(&mut self) -> Result<End, SourceError> {
        self.line.report(true).await?;
        loop {
            if let Some(end) = self.messages().await? {
                return Ok(end);
            }
            if self.batcher.holds() {
                self.pause().await?;
                continue;
            }
            if let Some((position, at)) = self.line.mark() {
                if !self.batcher.believe() {
                    return Err(bridge::went_back(&self.line.shared).await);
                }
                let shared = Arc::clone(&self.line.shared);
                self.line.meanwhile(belief::remember_last(&shared, self.last)).await??;
                let run = self.batcher.mark(position, at);
                self.append(run).await?;
            }
            let read = tokio::select! {
                biased;
                _ = self.line.tick.tick() => {
                    self.line.report(false).await?;
                    continue;
                }
                read = self.line.wire.fill() => read?,
            };
            self.line.heard_at = self.line.shared.clock.now();
            if read < SMALL_READ_BYTES {
                self.line.wire.nap().await;
            }
        }
    }

    /// Says good-bye, with the last position that may be confirmed.
    pub(crate) async fn leave(mut self) {
        // Nobody waits for the answer; the server has the last status update otherwise.
        drop(timeout(LEAVE_LIMIT, self.line.report(true)).await);
        self.line.wire.leave().await;
    }

    /// Takes all messages that are there as a whole.
    async fn messages(&mut self) -> Result<Option<End>, SourceError> {
        let now = self.line.shared.clock.now();
        while let Some(head) = self.line.wire.head()? {
            let body = self.line.wire.body(head);
            let mut then = Then::Nothing;
            let mut asked = false;
            match (head.tag, body.first()) {
                (b'd', Some(b'w')) if body.len() >= XLOG_DATA_HEADER_BYTES => {
                    let message = &body[XLOG_DATA_HEADER_BYTES..];
                    then = self.batcher.push(message, now)?;
                    self.unproven.extend(self.vocabulary.is_news(message));
                }
                (b'd', Some(b'k')) if body.len() == KEEPALIVE_BYTES => {
                    let number = |at: usize| body[at..].first_chunk::<8>().copied();
                    let [named, clock] = [1, 9].map(|at| number(at).unwrap_or_default());
                    asked = body[KEEPALIVE_BYTES - 1] == 1;
                    self.line.watch(&self.batcher);
                    let at = i64::from_be_bytes(clock).saturating_add(POSTGRES_EPOCH_US);
                    self.line.keepalive(Position(u64::from_be_bytes(named)), Timestamp(at));
                }
                (b'E', _) => {
                    let error = super::message::server_error(body);
                    return Err(SourceError::Server { doing: "stream changes", error });
                }
                // A server that stops in order ends the command, and not COPY before it.
                (b'c' | b'C', _) => {
                    return Err(self.line.wire.broken("stream changes", "the server ended it"));
                }
                (b'N' | b'S' | b'A', _) => {}
                (tag, _) => return Err(unknown("in the stream", &tag.escape_ascii().to_string())),
            }
            self.line.wire.consume(head);
            match then {
                Then::Nothing => {}
                Then::WentBack => return Err(bridge::went_back(&self.line.shared).await),
                Then::Decide(relation, message) => {
                    if let Some(end) = self.decide(&relation, &message).await? {
                        return Ok(Some(end));
                    }
                }
            }
            while let Some(run) = self.batcher.take(false) {
                self.append(run).await?;
            }
            if asked {
                self.line.answer().await?;
            }
        }
        self.line.watch(&self.batcher);
        Ok(None)
    }

    /// Whole transactions wait: gives the server a moment to send more, then hands them on.
    async fn pause(&mut self) -> Result<(), SourceError> {
        let age =
            |now: Instant| self.batcher.since().map(|since| now.saturating_duration_since(since));
        let old = age(self.line.shared.clock.now()).is_some_and(|age| age >= HOLD_MAX);
        if !old {
            // Of a TLS record that is not there as a whole nothing can be read yet.
            if self.line.wire.nap().await
                && let Ok(read) = timeout(NAP, self.line.wire.fill()).await
            {
                read?;
                self.line.heard_at = self.line.shared.clock.now();
                return Ok(());
            }
        }
        while let Some(run) = self.batcher.take(true) {
            self.append(run).await?;
        }
        Ok(())
    }

    async fn append(&mut self, mut run: Run) -> Result<(), SourceError> {
        self.line.watch(&self.batcher);
        if self.batcher.demands().is_none()
            && let Some(started) = self.believed.take()
        {
            let shared = Arc::clone(&self.line.shared);
            self.line.meanwhile(belief::remember_start(&shared, &started)).await??;
        }
        if let Some(commit) = run.commit.filter(|commit| commit.transactions > 0) {
            self.last = Some(Last { begins: commit.begins, at: Some(commit.at) });
        }
        // A mark has no records, and is to have none.
        if !run.bytes.is_empty() {
            self.prove(&mut run).await?;
        }
        let keep = Arc::clone(&self.line.shared.keep);
        self.line.meanwhile(keep.append(run)).await??;
        self.line.tell();
        Ok(())
    }

    /// Gives the definitions in a run, and one before it if there is none of a table, the labels without
    /// which the rows that came so far cannot be read.
    async fn prove(&mut self, run: &mut Run) -> Result<(), SourceError> {
        let mut relabelled = BTreeSet::new();
        if !self.unproven.is_empty() {
            let unproven = std::mem::take(&mut self.unproven);
            let tables = self.described.iter_mut().filter(|(id, _)| unproven.contains(id));
            let tables = tables.map(|(_, table)| table).collect();
            let looked = labels::relabel_all(&mut self.sql, tables);
            relabelled = self.line.meanwhile(looked).await??;
            self.relabelled |= !relabelled.is_empty();
        }
        if self.relabelled {
            labels::restate(run, &self.described, relabelled);
        }
        Ok(())
    }

    /// A table is described: is it ours, can its rows be read, what does the catalog know of it?
    async fn decide(
        &mut self,
        relation: &Relation,
        message: &[u8],
    ) -> Result<Option<End>, SourceError> {
        if !self.line.shared.patterns.include(&relation.schema, &relation.name) {
            let name = format!("{}.{}", relation.schema, relation.name);
            if self.told.insert(name.clone()) {
                tracing::warn!(
                    table = name,
                    "rows of a published table are left out: `tables` excludes it"
                );
            }
            self.batcher.exclude(relation.id);
            return Ok(None);
        }
        self.line.watch(&self.batcher);
        let described = catalog::describe(&mut self.sql, [relation.id]);
        let mut described = self.line.meanwhile(described).await??;
        // The catalog is that of now: only if its columns are those of then does it tell more.
        let described =
            described.remove(&relation.id).filter(|known| known.has_columns(&relation.columns));
        let readable = match &described {
            Some(known) => known.renders_binary_as(&relation.columns),
            None => relation.renders_binary(),
        };
        if self.binary && !readable {
            tracing::info!(
                table = relation.name,
                "a column is not read in binary form: going on in text"
            );
            return Ok(Some(End::NeedsText));
        }
        let labelled = |name| described.as_ref().is_some_and(|known| known.is_labelled(name));
        let labelled = relation.columns.iter().map(|column| labelled(&column.name));
        self.vocabulary.describe(relation.id, labelled);
        let table = described.map(|known| known.table);
        let news = table.as_ref().filter(|table| self.described.get(&relation.id) != Some(table));
        self.batcher.relation(message, relation.id, news);
        if let Some(table) = table {
            self.described.insert(relation.id, table);
        }
        Ok(None)
    }
}

impl Line {
    /// Waits for `work` while status updates go on and nothing is read.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, SourceError> {
        let mut work = pin!(work);
        let mut failed = None;
        loop {
            tokio::select! {
                biased;
                done = &mut work => {
                    self.heard_at = self.shared.clock.now();
                    return failed.map_or(Ok(done), Err);
                }
                _ = self.tick.tick(), if failed.is_none() => failed = self.report(false).await.err(),
            }
        }
    }

    /// The server named a position.
    fn keepalive(&mut self, position: Position, at: Timestamp) {
        self.now.server = self.now.server.max(position);
        if !self.now.open {
            self.rest(position, at);
        }
    }

    /// No transaction was open at this position.
    fn rest(&mut self, position: Position, at: Timestamp) {
        if position > self.now.quiet {
            (self.now.quiet, self.quiet_at) = (position, at);
        }
    }

    /// The mark that is due, and when the server was there.
    fn mark(&mut self) -> Option<(Position, Timestamp)> {
        let now = self.shared.clock.now();
        let rested = |last: Instant| now.saturating_duration_since(last) >= MARK_EVERY;
        if !self.marked_at.is_none_or(rested) {
            return None;
        }
        let position = self.confirm.mark(&self.now)?;
        self.marked_at = Some(now);
        Some((position, self.quiet_at))
    }

    /// Remembers how the batcher stands.
    fn watch(&mut self, batcher: &Batcher) {
        self.seen = batcher.seen;
        self.doubts = batcher.demands().is_some();
        self.now.open = batcher.is_open();
        self.now.buffered = batcher.holds();
        self.now.recorded = batcher.seen.recorded;
        if !self.now.open {
            self.rest(batcher.seen.received, batcher.seen.received_at.unwrap_or_default());
        }
    }

    /// Answers a server that asked; if it asks without a pause, once per tick. (One that shuts down
    /// does, until all it has sent is confirmed.)
    async fn answer(&mut self) -> Result<(), SourceError> {
        let now = self.shared.clock.now();
        self.owes = now.saturating_duration_since(self.sent_at) < ANSWER_EVERY;
        match self.owes {
            true => Ok(()),
            false => self.report(true).await,
        }
    }

    /// Sends a status update if it is `due` for another reason, if there is news, or if the last is old.
    async fn report(&mut self, due: bool) -> Result<(), SourceError> {
        self.now.durable = self.durable.borrow().point.position;
        self.now.shipped = self.shipped.borrow().position;
        let asked = Position(self.shared.log_end.load(Ordering::Relaxed));
        self.now.server = self.now.server.max(asked);
        self.now.keeps_bytes_max = self.shared.keeps_bytes_max();
        let confirm = match self.doubts {
            true => self.confirm.confirmed(),
            false => self.confirm.decide(&self.now),
        };
        let now = self.shared.clock.now();
        let silent = now.saturating_duration_since(self.heard_at);
        let broken = [
            (self.shared.keep.has_lost(), "the journal is damaged"),
            // It waits for us to confirm all it has sent, which may take as long as the lake does.
            (self.shared.server_leaves.load(Ordering::Relaxed), "the server shuts down"),
            (silent >= SILENCE_MAX, "the server is silent"),
        ];
        if let Some((_, why)) = broken.into_iter().find(|(is_so, _)| *is_so) {
            return Err(self.wire.broken("stream changes", why));
        }
        let old = now.saturating_duration_since(self.sent_at) >= STATUS_EVERY;
        if due || old || self.owes || confirm > self.sent {
            let received = self.seen.received.max(self.now.quiet).max(confirm);
            let wall = self.shared.clock.wall().0 - POSTGRES_EPOCH_US;
            let ask = silent >= ASK_AFTER;
            let update = status_update(received, confirm, wall, ask);
            let write = |out: &mut BytesMut| {
                frontend::CopyData::new(&update[..])?.write(out);
                Ok(())
            };
            self.wire.send(write).await?;
            (self.sent, self.sent_at, self.owes) = (confirm, now, false);
        }
        self.tell();
        Ok(())
    }

    /// Writes what was seen to the board.
    fn tell(&mut self) {
        let (seen, told) = (self.seen, std::mem::replace(&mut self.told, self.seen));
        let durable = self.durable.borrow().point;
        let release = if self.confirm.waits_for_lake() { "lake" } else { "journal" };
        self.shared.board.write(|status| {
            if status.release != release {
                status.release = release.into();
            }
            status.server = status.server.max(self.now.server).max(seen.received);
            status.received = status.received.max(seen.received).max(self.now.quiet);
            status.received_at = seen.received_at.or(status.received_at);
            status.durable = durable;
            status.confirmed = self.confirm.confirmed();
            status.transactions += seen.transactions - told.transactions;
            status.transactions_skipped += seen.skipped - told.skipped;
            status.changes += seen.changes - told.changes;
            status.stream_bytes += seen.bytes - told.bytes;
        });
    }
}

/// Kind, start, end and clock before the payload.
const XLOG_DATA_HEADER_BYTES: usize = 25;
/// Kind, position, clock, answer wanted.
const KEEPALIVE_BYTES: usize = 18;
/// Whole transactions are handed on after this, however busy the server.
const HOLD_MAX: Duration = Duration::from_millis(10);
/// News of the confirmed position go out at most this often.
const TICK: Duration = Duration::from_secs(1);
/// The session has a `wal_sender_timeout` of 60 s (`login.rs`).
const STATUS_EVERY: Duration = Duration::from_secs(4);
const ANSWER_EVERY: Duration = Duration::from_millis(50);
/// Marks are given to the journal, an fsync each, at most this often.
const MARK_EVERY: Duration = Duration::from_secs(10);
/// A silent server is asked to answer.
const ASK_AFTER: Duration = Duration::from_secs(30);
/// Then it is given up.
const SILENCE_MAX: Duration = Duration::from_secs(180);
const LEAVE_LIMIT: Duration = Duration::from_millis(300);
