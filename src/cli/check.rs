//! `lakehead check`: everything that `run` needs, looked at beforehand.
//!
//! What lies on this machine is looked at here; the rooms look at the database and at S3.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use nix::unistd::AccessFlags;
use serde::Serialize;

use super::{Failure, Global};
use crate::{
    clock::{Clock, SystemClock},
    config::{self, Config, ConfigError, Encryption},
    disk,
    error::{Cause, Exit, Finding},
    link, pipeline, ship, source,
    units::{ByteSize, Timestamp},
};

/// Options of `check`.
#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// Only print the script by which a superuser has a PostgreSQL record statements of DDL in its change stream.
    #[arg(long)]
    ddl_script: bool,
}

pub(super) async fn check(global: &Global, args: CheckArgs) -> Result<Exit, Failure> {
    if args.ddl_script {
        let script = source::postgres::STATEMENTS_SCRIPT;
        global.output().tell(&serde_json::json!({ "script": script }), &script.trim_end());
        return Ok(Exit::Done);
    }
    let config = global.config()?;
    let mut findings = vec![Finding::ok("config", global.config.display().to_string())];
    findings.extend(data_dir(&config));
    findings.extend(secrets(&config));
    findings.push(clock(&config, SystemClock.wall()));
    findings.extend(encryption(&config));
    findings.extend(config.link.as_ref().map(link::check));
    findings.extend(rooms(&config).await);
    let lines: Vec<Line> = findings.iter().map(Line::from).collect();
    let well = lines.iter().all(|line| line.ok);
    global.output().tell(&serde_json::json!({ "ok": well, "findings": lines }), &Lines(&lines));
    Ok(if well { Exit::Done } else { Exit::Wanting })
}

/// What only the database and S3 can tell.
async fn rooms(config: &Config) -> Vec<Finding> {
    let mut findings = vec![];
    for source in &config.sources {
        findings.extend(source::postgres::check(source, &config.appliance.name).await);
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    match pipeline::lake(config, &clock) {
        Ok(s3) => findings.extend(ship::check::check(&config.lake, &s3).await),
        Err(error) => findings.push(Finding::failed("lake", &error)),
    }
    findings
}

/// Whether the folder is there, is ours, and has the room that was promised to the journal.
fn data_dir(config: &Config) -> Vec<Finding> {
    let dir = &config.appliance.data_dir;
    let name = format!("data_dir {}", dir.display());
    let mut findings = vec![match usable(dir) {
        Ok(seen) => Finding::ok(&name, seen),
        Err(what) => Finding::problem(&name, Cause::Config, what),
    }];
    let place = nearest(dir);
    let promised = config.journal.max_bytes.saturating_mul(config.sources.len() as u64);
    let room = format!("{name}: room for the journal");
    findings.push(match disk::free_bytes(place) {
        Ok(free) => {
            let usable = free.saturating_add(size_of(&dir.join("journal"), 0));
            let seen = format!("{} usable, {} promised", ByteSize(usable), ByteSize(promised));
            match usable >= promised {
                true => Finding::ok(room, seen),
                false => Finding::problem(
                    room,
                    Cause::DiskFull,
                    format!("{seen}: or lower [journal] max_bytes"),
                ),
            }
        }
        Err(why) => Finding::problem(room, Cause::Config, why.to_string()),
    });
    findings
}

/// The folder, or if it is not there yet the one in which a start makes it.
fn nearest(dir: &Path) -> &Path {
    dir.ancestors().find(|above| above.exists()).unwrap_or(dir)
}

/// Whether a start may write into the folder, or make it. A full disk hinders none.
///
/// # Errors
///
/// What is wrong with it, and what to do.
pub(super) fn may_write(dir: &Path) -> Result<(), String> {
    let place = nearest(dir);
    let may = nix::unistd::access(place, AccessFlags::W_OK | AccessFlags::X_OK);
    may.map_err(|why| format!("{} cannot be written: {why}: {OWNED}", place.display()))
}

/// Whether a start can write into the folder, or make it; in words.
///
/// # Errors
///
/// What is wrong with it, and what to do.
fn usable(dir: &Path) -> Result<&'static str, String> {
    match fs::metadata(dir) {
        Ok(_) => probe(dir).map(|()| "writable").map_err(|why| format!("cannot be written: {why}")),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            may_write(dir).map(|()| "not there yet: the first start makes it")
        }
        Err(why) => Err(format!("{why}: {OWNED}")),
    }
}

/// A file can be made, synced and removed.
fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join("check.probe");
    disk::write_durably(&path, b"lakehead check\n")?;
    disk::remove(&path)
}

/// Bytes that a folder's files take on the device.
fn size_of(dir: &Path, depth: u32) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let one = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() && depth < DEPTH_MAX => size_of(&entry.path(), depth + 1),
        Ok(meta) => meta.blocks().saturating_mul(BLOCK_BYTES),
        Err(_) => 0,
    };
    entries.flatten().map(one).sum()
}

/// Every key and secret file can be read by us and by nobody else.
fn secrets(config: &Config) -> Vec<Finding> {
    let mut findings = vec![];
    let mut look = |name: String, path: &PathBuf, read: Result<config::Secret, ConfigError>| {
        findings.push(match read {
            Ok(_) => Finding::ok(name, path.display().to_string()),
            Err(wrong) => Finding::failed(name, &wrong),
        });
    };
    for source in &config.sources {
        if let Some(path) = &source.password_file {
            look(format!("source {}: password_file", source.name), path, config::load_secret(path));
        }
    }
    if let Some(path) = &config.lake.credentials_file {
        look("lake: credentials_file".into(), path, config::load_secret(path));
    }
    if let Encryption::Client { key_file } = &config.encryption {
        look("encryption: key_file".into(), key_file, config::load_key32(key_file));
    }
    // Without a key_file the first start makes one.
    let own = config.appliance.data_dir.join("journal.key");
    let journal_key = config.journal.key_file.clone().or_else(|| own.exists().then_some(own));
    if let Some(path) = journal_key {
        look("journal: key_file".into(), &path, config::load_key32(&path));
    }
    if let Some(path) = config.status.as_ref().and_then(|status| status.certificate_key.as_ref()) {
        look("status: certificate_key".into(), path, config::load_secret(path));
    }
    if config.lake.credentials_file.is_none() {
        let name = "lake: credentials";
        findings.push(match config::Environment::read().aws {
            Some(keys) => Finding::ok(name, format!("{} from the environment", keys.access_key_id)),
            None => Finding::problem(
                name,
                Cause::LakeCredentials,
                "no credentials_file in [lake], and no AWS_ACCESS_KEY_ID in the environment",
            ),
        });
    }
    findings
}

/// The clock is not before this firmware was written, nor before what this box has written itself.
/// Against S3's clock, ship checks it.
fn clock(config: &Config, now: Timestamp) -> Finding {
    let name = "clock";
    let shown = now.rfc3339();
    if now < FIRMWARE_WRITTEN {
        let what = format!("{shown} is before this firmware was made: is the battery empty?");
        return Finding::problem(name, Cause::ClockSkew, what);
    }
    match newest(&config.appliance.data_dir) {
        Some(newest) if newest.0 > now.0.saturating_add(SKEW_US_MAX) => {
            let what =
                format!("{shown} is before {}, when data_dir was last written", newest.rfc3339());
            Finding::problem(name, Cause::ClockSkew, what)
        }
        _ => Finding::ok(name, shown),
    }
}

fn newest(dir: &Path) -> Option<Timestamp> {
    let times = fs::read_dir(dir).ok()?.flatten().filter_map(|entry| {
        let modified = entry.metadata().ok()?.modified().ok()?;
        let since = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(Timestamp(i64::try_from(since.as_micros()).ok()?))
    });
    times.max()
}

/// Mode `none` is no problem, but is said.
fn encryption(config: &Config) -> Option<Finding> {
    let none = config.encryption == Encryption::None;
    none.then(|| {
        Finding::ok("encryption", "none: objects are stored as they are, as was asked for")
    })
}

/// One finding as it is shown.
#[derive(Debug, Serialize)]
struct Line {
    check: String,
    ok: bool,
    seen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl From<&Finding> for Line {
    fn from(finding: &Finding) -> Self {
        let problem = finding.problem.as_ref();
        Self {
            check: finding.check.clone(),
            ok: problem.is_none(),
            seen: finding.seen.clone(),
            cause: problem.map(|(cause, _)| cause.name()),
            problem: problem.map(|(_, what)| what.clone()),
            remedy: problem.map(|(cause, _)| {
                let own = finding.remedy.as_deref();
                own.unwrap_or(cause.disposition().remedy()).to_owned()
            }),
        }
    }
}

struct Lines<'a>(&'a [Line]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.0 {
            match (&line.problem, &line.remedy) {
                (Some(problem), Some(remedy)) => {
                    writeln!(f, "PROBLEM {}: {problem}\n        remedy: {remedy}", line.check)?;
                }
                _ => writeln!(f, "ok      {} = {}", line.check, line.seen)?,
            }
        }
        let problems = self.0.iter().filter(|line| !line.ok).count();
        match problems {
            0 => write!(f, "all {} checks are well", self.0.len()),
            some => write!(f, "{some} of {} checks found a problem", self.0.len()),
        }
    }
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lakehead check
  lakehead check --ddl-script | psql --dbname=postgresql://postgres@db/shop";
const DEPTH_MAX: u32 = 4;
const OWNED: &str = "make it, owned by the user that runs lakehead";
/// `stat` counts in these, whatever the file system's own blocks are.
const BLOCK_BYTES: u64 = 512;
/// 2026-11-01T00:00:00Z
const FIRMWARE_WRITTEN: Timestamp = Timestamp(1_793_491_200_000_000);
const SKEW_US_MAX: i64 = 300_000_000;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Environment;

    fn site(dir: &Path) -> Config {
        let text = format!(
            "[appliance]\nname = \"a\"\ndata_dir = {dir:?}\n[[source]]\nname = \"erp\"\nkind = \"postgres\"\n\
             url = \"postgresql://u@localhost/d\"\npassword_file = \"{0}/password\"\ntables = [\"*\"]\n\
             [lake]\nbucket = \"lake\"\nprefix = \"\"\nregion = \"eu-central-1\"\ncredentials_file = \"{0}/aws\"\n\
             [encryption]\nmode = \"client\"\nkey_file = \"{0}/lake.key\"\n[journal]\nmax_bytes = \"256 MiB\"\n",
            dir.display()
        );
        Config::parse(Path::new("x"), &text, &Environment::default()).unwrap()
    }

    fn problems(findings: &[Finding]) -> Vec<String> {
        let problem = |finding: &Finding| {
            let remedy = finding.remedy.iter().fold(String::new(), |_, own| format!(": {own}"));
            let problem = finding.problem.as_ref();
            problem.map(|(cause, what)| format!("{}: {what}{remedy}", cause.name()))
        };
        findings.iter().filter_map(problem).collect()
    }

    #[test]
    fn each_secret_file_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let config = site(dir.path());
        let missing = problems(&secrets(&config));
        assert_eq!(missing.len(), 3, "{missing:?}");
        assert!(missing.iter().all(|what| what.starts_with("SecretFile: secret file ")));
        for name in ["password", "aws"] {
            disk::write_durably(&dir.path().join(name), b"hunter2").unwrap();
        }
        config::make_key32(&dir.path().join("lake.key")).unwrap();
        assert_eq!(problems(&secrets(&config)), [""; 0]);
        let open = fs::Permissions::from_mode(0o644);
        fs::set_permissions(dir.path().join("aws"), open).unwrap();
        let [exposed] = problems(&secrets(&config)).try_into().unwrap();
        assert!(exposed.contains("chmod 600") && !exposed.contains("hunter2"), "{exposed}");
    }

    #[test]
    fn the_journals_room_is_compared_with_its_promise() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = site(dir.path());
        assert_eq!(problems(&data_dir(&config)), [""; 0]);
        config.journal.max_bytes = 1 << 60;
        let [full] = problems(&data_dir(&config)).try_into().unwrap();
        assert!(full.starts_with("DiskFull: ") && full.contains("promised"), "{full}");
        config.appliance.data_dir = dir.path().join("absent");
        assert_eq!(problems(&data_dir(&config)).len(), 1);
    }

    #[test]
    fn a_clock_that_ran_backwards_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let config = site(dir.path());
        let now = SystemClock.wall().max(FIRMWARE_WRITTEN);
        assert!(clock(&config, now).problem.is_none());
        assert!(clock(&config, Timestamp(0)).problem.is_some());
        fs::write(dir.path().join("status.token"), "x").unwrap();
        let written = newest(dir.path()).unwrap();
        let file = fs::File::options().write(true).open(dir.path().join("status.token")).unwrap();
        let ahead = std::time::UNIX_EPOCH
            + std::time::Duration::from_micros(now.0.unsigned_abs())
            + std::time::Duration::from_secs(3600);
        file.set_modified(ahead).unwrap();
        assert!(newest(dir.path()).unwrap() > written);
        assert!(clock(&config, now).problem.is_some());
    }

    #[test]
    fn a_line_reads_as_ok_or_as_a_problem_with_its_remedy() {
        let findings = [
            Finding::ok("source erp: wal_level", "logical"),
            Finding::problem("source erp: slots", Cause::SlotLimit, "all 10 are in use"),
        ];
        let lines: Vec<Line> = findings.iter().map(Line::from).collect();
        let shown = Lines(&lines).to_string();
        assert!(shown.starts_with("ok      source erp: wal_level = logical\nPROBLEM source erp: slots: all 10 are in use\n        remedy: raise `max_"), "{shown}");
        assert!(shown.ends_with("1 of 2 checks found a problem"));
        let json = serde_json::to_value(&lines).unwrap();
        assert_eq!((&json[0]["ok"], &json[1]["cause"]), (&true.into(), &"SlotLimit".into()));
    }
}
