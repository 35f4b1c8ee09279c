//! The doors of tests/fuzz to what is read back from the lake: objects, their keys, and the plan they make.

use super::{
    key::{Content, parse},
    plan::{Definitions, definitions, plan},
    read::LakeFile,
};
use crate::{disk, ledger::Entry};

/// A Parquet file: every value is printed, or the file is said to be none of ours.
pub fn parquet(bytes: &[u8]) {
    let (_kept, path) = disk::in_memory(bytes).expect("room in memory");
    let Ok(mut file) = LakeFile::open(&path, "k", 1 << 20) else { return };
    while let Ok(Some(rows)) = file.next_rows() {
        for row in 0..rows.len().min(ROWS_MAX) {
            let meta = rows.meta(row);
            assert!(!meta.op.letter().is_empty());
            for column in 0..rows.names().count() {
                if let super::read::Field::Value(value) = rows.field(row, column) {
                    value.print(rows.lake(column), &mut String::new());
                }
            }
            rows.exact(row);
            rows.old_key(row);
        }
    }
}

/// The key of an object, from its end.
pub fn keys(bytes: &[u8]) {
    let Ok(key) = std::str::from_utf8(bytes) else { return };
    if let Some((name, content)) = parse(key) {
        assert!(key.contains('/') && name.qualified().contains('.'));
        if let Content::Schema { version } = content {
            assert!(key.ends_with(&format!("/{version}.json")), "{key}");
        }
    }
}

/// Entries, one a line: what they make is within what they say.
pub fn plans(bytes: &[u8]) {
    let lines = bytes.split(|byte| *byte == b'\n');
    let entries: Vec<Entry> = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let objects: usize = entries.iter().map(|entry| entry.objects.len()).sum();
    assert!(definitions(&entries).len() <= objects);
    for until in [None, entries.first().map(|entry| entry.to.position)] {
        if let Ok(plan) = plan(&entries, &Definitions::new(), until, &[]) {
            assert!(plan.epochs.len() <= entries.len());
        }
    }
}

/// Rows of one batch that are looked at.
const ROWS_MAX: usize = 64;
