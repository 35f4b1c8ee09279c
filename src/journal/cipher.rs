//! Seals and opens frames: one key for each segment, one nonce for each frame; and facts for the index: one key, and a nonce
//! drawn for each. Pure.
//!
//! The construction is part of the formats: see [`record`](super::record) and [`store`](super::store).

use std::io;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
    rand,
};

use super::record::{FRAME_BOUND_BYTES, FRAME_HEADER_BYTES, FrameHeader, TAG_BYTES};

/// The key of one segment.
#[derive(Debug)]
pub(crate) struct SegmentKey(LessSafeKey);

/// Bytes of the journal key.
pub(crate) const KEY_BYTES: usize = 32;

impl SegmentKey {
    /// Derives it from the journal key.
    pub(crate) fn derive(key: &[u8], salt: &[u8; 32], number: u64) -> Self {
        let prk = Salt::new(HKDF_SHA256, salt).extract(key);
        let number = number.to_le_bytes();
        let info: [&[u8]; 2] = [b"lakehead journal segment 1", &number];
        let okm = prk.expand(&info, &AES_256_GCM).expect("32 bytes are within HKDF's bound");
        Self(LessSafeKey::new(UnboundKey::from(okm)))
    }

    /// Appends a whole frame to `out`. The caller has chosen a fresh nonce; lengths and checksums of
    /// `header` are set here.
    pub(crate) fn seal(&self, mut header: FrameHeader, plain: &[u8], out: &mut Vec<u8>) {
        let payload = plain.len() + TAG_BYTES;
        header.payload_bytes = u32::try_from(payload).expect("frames are bounded far below 4 GiB");
        let start = out.len();
        out.reserve(FRAME_HEADER_BYTES + payload);
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(plain);
        let (bound, body) = out[start..].split_at_mut(FRAME_HEADER_BYTES);
        let bound = Aad::from(&bound[..FRAME_BOUND_BYTES]);
        let nonce = nonce(header.nonce);
        let sealed = self.0.seal_in_place_separate_tag(nonce, bound, body);
        let tag = sealed.expect("a frame is far below GCM's bound");
        out.extend_from_slice(tag.as_ref());
        header.payload_crc = crc32c::crc32c(&out[start + FRAME_HEADER_BYTES..]);
        out[start..start + FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
    }

    /// Opens a payload in place. `None`: another key, or altered.
    pub(crate) fn open<'a>(&self, header: &FrameHeader, payload: &'a mut [u8]) -> Option<&'a [u8]> {
        let bytes = header.encode();
        let bound = Aad::from(&bytes[..FRAME_BOUND_BYTES]);
        let plain = self.0.open_in_place(nonce(header.nonce), bound, payload).ok()?;
        Some(plain)
    }
}

/// The key of the facts that are in the index.
#[derive(Debug)]
pub(crate) struct IndexKey(LessSafeKey);

impl IndexKey {
    /// Derives it from the journal key.
    pub(crate) fn derive(key: &[u8], salt: &[u8]) -> Self {
        let prk = Salt::new(HKDF_SHA256, salt).extract(key);
        let info: [&[u8]; 1] = [b"lakehead journal index 1"];
        let okm = prk.expand(&info, &AES_256_GCM).expect("32 bytes are within HKDF's bound");
        Self(LessSafeKey::new(UnboundKey::from(okm)))
    }

    /// `nonce (12) | ciphertext | tag (16)`, bound to the fact's name.
    ///
    /// # Errors
    ///
    /// The system gives no random bytes.
    pub(crate) fn seal(&self, name: &str, plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut drawn = [0; NONCE_LEN];
        rand::fill(&mut drawn).map_err(|_| io::Error::other("the system gives no random bytes"))?;
        let mut sealed = [&drawn[..], plain].concat();
        let (_, body) = sealed.split_at_mut(NONCE_LEN);
        let (nonce, bound) = (Nonce::assume_unique_for_key(drawn), Aad::from(name.as_bytes()));
        let tag = self.0.seal_in_place_separate_tag(nonce, bound, body);
        sealed.extend_from_slice(tag.expect("a fact is far below GCM's bound").as_ref());
        Ok(sealed)
    }

    /// `None`: another key or name, or altered.
    pub(crate) fn open(&self, name: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (drawn, body) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut body = body.to_vec();
        let (nonce, bound) = (Nonce::assume_unique_for_key(*drawn), Aad::from(name.as_bytes()));
        let plain = self.0.open_in_place(nonce, bound, &mut body).ok()?.len();
        body.truncate(plain);
        Some(body)
    }
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{journal::record::Kind, source::Piece};

    fn header() -> FrameHeader {
        FrameHeader {
            kind: Kind::Facts,
            piece: Piece::Whole,
            payload_bytes: 0,
            frame: 1,
            nonce: 2,
            group: 0,
            batch: 1,
            first: 1,
            changes: 1,
            payload_crc: 0,
        }
    }

    #[test]
    fn the_bytes_of_a_sealed_frame_are_pinned() {
        let key = SegmentKey::derive(&[7; 32], &[9; 32], 5);
        let mut frame = vec![];
        key.seal(header(), b"plain", &mut frame);
        assert_eq!(
            hex::encode(&frame[FRAME_HEADER_BYTES..]),
            "a68116d78dab00284a9c3ff64680c00ea292329188"
        );
        assert_eq!(hex::encode(&frame[60..68]), "d08cacfcbc13dd8c");
    }

    #[test]
    fn a_frame_opens_only_with_its_key_and_its_header() {
        let key = SegmentKey::derive(&[7; 32], &[9; 32], 5);
        let mut frame = vec![];
        key.seal(header(), b"plain", &mut frame);
        let read = FrameHeader::decode(&frame).unwrap();
        let payload = &frame[FRAME_HEADER_BYTES..];
        assert_eq!(key.open(&read, &mut payload.to_vec()), Some(&b"plain"[..]));
        for other in [
            SegmentKey::derive(&[8; 32], &[9; 32], 5),
            SegmentKey::derive(&[7; 32], &[8; 32], 5),
            SegmentKey::derive(&[7; 32], &[9; 32], 6),
        ] {
            assert_eq!(other.open(&read, &mut payload.to_vec()), None);
        }
        for moved in [
            FrameHeader { kind: Kind::Dump, ..read },
            FrameHeader { batch: 2, ..read },
            FrameHeader { frame: 2, ..read },
        ] {
            assert_eq!(key.open(&moved, &mut payload.to_vec()), None);
        }
    }
}
