//! The link: by which interface bytes leave for S3, and how fast.
//!
//! Takes hosts to be dialed; gives connections that are bound to the interface (`SO_BINDTODEVICE`) and whose
//! bytes, all together, keep to one rate. Keeps nothing. It sees ciphertext only.
//!
//! **Invariants:** without the interface nothing is sent, over no other one either (P6); the rate counts
//! bytes on the wire, with frames and with what TCP sends again (P8).

mod bucket;
mod dial;
mod interface;
mod shaped;
mod socket;
mod wire;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

pub use dial::{DialError, Dialer};
pub use interface::check;
pub use shaped::Shaped;

use self::{bucket::Bucket, interface::Interface, wire::Frames};
use crate::{clock::Clock, config, error::Cause, telemetry::board::LinkBoard, units::BitRate};

/// One link; all connections of the process share it.
pub struct Link {
    name: String,
    interface: String,
    rate: BitRate,
    bucket: Mutex<Bucket>,
    board: LinkBoard,
    clock: Arc<dyn Clock>,
}

impl Link {
    /// The configured link. `board` tells of it.
    pub fn new(config: &config::Link, board: LinkBoard, clock: Arc<dyn Clock>) -> Self {
        let rate = config.rate;
        board.write(|status| {
            status.interface.clone_from(&config.interface);
            status.rate_bytes_per_s = rate.0 / 8;
        });
        Self {
            name: config.name.clone(),
            interface: config.interface.clone(),
            rate,
            bucket: Mutex::new(Bucket::new(rate, clock.now())),
            board,
            clock,
        }
    }

    /// Looks at the interface now and then, and tells the board.
    pub async fn watch(&self, token: CancellationToken) {
        let mut pace = tokio::time::interval(PACE);
        while token.run_until_cancelled(pace.tick()).await.is_some() {
            self.look();
        }
    }

    fn look(&self) {
        let state = Interface::look(&self.interface);
        let what = format!("interface {} is {state}", self.interface);
        let up = state == Interface::Up;
        let before = self.board.read().up;
        self.board.write(|status| status.up = Some(up));
        match up {
            true => self.board.calm(),
            false => self.board.alarm(Cause::LinkDown, &what, self.clock.wall()),
        }
        let (link, remedy) = (&self.name, Cause::LinkDown.disposition().remedy());
        if up && before == Some(false) {
            tracing::info!(link, "{what}");
        } else if !up && before != Some(false) {
            tracing::warn!(link, remedy, "{what}");
        }
    }

    /// Grants some of `wanted` bytes, and says for how long they have to wait. `repeated`: bytes that TCP sent again.
    fn grant(&self, wanted: usize, frames: Frames, repeated: u64) -> (usize, Option<Duration>) {
        let now = self.clock.now();
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = wanted.min(bucket.quantum_bytes());
        let wire = frames.wire_bytes(u64::try_from(bytes).unwrap_or(u64::MAX)) + repeated;
        let at = bucket.take(wire, now);
        drop(bucket);
        self.board.write(|status| status.sent_bytes += wire);
        (bytes, at.checked_duration_since(now).filter(|pause| !pause.is_zero()))
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn interface(&self) -> &str {
        &self.interface
    }

    fn rate(&self) -> BitRate {
        self.rate
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How often the interface is looked at.
const PACE: Duration = Duration::from_secs(2);
