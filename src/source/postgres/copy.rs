//! Binary COPY: the framing of a table's rows. Pure.
//!
//! `PGCOPY\n\xFF\r\n\0 | u32 flags | u32 length of extension | extension | tuples | i16 -1`, a tuple
//! being `i16 columns | columns × (i32 length, -1 for NULL | bytes)`, all big-endian.
//! <https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4>
//!
//! PostgreSQL sends one tuple in each CopyData message, the header glued to the first, the trailer
//! alone in the last. [`CopyFramer`] does not rely on it.

use super::{
    super::{Cells, DecodeError, Place, Table},
    gulp::FRAME_BYTES,
    pgoutput::sent,
};

/// Cuts what COPY sends into whole tuples, without header and trailer.
#[derive(Debug, Default)]
pub struct CopyFramer {
    state: State,
    /// The beginning of a header or tuple whose rest has not come.
    pending: Vec<u8>,
    tuples: u64,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    #[default]
    Header,
    Tuples,
    Ended,
}

impl CopyFramer {
    /// Before the header.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what came and appends the tuples that are now whole. Gives their number.
    ///
    /// # Errors
    ///
    /// The bytes are no binary COPY. Nothing was appended.
    pub fn push(&mut self, data: &[u8], tuples: &mut Vec<u8>) -> Result<u64, DecodeError> {
        if self.pending.is_empty() {
            let (used, count) = self.frame(data, tuples)?;
            self.pending.extend_from_slice(&data[used..]);
            return Ok(count);
        }
        let mut held = std::mem::take(&mut self.pending);
        held.extend_from_slice(data);
        let (used, count) = self.frame(&held, tuples)?;
        held.drain(..used);
        self.pending = held;
        Ok(count)
    }

    /// Checks that the trailer has come and nothing after it. Gives the number of tuples in all.
    ///
    /// # Errors
    ///
    /// The COPY was cut short.
    pub fn finish(&self) -> Result<u64, DecodeError> {
        let ended = self.state == State::Ended && self.pending.is_empty();
        ended.then_some(self.tuples).ok_or(DecodeError::Length { what: "a binary COPY" })
    }

    /// Appends the whole tuples of `data`; gives how much of it was used, and their number.
    fn frame(&mut self, data: &[u8], tuples: &mut Vec<u8>) -> Result<(usize, u64), DecodeError> {
        let mut at = 0;
        let mut state = self.state;
        if state == State::Header {
            let Some(length) = header_bytes(data)? else { return Ok((0, 0)) };
            at = length;
            state = State::Tuples;
        }
        let start = at;
        let mut count = 0;
        while state == State::Tuples {
            match tuple_bytes(&data[at..])? {
                Tuple::Whole(length) => {
                    at += length;
                    count += 1;
                }
                Tuple::Cut => break,
                Tuple::Trailer => state = State::Ended,
            }
        }
        tuples.extend_from_slice(&data[start..at]);
        if state == State::Ended && self.state != State::Ended {
            at += 2;
        }
        if state == State::Ended && at < data.len() {
            return Err(DecodeError::Length { what: "the end of a binary COPY" });
        }
        self.state = state;
        self.tuples += count;
        Ok((at, count))
    }
}

/// Reads whole tuples of `table` from `at` on, until there are no more or `cells` is full: gives where it stopped. Each may be
/// in the CopyData message that it came in: no tuple begins with that byte, which has so many columns. Tuples may lack the generated columns; those are [`Cell::Unchanged`](super::super::Cell::Unchanged).
///
/// # Errors
///
/// The bytes are no rows of `table`.
pub fn block(
    table: &Table,
    batch: &[u8],
    mut at: usize,
    cells: &mut Cells,
) -> Result<usize, DecodeError> {
    let width = table.columns.len();
    while at < batch.len() && !cells.is_full() {
        let begin = at;
        let framed = (batch[at] == COPY_DATA).then(|| read::<4>(batch, at + 1));
        if framed.is_some() {
            at += FRAME_BYTES;
        }
        let count = read::<2>(batch, at).map(i16::from_be_bytes);
        let count = count.and_then(|count| usize::try_from(count).ok());
        let count = count.ok_or_else(|| DecodeError::cut(TUPLE))?;
        at += 2;
        if count == width {
            for column in 0..width {
                cells.set(column, field(batch, &mut at)?);
            }
        } else {
            let sent = sent(table, count)?;
            for (number, column) in table.columns.iter().enumerate() {
                let place = if sent(column) { field(batch, &mut at)? } else { Place::UNCHANGED };
                cells.set(number, place);
            }
        }
        // A message counts its length, but not its tag.
        let length = framed.map(|length| length.map(u32::from_be_bytes).map(u64::from));
        if length.is_some_and(|length| length != Some((at - begin - 1) as u64)) {
            return Err(DecodeError::cut(TUPLE));
        }
        cells.end(at - begin);
    }
    Ok(at)
}

/// Where a field lies that begins at `at`, which moves behind it.
#[inline]
fn field(batch: &[u8], at: &mut usize) -> Result<Place, DecodeError> {
    let length = read::<4>(batch, *at).map(i32::from_be_bytes);
    let length = length.ok_or_else(|| DecodeError::cut(TUPLE))?;
    let begin = *at + 4;
    let Ok(length) = usize::try_from(length) else {
        *at = begin;
        return if length == -1 { Ok(Place::NULL) } else { Err(DecodeError::cut(TUPLE)) };
    };
    let end = begin + length;
    if end > batch.len() {
        return Err(DecodeError::cut(TUPLE));
    }
    *at = end;
    Place::binary(begin..end)
}

enum Tuple {
    /// This many bytes.
    Whole(usize),
    /// Its end has not come.
    Cut,
    Trailer,
}

/// Length of the header; `None` if its end has not come.
fn header_bytes(data: &[u8]) -> Result<Option<usize>, DecodeError> {
    let known = data.len().min(SIGNATURE.len());
    if data[..known] != SIGNATURE[..known] {
        return Err(DecodeError::Kind {
            what: "a binary COPY",
            kind: data.first().copied().unwrap_or(0),
        });
    }
    let Some(extension) = read::<4>(data, SIGNATURE.len() + 4) else { return Ok(None) };
    let extension = usize::try_from(i32::from_be_bytes(extension))
        .map_err(|_| DecodeError::Length { what: "the header of a binary COPY" })?;
    let length = SIGNATURE.len() + 8 + extension;
    Ok((length <= data.len()).then_some(length))
}

/// How far the first tuple goes.
fn tuple_bytes(data: &[u8]) -> Result<Tuple, DecodeError> {
    let Some(count) = read::<2>(data, 0).map(i16::from_be_bytes) else { return Ok(Tuple::Cut) };
    if count == -1 {
        return Ok(Tuple::Trailer);
    }
    let wrong = || DecodeError::Length { what: "a COPY tuple" };
    let count = usize::try_from(count).map_err(|_| wrong())?;
    let mut at = 2;
    for _ in 0..count {
        let Some(length) = read::<4>(data, at).map(i32::from_be_bytes) else {
            return Ok(Tuple::Cut);
        };
        at += 4;
        if length != -1 {
            at += usize::try_from(length).map_err(|_| wrong())?;
        }
    }
    Ok(if at <= data.len() { Tuple::Whole(at) } else { Tuple::Cut })
}

fn read<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

const TUPLE: &str = "a COPY tuple";
/// What a CopyData message begins with: as the upper half of a number of columns, more than 25,000.
const COPY_DATA: u8 = b'd';
const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xFF\r\n\0";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            super::{Cell, Decode, Identity},
            pgoutput::PgDecoder,
        },
        *,
    };

    fn table(columns: usize) -> Table {
        let column = super::super::super::Column {
            name: "c".into(),
            source_type: "text".into(),
            type_id: 25,
            type_modifier: -1,
            lake: super::super::super::LakeType::Text,
            identity: false,
            not_null: false,
            default: None,
            generated: None,
            number: None,
            before: None,
        };
        Table {
            id: 1,
            schema: "public".into(),
            name: "t".into(),
            version: 0,
            columns: vec![column; columns],
            key: vec![],
            identity: Identity::Nothing,
            types: vec![],
        }
    }

    type Rows = Vec<Vec<Option<Vec<u8>>>>;

    fn tuples(rows: &Rows) -> Vec<u8> {
        let mut bytes = vec![];
        for row in rows {
            bytes.extend(i16::try_from(row.len()).unwrap().to_be_bytes());
            for value in row {
                match value {
                    None => bytes.extend((-1i32).to_be_bytes()),
                    Some(value) => {
                        bytes.extend(i32::try_from(value.len()).unwrap().to_be_bytes());
                        bytes.extend(value);
                    }
                }
            }
        }
        bytes
    }

    fn copy(rows: &Rows) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend(0u32.to_be_bytes());
        bytes.extend(3u32.to_be_bytes());
        bytes.extend(b"ext");
        bytes.extend(tuples(rows));
        bytes.extend((-1i16).to_be_bytes());
        bytes
    }

    fn some_rows() -> impl Strategy<Value = Rows> {
        let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..9));
        prop::collection::vec(prop::collection::vec(value, 2), 0..7)
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_tuples_are_the_same(rows in some_rows(), cuts in prop::collection::vec(1usize..20, 1..40)) {
            let bytes = copy(&rows);
            let mut framer = CopyFramer::new();
            let (mut whole, mut at, mut count) = (vec![], 0, 0);
            for cut in cuts.iter().cycle() {
                if at == bytes.len() {
                    break;
                }
                prop_assert!(framer.finish().is_err());
                let end = bytes.len().min(at + cut);
                count += framer.push(&bytes[at..end], &mut whole).unwrap();
                at = end;
            }
            prop_assert_eq!(&whole, &tuples(&rows));
            prop_assert_eq!(framer.finish(), Ok(count));
            let mut read: Rows = vec![];
            PgDecoder::default().rows(&table(2), &whole, &mut |row| {
                read.push(row.iter().map(|cell| match cell {
                    Cell::Binary(range) => Some(whole[range.clone()].to_vec()),
                    _ => None,
                }).collect());
                Ok(())
            }).unwrap();
            prop_assert_eq!(&read, &rows);
            // And each in its message, or not.
            let mut messages = vec![];
            for (number, row) in rows.iter().enumerate() {
                let row = tuples(&vec![row.clone()]);
                if number % 3 < 2 {
                    messages.push(b'd');
                    messages.extend(u32::try_from(row.len() + 4).unwrap().to_be_bytes());
                }
                messages.extend(row);
            }
            let mut read: Rows = vec![];
            PgDecoder::default().rows(&table(2), &messages, &mut |row| {
                read.push(row.iter().map(|cell| match cell {
                    Cell::Binary(range) => Some(messages[range.clone()].to_vec()),
                    _ => None,
                }).collect());
                Ok(())
            }).unwrap();
            prop_assert_eq!(read, rows);
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes: Vec<u8>, headed: bool) {
            if headed {
                bytes.splice(0..0, copy(&vec![]).into_iter().take(22));
            }
            let mut framer = CopyFramer::new();
            let mut whole = vec![];
            for byte in &bytes {
                if framer.push(&[*byte], &mut whole).is_err() {
                    break;
                }
            }
            for columns in 0..3 {
                let rows = |bytes: &[u8]| PgDecoder::default().rows(&table(columns), bytes, &mut |_| Ok(()));
                drop(rows(&bytes));
            }
        }
    }

    #[test]
    fn what_follows_the_trailer_is_refused() {
        let mut framer = CopyFramer::new();
        let mut whole = vec![];
        framer.push(&copy(&vec![]), &mut whole).unwrap();
        assert_eq!(framer.finish(), Ok(0));
        assert!(framer.push(b"x", &mut whole).is_err());
        assert!(CopyFramer::new().push(b"COPY", &mut whole).is_err());
    }
}
