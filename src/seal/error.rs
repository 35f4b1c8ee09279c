//! What can go wrong while sealing and opening. Pure.

use std::{io, path::Path};

use parquet::errors::ParquetError;

use super::gcm::GcmError;
use crate::{
    error::{Cause, Classified},
    facts::{FactDamaged, FactsError},
    journal::{DecodeError, JournalError},
    units::Sequence,
};

/// Why nothing was sealed or opened. What was recorded before stays; the rest is done again.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The spool folder or a file beside it refused.
    #[error("{verb} {path}: {why}")]
    Disk {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: String,
        /// What the system said.
        why: io::Error,
    },
    /// A spool file is not what was written.
    #[error("spool file {path}: {what}")]
    Spool {
        /// The file.
        path: String,
        /// What does not match.
        what: &'static str,
    },
    /// A fact is not durable.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// A fact does not read.
    #[error(transparent)]
    Fact(#[from] FactDamaged),
    /// The journal gave no batch.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A record or row cannot be read. Nothing was skipped (I16).
    #[error("decode {what}: {why}")]
    Decode {
        /// Where: the batch, or the table.
        what: String,
        /// What is wrong.
        why: DecodeError,
    },
    /// Batches are not whole transactions one after the other, or rows went astray (I11).
    #[error("{what} after change {}: expected {expected}, found {found}", .after.0)]
    Order {
        /// What was counted or compared.
        what: &'static str,
        /// The last change before it.
        after: Sequence,
        /// As the journal or the source said.
        expected: u64,
        /// As it came.
        found: u64,
    },
    /// The Parquet writer refused.
    #[error("write Parquet of {table}: {why}")]
    Parquet {
        /// Qualified name.
        table: String,
        /// What it said.
        why: ParquetError,
    },
    /// An object grew beyond what one key and IV may encrypt.
    #[error("encrypt: {0}")]
    Encrypt(&'static str),
    /// The lake key is not 32 bytes.
    #[error("the lake key has {0} bytes: it must have 32")]
    KeyLength(usize),
    /// No key was given, or another one than the object was sealed with.
    #[error("the lake key does not open the object{0}")]
    Key(&'static str),
    /// The object is not what was sealed.
    #[error("the object is altered: {0}")]
    Altered(&'static str),
    /// Changes came before the source's origin was recorded.
    #[error("the source's origin is not recorded")]
    Origin,
}

impl SealError {
    /// An error of the file system.
    pub(super) fn disk(verb: &'static str, path: &Path, why: io::Error) -> Self {
        Self::Disk { verb, path: path.display().to_string(), why }
    }

    /// An error of the Parquet writer; of the file beneath it, where that is what failed.
    pub(super) fn parquet(table: &str, why: ParquetError) -> Self {
        match why {
            ParquetError::External(inner) => match inner.downcast::<io::Error>() {
                Ok(why) => {
                    Self::Disk { verb: "write", path: format!("spool of {table}"), why: *why }
                }
                Err(inner) => {
                    Self::Parquet { table: table.into(), why: ParquetError::External(inner) }
                }
            },
            why => Self::Parquet { table: table.into(), why },
        }
    }

    /// Whether a spool file is gone or is not what was written; else this process may only have been hindered to read it.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Spool { .. } => true,
            Self::Disk { why, .. } => {
                let is_gone = [io::ErrorKind::NotFound, io::ErrorKind::UnexpectedEof];
                let is_damaged = |code| [EIO, EBADMSG, EUCLEAN].contains(&code);
                is_gone.contains(&why.kind()) || why.raw_os_error().is_some_and(is_damaged)
            }
            _ => false,
        }
    }
}

impl From<GcmError> for SealError {
    fn from(error: GcmError) -> Self {
        match error {
            GcmError::TooLong => Self::Encrypt("the object is larger than one key may encrypt"),
            GcmError::Altered => Self::Altered("the tag does not match"),
            GcmError::Refused => Self::Encrypt("AWS-LC refused: out of memory"),
        }
    }
}

impl Classified for SealError {
    fn cause(&self) -> Cause {
        match self {
            Self::Disk { why, .. } => match why.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Cause::DiskFull,
                _ => Cause::DiskFailed,
            },
            Self::Spool { .. } | Self::Facts(_) => Cause::DiskFailed,
            Self::Fact(_) => Cause::JournalDamaged,
            Self::Journal(error) => error.cause(),
            Self::Decode { .. } => Cause::SourceUnknown,
            Self::Order { .. } | Self::Parquet { .. } | Self::Encrypt(_) | Self::Origin => {
                Cause::Defect
            }
            Self::KeyLength(_) => Cause::SecretFile,
            Self::Key(_) => Cause::LakeKey,
            Self::Altered(_) => Cause::LakeAltered,
        }
    }
}

/// Sectors do not read.
const EIO: i32 = 5;
/// The file system finds itself damaged, by a checksum or otherwise.
const EBADMSG: i32 = 74;
const EUCLEAN: i32 = 117;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_this_process_cannot_read_is_not_lost() {
        let disk =
            |code| SealError::disk("read", Path::new("s"), io::Error::from_raw_os_error(code));
        // EMFILE, ENOMEM, EACCES; ENOENT, EIO, EBADMSG, EUCLEAN.
        assert!([24, 12, 13].into_iter().all(|code| !disk(code).is_lost()));
        assert!([2, 5, 74, 117].into_iter().all(|code| disk(code).is_lost()));
        assert!(SealError::Spool { path: "s".into(), what: "cut" }.is_lost());
    }

    #[test]
    fn a_full_disk_under_the_parquet_writer_is_a_full_disk() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = SealError::parquet("public.t", ParquetError::External(Box::new(full)));
        assert_eq!(error.cause(), Cause::DiskFull);
    }
}
