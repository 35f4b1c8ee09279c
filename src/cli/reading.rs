//! Options of the commands that read the lake: credentials that may read, which the box's own may not,
//! and the lake's key.

use std::path::PathBuf;

use clap::Args;

use super::{Failure, Global};
use crate::config::{Config, ConfigError, Encryption};

/// Instead of what the configuration names.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Reading {
    /// Credentials that may read the bucket, in the format of the AWS tools.
    #[arg(long, value_name = "FILE")]
    credentials_file: Option<PathBuf>,
    /// The key that objects were encrypted with.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl Reading {
    /// The configuration, with what the options name in place of its own.
    pub(super) fn config(&self, global: &Global) -> Result<Config, Failure> {
        let mut config = global.config()?;
        if let Some(file) = &self.credentials_file {
            config.lake.credentials_file = Some(file.clone());
        }
        if let Some(key_file) = &self.key_file {
            config.encryption = match config.encryption {
                Encryption::Client { .. } | Encryption::None => {
                    Encryption::Client { key_file: key_file.clone() }
                }
                Encryption::SseKms { .. } => {
                    return Err(ConfigError::Argument {
                        what: "--key-file: the lake is encrypted by S3, which opens it by itself"
                            .into(),
                        remedy: "leave --key-file out".into(),
                    }
                    .into());
                }
            };
        }
        Ok(config)
    }
}

/// The source that is meant: the one named, or the only one there is.
pub(super) fn source(config: &Config, named: Option<&str>) -> Result<String, Failure> {
    let names: Vec<&str> = config.sources.iter().map(|source| source.name.as_str()).collect();
    let wrong = |what: String| ConfigError::Argument {
        what,
        remedy: format!("name one of: {}", names.join(", ")),
    };
    match (named, names.as_slice()) {
        (Some(name), names) if names.contains(&name) => Ok(name.into()),
        (Some(name), _) => Err(wrong(format!("--source {name:?}: no such source")).into()),
        (None, [only]) => Ok((*only).to_owned()),
        (None, _) => Err(wrong("which source is meant is not said".into()).into()),
    }
}
