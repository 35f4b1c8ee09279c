//! Rows of one column in which few values stand, one after the other: each value once, and in how many rows. Pure.
//!
//! Such are the columns that the lake adds, of transactions of many rows; keys that a table is ordered by, but its last; states,
//! fillers, and what is NULL everywhere.

use arrow_array::{Array, ArrayRef, UInt32Array, cast::AsArray};
use arrow_data::ArrayData;
use arrow_schema::DataType;
use arrow_select::{concat::concat, take::take};
use parquet::errors::Result;

use super::pieces::{Piece, slice_bytes};

/// Values, and in how many rows each of them stands.
#[derive(Clone, Debug)]
pub struct Runs {
    values: ArrayRef,
    /// Of each value, at least one.
    rows: Vec<usize>,
}

/// The values of a flat array as bytes.
pub(super) struct Cells {
    data: ArrayData,
    /// Of each; `None`: they have lengths of their own.
    width: Option<usize>,
}

impl Runs {
    /// As many rows of one value, an array of one.
    pub(super) fn one(value: ArrayRef, rows: usize) -> Self {
        Self { values: value, rows: vec![rows] }
    }

    /// As many rows of each value.
    pub(super) fn new(values: ArrayRef, rows: Vec<usize>) -> Self {
        debug_assert!(values.len() == rows.len() && !rows.contains(&0), "each value has its rows");
        Self { values, rows }
    }

    /// What stands in these pieces, as runs of values that differ from the one before; `None`: it changes too often, or is
    /// of a kind that is not looked at.
    ///
    /// # Errors
    ///
    /// Arrow's offsets do not reach so far.
    pub(super) fn of(pieces: &[Piece]) -> Result<Option<Self>> {
        let (mut values, mut rows) = (vec![], vec![]);
        for piece in pieces.iter().filter(|piece| piece.rows() > 0) {
            match piece {
                // Few, and large: of such a value no more copies are made.
                Piece::Array(array) if slice_bytes(array) / array.len() > VALUE_BYTES_MAX => {
                    return Ok(None);
                }
                Piece::Array(array) => {
                    let Some(starts) = starts(array, SPARE_RUNS + array.len() / ROWS_MIN) else {
                        return Ok(None);
                    };
                    rows.extend(lengths(&starts, array.len()));
                    values.push(at(array, &starts)?);
                }
                Piece::Runs(runs) => {
                    rows.extend(&runs.rows);
                    values.push(ArrayRef::clone(&runs.values));
                }
            }
        }
        if values.is_empty() {
            return Ok(None);
        }
        let values: Vec<_> = values.iter().map(|values| &**values).collect();
        let values = concat(&values)?;
        let Some(starts) = starts(&values, values.len()) else { return Ok(None) };
        let whole: usize = rows.iter().sum();
        let mut ahead = 0;
        let begins = rows.iter().map(|rows| {
            ahead += rows;
            ahead - rows
        });
        let begins: Vec<_> = begins.collect();
        let begins: Vec<_> = starts.iter().map(|at| begins[*at]).collect();
        let runs = Self::new(at(&values, &starts)?, lengths(&begins, whole).collect());
        Ok(runs.are_long().then_some(runs))
    }

    /// How many rows there are.
    pub(super) fn rows(&self) -> usize {
        self.rows.iter().sum()
    }

    /// The values, and in how many rows each stands.
    pub(super) fn values(&self) -> (&ArrayRef, &[usize]) {
        (&self.values, &self.rows)
    }

    /// Bytes that they take in memory.
    pub(super) fn memory(&self) -> usize {
        self.values.get_array_memory_size() + size_of_val(&self.rows[..])
    }

    /// Each run by itself.
    pub(super) fn each(&self) -> impl Iterator<Item = (ArrayRef, usize)> {
        self.rows.iter().enumerate().map(|(at, rows)| (self.values.slice(at, 1), *rows))
    }

    /// A value of each row.
    ///
    /// # Errors
    ///
    /// As [`Runs::of`].
    pub(super) fn array(&self) -> Result<ArrayRef> {
        let rows = self.rows.iter().zip(0..);
        let of_each: Vec<u32> =
            rows.flat_map(|(rows, at)| std::iter::repeat_n(at, *rows)).collect();
        Ok(take(&self.values, &UInt32Array::from(of_each), None)?)
    }

    /// Whether one value stands everywhere.
    pub(super) fn is_one(&self) -> bool {
        self.rows.len() == 1
    }

    /// Whether rows are spared that are worth it.
    fn are_long(&self) -> bool {
        are_long(self.rows.len(), self.rows())
    }
}

impl Cells {
    /// Those of an array; `None`: it is nested, or of bits.
    pub(super) fn of(array: &dyn Array) -> Option<Self> {
        let (width, buffers) = match array.data_type() {
            DataType::Utf8 | DataType::Binary => (None, 2),
            DataType::FixedSizeBinary(width) => (Some(usize::try_from(*width).ok()?), 1),
            flat => (Some(flat.primitive_width()?), 1),
        };
        let data = array.to_data();
        (data.buffers().len() == buffers).then_some(Self { data, width })
    }

    /// That of a row.
    pub(super) fn row(&self, row: usize) -> &[u8] {
        let buffers = self.data.buffers();
        if let Some(width) = self.width {
            let from = (self.data.offset() + row) * width;
            return &buffers[0][from..from + width];
        }
        let bounds = &self.data.buffer::<i32>(0)[row..row + 2];
        let at = |bound: i32| usize::try_from(bound).expect("offsets begin at 0");
        &buffers[1][at(bounds[0])..at(bounds[1])]
    }
}

/// Whether so many rows are worth being so many runs.
pub(super) fn are_long(runs: usize, rows: usize) -> bool {
    runs == 1 || runs.saturating_mul(ROWS_MIN) <= rows
}

/// The rows in which another value stands than in the one before, the first among them; `None`: they are more than `most`, or
/// the array is of a kind that is not looked at.
fn starts(array: &ArrayRef, most: usize) -> Option<Vec<usize>> {
    if is_nothing(array)? {
        return Some(vec![0]);
    }
    let cells = Cells::of(array)?;
    let mut starts = vec![0];
    for row in 1..array.len() {
        if cells.row(row) != cells.row(row - 1) {
            if starts.len() >= most {
                return None;
            }
            starts.push(row);
        }
    }
    // -0.0 and 0.0 differ here, but not for who compares numbers.
    (starts.len() == 1 || !array.data_type().is_floating()).then_some(starts)
}

/// Whether all values are NULL, or all lists or maps are empty; `None`: some are.
fn is_nothing(array: &ArrayRef) -> Option<bool> {
    let bounds = match array.data_type() {
        DataType::List(_) => Some(array.as_list::<i32>().offsets()),
        DataType::Map(..) => Some(array.as_map().offsets()),
        _ => None,
    };
    let is_null = match array.null_count() {
        0 => false,
        all if all == array.len() => true,
        _ => return None,
    };
    match bounds {
        Some(bounds) => (bounds.first() == bounds.last()).then_some(true),
        None => Some(is_null),
    }
}

fn lengths(starts: &[usize], whole: usize) -> impl Iterator<Item = usize> {
    let ends = starts.iter().skip(1).copied().chain([whole]);
    starts.iter().zip(ends).map(|(start, end)| end - start)
}

/// The values of these rows, by themselves, and not as a part of all those that they came with.
fn at(array: &ArrayRef, rows: &[usize]) -> Result<ArrayRef> {
    if rows.len() == array.len() {
        return Ok(ArrayRef::clone(array));
    }
    let rows = rows.iter().map(|row| u32::try_from(*row).expect("Arrow's offsets are shorter"));
    Ok(take(array, &UInt32Array::from_iter_values(rows), None)?)
}

/// A run of fewer rows, of one among several, costs more than it saves.
const ROWS_MIN: usize = 256;
/// So many more may be in a piece: others have fewer.
const SPARE_RUNS: usize = 8;
/// Larger values are not looked at.
const VALUE_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Float64Array, Int64Array, StringArray};

    use super::*;

    fn number(values: Vec<i64>) -> Piece {
        Piece::Array(Arc::new(Int64Array::from(values)))
    }

    /// Numbers and their rows.
    fn found(pieces: &[Piece]) -> Option<(Vec<i64>, Vec<usize>)> {
        let runs = Runs::of(pieces).unwrap()?;
        let (values, rows) = runs.values();
        let values = values.as_any().downcast_ref::<Int64Array>().unwrap();
        Some((values.values().to_vec(), rows.to_vec()))
    }

    #[test]
    fn what_is_long_is_found_across_pieces() {
        let part =
            |of: Vec<i64>, from, to| Piece::Array(Arc::new(Int64Array::from(of).slice(from, to)));
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[number(vec![])]), None);
        assert_eq!(
            found(&[number(vec![1, 1]), number(vec![]), number(vec![1])]),
            Some((vec![1], vec![3]))
        );
        // What lies before and behind a part does not count.
        assert_eq!(found(&[part(vec![3, 1, 1, 4], 1, 2)]), Some((vec![1], vec![2])));
        // Too often.
        assert_eq!(found(&[number(vec![1, 1]), number(vec![1, 2])]), None);
        assert_eq!(found(&[number(vec![1, 1]), number(vec![2, 2])]), None);
        let more = |value, rows| vec![value; rows];
        let mixed = number([more(1, 100), more(2, 500)].concat());
        let runs = Runs::new(Arc::new(Int64Array::from(vec![2, 3])), vec![200, 400]);
        let pieces = [number(more(1, 200)), mixed, Piece::Runs(runs.clone()), number(more(3, 7))];
        assert_eq!(found(&pieces), Some((vec![1, 2, 3], vec![300, 700, 407])));
        let few = [Piece::Runs(runs), number(more(4, 160))];
        assert_eq!(found(&few), None, "760 rows of three values");
    }

    #[test]
    fn runs_are_the_rows_that_they_were_made_of() {
        for seed in 0..200 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let mut pieces = vec![];
            for _ in 0..dice.usize(1..6) {
                let (value, rows) = (dice.u8(..3), dice.usize(..900));
                let texts = (0..rows).map(|row| if row < 400 { value } else { value + 1 });
                let texts = texts.map(|value| "x".repeat(value.into()));
                pieces.push(Piece::Array(Arc::new(StringArray::from_iter_values(texts))));
            }
            let arrays: Vec<_> = pieces.iter().map(|piece| piece.array().unwrap()).collect();
            let whole = concat(&arrays.iter().map(|of| &**of).collect::<Vec<_>>()).unwrap();
            let Some(runs) = Runs::of(&pieces).unwrap() else { continue };
            assert_eq!((&runs.array().unwrap(), runs.rows()), (&whole, whole.len()), "seed {seed}");
            let parts = Piece::Runs(runs.clone()).parts();
            let parts: Vec<_> = parts.iter().map(|part| part.array().unwrap()).collect();
            assert_eq!(&concat(&parts.iter().map(|of| &**of).collect::<Vec<_>>()).unwrap(), &whole);
            // No two neighbours are the same.
            let (values, _) = runs.values();
            let cells = Cells::of(values).unwrap();
            assert!((1..values.len()).all(|run| cells.row(run) != cells.row(run - 1)));
        }
    }

    #[test]
    fn texts_of_other_lengths_large_ones_zeros_of_both_signs_and_some_nulls_are_no_run() {
        let one = |array: ArrayRef| Runs::of(&[Piece::Array(array)]).unwrap().is_some();
        let text = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
        assert!(one(text(vec!["x", "ab", "ab", "y"]).slice(1, 2)));
        assert!(!one(text(vec!["a", "aa"])));
        assert!(!one(text(vec!["ab", "ba"])));
        let (small, large) = ("x".repeat(VALUE_BYTES_MAX / 2), "x".repeat(VALUE_BYTES_MAX));
        assert!(one(text(vec![&small; 2])) && !one(text(vec![&large; 2])));
        let zeros = [vec![0.0; 900], vec![-0.0; 900]];
        assert!(one(Arc::new(Float64Array::from(zeros[1].clone()))));
        assert!(!one(Arc::new(Float64Array::from(zeros.concat()))));
        assert!(one(Arc::new(Int64Array::from(vec![None, None]))));
        assert!(!one(Arc::new(Int64Array::from([vec![None; 900], vec![Some(0); 900]].concat()))));
    }
}
