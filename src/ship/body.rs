//! A request's body that tells how much of it the connection has taken, and the patience that goes by it.
//!
//! **Invariant:** a request is given up only when nothing moved for a while; how long it takes as a
//! whole does not matter, so a link shared by priority (DESIGN §10) never makes a part start again.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio_util::sync::DropGuard;

use super::{Content, ShipError};
use crate::units::BitRate;

/// Content that goes out in slices.
#[derive(Debug)]
pub(super) struct Sliced {
    content: Content,
    progress: Arc<Progress>,
}

/// What the connection has taken so far. Dropped, nothing more is read for it.
#[derive(Debug, Default)]
pub(super) struct Taken {
    progress: Arc<Progress>,
    _wanted: Option<DropGuard>,
}

#[derive(Debug, Default)]
struct Progress {
    bytes: AtomicU64,
    /// Why there was no more to take.
    failed: OnceLock<ShipError>,
}

impl Sliced {
    pub(super) fn new(content: Content) -> (Self, Taken) {
        let progress = Arc::<Progress>::default();
        let taken = Taken { progress: Arc::clone(&progress), _wanted: Some(content.wanted()) };
        (Self { content, progress }, taken)
    }
}

impl Taken {
    fn bytes(&self) -> u64 {
        self.progress.bytes.load(Ordering::Relaxed)
    }

    /// Why the content ended early: what the request came to says only that it did.
    pub(super) fn failed(&self) -> Option<ShipError> {
        self.progress.failed.get().cloned()
    }
}

impl Body for Sliced {
    type Data = Bytes;
    type Error = ShipError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ShipError>>> {
        let next = std::task::ready!(self.content.poll_next(context, SLICE_BYTES));
        match &next {
            Some(Ok(slice)) => {
                self.progress.bytes.fetch_add(slice.len() as u64, Ordering::Relaxed);
            }
            // The first is why.
            Some(Err(error)) => drop(self.progress.failed.set(error.clone())),
            None => {}
        }
        Poll::Ready(next.map(|slice| slice.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.content.bytes() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.content.bytes())
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
        let before = taken.bytes();
        tokio::select! {
            answer = &mut call => return Some(answer),
            () = tokio::time::sleep(patience) => {}
        }
        if taken.bytes() == before {
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
        let (body, taken) = Sliced::new(bytes.clone().into());
        assert_eq!(body.size_hint().exact(), Some(bytes.len() as u64));
        assert_eq!(body.collect().await.unwrap().to_bytes(), bytes);
        assert_eq!(taken.bytes(), bytes.len() as u64);
    }

    #[tokio::test]
    async fn what_moves_is_awaited_and_what_stands_still_is_not() {
        let (mut body, taken) = Sliced::new(Bytes::from(vec![7; 6 * SLICE_BYTES]).into());
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
