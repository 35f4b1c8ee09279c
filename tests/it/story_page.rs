//! The status page in a browser: it loads, shows names as text, says nothing wrong on the console, and
//! asks nobody else for anything.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use lakehead::{
    clock::SystemClock,
    config,
    demo::gateway::run,
    error::Cause,
    shutdown::Tasks,
    status::listen,
    telemetry::{
        board::{Board, SourceState, TableProgress},
        heartbeat::Heartbeat,
        report::Reporter,
    },
    units::Timestamp,
};

const EVIL: &str =
    "public.<script>document.title='taken'</script><img src=http://evil.test/x onerror=alert(1)>";

/// What a box with every kind of trouble shows.
fn board() -> Board {
    let board = Board::default();
    let shop = board.source("shop");
    shop.write(|status| {
        status.state = SourceState::Snapshot;
        status.server_version = EVIL.into();
        status.journal_damage.push(EVIL.into());
        let half = TableProgress { chunks: 2, chunks_done: 1, ..TableProgress::default() };
        status.snapshot.insert(EVIL.into(), half);
    });
    shop.alarm("tables", Cause::TableRefused, &EVIL, Timestamp(0));
    board
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_loads_in_a_browser_and_names_stay_text() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/it/page");
    fs::remove_dir_all(&dir).ok();
    fs::create_dir_all(&dir).unwrap();
    let tasks = Tasks::new();
    let reporter = Reporter::new("plant7-a", board(), Heartbeat::default(), Arc::new(SystemClock));
    reporter.ready();
    let status = config::Status {
        listen: "127.0.0.1:0".parse().unwrap(),
        certificate: None,
        certificate_key: None,
        hosts: vec![],
    };
    let address = listen::serve(&status, &dir, Arc::new(reporter), &tasks).await.unwrap();
    let own = format!("http://{address}/");
    let log = dir.join("net.json");
    let ended = run(browser(&dir, &log, &own), &dir.join("browser")).await.unwrap();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let page = &ended.stdout;
    assert!(page.contains("<title>plant7-a: needs a person</title>"), "{page}");
    assert!(!page.contains("<script") && !page.contains("<img"), "{page}");
    assert_eq!(page.matches("public.&lt;script&gt;").count(), 4, "{page}");
    assert!(page.contains("<progress value=\"0.500\">"), "{page}");
    let said: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(said.is_empty(), "{said:#?}");
    let asked = asked_for(&fs::read_to_string(&log).unwrap());
    assert!(asked.contains(&own), "the log of requests has the page itself: {asked:?}");
    let others: Vec<&String> = asked.iter().filter(|url| !url.starts_with(&own)).collect();
    assert!(others.is_empty(), "{others:?}");
    tasks.stop().await;
    fs::remove_dir_all(&dir).unwrap();
}

/// A browser that shows one page and prints what it made of it. It can reach nothing but this machine.
fn browser(dir: &Path, log: &Path, url: &str) -> Command {
    let found = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.is_file());
    let mut command = Command::new(found.expect("`make test-tools` installs chromium"));
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]);
    command.args(["--no-first-run", "--disable-background-networking", "--disable-sync"]);
    command.args(["--disable-component-update", "--disable-dev-shm-usage"]);
    command.arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1");
    command.arg(format!("--user-data-dir={}", dir.join("profile").display()));
    command.arg(format!("--log-net-log={}", log.display()));
    command.args(["--enable-logging=stderr", "--dump-dom", url]);
    command
}

/// The addresses that the page asked for. The browser asks for some of its own accord, in the name of none.
fn asked_for(log: &str) -> Vec<String> {
    let log: serde_json::Value = serde_json::from_str(log).unwrap();
    let events = log["events"].as_array().unwrap().iter();
    let asked = events.filter_map(|event| {
        let asked = &event["params"];
        let own = asked["request_type"] == "other" && asked["initiator"] == "not an origin";
        let url = asked["url"].as_str().filter(|_| !own && !asked["request_type"].is_null())?;
        Some(url.to_owned())
    });
    asked.collect()
}
