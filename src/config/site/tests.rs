//! What the site's file may say, and what each mistake in it is answered with.

use std::{net::SocketAddr, path::Path};

use proptest::prelude::*;

use super::*;
use crate::{config::Problem, units::BitRate};

/// DESIGN §12, verbatim.
const SITE: &str = r#"[appliance]
name = "plant7-a"                    # [a-z0-9-]
data_dir = "/var/lib/lakehead"

[[source]]
name = "erp"
kind = "postgres"
url = "postgresql://lakehead@db.plant7.lan:5432/erp?sslmode=verify-full"
password_file = "/run/credentials/lakehead/erp"   # optional
tables = ["public.*", "!public.scratch_*"]
release = "auto"                     # "auto" | "journal" | "lake"

[lake]
bucket = "acme-raw"
prefix = "raw"
region = "eu-central-1"
endpoint = "https://bucket.vpce-0a1b.s3.eu-central-1.vpce.amazonaws.com"   # optional; http:// only to loopback
path_style = false
credentials_file = "/run/credentials/lakehead/aws" # optional, AWS shared-credentials format; else the SDK's chain

[encryption]
mode = "client"                      # "client" | "client-kms" | "sse-kms" | "none"
key_file = "/run/credentials/lakehead/lake.key"    # client: 32 bytes, base64
# kms_key_id = "arn:aws:kms:…"                     # client-kms, sse-kms

[journal]
max_bytes = "50 GiB"

[seal]
object_bytes = "64 MiB"
object_age = "60 s"

[[link]]                             # optional: none means unshaped, the routing table's way
name = "dx-1"
interface = "eth1"
rate = "800 Mbit/s"

[status]
listen = "0.0.0.0:8443"
"#;

fn parsed(text: &str) -> Result<Config, Vec<Problem>> {
    let path = Path::new("/etc/lakehead/site.toml");
    let parsed = parse(path, text, &Environment::default());
    parsed.map_err(|error| match error {
        ConfigError::Wrong { problems, .. } => problems,
        other => panic!("{other}"),
    })
}

/// The one problem of the site's file after replacing `from`, which must stand in it, by `to`.
fn problem(from: &str, to: &str) -> Problem {
    assert!(SITE.contains(from), "{from}");
    let problems = parsed(&SITE.replacen(from, to, 1)).unwrap_err();
    let [problem] = problems.try_into().unwrap();
    assert!(problem.remedy.len() > 5, "{problem}");
    problem
}

fn changed(from: &str, to: &str) -> String {
    problem(from, to).to_string()
}

#[test]
fn the_designs_file_is_read_whole() {
    let config = parsed(SITE).unwrap();
    assert_eq!(config.appliance.name, "plant7-a");
    assert_eq!(config.appliance.data_dir, Path::new("/var/lib/lakehead"));
    let [erp] = config.sources.try_into().unwrap();
    assert_eq!(
        (erp.name.as_str(), erp.kind, erp.release),
        ("erp", SourceKind::Postgres, Release::Auto)
    );
    assert_eq!(erp.tables, ["public.*", "!public.scratch_*"]);
    assert_eq!((erp.release_wal_max, erp.snapshot_workers), (10 << 30, 2));
    assert_eq!((erp.snapshot_pace, erp.snapshot_age.as_secs()), (SnapshotPace::Gentle, 300));
    assert_eq!(erp.after_gap, AfterGap::Reread);
    assert_eq!(erp.large_transactions, LargeTransactions::AsTheyCome);
    assert_eq!(erp.sequence_interval.as_secs(), 60);
    assert_eq!(erp.large_objects, LargeObjects::Copy);
    assert_eq!(erp.password_file.unwrap(), Path::new("/run/credentials/lakehead/erp"));
    assert_eq!(config.lake.bucket, "acme-raw");
    assert!(config.lake.endpoint.unwrap().ends_with("vpce.amazonaws.com"));
    let key_file = "/run/credentials/lakehead/lake.key".into();
    assert_eq!(config.encryption, Encryption::Client { key_file });
    let journal = Journal { max_bytes: 50 << 30, key_file: None, segment_bytes: 64 << 20 };
    assert_eq!(config.journal, journal);
    let (object_bytes, object_age) = (64 << 20, Duration::from_secs(60));
    let (integers, uuids) = (Integers::Rising, Uuids::Uuid);
    assert_eq!(config.seal, Seal { object_bytes, object_age, integers, uuids });
    assert_eq!(config.ship, Ship { part_bytes: 16 << 20, requests: 4 });
    let link = config.link.unwrap();
    assert_eq!((link.name.as_str(), link.interface.as_str()), ("dx-1", "eth1"));
    assert_eq!(link.rate, BitRate(800_000_000));
    assert_eq!(config.status.unwrap().listen, "0.0.0.0:8443".parse::<SocketAddr>().unwrap());
}

#[test]
fn the_optional_tables_have_defaults() {
    let end = SITE.find("[journal]").unwrap();
    let short = parsed(&SITE[..end]).unwrap();
    let long = parsed(SITE).unwrap();
    assert_eq!(short, Config { link: None, status: None, ..long });
}

#[test]
fn a_second_link_is_refused_rather_than_ignored() {
    let second = "\n[[link]]\nname = \"dx-2\"\ninterface = \"eth2\"\nrate = \"1 Gbit/s\"\n";
    let [link] = parsed(&format!("{SITE}{second}")).unwrap_err().try_into().unwrap();
    assert_eq!((link.key.as_str(), link.line), ("link", SITE.lines().count() + 2));
    assert!(link.what.contains("second link"), "{link}");
}

#[test]
fn large_objects_are_copied_unless_they_are_left() {
    let with = |word: &str| {
        parsed(&SITE.replace("release = \"auto\" ", &format!("large_objects = \"{word}\" ")))
    };
    assert_eq!(with("leave").unwrap().sources[0].large_objects, LargeObjects::Leave);
    assert_eq!(with("copy").unwrap().sources[0].large_objects, LargeObjects::Copy);
    let [wrong] = with("later").unwrap_err().try_into().unwrap();
    assert_eq!((wrong.key.as_str(), wrong.line), ("source.large_objects", 11));
}

#[test]
fn how_tables_are_repaired_behind_a_gap_is_one_of_two_words() {
    let with = |word: &str| {
        parsed(&SITE.replace("release = \"auto\" ", &format!("after_gap = \"{word}\" ")))
    };
    assert_eq!(with("compare").unwrap().sources[0].after_gap, AfterGap::Compare);
    let [wrong] = with("later").unwrap_err().try_into().unwrap();
    assert_eq!((wrong.key.as_str(), wrong.line), ("source.after_gap", 11));
    assert!(wrong.what.contains("no way to repair"), "{wrong}");
}

#[test]
fn integers_are_laid_down_in_one_of_three_ways() {
    let with =
        |word: &str| parsed(&SITE.replace("\"60 s\"", &format!("\"60 s\"\nintegers = \"{word}\"")));
    assert_eq!(with("rising").unwrap().seal.integers, Integers::Rising);
    assert_eq!(with("plain").unwrap().seal.integers, Integers::Plain);
    assert_eq!(with("delta").unwrap().seal.integers, Integers::Delta);
    let [wrong] = with("zigzag").unwrap_err().try_into().unwrap();
    assert_eq!((wrong.key.as_str(), wrong.line), ("seal.integers", 32));
}

#[test]
fn uuids_are_laid_down_in_one_of_two_ways() {
    let with =
        |word: &str| parsed(&SITE.replace("\"60 s\"", &format!("\"60 s\"\nuuids = \"{word}\"")));
    assert_eq!(with("uuid").unwrap().seal.uuids, Uuids::Uuid);
    assert_eq!(with("text").unwrap().seal.uuids, Uuids::Text);
    let [wrong] = with("bytes").unwrap_err().try_into().unwrap();
    assert_eq!((wrong.key.as_str(), wrong.line), ("seal.uuids", 32));
}

#[test]
fn large_transactions_come_at_one_of_two_times() {
    let with = |word: &str| {
        parsed(&SITE.replace("release = \"auto\" ", &format!("large_transactions = \"{word}\" ")))
    };
    let read = |word| with(word).unwrap().sources[0].large_transactions;
    assert_eq!(read("as_they_come"), LargeTransactions::AsTheyCome);
    assert_eq!(read("at_commit"), LargeTransactions::AtCommit);
    let [wrong] = with("never").unwrap_err().try_into().unwrap();
    assert_eq!((wrong.key.as_str(), wrong.line), ("source.large_transactions", 11));
}

#[test]
fn a_client_certificate_has_its_key() {
    let with = |lines: &str| {
        parsed(&SITE.replace("kind = \"postgres\"", &format!("kind = \"postgres\"\n{lines}")))
    };
    let (certificate, key) =
        ("client_certificate_file = \"/c.pem\"", "client_key_file = \"/c.key\"");
    let both = with(&format!("{certificate}\n{key}")).unwrap();
    let client = both.sources[0].client.clone().unwrap();
    assert_eq!(client.certificate_file, PathBuf::from("/c.pem"));
    assert_eq!(client.key_file, PathBuf::from("/c.key"));
    for (lines, lacks) in [(certificate, "client_key_file"), (key, "client_certificate_file")] {
        let problems = with(lines).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].to_string().contains(&format!("source.{lacks}: is missing")));
    }
}

#[test]
fn each_wrong_value_is_named_with_its_line_key_and_remedy() {
    for (from, to, said) in [
        (
            "\"eth1\"",
            "\"eth 1\"",
            "35:13: link.interface = \"eth 1\": is not the name of an interface",
        ),
        ("800 Mbit/s", "800 MB/s", "36:8: link.rate = \"800 MB/s\": is not a rate"),
        (
            "800 Mbit/s",
            "1 kbit/s",
            "36:8: link.rate = \"1 kbit/s\": is slower or faster than links are",
        ),
        ("plant7-a\"", "Plant 7\"", "2:8: appliance.name = \"Plant 7\": is not a name"),
        (
            "\"/var/lib",
            "\"var/lib",
            "3:12: appliance.data_dir = \"var/lib/lakehead\": is not an absolute path",
        ),
        ("\"erp\"", "\"_ledger\"", "6:8: source.name = \"_ledger\": is not a name"),
        (
            "\"postgres\"",
            "\"oracle\"",
            "7:8: source.kind = \"oracle\": is not a kind of database that this firmware reads",
        ),
        (
            "\"public.*\"",
            "\"public\"",
            "10:11: source.tables = \"public\": is not a pattern over schema.table",
        ),
        ("\"public.*\", ", "", "10:10: source.tables: takes no table in"),
        ("\"auto\" ", "\"never\"", "11:11: source.release = \"never\": is not a release rule"),
        (
            "\"acme-raw\"",
            "\"Acme\"",
            "14:10: lake.bucket = \"Acme\": has characters other than a-z, 0-9, `-` and `.`",
        ),
        (
            "\"acme-raw\"",
            "\"acme.raw\"",
            "14:10: lake.bucket = \"acme.raw\": has a dot, which the certificate of S3 does not cover in a host name",
        ),
        (
            "\"raw\"",
            "\"raw//x\"",
            "15:10: lake.prefix = \"raw//x\": has an empty part, `.` or `..` between its slashes",
        ),
        (
            "\"eu-central-1\"",
            "\"Frankfurt!\"",
            "16:10: lake.region = \"Frankfurt!\": is not a region",
        ),
        ("= false", "= \"no\"", "18:14: lake.path_style: is of type string"),
        (
            "\"client\" ",
            "\"client-kms\" ",
            "22:8: encryption.mode = \"client-kms\": is not in this firmware yet",
        ),
        ("\"client\" ", "\"aes\" ", "22:8: encryption.mode = \"aes\": is not a mode of encryption"),
        ("\"50 GiB\"", "\"50\"", "27:13: journal.max_bytes = \"50\": is too small"),
        ("\"50 GiB\"", "50", "27:13: journal.max_bytes = 50: is of type integer"),
        ("\"64 MiB\"", "\"64 Mib\"", "30:16: seal.object_bytes = \"64 Mib\": is not a size"),
        ("\"60 s\"", "\"60\"", "31:14: seal.object_age = \"60\": is not a span of time"),
        (
            "\"0.0.0.0:8443\"",
            "\"8443\"",
            "39:10: status.listen = \"8443\": is not an address with a port",
        ),
    ] {
        assert_eq!(changed(from, to), said);
    }
}

#[test]
fn an_endpoint_without_tls_is_refused() {
    let said = changed("https://bucket.vpce-0a1b.s3", "http://bucket.vpce-0a1b.s3");
    assert!(said.starts_with("17:12: lake.endpoint = \"http://bucket"), "{said}");
    assert!(said.ends_with("would send data unencrypted"), "{said}");
}

#[test]
fn a_password_in_the_url_is_refused_and_not_repeated() {
    let found = problem("lakehead@db", "lakehead:hunter2@db");
    assert_eq!((found.line, found.key.as_str()), (8, "source.url"));
    assert!(found.remedy.contains("password_file"));
    assert!(!format!("{found:?}").contains("hunter2"));
}

#[test]
fn a_missing_key_is_named_at_its_table() {
    assert_eq!(changed("bucket = \"acme-raw\"\n", ""), "13:1: lake.bucket: is missing");
    assert_eq!(
        problem("bucket = \"acme-raw\"\n", "").remedy,
        "add a line like: bucket = \"acme-raw\""
    );
    assert_eq!(changed("key_file = ", "# "), "21:1: encryption.key_file: is missing");
    assert_eq!(changed("kind = \"postgres\"\n", ""), "5:1: source.kind: is missing");
    assert_eq!(changed("tables = ", "# "), "5:1: source.tables: is missing");
}

#[test]
fn a_missing_table_is_named() {
    let without = |from: &str, to: &str| {
        let (start, end) = (SITE.find(from).unwrap(), SITE.find(to).unwrap());
        let [problem] =
            parsed(&format!("{}{}", &SITE[..start], &SITE[end..])).unwrap_err().try_into().unwrap();
        (problem.to_string(), problem.remedy)
    };
    assert_eq!(without("[[source]]", "[lake]").0, "1:1: source: is missing");
    assert_eq!(without("[lake]", "[encryption]").0, "1:1: lake: is missing");
    let (said, remedy) = without("[encryption]", "[journal]");
    assert_eq!(said, "1:1: encryption: is missing");
    assert!(remedy.ends_with("is chosen in words, never defaulted"), "{remedy}");
}

#[test]
fn an_unknown_key_is_named_with_the_one_that_was_meant_and_not_its_value() {
    let found = problem("bucket =", "bucket = \"acme-raw\"\nbuket =");
    assert_eq!(found.to_string(), "15:1: lake.buket: is not a key of this table");
    assert_eq!(found.remedy, "write bucket, or remove the line");
    let found = problem("kind =", "password = \"hunter2\"\nkind =");
    assert!(found.remedy.contains("password_file"), "{}", found.remedy);
    assert!(!format!("{found:?}").contains("hunter2"));
    assert_eq!(changed("[seal]", "[sealing]\n[seal]"), "29:2: sealing: is not a key of this table");
}

#[test]
fn keys_of_another_mode_are_refused() {
    let kms = SITE.replace("# kms_key_id", "kms_key_id");
    let said: Vec<String> = parsed(&kms).unwrap_err().iter().map(Problem::to_string).collect();
    let key = "24:14: encryption.kms_key_id = \"arn:aws:kms:…\":";
    assert_eq!(
        said,
        [format!("{key} is not a KMS key"), format!("{key} belongs to mode \"sse-kms\"")]
    );
    let kms = kms.replace("kms:…", "kms:eu-central-1:1:key/2");
    let [found] = parsed(&kms).unwrap_err().try_into().unwrap();
    assert_eq!(found.what, "belongs to mode \"sse-kms\"");
    let none = SITE.replace("\"client\" ", "\"none\" ");
    assert_eq!(parsed(&none).unwrap_err()[0].what, "belongs to mode \"client\"");
    let none = none.replace("key_file = \"/run/credentials/lakehead/lake.key\"", "");
    assert_eq!(parsed(&none).unwrap().encryption, Encryption::None);
}

#[test]
fn two_sources_cannot_have_one_name() {
    let end = SITE.find("[lake]").unwrap();
    let twice = format!("{}{}", &SITE[..end], &SITE[SITE.find("[[source]]").unwrap()..]);
    let [found] = parsed(&twice).unwrap_err().try_into().unwrap();
    assert_eq!(found.to_string(), "14:8: source.name = \"erp\": is another source's name");
}

#[test]
fn a_certificate_comes_with_its_key() {
    let found = problem("0:8443\"\n", "0:8443\"\ncertificate = \"/etc/lakehead/page.pem\"\n");
    assert_eq!(found.to_string(), "38:1: status.certificate_key: is missing");
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_their_lines() {
    let wrong =
        SITE.replace("\"erp\"", "\"ERP\"").replace("\"raw\"", "\"r w\"").replace("50 GiB", "1 B");
    let lines: Vec<usize> = parsed(&wrong).unwrap_err().iter().map(|found| found.line).collect();
    assert_eq!(lines, [6, 15, 27]);
}

#[test]
fn what_is_not_toml_is_named_by_its_line() {
    let found = parsed(&SITE.replace("[seal]", "[seal")).unwrap_err();
    assert_eq!(found[0].line, 29, "{found:?}");
    assert!(found[0].remedy.contains("toml.io"));
    assert!(parsed("").unwrap_err().len() >= 4);
}

#[test]
fn the_whole_error_reads_as_file_line_and_column() {
    let error = parse(
        Path::new("/etc/x.toml"),
        &SITE.replace("\"raw\"", "\"r w\""),
        &Environment::default(),
    );
    let error = error.unwrap_err();
    assert!(
        error.to_string().starts_with("/etc/x.toml:15:10: lake.prefix = \"r w\": has char"),
        "{error}"
    );
    assert_eq!(error.pairs().len(), 1);
}

#[test]
fn a_file_that_is_not_there_has_a_remedy() {
    let error = Config::load(Path::new("/nowhere/site.toml")).unwrap_err();
    assert!(error.to_string().starts_with("read config /nowhere/site.toml: "), "{error}");
    assert!(error.pairs()[0].1.contains("--config"));
}

proptest! {
    /// Nothing that stands in the file makes the reader panic, and what it refuses has a place in it.
    #[test]
    fn any_text_is_answered(at in 0..SITE.len(), cut in 0..40_usize, put in "[\\PC\n\"\\[\\]{}.=]{0,12}") {
        let end = (at + cut).min(SITE.len());
        let (Some(before), Some(after)) = (SITE.get(..at), SITE.get(end..)) else { return Ok(()) };
        let text = format!("{before}{put}{after}");
        for found in parsed(&text).err().unwrap_or_default() {
            prop_assert!(found.line <= text.matches('\n').count() + 1);
            prop_assert!(!found.what.is_empty() && !found.remedy.is_empty());
        }
    }
}
