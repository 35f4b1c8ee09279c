//! PostgreSQL.

mod catalog;
mod connect;
mod definition;
pub mod error;
mod gulp;
mod login;
mod message;
mod pattern;
mod relation;
mod tls;
pub mod types;
pub mod url;
mod wire;

pub use connect::client;
