//! The clock that requests are signed by, and how far the server's differs: its answers carry a date.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_smithy_async::time::TimeSource;
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{Intercept, context::BeforeDeserializationInterceptorContextRef},
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::config_bag::ConfigBag;

use crate::clock::Clock;

/// By how many seconds the server's clock is ahead of ours, as of its last answer.
#[derive(Clone)]
pub(super) struct Ahead {
    seconds: Arc<AtomicI64>,
    clock: Arc<dyn Clock>,
}

impl Ahead {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { seconds: Arc::new(AtomicI64::new(UNKNOWN)), clock }
    }

    /// `None` before the first answer.
    pub(super) fn seconds(&self) -> Option<i64> {
        Some(self.seconds.load(Ordering::Relaxed)).filter(|seconds| *seconds != UNKNOWN)
    }

    /// The server's time, in seconds since 1970, as of its last answer. No decision is to hang on our own (I29).
    pub(super) fn server_now(&self) -> Option<i64> {
        Some(self.clock.wall().0 / 1_000_000 + self.seconds()?)
    }
}

impl fmt::Debug for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ahead").field(&self.seconds).finish()
    }
}

impl TimeSource for Ahead {
    fn now(&self) -> SystemTime {
        let micros = u64::try_from(self.clock.wall().0).unwrap_or_default();
        SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
    }
}

impl Intercept for Ahead {
    fn name(&self) -> &'static str {
        "Ahead"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        if let Some(at) = date.and_then(|text| jiff::fmt::rfc2822::parse(text).ok()) {
            let ours = self.clock.wall().0 / 1_000_000;
            self.seconds.store(at.timestamp().as_second() - ours, Ordering::Relaxed);
        }
        Ok(())
    }
}

const UNKNOWN: i64 = i64::MIN;

#[cfg(test)]
mod tests {
    #[test]
    fn the_date_of_an_answer_is_read() {
        let at = jiff::fmt::rfc2822::parse("Sat, 21 Nov 2026 08:30:00 GMT").unwrap();
        assert_eq!(at.timestamp().to_string(), "2026-11-21T08:30:00Z");
    }
}
