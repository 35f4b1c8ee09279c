//! The connection of a change stream: what the server is told on it, and when.
//!
//! **Invariant:** the server hears of us at least every few seconds, also while the journal is full and nothing
//! is read.

use std::{
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
    batch::{Batcher, POSTGRES_EPOCH_US, Seen},
    confirm::{Confirm, Now},
    error::SourceError,
    lull::NAP,
    session::Shared,
    standby::status_update,
    wire::Wire,
};
use crate::{
    source::Durable,
    units::{Point, Position, Timestamp},
};

/// The connection, and all that a status update is made of.
pub(super) struct Line {
    pub(super) wire: Wire,
    pub(super) shared: Arc<Shared>,
    confirm: Confirm,
    durable: watch::Receiver<Durable>,
    shipped: watch::Receiver<Point>,
    pub(super) tick: Interval,
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
    /// When the server was last heard, or not listened to.
    pub(super) heard_at: Instant,
    /// Bytes of transactions in progress that are kept here.
    pub(super) in_progress_bytes: u64,
}

impl Line {
    /// Before the first message. `durable`: up to where the journal has what the batcher goes on from.
    pub(super) fn new(
        wire: Wire,
        shared: Arc<Shared>,
        confirm: Confirm,
        shipped: watch::Receiver<Point>,
        (durable, batcher): (Position, &Batcher),
    ) -> Self {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = shared.clock.now();
        Self {
            wire,
            durable: shared.keep.durable(),
            confirm,
            shipped,
            tick,
            now: Now { recorded: durable, ..Now::default() },
            seen: batcher.seen,
            told: batcher.seen,
            sent: Position::default(),
            sent_at: now,
            doubts: batcher.demands().is_some(),
            owes: false,
            quiet_at: Timestamp::default(),
            marked_at: None,
            heard_at: now,
            in_progress_bytes: 0,
            shared,
        }
    }

    /// Waits for `work` while status updates go on and nothing is read.
    pub(super) async fn meanwhile<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, SourceError> {
        let mut work = pin!(work);
        let mut failed = None;
        loop {
            tokio::select! {
                biased;
                done = &mut work => {
                    self.heard_at = self.shared.clock.now();
                    return failed.map_or(Ok(done), Err);
                }
                _ = self.tick.tick(), if failed.is_none() => {
                    // It is not listened to.
                    self.heard_at = self.shared.clock.now();
                    failed = self.report(false).await.err();
                    if failed.is_some() {
                        // The work may take as long as the lake does: a server that shuts down is not to wait for it.
                        self.wire.hang_up().await;
                    }
                }
            }
        }
    }

    /// Whether the server sends more within a nap, and before the journal has what is up to `given`.
    pub(super) async fn more_before_durable(
        &mut self,
        given: Position,
    ) -> Result<bool, SourceError> {
        let Self { wire, durable, shared, .. } = self;
        let written = async {
            while durable.borrow().point.position < given {
                shared.keep.grown().notified().await;
            }
        };
        let more = async {
            // Of a TLS record that is not there as a whole nothing can be read yet.
            match wire.nap().await {
                true => timeout(NAP, wire.fill()).await.unwrap_or(Ok(0)),
                false => Ok(0),
            }
        };
        let read = tokio::select! {
            biased;
            // A journal that has ended says so when it is given something.
            () = written => 0,
            read = more => read?,
        };
        if read > 0 {
            self.heard_at = self.shared.clock.now();
        }
        Ok(read > 0)
    }

    /// The server named a position.
    pub(super) fn keepalive(&mut self, position: Position, at: Timestamp) {
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

    /// The mark that is due, and when the server was there. `waits`: where one is wanted without delay.
    pub(super) fn mark(&mut self, waits: Option<Position>) -> Option<(Position, Timestamp)> {
        let now = self.shared.clock.now();
        let is_wanted = waits.is_some_and(|position| position <= self.now.quiet);
        let every = if is_wanted { WANTED_EVERY } else { MARK_EVERY };
        let rested = |last: Instant| now.saturating_duration_since(last) >= every;
        if !self.marked_at.is_none_or(rested) {
            return None;
        }
        let position = self.confirm.mark(&self.now)?;
        self.marked_at = Some(now);
        Some((position, self.quiet_at))
    }

    /// Remembers how the batcher stands.
    pub(super) fn watch(&mut self, batcher: &Batcher) {
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
    pub(super) async fn answer(&mut self) -> Result<(), SourceError> {
        let now = self.shared.clock.now();
        self.owes = now.saturating_duration_since(self.sent_at) < ANSWER_EVERY;
        match self.owes {
            true => Ok(()),
            false => self.report(true).await,
        }
    }

    /// Sends a status update if it is `due` for another reason, if there is news, or if the last is old.
    pub(super) async fn report(&mut self, due: bool) -> Result<(), SourceError> {
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
    pub(super) fn tell(&mut self) {
        let (seen, told) = (self.seen, std::mem::replace(&mut self.told, self.seen));
        let durable = self.durable.borrow().point;
        let release = self.confirm.in_force();
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
            status.in_progress_bytes = self.in_progress_bytes;
            status.stream_bytes += seen.bytes - told.bytes;
        });
    }
}

/// News of the confirmed position go out at most this often.
const TICK: Duration = Duration::from_secs(1);
/// The session has a `wal_sender_timeout` of 60 s (`login.rs`).
const STATUS_EVERY: Duration = Duration::from_secs(4);
const ANSWER_EVERY: Duration = Duration::from_millis(50);
/// Marks are given to the journal, an fsync each, at most this often.
const MARK_EVERY: Duration = Duration::from_secs(10);
/// Where definitions wait for one, at most this often.
const WANTED_EVERY: Duration = Duration::from_millis(200);
/// A silent server is asked to answer.
const ASK_AFTER: Duration = Duration::from_secs(30);
/// Then it is given up.
const SILENCE_MAX: Duration = Duration::from_secs(180);
