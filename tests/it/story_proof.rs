//! The lake's content is compared with the database's: no false alarm while others write, and whatever one side
//! has alone is found, with its table and key.

use lakehead::demo::workload::Tally;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    dialect,
    harness::{SOURCE, Setup, World},
};

const TYPES: &str = include_str!("../fixtures/types.sql");
const TYPES_CHANGES: &str = include_str!("../fixtures/types_changes.sql");
/// The box's publication, as it is named after appliance and source.
const PUBLICATION: &str = "lakehead_demo_a_shop";

/// Compares, and gives exit code and report.
async fn compare(world: &World) -> (i32, Value) {
    let ended = world.audit(&["verify", "--against-source", "--json", "--source", SOURCE]).await;
    let said: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
    let whole = (Value::Bool(true), Value::Bool(ended.code == 0));
    assert_eq!((&said["proven"], &said["equal"]), (&whole.0, &whole.1), "{said}");
    (ended.code, said["against_source"][0].clone())
}

/// The tables that have this verdict.
fn with(report: &Value, verdict: &str) -> Vec<Value> {
    let tables = report["tables"].as_array().unwrap_or_else(|| panic!("{report}"));
    tables.iter().filter(|table| table["verdict"] == verdict).cloned().collect()
}

async fn assert_equal(world: &World) -> Value {
    let (code, report) = compare(world).await;
    let rest: Vec<Value> = ["different", "unknown", "untold"]
        .into_iter()
        .flat_map(|verdict| with(&report, verdict))
        .filter(|table| table["table"] != "public.events")
        .collect();
    assert!(code == 0 && rest.is_empty(), "{code}: {rest:#?}");
    report
}

/// No alarm. A table that others emptied meanwhile is not compared, which is said; how many were equal.
async fn assert_no_alarm(world: &World) -> (usize, Value) {
    let (code, report) = compare(world).await;
    let unknown = with(&report, "unknown");
    let emptied = |table: &Value| table["why"].as_str().unwrap().contains("emptied");
    let quiet = with(&report, "different").is_empty() && unknown.iter().all(emptied);
    assert!(quiet && code == if unknown.is_empty() { 0 } else { 2 }, "{code}: {report:#}");
    (with(&report, "equal").len(), report)
}

/// Compares until no definition came meanwhile, as it says.
async fn compare_again(world: &World) -> (i32, Value) {
    for _ in 0..TRIES {
        let (code, report) = compare(world).await;
        if !report.to_string().contains("compare again") {
            return (code, report);
        }
    }
    panic!("definitions come again and again");
}

const TRIES: usize = 5;

/// Has the database do something that no stream tells of.
async fn behind(world: &World, table: &str, sql: &str) {
    let admin = world.admin().await;
    let publication = format!("ALTER PUBLICATION {PUBLICATION}");
    let sql = format!(
        "BEGIN; {publication} DROP TABLE {table}; {sql}; {publication} ADD TABLE {table}; COMMIT"
    );
    admin.batch_execute(&sql).await.unwrap();
}

/// The replication slots that the database has.
async fn slots(world: &World) -> Vec<String> {
    let admin = world.admin().await;
    let query = "SELECT slot_name::text FROM pg_replication_slots";
    let rows = admin.query(query, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[expect(clippy::disallowed_methods, reason = "how often it looks is said from outside")]
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lake_equals_its_source_at_every_look_while_others_write() {
    let (mut left, mut seed) = (number("LAKEHEAD_RUNS", 4), number("LAKEHEAD_SEED", 21));
    while left > 0 {
        let runs = left.min(RUNS_PER_WORLD);
        look_again_and_again(runs, seed).await;
        (left, seed) = (left - runs, seed + 1);
    }
}

async fn look_again_and_again(runs: u64, seed: u64) {
    let mut world = World::new("proof-load", Setup::default()).await;
    // The shop has a type of that name.
    let types = dialect::types(TYPES, world.major());
    world.execute(&types.replace("percentage", "percent_of")).await;
    let workload = world.workload(seed, 4_000_000, 150.0).await;
    world.start();
    // Of a table whose first reading is under way a look can say nothing.
    world.settled().await;
    let (tally, stop) = (Tally::default(), CancellationToken::new());
    let work = workload.run(&tally, &world.tasks, &stop);
    let look = async {
        world.execute_each(&TYPES_CHANGES.replace("percentage", "percent_of")).await;
        let mut rows = 0;
        for run in 1..=runs {
            let (equal, report) = assert_no_alarm(&world).await;
            let tables = report["tables"].as_array().unwrap();
            assert!(equal + 3 >= tables.len(), "{report:#}");
            rows = tables.iter().filter_map(|table| table["source_rows"].as_i64()).sum();
            let (held, bytes) = (&report["snapshot_held_s"], &report["source_bytes"]);
            let all = tables.len();
            eprintln!(
                "== seed {seed}, run {run} of {runs}: {equal} of {all} tables equal, {rows} rows, held {held} s, {bytes} bytes"
            );
        }
        stop.cancel();
        rows
    };
    let (worked, rows) = tokio::join!(work, look);
    worked.unwrap();
    assert!(rows > 5_000 && tally.read().transactions > 100, "{rows} rows, {:?}", tally.read());
    assert_eq!(slots(&world).await, ["lakehead_demo_a_shop"], "nothing stays in the database");
    // Nobody writes any more: the ledger reaches the position all the same.
    assert_equal(&world).await;
    world.end().await;
}

/// A lake that equals its source, after values that the server leaves out, under keys that change.
async fn changed(story: &str) -> World {
    let mut world = World::new(story, Setup::default()).await;
    world
        .execute_each(
            "CREATE SCHEMA \"Odd \"\"one\"\"\";\n\
            CREATE TABLE keyed (id integer PRIMARY KEY, a text, n numeric(9,3), big text);\n\
            CREATE TABLE \"Odd \"\"one\"\"\".\"Tab le\" (\"Kéy\" text, n integer, v bytea, f double precision, \
                PRIMARY KEY (n, \"Kéy\"));\n\
            CREATE TABLE bare (id integer, a text, t timestamptz);\nALTER TABLE bare REPLICA IDENTITY FULL;\n\
            CREATE TABLE untold (id integer, a text);\n\
            CREATE TABLE parted (id integer PRIMARY KEY, a char(7)) PARTITION BY RANGE (id);\n\
            CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (1000);\n\
            CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (1000) TO (9000);\n\
            INSERT INTO keyed SELECT n, 'a' || n, n / 8.0, CASE n % 3 WHEN 0 THEN repeat(md5(n::text), 900) END \
                FROM generate_series(1, 30000) AS n;\n\
            INSERT INTO \"Odd \"\"one\"\"\".\"Tab le\" SELECT 'k,' || n, n, decode(md5(n::text), 'hex'), \
                CASE n % 3 WHEN 0 THEN 'NaN' WHEN 1 THEN '-0'::float8 ELSE n / 3.0 END FROM generate_series(1, 500) AS n;\n\
            INSERT INTO bare SELECT n % 50, CASE n % 3 WHEN 0 THEN '' WHEN 1 THEN 'x' END, \
                CASE n % 4 WHEN 0 THEN 'infinity' WHEN 1 THEN '0044-03-15 BC' ELSE now() END FROM generate_series(1, 300) AS n;\n\
            INSERT INTO untold VALUES (1, 'a');\n\
            INSERT INTO parted SELECT n, 'p' || n FROM generate_series(1, 2000) AS n",
        )
        .await;
    world.start();
    world.whole(6).await;
    // Values that the server leaves out, under keys that change, again and again; rows that come and go.
    world
        .execute_each(
            "UPDATE keyed SET a = 'b' WHERE id % 7 = 0;\n\
            UPDATE keyed SET id = id + 100000 WHERE id % 11 = 0;\n\
            UPDATE keyed SET id = id + 200000, a = 'c' WHERE id > 100000;\n\
            UPDATE keyed SET a = NULL WHERE id > 300000;\n\
            DELETE FROM keyed WHERE id % 13 = 0;\n\
            UPDATE bare SET a = 'y' WHERE id = 7;\nDELETE FROM bare WHERE id = 8;\n\
            UPDATE parted SET id = id + 1000 WHERE id BETWEEN 500 AND 510 AND id + 1000 NOT IN (SELECT id FROM parted);\n\
            BEGIN; INSERT INTO \"Odd \"\"one\"\"\".\"Tab le\" VALUES ('', -1, '', 'Infinity'); COMMIT",
        )
        .await;
    world.caught_up().await;
    assert_equal(&world).await;
    world
}

/// What differs in the one table where something does.
fn of(report: &Value, name: &str) -> Value {
    let found = with(report, "different");
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0]["table"], name);
    found[0]["differences"].clone()
}

fn row(key: &[&str], what: &str, columns: &[&str]) -> Value {
    json!({ "key": key, "what": what, "columns": columns })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_side_has_alone_is_found_with_its_table_and_key() {
    let world = changed("proof-alone").await;
    behind(&world, "keyed", "UPDATE keyed SET n = n + 0.001 WHERE id = 4243").await;
    let (code, report) = compare(&world).await;
    let found = of(&report, "public.keyed");
    assert_eq!(code, 1);
    assert_eq!(found["rows"], json!([row(&["4243"], "altered", &["n"])]), "{found}");
    assert_eq!(found["range"], json!([["4243"], ["4243"]]));

    // It is said to people too, with no value but the key.
    let said = world.audit(&["verify", "--against-source"]).await;
    let expected = "public.keyed: DIFFERENT: 0 rows are missing in the lake, 0 are in the lake only, 1 have other values; columns n (1)";
    assert!(said.code == 1 && said.stdout.contains(expected), "{said:?}");
    assert!(
        said.stdout.contains("(4243) differs in n") && !said.stderr.contains("4243"),
        "{said:?}"
    );
    behind(&world, "keyed", "UPDATE keyed SET n = n - 0.001 WHERE id = 4243").await;

    // In the database only, in the lake only, and a large value, whose text stands nowhere in the digest.
    behind(
        &world,
        "keyed",
        "INSERT INTO keyed VALUES (-5, 'new'); DELETE FROM keyed WHERE id = 29999; \
         UPDATE keyed SET big = big || '.' WHERE id = 303",
    )
    .await;
    let (_, report) = compare(&world).await;
    let found = of(&report, "public.keyed");
    let mut rows = found["rows"].as_array().unwrap().clone();
    rows.sort_by_key(|row| row["key"][0].as_str().unwrap().parse::<i64>().unwrap());
    assert_eq!(
        json!(rows),
        json!([
            row(&["-5"], "missing_in_lake", &[]),
            row(&["303"], "altered", &["big"]),
            row(&["29999"], "missing_in_source", &[]),
        ])
    );
    assert_eq!(found["range"], json!([["-5"], ["29999"]]));
    let mend = "DELETE FROM keyed WHERE id = -5; UPDATE keyed SET big = left(big, -1) WHERE id = 303; \
        INSERT INTO keyed SELECT 29999, 'a29999', 29999 / 8.0, repeat(md5('29999'), 900) WHERE 29999 % 3 = 0; \
        INSERT INTO keyed SELECT 29999, 'a29999', 29999 / 8.0, NULL WHERE 29999 % 3 <> 0";
    behind(&world, "keyed", mend).await;
    assert_equal(&world).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_difference_counts_under_any_key_and_without() {
    let world = changed("proof-least").await;
    // NULL is not '', -0 is not 0, one bit of a bytea counts; under a key of two columns.
    let odd = "\"Odd \"\"one\"\"\".\"Tab le\"";
    behind(
        &world,
        odd,
        &format!(
            "UPDATE {odd} SET f = 0 WHERE n = 1; UPDATE {odd} SET v = v || '\\x00' WHERE n = 2"
        ),
    )
    .await;
    let (_, report) = compare(&world).await;
    let found = of(&report, "Odd \"one\".Tab le");
    let mut rows = found["rows"].as_array().unwrap().clone();
    rows.sort_by_key(|row| row["key"][0].to_string());
    assert_eq!(
        json!(rows),
        json!([row(&["1", "k,1"], "altered", &["f"]), row(&["2", "k,2"], "altered", &["v"])])
    );
    behind(&world, odd, &format!("UPDATE {odd} SET f = '-0' WHERE n = 1; UPDATE {odd} SET v = substr(v, 1, 16) WHERE n = 2")).await;

    // Without a key: of equal rows one more, and one that differs.
    behind(&world, "bare", "INSERT INTO bare SELECT * FROM bare LIMIT 1").await;
    let (_, report) = compare(&world).await;
    let found = of(&report, "public.bare");
    assert_eq!((&found["missing_in_lake"], &found["missing_in_source"]), (&json!(1), &json!(0)));
    behind(&world, "bare", "DELETE FROM bare WHERE ctid = (SELECT max(ctid) FROM bare)").await;
    world.end().await;
}

/// What cannot be compared is said, and is no alarm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_compared_is_said_and_no_alarm() {
    let mut world = World::new("proof-said", Setup::default()).await;
    world
        .execute_each(
            "CREATE TABLE grows (id integer PRIMARY KEY, a timestamp);\n\
            INSERT INTO grows SELECT n, timestamp '2026-11-29' + n * interval '1 hour' FROM generate_series(1, 300) AS n;\n\
            CREATE TABLE hidden (id integer PRIMARY KEY);\nINSERT INTO hidden VALUES (1);\n\
            CREATE TABLE untold (id integer, a text);\nINSERT INTO untold VALUES (1, 'a')",
        )
        .await;
    world.start();
    world.caught_up().await;
    world
        .execute_each(
            "ALTER TABLE grows ADD COLUMN b text DEFAULT 'of old';\n\
            UPDATE grows SET a = a + interval '1 hour' WHERE id < 100;\n\
            SET timezone = 'UTC'; ALTER TABLE grows ALTER COLUMN a TYPE timestamptz;\n\
            UPDATE grows SET b = 'new' WHERE id < 50;\n\
            ALTER TABLE grows ADD COLUMN late integer;\n\
            UPDATE untold SET a = 'b'",
        )
        .await;
    let altered = world.caught_up().await;
    let (code, report) = compare_again(&world).await;
    assert_eq!((code, with(&report, "different").len()), (0, 0), "{report:#}");
    let equal = with(&report, "equal");
    let grows = equal.iter().find(|table| table["table"] == "public.grows").unwrap();
    assert!(grows["unknown"]["a"].as_u64() > Some(0), "{grows}");
    // Until the box has looked at the catalog.
    if world.status().await.catalog < altered {
        assert!(grows["left_out"]["late"].is_string(), "{grows}");
    }
    let untold = with(&report, "untold");
    assert_eq!(untold[0]["table"], "public.untold", "{untold:?}");
    // A row that was written since is sure.
    behind(&world, "grows", "UPDATE grows SET b = 'altered' WHERE id = 7").await;
    let (code, report) = compare_again(&world).await;
    assert_eq!(code, 1, "{report:#}");
    let rows = with(&report, "different")[0]["differences"]["rows"].clone();
    assert_eq!(rows, json!([{ "key": ["7"], "what": "altered", "columns": ["b"] }]));
    behind(&world, "grows", "UPDATE grows SET b = 'new' WHERE id = 7").await;
    // A policy hides rows: not an empty table.
    world
        .admin()
        .await
        .batch_execute("ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; ALTER TABLE hidden FORCE ROW LEVEL SECURITY")
        .await
        .unwrap();
    let (code, report) = compare(&world).await;
    let unknown = with(&report, "unknown");
    assert_eq!((code, unknown.len()), (2, 1), "{report:#}");
    assert!(unknown[0]["why"].as_str().unwrap().contains("row-level security"), "{unknown:?}");
    // A snapshot that may not be held says so; a ledger that does not come is not waited for.
    let late = world.audit(&["verify", "--against-source", "--snapshot-age", "1ms"]).await;
    assert!(late.code == 2 && late.stdout.contains("--snapshot-age"), "{late:?}");
    world.gateway.kill();
    let late = world.audit(&["verify", "--against-source", "--ledger-wait", "1s"]).await;
    assert!(late.code == 2 && late.stderr.contains("--ledger-wait"), "{late:?}");
    // The box's own credentials may not read.
    let own = world.gateway.ask(&["verify", "--against-source"], None).await.unwrap();
    assert!(own.code == 2 && own.stderr.contains("--credentials-file"), "{own:?}");
    let slots = slots(&world).await;
    assert_eq!(slots.len(), 1, "{slots:?}");
    world.end().await;
}

/// Each look reads the whole lake, which grows.
const RUNS_PER_WORLD: u64 = 20;
