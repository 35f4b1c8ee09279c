//! `lakehead journal check|show`: the journal of a stopped box.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    Failure, Global,
    meter::{Meter, Step},
    output::Output,
    reading,
};
use crate::{
    config::{Config, Secret},
    disk::Hold,
    error::{Cause, Exit},
    journal::inspect,
    pipeline,
};

#[derive(Args, Debug)]
pub(super) struct JournalArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Read all of it, and name what is damaged.
    Check(Which),
    /// Show its segments, batches and facts.
    Show(Which),
}

#[derive(Args, Debug)]
struct Which {
    /// Only this source; else all.
    #[arg(long)]
    source: Option<String>,
}

/// What to do with a journal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Work {
    Check,
    Show,
}

pub(super) async fn journal(global: &Global, args: JournalArgs) -> Result<Exit, Failure> {
    let config = global.config()?;
    let (work, which) = match args.what {
        What::Check(which) => (Work::Check, which),
        What::Show(which) => (Work::Show, which),
    };
    let sources = match which.source {
        Some(name) => vec![reading::source(&config, Some(&name))?],
        None => config.sources.iter().map(|source| source.name.clone()).collect(),
    };
    let _hold = hold(&config)?;
    inspect(global, config, sources, work).await
}

/// Keeps the gateway from starting meanwhile.
pub(super) fn hold(config: &Config) -> Result<Hold, Failure> {
    let dir = &config.appliance.data_dir;
    let held =
        Hold::take(dir).map_err(|why| Failure::system(&format!("open {}", dir.display()), &why))?;
    held.ok_or_else(|| {
        let what = format!("{} is in use by another lakehead process", dir.display());
        Failure::new(Cause::Config, what, "stop it first: systemctl stop lakehead")
    })
}

async fn inspect(
    global: &Global,
    config: Config,
    sources: Vec<String>,
    work: Work,
) -> Result<Exit, Failure> {
    sources.iter().try_for_each(|source| folder(&config, source).map(drop))?;
    let key = pipeline::held_journal_key(&config)?;
    let output = global.output();
    // Blocking reads of many gigabytes: not on a worker of the runtime.
    let meter = global.meter();
    let looked = move || look(&config, &key, &sources, work, (output, meter));
    let looked = tokio::task::spawn_blocking(looked).await;
    looked.unwrap_or_else(|why| {
        Err(Failure::new(Cause::Defect, why.to_string(), "send the log to support"))
    })
}

/// Where the journal of a source is.
fn folder(config: &Config, source: &str) -> Result<PathBuf, Failure> {
    let dir = config.appliance.data_dir.join("journal").join(source);
    if !dir.is_dir() {
        let what = format!("source {source} has no journal in {}", dir.display());
        return Err(Failure::new(Cause::Config, what, "check data_dir, or start the gateway once"));
    }
    Ok(dir)
}

fn look(
    config: &Config,
    key: &Secret,
    sources: &[String],
    work: Work,
    (output, mut meter): (Output, Meter),
) -> Result<Exit, Failure> {
    let (mut all, mut text, mut well) = (serde_json::Map::new(), vec![], true);
    for source in sources {
        let dir = folder(config, source)?;
        let (json, lines) = match work {
            Work::Check => {
                let report = inspect::check(&dir, key, &mut |done, all| {
                    let (all, more) = (Some(all), source.clone());
                    meter.show(&Step { phase: "journal check:", done, all, bytes: true, more });
                })?;
                well &= report.damage.is_empty();
                (serde_json::to_value(&report), report.to_string())
            }
            Work::Show => {
                let report = inspect::show(&dir, key)?;
                (serde_json::to_value(&report), report.to_string())
            }
        };
        text.push(format!("source {source}\n{}", lines.trim_end()));
        all.insert(source.clone(), json.expect("a report is plain data"));
    }
    drop(meter);
    output.tell(&all, &text.join("\n"));
    Ok(if well { Exit::Done } else { Exit::Wanting })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_use_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[appliance]\nname = \"a\"\ndata_dir = {:?}\n[[source]]\nname = \"erp\"\nkind = \"postgres\"\n\
             url = \"postgresql://u@localhost/d\"\ntables = [\"*\"]\n[lake]\nbucket = \"lake\"\nprefix = \"\"\n\
             region = \"eu-central-1\"\n[encryption]\nmode = \"none\"\n",
            dir.path().to_str().unwrap()
        );
        let environment = crate::config::Environment::default();
        let config = Config::parse(std::path::Path::new("x"), &text, &environment).unwrap();
        let held = hold(&config).unwrap();
        let refused = hold(&config).unwrap_err();
        assert_eq!(refused.exit, Exit::CouldNotRun);
        assert!(refused.to_string().contains("systemctl stop lakehead"), "{refused}");
        drop(held);
        assert!(hold(&config).is_ok());
    }
}
