//! The lake on this machine: one bucket in the S3 double, and the keys to it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    cluster::ClusterError,
    ground::random_hex,
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

/// What was sent and taken.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sent {
    /// How often each key was stored.
    pub stored: BTreeMap<String, usize>,
    /// How often each part of each key was taken.
    pub parts: BTreeMap<(String, u32), usize>,
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

    /// From the log of requests: what was sent, and taken.
    pub fn sent(&self) -> Sent {
        let mut sent = Sent::default();
        for request in self.double.requests().iter().filter(|request| request.status == 200) {
            match (request.operation.as_str(), request.part) {
                ("PutObject" | "CompleteMultipartUpload", _) => {
                    *sent.stored.entry(request.key.clone()).or_default() += 1;
                }
                ("UploadPart", Some(part)) => {
                    *sent.parts.entry((request.key.clone(), part)).or_default() += 1;
                }
                _ => {}
            }
        }
        sent
    }

    /// Has the store answer nobody, or everybody again.
    pub fn away(&self, away: bool) {
        self.double.away(away);
    }

    /// Sets the store's clock ahead of this machine's.
    pub fn skew(&self, seconds: i64) {
        self.double.skew(seconds);
    }

    /// Stops the store.
    pub async fn close(self) {
        self.double.stop().await;
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
