//! A request's body that tells how much of it the connection has taken, and the patience that goes by it.
//!
//! **Invariant:** a request is given up only when nothing moved for a while; how long it takes as a
//! whole does not matter, so a link shared by priority (DESIGN §10) never makes a part start again.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use crate::units::BitRate;

/// Bytes that go out in slices.
#[derive(Debug)]
pub(super) struct Sliced {
    rest: Bytes,
    taken: Taken,
}

/// How many bytes the connection has taken so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken(Arc<AtomicU64>);

impl Sliced {
    pub(super) fn new(bytes: Bytes) -> (Self, Taken) {
        let taken = Taken::default();
        (Self { rest: bytes, taken: taken.clone() }, taken)
    }
}

impl Body for Sliced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.rest.len().min(SLICE_BYTES);
        let slice = self.rest.split_to(length);
        self.taken.0.fetch_add(u64::try_from(length).unwrap_or_default(), Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.rest.len()).unwrap_or(u64::MAX))
    }
}

/// Awaits `call` as long as the connection takes bytes, and `patience` beyond. `None`: given up.
pub(super) async fn patiently<T>(
    taken: &Taken,
    patience: Duration,
    call: impl Future<Output = T>,
) -> Option<T> {
    tokio::pin!(call);
    loop {
        let before = taken.0.load(Ordering::Relaxed);
        tokio::select! {
            answer = &mut call => return Some(answer),
            () = tokio::time::sleep(patience) => {}
        }
        if taken.0.load(Ordering::Relaxed) == before {
            return None;
        }
    }
}

/// How long a request may stand still where `connections` share a link of this rate: all that they hold may
/// have to leave before its last byte does.
pub fn patience(rate: Option<BitRate>, connections: usize) -> Duration {
    let held = u64::try_from(connections).unwrap_or(u64::MAX).saturating_mul(HELD_BYTES);
    let leaves = |rate: BitRate| Duration::from_secs(held.saturating_mul(8) / rate.0.max(1));
    PATIENCE + rate.map_or(Duration::ZERO, leaves)
}

/// How long a request may stand still on a link that is as fast as its interface.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// What a connection takes of a body before it leaves: a slice, hyper's buffer of 408 KiB and TLS's of 64.
const HELD_BYTES: u64 = 640 << 10;
const SLICE_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn the_slices_are_the_whole() {
        let bytes = Bytes::from(vec![7; 3 * SLICE_BYTES + 1]);
        let (body, taken) = Sliced::new(bytes.clone());
        assert_eq!(body.size_hint().exact(), Some(bytes.len() as u64));
        assert_eq!(body.collect().await.unwrap().to_bytes(), bytes);
        assert_eq!(taken.0.load(Ordering::Relaxed), bytes.len() as u64);
    }

    #[tokio::test]
    async fn what_moves_is_awaited_and_what_stands_still_is_not() {
        let (mut body, taken) = Sliced::new(Bytes::from(vec![7; 6 * SLICE_BYTES]));
        let patience = Duration::from_millis(60);
        let slow = async {
            while body.frame().await.is_some() {
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        };
        assert_eq!(patiently(&taken, patience, slow).await, Some(()));
        let stuck = std::future::pending::<()>();
        assert_eq!(patiently(&Taken::default(), patience, stuck).await, None);
    }
}
