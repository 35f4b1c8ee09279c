//! The two sums of the bytes sent: SHA-256, by which the ledger proves them, and CRC64NVME, by which
//! S3 checks them on arrival. Both are made in the pass that writes the bytes. Pure.

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use crc_fast::CrcAlgorithm::Crc64Nvme;

/// Sums of a stream, so far.
pub(super) struct Sums {
    sha256: digest::Context,
    crc64nvme: crc_fast::Digest,
    /// CRC64NVME of what there was at each [`SUM_BYTES`].
    so_far: Vec<u64>,
    bytes: u64,
}

/// Sums of a stream, at its end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Summed {
    /// Its length.
    pub(super) bytes: u64,
    /// SHA-256, lowercase hex.
    pub(super) sha256: String,
    /// CRC64NVME, as [`crc64nvme_text`] writes it.
    pub(super) crc64nvme: String,
    /// As above, of what there was at each [`SUM_BYTES`]; none of a short stream.
    pub(super) so_far: Vec<String>,
}

impl Sums {
    /// Of nothing yet.
    pub(super) fn new() -> Self {
        Self {
            sha256: digest::Context::new(&digest::SHA256),
            crc64nvme: crc_fast::Digest::new(Crc64Nvme),
            so_far: vec![],
            bytes: 0,
        }
    }

    /// Takes the next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = usize::try_from(SUM_BYTES - self.bytes % SUM_BYTES).unwrap_or(usize::MAX);
            let (next, after) = rest.split_at(room.min(rest.len()));
            self.crc64nvme.update(next);
            self.bytes += next.len() as u64;
            if self.bytes.is_multiple_of(SUM_BYTES) {
                self.so_far.push(self.crc64nvme.finalize());
            }
            rest = after;
        }
    }

    /// Ends.
    pub(super) fn finish(self) -> Summed {
        let so_far = match self.bytes > ONE_REQUEST_BYTES {
            true => self.so_far.into_iter().map(crc64nvme_text).collect(),
            false => vec![],
        };
        Summed {
            bytes: self.bytes,
            sha256: hex::encode(self.sha256.finish()),
            crc64nvme: crc64nvme_text(self.crc64nvme.finalize()),
            so_far,
        }
    }
}

/// CRC64NVME of `bytes`.
pub fn crc64nvme(bytes: &[u8]) -> u64 {
    crc_fast::checksum(Crc64Nvme, bytes)
}

/// CRC64NVME of one stretch and the next, from their own sums and the length of the second.
pub fn crc64nvme_combine(first: u64, second: u64, second_bytes: u64) -> u64 {
    crc_fast::checksum_combine(Crc64Nvme, first, second, second_bytes)
}

/// CRC64NVME of the second of two stretches, from those of the first and of both, and the length of the second.
pub(super) fn crc64nvme_second(first: u64, both: u64, second_bytes: u64) -> u64 {
    // To combine is to move the first by that length, and to add the second (XOR).
    both ^ crc64nvme_combine(first, 0, second_bytes)
}

/// As S3 writes it: base64 of the big-endian sum.
pub fn crc64nvme_text(sum: u64) -> String {
    STANDARD.encode(sum.to_be_bytes())
}

/// What [`crc64nvme_text`] wrote.
pub(super) fn parse(text: &str) -> Option<u64> {
    Some(u64::from_be_bytes(STANDARD.decode(text).ok()?.try_into().ok()?))
}

/// Of an object it is known what it sums to at each multiple of this; parts are cut there.
pub const SUM_BYTES: u64 = 1 << 20;
/// The smallest part that may be configured: no object of this size is sent in parts.
const ONE_REQUEST_BYTES: u64 = 5 << 20;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::seal::{Encryption, Object};

    #[test]
    fn the_check_values_come_out() {
        let mut sums = Sums::new();
        sums.update(b"1234");
        sums.update(b"56789");
        let summed = sums.finish();
        assert_eq!(summed.bytes, 9);
        // FIPS 180-4 over "123456789", and the check value of CRC-64/NVME in the catalogue of Reveng.
        assert_eq!(
            summed.sha256,
            "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"
        );
        assert_eq!(summed.crc64nvme, crc64nvme_text(0xAE8B_1486_0A79_9888));
        assert_eq!(summed.crc64nvme, "rosUhgp5mIg=");
    }

    #[test]
    fn parts_are_summed_from_what_there_was_before_and_behind_them() {
        let bytes: Vec<u8> = (0..=250).cycle().take((6 << 20) + 7).collect();
        let mut sums = Sums::new();
        bytes.chunks(100_003).for_each(|piece| sums.update(piece));
        let summed = sums.finish();
        assert_eq!(summed.crc64nvme, crc64nvme_text(crc64nvme(&bytes)));
        assert_eq!(summed.so_far.len(), 6);
        let object = Object {
            key: String::new(),
            bytes: summed.bytes,
            sha256: summed.sha256,
            crc64nvme: summed.crc64nvme,
            rows: BTreeMap::new(),
            table: String::new(),
            version: 1,
            encryption: Encryption::None,
            metadata: BTreeMap::new(),
            spool: String::new(),
            sums: summed.so_far,
        };
        let (block, end) = (SUM_BYTES, object.bytes);
        for part in [0..end, 0..block, block..3 * block, 5 * block..end, 6 * block..end, end..end] {
            let range = usize::try_from(part.start).unwrap()..usize::try_from(part.end).unwrap();
            let sum = crc64nvme_text(crc64nvme(&bytes[range]));
            assert_eq!(object.part_sum(&part), Some(sum), "{part:?}");
        }
        for part in [0..1, 1..block, 0..end + 1, block..8 * block] {
            assert_eq!(object.part_sum(&part), None, "{part:?}");
        }
        let earlier = Object { sums: vec![], ..object.clone() };
        assert_eq!(earlier.part_sum(&(0..block)), None);
        let torn = Object { sums: vec!["AAA".into(); 6], ..object };
        assert_eq!(torn.part_sum(&(0..block)), None);
        let mut short = Sums::new();
        short.update(&bytes[..5 << 20]);
        assert_eq!(short.finish().so_far, [] as [String; 0]);
    }

    proptest! {
        #[test]
        fn parts_combine_to_the_whole(bytes: Vec<u8>, cut: prop::sample::Index) {
            let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
            let combined =
                crc64nvme_combine(crc64nvme(first), crc64nvme(second), second.len() as u64);
            prop_assert_eq!(combined, crc64nvme(&bytes));
            let found = crc64nvme_second(crc64nvme(first), combined, second.len() as u64);
            prop_assert_eq!(found, crc64nvme(second));
        }
    }
}
