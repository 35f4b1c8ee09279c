//! How an object lies in its file. Pure.
//!
//! # Format of a file `<number, 20 digits>.spool`
//!
//! ```text
//! magic   8 bytes   "LHSPOOL" 0x02
//! salt   32 bytes   random
//! chunk  65,480 bytes of the object, encrypted, | tag 16 bytes
//! chunk  65,520 bytes of the object, encrypted, | tag 16 bytes
//! chunk  …          (the last one fewer; only of an empty object none)
//! ```
//! So a chunk ends where a block of 64 KiB of the file does, and each write fills whole pages of the system's memory: what
//! lies across them takes it half as much again (benches/README.md). Before, in version 0x01, each chunk was 65,536 bytes
//! of the object; such files are still read.
//!
//! Each chunk is AES-256-GCM without additional data. Key: HKDF-SHA256(salt, spool key, info =
//! `"lakehead spool v2" 0 source 0 file name`, or `v1`), so that no two files share one (I22), and a file under
//! another's name does not open. Nonce: three zeros, 1 in the last chunk and else 0, the chunk's number
//! from 0 as `u64` big-endian: a cut at a chunk's edge is noticed too.

/// How an object lies in its file.
pub(super) struct Layout {
    pub(super) magic: &'static [u8; MAGIC_BYTES],
    /// How what its key is made of begins.
    pub(super) info: &'static [u8],
    /// Bytes of the object in its first chunk, and in each that follows.
    pub(super) first: u64,
    pub(super) chunk: u64,
}

impl Layout {
    /// Of what is written.
    pub(super) const NEW: Self = Self {
        magic: b"LHSPOOL\x02",
        info: b"lakehead spool v2\0",
        first: BLOCK_BYTES - (HEAD_BYTES + TAG_BYTES) as u64,
        chunk: BLOCK_BYTES - TAG_BYTES as u64,
    };
    /// Of what may have been written before.
    pub(super) const OLD: Self = Self {
        magic: b"LHSPOOL\x01",
        info: b"lakehead spool v1\0",
        first: BLOCK_BYTES,
        chunk: BLOCK_BYTES,
    };

    pub(super) fn of(magic: &[u8; MAGIC_BYTES]) -> Option<&'static Self> {
        [&Self::NEW, &Self::OLD].into_iter().find(|of| of.magic == magic)
    }

    /// Length of the file of an object of so many bytes, or of the file up to so many.
    pub(super) fn file_bytes(&self, bytes: u64) -> u64 {
        HEAD_BYTES as u64 + bytes + self.chunks(bytes) * TAG_BYTES as u64
    }

    /// How many an object of so many bytes has.
    pub(super) fn chunks(&self, bytes: u64) -> u64 {
        1 + bytes.saturating_sub(self.first).div_ceil(self.chunk)
    }

    /// Which one holds a byte of the object.
    pub(super) fn chunk_at(&self, byte: u64) -> u64 {
        (byte + (self.chunk - self.first)) / self.chunk
    }

    /// The first byte of the object in a chunk.
    pub(super) fn begin(&self, chunk: u64) -> u64 {
        (chunk * self.chunk).saturating_sub(self.chunk - self.first)
    }

    /// Where a chunk begins in the file.
    pub(super) fn place(&self, chunk: u64) -> u64 {
        HEAD_BYTES as u64 + self.begin(chunk) + chunk * TAG_BYTES as u64
    }
}

pub(super) const MAGIC_BYTES: usize = 8;
pub(super) const SALT_BYTES: usize = 32;
pub(super) const HEAD_BYTES: usize = MAGIC_BYTES + SALT_BYTES;
pub(super) const TAG_BYTES: usize = 16;
/// Of the file: a chunk ends with each.
pub(super) const BLOCK_BYTES: u64 = 64 << 10;
