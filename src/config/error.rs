//! What is wrong with the configuration, where, and how to correct it. Pure.
//!
//! **Invariant:** no value of a secret stands in an error.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::error::{Cause, Classified};

/// Why the configuration cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read config {}: {what}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The file is wrong.
    #[error("{}", listed(path, problems))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// All that is wrong with it, in the order of its lines; at least one.
        problems: Vec<Problem>,
    },
    /// A key or secret file cannot be used.
    #[error("secret file {}: {what}", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// An argument of the command line is wrong.
    #[error("{what}")]
    Argument {
        /// What is wrong with it.
        what: String,
        /// What to do.
        remedy: String,
    },
}

/// One thing that is wrong with the file.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// `lake.bucket`; of a syntax error empty.
    pub key: String,
    /// The value as the file has it; never a secret's.
    pub value: Option<String>,
    /// What is wrong with it.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// Why a rule refuses a value. [`Problem`] adds where it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Fault {
    /// What is wrong.
    pub(super) what: String,
    /// What to do.
    pub(super) remedy: String,
}

impl ConfigError {
    pub(super) fn unreadable(path: &Path, why: &io::Error) -> Self {
        let remedy = match why.kind() {
            io::ErrorKind::NotFound => {
                "write the file, or name another with --config; the README shows one to begin with"
            }
            io::ErrorKind::PermissionDenied => {
                "give the user that runs lakehead the right to read the file"
            }
            io::ErrorKind::IsADirectory => "name a file with --config, not its folder",
            io::ErrorKind::InvalidData => "save the file as UTF-8 text",
            _ => "look at the file system under the file",
        };
        Self::Unreadable { path: path.into(), what: why.to_string(), remedy: remedy.into() }
    }

    pub(crate) fn secret(path: &Path, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Secret { path: path.into(), what: what.into(), remedy: remedy.into() }
    }

    /// What is wrong and what to do, one pair for each problem.
    pub fn pairs(&self) -> Vec<(String, String)> {
        match self {
            Self::Wrong { path, problems } => {
                let name = path.display();
                problems.iter().map(|one| (format!("{name}:{one}"), one.remedy.clone())).collect()
            }
            Self::Unreadable { remedy, .. }
            | Self::Secret { remedy, .. }
            | Self::Argument { remedy, .. } => vec![(self.to_string(), remedy.clone())],
        }
    }
}

impl Classified for ConfigError {
    fn cause(&self) -> Cause {
        match self {
            Self::Unreadable { .. } | Self::Wrong { .. } | Self::Argument { .. } => Cause::Config,
            Self::Secret { .. } => Cause::SecretFile,
        }
    }

    fn remedy(&self) -> String {
        let remedies: Vec<String> = self.pairs().into_iter().map(|(_, remedy)| remedy).collect();
        remedies.join("; ")
    }
}

impl fmt::Display for Problem {
    /// `12:8: lake.bucket = "Acme": has an uppercase letter`, to stand behind the file's name and a colon.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        match (self.key.as_str(), &self.value) {
            ("", _) => {}
            (key, Some(value)) => write!(f, "{key} = {value}: ")?,
            (key, None) => write!(f, "{key}: ")?,
        }
        f.write_str(&self.what)
    }
}

impl Fault {
    pub(super) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

fn listed(path: &Path, problems: &[Problem]) -> String {
    let name = path.display();
    let lines: Vec<String> = problems.iter().map(|one| format!("{name}:{one}")).collect();
    lines.join("\n")
}
