//! Schemas that nobody here wrote: those of applications that Debian has, each table with rows and changes, copied and
//! restored equal.

use std::{env, fs, path::Path};

use lakehead::{demo::compare::compare, telemetry::board::SourceState};

use crate::harness::{SOURCE, Setup, World, assert_all_equal, copied};

/// `make schemas` fetches them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the schemas are fetched: `make schemas`"]
async fn the_tables_of_applications_are_restored_equal() {
    let fetched = env::var_os("LAKEHEAD_SCHEMAS").expect("LAKEHEAD_SCHEMAS names their folder");
    let mut world = World::new("schemas", Setup::default()).await;
    for application in APPLICATIONS {
        make(&world, application, Path::new(&fetched)).await;
    }
    change(&world, FILL, 0).await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.whole(TABLES_MIN).await;
    for round in 1..=ROUNDS {
        change(&world, FILL, round).await;
        change(&world, CHANGE, round).await;
    }
    let position = world.caught_up().await;
    let status = world.status().await;
    assert!(status.alarms.is_empty(), "{:?}", status.alarms);
    eprintln!("{} tables, the stream at {position}", status.snapshot.len());
    world.assert_proven().await;
    world.assert_readable().await;
    let same = world.audit(&["verify", "--source", SOURCE, "--against-source"]).await;
    assert_eq!(same.code, 0, "{same:?}");
    let restored = world.restored("anew", &[]).await;
    let tables = compare(&world.admin().await, &restored, copied).await.unwrap();
    assert_all_equal(&tables);
    assert!(tables.len() > TABLES_MIN, "only {} tables", tables.len());
    let full = tables.iter().filter(|table| table.source.as_ref().is_some_and(|of| of.rows > 0));
    eprintln!("{} tables equal, {} of them with rows", tables.len(), full.count());
    world.end().await;
}

/// Makes the tables of one application in a schema of their own. Those that nothing names a row of get what the
/// alarm of such a table asks for.
async fn make(world: &World, application: &str, fetched: &Path) {
    let script = fs::read_to_string(fetched.join(format!("{application}.sql"))).unwrap();
    let shop = world.shop().await;
    let begin = format!("CREATE SCHEMA {application}; SET search_path = {application}, public");
    shop.batch_execute(&begin).await.unwrap();
    shop.batch_execute(&script).await.unwrap();
    shop.batch_execute("COMMIT").await.unwrap();
    shop.batch_execute(&IDENTIFY.replace("{schema}", application)).await.unwrap();
}

/// Runs one of the scripts over all tables, without their triggers: foreign keys would have most rows refused.
async fn change(world: &World, script: &str, round: usize) {
    let schemas = format!("'{}'", APPLICATIONS.join("', '"));
    let script = script.replace("{schemas}", &schemas).replace("{round}", &round.to_string());
    let admin = world.admin().await;
    admin.batch_execute("SET session_replication_role = replica").await.unwrap();
    admin.batch_execute(&script).await.unwrap();
}

const APPLICATIONS: [&str; 4] = ["icinga", "mediawiki", "roundcube", "zabbix"];
const ROUNDS: usize = 3;
const TABLES_MIN: usize = 300;

const IDENTIFY: &str = "DO $$ DECLARE t regclass; BEGIN
  FOR t IN SELECT c.oid FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = '{schema}'::regnamespace
    AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) LOOP
    EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', t);
  END LOOP;
END $$";

/// Forty rows for each table, of values that fit its columns' types. What a table does not take is left.
const FILL: &str = "DO $$ DECLARE t record; n integer; BEGIN
  FOR t IN SELECT a.attrelid::regclass AS name, string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) AS columns,
      string_agg('(' || CASE
        WHEN y.typtype = 'e' THEN format('(enum_range(NULL::%s))[1]', a.atttypid::regtype)
        WHEN y.typcategory = 'N' THEN '$1'
        WHEN y.typcategory = 'S' THEN format('left(repeat(md5($1 || %L), 1 + ($1 %% 3) * 90), %s)', a.attname,
          CASE WHEN a.atttypmod > 4 THEN a.atttypmod - 4 ELSE 9000 END)
        WHEN y.typcategory = 'B' THEN '$1 % 2 = 0'
        WHEN y.typcategory = 'D' THEN '''2020-02-29 12:34:56.789+02''::timestamptz + make_interval(hours => $1)'
        WHEN y.typcategory = 'I' THEN '(''10.1.'' || $1 % 200 || ''.'' || $1 / 200 % 200)::inet'
        WHEN y.typname = 'bytea' THEN 'decode(md5($1::text), ''hex'')'
        WHEN y.typname = 'tsvector' THEN 'to_tsvector(''simple'', ''row '' || $1)'
        ELSE 'NULL' END || ')::' || format_type(a.atttypid, NULL), ', ' ORDER BY a.attnum) AS values
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type y ON y.oid = a.atttypid
    WHERE c.relkind = 'r' AND c.relnamespace::regnamespace::text IN ({schemas})
      AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' GROUP BY 1 LOOP
    FOR n IN SELECT 20000 + 40 * {round} + g FROM generate_series(1, 40) AS g LOOP
      BEGIN
        EXECUTE format('INSERT INTO %s (%s) VALUES (%s)', t.name, t.columns, t.values) USING n;
      EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN NULL;
      END;
    END LOOP;
  END LOOP;
END $$";

/// Changes in each column of some rows of each table, keys too; rows that go; now and then all of a table's.
const CHANGE: &str = "DO $$ DECLARE part record; BEGIN
  FOR part IN SELECT a.attrelid::regclass AS name, quote_ident(a.attname) AS column, a.attnum AS number, y.typcategory AS category,
      a.attnotnull AS must, row_number() OVER (PARTITION BY a.attrelid ORDER BY a.attnum) = 1 AS first
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type y ON y.oid = a.atttypid
    WHERE c.relkind = 'r' AND c.relnamespace::regnamespace::text IN ({schemas})
      AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attrelid, a.attnum LOOP
    BEGIN
      EXECUTE format('UPDATE %s AS t SET %s = %s WHERE hashtext(t::text) %% 5 = %s', part.name, part.column, CASE
        WHEN part.category = 'N' THEN part.column || ' + 1'
        WHEN part.category = 'S' THEN 'upper(' || part.column || ')'
        WHEN part.category = 'D' THEN part.column || ' + interval ''1 day'''
        WHEN NOT part.must THEN 'NULL'
        ELSE part.column END, (part.number + {round}) % 5);
    EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN NULL;
    END;
    IF part.first THEN
      EXECUTE format('DELETE FROM %s AS t WHERE hashtext(t::text) %% 11 = {round}', part.name);
    END IF;
    IF part.first AND hashtext(part.name::text) % 17 = {round} THEN
      EXECUTE format('TRUNCATE %s CASCADE', part.name);
    END IF;
  END LOOP;
END $$";
