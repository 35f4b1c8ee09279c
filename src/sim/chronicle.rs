//! What happened, in order: hashed always, written down when asked; and the first broken invariant.
//!
//! **Invariant:** nothing that the seed does not decide is told here (no addresses, no random salts, no
//! real time), so that the hash of two runs of one seed is the same.

use std::{
    fmt::{self, Write as _},
    hash::{DefaultHasher, Hasher},
    io::Write,
    sync::{Arc, Mutex},
};

use tokio::time::Instant;

use super::lock;

/// The book. Clones are one.
#[derive(Clone)]
pub(crate) struct Chronicle(Arc<Mutex<Book>>);

struct Book {
    began: Instant,
    hash: DefaultHasher,
    steps: u64,
    shown: Option<Box<dyn Write + Send>>,
    broken: Option<Violation>,
}

/// An invariant that did not hold.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    /// Its name in `INVARIANTS.md`, or what the end of a run demands.
    pub invariant: &'static str,
    /// What was seen instead.
    pub what: String,
}

/// Hashes text as it is formatted.
struct Hashed<'a>(&'a mut DefaultHasher);

impl fmt::Write for Hashed<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

impl Chronicle {
    /// An empty book. `shown`: where each line is written, too.
    pub(crate) fn new(shown: Option<Box<dyn Write + Send>>) -> Self {
        let (began, hash) = (Instant::now(), DefaultHasher::new());
        Self(Arc::new(Mutex::new(Book { began, hash, steps: 0, shown, broken: None })))
    }

    /// Writes a line down.
    pub(crate) fn note(&self, line: fmt::Arguments<'_>) {
        let book = &mut *lock(&self.0);
        let at = book.began.elapsed().as_millis();
        book.steps += 1;
        // A hasher takes any text.
        writeln!(Hashed(&mut book.hash), "{at} {line}").ok();
        if let Some(shown) = &mut book.shown {
            // Whoever reads may have gone.
            writeln!(shown, "{:>8}.{:03} {line}", at / 1000, at % 1000).ok();
        }
    }

    /// An invariant does not hold. The first one counts.
    pub(crate) fn violated(&self, invariant: &'static str, what: impl fmt::Display) {
        self.note(format_args!("VIOLATED {invariant}: {what}"));
        let what = what.to_string();
        lock(&self.0).broken.get_or_insert(Violation { invariant, what });
    }

    /// The first broken invariant.
    pub(crate) fn broken(&self) -> Option<Violation> {
        lock(&self.0).broken.clone()
    }

    /// Whether one is broken.
    pub(crate) fn is_broken(&self) -> bool {
        lock(&self.0).broken.is_some()
    }

    /// Lines so far, and their hash.
    pub(crate) fn sum(&self) -> (u64, u64) {
        let book = lock(&self.0);
        (book.steps, book.hash.finish())
    }
}
