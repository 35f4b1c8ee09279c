//! A PostgreSQL cluster of our own: its own folder, port and password, never the system's.
//!
//! **Invariant:** a cluster that was dropped has no process left. Its server is our child and is
//! stopped by its process id. Blocking: for threads, or where a second does not matter.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Gid, Pid, Uid},
};
use tokio_postgres::{Client, NoTls};

use super::ground::{
    PORT_ATTEMPTS, clear, find_binaries, free_port, give, make_home, other_user, random_hex,
};
use crate::{disk, shutdown::Tasks, units::Position};

mod kept;
mod standby;

/// How to make a cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterOptions {
    /// Its folder; must not exist yet.
    pub dir: PathBuf,
    /// Folder of `postgres` and `initdb`; by default as [`find_binaries`] finds it.
    pub binaries: Option<PathBuf>,
    /// Lines of `postgresql.conf`, over the defaults of this file. Later ones win.
    pub settings: Vec<(String, String)>,
    /// Serves TLS with this certificate.
    pub tls: Option<ServerTls>,
    /// Copies the cluster that is kept in this folder, and keeps the first one there, in place of making
    /// each anew, which is a second of CPU. All of them are the same system to who follows one.
    pub kept: Option<PathBuf>,
}

/// A server's certificate.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// The chain, PEM.
    pub chain_pem: String,
    /// Its private key, PEM.
    pub key_pem: String,
}

/// How a server is stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// Ends sessions and writes a checkpoint.
    Fast,
    /// As a crash would: the next start recovers.
    Immediate,
}

/// A running, or stopped, cluster.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    home: PathBuf,
    binaries: PathBuf,
    port: u16,
    password: String,
    owner: Option<(Uid, Gid)>,
    /// What the server's environment has beside ours.
    environment: Vec<(String, PathBuf)>,
    server: Option<Child>,
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No server binaries.
    #[error(
        "no PostgreSQL 12 or newer found in /usr/lib/postgresql or PATH: `apt-get install postgresql`"
    )]
    NoBinaries,
    /// We are root, PostgreSQL refuses to run as root, and there is nobody else.
    #[error(
        "PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` to run it as"
    )]
    NoUser,
    /// A file or folder could not be made.
    #[error("{what} {path}: {why}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {said}")]
    Program {
        /// The program.
        program: &'static str,
        /// The end of what it said.
        said: String,
    },
    /// No connection, or a statement failed.
    #[error("{what}: {}", said(why))]
    Sql {
        /// What was tried.
        what: &'static str,
        /// What the server said.
        why: tokio_postgres::Error,
    },
    /// The server answered something else than was asked for.
    #[error("the server said `{0}`, which is no position")]
    Position(String),
}

impl Cluster {
    /// Makes a cluster and starts it.
    ///
    /// # Errors
    ///
    /// See [`ClusterError`]; nothing runs then.
    pub fn create(options: &ClusterOptions) -> Result<Self, ClusterError> {
        let binaries = find_binaries(options.binaries.as_deref())?;
        let owner = other_user()?;
        let home = make_home(&options.dir, owner)?;
        let mut cluster = Self {
            dir: options.dir.clone(),
            home,
            binaries,
            port: 0,
            password: random_hex()?,
            owner,
            environment: vec![],
            server: None,
        };
        match &options.kept {
            Some(kept) => cluster.initialize_from(kept)?,
            None => cluster.initialize()?,
        }
        cluster.configure(options)?;
        cluster.start_somewhere()?;
        Ok(cluster)
    }

    fn start_somewhere(&mut self) -> Result<(), ClusterError> {
        let mut attempts = PORT_ATTEMPTS;
        loop {
            self.port = free_port()?;
            attempts -= 1;
            match self.start() {
                Err(ClusterError::Program { said, .. })
                    if said.contains("Address already in use") && attempts > 0 => {}
                done => return done,
            }
        }
    }

    /// Its port on 127.0.0.1; the same for its whole life.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The password of [`SUPERUSER`].
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Folder of `postgres` and `initdb`; what else there is depends on who packed it.
    pub fn binaries(&self) -> &Path {
        &self.binaries
    }

    /// What the server says of its version.
    ///
    /// # Errors
    ///
    /// The binary cannot be run.
    pub fn version(&self) -> Result<String, ClusterError> {
        let run = self.command("postgres").arg("--version").output();
        let said = run.map_err(|why| program_error("postgres", &why))?.stdout;
        Ok(String::from_utf8_lossy(&said).trim().to_owned())
    }

    /// A connection URL without password.
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgresql://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// Adds settings; they hold from the next start, or [`Cluster::reload`].
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn set(&self, settings: &[(&str, &str)]) -> Result<(), ClusterError> {
        let lines: String =
            settings.iter().map(|(name, value)| format!("{name} = '{value}'\n")).collect();
        append(&self.home.join("postgresql.conf"), &lines)
    }

    /// Replaces the rules of who may log in from where; they hold from the next start or reload.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn admit(&self, rules: &str) -> Result<(), ClusterError> {
        self.write("pg_hba.conf", rules)
    }

    /// Believes clients' certificates that this authority signed, from the next start or reload.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn believe(&self, authority_pem: &str) -> Result<(), ClusterError> {
        self.write("client-authority.crt", authority_pem)?;
        self.set(&[("ssl_ca_file", "client-authority.crt")])
    }

    /// Replaces the certificate that it shows; the new one holds from the next start or reload.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn certify(&self, tls: &ServerTls) -> Result<(), ClusterError> {
        self.write("server.crt", &tls.chain_pem)?;
        self.write("server.key", &tls.key_pem)
    }

    /// Copies a file to where the server's user may read and write it, and has the server's environment name it from
    /// the next start on. Gives where it is.
    ///
    /// # Errors
    ///
    /// It cannot be copied.
    pub fn lend(&mut self, file: &Path, variable: &str) -> Result<PathBuf, ClusterError> {
        let lent = self.home.join(file.file_name().unwrap_or_default());
        fs::copy(file, &lent).map_err(|why| file_error("copy", &lent, why))?;
        self.give(&lent, 0o600)?;
        self.environment.push((variable.into(), lent.clone()));
        Ok(lent)
    }

    /// Starts the server and waits until it takes connections.
    ///
    /// # Errors
    ///
    /// It ended instead; the error carries the end of its log.
    pub fn start(&mut self) -> Result<(), ClusterError> {
        if self.server.is_some() {
            return Ok(());
        }
        let log_path = self.home.join(LOG);
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(|why| file_error("open", &log_path, why))?;
        let errors = log.try_clone().map_err(|why| file_error("open", &log_path, why))?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(&self.home).arg("-p").arg(self.port.to_string());
        command.envs(self.environment.iter().map(|(name, path)| (name, path)));
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let server = command.spawn().map_err(|why| program_error("postgres", &why))?;
        self.server = Some(server);
        let ready = self.await_ready();
        if ready.is_err() {
            self.end(Stop::Immediate);
        }
        ready
    }

    /// Stops the server and waits for its end.
    pub fn stop(&mut self, how: Stop) {
        self.end(how);
    }

    /// Stops and starts it, with the same port.
    ///
    /// # Errors
    ///
    /// As [`Cluster::start`].
    pub fn restart(&mut self, how: Stop) -> Result<(), ClusterError> {
        self.end(how);
        self.start()
    }

    /// Has the server read its settings again.
    pub fn reload(&self) {
        if let Some(pid) = self.server.as_ref().and_then(pid_of) {
            kill(pid, Signal::SIGHUP).ok();
        }
    }

    /// Connects as [`SUPERUSER`]. The connection ends with the client, or with `tasks`.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Sql`].
    pub async fn connect(&self, database: &str, tasks: &Tasks) -> Result<Client, ClusterError> {
        connect(&self.url(SUPERUSER, database), &self.password, tasks).await
    }

    /// The end of the log as it is now: what is committed already lies before it.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Sql`].
    pub async fn position(&self, client: &Client) -> Result<Position, ClusterError> {
        let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await;
        let text: String = row.map_err(|why| sql_error("ask for the position", why))?.get(0);
        text.parse().map_err(|_| ClusterError::Position(text))
    }

    /// The last lines of the server's log.
    pub fn log_end(&self) -> String {
        let text = fs::read(self.home.join(LOG)).unwrap_or_default();
        let from = text.len().saturating_sub(LOG_END_BYTES);
        String::from_utf8_lossy(&text[from..]).into_owned()
    }

    /// Stops it and removes its folder.
    ///
    /// # Errors
    ///
    /// The folder cannot be removed.
    pub fn remove(mut self) -> io::Result<()> {
        self.end(Stop::Immediate);
        clear(&self.dir)
    }

    fn configure(&self, options: &ClusterOptions) -> Result<(), ClusterError> {
        if let Some(tls) = &options.tls {
            self.certify(tls)?;
            self.set(&[("ssl", "on")])?;
        }
        self.admit(ADMIT_PASSWORDS)?;
        self.set(SETTINGS)?;
        let own: Vec<(&str, &str)> =
            options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.set(&own)
    }

    fn await_ready(&mut self) -> Result<(), ClusterError> {
        let server = self.server.as_mut().expect("started just before");
        for _ in 0..READY_POLLS {
            if !matches!(server.try_wait(), Ok(None)) {
                self.server = None;
                return Err(ClusterError::Program { program: "postgres", said: self.log_end() });
            }
            let lines = fs::read_to_string(self.home.join("postmaster.pid")).unwrap_or_default();
            let mut lines = lines.lines().map(str::trim);
            let ours = lines.next() == Some(server.id().to_string().as_str());
            if ours && lines.any(|line| matches!(line, "ready" | "standby")) {
                return Ok(());
            }
            thread::sleep(POLL);
        }
        Err(ClusterError::Program { program: "postgres", said: self.log_end() })
    }

    fn end(&mut self, how: Stop) {
        let Some(mut server) = self.server.take() else { return };
        let signal = match how {
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        };
        if let Some(pid) = pid_of(&server) {
            kill(pid, signal).ok();
        }
        for _ in 0..STOP_POLLS {
            if !matches!(server.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(POLL);
        }
        server.kill().ok();
        server.wait().ok();
    }

    /// A program of PostgreSQL's, to be run as the cluster's owner, out of the terminal's reach.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        command.current_dir(&self.home).process_group(0);
        if let Some((uid, gid)) = self.owner {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        command
    }

    fn write(&self, name: &str, text: &str) -> Result<(), ClusterError> {
        let path = self.home.join(name);
        fs::write(&path, text).map_err(|why| file_error("write", &path, why))?;
        self.give(&path, 0o600)
    }

    fn give(&self, path: &Path, mode: u32) -> Result<(), ClusterError> {
        give(path, self.owner, mode)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end(Stop::Immediate);
    }
}

/// Connects with a password. The connection ends with the client, or with `tasks`.
///
/// # Errors
///
/// [`ClusterError::Sql`].
pub async fn connect(url: &str, password: &str, tasks: &Tasks) -> Result<Client, ClusterError> {
    let mut config: tokio_postgres::Config =
        url.parse().map_err(|why| sql_error("read the URL", why))?;
    config.password(password);
    let connected = config.connect(NoTls).await;
    let (client, connection) = connected.map_err(|why| sql_error("connect", why))?;
    let token = tasks.token();
    tasks.spawn(async move {
        token.run_until_cancelled(connection).await;
    });
    Ok(client)
}

fn append(path: &Path, text: &str) -> Result<(), ClusterError> {
    let written = File::options()
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|why| file_error("write", path, why))
}

/// The server's own words, if it was the server.
fn said(why: &tokio_postgres::Error) -> String {
    why.as_db_error().map_or_else(|| why.to_string(), |error| error.message().to_owned())
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().map(Pid::from_raw)
}

pub(super) fn file_error(what: &'static str, path: &Path, why: io::Error) -> ClusterError {
    ClusterError::File { what, path: path.to_owned(), why }
}

fn program_error(program: &'static str, why: &io::Error) -> ClusterError {
    ClusterError::Program { program, said: why.to_string() }
}

fn sql_error(what: &'static str, why: tokio_postgres::Error) -> ClusterError {
    ClusterError::Sql { what, why }
}

/// Name of the first role.
pub const SUPERUSER: &str = "admin";

const LOG: &str = "log";
const LOG_END_BYTES: usize = 2000;
/// How often processes are looked at.
pub(super) const POLL: Duration = Duration::from_millis(20);
/// 3 minutes: recovery after a crash included.
const READY_POLLS: u32 = 9_000;
/// 30 seconds.
pub(super) const STOP_POLLS: u32 = 1_500;
const ADMIT_PASSWORDS: &str =
    "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n";
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    ("wal_level", "logical"),
    ("max_replication_slots", "8"),
    ("max_wal_senders", "8"),
    ("max_connections", "40"),
    ("shared_buffers", "64MB"),
    ("max_wal_size", "1GB"),
    ("checkpoint_timeout", "5min"),
    ("log_checkpoints", "off"),
    ("timezone", "UTC"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_keeps_its_rows_through_a_crash_and_leaves_no_process() {
        let dir = tempfile::tempdir().unwrap();
        let options = ClusterOptions { dir: dir.path().join("c"), ..ClusterOptions::default() };
        let mut cluster = Cluster::create(&options).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let tasks = Tasks::new();
            let client = cluster.connect("postgres", &tasks).await.unwrap();
            client.batch_execute("CREATE TABLE t AS SELECT 7 AS n").await.unwrap();
            let before = cluster.position(&client).await.unwrap();
            cluster.restart(Stop::Immediate).unwrap();
            let client = cluster.connect("postgres", &tasks).await.unwrap();
            let n: i32 = client.query_one("SELECT n FROM t", &[]).await.unwrap().get(0);
            assert_eq!(n, 7);
            assert!(cluster.position(&client).await.unwrap() >= before);
            tasks.stop().await;
        });
        let pid = cluster.server.as_ref().unwrap().id();
        drop(cluster);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        clear(&options.dir).unwrap();
        assert!(!options.dir.is_symlink() && !options.dir.exists());
    }
}
