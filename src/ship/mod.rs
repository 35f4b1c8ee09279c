//! Ship: sends sealed objects to S3, each exactly once, and can be stopped anywhere.
//!
//! Takes [`Group`](crate::seal::Group)s. Gives [`Shipped`] groups in the same order. Keeps upload
//! ids, acknowledged parts and what the spool lost in the facts under `ship/`.
//!
//! Pure: [`plan`] cuts, [`upload`] says what is next, [`retry`] says what an error means. The awaits
//! are in [`drive`]; [`s3`] is the one door to the SDK, `memory` its stand-in with faults.

use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

#[cfg(feature = "fuzz")]
pub mod fuzz;
mod ahead;
mod answer;
mod body;
pub mod check;
pub mod checksum;
mod content;
pub mod credentials;
pub mod drive;
mod endpoint;
mod failure;
pub mod gate;
pub mod http;
#[cfg(any(test, feature = "demo"))]
pub mod memory;
mod object;
pub mod plan;
pub mod retry;
pub mod s3;
#[cfg(any(test, feature = "demo"))]
pub mod suite;
pub mod sweep;
pub mod upload;

pub use body::{PATIENCE, patience};
pub use content::Content;
pub use drive::forget;

pub use crate::seal::{
    Defined, Encryption, Fates, Group, GroupKind, Looked, LookedFor, Object, Op, Repaired,
};
use crate::{
    disk::work::WorkFile,
    error::{Cause, Classified},
    seal::SealError,
};

/// A group all of whose objects S3 has acknowledged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shipped {
    /// The group.
    pub group: Group,
}

/// The requests of the appliance. It can write, and nothing else (I19: never over an existing key).
/// Implemented by `s3.rs`, and by `memory.rs` with faults; one suite of tests runs against both.
pub trait ObjectStore: Send + Sync {
    /// PutObject with `If-None-Match: *`.
    fn put<'a>(&'a self, put: Put<'a>) -> BoxFuture<'a, Result<(), ShipError>>;

    /// CreateMultipartUpload, checksum CRC64NVME over the full object. Gives the upload id.
    fn create<'a>(&'a self, head: Head<'a>) -> BoxFuture<'a, Result<String, ShipError>>;

    /// UploadPart. Gives the part's ETag.
    fn part<'a>(&'a self, part: Part<'a>) -> BoxFuture<'a, Result<String, ShipError>>;

    /// CompleteMultipartUpload with `If-None-Match: *`, the whole object's length and checksum.
    fn complete<'a>(&'a self, complete: Complete<'a>) -> BoxFuture<'a, Result<(), ShipError>>;

    /// AbortMultipartUpload. An upload that is not there counts as aborted.
    fn abort<'a>(&'a self, key: &'a str, upload: &'a str) -> BoxFuture<'a, Result<(), ShipError>>;

    /// ListParts: the parts that S3 holds, or `None` if it knows no such upload.
    fn parts<'a>(
        &'a self,
        key: &'a str,
        upload: &'a str,
    ) -> BoxFuture<'a, Result<Option<Vec<StoredPart>>, ShipError>>;

    /// ListMultipartUploads under a prefix: key, upload id and start.
    fn uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<OpenUpload>, ShipError>>;
}

/// The requests of those who read: verify, restore, adopt. With credentials of their own.
pub trait ObjectReader: Send + Sync {
    /// Keys under a prefix, in order, after `after`; at most a page. With lengths.
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Listed>, ShipError>>;

    /// A whole object of at most [`GET_BYTES_MAX`], or `None` if there is none. For ledger entries.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Fetched>, ShipError>>;

    /// An object into a file, of which nothing stays that was in it, or `None` if there is none. For objects of any
    /// size; of one that is longer than `bytes_max` no more is fetched: [`ShipError::TooLong`].
    fn fetch<'a>(
        &'a self,
        key: &'a str,
        into: &'a WorkFile,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Option<BTreeMap<String, String>>, ShipError>>;
}

/// Longest object that [`ObjectReader::get`] gives. An entry of the ledger stands in one batch of facts before it is sent,
/// which has 32 MiB at most; one of 10,000 tables has about 10 MiB.
pub const GET_BYTES_MAX: u64 = 36 << 20;

/// Refuses an object of which `bytes` have come, where it has `bytes_max` at most.
pub(crate) fn within(key: &str, bytes: u64, bytes_max: u64) -> Result<(), ShipError> {
    match bytes <= bytes_max {
        true => Ok(()),
        false => Err(ShipError::TooLong { key: key.into(), bytes_max }),
    }
}

/// Where the bytes of sealed objects lie: the spool, seen from here.
pub trait ReadSpool: Send + Sync {
    /// Hands the bytes of an object as they are to be sent to `each`, piece after piece, until it says that it
    /// wants no more. Blocks; called on threads for blocking work.
    ///
    /// # Errors
    ///
    /// [`ShipError::Lost`], [`ShipError::Spool`].
    fn read(
        &self,
        object: &Object,
        range: Range<u64>,
        each: &mut dyn FnMut(Bytes) -> bool,
    ) -> Result<(), ShipError>;

    /// What [`ReadSpool::read`] gives on such a thread; whole only if `sum` is its checksum. A spool that never
    /// blocks may have it at hand.
    ///
    /// # Errors
    ///
    /// As [`ReadSpool::read`], of such a one.
    fn content(
        self: Arc<Self>,
        object: Arc<Object>,
        range: Range<u64>,
        sum: String,
    ) -> Result<Content, ShipError>
    where
        Self: 'static,
    {
        Ok(Content::read(self, object, range, sum))
    }

    /// The checksum of what [`ReadSpool::read`] gives on such a thread, for parts of objects that do not say it.
    fn sum(
        self: Arc<Self>,
        object: Arc<Object>,
        range: Range<u64>,
    ) -> BoxFuture<'static, Result<String, ShipError>>
    where
        Self: 'static,
    {
        let read = tokio::task::spawn_blocking(move || checksum::read(&*self, &object, range));
        // The runtime ends, or the read panicked, which ends the process too.
        Box::pin(async move { read.await.map_err(|_| ShipError::Stopped)? })
    }
}

/// The kinds of requests, by S3's own names.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Request {
    /// PutObject
    Put,
    /// CreateMultipartUpload
    Create,
    /// UploadPart
    Part,
    /// CompleteMultipartUpload
    Complete,
    /// AbortMultipartUpload
    Abort,
    /// ListParts
    Parts,
    /// ListMultipartUploads
    Uploads,
    /// ListObjectsV2
    List,
    /// GetObject
    Get,
}

impl Request {
    /// As S3 calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "PutObject",
            Self::Create => "CreateMultipartUpload",
            Self::Part => "UploadPart",
            Self::Complete => "CompleteMultipartUpload",
            Self::Abort => "AbortMultipartUpload",
            Self::Parts => "ListParts",
            Self::Uploads => "ListMultipartUploads",
            Self::List => "ListObjectsV2",
            Self::Get => "GetObject",
        }
    }
}

/// What is sent with an object, whole or in parts.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Its key.
    pub key: &'a str,
    /// Metadata, names without `x-amz-meta-`.
    pub metadata: &'a BTreeMap<String, String>,
    /// Decides the SSE headers.
    pub encryption: &'a Encryption,
    /// Content type.
    pub content_type: &'static str,
}

/// A whole object in one request.
#[derive(Debug)]
pub struct Put<'a> {
    /// What is sent with it.
    pub head: Head<'a>,
    /// Its bytes.
    pub body: Content,
    /// As in [`Object::crc64nvme`].
    pub crc64nvme: &'a str,
}

/// One part.
#[derive(Debug)]
pub struct Part<'a> {
    /// The object's key.
    pub key: &'a str,
    /// The upload's id.
    pub upload: &'a str,
    /// From 1.
    pub number: u32,
    /// Its bytes.
    pub body: Content,
    /// Of the part, base64.
    pub crc64nvme: &'a str,
}

/// The end of a multipart upload.
#[derive(Clone, Debug)]
pub struct Complete<'a> {
    /// The object's key.
    pub key: &'a str,
    /// The upload's id.
    pub upload: &'a str,
    /// Every part, in order.
    pub parts: &'a [StoredPart],
    /// Length of the whole.
    pub bytes: u64,
    /// Of the whole, base64.
    pub crc64nvme: &'a str,
}

/// A part that S3 acknowledged.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StoredPart {
    /// From 1.
    pub number: u32,
    /// Its length.
    pub bytes: u64,
    /// As S3 gave it.
    pub etag: String,
    /// Of the part, base64.
    pub crc64nvme: String,
}

/// A multipart upload that was begun and not ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OpenUpload {
    /// The object's key.
    pub key: String,
    /// Its id.
    pub upload: String,
    /// How long ago it was begun, by the store's clock, if that is known.
    pub age: Option<Duration>,
}

/// A key in a listing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listed {
    /// The key.
    pub key: String,
    /// Its length.
    pub bytes: u64,
}

/// An object as it came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fetched {
    /// Its bytes.
    pub bytes: Bytes,
    /// Its metadata, names without `x-amz-meta-`, lowercase.
    pub metadata: BTreeMap<String, String>,
}

/// What S3 or the way to it said. The variants are what the caller can do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ShipError {
    /// 412: the key exists.
    #[error("{key}: exists already")]
    Exists {
        /// The key.
        key: String,
    },
    /// 409: another write to the key is under way; an upload must start again with all its parts.
    #[error("{key}: conflict with another write")]
    Conflict {
        /// The key.
        key: String,
    },
    /// 404 NoSuchUpload.
    #[error("{key}: no such upload")]
    NoSuchUpload {
        /// The key.
        key: String,
    },
    /// No answer came: whether the request took effect is unknown.
    #[error("{request} {key}: no answer: {why}")]
    Unanswered {
        /// The request's name.
        request: &'static str,
        /// The key.
        key: String,
        /// What the connection said.
        why: String,
    },
    /// S3 answered that it failed; sending again can help, and whether it took effect is unknown.
    #[error("{request} {key}: {status} {code}: {message}")]
    Failed {
        /// The request's name.
        request: &'static str,
        /// The key.
        key: String,
        /// HTTP status; 200 with an error body too.
        status: u16,
        /// S3's code.
        code: String,
        /// S3's message.
        message: String,
        /// What to do about it.
        cause: Cause,
    },
    /// The way to S3 cannot be set up: a file or value of the configuration. No request was sent.
    #[error("{what}")]
    Setup {
        /// What is wrong.
        what: String,
        /// What to do about it.
        cause: Cause,
    },
    /// An object has more bytes than it may have; the rest of it was not fetched.
    #[error("{key}: it is longer than {bytes_max} B")]
    TooLong {
        /// The key.
        key: String,
        /// What it may have.
        bytes_max: u64,
    },
    /// A spool file cannot be read by this process.
    #[error("read spool {path}: {why}")]
    Spool {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A spool file is gone, or is not what was sealed: the next start makes its object anew.
    #[error("read spool {path}: {why}")]
    Lost {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// The facts cannot be recorded.
    #[error(transparent)]
    Facts(#[from] crate::facts::FactsError),
    /// Shutdown was asked for.
    #[error("stopped")]
    Stopped,
}

impl ShipError {
    /// What the spool said of an object's file.
    pub fn spool(object: &Object, said: &SealError) -> Self {
        let (path, why) = (object.spool.clone(), said.to_string());
        match said.is_lost() {
            true => Self::Lost { path, why },
            false => Self::Spool { path, why },
        }
    }
}

impl Classified for ShipError {
    fn cause(&self) -> Cause {
        match self {
            Self::Exists { .. } | Self::Conflict { .. } | Self::NoSuchUpload { .. } => {
                Cause::LakeUnavailable
            }
            Self::Unanswered { .. } | Self::Stopped => Cause::LakeUnavailable,
            Self::Failed { cause, .. } | Self::Setup { cause, .. } => *cause,
            Self::TooLong { .. } => Cause::LakeAltered,
            Self::Lost { .. } => Cause::SpoolDamaged,
            Self::Spool { .. } | Self::Facts(_) => Cause::DiskFailed,
        }
    }
}
