//! The stores: how each is started and stopped, and what the checks need to know of it.
//!
//! **Invariant:** what is dropped here has no process left; processes are ended by their id, and those
//! that they left behind end with the namespace (`enclose.sh`).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use lakehead::{
    clock::{Clock, SystemClock},
    config::Secret,
    demo::{gateway::run, ground::random_hex, site::Key},
    link::Dialer,
    ship::{
        Encryption,
        credentials::{Credentials, Keys},
        s3::{S3, S3Options},
    },
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rcgen::{CertificateParams, KeyPair};
use serde::Deserialize;
use serde_json::{Value, json};

/// Whose store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Store {
    /// Ceph RGW: signatures, clocks, users, roles, races; over TLS.
    Ceph,
    /// LocalStack: the rules of S3's requests, and KMS.
    LocalStack,
}

impl Store {
    pub(crate) const ALL: [Self; 2] = [Self::Ceph, Self::LocalStack];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ceph => "ceph",
            Self::LocalStack => "localstack",
        }
    }
}

/// Keys of a user, or of a role that was lent.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Person {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
}

impl Person {
    pub(crate) fn key(&self) -> Key {
        Key { id: self.id.clone(), secret: self.secret.clone() }
    }
}

/// Who may do what.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct People {
    /// The permissions of DESIGN for the box, and no more.
    pub(crate) writer: Person,
    /// Get and List.
    pub(crate) reader: Person,
    /// As `writer`, with a session token.
    pub(crate) role: Person,
    /// As `writer`, without the permission that is the name.
    pub(crate) without: BTreeMap<String, Person>,
}

/// A store that runs, with a bucket, people and keys.
pub(crate) struct Ground {
    pub(crate) store: Store,
    pub(crate) endpoint: String,
    pub(crate) ca_pem: Option<String>,
    /// For files of the checks.
    pub(crate) dir: PathBuf,
    /// May do everything.
    pub(crate) owner: Person,
    pub(crate) people: People,
    /// A KMS key.
    pub(crate) kms: String,
    /// A KMS key that S3 must not use.
    pub(crate) kms_off: String,
    python: PathBuf,
    // Dropped with the ground: nothing outlives it.
    process: Process,
}

/// The store's first process.
struct Process(Child);

impl Ground {
    /// Starts a store out of `stores`, where install.sh has put it.
    pub(crate) async fn open(store: Store, stores: &Path) -> Self {
        let dir = stores.join("run").join(store.name());
        fs::remove_dir_all(&dir).ok();
        fs::create_dir_all(&dir).unwrap();
        let secret = random_hex().unwrap();
        let (command, scheme, ca_pem) = match store {
            Store::Ceph => {
                let ca = ceph_home(&stores.join("ceph/run"), &secret);
                (ceph(&stores.join("ceph")), "https", Some(ca))
            }
            Store::LocalStack => (localstack(&stores.join("localstack"), &dir), "http", None),
        };
        let process = Process::start(command, &dir.join("log")).await;
        if let Some(pem) = &ca_pem {
            fs::write(dir.join("ca.pem"), pem).unwrap();
        }
        let id = match store {
            Store::Ceph => "ROOT".into(),
            // It takes a key of twelve digits for the account's own.
            Store::LocalStack => "000000000000".into(),
        };
        let mut ground = Self {
            store,
            endpoint: format!("{scheme}://127.0.0.1:{PORT}"),
            ca_pem,
            owner: Person { id, secret, token: None },
            people: People::default(),
            kms: String::new(),
            kms_off: String::new(),
            python: stores.join("localstack/bin/python"),
            dir,
            process,
        };
        ground.populate().await;
        ground
    }

    async fn populate(&mut self) {
        let location = match self.store {
            Store::Ceph => "default",
            Store::LocalStack => REGION,
        };
        self.client(&self.owner, &["bucket", location]).await;
        self.people = serde_json::from_value(self.client(&self.owner, &["people"]).await).unwrap();
        (self.kms, self.kms_off) = match self.store {
            Store::Ceph => ("lake-key".into(), "no-key".into()),
            Store::LocalStack => {
                let keys = self.client(&self.owner, &["keys"]).await;
                let key = |at: usize| keys[at].as_str().unwrap().to_owned();
                (key(0), key(1))
            }
        };
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.process.0.try_wait(), Ok(None))
    }

    /// What AWS's own client says, with somebody's keys.
    pub(crate) async fn client(&self, who: &Person, words: &[&str]) -> Value {
        let access = self.dir.join(format!("access-{:x}", fastrand::u64(..)));
        let ca = self.ca_pem.as_ref().map(|_| self.ca_file());
        let given = json!({
            "endpoint": self.endpoint, "ca": ca,
            "id": who.id, "secret": who.secret, "token": who.token,
        });
        fs::write(&access, given.to_string()).unwrap();
        let mut command = self.python(&[CLIENT]);
        command.arg(&access).args(words);
        let ended = run(command, &access).await.unwrap();
        fs::remove_file(&access).unwrap();
        assert_eq!(ended.code, 0, "{words:?}: {}", ended.stderr);
        serde_json::from_str(&ended.stdout).unwrap()
    }

    /// A Python with `boto3` and `cryptography`.
    pub(crate) fn python(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.python);
        command.args(words);
        command
    }

    /// Our own door, with somebody's keys.
    pub(crate) fn s3(&self, who: &Person) -> S3 {
        self.s3_with(who, |_| {})
    }

    /// Our own door, set otherwise.
    pub(crate) fn s3_with(&self, who: &Person, change: impl FnOnce(&mut S3Options)) -> S3 {
        let mut options = S3Options {
            bucket: BUCKET.into(),
            region: REGION.into(),
            endpoint: Some(self.endpoint.clone()),
            path_style: true,
            ca_file: self.ca_pem.as_ref().map(|_| self.ca_file()),
            owner: None,
            encryption: Encryption::None,
            appliance: "plant7-a".into(),
            clock: Arc::new(SystemClock) as Arc<dyn Clock>,
            patience: PATIENCE,
        };
        change(&mut options);
        let secret = |text: &String| Secret::new(text.clone().into_bytes());
        let keys = Keys {
            access_key_id: who.id.clone(),
            secret_access_key: secret(&who.secret),
            session_token: who.token.as_ref().map(secret),
        };
        S3::new(options, Credentials::Keys(keys), Dialer::new(None)).unwrap()
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }
}

impl Process {
    /// Starts it and waits until a line of its log is "ready".
    async fn start(mut command: Command, log: &Path) -> Self {
        let out = File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        let mut process = Self(command.spawn().unwrap());
        for _ in 0..START_POLLS {
            let said = fs::read(log).unwrap();
            let said = String::from_utf8_lossy(&said);
            if said.lines().any(|line| READY.contains(&line)) {
                return process;
            }
            let runs = matches!(process.0.try_wait(), Ok(None));
            assert!(runs, "{command:?} ended; see {}", log.display());
            tokio::time::sleep(POLL).await;
        }
        panic!("{command:?} does not come up; see {}", log.display());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM).ok();
        for _ in 0..STOP_POLLS {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL);
        }
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The cluster's folder in the chroot, with the gateway's certificate. Gives the authority's.
fn ceph_home(run: &Path, secret: &str) -> String {
    let home = run.join("home");
    fs::create_dir(&home).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    let leaf = leaf.self_signed(&key).unwrap();
    fs::write(home.join("tls.pem"), leaf.pem()).unwrap();
    fs::write(home.join("tls.key"), key.serialize_pem()).unwrap();
    fs::write(home.join("root.secret"), secret).unwrap();
    fs::copy("tests/conformance/ceph.sh", run.join("ceph.sh")).unwrap();
    leaf.pem()
}

fn ceph(root: &Path) -> Command {
    let mut command = Command::new("chroot");
    command.arg(root).args(["/bin/bash", "/run/ceph.sh", "/run/home", PORT]);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
    command
}

fn localstack(venv: &Path, dir: &Path) -> Command {
    let mut command = Command::new("tests/conformance/localstack.sh");
    command.arg(venv.join("bin/python")).arg(dir).arg(PORT);
    command
}

/// The bucket.
pub(crate) const BUCKET: &str = "lake";
/// The part of the bucket that is ours: policies name it.
pub(crate) const PREFIX: &str = "raw";
pub(crate) const REGION: &str = "eu-central-1";
/// One store runs at a time, in a network of its own.
const PORT: &str = "5604";
const CLIENT: &str = "tests/conformance/client.py";
/// What they say on a line of their own.
const READY: [&str; 2] = ["ready", "Ready."];
const POLL: Duration = Duration::from_millis(100);
/// 2 minutes.
const START_POLLS: u32 = 1_200;
/// 20 seconds.
const STOP_POLLS: u32 = 200;
const PATIENCE: Duration = Duration::from_secs(30);
