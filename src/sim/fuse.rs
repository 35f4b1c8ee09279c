//! When a box dies: after a number of effects that the seed has drawn.
//!
//! An effect is whatever outlives the process: a write, a sync, a name on the disk, a request to the lake, a
//! word to the database. **Invariant:** from the one that burns the fuse on, none takes place.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::sync::Notify;

/// The fuse of one life. Clones are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fuse(Arc<State>);

#[derive(Debug)]
struct State {
    left: AtomicU64,
    dead: AtomicBool,
    died: Notify,
}

impl Default for State {
    fn default() -> Self {
        Self { left: AtomicU64::new(u64::MAX), dead: AtomicBool::new(false), died: Notify::new() }
    }
}

impl Fuse {
    /// One effect is about to take place. False: it must not.
    #[must_use]
    pub(crate) fn burn(&self) -> bool {
        if self.is_dead() {
            return false;
        }
        let left = self.0.left.load(Ordering::Relaxed);
        if left == 0 {
            self.die();
            return false;
        }
        if left != u64::MAX {
            self.0.left.store(left - 1, Ordering::Relaxed);
        }
        true
    }

    /// Lets the box live for `effects` more.
    pub(crate) fn light(&self, effects: u64) {
        let left = self.0.left.load(Ordering::Relaxed);
        self.0.left.store(left.min(effects), Ordering::Relaxed);
    }

    /// Now.
    pub(crate) fn die(&self) {
        self.0.dead.store(true, Ordering::Relaxed);
        self.0.died.notify_one();
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.0.dead.load(Ordering::Relaxed)
    }

    /// Waits for it.
    pub(crate) async fn died(&self) {
        if !self.is_dead() {
            self.0.died.notified().await;
        }
    }
}
