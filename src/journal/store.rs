//! The index of facts beside the log: sled, checkpointed with the place in the log that it covers.
//!
//! **Invariant:** sled is never the only copy of a fact. It is written to after the log's fdatasync;
//! whatever is wrong with it, it is set aside and made anew from the log. Every call into sled goes
//! through `contained`, so that a panic in it is an error like others; its threads bear [`THREADS`].
//!
//! Keys: `=<key>` holds a fact, sealed ([`IndexKey`]: facts can have values of rows), `!checkpoint` a [`Checkpoint`]:
//! ```text
//! magic "LHJIDX02", segment u64, its salt (32), frames covered u64, facts u64,
//! Progress as in the log, CRC32C of all before u32
//! ```
//! `index.salt` beside it has the 32 bytes that the key is derived with. In an index of earlier firmware, whose magic is
//! "LHJIDX01", facts stand as they are, and there is no salt: the first checkpoint makes it anew, and none is kept.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::rand;
use zeroize::Zeroizing;

use super::{
    cipher::IndexKey,
    record::{FactMap, Fields},
    watermark::Progress,
};
use crate::{disk, shutdown::panics};

/// The open index.
pub(crate) struct Store {
    /// `None` only while it is dropped or made anew.
    db: Option<sled::Db<FANOUT>>,
    dir: PathBuf,
    /// The journal's.
    secret: Zeroizing<Vec<u8>>,
    key: IndexKey,
    /// All facts, if they stand in it as they are.
    plain: Option<FactMap>,
}

/// How far the index covers the log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Checkpoint {
    /// Whether it is of an index whose facts stand as they are.
    pub(crate) is_plain: bool,
    pub(crate) segment: u64,
    pub(crate) salt: [u8; 32],
    /// Number of the first frame not covered.
    pub(crate) frame: u64,
    /// Facts in all.
    pub(crate) facts: u64,
    pub(crate) progress: Progress,
}

/// What the index held when it was opened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Image {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) facts: FactMap,
}

/// Facts put (`Some`) or deleted since the last checkpoint.
pub(crate) type Changes = BTreeMap<String, Option<Vec<u8>>>;

/// Small leaves: facts are rewritten often (FACTS §1).
const FANOUT: usize = 64;
const CACHE_BYTES: usize = 16 << 20;
/// Of keys and values. sled takes several times as much to write them at once.
const PORTION_BYTES: usize = 1 << 20;
/// Indexes kept after they were set aside, for support.
const SET_ASIDE_MAX: usize = 2;
/// Names of the threads on which only sled works: its own, and rayon's, which nobody else here uses.
pub const THREADS: [&str; 2] = ["sled_flusher", "journal-index"];
const WORKERS: usize = 2;
const LOCK_TRIES: u32 = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
const MAGIC: &[u8; 8] = b"LHJIDX02";
const MAGIC_OF_PLAIN: &[u8; 8] = b"LHJIDX01";
const CHECKPOINT_KEY: &[u8] = b"!checkpoint";
const FACT_PREFIX: u8 = b'=';

impl Store {
    /// Opens the index under the journal's folder, and reads it. `None`: it is new.
    ///
    /// # Errors
    ///
    /// It does not open, panics, or fails a check, as with another key. It can be set aside.
    pub(crate) fn open(dir: &Path, key: &[u8]) -> io::Result<(Self, Option<Image>)> {
        let busy = dir.join(BUSY);
        if busy.exists() {
            // A crash that cannot be contained (the stack overflows, memory ends) would be met again at
            // every start. A kill in this moment looks the same, and costs only the making anew.
            return Err(io::Error::other("the process ended while the index was written to"));
        }
        fs::write(&busy, b"")?;
        name_threads();
        let secret = Zeroizing::new(key.to_vec());
        let mut key = IndexKey::derive(&secret, &salt(dir).unwrap_or_default());
        let opened = contained(|| {
            let db = open_db(dir)?;
            let image = read(&db, &key)?;
            Ok((db, image))
        });
        // It came back, and so it will the next time.
        disk::remove(&busy)?;
        let (db, image) = opened?;
        let plain = image.as_ref().filter(|image| image.checkpoint.is_plain);
        let plain = plain.map(|image| image.facts.clone());
        match (plain.is_some(), salt(dir)) {
            (false, None) => key = IndexKey::derive(&secret, &make_salt(dir)?),
            // Earlier firmware ran here again: should this be set aside, it is known for what it is.
            (true, Some(_)) => disk::remove(&dir.join(SALT))?,
            _ => {}
        }
        Ok((Self { db: Some(db), dir: dir.into(), secret, key, plain }, image))
    }

    /// Makes `changes` and the checkpoint that they lead to durable together: many of them in portions, and what is
    /// only begun when the process ends is set aside by the next one.
    ///
    /// # Errors
    ///
    /// The index is of no more use until the next start.
    pub(crate) fn checkpoint(
        &mut self,
        checkpoint: &Checkpoint,
        mut changes: Changes,
    ) -> io::Result<()> {
        let busy = self.dir.join(BUSY);
        fs::write(&busy, b"")?;
        if let Some(facts) = self.plain.take() {
            disk::sync_dir(&self.dir)?;
            self.begin_anew()?;
            for (key, value) in facts {
                changes.entry(key).or_insert(Some(value));
            }
        }
        let db = self.db.as_ref().expect("only a drop takes it");
        let written = contained(|| {
            let (mut batch, mut bytes) = (sled::Batch::default(), 0);
            for (key, value) in changes {
                bytes += key.len() + value.as_ref().map_or(0, Vec::len);
                match value {
                    Some(value) => batch.insert(fact_key(&key), self.key.seal(&key, &value)?),
                    None => batch.remove(fact_key(&key)),
                }
                if bytes >= PORTION_BYTES {
                    bytes = 0;
                    // Whatever of them is there after a power cut, so is what says that they are not all.
                    disk::sync_dir(&self.dir)?;
                    write(db, std::mem::take(&mut batch))?;
                }
            }
            batch.insert(CHECKPOINT_KEY, checkpoint.encode());
            write(db, batch)
        });
        if written.is_ok() {
            disk::remove(&busy)?;
        }
        written
    }

    /// An empty one in its place.
    fn begin_anew(&mut self) -> io::Result<()> {
        let db = self.db.take();
        contained(|| {
            drop(db);
            Ok(())
        })?;
        fs::remove_dir_all(self.dir.join(FOLDER))?;
        self.key = IndexKey::derive(&self.secret, &make_salt(&self.dir)?);
        self.db = Some(contained(|| open_db(&self.dir))?);
        Ok(())
    }
}

impl Drop for Store {
    /// sled writes once more when it is dropped.
    fn drop(&mut self) {
        let db = self.db.take();
        if let Err(error) = contained(|| {
            drop(db);
            Ok(())
        }) {
            tracing::warn!(%error, "the journal's index did not close");
        }
    }
}

/// What the index's key is derived with; `None`: whatever is there is not sealed.
fn salt(dir: &Path) -> Option<[u8; 32]> {
    fs::read(dir.join(SALT)).ok()?.try_into().ok()
}

/// From here on the index is sealed, and none is kept that is not.
fn make_salt(dir: &Path) -> io::Result<[u8; 32]> {
    for (_, before) in moved_away(dir)? {
        fs::remove_dir_all(before)?;
    }
    let mut salt = [0; 32];
    rand::fill(&mut salt).map_err(|_| io::Error::other("the system gives no random bytes"))?;
    disk::write_durably(&dir.join(SALT), &salt)?;
    Ok(salt)
}

/// Moves the index out of the way. The oldest of those moved before are removed, and one that is not sealed at once.
///
/// # Errors
///
/// The folder cannot be changed.
pub(crate) fn set_aside(dir: &Path) -> io::Result<()> {
    let index = dir.join(FOLDER);
    let mut before = moved_away(dir)?;
    if index.exists() {
        let number = before.last_key_value().map_or(1, |(last, _)| last + 1);
        let aside = dir.join(format!("{ASIDE}{number}"));
        match salt(dir) {
            Some(_) => disk::rename(&index, &aside)?,
            None => fs::remove_dir_all(&index)?,
        }
        before.extend(salt(dir).map(|_| (number, aside)));
    }
    for aside in before.values().rev().skip(SET_ASIDE_MAX) {
        fs::remove_dir_all(aside)?;
    }
    disk::remove(&dir.join(BUSY))
}

/// Those that were set aside, by their numbers.
fn moved_away(dir: &Path) -> io::Result<BTreeMap<u64, PathBuf>> {
    let numbered = |entry: io::Result<fs::DirEntry>| -> io::Result<Option<(u64, PathBuf)>> {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(ASIDE));
        Ok(number.and_then(|number| number.parse().ok()).map(|number| (number, entry.path())))
    };
    fs::read_dir(dir)?.filter_map(|entry| numbered(entry).transpose()).collect()
}

/// The index's folder.
pub(crate) const FOLDER: &str = "index";
const SALT: &str = "index.salt";
/// And a number: one that was set aside.
const ASIDE: &str = "index.bad-";
/// There while it is written to.
const BUSY: &str = "index.busy";

impl Checkpoint {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = if self.is_plain { MAGIC_OF_PLAIN } else { MAGIC }.to_vec();
        bytes.extend_from_slice(&self.segment.to_le_bytes());
        bytes.extend_from_slice(&self.salt);
        bytes.extend_from_slice(&self.frame.to_le_bytes());
        bytes.extend_from_slice(&self.facts.to_le_bytes());
        bytes.extend_from_slice(&self.progress.encode());
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (bytes, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(bytes) != u32::from_le_bytes(*crc) {
            return None;
        }
        let (magic, fields) = bytes.split_first_chunk::<8>()?;
        let is_plain = magic == MAGIC_OF_PLAIN;
        let mut fields = Fields(Some(fields).filter(|_| is_plain || magic == MAGIC)?);
        let (segment, salt) = (fields.u64()?, fields.take(32)?.try_into().ok()?);
        let (frame, facts) = (fields.u64()?, fields.u64()?);
        let progress = Progress::decode(fields.0)?;
        Some(Self { is_plain, segment, salt, frame, facts, progress })
    }
}

/// sled lets go of its folder some time after it was dropped.
fn open_db(dir: &Path) -> io::Result<sled::Db<FANOUT>> {
    let config = sled::Config::new()
        .path(dir.join(FOLDER))
        .cache_capacity_bytes(CACHE_BYTES)
        .flush_every_ms(None);
    for _ in 0..LOCK_TRIES {
        match config.open() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
    config.open()
}

fn write(db: &sled::Db<FANOUT>, batch: sled::Batch) -> io::Result<()> {
    db.apply_batch(batch)?;
    db.flush().map(drop)
}

fn read(db: &sled::Db<FANOUT>, index_key: &IndexKey) -> io::Result<Option<Image>> {
    let checkpoint = db.get(CHECKPOINT_KEY)?.map(|bytes| {
        Checkpoint::decode(&bytes).ok_or_else(|| damaged("its checkpoint does not read"))
    });
    let checkpoint = checkpoint.transpose()?;
    let is_plain = checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.is_plain);
    let mut facts = FactMap::new();
    for item in db.iter() {
        let (key, value) = item?;
        if *key == *CHECKPOINT_KEY {
            continue;
        }
        let key = key.strip_prefix(&[FACT_PREFIX]).and_then(|key| str::from_utf8(key).ok());
        let key = key.ok_or_else(|| damaged("it holds a foreign key"))?;
        let value = if is_plain { Some(value.to_vec()) } else { index_key.open(key, &value) };
        facts.insert(key.into(), value.ok_or_else(|| damaged("a fact does not open"))?);
    }
    match checkpoint {
        Some(checkpoint) if checkpoint.facts == facts.len() as u64 => {
            Ok(Some(Image { checkpoint, facts }))
        }
        None if facts.is_empty() => Ok(None),
        _ => Err(damaged("it does not hold the facts that its checkpoint counts")),
    }
}

/// Runs `work`, a panic in sled being an error like others.
fn contained<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    panics::contain(work).unwrap_or_else(|panicked| Err(damaged(&panicked.to_string())))
}

/// Gives rayon's threads, which sled uses, their name. Without a handler of our own, rayon itself
/// aborts the process when work that nobody waits for panics; sled misses its answer, and says so.
fn name_threads() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(WORKERS);
    let pool = pool.thread_name(|_| THREADS[1].into()).panic_handler(|_| {});
    // An error says that it is there already.
    pool.build_global().ok();
}

fn fact_key(key: &str) -> Vec<u8> {
    let mut bytes = vec![FACT_PREFIX];
    bytes.extend_from_slice(key.as_bytes());
    bytes
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = &[7; 32];

    fn checkpoint(facts: u64) -> Checkpoint {
        let progress = Progress::default();
        Checkpoint { is_plain: false, segment: 7, salt: [3; 32], frame: 9, facts, progress }
    }

    #[test]
    fn the_bytes_of_a_checkpoint_are_pinned() {
        let bytes = checkpoint(2).encode();
        let head = "4c484a494458303207000000000000000303030303030303030303030303030303030303030303030303030303030303\
                    09000000000000000200000000000000";
        assert!(hex::encode(&bytes).starts_with(head), "{}", hex::encode(&bytes));
        assert_eq!(bytes.len(), 8 + 8 + 32 + 8 + 8 + 68 + 4 + 8);
        assert_eq!(Checkpoint::decode(&bytes), Some(checkpoint(2)));
        assert_eq!(Checkpoint::decode(&bytes[..bytes.len() - 1]), None);
    }

    #[test]
    fn an_index_gives_back_its_last_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, image) = Store::open(dir.path(), KEY).unwrap();
        assert_eq!(image, None);
        let changes = [("a".to_owned(), Some(vec![1])), ("b".to_owned(), Some(vec![2]))];
        store.checkpoint(&checkpoint(2), changes.into()).unwrap();
        store.checkpoint(&checkpoint(1), [("a".to_owned(), None)].into()).unwrap();
        drop(store);
        let (_, image) = Store::open(dir.path(), KEY).unwrap();
        let facts = [("b".to_owned(), vec![2])].into();
        assert_eq!(image, Some(Image { checkpoint: checkpoint(1), facts }));
    }

    #[test]
    fn no_value_of_a_fact_stands_in_its_files() {
        const SECRET: &[u8] = b"4012 8888 8888 1881";
        let dir = tempfile::tempdir().unwrap();
        // As earlier firmware left it, and what it had set aside.
        let aside = dir.path().join("index.bad-1");
        fs::create_dir(&aside).unwrap();
        fs::write(aside.join("slab"), SECRET).unwrap();
        fs::write(dir.path().join(SALT), [1; 32]).unwrap();
        let db = open_db(dir.path()).unwrap();
        let plain = Checkpoint { is_plain: true, ..checkpoint(2) };
        db.insert(b"=a", SECRET).unwrap();
        db.insert(b"=b", SECRET).unwrap();
        db.insert(CHECKPOINT_KEY, plain.encode()).unwrap();
        db.flush().unwrap();
        drop(db);
        let facts = FactMap::from([("a".into(), SECRET.to_vec()), ("b".into(), SECRET.to_vec())]);
        let (mut store, image) = Store::open(dir.path(), KEY).unwrap();
        assert_eq!(image, Some(Image { checkpoint: plain, facts }));
        assert_eq!(salt(dir.path()), None);
        let changes = [("b".to_owned(), None), ("c".to_owned(), Some(SECRET.to_vec()))];
        store.checkpoint(&checkpoint(2), changes.into()).unwrap();
        drop(store);
        assert!(Store::open(dir.path(), &[8; 32]).is_err());
        assert!(!aside.exists());
        let (_, image) = Store::open(dir.path(), KEY).unwrap();
        let facts = FactMap::from([("a".into(), SECRET.to_vec()), ("c".into(), SECRET.to_vec())]);
        assert_eq!(image, Some(Image { checkpoint: checkpoint(2), facts }));
        let (mut folders, mut files) = (vec![dir.path().to_owned()], 0);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let bytes = fs::read(&path).unwrap();
                let bytes = zstd::decode_all(&bytes[..]).unwrap_or(bytes);
                files += 1;
                assert!(!bytes.windows(SECRET.len()).any(|at| at == SECRET), "{}", path.display());
            }
        }
        assert!(files > 0);
    }

    #[test]
    fn an_index_that_is_not_sealed_is_not_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        drop(open_db(dir.path()).unwrap());
        fs::write(dir.path().join(BUSY), b"").unwrap();
        assert!(Store::open(dir.path(), KEY).is_err());
        set_aside(dir.path()).unwrap();
        assert!(moved_away(dir.path()).unwrap().is_empty() && !dir.path().join(FOLDER).exists());
        drop(Store::open(dir.path(), KEY).unwrap());
        set_aside(dir.path()).unwrap();
        assert_eq!(moved_away(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn what_is_written_in_portions_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(dir.path(), KEY).unwrap();
        let facts = |value: u8| {
            let fact = move |n: u32| (format!("fact/{n:05}"), vec![value; 1 << 10]);
            (0..4096).map(fact)
        };
        let put = |value| facts(value).map(|(key, value)| (key, Some(value))).collect::<Changes>();
        let count = facts(0).count() as u64;
        store.checkpoint(&checkpoint(count), put(1)).unwrap();
        let mut changes = put(2);
        changes.extend(facts(0).skip(7).map(|(key, _)| (key, None)));
        store.checkpoint(&checkpoint(7), changes).unwrap();
        drop(store);
        let (_, image) = Store::open(dir.path(), KEY).unwrap();
        let facts = facts(2).take(7).collect();
        assert_eq!(image, Some(Image { checkpoint: checkpoint(7), facts }));
    }

    #[test]
    fn an_index_that_lost_a_fact_or_was_being_written_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(dir.path(), KEY).unwrap();
        store.checkpoint(&checkpoint(2), [("a".to_owned(), Some(vec![1]))].into()).unwrap();
        drop(store);
        assert!(Store::open(dir.path(), KEY).is_err());
        for _ in 0..4 {
            set_aside(dir.path()).unwrap();
            drop(Store::open(dir.path(), KEY).unwrap());
            fs::write(dir.path().join("index.busy"), b"").unwrap();
            assert!(Store::open(dir.path(), KEY).is_err());
        }
        let kept = fs::read_dir(dir.path()).unwrap();
        let kept = kept.filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("index.bad")
        });
        assert_eq!(kept.count(), SET_ASIDE_MAX);
    }

    /// A name that sled's reader of names answers with a panic.
    #[test]
    fn a_panic_in_sled_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path(), KEY).unwrap());
        let name = dir.path().join(FOLDER).join("metadata").join("log_not-a-hex-number");
        fs::write(name, b"").unwrap();
        let error = Store::open(dir.path(), KEY).map(drop).unwrap_err();
        assert!(error.to_string().contains("it panicked"), "{error}");
    }

    #[test]
    fn garbage_in_its_files_is_an_error_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(dir.path(), KEY).unwrap();
        store.checkpoint(&checkpoint(1), [("a".to_owned(), Some(vec![1]))].into()).unwrap();
        drop(store);
        let mut folders = vec![dir.path().join(FOLDER)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    fs::write(path, [0xA5; 4096]).unwrap();
                }
            }
        }
        assert!(Store::open(dir.path(), KEY).is_err());
    }
}
