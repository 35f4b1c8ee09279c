//! An S3 in memory that verifies before it stores, behind a wire that loses, delays and repeats.
//!
//! A request is put on the wire with the time at which it takes effect, and waits for its answer apart from
//! that: the answer can be lost, the effect come after the asker has given up or died, and come twice. Of
//! the store itself only what S3 promises is true: reads after writes, conditional writes, whole effects.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use super::{
    bucket::{Answer, Ask, Bucket, Who},
    chronicle::Chronicle,
    fuse::Fuse,
    lock,
    oracle::Oracle,
    planted::Planted,
};
use crate::{
    disk::work::WorkFile,
    error::Cause,
    ship::{
        Complete, Fetched, Head, Listed, ObjectReader, ObjectStore, OpenUpload, Part, Put, Request,
        ShipError, StoredPart,
    },
};

/// The lake and the way to it. Clones are one.
#[derive(Clone)]
pub(crate) struct ModelLake(Arc<Mutex<State>>);

struct State {
    bucket: Bucket,
    random: fastrand::Rng,
    weather: Weather,
    /// By the time at which they take effect.
    wire: BTreeMap<(Instant, u64), (Who, Ask, bool)>,
    answers: BTreeMap<u64, Result<Answer, ShipError>>,
    tickets: u64,
}

/// How likely what is, in 1000 requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// Neither effect nor answer.
    pub(crate) dropped: u16,
    /// Effect without an answer.
    pub(crate) lost: u16,
    /// Effect long after the asker has given up.
    pub(crate) late: u16,
    /// Effect twice.
    pub(crate) twice: u16,
    /// 500, 503 without effect; SlowDown among them.
    pub(crate) busy: u16,
    /// 409 without effect.
    pub(crate) conflict: u16,
    /// 403: a person must act.
    pub(crate) denied: u16,
    /// No answer for half a minute.
    pub(crate) stalled: u16,
    /// A listing of parts from a moment ago.
    pub(crate) stale: u16,
    /// No connection at all.
    pub(crate) down: bool,
}

/// What one box sees of it.
#[derive(Clone)]
pub(crate) struct LakeClient {
    pub(crate) lake: ModelLake,
    pub(crate) who: Who,
    pub(crate) fuse: Fuse,
    pub(crate) oracle: Oracle,
    pub(crate) planted: Option<Planted>,
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    Good,
    Dropped,
    Lost,
    Late,
    Twice,
    Busy,
    Slow,
    Conflict,
    Denied,
    Stalled,
}

impl ModelLake {
    pub(crate) fn new(chronicle: Chronicle, oracle: Oracle, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            bucket: Bucket::new(chronicle, oracle),
            random: fastrand::Rng::with_seed(seed),
            weather: Weather::default(),
            wire: BTreeMap::new(),
            answers: BTreeMap::new(),
            tickets: 0,
        })))
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        lock(&self.0).weather = weather;
    }

    /// Carries out what is due.
    pub(crate) fn pump(&self) {
        let state = &mut *lock(&self.0);
        let now = Instant::now();
        while let Some(entry) = state.wire.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, ticket), (who, ask, wanted)) = entry.remove_entry();
            let answer = state.bucket.apply(who, ask);
            if wanted {
                state.answers.insert(ticket, answer);
            }
        }
    }

    /// Ids and keys of open uploads.
    pub(crate) fn uploads(&self) -> Vec<(String, String)> {
        lock(&self.0).bucket.uploads()
    }

    /// Has so much time passed since all that was begun.
    pub(crate) fn age(&self, by: Duration) {
        lock(&self.0).bucket.age(by);
    }

    /// Requests that will still take effect.
    pub(crate) fn under_way(&self) -> usize {
        lock(&self.0).wire.len()
    }
}

impl State {
    fn fate(&mut self, ask: &Ask) -> Fate {
        let weather = self.weather;
        if weather.down {
            return Fate::Dropped;
        }
        let writes = matches!(ask, Ask::Put { .. } | Ask::Complete { .. });
        let mut dice = self.random.u16(..1000);
        for (chance, fate) in [
            (weather.dropped, Fate::Dropped),
            (weather.lost, Fate::Lost),
            (weather.late, Fate::Late),
            (weather.twice, Fate::Twice),
            (weather.busy, if self.random.u8(..4) == 0 { Fate::Slow } else { Fate::Busy }),
            (if writes { weather.conflict } else { 0 }, Fate::Conflict),
            (weather.denied, Fate::Denied),
            (weather.stalled, Fate::Stalled),
        ] {
            if dice < chance {
                return fate;
            }
            dice -= chance;
        }
        Fate::Good
    }

    /// Does to a request what its fate says. The ticket of its answer, if one will come, and how long the
    /// asker waits, in ms.
    fn take(&mut self, who: Who, ask: Ask, fate: Fate) -> (Option<u64>, u64) {
        let (way, back) = (self.random.u64(1..15), self.random.u64(1..15));
        match fate {
            Fate::Good => (Some(self.send(who, ask, way, true)), way + back),
            Fate::Twice => {
                let again = way + self.random.u64(100..3_000);
                self.send(who, ask.clone(), again, false);
                (Some(self.send(who, ask, way, true)), way + back)
            }
            Fate::Lost => {
                self.send(who, ask, way, false);
                (None, way + self.random.u64(100..2_000))
            }
            Fate::Late => {
                let late = self.random.u64(100..20_000);
                self.send(who, ask, late, false);
                (None, self.random.u64(100..1_500))
            }
            Fate::Stalled => {
                if self.random.bool() {
                    let late = self.random.u64(100..40_000);
                    self.send(who, ask, late, false);
                }
                (None, 30_000)
            }
            Fate::Dropped => (None, self.random.u64(100..2_000)),
            Fate::Busy | Fate::Slow | Fate::Conflict | Fate::Denied => (None, way + back),
        }
    }

    /// Puts a request on the wire. Its ticket.
    fn send(&mut self, who: Who, ask: Ask, after_ms: u64, wanted: bool) -> u64 {
        self.tickets += 1;
        let due = Instant::now() + Duration::from_millis(after_ms);
        self.wire.insert((due, self.tickets), (who, ask, wanted));
        self.tickets
    }
}

impl LakeClient {
    /// Sends a request and waits for what its fate says.
    async fn ask(&self, request: Request, key: &str, mut ask: Ask) -> Result<Answer, ShipError> {
        if !self.fuse.burn() {
            return std::future::pending().await;
        }
        self.oracle.sends(self.who, &ask);
        let (fate, ticket, wait_ms) = {
            let state = &mut *lock(&self.lake.0);
            let fate = state.fate(&ask);
            if let Ask::Parts { stale, .. } = &mut ask {
                *stale = state.random.u16(..1000) < state.weather.stale;
            }
            let (ticket, wait_ms) = state.take(self.who, ask, fate);
            (fate, ticket, wait_ms)
        };
        sleep_until(Instant::now() + Duration::from_millis(wait_ms)).await;
        self.lake.pump();
        let failed = |status, code: &str, cause| ShipError::Failed {
            request: request.name(),
            key: key.into(),
            status,
            code: code.into(),
            message: String::new(),
            cause,
        };
        let answer = match (fate, ticket) {
            (_, Some(ticket)) => {
                let answer = lock(&self.lake.0).answers.remove(&ticket);
                answer.unwrap_or_else(|| Err(failed(500, "InternalError", Cause::LakeUnavailable)))
            }
            (Fate::Busy, _) => Err(failed(503, "ServiceUnavailable", Cause::LakeUnavailable)),
            (Fate::Slow, _) => Err(failed(503, "SlowDown", Cause::LakeSlowDown)),
            (Fate::Denied, _) => Err(failed(403, "AccessDenied", Cause::LakeForbidden)),
            (Fate::Conflict, _) => Err(ShipError::Conflict { key: key.into() }),
            _ => Err(ShipError::Unanswered {
                request: request.name(),
                key: key.into(),
                why: "reset".into(),
            }),
        };
        if self.fuse.is_dead() {
            return std::future::pending().await;
        }
        self.oracle.answered(self.who, request, key, fate == Fate::Good, &answer);
        answer
    }

    /// Whether success is claimed for a foreign object.
    fn accepts<T>(&self, answer: &Result<T, ShipError>) -> bool {
        self.planted == Some(Planted::AcceptForeign)
            && matches!(answer, Err(ShipError::Exists { .. }))
    }
}

impl ObjectStore for LakeClient {
    fn put<'a>(&'a self, put: Put<'a>) -> BoxFuture<'a, Result<(), ShipError>> {
        Box::pin(async move {
            let key = put.head.key;
            let (body, crc64nvme) = (put.body.whole().await?, put.crc64nvme.to_owned());
            let ask = Ask::Put { key: key.into(), body, crc64nvme };
            if self.planted == Some(Planted::EntryFirst) {
                let state = &mut *lock(&self.lake.0);
                let late = state.random.u64(1_000..8_000);
                state.send(self.who, ask, late, false);
                return Ok(());
            }
            let answer = self.ask(Request::Put, key, ask).await;
            if self.accepts(&answer) { Ok(()) } else { answer.map(drop) }
        })
    }

    fn create<'a>(&'a self, head: Head<'a>) -> BoxFuture<'a, Result<String, ShipError>> {
        Box::pin(async move {
            let ask = Ask::Create { key: head.key.into() };
            Ok(self.ask(Request::Create, head.key, ask).await?.text())
        })
    }

    fn part<'a>(&'a self, part: Part<'a>) -> BoxFuture<'a, Result<String, ShipError>> {
        Box::pin(async move {
            let ask = Ask::Part {
                key: part.key.into(),
                upload: part.upload.into(),
                number: part.number,
                body: part.body.whole().await?,
                crc64nvme: part.crc64nvme.into(),
            };
            Ok(self.ask(Request::Part, part.key, ask).await?.text())
        })
    }

    fn complete<'a>(&'a self, complete: Complete<'a>) -> BoxFuture<'a, Result<(), ShipError>> {
        Box::pin(async move {
            let ask = Ask::Complete {
                key: complete.key.into(),
                upload: complete.upload.into(),
                parts: complete.parts.to_vec(),
                bytes: complete.bytes,
                crc64nvme: complete.crc64nvme.into(),
            };
            let answer = self.ask(Request::Complete, complete.key, ask).await;
            if self.accepts(&answer) { Ok(()) } else { answer.map(drop) }
        })
    }

    fn abort<'a>(&'a self, key: &'a str, upload: &'a str) -> BoxFuture<'a, Result<(), ShipError>> {
        Box::pin(async move {
            let ask = Ask::Abort { key: key.into(), upload: upload.into() };
            self.ask(Request::Abort, key, ask).await.map(drop)
        })
    }

    fn parts<'a>(
        &'a self,
        key: &'a str,
        upload: &'a str,
    ) -> BoxFuture<'a, Result<Option<Vec<StoredPart>>, ShipError>> {
        Box::pin(async move {
            let ask = Ask::Parts { key: key.into(), upload: upload.into(), stale: false };
            match self.ask(Request::Parts, key, ask).await? {
                Answer::Parts(parts) => Ok(parts),
                _ => Ok(None),
            }
        })
    }

    fn uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<OpenUpload>, ShipError>> {
        Box::pin(async move {
            let ask = Ask::Uploads { prefix: prefix.into() };
            match self.ask(Request::Uploads, prefix, ask).await? {
                Answer::Uploads(_) if self.planted == Some(Planted::UploadForgotten) => Ok(vec![]),
                Answer::Uploads(open) => Ok(open),
                _ => Ok(vec![]),
            }
        })
    }
}

impl ObjectReader for ModelLake {
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Listed>, ShipError>> {
        Box::pin(async move { Ok(lock(&self.0).bucket.list(prefix, after)) })
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Fetched>, ShipError>> {
        Box::pin(async move {
            let bytes = lock(&self.0).bucket.object(key);
            Ok(bytes.map(|bytes| Fetched { bytes, metadata: BTreeMap::new() }))
        })
    }

    fn fetch<'a>(
        &'a self,
        key: &'a str,
        _: &'a WorkFile,
        _: u64,
    ) -> BoxFuture<'a, Result<Option<BTreeMap<String, String>>, ShipError>> {
        Box::pin(async move { Ok(lock(&self.0).bucket.object(key).map(|_| BTreeMap::new())) })
    }
}
