//! Every task and thread has an owner. The only file that spawns.
//!
//! **Invariant:** a task that panics ends the process ([`panics`]); nobody is detached.

use std::{future::Future, io, thread};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub mod panics;

/// Owns the tasks of one part of the road and the token that stops them.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Tasks {
    /// A fresh group.
    pub fn new() -> Self {
        Self::default()
    }

    /// A group that stops with this one and can be stopped alone.
    pub fn child(&self) -> Self {
        Self { tracker: TaskTracker::new(), token: self.token.child_token() }
    }

    /// The token that tells tasks to stop.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Runs `task` under this owner.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that spawns")]
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(tokio::spawn(self.tracker.track_future(task)));
    }

    /// Runs blocking `work` on a thread of its own. It must watch the token itself.
    ///
    /// # Errors
    ///
    /// The system gives no more threads.
    pub fn thread(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let token = self.tracker.token();
        thread::Builder::new().name(name.into()).spawn(move || {
            work();
            drop(token);
        })?;
        Ok(())
    }

    /// Tells all to stop, and waits until they have.
    pub async fn stop(&self) {
        self.token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stop_waits_for_tasks_and_threads() {
        let tasks = Tasks::new();
        let token = tasks.token();
        tasks.spawn(async move { token.cancelled().await });
        let (tell, told) = std::sync::mpsc::channel();
        let token = tasks.token();
        tasks
            .thread("waits", move || {
                while !token.is_cancelled() {
                    thread::yield_now();
                }
                tell.send(()).unwrap();
            })
            .unwrap();
        tasks.stop().await;
        assert!(told.try_recv().is_ok());
    }
}
