//! The listener: loopback, HTTP/1.1, with TLS or without.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use super::wire::Wire;
use crate::shutdown::Tasks;

/// A certificate for loopback, and the authority that signed it.
pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    pub(super) ca_pem: String,
}

impl Tls {
    pub(super) fn new() -> io::Result<Self> {
        let ca_key = KeyPair::generate().map_err(io::Error::other)?;
        let mut ca = CertificateParams::new(vec![]).map_err(io::Error::other)?;
        // A leaf named as its issuer is passes for self-signed with OpenSSL.
        ca.distinguished_name.push(DnType::CommonName, "lakehead double authority");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Not the leaf's name, which OpenSSL would take for self-signed.
        ca.distinguished_name.push(DnType::CommonName, "lakehead S3 double");
        let ca_pem = ca.self_signed(&ca_key).map_err(io::Error::other)?.pem();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let names = vec!["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()];
        let mut leaf = CertificateParams::new(names).map_err(io::Error::other)?;
        leaf.distinguished_name.push(DnType::CommonName, "lakehead double");
        let leaf = leaf.signed_by(&key, &issuer).map_err(io::Error::other)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .map_err(io::Error::other)?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), ca_pem })
    }
}

/// Serves until told to stop; refuses connections, and breaks those there are, while `away`.
pub(super) async fn serve(
    first: TcpListener,
    address: SocketAddr,
    wire: Wire,
    tls: Option<TlsAcceptor>,
    tasks: Tasks,
    mut away: watch::Receiver<bool>,
) {
    let stop = tasks.token();
    let mut listener = Some(first);
    loop {
        if let Some(open) = listener.take() {
            let connections = tasks.child();
            tokio::select! {
                () = stop.cancelled() => {}
                _ = away.wait_for(|away| *away) => {}
                () = accept(&open, &wire, tls.as_ref(), &connections) => {}
            }
            drop(open);
            connections.stop().await;
        }
        if stop.is_cancelled() {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            _ = away.wait_for(|away| !*away) => {}
        }
        match TcpListener::bind(address).await {
            Ok(open) => listener = Some(open),
            Err(error) => {
                tracing::warn!(%error, "the double cannot listen again");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    wire: &Wire,
    tls: Option<&TlsAcceptor>,
    connections: &Tasks,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // The answer's head and body leave in one piece with it, and nothing else depends on it.
        drop(stream.set_nodelay(true));
        let (wire, tls, token) = (wire.clone(), tls.cloned(), connections.token());
        connections.spawn(async move {
            token.run_until_cancelled(Box::pin(connection(stream, wire, tls))).await;
        });
    }
}

async fn connection(stream: TcpStream, wire: Wire, tls: Option<TlsAcceptor>) {
    match tls {
        None => requests(stream, wire).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => requests(stream, wire).await,
            Err(error) => tracing::debug!(%error, "TLS handshake with the double"),
        },
    }
}

async fn requests(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, wire: Wire) {
    let service = service_fn(move |request| Box::pin(wire.clone().serve(request)));
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
    {
        tracing::debug!(%error, "connection to the double");
    }
}
