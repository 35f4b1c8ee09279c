//! The admin socket: `data_dir/admin.sock`, mode 0600, for `lakehead status` on the same box.
//!
//! Format: the client sends one line of JSON, `{"do":"status"}`, and gets one line: a
//! [`Report`], or `{"error":"…"}`. One request for each connection.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};

use super::StatusError;
use crate::{
    disk,
    shutdown::Tasks,
    telemetry::report::{Report, Reporter},
};

/// What can be asked for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
enum Request {
    /// The report.
    Status,
}

#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Answer {
    Refused { error: String },
    Report(Box<Report>),
}

/// Answers at the socket in `data_dir` until `tasks` stop. The caller holds `data_dir`
/// ([`disk::Hold`]), so that a socket file that is there is a dead process's, and is replaced.
///
/// # Errors
///
/// The socket cannot be made.
pub fn serve(data_dir: &Path, reporter: Arc<Reporter>, tasks: &Tasks) -> Result<(), StatusError> {
    let path = socket(data_dir);
    let listener = bind(&path).map_err(|why| StatusError::Socket { path: path.clone(), why })?;
    let (owner, token) = (tasks.clone(), tasks.token());
    tasks.spawn(async move {
        let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let seat = seats.clone().acquire_owned().await.expect("the semaphore is never closed");
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = token.cancelled() => break,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let reporter = reporter.clone();
            owner.spawn(async move {
                // A client that goes away or dawdles is no concern of the box.
                timeout(ANSWER_TIME_MAX, answer(stream, &reporter)).await.ok();
                drop(seat);
            });
        }
        disk::remove(&path).ok();
    });
    Ok(())
}

/// Asks the process that runs on `data_dir`.
///
/// # Errors
///
/// Nobody answers, or not with a report.
pub async fn ask(data_dir: &Path) -> Result<Report, StatusError> {
    let path = socket(data_dir);
    let asked = timeout(ANSWER_TIME_MAX, exchange(&path)).await;
    let line = asked
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|why| StatusError::NotRunning { path, why })?;
    understood(&line)
}

/// The report in an answer.
pub(super) fn understood(line: &str) -> Result<Report, StatusError> {
    match serde_json::from_str(line) {
        Ok(Answer::Report(report)) => Ok(*report),
        Ok(Answer::Refused { error }) => Err(StatusError::Answer(error)),
        Err(why) => Err(StatusError::Answer(why.to_string())),
    }
}

fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.sock")
}

/// Made under another name, so that nobody can connect before its mode is right.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let fresh = path.with_extension("new");
    disk::remove(&fresh)?;
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    disk::rename(&fresh, path)?;
    Ok(listener)
}

pub(super) async fn answer(stream: UnixStream, reporter: &Reporter) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = vec![];
    BufReader::new(read.take(REQUEST_BYTES_MAX)).read_until(b'\n', &mut line).await?;
    let answer = match serde_json::from_slice(&line) {
        Ok(Request::Status) => Answer::Report(Box::new(reporter.report())),
        Err(why) => Answer::Refused { error: why.to_string() },
    };
    let mut line = serde_json::to_vec(&answer).map_err(io::Error::other)?;
    line.push(b'\n');
    write.write_all(&line).await
}

async fn exchange(path: &Path) -> io::Result<String> {
    let (read, mut write) = UnixStream::connect(path).await?.into_split();
    let mut request = serde_json::to_vec(&Request::Status).map_err(io::Error::other)?;
    request.push(b'\n');
    write.write_all(&request).await?;
    let mut line = String::new();
    BufReader::new(read.take(ANSWER_BYTES_MAX)).read_line(&mut line).await?;
    Ok(line)
}

const CONNECTIONS_MAX: usize = 16;
const REQUEST_BYTES_MAX: u64 = 4096;
/// Ten thousand tables' progress fit.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::SystemClock,
        telemetry::{board::Board, heartbeat::Heartbeat},
    };

    fn reporter() -> Arc<Reporter> {
        let board = Board::default();
        board.source("erp").write(|status| status.changes = 42);
        Arc::new(Reporter::new("plant7-a", board, Heartbeat::default(), Arc::new(SystemClock)))
    }

    #[tokio::test]
    async fn the_status_comes_over_a_private_socket_that_replaces_a_dead_ones() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::net::UnixListener::bind(socket(dir.path())).unwrap();
        let refused = ask(dir.path()).await.unwrap_err();
        assert!(matches!(refused, StatusError::NotRunning { .. }), "{refused}");
        let tasks = Tasks::new();
        serve(dir.path(), reporter(), &tasks).unwrap();
        let mode = std::fs::metadata(socket(dir.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let report = ask(dir.path()).await.unwrap();
        assert_eq!(
            (report.appliance.as_str(), report.sources["erp"].status.changes),
            ("plant7-a", 42)
        );
        tasks.stop().await;
        assert!(!socket(dir.path()).exists());
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        serve(dir.path(), reporter(), &tasks).unwrap();
        let long = format!("{}\n", "x".repeat(9000));
        for nonsense in [&b"{\"do\":\"reboot\"}\n"[..], b"nonsense\n", b"\xff\n", long.as_bytes()] {
            let mut stream = UnixStream::connect(socket(dir.path())).await.unwrap();
            stream.write_all(nonsense).await.ok();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await.ok();
            assert!(nonsense.len() > 4096 || line.starts_with("{\"error\":"), "{line}");
        }
        assert!(ask(dir.path()).await.is_ok());
        tasks.stop().await;
    }
}
