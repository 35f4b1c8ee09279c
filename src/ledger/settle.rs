//! Brings one entry into S3 exactly once, or finds that another appliance has written its number.
//!
//! The key of an entry does not name its content, and the box may not read. "The key exists" (412) can
//! mean "our own Complete arrived, its answer did not" or "another appliance was faster". They are told
//! apart by the upload id: every entry goes as a multipart upload of one part, whose id is durable
//! before it can take effect. A Complete that succeeded ends its upload; one that was refused leaves it
//! open. So, of the uploads whose Complete may have been sent: **one is gone: the entry is ours; all are
//! still open: it is not.**
//!
//! | stage, durable but for the first | request | answer | then |
//! |---|---|---|---|
//! | `Built` | Create | id | `Open` |
//! | | | none | again; an upload without parts may remain: `sweep` |
//! | `Open` | UploadPart | stored | `Sent` (the id joins `sent`), before Complete is sent |
//! | | | none | again: the same bytes under the same number |
//! | | | no such upload | `Built`: no Complete was sent, nothing can stand there by it |
//! | `Sent` | Complete, if none match | done | **written** |
//! | | | none, 5xx | again: both outcomes give one of the answers below |
//! | | | no such upload | `Built`, its id stays in `sent`: it was completed, or a lifecycle rule aborted it, and only another Complete tells which |
//! | | | 409 | again; after [`CONFLICTS_MAX`] in a row `Built`, as S3 advises |
//! | | | 412 | ListParts of all in `sent`: one gone: **written**; all open, seen [`REFUSALS_MIN`] times: `Refused` |
//! | `Refused` | | | **fenced**, now and after every restart: only a box without state of its own can `adopt` the chain |
//!
//! An upload is aborted only when the outcome is durable or beyond doubt: its absence is evidence. For
//! the same reason nobody else may abort uploads under `_ledger/` that have a part (`sweep` does not).
//! What is not covered: an answer to Complete lost, the upload then aborted by a third party before the
//! Complete took effect, and another appliance's entry in its place, all three. The number after it
//! then meets that appliance's, and `verify` names the place.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    Encryption, LedgerError,
    store::{Pending, Stage, Store},
};
use crate::{
    clock::Clock,
    error::{Classified, Disposition},
    ship::{Complete, Head, ObjectStore, Part, ShipError, StoredPart},
    telemetry::board::SourceBoard,
};

/// Times that a refusal with all uploads open is seen before it is believed: a Complete sent earlier
/// may have taken effect a moment before its upload vanishes from the listing.
const REFUSALS_MIN: u32 = 2;
/// 409s in a row before the upload is begun anew.
const CONFLICTS_MAX: u32 = 5;
/// Uploads of one entry for which a Complete is outstanding; beyond, a 409 begins no other.
const UPLOADS_MAX: usize = 8;
/// The room's name on the board.
pub(super) const ROOM: &str = "ledger";

/// Waits between tries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pauses {
    /// The first backoff; doubled each time, jittered.
    pub(super) first: Duration,
    /// The longest backoff.
    pub(super) max: Duration,
    /// Where only a person can help.
    pub(super) halt: Duration,
    /// Before a refusal or conflict is looked at again.
    pub(super) again: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            max: Duration::from_secs(30),
            halt: Duration::from_secs(15),
            again: Duration::from_secs(1),
        }
    }
}

/// What settling needs.
pub(super) struct Settle<'a> {
    pub(super) lake: &'a dyn ObjectStore,
    pub(super) store: &'a Store,
    pub(super) encryption: &'a Encryption,
    pub(super) board: &'a SourceBoard,
    pub(super) clock: &'a dyn Clock,
    pub(super) pauses: Pauses,
    pub(super) token: &'a CancellationToken,
}

/// What one step came to.
enum Step {
    /// The stage moved.
    On,
    /// Ask again after a moment.
    Wait,
    /// The entry stands, and is ours.
    Written,
    /// An entry stands, and is not ours.
    Foreign,
}

/// Answers seen in a row.
#[derive(Default)]
struct Seen {
    failures: u32,
    refusals: u32,
    conflicts: u32,
}

impl Settle<'_> {
    /// Brings `pending` into S3. Never gives up on what time or a person can heal.
    ///
    /// Cancel-safe: what is durable decides how it goes on.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Fenced`] or [`LedgerError::ChainForeign`], durably; [`LedgerError::Stopped`]; or
    /// what is fatal.
    pub(super) async fn settle(&self, pending: &mut Pending) -> Result<(), LedgerError> {
        let mut seen = Seen::default();
        loop {
            let step = tokio::select! {
                biased;
                () = self.token.cancelled() => return Err(LedgerError::Stopped),
                step = self.step(pending, &mut seen) => step,
            };
            let pause = match step {
                Ok(Step::On) => {
                    seen.failures = 0;
                    continue;
                }
                Ok(Step::Wait) => self.pauses.again,
                Ok(Step::Written) => break,
                Ok(Step::Foreign) => return Err(self.refuse(pending).await?),
                Err(error) => self.failed(error, &mut seen)?,
            };
            tokio::select! {
                biased;
                () = self.token.cancelled() => return Err(LedgerError::Stopped),
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.board.calm(ROOM);
        self.clear(pending).await;
        Ok(())
    }

    async fn step(&self, pending: &mut Pending, seen: &mut Seen) -> Result<Step, LedgerError> {
        let key = pending.key.as_str();
        match pending.stage.clone() {
            Stage::Built => {
                let metadata = BTreeMap::new();
                let content_type = "application/json";
                let encryption = self.encryption;
                let head = Head { key, metadata: &metadata, encryption, content_type };
                let upload = self.lake.create(head).await?;
                self.move_to(pending, Stage::Open { upload }).await?;
            }
            Stage::Open { upload } => {
                let crc = crc64nvme(pending.object.as_bytes());
                let body = Bytes::copy_from_slice(pending.object.as_bytes());
                let (bytes, body) = (length(&body), body.into());
                let part = Part { key, upload: &upload, number: 1, body, crc64nvme: &crc };
                match self.lake.part(part).await {
                    Ok(etag) => {
                        let part = StoredPart { number: 1, bytes, etag, crc64nvme: crc };
                        pending.sent.push(upload.clone());
                        self.move_to(pending, Stage::Sent { upload, part }).await?;
                    }
                    Err(ShipError::NoSuchUpload { .. }) => {
                        self.move_to(pending, Stage::Built).await?;
                        return Ok(Step::Wait);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Stage::Sent { upload, part } => {
                return self.complete(pending, seen, &upload, part).await;
            }
            Stage::Refused => return Ok(Step::Foreign),
        }
        Ok(Step::On)
    }

    async fn complete(
        &self,
        pending: &mut Pending,
        seen: &mut Seen,
        upload: &str,
        part: StoredPart,
    ) -> Result<Step, LedgerError> {
        let (bytes, crc) = (part.bytes, part.crc64nvme.clone());
        let key = &pending.key;
        let complete = Complete { key, upload, parts: &[part], bytes, crc64nvme: &crc };
        let answer = self.lake.complete(complete).await;
        if !matches!(answer, Err(ShipError::Conflict { .. })) {
            seen.conflicts = 0;
        }
        match answer {
            Ok(()) => Ok(Step::Written),
            Err(ShipError::Exists { .. }) => self.whose(pending, seen).await,
            Err(ShipError::NoSuchUpload { .. }) => {
                self.move_to(pending, Stage::Built).await?;
                Ok(Step::Wait)
            }
            Err(ShipError::Conflict { .. }) => {
                seen.conflicts += 1;
                if seen.conflicts >= CONFLICTS_MAX && pending.sent.len() < UPLOADS_MAX {
                    seen.conflicts = 0;
                    self.move_to(pending, Stage::Built).await?;
                }
                Ok(Step::Wait)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The key exists: by one of our uploads, or by another appliance?
    async fn whose(&self, pending: &Pending, seen: &mut Seen) -> Result<Step, LedgerError> {
        for upload in &pending.sent {
            if self.lake.parts(&pending.key, upload).await?.is_none() {
                return Ok(Step::Written);
            }
        }
        seen.refusals += 1;
        Ok(if seen.refusals < REFUSALS_MIN { Step::Wait } else { Step::Foreign })
    }

    async fn move_to(&self, pending: &mut Pending, stage: Stage) -> Result<(), LedgerError> {
        pending.stage = stage;
        self.store.keep(pending).await
    }

    /// Makes the refusal durable, then gives the uploads back.
    async fn refuse(&self, pending: &mut Pending) -> Result<LedgerError, LedgerError> {
        if pending.stage != Stage::Refused {
            self.move_to(pending, Stage::Refused).await?;
        }
        let key = pending.key.clone();
        let refusal = match pending.next.entry {
            1 => LedgerError::ChainForeign { key },
            _ => LedgerError::Fenced { key },
        };
        error!(key = pending.key, "{refusal}: {}", refusal.cause().disposition().remedy());
        self.board.alarm(ROOM, refusal.cause(), &refusal, self.clock.wall());
        self.clear(pending).await;
        Ok(refusal)
    }

    /// Aborts the uploads that are not needed any more; those that would not go stay in `sent`.
    async fn clear(&self, pending: &mut Pending) {
        let mut sent = std::mem::take(&mut pending.sent);
        if matches!(pending.stage, Stage::Sent { .. }) && sent.len() == 1 {
            return; // Completed, and nothing else was begun.
        }
        while let Some(upload) = sent.pop() {
            let cleared = tokio::select! {
                biased;
                () = self.token.cancelled() => Err(ShipError::Stopped),
                cleared = self.lake.abort(&pending.key, &upload) => cleared,
            };
            if let Err(error) = cleared {
                warn!(key = pending.key, upload, %error, "an upload stays open until the next sweep");
                pending.sent.push(upload);
            }
        }
    }

    /// Raises the alarm and says how long to wait, or that it cannot heal.
    fn failed(&self, error: LedgerError, seen: &mut Seen) -> Result<Duration, LedgerError> {
        if matches!(error, LedgerError::Ship(ShipError::Stopped)) {
            return Err(LedgerError::Stopped);
        }
        let cause = error.cause();
        let pause = match cause.disposition() {
            Disposition::Retry(_) => backoff(self.pauses, seen.failures),
            Disposition::Halt(_) => self.pauses.halt,
            Disposition::Fatal(_) | Disposition::Fenced(_) => return Err(error),
        };
        seen.failures = seen.failures.saturating_add(1);
        if seen.failures == 1 {
            info!(%error, "ledger: {}", cause.disposition().remedy());
        }
        self.board.alarm(ROOM, cause, &error, self.clock.wall());
        self.board.write(|status| *status.retries.entry(cause.name().into()).or_default() += 1);
        Ok(pause)
    }
}

/// Full jitter over a doubling ceiling.
fn backoff(pauses: Pauses, failures: u32) -> Duration {
    let ceiling = pauses.first.saturating_mul(1 << failures.min(16)).min(pauses.max);
    ceiling.mul_f64(fastrand::f64())
}

/// As S3 writes it.
fn crc64nvme(bytes: &[u8]) -> String {
    STANDARD.encode(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes).to_be_bytes())
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).expect("lengths fit 64 bits")
}
