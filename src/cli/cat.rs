//! `lakehead cat`: the rows of one object, as JSON lines.

use clap::Args;

use super::{Failure, Global, reading::Reading};
use crate::{config::Config, error::Exit};

#[derive(Args, Debug)]
pub(super) struct CatArgs {
    /// The object's key in the bucket, prefix included.
    key: String,
    #[command(flatten)]
    reading: Reading,
}

pub(super) async fn cat(global: &Global, args: CatArgs) -> Result<Exit, Failure> {
    let config = args.reading.config(global)?;
    rows(global, config, args.key).await
}

// ---- the replay room: `replay::cat` ----

async fn rows(_: &Global, _: Config, _: String) -> Result<Exit, Failure> {
    Err(Failure::not_here("cat is not in this build", "use a firmware that has its replay room"))
}
