//! The bucket behind the wire: what requests do when they arrive, and what is found wrong with them.
//!
//! **Invariants seen here:** I18 (what is sent under a key is always the same bytes), I19 (a key is never
//! overwritten), I20 (Complete only with all parts and the right sums).

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{chronicle::Chronicle, oracle::Oracle};
use crate::{
    error::Cause,
    ship::{Listed, OpenUpload, ShipError, StoredPart, checksum, plan::Limits},
};

/// Which box asks, by its index.
pub(crate) type Who = usize;

/// A request, in its own words.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Put { key: String, body: Bytes, crc64nvme: String },
    Create { key: String },
    Part { key: String, upload: String, number: u32, body: Bytes, crc64nvme: String },
    Complete { key: String, upload: String, parts: Vec<StoredPart>, bytes: u64, crc64nvme: String },
    Abort { key: String, upload: String },
    Parts { key: String, upload: String, stale: bool },
    Uploads { prefix: String },
}

/// What is said to it.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Done,
    Text(String),
    Parts(Option<Vec<StoredPart>>),
    Uploads(Vec<OpenUpload>),
}

impl Answer {
    pub(crate) fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            _ => String::new(),
        }
    }
}

pub(crate) struct Bucket {
    chronicle: Chronicle,
    oracle: Oracle,
    objects: BTreeMap<String, Bytes>,
    uploads: BTreeMap<String, Upload>,
    /// Uploads that ended lately: a listing may still show them.
    ended: BTreeMap<String, (Instant, Vec<StoredPart>)>,
    created: u64,
}

struct Upload {
    key: String,
    begun: Instant,
    /// What passed beside that.
    aged: Duration,
    parts: BTreeMap<u32, (StoredPart, Bytes)>,
}

impl Bucket {
    pub(crate) fn new(chronicle: Chronicle, oracle: Oracle) -> Self {
        Self {
            chronicle,
            oracle,
            objects: BTreeMap::new(),
            uploads: BTreeMap::new(),
            ended: BTreeMap::new(),
            created: 0,
        }
    }

    pub(crate) fn object(&self, key: &str) -> Option<Bytes> {
        self.objects.get(key).cloned()
    }

    /// Has so much time passed since all that was begun.
    pub(crate) fn age(&mut self, by: Duration) {
        self.uploads.values_mut().for_each(|open| open.aged += by);
    }

    pub(crate) fn uploads(&self) -> Vec<(String, String)> {
        self.uploads.iter().map(|(id, upload)| (id.clone(), upload.key.clone())).collect()
    }

    pub(crate) fn list(&self, prefix: &str, after: Option<&str>) -> Vec<Listed> {
        let under = self.objects.range(prefix.to_owned()..);
        let under = under.take_while(|(key, _)| key.starts_with(prefix));
        let rest = under.filter(|(key, _)| after.is_none_or(|after| key.as_str() > after));
        let listed =
            rest.map(|(key, bytes)| Listed { key: key.clone(), bytes: bytes.len() as u64 });
        listed.take(PAGE).collect()
    }

    /// Carries a request out.
    pub(crate) fn apply(&mut self, who: Who, ask: Ask) -> Result<Answer, ShipError> {
        match ask {
            Ask::Put { key, body, crc64nvme } => self.put(who, key, body, &crc64nvme),
            Ask::Create { key } => {
                self.created += 1;
                let id = format!("u{}", self.created);
                self.note(format_args!("create {id} {}", short(&key)));
                let upload = Upload {
                    key,
                    begun: Instant::now(),
                    aged: Duration::ZERO,
                    parts: BTreeMap::new(),
                };
                self.uploads.insert(id.clone(), upload);
                Ok(Answer::Text(id))
            }
            Ask::Part { key, upload, number, body, crc64nvme } => {
                self.note(format_args!("part {upload} {number}"));
                let open = self.uploads.get_mut(&upload).filter(|open| open.key == key);
                let open = open.ok_or(ShipError::NoSuchUpload { key })?;
                let etag = format!("\"{number}-{crc64nvme}\"");
                let bytes = body.len() as u64;
                let stored = StoredPart { number, bytes, etag: etag.clone(), crc64nvme };
                open.parts.insert(number, (stored, body));
                Ok(Answer::Text(etag))
            }
            Ask::Complete { key, upload, parts, bytes, crc64nvme } => {
                self.complete(who, key, upload, &parts, bytes, &crc64nvme)
            }
            Ask::Abort { key, upload } => {
                if self.uploads.get(&upload).is_some_and(|open| open.key == key) {
                    self.note(format_args!("abort {upload} {}", short(&key)));
                    self.end(&upload);
                }
                Ok(Answer::Done)
            }
            Ask::Parts { key, upload, stale } => {
                let listed = |open: &Upload| {
                    open.parts.values().map(|(part, _)| part.clone()).collect::<Vec<_>>()
                };
                let mut found =
                    self.uploads.get(&upload).filter(|open| open.key == key).map(listed);
                let recent = |at: &Instant| at.elapsed().as_millis() < STALE_MS;
                if let (None, Some((at, parts)), true) = (&found, self.ended.get(&upload), stale)
                    && recent(at)
                {
                    found = Some(parts.clone());
                }
                Ok(Answer::Parts(found))
            }
            Ask::Uploads { prefix } => {
                let ours = self.uploads.iter().filter(|(_, open)| open.key.starts_with(&prefix));
                let open = ours.map(|(id, open)| OpenUpload {
                    key: open.key.clone(),
                    upload: id.clone(),
                    age: Some(open.begun.elapsed() + open.aged),
                });
                Ok(Answer::Uploads(open.collect()))
            }
        }
    }

    fn put(
        &mut self,
        who: Who,
        key: String,
        body: Bytes,
        crc64nvme: &str,
    ) -> Result<Answer, ShipError> {
        self.oracle.i18_a_key_has_one_content(who, &key, &body);
        if checksum::of(&body) != crc64nvme {
            return Err(refused("PutObject", &key, "BadDigest", Cause::LakeChecksum));
        }
        if self.objects.contains_key(&key) {
            self.note(format_args!("put {}: exists", short(&key)));
            return Err(ShipError::Exists { key });
        }
        self.store(who, key, body);
        Ok(Answer::Done)
    }

    fn complete(
        &mut self,
        who: Who,
        key: String,
        upload: String,
        parts: &[StoredPart],
        bytes: u64,
        crc64nvme: &str,
    ) -> Result<Answer, ShipError> {
        let Some(open) = self.uploads.get(&upload).filter(|open| open.key == key) else {
            self.note(format_args!("complete {upload}: no such upload"));
            return Err(ShipError::NoSuchUpload { key });
        };
        let mut whole = vec![];
        for part in parts {
            let held = open.parts.get(&part.number);
            let Some((_, body)) = held.filter(|(held, _)| held.etag == part.etag) else {
                self.oracle.i20_complete_has_all_parts(&key, "a part is not there as it was named");
                return Err(ShipError::Conflict { key });
            };
            whole.extend_from_slice(body);
        }
        if whole.len() as u64 != bytes || checksum::of(&whole) != crc64nvme {
            self.oracle.i20_complete_has_all_parts(&key, "length or checksum differ");
            return Err(refused("CompleteMultipartUpload", &key, "BadDigest", Cause::LakeChecksum));
        }
        let small = parts.iter().rev().skip(1).any(|part| part.bytes < LIMITS.part_bytes_min);
        if small || !parts.is_sorted_by_key(|part| part.number) {
            self.oracle.i20_complete_has_all_parts(&key, "parts too small, or not in order");
        }
        let whole = Bytes::from(whole);
        self.oracle.i18_a_key_has_one_content(who, &key, &whole);
        if self.objects.contains_key(&key) {
            self.note(format_args!("complete {upload} {}: exists", short(&key)));
            return Err(ShipError::Exists { key });
        }
        self.note(format_args!("complete {upload}"));
        self.end(&upload);
        self.store(who, key, whole);
        Ok(Answer::Done)
    }

    fn end(&mut self, upload: &str) {
        if let Some(open) = self.uploads.remove(upload) {
            let parts = open.parts.into_values().map(|(part, _)| part).collect();
            self.ended.insert(upload.into(), (Instant::now(), parts));
        }
    }

    fn store(&mut self, who: Who, key: String, body: Bytes) {
        self.note(format_args!("stores {} of box {who}: {} B", short(&key), body.len()));
        self.objects.insert(key.clone(), body.clone());
        self.oracle.landed(&self.objects, who, &key, &body);
    }

    fn note(&self, line: std::fmt::Arguments<'_>) {
        self.chronicle.note(format_args!("lake: {line}"));
    }
}

fn refused(request: &'static str, key: &str, code: &str, cause: Cause) -> ShipError {
    let (key, code, message) = (key.into(), code.into(), String::new());
    ShipError::Failed { request, key, status: 400, code, message, cause }
}

/// A key without what all have in common.
fn short(key: &str) -> &str {
    key.strip_prefix("raw/").unwrap_or(key)
}

/// Parts as small as the simulation needs them.
pub(crate) const LIMITS: Limits =
    Limits { part_bytes_min: 600, part_bytes_max: 1 << 20, parts_max: 10_000 };
const PAGE: usize = 1000;
/// How long a listing may show what has ended.
const STALE_MS: u128 = 500;
