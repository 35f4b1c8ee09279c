//! Secrets: values that cannot be printed and are wiped when dropped, and the files that hold them,
//! which are refused when others can read them.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
};

use aws_lc_rs::rand;
use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::{ConfigError, Environment};
use crate::disk;

/// Bytes that stand in no log, metric or message.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for the one who uses them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Reads a secret file, without the newline at its end.
///
/// # Errors
///
/// It cannot be read, is empty or unreasonably long, or others than its owner can read it.
pub fn load_secret(path: &Path) -> Result<Secret, ConfigError> {
    load_guarded(path, &Environment::read())
}

/// Reads a file with a key of 32 bytes in base64. The secret is the 32 bytes.
///
/// # Errors
///
/// As [`load_secret`]; or it holds something else.
pub fn load_key32(path: &Path) -> Result<Secret, ConfigError> {
    let text = load_secret(path)?;
    let bytes = STANDARD.decode(text.expose()).map(Zeroizing::new);
    match bytes {
        Ok(bytes) if bytes.len() == KEY_BYTES => Ok(Secret::new(bytes.to_vec())),
        Ok(bytes) => {
            let what = format!("holds a key of {} bytes instead of {KEY_BYTES}", bytes.len());
            Err(ConfigError::secret(path, what, KEY_REMEDY))
        }
        Err(_) => Err(ConfigError::secret(path, "is not base64", KEY_REMEDY)),
    }
}

/// Makes a file with a fresh random key of 32 bytes in base64, mode 0600, durable, and gives the key.
///
/// # Errors
///
/// The file exists already (it is left as it is), or cannot be written. After a failure there may be
/// an unfinished file of that name: it was never used for anything.
pub fn make_key32(path: &Path) -> Result<Secret, ConfigError> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    rand::fill(bytes.as_mut()).map_err(|_| {
        ConfigError::secret(path, "the system gives no random bytes", "look at the kernel's log")
    })?;
    let mut text = Zeroizing::new(STANDARD.encode(bytes.as_ref()));
    text.push('\n');
    write_new(path, text.as_bytes()).map_err(|why| {
        let remedy = match why.kind() {
            io::ErrorKind::AlreadyExists => "a key is never overwritten: move the file away first",
            _ => "make its folder writable for the user that runs lakehead",
        };
        ConfigError::secret(path, format!("cannot be made: {why}"), remedy)
    })?;
    Ok(Secret::new(bytes.to_vec()))
}

/// Whether others than the process's own user can read a secret file, so that it must not be used.
/// Credentials that systemd guards are never exposed.
///
/// # Errors
///
/// The file is not there.
pub fn is_exposed(path: &Path) -> io::Result<bool> {
    exposed(path, &Environment::read())
}

fn exposed(path: &Path, environment: &Environment) -> io::Result<bool> {
    Ok(disk::readable_by_others(path)? && !environment.guards(path))
}

/// Never over an existing key. Two first starts at once are kept apart by the hold on `data_dir`.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if path.try_exists()? {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    disk::write_durably(path, bytes)
}

fn load_guarded(path: &Path, environment: &Environment) -> Result<Secret, ConfigError> {
    let unreadable = |why: io::Error| {
        let remedy = match why.kind() {
            io::ErrorKind::NotFound => "write the file, or correct its name in the configuration",
            _ => "give the file to the user that runs lakehead",
        };
        ConfigError::secret(path, format!("cannot be read: {why}"), remedy)
    };
    if exposed(path, environment).map_err(unreadable)? {
        let remedy = format!("run: chmod 600 {}", path.display());
        return Err(ConfigError::secret(path, "others than its owner can use it", remedy));
    }
    let mut bytes = Zeroizing::new(vec![]);
    let file = File::open(path).map_err(unreadable)?;
    file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let length = without_newlines(&bytes);
    if length == 0 {
        return Err(ConfigError::secret(path, "is empty", "write the secret into it"));
    }
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        let what = format!("is longer than {SECRET_BYTES_MAX} bytes");
        return Err(ConfigError::secret(path, what, "name the right file"));
    }
    Ok(Secret::new(bytes[..length].to_vec()))
}

/// Length without newlines at the end: spaces may belong to a password.
fn without_newlines(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1)
}

const KEY_BYTES: usize = 32;
const KEY_REMEDY: &str = "write 32 random bytes in base64: openssl rand -base64 32";
const SECRET_BYTES_MAX: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::error::{Cause, Classified};

    fn file(dir: &Path, text: &str, mode: u32) -> std::path::PathBuf {
        let path = dir.join("secret");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", Secret::new(b"hunter2".to_vec())), "Secret(…)");
    }

    #[test]
    fn a_password_keeps_its_spaces_and_loses_its_newline() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), " hunter 2 \r\n", 0o600);
        assert_eq!(load_secret(&path).unwrap().expose(), b" hunter 2 ");
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused_but_for_systemds_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "hunter2", 0o640);
        let refused = load_secret(&path).unwrap_err();
        assert_eq!(refused.cause(), Cause::SecretFile);
        let [(what, remedy)] = refused.pairs().try_into().unwrap();
        assert!(what.contains("others than its owner") && !what.contains("hunter2"), "{what}");
        assert!(remedy.starts_with("run: chmod 600 /"), "{remedy}");
        let environment = Environment {
            credentials_directory: Some(dir.path().to_owned()),
            ..Environment::default()
        };
        assert_eq!(load_guarded(&path, &environment).unwrap().expose(), b"hunter2");
    }

    #[test]
    fn a_missing_or_empty_secret_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = load_secret(&dir.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("/none: cannot be read"), "{missing}");
        let path = file(dir.path(), "\n", 0o600);
        assert!(load_secret(&path).unwrap_err().to_string().ends_with("is empty"));
    }

    #[test]
    fn a_made_key_is_private_and_reads_back_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lake.key");
        let made = make_key32(&path).unwrap();
        assert_eq!(made.expose().len(), 32);
        assert!(!disk::readable_by_others(&path).unwrap());
        assert_eq!(load_key32(&path).unwrap(), made);
        assert!(make_key32(&path).unwrap_err().pairs()[0].1.contains("never overwritten"));
        assert_eq!(load_key32(&path).unwrap(), made);
    }

    #[test]
    fn a_key_of_another_length_is_refused_without_showing_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "c2hvcnQ=\n", 0o600);
        let refused = load_key32(&path).unwrap_err();
        assert!(refused.to_string().contains("5 bytes instead of 32"));
        assert!(refused.pairs()[0].1.contains("openssl rand -base64 32"));
        let path = file(dir.path(), "hunter2!", 0o600);
        let refused = load_key32(&path).unwrap_err().to_string();
        assert!(refused.contains("is not base64") && !refused.contains("hunter2"));
    }
}
