//! A page that is being made: its levels and values, and the least and the most of these. Pure.

use std::ops::Range;

use arrow_array::{
    Array, ArrayRef,
    cast::AsArray,
    types::{
        ArrowPrimitiveType, BinaryType, ByteArrayType, Date32Type, Decimal128Type, Int32Type,
        Int64Type, TimestampMicrosecondType, Utf8Type,
    },
};
use arrow_buffer::{BooleanBufferBuilder, NullBuffer};
use arrow_schema::{DataType, TimeUnit};
use parquet::errors::Result;

use super::unlike;
use crate::seal::{
    pack::varint,
    rising::Width,
    run_chunks,
    texts::{STEP_BYTES, copy},
};

/// The page that is being made.
pub(super) struct Page {
    kind: Kind,
    /// Room for the levels, and the values behind it.
    body: Vec<u8>,
    /// So much of it was used for the pages before.
    used: usize,
    room: usize,
    /// A page with so many rows ends.
    rows_max: usize,
    /// As above, with so many bytes of values.
    bytes_max: usize,
    /// So many bytes are expected to come, if not more: a page has room for them at once.
    bytes: usize,
    /// Of each row, in a column that may be NULL: whether there is a value.
    valid: Option<BooleanBufferBuilder>,
    rows: usize,
    values: usize,
    bounds: Bounds,
}

/// What its values are, and how they stand there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// UTF-8 behind its length.
    Text,
    /// Bytes behind their length.
    Bytes,
    /// Four bytes, the lowest first.
    Int32,
    /// Eight bytes, the lowest first.
    Int64,
    /// A decimal as [`Kind::Int32`].
    Decimal32,
    /// A decimal as [`Kind::Int64`].
    Decimal64,
    /// Sixteen bytes.
    Uuid,
}

/// Least and most of the values so far.
enum Bounds {
    Bytes([Option<Bound>; 2]),
    Numbers(Option<[i64; 2]>),
    /// The highest byte first.
    Uuids(Option<[u128; 2]>),
}

/// A value of the page.
#[derive(Clone)]
struct Bound {
    /// Its first bytes, as a number: they tell most values apart.
    head: u64,
    at: Range<usize>,
}

impl Kind {
    /// `None`: such a column's pages are not made here.
    pub(super) fn of(data_type: &DataType) -> Option<Self> {
        Some(match data_type {
            DataType::Utf8 => Self::Text,
            DataType::Binary => Self::Bytes,
            DataType::Int32 | DataType::Date32 => Self::Int32,
            DataType::Int64 | DataType::Timestamp(TimeUnit::Microsecond, _) => Self::Int64,
            DataType::Decimal128(1..=9, _) => Self::Decimal32,
            DataType::Decimal128(10..=18, _) => Self::Decimal64,
            DataType::FixedSizeBinary(width) if usize::try_from(*width) == Ok(UUID_BYTES) => {
                Self::Uuid
            }
            _ => return None,
        })
    }

    /// Whether each value has its length in front.
    pub(super) fn has_lengths(self) -> bool {
        matches!(self, Self::Text | Self::Bytes)
    }

    /// Of whole numbers.
    pub(super) fn width(self) -> Option<Width> {
        match self {
            Self::Int32 | Self::Decimal32 => Some(Width::Four),
            Self::Int64 | Self::Decimal64 => Some(Width::Eight),
            Self::Text | Self::Bytes | Self::Uuid => None,
        }
    }

    fn no_bounds(self) -> Bounds {
        match self {
            Self::Text | Self::Bytes => Bounds::Bytes([None, None]),
            Self::Int32 | Self::Int64 | Self::Decimal32 | Self::Decimal64 => Bounds::Numbers(None),
            Self::Uuid => Bounds::Uuids(None),
        }
    }
}

impl Page {
    /// A page that ends with so many rows, or bytes of values.
    pub(super) fn new(
        kind: Kind,
        is_nullable: bool,
        [rows_max, bytes_max]: [usize; 2],
        bytes: usize,
    ) -> Self {
        // What bits take of so many rows, and their lengths.
        let room = if is_nullable { rows_max.div_ceil(8) + LEVELS_HEAD_BYTES } else { 0 };
        Self {
            kind,
            body: vec![0; room],
            used: 0,
            room,
            rows_max,
            bytes_max,
            bytes,
            valid: is_nullable.then(|| BooleanBufferBuilder::new(0)),
            rows: 0,
            values: 0,
            bounds: kind.no_bounds(),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Rows that are not NULL.
    pub(super) fn values(&self) -> usize {
        self.values
    }

    /// Bytes of the values, with their lengths.
    pub(super) fn value_bytes(&self) -> usize {
        self.body.len() - self.room
    }

    pub(super) fn is_full(&self) -> bool {
        self.rows >= self.rows_max || self.value_bytes() >= self.bytes_max
    }

    /// Bytes that it takes in memory. Room that is far from being used takes none.
    pub(super) fn memory(&self) -> usize {
        self.body.capacity().min(2 * self.body.len().max(self.used))
    }

    /// Takes rows, from one on, until it is full or there are no more: gives the first that it did not take.
    ///
    /// # Errors
    ///
    /// They are not of its kind.
    pub(super) fn take(&mut self, array: &ArrayRef, from: usize) -> Result<usize> {
        let (kind, nulls) = (self.kind, array.nulls());
        let to = match kind {
            Kind::Text => self.take_bytes::<Utf8Type>(array, from)?,
            Kind::Bytes => self.take_bytes::<BinaryType>(array, from)?,
            Kind::Int32 => {
                let raw = natives::<Int32Type, Date32Type>(array)?;
                self.take_numbers(raw, nulls, from, |of| Some(*of), i32::to_le_bytes)?
            }
            Kind::Int64 => {
                let raw = natives::<Int64Type, TimestampMicrosecondType>(array)?;
                self.take_numbers(raw, nulls, from, |of| Some(*of), i64::to_le_bytes)?
            }
            Kind::Decimal32 => {
                let raw = natives::<Decimal128Type, Decimal128Type>(array)?;
                self.take_numbers(raw, nulls, from, |of| (*of).try_into().ok(), i32::to_le_bytes)?
            }
            Kind::Decimal64 => {
                let raw = natives::<Decimal128Type, Decimal128Type>(array)?;
                self.take_numbers(raw, nulls, from, |of| (*of).try_into().ok(), i64::to_le_bytes)?
            }
            Kind::Uuid => {
                let array = array.as_fixed_size_binary_opt().ok_or_else(|| unlike(TYPE))?;
                let (raw, _) = array.value_data().as_chunks::<UUID_BYTES>();
                let of = |of: &[u8; UUID_BYTES]| Some(u128::from_be_bytes(*of));
                let (to, new) = self.take_fixed(raw, nulls, from, of, u128::to_be_bytes)?;
                if let Bounds::Uuids(bounds) = &mut self.bounds {
                    *bounds = both(*bounds, new);
                }
                to
            }
        };
        self.tell(nulls, from..to)?;
        Ok(to)
    }

    fn take_bytes<T: ByteArrayType<Offset = i32>>(
        &mut self,
        array: &ArrayRef,
        from: usize,
    ) -> Result<usize> {
        let Some(array) = array.as_bytes_opt::<T>() else { return Err(unlike(TYPE)) };
        let (ends, bytes, nulls) = (array.value_offsets(), array.value_data(), array.nulls());
        let at = |end: i32| usize::try_from(end).unwrap_or_default();
        for (row, ends) in (from..).zip(ends[from..].windows(2)) {
            if nulls.is_none_or(|nulls| nulls.is_valid(row)) {
                self.push(&bytes[at(ends[0])..at(ends[1])], &bytes[at(ends[0])..]);
            }
            self.rows += 1;
            if self.is_full() {
                return Ok(row + 1);
            }
        }
        Ok(array.len())
    }

    /// As [`Page::take`], of values of `N` bytes: of each `of` makes what is compared, and `bytes` of that what stands there.
    fn take_fixed<R, V: Copy + Ord, const N: usize>(
        &mut self,
        raw: &[R],
        nulls: Option<&NullBuffer>,
        from: usize,
        of: impl Fn(&R) -> Option<V>,
        bytes: impl Fn(V) -> [u8; N],
    ) -> Result<(usize, Option<[V; 2]>)> {
        // As if each had a value: where some have none it is asked again.
        let values = self.bytes_max.saturating_sub(self.value_bytes()).div_ceil(N);
        let rows = values.min(self.rows_max.saturating_sub(self.rows)).max(1);
        let raw = &raw[from..raw.len().min(from + rows)];
        self.make_room(raw.len() * N);
        let held = self.body.len();
        self.body.resize(held + raw.len() * N, 0);
        let (cells, _) = self.body[held..].as_chunks_mut();
        let put = match nulls.filter(|nulls| nulls.null_count() > 0) {
            None => put(cells, raw.iter(), of, bytes),
            Some(nulls) => {
                let valid = nulls.slice(from, raw.len());
                put(cells, valid.valid_indices().map(|row| &raw[row]), of, bytes)
            }
        };
        let (count, bounds) = put.ok_or_else(|| unlike("a decimal"))?;
        self.body.truncate(held + count * N);
        self.values += count;
        self.rows += raw.len();
        Ok((from + raw.len(), bounds))
    }

    /// [`Page::take_fixed`] of numbers.
    fn take_numbers<R, V: Copy + Ord + Into<i64>, const N: usize>(
        &mut self,
        raw: &[R],
        nulls: Option<&NullBuffer>,
        from: usize,
        of: impl Fn(&R) -> Option<V>,
        bytes: impl Fn(V) -> [u8; N],
    ) -> Result<usize> {
        let (to, new) = self.take_fixed(raw, nulls, from, of, bytes)?;
        if let Bounds::Numbers(bounds) = &mut self.bounds {
            *bounds = both(*bounds, new.map(|new| new.map(Into::into)));
        }
        Ok(to)
    }

    /// Least and most of its values, or as much of them as matters; of numbers eight bytes, the lowest first. `None`: there is
    /// none.
    pub(super) fn bounds(&self) -> Option<[Vec<u8>; 2]> {
        match &self.bounds {
            Bounds::Bytes([least, most]) => {
                Some([self.beginning(least.as_ref()?).to_vec(), self.above(most.as_ref()?)])
            }
            Bounds::Numbers(bounds) => bounds.map(|of| of.map(|of| of.to_le_bytes().to_vec())),
            Bounds::Uuids(bounds) => bounds.map(|of| of.map(|of| of.to_be_bytes().to_vec())),
        }
    }

    /// Levels and values.
    pub(super) fn body(&mut self) -> Result<&[u8]> {
        let levels = self.levels()?;
        let from = self.room - levels.len();
        self.body[from..self.room].copy_from_slice(&levels);
        Ok(&self.body[from..])
    }

    /// Begins anew.
    pub(super) fn begin(&mut self) {
        (self.rows, self.values) = (0, 0);
        self.bounds = self.kind.no_bounds();
        if let Some(valid) = &mut self.valid {
            valid.truncate(0);
        }
        self.used = self.used.max(self.body.len());
        self.body.truncate(self.room);
        // Of a large value it was more.
        self.body.shrink_to(self.usual_bytes());
    }

    /// What the body has room for as a rule.
    fn usual_bytes(&self) -> usize {
        self.room + self.bytes_max + self.bytes_max / 8
    }

    fn make_room(&mut self, more: usize) {
        let (held, has) = (self.body.len(), self.body.capacity());
        if has - held < more {
            let room = (2 * has).max(self.room + self.bytes + self.bytes / 8);
            let room = room.min(self.usual_bytes()).max(held + more);
            self.body.reserve_exact(room - held);
        }
    }

    /// `behind`: the value, and what stands behind it.
    fn push(&mut self, value: &[u8], behind: &[u8]) {
        self.make_room(LENGTH_BYTES + value.len() + STEP_BYTES);
        // As Arrow's offsets, which tell it.
        let length = u32::try_from(value.len()).expect("an array has less than 2 GiB");
        self.body.extend_from_slice(&length.to_le_bytes());
        let from = self.body.len();
        copy(&mut self.body, value, behind);
        self.values += 1;
        let head = match value.first_chunk() {
            Some(head) => u64::from_be_bytes(*head),
            None => value.iter().rfold(0, |head, byte| (head >> 8) | (u64::from(*byte) << 56)),
        };
        let Bounds::Bytes([least, most]) = &mut self.bounds else { return };
        let is_less = |bound: &Bound| head == bound.head && value < &self.body[bound.at.clone()];
        let is_more = |bound: &Bound| head == bound.head && value > &self.body[bound.at.clone()];
        let new = Bound { head, at: from..self.body.len() };
        if least.as_ref().is_none_or(|least| head < least.head || is_less(least)) {
            *least = Some(new.clone());
        }
        if most.as_ref().is_none_or(|most| head > most.head || is_more(most)) {
            *most = Some(new);
        }
    }

    /// Takes which of these rows are NULL.
    fn tell(&mut self, nulls: Option<&NullBuffer>, rows: Range<usize>) -> Result<()> {
        match (&mut self.valid, nulls) {
            (Some(valid), Some(nulls)) => {
                valid.append_buffer(&nulls.inner().slice(rows.start, rows.len()));
            }
            (Some(valid), None) => valid.append_n(rows.len(), true),
            (None, Some(nulls)) if nulls.null_count() > 0 => {
                return Err(unlike("a column that is never NULL"));
            }
            (None, _) => {}
        }
        Ok(())
    }

    /// The levels of its rows.
    fn levels(&mut self) -> Result<Vec<u8>> {
        let Some(valid) = &mut self.valid else { return Ok(vec![]) };
        if self.values == self.rows || self.values == 0 {
            return Ok(run_chunks::levels(self.rows, u8::from(self.values > 0)));
        }
        let (bits, groups) = (valid.finish(), self.rows.div_ceil(8));
        let mut levels = vec![0; LENGTH_BYTES];
        varint((groups as u64) << 1 | 1, &mut levels);
        levels.extend_from_slice(&bits.inner().as_slice()[..groups]);
        if let (Some(last), 1..) = (levels.last_mut(), self.rows % 8) {
            *last &= (1 << (self.rows % 8)) - 1;
        }
        let length =
            u32::try_from(levels.len() - LENGTH_BYTES).map_err(|_| unlike("its levels"))?;
        levels[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        Ok(levels)
    }

    /// How a value of it begins: the library makes a bound below it of that.
    fn beginning(&self, bound: &Bound) -> &[u8] {
        let value = &self.body[bound.at.clone()];
        let mut length = value.len().min(BOUND_BYTES_MAX);
        // A character is whole, as the library wants it.
        while self.kind == Kind::Text && length < value.len() && value[length] & 0xC0 == 0x80 {
            length -= 1;
        }
        &value[..length]
    }

    /// As much of a value of it as the library makes a bound above it of.
    fn above(&self, bound: &Bound) -> Vec<u8> {
        let begin = self.beginning(bound);
        match has_next(begin, self.kind == Kind::Text) {
            true => begin.to_vec(),
            false => self.body[bound.at.clone()].to_vec(),
        }
    }
}

/// Sets cells to the values of rows, as many as there are: how many, and least and most. `None`: one does not fit.
fn put<'a, R: 'a, V: Copy + Ord, const N: usize>(
    cells: &mut [[u8; N]],
    mut raw: impl Iterator<Item = &'a R>,
    of: impl Fn(&R) -> Option<V>,
    bytes: impl Fn(V) -> [u8; N],
) -> Option<(usize, Option<[V; 2]>)> {
    let Some(first) = raw.next() else { return Some((0, None)) };
    let first = of(first)?;
    let (cell, cells) = cells.split_first_mut()?;
    *cell = bytes(first);
    let (mut count, mut least, mut most) = (1, first, first);
    for (cell, raw) in cells.iter_mut().zip(raw) {
        let value = of(raw)?;
        *cell = bytes(value);
        (least, most) = (least.min(value), most.max(value));
        count += 1;
    }
    Some((count, Some([least, most])))
}

/// The bounds of what has these.
fn both<V: Copy + Ord>(one: Option<[V; 2]>, other: Option<[V; 2]>) -> Option<[V; 2]> {
    let Some([least, most]) = one else { return other };
    Some(other.map_or([least, most], |other| [least.min(other[0]), most.max(other[1])]))
}

/// The numbers of an array of one of two types.
fn natives<A, B>(array: &ArrayRef) -> Result<&[A::Native]>
where
    A: ArrowPrimitiveType,
    B: ArrowPrimitiveType<Native = A::Native>,
{
    let one = array.as_primitive_opt::<A>().map(|array| array.values());
    let other = || array.as_primitive_opt::<B>().map(|array| array.values());
    Ok(one.or_else(other).ok_or_else(|| unlike(TYPE))?)
}

/// Whether the library finds a bound above all values that begin so, and as long as it cuts them: else it takes the value as it is.
fn has_next(begin: &[u8], is_text: bool) -> bool {
    match std::str::from_utf8(begin) {
        Ok(text) if is_text => {
            let mut told = text.char_indices().take_while(|(at, _)| *at < TOLD_BYTES_MIN);
            told.any(|(_, one)| {
                let next = char::from_u32(u32::from(one) + 1);
                next.is_some_and(|next| next.len_utf8() == one.len_utf8())
            })
        }
        _ => begin.iter().take(TOLD_BYTES_MIN).any(|byte| *byte < u8::MAX),
    }
}

const TYPE: &str = "a column's type";
/// In front of a value, and of the levels.
pub(super) const LENGTH_BYTES: usize = 4;
pub(super) const UUID_BYTES: usize = 16;
/// In front of levels in bits: their length, and a varint of how many there are.
const LEVELS_HEAD_BYTES: usize = LENGTH_BYTES + 10;
/// More than the library tells of a bound.
pub(super) const BOUND_BYTES_MAX: usize = 256;
/// It tells 64 bytes, or fewer if the last character would be cut.
const TOLD_BYTES_MIN: usize = 60;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Int64Array, StringArray};

    use super::*;

    #[test]
    fn what_is_expected_has_room_at_once_and_counts_when_it_comes() {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1000));
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["customer"; 1000]));
        for (kind, array) in [(Kind::Int64, numbers), (Kind::Text, texts)] {
            for (bytes, room) in [(0, 0), (100_000, 100_000), (usize::MAX / 4, 256 << 10)] {
                let mut page = Page::new(kind, true, [20_000, 256 << 10], bytes);
                page.take(&array, 0).unwrap();
                let (begin, held) = (page.body.as_ptr(), page.body.len());
                let has = page.body.capacity();
                assert!(has >= room && has <= page.usual_bytes(), "{kind:?}: {has} of {bytes}");
                assert!(page.memory() <= 2 * held, "{kind:?}: {} of {held}", page.memory());
                // All that is expected comes without a move.
                while page.value_bytes() + held <= room {
                    page.take(&array, 0).unwrap();
                    assert_eq!(page.body.as_ptr(), begin);
                }
            }
        }
    }
}
