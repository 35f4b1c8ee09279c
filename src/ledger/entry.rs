//! An entry's object: how it is written, signed and read. Pure.
//!
//! ```text
//! line 1   the [`Entry`] as JSON, in the order of its fields, without line breaks
//! line 2   base64 of the Ed25519 signature of line 1 (without its line break)
//! ```
//!
//! Its key is `<prefix>/_ledger/<source>/<entry number, 20 digits>.json`. The hash that the next entry
//! carries in `previous` is SHA-256 of line 1, without its line break.
//!
//! **Invariant:** what was signed is what is stored: a reader hashes and verifies line 1 as it came,
//! never a JSON written again.

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    Entry,
    key::{IdentityKey, PublicKey},
};

/// An entry's object, ready to be sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Signed {
    /// Both lines.
    pub object: Vec<u8>,
    /// What the next entry's `previous` will be.
    pub hash: String,
}

/// An entry's object as it was read: not yet believed.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// Line 1 parsed.
    pub entry: Entry,
    /// SHA-256 of line 1, hex.
    pub hash: String,
    line: String,
    signature: Vec<u8>,
}

/// `previous` of entry 1.
pub const NO_PREVIOUS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Signs an entry.
pub fn sign(entry: &Entry, key: &IdentityKey) -> Signed {
    let line = serde_json::to_string(entry).expect("an entry is plain data with string keys");
    let signature = STANDARD.encode(key.sign(line.as_bytes()));
    Signed { hash: hash(&line), object: format!("{line}\n{signature}\n").into_bytes() }
}

/// Reads an entry's object.
///
/// # Errors
///
/// What is wrong with it, in words.
pub fn read(object: &[u8]) -> Result<Read, String> {
    let text = std::str::from_utf8(object).map_err(|_| "it is not UTF-8".to_owned())?;
    let mut lines = text.lines();
    let (Some(line), Some(signature), None) = (lines.next(), lines.next(), lines.next()) else {
        return Err("it does not have two lines".into());
    };
    let entry = serde_json::from_str(line).map_err(|why| format!("line 1 is no entry: {why}"))?;
    let signature = STANDARD.decode(signature).map_err(|_| "line 2 is not base64".to_owned())?;
    Ok(Read { entry, hash: hash(line), line: line.into(), signature })
}

impl Read {
    /// The first of `keys` that signed it.
    pub fn signer(&self, keys: &[PublicKey]) -> Option<PublicKey> {
        keys.iter().copied().find(|key| key.verifies(self.line.as_bytes(), &self.signature))
    }
}

/// Folder of a source's chain: `<prefix>/_ledger/<source>/`.
pub fn folder(prefix: &str, source: &str) -> String {
    format!("{}{source}/", root(prefix))
}

/// Folder of all chains: `<prefix>/_ledger/`.
pub fn root(prefix: &str) -> String {
    if prefix.is_empty() { "_ledger/".into() } else { format!("{prefix}/_ledger/") }
}

/// Key of an entry.
pub fn object_key(prefix: &str, source: &str, entry: u64) -> String {
    format!("{}{entry:020}.json", folder(prefix, source))
}

/// Source and number that a key names.
pub fn parse_key<'a>(prefix: &str, key: &'a str) -> Option<(&'a str, u64)> {
    let (source, file) = key.strip_prefix(&root(prefix))?.split_once('/')?;
    let digits = file.strip_suffix(".json")?;
    (digits.len() == 20).then(|| digits.parse().ok().map(|number| (source, number))).flatten()
}

fn hash(line: &str) -> String {
    hex::encode(digest(&SHA256, line.as_bytes()))
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::{
        super::{EntryKind, SourceIdentity},
        *,
    };
    use crate::units::{Point, Position, Sequence};

    pub(crate) fn key() -> (tempfile::TempDir, IdentityKey) {
        let dir = tempfile::tempdir().unwrap();
        let key = IdentityKey::open_or_make(dir.path()).unwrap();
        (dir, key)
    }

    fn entry() -> Entry {
        let point = |sequence, position| Point {
            sequence: Sequence(sequence),
            position: Position(position),
        };
        Entry {
            previous: NO_PREVIOUS.into(),
            entry: 1,
            source: SourceIdentity {
                name: "erp".into(),
                system_identifier: "7".into(),
                timeline: 1,
            },
            kind: EntryKind::Changes,
            from: point(0, 0x16_B374_D800),
            to: point(41, 0x16_B374_D848),
            tables: BTreeMap::from([("public.orders".into(), 1)]),
            objects: vec![],
            completes: BTreeMap::new(),
            adopts: None,
            release: "lake".into(),
            committed_at: None,
            appliance: "plant7-a".into(),
            at: "2026-11-21T08:30:00.000000Z".into(),
        }
    }

    #[test]
    fn line_1_is_pinned() {
        let (_dir, key) = key();
        let signed = sign(&entry(), &key);
        let text = String::from_utf8(signed.object).unwrap();
        let expected = concat!(
            r#"{"previous":"0000000000000000000000000000000000000000000000000000000000000000","entry":1,"#,
            r#""source":{"name":"erp","system_identifier":"7","timeline":1},"kind":"changes","#,
            r#""from":{"sequence":0,"position":"00000016/B374D800"},"to":{"sequence":41,"position":"00000016/B374D848"},"#,
            r#""tables":{"public.orders":1},"objects":[],"release":"lake","appliance":"plant7-a","#,
            r#""at":"2026-11-21T08:30:00.000000Z"}"#,
        );
        assert_eq!(text.lines().next(), Some(expected));
        assert_eq!(object_key("raw", "erp", 7), "raw/_ledger/erp/00000000000000000007.json");
        assert_eq!(parse_key("raw", "raw/_ledger/erp/00000000000000000007.json"), Some(("erp", 7)));
        assert_eq!(parse_key("", "_ledger/erp/7.json"), None);
    }

    #[test]
    fn only_the_signer_verifies_and_only_what_was_signed() {
        let (_one, signer) = key();
        let (_two, other) = key();
        let key = signer;
        let signed = sign(&entry(), &key);
        let read_back = read(&signed.object).unwrap();
        assert_eq!((&read_back.entry, &read_back.hash), (&entry(), &signed.hash));
        assert_eq!(read_back.signer(&[other.public(), key.public()]), Some(key.public()));
        assert_eq!(read_back.signer(&[other.public()]), None);
        let text =
            String::from_utf8(signed.object).unwrap().replace(r#""entry":1"#, r#""entry":2"#);
        assert_eq!(read(text.as_bytes()).unwrap().signer(&[key.public()]), None);
    }

    #[test]
    fn bytes_that_are_no_entry_are_said_to_be_none() {
        for bytes in [&b""[..], b"{}\n", b"{}\nAA==\n", b"\xff\n\n", b"{}\n{}\n{}\n"] {
            assert!(read(bytes).is_err());
        }
    }
}
