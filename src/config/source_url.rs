//! The connection URL of a PostgreSQL source, checked and completed. Pure.
//!
//! Form: `postgresql://user@host[:port][,host[:port]…]/database[?name=value&…]`
//! <https://www.postgresql.org/docs/18/libpq-connect.html#LIBPQ-CONNSTRING-URIS>

use core::net::IpAddr;

use percent_encoding::percent_decode_str;

use super::error::Fault;

/// Accepts the URL of a source; what comes back always names its `sslmode`.
pub(super) fn source_url(text: &str) -> Result<String, Fault> {
    accepted(text, false)
}

/// Accepts the URL of a database that is given with a command: it names our certificate, too, which a source names beside it.
pub(super) fn database_url(text: &str) -> Result<String, Fault> {
    accepted(text, true)
}

fn accepted(text: &str, has_certificate: bool) -> Result<String, Fault> {
    let Some(rest) = text.strip_prefix("postgresql://") else {
        return Err(Fault::new("is not a postgresql:// URL", FORM));
    };
    if text.contains('#') || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Fault::new("has a character that a URL cannot have", "write it as %23 or %20"));
    }
    let (login, after) = rest.rsplit_once('@').unwrap_or(("", rest));
    if login.contains(':') {
        return Err(Fault::new("has a password in it", PASSWORD));
    }
    if login.is_empty() {
        return Err(Fault::new("names no user", FORM));
    }
    if login.contains(['/', '?', '@']) {
        return Err(Fault::new(
            "has a user's name that cannot be read",
            "write /, ? and @ in it as %2F, %3F and %40",
        ));
    }
    decoded(login)?;
    let (place, query) = after.split_once('?').unwrap_or((after, ""));
    let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
    if database.is_empty() || database.contains('/') {
        return Err(Fault::new("names no database", FORM));
    }
    decoded(database)?;
    let mut local = true;
    for one in hosts.split(',') {
        local &= host_is_local(one)?;
    }
    match parameters(query, local, has_certificate)? {
        true => Ok(text.into()),
        false => {
            let mark = if query.is_empty() && !after.contains('?') { "?" } else { "&" };
            let mark = if after.ends_with(['?', '&']) { "" } else { mark };
            let mode = if local { "prefer" } else { "verify-full" };
            Ok(format!("{text}{mark}sslmode={mode}"))
        }
    }
}

/// Whether no packet to `one` leaves this machine.
fn host_is_local(one: &str) -> Result<bool, Fault> {
    let (host, port) = match one.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else {
                return Err(Fault::new("has an address without its closing bracket", FORM));
            };
            (address, port.strip_prefix(':').or(port.is_empty().then_some("5432")).unwrap_or(""))
        }
        None => one.split_once(':').unwrap_or((one, "5432")),
    };
    if host.is_empty() {
        return Err(Fault::new("names no host", FORM));
    }
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        let what = format!("has a port that is not a number from 1 to 65535 after `{host}`");
        return Err(Fault::new(what, FORM));
    }
    let host = decoded(host)?;
    if host.starts_with('/') {
        return Err(Fault::new("names a socket in the file system", "write localhost as the host"));
    }
    let address = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    Ok(address || host == "localhost")
}

/// Checks the parameters; whether `sslmode` is one of them.
fn parameters(query: &str, local: bool, has_certificate: bool) -> Result<bool, Fault> {
    let mut seen = vec![];
    let known = || PARAMETERS.iter().chain(CERTIFICATE.iter().filter(|_| has_certificate));
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if matches!(name, "password" | "passfile" | "sslpassword") {
            return Err(Fault::new("has a password in it", PASSWORD));
        }
        if !has_certificate && matches!(name, "sslcert" | "sslkey") {
            let remedy =
                "remove it, and name the files with client_certificate_file and client_key_file";
            return Err(Fault::new(format!("has {name} in it"), remedy));
        }
        let Some((_, allowed)) = known().find(|(known, _)| *known == name) else {
            let names: Vec<&str> = known().map(|(known, _)| *known).collect();
            let remedy = format!("remove it; the parameters are: {}", names.join(", "));
            return Err(Fault::new(format!("has an unknown parameter `{name}`"), remedy));
        };
        if seen.contains(&name) {
            return Err(Fault::new(format!("has `{name}` twice"), "remove one of them"));
        }
        seen.push(name);
        let value = decoded(value)?;
        // To loopback nothing can listen in.
        if !(local && name == "sslmode" && value == "prefer") {
            parameter(name, &value, allowed)?;
        }
    }
    if seen.contains(&"sslcert") != seen.contains(&"sslkey") {
        return Err(Fault::new("has one of sslcert and sslkey alone", "name both files"));
    }
    Ok(seen.contains(&"sslmode"))
}

/// Whether a query has only parameters that are known, none of which is secret.
pub(super) fn are_known(query: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/%".contains(&byte);
    query.split('&').all(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        value.bytes().all(plain)
            && PARAMETERS.iter().chain(CERTIFICATE).any(|(known, _)| *known == name)
    })
}

fn parameter(name: &str, value: &str, allowed: &Allowed) -> Result<(), Fault> {
    let (fits, wanted) = match allowed {
        Allowed::Words(words) => (words.contains(&value), words.join(", ")),
        Allowed::File => (
            value.starts_with('/') || value == "system",
            "the absolute path of a PEM file, system".into(),
        ),
        Allowed::Path => (value.starts_with('/'), "the absolute path of a PEM file".into()),
        Allowed::Text => (!value.is_empty(), "some text".into()),
    };
    if fits {
        return Ok(());
    }
    let falls_back = name == "sslmode" && matches!(value, "prefer" | "allow");
    let why = if falls_back { ", which goes on without TLS where the server has none" } else { "" };
    let what = format!("has {name}={value}{why}");
    Err(Fault::new(what, format!("write {name}= and one of: {wanted}")))
}

fn decoded(text: &str) -> Result<String, Fault> {
    let text = percent_decode_str(text).decode_utf8();
    let text = text.map_err(|_| Fault::new("is not UTF-8 behind its %", FORM))?;
    if text.contains('\0') {
        return Err(Fault::new("has a zero byte (%00) in it", FORM));
    }
    Ok(text.into())
}

enum Allowed {
    Words(&'static [&'static str]),
    File,
    Path,
    Text,
}

const PARAMETERS: &[(&str, Allowed)] = &[
    ("sslmode", Allowed::Words(&["verify-full", "verify-ca", "require", "disable"])),
    ("sslrootcert", Allowed::File),
    // Only a primary can be followed.
    ("target_session_attrs", Allowed::Words(&["any", "read-write", "primary"])),
    ("channel_binding", Allowed::Words(&["require", "prefer", "disable"])),
    ("application_name", Allowed::Text),
];
const CERTIFICATE: &[(&str, Allowed)] = &[("sslcert", Allowed::Path), ("sslkey", Allowed::Path)];
const FORM: &str = "write it as postgresql://user@host:5432/database";
const PASSWORD: &str = "remove it, put it in a file of mode 0600 and name that with password_file";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sslmode_is_verify_full_unless_said_otherwise_or_loopback() {
        for (url, becomes) in [
            ("postgresql://u@db/erp", "postgresql://u@db/erp?sslmode=verify-full"),
            ("postgresql://u@db/erp?", "postgresql://u@db/erp?sslmode=verify-full"),
            (
                "postgresql://u@db/erp?application_name=x",
                "postgresql://u@db/erp?application_name=x&sslmode=verify-full",
            ),
            (
                "postgresql://u@localhost,db:1/erp",
                "postgresql://u@localhost,db:1/erp?sslmode=verify-full",
            ),
            (
                "postgresql://u@127.0.0.1:5432/erp",
                "postgresql://u@127.0.0.1:5432/erp?sslmode=prefer",
            ),
            ("postgresql://u@[::1]/erp", "postgresql://u@[::1]/erp?sslmode=prefer"),
            ("postgresql://u@db/erp?sslmode=require", "postgresql://u@db/erp?sslmode=require"),
        ] {
            assert_eq!(source_url(url).as_deref(), Ok(becomes));
        }
    }

    #[test]
    fn what_is_missing_or_too_much_is_said() {
        for (url, what) in [
            ("mysql://u@db/erp", "is not a postgresql:// URL"),
            ("postgresql://u:hunter2@db/erp", "has a password in it"),
            ("postgresql://u@db/erp?password=hunter2", "has a password in it"),
            ("postgresql://u@db/erp?sslkey=/u.key", "has sslkey in it"),
            ("postgresql://db/erp", "names no user"),
            ("postgresql://u@/erp", "names no host"),
            ("postgresql://u@db,/erp", "names no host"),
            ("postgresql://u%00@db/erp", "has a zero byte (%00) in it"),
            ("postgresql://u@db", "names no database"),
            ("postgresql://u@db/a/b", "names no database"),
            (
                "postgresql://u@db:0/erp",
                "has a port that is not a number from 1 to 65535 after `db`",
            ),
            ("postgresql://u@[::1/erp", "has an address without its closing bracket"),
            (
                "postgresql://u@db/erp?sslmode=prefer",
                "has sslmode=prefer, which goes on without TLS where the server has none",
            ),
            ("postgresql://u@db/erp?sslmode=require&sslmode=disable", "has `sslmode` twice"),
            ("postgresql://u@%2Frun/erp", "names a socket in the file system"),
            ("postgresql://u@db/erp?options=-c", "has an unknown parameter `options`"),
            ("postgresql://u@db/e rp", "has a character that a URL cannot have"),
            ("postgresql://u%FF@db/erp", "is not UTF-8 behind its %"),
        ] {
            assert_eq!(source_url(url).unwrap_err().what, what, "{url}");
        }
    }

    #[test]
    fn a_command_names_its_certificate_in_the_url() {
        let both = "postgresql://u@db/erp?sslcert=/u.pem&sslkey=/u.key&sslmode=require";
        assert_eq!(database_url(both).as_deref(), Ok(both));
        for (query, what) in [
            ("sslcert=/u.pem", "has one of sslcert and sslkey alone"),
            ("sslkey=/u.key", "has one of sslcert and sslkey alone"),
            ("sslcert=u.pem&sslkey=/u.key", "has sslcert=u.pem"),
            ("sslpassword=x", "has a password in it"),
        ] {
            let url = format!("postgresql://u@db/erp?{query}");
            assert_eq!(database_url(&url).unwrap_err().what, what, "{url}");
        }
    }
}
