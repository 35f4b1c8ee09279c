//! The doors of tests/fuzz to the ledger: entries, chains, keys, heads.

use super::{
    Entry, Head, IdentityKey, PublicKey,
    chain::ChainHead,
    entry::{Lines, NO_PREVIOUS, key, parse_key, sign},
    verify::Verifier,
};

/// An entry's object, and an entry's body: signed again it reads as the same.
pub fn entry(bytes: &[u8]) {
    let (key, stranger) = (IdentityKey::from_seed(&[1; 32]), IdentityKey::from_seed(&[2; 32]));
    let keys = [stranger.public(), key.public()];
    let bodies = [Lines::split(bytes).map(|lines| lines.body), Some(bytes)];
    for body in bodies.into_iter().flatten() {
        let Ok(entry) = serde_json::from_slice::<Entry>(body) else { continue };
        let signed = sign(&entry, &key);
        let lines = Lines::split(signed.object.as_bytes()).expect("an entry has two lines");
        assert_eq!(lines.signer(&keys), Some(key.public()));
        assert_eq!(lines.hash(), signed.hash);
        assert_eq!(lines.entry().ok().as_ref(), Some(&entry), "an entry reads as it was written");
    }
    if let Some(lines) = Lines::split(bytes) {
        lines.signer(&keys);
    }
    if let Ok(head) = serde_json::from_slice::<ChainHead>(bytes) {
        let json = serde_json::to_vec(&head).expect("a head is plain data");
        assert_eq!(serde_json::from_slice(&json).ok(), Some(head));
    }
}

/// Entries, one a line, joined to a chain by their numbers and hashes, and signed by one key or, after a `!`,
/// by another: what is believed is a chain.
pub fn chain(bytes: &[u8]) {
    let keys = [IdentityKey::from_seed(&[1; 32]), IdentityKey::from_seed(&[2; 32])];
    let mut verifier = Verifier::new("raw", "erp", &[keys[0].public(), keys[1].public()], None);
    let (mut hash, mut believed, mut broken) = (NO_PREVIOUS.to_owned(), 0, false);
    for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1u64..) {
        let (line, signer) = match line.split_first() {
            Some((b'!', rest)) => (rest, 1),
            _ => (line, 0),
        };
        let Ok(mut entry) = serde_json::from_slice::<Entry>(line) else {
            assert!(!verifier.accept(number, line), "what is no entry is not believed");
            broken = true;
            continue;
        };
        let joined = number % 16 != entry.entry % 16;
        if joined {
            (entry.entry, entry.previous) = (number, hash);
        }
        let signed = sign(&entry, &keys[signer]);
        let accepted = verifier.accept(number, signed.object.as_bytes());
        assert!(!(accepted && broken), "nothing is believed behind what was not");
        (broken, believed) = (!accepted, believed + u64::from(accepted));
        hash = signed.hash;
        for object in &entry.objects {
            verifier.see(&object.key, object.bytes);
        }
    }
    verifier.close();
    verifier.listed();
    let report = verifier.report(true);
    assert!(report.entries <= believed);
    assert!(!report.to_string().is_empty());
}

/// The texts by which an operator names keys, heads and entries: each is written again as it was.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(head) = text.parse::<Head>() {
        assert_eq!(head.to_string().parse(), Ok(head));
    }
    if let Some((source, number)) = parse_key("raw", text) {
        assert_eq!(key("raw", source, number), text);
    }
    for public in PublicKey::all_from_pem(text).into_iter().flatten() {
        assert_eq!(PublicKey::from_pem(&public.to_pem()), Some(public));
        assert_eq!(PublicKey::from_base64(&public.to_string()), Some(public));
    }
    if let Some(private) = IdentityKey::from_pem(text) {
        let again = IdentityKey::from_pem(&private.to_pem());
        assert_eq!(again.map(|again| again.public()), Some(private.public()));
    }
}
