//! The command line: every command of the box, its options, and how each of them ends.
//!
//! One file for each command. A command gives its exit code, or a [`Failure`]; this file alone prints
//! failures and starts the runtime.

use std::{
    ffi::OsString, future::Future, path::PathBuf, pin::Pin, process::ExitCode, sync::Arc,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::{failure::Failure, meter::Meter, output::Output};
use crate::{
    clock::{Clock, SystemClock},
    config::{Config, Environment},
    error::Exit,
    heap,
    journal::INDEX_THREADS,
    shutdown::panics,
    telemetry::log,
};

mod adopt;
mod cat;
mod check;
mod demo;
mod failure;
mod journal;
mod output;
mod meter;
mod reading;
mod restore;
mod run;
mod service;
#[cfg(feature = "sim")]
mod simulate;
mod status;
#[cfg(feature = "demo")]
mod store;
mod verify;
mod verify_source;

/// Moves databases into an S3 data lake and proves that nothing was lost.
#[derive(Debug, Parser)]
#[command(name = "lakehead", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 checked and found wanting, 2 could not run, 3 fenced."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
struct Global {
    /// The site's configuration.
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/lakehead/site.toml", help_heading = EVERYWHERE)]
    config: PathBuf,
    /// Answers, and failures, as JSON.
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    json: bool,
    /// No progress on stderr: only warnings, and failures.
    #[arg(long, short, global = true, help_heading = EVERYWHERE)]
    quiet: bool,
    /// How the log is written to stderr; which events, LAKEHEAD_LOG says.
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Auto, help_heading = EVERYWHERE)]
    log_format: LogFormat,
}

/// [`log::Format`], as an option.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people on a terminal, else plain.
    Auto,
    /// With colours where they are wanted.
    Human,
    /// One line for each event, with the whole time.
    Plain,
    /// One JSON object for each event.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway. SIGTERM stops it within 5 s; SIGHUP reads the configuration again, and begins anew with one that is
    /// right and another.
    Run,
    /// Look at everything that `run` needs; each line is ok, or a problem with its remedy.
    #[command(after_help = check::EXAMPLES)]
    Check(check::CheckArgs),
    /// Show what the running gateway does: positions, lag, alarms.
    Status,
    /// Audit the lake from its ledger.
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::VerifyArgs),
    /// Take over the chain of a lost box.
    Adopt(adopt::AdoptArgs),
    /// Print the rows of one object as JSON lines.
    #[command(after_help = cat::EXAMPLES)]
    Cat(cat::CatArgs),
    /// Rebuild a source in a PostgreSQL, at a consistent point.
    #[command(after_help = restore::EXAMPLES)]
    Restore(restore::RestoreArgs),
    /// Look at the journal of a stopped box.
    Journal(journal::JournalArgs),
    /// Show the whole road on this machine: database, gateway, lake, verify and restore.
    Demo(demo::DemoArgs),
    /// The demo's S3 store alone, until SIGTERM: for benches, and tests of an installed box.
    #[cfg(feature = "demo")]
    #[command(hide = true)]
    Store(store::StoreArgs),
    /// Run seeds of the simulation.
    #[cfg(feature = "sim")]
    #[command(hide = true)]
    Simulate(simulate::SimulateArgs),
    /// Print the version.
    Version,
}

/// Reads the arguments, does what they say, and gives the exit code.
pub fn main() -> ExitCode {
    heap::begin();
    panics::begin(&INDEX_THREADS);
    // The enum's numbers are the codes.
    ExitCode::from(ended(std::env::args_os().collect()) as u8)
}

fn ended(arguments: Vec<OsString>) -> Exit {
    let json = arguments.iter().any(|argument| argument == "--json");
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(wrong) if !wrong.use_stderr() => {
            // Help or version were asked for.
            wrong.print().ok();
            return Exit::Done;
        }
        Err(wrong) => {
            match json {
                true => Failure::usage(&wrong).print(true),
                false => drop(wrong.print()),
            }
            return Exit::CouldNotRun;
        }
    };
    let Cli { global, command } = cli;
    let done = match command {
        Command::Version => Ok(version(&global)),
        // It has a runtime of its own.
        #[cfg(feature = "sim")]
        Command::Simulate(args) => simulate::simulate(&global, &args),
        command => with_runtime(&global, command),
    };
    done.unwrap_or_else(|failure| {
        failure.print(global.json);
        failure.exit
    })
}

fn version(global: &Global) -> Exit {
    let version = env!("CARGO_PKG_VERSION");
    global
        .output()
        .tell(&serde_json::json!({ "version": version }), &format!("lakehead {version}"));
    Exit::Done
}

fn with_runtime(global: &Global, command: Command) -> Result<Exit, Failure> {
    global.begin_log(matches!(command, Command::Run))?;
    let threads = std::thread::available_parallelism().map_or(WORKERS_MIN, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.max(WORKERS_MIN))
        .enable_all()
        .build()
        .map_err(|why| Failure::system("start threads", &why))?;
    let done = runtime.block_on(dispatch(global, command));
    // A thread that still works on a disk does not hold up the end: an end at any moment is a normal one.
    runtime.shutdown_timeout(RUNTIME_END_MAX);
    done
}

type Done<'a> = Pin<Box<dyn Future<Output = Result<Exit, Failure>> + 'a>>;

fn dispatch(global: &Global, command: Command) -> Done<'_> {
    match command {
        Command::Run => Box::pin(run::run(global)),
        Command::Check(args) => Box::pin(check::check(global, args)),
        Command::Status => Box::pin(status::status(global)),
        Command::Verify(args) => Box::pin(verify::verify(global, args)),
        Command::Adopt(args) => Box::pin(adopt::adopt(global, args)),
        Command::Cat(args) => Box::pin(cat::cat(global, args)),
        Command::Restore(args) => Box::pin(restore::restore(global, args)),
        Command::Journal(args) => Box::pin(journal::journal(global, args)),
        Command::Demo(args) => Box::pin(demo::demo(global, args)),
        #[cfg(feature = "demo")]
        Command::Store(args) => Box::pin(store::store(global, args)),
        #[cfg(feature = "sim")]
        Command::Simulate(args) => Box::pin(async move { simulate::simulate(global, &args) }),
        Command::Version => Box::pin(async { Ok(version(global)) }),
    }
}

impl Global {
    fn config(&self) -> Result<Config, Failure> {
        Ok(Config::load(&self.config)?)
    }

    fn output(&self) -> Output {
        Output { json: self.json }
    }

    fn meter(&self) -> Meter {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        Meter::new(&clock, self.quiet)
    }

    /// A command's own answer is what its user wants to read: beside it only warnings.
    fn begin_log(&self, gateway: bool) -> Result<(), Failure> {
        let environment = Environment::read();
        let format = match self.log_format {
            LogFormat::Auto => log::Format::Auto,
            LogFormat::Human => log::Format::Human,
            LogFormat::Plain => log::Format::Plain,
            LogFormat::Json => log::Format::Json,
        };
        let quiet = (!gateway).then_some("warn");
        log::begin(format, environment.log.as_deref().or(quiet), !environment.no_color)?;
        Ok(())
    }
}

/// The heading of the options of all commands, behind a command's own.
const EVERYWHERE: &str = "Options of every command";
const WORKERS_MIN: usize = 2;
const RUNTIME_END_MAX: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn exit(line: &str) -> Exit {
        ended(line.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn the_options_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_design_is_there() {
        for line in [
            "run",
            "check --json",
            "check --ddl-script",
            "status",
            "verify --source erp --deep --public-key a.pub --public-key b.pub",
            "verify --source erp --against-source --source-url postgresql://u@h/d --ledger-wait 5min --snapshot-age 1h",
            "adopt",
            "cat raw/erp/public.orders/dt=2026-11-21/x.parquet",
            "restore --source erp --to postgresql://u@h/d --until 16/B374D848",
            "restore --source erp --to postgresql://u@h/d --until 2026-11-21T08:30:00Z --follow",
            "journal check",
            "journal show --source erp",
            "demo --minutes 1",
            "version",
        ] {
            let line = format!("lakehead {line} --config /etc/x.toml");
            let parsed = Cli::try_parse_from(line.split_whitespace());
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn usage_ends_with_2_and_help_with_0() {
        assert_eq!(exit("lakehead"), Exit::CouldNotRun);
        assert_eq!(exit("lakehead dance"), Exit::CouldNotRun);
        assert_eq!(exit("lakehead dance --json"), Exit::CouldNotRun);
        assert_eq!(exit("lakehead restore --source erp"), Exit::CouldNotRun);
        assert_eq!(exit("lakehead --help"), Exit::Done);
        assert_eq!(exit("lakehead version --json"), Exit::Done);
    }

    #[test]
    fn what_a_user_mistypes_in_an_option_is_named() {
        for line in ["--until yesterday", "--until 16-B3"] {
            let line = format!("lakehead restore --source erp --to postgresql://u@h/d {line}");
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
        let line = "lakehead verify --head 7:nothex";
        assert!(Cli::try_parse_from(line.split_whitespace()).is_err());
    }
}
