//! Types become others while tables use them: labels and attributes get other names, come and go; domains get and lose
//! what their values have to be. No change of a table says so.

use lakehead::demo::compare::compare;
use tokio_postgres::Client;

use crate::{
    harness::{SOURCE, Setup, World, assert_all_equal, copied},
    story_new_table::read_anew,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_become_others_under_way_and_are_restored_so() {
    let mut world = World::new("types", Setup::default()).await;
    world.execute_each(TABLES).await;
    world.start();
    world.whole(15).await;
    let before = world.settled().await.to_string();
    let admin = world.admin().await;
    // One restore that goes on behind each step.
    let going_on = world.restored("going_on", &["--until", &before]).await;
    assert_same(&admin, &going_on).await;

    // Nothing says that it is gone before the next look at the catalog: the restore is not to stop.
    world.execute_each("ALTER DOMAIN code DROP CONSTRAINT code_check;\nINSERT INTO coded VALUES (9001, 'quite long', '{very long}');\nALTER DOMAIN core DROP CONSTRAINT core_check;\nINSERT INTO over VALUES (9001, 'quite long')").await;
    world.caught_up().await;
    for into in ["going_on", "anew"] {
        match into {
            "anew" => drop(world.restored(into, &[]).await),
            _ => assert_eq!(world.restore(into, &[]).await.code, 0),
        }
    }
    world.execute_each(CHANGES).await;
    world.settled().await;
    let others =
        ["briefly", "by_mood", "detached", "mooded", "named", "paired", "resting", "spanned"];
    // What becomes another and is then as it was, is seen twice if a look comes between both.
    let mut anew = read_anew(&world);
    anew.dedup();
    assert_eq!(anew, others);
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.assert_readable().await;
    let same = world.audit(&["verify", "--source", SOURCE, "--against-source"]).await;
    assert!(same.code == 0, "{same:?}");
    for into in ["going_on", "anew", "from_nothing"] {
        let restored = match into {
            "from_nothing" => world.restored(into, &[]).await,
            _ => {
                let ended = world.restore(into, &[]).await;
                assert_eq!(ended.code, 0, "{ended:?}");
                world.cluster.connect(into, &world.tasks).await.unwrap()
            }
        };
        assert_same(&admin, &restored).await;
    }
    // There and back, with a restore in between.
    for sql in ["ALTER TYPE pair ADD ATTRIBUTE y integer", "ALTER TYPE pair DROP ATTRIBUTE y"] {
        world.execute_each(&format!("{sql};\nUPDATE paired SET p.x = 1 WHERE id = 1")).await;
        world.settled().await;
        let ended = world.restore("going_on", &["--json"]).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        // No function is copied.
        assert!(ended.stdout.contains("public.is_even(integer)"), "{ended:?}");
        assert_same(&admin, &going_on).await;
    }
    // As it was before all that, from the same lake.
    let as_before = world.restored("as_before", &["--until", &before]).await;
    let sad = as_before.query_one("SELECT count(*) FROM mooded WHERE m = 'sad'", &[]).await;
    assert!(sad.unwrap().get::<_, i64>(0) > 0);
    world.end().await;
}

/// Rows, and types, are what they are in the source.
async fn assert_same(source: &Client, restored: &Client) {
    assert_all_equal(&compare(source, restored, copied).await.unwrap());
    for what in [DOMAINS, MOODS, ATTRIBUTES] {
        let said = |rows: Vec<tokio_postgres::Row>| -> Vec<String> {
            rows.iter().map(|row| row.get(0)).collect()
        };
        let here = said(source.query(what, &[]).await.unwrap());
        assert!(!here.is_empty(), "{what}");
        assert_eq!(said(restored.query(what, &[]).await.unwrap()), here, "{what}");
    }
}

const DOMAINS: &str = "SELECT concat_ws(' ', t.typname, t.typnotnull, t.typdefault, (SELECT string_agg(concat(c.conname, ' ',
    pg_get_constraintdef(c.oid)), ' ' ORDER BY c.conname) FROM pg_constraint c WHERE c.contypid = t.oid AND c.contype = 'c'))
    FROM pg_type t WHERE t.typtype = 'd' AND t.oid >= 16384 AND t.typname <> 'even' AND t.typnamespace = 'public'::regnamespace ORDER BY t.typname";
/// Of two moods that are there the order.
const MOODS: &str =
    "SELECT m::text FROM (SELECT DISTINCT m FROM mooded WHERE m IS NOT NULL) AS of ORDER BY m";
const ATTRIBUTES: &str = "SELECT concat(a.attname, ' ', format_type(a.atttypid, a.atttypmod)) FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped WHERE c.relkind = 'c' AND c.relname = 'pair' ORDER BY a.attnum";

const TABLES: &str = "CREATE DOMAIN code AS text CHECK (length(VALUE) < 6);
CREATE DOMAIN late AS integer;
CREATE DOMAIN held AS text NOT NULL DEFAULT 'h' CONSTRAINT short CHECK (length(VALUE) < 9);
CREATE TYPE mood AS ENUM ('sad', 'glad', 'calm');
CREATE TYPE moods AS RANGE (subtype = mood);
CREATE TYPE pair AS (n integer, t text, m mood);
CREATE TYPE state AS ENUM ('on', 'off');
CREATE TYPE state_more AS ENUM ('on', 'off');
CREATE TABLE coded (id integer PRIMARY KEY, c code, cs code[]);
CREATE TABLE lately (id integer PRIMARY KEY, l late);
CREATE TABLE holding (id integer PRIMARY KEY, h held, hs held[]);
CREATE FUNCTION is_even(n integer) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT n % 2 = 0';
CREATE DOMAIN even AS integer CHECK (is_even(VALUE));
CREATE TYPE short AS (a integer, b text);
CREATE TABLE evenly (id integer PRIMARY KEY, e even);
CREATE DOMAIN core AS text CHECK (length(VALUE) < 6);
CREATE DOMAIN shell AS core CHECK (VALUE <> 'x');
CREATE TABLE over (id integer PRIMARY KEY, s shell);
CREATE TYPE price AS (amount numeric(10,2), currency text);
CREATE TABLE detached (id integer PRIMARY KEY, p price);
CREATE TABLE by_mood (m mood PRIMARY KEY, n integer);
CREATE TABLE briefly (id integer PRIMARY KEY, s short);
CREATE TABLE named (id integer PRIMARY KEY, s state);
CREATE TABLE grown (id integer PRIMARY KEY, s state_more[]);
CREATE TABLE mooded (id integer PRIMARY KEY, m mood, ms mood[]);
CREATE TABLE resting (id integer PRIMARY KEY, m mood[]);
CREATE TABLE spanned (id integer PRIMARY KEY, r moods);
CREATE TABLE paired (id integer PRIMARY KEY, p pair, ps pair[]);
CREATE TABLE plain (id integer PRIMARY KEY, a text);
INSERT INTO coded SELECT n, n, ARRAY[n::text, NULL]::code[] FROM generate_series(1, 500) AS n;
INSERT INTO lately SELECT n, nullif(n % 3, 0) FROM generate_series(1, 500) AS n;
INSERT INTO holding SELECT n, n, ARRAY['a']::held[] FROM generate_series(1, 500) AS n;
INSERT INTO evenly SELECT n, 2 * n FROM generate_series(1, 500) AS n;
INSERT INTO over SELECT n, n FROM generate_series(1, 500) AS n;
INSERT INTO detached SELECT n, (n, 'EUR')::price FROM generate_series(1, 500) AS n;
INSERT INTO by_mood VALUES ('sad', 1), ('glad', 2);
INSERT INTO briefly SELECT n, (n, 'b')::short FROM generate_series(1, 500) AS n;
INSERT INTO named SELECT n, 'on' FROM generate_series(1, 500) AS n;
INSERT INTO grown SELECT n, '{on}' FROM generate_series(1, 500) AS n;
INSERT INTO mooded SELECT n, (ARRAY['sad', 'glad', 'calm', NULL]::mood[])[1 + n % 4], ARRAY['sad', 'calm']::mood[] FROM generate_series(1, 500) AS n;
INSERT INTO resting SELECT n, ARRAY['sad']::mood[] FROM generate_series(1, 500) AS n;
INSERT INTO spanned SELECT n, moods('sad', 'calm') FROM generate_series(1, 500) AS n;
INSERT INTO paired SELECT n, (n, 'a, \"b\"', 'sad')::pair, ARRAY[(n, NULL, NULL)::pair] FROM generate_series(1, 500) AS n;
INSERT INTO plain SELECT n, n FROM generate_series(1, 500) AS n";

const CHANGES: &str =
    "ALTER DOMAIN code ADD CONSTRAINT longer CHECK (length(VALUE) < 50) NOT VALID;
ALTER DOMAIN code SET DEFAULT 'c';
UPDATE coded SET c = 'not as short' WHERE id % 7 = 0;
UPDATE lately SET l = -1 WHERE l IS NULL;
ALTER DOMAIN late SET NOT NULL;
ALTER DOMAIN late ADD CHECK (VALUE < 100);
ALTER DOMAIN held RENAME CONSTRAINT short TO brief;
ALTER DOMAIN held DROP DEFAULT;
ALTER DOMAIN held DROP NOT NULL;
INSERT INTO holding VALUES (9001, NULL);
UPDATE mooded SET m = 'sad' WHERE id % 50 = 0;
ALTER TYPE mood RENAME VALUE 'sad' TO 'blue';
UPDATE mooded SET m = 'blue' WHERE id % 60 = 0;
INSERT INTO mooded VALUES (9001, 'blue', '{blue}');
ALTER TYPE mood ADD VALUE 'odd' BEFORE 'glad';
INSERT INTO mooded VALUES (9002, 'odd', '{blue,odd}');
ALTER TYPE pair ADD ATTRIBUTE x integer;
UPDATE paired SET p.x = id WHERE id % 5 = 0;
ALTER TYPE pair DROP ATTRIBUTE t;
ALTER TYPE pair RENAME ATTRIBUTE n TO number;
UPDATE paired SET p.number = -id WHERE id % 3 = 0;
INSERT INTO paired VALUES (9001, (1, 'blue', 2)::pair, NULL);
DELETE FROM paired WHERE id % 11 = 0;
ALTER TABLE detached ALTER p TYPE text;
ALTER TYPE price ALTER ATTRIBUTE amount TYPE numeric;
ALTER TABLE detached ALTER p TYPE price USING p::price;
UPDATE detached SET p.amount = 1.23456 WHERE id % 4 = 0;
UPDATE by_mood SET n = 7 WHERE m = 'blue';
INSERT INTO by_mood VALUES ('odd', 3);
ALTER TYPE short ADD ATTRIBUTE c integer;
UPDATE briefly SET s.c = 5 WHERE id % 3 = 0;
ALTER TYPE short DROP ATTRIBUTE c;
ALTER TYPE state RENAME VALUE 'on' TO 'lit';
INSERT INTO named VALUES (9001, 'lit');
ALTER TYPE state RENAME VALUE 'lit' TO 'on';
ALTER TYPE state_more ADD VALUE 'between';
INSERT INTO grown VALUES (9001, '{between,on}');
UPDATE evenly SET e = 8 WHERE id % 2 = 0;
UPDATE plain SET a = 'b' WHERE id % 2 = 0";

/// Types get other names, and one is made anew under the name of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_with_other_names_and_such_as_are_made_anew_are_restored() {
    let mut world = World::new("type-names", Setup::default()).await;
    world.execute_each(NAMED).await;
    world.start();
    world.whole(5).await;
    let before = world.settled().await.to_string();
    let admin = world.admin().await;
    let going_on = world.restored("going_on", &["--until", &before]).await;
    world.execute_each(RENAMED).await;
    world.settled().await;
    // Who wants a label to be gone makes the enum anew.
    assert_eq!(read_anew(&world), ["fewer"]);
    world.assert_proven().await;
    world.assert_restored_equal().await;
    let again = world.restore("going_on", &[]).await;
    assert_eq!(again.code, 0, "{again:?}");
    assert_all_equal(&compare(&admin, &going_on, copied).await.unwrap());
    let order =
        "SELECT string_agg(l::text, ' ' ORDER BY l) FROM (SELECT DISTINCT l FROM fewer) AS of";
    let [here, there] = [&admin, &going_on].map(|client| client.query_one(order, &[]));
    let (here, there) = (here.await.unwrap(), there.await.unwrap());
    assert_eq!(here.get::<_, String>(0), there.get::<_, String>(0));
    world.end().await;
}

const NAMED: &str = "CREATE DOMAIN code AS text CHECK (length(VALUE) < 6);
CREATE TYPE mood AS ENUM ('sad', 'glad', 'calm');
CREATE TYPE level AS ENUM ('low', 'middle', 'high');
CREATE TYPE pair AS (n integer, m mood);
CREATE TABLE coded (id integer PRIMARY KEY, c code, cs code[]);
CREATE TABLE mooded (id integer PRIMARY KEY, m mood, ms mood[]);
CREATE TABLE paired (id integer PRIMARY KEY, p pair);
CREATE TYPE inner_one AS (c code, m mood);
CREATE TABLE nested (id integer PRIMARY KEY, i inner_one);
CREATE TABLE fewer (id integer PRIMARY KEY, l level);
INSERT INTO nested SELECT n, ('c', 'sad')::inner_one FROM generate_series(1, 500) AS n;
INSERT INTO coded SELECT n, n, ARRAY[n::text]::code[] FROM generate_series(1, 500) AS n;
INSERT INTO mooded SELECT n, (ARRAY['sad', 'glad', NULL]::mood[])[1 + n % 3], ARRAY['calm']::mood[] FROM generate_series(1, 500) AS n;
INSERT INTO paired SELECT n, (n, 'sad')::pair FROM generate_series(1, 500) AS n;
INSERT INTO fewer SELECT n, (ARRAY['low', 'middle', 'high']::level[])[1 + n % 3] FROM generate_series(1, 500) AS n";

const RENAMED: &str = "ALTER DOMAIN code RENAME TO word;
UPDATE coded SET c = 'w' WHERE id % 5 = 0;
ALTER TYPE mood RENAME TO feeling;
UPDATE nested SET i.m = 'calm' WHERE id % 3 = 0;
UPDATE mooded SET m = 'calm' WHERE id % 5 = 0;
CREATE SCHEMA away;
ALTER TYPE pair SET SCHEMA away;
INSERT INTO paired VALUES (9001, (7, 'glad')::away.pair);
UPDATE fewer SET l = 'low' WHERE l = 'middle';
ALTER TYPE level RENAME TO level_of_old;
CREATE TYPE level AS ENUM ('high', 'low');
ALTER TABLE fewer ALTER l TYPE level USING l::text::level;
DROP TYPE level_of_old;
UPDATE fewer SET l = 'high' WHERE id % 5 = 0;
INSERT INTO fewer VALUES (9001, 'low')";
