//! The source's schema lives: tables come, change and go while the gateway runs.

use lakehead::{
    demo::compare::compare,
    ledger::Entry,
    telemetry::board::{SourceState, SourceStatus},
    units::Position,
};

use crate::harness::{Setup, World, assert_all_equal, copied};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_made_while_running_is_copied_from_its_first_row() {
    let mut world = World::new("new-table", Setup::default()).await;
    world.execute("CREATE TABLE old (id integer PRIMARY KEY, a text); INSERT INTO old SELECT n, n FROM generate_series(1, 100) AS n").await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world
        .execute(
            "CREATE TABLE fresh (id integer PRIMARY KEY, a text);
             INSERT INTO fresh SELECT n, 'before it was seen' FROM generate_series(1, 5000) AS n",
        )
        .await;
    world
        .until("the new table's snapshot is whole", |status| {
            status.snapshot.get("public.fresh").is_some_and(|table| table.is_whole())
        })
        .await;
    world
        .execute(
            "UPDATE fresh SET a = 'changed' WHERE id % 2 = 0; DELETE FROM fresh WHERE id % 5 = 0;
             INSERT INTO fresh SELECT n, 'after' FROM generate_series(6000, 7000) AS n",
        )
        .await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.assert_readable().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_come_and_go_under_way() {
    let mut world = World::new("columns", Setup::default()).await;
    world.execute("CREATE TABLE t (id integer PRIMARY KEY, a text, b integer); INSERT INTO t SELECT n, n, n FROM generate_series(1, 1000) AS n").await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    for sql in [
        "UPDATE t SET a = 'one' WHERE id = 1",
        "ALTER TABLE t ADD COLUMN c numeric(10,2); UPDATE t SET c = id / 3.0 WHERE id % 2 = 0",
        "BEGIN; INSERT INTO t VALUES (2000, 'x', 1, 2); ALTER TABLE t DROP COLUMN b; INSERT INTO t VALUES (2001, 'y', 3); COMMIT",
        "ALTER TABLE t ALTER c TYPE text; UPDATE t SET c = 'a text now' WHERE id = 3",
    ] {
        world.execute(sql).await;
    }
    world.whole(1).await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.assert_readable().await;
    world.end().await;
}

/// A default counts for the rows before as it was when the column was added, whatever became of it since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_before_a_column_have_in_it_what_they_have_in_the_source() {
    let mut world = World::new("columns-before", Setup::default()).await;
    let tables = "CREATE TABLE t (id integer PRIMARY KEY, a text);
        CREATE TABLE anew (id integer PRIMARY KEY, a text);
        CREATE TABLE moved (id integer PRIMARY KEY, a text);
        CREATE TABLE moving (id integer PRIMARY KEY, a text);
        CREATE TABLE resting (id integer PRIMARY KEY, a text);
        INSERT INTO t SELECT n, n FROM generate_series(1, 1000) AS n; INSERT INTO anew SELECT * FROM t;
        INSERT INTO moved SELECT * FROM t; INSERT INTO moving SELECT * FROM t; INSERT INTO resting SELECT * FROM t";
    world.execute(tables).await;
    world.admin().await.batch_execute("VACUUM FULL moved").await.unwrap();
    world.admin().await.batch_execute("CLUSTER resting USING resting_pkey").await.unwrap();
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.whole(5).await;
    world.admin().await.batch_execute("VACUUM FULL moving").await.unwrap();
    world.settled().await;
    for sql in [
        // In another file than the one that the table was made with.
        "ALTER TABLE moved ADD b integer; ALTER TABLE moved ALTER b SET DEFAULT 7",
        "ALTER TABLE moved ADD c integer DEFAULT 3; ALTER TABLE moved ALTER c SET DEFAULT 5",
        "INSERT INTO moved (id) VALUES (2000)",
        "ALTER TABLE moving ADD b integer; ALTER TABLE moving ALTER b SET DEFAULT 7; INSERT INTO moving (id) VALUES (2000)",
        "ALTER TABLE resting ADD b integer; ALTER TABLE resting ALTER b SET DEFAULT 7",
        "ALTER TABLE t ADD b integer DEFAULT 3; ALTER TABLE t ALTER b SET DEFAULT 5",
        "ALTER TABLE t ADD c integer; ALTER TABLE t ALTER c SET DEFAULT 7",
        "ALTER TABLE t ADD d timestamptz DEFAULT now()",
        "ALTER TABLE t ADD e text DEFAULT E'it''s\\\\'; ALTER TABLE t ALTER e DROP DEFAULT",
        "ALTER TABLE t ADD f integer[] NOT NULL DEFAULT '{1,NULL}'; ALTER TABLE t ALTER f SET DEFAULT '{}'",
        // Whose arrays are not written with commas.
        "ALTER TABLE t ADD g box DEFAULT '(1,1),(0,0)'; ALTER TABLE t ADD h text NOT NULL DEFAULT ''",
        "INSERT INTO t (id) VALUES (2000); UPDATE t SET a = 'changed' WHERE id % 3 = 0",
        // Written anew since, so that the catalog has forgotten.
        "ALTER TABLE anew ADD b integer DEFAULT 3; ALTER TABLE anew ALTER a TYPE varchar(9) USING a || '!'",
        "UPDATE anew SET b = 4, a = id WHERE id > 0",
    ] {
        world.execute(sql).await;
    }
    world.settled().await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.assert_readable().await;
    world.end().await;
}

/// No change says what a statement writes into the rows that are there: the table is read anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_a_statement_writes_into_rows_are_read_anew() {
    let mut world = World::new("rewritten", Setup::default()).await;
    world.execute(REWRITTEN).await;
    world.start();
    world.whole(8).await;
    let before = world.settled().await;
    for sql in [
        "ALTER TABLE numbered ADD n bigserial, ADD r text NOT NULL DEFAULT md5(random()::text)",
        "ALTER TABLE typed ALTER a TYPE integer USING length(a)",
        "UPDATE typed SET a = -1 WHERE id % 7 = 0",
        "INSERT INTO numbered VALUES (9000, 'new')",
        // Its columns are what they were.
        "ALTER TABLE doubled ALTER n TYPE integer USING n * 2",
        "ALTER TABLE bare ADD r float8 DEFAULT random(); DELETE FROM bare WHERE id % 5 = 0",
        "ALTER TABLE keyless ADD key integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        "ALTER TABLE same ADD b integer; ALTER TABLE same DROP b",
        "TRUNCATE emptied; INSERT INTO emptied VALUES (1, 'again')",
    ] {
        world.execute(sql).await;
    }
    world.admin().await.batch_execute("VACUUM FULL same").await.unwrap();
    let after = world.settled().await;
    assert_eq!(read_anew(&world), ["bare", "doubled", "keyless", "numbered", "typed"]);
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.assert_readable().await;
    assert_doubts(&world, before, after).await;

    // It is noticed by a box that was down, too, and that was killed before it had read all of it.
    world.gateway.kill();
    world.execute("ALTER TABLE down ALTER a TYPE integer USING length(a)").await;
    world.execute("UPDATE down SET a = -1 WHERE id % 3 = 0").await;
    world.start();
    let begun = |status: &SourceStatus| status.catalog > after;
    world.until("it has looked", begun).await;
    world.gateway.kill();
    world.start();
    world.settled().await;
    assert_eq!(read_anew(&world), ["bare", "doubled", "down", "keyless", "numbered", "typed"]);
    world.assert_proven().await;
    let admin = world.admin().await;
    let again = world.restored("again", &[]).await;
    assert_all_equal(&compare(&admin, &again, copied).await.unwrap());
    world.end().await;
}

/// What a change calls columns, and their order, does not always tell which they are: such a table is read anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_take_names_of_others_while_the_box_is_away_are_not_mixed_up() {
    let mut world = World::new("mixed-up", Setup::default()).await;
    world.execute_each(MIXED_UP).await;
    world.start();
    world.whole(5).await;
    world.settled().await;
    world.gateway.kill();
    for sql in [
        "UPDATE swapped SET a = -1, b = -2 WHERE id % 3 = 0",
        "UPDATE again SET a = -1 WHERE id % 3 = 0",
        "UPDATE plain SET a = -1 WHERE id % 3 = 0",
        "ALTER TABLE swapped RENAME a TO between; ALTER TABLE swapped RENAME b TO a; ALTER TABLE swapped RENAME between TO b",
        "ALTER TABLE again DROP a; ALTER TABLE again ADD a integer DEFAULT 7",
        "ALTER TABLE plain ADD c integer",
        "ALTER TABLE resting DROP a; ALTER TABLE resting ADD a integer DEFAULT 7",
        "UPDATE swapped SET a = -3 WHERE id % 3 = 1",
        "INSERT INTO again VALUES (2000, 8), (2001, 9)",
        // What the server says of the first of these rows, the catalog has no more.
        "ALTER TABLE further DROP a; ALTER TABLE further ADD a integer DEFAULT 7; INSERT INTO further VALUES (2000, 8)",
        "ALTER TABLE further ADD c integer; INSERT INTO further VALUES (2001, 9, 10)",
    ] {
        world.execute(sql).await;
    }
    world.start();
    world.settled().await;
    assert_eq!(read_anew(&world), ["again", "further"]);
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.assert_readable().await;
    world.end().await;
}

const MIXED_UP: &str = "CREATE TABLE swapped (id integer PRIMARY KEY, a integer, b integer);
CREATE TABLE again (id integer PRIMARY KEY, a integer);
CREATE TABLE plain (id integer PRIMARY KEY, a integer);
CREATE TABLE resting (id integer PRIMARY KEY, a integer);
INSERT INTO swapped SELECT n, n, n * 2 FROM generate_series(1, 1000) AS n;
INSERT INTO again SELECT n, n FROM generate_series(1, 1000) AS n;
CREATE TABLE further (id integer PRIMARY KEY, a integer);
INSERT INTO plain SELECT * FROM again;
INSERT INTO further SELECT * FROM again;
INSERT INTO resting SELECT * FROM again";

/// A restore says what nobody can tell any more, and only there.
async fn assert_doubts(world: &World, before: Position, after: Position) {
    let anew = |entry: &Entry| entry.fates.anew.get("public.typed").copied();
    let within = world.ledger().iter().find_map(anew).unwrap().0 - 1;
    let admin = world.admin().await;
    for (name, until, doubts) in
        [("before", before, 0), ("within", Position(within), 2), ("after", after, 0)]
    {
        admin.batch_execute(&format!("CREATE DATABASE {name}_it")).await.unwrap();
        let until = until.to_string();
        let mut words = vec!["--until", &until, "--json"];
        if doubts > 0 {
            // Its primary key may be told by then, and what is in it not.
            words.extend(["--except", "public.keyless"]);
        }
        let ended = world.restore(&format!("{name}_it"), &words).await;
        // Rows without a key are known by their values: where those are not, changes of them find none.
        assert_eq!(ended.code, i32::from(doubts > 0), "{name}: {ended:?}");
        let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        let notes = report["notes"].as_array().unwrap().iter().filter_map(|note| note.as_str());
        let of_it = notes.filter(|note| note.starts_with("public.typed: "));
        assert_eq!(of_it.count(), doubts, "{name}: {report:#}");
    }
    let within = world.cluster.connect("within_it", &world.tasks).await.unwrap();
    let sums =
        "SELECT count(*) FILTER (WHERE a IS NULL), count(*) FILTER (WHERE a = -1) FROM typed";
    let sums = within.query_one(sums, &[]).await.unwrap();
    assert_eq!((sums.get::<_, i64>(0), sums.get::<_, i64>(1)), (2572, 428));
}

/// Tables whose rows statements write anew, and some that only look so.
const REWRITTEN: &str = "CREATE TABLE numbered (id integer PRIMARY KEY, a text);
        CREATE TABLE typed (id integer PRIMARY KEY, a text);
        CREATE TABLE doubled (id integer PRIMARY KEY, n integer);
        INSERT INTO doubled SELECT n, n FROM generate_series(1, 3000) AS n;
        CREATE TABLE bare (id integer, a text); ALTER TABLE bare REPLICA IDENTITY FULL;
        CREATE TABLE keyless (id integer, a text);
        CREATE TABLE down (id integer PRIMARY KEY, a text);
        CREATE TABLE same (id integer PRIMARY KEY, a text);
        CREATE TABLE emptied (id integer PRIMARY KEY, a text);
        INSERT INTO numbered SELECT n, repeat('x', n % 90) FROM generate_series(1, 3000) AS n;
        INSERT INTO typed SELECT * FROM numbered; INSERT INTO bare SELECT * FROM numbered;
        INSERT INTO keyless SELECT * FROM numbered; INSERT INTO down SELECT * FROM numbered;
        INSERT INTO same SELECT * FROM numbered; INSERT INTO emptied SELECT * FROM numbered";

/// Tables that the ledger says were read anew because of a statement.
pub(crate) fn read_anew(world: &World) -> Vec<String> {
    let entries = world.ledger();
    let names = entries.iter().flat_map(|entry| entry.fates.rewritten.keys());
    let mut names: Vec<_> = names.map(|name| name.replace("public.", "")).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enum_gets_labels_under_way_and_restore_has_them() {
    let mut world = World::new("labels", Setup::default()).await;
    world
        .execute_each(
            "CREATE TYPE mood AS ENUM ('sad', 'glad');\nCREATE DOMAIN tone AS mood;\n\
        CREATE TYPE pair AS (n integer, m mood);\n\
        CREATE TABLE t (id integer PRIMARY KEY, m mood, ms mood[], d tone, p pair);\n\
        CREATE TABLE u (id integer PRIMARY KEY, m mood);\n\
        INSERT INTO t VALUES (1, 'sad', '{sad,glad}', 'glad', '(1,sad)');\n\
        INSERT INTO u VALUES (1, 'sad')",
        )
        .await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    // Each label is used at once, by another kind of column, and the last one first in the order.
    world
        .execute_each(
            "INSERT INTO t VALUES (2, 'glad', NULL, NULL, NULL);\n\
        INSERT INTO u VALUES (2, 'glad');\n\
        ALTER TYPE mood ADD VALUE 'calm' AFTER 'sad';\n\
        INSERT INTO t VALUES (3, 'calm', NULL, NULL, NULL);\n\
        ALTER TYPE mood ADD VALUE 'odd, \"or\" not';\n\
        UPDATE t SET ms = array['odd, \"or\" not', 'sad']::mood[] WHERE id = 2;\n\
        ALTER TYPE mood ADD VALUE 'low' BEFORE 'sad';\n\
        UPDATE t SET p = (7, 'low')::pair, d = 'low' WHERE id = 1;\n\
        INSERT INTO u VALUES (3, 'low')",
        )
        .await;
    let until = world.caught_up().await.to_string();
    world.assert_proven().await;
    let admin = world.admin().await;
    let restored = world.restored("grown", &["--until", &until]).await;
    assert_all_equal(&compare(&admin, &restored, copied).await.unwrap());
    let order =
        "SELECT string_agg(e::text, ' ' ORDER BY e) FROM unnest(enum_range(NULL::mood)) AS e";
    let order: String = restored.query_one(order, &[]).await.unwrap().get(0);
    assert_eq!(order, "low sad calm glad odd, \"or\" not");
    // The same database goes on behind another label.
    world
        .execute_each("ALTER TYPE mood ADD VALUE 'new' BEFORE 'calm';\nUPDATE u SET m = 'new'")
        .await;
    world.caught_up().await;
    let again = world.restore("grown", &[]).await;
    assert_eq!(again.code, 0, "{again:?}");
    assert_all_equal(&compare(&admin, &restored, copied).await.unwrap());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_dropped_and_made_anew_under_way() {
    let mut world = World::new("dropped", Setup::default()).await;
    world
        .execute_each(
            "CREATE TABLE stays (id integer PRIMARY KEY, a text);\n\
        CREATE TABLE goes (id integer PRIMARY KEY, a text);\n\
        CREATE TABLE again (id integer PRIMARY KEY, a text, b integer);\n\
        INSERT INTO stays VALUES (1, 'one');\nINSERT INTO goes VALUES (1, 'one');\n\
        INSERT INTO again SELECT n, n, n FROM generate_series(1, 1000) AS n",
        )
        .await;
    world.start();
    // It streams before it has looked for tables: one dropped by then was never copied.
    let copied_whole = |status: &SourceStatus| {
        ["public.goes", "public.again"].iter().all(|name| {
            let table = status.snapshot.get(*name);
            table.is_some_and(|table| table.is_whole())
        })
    };
    world.until("the first snapshot is whole", copied_whole).await;
    world
        .execute_each(
            "INSERT INTO goes VALUES (2, 'two');\nUPDATE again SET a = 'old' WHERE id < 10;\n\
        DROP TABLE goes, again;\n\
        CREATE TABLE again (key text PRIMARY KEY, day date NOT NULL DEFAULT '2026-11-21');\n\
        INSERT INTO again SELECT n FROM generate_series(1, 500) AS n;\n\
        INSERT INTO stays VALUES (2, 'two')",
        )
        .await;
    let whole = |status: &SourceStatus| {
        let table = status.snapshot.get("public.again");
        !status.snapshot.contains_key("public.goes")
            && status.state == SourceState::Streaming
            && table.is_some_and(|table| table.rows == 500 && table.is_whole())
    };
    world.until("the new table's snapshot is whole", whole).await;
    world.execute_each("UPDATE again SET day = '1999-12-31' WHERE key < '3';\nDELETE FROM again WHERE key > '9';\n\
        INSERT INTO again VALUES ('new')").await;
    let status = world.caught_up().await;
    world.assert_proven().await;
    world.assert_readable().await;
    // What was dropped is in the lake, and in a restore, unless it is told otherwise.
    let admin = world.admin().await;
    let restored = world.restored("everything", &[]).await;
    let goes = restored.query_one("SELECT count(*) FROM goes", &[]).await.unwrap();
    assert_eq!(goes.get::<_, i64>(0), 2);
    let restored = world.restored("living", &["--except", "public.goes"]).await;
    assert_all_equal(&compare(&admin, &restored, copied).await.unwrap());
    let wrong = world.restore("living", &["--except", "goes"]).await;
    assert!(wrong.code == 2 && wrong.stderr.contains("schema.table"), "{wrong:?} {status}");
    let alarms = world.status().await.alarms;
    assert!(alarms.is_empty(), "{alarms:?}");
    world.end().await;
}
