//! Options of the commands that read the lake: credentials that may read, which the box's own may not,
//! and the lake's key.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;

use super::{Failure, Global};
use crate::{
    clock::{Clock, SystemClock},
    config::{Config, ConfigError, Encryption},
    disk::work,
    error::Classified,
    pipeline,
    replay::Lake,
    seal::{self, Metadata},
};

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

/// The lake, as replay reads it.
pub(super) fn lake(config: &Config) -> Result<Lake, Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let key = pipeline::lake_key(config)?;
    let open = move |sealed: &Path, metadata: &Metadata, into: &Path| {
        seal::open_file(sealed, metadata, key.as_ref(), into)
            .map_err(|why| Box::new(why) as Box<dyn Classified>)
    };
    Ok(Lake { reader: Arc::new(pipeline::lake(config, &clock)?), open: Arc::new(open) })
}

/// A folder for objects on their way, removed when dropped.
pub(super) struct WorkDir(PathBuf);

impl WorkDir {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // What stays is readable by its owner only.
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Makes one in the data folder if that is there and we may write there, else in the system's temporary folder:
/// an auditor has no data folder.
pub(super) fn work_dir(config: &Config) -> Result<WorkDir, Failure> {
    work_dir_in(&config.appliance.data_dir, &std::env::temp_dir())
}

/// In the first of these folders in which it can be made. It was not there before, and nobody can have known its name.
fn work_dir_in(data_dir: &Path, temporary: &Path) -> Result<WorkDir, Failure> {
    let made = work::make_dir(data_dir, "work-");
    let made = made.or_else(|_| work::make_dir(temporary, "lakehead-work-"));
    let failed = |why| Failure::system(&format!("make a folder in {}", temporary.display()), &why);
    made.map(WorkDir).map_err(failed)
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

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_work_folder_that_somebody_laid_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let laid = [format!("work-{}", std::process::id()), "work-".into()];
        for name in &laid {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let absent = dir.path().join("absent");
        for (data_dir, stem) in [(dir.path(), "work-"), (absent.as_path(), "lakehead-work-")] {
            let work = work_dir_in(data_dir, dir.path()).unwrap();
            let path = work.path().to_owned();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            assert!(name.starts_with(stem) && !laid.contains(&name), "{name}");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
            fs::write(path.join("1.plain"), "rows").unwrap();
            drop(work);
            assert!(!path.exists());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), laid.len());
        assert!(work_dir_in(&absent, &absent).is_err());
    }
}
