//! The environment, read once. The only file that reads it, but for `NOTIFY_SOCKET` and `WATCHDOG_USEC`,
//! which `sd-notify` reads.

use std::path::{Path, PathBuf};

use super::Secret;

/// What the process was started with.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Environment {
    /// `CREDENTIALS_DIRECTORY`: where systemd put this unit's credentials. A command that somebody types
    /// has none set: for it, where the running unit's are.
    pub credentials_directory: Option<PathBuf>,
    /// `LAKEHEAD_LOG`: which events are logged, `info` or `lakehead::ship=debug,info`.
    pub log: Option<String>,
    /// `NO_COLOR` is set and not empty.
    pub no_color: bool,
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, of temporary ones, `AWS_SESSION_TOKEN`:
    /// used where no `credentials_file` is named.
    pub aws: Option<AwsKeys>,
}

/// What requests to S3 are signed with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AwsKeys {
    /// The key's public name.
    pub access_key_id: String,
    /// The key.
    pub secret_access_key: Secret,
    /// Of temporary credentials.
    pub session_token: Option<Secret>,
}

impl Environment {
    /// Reads it.
    pub fn read() -> Self {
        Self {
            credentials_directory: variable("CREDENTIALS_DIRECTORY")
                .or_else(|| Some(format!("{SYSTEMD_CREDENTIALS}/{UNIT}")))
                .map(PathBuf::from),
            log: variable("LAKEHEAD_LOG"),
            no_color: variable("NO_COLOR").is_some(),
            aws: aws_keys(),
        }
    }

    /// Whether systemd guards `path`: a credential's folder is closed to everyone else, whatever the
    /// file's own mode says (systemd grants the unit's user by an ACL, which shows as the group's bits).
    pub fn guards(&self, path: &Path) -> bool {
        path.starts_with(SYSTEMD_CREDENTIALS)
            || self.credentials_directory.as_ref().is_some_and(|dir| path.starts_with(dir))
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the file that reads the environment")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Both, or none: half a key is none.
fn aws_keys() -> Option<AwsKeys> {
    Some(AwsKeys {
        access_key_id: variable("AWS_ACCESS_KEY_ID")?,
        secret_access_key: variable("AWS_SECRET_ACCESS_KEY").map(secret)?,
        session_token: variable("AWS_SESSION_TOKEN").map(secret),
    })
}

fn secret(text: String) -> Secret {
    Secret::new(text.into_bytes())
}

/// <https://www.freedesktop.org/software/systemd/man/252/systemd.exec.html#LoadCredential=ID:PATH>
const SYSTEMD_CREDENTIALS: &str = "/run/credentials";
const UNIT: &str = "lakehead.service";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_credentials_are_guarded() {
        let environment =
            Environment { credentials_directory: Some("/tmp/creds".into()), ..Default::default() };
        assert!(environment.guards(Path::new("/run/credentials/lakehead.service/erp")));
        assert!(environment.guards(Path::new("/tmp/creds/erp")));
        assert!(!environment.guards(Path::new("/tmp/creds-of-others/erp")));
        assert!(!Environment::default().guards(Path::new("/tmp/creds/erp")));
    }
}
