//! The header of a page, in Thrift's compact protocol
//! (<https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>, `PageHeader`). Of what the encoder gives
//! only the third field changes, the length of the body as it is written.

use parquet::errors::Result;

use super::unlike;

/// A page's header.
pub(super) struct Header;

impl Header {
    /// What kind of page it is, and what stands before and behind the length of its body.
    pub(super) fn parts(header: &[u8]) -> Result<(u8, &[u8], &[u8])> {
        let (mut at, mut kind) = (0, 0);
        let mut last = 0;
        for field in 0..3 {
            // Each is an i32, the field after the one before.
            if header.get(at) != Some(&NEXT_I32) {
                return Err(unlike("a page's header"));
            }
            last = at + 1;
            let rest = &header[last..];
            let length = rest.iter().position(|byte| byte & 0x80 == 0);
            at = last + length.ok_or_else(|| unlike("a page's header"))? + 1;
            if field == 0 {
                kind = rest[0];
            }
        }
        Ok((kind, &header[..last], &header[at..]))
    }

    /// Appends a number, in zigzag and as a varint.
    pub(super) fn put(number: i64, to: &mut Vec<u8>) {
        varint(number.cast_unsigned() << 1, to);
    }
}

/// Appends a number, seven bits to a byte, the lowest first.
pub(in crate::seal) fn varint(number: u64, to: &mut Vec<u8>) {
    let mut rest = number;
    while rest > 0x7F {
        to.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    to.push(rest.to_le_bytes()[0]);
}

/// Of what comes once, in Thrift: one field on, of type i32.
const NEXT_I32: u8 = 0x15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_header_the_third_field_alone_is_another() {
        // A data page of 300 bytes, 300 of them written; the rest is its own.
        let header = [0x15, 0x00, 0x15, 0xD8, 0x04, 0x15, 0xD8, 0x04, 0x2C, 0x15, 0x06];
        let (kind, before, after) = Header::parts(&header).unwrap();
        let mut other = before.to_vec();
        Header::put(20, &mut other);
        other.extend(after);
        assert_eq!((kind, &other[..]), (0, &[0x15, 0, 0x15, 0xD8, 4, 0x15, 40, 0x2C, 0x15, 6][..]));
        for wrong in [&[][..], &[0x15], &[0x15, 0x80], &[0x15, 0, 0x25, 0, 0x15, 0]] {
            assert!(Header::parts(wrong).is_err());
        }
    }
}
