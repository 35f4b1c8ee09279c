//! Whether a dictionary of 128 KiB can hold a column's values, by rows of it. Pure.
//!
//! The library gives up a dictionary that is full, and what went into it by then was hashed, held and written for nothing. So a
//! column's distinct values are counted beforehand, as the file has them: when they alone are more than a
//! dictionary takes, it would be given up, whatever follows. Nothing is guessed: values that come in turn look like
//! those that never come again, until they do.
//!
//! **Invariant:** of what is [`Distinct::Many`] the library's dictionary would be full.

use arrow_array::{Array, cast::AsArray};
use arrow_schema::DataType;
use crc_fast::CrcAlgorithm::Crc64Nvme;

use super::pieces::Piece;

/// How many values some rows of a column have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Distinct {
    /// Most came before; or they are of a kind that is not counted.
    Few,
    /// More rows would tell.
    Unclear,
    /// No dictionary holds them.
    Many,
}

impl Distinct {
    /// Of these rows, for a dictionary of so many bytes.
    pub(super) fn of(rows: &[Piece], bytes_max: usize) -> Self {
        let mut seen = Seen { sums: vec![], all: 0, new: 0, bytes_max };
        for piece in rows {
            let Piece::Array(array) = piece else { return Self::Few };
            if !seen.take(array) {
                return Self::Few;
            }
        }
        match seen {
            Seen { new, .. } if new >= bytes_max => Self::Many,
            Seen { new, all, .. } if new * FEW <= all => Self::Few,
            Seen { .. } => Self::Unclear,
        }
    }
}

struct Seen {
    /// A bit for each sum that a value may have: two of a sum are taken for the same.
    sums: Vec<u64>,
    /// Bytes of all values, and of those that had not come before.
    all: usize,
    new: usize,
    bytes_max: usize,
}

impl Seen {
    /// Takes values, until they are many. `false`: such are not counted.
    fn take(&mut self, array: &dyn Array) -> bool {
        match array.data_type() {
            DataType::Utf8 => {
                let values = array.as_string::<i32>().iter().flatten();
                self.add(values.map(|value| (value.as_bytes(), LENGTH_BYTES + value.len())));
            }
            DataType::Binary => {
                let values = array.as_binary::<i32>().iter().flatten();
                self.add(values.map(|value| (value, LENGTH_BYTES + value.len())));
            }
            other => {
                let Some((width, in_file)) = widths(other) else { return false };
                let data = array.to_data();
                let values = data.buffers()[0][data.offset() * width..].chunks_exact(width);
                let rows = values.take(data.len()).enumerate();
                let values = rows.filter(|(row, _)| data.is_valid(*row));
                self.add(values.map(|(_, value)| (value, in_file)));
            }
        }
        true
    }

    /// Of each value its bytes, and how many it takes in a dictionary.
    fn add<'a>(&mut self, values: impl Iterator<Item = (&'a [u8], usize)>) {
        if self.sums.is_empty() {
            self.sums = vec![0; SUMS / 64];
        }
        for (value, bytes) in values {
            if self.new >= self.bytes_max {
                return;
            }
            // Whoever makes values that have the same sums has a dictionary tried, and no more. Any few bits of a CRC are the
            // same for many numbers that follow each other: all of them go into what is taken.
            let sum = crc_fast::checksum(Crc64Nvme, value).wrapping_mul(MIX) >> (64 - SUMS_LOG);
            let word = usize::try_from(sum / 64).expect("it is below SUMS");
            let bit = 1 << (sum % 64);
            if self.sums[word] & bit == 0 {
                self.new += bytes;
            }
            self.sums[word] |= bit;
            self.all += bytes;
        }
    }
}

/// Bytes of a value here, and in the file, where it is one of fixed width: no more than it takes.
fn widths(of: &DataType) -> Option<(usize, usize)> {
    let width = match of {
        DataType::FixedSizeBinary(width) => usize::try_from(*width).ok(),
        other => other.primitive_width(),
    };
    let width = width.filter(|width| *width > 0)?;
    // https://github.com/apache/parquet-format/blob/master/LogicalTypes.md#decimal
    let in_file = match of {
        DataType::Decimal128(..=9, _) => 4,
        DataType::Decimal128(..=18, _) => 8,
        DataType::Decimal128(..) => 9,
        _ => width,
    };
    Some((width, in_file))
}

/// In front of a text, or bytes, in a dictionary.
const LENGTH_BYTES: usize = 4;
/// They are few when so many bytes come for each one that is new.
const FEW: usize = 4;
/// Of the 32,768 values of four bytes that fit a dictionary one in sixty has another's.
const SUMS: usize = 1 << SUMS_LOG;
const SUMS_LOG: u32 = 20;
/// 2^64 by the golden ratio, odd.
const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{
        ArrayRef, BinaryArray, BooleanArray, Decimal128Array, FixedSizeBinaryArray, Float64Array,
        Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
    };

    use super::{Distinct::*, *};
    use crate::seal::runs::Runs;

    const BYTES_MAX: usize = 128 << 10;

    fn judged(array: impl Array + 'static) -> Distinct {
        let array: ArrayRef = Arc::new(array);
        let (all, third) = (array.len(), array.len() / 3);
        let parts = [array.slice(0, third), array.slice(third, all - third)];
        Distinct::of(&parts.map(Piece::Array), BYTES_MAX)
    }

    /// As many as fit, and some more, of every kind and width in the file.
    #[test]
    fn those_that_fit_are_never_many_and_those_that_do_not_are() {
        // In turn; 2 % more, as two in sixty have another's sum.
        let in_turn = |of: usize, rows: usize| (0..rows).map(move |row| (row % of) as i64);
        let decimals = |precision| {
            move |of, rows| {
                let values = in_turn(of, rows).map(|value| Some(i128::from(value)));
                let array = Decimal128Array::from_iter(values);
                judged(array.with_precision_and_scale(precision, 2).unwrap())
            }
        };
        type Judge = Box<dyn Fn(usize, usize) -> Distinct>;
        let kinds: [(usize, Judge); 9] = [
            (8, Box::new(move |of, rows| judged(Int64Array::from_iter_values(in_turn(of, rows))))),
            (
                4,
                Box::new(move |of, rows| {
                    let values = in_turn(of, rows).map(|value| i32::try_from(value).unwrap());
                    judged(Int32Array::from_iter_values(values))
                }),
            ),
            (
                8,
                Box::new(move |of, rows| {
                    // NULL stands between them.
                    let values = in_turn(of, rows).flat_map(|value| [None, Some(value)]);
                    judged(TimestampMicrosecondArray::from_iter(values))
                }),
            ),
            (
                8,
                Box::new(move |of, rows| {
                    #[expect(clippy::cast_precision_loss, reason = "they are small")]
                    let values = in_turn(of, rows).map(|value| value as f64);
                    judged(Float64Array::from_iter_values(values))
                }),
            ),
            (4, Box::new(decimals(9))),
            (8, Box::new(decimals(18))),
            (
                20,
                Box::new(move |of, rows| {
                    let values = in_turn(of, rows).map(|value| format!("{value:016}"));
                    judged(StringArray::from_iter_values(values))
                }),
            ),
            (
                20,
                Box::new(move |of, rows| {
                    let values = in_turn(of, rows).map(|value| format!("{value:016}"));
                    judged(BinaryArray::from_iter_values(values))
                }),
            ),
            (
                16,
                Box::new(move |of, rows| {
                    let values = in_turn(of, rows).map(|value| i128::from(value).to_be_bytes());
                    judged(FixedSizeBinaryArray::try_from_iter(values).unwrap())
                }),
            ),
        ];
        for (number, (bytes, judge)) in kinds.iter().enumerate() {
            let fit = BYTES_MAX / bytes - 1;
            assert_eq!(judge(fit, fit), Unclear, "kind {number}");
            assert_eq!(judge(fit, 3 * fit), Unclear, "kind {number}");
            assert_eq!(judge(fit, 5 * fit), Few, "kind {number}");
            let more = fit + fit / 30;
            assert_eq!(judge(more, more), Many, "kind {number}");
            assert_eq!(judge(7, 1000), Few, "kind {number}");
        }
        // Of more digits than 64 bits hold it is no more than 16 bytes, and 9 at least.
        assert_eq!(decimals(38)(BYTES_MAX / 16, BYTES_MAX / 16), Unclear);
        assert_eq!(decimals(38)(BYTES_MAX / 8, BYTES_MAX / 8), Many);
    }

    #[test]
    fn what_is_not_counted_is_few() {
        assert_eq!(judged(BooleanArray::from(vec![true; 9000])), Few);
        assert_eq!(judged(Int64Array::from(vec![None::<i64>; 9000])), Few);
        assert_eq!(Distinct::of(&[], BYTES_MAX), Few);
        let one: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
        let runs = Piece::Runs(Runs::one(one, 9000));
        let many: ArrayRef = Arc::new(Int64Array::from_iter_values(0..90_000));
        assert_eq!(Distinct::of(&[runs, Piece::Array(many)], BYTES_MAX), Few);
        assert_eq!(judged(StringArray::from_iter_values([[""; 9], ["x"; 9]].concat())), Few);
        assert_eq!(
            judged(FixedSizeBinaryArray::try_from_iter([[0_u8; 0]; 9].iter()).unwrap()),
            Few
        );
    }
}
