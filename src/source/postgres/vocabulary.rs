//! The texts of enums that the stream has met since their labels were read. Pure.
//!
//! A label that ALTER TYPE adds comes without a word in the stream: the table is not described again. But
//! it was there before the row that has it was committed, so labels read after the row came have it. A row
//! all of whose texts were met before needs no such look.
//!
//! **Invariant:** [`Vocabulary::is_news`] says so of every row with a text that it has not seen in its
//! column, whatever is made of the labels: arrays, domains, composites, ranges.

use std::collections::{BTreeMap, HashSet};

/// Texts by table.
#[derive(Debug, Default)]
pub(crate) struct Vocabulary(BTreeMap<u32, Vec<Option<Known>>>);

/// Texts of one column.
#[derive(Clone, Debug, Default)]
struct Known(HashSet<Box<[u8]>>);

impl Vocabulary {
    /// A table's columns, as its rows have them: whether each is made of labels.
    pub(crate) fn describe(&mut self, table_id: u32, labelled: impl Iterator<Item = bool>) {
        let columns: Vec<_> = labelled.map(|labelled| labelled.then(Known::default)).collect();
        match columns.iter().any(Option::is_some) {
            true => self.0.insert(table_id, columns),
            false => self.0.remove(&table_id),
        };
    }

    /// Whether a row is the first to have some text since its table was described; then that table.
    /// A message that is none of a row, or of a table without labels, is no news.
    pub(crate) fn is_news(&mut self, message: &[u8]) -> Option<u32> {
        let (b'I' | b'U' | b'D', mut rest) =
            message.split_first().map(|(kind, rest)| (*kind, rest))?
        else {
            return None;
        };
        let id = u32::from_be_bytes(take(&mut rest)?);
        let columns = self.0.get_mut(&id)?;
        let mut news = false;
        // An old row, a new row, or both: each a letter and a tuple.
        while let Some([_]) = take::<1>(&mut rest) {
            let count = u16::from_be_bytes(take(&mut rest)?);
            for at in 0..usize::from(count) {
                let text = match take(&mut rest)? {
                    [b't' | b'b'] => {
                        let length = u32::from_be_bytes(take(&mut rest)?);
                        let (text, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                        rest = after;
                        text
                    }
                    _ => continue,
                };
                if let Some(Some(known)) = columns.get_mut(at) {
                    news |= known.meet(text);
                }
            }
        }
        news.then_some(id)
    }
}

impl Known {
    /// Remembers a text. Whether it is new.
    fn meet(&mut self, text: &[u8]) -> bool {
        if self.0.contains(text) {
            return false;
        }
        if text.len() <= TEXT_BYTES_MAX {
            if self.0.len() >= TEXTS_MAX {
                self.0.clear();
            }
            self.0.insert(text.into());
        }
        true
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

/// Texts remembered of one column, 256 KiB at most.
const TEXTS_MAX: usize = 1000;
/// A longer text is news each time.
const TEXT_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tuple(values: &[Option<&str>]) -> Vec<u8> {
        let mut bytes = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
        for value in values {
            match value {
                Some(text) => {
                    bytes.push(b't');
                    bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                    bytes.extend(text.as_bytes());
                }
                None => bytes.push(b'n'),
            }
        }
        bytes
    }

    fn insert(values: &[Option<&str>]) -> Vec<u8> {
        [&b"I\0\0\0\x07N"[..], &tuple(values)].concat()
    }

    fn told() -> Vocabulary {
        let mut vocabulary = Vocabulary::default();
        vocabulary.describe(7, [false, true, true].into_iter());
        vocabulary
    }

    #[test]
    fn a_text_is_news_once_in_each_column_of_labels() {
        let mut vocabulary = told();
        let mut news = |values: &[Option<&str>]| vocabulary.is_news(&insert(values));
        assert_eq!(news(&[Some("1"), Some("sad"), None]), Some(7));
        assert_eq!(news(&[Some("2"), Some("sad"), None]), None);
        assert_eq!(news(&[Some("2"), None, Some("sad")]), Some(7));
        assert_eq!(news(&[Some("3"), Some("glad"), Some("sad")]), Some(7));
        assert_eq!(vocabulary.is_news(b"T\0\0\0\x01\0\0\0\0\x07"), None);
        vocabulary.describe(7, [false, true, true].into_iter());
        assert_eq!(vocabulary.is_news(&insert(&[None, Some("sad")])), Some(7), "described anew");
        vocabulary.describe(7, [false, false, false].into_iter());
        assert_eq!(vocabulary.is_news(&insert(&[None, Some("new")])), None);
    }

    #[test]
    fn old_and_new_rows_of_an_update_are_both_looked_at() {
        let mut vocabulary = told();
        vocabulary.is_news(&insert(&[None, Some("sad")]));
        let update = |old: &str, new: &str| {
            let (old, new) = (tuple(&[None, Some(old)]), tuple(&[None, Some(new)]));
            [&b"U\0\0\0\x07O"[..], &old, b"N", &new].concat()
        };
        assert_eq!(vocabulary.is_news(&update("sad", "sad")), None);
        assert_eq!(vocabulary.is_news(&update("sad", "glad")), Some(7));
        assert_eq!(vocabulary.is_news(&update("odd", "glad")), Some(7));
    }

    #[test]
    fn what_is_not_remembered_is_news_again() {
        let mut vocabulary = told();
        let long = "x".repeat(TEXT_BYTES_MAX + 1);
        assert_eq!(vocabulary.is_news(&insert(&[None, Some(&long)])), Some(7));
        assert_eq!(vocabulary.is_news(&insert(&[None, Some(&long)])), Some(7));
        for n in 0..TEXTS_MAX * 2 + 1 {
            assert_eq!(vocabulary.is_news(&insert(&[None, Some(&n.to_string())])), Some(7));
        }
        assert_eq!(vocabulary.is_news(&insert(&[None, Some("0")])), Some(7));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            told().is_news(&[&b"I\0\0\0\x07"[..], &bytes].concat());
        }
    }
}
