//! CRC64NVME in the form that S3 writes: base64 of the big-endian sum. Pure, but for [`read`].
//!
//! **Invariant:** [`whole`] over the parts of an object is [`of`] the object.

use std::ops::Range;

use base64::{Engine, prelude::BASE64_STANDARD};
use crc_fast::{CrcAlgorithm::Crc64Nvme, Digest};

use super::{Object, ReadSpool, ShipError, StoredPart};

/// The checksum of `bytes`.
pub fn of(bytes: &[u8]) -> String {
    text(crc_fast::checksum(Crc64Nvme, bytes))
}

/// The checksum of a range of an object, read from the spool.
///
/// # Errors
///
/// As [`ReadSpool::read`].
pub fn read(
    spool: &(impl ReadSpool + ?Sized),
    object: &Object,
    range: Range<u64>,
) -> Result<String, ShipError> {
    let mut digest = Digest::new(Crc64Nvme);
    spool.read(object, range, &mut |piece| {
        digest.update(&piece);
        true
    })?;
    Ok(text(digest.finalize()))
}

/// A checksum as S3 writes it.
pub fn text(sum: u64) -> String {
    BASE64_STANDARD.encode(sum.to_be_bytes())
}

/// The checksum of the object that the parts make, in their order; `None` if a part's sum is none.
pub fn whole<'a>(parts: impl IntoIterator<Item = &'a StoredPart>) -> Option<String> {
    let mut sum = crc_fast::checksum(Crc64Nvme, &[]);
    for part in parts {
        let bytes = BASE64_STANDARD.decode(&part.crc64nvme).ok()?;
        let of_part = u64::from_be_bytes(bytes.try_into().ok()?);
        sum = crc_fast::checksum_combine(Crc64Nvme, sum, of_part, part.bytes);
    }
    Some(text(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u32, bytes: &[u8]) -> StoredPart {
        let length = u64::try_from(bytes.len()).unwrap();
        StoredPart { number, bytes: length, etag: String::new(), crc64nvme: of(bytes) }
    }

    #[test]
    fn the_sum_of_a_known_text_is_what_aws_says() {
        // The check value of CRC-64/NVME: https://reveng.sourceforge.io/crc-catalogue/all.htm
        let check = 0xae8b_1486_0a79_9888_u64;
        assert_eq!(of(b"123456789"), BASE64_STANDARD.encode(check.to_be_bytes()));
    }

    #[test]
    fn the_parts_make_the_whole_in_their_order_only() {
        let bytes: Vec<u8> = (0..=255u8).cycle().take(10_000).collect();
        let (one, two, three) = (&bytes[..4096], &bytes[4096..9000], &bytes[9000..]);
        let parts = [part(1, one), part(2, two), part(3, three)];
        assert_eq!(whole(&parts), Some(of(&bytes)));
        assert_ne!(whole([&parts[1], &parts[0], &parts[2]]), Some(of(&bytes)));
        assert_ne!(whole(&parts[..2]), Some(of(&bytes)));
        assert_eq!(whole([]), Some(of(b"")));
        let torn = StoredPart { crc64nvme: "AAA".into(), ..part(1, one) };
        assert_eq!(whole([&torn]), None);
    }
}
