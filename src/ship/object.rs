//! The way of one object: the awaits around [`Upload`].
//!
//! **Invariant:** an upload's id is durable before its first part is sent, every part before Complete is;
//! bytes go out only if their checksum is the sealed one's; where the spool does not give them, the facts say so.

use std::{
    ops::Range,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use futures_util::{StreamExt, future::BoxFuture, stream};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    Complete, Content, Head, Object, Part, Put, Request, ShipError, StoredPart, checksum,
    content::altered,
    drive::{Said, Shipper},
    plan::{PartPlan, PlanError},
    retry::Pace,
    upload::{
        self, Begun, Effect, Event, PartFact, Upload, done_fact, lost_fact, part_fact, part_facts,
        upload_fact,
    },
};
use crate::{
    error::Cause,
    facts::{self, FactBatch, FactDamaged},
};

/// An object under way, and what this process has seen of it.
struct Going<'a> {
    shipper: &'a Shipper,
    object: Arc<Object>,
    token: &'a CancellationToken,
    /// Whether parts were acknowledged before this process began.
    recalled: bool,
    /// Whether an upload may have been begun whose id we never learned.
    doubtful: bool,
}

impl Shipper {
    /// Sends one object, from wherever it stands, until S3 has it and that is durable.
    pub(super) async fn object(
        &self,
        object: Arc<Object>,
        token: &CancellationToken,
    ) -> Result<(), ShipError> {
        if self.facts.get(&done_fact(&object.key)).is_some() {
            return Ok(());
        }
        let key = object.key.clone();
        self.active.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        let mut going = Going { shipper: self, object, token, recalled: false, doubtful: false };
        let end = Box::pin(going.go()).await;
        self.active.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        if let Err(ShipError::Lost { .. }) = &end {
            let mut batch = FactBatch::default();
            batch.put(lost_fact(&key), &true);
            self.facts.record(batch).await?;
        }
        if end.is_ok() && going.doubtful {
            // Done already: should this fail, the next sweep finds it.
            if let Err(error) = Box::pin(self.sweep(&key, token)).await {
                warn!(%error, "sweep after a lost answer");
            }
        }
        end
    }
}

impl Going<'_> {
    async fn go(&mut self) -> Result<(), ShipError> {
        let mut state = self.recall()?;
        let mut restarts = self.shipper.backoff();
        loop {
            let event = match state.next() {
                Effect::Begin => self.begin().await?,
                Effect::Parts(numbers) => {
                    let (new, restart) = self.parts(state, numbers).await?;
                    state = new;
                    if !restart {
                        continue;
                    }
                    Event::Restart
                }
                Effect::Complete => self.complete(&state).await?,
                Effect::Abort => {
                    self.abort(&state).await?;
                    Event::Left
                }
                Effect::Done => return self.done().await,
            };
            if event == Event::Restart {
                self.recalled = false;
                self.shipper.pause(&mut restarts, Pace::Fast, self.token).await?;
            }
            state = state.on(event);
        }
    }

    /// The state as the facts have it.
    fn recall(&mut self) -> Result<Upload, ShipError> {
        let (facts, key) = (self.shipper.facts.as_ref(), &self.object.key);
        let Some(begun) = facts::read::<Begun>(facts, &upload_fact(key)).map_err(damaged)? else {
            return Ok(Upload::New);
        };
        let plan =
            self.shipper.limits.again(self.object.bytes, begun.part_bytes).map_err(unplanned)?;
        let parts = facts::read_all::<PartFact>(facts, &part_facts(key)).map_err(damaged)?;
        self.recalled = true;
        Ok(Upload::recall(begun, plan, parts.into_iter().map(|(_, fact)| fact)))
    }

    async fn begin(&mut self) -> Result<Event, ShipError> {
        let shipper = self.shipper;
        let plan = shipper.limits.cut(self.object.bytes, shipper.part_bytes).map_err(unplanned)?;
        let Some(plan) = plan else { return self.put().await };
        let tries = AtomicU32::new(0);
        let create = || {
            tries.fetch_add(1, Ordering::Relaxed);
            shipper.store.create(head(&self.object))
        };
        let asked = shipper.ask(Request::Create, 0, self.token, create);
        let said = Box::pin(asked).await?;
        let Said::Answer(upload) = said else { return Ok(Event::Restart) };
        self.doubtful |= tries.load(Ordering::Relaxed) > 1;
        let mut batch = FactBatch::default();
        let begun = Begun { upload: upload.clone(), part_bytes: plan.part_bytes() };
        batch.put(upload_fact(&self.object.key), &begun);
        shipper.facts.record(batch).await?;
        Ok(Event::Created(upload, plan))
    }

    async fn put(&self) -> Result<Event, ShipError> {
        let (object, shipper) = (&self.object, self.shipper);
        let put = || -> BoxFuture<'_, Result<(), ShipError>> {
            Box::pin(async move {
                let body = self.content(0..object.bytes, object.crc64nvme.clone())?;
                let put = Put { head: head(object), body, crc64nvme: &object.crc64nvme };
                shipper.store.put(put).await
            })
        };
        let asked = shipper.ask(Request::Put, object.bytes, self.token, put);
        Ok(match Box::pin(asked).await? {
            Said::Answer(()) => Event::Stored,
            Said::Exists => Event::Exists,
            Said::Restart => Event::Restart,
        })
    }

    /// Sends the missing parts; the state they lead to, and whether the upload must start again.
    async fn parts(
        &self,
        mut state: Upload,
        numbers: Vec<u32>,
    ) -> Result<(Upload, bool), ShipError> {
        let Upload::Open { id, plan, .. } = &state else { return Ok((state, false)) };
        let (id, plan) = (id.clone(), *plan);
        let parts: Vec<BoxFuture<'_, _>> = numbers
            .into_iter()
            .map(|number| Box::pin(self.part(&id, plan, number)) as BoxFuture<'_, _>)
            .collect();
        // Twice as many as may be sent, so that none waits for another's fact.
        let mut parts = stream::iter(parts).buffer_unordered(self.shipper.requests * 2);
        let mut stopped = false;
        while let Some(said) = parts.next().await {
            match said {
                Ok(Said::Answer(part)) => state = state.on(Event::PartStored(part)),
                Ok(Said::Restart | Said::Exists) => return Ok((state, true)),
                // Those under way may still end.
                Err(ShipError::Stopped) => stopped = true,
                Err(error) => return Err(error),
            }
        }
        if stopped { Err(ShipError::Stopped) } else { Ok((state, false)) }
    }

    async fn part(
        &self,
        upload: &str,
        plan: PartPlan,
        number: u32,
    ) -> Result<Said<StoredPart>, ShipError> {
        let (object, shipper) = (&self.object, self.shipper);
        let range = plan.range(number).expect("the plan was asked for its own parts");
        let bytes = range.end - range.start;
        let crc64nvme = match object.part_sum(&range) {
            Some(sum) => sum,
            None => shipper.spool.clone().sum(Arc::clone(object), range.clone()).await?,
        };
        let send = || -> BoxFuture<'_, Result<StoredPart, ShipError>> {
            let (range, crc64nvme) = (range.clone(), crc64nvme.clone());
            Box::pin(async move {
                let body = self.content(range, crc64nvme.clone())?;
                let key = object.key.as_str();
                let part = Part { key, upload, number, body, crc64nvme: &crc64nvme };
                let etag = shipper.store.part(part).await?;
                Ok(StoredPart { number, bytes, etag, crc64nvme })
            })
        };
        let asked = shipper.ask(Request::Part, bytes, self.token, send);
        let said = Box::pin(asked).await?;
        if let Said::Answer(part) = &said {
            let mut batch = FactBatch::default();
            let fact = PartFact { upload: upload.into(), part: part.clone() };
            batch.put(part_fact(&object.key, number), &fact);
            shipper.facts.record(batch).await?;
        }
        Ok(said)
    }

    async fn complete(&self, state: &Upload) -> Result<Event, ShipError> {
        let (object, shipper) = (&self.object, self.shipper);
        let Upload::Closing { id, parts, .. } = state else { return Ok(Event::Restart) };
        if checksum::whole(parts.values()).as_ref() != Some(&object.crc64nvme) {
            // Facts of an earlier process may be to blame; what this one has read itself may not.
            return if self.recalled { Ok(Event::Restart) } else { Err(altered(object)) };
        }
        let parts: Vec<_> = parts.values().cloned().collect();
        let complete = || {
            shipper.store.complete(Complete {
                key: &object.key,
                upload: id,
                parts: &parts,
                bytes: object.bytes,
                crc64nvme: &object.crc64nvme,
            })
        };
        let asked = shipper.ask(Request::Complete, 0, self.token, complete);
        Ok(match Box::pin(asked).await? {
            Said::Answer(()) => Event::Stored,
            Said::Exists => Event::Exists,
            Said::Restart => Event::Restart,
        })
    }

    /// Leaves the upload, in S3 and then in the facts.
    async fn abort(&self, state: &Upload) -> Result<(), ShipError> {
        let (shipper, key) = (self.shipper, self.object.key.as_str());
        let Some(id) = state.id() else { return Ok(()) };
        let abort = || shipper.store.abort(key, id);
        Box::pin(shipper.ask(Request::Abort, 0, self.token, abort)).await?;
        let mut batch = FactBatch::default();
        upload::left(&*shipper.facts, key, &mut batch);
        Ok(shipper.facts.record(batch).await?)
    }

    async fn done(&self) -> Result<(), ShipError> {
        let shipper = self.shipper;
        let mut batch = FactBatch::default();
        upload::left(&*shipper.facts, &self.object.key, &mut batch);
        batch.put(done_fact(&self.object.key), &true);
        shipper.facts.record(batch).await?;
        shipper.board.write(|status| status.shipped_objects += 1);
        Ok(())
    }

    /// Bytes of the object from the spool, whose checksum this has to be.
    fn content(&self, range: Range<u64>, sum: String) -> Result<Content, ShipError> {
        let length = range.end - range.start;
        let content = self.shipper.spool.clone().content(self.object.clone(), range, sum)?;
        self.shipper.board.write(|status| status.sent_bytes += length);
        Ok(content)
    }
}

fn head(object: &Object) -> Head<'_> {
    let json = object.key.ends_with(".json");
    let content_type = if json { "application/json" } else { "application/vnd.apache.parquet" };
    let (key, metadata, encryption) = (&object.key, &object.metadata, &object.encryption);
    Head { key, metadata, encryption, content_type }
}

fn unplanned(error: PlanError) -> ShipError {
    ShipError::Setup { what: error.to_string(), cause: Cause::Defect }
}

pub(super) fn damaged(error: FactDamaged) -> ShipError {
    ShipError::Setup { what: error.to_string(), cause: Cause::Defect }
}
