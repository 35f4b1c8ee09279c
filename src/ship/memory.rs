//! A bucket in memory that answers as S3 does, and fails on command: for tests and simulation.
//!
//! **Invariant:** like S3 it verifies before it stores, and a request takes effect wholly or not at all,
//! whatever becomes of its answer.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{
    Complete, Fetched, Head, Listed, ObjectReader, ObjectStore, OpenUpload, Part, Put, Request,
    ShipError, StoredPart, answer::refused, checksum, plan::Limits, within,
};
use crate::disk::work::WorkFile;

/// The bucket.
#[derive(Debug, Default)]
pub struct Memory {
    state: Mutex<State>,
}

/// When a fault strikes.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Which requests; all if `None`.
    pub request: Option<Request>,
    /// A part of the key.
    pub key: String,
    /// How many such requests pass before.
    pub skip: u32,
    /// How many it strikes then.
    pub times: u32,
    /// How likely it strikes each, 0 to 1.
    pub chance: f64,
    /// What happens.
    pub fault: Fault,
}

/// What a request suffers.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Answered with this status and code, without effect.
    Refuse(u16, &'static str),
    /// No answer, no effect.
    LostBefore,
    /// No answer, though it took effect.
    LostAfter,
    /// Answered late.
    Delay(Duration),
}

#[derive(Debug)]
struct State {
    objects: BTreeMap<String, Fetched>,
    uploads: BTreeMap<(String, String), Open>,
    rules: Vec<Rule>,
    log: Vec<(Request, String)>,
    random: fastrand::Rng,
    issued: u64,
    limits: Limits,
}

#[derive(Debug, Default)]
struct Open {
    metadata: BTreeMap<String, String>,
    parts: BTreeMap<u32, (StoredPart, Bytes)>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            uploads: BTreeMap::new(),
            rules: vec![],
            log: vec![],
            random: fastrand::Rng::with_seed(1),
            issued: 0,
            limits: Limits::S3,
        }
    }
}

impl Rule {
    /// Strikes the first such request.
    pub fn once(request: Request, fault: Fault) -> Self {
        let key = String::new();
        Self { request: Some(request), key, skip: 0, times: 1, chance: 1.0, fault }
    }

    /// Strikes any request with this chance, for good.
    pub fn often(chance: f64, fault: Fault) -> Self {
        Self { request: None, key: String::new(), skip: 0, times: u32::MAX, chance, fault }
    }
}

impl Memory {
    /// An empty bucket whose dice are thrown from `seed`.
    pub fn new(seed: u64) -> Self {
        let memory = Self::default();
        memory.state().random = fastrand::Rng::with_seed(seed);
        memory
    }

    /// One that takes smaller parts than S3.
    #[cfg(test)]
    pub(crate) fn within(self, limits: Limits) -> Self {
        self.state().limits = limits;
        self
    }

    /// Adds a fault. The first rule that strikes counts.
    pub fn fault(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        self.state().rules.clear();
    }

    /// Every request so far, those without effect included.
    pub fn log(&self) -> Vec<(Request, String)> {
        self.state().log.clone()
    }

    /// Keys and bytes of all objects.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        let state = self.state();
        state.objects.iter().map(|(key, object)| (key.clone(), object.bytes.clone())).collect()
    }

    /// Keys and ids of open uploads.
    pub fn open_uploads(&self) -> Vec<(String, String)> {
        self.state().uploads.keys().cloned().collect()
    }

    /// Forgets all open uploads, as a lifecycle rule does.
    pub fn expire_uploads(&self) {
        self.state().uploads.clear();
    }

    /// Puts an object past all rules, or removes it: what an intruder would do.
    pub fn tamper(&self, key: &str, bytes: Option<Bytes>) {
        let mut state = self.state();
        match (bytes, state.objects.get_mut(key)) {
            (Some(bytes), Some(object)) => object.bytes = bytes,
            (Some(bytes), None) => {
                state.objects.insert(key.into(), Fetched { bytes, metadata: BTreeMap::new() });
            }
            (None, _) => drop(state.objects.remove(key)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out `effect`, or what the rules make of it.
    fn serve<'a, T: Send + 'a>(
        &'a self,
        request: Request,
        key: &'a str,
        effect: impl FnOnce(&mut State) -> Result<T, ShipError> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, ShipError>> {
        Box::pin(async move {
            let fault = self.state().strike(request, key);
            let lost = || ShipError::Unanswered {
                request: request.name(),
                key: key.into(),
                why: "reset".into(),
            };
            match fault {
                Some(Fault::Refuse(status, code)) => {
                    return Err(refused(request, key, status, code, "asked for by a test"));
                }
                Some(Fault::LostBefore) => return Err(lost()),
                Some(Fault::Delay(wait)) => tokio::time::sleep(wait).await,
                Some(Fault::LostAfter) | None => tokio::task::yield_now().await,
            }
            let answer = effect(&mut self.state());
            tokio::task::yield_now().await;
            if matches!(fault, Some(Fault::LostAfter)) { Err(lost()) } else { answer }
        })
    }
}

impl State {
    fn strike(&mut self, request: Request, key: &str) -> Option<Fault> {
        self.log.push((request, key.into()));
        for rule in &mut self.rules {
            let meant = rule.request.is_none_or(|of| of == request) && key.contains(&rule.key);
            if !meant || rule.times == 0 {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if rule.chance >= 1.0 || self.random.f64() < rule.chance {
                rule.times -= 1;
                return Some(rule.fault);
            }
        }
        None
    }

    fn upload(&mut self, request: Request, key: &str, id: &str) -> Result<&mut Open, ShipError> {
        let gone = || refused(request, key, 404, "NoSuchUpload", "");
        self.uploads.get_mut(&(key.to_owned(), id.to_owned())).ok_or_else(gone)
    }

    fn complete(&mut self, complete: &Complete<'_>) -> Result<(), ShipError> {
        let key = complete.key;
        let say = |status, code| refused(Request::Complete, key, status, code, "");
        let exists = self.objects.contains_key(key);
        let least = self.limits.part_bytes_min;
        let open = self.upload(Request::Complete, key, complete.upload)?;
        let mut whole = vec![];
        for (place, part) in complete.parts.iter().zip(1..) {
            let (stored, bytes) =
                open.parts.get(&place.number).ok_or_else(|| say(400, "InvalidPart"))?;
            if stored.etag != place.etag || stored.crc64nvme != place.crc64nvme {
                return Err(say(400, "InvalidPart"));
            }
            if part < complete.parts.len() && stored.bytes < least {
                return Err(say(400, "EntityTooSmall"));
            }
            whole.extend_from_slice(bytes);
        }
        if !complete.parts.is_sorted_by_key(|part| part.number) {
            return Err(say(400, "InvalidPartOrder"));
        }
        if u64::try_from(whole.len()) != Ok(complete.bytes) {
            return Err(say(400, "InvalidRequest"));
        }
        if checksum::of(&whole) != complete.crc64nvme {
            return Err(say(400, "BadDigest"));
        }
        if exists {
            return Err(say(412, "PreconditionFailed"));
        }
        let metadata = std::mem::take(&mut open.metadata);
        self.uploads.remove(&(key.to_owned(), complete.upload.to_owned()));
        self.objects.insert(key.into(), Fetched { bytes: whole.into(), metadata });
        Ok(())
    }
}

impl ObjectStore for Memory {
    fn put<'a>(&'a self, put: Put<'a>) -> BoxFuture<'a, Result<(), ShipError>> {
        let Put { head, body, crc64nvme } = put;
        let effect = move |state: &mut State, body: Bytes| {
            let say = |status, code| Err(refused(Request::Put, head.key, status, code, ""));
            if checksum::of(&body) != crc64nvme {
                return say(400, "BadDigest");
            }
            if state.objects.contains_key(head.key) {
                return say(412, "PreconditionFailed");
            }
            let metadata = head.metadata.clone();
            state.objects.insert(head.key.into(), Fetched { bytes: body, metadata });
            Ok(())
        };
        Box::pin(async move {
            let body = body.whole().await?;
            self.serve(Request::Put, head.key, |state| effect(state, body)).await
        })
    }

    fn create<'a>(&'a self, head: Head<'a>) -> BoxFuture<'a, Result<String, ShipError>> {
        self.serve(Request::Create, head.key, move |state| {
            state.issued += 1;
            let id = format!("upload-{}", state.issued);
            let open = Open { metadata: head.metadata.clone(), parts: BTreeMap::new() };
            state.uploads.insert((head.key.into(), id.clone()), open);
            Ok(id)
        })
    }

    fn part<'a>(&'a self, part: Part<'a>) -> BoxFuture<'a, Result<String, ShipError>> {
        let Part { key, upload, number, body, crc64nvme } = part;
        let effect = move |state: &mut State, body: Bytes| {
            if checksum::of(&body) != crc64nvme {
                return Err(refused(Request::Part, key, 400, "BadDigest", ""));
            }
            let open = state.upload(Request::Part, key, upload)?;
            let etag = format!("\"{number}-{crc64nvme}\"");
            let stored = StoredPart {
                number,
                bytes: body.len() as u64,
                etag: etag.clone(),
                crc64nvme: crc64nvme.into(),
            };
            open.parts.insert(number, (stored, body));
            Ok(etag)
        };
        Box::pin(async move {
            let body = body.whole().await?;
            self.serve(Request::Part, key, |state| effect(state, body)).await
        })
    }

    fn complete<'a>(&'a self, complete: Complete<'a>) -> BoxFuture<'a, Result<(), ShipError>> {
        self.serve(Request::Complete, complete.key, move |state| state.complete(&complete))
    }

    fn abort<'a>(&'a self, key: &'a str, upload: &'a str) -> BoxFuture<'a, Result<(), ShipError>> {
        self.serve(Request::Abort, key, move |state| {
            state.uploads.remove(&(key.to_owned(), upload.to_owned()));
            Ok(())
        })
    }

    fn parts<'a>(
        &'a self,
        key: &'a str,
        upload: &'a str,
    ) -> BoxFuture<'a, Result<Option<Vec<StoredPart>>, ShipError>> {
        self.serve(Request::Parts, key, move |state| {
            let open = state.uploads.get(&(key.to_owned(), upload.to_owned()));
            Ok(open.map(|open| open.parts.values().map(|(part, _)| part.clone()).collect()))
        })
    }

    fn uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<OpenUpload>, ShipError>> {
        self.serve(Request::Uploads, prefix, move |state| {
            let ours = state.uploads.keys().filter(|(key, _)| key.starts_with(prefix));
            let open = |(key, upload): &(String, String)| OpenUpload {
                key: key.clone(),
                upload: upload.clone(),
                age: None,
            };
            Ok(ours.map(open).collect())
        })
    }
}

impl ObjectReader for Memory {
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Listed>, ShipError>> {
        self.serve(Request::List, prefix, move |state| {
            let from = state.objects.range(prefix.to_owned()..);
            let ours = from.take_while(|(key, _)| key.starts_with(prefix));
            let ours = ours.filter(|(key, _)| after.is_none_or(|after| key.as_str() > after));
            let listed = ours.map(|(key, object)| Listed {
                key: key.clone(),
                bytes: u64::try_from(object.bytes.len()).unwrap_or_default(),
            });
            Ok(listed.take(PAGE).collect())
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Fetched>, ShipError>> {
        self.serve(Request::Get, key, move |state| Ok(state.objects.get(key).cloned()))
    }

    fn fetch<'a>(
        &'a self,
        key: &'a str,
        into: &'a WorkFile,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Option<BTreeMap<String, String>>, ShipError>> {
        self.serve(Request::Get, key, move |state| {
            let Some(object) = state.objects.get(key) else { return Ok(None) };
            within(key, object.bytes.len() as u64, bytes_max)?;
            into.fill(&object.bytes).map_err(|error| ShipError::Spool {
                path: into.path().display().to_string(),
                why: error.to_string(),
            })?;
            Ok(Some(object.metadata.clone()))
        })
    }
}

/// Keys on a page, as S3 has it.
const PAGE: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ship::suite;

    #[tokio::test]
    async fn memory_behaves_as_s3_does() {
        let memory = Memory::default();
        suite::behaves(&memory, &memory, "raw").await;
    }
}
