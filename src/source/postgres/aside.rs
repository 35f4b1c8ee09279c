//! The files in which transactions in progress are laid aside, `<data_dir>/in-progress/<source>/`.
//!
//! # Format of a file `<number, 20 digits>.part`
//!
//! ```text
//! sealed u32 LE | plain u32 LE | nonce u64 LE | zstd, AES-256-GCM | tag 16 bytes      *
//! ```
//! The head, the file's number and where in it the piece lies are bound to it. The key is made when the process
//! starts, and kept nowhere: nobody reads a file that was left, and nobody needs it, as the server sends all of a
//! transaction again that was not committed where it is confirmed. So nothing is synced, either.
//!
//! **Invariant:** a file is of the session that is under way: those of another are removed before the next begins.

use std::{
    fmt,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    rand,
};

use crate::disk::{
    self,
    device::{Device, write_all},
};

/// The folder. Clones share it. All that it does blocks.
#[derive(Clone)]
pub(crate) struct Aside(Arc<Folder>);

struct Folder {
    device: Arc<dyn Device>,
    dir: PathBuf,
    key: LessSafeKey,
    bytes_max: u64,
    /// Bytes of all files.
    bytes: AtomicU64,
    /// The next file's number, and the next piece's nonce.
    next: AtomicU64,
    nonce: AtomicU64,
}

/// What was laid aside of one transaction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Laid {
    number: u64,
    bytes: u64,
}

/// How far a file was read.
#[derive(Debug)]
pub(crate) struct Reading {
    laid: Laid,
    at: u64,
}

/// Why nothing more is laid aside.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AsideError {
    /// As much is there as may be.
    #[error("they would take more than {} MiB", .0 >> 20)]
    Limit(u64),
    /// The disk is nearly full.
    #[error("{} MiB are left on the disk", .0 >> 20)]
    Short(u64),
    /// The system refused.
    #[error("{0}")]
    Disk(#[from] io::Error),
}

impl Aside {
    /// In this folder, made when it is needed, up to `bytes_max`.
    pub(crate) fn new(device: Arc<dyn Device>, dir: PathBuf, bytes_max: u64) -> Self {
        let mut key = [0; 32];
        rand::fill(&mut key).expect("the system gives random bytes, or nothing can be sealed");
        let key = UnboundKey::new(&AES_256_GCM, &key).expect("the key has the cipher's length");
        let (bytes, next, nonce) = (0.into(), 0.into(), 0.into());
        let key = LessSafeKey::new(key);
        Self(Arc::new(Folder { device, dir, key, bytes_max, bytes, next, nonce }))
    }

    /// Removes all files, those of another process too.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let folder = &self.0;
        let files = match folder.device.list(&folder.dir, EXTENSION) {
            Err(why) if why.kind() == ErrorKind::NotFound => vec![],
            files => files?,
        };
        files.iter().try_for_each(|path| folder.device.remove(path))?;
        folder.bytes.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Lays `plain` behind what is there of a transaction.
    pub(crate) fn lay(&self, laid: Option<Laid>, plain: &[u8]) -> Result<Laid, AsideError> {
        let folder = &self.0;
        let mut laid = laid;
        for piece in plain.chunks(PIECE_BYTES) {
            let begun = laid
                .map_or_else(|| folder.next.fetch_add(1, Ordering::Relaxed), |laid| laid.number);
            let at = laid.map_or(0, |laid| laid.bytes);
            let sealed = folder.seal((begun, at), piece)?;
            folder.admit(sealed.len() as u64)?;
            let path = folder.path(begun);
            let file = match laid {
                Some(_) => folder.device.open(&path)?,
                None => {
                    disk::create_dir(&folder.dir)?;
                    folder.device.make(&path)?
                }
            };
            write_all(&*file, &sealed, at)?;
            laid = Some(Laid { number: begun, bytes: at + sealed.len() as u64 });
        }
        laid.ok_or_else(|| io::Error::other("nothing was laid aside").into())
    }

    /// Reads on, and appends what comes next to `plain`. False: that was all.
    pub(crate) fn read(&self, reading: &mut Reading, plain: &mut Vec<u8>) -> io::Result<bool> {
        let (folder, Laid { number, bytes }) = (&self.0, reading.laid);
        if reading.at >= bytes {
            return Ok(false);
        }
        let file = folder.device.read(&folder.path(number))?;
        let mut head = [0; HEAD_BYTES];
        file.read_exact_at(&mut head, reading.at)?;
        let sealed_bytes = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let length = usize::try_from(sealed_bytes).unwrap_or(usize::MAX);
        if length > SEALED_BYTES_MAX {
            return Err(altered());
        }
        let mut sealed = vec![0; length];
        file.read_exact_at(&mut sealed, reading.at + HEAD_BYTES as u64)?;
        folder.open((number, reading.at), &head, sealed, plain)?;
        reading.at += (HEAD_BYTES + length) as u64;
        Ok(true)
    }

    /// Removes what was laid aside of one.
    pub(crate) fn remove(&self, laid: Laid) -> io::Result<()> {
        self.0.device.remove(&self.0.path(laid.number))?;
        self.0.bytes.fetch_sub(laid.bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Folder {
    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:020}.{EXTENSION}"))
    }

    /// Counts `more` bytes, if there is room for them.
    fn admit(&self, more: u64) -> Result<(), AsideError> {
        if self.bytes.load(Ordering::Relaxed) + more > self.bytes_max {
            return Err(AsideError::Limit(self.bytes_max));
        }
        // What cannot be asked is found out when writing.
        let place =
            if self.dir.is_dir() { &self.dir } else { self.dir.parent().unwrap_or(Path::new("/")) };
        match self.device.free_bytes(place) {
            Ok(free) if free < FREE_BYTES_MIN => return Err(AsideError::Short(free)),
            Ok(_) | Err(_) => {}
        }
        self.bytes.fetch_add(more, Ordering::Relaxed);
        Ok(())
    }

    fn seal(&self, place: (u64, u64), plain: &[u8]) -> io::Result<Vec<u8>> {
        let packed = zstd::bulk::compress(plain, LEVEL)?;
        let number = self.nonce.fetch_add(1, Ordering::Relaxed);
        let length = |bytes: usize| u32::try_from(bytes).map_err(io::Error::other);
        let mut head = [0; HEAD_BYTES];
        head[..4].copy_from_slice(&length(packed.len() + TAG_BYTES)?.to_le_bytes());
        head[4..8].copy_from_slice(&length(plain.len())?.to_le_bytes());
        head[8..].copy_from_slice(&number.to_le_bytes());
        let mut sealed = Vec::with_capacity(HEAD_BYTES + packed.len() + TAG_BYTES);
        sealed.extend_from_slice(&head);
        sealed.extend_from_slice(&packed);
        let body = &mut sealed[HEAD_BYTES..];
        let bound = Aad::from(bound(place, &head));
        let tag = self.key.seal_in_place_separate_tag(nonce(number), bound, body);
        let tag = tag.map_err(|_| io::Error::other("it cannot be sealed"))?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    fn open(
        &self,
        place: (u64, u64),
        head: &[u8; HEAD_BYTES],
        mut sealed: Vec<u8>,
        plain: &mut Vec<u8>,
    ) -> io::Result<()> {
        let [_, _, _, _, a, b, c, d, number @ ..] = *head;
        let number = u64::from_le_bytes(number);
        let bound = Aad::from(bound(place, head));
        let opened = self.key.open_in_place(nonce(number), bound, &mut sealed);
        let packed = opened.map_err(|_| altered())?;
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let piece = zstd::bulk::decompress(packed, length.min(PIECE_BYTES))?;
        plain.extend_from_slice(&piece);
        Ok(())
    }
}

impl fmt::Debug for Aside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aside").field("dir", &self.0.dir).finish_non_exhaustive()
    }
}

impl Reading {
    /// From the beginning.
    pub(crate) fn new(laid: Laid) -> Self {
        Self { laid, at: 0 }
    }
}

fn bound((file, at): (u64, u64), head: &[u8; HEAD_BYTES]) -> [u8; 16 + HEAD_BYTES] {
    let mut bound = [0; 16 + HEAD_BYTES];
    bound[..8].copy_from_slice(&file.to_le_bytes());
    bound[8..16].copy_from_slice(&at.to_le_bytes());
    bound[16..].copy_from_slice(head);
    bound
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn altered() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "what was laid aside is not what was written")
}

const EXTENSION: &str = "part";
const HEAD_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
/// Bytes of a piece, before compression.
const PIECE_BYTES: usize = 1 << 20;
/// More than zstd and the tag make of a piece.
const SEALED_BYTES_MAX: usize = PIECE_BYTES + PIECE_BYTES / 64;
/// The least of CPU.
const LEVEL: i32 = -3;
/// What is left to others: the journal's reserve and queue, and some.
const FREE_BYTES_MIN: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::device::FileSystem;

    fn aside(dir: &Path, bytes_max: u64) -> Aside {
        Aside::new(Arc::new(FileSystem), dir.join("in-progress/erp"), bytes_max)
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        disk::list(&dir.join("in-progress/erp"), EXTENSION).unwrap()
    }

    fn read(aside: &Aside, laid: Laid) -> io::Result<Vec<u8>> {
        let (mut reading, mut plain) = (Reading::new(laid), vec![]);
        while aside.read(&mut reading, &mut plain)? {}
        Ok(plain)
    }

    #[test]
    fn what_is_laid_aside_comes_back_and_its_room_too() {
        let dir = tempfile::tempdir().unwrap();
        let aside = aside(dir.path(), 1 << 30);
        aside.clear().unwrap();
        let noise = |bytes| std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect();
        let parts: [Vec<u8>; 3] = [noise(5), noise(3 * PIECE_BYTES + 1), vec![7; 100_000]];
        let (mut one, mut two) = (None, None);
        for part in &parts {
            one = Some(aside.lay(one, part).unwrap());
            two = Some(aside.lay(two, &part[..3]).unwrap());
        }
        assert_eq!(read(&aside, one.unwrap()).unwrap(), parts.concat());
        assert_eq!(read(&aside, two.unwrap()).unwrap().len(), 9);
        let bytes: u64 = files(dir.path()).iter().map(|path| path.metadata().unwrap().len()).sum();
        assert_eq!(aside.bytes(), bytes);
        aside.remove(one.unwrap()).unwrap();
        assert_eq!((files(dir.path()).len(), aside.bytes()), (1, two.unwrap().bytes));
        aside.clear().unwrap();
        assert_eq!((files(dir.path()).len(), aside.bytes()), (0, 0));
    }

    #[test]
    fn nobody_reads_a_file_and_none_that_was_altered_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let own = aside(dir.path(), 1 << 30);
        let laid = own.lay(None, b"a row of the customer's").unwrap();
        let other = own.lay(None, b"another one").unwrap();
        let path = &files(dir.path())[0];
        let bytes = std::fs::read(path).unwrap();
        assert!(!bytes.windows(3).any(|window| window == b"row"));
        assert!(
            read(&aside(dir.path(), 1 << 30), laid).is_err(),
            "another process has another key"
        );
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            std::fs::write(path, altered).unwrap();
            assert!(read(&own, laid).is_err(), "byte {at}");
        }
        std::fs::copy(&files(dir.path())[1], path).unwrap();
        assert!(read(&own, Laid { number: laid.number, ..other }).is_err(), "another's bytes");
    }

    #[test]
    fn no_more_is_laid_aside_than_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let aside = aside(dir.path(), 1000);
        let laid = aside.lay(None, &[1; 100]).unwrap();
        let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(1000).collect();
        assert!(matches!(aside.lay(Some(laid), &noise), Err(AsideError::Limit(1000))));
        assert_eq!(read(&aside, laid).unwrap(), [1; 100]);
    }
}
