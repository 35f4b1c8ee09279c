//! Finds the primary among the hosts of the URL and logs in there.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use postgres_protocol::message::frontend;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    error::SourceError,
    login::{Purpose, login},
    tls::{self, Channel},
    url::{Host, TlsMode, Url},
    wire::Wire,
};
use crate::{
    config::{Secret, Source},
    shutdown::Tasks,
};

/// Where to connect and how: one reading of the URL, the password file and the authorities.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The URL.
    pub(crate) url: Url,
    password: Option<Secret>,
    tls: Option<Arc<ClientConfig>>,
}

impl Target {
    /// Reads the files that the configuration names. Read again for each session: they may be renewed.
    pub(crate) fn load(source: &Source, url: &Url) -> Result<Self, SourceError> {
        let password = source.password_file.as_deref().map(password).transpose()?;
        let url = Url { client: source.client.clone().or(url.client.clone()), ..url.clone() };
        let tls = tls::settings(&url)?;
        Ok(Self { url, password, tls })
    }

    /// A target that holds its password in the URL, if it has one.
    pub(crate) fn of(url: &Url) -> Result<Self, SourceError> {
        Ok(Self { url: url.clone(), password: url.password.clone(), tls: tls::settings(url)? })
    }

    /// Logs in at the first host that is a primary.
    ///
    /// # Errors
    ///
    /// Of several hosts' errors the first that a person must mend, else the last.
    pub(crate) async fn open(&self, purpose: Purpose) -> Result<Wire, SourceError> {
        let mut told: Option<SourceError> = None;
        let mut standbys = 0;
        for host in &self.url.hosts {
            match self.open_at(host, purpose).await {
                Ok(Some(wire)) => return Ok(wire),
                Ok(None) => standbys += 1,
                Err(error) => told = Some(weightier(told, error)),
            }
        }
        let not_primary = SourceError::NotPrimary { hosts: self.url.hosts_text() };
        Err(told.filter(|error| standbys == 0 || !error.heals()).unwrap_or(not_primary))
    }

    /// Logs in at the first of a host's addresses that is a primary; `None` if there are standbys only.
    async fn open_at(&self, host: &Host, purpose: Purpose) -> Result<Option<Wire>, SourceError> {
        let mut told: Option<SourceError> = None;
        let mut standbys = 0;
        for address in addresses(host).await? {
            match self.open_there(host, address, purpose).await {
                Ok(Some(wire)) => return Ok(Some(wire)),
                Ok(None) => standbys += 1,
                Err(error) => {
                    tracing::debug!(host = %host, %address, %error, "no connection");
                    told = Some(weightier(told, error));
                }
            }
        }
        told.filter(|error| standbys == 0 || !error.heals()).map_or(Ok(None), Err)
    }

    /// Logs in at one address of a host; `None` if it is a standby.
    async fn open_there(
        &self,
        host: &Host,
        address: SocketAddr,
        purpose: Purpose,
    ) -> Result<Option<Wire>, SourceError> {
        let mut wire = Wire::new(self.dial(host, address).await?, host.to_string());
        login(&mut wire, &self.url, self.password.as_ref(), purpose).await?;
        let major = wire.version() / 10_000;
        if !(VERSION_MIN..=VERSION_MAX).contains(&major) {
            let version = wire.parameters.get("server_version").cloned();
            return Err(SourceError::Version(version.unwrap_or_default()));
        }
        let rows = wire.query("ask for the server's role", "SELECT pg_is_in_recovery()").await?;
        let standby = rows.first().is_none_or(|row| row.flag(0));
        Ok((!standby).then_some(wire))
    }

    /// A channel to a host's address, protected as the URL says.
    async fn dial(&self, host: &Host, address: SocketAddr) -> Result<Channel, SourceError> {
        let broken = |why: String| unreachable(host, Some(address), why);
        let late = |_| broken("no connection in time".into());
        let dialled = timeout(DIAL_LIMIT, TcpStream::connect(address));
        let mut stream = dialled.await.map_err(late)?.map_err(|why| broken(why.to_string()))?;
        stream.set_nodelay(true).map_err(|why| broken(why.to_string()))?;
        let Some(tls) = &self.tls else {
            return Ok(Channel::Plain(stream));
        };
        let mut request = bytes::BytesMut::new();
        frontend::ssl_request(&mut request);
        let asked = async {
            stream.write_all(&request).await?;
            // One byte exactly: what follows belongs to TLS.
            stream.read_u8().await
        };
        match timeout(DIAL_LIMIT, asked).await.map_err(late)? {
            Ok(b'S') => {}
            Ok(_) if self.url.mode == TlsMode::Prefer => return Ok(Channel::Plain(stream)),
            Ok(_) => return Err(SourceError::WithoutTls { host: host.to_string() }),
            Err(why) => return Err(broken(why.to_string())),
        }
        let name = ServerName::try_from(host.name.clone()).map_err(|why| {
            SourceError::Certificate { host: host.to_string(), why: why.to_string() }
        })?;
        let shaken = TlsConnector::from(Arc::clone(tls)).connect(name, tls::protected(stream));
        match timeout(DIAL_LIMIT, shaken).await.map_err(late)? {
            Ok(stream) => Ok(Channel::Tls(Box::new(stream))),
            Err(why) => Err(handshake(host, &why)),
        }
    }
}

/// Of two answers the one that tells more: what waiting does not heal, then that of a server which lets nobody in.
fn weightier(told: Option<SourceError>, error: SourceError) -> SourceError {
    let weight = |error: &SourceError| (!error.heals(), error.lets_nobody_in());
    // Of others the last one.
    let is_heavy = |earlier: &SourceError| earlier.lets_nobody_in() || !earlier.heals();
    told.filter(|earlier| is_heavy(earlier) && weight(earlier) >= weight(&error)).unwrap_or(error)
}

/// Where a host's name leads now: asked for anew for each connection.
async fn addresses(host: &Host) -> Result<Vec<SocketAddr>, SourceError> {
    let asked = timeout(DIAL_LIMIT, lookup_host((host.name.as_str(), host.port))).await;
    let asked = asked.map_err(|_| unreachable(host, None, "its name is not resolved in time"))?;
    let found = asked.map_err(|why| unreachable(host, None, why))?;
    match found.take(ADDRESSES_MAX).collect::<Vec<_>>() {
        none if none.is_empty() => Err(unreachable(host, None, "its name has no address")),
        found => Ok(found),
    }
}

/// No connection; with the address that was tried, where the URL does not say it.
fn unreachable(
    host: &Host,
    address: Option<SocketAddr>,
    why: impl std::fmt::Display,
) -> SourceError {
    let address = address.map(|address| address.ip().to_string());
    let address = address.filter(|address| *address != host.name);
    let host = address.map_or_else(|| host.to_string(), |address| format!("{host} ({address})"));
    SourceError::Unreachable { host, why: why.to_string() }
}

/// Why TLS was not agreed on.
fn handshake(host: &Host, why: &std::io::Error) -> SourceError {
    let host = host.to_string();
    let inner = why.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            SourceError::Certificate { host, why: why.to_string() }
        }
        _ if tls::refuses_us(why) => tls::refused_us(host, why),
        _ => SourceError::Unreachable { host, why: format!("TLS: {why}") },
    }
}

/// Reads a password file: the first line, without its end.
fn password(path: &Path) -> Result<Secret, SourceError> {
    let failed = |why: String| SourceError::SecretFile { path: path.display().to_string(), why };
    let mut bytes = tls::secret(path)?;
    let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(bytes.len());
    bytes.truncate(end);
    match bytes.is_empty() || bytes.contains(&0) {
        true => Err(failed("its first line is no password".into())),
        false => Ok(Secret::new(bytes)),
    }
}

/// A `tokio_postgres` client for the primary of `url`, over the same TLS settings; for the rooms that
/// read back. Its connection runs under `tasks`. Settings of the session are the server's own.
///
/// # Errors
///
/// No host of the URL is a primary that lets us in.
pub async fn client(url: &Url, tasks: &Tasks) -> Result<tokio_postgres::Client, SourceError> {
    let target = Target::of(url)?;
    // Finds the primary, and leaves a server that wants the password in the clear.
    let probe = target.open(Purpose::Sql).await?;
    let host = url.hosts.iter().find(|host| host.to_string() == probe.host());
    let host = host.expect("the probe went to a host of the URL");
    let address = probe.channel().peer().map_err(|why| unreachable(host, None, why))?;
    let channel = target.dial(host, address).await?;
    let mut config = tokio_postgres::Config::new();
    config.user(&url.user).dbname(&url.database).application_name(&url.application_name);
    if let Some(password) = &target.password {
        config.password(password.expose());
    }
    if url.channel_binding_required {
        config.channel_binding(tokio_postgres::config::ChannelBinding::Require);
    }
    if channel.is_protected() {
        // "Direct": the handshake is behind us.
        config.ssl_mode(tokio_postgres::config::SslMode::Require);
        config.ssl_negotiation(tokio_postgres::config::SslNegotiation::Direct);
    } else {
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
    }
    let connected = config.connect_raw(channel, Shaken).await;
    let (client, connection) = connected
        .map_err(|why| SourceError::Unreachable { host: host.to_string(), why: why.to_string() })?;
    let token = tasks.token();
    tasks.spawn(async move {
        if let Some(Err(error)) = token.run_until_cancelled(connection).await {
            tracing::debug!(%error, "a database connection ended");
        }
    });
    Ok(client)
}

/// The "connector" for a channel that is protected already.
struct Shaken;

impl tokio_postgres::tls::TlsConnect<Channel> for Shaken {
    type Stream = Channel;
    type Error = std::io::Error;
    type Future = std::future::Ready<Result<Channel, std::io::Error>>;

    fn connect(self, stream: Channel) -> Self::Future {
        std::future::ready(Ok(stream))
    }
}

/// How long to wait before the next try: between nothing and twice as long as the last time ("full
/// jitter"), at most `RETRY_MAX`.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let ceiling = RETRY_MIN.saturating_mul(1 << self.tries.min(10)).min(RETRY_MAX);
        self.tries = self.tries.saturating_add(1);
        RETRY_MIN / 2 + ceiling.mul_f64(fastrand::f64())
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}

/// The major versions whose protocol this firmware knows.
pub(crate) const VERSION_MIN: u32 = 12;
pub(crate) const VERSION_MAX: u32 = 18;
/// Addresses of a host that are tried.
const ADDRESSES_MAX: usize = 8;
/// Each of: the name, TCP, the answer to SSLRequest, the handshake.
const DIAL_LIMIT: Duration = Duration::from_secs(10);
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{disk, source::postgres::error::ServerError};

    #[test]
    fn a_password_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("erp");
        disk::write_durably(&path, b"hunter2\r\nnot this\n").unwrap();
        assert_eq!(password(&path).unwrap().expose(), b"hunter2");
        let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o640);
        std::fs::set_permissions(&path, mode).unwrap();
        let refused = password(&path).unwrap_err().to_string();
        assert!(refused.contains("can read") && !refused.contains("hunter2"));
    }

    #[test]
    fn of_several_hosts_the_answer_that_tells_most_counts() {
        let away = || SourceError::broken("db2", "refused");
        let server = |code: &str| SourceError::Server {
            doing: "log in",
            error: ServerError { code: code.into(), ..ServerError::default() },
        };
        let told = |errors: [SourceError; 2]| {
            let told = errors.into_iter().fold(None, |told, error| Some(weightier(told, error)));
            told.unwrap().to_string()
        };
        let (leaves, refuses) = ("57P03", "28P01");
        assert_eq!(told([server(leaves), away()]), server(leaves).to_string());
        assert_eq!(told([away(), server(leaves)]), server(leaves).to_string());
        assert_eq!(told([server(refuses), server(leaves)]), server(refuses).to_string());
        assert_eq!(told([server(leaves), server(refuses)]), server(refuses).to_string());
        assert_eq!(told([away(), SourceError::broken("db3", "late")]), "db3: late");
    }

    #[test]
    fn waits_grow_up_to_a_ceiling() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..60).map(|_| backoff.next()).collect();
        assert!(waits[0] <= RETRY_MIN * 2);
        assert!(waits.iter().all(|wait| *wait <= RETRY_MAX + RETRY_MIN));
        assert!(waits[20..].iter().any(|wait| *wait > RETRY_MAX / 4));
        backoff.reset();
        assert!(backoff.next() <= RETRY_MIN * 2);
    }
}
