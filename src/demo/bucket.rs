//! The lake on this machine: one bucket in the S3 double, and the keys to it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    cluster::{ClusterError, random_hex},
    s3::{Options, S3Double},
    site::{Key, Lake},
};

/// A bucket that runs.
#[derive(Debug)]
pub struct Bucket {
    /// The store, for its log and its faults.
    pub double: S3Double,
    root: PathBuf,
    writer: Key,
    reader: Key,
}

impl Bucket {
    /// Starts a store under `root`.
    ///
    /// # Errors
    ///
    /// The store cannot listen or write.
    pub async fn open(root: &Path, tls: bool) -> io::Result<Self> {
        fs::create_dir_all(root.join(BUCKET))?;
        let (writer, reader) =
            (key("WRITER").map_err(io::Error::other)?, key("READER").map_err(io::Error::other)?);
        let keys = vec![
            (writer.id.clone(), writer.secret.clone()),
            (reader.id.clone(), reader.secret.clone()),
        ];
        let options = Options { root: root.into(), keys, tls, port: 0 };
        let double = S3Double::start(options).await?;
        Ok(Self { double, root: root.into(), writer, reader })
    }

    /// How a site reaches it.
    pub fn lake(&self, prefix: &str) -> Lake {
        Lake {
            endpoint: self.double.endpoint(),
            ca_pem: self.double.ca_pem(),
            bucket: BUCKET.into(),
            prefix: prefix.into(),
            writer: self.writer.clone(),
            reader: self.reader.clone(),
        }
    }

    /// Objects in it, and their bytes.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn holds(&self) -> io::Result<(u64, u64)> {
        holds(&self.root.join(BUCKET))
    }
}

fn holds(dir: &Path) -> io::Result<(u64, u64)> {
    let (mut objects, mut bytes) = (0, 0);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        let (more, larger) = if meta.is_dir() { holds(&entry.path())? } else { (1, meta.len()) };
        objects += more;
        bytes += larger;
    }
    Ok((objects, bytes))
}

fn key(name: &str) -> Result<Key, ClusterError> {
    Ok(Key { id: format!("DEMO{name}"), secret: random_hex()? })
}

/// Its name.
pub const BUCKET: &str = "lake";
