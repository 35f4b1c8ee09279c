//! The door of tests/fuzz to what a lost box left behind.

use super::estate::Estate;
use crate::{ledger::Entry, replay::plan::Definitions};

/// Entries, one a line, and keys of strangers: what is found is within what they say.
pub fn estate(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (lines, strangers): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with('{'));
    let entries = lines.into_iter().filter_map(|line| serde_json::from_str(line).ok());
    let entries: Vec<Entry> = entries.collect();
    let strangers: Vec<String> = strangers.into_iter().map(String::from).collect();
    let estate = Estate::of(&entries, &Definitions::new(), &strangers);
    assert!(estate.appliances.len() <= entries.len());
    assert!(estate.taken.len() <= strangers.len());
    assert!(estate.whole.is_empty() && estate.partial.is_empty(), "no table is known");
}
