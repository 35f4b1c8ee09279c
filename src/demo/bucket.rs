//! The lake on this machine: one bucket in the S3 double, and the keys to it.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{
    ground::{free_port, random_hex},
    s3::{self, DoubleOptions, Role, S3Double},
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
        let port = free_port().map_err(io::Error::other)?;
        Self::open_at(root, tls, ([127, 0, 0, 1], port).into()).await
    }

    /// Starts a store under `root` at an address of loopback; port 0 for any.
    ///
    /// # Errors
    ///
    /// The store cannot listen or write.
    pub async fn open_at(root: &Path, tls: bool, address: SocketAddr) -> io::Result<Self> {
        let (writer, reader) = (key("WRITER")?, key("READER")?);
        let known = |key: &Key, role| s3::Key::new(&key.id, &key.secret, role);
        let options = DoubleOptions {
            root: root.into(),
            keys: vec![known(&writer, Role::Writer), known(&reader, Role::Reader)],
            region: REGION.into(),
            buckets: vec![BUCKET.into()],
            tls,
            address,
        };
        let double = S3Double::start(options).await?;
        Ok(Self { double, root: root.into(), writer, reader })
    }

    /// How a site reaches it.
    pub fn lake(&self, prefix: &str) -> Lake {
        Lake {
            endpoint: self.double.endpoint().into(),
            ca_pem: self.double.ca_pem().map(Into::into),
            region: REGION.into(),
            bucket: BUCKET.into(),
            prefix: prefix.into(),
            writer: self.writer.clone(),
            reader: self.reader.clone(),
        }
    }

    /// From the log of requests: what was sent, and taken.
    pub fn sent(&self) -> Sent {
        let mut sent = Sent::default();
        for request in self.double.requests().iter().filter(|request| request.applied) {
            match (request.operation, request.part) {
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
        self.double.set_clock_ahead_s(seconds);
    }

    /// Stops the store.
    pub async fn close(self) {
        self.double.stop().await;
    }

    /// How many objects there are, and what their bodies take on this disk.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn holds(&self) -> io::Result<(u64, u64)> {
        let objects = self.double.keys(BUCKET, "").len();
        let mut bytes = 0;
        for entry in fs::read_dir(self.root.join("bodies"))? {
            bytes += entry?.metadata()?.len();
        }
        Ok((u64::try_from(objects).map_err(io::Error::other)?, bytes))
    }
}

fn key(name: &str) -> io::Result<Key> {
    let secret = random_hex().map_err(io::Error::other)?;
    Ok(Key { id: format!("DEMO{name}"), secret })
}

/// Its name.
pub const BUCKET: &str = "lake";
/// Region that requests must be signed for.
pub const REGION: &str = "eu-central-1";
