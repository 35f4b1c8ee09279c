//! Cuts what COPY … TO STDOUT (FORMAT binary) sends into batches of whole rows. Pure.
//!
//! The server sends one CopyData message per row
//! (<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-COPY>), the first with the
//! file's header in front, and the trailer, `-1` in place of a row's number of columns, in a message
//! of its own.
//!
//! **Invariant:** the rows given are the rows sent, in order; an end without trailer is an error.

use bytes::{Buf, Bytes, BytesMut};

use super::error::SourceError;

/// A batch in the making.
#[derive(Debug, Default)]
pub(crate) struct Gulp {
    bytes: BytesMut,
    rows: u64,
    begun: bool,
    ended: bool,
}

/// Whole rows.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Rows {
    /// As the server sent them, without header and trailer.
    pub(crate) bytes: Bytes,
    /// How many.
    pub(crate) rows: u64,
}

impl Gulp {
    /// Takes one CopyData payload.
    pub(crate) fn push(&mut self, payload: &[u8]) -> Result<(), SourceError> {
        let mut row = payload;
        if self.ended {
            return Err(wrong("rows follow its trailer"));
        }
        if !self.begun {
            row = after_header(row)?;
            self.begun = true;
            if row.is_empty() {
                return Ok(());
            }
        }
        if row == TRAILER {
            self.ended = true;
            return Ok(());
        }
        if row.len() < 2 {
            return Err(wrong("a row is cut short"));
        }
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(BATCH_BYTES + BATCH_BYTES / 8);
        }
        self.bytes.extend_from_slice(row);
        self.rows += 1;
        Ok(())
    }

    /// Whether a payload of this length should be handed on as it is, without a copy.
    pub(crate) fn passes(&self, length: usize) -> bool {
        self.begun && length >= BATCH_BYTES
    }

    /// Takes a payload for which [`Gulp::passes`] said so, when nothing else is held: one row alone.
    pub(crate) fn pass(&self, payload: Bytes) -> Rows {
        debug_assert!(self.bytes.is_empty() && payload.remaining() >= BATCH_BYTES, "see passes");
        Rows { bytes: payload, rows: 1 }
    }

    /// Whether a batch is worth handing on.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH_BYTES
    }

    /// What is held, if anything.
    pub(crate) fn take(&mut self) -> Option<Rows> {
        let bytes = std::mem::take(&mut self.bytes);
        let rows = std::mem::take(&mut self.rows);
        (rows > 0).then(|| Rows { bytes: bytes.freeze(), rows })
    }

    /// The server says that it has sent all.
    pub(crate) fn finish(&self) -> Result<(), SourceError> {
        match self.ended {
            true => Ok(()),
            false => Err(wrong("its trailer is missing")),
        }
    }
}

/// What follows the header: signature, flags, length of the extension, extension
/// (<https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format").
fn after_header(payload: &[u8]) -> Result<&[u8], SourceError> {
    let rest = payload.strip_prefix(SIGNATURE).ok_or_else(|| wrong("it has no signature"))?;
    let (flags, rest) = rest.split_first_chunk::<4>().ok_or_else(|| wrong("its header is cut"))?;
    // Bits 16 to 31 change the format of rows; the lower ones do not.
    if u32::from_be_bytes(*flags) >> 16 != 0 {
        return Err(wrong("its header has flags that are not known"));
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(|| wrong("its header is cut"))?;
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    rest.get(length..).ok_or_else(|| wrong("its header is cut"))
}

fn wrong(what: &str) -> SourceError {
    SourceError::Unknown(format!("binary COPY cannot be read: {what}"))
}

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const TRAILER: &[u8] = &[0xff, 0xff];
/// A batch is handed on from this size.
pub(crate) const BATCH_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Vec<u8> {
        [SIGNATURE, &[0; 8]].concat()
    }

    #[test]
    fn rows_come_without_header_and_trailer() {
        let mut gulp = Gulp::default();
        gulp.push(&[header(), vec![0, 1, 255, 255, 255, 255]].concat()).unwrap();
        gulp.push(&[0, 0]).unwrap();
        gulp.push(TRAILER).unwrap();
        gulp.finish().unwrap();
        let rows = gulp.take().unwrap();
        assert_eq!((rows.rows, &rows.bytes[..]), (2, &[0, 1, 255, 255, 255, 255, 0, 0][..]));
        assert_eq!(gulp.take(), None);
    }

    #[test]
    fn an_empty_table_has_a_header_and_a_trailer() {
        for messages in [vec![header(), TRAILER.to_vec()], vec![[&header(), TRAILER].concat()]] {
            let mut gulp = Gulp::default();
            messages.iter().for_each(|message| gulp.push(message).unwrap());
            gulp.finish().unwrap();
            assert_eq!(gulp.take(), None);
        }
    }

    #[test]
    fn a_copy_cut_short_is_an_error() {
        let mut gulp = Gulp::default();
        gulp.push(&header()).unwrap();
        gulp.push(&[0, 0]).unwrap();
        assert!(gulp.finish().is_err());
    }

    #[test]
    fn rows_of_an_unknown_form_are_refused() {
        let with_oids = [SIGNATURE, &[0, 1, 0, 0], &[0; 4]].concat();
        assert!(Gulp::default().push(&with_oids).is_err());
        assert!(Gulp::default().push(b"text\n").is_err());
    }
}
