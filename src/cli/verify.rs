//! `lakehead verify`: audits the lake from its ledger.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;

use super::{
    Failure, Global,
    meter::Meter,
    reading::{self, Reading},
};
use crate::{
    clock::{Clock, SystemClock},
    config::Config,
    disk,
    error::{Cause, Exit},
    ledger::{
        audit::{Audit, Progress},
        key::PublicKey,
        verify::{KnownHead, Report},
    },
    pipeline,
    units::ByteSize,
};

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
    #[arg(long, value_name = "N:HASH", value_parser = known_head)]
    head: Option<KnownHead>,
    #[command(flatten)]
    reading: Reading,
}

/// `<number>:<SHA-256 of its first line, hex>`
fn known_head(text: &str) -> Result<KnownHead, String> {
    let parse = || {
        let (entry, hash) = text.split_once(':')?;
        let entry = entry.parse().ok().filter(|entry| *entry > 0)?;
        let bytes = hex::decode(hash).ok().filter(|bytes| bytes.len() == 32)?;
        Some(KnownHead { entry, hash: hex::encode(bytes) })
    };
    parse().ok_or_else(|| "write the entry's number, a colon and its 64 hex digits".into())
}

pub(super) async fn verify(global: &Global, args: VerifyArgs) -> Result<Exit, Failure> {
    let config = args.reading.config(global)?;
    let sources = match &args.source {
        Some(name) => vec![reading::source(&config, Some(name))?],
        None => config.sources.iter().map(|source| source.name.clone()).collect(),
    };
    let public_keys = public_keys(&config, args.public_key);
    let asked = Asked { config, sources, public_keys, deep: args.deep, head: args.head };
    audit(global, asked).await
}

/// What is to be audited.
struct Asked {
    config: Config,
    sources: Vec<String>,
    public_keys: Vec<PathBuf>,
    deep: bool,
    head: Option<KnownHead>,
}

async fn audit(global: &Global, asked: Asked) -> Result<Exit, Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let s3 = pipeline::lake(&asked.config, &clock)?;
    let keys =
        asked.public_keys.iter().map(|path| public_key(path)).collect::<Result<Vec<_>, _>>()?;
    let data_dir = &asked.config.appliance.data_dir;
    let scratch =
        asked.deep.then(|| std::env::temp_dir().join(format!("lakehead-{}", std::process::id())));
    if let Some(folder) = &scratch {
        disk::create_dir(folder)
            .map_err(|why| Failure::system("make a folder for objects", &why))?;
    }
    let audit = Audit {
        reader: &s3,
        prefix: &asked.config.lake.prefix,
        keys: &keys,
        deep: scratch.as_deref(),
    };
    let mut reports = vec![];
    for source in &asked.sources {
        let known = asked.head.clone().or_else(|| KnownHead::kept(data_dir, source));
        let mut meter = Meter::new("verify", &clock);
        let mut each = |_, progress: Progress| {
            meter.show(
                progress.entries,
                progress.entries_all,
                &format!("{} objects", progress.objects),
            );
        };
        reports.push(audit.source(source, known, &mut each).await?);
    }
    if let Some(folder) = &scratch {
        // The system clears its temporary folder too.
        std::fs::remove_dir_all(folder).ok();
    }
    let proven = reports.iter().all(|report| report.proven && report.entries > 0);
    global
        .output()
        .tell(&serde_json::json!({ "proven": proven, "sources": reports }), &Lines(&reports));
    Ok(if proven { Exit::Done } else { Exit::Wanting })
}

/// The keys named, or the box's own.
pub(super) fn public_keys(config: &Config, named: Vec<PathBuf>) -> Vec<PathBuf> {
    if named.is_empty() { vec![config.appliance.data_dir.join("identity.pub")] } else { named }
}

pub(super) fn public_key(path: &Path) -> Result<PublicKey, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|why| Failure::system(&format!("read public key {}", path.display()), &why))?;
    PublicKey::from_pem(&text).ok_or_else(|| {
        let what = format!("public key {}: it is no Ed25519 key in PEM", path.display());
        Failure::new(Cause::Config, what, "give the identity.pub of the box that wrote the ledger")
    })
}

struct Lines<'a>(&'a [Report]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, report) in self.0.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            told(report, f)?;
        }
        Ok(())
    }
}

fn told(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let at = report.committed_at.as_deref().unwrap_or("no transaction yet");
    let (source, position, sequence) =
        (&report.source, report.point.position, report.point.sequence.0);
    match &report.broken {
        None if report.entries == 0 => write!(f, "NOT PROVEN {source}: there is no ledger")?,
        None => write!(f, "PROVEN {source} up to {position} (change {sequence}, {at})")?,
        Some(broken) => {
            writeln!(
                f,
                "BROKEN {source} at entry {}: {}: {}",
                broken.entry,
                broken.damage.name(),
                broken.what
            )?;
            if !broken.object.is_empty() {
                writeln!(f, "  object   {}", broken.object)?;
            }
            let to = broken.to.map_or("the end".into(), |to| {
                format!("{} (change {})", to.position, to.sequence.0)
            });
            writeln!(
                f,
                "  interval after {} (change {}) up to {to}",
                broken.from.position, broken.from.sequence.0
            )?;
            write!(f, "  proven   up to {position} (change {sequence}, {at})")?;
        }
    }
    write!(
        f,
        "\n  entries  {}, objects {}, {}",
        report.entries,
        report.objects,
        ByteSize(report.bytes)
    )?;
    let rows: Vec<String> =
        report.rows.iter().map(|(op, rows)| format!("{} {rows}", op.letter())).collect();
    write!(f, "\n  rows     {}", rows.join(", "))?;
    write!(f, "\n  head     {}:{}", report.entries, report.head)?;
    let signers: Vec<String> =
        report.signers.iter().map(|(key, from)| format!("{key} from entry {from}")).collect();
    write!(f, "\n  signed   {}", signers.join(", "))?;
    if report.unlisted > 0 {
        write!(f, "\n  {} objects are not in the ledger (yet)", report.unlisted)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_head_has_a_number_and_a_hash() {
        let hash = "AB".repeat(32);
        let head = known_head(&format!("7:{hash}")).unwrap();
        assert_eq!(head, KnownHead { entry: 7, hash: hash.to_lowercase() });
        for wrong in
            ["", "7", "0:ab", "x:ab", &format!("7:{}", "ab".repeat(31)), &format!("0:{hash}")]
        {
            assert!(known_head(wrong).is_err(), "{wrong}");
        }
    }
}
