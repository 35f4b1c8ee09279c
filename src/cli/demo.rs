//! `lakehead demo`: the whole road on this machine. In builds with the feature `demo` only.

use std::path::PathBuf;

use clap::Args;

use super::{Failure, Global};
use crate::error::Exit;

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// How long it takes, roughly.
    #[arg(long, default_value_t = 2.0, value_parser = minutes)]
    minutes: f64,
    /// Where it keeps its database, lake and configuration.
    #[arg(long, default_value = "demo-data")]
    dir: PathBuf,
}

/// Some, and no more than a day.
fn minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse().ok().filter(|minutes| (0.0..=1440.0).contains(minutes));
    minutes.ok_or_else(|| "write minutes, from 0 to 1440".into())
}

// ---- the demo room: `demo::run` ----

#[cfg(feature = "demo")]
pub(super) async fn demo(global: &Global, args: DemoArgs) -> Result<Exit, Failure> {
    use std::sync::Arc;

    use crate::{clock::SystemClock, demo};

    let options = demo::DemoOptions { minutes: args.minutes, dir: args.dir, json: global.json };
    let report = demo::run(&options, Arc::new(SystemClock)).await.map_err(|error| {
        let logs = match error {
            demo::DemoError::Foreign(_) | demo::DemoError::Busy(_) => {
                "give another folder with --dir".into()
            }
            _ => format!("its logs are in {}", options.dir.display()),
        };
        Failure::ended(error.exit(), "Demo", &error.to_string(), &logs)
    })?;
    global.output().tell(&report, &report);
    Ok(report.exit())
}

#[cfg(not(feature = "demo"))]
pub(super) async fn demo(_: &Global, args: DemoArgs) -> Result<Exit, Failure> {
    let DemoArgs { minutes, dir } = args;
    let again = format!("in the sources: make demo MINUTES={minutes} DIR={}", dir.display());
    Err(Failure::not_here("this build has no demo: it is not part of the firmware", &again))
}
