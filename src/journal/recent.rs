//! The last batches as they came: who reads right behind the writer need not read and unpack them again. Pure.
//!
//! **Invariant:** what is here is durable, and is what the log holds under its number. Each is given once, to the one who
//! follows; who needs another finds it in the log.

use std::collections::VecDeque;

use super::{Batch, Piece};

/// Batches that nobody has read yet, the last ones.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// Somebody reads behind the writer.
    followed: bool,
    /// In the order of their numbers.
    batches: VecDeque<Batch>,
    bytes: usize,
}

impl Recent {
    /// From here on some are kept.
    pub(crate) fn follow(&mut self) {
        self.followed = true;
    }

    /// Whether one of so many bytes is worth keeping until it is durable: not a piece of a transaction, whose end must be
    /// known before it is read, and not a large one.
    pub(crate) fn wants(&self, piece: Piece, bytes: usize) -> bool {
        self.followed && piece == Piece::Whole && bytes <= BYTES_MAX / 4
    }

    /// Keeps a batch, which is durable, in place of those before it.
    pub(crate) fn put(&mut self, batch: Batch) {
        self.bytes += weight(&batch);
        self.batches.push_back(batch);
        while self.bytes > BYTES_MAX {
            self.pop();
        }
    }

    /// Batch `number`, if it is here. Those before it are not asked for any more.
    pub(crate) fn take(&mut self, number: u64) -> Option<Batch> {
        while self.batches.front().is_some_and(|batch| batch.number < number) {
            self.pop();
        }
        let is_it = self.batches.front().is_some_and(|batch| batch.number == number);
        if is_it { self.pop() } else { None }
    }

    fn pop(&mut self) -> Option<Batch> {
        let batch = self.batches.pop_front()?;
        self.bytes -= weight(&batch);
        Some(batch)
    }
}

/// Bytes that a batch takes, also one without rows.
fn weight(batch: &Batch) -> usize {
    size_of::<Batch>() + batch.bytes.capacity()
}

/// Of all that are kept: what comes while a row group ends.
const BYTES_MAX: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Sequence;

    fn batch(number: u64, bytes: usize) -> Batch {
        let (piece, first) = (Piece::Whole, Sequence(number));
        let bytes = vec![0; bytes];
        Batch { number, piece, first, changes: 1, commit: None, ends: None, bytes }
    }

    #[test]
    fn the_last_ones_are_given_once_and_in_order() {
        let mut recent = Recent::default();
        assert!(!recent.wants(Piece::Whole, 1), "nobody follows");
        recent.follow();
        assert!(
            recent.wants(Piece::Whole, BYTES_MAX / 4) && !recent.wants(Piece::Whole, BYTES_MAX)
        );
        assert!(!recent.wants(Piece::First, 1) && !recent.wants(Piece::Last, 1));
        (1..=5).for_each(|number| recent.put(batch(number, 1000)));
        assert_eq!(recent.take(2), Some(batch(2, 1000)));
        assert_eq!((recent.take(2), recent.take(1)), (None, None));
        assert_eq!((recent.take(3), recent.take(5)), (Some(batch(3, 1000)), Some(batch(5, 1000))));
        assert_eq!((recent.bytes, recent.batches.len()), (0, 0));
        (6..=10).for_each(|number| recent.put(batch(number, BYTES_MAX / 4)));
        assert_eq!(recent.batches.len(), 3, "no more than is allowed");
        assert_eq!(recent.take(7), None);
        assert_eq!(recent.take(8).map(|batch| batch.number), Some(8));
        // Marks have no rows, and take memory all the same.
        (11..=100_000).for_each(|number| recent.put(batch(number, 0)));
        assert!(recent.batches.len() * size_of::<Batch>() <= BYTES_MAX);
    }
}
