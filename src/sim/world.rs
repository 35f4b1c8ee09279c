//! The world around the boxes: it commits, kills, cuts, fills and jumps as the seed says, then lets all heal
//! and looks whether everything arrived.
//!
//! One task, one thread, a clock that only moves when everybody waits. **Invariant:** nothing here asks the
//! machine for time, threads, files or chance.

use std::{
    collections::BTreeMap,
    io::Write,
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use futures_util::{StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    Outcome,
    appliance::{End, JOURNAL_DIR, SPOOL_DIR, SimClock, Site},
    bucket::Who,
    chain::{PREFIX, SOURCE},
    chronicle::Chronicle,
    disk::ModelDisk,
    fuse::Fuse,
    lake::{ModelLake, Weather},
    lock,
    oracle::Oracle,
    plan::{Act, Plan},
    planted::Planted,
    server::{ModelServer, TABLES},
    session::{Manners, serve},
    workload::Workload,
};
use crate::{
    ledger::{Audit, IdentityKey, audit},
    source::postgres::name::Names,
};

/// The world of one seed.
struct World {
    chronicle: Chronicle,
    random: fastrand::Rng,
    plan: Plan,
    planted: Option<Planted>,
    server: ModelServer,
    lake: ModelLake,
    oracle: Oracle,
    sites: Vec<Arc<Site>>,
    /// Of each box: the fuse of the life it has, or when the next begins; `None`: it stays down.
    lives: Vec<Life>,
    running: FuturesUnordered<LocalBoxFuture<'static, (Who, End)>>,
    sessions: FuturesUnordered<LocalBoxFuture<'static, ()>>,
    /// What ends by itself: when, and what.
    heals: BTreeMap<(Instant, u64), Heal>,
    heal_keys: u64,
    workload: Workload,
}

/// Where a box is.
enum Life {
    Down(Option<Instant>),
    Up(Fuse, CancellationToken),
    Fenced,
}

/// What a passing fault is followed by.
enum Heal {
    Disk(Who),
    Server,
    Weather,
}

/// Runs one seed.
pub(super) async fn run(
    seed: u64,
    planted: Option<Planted>,
    shown: Option<Box<dyn Write + Send>>,
) -> Outcome {
    let mut world = World::new(seed, planted, shown);
    Box::pin(world.chaos()).await;
    if !world.chronicle.is_broken() {
        Box::pin(world.peace()).await;
    }
    let (steps, hash) = world.chronicle.sum();
    Outcome { seed, steps, hash, violation: world.chronicle.broken() }
}

impl World {
    fn new(seed: u64, planted: Option<Planted>, shown: Option<Box<dyn Write + Send>>) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        // The road's own jitter.
        fastrand::seed(random.u64(..));
        let plan = Plan::draw(&mut random);
        let chronicle = Chronicle::new(shown);
        chronicle.note(format_args!("seed {seed}: {plan:?}"));
        let server = ModelServer::new(chronicle.clone(), random.u64(..));
        let oracle = Oracle::new(chronicle.clone(), server.clone());
        let lake = ModelLake::new(chronicle.clone(), oracle.clone(), random.u64(..));
        let mut sites = vec![];
        for who in 0..plan.boxes {
            let name = ["plant7-a", "plant7-b"][who];
            let slot = Names::new(name, &plan.setup.source).slot;
            oracle.admit(name, slot, plan.release);
            sites.push(Arc::new(Site {
                who,
                name,
                setup: plan.setup.clone(),
                disk: ModelDisk::new(name, chronicle.clone(), planted, random.u64(..)),
                key: IdentityKey::from_seed(&[u8::try_from(who + 1).unwrap_or(1); 32]),
                server: server.clone(),
                lake: lake.clone(),
                oracle: oracle.clone(),
                planted,
                clock: SimClock::new(),
                head: Arc::default(),
                gap: Mutex::default(),
                gap_allowed: false.into(),
            }));
        }
        let keys: Vec<_> = sites.iter().map(|site| site.key.public()).collect();
        oracle.trust(&keys);
        let now = Instant::now();
        let starts = |random: &mut fastrand::Rng, who| match who {
            0 => now,
            _ => now + Duration::from_millis(random.u64(..8_000)),
        };
        let lives = (0..sites.len()).map(|who| Life::Down(Some(starts(&mut random, who))));
        let lives = lives.collect();
        Self {
            chronicle,
            random,
            plan,
            planted,
            server,
            lake,
            oracle,
            sites,
            lives,
            running: FuturesUnordered::new(),
            sessions: FuturesUnordered::new(),
            heals: BTreeMap::new(),
            heal_keys: 0,
            workload: Workload::default(),
        }
    }

    /// Lets things happen until `until`, or something is broken.
    async fn pass(&mut self, until: Instant) {
        while !self.chronicle.is_broken() {
            self.begin_lives();
            while let Some(arrival) = self.server.arrival() {
                let manners = Manners { resends: self.plan.resends, planted: self.planted };
                let (server, oracle) = (self.server.clone(), self.oracle.clone());
                let served = serve(server, oracle, manners, arrival, self.random.u64(..));
                self.sessions.push(Box::pin(served));
            }
            let next = self.next_moment(until);
            let (any_running, any_session) = (!self.running.is_empty(), !self.sessions.is_empty());
            tokio::select! {
                biased;
                Some((who, end)) = self.running.next(), if any_running => self.ended(who, end),
                Some(()) = self.sessions.next(), if any_session => {}
                () = self.server.arrived.notified() => {}
                () = sleep_until(next) => {
                    self.lake.pump();
                    self.heal_due();
                    if next >= until {
                        return;
                    }
                }
            }
            self.lake.pump();
        }
    }

    fn next_moment(&self, until: Instant) -> Instant {
        let starts = self.lives.iter().filter_map(|life| match life {
            Life::Down(start) => *start,
            Life::Up(..) | Life::Fenced => None,
        });
        let heal = self.heals.keys().next().map(|(at, _)| *at);
        starts.chain(heal).fold(until, Instant::min)
    }

    fn begin_lives(&mut self) {
        let now = Instant::now();
        for who in 0..self.sites.len() {
            let Life::Down(Some(start)) = self.lives[who] else { continue };
            if start > now {
                continue;
            }
            let (fuse, stop) = (Fuse::default(), CancellationToken::new());
            let (site, seed) = (Arc::clone(&self.sites[who]), self.random.u64(..));
            self.chronicle.note(format_args!("{} starts", site.name));
            self.lives[who] = Life::Up(fuse.clone(), stop.clone());
            let life = async move { (site.who, site.live(fuse, stop, seed).await) };
            self.running.push(Box::pin(life));
        }
    }

    /// A life has ended.
    fn ended(&mut self, who: Who, end: End) {
        let site = Arc::clone(&self.sites[who]);
        self.chronicle.note(format_args!("{} ended: {end:?}", site.name));
        self.lives[who] = match end {
            End::Fenced(why) => {
                if self.plan.boxes == 1 {
                    self.chronicle.violated("FENCED", format!("by nobody: {why}"));
                }
                Life::Fenced
            }
            End::Killed | End::Stopped | End::Failed(_) => {
                if self.random.u8(..5) < 2 {
                    site.disk.cut_power();
                }
                site.disk.rot(Path::new(SPOOL_DIR));
                let pause = Duration::from_millis(self.random.u64(50..3_000));
                Life::Down(Some(Instant::now() + pause))
            }
        };
    }

    fn heal_due(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.heals.first_entry().filter(|entry| entry.key().0 <= now) {
            match entry.remove() {
                Heal::Disk(who) => self.sites[who].disk.limit(None),
                Heal::Server => self.server.set_up(true),
                Heal::Weather => self.lake.set_weather(Weather::default()),
            }
        }
    }

    fn heal_after(&mut self, most_ms: u64, heal: Heal) {
        let at = Instant::now() + Duration::from_millis(self.random.u64(300..most_ms));
        self.heal_keys += 1;
        self.heals.insert((at, self.heal_keys), heal);
    }

    /// The time of accidents.
    async fn chaos(&mut self) {
        let end = Instant::now() + self.plan.chaos;
        while Instant::now() < end && !self.chronicle.is_broken() {
            let pause = Duration::from_millis(self.random.u64(1..self.plan.pace_ms));
            self.pass(Instant::now() + pause).await;
            let act = self.plan.act(&mut self.random);
            self.act(act);
        }
    }

    fn act(&mut self, act: Act) {
        let who = self.random.usize(..self.sites.len());
        let site = Arc::clone(&self.sites[who]);
        match act {
            Act::Commit => {
                for _ in 0..self.random.u8(1..4) {
                    self.commit();
                }
            }
            Act::Grow => {
                let bytes = self.random.u64(8..3_000);
                self.server.with(|state| state.grow(bytes));
            }
            Act::Alter => {
                let table = self.random.usize(..TABLES);
                self.server.with(|state| state.alter(table));
            }
            Act::Kill => {
                if let Life::Up(fuse, _) = &self.lives[who] {
                    fuse.light(self.random.u64(..60));
                }
            }
            Act::Stop => {
                if let Life::Up(_, stop) = &self.lives[who] {
                    self.chronicle.note(format_args!("{} is asked to stop", site.name));
                    stop.cancel();
                }
            }
            Act::BreakSync => site.disk.break_sync(),
            Act::FillDisk => {
                site.disk.limit(Some(self.random.u64(..40_000)));
                self.heal_after(6_000, Heal::Disk(who));
            }
            Act::Weather => {
                self.lake.set_weather(self.plan.weather(&mut self.random));
                self.heal_after(8_000, Heal::Weather);
            }
            Act::Cut => self.server.cut_sessions(false),
            Act::Crash => {
                self.server.set_up(false);
                let crash = self.random.bool();
                self.server.cut_sessions(crash);
                self.heal_after(6_000, Heal::Server);
            }
            Act::Jump => {
                let seconds = self.random.i64(-10_000..10_000);
                self.chronicle.note(format_args!("{}: the clock jumps {seconds} s", site.name));
                site.clock.jump(seconds * 1_000_000);
            }
            Act::Promote => {
                let lost = if self.random.bool() { 0 } else { self.random.usize(1..4) };
                let slots = self.random.u8(..4) > 0;
                if lost > 0 || !slots {
                    self.allow_gaps();
                }
                self.server.promote(lost, slots);
            }
            Act::Restore => self.restore(),
            Act::LoseSlot => {
                self.allow_gaps();
                let slot = Names::new(site.name, &site.setup.source).slot;
                match self.random.bool() {
                    true => self.server.with(|state| state.lose_slot(&slot)),
                    false => self.server.drop_slot(&slot),
                }
                self.server.cut_sessions(false);
            }
        }
    }

    fn commit(&mut self) {
        self.workload.commit(&self.server, &mut self.random);
    }

    fn restore(&mut self) {
        self.allow_gaps();
        let (lost, slots) = (self.random.usize(1..6), self.random.bool());
        self.server.restore(lost, slots);
    }

    fn allow_gaps(&self) {
        self.sites.iter().for_each(|site| site.gap_allowed.store(true, Ordering::Relaxed));
    }

    // ---- all heals ----

    /// Faults stop; everything has to arrive, and nothing to be left over.
    async fn peace(&mut self) {
        self.chronicle.note(format_args!("peace"));
        self.heals.clear();
        self.lake.set_weather(Weather::default());
        self.server.set_up(true);
        self.sites.iter().for_each(|site| site.disk.heal());
        self.commit();
        let mut why = String::new();
        for look in 0..DRAIN_LOOKS {
            if look % 8 == 7 {
                // A box that has nothing to write cannot find out that it may not; one that made its slot
                // just now has nothing to write. One that waits for a log to grow waits for more.
                self.server.with(|state| state.grow(10_000));
                self.commit();
            }
            self.pass(Instant::now() + Duration::from_secs(1)).await;
            if self.chronicle.is_broken() {
                return;
            }
            match self.arrived() {
                Ok(()) => return Box::pin(self.tidied()).await,
                Err(what) => why = what,
            }
        }
        self.chronicle.violated("LIVENESS", why);
    }

    /// Whether everything committed is in the ledger, and all but its owner are fenced; or a gap was said.
    fn arrived(&self) -> Result<(), String> {
        if self.lake.under_way() > 0 {
            return Err("requests are under way".into());
        }
        if self.sites.iter().any(|site| lock(&site.gap).is_some()) {
            return Ok(());
        }
        let owner = self.oracle.complete()?;
        for (who, life) in self.lives.iter().enumerate() {
            if who != owner && !matches!(life, Life::Fenced) {
                return Err(format!("{} is not fenced", self.sites[who].name));
            }
        }
        Ok(())
    }

    /// Another start, long after: nothing is left of uploads and spool, and the audit finds it whole.
    async fn tidied(&mut self) {
        let mut why = String::new();
        for look in 0..TIDY_LOOKS {
            if look % TIDY_EVERY == 0 {
                self.restart_all();
            }
            self.pass(Instant::now() + Duration::from_secs(1)).await;
            if self.chronicle.is_broken() {
                return;
            }
            match self.left_over() {
                None => return Box::pin(self.audited()).await,
                Some(what) => why = what,
            }
        }
        self.chronicle.violated("I21", why);
    }

    /// A day has passed, and all boxes start again. (A start gives back the uploads of objects that are not
    /// under way, so that one may not be enough.)
    fn restart_all(&mut self) {
        self.lake.age(Duration::from_secs(24 * 3_600));
        for who in 0..self.sites.len() {
            self.sites[who].clock.jump(24 * 3_600_000_000);
            match &self.lives[who] {
                Life::Up(fuse, _) => fuse.die(),
                Life::Down(_) => {}
                Life::Fenced => self.lives[who] = Life::Down(Some(Instant::now())),
            }
        }
    }

    /// What should not be there any more.
    fn left_over(&self) -> Option<String> {
        if self.lake.under_way() > 0 {
            return Some("requests are under way".into());
        }
        if let Some((id, key)) = self.lake.uploads().first() {
            return Some(format!("upload {id} of {key} is open"));
        }
        if self.sites.iter().any(|site| lock(&site.gap).is_some()) {
            return None;
        }
        let owner = self.oracle.owner()?;
        let site = &self.sites[owner];
        let spooled = site.disk.count(Path::new(SPOOL_DIR));
        let segments = site.disk.count(Path::new(JOURNAL_DIR));
        (spooled > 0 || segments > 3)
            .then(|| format!("{spooled} spool files and {segments} files of the journal are left"))
    }

    /// `lakehead verify` finds the chain whole, and its head is the one that its owner remembers.
    async fn audited(&mut self) {
        let Some(owner) = self.oracle.owner() else { return };
        let keys: Vec<_> = self.sites.iter().map(|site| site.key.public()).collect();
        let what = Audit { prefix: PREFIX, source: Some(SOURCE), public_keys: &keys, deep: None };
        let head = lock(&self.sites[owner].head).clone();
        let known = |_: &str| head.clone();
        let reports = audit(&self.lake, &what, &known, &mut |_| {}).await;
        match reports.map(|reports| reports.into_iter().next()) {
            Ok(Some(report)) => {
                // As `chain` does, with two boxes.
                let judged = |key: &str| self.sites.len() < 2 || !key.contains("/_schema/");
                if let Some(damage) = report.damage.filter(|damage| judged(&damage.key)) {
                    self.chronicle.violated("VERIFY", format!("{damage:?}"));
                }
                self.chronicle.note(format_args!("verified {} entries", report.entries));
            }
            other => self.chronicle.violated("VERIFY", format!("{other:?}")),
        }
    }
}

/// Seconds in which everything must have arrived.
const DRAIN_LOOKS: u32 = 600;
/// Seconds in which nothing must be left over.
const TIDY_LOOKS: u32 = 300;
/// Seconds between two starts.
const TIDY_EVERY: u32 = 100;
