//! What was asked of the double, and what became of it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// One request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Asked {
    /// In the order of arrival, from 1.
    pub number: u64,
    /// S3's name for it: `UploadPart`.
    pub operation: &'static str,
    /// HTTP method.
    pub method: String,
    /// Bucket.
    pub bucket: String,
    /// Key, decoded; empty if the bucket was meant.
    pub key: String,
    /// Query, as it came.
    pub query: String,
    /// Who asked, unverified.
    pub access_key: String,
    /// Part number.
    pub part: Option<u32>,
    /// Upload id.
    pub upload: Option<String>,
    /// `If-None-Match`.
    pub if_none_match: Option<String>,
    /// Since the double started.
    pub at: Duration,
    /// Body bytes that arrived.
    pub bytes: u64,
    /// Status of the answer, if one was made.
    pub status: Option<u16>,
    /// Whether objects or uploads changed by it.
    pub applied: bool,
    /// Whether the whole answer was handed to the connection.
    pub delivered: bool,
    /// The fault that struck it.
    pub fault: Option<String>,
}

/// All requests, the oldest forgotten after [`REQUESTS_MAX`].
#[derive(Debug)]
pub(super) struct Log {
    began: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    asked: VecDeque<Asked>,
    number: u64,
}

/// One request's place in the log.
#[derive(Clone, Debug)]
pub(super) struct Place {
    log: Arc<Log>,
    number: u64,
}

impl Log {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, inner: Mutex::default() }
    }

    pub(super) fn open(self: &Arc<Self>, mut asked: Asked, now: Instant) -> Place {
        let mut inner = self.inner();
        inner.number += 1;
        asked.number = inner.number;
        asked.at = now.saturating_duration_since(self.began);
        if inner.asked.len() == REQUESTS_MAX {
            inner.asked.pop_front();
        }
        inner.asked.push_back(asked);
        Place { log: self.clone(), number: inner.number }
    }

    pub(super) fn read(&self) -> Vec<Asked> {
        self.inner().asked.iter().cloned().collect()
    }

    pub(super) fn clear(&self) {
        self.inner().asked.clear();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    pub(super) fn write(&self, change: impl FnOnce(&mut Asked)) {
        let mut inner = self.log.inner();
        if let Ok(at) = inner.asked.binary_search_by_key(&self.number, |asked| asked.number) {
            change(&mut inner.asked[at]);
        }
    }
}

/// About 100 MB at the most.
const REQUESTS_MAX: usize = 200_000;
