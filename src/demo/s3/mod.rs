//! A double of S3: verifies before it stores, keeps a log of every request, and fails on command.
//!
//! It verifies signatures (`s3s`), time, region, tokens and permissions (`auth.rs`), lengths and checksums in
//! headers and trailers (`verify.rs`), conditions, parts and what Complete says of them (`uploads.rs`), all
//! before anything counts. Its state outlives it, in a folder. Not built: versions, copies, tags,
//! locks, policies, real KMS (the SSE headers are kept and given back).
//!
//! Loopback only; for the demo and for tests.

use std::{
    fmt,
    io::{self, Read},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, Ordering},
    },
};

use s3s::{S3Error, service::S3ServiceBuilder};
use tokio::{net::TcpListener, sync::watch};

mod auth;
mod faults;
mod log;
mod objects;
mod operations;
mod server;
mod store;
#[cfg(test)]
mod tests;
mod uploads;
mod verify;
mod wire;

pub use auth::{Key, Role};
pub use faults::{Fault, Rule};
pub use log::Asked;

use self::{
    auth::Gatekeeper,
    faults::Faults,
    log::Log,
    operations::Operations,
    server::{Tls, serve},
    store::{Change, Object, Segment, Store},
    wire::Wire,
};
use crate::{
    clock::{Clock, SystemClock},
    shutdown::Tasks,
};

/// How a double is started.
#[derive(Clone, Debug)]
pub struct DoubleOptions {
    /// Folder of its state, made if it is not there.
    pub root: PathBuf,
    /// Credentials it knows.
    pub keys: Vec<Key>,
    /// Region that requests must be signed for.
    pub region: String,
    /// Buckets to make.
    pub buckets: Vec<String>,
    /// Whether to speak TLS, with a certificate made at the start.
    pub tls: bool,
    /// Where to listen: loopback; port 0 for any.
    pub address: SocketAddr,
}

/// A running double. Dropped without [`S3Double::stop`] it stops soon after.
pub struct S3Double {
    endpoint: String,
    ca_pem: Option<String>,
    store: Arc<Store>,
    keys: Arc<RwLock<Vec<Key>>>,
    ahead_s: Arc<AtomicI64>,
    aged_s: Arc<AtomicI64>,
    log: Arc<Log>,
    faults: Arc<Faults>,
    away: watch::Sender<bool>,
    tasks: Tasks,
}

impl S3Double {
    /// Starts a double on this runtime.
    ///
    /// # Errors
    ///
    /// The folder or the port cannot be used; an address that is not loopback.
    pub async fn start(options: DoubleOptions) -> io::Result<Self> {
        if !options.address.ip().is_loopback() {
            return Err(io::Error::other("the double listens on loopback only"));
        }
        let store = Arc::new(Store::open(&options.root)?);
        for bucket in &options.buckets {
            store.make_bucket(bucket)?;
        }
        let tls = if options.tls { Some(Tls::new()?) } else { None };
        let listener = TcpListener::bind(options.address).await?;
        let address = listener.local_addr()?;
        let keys = Arc::new(RwLock::new(options.keys));
        let ahead_s = Arc::new(AtomicI64::new(0));
        let aged_s = Arc::new(AtomicI64::new(0));
        let operations =
            Operations { store: store.clone(), ahead_s: ahead_s.clone(), aged_s: aged_s.clone() };
        let (region, known) = (options.region, keys.clone());
        let gatekeeper = Gatekeeper { keys: known, region, store: store.clone() };
        let mut builder = S3ServiceBuilder::new(operations.clone());
        builder.set_auth(gatekeeper.clone());
        builder.set_access(gatekeeper);
        let (log, faults) = (Arc::new(Log::new(SystemClock.now())), Arc::new(Faults::default()));
        let service = builder.build();
        let wire = Wire { service, operations, log: log.clone(), faults: faults.clone() };
        let (away, watched) = watch::channel(false);
        let tasks = Tasks::new();
        let acceptor = tls.as_ref().map(|tls| tls.acceptor.clone());
        tasks.spawn(serve(listener, address, wire, acceptor, tasks.clone(), watched));
        let scheme = if options.tls { "https" } else { "http" };
        let endpoint = format!("{scheme}://{address}");
        let ca_pem = tls.map(|tls| tls.ca_pem);
        Ok(Self { endpoint, ca_pem, store, keys, ahead_s, aged_s, log, faults, away, tasks })
    }

    /// Its URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The authority of its certificate, PEM.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// Every request so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Asked> {
        self.log.read()
    }

    /// Forgets the requests so far; numbers go on.
    pub fn forget_requests(&self) {
        self.log.clear();
    }

    /// Adds a fault, after those there are.
    pub fn fault(&self, rule: Rule) {
        self.faults.add(rule);
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        self.faults.clear();
    }

    /// Breaks all connections and refuses new ones, until called with `false`.
    pub fn away(&self, away: bool) {
        self.away.send_replace(away);
    }

    /// Replaces the credentials that it knows.
    pub fn set_keys(&self, keys: Vec<Key>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Sets its clock ahead of the machine's, or behind.
    pub fn set_clock_ahead_s(&self, seconds: i64) {
        self.ahead_s.store(seconds, Ordering::Relaxed);
    }

    /// Shows open uploads as begun so many seconds earlier than they were.
    pub fn age_uploads_s(&self, seconds: i64) {
        self.aged_s.store(seconds, Ordering::Relaxed);
    }

    /// Keys of objects under a prefix, in order. Asks nobody, is in no log.
    pub fn keys(&self, bucket: &str, prefix: &str) -> Vec<String> {
        let keys = self.store.look(bucket, |bucket| {
            let keys = bucket.objects.keys().filter(|key| key.starts_with(prefix));
            Ok(keys.cloned().collect())
        });
        keys.unwrap_or_default()
    }

    /// An object's bytes, past all rules.
    pub fn object(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        let missing = || S3Error::new(s3s::S3ErrorCode::NoSuchKey);
        let object =
            self.store.look(bucket, |b| b.objects.get(key).cloned().ok_or_else(missing)).ok()?;
        let mut bytes = vec![];
        for segment in object.segments {
            let mut file = std::fs::File::open(self.store.body(segment.body)).ok()?;
            file.read_to_end(&mut bytes).ok()?;
        }
        Some(bytes)
    }

    /// Replaces an object's bytes past all rules, or removes it: what an intruder would do.
    ///
    /// # Errors
    ///
    /// No such bucket, or the disk refused.
    pub fn tamper(&self, bucket: &str, key: &str, bytes: Option<&[u8]>) -> io::Result<()> {
        let body = self.store.new_body();
        std::fs::write(&body.path, bytes.unwrap_or_default())?;
        let number = body.number;
        let length = u64::try_from(bytes.map_or(0, <[u8]>::len)).map_err(io::Error::other)?;
        let change = self.store.change(bucket, |found| {
            let (bucket, key) = (bucket.to_owned(), key.to_owned());
            let Some(_) = bytes else { return Ok(Change::Delete { bucket, key }) };
            let before = found.objects.get(&key);
            let object = Object {
                segments: vec![Segment { body: number, bytes: length }],
                etag: before.map_or("tampered".into(), |before| before.etag.clone()),
                sums: before.map(|before| before.sums.clone()).unwrap_or_default(),
                composite: false,
                head: before.map(|before| before.head.clone()).unwrap_or_default(),
                at: before.map_or(0, |before| before.at),
                key,
            };
            Ok(Change::Put { bucket, object })
        });
        change.map_err(io::Error::other)?;
        if bytes.is_some() {
            body.keep();
        }
        Ok(())
    }

    /// Keys and ids of open uploads.
    pub fn open_uploads(&self, bucket: &str) -> Vec<(String, String)> {
        let open = self.store.look(bucket, |bucket| Ok(bucket.uploads.keys().cloned().collect()));
        open.unwrap_or_default()
    }

    /// Stops it, and waits until it has. Its state stays in its folder.
    pub async fn stop(self) {
        self.tasks.stop().await;
    }
}

impl Drop for S3Double {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

impl fmt::Debug for S3Double {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Double").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
