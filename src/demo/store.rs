//! The S3 double as a process of its own: for benches, whose figures leave the store out, and for tests
//! of an installed box.
//!
//! Beside what it stores, its folder holds what its users need: the files of [`Lake::write`]. Keys and
//! certificate are new with every start; what is stored stays.
//!
//! [`Lake::write`]: super::site::Lake::write

use std::{fmt, io, net::SocketAddr, path::PathBuf};

use serde::Serialize;

use super::{
    bucket::{BUCKET, Bucket, REGION},
    interrupted,
};
use crate::disk;

/// How a store is started.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Its folder.
    pub dir: PathBuf,
    /// Where it listens: loopback; port 0 for any.
    pub listen: SocketAddr,
    /// Whether it speaks TLS.
    pub tls: bool,
}

/// How a running store is reached.
#[derive(Clone, Debug, Serialize)]
pub struct StoreReport {
    /// Its URL.
    pub endpoint: String,
    /// Its one bucket.
    pub bucket: &'static str,
    /// Region that requests must be signed for.
    pub region: &'static str,
}

/// Serves until SIGINT or SIGTERM. `told` hears once that the store listens.
///
/// # Errors
///
/// The folder or the address cannot be used.
pub async fn serve(options: &StoreOptions, told: impl FnOnce(&StoreReport)) -> io::Result<()> {
    let bucket = open(options).await?;
    let endpoint = bucket.double.endpoint().to_owned();
    told(&StoreReport { endpoint, bucket: BUCKET, region: REGION });
    interrupted().await;
    bucket.close().await;
    Ok(())
}

async fn open(options: &StoreOptions) -> io::Result<Bucket> {
    disk::create_dir(&options.dir)?;
    let bucket = Bucket::open_at(&options.dir.join(STORED), options.tls, options.listen).await?;
    bucket.lake("").write(&options.dir)?;
    Ok(bucket)
}

impl fmt::Display for StoreReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bucket {} region {}", self.endpoint, self.bucket, self.region)
    }
}

/// Folder of what is stored.
const STORED: &str = "stored";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::site::{CA, READER, WRITER},
        *,
    };

    #[tokio::test]
    async fn what_its_users_need_lies_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let listen = ([127, 0, 0, 1], 0).into();
        let options = StoreOptions { dir: dir.path().join("store"), listen, tls: true };
        for _ in 0..2 {
            let bucket = open(&options).await.unwrap();
            assert!(!bucket.double.endpoint().ends_with(":0"));
            let lake = bucket.lake("");
            let read = |name| fs::read_to_string(options.dir.join(name)).unwrap();
            assert!(read(WRITER).contains(&lake.writer.secret));
            assert!(read(READER).contains(&lake.reader.secret));
            assert_eq!(read(CA), lake.ca_pem.unwrap());
            assert!(!disk::readable_by_others(&options.dir.join(WRITER)).unwrap());
            bucket.close().await;
        }
    }
}
