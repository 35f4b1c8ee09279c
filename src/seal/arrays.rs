//! One Arrow array under construction for each column of a table. Pure.
//!
//! Of many tables a column holds one value only, row after row: while that is so the value is compared and counted.
//!
//! **Invariant:** each push makes the array longer by exactly one element, typed or NULL.

use std::sync::Arc;

use arrow_array::{
    ArrayRef,
    builder::{
        BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, FixedSizeBinaryBuilder,
        Float32Builder, Float64Builder, Int16Builder, Int32Builder, Int64Builder, PrimitiveBuilder,
        TimestampMicrosecondBuilder,
    },
    cast::AsArray,
    types::ArrowPrimitiveType,
};
use arrow_schema::{DataType, TimeUnit};

use super::{pieces::Piece, texts::Texts};
use crate::journal::{LakeType, Place, Plain, Value};

/// A column's array, growing.
#[derive(Debug)]
pub(super) struct ColumnArray {
    lake: LakeType,
    growing: Growing,
    /// While all elements are one value, which `growing` has once.
    run: Option<Run>,
    /// Elements, and their bytes beyond the fixed width, of the array before: the next one is like it.
    before: (usize, usize),
}

/// One value, again and again.
#[derive(Debug, Default)]
struct Run {
    /// As it came.
    cell: Vec<u8>,
    /// How many times.
    rows: usize,
    /// Bytes of one beyond the fixed width.
    held: usize,
}

#[derive(Debug)]
enum Growing {
    Boolean(BooleanBuilder),
    Int16(Int16Builder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Float32(Float32Builder),
    Float64(Float64Builder),
    Date(Date32Builder),
    Micros(TimestampMicrosecondBuilder),
    Decimal(Decimal128Builder),
    Binary(BinaryBuilder),
    Uuid(FixedSizeBinaryBuilder),
    Text(Texts),
}

/// The Arrow type of a column.
pub(super) fn data_type(lake: LakeType) -> DataType {
    match lake {
        LakeType::Boolean => DataType::Boolean,
        LakeType::Int16 => DataType::Int16,
        LakeType::Int32 => DataType::Int32,
        LakeType::Int64 => DataType::Int64,
        LakeType::Float32 => DataType::Float32,
        LakeType::Float64 => DataType::Float64,
        LakeType::Date => DataType::Date32,
        LakeType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        LakeType::TimestampUtc => DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())),
        LakeType::Decimal { precision, scale } => DataType::Decimal128(precision, signed(scale)),
        LakeType::Binary => DataType::Binary,
        LakeType::Uuid => DataType::FixedSizeBinary(UUID_BYTES),
        LakeType::Text => DataType::Utf8,
    }
}

impl ColumnArray {
    /// An empty array. It takes no memory until the first push: a table has up to 1,600 of them.
    pub(super) fn new(lake: LakeType) -> Self {
        Self { lake, growing: Growing::new(lake, 0, 0), run: None, before: (0, 0) }
    }

    /// Before the first push: takes memory for as much as the array before had, within bounds.
    pub(super) fn make_room(&mut self) {
        let (elements, bytes) = self.before;
        // It may have a few more.
        let more = |of: usize| of + of / 8;
        if elements > 0 {
            let bytes = more(bytes).min(ROOM_BYTES_MAX);
            self.growing = Growing::new(self.lake, more(elements), bytes);
        }
    }

    /// As [`ColumnArray::make_room`], if all values may be one.
    pub(super) fn begin_run(&mut self) {
        self.run = Some(Run::default());
    }

    /// Appends a value and gives its bytes beyond the fixed width; `None`, and nothing appended, if the column cannot hold it.
    pub(super) fn push(&mut self, value: &Value<'_>) -> Option<usize> {
        self.end_run();
        self.growing.push(value)
    }

    /// Appends the values of cells that are NULL, or in the form that `plain` reads, up to the first of
    /// another: how many. `held` counts bytes beyond the fixed width.
    pub(super) fn extend(
        &mut self,
        plain: &Plain,
        places: &[Place],
        bytes: &[u8],
        held: &mut usize,
    ) -> usize {
        let done = self.extend_run(plain, places, bytes, held);
        if done == places.len() {
            return done;
        }
        self.end_run();
        done + self.growing.extend(plain, &places[done..], bytes, held)
    }

    /// [`ColumnArray::extend`] as long as all values are one.
    fn extend_run(
        &mut self,
        plain: &Plain,
        places: &[Place],
        bytes: &[u8],
        held: &mut usize,
    ) -> usize {
        let Some(run) = &mut self.run else { return 0 };
        let mut done = 0;
        if run.rows == 0 {
            let first = places.first().and_then(|place| place.value(bytes));
            let Some(cell) = first.filter(|cell| cell.len() <= RUN_BYTES_MAX) else { return 0 };
            done = self.growing.extend(plain, &places[..1], bytes, &mut run.held);
            if done == 0 {
                return 0;
            }
            run.cell.extend_from_slice(cell);
        }
        let cell = Some(&run.cell[..]);
        done += places[done..].iter().take_while(|place| place.value(bytes) == cell).count();
        run.rows += done;
        *held += done * run.held;
        done
    }

    /// Another value comes: from here on each is held.
    fn end_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        if run.rows == 0 {
            return self.make_room();
        }
        let one = self.growing.finish();
        self.make_room();
        self.growing.repeat(&one, run.rows);
    }

    /// Appends a NULL.
    pub(super) fn push_null(&mut self) {
        self.end_run();
        self.growing.push_null();
    }

    /// Gives the array and begins a new one.
    pub(super) fn finish(&mut self) -> Piece {
        if let Some(run) = self.run.take().filter(|run| run.rows > 0) {
            self.before = (run.rows, run.rows * run.held);
            return Piece::same(self.growing.finish(), run.rows);
        }
        let bytes = match &self.growing {
            Growing::Binary(array) => array.values_slice().len(),
            Growing::Text(array) => array.bytes(),
            _ => 0,
        };
        let array = self.growing.finish();
        self.before = (array.len(), bytes);
        Piece::Array(array)
    }
}

impl Growing {
    fn new(lake: LakeType, elements: usize, bytes: usize) -> Self {
        match lake {
            LakeType::Boolean => Self::Boolean(BooleanBuilder::with_capacity(elements)),
            LakeType::Int16 => Self::Int16(Int16Builder::with_capacity(elements)),
            LakeType::Int32 => Self::Int32(Int32Builder::with_capacity(elements)),
            LakeType::Int64 => Self::Int64(Int64Builder::with_capacity(elements)),
            LakeType::Float32 => Self::Float32(Float32Builder::with_capacity(elements)),
            LakeType::Float64 => Self::Float64(Float64Builder::with_capacity(elements)),
            LakeType::Date => Self::Date(Date32Builder::with_capacity(elements)),
            LakeType::Timestamp | LakeType::TimestampUtc => {
                let array = TimestampMicrosecondBuilder::with_capacity(elements);
                Self::Micros(array.with_data_type(data_type(lake)))
            }
            LakeType::Decimal { .. } => {
                let array = Decimal128Builder::with_capacity(elements);
                Self::Decimal(array.with_data_type(data_type(lake)))
            }
            LakeType::Binary => Self::Binary(BinaryBuilder::with_capacity(elements, bytes)),
            LakeType::Uuid => {
                Self::Uuid(FixedSizeBinaryBuilder::with_capacity(elements, UUID_BYTES))
            }
            LakeType::Text => Self::Text(Texts::with_capacity(elements, bytes)),
        }
    }

    /// See [`ColumnArray::extend`].
    fn extend(&mut self, plain: &Plain, places: &[Place], bytes: &[u8], held: &mut usize) -> usize {
        match (self, plain) {
            (Self::Int16(array), Plain::Int16) => {
                numbers(array, places, bytes, |cell| Some(i16::from_be_bytes(cell)))
            }
            (Self::Int32(array), Plain::Int32) => {
                numbers(array, places, bytes, |cell| Some(i32::from_be_bytes(cell)))
            }
            (Self::Int64(array), Plain::Int64) => {
                numbers(array, places, bytes, |cell| Some(i64::from_be_bytes(cell)))
            }
            (Self::Float32(array), Plain::Float32) => {
                numbers(array, places, bytes, |cell| Some(f32::from_be_bytes(cell)))
            }
            (Self::Float64(array), Plain::Float64) => {
                numbers(array, places, bytes, |cell| Some(f64::from_be_bytes(cell)))
            }
            (Self::Date(array), Plain::Days { zero, within }) => {
                numbers(array, places, bytes, |cell| Plain::day(cell, *zero, within))
            }
            (Self::Micros(array), Plain::Micros { zero, within }) => {
                numbers(array, places, bytes, |cell| {
                    let micros = i64::from_be_bytes(cell).checked_add(*zero)?;
                    within.contains(&micros).then_some(micros)
                })
            }
            (Self::Decimal(array), Plain::Groups { precision, scale }) => {
                natives(array, places, |place| {
                    Plain::decimal(place.value(bytes)?, *precision, *scale).map(i128::from)
                })
            }
            (Self::Uuid(array), Plain::Uuid) => {
                let push = |array: &mut FixedSizeBinaryBuilder, cell: &[u8]| {
                    let cell: &[u8; 16] = cell.try_into().ok()?;
                    array.append_value(cell).ok()
                };
                each(array, places, bytes, push, FixedSizeBinaryBuilder::append_null)
            }
            (Self::Binary(array), Plain::Bytes) => {
                let push = |array: &mut BinaryBuilder, cell: &[u8]| {
                    fits(array.values_slice().len(), cell.len())?;
                    array.append_value(cell);
                    *held += cell.len();
                    Some(())
                };
                each(array, places, bytes, push, BinaryBuilder::append_null)
            }
            (Self::Text(array), Plain::Text | Plain::Versioned) => {
                let (before, prefix) = (array.bytes(), plain.prefix());
                let done = array.extend(places, bytes, prefix);
                *held += array.bytes() - before;
                done
            }
            (growing, _) => each(
                growing,
                places,
                bytes,
                |growing, cell| {
                    *held += growing.push(&plain.value(cell)?)?;
                    Some(())
                },
                Self::push_null,
            ),
        }
    }

    /// Appends the one element of `one`, which is not NULL, so many times.
    fn repeat(&mut self, one: &ArrayRef, rows: usize) {
        match self {
            Self::Boolean(array) => array.append_n(rows, one.as_boolean().value(0)),
            Self::Int16(array) => repeat(array, one, rows),
            Self::Int32(array) => repeat(array, one, rows),
            Self::Int64(array) => repeat(array, one, rows),
            Self::Float32(array) => repeat(array, one, rows),
            Self::Float64(array) => repeat(array, one, rows),
            Self::Date(array) => repeat(array, one, rows),
            Self::Micros(array) => repeat(array, one, rows),
            Self::Decimal(array) => repeat(array, one, rows),
            Self::Binary(array) => array.append_value_n(one.as_binary::<i32>().value(0), rows),
            Self::Uuid(array) => {
                for _ in 0..rows {
                    let value = one.as_fixed_size_binary().value(0);
                    array.append_value(value).expect("both are of 16 bytes");
                }
            }
            Self::Text(array) => {
                let done = array.repeat(one.as_string::<i32>().value(0), rows);
                assert_eq!(done, rows, "a run of texts is bounded");
            }
        }
    }

    fn push(&mut self, value: &Value<'_>) -> Option<usize> {
        match (self, value) {
            (Self::Boolean(array), Value::Boolean(value)) => array.append_value(*value),
            (Self::Int16(array), Value::Int(value)) => {
                array.append_value((*value).try_into().ok()?);
            }
            (Self::Int32(array), Value::Int(value)) => {
                array.append_value((*value).try_into().ok()?);
            }
            (Self::Int64(array), Value::Int(value)) => array.append_value(*value),
            (Self::Float32(array), Value::Float32(value)) => array.append_value(*value),
            (Self::Float64(array), Value::Float64(value)) => array.append_value(*value),
            (Self::Date(array), Value::Date(days)) => array.append_value(*days),
            (Self::Micros(array), Value::Micros(micros)) => array.append_value(*micros),
            (Self::Decimal(array), Value::Decimal(unscaled)) => array.append_value(*unscaled),
            (Self::Uuid(array), Value::Bytes(bytes)) => array.append_value(bytes).ok()?,
            (Self::Binary(array), Value::Bytes(bytes)) => {
                fits(array.values_slice().len(), bytes.len())?;
                array.append_value(bytes);
                return Some(bytes.len());
            }
            (Self::Text(array), Value::Text(text)) => {
                array.push(text)?;
                return Some(text.len());
            }
            _ => return None,
        }
        Some(0)
    }

    fn push_null(&mut self) {
        match self {
            Self::Boolean(array) => array.append_null(),
            Self::Int16(array) => array.append_null(),
            Self::Int32(array) => array.append_null(),
            Self::Int64(array) => array.append_null(),
            Self::Float32(array) => array.append_null(),
            Self::Float64(array) => array.append_null(),
            Self::Date(array) => array.append_null(),
            Self::Micros(array) => array.append_null(),
            Self::Decimal(array) => array.append_null(),
            Self::Binary(array) => array.append_null(),
            Self::Uuid(array) => array.append_null(),
            Self::Text(array) => array.push_null(),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Boolean(array) => Arc::new(array.finish()),
            Self::Int16(array) => Arc::new(array.finish()),
            Self::Int32(array) => Arc::new(array.finish()),
            Self::Int64(array) => Arc::new(array.finish()),
            Self::Float32(array) => Arc::new(array.finish()),
            Self::Float64(array) => Arc::new(array.finish()),
            Self::Date(array) => Arc::new(array.finish()),
            Self::Micros(array) => Arc::new(array.finish()),
            Self::Decimal(array) => Arc::new(array.finish()),
            Self::Binary(array) => Arc::new(array.finish()),
            Self::Uuid(array) => Arc::new(array.finish()),
            Self::Text(array) => Arc::new(array.finish()),
        }
    }
}

/// Appends each cell by `push`, or by `null`, until `push` refuses one: how many.
#[inline]
fn each<A>(
    array: &mut A,
    places: &[Place],
    bytes: &[u8],
    mut push: impl FnMut(&mut A, &[u8]) -> Option<()>,
    null: impl Fn(&mut A),
) -> usize {
    let refused = places.iter().position(|place| match place.value(bytes) {
        Some(cell) => push(array, cell).is_none(),
        None if place.is_null() => {
            null(array);
            false
        }
        None => true,
    });
    refused.unwrap_or(places.len())
}

/// [`natives`] of cells of `N` bytes.
#[inline]
fn numbers<T: ArrowPrimitiveType, const N: usize>(
    array: &mut PrimitiveBuilder<T>,
    places: &[Place],
    bytes: &[u8],
    read: impl Fn([u8; N]) -> Option<T::Native>,
) -> usize {
    natives(array, places, |place| place.number(bytes).and_then(&read))
}

/// Appends what `read` makes of each place, or NULL, until it makes nothing of one: how many. Those without NULL are
/// appended together.
#[inline]
fn natives<T: ArrowPrimitiveType>(
    array: &mut PrimitiveBuilder<T>,
    places: &[Place],
    read: impl Fn(&Place) -> Option<T::Native>,
) -> usize {
    let (mut some, mut done) = ([T::Native::default(); TOGETHER], 0);
    while done < places.len() {
        let rest = &places[done..];
        let each = rest.iter().zip(&mut some).map_while(|(place, into)| {
            *into = read(place)?;
            Some(())
        });
        let count = each.count();
        array.append_slice(&some[..count]);
        let nulls = match count {
            TOGETHER => 0,
            _ => rest[count..].iter().take_while(|place| place.is_null()).count(),
        };
        // Of none it would begin to keep which are NULL.
        if nulls > 0 {
            array.append_nulls(nulls);
        }
        if count + nulls == 0 {
            break;
        }
        done += count + nulls;
    }
    done
}

/// [`Growing::repeat`] of a column of numbers.
fn repeat<T: ArrowPrimitiveType>(array: &mut PrimitiveBuilder<T>, one: &ArrayRef, rows: usize) {
    array.append_value_n(one.as_primitive::<T>().value(0), rows);
}

/// Bytes that an element takes at least: value or offset, without its bit of validity.
pub(super) fn width_bytes(lake: LakeType) -> usize {
    match lake {
        LakeType::Boolean => 1,
        LakeType::Int16 => 2,
        LakeType::Int32
        | LakeType::Float32
        | LakeType::Date
        | LakeType::Binary
        | LakeType::Text => 4,
        LakeType::Int64 | LakeType::Float64 | LakeType::Timestamp | LakeType::TimestampUtc => 8,
        LakeType::Decimal { .. } | LakeType::Uuid => 16,
    }
}

/// Whether an array of `held` bytes can take `more`: Arrow's offsets are `i32`.
pub(super) fn fits(held: usize, more: usize) -> Option<()> {
    i32::try_from(held.checked_add(more)?).ok().map(drop)
}

fn signed(scale: u8) -> i8 {
    i8::try_from(scale).expect("a scale is at most 38")
}

/// Numbers that are appended at once.
const TOGETHER: usize = 64;
/// A longer value is not held beside its array, to be compared with the next.
const RUN_BYTES_MAX: usize = 4 << 10;
/// The array before may have held a value as large as they come.
const ROOM_BYTES_MAX: usize = 1 << 20;
const UTC: &str = "UTC";
const UUID_BYTES: i32 = 16;

#[cfg(test)]
mod tests {
    use arrow_array::Array;
    use proptest::prelude::*;

    use super::*;

    /// Each form, with the type of its column and its usual length.
    fn forms() -> Vec<(LakeType, Plain, usize)> {
        vec![
            (LakeType::Boolean, Plain::Boolean, 1),
            (LakeType::Int16, Plain::Int16, 2),
            (LakeType::Int32, Plain::Int32, 4),
            (LakeType::Int64, Plain::Int64, 8),
            (LakeType::Float32, Plain::Float32, 4),
            (LakeType::Float64, Plain::Float64, 8),
            (LakeType::Date, Plain::Days { zero: 10_957, within: -900_000..900_000 }, 4),
            (LakeType::Timestamp, Plain::Micros { zero: 1 << 40, within: -(1 << 61)..1 << 62 }, 8),
            (
                LakeType::Decimal { precision: 14, scale: 2 },
                Plain::Groups { precision: 14, scale: 2 },
                14,
            ),
            (LakeType::Uuid, Plain::Uuid, 16),
            (LakeType::Binary, Plain::Bytes, 40),
            (LakeType::Text, Plain::Text, 20),
            (LakeType::Text, Plain::Versioned, 33),
        ]
    }

    /// Three groups or fewer, of a number with two digits after the point.
    fn decimal(dice: &mut fastrand::Rng) -> Vec<u8> {
        let groups: Vec<u16> = (0..dice.u16(0..4)).map(|_| dice.u16(0..10_001)).collect();
        let sign = if dice.bool() { 0x4000 } else { 0 };
        let count = u16::try_from(groups.len()).unwrap();
        let head = [count, dice.i16(-2..3).cast_unsigned(), sign, 2];
        head.into_iter().chain(groups).flat_map(u16::to_be_bytes).collect()
    }

    fn cell(plain: &Plain, usual: usize, dice: &mut fastrand::Rng) -> Vec<u8> {
        match plain {
            Plain::Boolean => vec![dice.u8(0..2)],
            Plain::Groups { .. } => decimal(dice),
            Plain::Days { .. } => dice.i32(-1_000_000..1_000_000).to_be_bytes().into(),
            Plain::Text | Plain::Versioned => {
                let letters =
                    (0..dice.usize(..2 * usual)).map(|_| dice.choice(['a', 'é']).unwrap());
                let text = plain.prefix().map(char::from).into_iter().chain(letters);
                text.collect::<String>().into()
            }
            Plain::Bytes => (0..dice.usize(..2 * usual)).map(|_| dice.u8(..)).collect(),
            _ => (0..usual).map(|_| dice.u8(..)).collect(),
        }
    }

    proptest! {
        /// What cells are together is what each is by itself, with NULLs and cells of another form between.
        #[test]
        fn cells_are_read_together_as_each_by_itself(seed: u64, rows in 0..300_usize, odd in 0..40_usize) {
            for (lake, plain, usual) in forms() {
                let mut dice = fastrand::Rng::with_seed(seed);
                let (mut bytes, mut places) = (vec![], vec![]);
                for _ in 0..rows {
                    let from = bytes.len();
                    match dice.usize(..100) {
                        kind if kind >= odd => bytes.extend(cell(&plain, usual, &mut dice)),
                        kind if kind % 2 == 0 => {
                            places.push(Place::NULL);
                            continue;
                        }
                        // No text, and of a length that nothing has.
                        _ => bytes.extend([0xFF; 5]),
                    }
                    places.push(Place::binary(from..bytes.len()).unwrap());
                }
                let (mut together, mut alone) = (ColumnArray::new(lake), ColumnArray::new(lake));
                let (mut held, mut expected, mut done) = (0, 0, 0);
                while done < rows {
                    done += together.extend(&plain, &places[done..], &bytes, &mut held);
                    if done < rows {
                        prop_assert!(plain.value(places[done].value(&bytes).unwrap()).is_none());
                        together.push_null();
                        done += 1;
                    }
                }
                for place in &places {
                    let value = place.value(&bytes).and_then(|cell| plain.value(cell));
                    match value.and_then(|value| alone.push(&value)) {
                        Some(held) => expected += held,
                        None => alone.push_null(),
                    }
                }
                let [together, alone] = [together, alone].map(|mut of| of.finish().array().unwrap());
                prop_assert_eq!(together.len(), rows);
                prop_assert_eq!(&together, &alone, "{:?}", plain);
                prop_assert_eq!(held, expected, "{:?}", plain);
            }
        }
    }
}
