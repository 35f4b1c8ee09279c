//! Texts of one column, growing. Pure.
//!
//! Those of many rows are looked at together: most are ASCII, which takes next to nothing to see.
//!
//! **Invariant:** each of them is UTF-8.

use std::{mem, str};

use arrow_array::StringArray;
use arrow_buffer::{Buffer, NullBufferBuilder, OffsetBuffer, ScalarBuffer};

use super::arrays::fits;
use crate::journal::Place;

/// Texts, or NULL.
#[derive(Debug)]
pub(super) struct Texts {
    /// Where each begins, and the last one ends.
    bounds: Vec<i32>,
    values: Vec<u8>,
    present: NullBufferBuilder,
}

impl Texts {
    /// None yet, and room for so many, of so many bytes.
    pub(super) fn with_capacity(elements: usize, bytes: usize) -> Self {
        let mut bounds = Vec::with_capacity(elements + 1);
        bounds.push(0);
        let (values, present) = (Vec::with_capacity(bytes), NullBufferBuilder::new(elements));
        Self { bounds, values, present }
    }

    /// Bytes of all.
    pub(super) fn bytes(&self) -> usize {
        self.values.len()
    }

    /// Appends a text; `None`, and nothing appended, if it has no room.
    pub(super) fn push(&mut self, text: &str) -> Option<()> {
        self.put(text.as_bytes(), &[])?;
        self.present.append_non_null();
        Some(())
    }

    /// Appends a NULL.
    pub(super) fn push_null(&mut self) {
        self.end();
        self.present.append_null();
    }

    /// Appends a text so many times: fewer, if it has no room.
    pub(super) fn repeat(&mut self, text: &str, rows: usize) -> usize {
        (0..rows).take_while(|_| self.push(text).is_some()).count()
    }

    /// Appends the texts of cells that are NULL, or UTF-8 behind a byte `prefix` if there is to be one, up to the first that
    /// is not: how many.
    pub(super) fn extend(&mut self, places: &[Place], bytes: &[u8], prefix: Option<u8>) -> usize {
        let mut done = 0;
        for some in places.chunks(TOGETHER) {
            let taken = self.extend_together(some, bytes, prefix);
            done += taken;
            if taken < some.len() {
                break;
            }
        }
        done
    }

    fn extend_together(&mut self, places: &[Place], bytes: &[u8], prefix: Option<u8>) -> usize {
        let (before, from) = (self.bounds.len(), self.values.len());
        let mut nulls = 0;
        for place in places {
            match place.value(bytes) {
                Some(cell) => {
                    let skip = match (prefix, cell.first()) {
                        (None, _) => 0,
                        (Some(prefix), Some(first)) if *first == prefix => 1,
                        _ => break,
                    };
                    let behind = &place.from(bytes)[skip..];
                    if self.put(&cell[skip..], behind).is_none() {
                        break;
                    }
                }
                None if place.is_null() => {
                    self.end();
                    nulls += 1;
                }
                None => break,
            }
        }
        if !self.values[from..].is_ascii() {
            self.cut_behind_utf8(before);
        }
        let done = self.bounds.len() - before;
        match nulls {
            0 => self.present.append_n_non_nulls(done),
            _ => places[..done].iter().for_each(|place| self.present.append(!place.is_null())),
        }
        done
    }

    /// The array of these, and begins anew.
    pub(super) fn finish(&mut self) -> StringArray {
        let bounds = mem::replace(&mut self.bounds, vec![0]);
        let bounds = OffsetBuffer::new(ScalarBuffer::from(bounds));
        let values = Buffer::from_vec(mem::take(&mut self.values));
        let array = StringArray::try_new(bounds, values, self.present.finish());
        array.expect("each text was looked at when it came")
    }

    /// `behind`: the text, and what stands behind it.
    fn put(&mut self, text: &[u8], behind: &[u8]) -> Option<()> {
        fits(self.values.len(), text.len())?;
        copy(&mut self.values, text, behind);
        self.end();
        Some(())
    }

    fn end(&mut self) {
        self.bounds.push(i32::try_from(self.values.len()).expect("as `fits` says"));
    }

    /// Of the texts behind the bound `before` drops the first that is not UTF-8, and those behind it.
    fn cut_behind_utf8(&mut self, before: usize) {
        let bounds = &self.bounds[before - 1..];
        let is_text = |ends: &[i32]| {
            let text = usize::try_from(ends[0]).ok().zip(usize::try_from(ends[1]).ok());
            let text = text.and_then(|(from, to)| self.values.get(from..to));
            text.is_some_and(|text| str::from_utf8(text).is_ok())
        };
        let good = bounds.windows(2).take_while(|ends| is_text(ends)).count();
        self.bounds.truncate(before + good);
        let end = self.bounds.last().and_then(|end| usize::try_from(*end).ok());
        self.values.truncate(end.unwrap_or(0));
    }
}

/// Appends `bytes`, with which `behind` begins if it is long enough: short ones are copied in a step of fixed length, and
/// cut, which takes a third of asking for their length first.
#[inline]
pub(super) fn copy(to: &mut Vec<u8>, bytes: &[u8], behind: &[u8]) {
    match behind.first_chunk::<STEP_BYTES>() {
        Some(step) if bytes.len() <= STEP_BYTES => {
            let end = to.len() + bytes.len();
            to.extend_from_slice(step);
            to.truncate(end);
        }
        _ => to.extend_from_slice(bytes),
    }
}

/// Short bytes are as many at most.
pub(super) const STEP_BYTES: usize = 32;
/// So many are looked at together: where one is no text, those behind it were copied for nothing.
const TOGETHER: usize = 64;

#[cfg(test)]
mod tests {
    use arrow_array::Array;

    use super::*;

    /// Cells that hold these, and what they point into.
    fn cells(values: &[Option<&[u8]>]) -> (Vec<Place>, Vec<u8>) {
        let mut bytes = vec![];
        let place = |value: &Option<&[u8]>| match value {
            Some(value) => {
                bytes.extend_from_slice(value);
                Place::binary(bytes.len() - value.len()..bytes.len()).unwrap()
            }
            None => Place::NULL,
        };
        let places = values.iter().map(place).collect();
        (places, bytes)
    }

    fn found(texts: &mut Texts) -> Vec<Option<String>> {
        texts.finish().iter().map(|text| text.map(str::to_owned)).collect()
    }

    #[test]
    fn texts_are_taken_up_to_the_first_that_is_none() {
        let mut texts = Texts::with_capacity(0, 0);
        let (places, bytes) = cells(&[Some(b"a"), None, Some("é".as_bytes()), Some(b"")]);
        assert_eq!(texts.extend(&places, &bytes, None), 4);
        let (places, bytes) = cells(&[Some("ü".as_bytes()), None, Some(b"\xFF"), Some(b"c")]);
        assert_eq!(texts.extend(&places, &bytes, None), 2);
        texts.push("\u{FFFD}").unwrap();
        assert_eq!(texts.extend(&places[3..], &bytes, None), 1);
        texts.push_null();
        assert_eq!(texts.repeat("r", 2), 2);
        let [a, e, empty, u, bad, c, r] = ["a", "é", "", "ü", "\u{FFFD}", "c", "r"].map(Some);
        let expected = [a, None, e, empty, u, None, bad, c, None, r, r];
        assert_eq!(found(&mut texts), expected.map(|text| text.map(str::to_owned)));
        assert_eq!((texts.bytes(), texts.finish().len()), (0, 0));
    }

    #[test]
    fn halves_of_one_character_are_no_texts_though_together_they_are() {
        let mut texts = Texts::with_capacity(2, 8);
        let (places, bytes) = cells(&[Some(b"x\xC3"), Some(b"\xA9y")]);
        assert_eq!(texts.extend(&places, &bytes, None), 0);
        let (places, bytes) = cells(&[Some(b"x"), Some(b"\xC3"), Some(b"\xA9")]);
        assert_eq!(texts.extend(&places, &bytes, None), 1);
        assert_eq!(found(&mut texts), [Some("x".to_owned())]);
    }

    #[test]
    fn what_stands_before_a_text_is_to_be_there_and_left_out() {
        let mut texts = Texts::with_capacity(0, 0);
        let (mut places, bytes) = cells(&[Some(b"\x01{}"), Some(b"\x01"), Some(b"\x02{}")]);
        assert_eq!(texts.extend(&places, &bytes, Some(1)), 2);
        places[0] = Place::UNCHANGED;
        assert_eq!(texts.extend(&places, &bytes, Some(1)), 0);
        assert_eq!(found(&mut texts), [Some("{}".to_owned()), Some(String::new())]);
    }
}
