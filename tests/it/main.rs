//! The stories: one integration binary, a module per story. `tidy` keeps the house, `harness` gives
//! each story a database, a bucket and a gateway of its own.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    reason = "tests end by panicking and talk to whoever runs them"
)]

mod campaign;
mod dialect;
mod harness;
#[cfg(feature = "sim")]
mod simulation;
mod small_disk;
mod story_adopt;
mod story_at_rest;
mod story_away;
mod story_badinput;
mod story_compare;
mod story_cost;
mod story_damage;
mod story_ddl;
mod story_extensions;
mod story_failover;
mod story_felt;
mod story_full;
mod story_gap;
mod story_gentle;
mod story_identity;
mod story_in_progress;
mod story_kill;
mod story_large;
mod story_large_objects;
mod story_link;
mod story_memory;
mod story_new_table;
mod story_not_null;
mod story_outage;
mod story_page;
mod story_proof;
mod story_regress;
mod story_reload;
mod story_reread;
mod story_road;
mod story_schemas;
mod story_sequences;
mod story_server;
mod story_spark;
mod story_types;
mod story_unit;
mod story_versions;
mod tidy;
