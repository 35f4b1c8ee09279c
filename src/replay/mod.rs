//! Replay: reads the lake back: rows of one object (`cat`), a whole source into a database (`restore`), or
//! beside it, to compare both (`prove`).
//!
//! Takes objects as S3 has them, and the ledger's entries, already verified. Gives rows and databases.
//! Keeps nothing on the box; a restore's progress stands in the database that it fills.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod apply;
pub mod cat;
pub mod evolve;
mod expression;
pub mod fetch;
pub mod key;
pub mod labels;
pub mod merge;
pub mod plan;
mod plan_defined;
mod plan_gaps;
mod plan_large_objects;
mod plan_names;
mod plan_own;
mod plan_rewritten;
mod plan_sequences;
mod plan_tracks;
mod proof;
mod proof_compare;
mod proof_lake;
mod proof_error;
mod proof_layout;
mod proof_order;
mod proof_report;
mod proof_rows;
mod proof_spill;
mod proof_state;
pub mod read;
pub mod restore;
mod restore_large_objects;
mod restore_not_null;
mod restore_parts;
mod restore_repairs;
mod restore_rows;
mod restore_sequences;
mod restore_tables;
mod restore_target;
mod restore_types;
mod restore_values;
pub mod schema;
mod sequences;
mod types;
#[cfg(test)]
mod sample;

pub use proof::{Chain, ProofOptions, ProofProgress, prove};
pub use proof_error::ProofError;
pub use proof_report::{
    Differences, KEYS_MAX, OrderedAs, ProofReport, RowDifference, RowState, TableProof, Verdict,
};
pub use restore::{Progress, RestoreOptions, RestoreReport, restore};

use crate::{
    error::{Cause, Classified},
    ship::{ObjectReader, ShipError},
    units::{Position, Timestamp},
};

/// The lake, as one who may read and open it sees it.
#[derive(Clone)]
pub struct Lake {
    /// Fetches objects.
    pub reader: Arc<dyn ObjectReader>,
    /// Opens them.
    pub open: Open,
}

/// Opens a sealed object: the file as it was fetched, its metadata, and where its plain bytes go. An
/// object that is not encrypted is linked or copied there. `seal::open_file` with the lake key.
pub type Open = Arc<
    dyn Fn(&Path, &BTreeMap<String, String>, &Path) -> Result<(), Box<dyn Classified>>
        + Send
        + Sync,
>;

impl std::fmt::Debug for Lake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lake").finish_non_exhaustive()
    }
}

/// Where a restore ends: after the last transaction at or before it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Until {
    /// In the source's log.
    Position(Position),
    /// By commit time: at the first transaction that was committed later, in log order.
    Time(Timestamp),
}

/// Why the lake cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// S3 said so.
    #[error(transparent)]
    Ship(#[from] ShipError),
    /// The ledger or the caller names an object that is not there.
    #[error("{key}: no such object")]
    Missing {
        /// The key.
        key: String,
    },
    /// An object's bytes are not those that the ledger proves.
    #[error("{key}: its SHA-256 is not the one in the ledger")]
    Altered {
        /// The key.
        key: String,
    },
    /// An object does not open.
    #[error("open {key}: {why}")]
    Open {
        /// The key.
        key: String,
        /// What opening said.
        why: Box<dyn Classified>,
    },
    /// An object opens, and is not what was sealed.
    #[error("read {key}: {why}")]
    Object {
        /// The key, or the file.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// A file of the work folder, or the output.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: std::io::Error,
    },
    /// The lake does not hold these tables whole at the point asked for.
    #[error("not whole in the lake at {at}: {}", tables.join(", "))]
    Incomplete {
        /// The point.
        at: Position,
        /// Tables, and what is missing of each.
        tables: Vec<String>,
    },
    /// The lake begins later than the time asked for.
    #[error("the lake knows nothing of {}: its first snapshot was taken at {}", time.rfc3339(), began.rfc3339())]
    Before {
        /// The time.
        time: Timestamp,
        /// When the lake begins.
        began: Timestamp,
    },
    /// A table that was to be left out is none of the lake's.
    #[error("--except {table}: the lake holds no table of that name; give it as schema.table")]
    Unknown {
        /// The name.
        table: String,
    },
    /// The target is already beyond the point asked for.
    #[error("the database already stands at {at}, beyond {until}")]
    Beyond {
        /// Where it stands.
        at: Position,
        /// Where it was to end.
        until: Position,
    },
    /// The target has gone past changes of a table that it does not have.
    #[error(
        "{table} is not there as it is to be, and the database already stands at {at}, behind changes of it"
    )]
    Passed {
        /// Its qualified name.
        table: String,
        /// Where it stands.
        at: Position,
    },
    /// Another restore fills the target.
    #[error("another restore of this source runs in the database")]
    Busy,
    /// The target refused a statement. Values are left out.
    #[error("{doing}: {why}")]
    Target {
        /// What was being done.
        doing: String,
        /// What the database said.
        why: String,
    },
    /// As [`ReplayError::Target`]: a domain has constraints to which values do not keep.
    #[error("{doing}: {why}")]
    Domain {
        /// The domain, as SQL spells it.
        domain: String,
        /// What was being done.
        doing: String,
        /// What the database said.
        why: String,
    },
}

impl Classified for ReplayError {
    fn cause(&self) -> Cause {
        match self {
            Self::Ship(why) => why.cause(),
            Self::Open { why, .. } => Classified::cause(why.as_ref()),
            Self::Missing { .. } | Self::Altered { .. } | Self::Object { .. } => Cause::LakeAltered,
            Self::File { .. } => Cause::DiskFull,
            Self::Incomplete { .. } | Self::Before { .. } => Cause::RestorePoint,
            Self::Unknown { .. } => Cause::Config,
            Self::Beyond { .. }
            | Self::Passed { .. }
            | Self::Busy
            | Self::Target { .. }
            | Self::Domain { .. } => Cause::RestoreTarget,
        }
    }

    fn remedy(&self) -> String {
        match self {
            Self::Before { began, .. } => format!("choose a time from {} on", began.rfc3339()),
            _ => self.cause().disposition().remedy().into(),
        }
    }
}

impl ReplayError {
    fn file(path: &Path, why: std::io::Error) -> Self {
        Self::File { path: path.into(), why }
    }

    fn object(key: &str, why: impl std::fmt::Display) -> Self {
        Self::Object { key: key.into(), why: why.to_string() }
    }
}
