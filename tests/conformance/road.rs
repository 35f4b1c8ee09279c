//! The whole road: a database, the gateway as a process that is killed, and the lake read back by three
//! who trust nothing: `verify --deep`, the script in Python, and a restore that is compared.

use std::{fs, path::PathBuf, time::Duration};

use lakehead::{
    demo::{
        cluster::{Cluster, ClusterOptions, SUPERUSER},
        compare::{Compared, compare},
        gateway::{Ended, Gateway, run},
        ground::{random_hex, random_key},
        site::{CLIENT, Lake, Site, WRITER},
        workload::{Rows, Tally, Workload, mark, schema},
    },
    disk,
    shutdown::Tasks,
    telemetry::board::{SourceState, SourceStatus},
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    store::{BUCKET, Ground, Person, REGION},
    table::{Check, checks},
};

pub(crate) fn all() -> Vec<Check> {
    checks! {
        a_killed_box_loses_nothing_that_it_encrypted,
        a_killed_box_with_lent_keys_loses_nothing_under_sse_kms,
    }
}

async fn a_killed_box_loses_nothing_that_it_encrypted(ground: &Ground) {
    drive(ground, "client", CLIENT.into(), &ground.people.writer).await;
}

async fn a_killed_box_with_lent_keys_loses_nothing_under_sse_kms(ground: &Ground) {
    let encryption = format!("mode = \"sse-kms\"\nkms_key_id = \"{}\"", ground.kms);
    drive(ground, "kms", encryption, &ground.people.role).await;
}

async fn drive(ground: &Ground, name: &str, encryption: String, who: &Person) {
    let mut road = Road::new(ground, name, encryption, who).await;
    road.assert_preflight().await;
    let workload = road.workload.clone();
    let (tally, stop, tasks) = (Tally::default(), CancellationToken::new(), road.tasks.clone());
    let work = workload.run(&tally, &tasks, &stop);
    let kill = async {
        road.gateway.start().unwrap();
        road.until("it streams", |status| status.state == SourceState::Streaming).await;
        // Several objects under way, some in parts.
        workload.large(LARGE_ROWS, &tally, &tasks).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        road.gateway.kill();
        road.gateway.start().unwrap();
        road.until("it streams again", |status| status.state == SourceState::Streaming).await;
        stop.cancel();
    };
    let (worked, ()) = tokio::join!(work, kill);
    worked.unwrap();
    road.catch_up().await;
    assert_eq!(road.gateway.stop().await, Some(0), "{}", road.gateway.log_end());
    road.assert_proven(ground).await;
    road.assert_restored_equal().await;
    road.cluster.remove().unwrap();
    road.tasks.stop().await;
}

struct Road {
    // Dropped in this order: the gateway before what it talks to.
    gateway: Gateway,
    cluster: Cluster,
    site: Site,
    audit: PathBuf,
    dir: PathBuf,
    tasks: Tasks,
    workload: Workload,
}

impl Road {
    async fn new(ground: &Ground, name: &str, encryption: String, who: &Person) -> Self {
        let (dir, tasks) = (ground.dir.join(name), Tasks::new());
        let options = ClusterOptions { dir: dir.join("postgres"), ..ClusterOptions::default() };
        let cluster = Cluster::create(&options).unwrap();
        let (password, lakehead) = (random_hex().unwrap(), random_hex().unwrap());
        let admin = cluster.connect("postgres", &tasks).await.unwrap();
        admin.batch_execute(&schema::roles(&password, &lakehead)).await.unwrap();
        admin.batch_execute(&format!("CREATE DATABASE {SOURCE}")).await.unwrap();
        let admin = cluster.connect(SOURCE, &tasks).await.unwrap();
        admin.batch_execute(&schema::grants(SOURCE)).await.unwrap();
        let workload = Workload {
            url: cluster.url("shop", SOURCE),
            password,
            seed: 11,
            sessions: 2,
            transactions_per_s: 60.0,
            rows: Rows::of(TABLES_BYTES),
        };
        workload.prepare(&tasks).await.unwrap();
        let site = Site {
            dir: dir.join("site"),
            source: SOURCE.into(),
            url: cluster.url("lakehead", SOURCE),
            password: lakehead,
            tables: vec!["*.*".into()],
            release: "auto".into(),
            lake: Lake {
                endpoint: ground.endpoint.clone(),
                ca_pem: ground.ca_pem.clone(),
                region: REGION.into(),
                bucket: BUCKET.into(),
                // Within what the policies name.
                prefix: format!("raw/{name}"),
                writer: who.key(),
                reader: ground.people.reader.key(),
            },
            encryption,
            journal_max: "1 GiB".into(),
            object_bytes: "12 MiB".into(),
            object_age: "1 s".into(),
            integers: "rising".into(),
            uuids: "uuid".into(),
            listen: None,
        };
        let (path, audit) = site.write(&random_key().unwrap()).unwrap();
        if let Some(token) = &who.token {
            let file = site.dir.join(WRITER);
            let keys = fs::read_to_string(&file).unwrap();
            let lent = format!("{keys}aws_session_token = {token}\n");
            disk::write_durably(&file, lent.as_bytes()).unwrap();
        }
        let parts = format!("{}\n[ship]\npart_bytes = \"5 MiB\"\n", site.text(WRITER));
        disk::write_durably(&path, parts.as_bytes()).unwrap();
        disk::create_dir(&site.data_dir()).unwrap();
        let binary = env!("CARGO_BIN_EXE_lakehead").as_ref();
        let gateway = Gateway::new(binary, &path, &dir.join("gateway.log"), SOURCE);
        Self { gateway, cluster, site, audit, dir, tasks, workload }
    }

    /// `lakehead check` finds nothing wrong with the lake.
    async fn assert_preflight(&self) {
        let said = self.json(&["check"], false).await;
        let findings = said["findings"].as_array().unwrap();
        let lake =
            findings.iter().filter(|line| line["check"].as_str().unwrap().starts_with("lake"));
        assert!(lake.clone().count() > 5 && { lake }.all(|line| line["ok"] == true), "{said:#}");
    }

    async fn until(&mut self, what: &str, ready: impl Fn(&SourceStatus) -> bool) {
        for _ in 0..PATIENCE_TICKS {
            if self.gateway.status().await.is_some_and(|status| ready(&status)) {
                return;
            }
            let log = self.gateway.log_end();
            assert_eq!(self.gateway.ended(), None, "the gateway ended:\n{log}");
            tokio::time::sleep(TICK).await;
        }
        panic!("not in time: {what}:\n{}", self.gateway.log_end());
    }

    /// Waits until the ledger covers everything that was committed.
    async fn catch_up(&mut self) {
        let admin = self.cluster.connect(SOURCE, &self.tasks).await.unwrap();
        let wanted = self.cluster.position(&admin).await.unwrap();
        mark(&admin).await.unwrap();
        self.until("the ledger has it", |status| status.shipped.position > wanted).await;
    }

    /// `verify`, `verify --deep` and the script agree on how much is proven.
    async fn assert_proven(&self, ground: &Ground) {
        let ended = self.gateway.ask(&["verify"], Some(&self.audit)).await.unwrap();
        assert!(ended.code == 0 && ended.stdout.contains("PROVEN"), "{ended:?}");
        let deep = self.gateway.ask(&["verify", "--deep"], Some(&self.audit)).await.unwrap();
        assert!(deep.code == 0 && deep.stdout.contains("PROVEN"), "{deep:?}");
        let copy = self.dir.join("copy");
        let under = format!("{}/", self.site.lake.prefix);
        let words = ["copy", copy.to_str().unwrap(), &under];
        let copied = ground.client(&ground.people.reader, &words).await;
        assert!(copied.as_u64().unwrap() > 20, "{copied} objects");
        let (key, prefix) = (self.site.data_dir().join("identity.pub"), &self.site.lake.prefix);
        let mut script = ground.python(&["tests/verify.py", "--deep", "--prefix", prefix]);
        script.arg(&copy).arg(SOURCE).arg(key);
        let script = run(script, &copy).await.unwrap();
        assert_eq!(script.code, 0, "{script:?}");
        assert_eq!(counted(&script), counted(&deep));
        fs::remove_dir_all(copy).unwrap();
    }

    /// Restores into a fresh database and compares every table with the source.
    async fn assert_restored_equal(&self) {
        let admin = self.cluster.connect("postgres", &self.tasks).await.unwrap();
        admin.batch_execute("CREATE DATABASE restored").await.unwrap();
        let password = self.dir.join("restore.password");
        disk::write_durably(&password, self.cluster.password().as_bytes()).unwrap();
        let url = self.cluster.url(SUPERUSER, "restored");
        let password = password.to_str().unwrap();
        let words = ["restore", "--source", SOURCE, "--to", &url, "--password-file", password];
        let ended = self.gateway.ask(&words, Some(&self.audit)).await.unwrap();
        assert_eq!(ended.code, 0, "{ended:?}");
        let source = self.cluster.connect(SOURCE, &self.tasks).await.unwrap();
        let restored = self.cluster.connect("restored", &self.tasks).await.unwrap();
        let copied = |table: &str| !table.starts_with("lakehead");
        let tables = compare(&source, &restored, copied).await.unwrap();
        let differ: Vec<String> = tables.iter().filter_map(Compared::difference).collect();
        assert!(tables.len() > 5 && differ.is_empty(), "differ:\n{}", differ.join("\n"));
    }

    async fn json(&self, words: &[&str], audit: bool) -> Value {
        let config = audit.then_some(self.audit.as_path());
        let ended = self.gateway.ask(&[words, &["--json"]].concat(), config).await.unwrap();
        serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"))
    }
}

/// From a line of a proof: up to which change, how many entries and objects.
fn counted(ended: &Ended) -> Vec<String> {
    let line = ended.stdout.lines().find(|line| line.contains("PROVEN"));
    let words: Vec<_> =
        line.unwrap_or_else(|| panic!("{ended:?}")).split([' ', ',', '(']).collect();
    let before = |word: &str| words.iter().position(|each| *each == word).map(|at| at - 1);
    let change = words.iter().position(|each| *each == "change").map(|at| at + 1);
    let places = [change, before("entries"), before("objects")];
    places.map(|at| words[at.unwrap()].trim_matches([')', ':']).to_owned()).to_vec()
}

const SOURCE: &str = "shop";
const TABLES_BYTES: u64 = 24_000_000;
const LARGE_ROWS: u64 = 30_000;
const TICK: Duration = Duration::from_millis(200);
/// 3 minutes.
const PATIENCE_TICKS: u32 = 900;
