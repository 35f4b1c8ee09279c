//! The envelope of mode `client`: an object as the Amazon S3 Encryption Client V2 writes it with a
//! raw AES key.
//!
//! # Format
//!
//! The body is `AES-256-GCM(data key, iv, file) || tag`: one GCM message over the whole file without
//! additional data, 16 bytes longer than the file. The data key (32 bytes) and the IV (12 bytes) are
//! random and new for each object: no pair is ever used twice, whatever was restored or restarted (I22).
//! The user metadata of the object (`x-amz-meta-…`) holds the rest:
//!
//! | name | value |
//! |---|---|
//! | `x-amz-key-v2` | base64 of `wrap iv (12) || AES-256-GCM(lake key, wrap iv, data key, AAD = "AES/GCM/NoPadding") || tag (16)`: 60 bytes |
//! | `x-amz-iv` | base64 of the IV |
//! | `x-amz-cek-alg` | `AES/GCM/NoPadding` |
//! | `x-amz-wrap-alg` | `AES/GCM` |
//! | `x-amz-tag-len` | `128` |
//! | `x-amz-matdesc` | `{"source":"erp","table":"public.orders"}`, for people; not authenticated |
//! | `x-amz-unencrypted-content-length` | length of the file |
//!
//! The wrapping, with the content cipher's name as additional data, is that of `AesKeyring` in
//! <https://github.com/aws/amazon-s3-encryption-client-java>. (The raw AES keyring on the main branch
//! of the Python client, in no release of it yet, puts the encryption context there instead.)

use std::collections::BTreeMap;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    rand,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::{
    SealError,
    gcm::{Decryptor, Encryptor, IV_BYTES, KEY_BYTES, TAG_BYTES},
};
use crate::config::Secret;

/// User metadata of an object, names without `x-amz-meta-`.
pub type Metadata = BTreeMap<String, String>;

/// The key of mode `client`, which wraps each object's own.
#[derive(Clone, Debug)]
pub struct LakeKey(Secret);

impl LakeKey {
    /// Takes a key over.
    ///
    /// # Errors
    ///
    /// [`SealError::KeyLength`] if it has not 32 bytes.
    pub fn new(secret: Secret) -> Result<Self, SealError> {
        match secret.expose().len() {
            KEY_BYTES => Ok(Self(secret)),
            other => Err(SealError::KeyLength(other)),
        }
    }

    fn cipher(&self) -> LessSafeKey {
        let key = UnboundKey::new(&AES_256_GCM, self.0.expose()).expect("checked to be 32 bytes");
        LessSafeKey::new(key)
    }
}

/// Begins an object: what encrypts its bytes, and its metadata but for the length.
pub(super) fn begin(
    key: &LakeKey,
    source: &str,
    table: &str,
) -> Result<(Encryptor, Metadata), SealError> {
    let mut data_key = Zeroizing::new([0; KEY_BYTES]);
    let mut iv = [0; IV_BYTES];
    random(&mut *data_key)?;
    random(&mut iv)?;
    let metadata = [
        (KEY, STANDARD.encode(wrap(key, &data_key)?)),
        (IV, STANDARD.encode(iv)),
        (CONTENT_CIPHER, CIPHER.into()),
        (WRAP_ALGORITHM, WRAP.into()),
        (TAG_LENGTH, TAG_BITS.into()),
        (DESCRIPTION, description(source, table)),
    ];
    let metadata = metadata.map(|(name, value)| (name.to_owned(), value)).into();
    Ok((Encryptor::new(&data_key, &iv)?, metadata))
}

/// What encrypts the bytes of an object with this metadata once more. They have to be the same: whoever has two messages of
/// one key and IV knows how they differ.
pub(super) fn again(key: &LakeKey, metadata: &Metadata) -> Result<Encryptor, SealError> {
    let iv = bytes::<IV_BYTES>(metadata, IV)?;
    let mut wrapped = bytes::<WRAPPED_BYTES>(metadata, KEY)?;
    Ok(Encryptor::new(&*unwrap(key, &mut wrapped)?, &iv)?)
}

/// Completes the metadata with the length of the file.
pub(super) fn end(metadata: &mut Metadata, file_bytes: u64) {
    metadata.insert(LENGTH.into(), file_bytes.to_string());
}

/// Whether metadata is that of an envelope.
pub(super) fn is_sealed(metadata: &Metadata) -> bool {
    metadata.contains_key(KEY)
}

/// Opens an object: what decrypts its bytes, given how many they are with their tag.
pub(super) fn open(
    key: Option<&LakeKey>,
    metadata: &Metadata,
    sealed_bytes: u64,
) -> Result<Decryptor, SealError> {
    let key = key.ok_or(SealError::Key(": it is encrypted, and no key was given"))?;
    if text(metadata, CONTENT_CIPHER)? != CIPHER || text(metadata, TAG_LENGTH)? != TAG_BITS {
        return Err(SealError::Altered("its metadata names a cipher that we do not write"));
    }
    if text(metadata, WRAP_ALGORITHM)? != WRAP {
        return Err(SealError::Key(": its data key is wrapped in another way than by a key file"));
    }
    if let Some(length) = metadata.get(LENGTH)
        && length.parse() != Ok(sealed_bytes.saturating_sub(TAG_BYTES as u64))
    {
        return Err(SealError::Altered("its length is not the one in its metadata"));
    }
    let iv = bytes::<IV_BYTES>(metadata, IV)?;
    let mut wrapped = bytes::<WRAPPED_BYTES>(metadata, KEY)?;
    let data_key = unwrap(key, &mut wrapped)?;
    Ok(Decryptor::new(&data_key, &iv)?)
}

/// Fills with bytes that nobody can guess.
pub(super) fn random(bytes: &mut [u8]) -> Result<(), SealError> {
    rand::fill(bytes).map_err(|_| SealError::Encrypt("the system gives no random bytes"))
}

fn wrap(key: &LakeKey, data_key: &[u8; KEY_BYTES]) -> Result<Vec<u8>, SealError> {
    let mut iv = [0; IV_BYTES];
    random(&mut iv)?;
    let mut wrapped = Vec::with_capacity(WRAPPED_BYTES);
    wrapped.extend_from_slice(&iv);
    wrapped.extend_from_slice(data_key);
    let nonce = Nonce::assume_unique_for_key(iv);
    let tag = key
        .cipher()
        .seal_in_place_separate_tag(nonce, Aad::from(CIPHER), &mut wrapped[IV_BYTES..])
        .map_err(|_| SealError::Encrypt("AWS-LC refused: out of memory"))?;
    wrapped.extend_from_slice(tag.as_ref());
    Ok(wrapped)
}

fn unwrap(
    key: &LakeKey,
    wrapped: &mut [u8; WRAPPED_BYTES],
) -> Result<Zeroizing<[u8; KEY_BYTES]>, SealError> {
    let (iv, sealed) = wrapped.split_first_chunk_mut::<IV_BYTES>().expect("60 bytes");
    let nonce = Nonce::assume_unique_for_key(*iv);
    let opened = key.cipher().open_in_place(nonce, Aad::from(CIPHER), sealed);
    let plain = opened.map_err(|_| SealError::Key(""))?;
    let data_key = Zeroizing::new(<[u8; KEY_BYTES]>::try_from(&*plain).expect("60 - 12 - 16"));
    plain.fill(0);
    Ok(data_key)
}

/// `{"source":…,"table":…}` in ASCII, which is all that a header can hold.
fn description(source: &str, table: &str) -> String {
    let mut text = String::new();
    for (name, value) in [("source", source), ("table", table)] {
        text.push(if text.is_empty() { '{' } else { ',' });
        text.push_str(&format!("\"{name}\":\""));
        for unit in value.encode_utf16() {
            match u8::try_from(unit) {
                Ok(byte @ b' '..=b'~') if byte != b'"' && byte != b'\\' => text.push(byte.into()),
                _ => text.push_str(&format!("\\u{unit:04x}")),
            }
        }
        text.push('"');
    }
    text + "}"
}

fn text<'a>(metadata: &'a Metadata, name: &str) -> Result<&'a str, SealError> {
    metadata.get(name).map(String::as_str).ok_or(SealError::Altered("its metadata is incomplete"))
}

fn bytes<const N: usize>(metadata: &Metadata, name: &str) -> Result<[u8; N], SealError> {
    let decoded = STANDARD.decode(text(metadata, name)?).ok();
    decoded
        .and_then(|bytes| <[u8; N]>::try_from(bytes).ok())
        .ok_or(SealError::Altered("its metadata does not read"))
}

const KEY: &str = "x-amz-key-v2";
const IV: &str = "x-amz-iv";
const CONTENT_CIPHER: &str = "x-amz-cek-alg";
const WRAP_ALGORITHM: &str = "x-amz-wrap-alg";
const TAG_LENGTH: &str = "x-amz-tag-len";
const DESCRIPTION: &str = "x-amz-matdesc";
const LENGTH: &str = "x-amz-unencrypted-content-length";

const CIPHER: &str = "AES/GCM/NoPadding";
const WRAP: &str = "AES/GCM";
const TAG_BITS: &str = "128";
const WRAPPED_BYTES: usize = IV_BYTES + KEY_BYTES + TAG_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> LakeKey {
        LakeKey::new(Secret::new(vec![byte; 32])).unwrap()
    }

    fn sealed(plain: &[u8]) -> (Vec<u8>, Metadata) {
        let (mut encryptor, mut metadata) = begin(&key(1), "erp", "public.t").unwrap();
        let mut bytes = plain.to_vec();
        encryptor.apply(&mut bytes).unwrap();
        bytes.extend_from_slice(&encryptor.finish().unwrap());
        end(&mut metadata, plain.len() as u64);
        (bytes, metadata)
    }

    /// An object made by the Python package `cryptography` as the table above says.
    #[test]
    fn an_object_made_elsewhere_opens() {
        let metadata = Metadata::from([
            (KEY.into(), PINNED_KEY.into()),
            (IV.into(), "AAECAwQFBgcICQoL".into()),
            (CONTENT_CIPHER.into(), CIPHER.into()),
            (WRAP_ALGORITHM.into(), WRAP.into()),
            (TAG_LENGTH.into(), TAG_BITS.into()),
            (LENGTH.into(), "5".into()),
        ]);
        let mut body = hex::decode(PINNED_BODY).unwrap();
        let mut decryptor = open(Some(&key(0x42)), &metadata, body.len() as u64).unwrap();
        let (file, tag) = body.split_last_chunk_mut::<TAG_BYTES>().unwrap();
        decryptor.apply(file).unwrap();
        decryptor.finish(tag).unwrap();
        assert_eq!(file, b"hello");
    }

    #[test]
    fn no_two_objects_share_a_key_or_an_iv() {
        let (_, first) = sealed(b"x");
        let (_, second) = sealed(b"x");
        assert_ne!(first[KEY], second[KEY]);
        assert_ne!(first[IV], second[IV]);
    }

    #[test]
    fn the_metadata_is_plain_ascii_whatever_the_table_is_called() {
        let table = "public.Größe \"q\"\\\u{1F600}\n\u{7f}";
        let (_, metadata) = begin(&key(1), "erp", table).unwrap();
        let text = &metadata[DESCRIPTION];
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text}");
        let read: BTreeMap<String, String> = serde_json::from_str(text).unwrap();
        assert_eq!(read["table"], table);
    }

    #[test]
    fn another_key_is_told_from_damage() {
        let (bytes, metadata) = sealed(b"rows");
        let length = bytes.len() as u64;
        assert!(open(Some(&key(1)), &metadata, length).is_ok());
        assert!(matches!(open(Some(&key(2)), &metadata, length), Err(SealError::Key(_))));
        assert!(matches!(open(None, &metadata, length), Err(SealError::Key(_))));
        assert!(matches!(open(Some(&key(1)), &metadata, length + 1), Err(SealError::Altered(_))));
        for name in [IV, CONTENT_CIPHER, TAG_LENGTH] {
            let mut altered = metadata.clone();
            altered.insert(name.into(), "AAAA".into());
            assert!(matches!(open(Some(&key(1)), &altered, length), Err(SealError::Altered(_))));
        }
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        let short = LakeKey::new(Secret::new(vec![1; 31]));
        assert!(matches!(short, Err(SealError::KeyLength(31))));
    }

    const PINNED_KEY: &str =
        "ZGVmZ2hpamtsbW5vWyK+24goizuuH4pTMEaDJf009BNTyQXMFudsm0SSQzw71gwloWlsL2vI3zdEb+Hw";
    const PINNED_BODY: &str = "2f67ba77aa2797ff353b8a046d28236dcd9d057bbb";
}
