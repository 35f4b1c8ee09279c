//! The one door to fsync, rename and preallocation.
//!
//! **Invariant (I7):** what a function here calls durable has had its file and its directory synced.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, OFlag, PosixFadviseAdvice};
#[cfg(feature = "fuzz")]
use nix::sys::memfd::{MFdFlags, memfd_create};

pub(crate) mod device;
pub mod work;

/// Syncs a file's bytes and what is needed to read them back (its length).
///
/// # Errors
///
/// The device refused. After that nothing written since the last success may be counted on (I6), and
/// a second try proves nothing: the kernel may have dropped the pages.
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub fn sync(file: &File) -> io::Result<()> {
    file.sync_data()
}

/// Syncs a directory, so that the names in it survive a power cut.
///
/// # Errors
///
/// As [`sync`].
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes a whole small file durably and atomically, readable by its owner only.
///
/// # Errors
///
/// The old file, if any, is still whole.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_prepared(path, bytes, |_| Ok(()))
}

/// As [`write_durably`], with the owner of the folder that it is laid into.
///
/// # Errors
///
/// As [`write_durably`]; or the folder is another one's, and we are not root.
pub fn write_durably_for_owner(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = fs::metadata(parent(path))?;
    write_prepared(path, bytes, |file| {
        let own = file.metadata()?;
        match (own.uid(), own.gid()) == (folder.uid(), folder.gid()) {
            true => Ok(()),
            false => fchown(file, Some(folder.uid()), Some(folder.gid())),
        }
    })
}

#[expect(clippy::disallowed_methods, reason = "this is the door")]
fn write_prepared(
    path: &Path,
    bytes: &[u8],
    prepare: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let partial = path.with_extension("partial");
    // One that was left is not written into: somebody else may have laid it, or a link.
    match fs::remove_file(&partial) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
    let written = prepare(&file)
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        fs::remove_file(&partial).ok();
    }
    written?;
    sync_dir(parent(path))
}

/// Makes a file that must not exist yet, readable by its owner only, its name durable.
///
/// # Errors
///
/// `AlreadyExists`, or the device refused.
pub fn create(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    sync_dir(parent(path))?;
    Ok(file)
}

/// A file that lies in memory, readable by its owner only, and the path by which it is opened again
/// while it is kept. For fuzzing what reads files.
///
/// # Errors
///
/// The system has no room for it.
#[cfg(feature = "fuzz")]
pub fn in_memory(bytes: &[u8]) -> io::Result<(File, PathBuf)> {
    use std::os::fd::AsRawFd;
    let mut file = File::from(memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC)?);
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    Ok((file, path))
}

/// Opens a file to be read; a link is not followed.
///
/// # Errors
///
/// It is not there, or a link.
pub fn open_no_link(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)
}

/// Renames durably within one directory.
///
/// # Errors
///
/// The device refused; either name may be in force.
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_dir(parent(to))
}

/// Removes a file if it is there. Not synced: a name that comes back after a power cut is removed again.
///
/// # Errors
///
/// Anything but its absence.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a directory and its parents with mode 0700, their names durable.
///
/// # Errors
///
/// The device refused.
pub fn create_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = parent(path);
    create_dir(above)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    sync_dir(above)
}

/// Reserves room on the device for the first `bytes` of `file`, without changing its length.
///
/// # Errors
///
/// `StorageFull`; or the file system cannot, which callers may ignore.
pub fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    let length = i64::try_from(bytes).map_err(io::Error::other)?;
    nix::fcntl::fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length)
        .map_err(io::Error::from)
}

/// Drops what the system keeps of `file` in memory, so that reading it asks the device. What was not
/// synced yet stays.
///
/// # Errors
///
/// It is no file.
pub fn forget(file: &File) -> io::Result<()> {
    nix::fcntl::posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .map_err(io::Error::from)
}

/// Bytes that an unprivileged process can still write beside `path`.
///
/// # Errors
///
/// The path is not there.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Holds a folder for this process alone, until dropped.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

impl Hold {
    /// Takes `dir`, or `None` if another process has it and keeps it for [`LET_GO_TIME`]. Blocks that long.
    ///
    /// # Errors
    ///
    /// The lock file cannot be made.
    pub fn take(dir: &Path) -> io::Result<Option<Self>> {
        Self::take_within(dir, LET_GO_TIME)
    }

    fn take_within(dir: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let path = dir.join("lock");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut looks = patience.as_millis() / LOOK_EVERY.as_millis();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Some(Self(lock))),
                Err((_, Errno::EWOULDBLOCK)) if looks == 0 => return Ok(None),
                Err((refused, Errno::EWOULDBLOCK)) => file = refused,
                Err((_, errno)) => return Err(errno.into()),
            }
            looks -= 1;
            thread::sleep(LOOK_EVERY);
        }
    }
}

/// The kernel can let go of a killed process' files a little after the process is gone: the last of them is
/// closed by a worker of its own (`delayed_fput` in <https://github.com/torvalds/linux/blob/v6.12/fs/file_table.c>).
const LET_GO_TIME: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Whether others than the owner can read a secret file.
///
/// # Errors
///
/// The file is not there.
pub fn readable_by_others(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o077 != 0)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        Some(_) => Path::new("."),
        None => Path::new("/"),
    }
}

/// Files in `dir` whose names end in `.extension`, sorted by name.
///
/// # Errors
///
/// The folder cannot be listed.
pub fn list(dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![];
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|known| known == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_beside_a_file_is_not_written_into() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("order.json"), dir.path().join("victim"));
        fs::write(&victim, "as it was").unwrap();
        std::os::unix::fs::symlink(&victim, path.with_extension("partial")).unwrap();
        write_durably_for_owner(&path, b"new").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "as it was");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn a_link_is_not_followed_where_a_file_of_ours_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&path, "ours").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(io::read_to_string(open_no_link(&path).unwrap()).unwrap(), "ours");
        assert!(open_no_link(&link).is_err());
    }

    #[test]
    fn a_file_written_durably_is_private_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/key");
        create_dir(parent(&path)).unwrap();
        write_durably(&path, b"one").unwrap();
        write_durably(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(!readable_by_others(&path).unwrap());
        assert_eq!(list(parent(&path), "partial").unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_held_folder_is_refused_to_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let hold = Hold::take(dir.path()).unwrap();
        assert!(hold.is_some());
        assert!(Hold::take_within(dir.path(), Duration::from_millis(50)).unwrap().is_none());
        drop(hold);
        assert!(Hold::take(dir.path()).unwrap().is_some());
    }

    #[test]
    fn a_folder_that_is_let_go_late_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let hold = Hold::take(dir.path()).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(100));
                drop(hold);
            });
            assert!(Hold::take(dir.path()).unwrap().is_some());
        });
    }
}
