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
use crate::{disk, ledger::EntryObject};

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
        let opened = self.opened(&object.key, Some(&object.sha256)).await?;
        let file = LakeFile::open(&opened.0, &object.key, batch_bytes)?;
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
        let opened = self.opened(&object.key, Some(&object.sha256)).await?;
        std::fs::read(&opened.0).map_err(|why| ReplayError::file(&opened.0, why))
    }

    /// Fetches the object `key` and opens it; it is removed again with what is given back. Without a
    /// `sha256` it is not proven: for `cat`.
    ///
    /// # Errors
    ///
    /// As [`Fetcher::rows`].
    pub async fn opened(&self, key: &str, sha256: Option<&str>) -> Result<Opened, ReplayError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let sealed = Opened(self.dir.join(format!("{number}.sealed")));
        let plain = Opened(self.dir.join(format!("{number}.plain")));
        let metadata = self.lake.reader.fetch(key, &sealed.0).await?;
        let metadata = metadata.ok_or_else(|| ReplayError::Missing { key: key.into() })?;
        let (open, key, sha256) =
            (self.lake.open.clone(), key.to_owned(), sha256.map(str::to_owned));
        let work = move || {
            if sha256.is_some_and(|expected| !proves(&sealed.0, &expected).unwrap_or(false)) {
                return Err(ReplayError::Altered { key });
            }
            let open = |metadata: &BTreeMap<_, _>| open(&sealed.0, metadata, &plain.0);
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
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Err(error) = disk::remove(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a work file stays");
        }
    }
}

fn proves(path: &Path, expected: &str) -> io::Result<bool> {
    let mut file = File::open(path)?;
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
        std::fs::remove_file(dir.path().join("o")).unwrap();
        assert!(matches!(fetcher.bytes(&object).await, Err(ReplayError::Missing { .. })));
        assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0);
    }
}
