//! One Arrow array under construction for each column of a table. Pure.
//!
//! **Invariant:** each push makes the array longer by exactly one element, typed or NULL.

use std::sync::Arc;

use arrow_array::{
    ArrayRef,
    builder::{
        BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, FixedSizeBinaryBuilder,
        Float32Builder, Float64Builder, Int16Builder, Int32Builder, Int64Builder, PrimitiveBuilder,
        StringBuilder, TimestampMicrosecondBuilder,
    },
    types::ArrowPrimitiveType,
};
use arrow_schema::{DataType, TimeUnit};

use crate::journal::{LakeType, Place, Plain, Value};

/// A column's array, growing.
#[derive(Debug)]
pub(super) struct ColumnArray {
    lake: LakeType,
    growing: Growing,
    /// Elements, and their bytes beyond the fixed width, of the array before: the next one is like it.
    before: (usize, usize),
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
    Text(StringBuilder),
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
        Self { lake, growing: Growing::new(lake, 0, 0), before: (0, 0) }
    }

    /// Before the first push: takes memory for as much as the array before had, within bounds.
    pub(super) fn make_room(&mut self) {
        let (elements, bytes) = self.before;
        if elements > 0 {
            self.growing = Growing::new(self.lake, elements, bytes.min(ROOM_BYTES_MAX));
        }
    }

    /// Appends a value and gives its bytes beyond the fixed width; `None`, and nothing appended, if the column cannot hold it.
    pub(super) fn push(&mut self, value: &Value<'_>) -> Option<usize> {
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
        match (&mut self.growing, plain) {
            (Growing::Int16(array), Plain::Int16) => {
                numbers(array, places, bytes, |cell| Some(i16::from_be_bytes(cell)))
            }
            (Growing::Int32(array), Plain::Int32) => {
                numbers(array, places, bytes, |cell| Some(i32::from_be_bytes(cell)))
            }
            (Growing::Int64(array), Plain::Int64) => {
                numbers(array, places, bytes, |cell| Some(i64::from_be_bytes(cell)))
            }
            (Growing::Float64(array), Plain::Float64) => {
                numbers(array, places, bytes, |cell| Some(f64::from_be_bytes(cell)))
            }
            (Growing::Micros(array), Plain::Micros { zero, within }) => {
                numbers(array, places, bytes, |cell| {
                    let micros = i64::from_be_bytes(cell).checked_add(*zero)?;
                    within.contains(&micros).then_some(micros)
                })
            }
            (Growing::Text(array), Plain::Text) => each(
                array,
                places,
                bytes,
                |array, cell| {
                    let text = std::str::from_utf8(cell).ok()?;
                    fits(array.values_slice().len(), text.len())?;
                    *held += text.len();
                    array.append_value(text);
                    Some(())
                },
                |array| array.append_null(),
            ),
            (growing, _) => each(
                growing,
                places,
                bytes,
                |growing, cell| {
                    *held += growing.push(&plain.value(cell)?)?;
                    Some(())
                },
                Growing::push_null,
            ),
        }
    }

    /// Appends a NULL.
    pub(super) fn push_null(&mut self) {
        self.growing.push_null();
    }

    /// Gives the array and begins a new one.
    pub(super) fn finish(&mut self) -> ArrayRef {
        let bytes = match &self.growing {
            Growing::Binary(array) => array.values_slice().len(),
            Growing::Text(array) => array.values_slice().len(),
            _ => 0,
        };
        let array = self.growing.finish();
        self.before = (array.len(), bytes);
        array
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
            LakeType::Text => Self::Text(StringBuilder::with_capacity(elements, bytes)),
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
                fits(array.values_slice().len(), text.len())?;
                array.append_value(text);
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
            Self::Text(array) => array.append_null(),
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

/// [`each`] of a column of numbers of `N` bytes.
#[inline]
fn numbers<T: ArrowPrimitiveType, const N: usize>(
    array: &mut PrimitiveBuilder<T>,
    places: &[Place],
    bytes: &[u8],
    read: impl Fn([u8; N]) -> Option<T::Native>,
) -> usize {
    let refused = places.iter().position(|place| match place.number(bytes).and_then(&read) {
        Some(number) => {
            array.append_value(number);
            false
        }
        None if place.is_null() => {
            array.append_null();
            false
        }
        None => true,
    });
    refused.unwrap_or(places.len())
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

/// The array before may have held a value as large as they come.
const ROOM_BYTES_MAX: usize = 1 << 20;
const UTC: &str = "UTC";
const UUID_BYTES: i32 = 16;
