//! Makes connections: bound to the link's interface, and shaped.

use std::{
    error::Error,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use tower_service::Service;

use super::{Link, Shaped, interface::Interface};

/// Dials hosts over a link, or, without one, as the routing table has it.
#[derive(Clone, Debug)]
pub struct Dialer {
    tcp: HttpConnector,
    link: Option<Arc<Link>>,
}

/// No connection over a link.
#[derive(Debug, thiserror::Error)]
#[error("link {name}: interface {interface} is {state}")]
pub struct DialError {
    name: String,
    interface: String,
    state: Interface,
    #[source]
    why: Box<dyn Error + Send + Sync>,
}

impl Dialer {
    /// Over `link`, if there is one.
    pub fn new(link: Option<Arc<Link>>) -> Self {
        let mut tcp = HttpConnector::new();
        // TLS is put over it.
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        if let Some(link) = &link {
            // Bound before it connects: without the interface there is no connection.
            tcp.set_interface(link.interface());
        }
        Self { tcp, link }
    }
}

impl Service<Uri> for Dialer {
    type Response = Shaped;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Shaped, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, host: Uri) -> Self::Future {
        let (dialed, link) = (self.tcp.call(host), self.link.clone());
        Box::pin(async move {
            match (dialed.await, link) {
                (Ok(io), None) => Ok(Shaped::free(io)),
                (Ok(io), Some(link)) => Ok(Shaped::within(link, io)),
                (Err(why), None) => Err(why.into()),
                (Err(why), Some(link)) => Err(Box::new(DialError {
                    name: link.name().into(),
                    interface: link.interface().into(),
                    state: Interface::look(link.interface()),
                    why: why.into(),
                })
                .into()),
            }
        })
    }
}

/// How long the addresses of a host may take, all together: less than TLS over it is waited for, so that it
/// is this room that says what was in the way.
const CONNECT: Duration = Duration::from_secs(8);
