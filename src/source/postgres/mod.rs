//! postgres.

pub mod calendar;
pub mod float;
pub mod text;
