//! demo.

pub mod s3;
