//! A box is lost, with all that it held: another one, of another name, continues its chain.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::PathBuf,
    time::Duration,
};

use lakehead::{
    demo::{
        bucket::BUCKET,
        gateway::{Ended, Gateway},
        ground::random_key,
        s3::{Fault, Rule},
        site::READER,
        workload::Tally,
    },
    disk,
    ledger::{Entry, IdentityKey},
    telemetry::board::{SourceState, TableProgress},
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::harness::{SOURCE, Setup, World, binary};

/// What was of the box that is lost.
struct Lost {
    gateway: Gateway,
    public_key: PathBuf,
    /// Its data, kept aside.
    aside: PathBuf,
    data_dir: PathBuf,
}

/// Waits until somebody reads from the lost box's slot, or until nobody does any more.
async fn slot_in_use(world: &World, used: bool) {
    let admin = world.admin().await;
    let ask = "SELECT coalesce(bool_or(active), false) FROM pg_replication_slots WHERE slot_name = 'lakehead_demo_a_shop'";
    for _ in 0..300 {
        if admin.query_one(ask, &[]).await.unwrap().get::<_, bool>(0) == used {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the slot does not become {used}");
}

/// Loses the world's gateway and its data; from here on the world's gateway is another, that does not
/// run yet: of another name, with nothing but a configuration.
async fn lose(world: &mut World) -> Lost {
    world.gateway.kill();
    slot_in_use(world, false).await;
    let data_dir = world.site.data_dir();
    let (aside, public_key) = (world.dir.join("aside"), world.dir.join("lost.pub"));
    fs::copy(data_dir.join("identity.pub"), &public_key).unwrap();
    disk::rename(&data_dir, &aside).unwrap();
    let key = fs::read(world.site.key_file()).unwrap();
    world.site.dir = world.dir.join("site-b");
    let (site, audit) = world.site.write(&random_key().unwrap()).unwrap();
    disk::write_durably(&world.site.key_file(), &key).unwrap();
    for path in [&site, &audit] {
        let text = fs::read_to_string(path).unwrap().replace("\"demo-a\"", "\"demo-b\"");
        disk::write_durably(path, text.as_bytes()).unwrap();
    }
    let heir = Gateway::new(&binary(), &site, &world.dir.join("gateway-b.log"), SOURCE);
    let gateway = std::mem::replace(&mut world.gateway, heir);
    world.audit = audit;
    Lost { gateway, public_key, aside, data_dir }
}

/// Root takes nothing over in the folder of another user, who could not read it then.
async fn refused_to_root(world: &World, lost: &Lost) {
    let data_dir = world.site.data_dir();
    let own = fs::metadata(&data_dir).unwrap().uid();
    if own != 0 {
        return;
    }
    chown(&data_dir, Some(65_534), None).unwrap();
    let ended = adopt(world, Some(&lost.public_key)).await;
    assert!(ended.code == 2 && ended.stderr.contains("sudo -u "), "{ended:?}");
    chown(&data_dir, Some(own), None).unwrap();
}

/// `lakehead adopt` on the world's box, with the auditor's credentials for reading.
async fn adopt(world: &World, public_key: Option<&PathBuf>) -> Ended {
    let reader = world.site.dir.join(READER);
    let mut words = vec!["adopt", "--json", "--credentials-file", reader.to_str().unwrap()];
    if let Some(key) = public_key {
        words.extend(["--public-key", key.to_str().unwrap()]);
    }
    world.gateway.ask(&words, None).await.unwrap()
}

fn adopted(ended: &Ended) -> Value {
    assert_eq!(ended.code, 0, "{ended:?}");
    serde_json::from_str::<Value>(&ended.stdout).unwrap()["adopted"].take()
}

/// Waits until a gateway ends; its code.
async fn end(gateway: &mut Gateway) -> Option<i32> {
    for _ in 0..600 {
        if let Some(code) = gateway.ended() {
            return Some(code);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    None
}

/// The lost box is switched on again, has something to prove, and is fenced.
async fn come_back(world: &mut World, lost: &mut Lost) {
    disk::rename(&lost.aside, &lost.data_dir).unwrap();
    lost.gateway.start().unwrap();
    assert_eq!(end(&mut lost.gateway).await, Some(3), "{}", lost.gateway.log_end());
    // What it had begun to send is given back at the next start.
    assert_eq!(world.gateway.stop().await, Some(0));
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
}

/// Waits until the rows of every table are proven, and some changes.
async fn whole(world: &mut World) {
    for _ in 0..600 {
        let status = world.status().await;
        let entries = world.ledger();
        let proven = |name: &String| entries.iter().any(|entry| entry.completes.contains_key(name));
        let rows = !status.snapshot.is_empty() && status.snapshot.keys().all(proven);
        if rows && status.shipped.sequence.0 > 0 {
            return;
        }
        world.must_run();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("not whole in time:\n{}", world.gateway.log_end());
}

/// Removes what no entry names, as someone does who may; gives the keys.
fn remove_strangers(world: &World) -> Vec<String> {
    let entries = world.ledger();
    let named: Vec<&String> =
        entries.iter().flat_map(|entry| &entry.objects).map(|object| &object.key).collect();
    let mut all = world.bucket.double.keys(BUCKET, &format!("raw/{SOURCE}/"));
    all.extend(world.bucket.double.keys(BUCKET, &format!("raw/_schema/{SOURCE}/")));
    all.retain(|key| !named.contains(&key));
    for key in &all {
        world.bucket.double.tamper(BUCKET, key, None).unwrap();
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_box_goes_on_where_a_lost_one_ended() {
    let setup = Setup { release: "lake".into(), ..Setup::default() };
    let mut world = World::new("adopt", setup).await;
    let workload = world.workload(17, 3_000_000, 80.0).await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    let (tally, stop) = (Tally::default(), CancellationToken::new());
    let tasks = world.tasks.clone();
    let work = workload.run(&tally, &tasks, &stop);
    let story = async {
        whole(&mut world).await;
        // Objects arrive, and no entry with them: what a loss leaves on its way.
        let refuse = Rule::always("CompleteMultipartUpload", Fault::Refuse(503, "SlowDown"));
        world.bucket.double.fault(Rule { key: "/_ledger/".into(), ..refuse });
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut lost = lose(&mut world).await;
        world.bucket.double.heal();

        // Not without a key, nor with another's: and that changes nothing.
        let ended = adopt(&world, None).await;
        assert!(ended.code == 2 && ended.stderr.contains("identity.pub"), "{ended:?}");
        let before = world.ledger().len();
        let stranger = world.dir.join("stranger");
        disk::create_dir(&stranger).unwrap();
        IdentityKey::open(&stranger).unwrap();
        let wrong = stranger.join("identity.pub");
        let ended = adopt(&world, Some(&wrong)).await;
        assert!(ended.code == 1 && ended.stderr.contains("EntryAltered"), "{ended:?}");
        assert_eq!(world.ledger().len(), before);

        refused_to_root(&world, &lost).await;
        assert_eq!(world.ledger().len(), before);

        // Cut while it waits for the fence: what was begun is not started on, and is finished.
        let refuse = Rule::always("CompleteMultipartUpload", Fault::Refuse(503, "SlowDown"));
        world.bucket.double.fault(refuse);
        let cut =
            tokio::time::timeout(Duration::from_secs(4), adopt(&world, Some(&lost.public_key)));
        assert!(cut.await.is_err(), "it waits for S3");
        world.bucket.double.heal();
        let started = world.gateway.ask(&["run"], None);
        let refused = tokio::time::timeout(Duration::from_secs(30), started).await;
        let ended = refused.expect("it does not start").unwrap();
        assert!(
            ended.code == 2 && ended.stderr.contains("run `lakehead adopt` again"),
            "{ended:?}"
        );
        let taken = adopted(&adopt(&world, Some(&lost.public_key)).await);
        assert_eq!((&taken["earlier"], &taken["gap"]), (&false.into(), &Value::Null), "{taken}");
        assert_eq!(taken["slot"], "lakehead_demo_a_shop");
        assert_eq!(taken["partial"], Value::Array(vec![]), "{taken}");
        assert!(!taken["strangers"].as_array().unwrap().is_empty(), "{taken}");
        assert_eq!(world.ledger().len(), before + 1);
        let again = adopted(&adopt(&world, Some(&lost.public_key)).await);
        assert_eq!((&again["earlier"], &again["entry"]), (&true.into(), &taken["entry"]));

        world.start();
        let entry = taken["entry"].as_u64().unwrap();
        world.until("it goes on", |status| status.entry >= entry + 2).await;

        come_back(&mut world, &mut lost).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.cancel();
        lost
    };
    let (worked, lost) = tokio::join!(work, story);
    worked.unwrap();
    world.caught_up().await;
    world.assert_proven().await;
    assert!(!remove_strangers(&world).is_empty());
    world.assert_readable().await;
    world.assert_restored_equal().await;
    world.assert_proven_independently(&[&lost.public_key]).await;
    let names: Vec<String> = world.ledger().into_iter().map(|entry| entry.appliance).collect();
    let change = names.iter().position(|name| name == "demo-b").unwrap();
    assert!(names[..change].iter().all(|name| name == "demo-a"), "{names:?}");
    assert!(names[change..].iter().all(|name| name == "demo-b"), "{names:?}");
    world.end().await;
}

/// Lost while the first snapshot is read: what was whole stays, the rest is read anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_whose_snapshot_was_not_whole_is_read_anew() {
    let setup = Setup { release: "lake".into(), ..Setup::default() };
    let mut world = World::new("adopt-partial", setup).await;
    // There is nothing to take over yet.
    let ended = adopt(&world, Some(&world.dir.join("none.pub"))).await;
    assert_eq!(ended.code, 2, "{ended:?}");
    disk::create_dir(&world.site.data_dir()).unwrap();
    IdentityKey::open(&world.site.data_dir()).unwrap();
    let own = world.site.data_dir().join("identity.pub");
    let ended = adopt(&world, Some(&own)).await;
    assert!(ended.code == 1 && ended.stderr.contains("no ledger"), "{ended:?}");

    world
        .execute(
            "CREATE TABLE early (id integer PRIMARY KEY, a text);
             INSERT INTO early SELECT n, 'early' FROM generate_series(1, 2000) AS n",
        )
        .await;
    let refuse = Rule::always("PutObject", Fault::Refuse(503, "SlowDown"));
    world.bucket.double.fault(Rule { key: "/public.late/dt=".into(), ..refuse });
    world.start();
    let early = |entry: &Entry| entry.completes.contains_key("public.early");
    eventually(&mut world, |world| world.ledger().iter().any(early)).await;
    // Groups are written in the order in which they were sealed: its rows come after the other's.
    world
        .execute(
            "CREATE TABLE late (id integer PRIMARY KEY, a text);
             INSERT INTO late SELECT n, 'late' FROM generate_series(1, 2000) AS n",
        )
        .await;
    let late = |asked: &lakehead::demo::s3::Asked| asked.key.contains("/public.late/dt=");
    // Its rows are sealed, and cannot be sent.
    eventually(&mut world, |world| world.bucket.double.requests().iter().any(late)).await;
    let mut lost = lose(&mut world).await;
    world.bucket.double.heal();
    world
        .execute(
            "DELETE FROM late WHERE id % 3 = 0; UPDATE late SET a = 'changed' WHERE id % 3 = 1;
             DELETE FROM early WHERE id % 3 = 0; INSERT INTO early VALUES (5000, 'after')",
        )
        .await;
    let taken = adopted(&adopt(&world, Some(&lost.public_key)).await);
    assert_eq!(taken["gap"], Value::Null, "{taken}");
    let named = |list: &Value, name: &str| list.as_array().unwrap().iter().any(|is| is == name);
    assert!(named(&taken["whole"], "public.early"), "{taken}");
    assert!(!named(&taken["whole"], "public.late"), "{taken}");
    world.start();
    // Its snapshot stands where it was read; the changes have to reach that.
    let late = |entry: &Entry| entry.completes.contains_key("public.late");
    eventually(&mut world, |world| world.ledger().iter().any(late)).await;
    world.caught_up().await;
    // Of what the lost box had read none is said to be on its way.
    let snapshot = world.status().await.snapshot;
    assert!(snapshot.values().all(TableProgress::is_whole), "{snapshot:#?}");
    come_back(&mut world, &mut lost).await;
    world.assert_proven().await;
    assert!(!remove_strangers(&world).is_empty());
    let chunks = |name: &str| {
        let of = format!("raw/{SOURCE}/{name}/");
        let keys = world.bucket.double.keys(BUCKET, &of);
        keys.iter().filter(|key| key.contains("/snapshot-")).count()
    };
    assert_eq!((chunks("public.early"), chunks("public.late")), (1, 1));
    world.assert_restored_equal().await;
    world.assert_readable().await;
    world.end().await;
}

/// A box that had nothing to do lets the source go on, and is lost: nothing is lost with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_box_leaves_no_gap() {
    let mut world = idle("lake").await;
    let lost = lose_idle(&mut world).await;
    let taken = adopted(&adopt(&world, Some(&lost.public_key)).await);
    assert_eq!(taken["gap"], Value::Null, "{taken}");
    world.start();
    world.execute("INSERT INTO t VALUES (4)").await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// One that let the source forget what only its journal had: that is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_that_released_by_its_journal_leaves_a_gap_that_is_said_and_repaired() {
    let mut world = idle("journal").await;
    world.bucket.away(true);
    world.execute("INSERT INTO t VALUES (3)").await;
    let lost = lose_idle(&mut world).await;
    world.bucket.away(false);
    let taken = adopted(&adopt(&world, Some(&lost.public_key)).await);
    assert!(taken["gap"].as_str().is_some_and(|gap| gap.contains("are lost")), "{taken}");
    world.start();
    world.repaired().await;
    world.execute("INSERT INTO t VALUES (4)").await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_proven_independently(&[&lost.public_key]).await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// A table that was left out for a while is read anew; the box that takes over knows it from the chain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_box_left_out_for_a_while_the_next_one_reads_anew() {
    let mut world = World::new("adopt-left", Setup::default()).await;
    world
        .execute_each(
            "CREATE TABLE t (id integer PRIMARY KEY);\n\
             CREATE TABLE u (id integer PRIMARY KEY);\nINSERT INTO u VALUES (1)",
        )
        .await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.execute("INSERT INTO t VALUES (1)").await;
    whole(&mut world).await;
    assert_eq!(world.gateway.stop().await, Some(0));
    world.copy_only(&["*.*", "!public.u"]);
    world.start();
    world.execute("INSERT INTO u VALUES (2); DELETE FROM u WHERE id = 1").await;
    world.execute("INSERT INTO t VALUES (2)").await;
    let left = |entry: &Entry| entry.fates.left.contains_key("public.u");
    eventually(&mut world, |world| world.ledger().iter().any(left)).await;
    let lost = lose(&mut world).await;
    let taken = adopted(&adopt(&world, Some(&lost.public_key)).await);
    assert_eq!(taken["partial"], Value::Array(vec![]), "{taken}");
    world.start();
    let anew = |entry: &Entry| {
        entry.completes.contains_key("public.u") && entry.fates.anew.contains_key("public.u")
    };
    eventually(&mut world, |world| world.ledger().iter().any(anew)).await;
    world.execute("INSERT INTO t VALUES (3)").await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.assert_proven_independently(&[&lost.public_key]).await;
    world.end().await;
}

/// A world whose box has copied all there is.
async fn idle(release: &str) -> World {
    let setup = Setup { release: release.into(), ..Setup::default() };
    let mut world = World::new(&format!("adopt-{release}"), setup).await;
    world.execute("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.execute("INSERT INTO t VALUES (2)").await;
    world.caught_up().await;
    world
}

/// Log that is not ours goes by, the server hears that it need not keep it, and the box is lost.
async fn lose_idle(world: &mut World) -> Lost {
    let admin = world.admin().await;
    admin
        .batch_execute("CREATE TABLE scratch_noise AS SELECT generate_series(1, 1000)")
        .await
        .unwrap();
    let noise = world.cluster.position(&admin).await.unwrap();
    world.until("the source may forget it", |status| status.confirmed > noise).await;
    lose(world).await
}

/// What is not lost is not taken over; nor by a box that has begun something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_that_lives_or_that_has_work_of_its_own_is_refused_and_nothing_changes() {
    let mut world = idle("auto").await;
    let mut lost = lose(&mut world).await;
    // It was only thought to be lost.
    disk::rename(&lost.aside, &lost.data_dir).unwrap();
    lost.gateway.start().unwrap();
    slot_in_use(&world, true).await;
    let ended = adopt(&world, Some(&lost.public_key)).await;
    assert!(ended.code == 2 && ended.stderr.contains("SlotBusy"), "{ended:?}");
    assert!(world.ledger().iter().all(|entry| entry.appliance == "demo-a"));
    lost.gateway.kill();
    slot_in_use(&world, false).await;

    // A start without `adopt` finds the chain, and stays down; what it made must go first.
    let before = world.ledger().len();
    world.start();
    assert_eq!(end(&mut world.gateway).await, Some(3), "{}", world.gateway.log_end());
    let ended = adopt(&world, Some(&lost.public_key)).await;
    assert!(ended.code == 2 && ended.stderr.contains("empty data_dir"), "{ended:?}");
    assert_eq!(world.ledger().len(), before);
    fs::remove_dir_all(world.site.data_dir()).unwrap();
    let drop = "SELECT pg_drop_replication_slot('lakehead_demo_b_shop')";
    world.admin().await.batch_execute(drop).await.unwrap();
    adopted(&adopt(&world, Some(&lost.public_key)).await);
    world.start();
    world.execute("INSERT INTO t VALUES (4)").await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}

async fn eventually(world: &mut World, ready: impl Fn(&World) -> bool) {
    for _ in 0..600 {
        if ready(world) {
            return;
        }
        world.must_run();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("not in time:\n{}", world.gateway.log_end());
}
