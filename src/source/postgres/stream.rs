//! Follows the change stream: reads the server's messages, hands runs to the journal. `line.rs` confirms.
//!
//! **Invariant:** nothing is read while the journal has not taken what was read before.
//!
//! Where nothing of ours happens, the journal is given a mark now and then (`confirm.rs`), so that the
//! server need not keep its log for us.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    at_rest,
    batch::{Batcher, PIECE_BYTES, POSTGRES_EPOCH_US, Then},
    belief::{self, Last},
    bridge, catalog,
    confirm::Confirm,
    error::SourceError,
    in_progress::{InProgress, Taken},
    labels,
    line::Line,
    message::unknown,
    relation::Relation,
    rewritten,
    session::{Session, Shared},
    snapshot::plan_fact,
    standby::start_statement,
    statements::{Told, unread},
    vocabulary::Vocabulary,
    wire::{SMALL_READ_BYTES, Wire},
};
use crate::{
    config::LargeTransactions,
    heap::large::{self, Held, LARGE_BYTES, Turn},
    source::{Run, Table},
    units::{Point, Position, Timestamp},
};

mod pending;
mod resting;

/// A session under way.
pub(crate) struct Stream {
    line: Line,
    sql: Wire,
    batcher: Batcher,
    in_progress: InProgress,
    binary: bool,
    /// Whether the server was asked for transactions in progress.
    in_progress_asked: bool,
    /// Since when it is asked for them at their commits, although it knows better.
    at_commit_since: Option<Instant>,
    /// What was recorded of each table in this session.
    described: BTreeMap<u32, Table>,
    /// What was recorded of each table behind its last statement in this session.
    defined: BTreeMap<u32, Table>,
    /// The number of the last transaction that began.
    xid: u32,
    /// Tables that are not ours, and were spoken of.
    told: BTreeSet<String>,
    vocabulary: Vocabulary,
    /// Tables with rows whose labels the recorded definitions may lack.
    unproven: BTreeSet<u32>,
    /// The start of the server, to be remembered once it is believed.
    believed: Option<String>,
    /// The last transaction that is held, or was given to the journal.
    last: Option<Last>,
    /// Where the last whole transaction ends that was given to the journal, and when it was.
    given: (Position, Instant),
    /// When the server sent something after it had rested.
    woke: Instant,
    /// Whether an enum has got labels, so that definitions that wait to be recorded may lack them.
    relabelled: bool,
    /// A large message is on its way.
    large: Option<Held<'static>>,
}

/// Why a stream ended without an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// A column came whose binary form is not read: again, in text.
    NeedsText,
    /// Transactions in progress find no room here, or the server cannot send them: again, at their commits.
    AtCommit,
    /// The server is to describe its tables anew, or has kept transactions in progress for long enough.
    Again,
}

/// What earlier sessions have shown.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shown {
    /// A column's binary form is not read.
    pub(crate) text_only: bool,
    /// When transactions in progress last found no room here, or could not be sent.
    pub(crate) at_commit_since: Option<Instant>,
}

impl Stream {
    /// Starts replication.
    pub(crate) async fn start(
        session: Session,
        shared: Arc<Shared>,
        shipped: watch::Receiver<Point>,
        shown: Shown,
    ) -> Result<Self, SourceError> {
        let Session { mut wire, sql, durable, confirmed, binary, belief, .. } = session;
        let binary = binary && !shown.text_only && wire.version() >= 140_000;
        let from = if belief.proof.is_some() { confirmed } else { durable.point.position };
        let in_progress_asked = wire.version() >= 140_000
            && shown.at_commit_since.is_none()
            && shared.config.large_transactions == LargeTransactions::AsTheyCome;
        let sql_start = start_statement(&shared, wire.version(), from, binary, in_progress_asked);
        pending::forget(&shared).await;
        shared.server_leaves.store(false, Ordering::Relaxed);
        shared.at_rest.begin(durable.point.position);
        wire.copy_both("start replication", &sql_start).await?;
        tracing::info!(from = %durable.point.position.max(confirmed), binary, host = wire.host(), "streaming");
        let config = &shared.config;
        let confirm = Confirm::new(config.release, config.release_wal_max, confirmed);
        let now = shared.clock.now();
        let batcher =
            Batcher::new(durable.begins, durable.point.position, shared.sizes).demand(belief.proof);
        let line = Line::new(wire, shared, confirm, shipped, (durable.point.position, &batcher));
        Ok(Self {
            line,
            sql,
            batcher,
            in_progress: InProgress::default(),
            binary,
            in_progress_asked,
            at_commit_since: shown.at_commit_since,
            described: BTreeMap::new(),
            defined: BTreeMap::new(),
            xid: 0,
            told: BTreeSet::new(),
            vocabulary: Vocabulary::default(),
            unproven: BTreeSet::new(),
            believed: belief.news,
            last: belief.last,
            given: (Position::default(), now),
            woke: now,
            relabelled: false,
            large: None,
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
            let over = |since: Instant| self.age(since) >= AT_COMMIT_TIME;
            if !self.batcher.is_open() && self.at_commit_since.is_some_and(over) {
                return Ok(End::Again);
            }
            let due = self.line.shared.at_rest.due();
            if let Some((position, at)) = self.line.mark(due) {
                if !self.batcher.believe() {
                    return Err(bridge::went_back(&self.line.shared).await);
                }
                let shared = Arc::clone(&self.line.shared);
                self.line.meanwhile(belief::remember_last(&shared, self.last)).await??;
                let definitions = self.at_rest(position).await?;
                let mut run = self.batcher.mark(position, at);
                at_rest::record(&mut run, &definitions);
                self.append(run).await?;
            }
            self.wait_for_turn(self.line.wire.row_ahead()?).await?;
            let read = tokio::select! {
                biased;
                _ = self.line.tick.tick() => {
                    self.line.report(false).await?;
                    continue;
                }
                read = self.line.wire.fill() => read?,
            };
            let now = self.line.shared.clock.now();
            if self.age(self.line.heard_at) >= REST {
                self.woke = now;
            }
            self.line.heard_at = now;
            // Of a server that rested the first messages are not kept waiting.
            let busy = self.age(self.given.1) < REST || self.age(self.woke) >= REST;
            if read < SMALL_READ_BYTES && busy {
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
            let (mut then, mut taken) = (Then::Nothing, Taken::Kept);
            let mut asked = false;
            match (head.tag, body.first()) {
                (b'd', Some(b'w')) if body.len() >= XLOG_DATA_HEADER_BYTES => {
                    let message = &body[XLOG_DATA_HEADER_BYTES..];
                    self.batcher.seen.bytes += message.len() as u64;
                    taken = self.in_progress.take(message)?;
                    if matches!(taken, Taken::Outside) {
                        begun(&mut self.xid, message);
                        then = self.batcher.push(message, now)?;
                        self.unproven.extend(self.vocabulary.is_news(message));
                    }
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
                    let error = SourceError::Server { doing: "stream changes", error };
                    return match self.in_progress_asked && !error.heals() {
                        true => Ok(Some(pending::refused(&error))),
                        false => Err(error),
                    };
                }
                // A server that stops in order ends the command, and not COPY before it.
                (b'c' | b'C', _) => {
                    return Err(self.line.wire.broken("stream changes", "the server ended it"));
                }
                (b'N' | b'S' | b'A', _) => {}
                (tag, _) => return Err(unknown("in the stream", &tag.escape_ascii().to_string())),
            }
            self.line.wire.consume(head);
            if let Some(end) = self.settle(then).await? {
                return Ok(Some(end));
            }
            if let Some(end) = self.follow(taken).await? {
                return Ok(Some(end));
            }
            if head.length > LARGE_BYTES {
                self.large = None;
            }
            if asked {
                self.line.answer().await?;
            }
        }
        self.line.watch(&self.batcher);
        Ok(None)
    }

    /// Before a message of so many bytes is read. Who seals what the journal holds, and makes room there, may be waiting
    /// for his turn, too: so first there is to be room.
    async fn wait_for_turn(&mut self, bytes: usize) -> Result<(), SourceError> {
        let (keep, wanted) = (Arc::clone(&self.line.shared.keep), (bytes + PIECE_BYTES) as u64);
        while bytes > LARGE_BYTES && self.large.is_none() {
            self.line.meanwhile(keep.room(wanted)).await??;
            let turn = self.line.meanwhile(large::read(bytes)).await?;
            // It may have taken a while.
            self.large = keep.room(wanted).now_or_never().map(|_| turn);
        }
        Ok(())
    }

    /// Does what a message asks for.
    async fn settle(&mut self, then: Then) -> Result<Option<End>, SourceError> {
        let end = match then {
            Then::Nothing => None,
            Then::WentBack => return Err(bridge::went_back(&self.line.shared).await),
            Then::Decide(relation, message) => self.decide(&relation, &message).await?,
            Then::State(content) => {
                self.state(&content).await?;
                None
            }
        };
        while let Some(run) = self.batcher.take(false) {
            self.append(run).await?;
        }
        Ok(end)
    }

    fn age(&self, since: Instant) -> Duration {
        self.line.shared.clock.now().saturating_duration_since(since)
    }

    /// Whole transactions wait: hands them on. While the journal is at those before them, which it is to make
    /// durable first, the server has a moment to send more.
    async fn pause(&mut self) -> Result<(), SourceError> {
        let old = self.batcher.since().is_some_and(|since| self.age(since) >= HOLD_MAX);
        let large = self.line.wire.row_ahead()? > LARGE_BYTES;
        if !old && !large && self.line.more_before_durable(self.given.0).await? {
            return Ok(());
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
        if let Some(commit) = run.commit {
            self.given = (commit.position, self.line.shared.clock.now());
        }
        if run.bytes.len() > LARGE_BYTES {
            run.turn = Turn::of(self.large.take());
        }
        // A mark that has no records is to have none.
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

    /// A statement of DDL is told: which of it goes to the lake, and what tables does it leave?
    async fn state(&mut self, content: &[u8]) -> Result<(), SourceError> {
        let Some(told) = Told::parse(content) else {
            tracing::warn!("a message that is to tell a statement does not read");
            self.batcher.statement(&[unread()], &[]);
            return Ok(());
        };
        let shared = Arc::clone(&self.line.shared);
        let mut shapes = told.shapes(&shared.patterns);
        // Only what is copied: of others the lake has no rows.
        let is_copied = |id: &u32| shared.facts.get(&plan_fact(*id)).is_some();
        let known: BTreeSet<u32> = shapes.iter().map(|(id, _)| *id).filter(is_copied).collect();
        shapes.retain(|(id, _)| known.contains(id));
        self.line.watch(&self.batcher);
        let xid = self.xid;
        let described = async {
            if !known.is_empty() {
                visible(&mut self.sql, xid).await?;
            }
            catalog::describe(&mut self.sql, known).await
        };
        let mut described = self.line.meanwhile(described).await??;
        let mut definitions = vec![];
        for (id, shape) in shapes {
            // The catalog is that of now, which may be that of a later statement: that one tells of it.
            let table = described.remove(&id).filter(|known| shape.is_that_of(known));
            let Some(mut table) = table else { continue };
            rewritten::settle(&*shared.facts, id, &mut table)?;
            let table = table.table;
            if self.defined.get(&id) != Some(&table) {
                shared.at_rest.heard(id, Some(&table), xid);
                self.defined.insert(id, table.clone());
                definitions.push(table);
            }
        }
        self.batcher.statement(&told.inserts(&shared.patterns), &definitions);
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
        let mut described = described.remove(&relation.id);
        if let Some(known) = &mut described {
            rewritten::settle(&*self.line.shared.facts, relation.id, known)?;
        }
        let now = described.as_ref().map(|known| known.table.clone());
        // The catalog is that of now: only if its columns are those of then does it tell more.
        let described = described.filter(|known| known.has_columns(&relation.columns));
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
        let table = self.meant((relation.id, message), now, described.is_some()).await?;
        let news = table.as_ref().filter(|table| self.described.get(&relation.id) != Some(table));
        self.batcher.relation(message, relation.id, news);
        self.defined.remove(&relation.id);
        self.line.shared.at_rest.heard(relation.id, table.as_ref(), self.xid);
        match table {
            Some(table) => drop(self.described.insert(relation.id, table)),
            None => drop(self.described.remove(&relation.id)),
        }
        Ok(None)
    }
}

/// Keeps the number of a transaction that begins.
fn begun(xid: &mut u32, message: &[u8]) {
    if let (Some(b'B'), Some(number)) = (message.first(), message.last_chunk::<4>()) {
        *xid = u32::from_be_bytes(*number);
    }
}

/// Waits until others see what a transaction made: its commit may be in the log, and with us, a moment before that.
async fn visible(sql: &mut Wire, xid: u32) -> Result<(), SourceError> {
    let ask = format!(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'transactionid' AND transactionid = '{xid}'::xid AND granted)"
    );
    for _ in 0..VISIBLE_TRIES {
        let rows = sql.query("look whether a transaction has ended", &ask).await?;
        if !rows.first().is_some_and(|row| row.flag(0)) {
            break;
        }
        sleep(VISIBLE_PAUSE).await;
    }
    Ok(())
}

/// So long the server keeps transactions in progress before it is asked for them again.
const AT_COMMIT_TIME: Duration = Duration::from_secs(3600);
/// One that waits for its standby longer than this in all is not waited for.
const VISIBLE_TRIES: u32 = 100;
const VISIBLE_PAUSE: Duration = Duration::from_millis(10);
/// Kind, start, end and clock before the payload.
const XLOG_DATA_HEADER_BYTES: usize = 25;
/// Kind, position, clock, answer wanted.
const KEEPALIVE_BYTES: usize = 18;
/// Whole transactions are handed on after this, however busy the server.
const HOLD_MAX: Duration = Duration::from_millis(10);
/// A server that has sent nothing for so long rests.
const REST: Duration = Duration::from_millis(20);
const LEAVE_LIMIT: Duration = Duration::from_millis(300);
