//! Which segments there are and which batches they hold. Pure.
//!
//! **Invariant (I8):** a segment is given up only when all its batches are at or before the trim
//! point, and never the last one: the head of each holds all that is needed of those before it.

use std::path::PathBuf;

/// The segments, by number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalogue(Vec<Entry>);

/// One segment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Entry {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    /// Number of the first batch that it can hold; `None` if its header is damaged.
    pub(crate) first_batch: Option<u64>,
    pub(crate) bytes: u64,
}

impl Catalogue {
    /// Adds the newest.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.0.push(entry);
    }

    /// Notes the length of the newest.
    pub(crate) fn grow(&mut self, bytes: u64) {
        if let Some(last) = self.0.last_mut() {
            last.bytes = bytes;
        }
    }

    /// Where to begin looking for `batch`.
    pub(crate) fn locate(&self, batch: u64) -> Option<&Entry> {
        self.0.iter().rev().find(|entry| entry.first_batch.is_some_and(|first| first <= batch))
    }

    /// Whether segment `number` is still there.
    pub(crate) fn holds(&self, number: u64) -> bool {
        self.0.iter().any(|entry| entry.number == number)
    }

    /// The segment after `number`.
    pub(crate) fn after(&self, number: u64) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.number > number)
    }

    /// The first batch of the segment after `number`, or of the next one of which it is known.
    pub(crate) fn first_after(&self, number: u64) -> Option<u64> {
        let later = self.0.iter().filter(|entry| entry.number > number);
        later.filter_map(|entry| entry.first_batch).next()
    }

    /// Takes out what can be unlinked once all batches through `through` are in the lake.
    pub(crate) fn take_trimmed(&mut self, through: u64) -> Vec<Entry> {
        let firsts: Vec<_> = self.0.iter().map(|entry| entry.first_batch).collect();
        let mut place = 0;
        let extracted = self.0.extract_if(.., |entry| {
            let later = &firsts[place + 1..];
            place += 1;
            let Some(end) = later.iter().flatten().next() else { return false };
            let empty = entry.first_batch == Some(*end);
            empty || *end <= through.saturating_add(1)
        });
        extracted.collect()
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|entry| entry.bytes).sum()
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(firsts: &[Option<u64>]) -> Catalogue {
        let entries = firsts.iter().zip(1..).map(|(first_batch, number)| Entry {
            number,
            path: PathBuf::new(),
            first_batch: *first_batch,
            bytes: 10,
        });
        Catalogue(entries.collect())
    }

    fn trimmed(firsts: &[Option<u64>], through: u64) -> Vec<u64> {
        let mut catalogue = catalogue(firsts);
        let taken = catalogue.take_trimmed(through);
        assert_eq!(catalogue.bytes(), 10 * (firsts.len() - taken.len()) as u64);
        taken.iter().map(|entry| entry.number).collect()
    }

    #[test]
    fn a_segment_goes_when_its_last_batch_is_trimmed_and_not_before() {
        let firsts = [Some(1), Some(5), Some(9)];
        assert_eq!(trimmed(&firsts, 3), [0; 0]);
        assert_eq!(trimmed(&firsts, 4), [1]);
        assert_eq!(trimmed(&firsts, u64::MAX), [1, 2]);
    }

    #[test]
    fn an_empty_segment_goes_at_once_and_a_damaged_one_by_its_neighbour() {
        assert_eq!(trimmed(&[Some(1), Some(5), Some(5), Some(5)], 0), [2, 3]);
        assert_eq!(trimmed(&[Some(1), None, Some(5)], 3), [0; 0]);
        assert_eq!(trimmed(&[Some(1), None, Some(5)], 4), [1, 2]);
    }

    #[test]
    fn a_batch_is_looked_for_in_the_last_segment_that_can_hold_it() {
        let catalogue = catalogue(&[Some(3), Some(5), Some(5), None]);
        assert_eq!(catalogue.locate(4).unwrap().number, 1);
        assert_eq!(catalogue.locate(5).unwrap().number, 3);
        assert!(catalogue.locate(2).is_none());
        assert_eq!(catalogue.after(3).unwrap().number, 4);
    }
}
