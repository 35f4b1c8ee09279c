//! Why a road ends, whichever room it ends in. Pure.

use std::{io, path::PathBuf};

use crate::{
    config::ConfigError,
    error::{Cause, Classified},
    facts::{FactDamaged, FactsError},
    journal::{JournalError, KeepError},
    ledger::LedgerError,
    replay::ReplayError,
    seal::SealError,
    ship::ShipError,
    source::postgres::SourceError,
};

/// Why the pipeline ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file or secret of the configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A thread cannot be started.
    #[error("start a thread: {0}")]
    Thread(io::Error),
    /// A folder cannot be made.
    #[error("make {}: {why}", path.display())]
    Folder {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Sealing failed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Shipping failed.
    #[error(transparent)]
    Ship(#[from] ShipError),
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The journal stopped.
    #[error(transparent)]
    Keep(KeepError),
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The lake cannot be read back.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A fact of the pipeline's own cannot be recorded.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// A fact of the pipeline's own does not read.
    #[error(transparent)]
    FactDamaged(#[from] FactDamaged),
    /// This box has begun to take over the chain of a lost one.
    #[error("the adoption of the chain of `{0}` was begun here and has not finished")]
    Adopting(String),
}

impl Classified for RunError {
    fn cause(&self) -> Cause {
        match self {
            Self::Thread(_) => Cause::Defect,
            Self::Folder { why, .. } if why.kind() == io::ErrorKind::StorageFull => Cause::DiskFull,
            Self::Folder { .. } => Cause::DiskFailed,
            Self::Config(error) => error.cause(),
            Self::Journal(error) => error.cause(),
            Self::Seal(error) => error.cause(),
            Self::Ship(error) => error.cause(),
            Self::Ledger(error) => error.cause(),
            Self::Source(error) => error.cause(),
            Self::Replay(error) => error.cause(),
            Self::Facts(_) | Self::Keep(_) => Cause::DiskFailed,
            Self::FactDamaged(_) => Cause::JournalDamaged,
            Self::Adopting(_) => Cause::Config,
        }
    }

    fn remedy(&self) -> String {
        match self {
            Self::Thread(_)
            | Self::Folder { .. }
            | Self::Facts(_)
            | Self::FactDamaged(_)
            | Self::Keep(_) => self.cause().disposition().remedy().into(),
            Self::Adopting(_) => {
                "finish it: run `lakehead adopt` again; or, to begin anew, empty data_dir".into()
            }
            Self::Config(error) => error.remedy(),
            Self::Journal(error) => error.remedy(),
            Self::Seal(error) => error.remedy(),
            Self::Ship(error) => error.remedy(),
            Self::Ledger(error) => error.remedy(),
            Self::Source(error) => error.remedy(),
            Self::Replay(error) => error.remedy(),
        }
    }
}
