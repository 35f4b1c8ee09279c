//! How each fault strikes, and how all heals.

use std::time::Duration;

use lakehead::{
    demo::{
        cluster::{SUPERUSER, Stop},
        ground::random_hex,
        proxy::Way,
        s3::{self, Role},
        site::Key,
    },
    error::Cause,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{task::block_in_place, time::sleep};

use super::{
    faults::{Call, Credentials, Fault, Lane, Plan},
    site::{Site, filler},
};
use crate::harness::{SLOT, SOURCE};

impl Site {
    /// Lets the faults strike, each at its moment, on top of those that still last.
    pub(super) async fn strike(&mut self, plan: Plan) {
        plan.refusals.into_iter().for_each(|rule| self.world.bucket.double.fault(rule));
        let (mut past, mut healing) = (Duration::ZERO, Duration::ZERO);
        for (at, fault) in plan.faults {
            sleep(at.saturating_sub(past)).await;
            past = at;
            let lasts = self.apply(fault).await;
            healing = healing.max(at + lasts);
            self.revive();
        }
        sleep(healing.saturating_sub(past) + Duration::from_millis(200)).await;
    }

    /// Begins a fault; how long it lasts.
    async fn apply(&mut self, fault: Fault) -> Duration {
        match fault {
            Fault::Kill => self.world.gateway.kill(),
            Fault::KillTwice(between) => {
                self.world.gateway.kill();
                self.start(&[]);
                sleep(between).await;
                self.world.gateway.kill();
            }
            Fault::Terminate => {
                // It may have begun just now.
                for _ in 0..50 {
                    if self.world.gateway.hears() {
                        break;
                    }
                    sleep(Duration::from_millis(100)).await;
                }
                let code = self.world.gateway.stop().await;
                assert!(code == Some(0) || self.doomed, "SIGTERM: {code:?}");
            }
            Fault::Freeze(long) => {
                self.signal(Signal::SIGSTOP);
                sleep(long).await;
                self.signal(Signal::SIGCONT);
            }
            Fault::Call(call) => self.doom(call),
            Fault::Way(lane, way, long) => {
                self.lane(lane).set(way);
                return long;
            }
            Fault::Cut(lane) => self.lane(lane).cut(),
            Fault::Lake(rule, long) => {
                self.world.bucket.double.fault(rule);
                return long;
            }
            Fault::Credentials(how, long) => {
                self.refuse_keys(how);
                return long;
            }
            Fault::StoreClock(ahead_s, long) => {
                self.world.bucket.skew(ahead_s);
                return long;
            }
            Fault::BoxClock(ahead_s) => {
                // Else the store does not look at the time.
                self.world.bucket.skew(1);
                self.set_clock(ahead_s);
            }
            Fault::Server(how) => {
                block_in_place(|| self.world.cluster.restart(how)).unwrap();
            }
            Fault::Failover { slot } => self.fail_over(slot).await,
            Fault::SlotDropped => self.drop_slot().await,
            Fault::Filled(room_bytes) => self.fill(room_bytes).await,
            Fault::Crowded(long) => {
                let small = self.disk.as_ref().unwrap();
                for _ in 0..long.as_millis() / 20 {
                    small.leave(0);
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
        Duration::ZERO
    }

    /// Starts the gateway if it is not there. One that was to meet an error of the disk may have ended.
    fn revive(&mut self) {
        if let Some(code) = self.world.gateway.ended() {
            assert!(self.doomed, "ended with {code}:\n{}", self.world.gateway.log_end());
            assert_ne!(code, 3, "fenced:\n{}", self.world.gateway.log_end());
        }
        if self.world.gateway.pid().is_none() {
            self.doomed = false;
            self.start(&[]);
        }
    }

    /// Takes every fault away, but for a disk that changes have filled.
    pub(super) fn heal(&mut self, filled: bool, patient: bool) {
        self.world.bucket.double.heal();
        if !patient {
            self.lane(Lane::Lake).cut();
        }
        self.world.bucket.skew(0);
        self.set_clock(0);
        let lake = &self.world.site.lake;
        lake.write(&self.world.site.dir).unwrap();
        self.world
            .bucket
            .double
            .set_keys(vec![known(&lake.reader, Role::Reader), known(&lake.writer, Role::Writer)]);
        for lane in [Lane::Source, Lane::Lake] {
            self.lane(lane).set(Way::Open);
        }
        if let (Some(small), false) = (&self.disk, filled) {
            small.relieve();
        }
        if self.doomed {
            // Its calls could fail still.
            self.world.gateway.kill();
        }
        self.revive();
    }

    /// The gateway starts anew, and meets what the call answers.
    fn doom(&mut self, call: Call) {
        self.world.gateway.kill();
        // The tracer is a grandchild: the child is the gateway itself.
        let words = ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e"];
        let (trace, inject) = (format!("trace={}", call.name), call.injection());
        self.start(&[&words[..], &[&trace, "-e", &inject]].concat());
        self.doomed = true;
    }

    /// The primary is lost, and the standby takes its place: with the slot, everything is in order; without
    /// it the last changes may be lost, too.
    async fn fail_over(&mut self, slot: bool) {
        let mut standby = self.standby.take().unwrap();
        if slot {
            self.await_follower().await;
        }
        block_in_place(|| {
            if slot {
                // Ends when the standby has all.
                self.world.cluster.stop(Stop::Fast);
                standby.stop(Stop::Fast);
                standby.copy_slot(&self.world.cluster, SLOT).unwrap();
                standby.start().unwrap();
            } else {
                self.world.cluster.stop(Stop::Immediate);
                self.gaps += 1;
            }
            std::mem::replace(&mut self.world.cluster, standby).remove().unwrap();
        });
        let admin = self.world.admin().await;
        admin.batch_execute("SELECT pg_promote(true, 60)").await.unwrap();
        self.turn_to_primary();
    }

    /// Waits until the standby follows: after a restart of the primary it has to come back first.
    async fn await_follower(&self) {
        let admin = self.world.admin().await;
        let follows = format!(
            "SELECT FROM pg_stat_replication WHERE usename = '{SUPERUSER}' AND state = 'streaming'"
        );
        for _ in 0..600 {
            if admin.query(&follows, &[]).await.unwrap().len() == 1 {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("the standby does not follow");
    }

    /// Whoever reads from the slot is sent away, and the slot goes.
    async fn drop_slot(&mut self) {
        let admin = self.world.admin().await;
        let away = format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
             WHERE slot_name = '{SLOT}' AND active"
        );
        let drop = format!("SELECT pg_drop_replication_slot('{SLOT}')");
        for _ in 0..1000 {
            admin.batch_execute(&away).await.unwrap();
            if admin.batch_execute(&drop).await.is_ok() {
                self.gaps += 1;
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("the slot cannot be dropped");
    }

    /// Nothing is shipped, and changes come until there is no room for them.
    async fn fill(&mut self, room_bytes: u64) {
        if self.doomed {
            // It would end before the disk is full.
            self.world.gateway.kill();
            self.revive();
        }
        self.lane(Lane::Lake).set(Way::Refuse);
        self.lane(Lane::Source).set(Way::Open);
        let disk = self.disk.as_ref().unwrap();
        // What is left is beside the reserve, which a box that starts makes anew.
        let reserve = disk.outside().join("journal").join(SOURCE).join("reserve");
        for _ in 0..100 {
            if reserve.exists() {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        disk.leave(room_bytes);
        for _ in 0..FILL_TURNS {
            let shop = self.world.shop().await;
            shop.batch_execute(&filler(20)).await.unwrap();
            let status = self.world.status().await;
            if status.alarms.values().any(|alarm| alarm.cause == Cause::DiskFull.name()) {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("the disk does not fill: {:#?}", self.world.status().await);
    }

    /// The store refuses the box's credentials.
    fn refuse_keys(&mut self, how: Credentials) {
        let lake = &mut self.world.site.lake;
        let expired = s3::Key { expired: true, ..known(&lake.writer, Role::Writer) };
        let mut keys = vec![known(&lake.reader, Role::Reader)];
        match how {
            Credentials::Unknown => {}
            Credentials::Expired => keys.push(expired),
            Credentials::Replaced => {
                keys.push(expired);
                let secret = random_hex().unwrap();
                lake.writer = Key { id: format!("DEMO{}", &secret[..8]), secret };
                keys.push(known(&lake.writer, Role::Writer));
            }
        }
        self.world.bucket.double.set_keys(keys);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.world.gateway.pid() {
            kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
        }
    }
}

fn known(key: &Key, role: Role) -> s3::Key {
    s3::Key::new(&key.id, &key.secret, role)
}

/// The disk is much smaller.
const FILL_TURNS: u32 = 100;
