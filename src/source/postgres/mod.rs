//! PostgreSQL.

pub mod calendar;
mod catalog;
mod connect;
mod definition;
pub mod error;
pub mod float;
mod gulp;
mod login;
mod message;
mod pattern;
mod relation;
pub mod text;
mod tls;
pub mod types;
pub mod url;
mod wire;

pub use connect::client;
