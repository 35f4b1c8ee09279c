//! Start-up and log-in: pinned settings, then SCRAM-SHA-256 (bound to the channel where it can be),
//! MD5, or the password in the clear where the channel is protected.
//!
//! **Invariant (I15):** every connection prints values in the same way; what the server reports of
//! the pinned settings is read back.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use postgres_protocol::{
    authentication::{md5_hash, sasl},
    message::frontend,
};

use super::{
    error::SourceError,
    message::{self, unknown},
    url::Url,
    wire::Wire,
};
use crate::config::Secret;

/// What a connection is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Purpose {
    /// Statements.
    Sql,
    /// The replication protocol, and statements.
    Replication,
}

/// Logs in.
pub(crate) async fn login(
    wire: &mut Wire,
    url: &Url,
    password: Option<&Secret>,
    purpose: Purpose,
) -> Result<(), SourceError> {
    let mut settings: BTreeMap<&str, &str> = PINNED.iter().copied().collect();
    settings.insert("user", &url.user);
    settings.insert("database", &url.database);
    settings.insert("application_name", &url.application_name);
    match purpose {
        Purpose::Sql => settings.extend([("lock_timeout", "30s")]),
        // A slot's making waits for locks of others, and while the journal is full nobody hears that the server asks.
        Purpose::Replication => settings.extend([
            ("replication", "database"),
            ("lock_timeout", "0"),
            ("wal_sender_timeout", "60s"),
        ]),
    }
    wire.send(|out| frontend::startup_message(settings, out)).await?;
    authenticate(wire, url, password).await?;
    loop {
        match wire.next(LIMIT, "start up").await? {
            (b'Z', _) => break,
            // The key for cancelling, of any length since PostgreSQL 18.
            (b'K', _) => {}
            (b'E', body) => return Err(refused(&body)),
            (tag, _) => return Err(unknown("at start-up", &char::from(tag).to_string())),
        }
    }
    for (name, value) in REPORTED {
        let found = wire.parameters.get(*name).map_or("", String::as_str);
        if !found.starts_with(value) {
            let what = format!("{name} is `{found}` though `{value}` was asked for");
            return Err(SourceError::Unknown(format!("{}: {what}", wire.host())));
        }
    }
    for (since, set) in LATER {
        if wire.version() >= *since {
            wire.query("set up the session", set).await?;
        }
    }
    if wire.parameters.get("server_encoding").is_some_and(|encoding| encoding == UNENCODED) {
        // It holds what it was given, and would refuse to send what is not UTF-8: as it is, it is read.
        let set = format!("SET client_encoding = '{UNENCODED}'");
        wire.query("set up the session", &set).await?;
    }
    Ok(())
}

async fn authenticate(
    wire: &mut Wire,
    url: &Url,
    password: Option<&Secret>,
) -> Result<(), SourceError> {
    let denied = |wire: &Wire, why: &str| {
        Err(SourceError::Authentication { host: wire.host().into(), why: why.into() })
    };
    let (kind, body) = request(wire).await?;
    if kind != SASL && url.channel_binding_required {
        return denied(wire, "the server does not bind the log-in to the channel");
    }
    let Some(password) = password else {
        return match kind {
            OK => Ok(()),
            _ => denied(wire, "the server asks for a password, and none is configured"),
        };
    };
    match kind {
        OK => return Ok(()),
        CLEARTEXT if wire.channel().is_protected() => {
            wire.send(|out| frontend::password_message(password.expose(), out)).await?;
        }
        CLEARTEXT => return denied(wire, "the server asks for the password in the clear"),
        MD5 => {
            let Some(salt) = body.first_chunk::<4>() else {
                return Err(unknown("AuthenticationMD5Password", "cut short"));
            };
            let hash = md5_hash(url.user.as_bytes(), password.expose(), *salt);
            wire.send(|out| frontend::password_message(hash.as_bytes(), out)).await?;
        }
        SASL => scram(wire, url, password, &body).await?,
        _ => return denied(wire, "the server asks for a method that is not supported"),
    }
    match request(wire).await? {
        (OK, _) => Ok(()),
        (kind, _) => Err(unknown("an authentication request", &kind.to_string())),
    }
}

async fn scram(
    wire: &mut Wire,
    url: &Url,
    password: &Secret,
    offered: &[u8],
) -> Result<(), SourceError> {
    let failed =
        |wire: &Wire, why: String| SourceError::Authentication { host: wire.host().into(), why };
    let offers = |name: &str| message::mechanisms(offered).contains(&name.as_bytes());
    let (binding, mechanism) = match (wire.channel().end_point(), offers(sasl::SCRAM_SHA_256_PLUS))
    {
        (Some(hash), true) => {
            (sasl::ChannelBinding::tls_server_end_point(hash), sasl::SCRAM_SHA_256_PLUS)
        }
        // Says that we could have: a server that could too knows that someone stands between.
        (Some(_), false) => (sasl::ChannelBinding::unrequested(), sasl::SCRAM_SHA_256),
        (None, _) => (sasl::ChannelBinding::unsupported(), sasl::SCRAM_SHA_256),
    };
    if !offers(mechanism) {
        return Err(failed(wire, "the server offers no SCRAM-SHA-256".into()));
    }
    if url.channel_binding_required && mechanism != sasl::SCRAM_SHA_256_PLUS {
        return Err(failed(wire, "the log-in cannot be bound to the channel".into()));
    }
    let mut scram = sasl::ScramSha256::new(password.expose(), binding);
    wire.send(|out| frontend::sasl_initial_response(mechanism, scram.message(), out)).await?;
    let first = expect(wire, SASL_CONTINUE).await?;
    scram.update(&first).map_err(|why| failed(wire, why.to_string()))?;
    wire.send(|out| frontend::sasl_response(scram.message(), out)).await?;
    let last = expect(wire, SASL_FINAL).await?;
    scram
        .finish(&last)
        .map_err(|why| failed(wire, format!("the server does not know the password either: {why}")))
}

async fn expect(wire: &mut Wire, wanted: u32) -> Result<Bytes, SourceError> {
    match request(wire).await? {
        (kind, body) if kind == wanted => Ok(body),
        (kind, _) => Err(unknown("an authentication request", &kind.to_string())),
    }
}

/// The next authentication request: its kind, and what follows it.
async fn request(wire: &mut Wire) -> Result<(u32, Bytes), SourceError> {
    match wire.next(LIMIT, "log in").await? {
        (b'R', body) => match body.first_chunk::<4>() {
            Some(kind) => Ok((u32::from_be_bytes(*kind), body.slice(4..))),
            None => Err(unknown("an authentication request", "cut short")),
        },
        (b'E', body) => Err(refused(&body)),
        (tag, _) => Err(unknown("at log-in", &char::from(tag).to_string())),
    }
}

fn refused(body: &[u8]) -> SourceError {
    SourceError::Server { doing: "log in", error: message::server_error(body) }
}

/// How values are printed, the same on every connection, and what must not depend on the role's or
/// the database's own settings. With an empty search path every name is printed qualified; without
/// row security a policy that would hide rows is an error instead.
const PINNED: &[(&str, &str)] = &[
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("default_transaction_deferrable", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    // Any value above 0 prints the shortest exact form.
    ("extra_float_digits", "3"),
    ("idle_in_transaction_session_timeout", "0"),
    // A look at the catalog of a thousand tables would be compiled each time, for a second.
    ("jit", "off"),
    ("lc_monetary", "C"),
    ("quote_all_identifiers", "off"),
    ("row_security", "off"),
    ("search_path", ""),
    ("statement_timeout", "0"),
    ("xmloption", "content"),
];

/// What older servers would not let in.
const LATER: &[(u32, &str)] =
    &[(140_000, "SET idle_session_timeout = 0"), (170_000, "SET transaction_timeout = 0")];

/// Those of them that the server reports back, and one that every server must have.
const REPORTED: &[(&str, &str)] = &[
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("client_encoding", "UTF8"),
    ("integer_datetimes", "on"),
];

/// The encoding of a database that does not look at the bytes of its texts.
const UNENCODED: &str = "SQL_ASCII";

const OK: u32 = 0;
const CLEARTEXT: u32 = 3;
const MD5: u32 = 5;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;
/// Each step of the log-in.
const LIMIT: Duration = Duration::from_secs(15);
