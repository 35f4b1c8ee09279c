//! `lakehead demo`: the whole road on this machine. In builds with the feature `demo` only.

use std::path::PathBuf;

use clap::Args;

use super::{Failure, Global};
use crate::error::Exit;

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// How long it takes, roughly.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Where it keeps its database, lake and configuration.
    #[arg(long, default_value = "demo-data")]
    dir: PathBuf,
}

// ---- the demo room: `demo::run` ----

pub(super) async fn demo(_: &Global, _: DemoArgs) -> Result<Exit, Failure> {
    Err(Failure::not_here(
        "this build has no demo: it is not part of the firmware",
        "in the sources, run: make demo",
    ))
}
