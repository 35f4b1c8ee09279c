//! Some rows of one column, on their way into a file: an array, or runs of the same value. Pure.

use arrow_array::{Array, ArrayRef};
use parquet::errors::Result;

use super::runs::Runs;

/// Some rows of one column.
#[derive(Clone, Debug)]
pub enum Piece {
    /// A value of each.
    Array(ArrayRef),
    /// Few values, one after the other.
    Runs(Runs),
}

impl Piece {
    /// So many rows, and the value of all of them, as an array of one.
    pub(super) fn same(value: ArrayRef, rows: usize) -> Self {
        Self::Runs(Runs::one(value, rows))
    }

    /// How many there are.
    pub fn rows(&self) -> usize {
        match self {
            Self::Array(array) => array.len(),
            Self::Runs(runs) => runs.rows(),
        }
    }

    /// Bytes that a value of each takes, about.
    pub(super) fn expanded(&self) -> usize {
        match self {
            Self::Array(array) => array.get_array_memory_size(),
            Self::Runs(runs) => {
                let of_run =
                    |(value, rows): (ArrayRef, usize)| slice_bytes(&value).saturating_mul(rows);
                runs.each().map(of_run).fold(0, usize::saturating_add)
            }
        }
    }

    /// Bytes that it takes in memory.
    pub(super) fn memory(&self) -> usize {
        match self {
            Self::Array(array) => array.get_array_memory_size(),
            Self::Runs(runs) => runs.memory(),
        }
    }

    /// The same rows; of one value for all of them no more in one than take [`PART_BYTES`] with a value for each.
    pub(super) fn parts(self) -> Vec<Self> {
        let runs = match self {
            Self::Array(_) => return vec![self],
            Self::Runs(runs) => runs,
        };
        let parts = runs.each().flat_map(|(value, all)| {
            let rows = (PART_BYTES / slice_bytes(&value).max(1)).clamp(1, PART_ROWS);
            let part = move |at: usize| Self::same(ArrayRef::clone(&value), rows.min(all - at));
            (0..all).step_by(rows).map(part)
        });
        parts.collect()
    }

    /// A value of each.
    ///
    /// # Errors
    ///
    /// Arrow's offsets do not reach so far.
    pub(super) fn array(&self) -> Result<ArrayRef> {
        match self {
            Self::Array(array) => Ok(ArrayRef::clone(array)),
            Self::Runs(runs) => runs.array(),
        }
    }
}

/// Bytes of the values of an array, and of no more than them.
pub(super) fn slice_bytes(array: &ArrayRef) -> usize {
    array.to_data().get_slice_memory_size().unwrap_or(usize::MAX)
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
        let same = Piece::same(one, 3);
        let whole: ArrayRef = Arc::new(StringArray::from(vec!["x"; 3]));
        assert_eq!((same.rows(), &same.array().unwrap()), (3, &whole));
        // A byte, and two offsets.
        assert_eq!(same.expanded(), 3 * 9);
        let parts = |piece: Piece| piece.parts().iter().map(Piece::rows).collect::<Vec<_>>();
        assert_eq!((parts(same), parts(Piece::Array(Arc::clone(&whole)))), (vec![3], vec![3]));
        let long: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(400_000)]));
        assert_eq!(parts(Piece::same(long, 5)), [2, 2, 1]);
        assert_eq!(parts(Piece::same(whole.slice(0, 1), PART_ROWS + 1)), [PART_ROWS, 1]);
        let array = Piece::Array(Arc::clone(&whole));
        assert_eq!((array.rows(), &array.array().unwrap()), (3, &whole));
        assert_eq!(Piece::same(whole.slice(0, 1), 0).array().unwrap().len(), 0);
    }
}
