//! Cells of some rows, a column after the other: each where its bytes lie. Pure.
//!
//! Eight bytes a cell, those of a column side by side: what reads a column next goes through them in order.
//!
//! **Invariant:** every row has as many cells as there are columns.

use std::ops::Range;

use super::{Cell, DecodeError};

/// One cell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    at: u32,
    /// Its length, and in the upper two bits what it is.
    length: u32,
}

/// Rows of one batch.
#[derive(Debug)]
pub struct Cells {
    columns: usize,
    /// Rows for which there is room.
    room: usize,
    /// So many rows of each column.
    places: Vec<Place>,
    rows: usize,
    bytes: usize,
    bytes_max: usize,
}

impl Place {
    /// SQL NULL.
    pub const NULL: Self = Self { at: 0, length: NULL };
    /// As [`Cell::Unchanged`].
    pub const UNCHANGED: Self = Self { at: 0, length: UNCHANGED };

    /// Where a value lies that is in binary form.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Length`]: further on, or longer, than a batch can be (4 GiB, and 1 GiB of a value).
    #[inline]
    pub fn binary(range: Range<usize>) -> Result<Self, DecodeError> {
        let at = u32::try_from(range.start).ok();
        let length = u32::try_from(range.len()).ok().filter(|length| *length < LENGTH_END);
        let place = at.zip(length).map(|(at, length)| Self { at, length });
        place.ok_or_else(|| DecodeError::cut("a value"))
    }

    /// Any cell.
    ///
    /// # Errors
    ///
    /// As [`Place::binary`].
    pub fn of(cell: &Cell) -> Result<Self, DecodeError> {
        Ok(match cell {
            Cell::Null => Self::NULL,
            Cell::Unchanged => Self::UNCHANGED,
            Cell::Binary(range) => Self::binary(range.clone())?,
            Cell::Text(range) => {
                let place = Self::binary(range.clone())?;
                Self { length: place.length | TEXT, ..place }
            }
        })
    }

    /// The cell.
    #[inline]
    pub fn cell(self) -> Cell {
        match self.length & KIND {
            BINARY => Cell::Binary(self.range()),
            TEXT => Cell::Text(self.range()),
            NULL => Cell::Null,
            _ => Cell::Unchanged,
        }
    }

    /// Whether it is SQL NULL.
    #[inline]
    pub fn is_null(self) -> bool {
        self.length == NULL
    }

    /// The bytes of a value in binary form.
    #[inline]
    pub fn value(self, bytes: &[u8]) -> Option<&[u8]> {
        if self.length >= LENGTH_END { None } else { bytes.get(self.range()) }
    }

    /// The bytes of a value, and all that stand behind it.
    #[inline]
    pub fn from(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.at as usize..).unwrap_or_default()
    }

    /// Those of a value of `N` bytes in binary form.
    #[inline]
    pub fn number<const N: usize>(self, bytes: &[u8]) -> Option<[u8; N]> {
        self.value(bytes)?.try_into().ok()
    }

    fn range(self) -> Range<usize> {
        let at = self.at as usize;
        at..at + (self.length & !KIND) as usize
    }
}

impl Cells {
    /// No rows of `columns` columns yet. It is full with `rows`, or when they hold `bytes`.
    pub fn new(columns: usize, rows: usize, bytes: usize) -> Self {
        let room = rows.max(1);
        let places = vec![Place::NULL; columns * room];
        Self { columns, room, places, rows: 0, bytes: 0, bytes_max: bytes }
    }

    /// Takes all rows away.
    pub fn clear(&mut self) {
        (self.rows, self.bytes) = (0, 0);
    }

    /// Whether no row has come.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Whether it takes no more.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.rows == self.room || (self.bytes >= self.bytes_max && self.rows > 0)
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of each row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes of their values, and what the source put around them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sets a cell of the row that is being read: those of all columns, then [`Cells::end`].
    #[inline]
    pub fn set(&mut self, column: usize, place: Place) {
        debug_assert!(self.rows < self.room, "it is full");
        self.places[column * self.room + self.rows] = place;
    }

    /// The row that was being read, of so many bytes, is there.
    #[inline]
    pub fn end(&mut self, bytes: usize) {
        self.rows += 1;
        self.bytes += bytes;
    }

    /// The cells of one column.
    #[inline]
    pub fn column(&self, column: usize) -> &[Place] {
        let begin = column * self.room;
        &self.places[begin..begin + self.rows]
    }

    /// The cells of one row.
    pub fn row(&self, row: usize) -> impl Iterator<Item = Cell> {
        (0..self.columns).map(move |column| self.column(column)[row].cell())
    }
}

const KIND: u32 = 0b11 << 30;
const BINARY: u32 = 0;
const TEXT: u32 = 0b01 << 30;
const NULL: u32 = 0b10 << 30;
const UNCHANGED: u32 = 0b11 << 30;
/// A value is shorter.
const LENGTH_END: u32 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_says_what_its_cell_says() {
        let cells =
            [Cell::Null, Cell::Unchanged, Cell::Binary(3..3), Cell::Binary(1..9), Cell::Text(2..4)];
        for cell in cells {
            let place = Place::of(&cell).unwrap();
            assert_eq!((place.cell(), place.is_null()), (cell.clone(), cell == Cell::Null));
            let bytes = b"0123456789";
            let value = match cell {
                Cell::Binary(range) => Some(&bytes[range]),
                _ => None,
            };
            assert_eq!(place.value(bytes), value);
        }
        assert_eq!(Place::of(&Cell::Binary(1..3)).unwrap().number(b"\x09\x01\x02"), Some([1, 2]));
        assert_eq!(Place::of(&Cell::Binary(1..3)).unwrap().number::<4>(b"\x09\x01\x02"), None);
        assert_eq!(Place::of(&Cell::Binary(1..9)).unwrap().value(b"cut"), None);
        assert!(Place::binary(0..1 << 30).is_err() && Place::binary(1 << 32..1 << 32).is_err());
    }

    #[test]
    fn rows_come_back_by_column_and_by_row_until_it_is_full() {
        let mut cells = Cells::new(2, 3, 10);
        for n in 0..2 {
            assert!(!cells.is_full());
            cells.set(0, Place::binary(n..n + 1).unwrap());
            cells.set(1, Place::NULL);
            cells.end(5);
        }
        assert!(cells.is_full(), "by bytes");
        assert_eq!(cells.column(0), [0, 1].map(|n| Place::binary(n..n + 1).unwrap()));
        assert_eq!(cells.row(1).collect::<Vec<_>>(), [Cell::Binary(1..2), Cell::Null]);
        cells.clear();
        assert!(cells.is_empty() && !cells.is_full());
        (0..3).for_each(|_| cells.end(0));
        assert!(cells.is_full(), "by rows");
        // One row is taken whatever it weighs.
        assert!(!Cells::new(0, 0, 0).is_full());
    }
}
