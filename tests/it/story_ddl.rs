//! Statements of DDL: recorded with their positions where the database tells of them, and what they make of tables is
//! restored though no row follows.

use std::{fs, process::Command};

use lakehead::{
    demo::{
        bucket::BUCKET,
        cluster::SUPERUSER,
        compare::compare,
        gateway::{Ended, run},
        ground::find_installed,
    },
    error::Cause,
    telemetry::board::SourceState,
};
use tokio_postgres::Client;

use crate::harness::{SOURCE, Setup, World, assert_all_equal, copied, interpreter};

const TABLES: &str = "CREATE TABLE rest (id integer PRIMARY KEY, a text DEFAULT 'old', b integer NOT NULL, gone text DEFAULT 'x');
CREATE TABLE busy (id integer PRIMARY KEY, a text);
CREATE TABLE keyless (id integer NOT NULL, a text);
CREATE TABLE moved (id integer PRIMARY KEY, a text);
CREATE TABLE typed (id integer PRIMARY KEY, n integer, d date DEFAULT '2026-01-01');
CREATE TABLE dropped (id integer PRIMARY KEY);
INSERT INTO rest SELECT n, n, n FROM generate_series(1, 50) AS n;
INSERT INTO busy SELECT n, n FROM generate_series(1, 50) AS n;
INSERT INTO keyless SELECT n, n FROM generate_series(1, 5) AS n;
INSERT INTO moved SELECT n, n FROM generate_series(1, 5) AS n;
INSERT INTO typed SELECT n, n FROM generate_series(1, 5) AS n";

/// Each a query of its own, as its client sent it; `+` if it is to be seen, and what of it.
const FIRST: [(&str, &[&str]); 18] = [
    ("ALTER TABLE rest ALTER a SET DEFAULT 'new'", &["ALTER TABLE public.rest"]),
    ("INSERT INTO busy VALUES (100, 'before')", &[]),
    ("ALTER TABLE rest ALTER b DROP NOT NULL", &["ALTER TABLE public.rest"]),
    ("ALTER TABLE rest ADD COLUMN c integer NOT NULL DEFAULT 7", &["ALTER TABLE public.rest"]),
    (
        "ALTER TABLE rest DROP COLUMN gone",
        &["-ALTER TABLE public.rest.gone", "ALTER TABLE public.rest"],
    ),
    ("ALTER TABLE rest ADD COLUMN gone integer", &["ALTER TABLE public.rest"]),
    (
        "BEGIN; INSERT INTO busy VALUES (101, 'in'); ALTER TABLE busy ADD COLUMN b integer DEFAULT 3; \
      INSERT INTO busy VALUES (102, 'behind', 4); COMMIT",
        &["ALTER TABLE public.busy"],
    ),
    (
        "BEGIN; ALTER TABLE rest ADD COLUMN never integer; INSERT INTO busy VALUES (103); ROLLBACK",
        &[],
    ),
    (
        "BEGIN; INSERT INTO busy VALUES (104); SAVEPOINT s; ALTER TABLE busy DROP COLUMN b; ROLLBACK TO s; \
      ALTER TABLE busy ALTER a SET DEFAULT 'middle'; INSERT INTO busy VALUES (105); COMMIT",
        &["ALTER TABLE public.busy"],
    ),
    (
        "DO $$ BEGIN ALTER TABLE rest ADD COLUMN by_block date; BEGIN ALTER TABLE rest DROP COLUMN a; RAISE 'no'; \
      EXCEPTION WHEN OTHERS THEN NULL; END; END $$",
        &["ALTER TABLE public.rest"],
    ),
    (
        "CREATE FUNCTION grow() RETURNS void LANGUAGE plpgsql AS 'BEGIN ALTER TABLE rest ADD COLUMN by_function text DEFAULT ''f''; END'",
        &["CREATE FUNCTION public.grow()"],
    ),
    ("SELECT grow()", &["ALTER TABLE public.rest"]),
    ("ALTER TABLE typed ALTER n TYPE bigint", &["ALTER TABLE public.typed"]),
    (
        "ALTER TABLE typed ALTER d DROP DEFAULT, ALTER n SET NOT NULL",
        &["-ALTER TABLE for public.typed.d", "ALTER TABLE public.typed"],
    ),
    ("ALTER TABLE moved RENAME COLUMN a TO \"A b\"", &["ALTER TABLE public.moved.\"A b\""]),
    ("ALTER TABLE moved RENAME TO went", &["ALTER TABLE public.went"]),
    ("CREATE INDEX rest_c ON rest (c)", &["CREATE INDEX public.rest_c"]),
    ("CREATE TABLE copy AS SELECT 1 AS one", &["CREATE TABLE AS public.copy"]),
];

const SECOND: [(&str, &[&str]); 13] = [
    ("ALTER TABLE went SET SCHEMA other", &["ALTER TABLE other.went"]),
    ("ALTER TABLE keyless ADD PRIMARY KEY (id)", &["ALTER TABLE public.keyless"]),
    (
        "ALTER TABLE rest DROP CONSTRAINT rest_pkey, ADD PRIMARY KEY (id, c)",
        &["-ALTER TABLE rest_pkey on public.rest", "ALTER TABLE public.rest"],
    ),
    ("COMMENT ON COLUMN rest.a IS 'a comment'", &["COMMENT public.rest.a"]),
    ("CREATE VIEW seen AS SELECT id FROM busy", &["CREATE VIEW public.seen"]),
    (
        "CREATE MATERIALIZED VIEW kept AS SELECT id FROM busy",
        &["CREATE MATERIALIZED VIEW public.kept"],
    ),
    ("REFRESH MATERIALIZED VIEW kept", &["REFRESH MATERIALIZED VIEW public.kept"]),
    (
        "CREATE TEMP TABLE passing (id integer); ALTER TABLE passing ADD a text; DROP TABLE passing",
        &[],
    ),
    (
        "CREATE TYPE mood AS ENUM ('sad'); ALTER TYPE mood ADD VALUE 'glad'",
        &["CREATE TYPE public.mood", "ALTER TYPE public.mood"],
    ),
    ("DROP VIEW seen", &["-DROP VIEW public.seen"]),
    ("DROP TABLE dropped", &["-DROP TABLE public.dropped"]),
    ("GRANT SELECT ON busy TO PUBLIC", &["GRANT None"]),
    ("ALTER TABLE busy ALTER a SET DEFAULT 'last'", &["ALTER TABLE public.busy"]),
];

const SECRET: &str = "hunter2hunter2";

/// What a restore is to bring back of tables.
const DEFINITIONS: &str = "SELECT format('%I.%I %s %I %s %s default %s key %s', n.nspname, c.relname, row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum),
    a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
    array_position(i.indkey::int2[], a.attnum))
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
    WHERE c.relkind = 'r' AND n.nspname !~ '^pg_|information_schema|lakehead' AND c.relname NOT IN ('mark', 'dropped') ORDER BY n.nspname, c.relname, a.attnum";

pub(crate) async fn definitions(client: &Client) -> Vec<String> {
    client.query(DEFINITIONS, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// By the documented way: what `check` prints, given to psql.
async fn install(world: &World) {
    let script = world.gateway.ask(&["check", "--ddl-script"], None).await.unwrap();
    assert_eq!(script.code, 0, "{script:?}");
    let file = world.dir.join("statements.sql");
    fs::write(&file, script.stdout).unwrap();
    // Twice: it may be run again.
    for _ in 0..2 {
        let ended = psql(world, &["-v", "ON_ERROR_STOP=1", "-qf", file.to_str().unwrap()]).await;
        assert!(ended.code == 0 && ended.stderr.is_empty(), "{ended:?}");
    }
}

async fn psql(world: &World, words: &[&str]) -> Ended {
    let mut command = Command::new(find_installed().unwrap().join("psql"));
    command.env("PGPASSWORD", world.cluster.password()).arg("-X");
    command.arg(world.cluster.url(SUPERUSER, SOURCE)).args(words);
    run(command, &world.dir.join("psql")).await.unwrap()
}

async fn says(world: &World) -> String {
    let ended = world.gateway.ask(&["check"], None).await.unwrap();
    let line = ended.stdout.lines().find(|line| line.contains(": DDL = "));
    line.unwrap_or_else(|| panic!("{ended:?}")).to_owned()
}

async fn each(world: &World, statements: &[(&str, &[&str])]) {
    let shop = world.shop().await;
    for (sql, _) in statements {
        // With its words in one query, as they are sent.
        shop.batch_execute(sql).await.unwrap_or_else(|why| panic!("{sql}: {why:?}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_are_recorded_in_order_and_their_tables_restored_without_a_row() {
    let setup = Setup { encryption: "mode = \"none\"".into(), ..Setup::default() };
    let Some(mut world) = World::since(14, "ddl", setup).await else { return };
    world.execute_each(TABLES).await;
    let admin = world.admin().await;
    admin.batch_execute("CREATE SCHEMA other; GRANT ALL ON SCHEMA other TO PUBLIC; CREATE EXTENSION postgres_fdw").await.unwrap();
    world.start();
    assert!(says(&world).await.contains("not recorded"));
    install(&world).await;
    assert!(says(&world).await.ends_with("recorded, in `pg_lakehead.statements`"));
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.caught_up().await;
    each(&world, &FIRST).await;
    world
        .until("the new table is read", |status| {
            let copy = status.snapshot.get("public.copy");
            copy.is_some_and(|table| table.is_whole())
        })
        .await;
    let first = world.caught_up().await;
    let then = definitions(&admin).await;
    each(&world, &SECOND).await;
    admin
        .batch_execute(&format!("CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw; CREATE USER MAPPING FOR shop SERVER far OPTIONS (user 'u', password '{SECRET}')"))
        .await
        .unwrap();
    forge(&world).await;
    world.caught_up().await;
    let now = definitions(&admin).await;
    let restored = world.restored("restored", &[]).await;
    assert_eq!(definitions(&restored).await, now);
    assert_all_equal(
        &compare(&admin, &restored, |table| copied(table) && table != "public.dropped")
            .await
            .unwrap(),
    );
    let earlier = world.restored("earlier", &["--until", &first.to_string()]).await;
    assert_eq!(definitions(&earlier).await, then);
    // In two steps it is the same.
    assert_eq!(world.restore("earlier", &[]).await.code, 0);
    assert_eq!(definitions(&earlier).await, now);
    world.assert_proven().await;
    world.assert_proven_independently(&[]).await;
    // The table that got a key is read anew meanwhile.
    world.settled().await;
    world.assert_readable().await;
    assert_statements(&world).await;
    assert_removed(&world).await;
    world.end().await;
}

/// What anybody can write: rows at most.
async fn forge(world: &World) {
    let shop = world.shop().await;
    let columns = r#"[{"name":"id","type":25,"modifier":-1,"not_null":false,"default":"1); DROP TABLE busy; --"}]"#;
    let table = format!(
        r#"{{"event":"x","command":"FORGED","role":"r","session_role":"s","search_path":"","statement":null,"cut":false,"more":false,
        "objects":[{{"type":"table","schema":"public","identity":"public.busy","table":("public.busy"),"columns":{columns}}}]}}"#
    );
    let sql = "SELECT pg_logical_emit_message(true, $1, replace($2, '(\"public.busy\")', 'public.busy'::regclass::oid::text))";
    for (prefix, content) in [
        ("lakehead.ddl", table.as_str()),
        ("lakehead.ddl", "{\"event\":"),
        ("lakehead.ddl", ""),
        (
            "lakehead.definition",
            r#"{"id":("public.busy"),"schema":"public","name":"busy","columns":[],"identity":"full"}"#,
        ),
        ("lakehead.other", "x"),
        ("another", "x"),
    ] {
        shop.execute(sql, &[&prefix, &content]).await.unwrap();
    }
    shop.batch_execute("INSERT INTO busy VALUES (900, 'behind what was forged')").await.unwrap();
}

/// DuckDB reads the statements from the folder, in order.
async fn assert_statements(world: &World) {
    let folder = world.dir.join("statements");
    fs::create_dir_all(&folder).unwrap();
    for key in world.bucket.double.keys(BUCKET, "raw/") {
        let object = world.bucket.double.object(BUCKET, &key).unwrap();
        assert!(!object.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()), "{key}");
        if key.contains("/pg_lakehead.statements/") && key.ends_with(".parquet") {
            fs::write(folder.join(key.replace('/', "_")), object).unwrap();
        }
    }
    let script = "import sys, duckdb; rows = duckdb.sql(f\"SELECT command, object_identity, is_drop, session_role, statement, _op, _position, _sequence, _xid \
        FROM read_parquet('{sys.argv[1]}/*.parquet') ORDER BY _sequence\").fetchall()\n\
        assert [r[6] for r in rows] == sorted(r[6] for r in rows) and all(r[5] == 'I' and r[8] for r in rows), rows\n\
        for r in rows: print(f\"{'-' if r[2] else ''}{r[0]} {r[1]}\\t{r[3]}\\t{(r[4] or '').encode()}\")";
    let mut command = Command::new(interpreter());
    command.args(["-c", script, folder.to_str().unwrap()]);
    let ended = run(command, &world.dir.join("duckdb")).await.unwrap();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(!statements(world).await.contains(SECRET));
    let seen: Vec<Vec<&str>> =
        ended.stdout.lines().map(|line| line.split('\t').collect()).collect();
    // Of what goes with an object some versions tell, too.
    let itself = |what: &&str| !what.contains("\"_RETURN\" on") && !what.contains("_not_null on");
    let by_shop = seen.iter().filter(|row| row[1] == "shop").map(|row| row[0]).filter(itself);
    let wanted = FIRST.iter().chain(&SECOND).flat_map(|(_, seen)| seen.iter().copied());
    assert_eq!(by_shop.collect::<Vec<_>>(), wanted.collect::<Vec<_>>(), "{}", ended.stdout);
    let text = |what: &str| {
        let row = seen
            .iter()
            .find(|row| row[0] == what)
            .unwrap_or_else(|| panic!("{what}: {}", ended.stdout));
        row[2].to_owned()
    };
    assert_eq!(text("CREATE INDEX public.rest_c"), "b'CREATE INDEX rest_c ON rest (c)'");
    assert_eq!(text("CREATE USER MAPPING shop on server far"), "b''");
    let row = |what: &str| seen.iter().filter(|row| row[0] == what).count();
    assert_eq!((row("FORGED public.busy"), row("None None")), (1, 2), "{}", ended.stdout);
}

/// All that the lake has of statements, as `lakehead cat` prints it.
async fn statements(world: &World) -> String {
    let mut told = String::new();
    for key in world.bucket.double.keys(BUCKET, &format!("raw/{SOURCE}/pg_lakehead.statements/")) {
        let ended = world.audit(&["cat", &key]).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        told.push_str(&ended.stdout);
    }
    told
}

/// One statement removes all of it, and harms nobody.
async fn assert_removed(world: &World) {
    let ended =
        psql(world, &["-qc", "SET client_min_messages = error; DROP SCHEMA lakehead CASCADE"])
            .await;
    assert!(ended.code == 0 && ended.stderr.is_empty(), "{ended:?}");
    world.execute("ALTER TABLE busy ADD COLUMN later integer; INSERT INTO busy VALUES (901)").await;
    assert!(says(world).await.contains("not recorded"));
}

/// What `tables` leaves out is not told of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_on_tables_that_are_left_out_stay_where_they_are() {
    let setup = Setup { encryption: "mode = \"none\"".into(), ..Setup::default() };
    let Some(mut world) = World::since(14, "ddl-left-out", setup).await else { return };
    world.execute("CREATE TABLE ours (id integer PRIMARY KEY); CREATE TABLE hidden (id integer PRIMARY KEY, a text)").await;
    world.copy_only(&["public.ours", "public.mark"]);
    install(&world).await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.caught_up().await;
    for sql in [
        "ALTER TABLE hidden ADD COLUMN confidential_column text",
        "INSERT INTO hidden VALUES (1, 'confidential_value'); ALTER TABLE ours ADD COLUMN a integer DEFAULT 1",
        "ALTER TABLE ours ADD COLUMN b integer DEFAULT 2",
        "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS 'SELECT ''confidential_function'''",
    ] {
        world.execute(sql).await;
    }
    world.caught_up().await;
    let told = statements(&world).await;
    assert!(!told.contains("confidential") && !told.contains("hidden"), "{told}");
    assert!(
        told.contains("ADD COLUMN b integer") && !told.contains("ADD COLUMN a integer"),
        "{told}"
    );
    let restored = world.restored("restored", &[]).await;
    let read = "SELECT string_agg(attname || atthasdef::text, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'ours'::regclass AND attnum > 0";
    assert_eq!(
        restored.query_one(read, &[]).await.unwrap().get::<_, String>(0),
        "idfalse atrue btrue"
    );
    world.assert_proven().await;
    let alarms = world.status().await.alarms;
    assert!(alarms.values().all(|alarm| alarm.cause == Cause::TableRefused.name()), "{alarms:?}");
    world.end().await;
}
