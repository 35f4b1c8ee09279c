//! The status page's listener: plain HTTP on loopback, TLS and a login elsewhere.
//!
//! Takes connections and gives each one answer, then closes it; one without a [seat](Seats) is closed at once.
//! A report is made only for a request that is admitted, and does not outlive its answer's making.
//!
//! **Invariant:** a client holds a connection for at most [`CONNECTION_TIME_MAX`], [`HANDSHAKE_TIME_MAX`] if it
//! does not finish the handshake, and sends at most [`HEAD_BYTES_MAX`] of head: slow clients cost nothing that grows.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    StatusError, certificate,
    health::Health,
    respond::{Access, Sight, respond},
    seats::Seats,
};
use crate::{
    clock::{Clock, SystemClock},
    config,
    shutdown::Tasks,
    telemetry::{
        process::Usage,
        report::{Report, Reporter},
    },
};

struct Page {
    reporter: Arc<Reporter>,
    health: Health,
    access: Access,
    tls: Option<TlsAcceptor>,
}

impl Sight for Page {
    fn healthy(&self) -> bool {
        self.health.at(SystemClock.now(), || self.reporter.report().healthy)
    }

    fn report(&self) -> Report {
        self.reporter.report()
    }

    fn usage(&self) -> Usage {
        Usage::read()
    }
}

/// Serves the page until `tasks` stop. Gives the address, with its port where 0 was asked for.
///
/// # Errors
///
/// The address cannot be taken, or the token or certificate cannot be read or made.
pub async fn serve(
    status: &config::Status,
    data_dir: &Path,
    reporter: Arc<Reporter>,
    tasks: &Tasks,
) -> Result<SocketAddr, StatusError> {
    let failed = |why| StatusError::Listen { address: status.listen, why };
    let beyond = !status.listen.ip().is_loopback();
    let given = status.certificate.is_some();
    let tls = match beyond || given {
        true => Some(TlsAcceptor::from(certificate::server_config(status, data_dir)?)),
        false => None,
    };
    let token = if beyond { Some(token(data_dir)?) } else { None };
    let listener = TcpListener::bind(status.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    tracing::info!(url = format!("{scheme}://{address}/"), login = beyond, "status page");
    let access = Access { token, hosts: status.hosts.clone() };
    let page = Arc::new(Page { reporter, health: Health::default(), access, tls });
    tasks.spawn(accept(listener, page, Seats::default(), tasks.clone()));
    Ok(address)
}

/// The text of `status.token`, made at first start.
fn token(data_dir: &Path) -> Result<config::Secret, StatusError> {
    let path = data_dir.join("status.token");
    if !path.exists() {
        config::make_key32(&path)?;
        tracing::info!(path = %path.display(), "the password of the status page is in this file");
    }
    Ok(config::load_secret(&path)?)
}

async fn accept(listener: TcpListener, page: Arc<Page>, seats: Seats, tasks: Tasks) {
    let token = tasks.token();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = token.cancelled() => return,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of descriptors: they come back as connections end.
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Closed, not queued: those who wait would hold up others behind them.
        let Some(seat) = seats.take(peer.ip()) else { continue };
        let (page, stop) = (page.clone(), token.clone());
        tasks.spawn(async move {
            let served = Box::pin(timeout(CONNECTION_TIME_MAX, connection(stream, page)));
            // What a client does wrong is its own affair; the box neither logs nor counts on it.
            tokio::select! {
                served = served => drop(served),
                () = stop.cancelled() => {}
            }
            drop(seat);
        });
    }
}

async fn connection(stream: TcpStream, page: Arc<Page>) -> io::Result<()> {
    let local = stream.local_addr()?.ip();
    match page.tls.clone() {
        Some(tls) => {
            let stream = timeout(HANDSHAKE_TIME_MAX, tls.accept(stream)).await??;
            exchange(stream, page, local).await
        }
        None => exchange(stream, page, local).await,
    }
}

async fn exchange<S>(stream: S, page: Arc<Page>, local: IpAddr) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request| {
        let page = page.clone();
        async move { Ok::<_, Infallible>(answer(request, &page, local).await) }
    });
    server().serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
}

/// What bounds a request.
pub(super) fn server() -> http1::Builder {
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false);
    server
}

async fn answer(request: Request<Incoming>, page: &Page, local: IpAddr) -> Response<Full<Bytes>> {
    let (head, _body) = request.into_parts();
    let response = respond(&head, &page.access, local, page);
    if response.status() == StatusCode::UNAUTHORIZED && head.headers.contains_key(AUTHORIZATION) {
        sleep(WRONG_LOGIN_PAUSE).await;
    }
    response
}

/// The least that hyper takes as its buffer, which bounds the head of a request.
pub const HEAD_BYTES_MAX: usize = 8192;
/// From its acceptance to the last byte of the answer.
pub const CONNECTION_TIME_MAX: Duration = Duration::from_secs(15);
/// From its acceptance to the end of the TLS handshake.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(3);
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// With the cap on connections: at most 8 guesses a second from an address, 64 in all, at 256 bits. Only the
/// refusal is held meanwhile.
const WRONG_LOGIN_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpSocket,
    };

    use super::*;
    use crate::telemetry::{board::Board, heartbeat::Heartbeat};

    fn reporter() -> Arc<Reporter> {
        let board = Board::default();
        board.source("erp").write(|status| status.changes = 42);
        let reporter = Reporter::new("a", board, Heartbeat::default(), Arc::new(SystemClock));
        reporter.ready();
        Arc::new(reporter)
    }

    fn status(listen: &str) -> config::Status {
        let listen = listen.parse().unwrap();
        config::Status { listen, certificate: None, certificate_key: None, hosts: vec![] }
    }

    async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
        stream.write_all(request.as_bytes()).await.ok();
        let mut answer = vec![];
        stream.read_to_end(&mut answer).await.ok();
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn on_loopback_the_page_is_read_without_a_login() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let address = serve(&status("127.0.0.1:0"), dir.path(), reporter(), &tasks).await.unwrap();
        let get =
            async |request: &str| talk(TcpStream::connect(address).await.unwrap(), request).await;
        let metrics = get("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert!(metrics.contains("lakehead_source_changes_total{source=\"erp\"} 42"), "{metrics}");
        let page = get("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert!(page.starts_with("HTTP/1.1 200") && page.contains("healthy"), "{page}");
        let head = get("HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
        let long =
            format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(99_999));
        assert!(get(&long).await.starts_with("HTTP/1.1 431"));
        tasks.stop().await;
        assert!(!dir.path().join("status.token").exists());
    }

    #[tokio::test]
    async fn beyond_loopback_there_is_tls_and_a_login() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let address = serve(&status("0.0.0.0:0"), dir.path(), reporter(), &tasks).await.unwrap();
        let mut roots = rustls::RootCertStore::empty();
        let own = CertificateDer::from_pem_file(dir.path().join("status.crt")).unwrap();
        roots.add(own).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
        let get = async |login: &str| {
            let stream = TcpStream::connect(("127.0.0.1", address.port())).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let stream = connector.connect(name, stream).await.unwrap();
            talk(stream, &format!("GET /status.json HTTP/1.1\r\nHost: localhost\r\n{login}\r\n"))
                .await
        };
        assert!(get("").await.starts_with("HTTP/1.1 401"));
        let token = std::fs::read_to_string(dir.path().join("status.token")).unwrap();
        let login = format!("Authorization: Bearer {}\r\n", token.trim());
        assert!(get(&login).await.contains("\"changes\":42"));
        tasks.stop().await;
    }

    /// As it is served on loopback.
    fn near() -> Page {
        let access = Access { token: None, hosts: vec![] };
        Page { reporter: reporter(), health: Health::default(), access, tls: None }
    }

    #[tokio::test]
    async fn what_is_beyond_an_addresss_seats_is_closed_and_others_are_served() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tasks, seats) = (Tasks::new(), Seats::default());
        tasks.spawn(accept(listener, Arc::new(near()), seats.clone(), tasks.clone()));
        let from = async |peer: &str| {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(format!("{peer}:0").parse().unwrap()).unwrap();
            let stream = socket.connect(address).await.unwrap();
            talk(stream, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await
        };
        let one = IpAddr::from([127, 0, 0, 1]);
        let held: Vec<_> = std::iter::from_fn(|| seats.take(one)).collect();
        assert_eq!(from("127.0.0.1").await, "");
        assert!(from("127.0.0.2").await.starts_with("HTTP/1.1 200"));
        drop(held);
        assert!(from("127.0.0.1").await.starts_with("HTTP/1.1 200"));
        tasks.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_begin_the_handshake_is_soon_closed() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let address = serve(&status("0.0.0.0:0"), dir.path(), reporter(), &tasks).await.unwrap();
        let began = tokio::time::Instant::now();
        let mut idle = TcpStream::connect(("127.0.0.1", address.port())).await.unwrap();
        let mut nothing = [0];
        assert_eq!(idle.read(&mut nothing).await.unwrap_or_default(), 0);
        let took = began.elapsed();
        assert!(took >= HANDSHAKE_TIME_MAX && took < HANDSHAKE_TIME_MAX * 2, "{took:?}");
        tasks.stop().await;
    }

    #[test]
    fn health_is_told_from_the_last_look() {
        let page = near();
        assert!(page.reporter.report().healthy);
        let later = SystemClock.now() + Duration::from_secs(60);
        page.health.at(later, || false);
        assert!(!page.healthy());
    }
}
