//! The link: its rate is kept over all connections, and nothing leaves by another way.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use lakehead::{
    clock::{Clock, SystemClock},
    config::{self, Secret},
    demo::s3::{DoubleOptions, Key, Role, S3Double},
    link::{Dialer, Link},
    ship::{
        Encryption, Head, ObjectStore, PATIENCE, Put, ShipError, checksum,
        credentials::{Credentials, Keys},
        patience,
        s3::{S3, S3Options},
    },
    telemetry::board::Board,
    units::BitRate,
};
use serde_json::Value;

use crate::harness::fresh_dir;

/// A bucket, and our door to it over a link.
struct House {
    double: S3Double,
    dir: PathBuf,
    board: Board,
    clock: Arc<dyn Clock>,
}

impl House {
    async fn new(name: &str) -> Self {
        let dir = fresh_dir(name);
        let options = DoubleOptions {
            root: dir.join("double"),
            keys: vec![Key::new("AKWRITER", "writer-secret", Role::Writer)],
            region: "eu-central-1".into(),
            buckets: vec!["acme-raw".into()],
            tls: true,
            address: ([127, 0, 0, 1], 0).into(),
        };
        let double = S3Double::start(options).await.unwrap();
        fs::write(dir.join("ca.pem"), double.ca_pem().unwrap()).unwrap();
        Self { double, dir, board: Board::default(), clock: Arc::new(SystemClock) }
    }

    fn s3(&self, link: Option<&str>) -> S3 {
        self.patient(link, PATIENCE)
    }

    fn patient(&self, link: Option<&str>, patience: Duration) -> S3 {
        let options = S3Options {
            bucket: "acme-raw".into(),
            region: "eu-central-1".into(),
            endpoint: Some(self.double.endpoint().into()),
            path_style: true,
            ca_file: Some(self.dir.join("ca.pem")),
            owner: None,
            encryption: Encryption::None,
            appliance: "plant7-a".into(),
            clock: Arc::clone(&self.clock),
            patience,
        };
        let keys = Keys {
            access_key_id: "AKWRITER".into(),
            secret_access_key: Secret::new(b"writer-secret".to_vec()),
            session_token: None,
        };
        let link = link.map(|interface| {
            let link =
                config::Link { name: "dx-1".into(), interface: interface.into(), rate: RATE };
            Arc::new(Link::new(&link, self.board.link("dx-1"), Arc::clone(&self.clock)))
        });
        S3::new(options, Credentials::Keys(keys), Dialer::new(link)).unwrap()
    }
}

/// So many at once.
async fn puts(s3: &S3, count: usize, bytes: usize) -> Vec<Result<(), ShipError>> {
    let keys: Vec<String> = (0..count).map(|n| format!("raw/{count}-{n}")).collect();
    futures_util::future::join_all(keys.iter().map(|key| put(s3, key, bytes))).await
}

async fn put(s3: &S3, key: &str, bytes: usize) -> Result<(), ShipError> {
    let body = Bytes::from(vec![b'x'; bytes]);
    let crc64nvme = &checksum::of(&body);
    let (metadata, encryption) = (&Default::default(), &Encryption::None);
    let head = Head { key, metadata, encryption, content_type: "text/plain" };
    s3.put(Put { head, body: body.into(), crc64nvme }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_connections_together_keep_to_the_rate_and_use_it() {
    let house = House::new("link-rate").await;
    let s3 = house.s3(Some("lo"));
    // The connections are made, and what the link saved up while idle is spent.
    put(&s3, "raw/first", 1 << 20).await.unwrap();
    let (started, before) = (house.clock.now(), house.board.links()["dx-1"].sent_bytes);
    for put in puts(&s3, 4, BODY_BYTES).await {
        put.unwrap();
    }
    let took = (house.clock.now() - started).as_secs_f64();
    let wire = house.board.links()["dx-1"].sent_bytes - before;
    assert!(wire > 4 * BODY_BYTES as u64, "{wire}");
    let rate = wire as f64 / took * 8.0 / RATE.0 as f64;
    eprintln!("{wire} bytes on the wire in {took:.2} s: {rate:.3} of the rate");
    // The bursts of 20 ms, and one quantum.
    assert!(rate < 1.0 + 0.06 / took, "{rate}");
    assert!(rate > 0.9, "{rate}");
}

/// Connections hold what the link has not let go yet: to whoever looks at bodies alone, nothing moves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_for_the_link_are_not_given_up() {
    let house = House::new("link-slow").await;
    let (count, bytes) = (40, 400_000);
    let short = Duration::from_secs(1);
    let hasty = puts(&house.patient(Some("lo"), short), count, bytes).await;
    assert!(hasty.iter().any(Result::is_err), "all of this would be to no purpose");
    let patience = patience(Some(RATE), count) - PATIENCE + short;
    let patient = puts(&house.patient(Some("lo"), patience), count - 1, bytes).await;
    patient.into_iter().for_each(Result::unwrap);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_interface_nothing_is_sent_and_the_error_names_it() {
    let house = House::new("link-absent").await;
    let error = put(&house.s3(Some("nolink0")), "raw/x", 10).await.unwrap_err().to_string();
    assert!(error.contains("link dx-1: interface nolink0 is not there"), "{error}");
    assert_eq!(house.board.links()["dx-1"].sent_bytes, 0);
    put(&house.s3(None), "raw/x", 10).await.unwrap();
}

/// In a network of its own: two ways to S3's address, the link over the one, and the routing table takes the
/// other as soon as the first is down. Counted by the kernel, at the interfaces.
#[test]
fn with_the_link_down_no_packet_leaves_elsewhere() {
    let dir = fresh_dir("link-down");
    let site = |name: &str, link: &str| {
        let (text, path) = (SITE.replace("DIR", dir.to_str().unwrap()), dir.join(name));
        fs::write(&path, format!("{text}{link}")).unwrap();
    };
    site("bound.toml", LINK);
    site("free.toml", "");
    fs::write(dir.join("aws"), "[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
        .unwrap();
    private(&dir.join("aws"));
    let ran = Command::new("unshare")
        .args(["--map-root-user", "--net", "--mount", "sh", "-euc", NETWORK])
        .env("LAKEHEAD", env!("CARGO_BIN_EXE_lakehead"))
        .env("DIR", &dir)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{told}");
    let sent = |name: &str, interface: &str| -> u64 {
        let path = dir.join(format!("{name}.{interface}"));
        fs::read_to_string(path).unwrap().trim().parse().unwrap()
    };
    let said = |name: &str, check: &str| -> Value {
        let text = fs::read_to_string(dir.join(format!("{name}.json"))).unwrap();
        let findings: Value = serde_json::from_str(&text).unwrap();
        let found = findings["findings"].as_array().unwrap().iter();
        found
            .clone()
            .find(|line| line["check"] == check)
            .unwrap_or_else(|| panic!("{text}"))
            .clone()
    };
    assert_eq!(said("up", "link dx-1")["ok"], true);
    assert!(sent("up", "a0") > 0, "it sends over its link");
    for down in ["pulled", "off", "gone"] {
        assert_eq!(said(down, "link dx-1")["cause"], "LinkDown", "{down}");
        let reach = said(down, "lake: reach");
        assert!(reach.to_string().contains("link dx-1: interface a0 is "), "{reach}");
    }
    assert_eq!(sent("gone", "b0"), 0, "nothing left by the other way");
    assert!(sent("free", "b0") > 0, "which is open, to those who are not bound");
}

fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

const RATE: BitRate = BitRate(40_000_000);
const BODY_BYTES: usize = 4 << 20;
const SITE: &str = r#"
[appliance]
name = "plant7-a"
data_dir = "DIR"
[[source]]
name = "erp"
kind = "postgres"
url = "postgresql://lakehead@127.0.0.1:1/erp?sslmode=disable"
tables = ["*"]
[lake]
bucket = "acme-raw"
prefix = "raw"
region = "eu-central-1"
endpoint = "https://10.9.9.9"
path_style = true
credentials_file = "DIR/aws"
[encryption]
mode = "none"
[journal]
max_bytes = "1 GiB"
"#;
const LINK: &str = "[[link]]\nname = \"dx-1\"\ninterface = \"a0\"\nrate = \"800 Mbit/s\"\n";
const NETWORK: &str = r#"
mount -t sysfs none /sys
for file in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 >$file; done
ip link set lo up
for way in a b; do
    ip link add ${way}0 type veth peer name ${way}1
    echo 1 >/proc/sys/net/ipv6/conf/${way}0/disable_ipv6
    echo 1 >/proc/sys/net/ipv6/conf/${way}1/disable_ipv6
done
ip addr add 10.9.1.1/24 dev a0; ip addr add 10.9.2.1/24 dev b0
for way in a b; do ip link set ${way}0 up; ip link set ${way}1 up; done
again() {
    ip neigh replace 10.9.9.9 lladdr 02:00:00:00:00:09 dev $1
    ip route replace 10.9.9.9 dev $1 metric $2
}
again a0 10; again b0 20
look() {
    timeout 60 "$LAKEHEAD" --config "$DIR/$2.toml" --json check >"$DIR/$1.json" || true
    for way in a0 b0; do
        if [ -e /sys/class/net/$way ]; then cat /sys/class/net/$way/statistics/tx_packets >"$DIR/$1.$way"; fi
    done
}
look up bound
ip link set a1 down; look pulled bound
ip link set a0 down; look off bound
ip link del a0; look gone bound
look free free
"#;
