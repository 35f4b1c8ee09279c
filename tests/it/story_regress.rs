//! PostgreSQL's own regression suite runs on the source: statements and types that nobody here wrote. What it
//! leaves is restored equal, or was refused by name.
//!
//! `make regress` brings the suite; `LAKEHEAD_REGRESS` is its folder.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use lakehead::{
    demo::{
        cluster::SUPERUSER,
        compare::{Compared, compare},
        gateway::run,
        site::NONE,
    },
    telemetry::board::SourceState,
};
use serde_json::Value;
use tokio_postgres::Client;

use crate::harness::{SOURCE, Setup, World, copied};

/// The box publishes what it finds, as it is by default: tables come by their snapshots, most of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the suite is fetched: `make regress`"]
async fn what_the_regression_suite_leaves_is_restored_or_refused_aloud() {
    tell("regress", "").await;
}

/// All tables are published from the first on, with all of a row for its identity: their changes are streamed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the suite is fetched: `make regress`"]
async fn the_regression_suite_streams_and_is_restored_or_refused_aloud() {
    tell("regress-streamed", STREAMED).await;
}

async fn tell(story: &str, streamed: &str) {
    let suite = PathBuf::from(std::env::var_os("LAKEHEAD_REGRESS").expect("`make regress`"));
    let settings = [("max_connections", "60"), ("max_prepared_transactions", "4")];
    let settings = settings.map(|(name, value)| (name.into(), value.into())).to_vec();
    let setup = Setup { encryption: NONE.into(), settings, ..Setup::default() };
    let mut world = World::new(story, setup).await;
    let admin = world.admin().await;
    // The suite's tables belong to its superuser.
    admin.batch_execute("ALTER ROLE lakehead SUPERUSER").await.unwrap();
    if !streamed.is_empty() {
        admin.batch_execute(streamed).await.unwrap();
        world.configure("publication = \"everything\"");
    }
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    run_suite(&world, &suite).await;
    // Twice looked for tables; many of its statements write rows anew.
    tokio::time::sleep(LOOKS).await;
    world.settled().await;
    // An entry tells of one table of each name that it left, and the suite makes some names again and again.
    for _ in 0..ENTRIES {
        world.caught_up().await;
    }
    world.assert_proven().await;
    assert_restored(&mut world).await;
    world.end().await;
}

/// Every table is restored as it is, or named: in the alarm that says why it is not copied, or here as one whose
/// type is made in C, which a restore refuses by the type's name.
async fn assert_restored(world: &mut World) {
    let admin = world.admin().await;
    let strange = names(&admin, STRANGE).await;
    let except = strange.iter().flat_map(|table| ["--except", table.as_str()]);
    let words: Vec<&str> = except.chain(["--json"]).collect();
    admin.batch_execute("CREATE DATABASE restored").await.unwrap();
    let ended = world.restore("restored", &words).await;
    let said: Value = serde_json::from_str(ended.stdout.trim()).unwrap_or_default();
    // 1: texts that are not UTF-8, which no server takes any more.
    let repaired = said["repaired_values"].as_u64().unwrap_or(0);
    assert_eq!(ended.code, i32::from(repaired > 0), "{ended:?}");
    let restored = world.cluster.connect("restored", &world.tasks).await.unwrap();
    let tables = compare(&admin, &restored, copied).await.unwrap();
    let named = |list: &str| -> BTreeSet<&str> {
        said[list].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let (left, alarms) = (named("left"), world.status().await.alarms);
    let why = alarms.get("tables").map(|alarm| alarm.what.clone()).unwrap_or_default();
    // Which columns a key's index has besides is of the index: those are not copied.
    let named_index = |compared: &Compared| match (&compared.source, &compared.restored) {
        (Some(source), Some(restored)) => {
            let shape = source.shape.split(" INCLUDE ").next().unwrap_or_default();
            shape == restored.shape && source.sum == restored.sum
        }
        _ => false,
    };
    let refused = |table: &str| why.split("; ").any(|part| part.starts_with(&format!("{table}: ")));
    let accounted = |compared: &Compared| match (&compared.source, &compared.restored) {
        (None, Some(_)) => left.contains(compared.table.as_str()),
        (Some(_), None) => strange.contains(&compared.table) || refused(&compared.table),
        _ => refused(&compared.table) || named_index(compared),
    };
    let wrong = tables.iter().filter(|table| !table.equal() && !accounted(table));
    let wrong: Vec<String> = wrong.filter_map(Compared::difference).collect();
    let equal = tables.iter().filter(|table| table.equal()).count();
    eprintln!(
        "{equal} tables equal, {} had gone, {} of types made in C, {repaired} texts not UTF-8; {} changes, {} rows of snapshots",
        left.len(),
        strange.len(),
        said["changes"],
        said["snapshot_rows"]
    );
    assert!(wrong.is_empty(), "differ:\n{}", wrong.join("\n"));
    assert!(equal > TABLES_MIN, "only {equal} tables");
}

async fn names(client: &Client, sql: &str) -> BTreeSet<String> {
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Runs the suite in the source's database, as superuser. What it thinks of the server is not asked.
async fn run_suite(world: &World, suite: &Path) {
    let out = suite.join(world.dir.file_name().unwrap());
    fs::remove_dir_all(&out).ok();
    for folder in [out.clone(), out.join("results"), out.join("testtablespace")] {
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mut command = Command::new(suite.join("pg_regress"));
    let at = |option: &str, path: &Path| format!("--{option}={}", path.display());
    command.args([
        at("inputdir", &suite.join("suite")),
        at("outputdir", &out),
        at("bindir", &suite.join("bin")),
        at("dlpath", &suite.join("lib")),
        at("schedule", &suite.join("suite/parallel_schedule")),
    ]);
    let port = world.cluster.port().to_string();
    command.args(["--use-existing", "--dbname", SOURCE, "--host", "127.0.0.1", "--port", &port]);
    command.args(["--user", SUPERUSER, "--max-concurrent-tests=20"]);
    command.env("PGPASSWORD", world.cluster.password());
    let ended = run(command, &world.dir.join("pg_regress")).await.unwrap();
    fs::write(world.dir.join("pg_regress.out"), &ended.stdout).unwrap();
    let last = ended.stdout.lines().rev().find(|line| line.contains(" tests "));
    eprintln!("{}", last.unwrap_or(&ended.stdout).trim());
    assert!(last.is_some(), "{ended:?}");
}

/// Every table that is made is published, and has all of a row for its identity.
const STREAMED: &str = "CREATE PUBLICATION everything FOR ALL TABLES;
    CREATE FUNCTION public.identify() RETURNS event_trigger LANGUAGE plpgsql AS $$
    DECLARE made record; BEGIN
        FOR made IN SELECT objid FROM pg_event_trigger_ddl_commands()
            WHERE object_type = 'table' AND schema_name !~ '^pg_temp' LOOP
            EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', made.objid::regclass);
        END LOOP;
    END $$;
    CREATE EVENT TRIGGER identify ON ddl_command_end
        WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO') EXECUTE FUNCTION public.identify();";
/// Tables with a column whose type is made in C and belongs to no extension.
const STRANGE: &str = "SELECT DISTINCT n.nspname || '.' || c.relname
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_type e ON e.oid = t.typelem
    WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND a.attnum > 0
    AND (t.oid >= 16384 AND t.typtype = 'b' AND t.typcategory <> 'A' OR e.oid >= 16384 AND e.typtype = 'b')
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = t.oid AND d.deptype = 'e')";
const LOOKS: Duration = Duration::from_secs(25);
const ENTRIES: u32 = 90;
const TABLES_MIN: usize = 400;
