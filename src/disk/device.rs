//! Files behind a seam: tests break writes, a simulation has a disk of its own.
//!
//! **Invariant (I7):** a name is durable once [`Device::create`] or [`Device::rename`] answered; that of a
//! file from [`Device::make`] only after [`Device::settle`].

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::disk;

/// Where files are made. What is provided is the machine's own file system.
pub(crate) trait Device: fmt::Debug + Send + Sync {
    /// Makes a file that must not exist yet, its name durable.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DeviceFile>>;

    /// Makes a file that must not exist yet, its name durable after [`Device::settle`].
    fn make(&self, path: &Path) -> io::Result<Box<dyn DeviceFile>> {
        let mut options = fs::OpenOptions::new();
        Ok(Box::new(options.write(true).create_new(true).mode(0o600).open(path)?))
    }

    /// Makes the names in `dir` durable.
    fn settle(&self, dir: &Path) -> io::Result<()> {
        disk::sync_dir(dir)
    }

    /// Opens a file that is there, for reading.
    fn read(&self, path: &Path) -> io::Result<Box<dyn ReadAt>> {
        Ok(Box::new(fs::File::open(path)?))
    }

    /// Files in `dir` whose names end in `.extension`, sorted by name.
    fn list(&self, dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
        disk::list(dir, extension)
    }

    /// Whether a file is there.
    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    /// Opens a file that is there, for writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DeviceFile>>;

    /// Renames durably within one folder.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file if it is there.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Bytes that can still be written in `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// One file.
pub(crate) trait DeviceFile: Send {
    /// Writes some of `bytes`; how many.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Syncs what was written.
    fn sync(&self) -> io::Result<()>;

    /// Cuts the file to `bytes`, and gives back what was reserved behind them.
    fn cut(&self, bytes: u64) -> io::Result<()>;

    /// Reserves room for the first `bytes`.
    fn reserve(&self, bytes: u64) -> io::Result<()>;
}

/// A file that is read.
pub(crate) trait ReadAt: Send {
    /// Fills `bytes` from `offset` on.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Its length.
    fn length(&self) -> io::Result<u64>;

    /// What is read next comes from the device, not from memory.
    fn forget(&self) -> io::Result<()>;
}

/// The machine's own file system.
#[derive(Debug)]
pub(crate) struct FileSystem;

impl Device for FileSystem {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DeviceFile>> {
        Ok(Box::new(disk::create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DeviceFile>> {
        Ok(Box::new(fs::OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        disk::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        disk::remove(path)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        disk::free_bytes(dir)
    }
}

impl DeviceFile for fs::File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        disk::sync(self)
    }

    fn cut(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        disk::reserve(self, bytes)
    }
}

impl ReadAt for fs::File {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn forget(&self) -> io::Result<()> {
        disk::forget(self)
    }
}

/// Writes all of `bytes`.
pub(crate) fn write_all(
    file: &dyn DeviceFile,
    mut bytes: &[u8],
    mut offset: u64,
) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, offset) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether an error says that there is no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

#[cfg(test)]
pub(crate) mod faulty {
    //! A device that does what a test says, and keeps a log of what it was asked.

    use std::{
        cell::Cell,
        collections::BTreeMap,
        path::PathBuf,
        sync::{Arc, Mutex, MutexGuard, PoisonError},
    };

    use super::*;

    /// What happened, in order.
    #[derive(Clone, Debug, Eq, PartialEq)]
    pub(crate) enum Event {
        Write(PathBuf, u64),
        Sync(PathBuf),
    }

    #[derive(Debug, Default)]
    pub(crate) struct Plan {
        /// Bytes that can still be written; more is `StorageFull`.
        pub(crate) room: Option<u64>,
        /// Writes are cut in two.
        pub(crate) short: bool,
        /// This many syncs from now succeed, the one after fails once.
        pub(crate) sync_fails_after: Option<u64>,
        /// Syncs do not answer while this holds.
        pub(crate) hold_syncs: bool,
        reserved: u64,
        pub(crate) events: Vec<Event>,
        /// Bytes of each file that are surely on the disk.
        pub(crate) synced: BTreeMap<PathBuf, u64>,
        lengths: BTreeMap<PathBuf, u64>,
        /// Bytes that were read, but for files that were to come from the device itself.
        pub(crate) read_bytes: u64,
    }

    /// The file system, with faults.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Faulty(Arc<Mutex<Plan>>);

    struct FaultyFile {
        file: Box<dyn DeviceFile>,
        path: PathBuf,
        device: Faulty,
    }

    struct CountedFile {
        file: Box<dyn ReadAt>,
        device: Faulty,
        counted: Cell<bool>,
    }

    impl Faulty {
        pub(crate) fn plan(&self) -> MutexGuard<'_, Plan> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn wrap(&self, file: Box<dyn DeviceFile>, path: &Path) -> Box<dyn DeviceFile> {
            Box::new(FaultyFile { file, path: path.with_extension("log"), device: self.clone() })
        }
    }

    impl Device for Faulty {
        fn create(&self, path: &Path) -> io::Result<Box<dyn DeviceFile>> {
            Ok(self.wrap(FileSystem.create(path)?, path))
        }

        fn make(&self, path: &Path) -> io::Result<Box<dyn DeviceFile>> {
            Ok(self.wrap(FileSystem.make(path)?, path))
        }

        fn read(&self, path: &Path) -> io::Result<Box<dyn ReadAt>> {
            let (file, device) = (FileSystem.read(path)?, self.clone());
            Ok(Box::new(CountedFile { file, device, counted: Cell::new(true) }))
        }

        fn open(&self, path: &Path) -> io::Result<Box<dyn DeviceFile>> {
            let length = fs::metadata(path)?.len();
            self.plan().lengths.insert(path.to_owned(), length);
            Ok(self.wrap(FileSystem.open(path)?, path))
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            FileSystem.rename(from, to)
        }

        fn remove(&self, path: &Path) -> io::Result<()> {
            let bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
            let mut plan = self.plan();
            let freed =
                if path.ends_with("reserve") { std::mem::take(&mut plan.reserved) } else { bytes };
            if let Some(room) = &mut plan.room {
                *room += freed;
            }
            FileSystem.remove(path)
        }

        fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
            let room = self.plan().room;
            room.map_or_else(|| FileSystem.free_bytes(dir), Ok)
        }
    }

    impl ReadAt for CountedFile {
        fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
            if self.counted.get() {
                self.device.plan().read_bytes += bytes.len() as u64;
            }
            self.file.read_exact_at(bytes, offset)
        }

        fn length(&self) -> io::Result<u64> {
            self.file.length()
        }

        /// Only who reads closed segments again wants that: it is beside the work that is counted.
        fn forget(&self) -> io::Result<()> {
            self.counted.set(false);
            self.file.forget()
        }
    }

    impl DeviceFile for FaultyFile {
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
            let mut plan = self.device.plan();
            let mut wanted = if plan.short { bytes.len().div_ceil(2) } else { bytes.len() };
            if let Some(room) = &mut plan.room {
                wanted = wanted.min(usize::try_from(*room).unwrap());
                if wanted == 0 {
                    return Err(ErrorKind::StorageFull.into());
                }
                *room -= wanted as u64;
            }
            let written = self.file.write_at(&bytes[..wanted], offset)?;
            let end = offset + written as u64;
            let length = plan.lengths.entry(self.path.clone()).or_default();
            *length = (*length).max(end);
            plan.events.push(Event::Write(self.path.clone(), end));
            Ok(written)
        }

        fn sync(&self) -> io::Result<()> {
            while self.device.plan().hold_syncs {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            let mut plan = self.device.plan();
            match &mut plan.sync_fails_after {
                Some(0) => {
                    plan.sync_fails_after = None;
                    return Err(io::Error::other("the disk is gone"));
                }
                Some(left) => *left -= 1,
                None => {}
            }
            let length = plan.lengths.get(&self.path).copied().unwrap_or_default();
            plan.synced.insert(self.path.clone(), length);
            plan.events.push(Event::Sync(self.path.clone()));
            Ok(())
        }

        fn cut(&self, bytes: u64) -> io::Result<()> {
            let mut plan = self.device.plan();
            let before = plan.lengths.insert(self.path.clone(), bytes).unwrap_or_default();
            if let Some(room) = &mut plan.room {
                *room += before.saturating_sub(bytes);
            }
            self.file.cut(bytes)
        }

        fn reserve(&self, bytes: u64) -> io::Result<()> {
            let mut plan = self.device.plan();
            let is_reserve = self.path.ends_with("reserve.log");
            match &mut plan.room {
                Some(room) if *room < bytes => return Err(ErrorKind::StorageFull.into()),
                Some(room) if is_reserve => *room -= bytes,
                _ => {}
            }
            if is_reserve {
                plan.reserved = bytes;
            }
            Ok(())
        }
    }
}
