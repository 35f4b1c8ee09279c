//! `lakehead cat`: the rows of one object, as JSON lines.

use std::io::{BufWriter, ErrorKind, Write, stdout};

use clap::{Args, builder::NonEmptyStringValueParser};

use super::{
    Failure, Global,
    reading::{self, Reading},
};
use crate::{
    config::Config,
    error::{Cause, Exit},
    replay::{self, ReplayError, fetch::Fetcher},
};

pub(super) const EXAMPLES: &str = "Example:
  lakehead cat raw/erp/public.orders/dt=2026-11-21/changes-….parquet | head";

#[derive(Args, Debug)]
pub(super) struct CatArgs {
    /// The object's key in the bucket, prefix included.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    key: String,
    #[command(flatten)]
    reading: Reading,
}

pub(super) async fn cat(global: &Global, args: CatArgs) -> Result<Exit, Failure> {
    let config = args.reading.config(global)?;
    rows(config, args.key).await
}

async fn rows(config: Config, key: String) -> Result<Exit, Failure> {
    let lake = reading::lake(&config)?;
    let work = reading::work_dir(&config)?;
    let fetcher = Fetcher::new(lake, work.path())?;
    let opened = fetcher.opened(&key, None).await?;
    let written = tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::new(stdout().lock());
        let rows = replay::cat::cat(opened.path(), &key, &mut out)?;
        // A reader that has seen enough closes the pipe: no failure of ours.
        out.flush().ok();
        Ok::<_, ReplayError>(rows)
    });
    match written.await {
        Ok(Err(ReplayError::File { why, .. })) if why.kind() == ErrorKind::BrokenPipe => {
            Ok(Exit::Done)
        }
        Ok(outcome) => Ok(outcome.map(|_| Exit::Done)?),
        Err(why) => Err(Failure::new(Cause::Defect, why.to_string(), "send the log to support")),
    }
}
