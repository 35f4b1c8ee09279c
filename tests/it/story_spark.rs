//! What Spark reads in the lake: Parquet in Java, zstd and encodings by libraries that no other reader of the stories has.

use std::{env, path::PathBuf};

use lakehead::demo::site::NONE;

use crate::{
    dialect,
    harness::{Setup, World},
};

/// `make spark` brings it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "Spark is large: `make spark`"]
async fn spark_reads_the_values_that_pyarrow_reads() {
    let spark = env::var_os("LAKEHEAD_SPARK").expect("LAKEHEAD_SPARK names a Python that has it");
    let spark = PathBuf::from(spark);
    for (integers, uuids) in [("rising", "text"), ("delta", "uuid")] {
        let is_refused = uuids == "uuid";
        let (integers, uuids) = (integers.into(), uuids.into());
        let setup = Setup { encryption: NONE.into(), integers, uuids, ..Setup::default() };
        let mut world = World::new("spark", setup).await;
        world.execute(&dialect::types(TYPES, world.major())).await;
        world.execute(TABLES).await;
        world.start();
        world.whole(4).await;
        world.execute_each(TYPES_CHANGES).await;
        world.execute_each(CHANGES).await;
        world.settled().await;
        world.assert_proven().await;
        // What it looked at later would stand in one of both.
        assert_eq!(world.gateway.stop().await, Some(0));
        let counted = world.assert_readable().await;
        let read = world.assert_read_by(&spark, "spark.py").await;
        let rows: u64 =
            counted["rows"].as_object().unwrap().values().filter_map(|of| of.as_u64()).sum();
        assert_eq!(read["rows"].as_u64(), Some(rows), "{read} {counted}");
        assert!(rows > 400_000, "{read}");
        assert_eq!(read["refused"].as_u64().unwrap() > 0, is_refused, "{read}");
        assert!(read["changed"].as_u64().unwrap() >= 1, "a column is of two types: {read}");
        eprintln!("{read}");
        world.end().await;
    }
}

const TYPES: &str = include_str!("../fixtures/types.sql");
const TYPES_CHANGES: &str = include_str!("../fixtures/types_changes.sql");
/// Keys that rise by one, with gaps, and under way; what repeats, and what does not; nothing.
const TABLES: &str = "CREATE TABLE keyed (id integer PRIMARY KEY, long bigint, gaps bigint, sometimes integer, at timestamptz, few text, much text, price numeric(12,2), u uuid);
INSERT INTO keyed SELECT n, 4294960000 + n, n + n / 70, CASE WHEN n % 9 > 0 THEN n END, '2020-01-01Z'::timestamptz + n * interval '37 s',
    'state ' || n % 5, md5(n::text), n * 0.07, md5(n::text)::uuid FROM generate_series(1, 200000) AS n;
CREATE TABLE empty (id integer PRIMARY KEY, a text);
CREATE TABLE wide_rows (id integer PRIMARY KEY, big text, bytes bytea);
INSERT INTO wide_rows SELECT n, repeat(md5(n::text), 300), decode(repeat(md5(n::text), 200), 'hex') FROM generate_series(1, 500) AS n";
const CHANGES: &str =
    "INSERT INTO keyed (id, long) SELECT n, n FROM generate_series(200001, 400000) AS n;
ALTER TABLE keyed ADD COLUMN more numeric(20,4) DEFAULT 1.5;
UPDATE keyed SET more = id, few = NULL WHERE id % 20 = 0;
ALTER TABLE keyed ALTER sometimes TYPE bigint;
DELETE FROM keyed WHERE id % 1000 = 0";
