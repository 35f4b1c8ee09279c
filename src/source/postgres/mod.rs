//! postgres.

mod builtin;
pub mod calendar;
pub mod copy;
mod fields;
pub mod float;
mod nested;
mod network;
mod numeric;
pub mod pgoutput;
mod render;
pub mod text;
pub mod types;
