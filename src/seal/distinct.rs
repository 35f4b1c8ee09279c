//! Whether a column has too many values for a dictionary, by its first rows. Pure.
//!
//! A dictionary that cannot hold the values is given up by the library when it is full, and what went into it by then is hashed,
//! held and written for nothing. If values are drawn from `d` that are equally likely, of `n` some `n² / 2d` come again: of few
//! that do, there are many values. Where some are likelier than others there are more values than this says, and the
//! dictionary is tried.

use arrow_array::{Array, cast::AsArray};
use arrow_schema::DataType;
use crc_fast::CrcAlgorithm::Crc64Nvme;

use super::pieces::Piece;

/// Whether the distinct values of a column surely take more than so many bytes, by these rows of it.
pub(super) fn exceed(bytes_max: usize, rows: &[Piece]) -> bool {
    let mut seen = Seen { sums: vec![0; SUMS / 64], values: 0, again: 0, bytes: 0 };
    for piece in rows {
        let Piece::Array(array) = piece else { return false };
        if !seen.take(array) {
            return false;
        }
    }
    seen.exceed(bytes_max)
}

struct Seen {
    /// A bit for each sum that a value may have: two of a sum are taken for the same.
    sums: Vec<u64>,
    values: usize,
    /// Of these, as many as came before.
    again: usize,
    bytes: usize,
}

impl Seen {
    /// Takes values, as long as there are not enough. `false`: it does not know such.
    fn take(&mut self, array: &dyn Array) -> bool {
        match array.data_type() {
            DataType::Utf8 => {
                let array = array.as_string::<i32>();
                self.add(array.iter().flatten().map(str::as_bytes));
            }
            DataType::Binary => self.add(array.as_binary::<i32>().iter().flatten()),
            other => {
                let width = match other {
                    DataType::FixedSizeBinary(width) => usize::try_from(*width).ok(),
                    other => other.primitive_width(),
                };
                let (data, Some(width)) = (array.to_data(), width.filter(|width| *width > 0))
                else {
                    return false;
                };
                let values = data.buffers()[0][data.offset() * width..].chunks_exact(width);
                let rows = values.take(data.len()).enumerate();
                self.add(rows.filter(|(row, _)| data.is_valid(*row)).map(|(_, value)| value));
            }
        }
        true
    }

    fn add<'a>(&mut self, values: impl Iterator<Item = &'a [u8]>) {
        for value in values {
            if self.values >= VALUES || self.bytes >= BYTES {
                return;
            }
            // Whoever makes values that have the same sums has a dictionary tried, and no more.
            let sum = crc_fast::checksum(Crc64Nvme, value) % SUMS as u64;
            let (word, bit) =
                (&mut self.sums[usize::try_from(sum / 64).unwrap_or(0)], 1 << (sum % 64));
            self.again += usize::from(*word & bit != 0);
            *word |= bit;
            self.values += 1;
            self.bytes += value.len();
        }
    }

    fn exceed(&self, bytes_max: usize) -> bool {
        let count = self.values;
        // One more: that none came again says little of how many there are.
        let values = count * count / (2 * (self.again + 1));
        self.bytes / count.max(1) * values > MARGIN * bytes_max
    }
}

/// As many values are looked at, …
const VALUES: usize = 1024;
/// … or of so many bytes.
const BYTES: usize = 128 << 10;
/// Of a thousand values hardly two have the same.
const SUMS: usize = 1 << 20;
/// Twice as many as fit, and chance does not decide.
const MARGIN: usize = 2;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{
        ArrayRef, BinaryArray, BooleanArray, Decimal128Array, FixedSizeBinaryArray, Float64Array,
        Int64Array, StringArray, TimestampMicrosecondArray,
    };

    use super::*;

    const BYTES_MAX: usize = 128 << 10;

    fn judged(array: impl Array + 'static) -> bool {
        let array: ArrayRef = Arc::new(array);
        let (all, third) = (array.len(), array.len() / 3);
        let parts = [array.slice(0, third), array.slice(third, all - third)];
        exceed(BYTES_MAX, &parts.map(Piece::Array))
    }

    #[test]
    fn few_values_are_not_many_and_many_are() {
        let mut dice = fastrand::Rng::with_seed(7);
        let mut drawn = |of: i64| (0..9000).map(|_| dice.i64(0..of)).collect::<Vec<_>>();
        for (of, are_many) in [(2, false), (5000, false), (12_000, false), (1 << 40, true)] {
            let values = drawn(of);
            let nulls = || values.iter().map(|value| (value % 3 > 0).then_some(*value));
            let texts = || values.iter().map(|value| (value % 3 > 0).then(|| value.to_string()));
            let bytes = || texts().map(|text| text.map(String::into_bytes));
            assert_eq!(judged(Int64Array::from(values.clone())), are_many, "{of}");
            assert_eq!(judged(Int64Array::from_iter(nulls())), are_many, "{of}");
            assert_eq!(judged(TimestampMicrosecondArray::from_iter(nulls())), are_many, "{of}");
            assert_eq!(judged(StringArray::from_iter(texts())), are_many, "{of}");
            let bytes: BinaryArray = bytes().collect();
            assert_eq!(judged(bytes), are_many, "{of}");
            #[expect(clippy::cast_precision_loss, reason = "what they are does not matter")]
            let floats = values.iter().map(|value| *value as f64);
            assert_eq!(judged(Float64Array::from_iter_values(floats)), are_many, "{of}");
            let uuids = values.iter().map(|value| i128::from(*value).to_be_bytes());
            let uuids = FixedSizeBinaryArray::try_from_iter(uuids).unwrap();
            assert_eq!(judged(uuids), are_many, "{of}");
            let decimals = nulls().map(|value| value.map(i128::from));
            assert_eq!(judged(Decimal128Array::from_iter(decimals)), are_many, "{of}");
        }
    }

    #[test]
    fn what_is_not_known_or_too_little_is_not_many() {
        assert!(!judged(BooleanArray::from(vec![true; 9000])));
        assert!(!judged(Int64Array::from_iter_values(0..20)));
        assert!(!judged(Int64Array::from(vec![None::<i64>; 9000])));
        assert!(!exceed(BYTES_MAX, &[]));
        // Ten texts of 9 KB say nothing of whether the next are others.
        let texts =
            |count: usize| StringArray::from_iter_values((0..count).map(|n| format!("{n:09000}")));
        assert!(!exceed(BYTES_MAX, &[Piece::Array(Arc::new(texts(5)))]));
        assert!(exceed(BYTES_MAX, &[Piece::Array(Arc::new(texts(40)))]));
    }
}
