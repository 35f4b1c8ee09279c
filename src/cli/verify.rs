//! `lakehead verify`: audits the lake from its ledger.

use std::{path::PathBuf, str::FromStr};

use clap::Args;

use super::{
    Failure, Global,
    reading::{self, Reading},
};
use crate::{config::Config, error::Exit};

#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    /// Only this source; else all.
    #[arg(long)]
    source: Option<String>,
    /// Read every object again, and compare its bytes and rows with the ledger.
    #[arg(long)]
    deep: bool,
    /// A key that entries may be signed with; the box's own identity.pub if none is given.
    #[arg(long, value_name = "FILE")]
    public_key: Vec<PathBuf>,
    /// An entry that is known to be there, by its number and hash: a chain that is shorter is truncated.
    #[arg(long, value_name = "N:HASH")]
    head: Option<Head>,
    #[command(flatten)]
    reading: Reading,
}

/// `<number>:<SHA-256 of its first line, hex>`
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Head {
    pub(super) entry: u64,
    pub(super) hash: String,
}

impl FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (entry, hash) = text.split_once(':')?;
            let entry = entry.parse().ok().filter(|entry| *entry > 0)?;
            let bytes = hex::decode(hash).ok().filter(|bytes| bytes.len() == 32)?;
            Some(Self { entry, hash: hex::encode(bytes) })
        };
        parse().ok_or_else(|| "write the entry's number, a colon and its 64 hex digits".into())
    }
}

pub(super) async fn verify(global: &Global, args: VerifyArgs) -> Result<Exit, Failure> {
    let config = args.reading.config(global)?;
    let sources = match &args.source {
        Some(name) => vec![reading::source(&config, Some(name))?],
        None => config.sources.iter().map(|source| source.name.clone()).collect(),
    };
    let public_keys = match args.public_key.as_slice() {
        [] => vec![config.appliance.data_dir.join("identity.pub")],
        given => given.to_vec(),
    };
    let asked = Asked { config, sources, public_keys, deep: args.deep, head: args.head };
    audit(global, asked).await
}

/// What is to be audited.
struct Asked {
    config: Config,
    sources: Vec<String>,
    public_keys: Vec<PathBuf>,
    deep: bool,
    head: Option<Head>,
}

// ---- the ledger room: `ledger::audit` ----

async fn audit(_: &Global, asked: Asked) -> Result<Exit, Failure> {
    let Asked { config, sources, public_keys, deep, head } = asked;
    drop((config, sources, public_keys, deep, head));
    Err(Failure::not_here("verify is not in this build", "use a firmware that has its ledger room"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_head_has_a_number_and_a_hash() {
        let hash = "AB".repeat(32);
        let head: Head = format!("7:{hash}").parse().unwrap();
        assert_eq!(head, Head { entry: 7, hash: hash.to_lowercase() });
        for wrong in
            ["", "7", "0:ab", "x:ab", &format!("7:{}", "ab".repeat(31)), &format!("0:{hash}")]
        {
            assert!(wrong.parse::<Head>().is_err(), "{wrong}");
        }
    }
}
