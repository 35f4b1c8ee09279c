//! Status: shows what the box does and what it needs, over the admin socket and the status page.
//!
//! Takes [`Report`](crate::telemetry::report::Report)s. No customer's row passes here. Keeps the page's
//! token, and its own certificate with the names that it is for, in `data_dir`.

use std::{io, path::PathBuf};

use crate::{
    config::ConfigError,
    error::{Cause, Classified},
};

#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod admin;
mod certificate;
mod health;
pub mod listen;
pub mod page;
mod respond;
mod seats;

/// Why the status cannot be shown, or asked for.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The page's address cannot be taken.
    #[error("listen on {address}: {why}")]
    Listen {
        /// As configured.
        address: std::net::SocketAddr,
        /// What the system said.
        why: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("certificate {}: {why}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The admin socket cannot be made.
    #[error("admin socket {}: {why}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// Nobody answers at the admin socket.
    #[error("no lakehead runs on {}: {why}", path.display())]
    NotRunning {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// What came from the admin socket is no answer.
    #[error("admin socket: {0}")]
    Answer(String),
    /// The token cannot be read or made.
    #[error(transparent)]
    Token(#[from] ConfigError),
}

impl Classified for StatusError {
    fn cause(&self) -> Cause {
        match self {
            Self::Listen { .. } | Self::Certificate { .. } | Self::Socket { .. } => Cause::Config,
            Self::NotRunning { .. } | Self::Answer(_) => Cause::Config,
            Self::Token(error) => error.cause(),
        }
    }

    fn remedy(&self) -> String {
        match self {
            Self::Listen { why, .. } if why.kind() == io::ErrorKind::AddrInUse => {
                "another process has the port: choose another in [status] listen".into()
            }
            Self::Listen { .. } => "choose an address of this box in [status] listen".into(),
            Self::Certificate { .. } => {
                "name a PEM chain with certificate and its unencrypted key with certificate_key, or remove both".into()
            }
            Self::Socket { .. } => {
                "data_dir must be writable, and its path shorter than 90 characters".into()
            }
            Self::NotRunning { .. } => {
                "start it: systemctl start lakehead; if it runs, use the same --config and user".into()
            }
            Self::Answer(_) => "restart lakehead after an update of its binary".into(),
            Self::Token(error) => error.remedy(),
        }
    }
}
