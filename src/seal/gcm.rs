//! AES-256-GCM over a stream of any length, in place: AWS-LC's `EVP_CIPHER` interface, because
//! `aws-lc-rs` has only one-shot AEADs. Pure.
//!
//! 12-byte IV, 16-byte tag, no additional data: what the Amazon S3 Encryption Client V2 puts around
//! an object. **Invariant:** a context takes one key and one IV, given at birth, and at most
//! [`PLAINTEXT_BYTES_MAX`] bytes; after its tag is made or checked it is gone (I22).
#![expect(unsafe_code, reason = "streaming GCM exists only in AWS-LC's C interface")]

use std::{os::raw::c_int, ptr};

use aws_lc_sys::{
    EVP_CIPHER_CTX, EVP_CIPHER_CTX_ctrl, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new,
    EVP_CTRL_AEAD_GET_TAG, EVP_CTRL_AEAD_SET_TAG, EVP_CipherFinal_ex, EVP_CipherInit_ex,
    EVP_CipherUpdate, EVP_aes_256_gcm,
};

/// Bytes of a key.
pub(super) const KEY_BYTES: usize = 32;
/// Bytes of an IV.
pub(super) const IV_BYTES: usize = 12;
/// Bytes of a tag.
pub(super) const TAG_BYTES: usize = 16;
/// What one key and IV may encrypt: 2³⁹ − 256 bits (NIST SP 800-38D §5.2.1.1).
pub(super) const PLAINTEXT_BYTES_MAX: u64 = (1 << 36) - 32;

/// What can go wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum GcmError {
    /// More than [`PLAINTEXT_BYTES_MAX`].
    #[error("more than 2^36 - 32 bytes under one key and IV")]
    TooLong,
    /// The bytes or the tag are not what was encrypted with this key and IV.
    #[error("the tag does not match")]
    Altered,
    /// AWS-LC refused: out of memory.
    #[error("AWS-LC refused")]
    Refused,
}

/// Encrypts a stream.
#[derive(Debug)]
pub(super) struct Encryptor(Context);

/// Decrypts a stream. What it gives out is not to be believed until [`Decryptor::finish`] says so.
#[derive(Debug)]
pub(super) struct Decryptor(Context);

impl Encryptor {
    /// Begins with a fresh IV: never one that this key has seen.
    pub(super) fn new(key: &[u8; KEY_BYTES], iv: &[u8; IV_BYTES]) -> Result<Self, GcmError> {
        Context::new(key, iv, true).map(Self)
    }

    /// Encrypts the next bytes, in place.
    pub(super) fn apply(&mut self, bytes: &mut [u8]) -> Result<(), GcmError> {
        self.0.apply(bytes)
    }

    /// The tag over all of them.
    pub(super) fn finish(mut self) -> Result<[u8; TAG_BYTES], GcmError> {
        if !self.0.close() {
            return Err(GcmError::Refused);
        }
        let mut tag = [0; TAG_BYTES];
        self.0.control(EVP_CTRL_AEAD_GET_TAG, &mut tag)?;
        Ok(tag)
    }
}

impl Decryptor {
    /// Begins.
    pub(super) fn new(key: &[u8; KEY_BYTES], iv: &[u8; IV_BYTES]) -> Result<Self, GcmError> {
        Context::new(key, iv, false).map(Self)
    }

    /// Decrypts the next bytes, in place.
    pub(super) fn apply(&mut self, bytes: &mut [u8]) -> Result<(), GcmError> {
        self.0.apply(bytes)
    }

    /// Whether all of them were what was encrypted.
    pub(super) fn finish(mut self, tag: &[u8; TAG_BYTES]) -> Result<(), GcmError> {
        self.0.control(EVP_CTRL_AEAD_SET_TAG, &mut tag.clone())?;
        if self.0.close() { Ok(()) } else { Err(GcmError::Altered) }
    }
}

/// An `EVP_CIPHER_CTX` set up for AES-256-GCM. AWS-LC wipes it when it is freed.
#[derive(Debug)]
struct Context {
    raw: ptr::NonNull<EVP_CIPHER_CTX>,
    bytes: u64,
}

// SAFETY: the context is owned by this value alone and has no tie to a thread.
unsafe impl Send for Context {}

impl Context {
    fn new(key: &[u8; KEY_BYTES], iv: &[u8; IV_BYTES], encrypt: bool) -> Result<Self, GcmError> {
        // SAFETY: allocates, or gives null.
        let raw = ptr::NonNull::new(unsafe { EVP_CIPHER_CTX_new() }).ok_or(GcmError::Refused)?;
        let context = Self { raw, bytes: 0 };
        // SAFETY: the context is live; EVP_aes_256_gcm reads 32 bytes of key and, by default, 12 of
        // IV, which the array types guarantee; no engine.
        let done = unsafe {
            EVP_CipherInit_ex(
                context.raw.as_ptr(),
                EVP_aes_256_gcm(),
                ptr::null_mut(),
                key.as_ptr(),
                iv.as_ptr(),
                c_int::from(encrypt),
            )
        };
        if done == 1 { Ok(context) } else { Err(GcmError::Refused) }
    }

    fn apply(&mut self, bytes: &mut [u8]) -> Result<(), GcmError> {
        for piece in bytes.chunks_mut(PIECE_BYTES_MAX) {
            self.bytes += piece.len() as u64;
            if self.bytes > PLAINTEXT_BYTES_MAX {
                return Err(GcmError::TooLong);
            }
            let length = c_int::try_from(piece.len()).expect("a piece is below 1 GiB");
            let mut written: c_int = 0;
            // SAFETY: the context is live; input and output are the same `length` bytes, which the
            // cipher allows; a stream cipher writes exactly as many as it reads.
            let done = unsafe {
                EVP_CipherUpdate(
                    self.raw.as_ptr(),
                    piece.as_mut_ptr(),
                    &raw mut written,
                    piece.as_ptr(),
                    length,
                )
            };
            if done != 1 || written != length {
                return Err(GcmError::Refused);
            }
        }
        Ok(())
    }

    /// Ends the stream. When decrypting, false means that the tag differs.
    fn close(&mut self) -> bool {
        let mut rest = [0_u8; TAG_BYTES];
        let mut written: c_int = 0;
        // SAFETY: the context is live; GCM holds no bytes back, so nothing is written to `rest`,
        // which would have room for a block.
        let done =
            unsafe { EVP_CipherFinal_ex(self.raw.as_ptr(), rest.as_mut_ptr(), &raw mut written) };
        done == 1 && written == 0
    }

    /// Reads or sets the tag.
    fn control(&mut self, command: c_int, tag: &mut [u8; TAG_BYTES]) -> Result<(), GcmError> {
        let length = c_int::try_from(TAG_BYTES).expect("16");
        // SAFETY: the context is live; both commands read or write `length` bytes at the pointer.
        let done = unsafe {
            EVP_CIPHER_CTX_ctrl(self.raw.as_ptr(), command, length, tag.as_mut_ptr().cast())
        };
        if done == 1 { Ok(()) } else { Err(GcmError::Refused) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by EVP_CIPHER_CTX_new, freed once.
        unsafe { EVP_CIPHER_CTX_free(self.raw.as_ptr()) }
    }
}

/// The C interface counts in `int`.
const PIECE_BYTES_MAX: usize = 1 << 29;

#[cfg(test)]
mod tests {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    use proptest::prelude::*;

    use super::*;

    fn seal(key: &[u8; 32], iv: &[u8; 12], plain: &[u8], cuts: &[usize]) -> (Vec<u8>, [u8; 16]) {
        let mut bytes = plain.to_vec();
        let mut encryptor = Encryptor::new(key, iv).unwrap();
        let mut rest = &mut bytes[..];
        for cut in cuts {
            let (piece, after) = rest.split_at_mut((*cut).min(rest.len()));
            encryptor.apply(piece).unwrap();
            rest = after;
        }
        encryptor.apply(rest).unwrap();
        (bytes, encryptor.finish().unwrap())
    }

    /// Test cases 13 and 14 of McGrew and Viega, "The Galois/Counter Mode of Operation (GCM)",
    /// appendix B.
    #[test]
    fn the_known_vectors_come_out() {
        let (none, tag) = seal(&[0; 32], &[0; 12], b"", &[]);
        assert_eq!(
            (none.len(), hex::encode(tag).as_str()),
            (0, "530f8afbc74536b9a963b4f1c4cb738b")
        );
        let (cipher, tag) = seal(&[0; 32], &[0; 12], &[0; 16], &[3]);
        assert_eq!(hex::encode(cipher), "cea7403d4d606b6e074ec5d3baf39d18");
        assert_eq!(hex::encode(tag), "d0d1c8a799996bf0265b98b5d48ab919");
    }

    proptest! {
        #[test]
        fn a_stream_cut_anywhere_equals_the_one_shot(
            key: [u8; 32], iv: [u8; 12],
            plain in prop::collection::vec(any::<u8>(), 0..4096),
            cuts in prop::collection::vec(0_usize..700, 0..8),
        ) {
            let (cipher, tag) = seal(&key, &iv, &plain, &cuts);
            let one_shot = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
            let mut expected = plain.clone();
            let nonce = Nonce::assume_unique_for_key(iv);
            one_shot.seal_in_place_append_tag(nonce, Aad::empty(), &mut expected).unwrap();
            prop_assert_eq!([&cipher[..], &tag[..]].concat(), expected);

            let mut opened = cipher;
            let mut decryptor = Decryptor::new(&key, &iv).unwrap();
            for piece in opened.chunks_mut(97) {
                decryptor.apply(piece).unwrap();
            }
            decryptor.finish(&tag).unwrap();
            prop_assert_eq!(opened, plain);
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_found() {
        let (cipher, tag) = seal(&[7; 32], &[9; 12], b"a row of a customer", &[5]);
        let whole = [&cipher[..], &tag[..]].concat();
        for bit in 0..whole.len() * 8 {
            let mut altered = whole.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let (body, tag) = altered.split_last_chunk_mut::<16>().unwrap();
            let mut decryptor = Decryptor::new(&[7; 32], &[9; 12]).unwrap();
            decryptor.apply(body).unwrap();
            assert_eq!(decryptor.finish(tag), Err(GcmError::Altered), "bit {bit}");
        }
    }

    #[test]
    fn no_more_than_the_limit_goes_under_one_iv() {
        let mut encryptor = Encryptor::new(&[1; 32], &[1; 12]).unwrap();
        encryptor.0.bytes = PLAINTEXT_BYTES_MAX - 1;
        encryptor.apply(&mut [0]).unwrap();
        assert_eq!(encryptor.apply(&mut [0]), Err(GcmError::TooLong));
    }
}
