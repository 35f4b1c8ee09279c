//! The unit under a live systemd: started, watched, killed, reloaded and stopped as on a box.
//!
//! `make unit-test` runs it, as root: a Debian in a container of its own (`systemd-nspawn`), with the files
//! of `systemd/` where they are installed and the secrets as credentials. The network is this machine's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use lakehead::{
    demo::{gateway::Gateway, site::WRITER, workload::Tally},
    disk,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio_util::sync::CancellationToken;

use crate::harness::{SOURCE, Setup, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and a Debian to boot: make unit-test"]
async fn the_unit_works_under_systemd() {
    let mut world = World::new("unit", Setup::default()).await;
    let workload = world.workload(21, 5_000_000, 60.0).await;
    let etc = world.dir.join("etc-lakehead");
    install(&world, &etc);
    let machine = Machine::boot(&etc);
    machine.must(&["enable", "--now", "lakehead"]);
    world.gateway = machine.gateway(&world);

    let (tally, stop, tasks) = (Tally::default(), CancellationToken::new(), world.tasks.clone());
    let work = workload.run(&tally, &tasks, &stop);
    let live = async {
        world.caught_up().await;
        machine.assert_confined();
        assert_eq!(machine.show("NRestarts"), "0");

        machine.must(&["kill", "--kill-who=main", "--signal=KILL", "lakehead"]);
        machine.restarted("1").await;
        world.caught_up().await;

        // It does not go round any more: the watchdog ends it, and it starts again.
        machine.must(&["kill", "--kill-who=main", "--signal=STOP", "lakehead"]);
        machine.restarted("2").await;
        world.caught_up().await;

        let pid = machine.show("MainPID");
        machine.must(&["reload", "lakehead"]);
        world.caught_up().await;
        assert_eq!(machine.show("MainPID"), pid, "a reload is no restart");

        // Where nothing may be executed but the gateway it begins anew with a configuration that differs.
        let site = etc.join("site.toml");
        let differs = fs::read_to_string(&site).unwrap() + "\n[ship]\nrequests = 3\n";
        fs::write(&site, differs).unwrap();
        machine.must(&["reload", "lakehead"]);
        machine.began_anew().await;
        world.caught_up().await;
        assert_eq!(machine.show("SubState"), "running");
        assert_eq!((machine.show("MainPID"), machine.show("NRestarts")), (pid, "2".into()));
        stop.cancel();
    };
    let (worked, ()) = tokio::join!(work, live);
    worked.unwrap();

    machine.must(&["stop", "lakehead"]);
    assert_eq!(
        (machine.show("Result"), machine.show("ExecMainStatus")),
        ("success".into(), "0".into())
    );

    // A mistake in the configuration is named, in the unit's log, with its place.
    let site = etc.join("site.toml");
    let good = fs::read_to_string(&site).unwrap();
    fs::write(&site, good.replace("object_age", "object_agee")).unwrap();
    machine.systemctl(&["start", "lakehead"]).unwrap_err();
    assert_eq!(machine.show("ExecMainStatus"), "2");
    let log = machine.log();
    assert!(log.contains("/etc/lakehead/site.toml") && log.contains("object_agee"), "{log}");
    machine.must(&["stop", "lakehead"]);
    fs::write(&site, good).unwrap();
    machine.must(&["reset-failed", "lakehead"]);
    machine.must(&["start", "lakehead"]);
    world.caught_up().await;
    machine.must(&["stop", "lakehead"]);
    let public = machine.inside(&["cat", "/var/lib/lakehead/identity.pub"]).unwrap();
    machine.off();

    // An auditor, elsewhere, who was given the box's public key.
    disk::create_dir(&world.site.data_dir()).unwrap();
    disk::write_durably(&world.site.data_dir().join("identity.pub"), public.as_bytes()).unwrap();
    world.gateway = world.outside();
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// The configuration and secrets of the box, as its administrator puts them there.
fn install(world: &World, etc: &Path) {
    let credentials = "${CREDENTIALS_DIRECTORY}/";
    let here = format!("{}/", world.site.dir.display());
    let text = world.site.text(WRITER).replace(&here, credentials);
    let text = text.replace(&format!("{credentials}data"), "/var/lib/lakehead");
    let secret = etc.join("secret");
    disk::create_dir(&secret).unwrap();
    disk::write_durably(&etc.join("site.toml"), text.as_bytes()).unwrap();
    let mut drop_in = String::from("[Service]\nWatchdogSec=10\n");
    for name in ["source.password", "lake.key", WRITER] {
        fs::copy(world.site.dir.join(name), secret.join(name)).unwrap();
        drop_in += &format!("LoadCredential={name}:/etc/lakehead/secret/{name}\n");
    }
    disk::write_durably(&etc.join("site.conf"), drop_in.as_bytes()).unwrap();
}

/// A Debian that runs.
struct Machine {
    nspawn: Child,
    /// Its process 1, as this machine counts.
    leader: String,
}

impl Machine {
    /// Boots [`root`], with the unit installed and the configuration in `etc`.
    fn boot(etc: &Path) -> Self {
        let mut command = Command::new("systemd-nspawn");
        command.args(["--quiet", "--register=no", "--keep-unit", "--volatile=overlay", "--boot"]);
        command.args(["--machine=lakehead-unit-test", "--console=pipe"]);
        command.arg(format!("--directory={}", root().display()));
        let drop_in = etc.join("site.conf");
        for (from, to) in [
            (Path::new(env!("CARGO_BIN_EXE_lakehead")), "/usr/bin/lakehead"),
            (&repository("lakehead.service"), "/etc/systemd/system/lakehead.service"),
            (&drop_in, "/etc/systemd/system/lakehead.service.d/site.conf"),
            (&repository("lakehead.sysusers"), "/usr/lib/sysusers.d/lakehead.conf"),
            (&repository("lakehead.tmpfiles"), "/usr/lib/tmpfiles.d/lakehead.conf"),
        ] {
            command.arg(format!("--bind-ro={}:{to}", from.display()));
        }
        command.arg(format!("--bind={}:/etc/lakehead", etc.display()));
        let log = fs::File::create(etc.join("boot.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let nspawn = command.spawn().expect("systemd-nspawn: apt install systemd-container");
        let mut machine = Self { nspawn, leader: String::new() };
        for _ in 0..BOOT_TICKS {
            std::thread::sleep(TICK);
            let pid = machine.nspawn.id();
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            machine.leader = children.unwrap_or_default().trim().into();
            let up = machine.systemctl(&["is-system-running"]);
            if up.is_ok_and(|state| state.trim() == "running") {
                return machine;
            }
        }
        let log = fs::read_to_string(etc.join("boot.log")).unwrap_or_default();
        panic!("it does not boot:\n{log}");
    }

    /// Runs a command inside. `Err`: it did not end well, and what it said.
    fn inside(&self, words: &[&str]) -> Result<String, String> {
        let output = self.enter().args(words).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(said(&output.stdout)),
            false => Err(said(&output.stdout) + &said(&output.stderr)),
        }
    }

    fn enter(&self) -> Command {
        let mut command = Command::new(ENTER[0]);
        command.args(&ENTER[1..]).arg(format!("--target={}", self.leader)).arg("--");
        command
    }

    fn systemctl(&self, words: &[&str]) -> Result<String, String> {
        self.inside(&[&["systemctl"], words].concat())
    }

    /// Has systemd do something with the unit that must succeed.
    fn must(&self, words: &[&str]) {
        if let Err(said) = self.systemctl(words) {
            panic!("systemctl {words:?}: {said}\n{}", self.log());
        }
    }

    /// The unit's last lines in the journal.
    fn log(&self) -> String {
        let words = ["journalctl", "--unit=lakehead", "--lines=40", "--no-pager"];
        self.inside(&words).unwrap_or_else(|said| said)
    }

    /// A property of the unit.
    fn show(&self, property: &str) -> String {
        let property = format!("--property={property}");
        let shown = self.systemctl(&["show", "--value", &property, "lakehead"]).unwrap();
        shown.trim().into()
    }

    /// Waits until it has begun anew by itself, and is ready.
    async fn began_anew(&self) {
        for _ in 0..RESTART_TICKS {
            if let Some((_, since)) = self.log().rsplit_once("beginning anew with it")
                && since.contains("the road is open")
            {
                return;
            }
            tokio::time::sleep(TICK).await;
        }
        panic!("it does not begin anew:\n{}", self.log());
    }

    /// Waits until systemd has restarted it so often, and it is ready.
    async fn restarted(&self, times: &str) {
        for _ in 0..RESTART_TICKS {
            if self.show("NRestarts") == times && self.show("ActiveState") == "active" {
                return;
            }
            tokio::time::sleep(TICK).await;
        }
        panic!("it was not restarted {times} times:\n{}", self.log());
    }

    /// It runs as its own user, without rights, behind the filter of system calls.
    fn assert_confined(&self) {
        let status = format!("/proc/{}/status", self.show("MainPID"));
        let status = self.inside(&["cat", &status]).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().to_owned()
        };
        let user = self.inside(&["id", "--user", "lakehead"]).unwrap();
        assert_eq!(field("Uid:"), user.trim());
        assert_ne!(field("Uid:"), "0");
        for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(name), "0000000000000000", "{name}");
        }
        assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()));
        let data = self.inside(&["stat", "--format=%U %a", "/var/lib/lakehead"]).unwrap();
        assert_eq!(data.trim(), "lakehead 700");
    }

    /// The gateway, as somebody at the box's shell talks to it.
    fn gateway(&self, world: &World) -> Gateway {
        let config = Path::new("/etc/lakehead/site.toml");
        let log = world.dir.join("gateway.log");
        let mut gateway = Gateway::new(Path::new("/usr/bin/lakehead"), config, &log, SOURCE);
        let target = format!("--target={}", self.leader);
        gateway.wrap(&[ENTER, &[target.as_str(), "--"]].concat());
        gateway
    }

    /// Shuts it down.
    fn off(mut self) {
        self.systemctl(&["poweroff"]).ok();
        self.nspawn.wait().unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(None) = self.nspawn.try_wait() {
            // With its process 1 all that runs inside ends.
            if let Ok(leader) = self.leader.parse() {
                kill(Pid::from_raw(leader), Signal::SIGKILL).ok();
            }
            self.nspawn.kill().ok();
            self.nspawn.wait().ok();
        }
    }
}

fn repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}

/// The Debian that `make unit-test` unpacks.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/unit/root")
}

const ENTER: &[&str] = &["nsenter", "--mount", "--uts", "--ipc", "--net", "--pid"];
const TICK: Duration = Duration::from_millis(500);
const BOOT_TICKS: u32 = 240;
const RESTART_TICKS: u32 = 120;
