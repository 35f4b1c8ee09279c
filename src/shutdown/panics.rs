//! Panics: each one ends the process at once, but for those of the journal's index.
//!
//! The index is another's crate, of an alpha version, that panics where it should give an error;
//! it can be made anew from the log at any time (DESIGN §5), so the box shall outlive it. For that
//! the release profile unwinds, and this file does what `panic = "abort"` would do for all the rest.
//!
//! **Invariant:** the hook runs before anything unwinds, so a panic outside [`contain`] and outside
//! the threads given to [`begin`] ends the process whoever would catch it: a task's runtime, a
//! joining thread. The log's last line says where it was; no destructor runs, no file is written.

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    cell::Cell,
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    process, thread,
};

thread_local! {
    /// Whether this thread is inside [`contain`].
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// `work` panicked; it was left where it stood.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it panicked: {0}")]
pub struct Panicked(String);

/// From here on a panic ends the process, with an `error` in the log and SIGABRT; but not one of a
/// thread that has one of these names. For the process's `main`.
pub fn begin(contained_threads: &'static [&'static str]) {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed");
        if is_contained() || contained_threads.contains(&name) {
            tell(info, name, true);
            return;
        }
        if tracing::dispatcher::has_been_set() {
            tell(info, name, false);
        } else {
            before(info);
        }
        process::abort();
    }));
}

/// Runs `work`, and gives its panic back as an error. What it held is dropped as it unwinds.
///
/// # Errors
///
/// It panicked.
pub fn contain<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    let outer = CONTAINED.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(outer);
    outcome.map_err(|payload| Panicked(said(&*payload)))
}

fn is_contained() -> bool {
    // A thread that is ending has no thread-locals any more.
    CONTAINED.try_with(Cell::get).unwrap_or(false)
}

fn tell(info: &PanicHookInfo<'_>, thread: &str, contained: bool) {
    let at = info.location().map(ToString::to_string).unwrap_or_default();
    let what = said(info.payload());
    let trace = Backtrace::capture();
    let trace = (trace.status() == BacktraceStatus::Captured).then(|| trace.to_string());
    if contained {
        tracing::warn!(thread, at, what, trace, "the journal's index panicked");
    } else {
        tracing::error!(
            thread,
            at,
            what,
            trace,
            "a defect: the process ends, the next start recovers"
        );
    }
}

/// What was said, as far as it can hold no value: `expect` and `assert` put those behind a colon or on
/// lines of their own, and the standard library quotes a text that it cannot cut behind a semicolon.
fn said(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("nothing was said");
    let end = [": ", "; ", "\n"].iter().filter_map(|sign| text.find(sign)).min();
    text[..end.unwrap_or(text.len())].into()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::print_stdout, reason = "a child process says that it went on")]

    use std::{
        os::unix::process::ExitStatusExt,
        process::{Command, Output},
        time::Duration,
    };

    use super::*;
    use crate::{shutdown::Tasks, telemetry::log};

    /// The test `name` in a process of its own, in which [`in_child`] is true.
    fn child(name: &str) -> Output {
        let name = format!("{}::{name}", module_path!().split_once("::").unwrap().1);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &name, CHILD, "--nocapture", "--test-threads=1"]);
        command.env("RUST_BACKTRACE", "0").output().unwrap()
    }

    fn in_child() -> bool {
        let is = std::env::args().any(|word| word == CHILD);
        if is {
            log::begin(log::Format::Plain, None, false).unwrap();
            begin(&["foreign"]);
        }
        is
    }

    fn ended_at_once(output: &Output, words: &str) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(SIGABRT), "{said}");
        let last = said.lines().last().unwrap();
        assert!(last.contains("ERROR") && last.contains(words), "{said}");
        assert!(last.contains("panics.rs:"), "{said}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains(SURVIVED));
    }

    #[test]
    fn a_panic_in_a_thread_ends_the_process() {
        if in_child() {
            let panics = || panic!("in a thread\n{}", "row");
            Tasks::new().thread("seal-changes", panics).unwrap();
            thread::sleep(Duration::from_secs(20));
            println!("{SURVIVED}");
            return;
        }
        let output = child("a_panic_in_a_thread_ends_the_process");
        ended_at_once(&output, "seal-changes");
        ended_at_once(&output, "in a thread");
    }

    #[test]
    fn a_panic_tells_the_log_no_value() {
        let foreign = Err::<(), _>("hunter2");
        let texts: [fn(Result<(), &str>); 3] = [
            |foreign| foreign.expect("the file is there"),
            |foreign| assert_eq!(foreign, Ok(())),
            |_| drop("hünter2"[..2].to_owned()),
        ];
        for text in texts {
            let Panicked(said) = contain(|| text(foreign)).unwrap_err();
            assert!(!said.contains("nter2") && !said.is_empty(), "{said}");
        }
    }

    #[test]
    fn a_panic_in_a_task_ends_the_process_before_its_runtime_catches_it() {
        if in_child() {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let tasks = Tasks::new();
                tasks.spawn(async { panic!("in a task") });
                tasks.stop().await;
                tokio::time::sleep(Duration::from_secs(20)).await;
            });
            println!("{SURVIVED}");
            return;
        }
        let output = child("a_panic_in_a_task_ends_the_process_before_its_runtime_catches_it");
        ended_at_once(&output, "in a task");
    }

    #[test]
    fn a_panic_ends_the_process_though_someone_would_catch_it() {
        if in_child() {
            assert!(contain(|| panic!("inside")).is_err());
            drop(panic::catch_unwind(|| panic!("after it")));
            println!("{SURVIVED}");
            return;
        }
        let output = child("a_panic_ends_the_process_though_someone_would_catch_it");
        ended_at_once(&output, "after it");
    }

    #[test]
    fn a_contained_panic_is_an_error_and_a_line_in_the_log() {
        if in_child() {
            let panicked = contain(|| panic!("no {}", "page")).map(|()| 0);
            assert_eq!(panicked, Err(Panicked("no page".into())));
            let foreign = thread::Builder::new().name("foreign".into());
            assert!(foreign.spawn(|| panic!("in its thread")).unwrap().join().is_err());
            println!("{SURVIVED}");
            return;
        }
        let output = child("a_contained_panic_is_an_error_and_a_line_in_the_log");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(SURVIVED));
        assert!(said.contains("WARN") && said.contains("no page"), "{said}");
        assert!(said.contains("in its thread"), "{said}");
    }

    const CHILD: &str = "in-a-child-process";
    const SURVIVED: &str = "the process goes on";
    const SIGABRT: i32 = 6;
}
