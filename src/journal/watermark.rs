//! How far the journal is: the durable watermark, the numbers given next, and the torn ranges. Pure.
//!
//! **Invariant (I4, I17):** the watermark stands at the end of a whole transaction; batches are
//! numbered densely and never again; sequences are dense over the transactions that were not torn.

use super::record::{Fields, are_counts};
use crate::{
    source::{Commit, Durable, Piece, Run},
    units::{Point, Position, Sequence, Timestamp},
};

/// The state after a frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Progress {
    /// The end of the last whole transaction.
    pub(crate) durable: Durable,
    /// Number of the next batch.
    pub(crate) next_batch: u64,
    /// Sequence of the next change.
    pub(crate) next_sequence: u64,
    /// First batch of a transaction whose end has not come.
    pub(crate) open: Option<u64>,
    /// Batches of transactions whose end never came.
    pub(crate) torn: Torn,
}

/// Ranges of batches that nobody reads, ascending, apart.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Torn(Vec<(u64, u64)>);

impl Default for Progress {
    fn default() -> Self {
        Self {
            durable: Durable::default(),
            next_batch: 1,
            next_sequence: 1,
            open: None,
            torn: Torn::default(),
        }
    }
}

impl Progress {
    /// Of a journal that begins behind `point`: what ended at or before it is held elsewhere, for good.
    pub(crate) fn behind(point: Point) -> Self {
        // A commit record that ends at or before the point begins before it.
        let begins = Position(point.position.0.saturating_sub(1));
        Self {
            durable: Durable { point, begins, ..Durable::default() },
            next_sequence: point.sequence.0.saturating_add(1),
            ..Self::default()
        }
    }

    /// Goes past one batch. One that cannot follow is taken as it is: [`fits`] was asked before.
    pub(crate) fn advance(&mut self, piece: Piece, changes: u64, commit: Option<Commit>) {
        let batch = self.next_batch;
        // Saturating: behind damage the numbers can be anything.
        self.next_batch = batch.saturating_add(1);
        self.next_sequence = self.next_sequence.saturating_add(changes);
        match piece {
            Piece::First => self.open = Some(batch),
            Piece::Middle => {}
            Piece::Whole | Piece::Last => {
                self.open = None;
                let commit = commit.unwrap_or_default();
                let point = Point {
                    sequence: Sequence(self.next_sequence.saturating_sub(1)),
                    position: commit.position,
                };
                let before = self.durable.transactions;
                self.durable = Durable {
                    point,
                    batch,
                    begins: commit.begins,
                    at: commit.at,
                    transactions: before.saturating_add(commit.transactions.into()),
                };
            }
        }
    }

    /// Gives up the open transaction, if there is one: its sequences are given again, its batches
    /// are torn.
    pub(crate) fn tear(&mut self) -> Option<(u64, u64)> {
        let range = (self.open.take()?, self.next_batch - 1);
        self.next_sequence = self.durable.point.sequence.0 + 1;
        self.torn.add(range);
        Some(range)
    }

    /// As [`Progress::tear`], read from the log.
    pub(crate) fn torn(&mut self, (from, to): (u64, u64)) {
        self.open = None;
        self.next_batch = self.next_batch.max(to.saturating_add(1));
        self.next_sequence = self.durable.point.sequence.0.saturating_add(1);
        self.torn.add((from, to));
    }

    /// Goes past damage to where the next batch and change are known to stand. The watermark stays.
    pub(crate) fn lose(&mut self, next_batch: u64, next_sequence: u64) {
        self.next_batch = self.next_batch.max(next_batch);
        self.next_sequence = next_sequence;
    }

    /// Nothing whole follows the batches lost from `batch` on: they are to be torn.
    pub(crate) fn give_up(&mut self, batch: u64) {
        self.torn.0.retain(|(from, _)| *from < batch);
        self.open = Some(self.open.map_or(batch, |open| open.min(batch)));
    }

    /// Goes on at `to`, the end of a whole transaction: what came after it is read by no one.
    pub(crate) fn rewind(&mut self, to: Durable) {
        self.open = None;
        self.torn.0.retain(|(from, _)| *from <= to.batch);
        if self.next_batch > to.batch + 1 {
            self.torn.add((to.batch + 1, self.next_batch - 1));
        }
        self.durable = to;
        self.next_batch = self.next_batch.max(to.batch.saturating_add(1));
        self.next_sequence = to.point.sequence.0.saturating_add(1);
    }

    /// The plaintext of a Progress frame.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let durable = self.durable;
        let fields = [
            durable.point.sequence.0,
            durable.point.position.0,
            durable.batch,
            durable.begins.0,
            self.next_batch,
            self.next_sequence,
            self.open.unwrap_or(0),
        ];
        let mut bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
        let ranges = u32::try_from(self.torn.0.len()).expect("fewer torn ranges than sessions");
        bytes.extend_from_slice(&ranges.to_le_bytes());
        for (from, to) in &self.torn.0 {
            bytes.extend_from_slice(&from.to_le_bytes());
            bytes.extend_from_slice(&to.to_le_bytes());
        }
        bytes.extend_from_slice(&durable.transactions.to_le_bytes());
        bytes.extend_from_slice(&durable.at.0.to_le_bytes());
        bytes
    }

    /// Reads it. `None`: the bytes are none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let (sequence, position) = (Sequence(fields.u64()?), Position(fields.u64()?));
        let (batch, begins) = (fields.u64()?, Position(fields.u64()?));
        let (next_batch, next_sequence) = (fields.u64()?, fields.u64()?);
        are_counts(&[sequence.0, batch, next_batch, next_sequence])?;
        (next_batch > 0).then_some(())?;
        let open = Some(fields.u64()?).filter(|batch| *batch != 0);
        let mut torn = Torn::default();
        for _ in 0..fields.u32()? {
            torn.0.push((fields.u64()?, fields.u64()?));
        }
        // Written before transactions were counted, or before their time was kept: it ends here.
        let transactions = if fields.0.is_empty() { 0 } else { fields.u64()? };
        let at = Timestamp(if fields.0.is_empty() { 0 } else { fields.u64()?.cast_signed() });
        let point = Point { sequence, position };
        let durable = Durable { point, batch, begins, at, transactions };
        fields.0.is_empty().then_some(Self { durable, next_batch, next_sequence, open, torn })
    }
}

impl Torn {
    /// Adds a range after all others.
    pub(crate) fn add(&mut self, (from, to): (u64, u64)) {
        match self.0.last_mut() {
            Some((_, end)) if end.saturating_add(1) == from => *end = to,
            _ => self.0.push((from, to)),
        }
    }

    /// The last batch of the torn range that `batch` lies in.
    pub(crate) fn end_of(&self, batch: u64) -> Option<u64> {
        let after = self.0.partition_point(|(from, _)| *from <= batch);
        let (_, to) = self.0.get(after.checked_sub(1)?)?;
        (batch <= *to).then_some(*to)
    }

    /// Forgets what lies wholly at or before `through`.
    pub(crate) fn trim(&mut self, through: u64) {
        self.0.retain(|(_, to)| *to > through);
    }

    /// The ranges.
    pub(crate) fn ranges(&self) -> &[(u64, u64)] {
        &self.0
    }
}

/// Whether `piece` may come, with (`true`) or without an open transaction before it. Gives whether
/// one is open after it.
pub(crate) fn follows(open: bool, piece: Piece) -> Option<bool> {
    match (open, piece) {
        (false, Piece::Whole) | (true, Piece::Last) => Some(false),
        (false, Piece::First) | (true, Piece::Middle) => Some(true),
        (false, Piece::Middle | Piece::Last) | (true, Piece::Whole | Piece::First) => None,
    }
}

/// Whether `run` may come, with (`true`) or without an open transaction before it. Gives whether one
/// is open after it, or what is wrong.
pub(crate) fn fits(open: bool, run: &Run) -> Result<bool, String> {
    let piece = run.piece;
    match (run.piece, run.commit) {
        (Piece::Whole | Piece::Last, None) => {
            return Err(format!("a {piece:?} piece comes with its commit"));
        }
        (Piece::First | Piece::Middle, Some(_)) => {
            return Err(format!("a {piece:?} piece has no commit"));
        }
        _ => {}
    }
    follows(open, piece).ok_or_else(|| {
        let before = if open { "an open" } else { "no open" };
        format!("a {piece:?} piece cannot come with {before} transaction before it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(position: u64) -> Option<Commit> {
        Some(Commit {
            position: Position(position),
            begins: Position(position - 1),
            at: Timestamp(7),
            transactions: 2,
        })
    }

    #[test]
    fn the_watermark_moves_at_ends_of_transactions_only() {
        let mut progress = Progress::default();
        progress.advance(Piece::Whole, 3, commit(10));
        assert_eq!((progress.durable.batch, progress.durable.point.sequence), (1, Sequence(3)));
        progress.advance(Piece::First, 2, None);
        progress.advance(Piece::Middle, 2, None);
        assert_eq!(progress.durable.batch, 1);
        progress.advance(Piece::Last, 1, commit(20));
        let end = Point { sequence: Sequence(8), position: Position(20) };
        assert_eq!(
            progress.durable,
            Durable {
                point: end,
                batch: 4,
                begins: Position(19),
                at: Timestamp(7),
                transactions: 4
            }
        );
    }

    #[test]
    fn what_was_lost_counts_only_before_a_whole_transaction() {
        let mut progress = Progress::default();
        progress.advance(Piece::Whole, 3, commit(10));
        progress.lose(4, 9);
        progress.advance(Piece::First, 1, None);
        progress.torn((4, 4));
        let mut behind = progress.clone();
        behind.advance(Piece::Whole, 1, commit(30));
        assert_eq!((behind.durable.batch, behind.torn.ranges()), (5, &[(4, 4)][..]));
        progress.give_up(2);
        progress.tear();
        assert_eq!((progress.durable.batch, progress.torn.ranges()), (1, &[(2, 4)][..]));
        assert_eq!(progress.next_sequence, 4);
    }

    #[test]
    fn a_log_that_goes_on_at_an_earlier_point_gives_what_came_after_it_to_no_one() {
        let mut progress = Progress::default();
        progress.advance(Piece::Whole, 3, commit(10));
        let to = progress.durable;
        progress.advance(Piece::First, 1, None);
        progress.tear();
        progress.advance(Piece::Whole, 2, commit(20));
        progress.advance(Piece::First, 1, None);
        progress.rewind(to);
        assert_eq!((progress.durable, progress.next_batch, progress.next_sequence), (to, 5, 4));
        assert_eq!((progress.open, progress.torn.ranges()), (None, &[(2, 4)][..]));
        let ahead = Durable { batch: 9, ..to };
        progress.rewind(ahead);
        assert_eq!((progress.durable, progress.next_batch), (ahead, 10));
    }

    #[test]
    fn a_torn_transaction_gives_its_sequences_back_and_keeps_its_batch_numbers() {
        let mut progress = Progress::default();
        progress.advance(Piece::Whole, 3, commit(10));
        progress.advance(Piece::First, 2, None);
        progress.advance(Piece::Middle, 2, None);
        assert_eq!(progress.tear(), Some((2, 3)));
        assert_eq!(progress.tear(), None);
        assert_eq!((progress.next_batch, progress.next_sequence), (4, 4));
        progress.advance(Piece::First, 2, None);
        progress.tear();
        assert_eq!(progress.torn.ranges(), [(2, 4)]);
        assert_eq!(
            [1, 2, 4, 5].map(|batch| progress.torn.end_of(batch)),
            [None, Some(4), Some(4), None]
        );
    }

    #[test]
    fn the_bytes_of_progress_are_pinned() {
        let mut progress = Progress::default();
        progress.advance(Piece::Whole, 3, commit(10));
        progress.advance(Piece::First, 1, None);
        progress.tear();
        progress.advance(Piece::First, 1, None);
        let expected = "03000000000000000a0000000000000001000000000000000900000000000000\
                        04000000000000000500000000000000\
                        0300000000000000\
                        0100000002000000000000000200000000000000\
                        02000000000000000700000000000000";
        assert_eq!(hex::encode(progress.encode()), expected);
        assert_eq!(Progress::decode(&progress.encode()), Some(progress.clone()));
        assert_eq!(Progress::decode(&progress.encode()[1..]), None);
    }

    #[test]
    fn progress_of_earlier_firmwares_is_read() {
        let mut progress = Progress::default();
        progress.advance(Piece::Whole, 3, commit(10));
        let bytes = progress.encode();
        progress.durable.at = Timestamp(0);
        assert_eq!(Progress::decode(&bytes[..bytes.len() - 8]), Some(progress.clone()));
        progress.durable.transactions = 0;
        assert_eq!(Progress::decode(&bytes[..bytes.len() - 16]), Some(progress));
    }

    #[test]
    fn pieces_come_in_the_order_of_a_transaction() {
        use Piece::{First, Last, Middle, Whole};
        assert_eq!(
            [Whole, First, Middle, Last].map(|p| follows(false, p)),
            [Some(false), Some(true), None, None]
        );
        assert_eq!(
            [Whole, First, Middle, Last].map(|p| follows(true, p)),
            [None, None, Some(true), Some(false)]
        );
    }
}
