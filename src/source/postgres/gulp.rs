//! Cuts what COPY … TO STDOUT (FORMAT binary) sends, or a binary cursor, into batches of whole rows. Pure.
//!
//! The server sends one CopyData message per row
//! (<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-COPY>), the first with the
//! file's header in front, and the trailer, `-1` in place of a row's number of columns, in a message
//! of its own. A cursor's DataRow messages have neither, and their rows are the same bytes: a count of columns, and each
//! with its length in front. They come as many at a time as were asked for, so that the server does no more at once.
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
    /// Rows are given in the messages that they come in.
    framed: bool,
    cursor: Option<Cursor>,
}

/// What was asked of a cursor.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    /// How many rows came since it was asked last, and with how many bytes.
    came: u64,
    bytes: u64,
    /// Bytes to be asked for at once.
    sip: u64,
}

/// Whole rows.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Rows {
    /// As the server sent them, without header and trailer.
    pub(crate) bytes: Bytes,
    /// How many.
    pub(crate) rows: u64,
    /// Bytes of the messages around them.
    pub(crate) framing: usize,
}

impl Rows {
    /// Bytes of the rows.
    pub(crate) fn payload(&self) -> u64 {
        u64::try_from(self.bytes.len() - self.framing).unwrap_or(u64::MAX)
    }
}

impl Gulp {
    /// Of a cursor.
    pub(crate) fn of_cursor() -> Self {
        Self { begun: true, cursor: Some(Cursor::default()), ..Self::default() }
    }

    /// Of a COPY whose rows are given as they lie in the connection's buffer: without a copy, each in its CopyData message.
    pub(crate) fn framed(self) -> Self {
        Self { framed: true, ..self }
    }

    /// Whether the messages that come are given as they are.
    pub(crate) fn is_framed(&self) -> bool {
        self.framed && self.begun && !self.ended
    }

    /// Whether a payload ends a COPY.
    pub(crate) fn is_trailer(payload: &[u8]) -> bool {
        payload == TRAILER
    }

    /// Rows that are given in their messages, so many.
    pub(crate) fn give(&self, bytes: Bytes, rows: u64) -> Rows {
        debug_assert!(
            self.bytes.is_empty() && self.cursor.is_none(),
            "those before are given first"
        );
        let framing = usize::try_from(rows).unwrap_or(usize::MAX).saturating_mul(FRAME_BYTES);
        Rows { bytes, rows, framing }
    }

    /// Whether rows are asked for, and not just sent.
    pub(crate) fn is_of_cursor(&self) -> bool {
        self.cursor.is_some()
    }

    /// Has rows of about so many bytes asked for at once, of a cursor.
    pub(crate) fn sip(&mut self, bytes: u64) {
        if let Some(cursor) = &mut self.cursor {
            cursor.sip = bytes;
        }
    }

    /// Whether so much is on its way that one need not look for each bit of it.
    pub(crate) fn is_plenty(&self) -> bool {
        self.cursor.is_none_or(|cursor| cursor.sip >= PLENTY_BYTES)
    }

    /// Whether a message of this kind is a row.
    pub(crate) fn is_row(&self, tag: u8) -> bool {
        tag == if self.cursor.is_some() { b'D' } else { b'd' }
    }

    /// How many rows are to be asked for, by what the last ones measured; `None` after the end.
    pub(crate) fn ask(&mut self) -> Option<i32> {
        let cursor = self.cursor.as_mut().filter(|_| !self.ended)?;
        let rows = match cursor.came {
            0 => ROWS_FIRST,
            // The next ones may be larger.
            came => (cursor.sip / (cursor.bytes / came).max(1)).clamp(1, came.saturating_mul(4)),
        };
        (cursor.came, cursor.bytes) = (0, 0);
        Some(i32::try_from(rows).unwrap_or(ROWS_MAX).min(ROWS_MAX))
    }

    /// The server has sent what was asked for, or all there was.
    pub(crate) fn answered(&mut self, may_be_more: bool) {
        self.ended |= !may_be_more;
    }

    /// Whether there may be more.
    pub(crate) fn is_open(&self) -> bool {
        !self.ended
    }

    fn count(&mut self, payload: usize) {
        if let Some(cursor) = &mut self.cursor {
            cursor.came += 1;
            cursor.bytes += u64::try_from(payload).unwrap_or(u64::MAX);
        }
    }

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
        if row == TRAILER && self.cursor.is_none() {
            self.ended = true;
            return Ok(());
        }
        if row.len() < 2 {
            return Err(wrong("a row is cut short"));
        }
        if self.bytes.capacity() == 0 {
            let most = self
                .cursor
                .map_or(BATCH_BYTES, |cursor| usize::try_from(cursor.sip).unwrap_or(BATCH_BYTES));
            let most = most.min(BATCH_BYTES);
            self.bytes.reserve(most + most / 8);
        }
        self.bytes.extend_from_slice(row);
        self.rows += 1;
        self.count(row.len());
        Ok(())
    }

    /// Whether a payload of this length should be handed on as it is, without a copy.
    pub(crate) fn passes(&self, length: usize) -> bool {
        self.begun && !self.ended && length >= BATCH_BYTES
    }

    /// Takes a payload for which [`Gulp::passes`] said so, when nothing else is held: one row alone.
    pub(crate) fn pass(&mut self, payload: Bytes) -> Rows {
        debug_assert!(self.bytes.is_empty() && payload.remaining() >= BATCH_BYTES, "see passes");
        self.count(payload.len());
        Rows { bytes: payload, rows: 1, framing: 0 }
    }

    /// Whether a batch is worth handing on.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH_BYTES
    }

    /// What is held, if anything.
    pub(crate) fn take(&mut self) -> Option<Rows> {
        let bytes = std::mem::take(&mut self.bytes);
        let rows = std::mem::take(&mut self.rows);
        (rows > 0).then(|| Rows { bytes: bytes.freeze(), rows, framing: 0 })
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
/// Of a message around its payload: a tag and a length.
pub(crate) const FRAME_BYTES: usize = 5;
/// A batch is handed on from this size.
pub(crate) const BATCH_BYTES: usize = 256 << 10;
/// Asked for at once, from here on one waits until many bytes have come.
const PLENTY_BYTES: u64 = 1 << 20;
/// Asked for while nothing is known of their size.
const ROWS_FIRST: u64 = 16;
const ROWS_MAX: i32 = 16_384;

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
    fn of_a_cursor_as_many_rows_are_asked_for_as_fit() {
        let mut gulp = Gulp::of_cursor();
        gulp.sip(1000);
        let row = [&[0, 1, 0, 0, 0, 94][..], &[7; 94]].concat();
        let mut all = 0;
        for (asked, come) in [(16, 16), (10, 10), (10, 3)] {
            assert_eq!(gulp.ask(), Some(asked));
            (0..come).for_each(|_| gulp.push(&row).unwrap());
            gulp.answered(come == asked);
            let rows = gulp.take().unwrap();
            all += rows.rows;
            assert_eq!(rows.bytes.len(), 100 * usize::try_from(come).unwrap());
        }
        assert_eq!((gulp.ask(), gulp.take(), all), (None, None, 29));
        // Not many more than came before, should they be larger.
        let mut wary = Gulp::of_cursor();
        wary.sip(1 << 20);
        for asked in [16, 64, 256, 1024, 4096, 16_384, 16_384] {
            assert_eq!(wary.ask(), Some(asked));
            (0..asked).for_each(|_| wary.push(&[0, 0]).unwrap());
            wary.answered(true);
        }
    }

    #[test]
    fn rows_of_an_unknown_form_are_refused() {
        let with_oids = [SIGNATURE, &[0, 1, 0, 0], &[0; 4]].concat();
        assert!(Gulp::default().push(&with_oids).is_err());
        assert!(Gulp::default().push(b"text\n").is_err());
    }
}
