//! Reads the server's messages that are no payload. Pure.
//!
//! Formats: <https://www.postgresql.org/docs/current/protocol-message-formats.html>. A message is
//! `tag u8 | length i32, itself included | body`; the functions here take the body.
//!
//! **Invariant (I16):** bytes that are not of the form are an error, never skipped.

use super::error::{ServerError, SourceError};

/// Where the first message of a buffer ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Head {
    /// The message's kind.
    pub(crate) tag: u8,
    /// Its length, tag and length field included.
    pub(crate) length: usize,
}

/// The head of the first message, if five bytes are there.
pub(crate) fn head(buffer: &[u8]) -> Result<Option<Head>, SourceError> {
    head_within(buffer, DATA_ROW_BYTES_MAX)
}

/// As [`head`], where rows are a table's.
pub(crate) fn head_of_rows(buffer: &[u8]) -> Result<Option<Head>, SourceError> {
    head_within(buffer, COPY_DATA_BYTES_MAX)
}

fn head_within(buffer: &[u8], row_bytes_max: usize) -> Result<Option<Head>, SourceError> {
    let Some(([tag, length @ ..], _)) = buffer.split_first_chunk::<5>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    let longest = match *tag {
        b'd' => COPY_DATA_BYTES_MAX,
        b'D' => row_bytes_max,
        _ => MESSAGE_BYTES_MAX,
    };
    if !(4..=longest).contains(&length) {
        return Err(unknown("a message", &format!("`{}` of {length} bytes", tag.escape_ascii())));
    }
    Ok(Some(Head { tag: *tag, length: length + 1 }))
}

/// ErrorResponse: `(field u8 | cstring)* 0`.
pub(crate) fn server_error(body: &[u8]) -> ServerError {
    let mut error = ServerError::default();
    for field in body.split(|byte| *byte == 0) {
        if let Some((kind, text)) = field.split_first() {
            let text = String::from_utf8_lossy(text).into_owned();
            match kind {
                b'C' => error.code = text,
                b'M' => error.message = cut(&text),
                b'D' => error.detail = cut(&text),
                _ => {}
            }
        }
    }
    error
}

/// ParameterStatus: two cstrings.
pub(crate) fn parameter(body: &[u8]) -> Result<(String, String), SourceError> {
    let mut texts = body.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text));
    match (texts.next(), texts.next()) {
        (Some(name), Some(value)) => Ok((name.into_owned(), value.into_owned())),
        _ => Err(unknown("ParameterStatus", "cut short")),
    }
}

/// AuthenticationSASL: cstrings, then an empty one.
pub(crate) fn mechanisms(body: &[u8]) -> Vec<&[u8]> {
    body.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect()
}

/// A row of text, as simple queries give it. `None` is NULL.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct TextRow(pub(crate) Vec<Option<String>>);

impl TextRow {
    /// DataRow: `columns i16 | (length i32, -1 for NULL | bytes)*`.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, SourceError> {
        let short = || unknown("DataRow", "cut short");
        let (columns, mut rest) = body.split_first_chunk::<2>().ok_or_else(short)?;
        let mut row = vec![];
        for _ in 0..u16::from_be_bytes(*columns) {
            let (length, after) = rest.split_first_chunk::<4>().ok_or_else(short)?;
            let length = i32::from_be_bytes(*length);
            if length == -1 {
                row.push(None);
                rest = after;
                continue;
            }
            let length = usize::try_from(length).map_err(|_| short())?;
            let (text, after) = after.split_at_checked(length).ok_or_else(short)?;
            let text = std::str::from_utf8(text).map_err(|_| unknown("DataRow", "not UTF-8"))?;
            row.push(Some(text.to_owned()));
            rest = after;
        }
        match rest.is_empty() {
            true => Ok(Self(row)),
            false => Err(unknown("DataRow", "too long")),
        }
    }

    /// A column that may be NULL.
    pub(crate) fn optional(&self, column: usize) -> Option<&str> {
        self.0.get(column)?.as_deref()
    }

    /// A column that is not NULL.
    pub(crate) fn text(&self, column: usize) -> Result<&str, SourceError> {
        self.optional(column).ok_or_else(|| unknown("an answer", &format!("no column {column}")))
    }

    /// A column that reads as `T`.
    pub(crate) fn parse_as<T: std::str::FromStr>(&self, column: usize) -> Result<T, SourceError> {
        let text = self.text(column)?;
        text.parse().map_err(|_| unknown("an answer", &format!("`{text}` in column {column}")))
    }

    /// A boolean column; NULL counts as false.
    pub(crate) fn flag(&self, column: usize) -> bool {
        self.optional(column) == Some("t")
    }
}

/// What the server sent is not what the protocol allows.
pub(crate) fn unknown(what: &str, found: &str) -> SourceError {
    let found = cut(found);
    SourceError::Unknown(format!("the server sent {what} that is not understood: {found}"))
}

/// What the server says, as it goes into errors: no longer than a person reads.
pub(crate) fn cut(text: &str) -> String {
    match text.char_indices().nth(SAID_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// PostgreSQL builds no message above 1 GiB (`MaxAllocSize`); our headers ride on top.
const COPY_DATA_BYTES_MAX: usize = (1 << 30) + (64 << 10);
/// Rows of the catalog; a hostile server gets no further.
const DATA_ROW_BYTES_MAX: usize = 64 << 20;
const SAID_CHARS_MAX: usize = 1000;
const MESSAGE_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_longer_than_its_kind_allows_is_refused_by_its_head() {
        assert_eq!(head(b"Z\0\0\0").unwrap(), None);
        assert_eq!(head(b"Z\0\0\0\x05I").unwrap(), Some(Head { tag: b'Z', length: 6 }));
        assert!(head(b"d\x3f\xff\xff\xff").is_ok());
        assert!(head(b"d\x7f\xff\xff\xff").is_err());
        assert!(head(b"D\x3f\xff\xff\xff").is_err() && head_of_rows(b"D\x3f\xff\xff\xff").is_ok());
        assert!(head_of_rows(b"D\x7f\xff\xff\xff").is_err());
        assert!(head(b"E\x3f\xff\xff\xff").is_err());
        assert!(head(b"Z\0\0\0\x03").is_err());
    }

    #[test]
    fn an_error_gives_its_code_message_and_detail() {
        let error = server_error(b"SFATAL\0C28P01\0Mno\0Dbecause\0Fauth.c\0\0");
        assert_eq!(error.to_string(), "no (SQLSTATE 28P01)");
        assert_eq!(error.detail, "because");
    }

    #[test]
    fn only_minus_one_stands_for_null() {
        assert!(TextRow::parse(b"\0\x01\xff\xff\xff\xff").is_ok());
        assert!(TextRow::parse(b"\0\x01\xff\xff\xff\xfe").is_err());
    }

    #[test]
    fn a_row_tells_null_from_empty() {
        let row = TextRow::parse(b"\0\x03\xff\xff\xff\xff\0\0\0\0\0\0\0\x0242").unwrap();
        assert_eq!(row.optional(0), None);
        assert_eq!(row.text(1).unwrap(), "");
        assert_eq!(row.parse_as::<u32>(2).unwrap(), 42);
        assert!(row.text(3).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            drop((head(&bytes), server_error(&bytes), TextRow::parse(&bytes)));
            drop((parameter(&bytes), mechanisms(&bytes)));
        }
    }
}
