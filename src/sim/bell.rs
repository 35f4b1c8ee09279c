//! A count that tasks wait for.
//!
//! **Invariant:** who waits is woken in the order in which they came to wait. (tokio's `watch` draws that
//! order, and a seed would be another run each time.)

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// It counts how often it was rung.
#[derive(Default)]
pub(crate) struct Bell {
    rung: AtomicU64,
    notify: Notify,
}

impl Bell {
    /// Wakes all who wait.
    pub(crate) fn ring(&self) {
        self.rung.fetch_add(1, Ordering::Relaxed);
        self.notify.notify_waiters();
    }

    /// How often it was rung.
    pub(crate) fn count(&self) -> u64 {
        self.rung.load(Ordering::Relaxed)
    }

    /// Waits until it was rung since `seen`, and notes that. Cancel-safe.
    pub(crate) async fn rings(&self, seen: &mut u64) {
        // Nothing can ring between the two: there is one thread.
        if self.count() == *seen {
            self.notify.notified().await;
        }
        *seen = self.count();
    }
}
