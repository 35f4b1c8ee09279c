//! Cuts the messages of pgoutput into [`Run`]s: whole transactions together, a large one in pieces. Pure.
//!
//! Layouts of the messages: <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>.
//!
//! **Invariants:** what goes in comes out once and in order, but for: transactions that the journal
//! holds already (by where their commit record begins), transactions in which nothing happened to
//! our tables, rows of tables that are not ours, and messages that tell a statement: their rows come
//! instead. A Relation or Type message is never left out:
//! the server sends it once per session. A message that is not known is an error (I16).

use std::{
    collections::{BTreeSet, VecDeque},
    time::Instant,
};

use super::{belief::Proof, error::SourceError, message::unknown, relation::Relation, statements};
use crate::{
    source::{Commit, Piece, RecordKind, Run, Table},
    units::{Position, Timestamp},
};

/// Messages on their way into runs.
#[derive(Debug)]
pub(crate) struct Batcher {
    /// Transactions whose commit record begins here or before are in the journal already.
    held: Position,
    /// Where the last transaction's commit record began: they only go up (I17).
    last_begins: Position,
    sizes: Sizes,
    /// Whole transactions, then the beginning of the open one.
    run: Run,
    /// Bytes of `run` that are whole transactions; 0 while only messages between them are there.
    whole_bytes: usize,
    /// Changes in these bytes.
    whole_changes: u64,
    /// When the first of these transactions was whole.
    whole_since: Option<Instant>,
    open: Option<Open>,
    ready: VecDeque<Run>,
    /// Tables whose rows are not ours.
    foreign: BTreeSet<u32>,
    /// Whether the table of statements was described.
    stated: bool,
    /// What the server has still to send again to be the one that was followed.
    proof: Option<Proof>,
    /// What was seen, for the board and for confirming.
    pub(crate) seen: Seen,
}

/// How large runs are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Whole transactions are given from this size, in bytes, without waiting for the server to pause.
    pub(crate) run_bytes: usize,
    /// A transaction larger than this is given in pieces of about this size, in bytes.
    pub(crate) piece_bytes: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { run_bytes: RUN_BYTES, piece_bytes: PIECE_BYTES }
    }
}

/// The transaction that has begun and not ended.
#[derive(Clone, Copy, Debug)]
struct Open {
    begins: Position,
    skipped: bool,
    /// Whether it is the one that [`Proof::LastBeforeMark`] asked for.
    proves: bool,
    /// Where in `run` it begins; 0 once a piece of it was given.
    start: usize,
    /// Whether something other than its BEGIN was recorded.
    eventful: bool,
    /// Whether pieces of it have been given.
    in_pieces: bool,
}

/// What a batcher has seen.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Seen {
    /// End of the last transaction that was recorded, or the last mark.
    pub(crate) recorded: Position,
    /// End of the last whole transaction, recorded or not.
    pub(crate) received: Position,
    /// Its commit time.
    pub(crate) received_at: Option<Timestamp>,
    /// Transactions recorded.
    pub(crate) transactions: u64,
    /// Transactions left out because the journal holds them.
    pub(crate) skipped: u64,
    /// Changes recorded.
    pub(crate) changes: u64,
    /// Bytes of messages received, counted by who receives them.
    pub(crate) bytes: u64,
}

/// What the caller has to do next.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Then {
    /// Nothing.
    Nothing,
    /// Decide on a table, by [`Batcher::relation`] or [`Batcher::exclude`], before the next message.
    Decide(Relation, Vec<u8>),
    /// Give what this content of a message tells of a statement, by [`Batcher::statement`], before the next message.
    State(Vec<u8>),
    /// The server's log is not the one that was followed: nothing of it is to be taken.
    WentBack,
}

impl Batcher {
    /// A batcher for a new session. `held` is what the journal says: [`crate::source::Durable::begins`].
    pub(crate) fn new(held: Position, durable: Position, sizes: Sizes) -> Self {
        Self {
            held,
            last_begins: Position::default(),
            sizes,
            run: Run::new(Piece::Whole),
            whole_bytes: 0,
            whole_changes: 0,
            whole_since: None,
            open: None,
            ready: VecDeque::new(),
            foreign: BTreeSet::new(),
            stated: false,
            proof: None,
            seen: Seen { recorded: durable, received: durable, ..Seen::default() },
        }
    }

    /// The server is to send this again before it is believed.
    pub(crate) fn demand(mut self, proof: Option<Proof>) -> Self {
        self.proof = proof;
        self
    }

    /// What it has still to send again.
    pub(crate) fn demands(&self) -> Option<Proof> {
        self.proof
    }

    /// All that is held would have been sent by now. False: it was not.
    pub(crate) fn believe(&mut self) -> bool {
        !matches!(self.proof.take(), Some(Proof::Last(_) | Proof::LastBeforeMark(_)))
    }

    /// Whether a transaction has begun and not ended.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether whole transactions, or pieces, wait to be taken.
    pub(crate) fn holds(&self) -> bool {
        self.whole_bytes > 0 || !self.ready.is_empty()
    }

    /// When the oldest transaction that waits was whole.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.whole_since
    }

    /// Takes one message.
    pub(crate) fn push(&mut self, message: &[u8], now: Instant) -> Result<Then, SourceError> {
        let Some((&kind, body)) = message.split_first() else {
            return Err(unknown("a change message", "empty"));
        };
        match kind {
            b'B' => {
                if self.begin(message, body)? {
                    return Ok(Then::WentBack);
                }
            }
            b'C' => {
                if self.commit(message, body, now)? {
                    return Ok(Then::WentBack);
                }
            }
            b'I' | b'U' | b'D' => self.change(message, body)?,
            b'T' => self.truncate(body)?,
            b'R' => {
                self.within(kind)?;
                return Ok(Then::Decide(Relation::parse(message)?, message.to_vec()));
            }
            b'Y' => {
                self.within(kind)?;
                self.record(RecordKind::Message, message);
            }
            b'O' => {
                if !self.within(kind)?.skipped {
                    self.run.push(RecordKind::Message, message);
                }
            }
            b'M' => return self.logical(message, body),
            _ => {
                return Err(unknown("a change message", &format!("`{}`", kind.escape_ascii())));
            }
        }
        self.cut();
        Ok(Then::Nothing)
    }

    /// Records a table's description, with its definition where the catalog still has it so.
    pub(crate) fn relation(&mut self, message: &[u8], id: u32, definition: Option<&Table>) {
        self.foreign.remove(&id);
        self.record(RecordKind::Message, message);
        if let Some(table) = definition {
            let json = serde_json::to_vec(table).expect("a table is plain data");
            self.record(RecordKind::Definition, &json);
        }
        self.cut();
    }

    /// Records what a statement of the open transaction made: its rows, and tables that are as it left them.
    pub(crate) fn statement(&mut self, inserts: &[Vec<u8>], definitions: &[Table]) {
        let mut messages: Vec<_> = definitions.iter().map(statements::definition).collect();
        if !inserts.is_empty() && !std::mem::replace(&mut self.stated, true) {
            messages.push(statements::relation());
        }
        self.count(inserts.len() as u64);
        messages.iter().chain(inserts).for_each(|one| self.record(RecordKind::Message, one));
        self.cut();
    }

    /// Leaves out the rows of a table from here on.
    pub(crate) fn exclude(&mut self, id: u32) {
        self.foreign.insert(id);
    }

    /// The next run: one that is full, or, if the server is `idle`, whatever is whole.
    pub(crate) fn take(&mut self, idle: bool) -> Option<Run> {
        if self.ready.is_empty() && idle && self.whole_bytes > 0 {
            self.give_whole();
        }
        self.ready.pop_front()
    }

    /// A mark: all transactions up to `position` were given, and the server named it at `at`. To be called
    /// when none is open and none is held.
    pub(crate) fn mark(&mut self, position: Position, at: Timestamp) -> Run {
        self.seen.recorded = position;
        // The next commit record can begin right there; those before it ended there at the latest.
        let begins = Position(position.0.saturating_sub(1));
        let commit = Some(Commit { position, begins, at, transactions: 0 });
        Run { commit, ..Run::new(Piece::Whole) }
    }

    /// Whether the log is not the one that was followed.
    fn begin(&mut self, message: &[u8], body: &[u8]) -> Result<bool, SourceError> {
        let begins = position(body, 0).zip(position(body, 8)).filter(|_| body.len() == 20);
        let (begins, at) = begins.ok_or_else(|| unknown("BEGIN", "cut short or too long"))?;
        if self.open.is_some() || begins <= self.last_begins {
            return Err(unknown("BEGIN", "out of order"));
        }
        let skipped = begins <= self.held;
        let start = self.run.bytes.len();
        self.last_begins = begins;
        let mut proves = false;
        if let Some(Proof::Last(last) | Proof::LastBeforeMark(last)) = self.proof
            && last.is(begins, time(at))
        {
            proves = matches!(self.proof, Some(Proof::LastBeforeMark(_)));
            self.proof = None;
        }
        self.open =
            Some(Open { begins, skipped, proves, start, eventful: false, in_pieces: false });
        if !skipped {
            self.run.push(RecordKind::Message, message);
            return Ok(!self.believe());
        }
        Ok(false)
    }

    /// Whether the log is not the one that was followed.
    fn commit(&mut self, message: &[u8], body: &[u8], now: Instant) -> Result<bool, SourceError> {
        let read = || Some((position(body, 1)?, position(body, 9)?, position(body, 17)?));
        let read = read().filter(|_| body.len() == 25);
        let (begins, end, at) = read.ok_or_else(|| unknown("COMMIT", "cut short or too long"))?;
        let open = self.within(b'C')?;
        if open.begins != begins || end <= begins {
            return Err(unknown("COMMIT", "of another transaction"));
        }
        self.open = None;
        let at = time(at);
        self.seen.received = end;
        self.seen.received_at = Some(at);
        if open.skipped {
            self.seen.skipped += 1;
            let went_back = open.eventful && self.proof == Some(Proof::Nothing);
            if open.proves {
                self.proof = Some(Proof::Nothing);
            }
            return Ok(went_back);
        }
        if !open.eventful {
            self.run.bytes.truncate(open.start);
            return Ok(false);
        }
        self.run.push(RecordKind::Message, message);
        self.seen.transactions += 1;
        self.seen.recorded = end;
        let before = self.run.commit.map_or(0, |commit| commit.transactions);
        self.run.commit = Some(Commit { position: end, begins, at, transactions: before + 1 });
        if open.in_pieces {
            self.give(Piece::Last);
        } else {
            self.whole_bytes = self.run.bytes.len();
            self.whole_changes = self.run.changes;
            self.whole_since.get_or_insert(now);
        }
        Ok(false)
    }

    fn change(&mut self, message: &[u8], body: &[u8]) -> Result<(), SourceError> {
        let skipped = self.within(message[0])?.skipped;
        let id = body.first_chunk::<4>().map(|id| u32::from_be_bytes(*id));
        let id = id.ok_or_else(|| unknown("a row", "cut short"))?;
        if self.foreign.contains(&id) {
            return Ok(());
        }
        match &mut self.open {
            Some(open) if skipped => open.eventful = true,
            _ => {
                self.count(1);
                self.record(RecordKind::Message, message);
            }
        }
        Ok(())
    }

    /// `'T' | tables u32 | options u8 | id u32 *`: recorded with our tables only.
    fn truncate(&mut self, body: &[u8]) -> Result<(), SourceError> {
        let skipped = self.within(b'T')?.skipped;
        let wrong = || unknown("TRUNCATE", "cut short or too long");
        let (head, ids) = body.split_at_checked(5).ok_or_else(wrong)?;
        let ids: Vec<u32> = ids
            .chunks(4)
            .map(|id| id.try_into().map(u32::from_be_bytes).map_err(|_| wrong()))
            .collect::<Result<_, _>>()?;
        let count = |ids: &[u32]| u32::try_from(ids.len()).unwrap_or(u32::MAX);
        if head[..4] != count(&ids).to_be_bytes() {
            return Err(wrong());
        }
        let ours: Vec<u32> = ids.into_iter().filter(|id| !self.foreign.contains(id)).collect();
        if let Some(open) = self.open.as_mut().filter(|_| skipped) {
            open.eventful |= !ours.is_empty();
        }
        if skipped || ours.is_empty() {
            return Ok(());
        }
        let mut message = vec![b'T'];
        message.extend(count(&ours).to_be_bytes());
        message.push(head[4]);
        message.extend(ours.iter().flat_map(|id| id.to_be_bytes()));
        self.count(u64::from(count(&ours)));
        self.record(RecordKind::Message, &message);
        Ok(())
    }

    /// `'M' | flags u8 | …`: one outside of transactions concerns no row and stands nowhere in their order.
    fn logical(&mut self, message: &[u8], body: &[u8]) -> Result<Then, SourceError> {
        match (body.first(), self.open) {
            (Some(0), _) => {}
            (Some(1), Some(open)) if open.skipped => {}
            (Some(1), Some(_)) if statements::is_reserved(body) => {
                let content = statements::content(body);
                return Ok(content.map_or(Then::Nothing, |content| Then::State(content.into())));
            }
            (Some(1), Some(_)) => self.record(RecordKind::Message, message),
            _ => return Err(unknown("a logical message", "out of place")),
        }
        self.cut();
        Ok(Then::Nothing)
    }

    /// The open transaction, which `kind` needs.
    fn within(&self, kind: u8) -> Result<Open, SourceError> {
        let found = || format!("`{}` outside of a transaction", kind.escape_ascii());
        self.open.ok_or_else(|| unknown("a change message", &found()))
    }

    fn record(&mut self, kind: RecordKind, payload: &[u8]) {
        if let Some(open) = &mut self.open {
            open.eventful |= !open.skipped;
        }
        // Before it, so that a large one is not moved behind what is whole.
        if self.whole_bytes > 0 && self.run.bytes.len() + payload.len() >= self.sizes.run_bytes {
            self.give_whole();
        }
        self.run.push(kind, payload);
    }

    fn count(&mut self, changes: u64) {
        self.run.changes += changes;
        self.seen.changes += changes;
    }

    /// Moves what is large enough to `ready`.
    fn cut(&mut self) {
        let length = self.run.bytes.len();
        if self.whole_bytes > 0 && length >= self.sizes.run_bytes {
            self.give_whole();
        }
        let Some(open) = self.open.filter(|open| !open.skipped && open.eventful) else {
            return;
        };
        if self.run.bytes.len() >= self.sizes.piece_bytes {
            self.give(if open.in_pieces { Piece::Middle } else { Piece::First });
            self.open = Some(Open { start: 0, in_pieces: true, ..open });
        }
    }

    /// Moves the whole transactions to `ready`; the open one's beginning stays.
    fn give_whole(&mut self) {
        let rest = self.run.bytes.split_off(self.whole_bytes);
        let open_changes = self.run.changes - self.whole_changes;
        self.run.changes = self.whole_changes;
        if let Some(open) = &mut self.open {
            open.start = open.start.saturating_sub(self.whole_bytes);
        }
        self.give(Piece::Whole);
        self.run.bytes = rest;
        self.run.changes = open_changes;
    }

    /// Moves all of `run` to `ready`.
    fn give(&mut self, piece: Piece) {
        let mut run = std::mem::replace(&mut self.run, Run::new(Piece::Whole));
        run.piece = piece;
        if matches!(piece, Piece::First | Piece::Middle) {
            run.commit = None;
        }
        (self.whole_bytes, self.whole_changes, self.whole_since) = (0, 0, None);
        self.ready.push_back(run);
    }
}

/// A time as the server counts it.
fn time(Position(since_2000): Position) -> Timestamp {
    Timestamp(since_2000.cast_signed().saturating_add(POSTGRES_EPOCH_US))
}

/// The eight bytes at `at`.
fn position(body: &[u8], at: usize) -> Option<Position> {
    let bytes = body.get(at..)?.first_chunk::<8>()?;
    Some(Position(u64::from_be_bytes(*bytes)))
}

/// Whole transactions are given from this size, without waiting for the server to pause.
pub(crate) const RUN_BYTES: usize = 256 << 10;
/// A transaction larger than this is given in pieces of about this size.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// 2000-01-01 in microseconds since 1970-01-01.
pub(crate) const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{clock::Clock, source::postgres::belief::Last, source::records};

    fn begin(begins: u64) -> Vec<u8> {
        [&b"B"[..], &begins.to_be_bytes(), &0u64.to_be_bytes(), &7u32.to_be_bytes()].concat()
    }

    fn commit(begins: u64) -> Vec<u8> {
        let numbers = [begins, begins + 1, 0].map(u64::to_be_bytes).concat();
        [&b"C\0"[..], &numbers].concat()
    }

    fn insert(id: u32, bytes: usize) -> Vec<u8> {
        [&b"I"[..], &id.to_be_bytes(), b"N\0\x01t", &vec![b'x'; bytes]].concat()
    }

    fn relation(id: u32) -> Vec<u8> {
        [&b"R"[..], &id.to_be_bytes(), b"public\0t\0d\0\0"].concat()
    }

    fn now() -> Instant {
        crate::clock::SystemClock.now()
    }

    /// Pushes messages, accepts every table, and takes what is full.
    fn feed(batcher: &mut Batcher, messages: &[Vec<u8>]) -> Vec<Run> {
        let mut runs = vec![];
        for message in messages {
            if let Then::Decide(relation, bytes) = batcher.push(message, now()).unwrap() {
                batcher.relation(&bytes, relation.id, None);
            }
            runs.extend(std::iter::from_fn(|| batcher.take(false)));
        }
        runs
    }

    fn messages(runs: &[Run]) -> Vec<Vec<u8>> {
        let records = runs.iter().flat_map(|run| records(&run.bytes));
        records.map(|record| record.unwrap().1.to_vec()).collect()
    }

    #[test]
    fn a_server_that_does_not_send_again_what_is_held_went_back() {
        let batcher =
            |proof| Batcher::new(Position(20), Position(21), Sizes::default()).demand(Some(proof));
        let went_back = |mut batcher: Batcher, sent: &[Vec<u8>]| {
            let mut thens = sent.iter().map(|message| batcher.push(message, now()).unwrap());
            thens.any(|then| then == Then::WentBack)
        };
        let held = |at| Proof::Last(Last { begins: Position(20), at });
        let last = held(Some(Timestamp(POSTGRES_EPOCH_US)));
        let again = [begin(20), insert(1, 3), commit(20), begin(30), insert(1, 3), commit(30)];
        let other = [begin(19), insert(1, 3), commit(19), begin(30)];
        assert!(!went_back(batcher(last), &again));
        assert!(went_back(batcher(last), &other));
        assert!(went_back(batcher(last), &other[3..]));
        // In the same place another transaction of the same size.
        assert!(went_back(batcher(held(Some(Timestamp(POSTGRES_EPOCH_US + 1)))), &again));
        assert!(!went_back(batcher(held(None)), &again));
        // Behind the last one a mark says that nothing came, and something comes.
        let marked =
            |proof| Batcher::new(Position(25), Position(26), Sizes::default()).demand(Some(proof));
        let new = [begin(20), insert(1, 3), commit(20), begin(24), insert(1, 3), commit(24)];
        let Proof::Last(before) = last else { panic!() };
        let before = Proof::LastBeforeMark(before);
        assert!(went_back(marked(before), &new));
        assert!(!went_back(marked(before), &again));
        assert!(went_back(marked(before), &other));
        // The journal went back to a point that is no mark: others of ours lie before it.
        assert!(!went_back(marked(last), &new));
        assert!(went_back(batcher(Proof::Nothing), &other[..3]));
        let mut foreign = batcher(Proof::Nothing);
        foreign.exclude(1);
        assert!(!went_back(foreign, &other));
        // A mark comes when all that is held would have come.
        assert!(!batcher(last).believe() && batcher(Proof::Nothing).believe());
    }

    #[test]
    fn a_transaction_waits_until_the_server_pauses() {
        let mut batcher = Batcher::new(Position(0), Position(0), Sizes::default());
        let sent = [begin(10), relation(1), insert(1, 3), insert(1, 4), commit(10)];
        assert_eq!(feed(&mut batcher, &sent), []);
        let run = batcher.take(true).unwrap();
        assert_eq!((run.piece, run.changes), (Piece::Whole, 2));
        let commit = run.commit.unwrap();
        assert_eq!((commit.position, commit.begins), (Position(11), Position(10)));
        assert_eq!(messages(&[run]), sent);
        assert_eq!(batcher.take(true), None);
    }

    #[test]
    fn a_commit_that_begins_at_a_mark_is_not_skipped_and_one_before_it_is() {
        let mut batcher = Batcher::new(Position(0), Position(0), Sizes::default());
        let mark = batcher.mark(Position(20), Timestamp(9));
        assert_eq!((mark.piece, mark.changes, mark.bytes.len()), (Piece::Whole, 0, 0));
        let commit = mark.commit.unwrap();
        assert_eq!((commit.position, batcher.seen.recorded), (Position(20), Position(20)));
        let mut again = Batcher::new(commit.begins, commit.position, Sizes::default());
        let sent = [19, 20].map(|begins| [begin(begins), insert(1, 3), self::commit(begins)]);
        feed(&mut again, &sent.concat());
        assert_eq!(messages(&[again.take(true).unwrap()]), sent[1]);
        assert_eq!(again.seen.skipped, 1);
    }

    #[test]
    fn a_large_transaction_comes_in_pieces_and_what_was_whole_before_it_apart() {
        let mut batcher = Batcher::new(Position(0), Position(0), Sizes::default());
        let mut sent = vec![begin(10), insert(1, 3), commit(10), begin(20)];
        sent.extend((0..5).map(|_| insert(1, 700 << 10)));
        sent.push(commit(20));
        let runs = feed(&mut batcher, &sent);
        let pieces: Vec<_> = runs.iter().map(|run| (run.piece, run.changes)).collect();
        assert_eq!(
            pieces,
            [(Piece::Whole, 1), (Piece::First, 2), (Piece::Middle, 2), (Piece::Last, 1)]
        );
        assert_eq!(messages(&runs), sent);
        let commits: Vec<_> =
            runs.iter().map(|run| run.commit.map(|commit| commit.transactions)).collect();
        assert_eq!(commits, [Some(1), None, None, Some(1)]);
        assert!(!batcher.holds() && !batcher.is_open());
    }

    #[test]
    fn a_large_value_is_not_copied_behind_what_was_whole_before_it() {
        let mut batcher = Batcher::new(Position(0), Position(0), Sizes::default());
        let small = [begin(10), insert(1, 3), commit(10), begin(20)];
        let large = [insert(1, 2 * PIECE_BYTES), commit(20)];
        assert_eq!(feed(&mut batcher, &small), []);
        let runs = feed(&mut batcher, &large);
        let shape: Vec<_> = runs.iter().map(|run| (run.piece, run.changes)).collect();
        assert_eq!(shape, [(Piece::Whole, 1), (Piece::First, 1), (Piece::Last, 0)]);
        assert!(runs[0].bytes.capacity() < RUN_BYTES, "{}", runs[0].bytes.capacity());
        assert_eq!(messages(&runs), [&small[..], &large].concat());
    }

    #[test]
    fn what_the_journal_holds_is_skipped_but_not_its_tables() {
        let mut batcher = Batcher::new(Position(20), Position(21), Sizes::default());
        let sent = [begin(20), relation(1), insert(1, 3), commit(20)];
        assert_eq!(feed(&mut batcher, &sent), []);
        assert_eq!((batcher.take(true), batcher.seen.skipped), (None, 1));
        let next = [begin(30), insert(1, 1), commit(30)];
        feed(&mut batcher, &next);
        let run = batcher.take(true).unwrap();
        assert_eq!(run.changes, 1);
        assert_eq!(messages(&[run])[0], relation(1));
        assert_eq!(batcher.seen.recorded, Position(31));
    }

    #[test]
    fn transactions_without_our_rows_leave_no_trace_but_their_position() {
        let mut batcher = Batcher::new(Position(0), Position(0), Sizes::default());
        batcher.exclude(9);
        let truncate = [&b"T\0\0\0\x02\x01"[..], &[0, 0, 0, 9, 0, 0, 0, 1]].concat();
        feed(&mut batcher, &[begin(10), insert(9, 3), commit(10), begin(20), commit(20)]);
        assert!(!batcher.holds());
        assert_eq!((batcher.seen.received, batcher.seen.recorded), (Position(21), Position(0)));
        feed(&mut batcher, &[begin(30), truncate, commit(30)]);
        let run = batcher.take(true).unwrap();
        assert_eq!(run.changes, 1);
        assert_eq!(messages(&[run])[1], b"T\0\0\0\x01\x01\0\0\0\x01");
    }

    #[test]
    fn a_definition_follows_its_table() {
        let mut batcher = Batcher::new(Position(0), Position(0), Sizes::default());
        batcher.push(&begin(10), now()).unwrap();
        let Then::Decide(described, bytes) = batcher.push(&relation(1), now()).unwrap() else {
            panic!("a table is to be decided on");
        };
        let table: Table = serde_json::from_value(serde_json::json!({
            "id": 1, "schema": "public", "name": "t", "columns": [], "identity": "default",
        }))
        .unwrap();
        batcher.relation(&bytes, described.id, Some(&table));
        batcher.push(&insert(1, 1), now()).unwrap();
        batcher.push(&commit(10), now()).unwrap();
        let run = batcher.take(true).unwrap();
        let kinds: Vec<_> = records(&run.bytes).map(|record| record.unwrap().0 as u8).collect();
        assert_eq!(kinds, *b"mmdmm");
    }

    #[test]
    fn a_statement_is_told_once_and_what_is_reserved_is_recorded_by_nobody_else() {
        let logical =
            |prefix: &str| [&b"M\x01"[..], &[0; 8], prefix.as_bytes(), b"\0\0\0\0\x02{}"].concat();
        let mut batcher = Batcher::new(Position(10), Position(11), Sizes::default());
        feed(&mut batcher, &[begin(10)]);
        assert_eq!(batcher.push(&logical("lakehead.ddl"), now()).unwrap(), Then::Nothing, "held");
        feed(&mut batcher, &[commit(10), begin(20), insert(1, 1)]);
        for _ in 0..2 {
            let then = batcher.push(&logical("lakehead.ddl"), now()).unwrap();
            assert_eq!(then, Then::State(b"{}".into()));
            batcher.statement(&[statements::unread()], &[]);
        }
        feed(&mut batcher, &[logical("lakehead.definition"), logical("lakehead"), commit(20)]);
        let run = batcher.take(true).unwrap();
        let kinds: Vec<u8> = messages(std::slice::from_ref(&run)).iter().map(|m| m[0]).collect();
        assert_eq!((kinds, run.changes), (b"BIRIIMC".into(), 3));
    }

    #[test]
    fn messages_that_are_not_known_or_out_of_place_stop_the_stream() {
        for wrong in [&b"S\0\0\0\x01\x01"[..], b"E", b"b", b"", b"I\0\0\0\x01N", b"C\0", b"Z"] {
            assert!(
                Batcher::new(Position(0), Position(0), Sizes::default())
                    .push(wrong, now())
                    .is_err()
            );
        }
        let mut batcher = Batcher::new(Position(0), Position(0), Sizes::default());
        feed(&mut batcher, &[begin(10)]);
        assert!(batcher.push(&begin(20), now()).is_err());
        assert!(batcher.push(&commit(11), now()).is_err());
        feed(&mut batcher, &[commit(10)]);
        assert!(batcher.push(&begin(10), now()).is_err(), "the log goes only up");
    }

    proptest! {
        /// I11: whatever the sizes and pauses, what was sent comes out once, in order, in well-formed
        /// pieces, with its counts.
        #[test]
        fn what_goes_in_comes_out_once_and_in_order(
            transactions in prop::collection::vec(
                prop::collection::vec((0usize..400_000, any::<bool>()), 1..8), 1..8),
            pauses in prop::collection::vec(any::<bool>(), 64),
        ) {
            let mut batcher = Batcher::new(Position(0), Position(0), Sizes::default());
            let (mut sent, mut runs, mut changes) = (vec![], vec![], 0);
            let mut pauses = pauses.into_iter().cycle();
            for (number, rows) in transactions.iter().enumerate() {
                let begins = u64::try_from(number).unwrap() * 10 + 10;
                let mut messages = vec![begin(begins)];
                messages.extend(rows.iter().map(|(bytes, _)| insert(1, *bytes)));
                changes += rows.len() as u64;
                messages.push(commit(begins));
                for message in messages {
                    runs.extend(feed(&mut batcher, std::slice::from_ref(&message)));
                    if pauses.next().unwrap() {
                        runs.extend(batcher.take(true));
                    }
                    prop_assert!(batcher.run.bytes.len() < PIECE_BYTES + 500_000);
                    sent.push(message);
                }
            }
            runs.extend(std::iter::from_fn(|| batcher.take(true)));
            prop_assert_eq!(messages(&runs), sent);
            prop_assert_eq!(runs.iter().map(|run| run.changes).sum::<u64>(), changes);
            let mut inside = false;
            for run in &runs {
                let expected = !matches!(run.piece, Piece::Whole | Piece::First);
                prop_assert_eq!(inside, expected);
                inside = matches!(run.piece, Piece::First | Piece::Middle);
                prop_assert_eq!(run.commit.is_none(), inside);
            }
            let counted: u32 = runs.iter().filter_map(|run| run.commit).map(|c| c.transactions).sum();
            prop_assert_eq!(counted as usize, transactions.len());
        }
    }
}
