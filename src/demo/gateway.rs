//! The gateway as a process of its own: started, killed, asked, measured from outside.
//!
//! **Invariant:** what is dropped here has no process left. Processes are ended by their id.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, SysconfVar, sysconf},
};
use serde::Serialize;
use serde_json::Value;

use crate::telemetry::board::SourceStatus;

/// A gateway's process, when it runs, and what all its lives have used.
#[derive(Debug)]
pub struct Gateway {
    binary: PathBuf,
    config: PathBuf,
    log: PathBuf,
    source: String,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    child: Option<Child>,
    used: Usage,
}

/// What processes used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    /// CPU-seconds, user and system.
    pub cpu_s: f64,
    /// The most memory resident at once, in bytes.
    pub peak_bytes: u64,
}

/// A command that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its exit code; of one that was killed, minus the signal.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Gateway {
    /// A gateway that does not run yet. `log` is appended to.
    pub fn new(binary: &Path, config: &Path, log: &Path, source: &str) -> Self {
        Self {
            binary: binary.into(),
            config: config.into(),
            log: log.into(),
            source: source.into(),
            environment: vec![],
            wrapper: vec![],
            child: None,
            used: Usage::default(),
        }
    }

    /// Sets a variable of its environment, and of its commands'.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.into(), value.into()));
    }

    /// Runs it, and its commands, through a command that replaces itself by the words after its own.
    pub fn wrap(&mut self, words: &[&str]) {
        self.wrapper = words.iter().map(|word| (*word).into()).collect();
    }

    /// `lakehead <words> --config <file>`, with another file if given.
    pub fn command(&self, words: &[&str], config: Option<&Path>) -> Command {
        let mut command = match self.wrapper.split_first() {
            Some((program, own)) => {
                let mut command = Command::new(program);
                command.args(own).arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        };
        command.args(words).arg("--config").arg(config.unwrap_or(&self.config));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.process_group(0);
        command
    }

    /// Starts `lakehead run`.
    ///
    /// # Errors
    ///
    /// The binary or the log file cannot be opened.
    pub fn start(&mut self) -> io::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = self.command(&["run"], None);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// Ends it at once, as a power cut would: SIGKILL.
    pub fn kill(&mut self) {
        self.measure();
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Asks it to stop (SIGTERM) and waits. Gives its exit code, or `None` if it had to be killed.
    pub async fn stop(&mut self) -> Option<i32> {
        self.measure();
        let mut child = self.child.take().map(Running)?;
        child.signal(Signal::SIGTERM);
        for _ in 0..STOP_POLLS {
            if let Some(code) = child.ended() {
                return Some(code);
            }
            tokio::time::sleep(POLL).await;
        }
        None
    }

    /// Asks it to read its configuration again (SIGHUP).
    pub fn reload(&self) {
        if let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) {
            kill(Pid::from_raw(pid), Signal::SIGHUP).ok();
        }
    }

    /// Whether it has come so far that SIGTERM is its own to answer: before that the system ends it.
    pub fn hears(&self) -> bool {
        let caught = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
            u64::from_str_radix(caught.trim(), 16).ok()
        };
        let bit = 1_u64 << (Signal::SIGTERM as u32 - 1);
        self.pid().and_then(caught).is_some_and(|caught| caught & bit != 0)
    }

    /// Its exit code, if it ended by itself.
    pub fn ended(&mut self) -> Option<i32> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        self.child = None;
        Some(code_of(status))
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What it says of its source; `None` while it does not answer.
    pub async fn status(&self) -> Option<SourceStatus> {
        let ended = run(self.command(&["status", "--json"], None), &self.log).await.ok()?;
        let said: Value = serde_json::from_str(&ended.stdout).ok()?;
        serde_json::from_value(said.get("sources")?.get(&self.source)?.clone()).ok()
    }

    /// Runs a command beside it and waits for its end. Cancel-safe: dropping the future ends it.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub async fn ask(&self, words: &[&str], config: Option<&Path>) -> io::Result<Ended> {
        run(self.command(words, config), &self.log).await
    }

    /// As [`Gateway::ask`]; `each` is given the lines that it writes to standard error, as they come.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub async fn ask_aloud(
        &self,
        words: &[&str],
        config: Option<&Path>,
        each: &mut (dyn FnMut(&str) + Send),
    ) -> io::Result<Ended> {
        run_aloud(self.command(words, config), &self.log, each).await
    }

    /// What all its lives have used so far.
    pub fn usage(&mut self) -> Usage {
        let mut used = self.used;
        if let Some(now) = self.pid().and_then(usage_of) {
            used.cpu_s += now.cpu_s;
            used.peak_bytes = used.peak_bytes.max(now.peak_bytes);
        }
        used
    }

    /// The last lines of its log.
    pub fn log_end(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let from = text.len().saturating_sub(LOG_END_BYTES);
        String::from_utf8_lossy(&text[from..]).into_owned()
    }

    fn measure(&mut self) {
        self.used = self.usage();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A child that does not outlive its owner.
struct Running(Child);

impl Running {
    fn ended(&mut self) -> Option<i32> {
        self.0.try_wait().ok().flatten().map(code_of)
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            kill(Pid::from_raw(pid), signal).ok();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Runs a command to its end. Its output goes through files beside `near`, so that it never waits for
/// a reader. Cancel-safe: dropping the future ends it.
///
/// # Errors
///
/// It cannot be started, or a file cannot be made.
pub async fn run(command: Command, near: &Path) -> io::Result<Ended> {
    run_aloud(command, near, &mut |_| {}).await
}

async fn run_aloud(
    mut command: Command,
    near: &Path,
    each: &mut (dyn FnMut(&str) + Send),
) -> io::Result<Ended> {
    let paths =
        ["out", "err"].map(|end| near.with_extension(format!("{:x}.{end}", fastrand::u64(..))));
    let files = Removed(&paths);
    let [out, err] = [File::create_new(&paths[0])?, File::create_new(&paths[1])?];
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    let mut child = Running(command.spawn()?);
    let (mut said, mut told_bytes) = (File::open(&paths[1])?, 0);
    let code = loop {
        if let Some(code) = child.ended() {
            break code;
        }
        if said.metadata()?.len() > told_bytes {
            told_bytes += tell_lines(&mut said, told_bytes, each)?;
        }
        tokio::time::sleep(POLL).await;
    };
    tell_lines(&mut said, told_bytes, each)?;
    let [stdout, stderr] = [fs::read(&paths[0])?, fs::read(&paths[1])?]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    drop(files);
    Ok(Ended { code, stdout, stderr })
}

/// Gives the whole lines from `from` on to `each`, and how many bytes they are.
fn tell_lines(said: &mut File, from: u64, each: &mut (dyn FnMut(&str) + Send)) -> io::Result<u64> {
    let mut bytes = vec![];
    said.seek(SeekFrom::Start(from))?;
    said.read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    String::from_utf8_lossy(&bytes[..whole]).lines().for_each(&mut *each);
    Ok(whole as u64)
}

/// Files that go with their owner.
struct Removed<'a>(&'a [PathBuf]);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        for path in self.0 {
            fs::remove_file(path).ok();
        }
    }
}

/// What a process has used so far, or `None` if it is no more.
pub fn usage_of(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; utime and stime are fields 14 and 15, proc(5).
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    let per_s = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|hz| u32::try_from(hz).ok());
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = peak.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(Usage { cpu_s: ticks / f64::from(per_s.unwrap_or(100)), peak_bytes: kib * 1024 })
}

/// Ends the process whose command line has `words`, if `pid` still is that process.
pub fn end_stray(pid: u32, words: &[&str]) {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let ours = words.iter().all(|word| line.contains(&word.as_bytes()));
    if let (true, Ok(pid)) = (ours, i32::try_from(pid)) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
}

fn code_of(status: std::process::ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
}

const POLL: Duration = Duration::from_millis(10);
/// 10 seconds; it promises 5.
const STOP_POLLS: u32 = 1_000;
const LOG_END_BYTES: usize = 3000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_that_is_dropped_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let near = dir.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$; echo wrong >&2; exec sleep 1000"]);
        let limit = Duration::from_millis(300);
        assert!(tokio::time::timeout(limit, run(command, &near)).await.is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut command = Command::new("sh");
        command.args(["-c", "echo wrong >&2; sleep 0.1; echo right; exit 3"]);
        let mut lines = vec![];
        let ended =
            run_aloud(command, &near, &mut |line| lines.push(line.to_owned())).await.unwrap();
        assert_eq!(lines, ["wrong"]);
        assert_eq!((ended.code, ended.stdout.trim(), ended.stderr.trim()), (3, "right", "wrong"));
    }

    #[test]
    fn a_process_knows_what_it_used() {
        let used = usage_of(std::process::id()).unwrap();
        assert!(used.peak_bytes > 1 << 20 && used.cpu_s < 1e6, "{used:?}");
        end_stray(std::process::id(), &["not", "us"]);
    }
}
