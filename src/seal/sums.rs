//! The two sums of the bytes sent: SHA-256, by which the ledger proves them, and CRC64NVME, by which
//! S3 checks them on arrival. Both are made in the pass that writes the bytes. Pure.

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use crc_fast::CrcAlgorithm::Crc64Nvme;

/// Sums of a stream, so far.
pub(super) struct Sums {
    sha256: digest::Context,
    crc64nvme: crc_fast::Digest,
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
}

impl Sums {
    /// Of nothing yet.
    pub(super) fn new() -> Self {
        Self {
            sha256: digest::Context::new(&digest::SHA256),
            crc64nvme: crc_fast::Digest::new(Crc64Nvme),
            bytes: 0,
        }
    }

    /// Takes the next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.crc64nvme.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Ends.
    pub(super) fn finish(self) -> Summed {
        Summed {
            bytes: self.bytes,
            sha256: hex::encode(self.sha256.finish()),
            crc64nvme: crc64nvme_text(self.crc64nvme.finalize()),
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

/// As S3 writes it: base64 of the big-endian sum.
pub fn crc64nvme_text(sum: u64) -> String {
    STANDARD.encode(sum.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    proptest! {
        #[test]
        fn parts_combine_to_the_whole(bytes: Vec<u8>, cut: prop::sample::Index) {
            let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
            let combined =
                crc64nvme_combine(crc64nvme(first), crc64nvme(second), second.len() as u64);
            prop_assert_eq!(combined, crc64nvme(&bytes));
        }
    }
}
