//! The spool: sealed objects wait here until S3 has them.
//!
//! A folder of its own for each source, a file for each object, holding the bytes that will be sent,
//! encrypted once more with a key of the box, whatever the lake's own encryption is (DESIGN §7).
//!
//! # Format of a file `<number, 20 digits>.spool`
//!
//! ```text
//! magic   8 bytes   "LHSPOOL" 0x01
//! salt   32 bytes   random
//! chunk  65,536 bytes of the object (the last one fewer; only of an empty object none), encrypted, | tag 16 bytes
//! chunk  …
//! ```
//! Each chunk is AES-256-GCM without additional data. Key: HKDF-SHA256(salt, spool key, info =
//! `"lakehead spool v1" 0 source 0 file name`), so that no two files share one (I22), and a file under
//! another's name does not open. Nonce: three zeros, 1 in the last chunk and else 0, the chunk's number
//! from 0 as `u64` big-endian: a cut at a chunk's edge is noticed too.
//!
//! **Invariant:** a file that stands in no group's fact is nobody's, and is removed at the next start.

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
};
use bytes::{Bytes, BytesMut};

use super::{Group, Object, SealError, envelope::random};
use crate::{
    config::Secret,
    disk::{
        self,
        device::{Device, DeviceFile, FileSystem, ReadAt, write_all},
    },
    telemetry::board::SourceBoard,
};

/// The writing side. Clones share one folder.
#[derive(Clone, Debug)]
pub(super) struct Spool(Arc<Folder>);

/// The reading side, for those who send.
#[derive(Clone, Debug)]
pub struct SpoolReader(Arc<Folder>);

#[derive(Debug)]
struct Folder {
    device: Arc<dyn Device>,
    dir: PathBuf,
    source: String,
    key: Secret,
    next: AtomicU64,
    waiting: AtomicU64,
    board: SourceBoard,
}

impl Spool {
    /// Opens the folder, made if absent, and removes the files that no group names.
    pub(super) fn open(
        dir: &Path,
        source: &str,
        key: Secret,
        groups: &[Group],
        board: SourceBoard,
    ) -> Result<Self, SealError> {
        disk::create_dir(dir).map_err(|why| SealError::disk("make", dir, why))?;
        Self::open_on(Arc::new(FileSystem), dir, source, key, groups, board)
    }

    /// [`Spool::open`] in a folder that is there.
    pub(super) fn open_on(
        device: Arc<dyn Device>,
        dir: &Path,
        source: &str,
        key: Secret,
        groups: &[Group],
        board: SourceBoard,
    ) -> Result<Self, SealError> {
        let objects = || groups.iter().flat_map(|group| &group.objects);
        let known: BTreeSet<&str> = objects().map(|object| object.spool.as_str()).collect();
        let files = device.list(dir, "spool").map_err(|why| SealError::disk("list", dir, why))?;
        let mut present = BTreeSet::new();
        for path in files {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if known.contains(name.as_str()) {
                present.insert(name);
            } else {
                tracing::info!(file = name, "removing a spool file of no group");
                if let Err(why) = device.remove(&path) {
                    // One that is damaged may never go.
                    tracing::warn!(%why, file = name, "a spool file of no group stays");
                    present.insert(name);
                }
            }
        }
        let here = objects().filter(|object| present.contains(&object.spool));
        let waiting = here.map(|object| object.bytes).sum();
        let names = known.iter().copied().chain(present.iter().map(String::as_str));
        let next = names.filter_map(number).max().unwrap_or(0) + 1;
        let spool = Self(Arc::new(Folder {
            device,
            dir: dir.into(),
            source: source.into(),
            key,
            next: next.into(),
            waiting: AtomicU64::new(waiting),
            board,
        }));
        spool.0.show(waiting);
        Ok(spool)
    }

    /// A new file, made on disk when its first chunk is full.
    pub(super) fn create(&self) -> Result<SpoolFile, SealError> {
        let name = format!("{:020}.spool", self.0.next.fetch_add(1, Ordering::Relaxed));
        let mut salt = [0; SALT_BYTES];
        random(&mut salt)?;
        let key = self.0.file_key(&salt, &name);
        let path = self.0.dir.join(&name);
        let device = Arc::clone(&self.0.device);
        Ok(SpoolFile {
            device,
            name,
            path,
            salt,
            key,
            file: None,
            end: 0,
            pending: vec![],
            held: 0,
            chunk: 0,
            kept: false,
        })
    }

    /// Makes the names of all finished files durable (I7).
    pub(super) fn settle(&self) -> Result<(), SealError> {
        self.0.device.settle(&self.0.dir).map_err(|why| SealError::disk("sync", &self.0.dir, why))
    }

    /// Counts objects that are now recorded.
    pub(super) fn count(&self, objects: &[Object]) {
        let bytes: u64 = objects.iter().map(|object| object.bytes).sum();
        self.0.show(self.0.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes);
    }

    /// Bytes of the objects that are recorded and not yet removed.
    pub(super) fn bytes_waiting(&self) -> u64 {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// The other side.
    pub(super) fn reader(&self) -> SpoolReader {
        SpoolReader(Arc::clone(&self.0))
    }
}

impl SpoolReader {
    /// Bytes `range` of what is to be sent of `object`. They are verified.
    ///
    /// # Errors
    ///
    /// [`SealError::Disk`] if the file cannot be read, [`SealError::Spool`] if it is not what was written.
    pub fn read(&self, object: &Object, range: Range<u64>) -> Result<Bytes, SealError> {
        let mut whole = BytesMut::new();
        self.pieces(object, range, &mut |piece| {
            whole.extend_from_slice(&piece);
            true
        })?;
        Ok(whole.freeze())
    }

    /// [`SpoolReader::read`], some [`PIECE_CHUNKS`] chunks at a time, until `each` wants no more.
    ///
    /// # Errors
    ///
    /// As [`SpoolReader::read`]; what came before it is verified.
    pub fn pieces(
        &self,
        object: &Object,
        range: Range<u64>,
        each: &mut dyn FnMut(Bytes) -> bool,
    ) -> Result<(), SealError> {
        let path = self.0.dir.join(&object.spool);
        let file = self.0.device.read(&path).map_err(|why| SealError::disk("open", &path, why))?;
        self.pieces_of(&*file, &path, object, range, each)
    }

    /// [`SpoolReader::pieces`] of the file at `path`, which is open.
    pub(super) fn pieces_of(
        &self,
        file: &dyn ReadAt,
        path: &Path,
        object: &Object,
        range: Range<u64>,
        each: &mut dyn FnMut(Bytes) -> bool,
    ) -> Result<(), SealError> {
        let wrong = |what| SealError::Spool { path: path.display().to_string(), what };
        if range.start > range.end || range.end > object.bytes {
            return Err(wrong("a range beyond its end was asked for"));
        }
        let read = |why| SealError::disk("read", path, why);
        if file.length().map_err(read)? != file_bytes(object.bytes) {
            return Err(wrong("its length is not that of the object"));
        }
        let mut head = [0; HEAD_BYTES];
        file.read_exact_at(&mut head, 0).map_err(read)?;
        let salt: &[u8; SALT_BYTES] = head.last_chunk().expect("the salt ends the head");
        if !head.starts_with(MAGIC) {
            return Err(wrong("it does not begin with our magic"));
        }
        let key = self.0.file_key(salt, &object.spool);
        let last = chunks(object.bytes) - 1;
        let mut at = range.start;
        let mut scratch = vec![];
        while at < range.end {
            let first = at / CHUNK_BYTES;
            let until = ((first + PIECE_CHUNKS) * CHUNK_BYTES).min(object.bytes);
            let begin = first * CHUNK_BYTES;
            let sealed = (until - begin) + (until - begin).div_ceil(CHUNK_BYTES) * TAG_BYTES as u64;
            scratch.resize(size(sealed), 0);
            let place = HEAD_BYTES as u64 + first * (CHUNK_BYTES + TAG_BYTES as u64);
            file.read_exact_at(&mut scratch, place).map_err(read)?;
            let mut piece = vec![0; size(until - begin)];
            let sealed = scratch.chunks(size(CHUNK_BYTES) + TAG_BYTES);
            let chunks = sealed.zip(piece.chunks_mut(size(CHUNK_BYTES)));
            for (number, (sealed, plain)) in (first..).zip(chunks) {
                let torn = || wrong("a chunk's tag does not match");
                let (sealed, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or_else(torn)?;
                let nonce = nonce(number, number == last);
                key.open_separate_gather(nonce, Aad::empty(), sealed, tag, plain)
                    .map_err(|_| torn())?;
            }
            let wanted = size(at - begin)..size(until.min(range.end) - begin);
            if !each(Bytes::from(piece).slice(wanted)) {
                return Ok(());
            }
            at = until;
        }
        Ok(())
    }

    /// Whether an object's file is there, and as long as it was. What stands in it is only known once it is read.
    pub(super) fn has(&self, object: &Object) -> bool {
        let file = self.0.device.read(&self.0.dir.join(&object.spool));
        match file.and_then(|file| file.length()) {
            Ok(length) => length == file_bytes(object.bytes),
            Err(why) => why.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Removes an object's file, if it is there: S3 has the object, or another has its place.
    ///
    /// # Errors
    ///
    /// The file system refused.
    pub fn remove(&self, object: &Object) -> Result<(), SealError> {
        let path = self.0.dir.join(&object.spool);
        let there = self.0.device.exists(&path);
        self.0.device.remove(&path).map_err(|why| SealError::disk("remove", &path, why))?;
        if there {
            let less = |waiting: u64| Some(waiting.saturating_sub(object.bytes));
            let before = self.0.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            self.0.show(before.unwrap_or_else(|now| now).saturating_sub(object.bytes));
        }
        Ok(())
    }

    /// Bytes of the objects that are recorded and not yet removed.
    pub fn bytes_waiting(&self) -> u64 {
        self.0.waiting.load(Ordering::Relaxed)
    }
}

impl Folder {
    fn file_key(&self, salt: &[u8; SALT_BYTES], name: &str) -> LessSafeKey {
        let prk = Salt::new(HKDF_SHA256, salt).extract(self.key.expose());
        let info =
            [b"lakehead spool v1\0".as_slice(), self.source.as_bytes(), b"\0", name.as_bytes()];
        let okm = prk.expand(&info, &AES_256_GCM).expect("32 bytes are fewer than HKDF's limit");
        LessSafeKey::new(UnboundKey::from(okm))
    }

    fn show(&self, waiting: u64) {
        self.board.write(|status| status.spool_bytes = waiting);
    }
}

/// A file that is being written. Unless it is kept, dropping it removes it.
pub(super) struct SpoolFile {
    device: Arc<dyn Device>,
    name: String,
    path: PathBuf,
    salt: [u8; SALT_BYTES],
    key: LessSafeKey,
    file: Option<Box<dyn DeviceFile>>,
    /// Bytes written.
    end: u64,
    /// The chunk that is next, and room for its tag: what is written is that of it which is held.
    pending: Vec<u8>,
    held: usize,
    chunk: u64,
    kept: bool,
}

impl SpoolFile {
    /// The name in the folder, for [`Object::spool`].
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Ends the file and syncs it. Its name is durable only after [`Spool::settle`].
    pub(super) fn finish(&mut self) -> Result<(), SealError> {
        self.write_chunk(true)
            .and_then(|()| self.file.as_ref().expect("write_chunk makes the file").sync())
            .map_err(|why| self.failed(why))?;
        self.file = None;
        self.pending = vec![];
        Ok(())
    }

    /// It is named in a fact now: it stays.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }

    /// The error of a write that the file refused.
    pub(super) fn failed(&self, why: io::Error) -> SealError {
        SealError::disk("write", &self.path, why)
    }

    /// Bytes held in memory.
    pub(super) fn memory(&self) -> usize {
        self.pending.capacity()
    }

    /// Whether it is open on disk.
    pub(super) fn is_made(&self) -> bool {
        self.file.is_some()
    }

    /// Adds some bytes, at most `wanted`, that whoever asks is to fill.
    pub(super) fn room(&mut self, wanted: usize) -> io::Result<&mut [u8]> {
        if self.held == size(CHUNK_BYTES) {
            self.write_chunk(false)?;
        }
        let from = self.held;
        self.held += wanted.min(size(CHUNK_BYTES) - from);
        let needed = self.held + TAG_BYTES;
        if self.pending.len() < needed {
            self.pending.resize(needed, 0);
        }
        Ok(&mut self.pending[from..self.held])
    }

    fn write_chunk(&mut self, last: bool) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => {
                let file = self.file.insert(self.device.make(&self.path)?);
                write_all(&**file, &[MAGIC, &self.salt].concat(), 0)?;
                self.end = HEAD_BYTES as u64;
                file
            }
        };
        let nonce = nonce(self.chunk, last);
        // Of an object without bytes there was none to be held.
        self.pending.resize(self.pending.len().max(TAG_BYTES), 0);
        let (chunk, rest) = self.pending.split_at_mut(self.held);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::empty(), chunk);
        let tag = tag.map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        rest[..TAG_BYTES].copy_from_slice(tag.as_ref());
        let sealed = &self.pending[..self.held + TAG_BYTES];
        // First: whoever goes on behind a write that failed (a buffer that is dropped does) begins another chunk. This one,
        // encrypted once more under its nonce, would be plain.
        self.held = 0;
        self.chunk += 1;
        write_all(&**file, sealed, self.end)?;
        self.end += sealed.len() as u64;
        Ok(())
    }
}

impl Write for SpoolFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room(bytes.len())?;
        room.copy_from_slice(&bytes[..room.len()]);
        Ok(room.len())
    }

    /// Nothing: only [`SpoolFile::finish`] makes anything durable.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for SpoolFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpoolFile").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        if !self.kept
            && let Err(why) = self.device.remove(&self.path)
        {
            tracing::warn!(%why, file = self.name, "a spool file of no group stays until the next start");
        }
    }
}

/// Length of the file of an object.
fn file_bytes(object_bytes: u64) -> u64 {
    HEAD_BYTES as u64 + object_bytes + chunks(object_bytes) * TAG_BYTES as u64
}

fn chunks(object_bytes: u64) -> u64 {
    object_bytes.div_ceil(CHUNK_BYTES).max(1)
}

fn nonce(chunk: u64, last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[3] = last.into();
    nonce[4..].copy_from_slice(&chunk.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn number(name: &str) -> Option<u64> {
    name.strip_suffix(".spool")?.parse().ok()
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("ranges and chunks fit memory on 64-bit machines")
}

const MAGIC: &[u8] = b"LHSPOOL\x01";
const SALT_BYTES: usize = 32;
const HEAD_BYTES: usize = 8 + SALT_BYTES;
const CHUNK_BYTES: u64 = 64 << 10;
/// Of a file that are read at once.
const PIECE_CHUNKS: u64 = 4;
const TAG_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        disk::device::faulty::Faulty,
        seal::{Encryption, Op},
    };

    fn spool(dir: &Path, key: u8) -> Spool {
        Spool::open(dir, "erp", Secret::new(vec![key; 32]), &[], SourceBoard::default()).unwrap()
    }

    fn write(spool: &Spool, bytes: &[u8]) -> Object {
        let mut file = spool.create().unwrap();
        for piece in bytes.chunks(10_007) {
            file.write_all(piece).unwrap();
        }
        file.finish().unwrap();
        let object = Object {
            key: "k".into(),
            bytes: bytes.len() as u64,
            sha256: String::new(),
            crc64nvme: String::new(),
            rows: BTreeMap::<Op, u64>::new(),
            table: "public.t".into(),
            version: 1,
            encryption: Encryption::None,
            metadata: BTreeMap::new(),
            spool: file.name().into(),
            sums: vec![],
        };
        file.keep();
        object
    }

    fn noise(length: usize) -> Vec<u8> {
        std::iter::repeat_with(|| fastrand::u8(..)).take(length).collect()
    }

    #[test]
    fn every_range_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path(), 1);
        let chunk = size(CHUNK_BYTES);
        for length in [0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk, 200_000] {
            let bytes = noise(length);
            let object = write(&spool, &bytes);
            let path = dir.path().join(&object.spool);
            assert_eq!(fs::metadata(&path).unwrap().len(), file_bytes(length as u64));
            let edges =
                [0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk, length.saturating_sub(1), length];
            for from in edges.iter().filter(|edge| **edge <= length) {
                for to in edges.iter().filter(|edge| *edge >= from && **edge <= length) {
                    let read = spool.reader().read(&object, *from as u64..*to as u64).unwrap();
                    assert_eq!(read, bytes[*from..*to], "{from}..{to} of {length}");
                }
            }
            assert!(spool.reader().read(&object, 0..length as u64 + 1).is_err());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_changed_byte_is_found_wherever_it_is(
            length in 1_usize..150_000, at: prop::sample::Index, bit in 0_u8..8,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let spool = spool(dir.path(), 1);
            let object = write(&spool, &noise(length));
            let path = dir.path().join(&object.spool);
            let mut file = fs::read(&path).unwrap();
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
            fs::write(&path, &file).unwrap();
            let read = spool.reader().read(&object, 0..object.bytes);
            let found = matches!(read, Err(SealError::Spool { .. }));
            prop_assert!(found, "{:?}", read);
        }
    }

    #[test]
    fn a_file_that_is_cut_swapped_or_of_another_key_does_not_open() {
        let dir = tempfile::tempdir().unwrap();
        let spool_1 = spool(dir.path(), 1);
        let chunk = size(CHUNK_BYTES);
        let object = write(&spool_1, &noise(2 * chunk));
        let reader = spool_1.reader();

        let shorter = Object { bytes: CHUNK_BYTES, ..object.clone() };
        let path = dir.path().join(&object.spool);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..HEAD_BYTES + chunk + TAG_BYTES]).unwrap();
        assert!(matches!(reader.read(&object, 0..1), Err(SealError::Spool { .. })));
        assert!(matches!(reader.read(&shorter, 0..1), Err(SealError::Spool { .. })));

        fs::write(dir.path().join("x.spool"), &whole).unwrap();
        let renamed = Object { spool: "x.spool".into(), ..object.clone() };
        assert!(matches!(reader.read(&renamed, 0..1), Err(SealError::Spool { .. })));

        fs::write(&path, &whole).unwrap();
        assert!(reader.read(&object, 0..1).is_ok());
        let group = Group {
            id: 1,
            kind: crate::seal::GroupKind::Schema,
            objects: vec![object.clone()],
            fates: crate::seal::Fates::default(),
            at: crate::units::Timestamp(0),
        };
        let key = Secret::new(vec![2; 32]);
        let other = Spool::open(dir.path(), "erp", key, &[group], SourceBoard::default()).unwrap();
        assert!(matches!(other.reader().read(&object, 0..1), Err(SealError::Spool { .. })));
    }

    #[test]
    fn what_is_written_behind_a_full_disk_is_encrypted_too() {
        let dir = tempfile::tempdir().unwrap();
        let device = Faulty::default();
        let key = Secret::new(vec![1; 32]);
        let board = SourceBoard::default();
        let spool =
            Spool::open_on(Arc::new(device.clone()), dir.path(), "erp", key, &[], board).unwrap();
        let mut file = spool.create().unwrap();
        let zeros = vec![0; size(CHUNK_BYTES)];
        device.plan().room = Some(HEAD_BYTES as u64 + 1);
        file.write_all(&zeros).unwrap();
        for room in [Some(0), Some(10_000), None] {
            let error = file.write_all(&zeros).err().map(|why| why.kind());
            assert!(matches!(error, None | Some(io::ErrorKind::StorageFull)), "{error:?}");
            device.plan().room = room;
        }
        file.write_all(&[zeros.clone(), zeros].concat()).unwrap();
        let written = fs::read(&file.path).unwrap();
        assert!(written.len() > size(CHUNK_BYTES));
        assert!(!written.windows(32).any(|bytes| bytes == [0; 32]), "it stands there as it came");
    }

    /// The layout that the documentation of this module describes.
    #[test]
    fn the_bytes_of_a_file_are_pinned() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path(), 1);
        let mut file = spool.create().unwrap();
        file.salt = [9; 32];
        file.key = spool.0.file_key(&file.salt, &file.name);
        file.write_all(b"hello").unwrap();
        file.finish().unwrap();
        let written = hex::encode(fs::read(&file.path).unwrap());
        assert_eq!(&written[..16], "4c4853504f4f4c01");
        assert_eq!(&written[16..80], &"09".repeat(32));
        assert_eq!(&written[80..], PINNED);
    }

    /// Made by the Python package `cryptography`.
    const PINNED: &str = "d03a67239e50bad175d949e6ea9ce2d1cc1bec0141";
}
