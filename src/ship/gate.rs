//! How many requests, and how many bytes of them in memory, may be under way at once.
//!
//! **Invariant (I25):** the bodies of all passes together hold at most [`BODY_BYTES_MAX`], except that
//! one larger body may pass alone. Waiters pass in the order in which they came.
//!
//! SlowDown halves the number of requests, once for all requests that were under way together;
//! success raises it again by one for every [`GOOD_PER_STEP`] × limit answers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

/// The gate.
#[derive(Debug)]
pub struct Gate {
    requests: Semaphore,
    kib: Semaphore,
    limit: Mutex<Limit>,
}

/// Leave to send one request; given back when dropped.
#[derive(Debug)]
pub struct Pass<'a> {
    gate: &'a Gate,
    request: Option<SemaphorePermit<'a>>,
    _kib: SemaphorePermit<'a>,
    epoch: u64,
}

#[derive(Debug)]
struct Limit {
    now: usize,
    most: usize,
    /// Passes that were taken away while in use, and vanish when given back.
    debt: usize,
    /// How often the limit was halved.
    epoch: u64,
    good: usize,
}

impl Gate {
    /// A gate for at most `requests` at once.
    pub fn new(requests: usize) -> Self {
        let most = requests.max(1);
        let limit = Limit { now: most, most, debt: 0, epoch: 0, good: 0 };
        Self {
            requests: Semaphore::new(most),
            kib: Semaphore::new(kib(BODY_BYTES_MAX)),
            limit: Mutex::new(limit),
        }
    }

    /// Waits for leave to send a request with a body of `bytes`. Cancel-safe.
    pub async fn pass(&self, bytes: u64) -> Pass<'_> {
        let request = self.requests.acquire().await.expect("the gate is never closed");
        let wanted = u32::try_from(kib(bytes.min(BODY_BYTES_MAX))).unwrap_or(u32::MAX);
        let kib = self.kib.acquire_many(wanted).await.expect("the gate is never closed");
        let epoch = self.limit().epoch;
        Pass { gate: self, request: Some(request), _kib: kib, epoch }
    }

    /// How many requests may be under way now.
    pub fn now(&self) -> usize {
        self.limit().now
    }

    fn limit(&self) -> MutexGuard<'_, Limit> {
        self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// S3 asked for fewer requests.
    pub fn slow_down(&self) {
        let mut limit = self.gate.limit();
        if self.epoch == limit.epoch {
            let half = (limit.now / 2).max(1);
            limit.debt += limit.now - half;
            limit.now = half;
            limit.epoch += 1;
            limit.good = 0;
        }
    }

    /// S3 answered as it should.
    pub fn good(&self) {
        let mut limit = self.gate.limit();
        limit.good += 1;
        if limit.now < limit.most && limit.good >= limit.now * GOOD_PER_STEP {
            limit.good = 0;
            limit.now += 1;
            match limit.debt.checked_sub(1) {
                Some(less) => limit.debt = less,
                None => self.gate.requests.add_permits(1),
            }
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut limit = self.gate.limit();
        if let Some(less) = limit.debt.checked_sub(1) {
            limit.debt = less;
            if let Some(request) = self.request.take() {
                request.forget();
            }
        }
    }
}

fn kib(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(1024)).unwrap_or(usize::MAX)
}

/// Bodies in memory, all requests together.
pub const BODY_BYTES_MAX: u64 = 64 << 20;
/// Answers per request of the limit before it grows by one.
pub const GOOD_PER_STEP: usize = 8;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt, future::join_all};

    use super::*;

    #[tokio::test]
    async fn slow_down_halves_once_for_requests_under_way_together_and_success_heals() {
        let gate = Gate::new(8);
        let passes = join_all((0..8).map(|_| gate.pass(1))).await;
        passes.iter().for_each(Pass::slow_down);
        assert_eq!(gate.now(), 4);
        drop(passes);
        let four = join_all((0..4).map(|_| gate.pass(1))).await;
        assert!(gate.pass(1).now_or_never().is_none(), "a fifth request passed");
        four[0].slow_down();
        drop(four);
        assert_eq!(gate.now(), 2);
        for _ in 0..1000 {
            gate.pass(1).await.good();
        }
        assert_eq!(gate.now(), 8);
        let eight = join_all((0..8).map(|_| gate.pass(1))).await;
        assert!(gate.pass(1).now_or_never().is_none(), "a ninth request passed");
        drop(eight);
    }

    #[tokio::test]
    async fn one_request_always_passes() {
        let gate = Gate::new(2);
        for _ in 0..10 {
            let pass = gate.pass(1).await;
            pass.slow_down();
        }
        assert_eq!(gate.now(), 1);
        let wait = Duration::from_secs(5);
        assert!(tokio::time::timeout(wait, gate.pass(u64::MAX)).await.is_ok());
    }

    #[tokio::test]
    async fn bodies_are_bounded_in_sum() {
        let gate = Gate::new(64);
        let held = join_all((0..4).map(|_| gate.pass(16 << 20))).await;
        assert!(gate.pass(1).now_or_never().is_none(), "more than the bound is in memory");
        drop(held);
        assert!(gate.pass(u64::MAX).now_or_never().is_some(), "a huge body never passes");
    }
}
