//! What happens to a database server while it is followed: passwords and certificates change, it moves, it has
//! limits and settings of its own.

use std::{fs, time::Duration};

use lakehead::{
    demo::{
        cluster::{ServerTls, Stop},
        ground::random_key,
    },
    error::Cause,
    telemetry::board::{Alarm, SourceState, SourceStatus},
    units::Position,
};
use tokio::net::TcpListener;

use crate::{
    harness::{SLOT, SOURCE, Setup, World},
    small_disk::SmallDisk,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_changes_is_said_and_followed() {
    let mut world = begun("server-password", Setup::default()).await;
    world.admin().await.batch_execute("ALTER ROLE lakehead PASSWORD 'of tomorrow'").await.unwrap();
    // Who is in stays in; a new table's rows need to come in.
    world.execute("CREATE TABLE later (id integer PRIMARY KEY); INSERT INTO later VALUES (1); INSERT INTO t VALUES (2, 'x')").await;
    let alarm = alarmed(&mut world, Cause::SourceAuthentication).await;
    assert!(!alarm.heals && alarm.what.contains("password"), "{alarm:?}");
    cut(&world).await;
    world
        .until("the stream is out too", |status| {
            status.state == SourceState::Blocked
                && alarm_of(status, Cause::SourceAuthentication).is_some()
        })
        .await;
    world.execute("INSERT INTO t VALUES (3, 'x')").await;
    let file = world.site.dir.join("source.password");
    lakehead::disk::write_durably(&file, b"of tomorrow\n").unwrap();
    let status = world.calm(Cause::SourceAuthentication).await;
    assert!(status.alarms.is_empty(), "{:?}", status.alarms);
    finish(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_change_are_followed_and_those_that_are_wrong_named() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let certificate = Some(ours.certify("localhost", false));
    let mut world = World::new("server-tls", Setup { certificate, ..Setup::default() }).await;
    let trusted = world.site.dir.join("authority.pem");
    lakehead::disk::create_dir(&world.site.dir).unwrap();
    fs::write(&trusted, ours.pem()).unwrap();
    world.site.url = format!(
        "postgresql://lakehead@localhost:{}/{SOURCE}?sslmode=verify-full&sslrootcert={}",
        world.cluster.port(),
        trusted.display()
    );
    world.site.write(&random_key().unwrap()).unwrap();
    begin(&mut world).await;

    // Renewed by the same authority: nobody has to do anything.
    serve(&world, &ours.certify("localhost", false)).await;
    world.execute("INSERT INTO t VALUES (2, 'x')").await;
    let status = caught_up_calmly(&mut world).await;
    assert!(status.alarms.is_empty(), "{:?}", status.alarms);

    // Signed by another authority, until the box is given it.
    serve(&world, &theirs.certify("localhost", false)).await;
    world.execute("INSERT INTO t VALUES (3, 'x')").await;
    let alarm = alarmed(&mut world, Cause::SourceCertificate).await;
    assert!(!alarm.heals && alarm.what.contains("localhost"), "{alarm:?}");
    for (shown, named) in [
        (theirs.certify("db.plant7.test", false), "db.plant7.test"),
        (theirs.certify("localhost", true), "expired"),
    ] {
        serve(&world, &shown).await;
        lakehead::disk::write_durably(&trusted, theirs.pem().as_bytes()).unwrap();
        let said = world.gateway.ask(&["check"], None).await.unwrap().stdout;
        let remedy = Cause::SourceCertificate.disposition().remedy();
        assert!(said.contains(named) && said.contains(remedy), "{said}");
    }
    serve(&world, &theirs.certify("localhost", false)).await;
    world.calm(Cause::SourceCertificate).await;
    finish(world).await;
}

/// A database that lets the box in by its certificate, and by nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_logs_in_by_its_certificate() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let certificate = Some(ours.certify("localhost", false));
    let mut world =
        World::new("server-client-tls", Setup { certificate, ..Setup::default() }).await;
    let dir = world.site.dir.clone();
    lakehead::disk::create_dir(&dir).unwrap();
    fs::write(dir.join("authority.pem"), ours.pem()).unwrap();
    world.site.url = format!(
        "postgresql://lakehead@localhost:{}/{SOURCE}?sslmode=verify-full&sslrootcert={}",
        world.cluster.port(),
        dir.join("authority.pem").display()
    );
    world.site.write(&random_key().unwrap()).unwrap();
    world.configure(&format!(
        "client_certificate_file = {:?}\nclient_key_file = {:?}",
        dir.join("box.pem"),
        dir.join("box.key")
    ));
    let shows = |one: &ServerTls| {
        lakehead::disk::write_durably(&dir.join("box.key"), one.key_pem.as_bytes()).unwrap();
        lakehead::disk::write_durably(&dir.join("box.pem"), one.chain_pem.as_bytes()).unwrap();
    };
    shows(&ours.certify_client("lakehead", false));
    world.cluster.believe(&ours.pem()).unwrap();
    world.cluster.admit(BY_CERTIFICATE).unwrap();
    world.cluster.reload();
    begin(&mut world).await;

    // Renewed, then of somebody whom the server does not know, or who is somebody else.
    shows(&ours.certify_client("lakehead", false));
    cut(&world).await;
    world.execute("INSERT INTO t VALUES (2, 'x')").await;
    assert!(caught_up_calmly(&mut world).await.alarms.is_empty());
    for (shown, named) in [
        (theirs.certify_client("lakehead", false), "client certificate"),
        (ours.certify_client("lakehead", true), "client certificate"),
        (ours.certify_client("somebody", false), "certificate authentication failed"),
    ] {
        shows(&shown);
        let said = world.gateway.ask(&["check"], None).await.unwrap().stdout;
        let remedy = Cause::SourceAuthentication.disposition().remedy();
        assert!(said.contains(named) && said.contains(remedy), "{said}");
    }
    shows(&theirs.certify_client("lakehead", false));
    cut(&world).await;
    world.execute("INSERT INTO t VALUES (3, 'x')").await;
    let alarm = alarmed(&mut world, Cause::SourceAuthentication).await;
    assert!(!alarm.heals && alarm.what.contains("client certificate"), "{alarm:?}");
    // A key of another certificate, and one that others can read.
    let renewed = ours.certify_client("lakehead", false);
    lakehead::disk::write_durably(&dir.join("box.pem"), renewed.chain_pem.as_bytes()).unwrap();
    let said = world.gateway.ask(&["check"], None).await.unwrap().stdout;
    assert!(said.contains("box.key"), "{said}");
    shows(&renewed);
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644);
    fs::set_permissions(dir.join("box.key"), mode).unwrap();
    let said = world.gateway.ask(&["check"], None).await.unwrap().stdout;
    assert!(said.contains("others than its owner can read it"), "{said}");
    shows(&renewed);
    world.calm(Cause::SourceAuthentication).await;
    finish(world).await;
}

/// The box by its certificate, everybody else by a password.
const BY_CERTIFICATE: &str = "hostssl all lakehead 127.0.0.1/32 cert
host all lakehead 127.0.0.1/32 reject
host all all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
";

/// A name's addresses are asked for anew each time, and all of them tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_moves_is_found_where_its_name_leads() {
    let listen = ("listen_addresses".into(), "127.0.0.1,127.0.0.3".into());
    let setup = Setup { settings: vec![listen], ..Setup::default() };
    let mut world = World::new("server-moves", setup).await;
    let hosts = world.dir.join("hosts");
    fs::write(&hosts, "127.0.0.3 db.plant7.test\n").unwrap();
    let script = format!("mount --bind '{}' /etc/hosts && exec \"$@\"", hosts.display());
    let words = ["unshare", "--map-root-user", "--mount", "sh", "-c", &script, "sh"];
    world.gateway.wrap(&words);
    let port = world.cluster.port();
    world.site.url =
        format!("postgresql://lakehead@db.plant7.test:{port}/{SOURCE}?sslmode=disable");
    world.site.write(&random_key().unwrap()).unwrap();
    begin(&mut world).await;
    world.cluster.set(&[("listen_addresses", "127.0.0.1,127.0.0.64")]).unwrap();
    world.cluster.restart(Stop::Fast).unwrap();
    world.execute("INSERT INTO t VALUES (2, 'x')").await;
    alarmed(&mut world, Cause::SourceUnreachable).await;
    // Two addresses: what answers at the first is no database.
    let stranger = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    fs::write(&hosts, "127.0.0.2 db.plant7.test\n127.0.0.64 db.plant7.test\n").unwrap();
    let strange = async {
        loop {
            drop(stranger.accept().await.unwrap());
        }
    };
    tokio::select! {
        () = strange => {}
        _ = world.calm(Cause::SourceUnreachable) => {}
    }
    finish(world).await;
}

/// Settings that an operator may have given the role, or the server, to protect it from others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_timeout_of_the_server_keeps_rows_from_coming() {
    let settings = vec![("wal_sender_timeout".into(), "2s".into())];
    let mut world = World::new("server-hostile", Setup { settings, ..Setup::default() }).await;
    let small = SmallDisk::mount(&world.site.data_dir(), 200 << 20);
    let around = small.around();
    world.gateway.wrap(&around.iter().map(String::as_str).collect::<Vec<_>>());
    let admin = world.admin().await;
    for (since, setting) in HOSTILE {
        if world.major() >= *since {
            let sql = format!("ALTER ROLE lakehead SET {setting}");
            admin.batch_execute(&sql).await.unwrap();
        }
    }
    world.execute("CREATE TABLE t (id bigint PRIMARY KEY, a text); INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 50000) AS n").await;
    // The slot's making waits for this.
    let open = world.shop().await;
    open.batch_execute("BEGIN; INSERT INTO t VALUES (0, 'x')").await.unwrap();
    world.start();
    tokio::time::sleep(Duration::from_secs(4)).await;
    open.batch_execute("COMMIT").await.unwrap();
    world.whole(1).await;
    // The journal takes nothing for a while.
    let before = sessions(&world);
    small.leave(0);
    world
        .execute("INSERT INTO t SELECT n, md5(n::text) FROM generate_series(60000, 90000) AS n")
        .await;
    alarmed(&mut world, Cause::DiskFull).await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(sessions(&world), before, "the server hung up:\n{}", world.gateway.log_end());
    small.relieve();
    world.calm(Cause::DiskFull).await;
    world.caught_up().await;
    assert_eq!(sessions(&world), before, "the server hung up:\n{}", world.gateway.log_end());
    finish(world).await;
}

/// A slot begins when all that was open has ended: whoever is waited for is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_that_are_waited_for_are_named() {
    let settings = vec![("max_prepared_transactions".into(), "2".into())];
    let mut world = World::new("server-open", Setup { settings, ..Setup::default() }).await;
    world.execute("CREATE TABLE t (id bigint PRIMARY KEY, a text)").await;
    let open = world.shop().await;
    open.batch_execute("SET application_name = 'nightly'; BEGIN; INSERT INTO t VALUES (1, 'x')")
        .await
        .unwrap();
    let pid: i32 = open.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    world.execute("BEGIN; INSERT INTO t VALUES (2, 'x'); PREPARE TRANSACTION 'two phases'").await;
    world.start();
    let alarm = alarmed(&mut world, Cause::SourceTransactions).await;
    let named = [&format!("process {pid}"), "nightly", "shop"];
    assert!(alarm.heals && named.iter().all(|word| alarm.what.contains(word)), "{alarm:?}");
    // A start that is cut short leaves its session waiting: that is said as well, and no gap.
    world.gateway.kill();
    world.start();
    let status = world.until("it says what it waits for", |status| !status.alarms.is_empty()).await;
    let causes: Vec<&str> = status.alarms.values().map(|alarm| alarm.cause.as_str()).collect();
    assert_eq!(causes, [Cause::SourceTransactions.name()], "{:?}", status.alarms);
    open.batch_execute("COMMIT").await.unwrap();
    let prepared = |status: &SourceStatus| {
        alarm_of(status, Cause::SourceTransactions)
            .is_some_and(|alarm| alarm.what.contains("two phases"))
    };
    world.until("the prepared one is named", prepared).await;
    world.execute("COMMIT PREPARED 'two phases'").await;
    world.calm(Cause::SourceTransactions).await;
    world.caught_up().await;

    // A new table's rows wait as well; changes do not.
    open.batch_execute("BEGIN; INSERT INTO t VALUES (3, 'x')").await.unwrap();
    world.execute("CREATE TABLE late (id integer PRIMARY KEY); INSERT INTO late VALUES (1)").await;
    alarmed(&mut world, Cause::SourceTransactions).await;
    world.execute("INSERT INTO t VALUES (4, 'x')").await;
    world.caught_up().await;
    assert!(alarm_of(&world.status().await, Cause::SourceTransactions).is_some());
    open.batch_execute("COMMIT").await.unwrap();
    world.calm(Cause::SourceTransactions).await;
    finish(world).await;
}

/// `max_slot_wal_keep_size`: with `release = "lake"` somebody has to act before the slot is lost, and hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_going_to_be_lost_is_said_before() {
    let Some(mut world) = short_of_log("server-keep-lake", "lake").await else { return };
    world.bucket.away(true);
    let mut met = None;
    for round in 0..40 {
        fill(&world, round).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        let status = world.status().await;
        if let Some(alarm) = alarm_of(&status, Cause::SlotShort) {
            met = Some(alarm.clone());
            break;
        }
    }
    let alarm = met.expect("an alarm before the end");
    assert!(!alarm.heals && alarm.what.contains("max_slot_wal_keep_size"), "{alarm:?}");
    assert_ne!(wal_status(&world).await, "lost");
    world.bucket.away(false);
    world.calm(Cause::SlotShort).await;
    finish(world).await;
}

/// With `release = "auto"` the journal takes over before the server gives the slot up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_release_auto_the_journal_counts_before_the_slot_is_lost() {
    let Some(mut world) = short_of_log("server-keep-auto", "auto").await else { return };
    world.bucket.away(true);
    for round in 0..40 {
        fill(&world, round).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_ne!(wal_status(&world).await, "lost", "round {round}");
    }
    assert_eq!(world.status().await.release, "journal");
    world.bucket.away(false);
    finish(world).await;
}

/// An idle database beside a busy one: its slot does not hold the cluster's log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_database_holds_no_log_of_a_busy_neighbour() {
    let world = begun("server-idle", Setup::default()).await;
    let admin = world.cluster.connect("postgres", &world.tasks).await.unwrap();
    admin.batch_execute("CREATE DATABASE busy").await.unwrap();
    let busy = world.cluster.connect("busy", &world.tasks).await.unwrap();
    busy.batch_execute("CREATE TABLE b (a text)").await.unwrap();
    let mut from = Position::default();
    for round in 0..20 {
        let insert = "INSERT INTO b SELECT repeat('x', 1000) FROM generate_series(1, 3000)";
        busy.batch_execute(insert).await.unwrap();
        if round == 0 {
            from = world.cluster.position(&admin).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for tick in 0.. {
        let sql = format!(
            "SELECT confirmed_flush_lsn::text, restart_lsn::text FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
        );
        let row = admin.query_one(&sql, &[]).await.unwrap();
        let [confirmed, restart]: [Position; 2] =
            [0, 1].map(|column| row.get::<_, String>(column).parse().unwrap());
        if confirmed > from && restart > from {
            break;
        }
        assert!(tick < 50, "confirmed {confirmed}, kept from {restart}, busy since {from}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    finish(world).await;
}

/// A world that has caught up.
async fn begun(story: &str, setup: Setup) -> World {
    let mut world = World::new(story, setup).await;
    begin(&mut world).await;
    world
}

async fn begin(world: &mut World) {
    world
        .execute("CREATE TABLE t (id bigint PRIMARY KEY, a text); INSERT INTO t VALUES (1, 'x')")
        .await;
    world.start();
    world.caught_up().await;
}

/// Nothing is missing, and nothing came twice.
async fn finish(mut world: World) {
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_readable().await;
    world.assert_restored_equal().await;
    world.end().await;
}

fn alarm_of(status: &SourceStatus, cause: Cause) -> Option<&Alarm> {
    status.alarms.values().find(|alarm| alarm.cause == cause.name())
}

/// Waits for the alarm.
async fn alarmed(world: &mut World, cause: Cause) -> Alarm {
    let what = format!("the alarm {}", cause.name());
    let status = world.until(&what, |status| alarm_of(status, cause).is_some()).await;
    let alarm = alarm_of(&status, cause).unwrap().clone();
    assert_eq!(alarm.remedy, cause.disposition().remedy());
    alarm
}

async fn caught_up_calmly(world: &mut World) -> SourceStatus {
    world.caught_up().await;
    world.until("all alarms are over", |status| status.alarms.is_empty()).await
}

/// Ends all of the box's sessions.
async fn cut(world: &World) {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'lakehead'";
    world.admin().await.batch_execute(sql).await.unwrap();
}

/// Shows another certificate from now on, to whoever comes.
async fn serve(world: &World, certificate: &ServerTls) {
    world.cluster.certify(certificate).unwrap();
    world.cluster.reload();
    // The server takes its time to hear of it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    cut(world).await;
}

/// How often a stream was begun.
fn sessions(world: &World) -> usize {
    let log = fs::read_to_string(world.dir.join("gateway.log")).unwrap();
    log.lines().filter(|line| line.contains("streaming")).count()
}

/// A world whose server keeps little log for slots; servers before 13 keep all.
async fn short_of_log(story: &str, release: &str) -> Option<World> {
    let settings = [
        ("max_slot_wal_keep_size", "128MB"),
        ("max_wal_size", "32MB"),
        ("min_wal_size", "32MB"),
        ("checkpoint_timeout", "30s"),
    ];
    let settings = settings.map(|(name, value)| (name.into(), value.into())).to_vec();
    let setup = Setup { settings, release: release.into(), ..Setup::default() };
    let mut world = World::since(13, story, setup).await?;
    world.execute("CREATE TABLE scratch_noise (a text)").await;
    begin(&mut world).await;
    Some(world)
}

/// Some 4 MiB of log, of which little is the box's.
async fn fill(world: &World, round: u32) {
    let sql = format!(
        "INSERT INTO t VALUES ({round} + 10, 'x'); INSERT INTO scratch_noise SELECT repeat(md5(n::text), 30) FROM generate_series(1, 4000) AS n"
    );
    world.execute(&sql).await;
    world.admin().await.batch_execute("CHECKPOINT").await.unwrap();
}

async fn wal_status(world: &World) -> String {
    let sql = format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
    world.admin().await.query_one(&sql, &[]).await.unwrap().get(0)
}

/// An authority that signs certificates.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate for that host, that has expired or not.
    fn certify(&self, host: &str, expired: bool) -> ServerTls {
        self.sign(rcgen::CertificateParams::new(vec![host.into()]).unwrap(), expired)
    }

    /// A certificate for that role, that has expired or not.
    fn certify_client(&self, role: &str, expired: bool) -> ServerTls {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, role);
        self.sign(params, expired)
    }

    fn sign(&self, mut params: rcgen::CertificateParams, expired: bool) -> ServerTls {
        use rcgen::{KeyPair, date_time_ymd};
        let key = KeyPair::generate().unwrap();
        if expired {
            params.not_after = date_time_ymd(2020, 1, 1);
            params.not_before = date_time_ymd(2019, 1, 1);
        }
        let chain = params.signed_by(&key, &self.issuer).unwrap();
        ServerTls { chain_pem: chain.pem(), key_pem: key.serialize_pem() }
    }
}

/// Since which version, and what.
const HOSTILE: &[(u32, &str)] = &[
    (12, "statement_timeout = '1ms'"),
    (12, "lock_timeout = '1ms'"),
    (12, "idle_in_transaction_session_timeout = '200ms'"),
    (12, "wal_sender_timeout = '1s'"),
    (12, "default_transaction_read_only = on"),
    (12, "default_transaction_isolation = 'serializable'"),
    (12, "default_transaction_deferrable = on"),
    (12, "quote_all_identifiers = on"),
    (14, "idle_session_timeout = '500ms'"),
    (17, "transaction_timeout = '300ms'"),
];
