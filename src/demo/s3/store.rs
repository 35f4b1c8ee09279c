//! What the double holds: bodies as files, and a log of what they are.
//!
//! Layout: `bodies/<number>` are bodies of objects and parts, never changed; `index.jsonl` is the log of
//! all changes, one JSON line each, read again at start; a torn last line does not count. An object
//! is a list of bodies: completing an upload copies nothing.
//!
//! **Invariant:** a change is checked and made under one lock, so that of racing writers one wins.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use s3s::{S3Error, S3Result, s3_error};
use serde::{Deserialize, Serialize};

use super::verify::{Algorithm, Sums};

/// What was sent with an object.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Head {
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) content_type: Option<String>,
    pub(super) content_encoding: Option<String>,
    pub(super) sse: Option<String>,
    pub(super) kms_key_id: Option<String>,
    pub(super) bucket_key: Option<bool>,
}

/// One body.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Segment {
    pub(super) body: u64,
    pub(super) bytes: u64,
}

/// An object.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Object {
    pub(super) key: String,
    pub(super) segments: Vec<Segment>,
    pub(super) etag: String,
    pub(super) sums: Sums,
    pub(super) composite: bool,
    pub(super) head: Head,
    /// Microseconds since 1970.
    pub(super) at: i64,
}

/// A part of an upload.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Part {
    pub(super) number: i32,
    pub(super) segment: Segment,
    pub(super) etag: String,
    pub(super) sums: Sums,
    pub(super) at: i64,
}

/// An open upload.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) id: String,
    pub(super) head: Head,
    pub(super) algorithm: Option<Algorithm>,
    pub(super) composite: bool,
    pub(super) at: i64,
    #[serde(default)]
    pub(super) parts: BTreeMap<i32, Part>,
}

/// A bucket.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    pub(super) objects: BTreeMap<String, Object>,
    pub(super) uploads: BTreeMap<(String, String), Upload>,
}

/// A change, as it stands in the log.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Change {
    Bucket {
        bucket: String,
    },
    Put {
        bucket: String,
        object: Object,
    },
    Delete {
        bucket: String,
        key: String,
    },
    Create {
        bucket: String,
        upload: Upload,
    },
    Part {
        bucket: String,
        key: String,
        id: String,
        part: Part,
    },
    /// The object's bodies are those of the parts; the other parts' are dropped.
    Complete {
        bucket: String,
        id: String,
        object: Object,
    },
    Abort {
        bucket: String,
        key: String,
        id: String,
    },
}

/// All buckets.
#[derive(Debug)]
pub(super) struct Store {
    bodies: PathBuf,
    next: AtomicU64,
    state: Mutex<State>,
}

/// The state under the lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) buckets: BTreeMap<String, Bucket>,
    log: File,
}

/// A body that is gone again unless it is kept.
#[derive(Debug)]
pub(super) struct NewBody<'a> {
    store: &'a Store,
    pub(super) number: u64,
    pub(super) path: PathBuf,
    kept: bool,
}

impl NewBody<'_> {
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for NewBody<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.store.drop_body(self.number);
        }
    }
}

impl Object {
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }
}

impl Store {
    /// Opens or makes the store under `root`.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let bodies = root.join("bodies");
        fs::create_dir_all(&bodies)?;
        let path = root.join("index.jsonl");
        let mut log = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
        let mut buckets = BTreeMap::new();
        let mut whole = 0;
        for line in BufReader::new(&mut log).split(b'\n') {
            let line = line?;
            let Ok(change) = serde_json::from_slice::<Change>(&line) else { break };
            apply(&mut buckets, change);
            whole += u64::try_from(line.len()).map_err(io::Error::other)? + 1;
        }
        if log.metadata()?.len() < whole {
            // The last line is whole but for its end.
            log.write_all(b"\n")?;
        }
        log.set_len(whole)?;
        let mut next = 1;
        for entry in fs::read_dir(&bodies)? {
            let name = entry?.file_name();
            let number: u64 = name.to_str().and_then(|name| name.parse().ok()).unwrap_or(0);
            next = next.max(number + 1);
        }
        let state = Mutex::new(State { buckets, log });
        Ok(Self { bodies, next: AtomicU64::new(next), state })
    }

    /// Room for a new body.
    pub(super) fn new_body(&self) -> NewBody<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        NewBody { store: self, number, path: self.body(number), kept: false }
    }

    pub(super) fn body(&self, number: u64) -> PathBuf {
        self.bodies.join(number.to_string())
    }

    /// Removes a body of no more use.
    fn drop_body(&self, number: u64) {
        // A file left over costs room and nothing else.
        drop(fs::remove_file(self.body(number)));
    }

    /// Whether there is such a bucket.
    pub(super) fn bucket(&self, name: &str) -> S3Result<()> {
        self.look(name, |_| Ok(()))
    }

    /// Looks into a bucket.
    pub(super) fn look<T>(
        &self,
        bucket: &str,
        look: impl FnOnce(&Bucket) -> S3Result<T>,
    ) -> S3Result<T> {
        let state = self.state();
        let found = state.buckets.get(bucket);
        look(found.ok_or_else(|| s3_error!(NoSuchBucket, "The specified bucket does not exist"))?)
    }

    /// Makes a change that `check` allows, atomically.
    pub(super) fn change(
        &self,
        bucket: &str,
        check: impl FnOnce(&Bucket) -> S3Result<Change>,
    ) -> S3Result<()> {
        let mut state = self.state();
        let found = state.buckets.get(bucket).ok_or_else(|| s3_error!(NoSuchBucket))?;
        let change = check(found)?;
        let dropped = self.write(&mut state, change).map_err(S3Error::internal_error)?;
        drop(state);
        dropped.into_iter().for_each(|body| self.drop_body(body));
        Ok(())
    }

    /// Makes a bucket if it is not there.
    pub(super) fn make_bucket(&self, bucket: &str) -> io::Result<()> {
        let mut state = self.state();
        if !state.buckets.contains_key(bucket) {
            self.write(&mut state, Change::Bucket { bucket: bucket.into() })?;
        }
        Ok(())
    }

    fn write(&self, state: &mut State, change: Change) -> io::Result<Vec<u64>> {
        let mut line = serde_json::to_vec(&change)?;
        line.push(b'\n');
        state.log.write_all(&line)?;
        Ok(apply(&mut state.buckets, change))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Applies a change; which bodies are of no more use.
fn apply(buckets: &mut BTreeMap<String, Bucket>, change: Change) -> Vec<u64> {
    let bodies = |segments: Vec<Segment>| segments.into_iter().map(|segment| segment.body);
    let of = |upload: Upload| upload.parts.into_values().map(|part| part.segment.body);
    match change {
        Change::Bucket { bucket } => {
            buckets.entry(bucket).or_default();
            vec![]
        }
        Change::Put { bucket, object } => {
            let objects = &mut buckets.entry(bucket).or_default().objects;
            let before = objects.insert(object.key.clone(), object);
            before.map_or(vec![], |before| bodies(before.segments).collect())
        }
        Change::Delete { bucket, key } => {
            let before = buckets.entry(bucket).or_default().objects.remove(&key);
            before.map_or(vec![], |before| bodies(before.segments).collect())
        }
        Change::Create { bucket, upload } => {
            let uploads = &mut buckets.entry(bucket).or_default().uploads;
            uploads.insert((upload.key.clone(), upload.id.clone()), upload);
            vec![]
        }
        Change::Part { bucket, key, id, part } => {
            let uploads = &mut buckets.entry(bucket).or_default().uploads;
            let upload = uploads.get_mut(&(key, id));
            let before = upload.and_then(|upload| upload.parts.insert(part.number, part));
            before.map_or(vec![], |before| vec![before.segment.body])
        }
        Change::Complete { bucket, id, object } => {
            let bucket = buckets.entry(bucket).or_default();
            let upload = bucket.uploads.remove(&(object.key.clone(), id));
            let kept: Vec<u64> = object.segments.iter().map(|segment| segment.body).collect();
            let before = bucket.objects.insert(object.key.clone(), object);
            let unused = upload.into_iter().flat_map(of).filter(|body| !kept.contains(body));
            unused.chain(before.into_iter().flat_map(|object| bodies(object.segments))).collect()
        }
        Change::Abort { bucket, key, id } => {
            let upload = buckets.entry(bucket).or_default().uploads.remove(&(key, id));
            upload.map_or(vec![], |upload| of(upload).collect())
        }
    }
}
