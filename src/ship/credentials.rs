//! The credentials of S3: from AWS's shared-credentials file, or given as keys.
//!
//! The file: `[default]` with `aws_access_key_id`, `aws_secret_access_key` and, of temporary ones,
//! `aws_session_token`; mode 0600. It is read again when it changes, so that keys are rotated by
//! writing the file (whole: write beside it and rename).
//!
//! **Invariant (I34):** no key is printed; a secret of others to read is refused.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str,
    sync::{Mutex, PoisonError},
};

use aws_credential_types::{
    Credentials as SdkCredentials,
    provider::{self, ProvideCredentials, error::CredentialsError, future},
};
use zeroize::Zeroizing;

use super::ShipError;
use crate::{
    config::{Secret, secret},
    error::Cause,
};

/// Where credentials come from.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// A shared-credentials file, mode 0600.
    File(PathBuf),
    /// Keys from the environment, which only the config room reads.
    Keys(Keys),
}

/// A pair of keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Keys {
    /// `aws_access_key_id`
    pub access_key_id: String,
    /// `aws_secret_access_key`
    pub secret_access_key: Secret,
    /// `aws_session_token`, of temporary credentials.
    pub session_token: Option<Secret>,
}

/// Gives the SDK credentials at each request.
#[derive(Debug)]
pub(super) struct Provider {
    from: Credentials,
    last: Mutex<Option<(Stamp, SdkCredentials)>>,
}

/// What changes when a file is written or replaced.
type Stamp = (u64, i64, i64, u64);

/// Why there are no credentials; found again in the SDK's error.
#[derive(Clone, Debug, thiserror::Error)]
#[error("credentials_file {}: {why}", path.display())]
pub(super) struct NoCredentials {
    path: PathBuf,
    why: String,
    cause: Cause,
}

impl Provider {
    pub(super) fn new(from: Credentials) -> Self {
        Self { from, last: Mutex::default() }
    }

    /// The credentials as they are now.
    pub(super) fn load(&self) -> Result<SdkCredentials, NoCredentials> {
        let path = match &self.from {
            Credentials::Keys(keys) => return Ok(sdk(keys)),
            Credentials::File(path) => path,
        };
        let fail = |cause| move |why: String| NoCredentials { path: path.clone(), why, cause };
        let stamp = stamp(path).map_err(fail(Cause::LakeCredentials))?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, credentials)) = last.as_ref().filter(|(before, _)| *before == stamp) {
            return Ok(credentials.clone());
        }
        if secret::is_exposed(path).unwrap_or(true) {
            return Err(fail(Cause::SecretFile)("others than its owner can read it".into()));
        }
        let bytes = fs::read(path)
            .map(Zeroizing::new)
            .map_err(|error| fail(Cause::SecretFile)(error.to_string()))?;
        let credentials = sdk(&parse(&bytes).map_err(fail(Cause::LakeCredentials))?);
        *last = Some((stamp, credentials.clone()));
        Ok(credentials)
    }
}

impl ProvideCredentials for Provider {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let loaded: provider::Result = self.load().map_err(CredentialsError::provider_error);
        future::ProvideCredentials::ready(loaded)
    }
}

impl From<NoCredentials> for ShipError {
    fn from(error: NoCredentials) -> Self {
        Self::Setup { what: error.to_string(), cause: error.cause }
    }
}

fn sdk(keys: &Keys) -> SdkCredentials {
    let text = |secret: &Secret| String::from_utf8_lossy(secret.expose()).into_owned();
    let token = keys.session_token.as_ref().map(text);
    SdkCredentials::new(&keys.access_key_id, text(&keys.secret_access_key), token, None, "lakehead")
}

fn stamp(path: &Path) -> Result<Stamp, String> {
    let meta = fs::metadata(path).map_err(|error| error.to_string())?;
    Ok((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}

/// Reads `[default]` of a shared-credentials file.
pub(super) fn parse(bytes: &[u8]) -> Result<Keys, String> {
    let text = str::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())?;
    let (mut id, mut secret, mut token) = (None, None, None);
    let mut section = "";
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.trim();
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            return Err(format!("line {number} is no `name = value`"));
        };
        let value = value.trim();
        if section != "default" || value.is_empty() {
            continue;
        }
        match name.trim().to_ascii_lowercase().as_str() {
            "aws_access_key_id" => id = Some(value.to_owned()),
            "aws_secret_access_key" => secret = Some(Secret::new(value.into())),
            "aws_session_token" => token = Some(Secret::new(value.into())),
            _ => {}
        }
    }
    let missing = |name: &str| format!("no `{name}` under [default]");
    Ok(Keys {
        access_key_id: id.ok_or_else(|| missing("aws_access_key_id"))?,
        secret_access_key: secret.ok_or_else(|| missing("aws_secret_access_key"))?,
        session_token: token,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::disk;

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_the_default_section_counts() {
        let text = "# ours\n[other]\naws_access_key_id = no\n\n[default]\naws_access_key_id=AK\n\
                    ; a remark\naws_secret_access_key = s/e=c+r\nregion = x\n[more]\n\
                    aws_session_token = no\n";
        let keys = parse(text.as_bytes()).unwrap();
        assert_eq!(keys.access_key_id, "AK");
        assert_eq!(keys.secret_access_key.expose(), b"s/e=c+r");
        assert_eq!(keys.session_token, None);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_secret() {
        for (text, said) in [
            ("[default]\naws_access_key_id = AK\n", "no `aws_secret_access_key`"),
            ("[default]\nhunter2\n", "line 2 is no"),
            ("aws_access_key_id = AK\naws_secret_access_key = hunter2", "no `aws_access_key_id`"),
        ] {
            let why = parse(text.as_bytes()).unwrap_err();
            assert!(why.contains(said) && !why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn a_file_of_others_to_read_is_refused_and_a_changed_one_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aws");
        let provider = Provider::new(Credentials::File(path.clone()));
        assert_eq!(provider.load().unwrap_err().cause, Cause::LakeCredentials);
        write(&path, "[default]\naws_access_key_id=A\naws_secret_access_key=hunter2\n", 0o644);
        assert_eq!(provider.load().unwrap_err().cause, Cause::SecretFile);
        write(&path, "[default]\naws_access_key_id=A\naws_secret_access_key=hunter2\n", 0o600);
        assert_eq!(provider.load().unwrap().access_key_id(), "A");
        let beside = dir.path().join("beside");
        write(&beside, "[default]\naws_access_key_id=B\naws_secret_access_key=hunter3\n", 0o600);
        disk::rename(&beside, &path).unwrap();
        assert_eq!(provider.load().unwrap().access_key_id(), "B");
        assert!(!format!("{provider:?}").contains("hunter"));
    }
}
