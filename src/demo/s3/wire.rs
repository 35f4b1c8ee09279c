//! Between the connection and `s3s`: the log, the faults and the clock.
//!
//! **Invariant:** a request's effect and the fate of its answer stand in the log before the client can
//! know of either.

use std::{
    future::pending,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use percent_encoding::percent_decode_str;
use s3s::{Body, HttpResponse, S3Error, S3ErrorCode, service::S3Service};

use super::{
    faults::{Fault, Faults},
    log::{Asked, Log, Place},
    operations::Operations,
};
use crate::clock::{Clock, SystemClock};

/// What a connection serves its requests with.
#[derive(Clone)]
pub(super) struct Wire {
    pub(super) service: S3Service,
    pub(super) operations: Operations,
    pub(super) log: Arc<Log>,
    pub(super) faults: Arc<Faults>,
}

/// Makes hyper close the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("a fault closes the connection")]
pub(super) struct Closed;

impl Wire {
    /// Answers one request, or closes its connection.
    pub(super) async fn serve(
        self,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<Outbound>, Closed> {
        let asked = asked(&request);
        let (operation, key) = (asked.operation, asked.key.clone());
        let place = self.log.open(asked, SystemClock.now());
        let fault = self.faults.strike(operation, &key);
        if let Some(fault) = &fault {
            place.write(|asked| asked.fault = Some(format!("{fault:?}")));
        }
        let response = self.answer(request, operation, fault, &place).await?;
        let status = response.status();
        place.write(|asked| asked.status = Some(status.as_u16()));
        let (mut parts, inner) = response.into_parts();
        let at = jiff::Timestamp::from_microsecond(self.operations.now()).unwrap_or_default();
        let date = at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        if let Ok(date) = HeaderValue::from_str(&date) {
            parts.headers.insert(header::DATE, date);
        }
        Ok(http::Response::from_parts(parts, Outbound::new(inner, place)))
    }

    async fn answer(
        &self,
        request: http::Request<Incoming>,
        operation: &'static str,
        fault: Option<Fault>,
        place: &Place,
    ) -> Result<HttpResponse, Closed> {
        let skewed = self.skewed(&request);
        let (parts, body) = request.into_parts();
        let slot = Slot::default();
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        let (cut, corrupt) = match fault {
            Some(Fault::Cut(after)) => (Some(after), false),
            Some(Fault::Corrupt) => (None, true),
            _ => (None, false),
        };
        let body = Inbound { slot: slot.clone(), place: place.clone(), cut, corrupt, seen: 0 };
        match &fault {
            Some(Fault::Stall) => {
                drain(body).await;
                return pending().await;
            }
            Some(Fault::Cut(_)) => {
                drain(body).await;
                return Err(Closed);
            }
            Some(Fault::Refuse(status, code)) => {
                drain(body).await;
                return Ok(error(*status, code));
            }
            Some(Fault::ErrorBody) => {
                drain(body).await;
                return Ok(error(200, "InternalError"));
            }
            Some(Fault::Delay(pause)) => tokio::time::sleep(*pause).await,
            _ if skewed => {
                drain(body).await;
                return Ok(error(403, "RequestTimeTooSkewed"));
            }
            _ => {}
        }
        let request = http::Request::from_parts(parts, Body::http_body_unsync(body));
        let response = self.service.call(request).await.map_err(|_| Closed)?;
        let applied = changes(operation) && response.status().is_success();
        place.write(|asked| asked.applied = applied);
        // What refused the request before its end leaves a client in the middle of sending.
        drain(Inbound { slot, place: place.clone(), cut: None, corrupt: false, seen: 0 }).await;
        match fault {
            Some(Fault::LoseAnswer) => Err(Closed),
            Some(Fault::ErrorBodyAfter) => Ok(error(200, "InternalError")),
            _ => Ok(response),
        }
    }

    /// Whether the request was signed more than 15 minutes from the double's time.
    fn skewed(&self, request: &http::Request<Incoming>) -> bool {
        let date = request.headers().get("x-amz-date").and_then(|value| value.to_str().ok());
        let at = date.and_then(|text| {
            let civil = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?;
            Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_microsecond())
        });
        let ahead = self.operations.ahead_s.load(Ordering::Relaxed) != 0;
        ahead && at.is_some_and(|at| (at - self.operations.now()).abs() > SKEW_MICROS_MAX)
    }
}

/// What the request says of itself.
fn asked(request: &http::Request<Incoming>) -> Asked {
    let path = percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned();
    let path = path.trim_start_matches('/');
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    let query = request.uri().query().unwrap_or("");
    let value = |name: &str| {
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let found = pairs.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| percent_decode_str(value).decode_utf8_lossy().into_owned())
    };
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let access = header("authorization")
        .and_then(|text| text.split_once("Credential=")?.1.split('/').next().map(str::to_owned));
    let has = |name: &str| value(name).is_some();
    let operation = match (request.method(), bucket.is_empty(), key.is_empty()) {
        (_, true, _) => "ListBuckets",
        (&Method::GET, _, true) if has("uploads") => "ListMultipartUploads",
        (&Method::GET, _, true) if has("location") => "GetBucketLocation",
        (&Method::GET, _, true) => "ListObjectsV2",
        (&Method::HEAD, _, true) => "HeadBucket",
        (&Method::PUT, _, true) => "CreateBucket",
        (&Method::GET, _, false) if has("uploadId") => "ListParts",
        (&Method::GET, _, false) => "GetObject",
        (&Method::HEAD, _, false) => "HeadObject",
        (&Method::PUT, _, false) if has("uploadId") => "UploadPart",
        (&Method::PUT, _, false) => "PutObject",
        (&Method::POST, _, false) if has("uploads") => "CreateMultipartUpload",
        (&Method::POST, _, false) => "CompleteMultipartUpload",
        (&Method::DELETE, _, false) if has("uploadId") => "AbortMultipartUpload",
        (&Method::DELETE, _, false) => "DeleteObject",
        _ => "Other",
    };
    Asked {
        operation,
        method: request.method().to_string(),
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        query: query.to_owned(),
        access_key: access.unwrap_or_default(),
        part: value("partNumber").and_then(|number| number.parse().ok()),
        upload: value("uploadId"),
        if_none_match: header("if-none-match").map(str::to_owned),
        ..Asked::default()
    }
}

fn changes(operation: &str) -> bool {
    !operation.starts_with("Get")
        && !operation.starts_with("Head")
        && !operation.starts_with("List")
        && operation != "Other"
}

/// An error answer as S3 makes it.
fn error(status: u16, code: &str) -> HttpResponse {
    let code: S3ErrorCode = code.parse().unwrap_or(S3ErrorCode::InternalError);
    let mut error = S3Error::with_message(code, "asked for by a test");
    error.set_status_code(StatusCode::from_u16(status).unwrap_or_default());
    error.to_http_response().unwrap_or_default()
}

type Slot = Arc<Mutex<Option<Incoming>>>;

/// A request's body on its way in. What is not read stays in the slot.
struct Inbound {
    slot: Slot,
    place: Place,
    cut: Option<u64>,
    corrupt: bool,
    seen: u64,
}

impl HttpBody for Inbound {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let polled = match &mut *self.slot.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(incoming) => Pin::new(incoming).poll_frame(cx),
            None => Poll::Ready(None),
        };
        let frame = match polled {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => {
                return Poll::Ready(Some(Err(io::Error::other(error))));
            }
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        let Ok(mut data) = frame.into_data() else { return Poll::Ready(None) };
        let length = u64::try_from(data.len()).unwrap_or_default();
        self.seen += length;
        self.place.write(|asked| asked.bytes += length);
        if self.cut.is_some_and(|after| self.seen >= after) {
            return Poll::Ready(Some(Err(io::Error::other(Closed))));
        }
        if self.corrupt && !data.is_empty() {
            self.corrupt = false;
            let mut turned = data.to_vec();
            turned[0] ^= 1;
            data = turned.into();
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        let slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

async fn drain(mut body: Inbound) {
    while let Some(Ok(_)) = body.frame().await {}
}

/// An answer's body on its way out; tells the log when all of it was taken.
pub(super) struct Outbound {
    inner: Body,
    place: Place,
}

impl Outbound {
    fn new(inner: Body, place: Place) -> Self {
        if inner.is_end_stream() {
            place.write(|asked| asked.delivered = true);
        }
        Self { inner, place }
    }
}

impl HttpBody for Outbound {
    type Data = Bytes;
    type Error = s3s::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, s3s::StdError>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || self.inner.is_end_stream() {
            self.place.write(|asked| asked.delivered = true);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

const SKEW_MICROS_MAX: i64 = 15 * 60 * 1_000_000;
