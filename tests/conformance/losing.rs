//! A door that loses answers: to a store that others wrote, whose effects are real.

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use lakehead::ship::{
    Complete, Head, ObjectStore, OpenUpload, Part, Put, Request, ShipError, StoredPart, s3::S3,
};
use tokio_util::sync::CancellationToken;

/// What becomes of one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Loss {
    /// It never arrives.
    Request,
    /// It takes effect, its answer does not arrive.
    Answer,
    /// It takes effect, and then the power fails: nothing more is asked.
    Power,
    /// The power fails before it is sent.
    Dark,
}

/// A door that loses what it is told to, once.
pub(crate) struct Losing {
    s3: S3,
    next: Mutex<Option<(Request, Loss)>>,
    asked: Mutex<Vec<Request>>,
    /// By so much the uploads are older that the store lists: its clock is nobody's to set.
    pub(crate) older: Duration,
    /// The power has failed.
    pub(crate) dark: CancellationToken,
}

impl Losing {
    pub(crate) fn new(s3: S3, next: Option<(Request, Loss)>) -> Self {
        let (next, asked) = (Mutex::new(next), Mutex::default());
        Self { s3, next, asked, older: Duration::ZERO, dark: CancellationToken::new() }
    }

    /// How often this was asked.
    pub(crate) fn count(&self, request: Request) -> usize {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|each| **each == request).count()
    }

    /// Whether the loss has happened.
    pub(crate) fn struck(&self) -> bool {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn serve<'a, T: Send>(
        &'a self,
        request: Request,
        key: &'a str,
        call: impl Future<Output = Result<T, ShipError>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, ShipError>> {
        Box::pin(async move {
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(request);
            let due = |(of, _): &mut (Request, Loss)| *of == request;
            let loss = self.next.lock().unwrap_or_else(PoisonError::into_inner).take_if(due);
            let lost = || {
                let (request, why) = (request.name(), "lost on purpose".into());
                Err(ShipError::Unanswered { request, key: key.into(), why })
            };
            match loss {
                Some((_, Loss::Request)) => return lost(),
                Some((_, Loss::Answer)) => {
                    call.await?;
                    return lost();
                }
                Some((_, loss @ (Loss::Power | Loss::Dark))) => {
                    if loss == Loss::Power {
                        call.await?;
                    }
                    self.dark.cancel();
                    return std::future::pending().await;
                }
                None => {}
            }
            call.await
        })
    }
}

impl ObjectStore for Losing {
    fn put<'a>(&'a self, put: Put<'a>) -> BoxFuture<'a, Result<(), ShipError>> {
        self.serve(Request::Put, put.head.key, self.s3.put(put))
    }

    fn create<'a>(&'a self, head: Head<'a>) -> BoxFuture<'a, Result<String, ShipError>> {
        self.serve(Request::Create, head.key, self.s3.create(head))
    }

    fn part<'a>(&'a self, part: Part<'a>) -> BoxFuture<'a, Result<String, ShipError>> {
        self.serve(Request::Part, part.key, self.s3.part(part))
    }

    fn complete<'a>(&'a self, complete: Complete<'a>) -> BoxFuture<'a, Result<(), ShipError>> {
        self.serve(Request::Complete, complete.key, self.s3.complete(complete))
    }

    fn abort<'a>(&'a self, key: &'a str, upload: &'a str) -> BoxFuture<'a, Result<(), ShipError>> {
        self.serve(Request::Abort, key, self.s3.abort(key, upload))
    }

    fn parts<'a>(
        &'a self,
        key: &'a str,
        upload: &'a str,
    ) -> BoxFuture<'a, Result<Option<Vec<StoredPart>>, ShipError>> {
        self.serve(Request::Parts, key, self.s3.parts(key, upload))
    }

    fn uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<OpenUpload>, ShipError>> {
        let listed = async {
            let mut listed = self.s3.uploads(prefix).await?;
            listed
                .iter_mut()
                .filter_map(|open| open.age.as_mut())
                .for_each(|age| *age += self.older);
            Ok(listed)
        };
        self.serve(Request::Uploads, prefix, listed)
    }
}
