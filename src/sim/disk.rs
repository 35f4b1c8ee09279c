//! A disk in memory: what is written and not synced may be torn, lost or kept in any order.
//!
//! A file has its bytes as the process sees them and those that are surely on the medium; between the two
//! lie the changes since the last sync. A SIGKILL leaves the former, a power cut makes new ones of the
//! latter and of whatever changes chance keeps, sector by sector. After a sync that failed the changes look
//! as they did, and no later sync writes them (I6). Names are as durable as their folder's last sync.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use super::{chronicle::Chronicle, fuse::Fuse, lock, planted::Planted};
use crate::disk::device::{Device, DeviceFile, ReadAt};

/// The disk. Clones are one.
#[derive(Clone)]
pub(crate) struct ModelDisk(Arc<Mutex<State>>);

struct State {
    name: &'static str,
    chronicle: Chronicle,
    planted: Option<Planted>,
    random: fastrand::Rng,
    fuse: Fuse,
    names: BTreeMap<PathBuf, u64>,
    /// As they are on the medium.
    safe_names: BTreeMap<PathBuf, u64>,
    files: BTreeMap<u64, File>,
    made: u64,
    /// Bytes that can still be written; `None`: plenty.
    room: Option<u64>,
    reserved: u64,
    /// The next sync fails, once.
    sync_fails: bool,
    /// What rots, and what has.
    rots: fastrand::Rng,
    rotten: BTreeSet<PathBuf>,
}

#[derive(Clone, Default)]
struct File {
    bytes: Vec<u8>,
    safe: Vec<u8>,
    changes: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Cut(usize),
}

struct Handle {
    disk: ModelDisk,
    file: u64,
    is_reserve: bool,
}

impl ModelDisk {
    /// An empty disk.
    pub(crate) fn new(
        name: &'static str,
        chronicle: Chronicle,
        planted: Option<Planted>,
        seed: u64,
    ) -> Self {
        Self(Arc::new(Mutex::new(State {
            name,
            chronicle,
            planted,
            random: fastrand::Rng::with_seed(seed),
            fuse: Fuse::default(),
            names: BTreeMap::new(),
            safe_names: BTreeMap::new(),
            files: BTreeMap::new(),
            made: 0,
            room: None,
            reserved: 0,
            sync_fails: false,
            rots: fastrand::Rng::with_seed(!seed),
            rotten: BTreeSet::new(),
        })))
    }

    /// A new life writes from here on.
    pub(crate) fn lit(&self, fuse: Fuse) {
        lock(&self.0).fuse = fuse;
    }

    /// The power fails, and comes back.
    pub(crate) fn cut_power(&self) {
        let state = &mut *lock(&self.0);
        let unsettled: Vec<_> =
            state.names.keys().chain(state.safe_names.keys()).cloned().collect();
        for name in unsettled {
            let (now, safe) =
                (state.names.get(&name).copied(), state.safe_names.get(&name).copied());
            if now == safe {
                continue;
            }
            match if state.random.bool() { now } else { safe } {
                Some(file) => state.names.insert(name, file),
                None => state.names.remove(&name),
            };
        }
        let (mut kept, mut lost) = (0, 0);
        for file in state.files.values_mut() {
            for change in std::mem::take(&mut file.changes) {
                if state.random.u8(..4) == 0 {
                    lost += 1;
                    continue;
                }
                kept += 1;
                let torn = state.random.u8(..3) == 0;
                change.apply(&mut file.safe, |_| torn && state.random.bool());
            }
            file.bytes = file.safe.clone();
        }
        state.safe_names = state.names.clone();
        state.sync_fails = false;
        state.tidy();
        state.note(format_args!("power cut: {kept} writes kept, {lost} lost"));
    }

    /// Only so many bytes can be written from now on.
    pub(crate) fn limit(&self, room: Option<u64>) {
        let state = &mut *lock(&self.0);
        state.room = room;
        state.note(format_args!("room {room:?}"));
    }

    /// The next sync fails, once.
    pub(crate) fn break_sync(&self) {
        lock(&self.0).sync_fails = true;
    }

    /// Now and then a file of a folder rots: a byte of it is another one, or it is gone.
    pub(crate) fn rot(&self, dir: &Path) {
        let state = &mut *lock(&self.0);
        let within = state.names.keys().filter(|name| name.parent() == Some(dir));
        let names: Vec<_> = within.cloned().collect();
        if names.is_empty() || state.rots.u8(..ROTS_ONE_IN) > 0 {
            return;
        }
        let name = names[state.rots.usize(..names.len())].clone();
        let file = state.names.get(&name).and_then(|file| state.files.get_mut(file));
        let length = file.as_ref().map_or(0, |file| file.bytes.len().min(file.safe.len()));
        match file.filter(|_| length > 0 && state.rots.bool()) {
            Some(file) => {
                let at = state.rots.usize(..length);
                file.bytes[at] ^= 1;
                file.safe[at] ^= 1;
            }
            None => {
                state.names.remove(&name);
                state.safe_names.remove(&name);
            }
        }
        state.note(format_args!("{} rots", name.display()));
        state.rotten.insert(name);
    }

    /// Whether what is wrong with a file is no fault of those who wrote it.
    pub(crate) fn is_rotten(&self, path: &Path) -> bool {
        lock(&self.0).rotten.contains(path)
    }

    /// All is well from here on.
    pub(crate) fn heal(&self) {
        let state = &mut *lock(&self.0);
        (state.room, state.sync_fails) = (None, false);
    }

    /// Files that stand in a folder.
    pub(crate) fn count(&self, dir: &Path) -> usize {
        lock(&self.0).names.keys().filter(|name| name.parent() == Some(dir)).count()
    }

    fn effect<T>(&self, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let state = &mut *lock(&self.0);
        if state.fuse.burn() { act(state) } else { Err(io::Error::other("the box is dead")) }
    }

    fn handle(&self, file: u64, path: &Path) -> Handle {
        let is_reserve = path.file_name().is_some_and(|name| name == "reserve");
        Handle { disk: self.clone(), file, is_reserve }
    }
}

impl State {
    fn note(&self, line: std::fmt::Arguments<'_>) {
        self.chronicle.note(format_args!("{} disk: {line}", self.name));
    }

    fn new_file(&mut self, path: &Path) -> io::Result<u64> {
        if self.names.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.made += 1;
        self.rotten.remove(path);
        self.files.insert(self.made, File::default());
        self.names.insert(path.to_owned(), self.made);
        Ok(self.made)
    }

    fn settle(&mut self, dir: &Path) {
        let within = |name: &PathBuf| name.parent() == Some(dir);
        self.safe_names.retain(|name, _| !within(name));
        let now = self.names.iter().filter(|(name, _)| within(name));
        self.safe_names.extend(now.map(|(name, file)| (name.clone(), *file)));
        self.tidy();
    }

    /// Forgets files without a name.
    fn tidy(&mut self) {
        let (names, safe) = (&self.names, &self.safe_names);
        if self.files.len() > names.len() + 8 {
            let named: BTreeSet<u64> = names.values().chain(safe.values()).copied().collect();
            self.files.retain(|file, _| named.contains(file));
        }
    }

    fn known(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| ErrorKind::NotFound.into())
    }
}

impl Change {
    /// Changes `bytes`; `skip` says which sectors are left out.
    fn apply(&self, bytes: &mut Vec<u8>, mut skip: impl FnMut(usize) -> bool) {
        match self {
            Self::Cut(length) => bytes.truncate(*length),
            Self::Write { offset, bytes: new } => {
                for (number, sector) in new.chunks(SECTOR_BYTES).enumerate() {
                    let from = offset + number * SECTOR_BYTES;
                    if bytes.len() < from + sector.len() {
                        bytes.resize(from + sector.len(), 0);
                    }
                    if !skip(number) {
                        bytes[from..from + sector.len()].copy_from_slice(sector);
                    }
                }
            }
        }
    }
}

impl std::fmt::Debug for ModelDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelDisk").finish_non_exhaustive()
    }
}

impl Device for ModelDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DeviceFile>> {
        let dir = path.parent().unwrap_or(path).to_owned();
        let file = self.effect(|state| {
            let file = state.new_file(path)?;
            state.settle(&dir);
            Ok(file)
        })?;
        Ok(Box::new(self.handle(file, path)))
    }

    fn make(&self, path: &Path) -> io::Result<Box<dyn DeviceFile>> {
        let file = self.effect(|state| state.new_file(path))?;
        Ok(Box::new(self.handle(file, path)))
    }

    fn settle(&self, dir: &Path) -> io::Result<()> {
        self.effect(|state| {
            if state.planted != Some(Planted::SpoolUnsynced) {
                state.settle(dir);
            }
            Ok(())
        })
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DeviceFile>> {
        let file = lock(&self.0).known(path)?;
        Ok(Box::new(self.handle(file, path)))
    }

    fn read(&self, path: &Path) -> io::Result<Box<dyn ReadAt>> {
        let file = lock(&self.0).known(path)?;
        Ok(Box::new(self.handle(file, path)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let dir = to.parent().unwrap_or(to).to_owned();
        self.effect(|state| {
            let file = state.known(from)?;
            state.names.remove(from);
            state.names.insert(to.to_owned(), file);
            state.settle(&dir);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.effect(|state| {
            let Some(file) = state.names.remove(path) else { return Ok(()) };
            let length = state.files.get(&file).map_or(0, |file| file.bytes.len() as u64);
            let reserve = path.file_name().is_some_and(|name| name == "reserve");
            let freed = if reserve { std::mem::take(&mut state.reserved) } else { length };
            if let Some(room) = &mut state.room {
                *room += freed;
            }
            Ok(())
        })
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(lock(&self.0).room.unwrap_or(PLENTY_BYTES))
    }

    fn list(&self, dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
        let state = lock(&self.0);
        let wanted = |name: &&PathBuf| {
            name.parent() == Some(dir) && name.extension().is_some_and(|known| known == extension)
        };
        Ok(state.names.keys().filter(wanted).cloned().collect())
    }

    fn exists(&self, path: &Path) -> bool {
        lock(&self.0).names.contains_key(path)
    }
}

impl Handle {
    fn file<T>(
        &self,
        act: impl FnOnce(&mut File, &mut Option<u64>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.disk.effect(|state| {
            let file = state.files.get_mut(&self.file).ok_or(ErrorKind::NotFound)?;
            act(file, &mut state.room)
        })
    }
}

impl DeviceFile for Handle {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.file(|file, room| {
            let mut length = bytes.len();
            if let Some(room) = room {
                let grown = (offset + length).saturating_sub(file.bytes.len()) as u64;
                if grown > *room {
                    let beyond = usize::try_from(grown - *room).unwrap_or(usize::MAX);
                    length = length.saturating_sub(beyond);
                    if length == 0 {
                        return Err(ErrorKind::StorageFull.into());
                    }
                }
                *room -= grown.min(*room);
            }
            let change = Change::Write { offset, bytes: bytes[..length].to_vec() };
            change.apply(&mut file.bytes, |_| false);
            file.changes.push(change);
            Ok(length)
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.effect(|state| {
            let fails = std::mem::take(&mut state.sync_fails);
            let spool = state.planted == Some(Planted::SpoolUnsynced)
                && state.names.iter().any(|(name, file)| {
                    *file == self.file && name.extension().is_some_and(|end| end == "spool")
                });
            let file = state.files.get_mut(&self.file).ok_or(ErrorKind::NotFound)?;
            if spool {
                return Ok(());
            }
            let changes = std::mem::take(&mut file.changes);
            if !fails {
                changes.iter().for_each(|change| change.apply(&mut file.safe, |_| false));
                return Ok(());
            }
            let lost = changes.len();
            state.note(format_args!("a sync fails, {lost} writes are lost"));
            match state.planted {
                Some(Planted::SyncIgnored) => Ok(()),
                _ => Err(io::Error::other("the disk is broken")),
            }
        })
    }

    fn cut(&self, bytes: u64) -> io::Result<()> {
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        self.file(|file, room| {
            if let Some(room) = room {
                *room += file.bytes.len().saturating_sub(length) as u64;
            }
            file.bytes.truncate(length);
            file.changes.push(Change::Cut(length));
            Ok(())
        })
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.disk.effect(|state| {
            let is_reserve = self.is_reserve;
            match &mut state.room {
                Some(room) if *room < bytes => return Err(ErrorKind::StorageFull.into()),
                Some(room) if is_reserve => *room -= bytes,
                _ => {}
            }
            if is_reserve {
                state.reserved = bytes;
            }
            Ok(())
        })
    }
}

impl ReadAt for Handle {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let state = lock(&self.disk.0);
        let file = state.files.get(&self.file).ok_or(ErrorKind::NotFound)?;
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let found = file.bytes.get(offset..offset.saturating_add(bytes.len()));
        bytes.copy_from_slice(found.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let state = lock(&self.disk.0);
        let file = state.files.get(&self.file).ok_or(ErrorKind::NotFound)?;
        Ok(file.bytes.len() as u64)
    }

    fn forget(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Of the chances to rot.
const ROTS_ONE_IN: u8 = 6;
const SECTOR_BYTES: usize = 512;
const PLENTY_BYTES: u64 = 1 << 40;
