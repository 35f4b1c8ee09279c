//! Lakehead: the firmware of an appliance that moves databases into an S3 data lake and proves that
//! nothing was lost.
//!
//! # The road
//!
//! ```text
//!  database ──▶ source ──▶ journal ──▶ seal ──▶ ship ──▶ ledger ──▶ lake
//!               pull       keep        wrap     send     prove
//!  snapshot rows go source ──▶ seal directly: they can be asked for again, changes cannot.
//! ```
//!
//! Each source has a road of its own: its journal, spool and chain. [`pipeline`] joins the rooms. It and those
//! above it, [`cli`], `sim` and `fuzz`, may import them all; a room imports its upstream neighbour's output and the
//! foundations.
//!
//! Reading back: [`replay`] (cat, restore, the proof against the source) and `ledger::verify`. Side rooms, which no
//! customer byte passes in the clear: [`link`], by which bytes leave, and [`status`]. Foundations: [`units`], [`clock`],
//! [`disk`], [`error`], [`facts`], [`heap`], [`shutdown`], [`config`], [`telemetry`].
//!
//! `sim`, only in builds with that feature, drives these rooms against a model of the world. Its bugs on
//! purpose sit in the models: no build of the rooms has them.
//!
//! # What must never be false
//!
//! - The source is confirmed only behind [`journal::Durable`], or behind the ledger.
//! - Control facts are durable before what they allow: a part is recorded before the next request,
//!   a group before its upload, an entry's bytes before they are sent.
//! - sled is never the only copy of a fact.
//! - The bytes under a key are always the same: the key names their hash.

pub mod units;
pub mod clock;
pub mod disk;
pub mod error;
pub mod facts;
pub mod heap;
pub mod shutdown;
pub mod config;
pub mod telemetry;

pub mod source;
pub mod journal;
pub mod seal;
pub mod ship;
pub mod ledger;
pub mod replay;
pub mod pipeline;

pub mod link;
pub mod status;
pub mod cli;

#[cfg(feature = "demo")]
pub mod demo;
#[cfg(feature = "fuzz")]
pub mod fuzz;
#[cfg(feature = "sim")]
pub mod sim;
