//! `lakehead verify`: audits the lake from its ledger.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;

use super::{
    Failure, Global,
    meter::{Meter, Step},
    reading::{self, Reading},
    verify_source::{self, Against},
};
use crate::{
    clock::{Clock, SystemClock},
    config::Config,
    error::{Cause, Exit},
    ledger::{self, Audit, Head, Progress, PublicKey, SourceReport},
    pipeline,
    replay::ProofReport,
};

pub(super) const EXAMPLES: &str = "Examples:
  lakehead verify                           every source, with the box's own key
  lakehead verify --source erp --deep --credentials-file reader.aws
  lakehead verify --config audit.toml --public-key identity.pub    anywhere, without the box
  lakehead verify --source erp --against-source --credentials-file reader.aws    its content, with the database
  lakehead verify --source erp --against-source --repair --credentials-file reader.aws    behind a gap, on the box";

#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    /// Only this source; else all.
    #[arg(long)]
    source: Option<String>,
    /// Read every object again, and compare its length and its sums with the ledger: without, keys and lengths are looked at.
    #[arg(long)]
    deep: bool,
    /// A key that entries may be signed with; the box's own identity.pub if none is given.
    #[arg(long, value_name = "FILE")]
    public_key: Vec<PathBuf>,
    /// An entry that is known to be there, by its number and hash: a chain that is shorter is truncated.
    #[arg(long, value_name = "N:HASH")]
    head: Option<Head>,
    #[command(flatten)]
    against: Against,
    #[command(flatten)]
    reading: Reading,
}

pub(super) async fn verify(global: &Global, args: VerifyArgs) -> Result<Exit, Failure> {
    let config = args.reading.config(global)?;
    let sources = match &args.source {
        Some(name) => vec![reading::source(&config, Some(name))?],
        None => config.sources.iter().map(|source| source.name.clone()).collect(),
    };
    args.against.check(&config, &sources)?;
    let (public_keys, deep, head) = (args.public_key, args.deep, args.head);
    let asked = Asked { config, sources, public_keys, deep, head, against: args.against };
    Box::pin(audit(global, asked)).await.map_err(verify_source::may_not_read)
}

/// What is to be audited.
pub(super) struct Asked {
    pub(super) config: Config,
    sources: Vec<String>,
    public_keys: Vec<PathBuf>,
    deep: bool,
    head: Option<Head>,
    pub(super) against: Against,
}

async fn audit(global: &Global, asked: Asked) -> Result<Exit, Failure> {
    let work = reading::work_dir(&asked.config)?;
    let deep = asked.deep.then(|| work.path());
    let head = asked.head.clone();
    let mut reports = vec![];
    for source in &asked.sources {
        let keys = public_keys(&asked.config, source, asked.public_keys.clone());
        let mut meter = global.meter();
        reports.push(prove(&asked.config, source, &keys, deep, head.clone(), &mut meter).await?);
    }
    let proven = reports.iter().all(|report| report.whole() && report.entries > 0);
    if !(proven && asked.against.asked()) {
        global.output().tell(&answer(proven, &reports, None), &Lines(&reports));
        return Ok(if proven { Exit::Done } else { Exit::Wanting });
    }
    let mut compared = vec![];
    for report in &reports {
        let keys = public_keys(&asked.config, &report.source, asked.public_keys.clone());
        let keys = trusted(&keys)?;
        let own = work.path().join(&report.source);
        compared.push(verify_source::prove(global, &asked, report, &keys, own).await?);
    }
    let exit = verify_source::exit(&compared);
    let json = answer(proven, &reports, Some((exit == Exit::Done, &compared)));
    let lines = format!(
        "{}\n{}",
        Lines(&reports),
        verify_source::Lines(&compared, asked.against.repairs())
    );
    global.output().tell(&json, &lines);
    Ok(exit)
}

/// The answer, for programs: `proven` speaks of the chains and what they name, `equal` of what was compared with the sources.
fn answer(
    proven: bool,
    reports: &[SourceReport],
    compared: Option<(bool, &[ProofReport])>,
) -> serde_json::Value {
    let mut told = serde_json::json!({ "proven": proven, "sources": reports });
    if let Some((equal, compared)) = compared {
        told["equal"] = equal.into();
        told["against_source"] = serde_json::json!(compared);
    }
    told
}

/// The keys in these files.
fn trusted(files: &[PathBuf]) -> Result<Vec<PublicKey>, Failure> {
    let mut keys = vec![];
    for path in files {
        keys.extend(read_public_keys(path)?);
    }
    Ok(keys)
}

/// Audits one source.
pub(super) async fn prove(
    config: &Config,
    source: &str,
    public_keys: &[PathBuf],
    deep: Option<&Path>,
    head: Option<Head>,
    meter: &mut Meter,
) -> Result<SourceReport, Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let s3 = pipeline::lake(config, &clock)?;
    let keys = trusted(public_keys)?;
    let what =
        Audit { prefix: &config.lake.prefix, source: Some(source), public_keys: &keys, deep };
    let known =
        |source: &str| head.clone().or_else(|| Head::kept(&config.appliance.data_dir, source));
    let mut show = |progress| meter.show(&step(source, progress));
    let reports = ledger::audit(&s3, &what, &known, &mut show).await?;
    Ok(reports.into_iter().next().expect("the one source asked for has its report"))
}

fn step(source: &str, progress: Progress) -> Step<'static> {
    let more = source.to_owned();
    match progress {
        Progress::Entries { done, all, .. } => {
            Step { phase: "verify: entries", done, all: Some(all), bytes: false, more }
        }
        // S3 does not say how many there are.
        Progress::Listed { done, .. } => {
            Step { phase: "verify: keys listed", done, all: None, bytes: false, more }
        }
        Progress::Read { done, all, bytes, all_bytes, .. } => {
            let more = format!("{done} of {all} objects of {more}");
            let all = Some(all_bytes);
            Step { phase: "verify: read again", done: bytes, all, bytes: true, more }
        }
    }
}

struct Lines<'a>(&'a [SourceReport]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, report) in self.0.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{report}")?;
            write!(f, "\n{}: head {}", report.source, report.head)?;
            for signer in &report.signers {
                let (key, from, who) = (&signer.public_key, signer.from_entry, &signer.appliance);
                write!(f, "\n{}: signed by {who} from entry {from}, with {key}", report.source)?;
            }
            if report.strangers > 0 {
                let strangers = report.strangers;
                write!(f, "\n{}: {strangers} objects are not in the ledger (yet)", report.source)?;
            }
        }
        Ok(())
    }
}

/// The keys named, or the box's own.
pub(super) fn public_keys(config: &Config, source: &str, named: Vec<PathBuf>) -> Vec<PathBuf> {
    if !named.is_empty() {
        return named;
    }
    let data_dir = &config.appliance.data_dir;
    let trusted = data_dir.join(ledger::adopt::trusted_file_name(source));
    let own = data_dir.join("identity.pub");
    // After an adoption it holds this box's own key too.
    if trusted.exists() { vec![trusted] } else { vec![own] }
}

/// The keys in a PEM file: a box's own, or those that a box trusts after it adopted a chain.
pub(super) fn read_public_keys(path: &Path) -> Result<Vec<PublicKey>, Failure> {
    let wrong = |why: &dyn fmt::Display| {
        let what = format!("read public key {}: {why}", path.display());
        Failure::new(Cause::Config, what, PUBLIC_KEY_REMEDY)
    };
    let text = std::fs::read_to_string(path).map_err(|why| wrong(&why))?;
    let keys = PublicKey::all_from_pem(&text).filter(|keys| !keys.is_empty());
    keys.ok_or_else(|| wrong(&"it is no Ed25519 key in PEM"))
}

const PUBLIC_KEY_REMEDY: &str = "name with --public-key the identity.pub that the box keeps in its data_dir, \
    and writes to its log at each start";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_is_proven_stays_so_where_the_source_differs() {
        let told = answer(true, &[], Some((false, &[])));
        assert_eq!((&told["proven"], &told["equal"]), (&true.into(), &false.into()));
        assert!(told["against_source"].is_array(), "{told}");
        // Where nothing was compared nothing is said of it.
        let told = answer(false, &[], None);
        assert_eq!(told, serde_json::json!({ "proven": false, "sources": [] }));
    }
}
