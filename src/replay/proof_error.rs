//! Why the lake and its source could not be compared. Pure.

use std::time::Duration;

use super::ReplayError;
use crate::{
    error::{Cause, Classified},
    ledger::LedgerError,
    source::postgres::SourceError,
    units::Position,
};

/// Why nothing was proven or disproven.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The lake, or the disk.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The database.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The database is another one.
    #[error(
        "the database is another one: its system identifier is {found}, the ledger's is {expected}"
    )]
    Another {
        /// The server's.
        found: String,
        /// The ledger's.
        expected: String,
    },
    /// The ledger did not come to the position.
    #[error(
        "the ledger reaches {reached}, and the database was read at {position}: waited for {} s",
        waited.as_secs()
    )]
    Behind {
        /// Where its changes end.
        reached: Position,
        /// Where the snapshot stands.
        position: Position,
        /// For how long.
        waited: Duration,
    },
}

impl Classified for ProofError {
    fn cause(&self) -> Cause {
        match self {
            Self::Replay(why) => why.cause(),
            Self::Source(why) => why.cause(),
            Self::Ledger(why) => why.cause(),
            Self::Another { .. } => Cause::Config,
            Self::Behind { .. } => Cause::RestorePoint,
        }
    }

    fn remedy(&self) -> String {
        match self {
            Self::Replay(why) => why.remedy(),
            Self::Source(why) => why.remedy(),
            Self::Ledger(why) => why.remedy(),
            Self::Another { .. } => "name the database that the box copies, in `url` or with --source-url".into(),
            Self::Behind { .. } => {
                "see on the box that it runs and ships (`lakehead status`), or give --ledger-wait longer".into()
            }
        }
    }
}
