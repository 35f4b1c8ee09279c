//! Some rows of one column, on their way into a file: an array, or the value that stands in all of them. Pure.

use arrow_array::{Array, ArrayRef, UInt32Array};
use arrow_select::take::take;
use parquet::errors::Result;

/// Some rows of one column.
#[derive(Clone, Debug)]
pub enum Piece {
    /// A value of each.
    Array(ArrayRef),
    /// So many rows, and the value of all of them, as an array of one.
    Same(ArrayRef, usize),
}

impl Piece {
    /// How many there are.
    pub fn rows(&self) -> usize {
        match self {
            Self::Array(array) => array.len(),
            Self::Same(_, rows) => *rows,
        }
    }

    /// Bytes that a value of each takes, about.
    pub(super) fn expanded(&self) -> usize {
        match self {
            Self::Array(array) => array.get_array_memory_size(),
            Self::Same(value, rows) => {
                let each = value.to_data().get_slice_memory_size();
                each.map_or(usize::MAX, |each| each.saturating_mul(*rows))
            }
        }
    }

    /// Bytes that it takes in memory.
    pub(super) fn memory(&self) -> usize {
        match self {
            Self::Array(array) => array.get_array_memory_size(),
            Self::Same(value, _) => value.get_array_memory_size(),
        }
    }

    /// The same rows; of one value for all of them no more in one than take [`PART_BYTES`] with a value for each.
    pub(super) fn parts(self) -> Vec<Self> {
        let (value, all) = match self {
            Self::Array(_) => return vec![self],
            Self::Same(value, all) => (value, all),
        };
        let each = Self::Same(ArrayRef::clone(&value), 1).expanded().max(1);
        let rows = (PART_BYTES / each).clamp(1, PART_ROWS);
        let part = |at: usize| Self::Same(ArrayRef::clone(&value), rows.min(all - at));
        (0..all).step_by(rows).map(part).collect()
    }

    /// A value of each.
    ///
    /// # Errors
    ///
    /// Arrow's offsets do not reach so far.
    pub(super) fn array(&self) -> Result<ArrayRef> {
        match self {
            Self::Array(array) => Ok(ArrayRef::clone(array)),
            Self::Same(value, rows) => {
                let first = UInt32Array::from(vec![0; *rows]);
                Ok(take(value, &first, None)?)
            }
        }
    }
}

/// As large as a batch of rows.
const PART_BYTES: usize = 1 << 20;
/// As above.
const PART_ROWS: usize = 8192;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::StringArray;

    use super::*;

    #[test]
    fn one_value_is_as_many_as_are_said() {
        let one: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
        let same = Piece::Same(one, 3);
        let whole: ArrayRef = Arc::new(StringArray::from(vec!["x"; 3]));
        assert_eq!((same.rows(), &same.array().unwrap()), (3, &whole));
        // A byte, and two offsets.
        assert_eq!(same.expanded(), 3 * 9);
        let parts = |piece: Piece| piece.parts().iter().map(Piece::rows).collect::<Vec<_>>();
        assert_eq!((parts(same), parts(Piece::Array(Arc::clone(&whole)))), (vec![3], vec![3]));
        let long: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(400_000)]));
        assert_eq!(parts(Piece::Same(long, 5)), [2, 2, 1]);
        assert_eq!(parts(Piece::Same(whole.slice(0, 1), PART_ROWS + 1)), [PART_ROWS, 1]);
        let array = Piece::Array(Arc::clone(&whole));
        assert_eq!((array.rows(), &array.array().unwrap()), (3, &whole));
        assert_eq!(Piece::Same(whole.slice(0, 1), 0).array().unwrap().len(), 0);
    }
}
