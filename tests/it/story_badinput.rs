//! Wrong configuration and hostile surroundings: each is named by `check` and by `run`, with the remedy.

use std::{fs, time::Duration};

use lakehead::{
    demo::{
        cluster::{Cluster, ClusterOptions, ServerTls},
        gateway::Gateway,
        ground::free_port,
    },
    error::{Cause, Disposition},
};

use crate::harness::{SOURCE, Setup, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_configuration_names_file_line_key_and_remedy() {
    let mut world = World::new("config", Setup::default()).await;
    let path = world.site.dir.join("site.toml");
    let good = fs::read_to_string(&path).unwrap();
    for (was, is, key, remedy) in [
        ("name = \"demo-a\"", "name = \"Demo A\"", "name", "a-z"),
        ("object_age = \"1 s\"", "object_age = \"soon\"", "object_age", "60 s"),
        ("max_bytes = \"4 GiB\"", "max_byte = \"4 GiB\"", "max_byte", "max_bytes"),
        ("kind = \"postgres\"", "kind = \"postgres", "", ""),
        ("kind = \"postgres\"", "kind = \"oracle\"", "kind", "postgres"),
        ("release = \"auto\"", "release = 1", "release", "quotes"),
        ("mode = \"client\"", "mode = \"rot13\"", "mode", "client"),
        ("endpoint = \"http", "endpoint = \"http://s3.example.com\"#", "endpoint", "loopback"),
    ] {
        let bad = good.replace(was, is);
        assert_ne!(good, bad, "{was}");
        fs::write(&path, &bad).unwrap();
        let line =
            1 + bad.lines().position(|line| line.contains(is.split('#').next().unwrap())).unwrap();
        for command in ["run", "check"] {
            let ended = world.gateway.ask(&[command], None).await.unwrap();
            let said = format!("{}{}", ended.stdout, ended.stderr);
            assert_eq!(ended.code, 2, "{is}: {said}");
            assert!(said.contains("site.toml") && said.contains(&line.to_string()), "{is}: {said}");
            assert!(said.contains(key) && said.contains(remedy), "{is}: {said}");
        }
    }
    // A system that was installed without its list of authorities.
    fs::write(&path, good.replace("endpoint = \"http://", "endpoint = \"https://")).unwrap();
    world.gateway.set("SSL_CERT_FILE", "/dev/null");
    world.gateway.set("SSL_CERT_DIR", "/dev/null");
    for (command, code) in [("run", 2), ("check", 1)] {
        let ended = world.gateway.ask(&[command], None).await.unwrap();
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(ended.code == code && said.contains("install ca-certificates"), "{ended:?}");
    }

    fs::remove_file(&path).unwrap();
    let ended = world.gateway.ask(&["run"], None).await.unwrap();
    assert!(ended.code == 2 && ended.stderr.contains("site.toml"), "{ended:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_the_source_is_named_and_heals() {
    let settings = vec![("wal_level".into(), "replica".into())];
    let mut world = World::new("bad-source", Setup { settings, ..Setup::default() }).await;
    world.execute("CREATE TABLE t (id integer PRIMARY KEY)").await;
    met(&mut world, Cause::WalLevel).await;
    world.cluster.set(&[("wal_level", "logical")]).unwrap();
    world.cluster.restart(lakehead::demo::cluster::Stop::Fast).unwrap();

    let admin = world.admin().await;
    for (wrong, right, cause) in [
        (
            "ALTER ROLE lakehead NOREPLICATION",
            "ALTER ROLE lakehead REPLICATION",
            Cause::SourcePrivilege,
        ),
        ("REVOKE shop FROM lakehead", "GRANT shop TO lakehead", Cause::SourcePrivilege),
        ("ALTER TABLE t RENAME TO scratch_t", "ALTER TABLE scratch_t RENAME TO t", Cause::NoTables),
    ] {
        if cause == Cause::NoTables {
            admin.batch_execute("DROP TABLE mark").await.unwrap();
        }
        admin.batch_execute(wrong).await.unwrap();
        met(&mut world, cause).await;
        admin.batch_execute(right).await.unwrap();
    }
    admin
        .batch_execute(
            "CREATE TABLE mark (at timestamptz PRIMARY KEY); ALTER TABLE mark OWNER TO shop",
        )
        .await
        .unwrap();

    let password = world.site.dir.join("source.password");
    lakehead::disk::write_durably(&password, b"wrong").unwrap();
    met(&mut world, Cause::SourceAuthentication).await;
    lakehead::disk::write_durably(&password, world.site.password.as_bytes()).unwrap();

    rewrite(&world, "/shop\"", "/shop?sslmode=require\"");
    met(&mut world, Cause::SourceWithoutTls).await;
    rewrite(&world, "/shop?sslmode=require\"", "/shop\"");

    // The database is away when the gateway starts, and comes back: nobody has to do anything.
    world.cluster.stop(lakehead::demo::cluster::Stop::Fast);
    world.start();
    alarmed(&mut world, Cause::SourceUnreachable).await;
    world.cluster.start().unwrap();
    world.calm(Cause::SourceUnreachable).await;
    world.caught_up().await;
    // It stops in order while it is followed, and says good-bye: that is no riddle.
    world.cluster.stop(lakehead::demo::cluster::Stop::Fast);
    let missed = world.until("it is missed", |status| !status.alarms.is_empty()).await;
    let causes: Vec<&str> = missed.alarms.values().map(|alarm| alarm.cause.as_str()).collect();
    assert_eq!(causes, [Cause::SourceUnreachable.name()], "{:?}", missed.alarms);
    world.cluster.start().unwrap();
    world.calm(Cause::SourceUnreachable).await;
    world.caught_up().await;
    world.assert_proven().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_authority_is_refused() {
    let mut world = World::new("bad-certificate", Setup::default()).await;
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let options = ClusterOptions {
        dir: world.dir.join("tls"),
        tls: Some(ServerTls { chain_pem: ours.1.clone(), key_pem: ours.2 }),
        ..ClusterOptions::default()
    };
    let served = Cluster::create(&options).unwrap();
    fs::write(world.site.dir.join("ours.pem"), &ours.0).unwrap();
    fs::write(world.site.dir.join("theirs.pem"), &theirs.0).unwrap();
    let admin = served.connect("postgres", &world.tasks).await.unwrap();
    let password = &world.site.password;
    for sql in [
        format!("CREATE ROLE lakehead LOGIN SUPERUSER PASSWORD '{password}'"),
        format!("CREATE DATABASE {SOURCE}"),
    ] {
        admin.batch_execute(&sql).await.unwrap();
    }
    let admin = served.connect(SOURCE, &world.tasks).await.unwrap();
    admin.batch_execute("CREATE TABLE t (id integer PRIMARY KEY)").await.unwrap();
    let old = format!("127.0.0.1:{}/shop", world.cluster.port());
    let pem = |name: &str| world.site.dir.join(name).display().to_string();
    let new = |name: &str| {
        format!("localhost:{}/shop?sslmode=verify-full&sslrootcert={}", served.port(), pem(name))
    };
    let (wrong, right) = (new("theirs.pem"), new("ours.pem"));
    rewrite(&world, &old, &wrong);
    met(&mut world, Cause::SourceCertificate).await;
    rewrite(&world, &wrong, &right);
    world.start();
    world.until("it streams", |status| status.entry > 0).await;
    served.remove().unwrap();
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_the_lake_is_named_and_heals() {
    let mut world = World::new("bad-lake", Setup { tls: true, ..Setup::default() }).await;
    world.execute("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)").await;

    rewrite(&world, "bucket = \"lake\"", "bucket = \"pond\"");
    met(&mut world, Cause::LakeBucket).await;
    rewrite(&world, "bucket = \"pond\"", "bucket = \"lake\"");

    let credentials = world.site.dir.join(lakehead::demo::site::WRITER);
    let good = fs::read_to_string(&credentials).unwrap();
    let bad = good.replace(&world.site.lake.writer.secret, "wrong");
    lakehead::disk::write_durably(&credentials, bad.as_bytes()).unwrap();
    met(&mut world, Cause::LakeCredentials).await;
    lakehead::disk::write_durably(&credentials, good.as_bytes()).unwrap();

    let ca = world.site.dir.join("lake-ca.pem");
    let good = fs::read_to_string(&ca).unwrap();
    fs::write(&ca, authority("theirs").0).unwrap();
    met(&mut world, Cause::LakeCertificate).await;
    fs::write(&ca, good).unwrap();

    world.bucket.skew(3600);
    met(&mut world, Cause::ClockSkew).await;
    world.bucket.skew(0);

    world.start();
    world.caught_up().await;
    world.until("all alarms are over", |status| status.alarms.is_empty()).await;
    world.assert_proven().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new("open-secret", Setup::default()).await;
    let key = world.site.key_file();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let ended = world.gateway.ask(&["run"], None).await.unwrap();
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(
        ended.code == 2 && said.contains("lake.key") && said.contains("chmod 600"),
        "{ended:?}"
    );
    world.end().await;
}

/// The data folder is a file system of 96 MiB in a mount namespace of the gateway's own, and full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_named() {
    let mut world = World::new("full-disk", Setup::default()).await;
    world.execute("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    let data = world.site.data_dir();
    fs::create_dir_all(&data).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=96m none '{0}' && {{ head -c 96M /dev/zero > '{0}/ballast' 2>/dev/null; exec \"$@\"; }}",
        data.display()
    );
    world.gateway.wrap(&[
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        &script,
        "sh",
    ]);
    let ended = world.gateway.ask(&["check"], None).await.unwrap();
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(ended.code != 0 && said.contains(Cause::DiskFull.disposition().remedy()), "{said}");
    // Where it can still speak it says so in `status`; where it cannot even begin, in its log.
    world.start();
    for _ in 0..100 {
        if world.gateway.log_end().contains(Cause::DiskFull.disposition().remedy()) {
            world.gateway.kill();
            return world.end().await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("`run` does not name the full disk:\n{}", world.gateway.log_end());
}

/// `check` and `run` name the cause, with its remedy.
async fn met(world: &mut World, cause: Cause) {
    let ended = world.gateway.ask(&["check"], None).await.unwrap();
    let said = format!("{}{}", ended.stdout, ended.stderr);
    let remedy = cause.disposition().remedy();
    assert!(ended.code == 1 && said.contains(remedy), "{}: {ended:?}", cause.name());
    world.start();
    alarmed(world, cause).await;
    world.gateway.kill();
}

/// `run` raises the alarm, says what to do, and goes on trying.
async fn alarmed(world: &mut World, cause: Cause) {
    let what = format!("the alarm {}", cause.name());
    let found = |status: &lakehead::telemetry::board::SourceStatus| {
        status.alarms.values().any(|alarm| alarm.cause == cause.name())
    };
    let status = world.until(&what, found).await;
    let alarm = status.alarms.values().find(|alarm| alarm.cause == cause.name()).unwrap();
    assert_eq!(alarm.remedy, cause.disposition().remedy());
    assert_eq!(alarm.heals, matches!(cause.disposition(), Disposition::Retry(_)));
    world.must_run();
}

fn rewrite(world: &World, was: &str, is: &str) {
    for name in ["site.toml", "audit.toml"] {
        let path = world.site.dir.join(name);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(was), "{was}");
        fs::write(&path, text.replace(was, is)).unwrap();
    }
}

/// An authority's certificate, and a chain and key for `localhost` that it signed.
fn authority(name: &str) -> (String, String, String) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let server = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".into()]).unwrap();
    let chain = leaf.signed_by(&server, &issuer).unwrap();
    (certificate.pem(), chain.pem(), server.serialize_pem())
}

#[test]
fn the_harness_finds_the_binary() {
    assert!(crate::harness::binary().is_file());
    assert!(free_port().unwrap() > 1024);
    let gateway = Gateway::new(&crate::harness::binary(), "x".as_ref(), "y".as_ref(), SOURCE);
    assert_eq!(gateway.pid(), None);
}
