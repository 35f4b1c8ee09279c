//! Big-endian fields of a PostgreSQL message, each read with its length checked. Pure.

use std::ops::Range;

use super::super::DecodeError;

/// Reads one message from its beginning to its end.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(what).map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub(super) fn i32(&mut self, what: &'static str) -> Result<i32, DecodeError> {
        self.array(what).map(i32::from_be_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_be_bytes)
    }

    /// An `i32` that counts bytes.
    pub(super) fn length(&mut self, what: &'static str) -> Result<usize, DecodeError> {
        usize::try_from(self.i32(what)?).map_err(|_| DecodeError::Length { what })
    }

    /// Skips bytes, and says where they lie.
    pub(super) fn take(
        &mut self,
        length: usize,
        what: &'static str,
    ) -> Result<Range<usize>, DecodeError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let range = self.at..end.ok_or_else(|| DecodeError::cut(what))?;
        self.at = range.end;
        Ok(range)
    }

    /// A string that ends with a zero byte.
    pub(super) fn text(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == 0);
        let length = length.ok_or_else(|| DecodeError::cut(what))?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| DecodeError::Utf8 { what })
    }

    /// Checks that nothing follows.
    pub(super) fn end(&self, what: &'static str) -> Result<(), DecodeError> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(DecodeError::Length { what }) }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let rest = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk);
        let array = *rest.ok_or_else(|| DecodeError::cut(what))?;
        self.at += N;
        Ok(array)
    }
}
