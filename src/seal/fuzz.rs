//! The doors of tests/fuzz to sealed objects: the spool's files, the lake's envelope, keys in the bucket.
//!
//! What is opened must be what was sealed: the only texts that were ever sealed with these keys are
//! beginnings of [`text`].

use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;

use super::{
    Encryption, LakeKey, Metadata, Object, SealError, Table, envelope,
    key::{Keys, SchemaKey},
    open_bytes,
    spool::Spool,
};
use crate::{config::Secret, disk, telemetry::board::SourceBoard, units::Timestamp};

/// `length u32 | from u32 | to u32 | a spool file`: what is read stood in the object.
pub fn spool(bytes: &[u8]) {
    let Some((numbers, file)) = bytes.split_first_chunk::<12>() else { return };
    let (numbers, _) = numbers.as_chunks::<4>();
    let [length, from, to] = [0, 1, 2].map(|at| u64::from(u32::from_be_bytes(numbers[at])));
    let (file, path) = disk::in_memory(file).expect("room in memory");
    SPOOL.with(|spool| {
        let mut found = vec![];
        let mut each = |piece: Bytes| {
            found.extend_from_slice(&piece);
            true
        };
        let object = object(length);
        let read = spool.reader().pieces_of(&file, &path, &object, from..to, &mut each);
        if read.is_ok() {
            assert_eq!(found.len() as u64, to - from, "all that was asked for");
        }
        if !found.is_empty() {
            let sealed = text(length);
            assert!(sealed[size(from)..size(to)].starts_with(&found), "what is read was sealed");
        }
    });
}

/// `name=value` lines, an empty line, and the body that S3 gave.
pub fn envelope(bytes: &[u8]) {
    let mut metadata = Metadata::new();
    let mut rest = bytes;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        rest = after;
        let Some((name, value)) = std::str::from_utf8(line).ok().and_then(|l| l.split_once('='))
        else {
            break;
        };
        metadata.insert(name.into(), value.into());
    }
    let key = LakeKey::new(Secret::new(vec![9; 32])).expect("32 bytes");
    for key in [None, Some(&key)] {
        let sealed = envelope::is_sealed(&metadata);
        if let Ok(opened) = open_bytes(rest.to_vec(), &metadata, key) {
            let whole = if sealed { text(opened.len() as u64) } else { rest.to_vec() };
            assert!(opened == whole, "what is opened was sealed");
            assert!(!sealed || key.is_some());
        }
    }
}

/// The key of an object or a schema: it is made again as it was.
pub fn keys(bytes: &[u8]) {
    let Ok(key) = std::str::from_utf8(bytes) else { return };
    let keys = Keys::new("raw");
    if let Some(read) = keys.parse_data(key) {
        let table = table(&read.schema, &read.table, 0);
        let dated = keys.data(&read.source, &table, Timestamp(0), read.stem, &read.hash);
        assert_eq!(dated.replace("dt=1970-01-01", &format!("dt={}", read.date)), key);
    }
    if let Some(SchemaKey { source, schema, table: name, version }) = keys.parse_schema(key) {
        assert_eq!(keys.schema(&source, &table(&schema, &name, version)), key);
    }
}

/// Inputs of [`spool`] and [`envelope`] that open.
///
/// # Errors
///
/// The spool cannot be written in `dir`.
pub fn sealed(dir: &Path, length: u64) -> Result<[Vec<u8>; 2], SealError> {
    use std::io::Write;
    let written = |why| SealError::disk("write", dir, why);
    let mut file = new_spool(dir)?.create()?;
    file.write_all(&text(length)).map_err(written)?;
    file.finish()?;
    let bytes = std::fs::read(dir.join(file.name())).map_err(written)?;
    let number = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    let spooled = [&number[..], &[0; 4], &number, &bytes].concat();
    let key = LakeKey::new(Secret::new(vec![9; 32]))?;
    let (mut encryptor, mut metadata) = envelope::begin(&key, "erp", "public.t")?;
    let mut body = text(length);
    encryptor.apply(&mut body)?;
    body.extend_from_slice(&encryptor.finish()?);
    envelope::end(&mut metadata, length);
    let lines: String = metadata.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    Ok([spooled, [lines.as_bytes(), b"\n", &body].concat()])
}

fn new_spool(dir: &Path) -> Result<Spool, SealError> {
    Spool::open(dir, "erp", Secret::new(vec![8; 32]), &[], SourceBoard::default())
}

/// The first spool file of its folder.
fn object(bytes: u64) -> Object {
    Object {
        key: "k".into(),
        bytes,
        sha256: String::new(),
        crc64nvme: String::new(),
        rows: BTreeMap::new(),
        table: "public.t".into(),
        version: 1,
        encryption: Encryption::None,
        metadata: BTreeMap::new(),
        spool: format!("{:020}.spool", 1),
        sums: vec![],
    }
}

fn table(schema: &str, name: &str, version: u32) -> Table {
    Table {
        id: 1,
        schema: schema.into(),
        name: name.into(),
        version,
        columns: vec![],
        key: vec![],
        identity: crate::journal::Identity::Default,
        types: vec![],
    }
}

fn text(length: u64) -> Vec<u8> {
    (0..251).cycle().take(size(length)).collect()
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

thread_local! {
    static SPOOL: Spool = {
        let dir = std::env::temp_dir().join(format!("lakehead-fuzz-{}", std::process::id()));
        let spool = new_spool(&dir).expect("a folder for an empty spool");
        std::fs::remove_dir(&dir).expect("it is empty");
        spool
    };
}
