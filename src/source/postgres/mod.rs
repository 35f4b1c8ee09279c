//! PostgreSQL.

mod builtin;
pub mod calendar;
mod catalog;
mod connect;
pub mod copy;
mod definition;
pub mod error;
mod fields;
pub mod float;
mod gulp;
mod login;
mod message;
mod nested;
mod network;
mod numeric;
mod pattern;
pub mod pgoutput;
mod relation;
mod render;
pub mod text;
mod tls;
pub mod types;
pub mod url;
mod wire;

pub use connect::client;
