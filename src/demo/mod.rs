//! demo.

pub mod cluster;
pub mod compare;
pub mod workload;
