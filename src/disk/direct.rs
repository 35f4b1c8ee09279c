//! Direct I/O (`O_DIRECT`), for files of which much is written once and read once.
//!
//! The system then keeps none of their bytes in memory: they are not copied, their pages neither found
//! nor written back, and no others are pushed out. Where the file system has it not, it is done as usual.
//!
//! **Invariant:** what goes directly begins in the file and in memory at a multiple of [`BLOCK_BYTES`],
//! and so does its end.

use std::{
    io::{self, ErrorKind},
    ops::{Deref, DerefMut},
};

use super::device::{DeviceFile, ReadAt, write_all};

/// What devices and file systems ask for at most.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// `bytes` without what stands in a block that they do not fill.
pub(crate) fn whole_blocks(bytes: usize) -> usize {
    bytes - bytes % BLOCK_BYTES
}

/// Bytes that begin at a multiple of [`BLOCK_BYTES`] in memory.
#[derive(Default)]
pub(crate) struct Blocks {
    /// Never grown in place, which could move it.
    memory: Box<[u8]>,
    from: usize,
    length: usize,
}

impl Blocks {
    /// Room for `more` bytes behind those that are there.
    fn reserve(&mut self, more: usize) {
        let needed = self.length + more;
        if needed <= self.capacity() {
            return;
        }
        let room = needed.max(2 * self.capacity()).next_multiple_of(BLOCK_BYTES);
        let mut memory = vec![0; room + BLOCK_BYTES].into_boxed_slice();
        let from = memory.as_ptr().align_offset(BLOCK_BYTES);
        memory[from..from + self.length].copy_from_slice(self);
        (self.memory, self.from) = (memory, from);
    }

    /// Adds `bytes`.
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.grow(bytes.len()).copy_from_slice(bytes);
    }

    /// Adds so many bytes, whatever stands in them, to be filled.
    pub(crate) fn grow(&mut self, more: usize) -> &mut [u8] {
        self.reserve(more);
        let end = self.from + self.length;
        self.length += more;
        &mut self.memory[end..end + more]
    }

    /// Takes the first `bytes` away.
    pub(crate) fn consume(&mut self, bytes: usize) {
        let end = self.from + self.length;
        self.memory.copy_within(self.from + bytes..end, self.from);
        self.length -= bytes;
    }

    /// `length` bytes, whatever stands in them.
    pub(crate) fn sized(&mut self, length: usize) -> &mut [u8] {
        self.reserve(length.saturating_sub(self.length));
        self.length = length;
        self
    }

    /// Bytes of memory.
    pub(crate) fn memory(&self) -> usize {
        self.memory.len()
    }

    fn capacity(&self) -> usize {
        self.memory.len().saturating_sub(BLOCK_BYTES)
    }
}

impl Deref for Blocks {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.from..self.from + self.length]
    }
}

impl DerefMut for Blocks {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.from + self.length]
    }
}

/// Writes all of `blocks`, whole ones, at a multiple of their size: directly, if so it was told, until it refuses.
pub(crate) fn write_blocks(file: &dyn DeviceFile, blocks: &[u8], offset: u64) -> io::Result<()> {
    match write_all(file, blocks, offset) {
        Err(why) if why.kind() == ErrorKind::InvalidInput => {
            file.direct(false);
            write_all(file, blocks, offset)
        }
        written => written,
    }
}

/// Reads `bytes` from `offset` on, and into `into` what stands around them in their blocks: directly, if so it was
/// told, until it refuses.
pub(crate) fn read_around<'a>(
    file: &dyn ReadAt,
    into: &'a mut Blocks,
    offset: u64,
    bytes: usize,
) -> io::Result<&'a mut [u8]> {
    let before = usize::try_from(offset % BLOCK_BYTES as u64).expect("less than a block");
    let room = into.sized((before + bytes).next_multiple_of(BLOCK_BYTES));
    let (offset, wanted) = (offset - before as u64, before + bytes);
    match fill(file, room, offset, wanted) {
        Err(why) if why.kind() == ErrorKind::InvalidInput => {
            file.direct(false);
            fill(file, room, offset, wanted)?;
        }
        filled => filled?,
    }
    Ok(&mut room[before..wanted])
}

/// Reads until `wanted` bytes of `room` are there: in a file's last block there may be no more.
fn fill(file: &dyn ReadAt, room: &mut [u8], offset: u64, wanted: usize) -> io::Result<()> {
    let mut filled = 0;
    while filled < wanted {
        match file.read_at(&mut room[filled..], offset + filled as u64) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(why) if why.kind() == ErrorKind::Interrupted => {}
            Err(why) => return Err(why),
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod strict {
    //! The file system, as one that takes direct I/O by its rules, or only says that it does.

    use std::{
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        },
    };

    use super::*;
    use crate::disk::device::{Device, FileSystem};

    #[derive(Clone, Debug, Default)]
    pub(crate) struct Strict {
        /// Whatever goes directly is refused.
        pub(crate) refuses: bool,
        pub(crate) counts: Arc<Counts>,
    }

    #[derive(Debug, Default)]
    pub(crate) struct Counts {
        pub(crate) written: AtomicU64,
        pub(crate) read: AtomicU64,
        pub(crate) writes: AtomicU64,
        pub(crate) asked: AtomicU64,
        pub(crate) refused: AtomicU64,
    }

    struct Watched<F> {
        file: F,
        device: Strict,
        is_direct: AtomicBool,
    }

    impl Strict {
        fn watch<F>(&self, file: F) -> Watched<F> {
            Watched { file, device: self.clone(), is_direct: false.into() }
        }
    }

    impl<F> Watched<F> {
        fn ask(&self, on: bool) {
            self.device.counts.asked.fetch_add(u64::from(on), Relaxed);
            self.is_direct.store(on, Relaxed);
        }

        /// Of what goes directly, the sums.
        fn check(&self, bytes: &[u8], offset: u64) -> io::Result<bool> {
            if !self.is_direct.load(Relaxed) {
                return Ok(false);
            }
            let place = usize::try_from(offset).unwrap();
            let at_edges = [place, bytes.len(), bytes.as_ptr().addr()];
            if self.device.refuses || at_edges.iter().any(|number| number % BLOCK_BYTES != 0) {
                self.device.counts.refused.fetch_add(1, Relaxed);
                return Err(ErrorKind::InvalidInput.into());
            }
            Ok(true)
        }
    }

    impl Device for Strict {
        fn create(&self, path: &Path) -> io::Result<Box<dyn DeviceFile>> {
            FileSystem.create(path)
        }

        fn make(&self, path: &Path) -> io::Result<Box<dyn DeviceFile>> {
            Ok(Box::new(self.watch(FileSystem.make(path)?)))
        }

        fn read(&self, path: &Path) -> io::Result<Box<dyn ReadAt>> {
            Ok(Box::new(self.watch(FileSystem.read(path)?)))
        }

        fn open(&self, path: &Path) -> io::Result<Box<dyn DeviceFile>> {
            FileSystem.open(path)
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            FileSystem.rename(from, to)
        }

        fn remove(&self, path: &Path) -> io::Result<()> {
            FileSystem.remove(path)
        }

        fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
            FileSystem.free_bytes(dir)
        }
    }

    impl DeviceFile for Watched<Box<dyn DeviceFile>> {
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
            let counts = &self.device.counts;
            counts.writes.fetch_add(1, Relaxed);
            if self.check(bytes, offset)? {
                counts.written.fetch_add(bytes.len() as u64, Relaxed);
            }
            self.file.write_at(bytes, offset)
        }

        fn sync(&self) -> io::Result<()> {
            self.file.sync()
        }

        fn cut(&self, bytes: u64) -> io::Result<()> {
            self.file.cut(bytes)
        }

        fn reserve(&self, bytes: u64) -> io::Result<()> {
            self.file.reserve(bytes)
        }

        fn direct(&self, on: bool) {
            self.ask(on);
        }
    }

    impl ReadAt for Watched<Box<dyn ReadAt>> {
        fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
            if self.check(bytes, offset)? {
                self.device.counts.read.fetch_add(bytes.len() as u64, Relaxed);
            }
            // As after a signal.
            let some = whole_blocks(bytes.len() / 2).max(BLOCK_BYTES).min(bytes.len());
            self.file.read_at(&mut bytes[..some], offset)
        }

        fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
            self.file.read_exact_at(bytes, offset)
        }

        fn length(&self) -> io::Result<u64> {
            self.file.length()
        }

        fn forget(&self) -> io::Result<()> {
            self.file.forget()
        }

        fn direct(&self, on: bool) {
            self.ask(on);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::device::{Device, FileSystem};

    #[derive(Clone, Debug)]
    enum Act {
        Extend(Vec<u8>),
        Consume(prop::sample::Index),
        Sized(usize),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            3 => (any::<u8>(), 0_usize..20_000).prop_map(|(of, length)| Act::Extend(vec![of; length])),
            1 => any::<prop::sample::Index>().prop_map(Act::Consume),
            1 => (0_usize..20_000).prop_map(Act::Sized),
        ];
        prop::collection::vec(act, 0..20)
    }

    proptest! {
        #[test]
        fn blocks_are_bytes_that_begin_at_an_edge(acts in acts()) {
            let (mut blocks, mut model) = (Blocks::default(), vec![]);
            for act in acts {
                match act {
                    Act::Extend(bytes) => {
                        blocks.extend(&bytes);
                        model.extend(bytes);
                    }
                    Act::Consume(of) if !model.is_empty() => {
                        let taken = of.index(model.len() + 1);
                        blocks.consume(taken);
                        model.drain(..taken);
                    }
                    Act::Consume(_) => {}
                    Act::Sized(length) => {
                        let known = model.len().min(length);
                        prop_assert_eq!(&blocks.sized(length)[..known], &model[..known]);
                        model = blocks.to_vec();
                    }
                }
                prop_assert_eq!(&*blocks, &*model);
                prop_assert!(model.is_empty() || blocks.as_ptr().addr() % BLOCK_BYTES == 0);
            }
        }
    }

    /// As usual, where the folder's file system has no direct I/O.
    #[test]
    fn what_goes_directly_is_what_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = FileSystem.make(&path).unwrap();
        file.direct(true);
        let mut blocks = Blocks::default();
        blocks.extend(&(0..20_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        let whole = whole_blocks(blocks.len());
        write_blocks(&*file, &blocks[..whole], 0).unwrap();
        file.direct(false);
        write_all(&*file, &blocks[whole..], whole as u64).unwrap();
        drop(file);

        let file = FileSystem.read(&path).unwrap();
        file.direct(true);
        for range in [0..1, 4095..4097, 5..80_000, 79_999..80_000, 0..80_000] {
            let mut into = Blocks::default();
            let read = read_around(&*file, &mut into, range.start as u64, range.len());
            assert_eq!(read.unwrap(), &blocks[range]);
        }
        let mut into = Blocks::default();
        let beyond = read_around(&*file, &mut into, 79_999, 2);
        assert_eq!(beyond.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
