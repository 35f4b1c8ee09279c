//! `lakehead adopt`: continues the chain of a lost box.

use std::path::PathBuf;

use clap::Args;

use super::{
    Failure, Global,
    reading::{self, Reading},
};
use crate::{config::Config, error::Exit};

#[derive(Args, Debug)]
pub(super) struct AdoptArgs {
    /// The source whose chain it is; may be left out where there is one only.
    #[arg(long)]
    source: Option<String>,
    /// The lost box's identity.pub.
    #[arg(long, value_name = "FILE")]
    public_key: Vec<PathBuf>,
    #[command(flatten)]
    reading: Reading,
}

pub(super) async fn adopt(global: &Global, args: AdoptArgs) -> Result<Exit, Failure> {
    let config = args.reading.config(global)?;
    let source = reading::source(&config, args.source.as_deref())?;
    let _hold = super::journal::hold(&config)?;
    take_over(global, config, source, args.public_key).await
}

// ---- the ledger room: `ledger::adopt` ----

async fn take_over(_: &Global, _: Config, _: String, _: Vec<PathBuf>) -> Result<Exit, Failure> {
    Err(Failure::not_here("adopt is not in this build", "use a firmware that has its ledger room"))
}
