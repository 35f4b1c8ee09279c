//! Which values the keys of the configuration take. Pure.
//!
//! **Invariant:** a refusal says what is wrong with the value and how to write a right one.

use core::net::{IpAddr, SocketAddr};
use std::{path::PathBuf, time::Duration};

use url::{Host, Url};

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{Environment, error::Fault};
use crate::units::{Age, BitRate, ByteSize, UnitError};

/// `[a-z0-9-]`, 1 to 40 characters.
pub(super) fn appliance_name(text: &str) -> Result<String, Fault> {
    named(text, "-")
}

/// `[a-z0-9_-]`, 1 to 40 characters. It is a folder of the lake: one that begins with an underscore
/// would be hidden from every engine, or be the ledger's own.
pub(super) fn source_name(text: &str) -> Result<String, Fault> {
    named(text, "_-")
}

fn named(text: &str, marks: &str) -> Result<String, Fault> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fits = text.starts_with(plain)
        && text.chars().all(|c| plain(c) || marks.contains(c))
        && text.len() <= NAME_CHARS_MAX;
    let marks: Vec<String> = marks.chars().map(|mark| format!("`{mark}`")).collect();
    let remedy = format!(
        "write 1 to {NAME_CHARS_MAX} of a-z, 0-9 and {}, beginning with a letter or digit",
        marks.join(" and ")
    );
    fits.then(|| text.into()).ok_or(Fault::new("is not a name", remedy))
}

/// An absolute path; `${CREDENTIALS_DIRECTORY}` at its beginning is systemd's folder for this unit.
pub(super) fn path(text: &str, environment: &Environment) -> Result<PathBuf, Fault> {
    let path = match text.strip_prefix(CREDENTIALS) {
        Some(rest) => match &environment.credentials_directory {
            Some(dir) => dir.join(rest.trim_start_matches('/')),
            None => {
                let what = "needs CREDENTIALS_DIRECTORY, which is not set";
                return Err(Fault::new(what, "start lakehead by systemd, or write the path out"));
            }
        },
        None => PathBuf::from(text),
    };
    if is_key32(text) {
        let what = "is a key, where the name of its file belongs";
        return Err(Fault::new(what, "put the key in a file of mode 0600 and name that"));
    }
    if !path.is_absolute() || text.chars().any(char::is_control) {
        return Err(Fault::new("is not an absolute path", "write it from the root: /…"));
    }
    Ok(path)
}

/// Whether it is what a file of a key holds.
pub(super) fn is_key32(text: &str) -> bool {
    STANDARD.decode(text).is_ok_and(|key| key.len() == 32)
}

/// An AWS account.
pub(super) fn account(text: &str) -> Result<String, Fault> {
    let fits = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    fits.then(|| text.into()).ok_or_else(|| {
        Fault::new("is not an AWS account", "write its 12 digits: owner = \"111122223333\"")
    })
}

/// A pattern over `schema.table`.
pub(super) fn table_pattern(text: &str) -> Result<String, Fault> {
    let pattern = text.strip_prefix('!').unwrap_or(text);
    let halves = pattern.split_once('.').is_some_and(|(schema, table)| {
        !schema.is_empty() && !table.is_empty() && !pattern.contains('\0')
    });
    let fits = halves || pattern == "*";
    fits.then(|| text.into()).ok_or_else(|| {
        Fault::new(
            "is not a pattern over schema.table",
            "write it like \"public.*\" or \"!public.scratch_*\"",
        )
    })
}

/// A name of a replication slot.
/// <https://www.postgresql.org/docs/18/warm-standby.html#STREAMING-REPLICATION-SLOTS-MANIPULATION>
pub(super) fn slot(text: &str) -> Result<String, Fault> {
    let fits = (1..=IDENTIFIER_BYTES_MAX).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    fits.then(|| text.into())
        .ok_or_else(|| Fault::new("is not a slot's name", "write 1 to 63 of a-z, 0-9 and `_`"))
}

/// A name that PostgreSQL does not cut.
pub(super) fn identifier(text: &str) -> Result<String, Fault> {
    let fits = (1..=IDENTIFIER_BYTES_MAX).contains(&text.len()) && !text.contains('\0');
    fits.then(|| text.into()).ok_or_else(|| {
        Fault::new("is not a name in PostgreSQL", "write 1 to 63 bytes, without quotes around it")
    })
}

/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html>
pub(super) fn bucket(text: &str) -> Result<String, Fault> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let refuse = |what: &str| Err(Fault::new(what, "write the bucket's name as S3 lists it"));
    if !(3..=63).contains(&text.len()) {
        return refuse("is not 3 to 63 characters long");
    }
    if !text.chars().all(|c| plain(c) || matches!(c, '-' | '.')) {
        return refuse("has characters other than a-z, 0-9, `-` and `.`");
    }
    if !text.starts_with(plain) || !text.ends_with(plain) || text.contains("..") {
        return refuse("does not begin and end with a letter or digit, or has two dots in a row");
    }
    if text.parse::<IpAddr>().is_ok() {
        return refuse("is an IP address");
    }
    Ok(text.into())
}

/// The prefix without slashes at its ends.
pub(super) fn prefix(text: &str) -> Result<String, Fault> {
    let prefix = text.trim_matches('/');
    let refuse = |what: &str, remedy: &str| Err(Fault::new(what, remedy));
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.=/".contains(c);
    if !prefix.chars().all(plain) {
        return refuse(
            "has characters that engines read differently",
            "write it with A-Z, a-z, 0-9 and - _ . = /",
        );
    }
    if prefix.len() > PREFIX_BYTES_MAX {
        return refuse(
            "is longer than 200 characters",
            "choose a shorter one: keys have 1024 bytes in all",
        );
    }
    if !prefix.is_empty() && prefix.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return refuse(
            "has an empty part, `.` or `..` between its slashes",
            "write it like \"raw/plant7\"",
        );
    }
    Ok(prefix.into())
}

/// A network interface's name, as the kernel takes it.
/// <https://github.com/torvalds/linux/blob/v6.1/net/core/dev.c#L1025>
pub(super) fn interface(text: &str) -> Result<String, Fault> {
    let wrong = |c: char| matches!(c, '/' | ':' | '\0') || c.is_whitespace();
    let fits = (1..=INTERFACE_BYTES_MAX).contains(&text.len())
        && !text.contains(wrong)
        && !matches!(text, "." | "..");
    fits.then(|| text.into()).ok_or_else(|| {
        Fault::new("is not the name of an interface", "write it as `ip link` shows it: \"eth1\"")
    })
}

/// A link's rate.
pub(super) fn rate(text: &str) -> Result<BitRate, Fault> {
    let rate: BitRate = text.parse().map_err(unit)?;
    if (RATE_MIN..=RATE_MAX).contains(&rate) {
        return Ok(rate);
    }
    let remedy = format!("write a rate from {RATE_MIN} to {RATE_MAX}");
    Err(Fault::new("is slower or faster than links are", remedy))
}

pub(super) fn region(text: &str) -> Result<String, Fault> {
    let fits = !text.is_empty()
        && text.len() <= IDENTIFIER_BYTES_MAX
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    fits.then(|| text.into())
        .ok_or_else(|| Fault::new("is not a region", "write it like \"eu-central-1\""))
}

/// `https://`, or `http://` to loopback: nothing leaves the machine unencrypted (P6).
pub(super) fn endpoint(text: &str) -> Result<String, Fault> {
    let form = "write it like \"https://s3.eu-central-1.amazonaws.com\"";
    let url = Url::parse(text).map_err(|why| Fault::new(format!("is not a URL: {why}"), form))?;
    let loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    match url.scheme() {
        "https" => {}
        "http" if loopback => {}
        "http" => {
            return Err(Fault::new(
                "would send data unencrypted",
                "write https://; http:// is only for loopback",
            ));
        }
        _ => return Err(Fault::new("is neither https:// nor http://", form)),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Fault::new(
            "has a login in it",
            "remove it, and name the keys with credentials_file",
        ));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(Fault::new("has more than a host and a port", form));
    }
    Ok(url.as_str().trim_end_matches('/').into())
}

pub(super) fn kms_key_id(text: &str) -> Result<String, Fault> {
    let fits = !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
    fits.then(|| text.into()).ok_or_else(|| {
        Fault::new("is not a KMS key", "write its ARN, as KMS shows it: \"arn:aws:kms:…\"")
    })
}

/// A size from `least` to `most` bytes.
pub(super) fn size(text: &str, least: u64, most: u64) -> Result<u64, Fault> {
    let ByteSize(bytes) = text.parse().map_err(unit)?;
    let range = format!("write a size from {} to {}", ByteSize(least), ByteSize(most));
    match bytes {
        small if small < least => Err(Fault::new("is too small", range)),
        large if large > most => Err(Fault::new("is too large", range)),
        _ => Ok(bytes),
    }
}

/// A span of time from `least` to `most`.
pub(super) fn age(text: &str, least: Duration, most: Duration) -> Result<Duration, Fault> {
    let Age(age) = text.parse().map_err(unit)?;
    let fits = (least..=most).contains(&age);
    fits.then_some(age).ok_or_else(|| {
        Fault::new(
            "is out of range",
            format!("write a span from {least:?} to {} s", most.as_secs()),
        )
    })
}

pub(super) fn listen(text: &str) -> Result<SocketAddr, Fault> {
    text.parse().map_err(|_| {
        Fault::new(
            "is not an address with a port",
            "write it like \"0.0.0.0:8443\" or \"[::1]:8443\"",
        )
    })
}

/// A host name as browsers send it: lowercase, without a port.
pub(super) fn host(text: &str) -> Result<String, Fault> {
    let fits = !text.is_empty()
        && text.len() <= 253
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
    fits.then(|| text.to_ascii_lowercase()).ok_or_else(|| {
        Fault::new("is not a host name", "write it without https:// and port: \"plant7-a.lan\"")
    })
}

fn unit(error: UnitError) -> Fault {
    Fault::new(format!("is not {}", error.what), format!("write it like {}", error.example))
}

const CREDENTIALS: &str = "${CREDENTIALS_DIRECTORY}";
const NAME_CHARS_MAX: usize = 40;
const PREFIX_BYTES_MAX: usize = 200;
/// IFNAMSIZ less its NUL.
const INTERFACE_BYTES_MAX: usize = 15;
/// Slower, requests at once wait longer for each other than S3 waits for them.
const RATE_MIN: BitRate = BitRate(1_000_000);
const RATE_MAX: BitRate = BitRate(1_000_000_000_000);
/// <https://www.postgresql.org/docs/18/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS>
const IDENTIFIER_BYTES_MAX: usize = 63;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_cannot_take_the_ledgers_folder() {
        for wrong in ["_ledger", "-a", "", "ERP", "a.b", &"x".repeat(41)] {
            assert!(source_name(wrong).is_err(), "{wrong}");
        }
        for right in ["erp", "erp_2", "7-a", &"x".repeat(40)] {
            assert!(source_name(right).is_ok(), "{right}");
        }
        assert!(appliance_name("plant_7").is_err());
        let remedy = source_name("ERP").unwrap_err().remedy;
        assert_eq!(
            remedy,
            "write 1 to 40 of a-z, 0-9 and `_` and `-`, beginning with a letter or digit"
        );
    }

    #[test]
    fn a_bucket_follows_s3s_rules() {
        for wrong in
            ["ab", "Acme", "acme_raw", "-acme", "acme.", "a..b", "10.0.0.1", &"x".repeat(64)]
        {
            assert!(bucket(wrong).is_err(), "{wrong}");
        }
        assert_eq!(bucket("acme-raw.7"), Ok("acme-raw.7".into()));
    }

    #[test]
    fn a_prefix_loses_its_outer_slashes_only() {
        assert_eq!(prefix("/raw/plant=7/"), Ok("raw/plant=7".into()));
        assert_eq!(prefix(""), Ok(String::new()));
        for wrong in ["a//b", "a/../b", "./a", "a b", "ä", "a?b", &"x".repeat(201)] {
            assert!(prefix(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_leaves_unencrypted_but_to_loopback() {
        assert_eq!(endpoint("http://127.0.0.1:9000/"), Ok("http://127.0.0.1:9000".into()));
        assert_eq!(endpoint("http://localhost:9000"), Ok("http://localhost:9000".into()));
        assert_eq!(endpoint("https://[2001:db8::1]:443"), Ok("https://[2001:db8::1]".into()));
        for wrong in [
            "http://10.0.0.1:9000",
            "http://localhost.evil.example",
            "ftp://localhost",
            "https://u:p@s3.example",
            "https://s3.example/bucket",
            "https://s3.example?x",
            "s3.example",
        ] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_path_is_absolute_or_a_credential() {
        let environment = Environment {
            credentials_directory: Some("/run/credentials/x".into()),
            ..Default::default()
        };
        let expanded = path("${CREDENTIALS_DIRECTORY}/erp", &environment).unwrap();
        assert_eq!(expanded, PathBuf::from("/run/credentials/x/erp"));
        assert!(path("${CREDENTIALS_DIRECTORY}/erp", &Environment::default()).is_err());
        assert!(path("relative/file", &environment).is_err());
        assert!(path("~/file", &environment).is_err());
    }

    #[test]
    fn a_pattern_names_schema_and_table() {
        for right in ["public.*", "!public.scratch_*", "*.orders", "*", "*.*", "a.b.c"] {
            assert!(table_pattern(right).is_ok(), "{right}");
        }
        for wrong in ["", "!", "public", "public.", ".orders", "!public"] {
            assert!(table_pattern(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_and_spans_have_limits() {
        assert_eq!(size("5 MiB", 5 << 20, 5 << 30), Ok(5 << 20));
        let small = size("1 MiB", 5 << 20, 5 << 30).unwrap_err();
        assert_eq!(small.remedy, "write a size from 5.0 MiB to 5.0 GiB");
        assert_eq!(size("64 Mib", 0, 1).unwrap_err().remedy, "write it like \"64 MiB\"");
        let span = |text| age(text, Duration::from_millis(100), Duration::from_secs(86_400));
        assert!(span("50 ms").is_err() && span("2 d").is_err());
        assert_eq!(span("60 s"), Ok(Duration::from_secs(60)));
    }
}
