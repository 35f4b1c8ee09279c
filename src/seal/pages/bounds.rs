//! The bounds of pages, as the library takes them and tells them. Pure.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Int32Array,
    Int64Array, StringArray, TimestampMicrosecondArray,
};
use arrow_schema::DataType;
use parquet::{
    errors::Result,
    file::{
        page_index::column_index::ColumnIndexMetaData,
        statistics::{Statistics, ValueStatistics},
    },
};

use super::{page::UUID_BYTES, unlike};

/// An array of this type: of texts and bytes themselves, of a uuid its bytes, of all else an `i64`, the lowest byte first.
pub(super) fn array(data_type: &DataType, bounds: Vec<Option<Vec<u8>>>) -> Result<ArrayRef> {
    let number = |of: Vec<u8>| {
        of.try_into().map(i64::from_le_bytes).map_err(|_| unlike("a number among its bounds"))
    };
    let text = |of: Vec<u8>| String::from_utf8(of).map_err(|_| unlike("a text"));
    let short = |of: i64| i32::try_from(of).map_err(|_| unlike("a number"));
    let numbers = |bounds: Vec<Option<Vec<u8>>>| {
        bounds.into_iter().map(|of| of.map(number).transpose()).collect::<Result<Vec<_>>>()
    };
    let shorts = |bounds| {
        let numbers = numbers(bounds)?.into_iter();
        numbers.map(|of| of.map(short).transpose()).collect::<Result<Vec<_>>>()
    };
    Ok(match data_type {
        DataType::Utf8 => {
            let texts = bounds.into_iter().map(|of| of.map(text).transpose());
            Arc::new(StringArray::from(texts.collect::<Result<Vec<_>>>()?))
        }
        DataType::Binary => Arc::new(BinaryArray::from_iter(bounds)),
        DataType::Int32 => Arc::new(Int32Array::from(shorts(bounds)?)),
        DataType::Date32 => Arc::new(Date32Array::from(shorts(bounds)?)),
        DataType::Int64 => Arc::new(Int64Array::from(numbers(bounds)?)),
        DataType::Timestamp(..) => {
            let array = TimestampMicrosecondArray::from(numbers(bounds)?);
            Arc::new(array.with_data_type(data_type.clone()))
        }
        DataType::Decimal128(..) => {
            let numbers = numbers(bounds)?.into_iter().map(|of| of.map(i128::from));
            let array = numbers.collect::<Decimal128Array>();
            Arc::new(array.with_data_type(data_type.clone()))
        }
        DataType::FixedSizeBinary(width) if usize::try_from(*width) == Ok(UUID_BYTES) => {
            let bounds = bounds.into_iter();
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(bounds, *width)?)
        }
        _ => return Err(unlike("its type")),
    })
}

/// Least and most of a page, as the index has them; of one whose rows are all NULL nothing.
pub(in crate::seal) fn told(index: &ColumnIndexMetaData, page: usize) -> Result<[Vec<u8>; 2]> {
    let bytes = |of: Option<&[u8]>| of.unwrap_or_default().to_vec();
    // A macro: what these types have in common is private to the library.
    macro_rules! number {
        ($of:ident) => {
            [$of.min_value(page), $of.max_value(page)]
                .map(|of| bytes(of.map(|of| of.to_le_bytes()).as_ref().map(|of| &of[..])))
        };
    }
    Ok(match index {
        ColumnIndexMetaData::BYTE_ARRAY(of) | ColumnIndexMetaData::FIXED_LEN_BYTE_ARRAY(of) => {
            [of.min_value(page), of.max_value(page)].map(bytes)
        }
        ColumnIndexMetaData::INT32(of) => number!(of),
        ColumnIndexMetaData::INT64(of) => number!(of),
        ColumnIndexMetaData::FLOAT(of) => number!(of),
        ColumnIndexMetaData::DOUBLE(of) => number!(of),
        _ => return Err(unlike("what is said of its pages")),
    })
}

/// The same bounds of a chunk with so many NULLs.
pub(in crate::seal) fn with_nulls(statistics: Statistics, nulls: u64) -> Statistics {
    // A macro: what these types have in common is private to the library.
    macro_rules! counted {
        ($kind:ident, $of:ident) => {{
            let (least, most) = ($of.min_opt().cloned(), $of.max_opt().cloned());
            let with = ValueStatistics::new(least, most, None, Some(nulls), false)
                .with_backwards_compatible_min_max($of.is_min_max_backwards_compatible())
                .with_nan_count($of.nan_count_opt())
                .with_min_is_exact($of.min_is_exact())
                .with_max_is_exact($of.max_is_exact());
            Statistics::$kind(with)
        }};
    }
    match statistics {
        Statistics::ByteArray(of) => counted!(ByteArray, of),
        Statistics::FixedLenByteArray(of) => counted!(FixedLenByteArray, of),
        Statistics::Boolean(of) => counted!(Boolean, of),
        Statistics::Int32(of) => counted!(Int32, of),
        Statistics::Int64(of) => counted!(Int64, of),
        Statistics::Int96(of) => counted!(Int96, of),
        Statistics::Float(of) => counted!(Float, of),
        Statistics::Double(of) => counted!(Double, of),
    }
}
