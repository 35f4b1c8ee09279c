//! The appliance's identity: the Ed25519 key that signs the ledger, and the public half that proves it.
//!
//! Made at the first start. `data_dir/identity.key`: PKCS#8 v1 in PEM, mode 0600. `data_dir/identity.pub`:
//! SubjectPublicKeyInfo in PEM, as openssl and every library read it (RFC 8410). Keep a copy of the
//! public one away from the box: with it anyone proves the lake.

use std::{fmt, fs, io, path::Path, sync::Arc};

use aws_lc_rs::{
    digest,
    encoding::AsBigEndian,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::LedgerError;
use crate::disk;

/// The private key of this box.
#[derive(Clone)]
pub struct IdentityKey {
    pair: Arc<Ed25519KeyPair>,
    public: PublicKey,
}

/// The public half. Text: base64 of its 32 bytes.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct PublicKey([u8; 32]);

/// Bytes of an Ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;
/// Name of the private key's file.
pub const KEY_FILE: &str = "identity.key";
/// Name of the public key's file.
pub const PUBLIC_FILE: &str = "identity.pub";

impl IdentityKey {
    /// Reads the key of this box, or makes it at the first start, with its public half beside it. Blocks.
    ///
    /// # Errors
    ///
    /// [`LedgerError::KeyFile`] if others can read it or it is no such key; it is never replaced.
    pub fn open(data_dir: &Path) -> Result<Self, LedgerError> {
        let path = data_dir.join(KEY_FILE);
        let refused = |why| LedgerError::KeyFile { path: path.display().to_string(), why };
        let failed = |path: &Path, why| LedgerError::Disk { path: path.display().to_string(), why };
        let key = match fs::read_to_string(&path) {
            Ok(text) => {
                let text = Zeroizing::new(text);
                if disk::readable_by_others(&path).map_err(|why| failed(&path, why))? {
                    return Err(refused("others than its owner can read it"));
                }
                Self::from_pem(&text).ok_or_else(|| refused("is no Ed25519 key in PKCS#8 PEM"))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = Self::generate();
                let text = made.to_pem();
                disk::write_durably(&path, text.as_bytes()).map_err(|why| failed(&path, why))?;
                tracing::info!(
                    "made the key that signs the ledger: keep its public half elsewhere, too"
                );
                made
            }
            Err(why) => return Err(failed(&path, why)),
        };
        let public = data_dir.join(PUBLIC_FILE);
        let pem = key.public.to_pem();
        if fs::read(&public).ok().as_deref() != Some(pem.as_bytes()) {
            disk::write_durably(&public, pem.as_bytes()).map_err(|why| failed(&public, why))?;
        }
        // On one line, as consoles show it: what stands between the lines of the PEM file that begin with hyphens.
        let text: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        tracing::info!(public = text, "the ledger is signed with the key of {PUBLIC_FILE}");
        Ok(key)
    }

    /// The key that a seed stands for.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).expect("every 32 bytes are a seed");
        Self::of(pair)
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let signature = self.pair.sign(message);
        signature.as_ref().try_into().expect("Ed25519 signatures have 64 bytes")
    }

    fn generate() -> Self {
        Self::of(Ed25519KeyPair::generate().expect("the system gives random bytes"))
    }

    fn of(pair: Ed25519KeyPair) -> Self {
        let raw = pair.public_key().as_ref().try_into();
        let public = PublicKey(raw.expect("Ed25519 public keys have 32 bytes"));
        Self { pair: Arc::new(pair), public }
    }

    pub(super) fn from_pem(text: &str) -> Option<Self> {
        let der = Zeroizing::new(unwrap(text, "PRIVATE KEY")?);
        let seed: &[u8; 32] = der.strip_prefix(PRIVATE_PREFIX)?.try_into().ok()?;
        Some(Self::from_seed(seed))
    }

    pub(super) fn to_pem(&self) -> Zeroizing<String> {
        let seed = self.pair.seed().and_then(|seed| seed.as_be_bytes());
        let seed = seed.expect("a pair knows its seed");
        Zeroizing::new(wrap("PRIVATE KEY", PRIVATE_PREFIX, seed.as_ref()))
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey({})", self.public)
    }
}

impl PublicKey {
    /// Reads the first public key of a PEM file; `None` if there is none, or it is not Ed25519.
    pub fn from_pem(text: &str) -> Option<Self> {
        let der = unwrap(text, "PUBLIC KEY")?;
        der.strip_prefix(PUBLIC_PREFIX)?.try_into().ok().map(Self)
    }

    /// Reads all public keys of a PEM file; `None` if there is none, or one is not Ed25519.
    pub fn all_from_pem(text: &str) -> Option<Vec<Self>> {
        if !text.contains("-----") {
            // As the log has it.
            let pem =
                format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----", text.trim());
            return Self::from_pem(&pem).map(|key| vec![key]);
        }
        let blocks = text.split_inclusive("-----END PUBLIC KEY-----");
        let blocks = blocks.filter(|block| block.contains("-----BEGIN"));
        let keys = blocks.map(Self::from_pem).collect::<Option<Vec<_>>>()?;
        (!keys.is_empty()).then_some(keys)
    }

    /// SubjectPublicKeyInfo in PEM.
    pub fn to_pem(self) -> String {
        wrap("PUBLIC KEY", PUBLIC_PREFIX, &self.0)
    }

    /// Reads its text.
    pub fn from_base64(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// Whether the private half signed `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// Lowercase hex SHA-256.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// PrivateKeyInfo, version 0, id-Ed25519, an OCTET STRING in an OCTET STRING: <https://www.rfc-editor.org/rfc/rfc8410#section-7>
const PRIVATE_PREFIX: &[u8] = &[
    0x30, 0x2E, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// SubjectPublicKeyInfo, id-Ed25519, a BIT STRING: <https://www.rfc-editor.org/rfc/rfc8410#section-4>
const PUBLIC_PREFIX: &[u8] =
    &[0x30, 0x2A, 0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x03, 0x21, 0x00];

fn wrap(label: &str, prefix: &[u8], raw: &[u8]) -> String {
    let der = Zeroizing::new([prefix, raw].concat());
    // 44 and 48 bytes are one line of base64.
    let body = Zeroizing::new(STANDARD.encode(der.as_slice()));
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", body.as_str())
}

fn unwrap(text: &str, label: &str) -> Option<Vec<u8>> {
    let (_, after) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = after.split_once(&format!("-----END {label}-----"))?;
    let body = Zeroizing::new(body.split_ascii_whitespace().collect::<String>());
    STANDARD.decode(body.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let made = IdentityKey::open(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_file(dir.path().join(PUBLIC_FILE)).unwrap();
        let again = IdentityKey::open(dir.path()).unwrap();
        assert_eq!(made.public(), again.public());
        let pem = fs::read_to_string(dir.path().join(PUBLIC_FILE)).unwrap();
        assert_eq!(PublicKey::from_pem(&pem), Some(made.public()));
        assert_ne!(IdentityKey::generate().public(), made.public());
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_none_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        IdentityKey::open(dir.path()).unwrap();
        let path = dir.path().join(KEY_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(IdentityKey::open(dir.path()), Err(LedgerError::KeyFile { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "no key").unwrap();
        assert!(matches!(IdentityKey::open(dir.path()), Err(LedgerError::KeyFile { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"no key");
    }

    #[test]
    fn keys_and_signatures_are_those_of_rfc_8032() {
        // Test 1 of section 7.1: the empty message.
        let seed = hex::decode("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let key = IdentityKey::from_seed(&seed.unwrap().try_into().unwrap());
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(hex::encode(key.public().0), public);
        let signature = key.sign(b"");
        assert!(
            hex::encode(signature).starts_with("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974")
        );
        assert!(key.public().verifies(b"", &signature));
        assert!(!key.public().verifies(b"x", &signature));
        assert!(!IdentityKey::from_seed(&[7; 32]).public().verifies(b"", &signature));
    }

    #[test]
    fn a_pem_of_another_kind_is_no_public_key() {
        let key = IdentityKey::from_seed(&[7; 32]);
        let pem = key.public().to_pem();
        assert_eq!(PublicKey::from_pem(&pem.replace('\n', "\r\n")), Some(key.public()));
        assert_eq!(PublicKey::from_base64(&key.public().to_string()), Some(key.public()));
        assert_eq!(PublicKey::from_pem(&key.to_pem()), None);
        assert_eq!(PublicKey::from_pem(&pem.replacen("MCow", "MCox", 1)), None);
        assert_eq!(PublicKey::from_pem(""), None);
    }
}
