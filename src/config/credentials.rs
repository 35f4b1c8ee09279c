//! Credentials for S3: from a file in the format of the AWS tools, or from the environment.
//!
//! Format: `[profile]` lines, each followed by `name = value` lines; `#` and `;` begin comments.
//! <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>

use std::path::Path;

use super::{ConfigError, Environment, Secret, key::load_guarded};

/// What requests to S3 are signed with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AwsCredentials {
    /// The key's public name.
    pub access_key_id: String,
    /// The key.
    pub secret_access_key: Secret,
    /// Of temporary credentials.
    pub session_token: Option<Secret>,
}

impl AwsCredentials {
    /// Reads `file`, or without one the environment. Call it again when S3 refuses them: a file may
    /// have been replaced by fresh ones.
    ///
    /// # Errors
    ///
    /// The file cannot be used, or nothing names a key.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_from(file, &Environment::read())
    }

    fn load_from(file: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        let profile = environment.aws_profile.as_deref().unwrap_or("default");
        match file {
            Some(path) => {
                let bytes = load_guarded(path, environment)?;
                let text = std::str::from_utf8(bytes.expose()).map_err(|_| {
                    ConfigError::secret(path, "is not UTF-8 text", "name the right file")
                })?;
                parse(text, profile).ok_or_else(|| {
                    let what = format!(
                        "names no aws_access_key_id and aws_secret_access_key under [{profile}]"
                    );
                    ConfigError::secret(
                        path,
                        what,
                        "write it as the AWS tools do, or set AWS_PROFILE to one of its profiles",
                    )
                })
            }
            None => from_environment(environment),
        }
    }
}

fn from_environment(environment: &Environment) -> Result<AwsCredentials, ConfigError> {
    match (&environment.aws_access_key_id, &environment.aws_secret_access_key) {
        (Some(id), Some(secret)) => Ok(AwsCredentials {
            access_key_id: id.clone(),
            secret_access_key: secret.clone(),
            session_token: environment.aws_session_token.clone(),
        }),
        _ => Err(ConfigError::Credentials {
            what: "no credentials for S3".into(),
            remedy: "name a file with credentials_file in [lake], or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".into(),
        }),
    }
}

fn parse(text: &str, profile: &str) -> Option<AwsCredentials> {
    let (mut inside, mut id, mut secret, mut token) = (false, None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = name.trim() == profile;
        }
        if !inside || line.starts_with(['#', ';']) {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { continue };
        let value = value.trim().to_owned();
        match name.trim().to_ascii_lowercase().as_str() {
            "aws_access_key_id" => id = Some(value),
            "aws_secret_access_key" => secret = Some(Secret::new(value.into_bytes())),
            "aws_session_token" => token = Some(Secret::new(value.into_bytes())),
            _ => {}
        }
    }
    let named = |id: &String| !id.is_empty();
    Some(AwsCredentials {
        access_key_id: id.filter(named)?,
        secret_access_key: secret.filter(|secret| !secret.expose().is_empty())?,
        session_token: token,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    const FILE: &str = "# ours\n[other]\naws_access_key_id=AKIAOTHER\naws_secret_access_key=no\n\
        [default]\naws_access_key_id = AKIAEXAMPLE\n; old\nAWS_SECRET_ACCESS_KEY = abc=/+\naws_session_token=tok\n[last]\naws_access_key_id=X\n";

    #[test]
    fn the_profile_asked_for_is_read_and_no_other() {
        let read = parse(FILE, "default").unwrap();
        assert_eq!(read.access_key_id, "AKIAEXAMPLE");
        assert_eq!(read.secret_access_key.expose(), b"abc=/+");
        assert_eq!(read.session_token.unwrap().expose(), b"tok");
        assert_eq!(parse(FILE, "other").unwrap().session_token, None);
        assert_eq!(parse(FILE, "last"), None);
        assert_eq!(parse(FILE, "absent"), None);
    }

    #[test]
    fn without_a_file_the_environment_is_used_and_its_absence_named() {
        let mut environment = Environment {
            aws_access_key_id: Some("AKIAEXAMPLE".into()),
            aws_secret_access_key: Some(Secret::new(b"hunter2".to_vec())),
            ..Environment::default()
        };
        let read = AwsCredentials::load_from(None, &environment).unwrap();
        assert_eq!(read.access_key_id, "AKIAEXAMPLE");
        assert!(!format!("{read:?}{environment:?}").contains("hunter2"));
        environment.aws_secret_access_key = None;
        let missing = AwsCredentials::load_from(None, &environment).unwrap_err();
        assert!(missing.pairs()[0].1.contains("credentials_file"));
    }

    #[test]
    fn a_file_without_the_profile_is_named_without_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aws");
        fs::write(&path, "aws_secret_access_key=hunter2\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let wrong = AwsCredentials::load_from(Some(&path), &Environment::default()).unwrap_err();
        assert!(wrong.to_string().contains("under [default]"), "{wrong}");
        assert!(!wrong.to_string().contains("hunter2"));
    }
}
