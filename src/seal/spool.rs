//! The spool: sealed objects wait here until S3 has them.
//!
//! A folder of its own for each source, a file for each object, holding the bytes that will be sent,
//! encrypted once more with a key of the box, whatever the lake's own encryption is (DESIGN §7).
//!
//! [`layout`] says how an object lies in its file.
//!
//! **Invariant:** a file that stands in no group's fact is nobody's, and is removed at the next start.

use std::{
    collections::{BTreeSet, VecDeque},
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

use self::layout::{HEAD_BYTES, Layout, MAGIC_BYTES, SALT_BYTES, TAG_BYTES};
use super::{Group, Object, SealError, envelope::random};
use crate::{
    config::Secret,
    disk::{
        self,
        device::{Device, DeviceFile, FileSystem, ReadAt, write_all},
    },
    telemetry::board::SourceBoard,
};

mod layout;

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
        let layout = &Layout::NEW;
        let key = self.0.file_key(layout, &salt, &name);
        let path = self.0.dir.join(&name);
        let device = Arc::clone(&self.0.device);
        Ok(SpoolFile {
            device,
            name,
            path,
            layout,
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
        let mut head = [0; HEAD_BYTES];
        let length = file.length().map_err(read)?;
        if length >= HEAD_BYTES as u64 {
            file.read_exact_at(&mut head, 0).map_err(read)?;
        }
        let (magic, salt) = head.split_first_chunk().expect("it begins with the magic");
        let layout = Layout::of(magic).ok_or_else(|| wrong("it does not begin with our magic"))?;
        if length != layout.file_bytes(object.bytes) {
            return Err(wrong("its length is not that of the object"));
        }
        let key = self.0.file_key(layout, salt, &object.spool);
        let last = layout.chunks(object.bytes) - 1;
        let mut at = range.start;
        let (mut scratch, mut pieces) = (vec![], Pieces::default());
        while at < range.end {
            let first = layout.chunk_at(at);
            let behind = (first + PIECE_CHUNKS).min(layout.chunk_at(range.end - 1) + 1);
            let (begin, until) = (layout.begin(first), layout.begin(behind).min(object.bytes));
            let (from, to) = (layout.place(first), layout.file_bytes(until));
            scratch.resize(size(to - from), 0);
            file.read_exact_at(&mut scratch, from).map_err(read)?;
            let mut piece = pieces.next(size(until - begin));
            let (mut sealed, mut plain) = (&scratch[..], &mut piece[..]);
            for number in first..behind {
                let torn = || wrong("a chunk's tag does not match");
                let bytes = size(layout.begin(number + 1).min(until) - layout.begin(number));
                let (chunk, after) = sealed.split_at(bytes);
                let (tag, after) = after.split_first_chunk::<TAG_BYTES>().ok_or_else(torn)?;
                let (opened, rest) = plain.split_at_mut(bytes);
                let nonce = nonce(number, number == last);
                key.open_separate_gather(nonce, Aad::empty(), chunk, tag, opened)
                    .map_err(|_| torn())?;
                (sealed, plain) = (after, rest);
            }
            let wanted = size(at - begin)..size(until.min(range.end) - begin);
            if !each(pieces.give(piece, wanted)) {
                return Ok(());
            }
            at = until;
        }
        Ok(())
    }

    /// Whether an object's file is there, begins as ours do, and is as long as it was. What else stands in it is only known
    /// once it is read.
    pub(super) fn has(&self, object: &Object) -> bool {
        let is_whole = |file: Box<dyn ReadAt>| {
            let (length, mut magic) = (file.length()?, [0; MAGIC_BYTES]);
            if length < HEAD_BYTES as u64 {
                return Ok(false);
            }
            file.read_exact_at(&mut magic, 0)?;
            Ok(Layout::of(&magic).is_some_and(|of| of.file_bytes(object.bytes) == length))
        };
        match self.0.device.read(&self.0.dir.join(&object.spool)).and_then(is_whole) {
            Ok(is_whole) => is_whole,
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
    fn file_key(&self, layout: &Layout, salt: &[u8], name: &str) -> LessSafeKey {
        let prk = Salt::new(HKDF_SHA256, salt).extract(self.key.expose());
        let info = [layout.info, self.source.as_bytes(), b"\0", name.as_bytes()];
        let okm = prk.expand(&info, &AES_256_GCM).expect("32 bytes are fewer than HKDF's limit");
        LessSafeKey::new(UnboundKey::from(okm))
    }

    fn show(&self, waiting: u64) {
        self.board.write(|status| status.spool_bytes = waiting);
    }
}

/// What was read, and given. What nobody holds any more has room for the next: new room would be filled with zeros first.
#[derive(Default)]
struct Pieces(VecDeque<Bytes>);

impl Pieces {
    /// Room for so many bytes, whatever stands in it.
    fn next(&mut self, bytes: usize) -> BytesMut {
        let free = self.0.pop_front_if(|oldest| oldest.is_unique());
        let mut piece = free.and_then(|free| free.try_into_mut().ok()).unwrap_or_default();
        piece.resize(bytes, 0);
        piece
    }

    fn give(&mut self, piece: BytesMut, wanted: Range<usize>) -> Bytes {
        let piece = piece.freeze();
        let given = piece.slice(wanted);
        self.0.push_back(piece);
        given
    }
}

/// A file that is being written. Unless it is kept, dropping it removes it.
pub(super) struct SpoolFile {
    device: Arc<dyn Device>,
    name: String,
    path: PathBuf,
    layout: &'static Layout,
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
        if self.held == self.chunk_bytes() {
            self.write_chunk(false)?;
        }
        let from = self.held;
        self.held += wanted.min(self.chunk_bytes() - from);
        let needed = self.held + TAG_BYTES;
        if self.pending.len() < needed {
            self.pending.resize(needed, 0);
        }
        Ok(&mut self.pending[from..self.held])
    }

    /// Bytes of the next chunk, if it is whole.
    fn chunk_bytes(&self) -> usize {
        size(if self.chunk == 0 { self.layout.first } else { self.layout.chunk })
    }

    fn write_chunk(&mut self, last: bool) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => {
                let file = self.file.insert(self.device.make(&self.path)?);
                write_all(&**file, &[&self.layout.magic[..], &self.salt].concat(), 0)?;
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

/// Of a file that are read at once.
const PIECE_CHUNKS: u64 = 4;

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use proptest::prelude::*;

    use super::{layout::BLOCK_BYTES, *};
    use crate::{
        disk::device::faulty::Faulty,
        seal::{Encryption, Op},
    };

    fn spool(dir: &Path, key: u8) -> Spool {
        Spool::open(dir, "erp", Secret::new(vec![key; 32]), &[], SourceBoard::default()).unwrap()
    }

    fn write(spool: &Spool, bytes: &[u8]) -> Object {
        write_as(&Layout::NEW, spool, bytes)
    }

    fn write_as(layout: &'static Layout, spool: &Spool, bytes: &[u8]) -> Object {
        let mut file = spool.create().unwrap();
        file.layout = layout;
        file.key = spool.0.file_key(layout, &file.salt, &file.name);
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
        for layout in [&Layout::NEW, &Layout::OLD] {
            let (first, chunk) = (size(layout.first), size(layout.chunk));
            let lengths = [0, 1, first - 1, first, first + 1, first + chunk, first + 2 * chunk];
            for length in lengths.into_iter().chain([200_000, 400_000]) {
                let bytes = noise(length);
                let object = write_as(layout, &spool, &bytes);
                assert!(spool.reader().has(&object));
                let path = dir.path().join(&object.spool);
                assert_eq!(fs::metadata(&path).unwrap().len(), layout.file_bytes(length as u64));
                let second = first + chunk;
                let mut edges = vec![0, 1, first - 1, first, first + 1, second - 1, second, length];
                edges.extend([length.saturating_sub(1), length.saturating_sub(chunk + 1)]);
                for from in edges.iter().filter(|edge| **edge <= length) {
                    for to in edges.iter().filter(|edge| *edge >= from && **edge <= length) {
                        let read = spool.reader().read(&object, *from as u64..*to as u64).unwrap();
                        assert_eq!(read, bytes[*from..*to], "{from}..{to} of {length}");
                    }
                }
                assert!(spool.reader().read(&object, 0..length as u64 + 1).is_err());
                let longer = Object { bytes: object.bytes + 1, ..object };
                assert!(!spool.reader().has(&longer));
            }
        }
    }

    /// What makes writing cheap; and no more is read than the chunks of what is asked for.
    #[test]
    fn chunks_end_with_blocks_of_the_file() {
        let layout = &Layout::NEW;
        for chunk in 1..100 {
            assert_eq!(layout.place(chunk), chunk * BLOCK_BYTES);
            assert_eq!(layout.file_bytes(layout.begin(chunk)), chunk * BLOCK_BYTES);
        }
        let dir = tempfile::tempdir().unwrap();
        let device = Faulty::default();
        let (key, board) = (Secret::new(vec![1; 32]), SourceBoard::default());
        let spool =
            Spool::open_on(Arc::new(device.clone()), dir.path(), "erp", key, &[], board).unwrap();
        let object = write(&spool, &noise(1_000_000));
        for (range, chunks) in [(0..1, 1), (65_479..65_481, 2), (300_000..600_000, 6)] {
            let before = device.plan().read_bytes;
            spool.reader().read(&object, range).unwrap();
            let read = device.plan().read_bytes - before;
            assert!(read <= chunks * BLOCK_BYTES + HEAD_BYTES as u64, "{read} of {chunks} chunks");
        }
    }

    #[test]
    fn what_is_held_stays_and_what_is_not_has_room_for_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path(), 1);
        let bytes = noise(4_000_000);
        let object = write(&spool, &bytes);
        let pieces = |each: &mut dyn FnMut(Bytes)| {
            let mut given = |piece| {
                each(piece);
                true
            };
            spool.reader().pieces(&object, 0..object.bytes, &mut given).unwrap();
        };
        // All, every third, none.
        for held in [1, 3, usize::MAX] {
            let (mut at, mut number, mut kept, mut places) = (0, 0, vec![], BTreeSet::new());
            pieces(&mut |piece| {
                let range = at..at + piece.len();
                assert_eq!(piece, bytes[range.clone()]);
                (at, number) = (range.end, number + 1);
                places.insert(piece.as_ptr());
                if number % held == 0 {
                    kept.push((range, piece));
                }
            });
            assert_eq!(at, bytes.len());
            assert!(kept.into_iter().all(|(range, piece)| piece == bytes[range]), "1 of {held}");
            // But for the first one, which the file's head makes shorter.
            assert!(held < usize::MAX || places.len() <= 2, "{} places", places.len());
        }
    }

    /// A file that says to be of the other layout is not read as such, even where both have the same bytes.
    #[test]
    fn layouts_do_not_pass_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path(), 1);
        for (layout, other) in [(&Layout::NEW, &Layout::OLD), (&Layout::OLD, &Layout::NEW)] {
            for length in [5, 200_000] {
                let object = write_as(layout, &spool, &noise(length));
                let path = dir.path().join(&object.spool);
                let mut file = fs::read(&path).unwrap();
                file[..MAGIC_BYTES].copy_from_slice(other.magic);
                fs::write(&path, &file).unwrap();
                let read = spool.reader().read(&object, 0..object.bytes);
                assert!(matches!(read, Err(SealError::Spool { .. })), "{read:?}");
                file[..MAGIC_BYTES].copy_from_slice(b"LHSPOOL\x03");
                fs::write(&path, &file).unwrap();
                assert!(!spool.reader().has(&object));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_changed_byte_is_found_wherever_it_is(
            length in 1_usize..150_000, at: prop::sample::Index, bit in 0_u8..8, is_old: bool,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let spool = spool(dir.path(), 1);
            let layout = if is_old { &Layout::OLD } else { &Layout::NEW };
            let object = write_as(layout, &spool, &noise(length));
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
        let block = size(BLOCK_BYTES);
        let object = write(&spool_1, &noise(2 * block));
        let reader = spool_1.reader();

        let shorter = Object { bytes: Layout::NEW.first, ..object.clone() };
        let path = dir.path().join(&object.spool);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..block]).unwrap();
        assert!(reader.has(&shorter) && !reader.has(&object));
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
        let zeros = vec![0; size(Layout::NEW.first)];
        device.plan().room = Some(HEAD_BYTES as u64 + 1);
        file.write_all(&zeros).unwrap();
        for room in [Some(0), Some(10_000), None] {
            let error = file.write_all(&zeros).err().map(|why| why.kind());
            assert!(matches!(error, None | Some(io::ErrorKind::StorageFull)), "{error:?}");
            device.plan().room = room;
        }
        file.write_all(&[zeros.clone(), zeros].concat()).unwrap();
        let written = fs::read(&file.path).unwrap();
        assert!(written.len() > size(BLOCK_BYTES));
        assert!(!written.windows(32).any(|bytes| bytes == [0; 32]), "it stands there as it came");
    }

    /// The layouts that the documentation of this module describes.
    #[test]
    fn the_bytes_of_a_file_are_pinned() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path(), 1);
        let pinned = [
            (&Layout::NEW, "4c4853504f4f4c02", PINNED),
            // Of the second file.
            (&Layout::OLD, "4c4853504f4f4c01", PINNED_OLD),
        ];
        for (layout, magic, pinned) in pinned {
            let mut file = spool.create().unwrap();
            file.layout = layout;
            file.salt = [9; 32];
            file.key = spool.0.file_key(layout, &file.salt, &file.name);
            file.write_all(b"hello").unwrap();
            file.finish().unwrap();
            let written = hex::encode(fs::read(&file.path).unwrap());
            assert_eq!(&written[..16], magic);
            assert_eq!(&written[16..80], &"09".repeat(32));
            assert_eq!(&written[80..], pinned);
        }
    }

    /// Made by the Python package `cryptography`.
    const PINNED: &str = "6b27f797e292bc2b2ba30ae4149b04cfb7658269d7";
    /// As above.
    const PINNED_OLD: &str = "0295483808e27e4d59801512b6245cb1ca9374d7dd";
}
