//! `lakehead restore`: rebuilds a source in a PostgreSQL, at a consistent point.

use std::{path::PathBuf, str::FromStr};

use clap::Args;

use super::{
    Failure, Global,
    reading::{self, Reading},
};
use crate::{
    config::{self, Config, Secret},
    error::Exit,
    units::{Position, Timestamp},
};

#[derive(Args, Debug)]
pub(super) struct RestoreArgs {
    /// The source to rebuild.
    #[arg(long)]
    source: String,
    /// The database to rebuild it in: postgresql://user@host:5432/database
    #[arg(long, value_name = "URL")]
    to: String,
    /// The password for it, mode 0600.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Stop at this position or time; else at the end of the ledger.
    #[arg(long, value_name = "POSITION|TIME")]
    until: Option<Until>,
    /// Go on as the ledger grows.
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    reading: Reading,
}

/// Where a restore ends: after the last transaction at or before it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Until {
    /// In the source's log.
    Position(Position),
    /// By the transactions' commit times.
    Time(Timestamp),
}

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let position = text.parse().map(Self::Position);
        position.or_else(|_| text.parse().map(Self::Time)).map_err(|_| {
            "write a position like 00000016/B374D848 or a time like 2026-11-21T08:30:00Z".into()
        })
    }
}

pub(super) async fn restore(global: &Global, args: RestoreArgs) -> Result<Exit, Failure> {
    if args.follow {
        return Err(Failure::not_here(
            "--follow is not in this firmware yet",
            "leave it out, and restore again: what is there already is not done twice",
        ));
    }
    let config = args.reading.config(global)?;
    let source = reading::source(&config, Some(&args.source))?;
    let to = Config::database_url("--to", &args.to)?;
    let password = args.password_file.as_deref().map(config::load_secret).transpose()?;
    rebuild(global, Asked { config, source, to, password, until: args.until }).await
}

/// What is to be rebuilt.
struct Asked {
    config: Config,
    source: String,
    to: String,
    password: Option<Secret>,
    until: Option<Until>,
}

// ---- the replay room: `replay::restore` ----

async fn rebuild(_: &Global, asked: Asked) -> Result<Exit, Failure> {
    let Asked { config, source, to, password, until } = asked;
    drop((config, source, to, password, until));
    Err(Failure::not_here(
        "restore is not in this build",
        "use a firmware that has its replay room",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_position_or_a_time() {
        assert_eq!("16/B374D848".parse(), Ok(Until::Position(Position(0x16_B374_D848))));
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(Until::Time(Timestamp(1_000_000))));
        assert!("yesterday".parse::<Until>().is_err());
    }
}
