//! The SDK's way to send a request: HTTP/1.1 by hyper, over connections that another dials.
//!
//! Nothing here retries, and no proxy is looked for: bytes go by the dialer's way or not at all (P6).

use std::{
    error::Error,
    fmt, io,
    task::{Context, Poll},
    time::Duration,
};

use aws_smithy_runtime_api::client::{
    http::{
        HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
        SharedHttpConnector,
    },
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::body::SdkBody;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, Write};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::Connection},
    rt::{TokioExecutor, TokioTimer},
};
use tower_service::Service;

/// Makes connections to hosts.
pub trait Dial:
    Service<
        Uri,
        Response: Read + Write + Connection + Send + Unpin + 'static,
        Error: Into<BoxError>,
        Future: Send + 'static,
    > + Clone
    + Send
    + Sync
    + 'static
{
}

impl<D> Dial for D where
    D: Service<
            Uri,
            Response: Read + Write + Connection + Send + Unpin + 'static,
            Error: Into<BoxError>,
            Future: Send + 'static,
        > + Clone
        + Send
        + Sync
        + 'static
{
}

/// The client of all requests, over connections that `dial` makes.
pub(super) fn http_client(dial: impl Dial, tls: rustls::ClientConfig) -> SharedHttpClient {
    let https = InTime(HttpsConnector::from((dial, tls)));
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .build(https);
    SharedHttpClient::new(Http(SharedHttpConnector::new(Hyper(client))))
}

/// One connector for all settings: its bounds are its own.
#[derive(Debug)]
struct Http(SharedHttpConnector);

impl HttpClient for Http {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        self.0.clone()
    }
}

struct Hyper<D>(Client<InTime<D>, SdkBody>);

impl<D> fmt::Debug for Hyper<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hyper")
    }
}

impl<D: Dial> HttpConnector for Hyper<D> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => {
                return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into())));
            }
        };
        let answer = self.0.request(request);
        HttpConnectorFuture::new(async move {
            let answer = answer.await.map_err(|error| ConnectorError::io(error.into()))?;
            HttpResponse::try_from(answer.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// Dials, TLS included, within [`CONNECT`].
#[derive(Clone)]
struct InTime<D>(D);

impl<D: Dial> Service<Uri> for InTime<D> {
    type Response = D::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<D::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, host: Uri) -> Self::Future {
        let dialed = self.0.call(host);
        Box::pin(async move {
            match tokio::time::timeout(CONNECT, dialed).await {
                Ok(connection) => connection.map_err(Into::into),
                Err(_) => {
                    let what = format!("no connection within {CONNECT:?}");
                    Err(io::Error::new(io::ErrorKind::TimedOut, what).into())
                }
            }
        })
    }
}

type BoxError = Box<dyn Error + Send + Sync>;

/// S3 closes idle connections itself after about 20 s; one that it has closed costs a retry.
const IDLE: Duration = Duration::from_secs(15);
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
