//! Where a cluster can stand: binaries, a user that may run them, a folder that this user can reach, a
//! free port, a password.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Gid, Pid, Uid, User, chown, geteuid},
};

use super::cluster::{ClusterError, POLL, STOP_POLLS, file_error};

/// Finds the folder of a server's programs: the given one, or the one that `LAKEHEAD_POSTGRES` names, or that of
/// the newest PostgreSQL that is installed.
///
/// # Errors
///
/// [`ClusterError::NoBinaries`].
pub fn find_binaries(given: Option<&Path>) -> Result<PathBuf, ClusterError> {
    let named = std::env::var_os(NAMED).map(PathBuf::from);
    match given.map(Path::to_owned).or(named) {
        Some(folder) if is_whole(&folder) => Ok(folder),
        Some(_) => Err(ClusterError::NoBinaries),
        None => find_installed(),
    }
}

/// Finds the folder of the newest PostgreSQL that is installed, with all its clients.
///
/// # Errors
///
/// [`ClusterError::NoBinaries`].
pub fn find_installed() -> Result<PathBuf, ClusterError> {
    let mut found: Vec<(u32, PathBuf)> = vec![];
    for entry in fs::read_dir(DEBIAN).into_iter().flatten().flatten() {
        let major = entry.file_name().to_string_lossy().parse().unwrap_or(0);
        let folder = entry.path().join("bin");
        if major >= MAJOR_MIN && is_whole(&folder) {
            found.push((major, folder));
        }
    }
    if let Some((_, newest)) = found.into_iter().max() {
        return Ok(newest);
    }
    let asked = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output();
    let said = asked.map(|run| run.stdout).unwrap_or_default();
    let folder = PathBuf::from(String::from_utf8_lossy(&said).trim());
    is_whole(&folder).then_some(folder).ok_or(ClusterError::NoBinaries)
}

fn is_whole(folder: &Path) -> bool {
    PROGRAMS.iter().all(|program| folder.join(program).is_file())
}

/// Removes what a cluster left in `dir`, ending a server that still runs there.
///
/// # Errors
///
/// The folder cannot be removed.
pub fn clear(dir: &Path) -> io::Result<()> {
    let home = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let lines = fs::read_to_string(home.join("postmaster.pid")).unwrap_or_default();
    if let Some(pid) = lines.lines().next().and_then(|line| line.trim().parse::<i32>().ok()) {
        let at = || fs::read_link(format!("/proc/{pid}/cwd")).ok();
        if at().as_ref() == Some(&home) {
            kill(Pid::from_raw(pid), Signal::SIGQUIT).ok();
            for _ in 0..STOP_POLLS {
                if at().is_none() {
                    break;
                }
                thread::sleep(POLL);
            }
        }
    }
    if dir.is_symlink() {
        let aside = home.starts_with(ASIDE)
            && home.file_name().is_some_and(|name| name.to_string_lossy().starts_with(ASIDE_NAME));
        if aside && home.is_dir() {
            fs::remove_dir_all(&home)?;
        }
        return fs::remove_file(dir);
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A port that nobody listens on, outside the range from which the system takes ports for outgoing
/// connections, so that it is still ours after a restart.
///
/// # Errors
///
/// None was free.
pub fn free_port() -> Result<u16, ClusterError> {
    let mut last = None;
    for _ in 0..PORT_ATTEMPTS {
        let port = fastrand::u16(PORTS);
        match std::net::TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(port),
            Err(why) => last = Some(why),
        }
    }
    let why = last.unwrap_or_else(|| io::Error::other("no port tried"));
    Err(file_error("find a free port on", Path::new("127.0.0.1"), why))
}

/// 32 hex digits that nobody can guess.
///
/// # Errors
///
/// The system has no random numbers.
pub fn random_hex() -> Result<String, ClusterError> {
    random_key().map(|key| hex::encode(&key[..16]))
}

/// 32 bytes that nobody can guess.
///
/// # Errors
///
/// The system has no random numbers.
pub fn random_key() -> Result<[u8; 32], ClusterError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 32];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|why| file_error("read", path, why))?;
    Ok(bytes)
}

/// The user that runs the server: ourselves, or if we are root somebody else.
pub(super) fn other_user() -> Result<Option<(Uid, Gid)>, ClusterError> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let users = ["postgres", "nobody"].into_iter();
    let mut known = users.filter_map(|name| User::from_name(name).ok().flatten());
    known.next().map(|user| Some((user.uid, user.gid))).ok_or(ClusterError::NoUser)
}

/// Makes the cluster's folder where its owner can reach it: `dir`, or if a folder above is closed to
/// the owner, one in /var/tmp that `dir` links to.
pub(super) fn make_home(dir: &Path, owner: Option<(Uid, Gid)>) -> Result<PathBuf, ClusterError> {
    fs::create_dir_all(dir).map_err(|why| file_error("make", dir, why))?;
    give(dir, owner, 0o700)?;
    let home = fs::canonicalize(dir).map_err(|why| file_error("find", dir, why))?;
    let Some((uid, gid)) = owner else { return Ok(home) };
    let mut probe = Command::new("test");
    probe.arg("-w").arg(&home).current_dir("/").uid(uid.as_raw()).gid(gid.as_raw());
    if probe.status().is_ok_and(|status| status.success()) {
        return Ok(home);
    }
    let aside = Path::new(ASIDE).join(format!("{ASIDE_NAME}{}", random_hex()?));
    fs::create_dir(&aside).map_err(|why| file_error("make", &aside, why))?;
    give(&aside, owner, 0o700)?;
    fs::remove_dir(dir).map_err(|why| file_error("remove", dir, why))?;
    std::os::unix::fs::symlink(&aside, dir).map_err(|why| file_error("link", dir, why))?;
    Ok(aside)
}

/// Gives a file or folder to the cluster's owner, for nobody else.
pub(super) fn give(path: &Path, owner: Option<(Uid, Gid)>, mode: u32) -> Result<(), ClusterError> {
    let given =
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).and_then(|()| match owner {
            Some((uid, gid)) => chown(path, Some(uid), Some(gid)).map_err(io::Error::from),
            None => Ok(()),
        });
    given.map_err(|why| file_error("give away", path, why))
}

const MAJOR_MIN: u32 = 12;
const DEBIAN: &str = "/usr/lib/postgresql";
/// The variable that names a folder of server programs, for who tests other versions.
const NAMED: &str = "LAKEHEAD_POSTGRES";
const PROGRAMS: [&str; 2] = ["initdb", "postgres"];
const ASIDE: &str = "/var/tmp";
const ASIDE_NAME: &str = "lakehead-cluster-";
const PORTS: std::ops::Range<u16> = 15_000..31_000;
/// Ports tried before giving up.
pub(super) const PORT_ATTEMPTS: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binaries_that_are_not_there_are_missed_by_name() {
        let error = find_binaries(Some(Path::new("/nonexistent"))).unwrap_err();
        assert!(error.to_string().contains("apt-get install postgresql"));
    }
}
