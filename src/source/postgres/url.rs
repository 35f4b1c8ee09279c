//! The connection URL: `postgresql://user@host1:5432,host2:5433/database?sslmode=verify-full`. Pure.
//!
//! The form and the names of the parameters are libpq's
//! (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS>). A parameter
//! that is not known is refused: nothing that was asked for is left out in silence. Without
//! `sslmode`, a connection is `verify-full`, to loopback `prefer`.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use percent_encoding::percent_decode_str;

use super::error::SourceError;
use crate::config::{ClientCertificate, Secret};

/// A parsed URL.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Url {
    /// Role to log in as.
    pub user: String,
    /// Password, if the URL holds one. Never for a source: its password stands in a file.
    pub password: Option<Secret>,
    /// Servers, in the order in which they are tried.
    pub hosts: Vec<Host>,
    /// Database.
    pub database: String,
    /// How the connection is protected.
    pub mode: TlsMode,
    /// PEM file of the authorities to trust, instead of the system's.
    pub root_certificates: Option<PathBuf>,
    /// What we show of ourselves: `sslcert` and `sslkey`.
    pub client: Option<ClientCertificate>,
    /// Whether a log-in without channel binding is refused.
    pub channel_binding_required: bool,
    /// Name shown in `pg_stat_activity`.
    pub application_name: String,
}

/// A server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Host {
    /// Name or address, without brackets.
    pub name: String,
    /// TCP port.
    pub port: u16,
}

/// How a connection is protected, as libpq's `sslmode` says it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsMode {
    /// In the clear.
    Disable,
    /// TLS if the server offers it; nothing is verified.
    Prefer,
    /// TLS; nothing is verified, unless `sslrootcert` is given: then as `VerifyCa`.
    Require,
    /// TLS, and the certificate is signed by a trusted authority.
    VerifyCa,
    /// And it names the host.
    VerifyFull,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]:{}", self.name, self.port),
            false => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

impl Host {
    /// Whether it can only be this machine.
    pub fn is_loopback(&self) -> bool {
        let address = self.name.parse::<core::net::IpAddr>();
        self.name == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }
}

impl Url {
    /// Reads a URL.
    ///
    /// # Errors
    ///
    /// [`SourceError::Url`] says what is wrong; never with the password in it.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        let rest = ["postgresql://", "postgres://"].iter().find_map(|way| text.strip_prefix(way));
        let rest = rest.ok_or_else(|| wrong("it does not begin with `postgresql://`"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(Secret::new(decode(password)?.into_bytes()))),
            None => (login, None),
        };
        let hosts = hosts.split(',').map(host).collect::<Result<Vec<_>, _>>()?;
        let mut parameters = parameters(query)?;
        let user = match decode(user)? {
            user if user.is_empty() => parameters.remove("user").unwrap_or_default(),
            user => user,
        };
        if user.is_empty() {
            return Err(wrong("it names no user: write `postgresql://user@host/database`"));
        }
        let database = match decode(database)? {
            database if database.is_empty() => {
                parameters.remove("dbname").unwrap_or_else(|| user.clone())
            }
            database => database,
        };
        for text in [&user, &database] {
            if text.contains('\0') {
                return Err(wrong("it holds a zero byte"));
            }
        }
        let mode = mode(parameters.remove("sslmode").as_deref(), &hosts)?;
        let url = Self {
            user,
            password,
            hosts,
            database,
            mode,
            root_certificates: parameters
                .remove("sslrootcert")
                .filter(|file| file != "system")
                .map(PathBuf::from),
            client: client(parameters.remove("sslcert"), parameters.remove("sslkey"))?,
            channel_binding_required: required(parameters.remove("channel_binding"))?,
            application_name: parameters
                .remove("application_name")
                .filter(|name| !name.contains('\0'))
                .unwrap_or_else(|| "lakehead".into()),
        };
        session_kind(parameters.remove("target_session_attrs").as_deref())?;
        match parameters.keys().next() {
            Some(name) => Err(wrong(format!("the parameter `{name}` is not known"))),
            None => Ok(url),
        }
    }

    /// The hosts, for people.
    pub fn hosts_text(&self) -> String {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        hosts.join(", ")
    }
}

fn host(text: &str) -> Result<Host, SourceError> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (name, port) =
                rest.split_once(']').ok_or_else(|| wrong("an address lacks its `]`"))?;
            (name, port.strip_prefix(':').unwrap_or(port))
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let name = decode(name)?;
    if name.is_empty() {
        return Err(wrong("it names no host"));
    }
    if name.starts_with('/') {
        return Err(wrong("sockets in the file system are not supported: name a host"));
    }
    let port = match port {
        "" => PORT,
        port => port.parse().map_err(|_| wrong(format!("`{port}` is no port")))?,
    };
    Ok(Host { name, port })
}

fn parameters(query: &str) -> Result<BTreeMap<String, String>, SourceError> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| wrong(format!("the parameter `{pair}` has no value")))?;
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

fn mode(text: Option<&str>, hosts: &[Host]) -> Result<TlsMode, SourceError> {
    Ok(match text {
        Some("disable") => TlsMode::Disable,
        Some("allow" | "prefer") => TlsMode::Prefer,
        Some("require") => TlsMode::Require,
        Some("verify-ca") => TlsMode::VerifyCa,
        Some("verify-full") => TlsMode::VerifyFull,
        Some(other) => {
            return Err(wrong(format!(
                "`sslmode={other}` is not known: disable, prefer, require, verify-ca, verify-full"
            )));
        }
        None if hosts.iter().all(Host::is_loopback) => TlsMode::Prefer,
        None => TlsMode::VerifyFull,
    })
}

fn client(
    certificate: Option<String>,
    key: Option<String>,
) -> Result<Option<ClientCertificate>, SourceError> {
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => {
            let (certificate_file, key_file) = (certificate.into(), key.into());
            Ok(Some(ClientCertificate { certificate_file, key_file }))
        }
        _ => Err(wrong("`sslcert` and `sslkey` go together")),
    }
}

fn required(text: Option<String>) -> Result<bool, SourceError> {
    match text.as_deref() {
        Some("require") => Ok(true),
        None | Some("prefer" | "disable") => Ok(false),
        Some(other) => Err(wrong(format!("`channel_binding={other}` is not known"))),
    }
}

/// Only a primary can be followed, so every value that a primary meets is accepted.
fn session_kind(text: Option<&str>) -> Result<(), SourceError> {
    match text {
        None | Some("any" | "read-write" | "primary") => Ok(()),
        Some(other) => Err(wrong(format!(
            "`target_session_attrs={other}` cannot be met: only a primary can be followed"
        ))),
    }
}

fn decode(text: &str) -> Result<String, SourceError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| wrong("a part of it is not UTF-8"))
}

fn wrong(why: impl Into<String>) -> SourceError {
    SourceError::Url(why.into())
}

/// PostgreSQL's own port.
const PORT: u16 = 5432;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_hosts_of_a_failover_url_keep_their_order() {
        let url = Url::parse(
            "postgresql://lake%20head@db1.plant7.lan,[fd00::2]:5433/erp?sslmode=verify-ca&sslrootcert=%2Fca.pem&target_session_attrs=read-write",
        )
        .unwrap();
        assert_eq!(url.hosts_text(), "db1.plant7.lan:5432, [fd00::2]:5433");
        assert_eq!((url.user.as_str(), url.database.as_str()), ("lake head", "erp"));
        assert_eq!(url.mode, TlsMode::VerifyCa);
        assert_eq!(url.root_certificates, Some("/ca.pem".into()));
    }

    #[test]
    fn a_url_without_sslmode_verifies_everything_unless_it_stays_on_this_machine() {
        let mode = |text| Url::parse(text).unwrap().mode;
        assert_eq!(mode("postgresql://u@db.lan/d"), TlsMode::VerifyFull);
        assert_eq!(mode("postgresql://u@127.0.0.1/d"), TlsMode::Prefer);
        assert_eq!(mode("postgresql://u@127.0.0.1,db.lan/d"), TlsMode::VerifyFull);
    }

    #[test]
    fn a_client_certificate_has_its_key() {
        let url = Url::parse("postgresql://u@h/d?sslkey=/u.key&sslcert=/u.pem").unwrap();
        let client = url.client.unwrap();
        assert_eq!(client.certificate_file, PathBuf::from("/u.pem"));
        assert_eq!(client.key_file, PathBuf::from("/u.key"));
    }

    #[test]
    fn a_wrong_url_is_refused_with_its_reason() {
        for (text, reason) in [
            ("mysql://u@h/d", "postgresql://"),
            ("postgresql://h/d", "no user"),
            ("postgresql://u@/d", "no host"),
            ("postgresql://u@h:port/d", "no port"),
            ("postgresql://u@h/d?sslmode=off", "sslmode=off"),
            ("postgresql://u@h/d?sslkey=x", "sslkey"),
            ("postgresql://u@h/d?target_session_attrs=standby", "primary"),
        ] {
            let why = Url::parse(text).unwrap_err().to_string();
            assert!(why.contains(reason), "{text}: {why}");
        }
    }

    #[test]
    fn a_password_does_not_print() {
        let url = Url::parse("postgresql://u:hunter2@h/d").unwrap();
        assert_eq!(url.password.as_ref().map(Secret::expose), Some(&b"hunter2"[..]));
        assert!(!format!("{url:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "postgresql://[a-z@:/?&=%,\\[\\]0-9]{0,40}") {
            drop(Url::parse(&text));
        }
    }
}
