//! `lakehead run`: the gateway, between the signals and the watchdog.
//!
//! **Invariant:** from SIGTERM to the end are at most [`STOP_TIME_MAX`] and a moment, whatever hangs:
//! an end at any moment is a normal one, and the next start recovers. A reload is such an end, and a start in the same
//! process: whatever hangs does not outlive it either.

use std::{
    env, ffi::CString, future::Future, io, os::unix::ffi::OsStringExt, path::Path, pin::Pin,
    sync::Arc, time::Duration,
};

use nix::{
    sys::{
        prctl,
        signal::{SigSet, Signal as Number},
    },
    unistd::execv,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{Failure, Global, check, journal, service::Service};
use crate::{
    clock::{Clock, SystemClock},
    config::{self, Config},
    disk,
    error::{Cause, Classified, Exit},
    heap, pipeline,
    shutdown::Tasks,
    status::{admin, listen},
    telemetry::{board::Board, heartbeat::Heartbeat, process::Usage, report::Reporter},
};

pub(super) async fn run(global: &Global) -> Result<Exit, Failure> {
    let mut signals = Signals::new().map_err(|why| Failure::system("listen to signals", &why))?;
    // Begun anew it has the name of the link by which it was.
    prctl::set_name(c"lakehead").ok();
    // One that came while this process began anew waits for us.
    hangup().thread_unblock().ok();
    let config = global.config()?;
    let data_dir = config.appliance.data_dir.clone();
    disk::create_dir(&data_dir)
        .map_err(|why| Failure::system(&format!("make data_dir {}", data_dir.display()), &why))?;
    // Held before the admin socket is replaced: it may be a running gateway's.
    let _hold = journal::hold(&config)?;
    let version = env!("CARGO_PKG_VERSION");
    let sources = config.sources.len();
    tracing::info!(appliance = config.appliance.name, version, sources, "lakehead starts");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (board, heartbeat) = (Board::default(), Heartbeat::default());
    let name = &config.appliance.name;
    let reporter =
        Arc::new(Reporter::new(name, board.clone(), heartbeat.clone(), Arc::clone(&clock)));
    let side = Tasks::new();
    admin::serve(&data_dir, Arc::clone(&reporter), &side)?;
    if let Some(status) = &config.status {
        side.spawn(page(status.clone(), data_dir, Arc::clone(&reporter), side.clone()));
    }
    let (tell_ready, ready) = oneshot::channel();
    let tasks = Tasks::new();
    let road = Road {
        config: config.clone(),
        board,
        clock: Arc::clone(&clock),
        heartbeat: heartbeat.clone(),
        tasks: tasks.clone(),
        ready: tell_ready,
    };
    let mut gateway = Gateway {
        config,
        site: &global.config,
        clock,
        reporter,
        service: Service::new(heartbeat),
        road: Box::pin(travel(road)),
        tasks,
    };
    let outcome = gateway.go(&mut signals, ready).await;
    timeout(SIDE_TIME_MAX, side.stop()).await.ok();
    if outcome? == Then::End {
        return Ok(Exit::Done);
    }
    // Who asked for the end while the road stopped is not to be forgotten by who begins anew.
    if let Ok(signal) = timeout(LAST_LOOK, signals.end()).await {
        tracing::info!(signal, "stopped, and not beginning anew");
        return Ok(Exit::Done);
    }
    Err(Failure::system("begin anew", &begin_anew()))
}

/// What comes after a road.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Then {
    End,
    Anew,
}

/// The same firmware with the same arguments, in this process: comes back only if it cannot. Locks, sockets and threads
/// end here.
fn begin_anew() -> io::Error {
    let words = env::args_os().map(|word| CString::new(word.into_vec()));
    let Ok(words) = words.collect::<Result<Vec<_>, _>>() else {
        return io::ErrorKind::InvalidInput.into();
    };
    // Without a handler it would end the process, and systemd would take that for a wish.
    if let Err(why) = hangup().thread_block() {
        return why.into();
    }
    match execv(c"/proc/self/exe", &words) {
        Err(why) => why.into(),
    }
}

fn hangup() -> SigSet {
    [Number::SIGHUP].into_iter().collect()
}

/// What the road takes with it.
struct Road {
    config: Config,
    board: Board,
    clock: Arc<dyn Clock>,
    heartbeat: Heartbeat,
    tasks: Tasks,
    ready: oneshot::Sender<()>,
}

async fn travel(road: Road) -> Result<(), Failure> {
    let Road { config, board, clock, heartbeat, tasks, ready } = road;
    Ok(pipeline::run(config, board, clock, heartbeat, tasks, ready).await?)
}

/// The page can wait for its address, which may come later than the gateway; the road cannot.
async fn page(
    status: config::Status,
    data_dir: std::path::PathBuf,
    reporter: Arc<Reporter>,
    side: Tasks,
) {
    let token = side.token();
    while let Err(error) = listen::serve(&status, &data_dir, Arc::clone(&reporter), &side).await {
        tracing::error!(%error, remedy = error.remedy(), "no status page; trying again");
        tokio::select! {
            () = sleep(PAGE_RETRY) => {}
            () = token.cancelled() => return,
        }
    }
}

/// The running process.
struct Gateway<'a> {
    config: Config,
    site: &'a Path,
    clock: Arc<dyn Clock>,
    reporter: Arc<Reporter>,
    service: Service,
    road: Pin<Box<dyn Future<Output = Result<(), Failure>>>>,
    tasks: Tasks,
}

impl Gateway<'_> {
    /// Until the road ends, or a signal ends it.
    async fn go(
        &mut self,
        signals: &mut Signals,
        mut ready: oneshot::Receiver<()>,
    ) -> Result<Then, Failure> {
        let mut every_second = interval(TICK);
        every_second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut waiting, mut since_given_back) = (true, 0);
        loop {
            tokio::select! {
                outcome = &mut self.road => return self.ended(outcome).map(|()| Then::End),
                asked = signals.next() => match asked {
                    Asked::Stop(name) => {
                        tracing::info!(signal = name, "stopping");
                        self.service.stopping();
                        return self.stop().await.map(|()| Then::End);
                    }
                    Asked::Reload if self.has_changed() => {
                        self.service.reloading();
                        return self.stop().await.map(|()| Then::Anew);
                    }
                    Asked::Reload => {}
                },
                told = &mut ready, if waiting => {
                    waiting = false;
                    if told.is_ok() {
                        self.reporter.ready();
                        self.service.ready();
                        tracing::info!("recovered; the road is open");
                    }
                }
                _ = every_second.tick() => {
                    self.reporter.sample();
                    self.service.tick(self.clock.now(), &self.reporter.report());
                    since_given_back += 1;
                    let much = Usage::read().resident_bytes >= MUCH_BYTES;
                    if since_given_back >= if much { GIVE_BACK_MUCH_S } else { GIVE_BACK_S } {
                        since_given_back = 0;
                        drop(tokio::task::spawn_blocking(heap::give_back));
                    }
                }
            }
        }
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        let stopped = timeout(STOP_TIME_MAX, async {
            let ((), outcome) = tokio::join!(self.tasks.stop(), &mut self.road);
            outcome
        });
        match stopped.await {
            Ok(outcome) => {
                tracing::info!("stopped");
                outcome
            }
            Err(_) => {
                tracing::warn!("not all stopped in time; the next start recovers");
                Ok(())
            }
        }
    }

    fn ended(&self, outcome: Result<(), Failure>) -> Result<(), Failure> {
        self.service.stopping();
        if let Err(failure) = &outcome {
            tracing::error!(
                cause = failure.cause,
                "the road ended: {}",
                failure.to_string().trim_end()
            );
        }
        outcome
    }

    /// Whether the configuration is another, and a right one. Secrets are read again by those who use them, whenever they
    /// connect.
    fn has_changed(&self) -> bool {
        let fresh = match Config::load(self.site) {
            Ok(fresh) => fresh,
            Err(wrong) => {
                for (problem, remedy) in wrong.pairs() {
                    tracing::error!(
                        problem,
                        remedy,
                        "the new configuration is wrong: the old one stays"
                    );
                }
                return false;
            }
        };
        let changed = changes(&self.config, &fresh);
        let obstacle = (!changed.is_empty()).then(|| self.obstacle(&fresh)).flatten();
        if let Some((problem, remedy)) = obstacle {
            tracing::error!(
                problem,
                remedy,
                "nothing could run with the new configuration: the old one stays"
            );
            return false;
        }
        match changed.as_slice() {
            [] => {
                tracing::info!(
                    "the configuration is unchanged; passwords, client certificates and credentials are read as they are used"
                );
                false
            }
            tables => {
                let tables = tables.join(" ");
                tracing::info!(tables, "the configuration has changed: beginning anew with it");
                true
            }
        }
    }

    /// Why a start with this configuration would end at once, and what to do.
    fn obstacle(&self, fresh: &Config) -> Option<(String, String)> {
        let data_dir = &fresh.appliance.data_dir;
        if let Err(what) = check::may_write(data_dir) {
            let what = format!("data_dir {}: {what}", data_dir.display());
            return Some((what, Cause::Config.disposition().remedy().into()));
        }
        let wrong = pipeline::openable(fresh, &self.clock).err()?;
        Some((wrong.to_string(), wrong.remedy()))
    }
}

/// Which tables of the file differ.
fn changes(old: &Config, new: &Config) -> Vec<&'static str> {
    // Taken apart, so that no table that is added can be forgotten.
    let Config { appliance, sources, lake, encryption, journal, seal, ship, link, status } = old;
    [
        ("[appliance]", *appliance != new.appliance),
        ("[[source]]", *sources != new.sources),
        ("[lake]", *lake != new.lake),
        ("[encryption]", *encryption != new.encryption),
        ("[journal]", *journal != new.journal),
        ("[seal]", *seal != new.seal),
        ("[ship]", *ship != new.ship),
        ("[[link]]", *link != new.link),
        ("[status]", *status != new.status),
    ]
    .into_iter()
    .filter_map(|(table, differs)| differs.then_some(table))
    .collect()
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Asked {
    Stop(&'static str),
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one. Cancel-safe.
    async fn next(&mut self) -> Asked {
        let Self { terminate, interrupt, hangup } = self;
        tokio::select! {
            biased;
            _ = terminate.recv() => Asked::Stop("SIGTERM"),
            _ = interrupt.recv() => Asked::Stop("SIGINT"),
            _ = hangup.recv() => Asked::Reload,
        }
    }

    /// One that asks for the end. Cancel-safe.
    async fn end(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

const TICK: Duration = Duration::from_secs(1);
/// Free memory goes back to the kernel, in ticks, …
const GIVE_BACK_S: u32 = 60;
/// … and of so much as is there at once, of the 256 MiB of DESIGN P4.
const GIVE_BACK_MUCH_S: u32 = 2;
const MUCH_BYTES: u64 = 160 << 20;
/// With the side's and the runtime's: below 5 s, as promised.
const STOP_TIME_MAX: Duration = Duration::from_millis(4000);
const SIDE_TIME_MAX: Duration = Duration::from_millis(300);
/// As the runtime needs to tell of a signal that has come.
const LAST_LOOK: Duration = Duration::from_millis(20);
const PAGE_RETRY: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Environment, error::Cause};

    fn site(dir: &Path) -> String {
        format!(
            "[appliance]\nname = \"a\"\ndata_dir = {dir:?}\n[[source]]\nname = \"erp\"\nkind = \"postgres\"\n\
             url = \"postgresql://u@localhost/d\"\ntables = [\"*\"]\n[lake]\nbucket = \"lake\"\nprefix = \"\"\n\
             region = \"eu-central-1\"\n[encryption]\nmode = \"none\"\n"
        )
    }

    fn config(text: &str) -> Config {
        Config::parse(Path::new("x"), text, &Environment::default()).unwrap()
    }

    fn gateway<'a>(
        site: &'a Path,
        tasks: &Tasks,
        road: impl Future<Output = Result<(), Failure>> + 'static,
    ) -> Gateway<'a> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let heartbeat = Heartbeat::default();
        let reporter = Reporter::new("a", Board::default(), heartbeat.clone(), Arc::clone(&clock));
        Gateway {
            config: config(&self::site(Path::new("/tmp"))),
            site,
            clock,
            reporter: Arc::new(reporter),
            service: Service::new(heartbeat),
            road: Box::pin(road),
            tasks: tasks.clone(),
        }
    }

    #[tokio::test]
    async fn a_stop_waits_for_the_road_and_gives_its_outcome() {
        let tasks = Tasks::new();
        let token = tasks.token();
        let road = async move {
            token.cancelled().await;
            Err(Failure::new(Cause::Fenced, "fenced", "stop one"))
        };
        let outcome = gateway(Path::new("x"), &tasks, road).stop().await;
        assert_eq!(outcome.unwrap_err().exit, Exit::Fenced);
    }

    #[tokio::test]
    async fn a_road_that_hangs_does_not_hold_up_the_stop() {
        let tasks = Tasks::new();
        let begun = SystemClock.now();
        let outcome = gateway(Path::new("x"), &tasks, std::future::pending()).stop().await;
        assert!(outcome.is_ok());
        assert!(SystemClock.now() - begun < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn the_gateway_is_ready_when_the_road_is_and_ends_with_it() {
        let tasks = Tasks::new();
        let (tell_ready, ready) = oneshot::channel();
        let road = async move {
            tell_ready.send(()).ok();
            sleep(Duration::from_millis(50)).await;
            Err(Failure::new(Cause::DiskFailed, "fsync", "replace it"))
        };
        let mut gateway = gateway(Path::new("x"), &tasks, road);
        let mut signals = Signals::new().unwrap();
        assert!(!gateway.reporter.report().ready);
        let outcome = gateway.go(&mut signals, ready).await;
        assert!(gateway.reporter.report().ready);
        assert_eq!(outcome.unwrap_err().exit, Exit::CouldNotRun);
    }

    #[test]
    fn a_reload_names_the_tables_that_differ() {
        let old = site(Path::new("/tmp"));
        assert_eq!(changes(&config(&old), &config(&old)), [""; 0]);
        let new =
            format!("{old}[seal]\nobject_age = \"5 s\"\n[status]\nlisten = \"127.0.0.1:0\"\n");
        assert_eq!(changes(&config(&old), &config(&new)), ["[seal]", "[status]"]);
        let link = "[[link]]\nname = \"dx-1\"\ninterface = \"eth1\"\nrate = \"1 Gbit/s\"\n";
        assert_eq!(changes(&config(&old), &config(&format!("{old}{link}"))), ["[[link]]"]);
    }
}
