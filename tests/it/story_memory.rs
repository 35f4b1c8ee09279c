//! Memory is bounded, whatever one row holds (P4).

use crate::harness::{Setup, World};

/// The largest value in the story.
const VALUE_BYTES: u64 = 100 << 20;
/// DESIGN P4: the budget, plus twice the largest single value above 64 MiB.
const RESIDENT_BYTES_MAX: u64 = (256 << 20) + 2 * VALUE_BYTES;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_a_hundred_mebibytes_stays_within_the_budget() {
    let mut world = World::new("memory", Setup::default()).await;
    world
        .execute(
            "CREATE TABLE large (id integer PRIMARY KEY, body bytea, note text);
             ALTER TABLE large ALTER body SET STORAGE EXTERNAL;
             CREATE FUNCTION noise(seed integer, bytes integer) RETURNS bytea LANGUAGE sql AS $$
                 SELECT substr(string_agg(sha256((seed + n)::text::bytea), ''), 1, bytes) FROM generate_series(1, 1 + bytes / 32) AS n
             $$;
             INSERT INTO large SELECT n, decode(repeat(md5(n::text), 30000), 'hex'), 'small' FROM generate_series(1, 100) AS n;
             INSERT INTO large VALUES (1000, noise(1, 104857600), 'in the snapshot')",
        )
        .await;
    world.start();
    world.caught_up().await;
    let shop = world.shop().await;
    for sql in [
        "INSERT INTO large VALUES (1001, noise(2, 104857600), 'in the stream')",
        "UPDATE large SET note = 'unchanged body' WHERE id >= 1000",
        "UPDATE large SET body = noise(3, 104857600) WHERE id = 1000",
    ] {
        shop.batch_execute(sql).await.unwrap();
    }
    world.caught_up().await;
    world.assert_proven().await;
    let peak = world.peak_bytes();
    eprintln!("a value of 100 MiB: {} MiB resident at most", peak >> 20);
    assert!(peak <= RESIDENT_BYTES_MAX, "{} MiB resident", peak >> 20);
    world.assert_restored_equal().await;
    world.end().await;
}
