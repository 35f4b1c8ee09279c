//! `lakehead adopt`: continues the chain of a lost box.
//!
//! The chain is read with credentials that may; the fence is written with the box's own. Exit 0: it is
//! taken over, also where the database has lost changes, which is said; 1: there is no chain, or it is
//! broken; 3: another box was faster.

use std::{
    convert::Infallible,
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use nix::unistd::{Uid, User, geteuid};
use tokio::time::interval;

use super::{
    Failure, Global,
    meter::{Meter, Step},
    reading::{self, Reading},
    verify,
};
use crate::{
    clock::{Clock, SystemClock},
    config::{self, Config},
    disk,
    error::{Cause, Classified, Exit},
    ledger::{LedgerError, Progress as Audited, PublicKey},
    pipeline::{self, Asked, Progress, RunError, Takeover},
    source::postgres::SourceError,
    telemetry::board::SourceBoard,
};

#[derive(Args, Debug)]
pub(super) struct AdoptArgs {
    /// The source whose chain it is; may be left out where there is one only.
    #[arg(long)]
    source: Option<String>,
    /// The lost box's identity.pub; of each box, if several have written the chain.
    #[arg(long, value_name = "FILE")]
    public_key: Vec<PathBuf>,
    #[command(flatten)]
    reading: Reading,
}

pub(super) async fn adopt(global: &Global, args: AdoptArgs) -> Result<Exit, Failure> {
    let (config, reading) = (global.config()?, args.reading.config(global)?);
    let name = reading::source(&config, args.source.as_deref())?;
    let keys = public_keys(&args.public_key)?;
    let data_dir = &config.appliance.data_dir;
    disk::create_dir(data_dir)
        .map_err(|why| Failure::system(&format!("make data_dir {}", data_dir.display()), &why))?;
    own(data_dir)?;
    let _hold = super::journal::hold(&config)?;
    let source = config.sources.iter().find(|source| source.name == name);
    let source = source.expect("a source that was found by its name");
    let takeover = take_over(&config, &reading, source, &keys, &mut global.meter()).await?;
    let json = serde_json::json!({ "source": name, "adopted": takeover });
    global.output().tell(&json, &Lines { source: &name, takeover: &takeover });
    Ok(Exit::Done)
}

/// What root writes among the files of another the service could not read afterwards: refused before anything is written.
fn own(data_dir: &Path) -> Result<(), Failure> {
    let found = fs::metadata(data_dir)
        .map_err(|why| Failure::system(&format!("look at {}", data_dir.display()), &why))?;
    let owner = Uid::from_raw(found.uid());
    if !geteuid().is_root() || owner.is_root() {
        return Ok(());
    }
    let known = User::from_uid(owner).ok().flatten();
    let name = known.map_or_else(|| format!("#{owner}"), |user| user.name);
    Err(Failure::not_here(
        &format!(
            "{} belongs to {name}, who could not read what root writes there",
            data_dir.display()
        ),
        &format!("run it as that user: sudo -u '{name}' lakehead adopt …"),
    ))
}

async fn take_over(
    config: &Config,
    reading: &Config,
    source: &config::Source,
    public_keys: &[PublicKey],
    meter: &mut Meter,
) -> Result<Takeover, Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let work = reading::work_dir(config)?;
    let board = SourceBoard::default();
    let asked = Asked {
        config,
        source,
        public_keys,
        lake: reading::lake(reading)?,
        store: Arc::new(pipeline::lake(config, &clock)?),
        work_dir: work.path(),
        board: board.clone(),
        clock: Arc::clone(&clock),
    };
    let mut show = |progress| meter.show(&step(progress));
    tokio::select! {
        taken = Box::pin(pipeline::adopt(&asked, &mut show)) => taken.map_err(failure),
        never = tell_waits(&board) => match never {},
    }
}

fn step(progress: Progress) -> Step<'static> {
    let more = String::new();
    match progress {
        Progress::Audit(Audited::Entries { done, all, .. }) => {
            Step { phase: "adopt: entries", done, all: Some(all), bytes: false, more }
        }
        Progress::Audit(Audited::Listed { done, .. }) => {
            Step { phase: "adopt: keys listed", done, all: None, bytes: false, more }
        }
        Progress::Audit(Audited::Read { bytes, all_bytes, .. }) => {
            let all = Some(all_bytes);
            Step { phase: "adopt: read again", done: bytes, all, bytes: true, more }
        }
        Progress::Reading { entries } => Step {
            phase: "adopt: entries are this box's",
            done: entries,
            all: None,
            bytes: false,
            more,
        },
    }
}

/// The keys of the boxes that wrote the chain.
fn public_keys(files: &[PathBuf]) -> Result<Vec<PublicKey>, Failure> {
    if files.is_empty() {
        return Err(Failure::not_here(
            "--public-key is missing: only the lost box's key proves which chain is its",
            "give the identity.pub that the lost box kept in its data_dir and writes to its log at each start: --public-key FILE",
        ));
    }
    let read = files.iter().map(|path| verify::read_public_keys(path));
    Ok(read.collect::<Result<Vec<_>, _>>()?.concat())
}

/// The fence waits for S3 as long as it takes: says for what.
async fn tell_waits(board: &SourceBoard) -> Infallible {
    let (mut every_second, mut told) = (interval(TICK), None);
    loop {
        every_second.tick().await;
        let alarm = board.read().alarms.into_values().next();
        let waits = alarm.map(|alarm| (alarm.what, alarm.remedy));
        if let (Some((what, remedy)), true) = (&waits, waits != told) {
            tracing::warn!(what, remedy, "waiting");
        }
        told = waits;
    }
}

fn failure(error: RunError) -> Failure {
    let (what, cause) = (error.to_string(), error.cause());
    match error {
        RunError::Ledger(LedgerError::Broken(_)) => Failure::ended(
            Exit::Wanting,
            cause.name(),
            &what,
            "look at it with `lakehead verify`; if other boxes wrote it too, give their identity.pub with further --public-key",
        ),
        RunError::Ledger(LedgerError::NoChain(_)) => Failure::ended(
            Exit::Wanting,
            cause.name(),
            &what,
            "correct `prefix`, `bucket` or the source's name; if there was no box before, there is nothing to adopt: lakehead run",
        ),
        RunError::Ledger(LedgerError::Changed) => {
            Failure::ended(Exit::Wanting, cause.name(), &what, "run it again")
        }
        RunError::Ledger(LedgerError::NotEmpty(_)) => Failure::new(
            cause,
            what,
            "adopt with an empty data_dir; if it holds a start that ended with ChainForeign, nothing in it is needed: empty it, and drop the slot that it made",
        ),
        RunError::Ledger(LedgerError::Replaced(_)) => Failure::new(
            cause,
            what,
            "adopt with an empty data_dir, into which no identity.key is put back: the box makes a new one",
        ),
        RunError::Source(SourceError::InUse { .. }) => Failure::new(
            cause,
            what,
            "turn that box off for good; the database notices within wal_sender_timeout (60 s if it was not changed); then run it again",
        ),
        // The fence would wait for it: it was a reading request.
        _ if cause == Cause::LakeForbidden => Failure::new(
            cause,
            what,
            "give credentials that may read the bucket (s3:GetObject, s3:ListBucket): --credentials-file FILE",
        ),
        error => error.into(),
    }
}

struct Lines<'a> {
    source: &'a str,
    takeover: &'a Takeover,
}

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, takeover } = self;
        let (entry, position, sequence) =
            (takeover.entry, takeover.point.position, takeover.point.sequence.0);
        if takeover.earlier {
            return write!(
                f,
                "{source}: adopted already, with entry {entry} at {position} (change {sequence}); nothing was done"
            );
        }
        write!(
            f,
            "{source}: adopted with entry {entry} at {position} (change {sequence}), from {}; the slot is `{}`",
            takeover.appliances.join(", "),
            takeover.slot
        )?;
        write!(f, "\n{source}: {} tables are whole in the lake", takeover.whole.len())?;
        if !takeover.partial.is_empty() {
            write!(f, "; read anew: {}", takeover.partial.join(", "))?;
        }
        if let Some(gap) = &takeover.gap {
            write!(
                f,
                "\n{source}: GAP: {gap}. `lakehead run` has the ledger say it and reads all tables anew, or stops, if it may be a mistake: see \"Gap\""
            )?;
        }
        if let Some(why) = &takeover.unasked {
            write!(
                f,
                "\n{source}: the database could not be asked whether it still has all that follows ({why}); `lakehead run` will ask it"
            )?;
        }
        if !takeover.strangers.is_empty() {
            write!(
                f,
                "\n{source}: {} objects were on their way when the box was lost. No entry names them, and \
                 their rows are sent again: have them removed by someone who may, or readers of the bare \
                 folders see these rows twice:",
                takeover.strangers.len()
            )?;
            takeover.strangers.iter().try_for_each(|key| write!(f, "\n  {key}"))?;
        }
        Ok(())
    }
}

const TICK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ledger::{Damage, DamageKind},
        units::{Point, Position, Sequence},
    };

    #[test]
    fn a_chain_that_is_broken_or_not_there_ends_with_1_and_a_faster_box_with_3() {
        let damage = Damage {
            kind: DamageKind::EntryAltered,
            entry: 1,
            key: "raw/_ledger/erp/1.json".into(),
            from: None,
            to: None,
            what: "is not signed".into(),
        };
        let exit = |error: LedgerError| failure(error.into()).exit;
        assert_eq!(exit(LedgerError::Broken(Box::new(damage))), Exit::Wanting);
        assert_eq!(exit(LedgerError::NoChain("raw/_ledger/erp/".into())), Exit::Wanting);
        assert_eq!(exit(LedgerError::NotEmpty("erp".into())), Exit::CouldNotRun);
        assert_eq!(exit(LedgerError::Fenced { key: "k".into() }), Exit::Fenced);
    }

    #[test]
    fn without_a_key_it_says_which_to_give() {
        let refused = public_keys(&[]).unwrap_err();
        assert_eq!(refused.exit, Exit::CouldNotRun);
        assert!(refused.to_string().contains("identity.pub"), "{refused}");
    }

    #[test]
    fn what_is_lost_and_what_is_left_over_is_said() {
        let mut takeover = Takeover {
            entry: 7,
            point: Point { sequence: Sequence(41), position: Position(0x1F4) },
            earlier: false,
            appliances: vec!["plant7-a".into()],
            slot: "lakehead_plant7_a_erp".into(),
            whole: vec!["public.a".into()],
            partial: vec!["public.b".into()],
            strangers: vec!["raw/erp/x.parquet".into()],
            gap: Some("changes between 1 and 2 are lost".into()),
            unasked: None,
        };
        let said = Lines { source: "erp", takeover: &takeover }.to_string();
        for part in [
            "entry 7 at 00000000/000001F4 (change 41), from plant7-a",
            "read anew: public.b",
            "GAP: changes between 1 and 2 are lost.",
            "  raw/erp/x.parquet",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        takeover.earlier = true;
        let said = Lines { source: "erp", takeover: &takeover }.to_string();
        assert!(said.contains("already") && said.contains("nothing was done"), "{said}");
    }
}
