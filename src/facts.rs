//! Control facts: the small durable state of every room, as keys and values in one log.
//!
//! A room keeps its state under its own name (`ship/upload/…`), typed by that room's `store.rs`.
//! The journal carries the facts (in its segments, indexed by sled); [`MemoryFacts`] serves tests.
//!
//! **Invariant:** a batch is durable as a whole, or not at all, before `record` answers.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
};

use futures_util::future::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};

/// Durable keys and values.
pub trait Facts: Send + Sync {
    /// The value under `key`.
    fn get(&self, key: &str) -> Option<Vec<u8>>;

    /// All that stands under `prefix`, in key order.
    fn scan(&self, prefix: &str) -> Vec<(String, Vec<u8>)>;

    /// Makes `batch` durable, then visible. Callers may drop the future: the batch is written all the same.
    ///
    /// # Errors
    ///
    /// The journal can no longer write; nothing written since its last good fsync counts (I6).
    fn record(&self, batch: FactBatch) -> BoxFuture<'static, Result<(), FactsError>>;

    /// [`Facts::record`] for threads that are not tasks. Blocks for one fsync.
    ///
    /// # Errors
    ///
    /// As [`Facts::record`].
    fn record_blocking(&self, batch: FactBatch) -> Result<(), FactsError>;
}

/// Puts and deletes that become durable together.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FactBatch {
    /// Key, and its new value or `None` to delete it. Later ones win.
    pub changes: Vec<(String, Option<Vec<u8>>)>,
}

/// Why a fact is not durable. Fatal for its source: the process ends and recovers.
#[derive(Clone, Debug, thiserror::Error)]
#[error("record facts: {0}")]
pub struct FactsError(pub String);

/// A fact that does not read as what was written: a newer version's, or damage that passed its checksum.
#[derive(Debug, thiserror::Error)]
#[error("fact `{key}` does not read as {what}: {why}")]
pub struct FactDamaged {
    /// Its key.
    pub key: String,
    /// The type that was wanted.
    pub what: &'static str,
    /// What the parser said.
    pub why: serde_json::Error,
}

impl FactBatch {
    /// Adds a value as JSON.
    pub fn put(&mut self, key: impl Into<String>, value: &impl Serialize) -> &mut Self {
        let json = serde_json::to_vec(value).expect("facts are plain data with string keys");
        self.changes.push((key.into(), Some(json)));
        self
    }

    /// Removes a key.
    pub fn delete(&mut self, key: impl Into<String>) -> &mut Self {
        self.changes.push((key.into(), None));
        self
    }
}

/// Reads the JSON fact under `key`.
///
/// # Errors
///
/// [`FactDamaged`] if it is there and is something else.
pub fn read<T: DeserializeOwned>(facts: &dyn Facts, key: &str) -> Result<Option<T>, FactDamaged> {
    facts.get(key).map(|value| parse(key, &value)).transpose()
}

/// Reads all JSON facts under `prefix`, in key order.
///
/// # Errors
///
/// [`FactDamaged`] at the first that is something else.
pub fn read_all<T: DeserializeOwned>(
    facts: &dyn Facts,
    prefix: &str,
) -> Result<Vec<(String, T)>, FactDamaged> {
    let all = facts.scan(prefix).into_iter();
    all.map(|(key, value)| parse(&key, &value).map(|fact| (key, fact))).collect()
}

fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, FactDamaged> {
    serde_json::from_slice(value).map_err(|why| FactDamaged {
        key: key.into(),
        what: std::any::type_name::<T>(),
        why,
    })
}

/// Facts without a disk, for tests and simulation.
#[derive(Default)]
pub struct MemoryFacts {
    map: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl MemoryFacts {
    fn apply(&self, batch: FactBatch) {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in batch.changes {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
    }
}

impl fmt::Debug for MemoryFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryFacts").finish_non_exhaustive()
    }
}

impl Facts for MemoryFacts {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn scan(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let from = map.range(prefix.to_owned()..);
        let under = from.take_while(|(key, _)| key.starts_with(prefix));
        under.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn record(&self, batch: FactBatch) -> BoxFuture<'static, Result<(), FactsError>> {
        self.apply(batch);
        Box::pin(async { Ok(()) })
    }

    fn record_blocking(&self, batch: FactBatch) -> Result<(), FactsError> {
        self.apply(batch);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_sees_its_prefix_in_order_and_nothing_else() {
        let facts = MemoryFacts::default();
        let mut batch = FactBatch::default();
        batch.put("a/2", &2).put("a/1", &1).put("b/1", &3).put("a/3", &0).delete("a/3");
        facts.record_blocking(batch).unwrap();
        let found: Vec<(String, u32)> = read_all(&facts, "a/").unwrap();
        assert_eq!(found, [("a/1".into(), 1), ("a/2".into(), 2)]);
        assert!(read::<String>(&facts, "b/1").unwrap_err().to_string().contains("`b/1`"));
    }
}
