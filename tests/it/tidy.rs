//! The house rules that a compiler does not check: who may import whom, one door for each foreign
//! crate, pure files, documentation, length; and that the README says what the code says.

use std::{fs, path::Path};

use lakehead::{
    error::{Cause, Disposition},
    telemetry::metrics::{METRICS, Metric},
};

/// Each imports itself, the room before it, and the foundations.
const ROAD: [&str; 5] = ["source", "journal", "seal", "ship", "ledger"];
/// Reads what the road wrote: may import all of it.
const BACK: &str = "replay";
/// No customer byte passes: they import the foundations only.
const SIDE: [&str; 3] = ["link", "status", "demo"];
/// Import each other, and no room.
const BASE: [&str; 9] =
    ["units", "clock", "disk", "error", "facts", "heap", "shutdown", "config", "telemetry"];
/// Join the rooms.
const ABOVE: [&str; 6] = ["cli", "fuzz", "lib", "main", "pipeline", "sim"];
const LINES_MAX: usize = 500;
/// Each foreign crate that does I/O, or that could spread, comes in by one door.
const DOORS: [(&str, &str); 12] = [
    ("aws_sdk_s3", "src/ship/s3.rs"),
    ("aws_lc_sys", "src/seal/gcm.rs"),
    ("catch_unwind", "src/shutdown/panics.rs"),
    ("clap::", "src/cli/"),
    ("indicatif", "src/demo/progress.rs"),
    ("nix::", "src/disk.rs src/heap.rs src/cli/ src/demo/ src/link/ src/source/postgres/lull.rs"),
    ("prometheus::", "src/telemetry/metrics.rs"),
    ("rayon::", "src/journal/store.rs"),
    ("rcgen", "src/demo/ src/status/"),
    ("s3s::", "src/demo/s3/"),
    ("sled::", "src/journal/store.rs"),
    ("tokio_postgres", "src/source/postgres/ src/replay/restore src/demo/"),
];
/// What a pure file does not say.
const IO: [&str; 11] = [
    "tokio::",
    "std::fs",
    "std::env",
    "std::process",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "aws_sdk",
    "sled::",
    "async fn",
    "Instant::now",
];
/// Signs of unfinished work.
const UNFINISHED: [&str; 4] = ["TO\u{44}O", "FIX\u{4d}E", "todo!(", "unimplemented!("];

/// Whether `room` may name `crate::target`.
fn may_import(room: &str, target: &str) -> bool {
    let at = |name| ROAD.iter().position(|known| *known == name);
    if target == room || ABOVE.contains(&room) || target.starts_with(char::is_uppercase) {
        return true;
    }
    if ABOVE.contains(&target) {
        return false;
    }
    match (at(room), at(target)) {
        (Some(here), Some(there)) => there + 1 == here,
        (None, Some(_)) => room == BACK,
        (_, None) => BASE.contains(&target),
    }
}

/// The rooms that a text names with `crate::`, one by one or in braces.
fn imports(code: &str) -> Vec<String> {
    let mut found = vec![];
    for rest in code.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            found.push(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut fresh = true;
        for (at, sign) in list.char_indices() {
            match sign {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => fresh = true,
                sign if fresh && !sign.is_whitespace() => {
                    found.push(word(&list[at..]));
                    fresh = false;
                }
                _ => {}
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

fn word(text: &str) -> String {
    text.chars().take_while(|sign| sign.is_alphanumeric() || *sign == '_').collect()
}

/// The text without tests and comments.
fn code(text: &str) -> String {
    let body = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    let lines = body.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Complaints about one file; empty when it is tidy.
fn complaints(path: &Path, text: &str) -> Vec<String> {
    let inside = path.strip_prefix("src").unwrap();
    let room = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    let room = room.trim_end_matches(".rs");
    if path.file_name().is_some_and(|name| name == "tests.rs") {
        let documented = text.starts_with("//! ");
        return if documented { vec![] } else { vec!["no module docs".into()] };
    }
    let code = code(text);
    let mut found: Vec<String> = imports(&code)
        .iter()
        .filter(|target| !may_import(room, target))
        .map(|target| format!("{room} imports {target}"))
        .collect();
    let known =
        [&ROAD[..], &[BACK], &SIDE, &BASE, &ABOVE].iter().any(|rooms| rooms.contains(&room));
    if !known {
        found.push(format!("no room is called {room}"));
    }
    if !text.starts_with("//! ") {
        found.push("no module docs".into());
    }
    let lines = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text).lines().count();
    if lines > LINES_MAX {
        found.push(format!("{lines} lines, {LINES_MAX} at most"));
    }
    found.extend(
        UNFINISHED.iter().filter(|sign| text.contains(**sign)).map(|sign| format!("says {sign}")),
    );
    let docs: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
    if docs.join(" ").contains("Pure.") {
        let said = IO.iter().filter(|word| code.contains(**word));
        found.extend(said.map(|word| format!("pure file says {word}")));
    }
    let doors = DOORS.iter().filter(|(krate, doors)| names(&code, krate) && !at_door(path, doors));
    found.extend(doors.map(|(krate, _)| format!("{krate} has its own door")));
    found
}

/// Whether the code names the crate: `nix::` is not in `unix::`.
fn names(code: &str, krate: &str) -> bool {
    let part = |before: &str| before.ends_with(|sign: char| sign.is_alphanumeric() || sign == '_');
    code.match_indices(krate).any(|(at, _)| !part(&code[..at]))
}

/// Whether `path` is one of the space-separated doors: a file, a folder, or the beginning of a name.
fn at_door(path: &Path, doors: &str) -> bool {
    let path = path.to_str().unwrap();
    doors.split(' ').any(|door| path == door || (!door.ends_with(".rs") && path.starts_with(door)))
}

fn visit(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let said = complaints(&path, &text);
            found.extend(said.iter().map(|why| format!("{}: {why}", path.display())));
        }
    }
}

#[test]
fn the_source_tree_is_tidy() {
    let mut found = vec![];
    visit(Path::new("src"), &mut found);
    assert!(found.is_empty(), "untidy:\n{}", found.join("\n"));
}

#[test]
fn the_rules_catch_what_they_forbid() {
    let said = |path: &str, text: &str| complaints(Path::new(path), text);
    assert_eq!(
        said("src/journal/a.rs", "//! J.\nuse crate::ship::Receipt;"),
        ["journal imports ship"]
    );
    let nested =
        "//! S.\nuse crate::{\n    journal::{Batch, Run},\n    ledger,\n    units::{Point},\n};";
    assert_eq!(said("src/seal/mod.rs", nested), ["seal imports ledger"]);
    assert_eq!(said("src/utils/a.rs", "//! U."), ["no room is called utils"]);
    assert_eq!(said("src/units.rs", "//! U.\nuse crate::source;"), ["units imports source"]);
    assert_eq!(
        said("src/status/mod.rs", "//! S.\nuse crate::journal;"),
        ["status imports journal"]
    );
    assert_eq!(
        said("src/ledger/mod.rs", "//! L.\nuse crate::pipeline;"),
        ["ledger imports pipeline"]
    );
    assert_eq!(
        said("src/seal/cut.rs", "//! Cuts. Pure.\nuse tokio::fs;"),
        ["pure file says tokio::"]
    );
    assert_eq!(said("src/seal/cut.rs", "use std::io;"), ["no module docs"]);
    assert_eq!(
        said("src/ship/drive.rs", "//! D.\nuse aws_sdk_s3::Client;"),
        ["aws_sdk_s3 has its own door"]
    );
    assert_eq!(said("src/ship/s3.rs", "//! D.\nuse aws_sdk_s3::Client;"), [""; 0]);
    assert_eq!(said("src/replay/restore/apply.rs", "//! R.\nuse tokio_postgres::Client;"), [""; 0]);
    let long = format!("//! L.\n{}", "\n".repeat(LINES_MAX));
    assert_eq!(said("src/ship/plan.rs", &long).len(), 1);
    let tests = "//! P. Pure.\nuse crate::{seal::Object, units};\n#[cfg(test)]\nmod tests { use tokio::fs; }";
    assert_eq!(said("src/ship/plan.rs", tests), [""; 0]);
}

#[test]
fn the_readme_names_every_alarm_with_its_remedy() {
    holds("Alarms", Cause::ALL.iter().map(|cause| alarm_row(*cause)).collect());
}

#[test]
fn the_readme_names_every_metric() {
    let row = |metric: &Metric| format!("| `{}` | {} |", metric.name, metric.help);
    holds("Metrics", METRICS.iter().map(row).collect());
}

/// The rows of the README's table under that heading are these.
fn holds(heading: &str, wanted: Vec<String>) {
    let readme = fs::read_to_string("README.md").unwrap();
    let (_, section) = readme.split_once(&format!("# {heading}\n")).expect("a heading");
    let section = section.split("\n#").next().unwrap_or(section);
    let found: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(found == wanted, "README.md, \"{heading}\", must be:\n{}", wanted.join("\n"));
}

#[test]
fn the_firmware_has_one_tls_and_no_store_of_its_own() {
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    assert!(!manifest.contains("native-tls") && !manifest.contains("openssl"), "one TLS: rustls");
    assert!(!manifest.contains("\"ring\""), "one provider: aws-lc-rs");
    assert!(!manifest.contains("\ndefault ="), "the firmware is built without features");
    let unwinds = !manifest.contains("panic = \"abort\"");
    assert!(unwinds, "a panic of the index would end the box: src/shutdown/panics.rs");
}

fn alarm_row(cause: Cause) -> String {
    let kind = match cause.disposition() {
        Disposition::Retry(_) => "heals",
        Disposition::Halt(_) => "person",
        Disposition::Fatal(_) => "restart",
        Disposition::Fenced(_) => "fenced",
    };
    format!("| `{}` | {kind} | {} |", cause.name(), cause.disposition().remedy())
}
