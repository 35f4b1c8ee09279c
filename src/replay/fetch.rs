//! Brings one object of the ledger to this machine: fetched, proven, opened.
//!
//! **Invariant:** nothing is opened whose SHA-256 is not the one in the ledger.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use aws_lc_rs::digest;

use super::{Lake, ReplayError, read::LakeFile};
use crate::{
    disk::{self, work::WorkFile},
    ledger::EntryObject,
    ship::ShipError,
};

/// Fetches into a folder of its own.
#[derive(Debug)]
pub struct Fetcher {
    lake: Lake,
    dir: PathBuf,
    next: AtomicU64,
}

impl Fetcher {
    /// Works in `dir`, which is made if it is not there. What a fetch leaves there it removes.
    ///
    /// # Errors
    ///
    /// The folder cannot be made.
    pub fn new(lake: Lake, dir: &Path) -> Result<Self, ReplayError> {
        disk::create_dir(dir).map_err(|why| ReplayError::file(dir, why))?;
        Ok(Self { lake, dir: dir.into(), next: AtomicU64::new(0) })
    }

    /// Opens an object of rows.
    ///
    /// # Errors
    ///
    /// It is not there, not what the ledger proves, or does not open.
    pub async fn rows(
        &self,
        object: &EntryObject,
        batch_bytes: usize,
    ) -> Result<LakeFile, ReplayError> {
        let opened = self.opened(&object.key, Some(object)).await?;
        let file = LakeFile::of(opened.file()?, &object.key, batch_bytes)?;
        // The open file stays readable; its name is not needed any more.
        drop(opened);
        Ok(file)
    }

    /// The bytes of a small object.
    ///
    /// # Errors
    ///
    /// As [`Fetcher::rows`].
    pub async fn bytes(&self, object: &EntryObject) -> Result<Vec<u8>, ReplayError> {
        let opened = self.opened(&object.key, Some(object)).await?;
        let mut bytes = vec![];
        let read = opened.file()?.read_to_end(&mut bytes);
        read.map_err(|why| ReplayError::file(&opened.0, why))?;
        Ok(bytes)
    }

    /// Fetches the object `key` and opens it; it is removed again with what is given back. Without what the ledger says
    /// of it it is not proven: for `cat`.
    ///
    /// # Errors
    ///
    /// As [`Fetcher::rows`].
    pub async fn opened(
        &self,
        key: &str,
        proof: Option<&EntryObject>,
    ) -> Result<Opened, ReplayError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let sealed = self.dir.join(format!("{number}.sealed"));
        let sealed = WorkFile::create(&sealed).map_err(|why| ReplayError::file(&sealed, why))?;
        let plain = Opened(self.dir.join(format!("{number}.plain")));
        let bytes_max = proof.map_or(u64::MAX, |object| object.bytes);
        let metadata = match self.lake.reader.fetch(key, &sealed, bytes_max).await {
            Err(ShipError::TooLong { key, .. }) => return Err(ReplayError::Altered { key }),
            fetched => fetched?,
        };
        let metadata = metadata.ok_or_else(|| ReplayError::Missing { key: key.into() })?;
        let (open, key) = (self.lake.open.clone(), key.to_owned());
        let sha256 = proof.map(|object| object.sha256.clone());
        let work = move || {
            if sha256.is_some_and(|expected| !proves(&sealed, &expected).unwrap_or(false)) {
                return Err(ReplayError::Altered { key });
            }
            let open = |metadata: &BTreeMap<_, _>| open(sealed.path(), metadata, &plain.0);
            open(&metadata).map_err(|why| ReplayError::Open { key, why })?;
            Ok(plain)
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|why| ReplayError::file(&self.dir, io::Error::other(why)))?
    }
}

/// A file that is removed when it is dropped.
#[derive(Debug)]
pub struct Opened(PathBuf);

impl Opened {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn file(&self) -> Result<File, ReplayError> {
        disk::open_no_link(&self.0).map_err(|why| ReplayError::file(&self.0, why))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Err(error) = disk::remove(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a work file stays");
        }
    }
}

fn proves(sealed: &WorkFile, expected: &str) -> io::Result<bool> {
    let mut file = sealed.rewound()?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex::encode(context.finish()) == expected);
        }
        context.update(&buffer[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::sample::Folder;

    #[tokio::test]
    async fn what_the_ledger_does_not_prove_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder(dir.path().to_owned());
        let work = dir.path().join("work");
        let fetcher = Fetcher::new(folder.lake(), &work).unwrap();
        std::fs::write(dir.path().join("o"), b"one").unwrap();
        let object = folder.object("o");
        assert_eq!(fetcher.bytes(&object).await.unwrap(), b"one");
        std::fs::write(dir.path().join("o"), b"two").unwrap();
        assert!(matches!(fetcher.bytes(&object).await, Err(ReplayError::Altered { .. })));
        // Of one that is longer no more is fetched than it was to have.
        std::fs::write(dir.path().join("o"), b"ones").unwrap();
        assert!(matches!(fetcher.bytes(&object).await, Err(ReplayError::Altered { .. })));
        std::fs::remove_file(dir.path().join("o")).unwrap();
        assert!(matches!(fetcher.bytes(&object).await, Err(ReplayError::Missing { .. })));
        assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_somebody_laid_into_the_folder_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder(dir.path().to_owned());
        let (work, victim) = (dir.path().join("work"), dir.path().join("victim"));
        let fetcher = Fetcher::new(folder.lake(), &work).unwrap();
        std::fs::write(dir.path().join("o"), b"one").unwrap();
        std::fs::write(&victim, b"as it was").unwrap();
        std::os::unix::fs::symlink(&victim, work.join("0.sealed")).unwrap();
        let refused = fetcher.bytes(&folder.object("o")).await;
        assert!(matches!(refused, Err(ReplayError::File { .. })), "{refused:?}");
        assert_eq!(std::fs::read(&victim).unwrap(), b"as it was");
    }
}
