//! The box's identity: an Ed25519 key made at the first start, by which everyone can tell its entries.
//!
//! `identity.key` (mode 0600) holds the PKCS#8 document, base64; `identity.pub` the public key as PEM
//! SubjectPublicKeyInfo (RFC 8410), which openssl and every language's library read.

use std::{fs, io, path::Path, sync::Arc};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::{Engine, engine::general_purpose::STANDARD};

use super::LedgerError;
use crate::disk;

/// The key that signs. Cheap to clone; cannot be printed.
#[derive(Clone)]
pub struct IdentityKey(Arc<Ed25519KeyPair>);

/// The key that proves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PublicKey([u8; 32]);

impl IdentityKey {
    /// The key in `data_dir`, made now if there is none.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Key`]: the file cannot be read or made, or is no key.
    pub fn open_or_make(data_dir: &Path) -> Result<Self, LedgerError> {
        let path = data_dir.join("identity.key");
        let failed = |what: String| LedgerError::Key { path: path.display().to_string(), what };
        match fs::read_to_string(&path) {
            Ok(_) if disk::readable_by_others(&path).unwrap_or(true) => {
                return Err(failed("others than its owner can read it".into()));
            }
            Ok(text) => {
                let document = STANDARD.decode(text.trim());
                let document = document.map_err(|_| failed("it is not base64".into()))?;
                let pair = Ed25519KeyPair::from_pkcs8(&document);
                let key = Self(Arc::new(pair.map_err(|why| failed(why.to_string()))?));
                key.keep_public(data_dir).map_err(|why| failed(why.to_string()))?;
                return Ok(key);
            }
            Err(why) if why.kind() != io::ErrorKind::NotFound => {
                return Err(failed(why.to_string()));
            }
            Err(_) => {}
        }
        let pair = Ed25519KeyPair::generate().map_err(|why| failed(why.to_string()))?;
        let document = pair.to_pkcs8().map_err(|why| failed(why.to_string()))?;
        disk::write_durably(&path, STANDARD.encode(document.as_ref()).as_bytes())
            .map_err(|why| failed(why.to_string()))?;
        let key = Self(Arc::new(pair));
        key.keep_public(data_dir).map_err(|why| failed(why.to_string()))?;
        Ok(key)
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        let bytes = self.0.public_key().as_ref().try_into();
        PublicKey(bytes.expect("an Ed25519 public key has 32 bytes"))
    }

    /// Signs.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).as_ref().to_vec()
    }

    fn keep_public(&self, data_dir: &Path) -> io::Result<()> {
        let path = data_dir.join("identity.pub");
        let pem = self.public().to_pem();
        if fs::read_to_string(&path).is_ok_and(|kept| kept == pem) {
            return Ok(());
        }
        disk::write_durably(&path, pem.as_bytes())
    }
}

impl std::fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IdentityKey({})", self.public().id())
    }
}

impl PublicKey {
    /// Reads a PEM file's text.
    pub fn from_pem(text: &str) -> Option<Self> {
        let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = STANDARD.decode(body.trim()).ok()?;
        let raw = der.strip_prefix(SPKI_PREFIX)?;
        raw.try_into().ok().map(Self)
    }

    /// The PEM file's text.
    pub fn to_pem(self) -> String {
        let der = [SPKI_PREFIX, &self.0[..]].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    /// Reads the base64 of its 32 bytes, as a fence entry carries it.
    pub fn from_base64(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// The base64 of its 32 bytes.
    pub fn to_base64(self) -> String {
        STANDARD.encode(self.0)
    }

    /// A short name for people: the first 8 bytes in hex.
    pub fn id(self) -> String {
        hex::encode(&self.0[..8])
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

/// DER of `SEQUENCE { SEQUENCE { OID 1.3.101.112 }, BIT STRING (32 bytes follow) }`, RFC 8410 section 4.
const SPKI_PREFIX: &[u8] =
    &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_its_public_half_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let made = IdentityKey::open_or_make(dir.path()).unwrap();
        let opened = IdentityKey::open_or_make(dir.path()).unwrap();
        assert_eq!(made.public(), opened.public());
        let pem = fs::read_to_string(dir.path().join("identity.pub")).unwrap();
        let public = PublicKey::from_pem(&pem).unwrap();
        let signature = made.sign(b"line");
        assert!(public.verifies(b"line", &signature));
        assert!(!public.verifies(b"lime", &signature));
        assert_eq!(PublicKey::from_base64(&public.to_base64()), Some(public));
    }

    #[test]
    fn a_key_file_that_others_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        IdentityKey::open_or_make(dir.path()).unwrap();
        let path = dir.path().join("identity.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(IdentityKey::open_or_make(dir.path()).is_err());
    }
}
