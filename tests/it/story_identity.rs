//! What names the old rows of a table changes while it is copied: a unique index, all of the row, or nothing.

use tokio_postgres::Client;

use lakehead::demo::compare::compare;

use crate::{
    harness::{Setup, World, assert_all_equal, copied},
    story_ddl::definitions,
    story_new_table::read_anew,
};

const TABLES: &str = "CREATE TABLE bare (a integer NOT NULL, b integer NOT NULL, v text);
ALTER TABLE bare REPLICA IDENTITY FULL;
CREATE TABLE lone (a integer NOT NULL, v text);
CREATE TABLE keyed (id integer PRIMARY KEY, a integer NOT NULL, v text);
INSERT INTO bare SELECT n, -n, n FROM generate_series(1, 50) AS n;
INSERT INTO lone SELECT n, n FROM generate_series(1, 50) AS n;
INSERT INTO keyed SELECT n, -n, n FROM generate_series(1, 50) AS n";

/// An index comes.
const INDEXED: &str = "INSERT INTO bare VALUES (1, -1, 'twice');
DELETE FROM bare WHERE v = 'twice';
CREATE UNIQUE INDEX bare_a ON bare (a);
ALTER TABLE bare REPLICA IDENTITY USING INDEX bare_a;
UPDATE bare SET v = 'by a' WHERE a < 10;
UPDATE bare SET a = a + 1000 WHERE a BETWEEN 5 AND 20;
DELETE FROM bare WHERE a = 30;
INSERT INTO bare VALUES (100, -100, 'new');
CREATE UNIQUE INDEX lone_a ON lone (a);
ALTER TABLE lone REPLICA IDENTITY USING INDEX lone_a;
INSERT INTO lone VALUES (100, 'new');
UPDATE lone SET v = 'at once' WHERE a < 5;
DELETE FROM lone WHERE a = 40;
CREATE UNIQUE INDEX keyed_a ON keyed (a);
ALTER TABLE keyed REPLICA IDENTITY USING INDEX keyed_a;
UPDATE keyed SET a = a - 1000, v = 'by a' WHERE id < 10;
DELETE FROM keyed WHERE id = 30";

/// Another one, whose column is called otherwise then; one of two columns.
const ANOTHER: &str = "UPDATE lone SET v = 'by a' WHERE a < 10;
DELETE FROM lone WHERE a = 30;
CREATE UNIQUE INDEX bare_b ON bare (b);
ALTER TABLE bare REPLICA IDENTITY USING INDEX bare_b;
DROP INDEX bare_a;
INSERT INTO bare VALUES (100, -101, 'a twice');
UPDATE bare SET v = 'by b', b = b - 1000 WHERE a = 100;
ALTER TABLE bare RENAME b TO bb;
UPDATE bare SET v = 'by bb' WHERE a = 2;
ALTER TABLE lone ADD c integer NOT NULL DEFAULT 7;
CREATE UNIQUE INDEX lone_ac ON lone (a, c);
ALTER TABLE lone REPLICA IDENTITY USING INDEX lone_ac;
DROP INDEX lone_a;
INSERT INTO lone VALUES (1, 'a twice', 8);
UPDATE lone SET v = 'by two', c = 9 WHERE a = 1 AND c = 8;
ALTER TABLE keyed REPLICA IDENTITY DEFAULT;
DROP INDEX keyed_a;
UPDATE keyed SET a = 1, v = 'by id' WHERE id < 5";

/// None, and rows that are the same in what it was of.
const GONE: &str = "ALTER TABLE bare REPLICA IDENTITY FULL;
DROP INDEX bare_b;
INSERT INTO bare SELECT a, bb, 'bb twice' FROM bare WHERE a < 5;
UPDATE bare SET v = 'whole' WHERE v = 'by bb';
DELETE FROM bare WHERE v = 'by a';
ALTER TABLE lone REPLICA IDENTITY NOTHING;
DROP INDEX lone_ac;
INSERT INTO lone SELECT * FROM lone WHERE a < 5;
ALTER TABLE keyed REPLICA IDENTITY FULL;
UPDATE keyed SET v = 'whole' WHERE id < 3";

/// What names old rows, of each table.
const IDENTITIES: &str = "SELECT format('%s %s %s', c.relname, c.relreplident, (SELECT array_agg(a.attname ORDER BY a.attname)
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey) WHERE i.indrelid = c.oid AND i.indisreplident))
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND n.nspname = 'public' ORDER BY c.relname";

async fn identities(client: &Client) -> Vec<String> {
    client.query(IDENTITIES, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unique_index_that_comes_to_name_rows_and_goes_is_restored_with_them() {
    let mut world =
        World::new("identity", Setup { encryption: "mode = \"none\"".into(), ..Setup::default() })
            .await;
    world.execute_each(TABLES).await;
    world.start();
    world.whole(3).await;
    let admin = world.admin().await;
    let mut stood = vec![];
    for (name, statements) in
        [("indexed", INDEXED), ("another", ANOTHER), ("gone", GONE), ("again", INDEXED_AGAIN)]
    {
        let before = (world.settled().await, definitions(&admin).await, identities(&admin).await);
        if name == "another" {
            // Nobody listens meanwhile.
            world.gateway.kill();
        }
        world.execute_each(statements).await;
        if name == "another" {
            world.start();
        }
        world.settled().await;
        let restored = world.restored(name, &[]).await;
        assert_all_equal(&compare(&admin, &restored, copied).await.unwrap());
        assert_eq!(definitions(&restored).await, definitions(&admin).await, "{name}");
        assert_eq!(identities(&restored).await, identities(&admin).await, "{name}");
        stood.push(before);
    }
    // One that goes on, step by step.
    let restored = world.restored("steps", &["--until", &stood[0].0.to_string()]).await;
    for (until, definitions_then, identities_then) in &stood {
        let ended = world.restore("steps", &["--until", &until.to_string()]).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        assert_eq!(&definitions(&restored).await, definitions_then);
        assert_eq!(&identities(&restored).await, identities_then);
    }
    assert_eq!(world.restore("steps", &[]).await.code, 0);
    assert_all_equal(&compare(&admin, &restored, copied).await.unwrap());
    world.assert_proven().await;
    world.assert_proven_independently(&[]).await;
    world.end().await;
}

/// And once more; where a key has come, and the index is of its columns.
const INDEXED_AGAIN: &str = "DELETE FROM bare WHERE v = 'bb twice';
CREATE UNIQUE INDEX bare_bb ON bare (bb);
ALTER TABLE bare REPLICA IDENTITY USING INDEX bare_bb;
UPDATE bare SET bb = bb - 5000 WHERE a < 30;
ALTER TABLE bare ADD PRIMARY KEY (bb);
UPDATE bare SET v = 'by both' WHERE a < 3;
CREATE UNIQUE INDEX keyed_a_id ON keyed (a, id);
ALTER TABLE keyed REPLICA IDENTITY USING INDEX keyed_a_id;
UPDATE keyed SET a = 17 WHERE id BETWEEN 10 AND 20";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_which_not_all_was_published_is_read_anew_once_it_is() {
    let mut world = World::new("published-anew", Setup::default()).await;
    world.execute_each(UNPUBLISHED).await;
    world.start();
    world.whole(4).await;
    world.settled().await;
    // Nothing names its old rows: the alarm says that these are not captured.
    world.execute_each("UPDATE grown SET v = 'unseen' WHERE a < 10;\nDELETE FROM grown WHERE a = 20;\nINSERT INTO grown VALUES (100, 'seen')").await;
    world.caught_up().await;
    let admin = world.admin().await;
    let publication = "ALTER PUBLICATION lakehead_demo_a_shop";
    admin.batch_execute(&format!("{publication} DROP TABLE taken")).await.unwrap();
    world.execute_each(MEANWHILE).await;
    world.settled().await;
    assert_eq!(read_anew(&world), ["grown", "taken"]);
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.assert_readable().await;
    world.end().await;
}

const UNPUBLISHED: &str = "CREATE TABLE grown (a integer NOT NULL, v text);
CREATE TABLE taken (a integer PRIMARY KEY, v text);
CREATE TABLE kept (a integer PRIMARY KEY, v text);
CREATE TABLE lost (a integer PRIMARY KEY, v text);
INSERT INTO grown SELECT n, n FROM generate_series(1, 50) AS n;
INSERT INTO taken SELECT * FROM grown;
INSERT INTO kept SELECT * FROM grown;
INSERT INTO lost SELECT * FROM grown";

/// `lost` loses what names its rows, of which nobody changes any.
const MEANWHILE: &str = "ALTER TABLE grown ADD PRIMARY KEY (a);
UPDATE grown SET v = 'at once' WHERE a = 30;
DELETE FROM grown WHERE a = 31;
UPDATE taken SET v = 'unpublished' WHERE a < 5;
INSERT INTO taken VALUES (200, 'unpublished');
ALTER TABLE lost REPLICA IDENTITY NOTHING;
INSERT INTO lost VALUES (200, 'new');
UPDATE kept SET v = 'kept' WHERE a < 5";

const REKEYED: &str = "CREATE TABLE whole (id integer PRIMARY KEY, a integer, v text);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE wider (id integer PRIMARY KEY, v text);
ALTER TABLE wider REPLICA IDENTITY FULL;
CREATE TABLE by_index (id integer PRIMARY KEY, a integer NOT NULL, b integer, v text);
CREATE UNIQUE INDEX by_index_a ON by_index (a);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_a;
CREATE TABLE turned (id integer PRIMARY KEY, a integer, v text);
CREATE TABLE turned_back (id integer PRIMARY KEY, a integer, v text);
ALTER TABLE turned_back REPLICA IDENTITY FULL;
CREATE TABLE indexed (id integer PRIMARY KEY, a integer NOT NULL, b integer, v text);
CREATE UNIQUE INDEX indexed_a ON indexed (a);
CREATE TABLE without (a integer, v text);
ALTER TABLE without REPLICA IDENTITY FULL;
INSERT INTO whole SELECT n, n, n FROM generate_series(1, 50) AS n;
INSERT INTO wider SELECT n, n FROM generate_series(1, 50) AS n;
INSERT INTO by_index SELECT n, n, n, n FROM generate_series(1, 50) AS n;
INSERT INTO turned SELECT n, n, n FROM generate_series(1, 50) AS n;
INSERT INTO turned_back SELECT n, n, n FROM generate_series(1, 50) AS n;
INSERT INTO indexed SELECT n, n, n, n FROM generate_series(1, 50) AS n;
INSERT INTO without SELECT n, n FROM generate_series(1, 50) AS n";

/// Rows that lack what becomes their key, or have it twice; and such as have the former one twice.
const ANOTHER_KEY: &str =
    "INSERT INTO whole VALUES (100, 1, 'twice'), (101, NULL, 'none'), (102, 60, 'once');
UPDATE whole SET a = 61 WHERE id = 101;
DELETE FROM whole WHERE id = 100;
ALTER TABLE whole DROP CONSTRAINT whole_pkey, ADD PRIMARY KEY (a);
ALTER TABLE whole ALTER id DROP NOT NULL;
INSERT INTO whole VALUES (1, 70, 'id twice'), (NULL, 71, 'no id');
UPDATE whole SET v = 'by a', a = a + 1000 WHERE id = 1;
DELETE FROM whole WHERE id BETWEEN 5 AND 9;
INSERT INTO wider VALUES (100, 'before');
ALTER TABLE wider ADD n bigint;
INSERT INTO wider VALUES (101, 'n is not there');
UPDATE wider SET n = id WHERE id > 0;
ALTER TABLE wider DROP CONSTRAINT wider_pkey, ADD PRIMARY KEY (n);
ALTER TABLE wider DROP id;
INSERT INTO wider VALUES ('by n', 4000000000);
UPDATE wider SET v = 'changed' WHERE n < 10;
INSERT INTO by_index VALUES (100, 100, 1, 'b twice'), (101, 101, NULL, 'no b');
UPDATE by_index SET b = id WHERE id > 50;
ALTER TABLE by_index DROP CONSTRAINT by_index_pkey, ADD PRIMARY KEY (b);
ALTER TABLE by_index ALTER id DROP NOT NULL;
INSERT INTO by_index VALUES (1, 102, 102, 'id twice'), (NULL, 103, 103, 'no id');
UPDATE by_index SET v = 'changed', b = b + 1000 WHERE a < 10;
UPDATE turned SET v = 'by id' WHERE id < 5;
DELETE FROM turned WHERE id = 5;
UPDATE turned SET id = -6 WHERE id = 6;
ALTER TABLE turned DROP CONSTRAINT turned_pkey, ADD PRIMARY KEY (a);
ALTER TABLE turned REPLICA IDENTITY FULL;
ALTER TABLE turned ALTER id DROP NOT NULL;
INSERT INTO turned VALUES (1, 70, 'id twice'), (NULL, 71, 'no id');
UPDATE turned SET v = 'by all', a = a + 1000 WHERE id = 1;
INSERT INTO turned_back VALUES (100, 1, 'a twice');
DELETE FROM turned_back WHERE id = 100;
ALTER TABLE turned_back DROP CONSTRAINT turned_back_pkey, ADD PRIMARY KEY (a);
ALTER TABLE turned_back ALTER id DROP NOT NULL;
INSERT INTO turned_back VALUES (1, 70, 'id twice'), (NULL, 71, 'no id');
UPDATE turned_back SET v = 'by all', a = a + 1000 WHERE id = 1;
ALTER TABLE turned_back REPLICA IDENTITY DEFAULT;
UPDATE turned_back SET v = 'by a' WHERE a < 5;
INSERT INTO indexed VALUES (100, 100, 1, 'b twice'), (101, 101, NULL, 'no b');
UPDATE indexed SET b = id WHERE id > 50;
ALTER TABLE indexed DROP CONSTRAINT indexed_pkey, ADD PRIMARY KEY (b);
UPDATE indexed SET v = 'by a', b = b + 1000 WHERE a < 10;
INSERT INTO without VALUES (1, 'twice'), (NULL, 'none'), (1, 'twice');
DELETE FROM without WHERE v = 'twice';
UPDATE without SET a = 100 WHERE a IS NULL;
ALTER TABLE without ADD PRIMARY KEY (a);
UPDATE without SET v = 'keyed' WHERE a < 5";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_from_before_a_table_got_its_key_are_not_taken_for_rows_of_that_key() {
    let mut world =
        World::new("rekeyed", Setup { encryption: "mode = \"none\"".into(), ..Setup::default() })
            .await;
    world.execute_each(REKEYED).await;
    world.start();
    world.whole(7).await;
    // Of the rows of one another index comes to say which they are.
    world.execute_each("ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_a;\nUPDATE indexed SET v = 'by index' WHERE a = 3").await;
    let before = world.settled().await;
    let admin = world.admin().await;
    world.gateway.kill();
    world.execute_each(ANOTHER_KEY).await;
    world.start();
    let between = world.settled().await;
    world.restored("steps", &["--until", &before.to_string()]).await;
    world.execute_each("UPDATE whole SET v = 'last' WHERE a < 20;\nDELETE FROM wider WHERE n = 20;\nUPDATE by_index SET b = -b WHERE a = 7;\nINSERT INTO without VALUES (-1, 'last')").await;
    world.settled().await;
    assert!(read_anew(&world).is_empty(), "{:?}", read_anew(&world));
    let restored = world.restored("whole", &[]).await;
    let ended = world.restore("steps", &["--until", &between.to_string()]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let ended = world.restore("steps", &[]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let steps = world.cluster.connect("steps", &world.tasks).await.unwrap();
    for restored in [restored, steps] {
        assert_all_equal(&compare(&admin, &restored, copied).await.unwrap());
        assert_eq!(definitions(&restored).await, definitions(&admin).await);
        assert_eq!(identities(&restored).await, identities(&admin).await);
    }
    world.assert_proven().await;
    world.assert_proven_independently(&[]).await;
    world.end().await;
}
