//! Types and tables that extensions bring: copied, restored equal into a database that lacks the extensions.

use lakehead::{demo::compare::compare, error::Cause, telemetry::board::SourceState};
use tokio_postgres::Client;

use crate::harness::{SOURCE, Setup, World, assert_all_equal, copied};

/// What comes with PostgreSQL (`postgresql-contrib`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_of_the_extensions_that_come_with_postgresql_are_restored_equal() {
    let mut world = World::new("extensions", Setup::default()).await;
    extend(&world, CONTRIB).await;
    world.execute_each(&CONTRIB_TABLES.replace("{types}", &columns(CONTRIB_TYPES))).await;
    fill(&world, "typed", CONTRIB_TYPES, 0).await;
    follow(&mut world).await;
    world.execute_each(CONTRIB_CHANGES).await;
    fill(&world, "typed", CONTRIB_TYPES, 1).await;
    world
        .execute(
            "UPDATE typed SET c_0 = c_1, c_1 = NULL WHERE id < 3; DELETE FROM typed WHERE id = 4",
        )
        .await;
    judge(world).await;
}

/// What Debian has besides: `make extensions` installs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "PostGIS is large: `make extensions`"]
async fn what_postgis_brings_is_restored_equal() {
    let mut world = World::new("postgis", Setup::default()).await;
    extend(&world, &["postgis", "postgis_raster"]).await;
    world.execute_each(&POSTGIS_TABLES.replace("{types}", &columns(POSTGIS_TYPES))).await;
    fill(&world, "typed", POSTGIS_TYPES, 0).await;
    world.start();
    // A table of the extension's is its maker's, who is not the tables' owner: that is said, and stops nothing else.
    let said = |cause: Cause| {
        move |status: &lakehead::telemetry::board::SourceStatus| {
            status
                .alarms
                .values()
                .any(|alarm| alarm.cause == cause.name() && alarm.what.contains("spatial_ref_sys"))
        }
    };
    world.until("the table that cannot be published is named", said(Cause::SourcePrivilege)).await;
    world.caught_up().await;
    world.admin().await.batch_execute("ALTER TABLE spatial_ref_sys OWNER TO shop").await.unwrap();
    world
        .until("its rows are read", |status| {
            status.alarms.is_empty()
                && status
                    .snapshot
                    .get("public.spatial_ref_sys")
                    .is_some_and(|table| table.is_whole())
        })
        .await;
    world.execute_each(POSTGIS_CHANGES).await;
    fill(&world, "typed", POSTGIS_TYPES, 1).await;
    world
        .execute(
            "UPDATE typed SET c_0 = c_1, c_1 = NULL WHERE id < 3; DELETE FROM typed WHERE id = 4",
        )
        .await;
    judge(world).await;
}

/// Of no package of Debian 12: `make extensions` brings a server that has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it needs a server with pgvector: `make extensions`"]
async fn what_pgvector_brings_is_restored_equal() {
    let mut world = World::new("pgvector", Setup::default()).await;
    extend(&world, &["vector"]).await;
    world.execute_each(&PGVECTOR_TABLES.replace("{types}", &columns(PGVECTOR_TYPES))).await;
    fill(&world, "typed", PGVECTOR_TYPES, 0).await;
    follow(&mut world).await;
    world.execute_each(PGVECTOR_CHANGES).await;
    fill(&world, "typed", PGVECTOR_TYPES, 1).await;
    world
        .execute(
            "UPDATE typed SET c_0 = c_1, c_1 = NULL WHERE id < 3; DELETE FROM typed WHERE id = 4",
        )
        .await;
    judge(world).await;
}

/// Makes extensions in the source, as their superuser.
async fn extend(world: &World, extensions: &[&str]) {
    let admin = world.admin().await;
    for extension in extensions {
        admin.batch_execute(&format!("CREATE EXTENSION {extension}")).await.unwrap();
    }
}

async fn follow(world: &mut World) {
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.caught_up().await;
}

/// Two columns of each type, and one of its array.
fn columns(types: &[(&str, &str)]) -> String {
    let mut columns = String::new();
    for (at, (kind, _)) in types.iter().enumerate() {
        columns += &format!(", c_{at} {kind}, d_{at} {kind}, a_{at} {kind}[]");
    }
    columns
}

/// Rows with every value, its array, and NULLs.
async fn fill(world: &World, table: &str, types: &[(&str, &str)], round: usize) {
    let shop = world.shop().await;
    for number in 0..6 {
        let (mut names, mut values) = (String::from("id"), (round * 10 + number).to_string());
        for (at, (kind, all)) in types.iter().enumerate() {
            let all: Vec<&str> = all.split(" ; ").collect();
            let value = |next: usize| format!("'{}'::{kind}", all[(number + next) % all.len()]);
            names += &format!(", c_{at}, d_{at}, a_{at}");
            values += &match number {
                5 => ", NULL, NULL, NULL".to_owned(),
                _ => {
                    format!(", {}, {}, ARRAY[{}, NULL, {}]", value(0), value(1), value(1), value(2))
                }
            };
        }
        let insert = format!("INSERT INTO {table} ({names}) VALUES ({values})");
        shop.batch_execute(&insert).await.unwrap_or_else(|why| panic!("{insert}: {why:?}"));
    }
}

/// Proven, readable, the same as the source, and restored equal into a database that has nothing.
async fn judge(mut world: World) {
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_readable().await;
    let same = world.audit(&["verify", "--source", SOURCE, "--against-source"]).await;
    assert!(same.code == 0, "{same:?}");
    let restored = restored_from_nothing(&world).await;
    let admin = world.admin().await;
    let tables = compare(&admin, &restored, copied).await.unwrap();
    assert_all_equal(&tables);
    eprintln!("{} tables equal", tables.len());
    world.end().await;
}

async fn restored_from_nothing(world: &World) -> Client {
    let admin = world.cluster.connect("postgres", &world.tasks).await.unwrap();
    admin.batch_execute("CREATE DATABASE anew").await.unwrap();
    let ended = world.restore("anew", &[]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    // Once more: nothing is done twice.
    let again = world.restore("anew", &[]).await;
    assert_eq!(again.code, 0, "{again:?}");
    world.cluster.connect("anew", &world.tasks).await.unwrap()
}

const CONTRIB: &[&str] =
    &["citext", "ltree", "cube", "earthdistance", "seg", "isn", "hstore", "intarray"];

/// Types and their values.
const CONTRIB_TYPES: &[(&str, &str)] = &[
    ("citext", "Foo ; fOO ; Ünï ; "),
    ("ltree", "Top ; Top.Science.Astronomy ; a_b.c1 ; "),
    ("lquery", "*.Science@*.x ; Top.*{1,2} ; foo|bar.!x"),
    ("ltxtquery", "Europe & Russia*@ & !Transportation ; a | b"),
    ("cube", "(1,2,3) ; (0),(0.1) ; (-1e-300,1e300),(2,3)"),
    ("earth", "(6378168,0,0) ; (0,6378168,0)"),
    ("seg", "5 ; 5.50 ; <5.0 ; 1.0 .. 2.00 ; ~7e-10"),
    ("ean13", "9780306406157 ; 4006381333931"),
    ("isbn13", "9780306406157 ; 9783161484100"),
    ("isbn", "0306406152 ; 9783161484100"),
    ("issn", "0378-5955 ; 1436-4522"),
    ("ismn", "M230671187 ; 9790230671187"),
    ("upc", "220356483481 ; 639382000393"),
    ("hstore", "a=>1 ; \"x y\"=>NULL, b=>\"\" ; "),
    ("query_int", "1&(2|3) ; !7"),
];

const CONTRIB_TABLES: &str = "CREATE TABLE alone (id integer PRIMARY KEY, e earth);
INSERT INTO alone VALUES (1, '(0,6378168,0)');
CREATE DOMAIN short AS citext CHECK (length(VALUE) < 20);
CREATE DOMAIN track AS ltree NOT NULL;
CREATE TYPE pair AS (name citext, at cube, codes ean13[]);
CREATE TYPE names AS RANGE (subtype = citext);
CREATE TABLE typed (id integer PRIMARY KEY{types});
CREATE TABLE made (id integer PRIMARY KEY, s short, p track, b pair, n names, many short[]);
INSERT INTO made VALUES (1, 'Ab', 'a.b', ('X', '(1,2)', ARRAY['9780306406157']::ean13[]), '[A,b)', '{One,two}'), (2, NULL, 'c', NULL, NULL, NULL);
CREATE TABLE by_name (name citext PRIMARY KEY, n integer, body text);
INSERT INTO by_name SELECT 'Name ' || n, n, repeat('x', n) FROM generate_series(1, 300) AS n;
CREATE TABLE by_names (a citext, b ltree, n integer, PRIMARY KEY (a, b));
INSERT INTO by_names SELECT 'K' || n % 7, ('t.' || n)::ltree, n FROM generate_series(1, 100) AS n;
CREATE TABLE by_code (code ean13 PRIMARY KEY, at cube, n integer);
INSERT INTO by_code VALUES ('9780306406157', '(1)', 1), ('4006381333931', '(2)', 2);
CREATE TABLE by_cube (at cube PRIMARY KEY, s seg, n integer);
INSERT INTO by_cube VALUES ('(1,2)', '1', 1), ('(1),(2)', '1.0', 2);
CREATE TABLE by_seg (s seg PRIMARY KEY, n integer);
INSERT INTO by_seg VALUES ('1', 1), ('1.00 .. 2', 2);
CREATE TABLE whole (a citext, h hstore, l ltree);
ALTER TABLE whole REPLICA IDENTITY FULL;
INSERT INTO whole VALUES ('A', 'a=>1', 'x.y'), ('a', NULL, 'x'), (NULL, 'b=>2', NULL)";

/// Keys that are equal to the type, and not to the eye.
const CONTRIB_CHANGES: &str = "UPDATE by_name SET name = upper(name::text) WHERE n % 3 = 0;
UPDATE by_name SET name = lower(name::text)::citext WHERE n % 2 = 0;
BEGIN; DELETE FROM by_name WHERE n < 20; INSERT INTO by_name SELECT 'NAME ' || n, n, 'again' FROM generate_series(1, 15) AS n; COMMIT;
BEGIN; DELETE FROM by_name WHERE name = 'name 100'; INSERT INTO by_name VALUES ('nAME 100', 100, 'one'); UPDATE by_name SET name = 'Name 100', body = 'two' WHERE name = 'NAME 100'; DELETE FROM by_name WHERE name = 'name 101'; INSERT INTO by_name VALUES ('naMe 101', 101, 'three'); COMMIT;
UPDATE by_names SET a = upper(a::text), n = -n WHERE n % 5 = 0;
UPDATE by_names SET b = ('u.' || n)::ltree WHERE n > 50;
DELETE FROM by_names WHERE n % 11 = 0;
UPDATE by_code SET code = '9783161484100' WHERE n = 1;
DELETE FROM by_code WHERE n = 2;
UPDATE by_cube SET n = -n;
UPDATE by_cube SET at = '(1,2),(1,2)' WHERE n = -1;
UPDATE by_seg SET s = '1.0', n = 10 WHERE n = 1;
UPDATE made SET b = ROW('y', NULL, NULL)::pair, many = NULL WHERE id = 1;
UPDATE whole SET a = 'B' WHERE h IS NULL;
DELETE FROM whole WHERE a IS NULL;
INSERT INTO whole VALUES ('A', 'a=>1', 'x.y')";

const PGVECTOR_TYPES: &[(&str, &str)] = &[
    ("vector", "[1,2,3] ; [-0,1e-30,3.4e38] ; [0.1]"),
    ("halfvec", "[1,2,3] ; [65504,-6.1e-5]"),
    ("sparsevec", "{1:1,3:-2.5}/5 ; {}/3"),
    ("vector(3)", "[1,2,3] ; [0,0,0]"),
];

const PGVECTOR_TABLES: &str = "CREATE TABLE typed (id integer PRIMARY KEY{types});
CREATE TABLE items (id bigint PRIMARY KEY, body text, embedding vector(768));
INSERT INTO items SELECT n, repeat('x', n % 50), (SELECT array_agg(((n * k) % 1000) / 7.0::float4) FROM generate_series(1, 768) AS k)::vector FROM generate_series(1, 1000) AS n;
CREATE INDEX ON items USING hnsw (embedding vector_l2_ops);
CREATE TABLE by_vector (v vector PRIMARY KEY, n integer);
INSERT INTO by_vector VALUES ('[1,2]', 1), ('[3]', 2);
CREATE TABLE whole (v vector, h halfvec);
ALTER TABLE whole REPLICA IDENTITY FULL;
INSERT INTO whole VALUES ('[1]', '[2]'), (NULL, '[3]'), ('[4]', NULL)";

const PGVECTOR_CHANGES: &str =
    "UPDATE items SET embedding = embedding + embedding WHERE id % 3 = 0;
UPDATE items SET body = 'longer' WHERE id % 5 = 0;
DELETE FROM items WHERE id % 7 = 0;
INSERT INTO items SELECT 5000 + id, body, embedding FROM items WHERE id % 2 = 0;
UPDATE by_vector SET v = '[1,2,3]' WHERE n = 1;
UPDATE whole SET v = '[9]' WHERE h IS NULL;
DELETE FROM whole WHERE v IS NULL";

const POSTGIS_TYPES: &[(&str, &str)] = &[
    (
        "geometry",
        "SRID=4326;POINT(1 2) ; LINESTRING Z (0 0 1, 1e-300 1e300 2) ; GEOMETRYCOLLECTION EMPTY ; SRID=3857;POLYGON((0 0,1 0,1 1,0 0)) ; POINT(NaN NaN)",
    ),
    (
        "geometry(PointZM, 4326)",
        "SRID=4326;POINT ZM (1 2 3 4) ; SRID=4326;POINT ZM (0.1 0.2 0.3 0.4)",
    ),
    ("geography", "POINT(8.5 47.4) ; LINESTRING(0 0, 179 89)"),
    ("geography(Polygon, 4326)", "POLYGON((0 0,1 0,1 1,0 0)) ; POLYGON EMPTY"),
    ("box2d", "BOX(1 2,3 4) ; BOX(-0.5 0.25,1e9 2)"),
    ("box3d", "BOX3D(1 2 3,4 5 6)"),
    (
        "raster",
        "0100000100000000000000F03F000000000000F0BF0000000000000000000000000000000000000000000000000000000000000000E610000002000200440007070707",
    ),
];

const POSTGIS_TABLES: &str = "CREATE DOMAIN place AS geometry(Point, 4326);
CREATE TYPE stop AS (name text, at geometry, around box2d);
CREATE TABLE typed (id integer PRIMARY KEY{types});
CREATE TABLE made (id integer PRIMARY KEY, p place, s stop, many stop[]);
INSERT INTO made VALUES (1, 'SRID=4326;POINT(1 2)', ROW('A', 'POINT(1 2)', 'BOX(1 2,3 4)'), ARRAY[ROW('B', 'POINT(1 2)', NULL)::stop]), (2, NULL, NULL, NULL);
CREATE TABLE whole (g geometry, h geography);
ALTER TABLE whole REPLICA IDENTITY FULL;
INSERT INTO whole SELECT ST_MakePoint(n, n), ST_MakePoint(n, n)::geography FROM generate_series(1, 50) AS n;
CREATE TABLE large (id integer PRIMARY KEY, g geometry, n integer);
INSERT INTO large SELECT n, ST_Buffer(ST_MakePoint(n, n), 10, 2000), 0 FROM generate_series(1, 5) AS n;
CREATE TABLE by_place (g geometry PRIMARY KEY, n integer);
INSERT INTO by_place SELECT ST_SetSRID(ST_MakePoint(n, n * 0.1), 4326), n FROM generate_series(1, 50) AS n";

const POSTGIS_CHANGES: &str =
    "INSERT INTO spatial_ref_sys VALUES (990001, 'ours', 990001, 'LOCAL_CS[]', '+proj=longlat');
UPDATE spatial_ref_sys SET auth_name = 'changed' WHERE srid = 3857;
DELETE FROM spatial_ref_sys WHERE srid = 2000;
UPDATE large SET n = 1 WHERE id < 3;
UPDATE by_place SET g = ST_Translate(g, 100, 0) WHERE n % 2 = 0;
DELETE FROM by_place WHERE n % 7 = 0;
UPDATE whole SET h = NULL WHERE ST_X(g) < 5;
DELETE FROM whole WHERE ST_X(g) > 40;
UPDATE made SET p = 'SRID=4326;POINT(5 6)', s = NULL WHERE id = 1";
