//! An entry as an object: its key, its two lines, its hash. Pure.
//!
//! ```text
//! <prefix>/_ledger/<source>/<entry, 20 digits>.json
//!
//! line 1   the Entry as JSON, without newlines inside            \n
//! line 2   Ed25519 signature of line 1 (without its \n), base64  \n
//! ```
//!
//! The hash of an entry, which the next one carries as `previous`, is the lowercase hex SHA-256 of
//! line 1 without its newline. **Invariant:** the signature covers the bytes as they stand: a reader
//! verifies line 1 before it parses it and never writes it anew, so that fields it does not know are
//! proven too. Nothing may follow line 2.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    Entry, EntryObject, IdentityKey, Object, PublicKey,
    key::{SIGNATURE_BYTES, sha256},
};
use crate::ship::Encryption;

/// `previous` of entry 1.
pub const NO_PREVIOUS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// An entry, signed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Signed {
    /// The bytes of its object.
    pub object: String,
    /// Its hash.
    pub hash: String,
}

/// An entry's object, taken apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lines<'a> {
    /// Line 1 without its newline: what is signed and hashed.
    pub body: &'a [u8],
    /// Line 2, decoded.
    pub signature: [u8; SIGNATURE_BYTES],
}

/// `<prefix>/_ledger/<source>/`, or of all sources.
pub fn folder(prefix: &str, source: Option<&str>) -> String {
    let source = source.map(|name| format!("{name}/")).unwrap_or_default();
    under(prefix, &format!("_ledger/{source}"))
}

/// The key of an entry.
pub fn key(prefix: &str, source: &str, entry: u64) -> String {
    format!("{}{entry:020}.json", folder(prefix, Some(source)))
}

/// Source and number of the entry under `key`; `None` if the key is no entry's.
pub fn parse_key<'a>(prefix: &str, key: &'a str) -> Option<(&'a str, u64)> {
    let (source, name) = key.strip_prefix(&folder(prefix, None))?.split_once('/')?;
    let digits = name.strip_suffix(".json")?;
    let plain = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { Some((source, digits.parse().ok()?)) } else { None }
}

/// `rest` under the lake's prefix, which may be empty.
pub fn under(prefix: &str, rest: &str) -> String {
    if prefix.is_empty() { rest.into() } else { format!("{prefix}/{rest}") }
}

/// Makes the entry's object. The same entry and key always give the same bytes.
pub fn sign(entry: &Entry, key: &IdentityKey) -> Signed {
    let body = serde_json::to_string(entry).expect("entries are plain data with string keys");
    let signature = STANDARD.encode(key.sign(body.as_bytes()));
    Signed { hash: sha256(body.as_bytes()), object: format!("{body}\n{signature}\n") }
}

/// An object of the lake as an entry proves it, with its version.
pub fn proof(object: &Object) -> EntryObject {
    EntryObject {
        key: object.key.clone(),
        bytes: object.bytes,
        sha256: object.sha256.clone(),
        crc64nvme: object.crc64nvme.clone(),
        rows: object.rows.clone(),
        encryption: match &object.encryption {
            Encryption::None => "none",
            Encryption::SseKms { .. } => "sse-kms",
            Encryption::Client => "client",
        }
        .into(),
        version: Some(object.version),
    }
}

impl<'a> Lines<'a> {
    /// Takes an object apart; `None` if it has not the form of an entry.
    pub fn split(object: &'a [u8]) -> Option<Self> {
        let rest = object.strip_suffix(b"\n")?;
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let (body, line2) = (&rest[..end], &rest[end + 1..]);
        Some(Self { body, signature: STANDARD.decode(line2).ok()?.try_into().ok()? })
    }

    /// The hash that the next entry must carry.
    pub fn hash(&self) -> String {
        sha256(self.body)
    }

    /// Which of `keys` signed it.
    pub fn signer(&self, keys: &[PublicKey]) -> Option<PublicKey> {
        keys.iter().copied().find(|key| key.verifies(self.body, &self.signature))
    }

    /// The key to which a fence hands the chain over, if that key signed it. Found without parsing: it may be anybody's.
    pub fn heir(&self) -> Option<PublicKey> {
        let found = self.body.windows(HEIR.len()).position(|text| text == HEIR)?;
        let (key, _) = self.body[found + HEIR.len()..].split_at_checked(KEY_TEXT_BYTES)?;
        let heir = PublicKey::from_base64(str::from_utf8(key).ok()?)?;
        self.signer(&[heir])
    }

    /// What it says, signed or not: to be asked for when its signer is known.
    ///
    /// # Errors
    ///
    /// It is no entry that this firmware knows.
    pub fn entry(&self) -> Result<Entry, serde_json::Error> {
        serde_json::from_slice(self.body)
    }
}

/// What stands before the key in a fence.
const HEIR: &[u8] = br#""adopts":{"public_key":""#;
/// Bytes of a public key in base64.
const KEY_TEXT_BYTES: usize = 44;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        ledger::{Adoption, EntryKind, Fates, SourceIdentity},
        ship::Op,
        units::{Point, Position, Sequence},
    };

    fn sample() -> Entry {
        let object = EntryObject {
            key: "raw/erp/public.t/dt=2026-11-21/changes-1.parquet".into(),
            bytes: 4711,
            sha256: "ab".repeat(32),
            crc64nvme: "AAAAAAAAAAA=".into(),
            rows: BTreeMap::from([(Op::Insert, 3), (Op::Delete, 1)]),
            encryption: "client".into(),
            version: None,
        };
        Entry {
            previous: NO_PREVIOUS.into(),
            entry: 1,
            source: SourceIdentity {
                name: "erp".into(),
                system_identifier: "7301234567890123456".into(),
                timeline: 1,
            },
            kind: EntryKind::Changes,
            from: Point::default(),
            to: Point { sequence: Sequence(41), position: Position(0x16_B374_D848) },
            tables: BTreeMap::from([("public.t".into(), 2)]),
            objects: vec![object],
            completes: BTreeMap::new(),
            fates: Fates::default(),
            lost: None,
            adopts: None,
            release: "lake".into(),
            committed_at: Some("2026-11-21T08:30:00.000000Z".into()),
            appliance: "plant7-a".into(),
            at: "2026-11-21T08:30:01.000000Z".into(),
        }
    }

    #[test]
    fn the_format_is_pinned() {
        let signed = sign(&sample(), &IdentityKey::from_seed(&[1; 32]));
        assert_eq!(signed.object, PINNED);
        assert_eq!(signed.hash, "c8960b634743d82518e387edcfaeefb7564407e2350c3f307e8b2eb349e4386b");
    }

    /// Computed with python3-cryptography, not with this code.
    const PINNED: &str = concat!(
        r#"{"previous":"0000000000000000000000000000000000000000000000000000000000000000","entry":1,"#,
        r#""source":{"name":"erp","system_identifier":"7301234567890123456","timeline":1},"kind":"changes","#,
        r#""from":{"sequence":0,"position":"00000000/00000000"},"to":{"sequence":41,"position":"00000016/B374D848"},"#,
        r#""tables":{"public.t":2},"#,
        r#""objects":[{"key":"raw/erp/public.t/dt=2026-11-21/changes-1.parquet","bytes":4711,"#,
        r#""sha256":"abababababababababababababababababababababababababababababababab","crc64nvme":"AAAAAAAAAAA=","rows":{"I":3,"D":1},"encryption":"client"}],"#,
        r#""release":"lake","#,
        r#""committed_at":"2026-11-21T08:30:00.000000Z","appliance":"plant7-a","at":"2026-11-21T08:30:01.000000Z"}"#,
        "\nrc86LD4vSuAY6VNSYeat9xd13+2grkoITDVxGENnzAmOuGtEMd3O9VwrtUgi3Q3SBi7BqU5vrqOTqRu5JGw/BQ==\n",
    );

    #[test]
    fn keys_sort_as_entries_do_and_are_read_again() {
        assert_eq!(key("raw", "erp", 12), "raw/_ledger/erp/00000000000000000012.json");
        assert_eq!(key("", "erp", 12), "_ledger/erp/00000000000000000012.json");
        assert!(key("raw", "erp", 9) < key("raw", "erp", 10));
        let last = key("raw", "erp", u64::MAX);
        assert_eq!(parse_key("raw", &last), Some(("erp", u64::MAX)));
        for wrong in
            ["raw/_ledger/erp/12.json", "raw/erp/x", "raw/_ledger/erp/+0000000000000000012.json"]
        {
            assert_eq!(parse_key("raw", wrong), None);
        }
    }

    #[test]
    fn only_two_lines_are_an_entry() {
        let signed = sign(&sample(), &IdentityKey::from_seed(&[1; 32]));
        let lines = Lines::split(signed.object.as_bytes()).unwrap();
        assert_eq!(lines.hash(), signed.hash);
        assert_eq!(lines.entry().unwrap(), sample());
        let (body, line2) = signed.object.split_once('\n').unwrap();
        for wrong in [
            String::new(),
            "\n".into(),
            body.into(),
            format!("{body}\n{}", line2.trim()),
            format!("{body}\n{line2}x\n"),
            format!("{body}\n{line2}\n"),
            format!("{body}\r\n{}\r\n", line2.trim()),
        ] {
            assert_eq!(Lines::split(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_heir_of_a_fence_is_found_if_it_signed_it() {
        let (heir, other) = (IdentityKey::from_seed(&[2; 32]), IdentityKey::from_seed(&[1; 32]));
        let (public_key, head) = (heir.public().to_string(), "ab".repeat(32));
        let fence = Entry { adopts: Some(Adoption { public_key, head }), ..sample() };
        let found = |signed: &Signed| Lines::split(signed.object.as_bytes()).unwrap().heir();
        assert_eq!(found(&sign(&fence, &heir)), Some(heir.public()));
        assert_eq!(found(&sign(&fence, &other)), None);
        assert_eq!(found(&sign(&sample(), &heir)), None);
    }

    #[test]
    fn a_field_that_is_not_known_yet_is_proven_all_the_same() {
        let key = IdentityKey::from_seed(&[1; 32]);
        let body = serde_json::to_string(&sample()).unwrap();
        let newer = format!("{},\"weather\":\"fine\"}}", &body[..body.len() - 1]);
        let signature = STANDARD.encode(key.sign(newer.as_bytes()));
        let object = format!("{newer}\n{signature}\n");
        let lines = Lines::split(object.as_bytes()).unwrap();
        assert_eq!(lines.signer(&[key.public()]), Some(key.public()));
        assert_eq!(lines.entry().unwrap(), sample());
    }

    proptest! {
        #[test]
        fn any_changed_byte_breaks_the_signature_or_the_form(at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
            let key = IdentityKey::from_seed(&[1; 32]);
            let mut bytes = sign(&sample(), &key).object.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let signer = Lines::split(&bytes).and_then(|lines| lines.signer(&[key.public()]));
            prop_assert_eq!(signer, None);
        }

        #[test]
        fn any_bytes_are_split_without_a_panic(bytes: Vec<u8>) {
            if let Some(lines) = Lines::split(&bytes) {
                prop_assert!(lines.entry().is_err());
            }
        }
    }
}
