//! Why the database cannot be read, sorted by what can be done about it. Pure.

use crate::{
    error::{Cause, Classified, Disposition},
    facts::{FactDamaged, FactsError},
    source::KeepError,
};

/// Why a session with the database ended, or could not begin.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The connection URL cannot be used.
    #[error("`url`: {0}")]
    Url(String),
    /// A pattern in `tables`, or another key of the source, cannot be used.
    #[error("{0}")]
    Config(String),
    /// The file of the password, of our certificate or of its key cannot be used.
    #[error("{path}: {why}")]
    SecretFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// No connection, or the connection broke.
    #[error("{host}: {why}")]
    Unreachable {
        /// Host and port, or what was being done.
        host: String,
        /// What the system said.
        why: String,
    },
    /// Every host answered, none is a primary.
    #[error("no primary among {hosts}: all are in recovery")]
    NotPrimary {
        /// Hosts and ports.
        hosts: String,
    },
    /// The server offers no TLS.
    #[error("{host} offers no TLS")]
    WithoutTls {
        /// Host and port.
        host: String,
    },
    /// The server's certificate was refused.
    #[error("the certificate of {host} was refused: {why}")]
    Certificate {
        /// Host and port.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// The log-in failed before the server judged it, or for a reason of ours.
    #[error("log in at {host}: {why}")]
    Authentication {
        /// Host and port.
        host: String,
        /// What happened.
        why: String,
    },
    /// The server refused a statement.
    #[error("{doing}: {error}")]
    Server {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        error: ServerError,
    },
    /// The server's version is not one of those that this firmware knows.
    #[error("PostgreSQL {0} is not supported: 12 to 18 are")]
    Version(String),
    /// The server's `wal_level` is not `logical`.
    #[error("wal_level is `{0}`")]
    WalLevel(String),
    /// A message that is not known, or not allowed where it came. Nothing was skipped.
    #[error("{0}")]
    Unknown(String),
    /// What the server has does not continue what this box has.
    #[error("{0}")]
    Gap(String),
    /// The slot that is to be taken over is being read: nothing was done.
    #[error("the replication slot `{slot}` is in use: the box whose chain it is reads from it")]
    InUse {
        /// Its name.
        slot: String,
    },
    /// A session of an earlier start of this box still makes the slot.
    #[error("an earlier session of this box still makes the replication slot `{slot}`{}", .waits.as_ref().map(|waits| format!(": it waits for {waits}")).unwrap_or_default())]
    StillMade {
        /// Its name.
        slot: String,
        /// What that session waits for.
        waits: Option<String>,
    },
    /// No table matches, or none of those that do can be copied.
    #[error("no table matches {0}")]
    NoTables(String),
    /// Tables match, and this role may read none of them.
    #[error("{table}: {why}")]
    Unreadable {
        /// One of them, qualified.
        table: String,
        /// What to grant.
        why: String,
    },
    /// The publication that the configuration names cannot be used.
    #[error("publication `{name}`: {why}")]
    Publication {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The journal stopped.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// A fact could not be made durable.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// A fact does not read.
    #[error(transparent)]
    Damaged(#[from] FactDamaged),
    /// The next room takes no more: the road is being stopped.
    #[error("the road behind the source has ended")]
    Ended,
}

/// What a server says when it refuses.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ServerError {
    /// SQLSTATE.
    pub code: String,
    /// Its message.
    pub message: String,
    /// Its detail, if any.
    pub detail: String,
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)
    }
}

impl SourceError {
    /// A connection that broke while `doing` something.
    pub(crate) fn broken(doing: &str, why: impl std::fmt::Display) -> Self {
        Self::Unreachable { host: doing.into(), why: why.to_string() }
    }

    /// Whether the process must end for it.
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(self.cause().disposition(), Disposition::Fatal(_) | Disposition::Fenced(_))
            || matches!(self, Self::Ended)
    }

    /// Whether a value is none of its column's type, or of its domain: the column had another one when a key of it
    /// was noted.
    pub(crate) fn is_of_values(&self) -> bool {
        let of_values = |code: &str| code.starts_with("22") || code.starts_with("23");
        matches!(self, Self::Server { error, .. } if of_values(&error.code))
    }

    /// Whether a table or its schema went since the catalog was read.
    pub(crate) fn is_of_a_gone_table(&self) -> bool {
        matches!(self, Self::Server { error, .. } if GONE.contains(&error.code.as_str()))
    }

    /// Whether a table, schema or publication came, went or changed since the catalog was read.
    pub(crate) fn is_of_a_moving_catalog(&self) -> bool {
        matches!(self, Self::Server { error, .. } if MOVED.contains(&error.code.as_str()))
    }

    /// Whether a lock was not to be had in time.
    pub(crate) fn is_of_a_lock(&self) -> bool {
        matches!(self, Self::Server { error, .. } if error.code == LOCK_NOT_AVAILABLE)
    }

    /// Whether a server starts up or shuts down: it lets nobody in.
    pub(crate) fn lets_nobody_in(&self) -> bool {
        matches!(self, Self::Server { error, .. } if error.code == CANNOT_CONNECT_NOW)
    }

    /// Without the server's words, where they may quote a value.
    pub(crate) fn discreet(self) -> Self {
        let of_values = self.is_of_values();
        match self {
            Self::Server { doing, error } if of_values => {
                let message = "a value is none of its column's".into();
                Self::Server {
                    doing,
                    error: ServerError { message, detail: String::new(), ..error },
                }
            }
            error => error,
        }
    }

    /// Whether waiting can heal it.
    pub(crate) fn heals(&self) -> bool {
        matches!(self.cause().disposition(), Disposition::Retry(_))
    }
}

impl Classified for SourceError {
    fn cause(&self) -> Cause {
        match self {
            Self::Url(_) | Self::Config(_) | Self::Publication { .. } => Cause::Config,
            Self::SecretFile { .. } => Cause::SecretFile,
            Self::Unreachable { .. } | Self::NotPrimary { .. } | Self::Ended => {
                Cause::SourceUnreachable
            }
            Self::WithoutTls { .. } => Cause::SourceWithoutTls,
            Self::Certificate { .. } => Cause::SourceCertificate,
            Self::Authentication { .. } => Cause::SourceAuthentication,
            Self::Server { error, .. } => error.cause(),
            Self::Version(_) | Self::Unknown(_) => Cause::SourceUnknown,
            Self::WalLevel(_) => Cause::WalLevel,
            Self::Gap(_) => Cause::SourceGap,
            Self::InUse { .. } => Cause::SlotBusy,
            Self::StillMade { .. } => Cause::SourceTransactions,
            Self::NoTables(_) => Cause::NoTables,
            Self::Unreadable { .. } => Cause::SourcePrivilege,
            Self::Keep(_) | Self::Facts(_) => Cause::DiskFailed,
            Self::Damaged(_) => Cause::JournalDamaged,
        }
    }
}

impl ServerError {
    /// The line of the table for a SQLSTATE
    /// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>). Unlisted means Halt.
    fn cause(&self) -> Cause {
        let says = |text: &str| self.message.contains(text) || self.detail.contains(text);
        match self.code.as_str() {
            "42501" => Cause::SourcePrivilege,
            "55006" => Cause::SlotBusy,
            // "all replication slots are in use"
            "53400" => Cause::SlotLimit,
            // "number of requested standby connections exceeds max_wal_senders"
            "53300" if says("wal_senders") || says("standby") => Cause::SlotLimit,
            "3D000" => Cause::Config,
            "55000" if says("wal_level") => Cause::WalLevel,
            // "can no longer get changes from replication slot", "this slot has been invalidated"
            "55000" if says("no longer") || says("invalidated") => Cause::SourceGap,
            // "requested WAL segment … has already been removed"
            "58P01" if says("WAL segment") => Cause::SourceGap,
            // A table, column, type, slot or publication changed under our hands; looked at again.
            "42P01" | "42703" | "42704" | "3F000" | "55000" | "42710" | "0A000" => {
                Cause::SourceUnreachable
            }
            code if code.starts_with("28") => Cause::SourceAuthentication,
            // Connection, transaction, resource, operator and lock classes all pass with time.
            code if RETRIED.iter().any(|class| code.starts_with(class)) => Cause::SourceUnreachable,
            _ => Cause::SourceUnknown,
        }
    }
}

/// `undefined_table`, `invalid_schema_name`.
const GONE: [&str; 2] = ["42P01", "3F000"];

/// SQLSTATE of a server that starts up or shuts down.
const CANNOT_CONNECT_NOW: &str = "57P03";
/// SQLSTATE of a lock that was waited for too long.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// `undefined_table`, `invalid_schema_name`, `undefined_object`, `duplicate_object`.
const MOVED: [&str; 4] = ["42P01", "3F000", "42704", "42710"];

/// Classes of SQLSTATE that heal with time.
const RETRIED: &[&str] = &["08", "25", "40", "53", "55", "57", "58"];

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(code: &str, message: &str) -> Cause {
        let error =
            ServerError { code: code.into(), message: message.into(), detail: String::new() };
        SourceError::Server { doing: "test", error }.cause()
    }

    #[test]
    fn of_a_value_that_the_server_quotes_nothing_is_said() {
        let refused = |code: &str| SourceError::Server {
            doing: "copy a table",
            error: ServerError {
                code: code.into(),
                message: "\"secret\"".into(),
                detail: "secret".into(),
            },
        };
        for code in ["22P02", "23502", "23514"] {
            let error = refused(code);
            assert!(error.is_of_values());
            let said = format!("{error} {error:?}", error = error.discreet());
            assert!(!said.contains("secret") && said.contains(code), "{said}");
        }
        assert!(refused("42501").discreet().to_string().contains("secret"));
    }

    #[test]
    fn a_table_that_went_is_told_from_one_that_cannot_be_read() {
        let said = |code: &str| {
            let code_of_a_lock = code == "55P03";
            let (code, message, detail) = (code.into(), String::new(), String::new());
            let error = ServerError { code, message, detail };
            let error = SourceError::Server { doing: "test", error };
            assert_eq!(error.is_of_a_lock(), code_of_a_lock);
            (error.is_of_a_gone_table(), error.is_of_a_moving_catalog())
        };
        // An exported snapshot that is lost is an undefined object to newer servers.
        assert_eq!(
            ["42P01", "3F000", "42704", "42501", "55P03"].map(said),
            [(true, true), (true, true), (false, true), (false, false), (false, false)]
        );
    }

    #[test]
    fn a_sqlstate_names_its_cause() {
        assert_eq!(cause("28P01", "password authentication failed"), Cause::SourceAuthentication);
        assert_eq!(cause("28000", "no pg_hba.conf entry"), Cause::SourceAuthentication);
        assert_eq!(cause("42501", "permission denied"), Cause::SourcePrivilege);
        assert_eq!(cause("55006", "replication slot is active"), Cause::SlotBusy);
        assert_eq!(cause("53400", "all replication slots are in use"), Cause::SlotLimit);
        assert_eq!(
            cause("55000", "can no longer get changes from replication slot \"x\""),
            Cause::SourceGap
        );
        assert_eq!(
            cause("55000", "logical decoding requires \"wal_level\" >= \"logical\""),
            Cause::WalLevel
        );
        assert_eq!(cause("57P01", "terminating connection"), Cause::SourceUnreachable);
    }

    #[test]
    fn an_unlisted_sqlstate_halts() {
        assert_eq!(cause("XX001", "data corrupted"), Cause::SourceUnknown);
    }
}
