//! Configuration: what the site's file says, checked, in types that cannot be wrong.
//!
//! The only room that reads the environment. Each struct below is one table of the file (DESIGN §12).
//!
//! **Invariant:** a [`Config`] that came out of [`Config::load`] satisfies every rule in its
//! documentation, and no key of the file was left unread.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

#[cfg(feature = "fuzz")]
pub mod fuzz;
mod document;
pub mod environment;
mod error;
mod rules;
pub mod secret;
mod site;
mod source_url;

pub use environment::{AwsKeys, Environment};
pub use error::{ConfigError, Problem};
pub use secret::{Secret, load_key32, load_secret, make_key32};

use crate::units::BitRate;

/// The whole file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// `[appliance]`
    pub appliance: Appliance,
    /// `[[source]]`, at least one, names distinct.
    pub sources: Vec<Source>,
    /// `[lake]`
    pub lake: Lake,
    /// `[encryption]`
    pub encryption: Encryption,
    /// `[journal]`
    pub journal: Journal,
    /// `[seal]`
    pub seal: Seal,
    /// `[ship]`
    pub ship: Ship,
    /// `[[link]]`; none: unshaped, the routing table's way.
    pub link: Option<Link>,
    /// `[status]`
    pub status: Option<Status>,
}

/// `[appliance]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Appliance {
    /// `[a-z0-9-]`, 1 to 40 characters.
    pub name: String,
    /// Where everything durable lies.
    pub data_dir: PathBuf,
}

/// `[[source]]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Source {
    /// `[a-z0-9_-]`, 1 to 40 characters, the first a letter or digit; stands in keys.
    pub name: String,
    /// Only `postgres` in this firmware.
    pub kind: SourceKind,
    /// Connection URL without its password; hosts, port, database, user, sslmode, sslrootcert.
    /// `sslmode` always stands in it: where the file has none, `verify-full`, and `prefer` to loopback.
    pub url: String,
    /// File with the password, mode 0600.
    pub password_file: Option<PathBuf>,
    /// What the box shows of itself over TLS.
    pub client: Option<ClientCertificate>,
    /// Patterns over `schema.table`: `*` any run of characters, `!` excludes, the last match decides.
    pub tables: Vec<String>,
    /// When the source is confirmed (DESIGN §4).
    pub release: Release,
    /// With `auto`: WAL kept on the server before the rule falls back to `journal`, in bytes. 10 GiB.
    pub release_wal_max: u64,
    /// Tables or parts of tables read at once during a snapshot, 1–16. 2.
    pub snapshot_workers: u32,
    /// Whether a snapshot is read no faster than those who work in the database bear. `gentle`.
    pub snapshot_pace: SnapshotPace,
    /// How long one snapshot is read under, from 10 s to a day: the server cleans up nothing that is newer. 5 min.
    pub snapshot_age: Duration,
    /// When the server sends large transactions (from version 14 on). `as_they_come`.
    pub large_transactions: LargeTransactions,
    /// How tables are repaired behind a gap.
    pub after_gap: AfterGap,
    /// Sequences and new large objects are written to the lake no more often, 10 s at least. 60 s.
    pub sequence_interval: Duration,
    /// Whether large objects are copied. `copy`.
    pub large_objects: LargeObjects,
    /// Publication made by an operator, used instead of ours.
    pub publication: Option<String>,
    /// Replication slot made by an operator, used instead of ours.
    pub slot: Option<String>,
}

/// A certificate by which the box logs in, beside its password or instead of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientCertificate {
    /// PEM file with the certificate, and those between it and its authority.
    pub certificate_file: PathBuf,
    /// PEM file with its key, not encrypted, mode 0600.
    pub key_file: PathBuf,
}

/// Kinds of databases.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SourceKind {
    /// PostgreSQL 12 to 18.
    Postgres,
}

/// When the source is confirmed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Release {
    /// `lake` while the WAL kept for us is small, else `journal`.
    Auto,
    /// Once the journal has it fsynced.
    Journal,
    /// Once its ledger entry is in S3.
    Lake,
}

/// How fast a snapshot is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SnapshotPace {
    /// Others' commits are to become less than 15 % slower.
    Gentle,
    /// As fast as it goes.
    Full,
}

/// When the server sends large transactions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LargeTransactions {
    /// While they go on: the box keeps them.
    AsTheyCome,
    /// Once they are committed: the server keeps them on its disk.
    AtCommit,
}

/// How tables are repaired behind a gap.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AfterGap {
    /// As wholes, at once.
    Reread,
    /// By the keys of the rows that differ, once `lakehead verify --against-source --repair` has compared them.
    Compare,
}

/// What becomes of large objects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LargeObjects {
    /// Those that the role may read are copied.
    Copy,
    /// They are not looked at.
    Leave,
}

/// `[lake]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lake {
    /// Bucket.
    pub bucket: String,
    /// First part of every key, without slashes at its ends. May be empty.
    pub prefix: String,
    /// AWS region.
    pub region: String,
    /// Endpoint URL; `http://` only to loopback.
    pub endpoint: Option<String>,
    /// Bucket in the path instead of the host name.
    pub path_style: bool,
    /// The AWS account that the bucket is of, 12 digits: S3 refuses requests to one of another's.
    pub owner: Option<String>,
    /// AWS shared-credentials format, mode 0600.
    pub credentials_file: Option<PathBuf>,
    /// PEM file of the authorities trusted for the endpoint, instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// `[encryption]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Encryption {
    /// `client`: we encrypt; the data key is wrapped by the key in this file.
    Client {
        /// 32 bytes, base64, mode 0600.
        key_file: PathBuf,
    },
    /// `sse-kms`: S3 encrypts.
    SseKms {
        /// The customer's key.
        kms_key_id: String,
    },
    /// `none`: asked for by name; warned of at every start.
    None,
}

/// `[journal]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Journal {
    /// Limit of all segment files, in bytes. 50 GiB.
    pub max_bytes: u64,
    /// File with the journal key (32 bytes, base64), mode 0600. Made in `data_dir` if absent.
    pub key_file: Option<PathBuf>,
    /// Size at which a segment is closed, in bytes. 64 MiB.
    pub segment_bytes: u64,
}

/// `[seal]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seal {
    /// Size at which an epoch is cut or a snapshot's object is closed, in bytes. 64 MiB.
    pub object_bytes: u64,
    /// Age at which an epoch is cut. 60 s.
    pub object_age: Duration,
    /// How whole numbers, dates and times are laid down.
    pub integers: Integers,
    /// How UUIDs are laid down.
    pub uuids: Uuids,
}

/// How whole numbers, dates and times that no dictionary holds are laid down in Parquet.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Integers {
    /// As they are, which every reader has; those that rise by little compressed as what is known to rise.
    #[default]
    Rising,
    /// As they are, compressed as anything else.
    Plain,
    /// As what each is more than the one before (`DELTA_BINARY_PACKED`).
    Delta,
}

/// How UUIDs are laid down in Parquet.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Uuids {
    /// As sixteen bytes, annotated as UUID.
    #[default]
    Uuid,
    /// As a string of 36 characters, which every reader has.
    Text,
}

/// `[ship]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ship {
    /// Objects larger than this go in parts, in bytes. 16 MiB; at least 5 MiB.
    pub part_bytes: u64,
    /// Requests at once, 1–64. 4.
    pub requests: usize,
}

/// `[[link]]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// `[a-z0-9_-]`, 1 to 40 characters, the first a letter or digit.
    pub name: String,
    /// Network interface that all bytes for S3 leave by, and none for the databases.
    pub interface: String,
    /// The most that leaves, on the wire; at least 1 Mbit/s.
    pub rate: BitRate,
}

/// `[status]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// Address of the page and of `/metrics`.
    pub listen: SocketAddr,
    /// PEM file of the page's certificate chain. Without it, a listener beyond loopback makes its own.
    pub certificate: Option<PathBuf>,
    /// PEM file of the certificate's key, mode 0600. With `certificate`, and only then.
    pub certificate_key: Option<PathBuf>,
    /// Names by which browsers may ask for the page, besides its address and `localhost`.
    pub hosts: Vec<String>,
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    ///
    /// The file is not there, or is wrong: every problem found, each with its line, key and remedy.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|why| ConfigError::unreadable(path, &why))?;
        Self::parse(path, &text, &Environment::read())
    }

    /// Checks the URL of a database that is given as an argument, by the rules for a source's: no
    /// password in it, and `sslmode` always said; but with our certificate, if there is to be one: `sslcert`, `sslkey`. Gives the
    /// completed URL.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn database_url(argument: &str, text: &str) -> Result<String, ConfigError> {
        source_url::database_url(text).map_err(|fault| ConfigError::Argument {
            what: format!("{argument}: the URL {}", fault.what),
            remedy: fault.remedy.replace("password_file", "--password-file"),
        })
    }

    /// Checks the file's text. `path` is only named in errors.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str, environment: &Environment) -> Result<Self, ConfigError> {
        site::parse(path, text, environment)
    }
}
