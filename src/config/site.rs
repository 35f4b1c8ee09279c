//! The site's file, table by table. Pure.
//!
//! **Invariant:** a table is read whole before it can fail, so that one look shows all its problems.

use std::{collections::BTreeSet, path::Path, path::PathBuf, time::Duration};

use super::{
    AfterGap, Appliance, ClientCertificate, Config, ConfigError, Encryption, Environment, Integers,
    Journal, Lake, LargeObjects, LargeTransactions, Link, Release, Seal, Ship, SnapshotPace,
    Source, SourceKind, Status, Uuids,
    document::{Document, Section},
    error::Fault,
    rules,
    source_url::source_url,
};

/// The whole file.
pub(super) fn parse(
    path: &Path,
    text: &str,
    environment: &Environment,
) -> Result<Config, ConfigError> {
    let document = Document::new(text);
    let config = document.parse().and_then(|table| {
        let top = Section::top(&document, &table);
        let config = read(&top, environment);
        top.finish();
        config
    });
    let problems = document.into_problems();
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(ConfigError::Wrong { path: path.into(), problems }),
    }
}

fn read(top: &Section<'_>, environment: &Environment) -> Option<Config> {
    let appliance = appliance(top, environment);
    let sources = sources(top, environment);
    let lake = lake(top, environment);
    let encryption = encryption(top, environment);
    let journal = journal(top, environment);
    let seal = seal(top);
    let ship = ship(top);
    let link = link(top);
    let status = status(top, environment);
    Some(Config {
        appliance: appliance?,
        sources: sources?,
        lake: lake?,
        encryption: encryption?,
        journal: journal?,
        seal: seal?,
        ship: ship?,
        link: link?,
        status: status?,
    })
}

fn appliance(top: &Section<'_>, environment: &Environment) -> Option<Appliance> {
    let table = table(top, "appliance", "[appliance] with name and data_dir")?;
    let name = table.required("name", "name = \"plant7-a\"", rules::appliance_name);
    let example = "data_dir = \"/var/lib/lakehead\"";
    let data_dir = table.required("data_dir", example, |text| rules::path(text, environment));
    table.finish();
    Some(Appliance { name: name?, data_dir: data_dir? })
}

fn sources(top: &Section<'_>, environment: &Environment) -> Option<Vec<Source>> {
    let tables = top.sections("source");
    if tables.is_empty() && top.place("source").is_none() {
        top.wrong("source", Fault::new("is missing", "add a table [[source]] for each database"));
    }
    let mut names = BTreeSet::new();
    let mut sources = vec![];
    for table in tables {
        let source = source(&table, environment);
        if let Some(source) = &source
            && !names.insert(source.name.clone())
        {
            table.wrong("name", Fault::new("is another source's name", "give each source its own"));
        }
        table.finish();
        sources.push(source);
    }
    let sources: Option<Vec<Source>> = sources.into_iter().collect();
    sources.filter(|sources| !sources.is_empty())
}

fn source(table: &Section<'_>, environment: &Environment) -> Option<Source> {
    let name = table.required("name", "name = \"erp\"", rules::source_name);
    let kind = table.required("kind", "kind = \"postgres\"", |text| match text {
        "postgres" => Ok(SourceKind::Postgres),
        _ => Err(Fault::new(
            "is not a kind of database that this firmware reads",
            "write \"postgres\"",
        )),
    });
    let example = "url = \"postgresql://lakehead@db:5432/erp\"";
    let url = table.required("url", example, source_url);
    let password_file = path(table, "password_file", environment);
    let client = client_certificate(table, environment);
    let tables = tables(table);
    let release = table.optional("release", |text| match text {
        "auto" => Ok(Release::Auto),
        "journal" => Ok(Release::Journal),
        "lake" => Ok(Release::Lake),
        _ => Err(Fault::new("is not a release rule", "write \"auto\", \"journal\" or \"lake\"")),
    });
    let release_wal_max =
        table.optional("release_wal_max", |text| rules::size(text, 64 * MIB, 1024 * 1024 * GIB));
    let workers = table.number("snapshot_workers", 1..=16);
    let pace = table.optional("snapshot_pace", |text| match text {
        "gentle" => Ok(SnapshotPace::Gentle),
        "full" => Ok(SnapshotPace::Full),
        _ => Err(Fault::new("is not a pace", "write \"gentle\" or \"full\"")),
    });
    let age = table.optional("snapshot_age", |text| {
        rules::age(text, Duration::from_secs(10), Duration::from_secs(86_400))
    });
    let large_transactions = table.optional("large_transactions", large_transactions);
    let after_gap = table.optional("after_gap", |text| match text {
        "reread" => Ok(AfterGap::Reread),
        "compare" => Ok(AfterGap::Compare),
        _ => Err(Fault::new(
            "is no way to repair tables behind a gap",
            "write \"reread\" or \"compare\"",
        )),
    });
    let interval = table.optional("sequence_interval", |text| {
        rules::age(text, Duration::from_secs(10), Duration::from_secs(24 * 3600))
    });
    let large_objects = table.optional("large_objects", |text| match text {
        "copy" => Ok(LargeObjects::Copy),
        "leave" => Ok(LargeObjects::Leave),
        _ => Err(Fault::new("is not one of \"copy\", \"leave\"", "write \"copy\" or \"leave\"")),
    });
    let publication = table.optional("publication", rules::identifier);
    let slot = table.optional("slot", rules::slot);
    Some(Source {
        name: name?,
        kind: kind?,
        url: url?,
        password_file,
        client,
        tables: tables?,
        release: release.unwrap_or(Release::Auto),
        release_wal_max: release_wal_max.unwrap_or(10 * GIB),
        snapshot_workers: workers.unwrap_or(2),
        snapshot_pace: pace.unwrap_or(SnapshotPace::Gentle),
        snapshot_age: age.unwrap_or(Duration::from_secs(300)),
        large_transactions: large_transactions.unwrap_or(LargeTransactions::AsTheyCome),
        after_gap: after_gap.unwrap_or(AfterGap::Reread),
        sequence_interval: interval.unwrap_or(Duration::from_secs(60)),
        large_objects: large_objects.unwrap_or(LargeObjects::Copy),
        publication,
        slot,
    })
}

fn client_certificate(table: &Section<'_>, environment: &Environment) -> Option<ClientCertificate> {
    let (certificate, key) = ("client_certificate_file", "client_key_file");
    let files = (path(table, certificate, environment), path(table, key, environment));
    let lacks = |key| {
        let remedy = "name both files, or none: the certificate, and the key that it is of";
        table.wrong(key, Fault::new("is missing", remedy));
    };
    match files {
        (Some(certificate_file), Some(key_file)) => {
            return Some(ClientCertificate { certificate_file, key_file });
        }
        (Some(_), None) if table.place(key).is_none() => lacks(key),
        (None, Some(_)) if table.place(certificate).is_none() => lacks(certificate),
        _ => {}
    }
    None
}

fn large_transactions(text: &str) -> Result<LargeTransactions, Fault> {
    match text {
        "as_they_come" => Ok(LargeTransactions::AsTheyCome),
        "at_commit" => Ok(LargeTransactions::AtCommit),
        _ => Err(Fault::new(
            "is no time at which transactions are sent",
            "write \"as_they_come\" or \"at_commit\"",
        )),
    }
}

fn tables(table: &Section<'_>) -> Option<Vec<String>> {
    let remedy = "write the tables to copy: tables = [\"public.*\"]";
    if table.place("tables").is_none() {
        table.wrong("tables", Fault::new("is missing", remedy));
    }
    let tables = table.texts("tables", rules::table_pattern)?;
    if tables.iter().all(|pattern| pattern.starts_with('!')) {
        table.wrong("tables", Fault::new("takes no table in", remedy));
        return None;
    }
    Some(tables)
}

fn lake(top: &Section<'_>, environment: &Environment) -> Option<Lake> {
    let table = table(top, "lake", "[lake] with bucket, prefix and region")?;
    let bucket = table.required("bucket", "bucket = \"acme-raw\"", rules::bucket);
    let prefix = table.required("prefix", "prefix = \"raw\"", rules::prefix);
    let region = table.required("region", "region = \"eu-central-1\"", rules::region);
    let endpoint = table.optional("endpoint", rules::endpoint);
    let path_style = table.flag("path_style").unwrap_or(false);
    let owner = table.optional("owner", rules::account);
    let credentials_file = path(&table, "credentials_file", environment);
    let ca_file = path(&table, "ca_file", environment);
    if bucket.as_ref().is_some_and(|name| name.contains('.')) && !path_style {
        let what = "has a dot, which the certificate of S3 does not cover in a host name";
        table.wrong("bucket", Fault::new(what, "add path_style = true"));
    }
    table.finish();
    Some(Lake {
        bucket: bucket?,
        prefix: prefix?,
        region: region?,
        endpoint,
        path_style,
        owner,
        credentials_file,
        ca_file,
    })
}

fn encryption(top: &Section<'_>, environment: &Environment) -> Option<Encryption> {
    let what =
        "[encryption] with mode: how objects are encrypted is chosen in words, never defaulted";
    let table = table(top, "encryption", what)?;
    let mode = table.required("mode", "mode = \"client\"", |text| match text {
        "client" | "sse-kms" | "none" => Ok(text.to_owned()),
        "client-kms" => Err(Fault::new(
            "is not in this firmware yet",
            "write \"client\" with key_file, or \"sse-kms\" with kms_key_id",
        )),
        _ => Err(Fault::new(
            "is not a mode of encryption",
            "write \"client\", \"sse-kms\" or, knowing what it means, \"none\"",
        )),
    });
    let key_file = path(&table, "key_file", environment);
    let kms_key_id = table.optional("kms_key_id", rules::kms_key_id);
    let unused = |key: &'static str, owner: &str| {
        if table.place(key).is_some() {
            table.wrong(
                key,
                Fault::new(format!("belongs to mode \"{owner}\""), "remove it, or change mode"),
            );
        }
    };
    let needed = |key: &'static str, remedy: &str| {
        if table.place(key).is_none() {
            table.wrong(key, Fault::new("is missing", remedy));
        }
    };
    let encryption = mode.and_then(|mode| match mode.as_str() {
        "client" => {
            unused("kms_key_id", "sse-kms");
            needed(
                "key_file",
                "make a key with `openssl rand -base64 32`, keep a copy of it, and name its file",
            );
            key_file.map(|key_file| Encryption::Client { key_file })
        }
        "sse-kms" => {
            unused("key_file", "client");
            needed("kms_key_id", "name the customer's key: kms_key_id = \"arn:aws:kms:…\"");
            kms_key_id.map(|kms_key_id| Encryption::SseKms { kms_key_id })
        }
        _ => {
            unused("key_file", "client");
            unused("kms_key_id", "sse-kms");
            Some(Encryption::None)
        }
    });
    table.finish();
    encryption
}

fn journal(top: &Section<'_>, environment: &Environment) -> Option<Journal> {
    let Some(table) = top.section("journal") else {
        return Some(Journal { max_bytes: 50 * GIB, key_file: None, segment_bytes: 64 * MIB });
    };
    let max_bytes =
        table.optional("max_bytes", |text| rules::size(text, 256 * MIB, 1024 * 1024 * GIB));
    let key_file = path(&table, "key_file", environment);
    let segment_bytes = table.optional("segment_bytes", |text| rules::size(text, MIB, GIB));
    let (max_bytes, segment_bytes) =
        (max_bytes.unwrap_or(50 * GIB), segment_bytes.unwrap_or(64 * MIB));
    if segment_bytes > max_bytes / 4 {
        let fault = Fault::new(
            "is more than a quarter of max_bytes",
            "write a smaller size: space returns a segment at a time",
        );
        table.wrong("segment_bytes", fault);
    }
    table.finish();
    Some(Journal { max_bytes, key_file, segment_bytes })
}

fn seal(top: &Section<'_>) -> Option<Seal> {
    let (object_bytes, object_age) = (64 * MIB, Duration::from_secs(60));
    let (integers, uuids) = (Integers::default(), Uuids::default());
    let defaults = Seal { object_bytes, object_age, integers, uuids };
    let Some(table) = top.section("seal") else { return Some(defaults) };
    let bytes = table.optional("object_bytes", |text| rules::size(text, MIB, 4 * GIB));
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(24 * 3600));
    let age = table.optional("object_age", |text| rules::age(text, least, most));
    let integers = table.optional("integers", |text| match text {
        "rising" => Ok(Integers::Rising),
        "plain" => Ok(Integers::Plain),
        "delta" => Ok(Integers::Delta),
        _ => Err(Fault::new(
            "is no way to lay down integers",
            "write \"rising\" or \"plain\", or \"delta\" if all your readers have it",
        )),
    });
    let uuids = table.optional("uuids", |text| match text {
        "uuid" => Ok(Uuids::Uuid),
        "text" => Ok(Uuids::Text),
        _ => Err(Fault::new(
            "is no way to lay down UUIDs",
            "write \"uuid\", or \"text\" for readers that do not have that type",
        )),
    });
    table.finish();
    Some(Seal {
        object_bytes: bytes.unwrap_or(defaults.object_bytes),
        object_age: age.unwrap_or(defaults.object_age),
        integers: integers.unwrap_or(defaults.integers),
        uuids: uuids.unwrap_or(defaults.uuids),
    })
}

fn ship(top: &Section<'_>) -> Option<Ship> {
    let defaults = Ship { part_bytes: 16 * MIB, requests: 4 };
    let Some(table) = top.section("ship") else { return Some(defaults) };
    // S3's limits: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
    let part = table.optional("part_bytes", |text| rules::size(text, 5 * MIB, 5 * GIB));
    let requests = table.number("requests", 1..=64);
    table.finish();
    Some(Ship {
        part_bytes: part.unwrap_or(defaults.part_bytes),
        requests: requests.map_or(defaults.requests, |requests| requests as usize),
    })
}

/// The outer `None`: it is wrong. The inner: there is none.
#[expect(clippy::option_option, reason = "as said")]
fn link(top: &Section<'_>) -> Option<Option<Link>> {
    let mut tables = top.sections("link").into_iter();
    let Some(table) = tables.next() else { return Some(None) };
    let name = table.required("name", "name = \"dx-1\"", rules::source_name);
    let interface = table.required("interface", "interface = \"eth1\"", rules::interface);
    let rate = table.required("rate", "rate = \"800 Mbit/s\"", rules::rate);
    table.finish();
    for more in tables {
        let what = "is a second link, and this firmware sends over one";
        more.wrong_here(Fault::new(what, "keep the one that leads to S3, and remove the others"));
    }
    Some(Some(Link { name: name?, interface: interface?, rate: rate? }))
}

/// The outer `None`: it is wrong. The inner: there is none.
#[expect(clippy::option_option, reason = "as said")]
fn status(top: &Section<'_>, environment: &Environment) -> Option<Option<Status>> {
    let Some(table) = top.section("status") else { return Some(None) };
    let listen = table.required("listen", "listen = \"127.0.0.1:8443\"", rules::listen);
    let certificate = path(&table, "certificate", environment);
    let certificate_key = path(&table, "certificate_key", environment);
    for (given, missing) in [("certificate", "certificate_key"), ("certificate_key", "certificate")]
    {
        if table.place(given).is_some() && table.place(missing).is_none() {
            let fault = Fault::new("is missing", format!("name it too, or remove {given}"));
            table.wrong(missing, fault);
        }
    }
    let hosts = table.texts("hosts", rules::host).unwrap_or_default();
    table.finish();
    Some(Some(Status { listen: listen?, certificate, certificate_key, hosts }))
}

fn table<'d>(top: &Section<'d>, key: &'static str, what: &str) -> Option<Section<'d>> {
    if top.place(key).is_none() {
        // Asked for all the same, so that it is a known key.
        drop(top.section(key));
        top.wrong(key, Fault::new("is missing", format!("add the table {what}")));
        return None;
    }
    top.section(key)
}

fn path(table: &Section<'_>, key: &'static str, environment: &Environment) -> Option<PathBuf> {
    table.optional(key, |text| rules::path(text, environment))
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[cfg(test)]
mod tests;
