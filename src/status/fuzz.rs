//! The doors of tests/fuzz to who asks the box how it is: over HTTP, and over the admin socket.

use std::{cell::RefCell, convert::Infallible, net::IpAddr, os::unix::net::UnixStream, sync::Arc};

use http::{HeaderValue, Request, StatusCode};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::{Builder, Runtime},
};

use super::{
    admin,
    listen::server,
    respond::{Access, Sight, respond},
};
use crate::{
    clock::SystemClock,
    config::Secret,
    telemetry::{
        board::Board,
        heartbeat::Heartbeat,
        process::Usage,
        report::{Report, Reporter},
    },
};

/// `from u8 | what a client sends`: who does not know the token learns nothing (I35).
pub fn http(bytes: &[u8]) {
    let Some((from, sent)) = bytes.split_first() else { return };
    let near = from % 2 == 0;
    SCENE.with_borrow(|scene| {
        let answer = scene.runtime.block_on(Box::pin(exchange(&scene.report, near, sent)));
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{}", answer.escape_ascii());
    });
}

async fn exchange(report: &Report, near: bool, sent: &[u8]) -> Vec<u8> {
    let (mut client, ours) = tokio::io::duplex(1 << 20);
    client.write_all(sent).await.expect("it has room");
    client.shutdown().await.expect("it is open");
    // Nobody guesses this one.
    let token = (!near).then(|| Secret::new(vec![0x80; 32]));
    let access = Access { token, hosts: vec!["plant7-a.lan".into()] };
    let local = if near { IpAddr::from([127, 0, 0, 1]) } else { IpAddr::from([192, 0, 2, 7]) };
    let service = service_fn(async |request: Request<Incoming>| {
        let (head, _body) = request.into_parts();
        let answer = respond(&head, &access, local, report);
        let open = ["/healthz", "/favicon.ico"].contains(&head.uri.path());
        assert!(near || open || answer.status() != StatusCode::OK, "{head:?}");
        let told = !open && answer.status() == StatusCode::OK;
        assert!(!told || names_us(head.headers.get("host")), "{head:?}");
        let origin = head.headers.get("origin");
        assert!(!told || origin.is_none() || names_us(origin), "{head:?}");
        Ok::<_, Infallible>(answer)
    });
    drop(server().serve_connection(TokioIo::new(ours), service).await);
    let mut answer = vec![];
    client.read_to_end(&mut answer).await.expect("it ends");
    answer
}

/// Whether the value of `Host` or `Origin` has a name of ours in it.
fn names_us(value: Option<&HeaderValue>) -> bool {
    let named = value.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let named = named.to_ascii_lowercase();
    ["localhost", "127.0.0.1", "plant7-a.lan", "::ffff:"].iter().any(|our| named.contains(our))
}

impl Sight for Report {
    fn healthy(&self) -> bool {
        self.healthy
    }

    fn report(&self) -> Report {
        self.clone()
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }
}

/// What the admin socket is asked, and what it answers: one line of JSON, whatever came.
pub fn admin(bytes: &[u8]) {
    if bytes.len() <= 64 << 10 {
        SCENE.with_borrow(|scene| {
            let answer = scene.runtime.block_on(Box::pin(ask(&scene.reporter, bytes)));
            let answer = answer.expect("an answer");
            let line = answer.strip_suffix(b"\n").expect("a whole line");
            assert!(!line.contains(&b'\n'));
            let read = serde_json::from_slice::<serde_json::Value>(line);
            assert!(read.is_ok_and(|read| read.is_object()));
        });
    }
    if let Ok(report) = std::str::from_utf8(bytes).map(admin::understood)
        && let Ok(report) = report
    {
        let json = serde_json::to_string(&report).expect("a report is plain data");
        assert_eq!(serde_json::from_str::<Report>(&json).ok(), Some(report));
    }
}

async fn ask(reporter: &Reporter, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let (mut client, ours) = UnixStream::pair()?;
    std::io::Write::write_all(&mut client, bytes)?;
    client.shutdown(std::net::Shutdown::Write)?;
    for end in [&client, &ours] {
        end.set_nonblocking(true)?;
    }
    let asked = admin::answer(tokio::net::UnixStream::from_std(ours)?, reporter).await;
    let mut answer = vec![];
    tokio::net::UnixStream::from_std(client)?
        .read_to_end(&mut answer)
        .await
        .or(asked.map(|()| 0))?;
    Ok(answer)
}

struct Scene {
    runtime: Runtime,
    reporter: Reporter,
    report: Report,
}

thread_local! {
    static SCENE: RefCell<Scene> = RefCell::new({
        let board = Board::default();
        board.source("erp").write(|status| status.changes = 42);
        let reporter = Reporter::new("a", board, Heartbeat::default(), Arc::new(SystemClock));
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        Scene { runtime, report: reporter.report(), reporter }
    });
}
