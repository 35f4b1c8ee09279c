//! postgres.

mod builtin;
pub mod calendar;
pub mod copy;
pub mod float;
mod nested;
mod network;
mod numeric;
pub mod pgoutput;
mod render;
pub mod text;
pub mod types;
mod wire;
