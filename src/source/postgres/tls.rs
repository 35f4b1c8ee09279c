//! The protected channel to a server: TLS by rustls, verified as `sslmode` says.
//!
//! **Invariant:** whatever the mode, the server proves that it holds the key of the certificate that
//! it shows; the modes differ only in whether that certificate is believed.

use std::{
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use aws_lc_rs::digest;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs::default_provider},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use tokio::{
    io::{self, AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use super::{
    error::SourceError,
    lull,
    url::{TlsMode, Url},
};
use crate::config::{ClientCertificate, Secret, secret};

/// A connection's bytes, in the clear or protected.
#[derive(Debug)]
pub(crate) enum Channel {
    /// In the clear.
    Plain(TcpStream),
    /// Over TLS.
    Tls(Box<TlsStream<Protected>>),
    /// In memory, to a server in the same process.
    #[cfg(feature = "sim")]
    Memory(io::DuplexStream),
}

/// What TLS reads from: by itself it would ask the kernel for 4 KiB at a time.
pub(super) type Protected = BufReader<TcpStream>;

/// Below TLS, once the server is ready for it.
pub(super) fn protected(stream: TcpStream) -> Protected {
    BufReader::with_capacity(PROTECTED_BYTES, stream)
}

impl Channel {
    /// Naps. Whether there may be something to be read afterwards. Cancel-safe.
    pub(super) async fn nap(&self, length: Duration) -> bool {
        match self {
            Self::Plain(stream) => lull::nap(stream, length).await,
            Self::Tls(stream) => {
                let (below, session) = stream.get_ref();
                let came = lull::nap(below.get_ref(), length).await;
                // What is taken from the kernel already: records, and what stands in them.
                came || !below.buffer().is_empty() || !session.wants_read()
            }
            #[cfg(feature = "sim")]
            Self::Memory(_) => {
                tokio::time::sleep(length).await;
                true
            }
        }
    }

    /// Has whoever waits for something to read woken once it is so many bytes, or the end.
    pub(super) fn wake_at(&self, bytes: i32) {
        match self {
            Self::Plain(stream) => lull::wake_at(stream, bytes),
            Self::Tls(stream) => lull::wake_at(stream.get_ref().0.get_ref(), bytes),
            #[cfg(feature = "sim")]
            Self::Memory(_) => {}
        }
    }
}

/// The TLS settings of a URL; `None` for connections in the clear.
///
/// # Errors
///
/// The file of `sslrootcert` cannot be used, or the system trusts nobody; our own certificate or its key cannot be.
pub(crate) fn settings(url: &Url) -> Result<Option<Arc<ClientConfig>>, SourceError> {
    let mode = match (url.mode, &url.root_certificates) {
        (TlsMode::Disable, _) => return Ok(None),
        // As libpq: authorities that were given are asked.
        (TlsMode::Require, Some(_)) => TlsMode::VerifyCa,
        (mode, _) => mode,
    };
    let provider = Arc::new(default_provider());
    let believes = match mode {
        TlsMode::VerifyCa | TlsMode::VerifyFull => Some(authorities(url, &provider)?),
        TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => None,
    };
    let verifier =
        Verifier { provider: Arc::clone(&provider), believes, named: mode == TlsMode::VerifyFull };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs knows TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match &url.client {
        None => config.with_no_client_auth(),
        Some(client) => {
            let (certificate, key) = ours(client)?;
            let refused = |why: Error| unusable(&client.key_file, why);
            config.with_client_auth_cert(certificate, key).map_err(refused)?
        }
    };
    Ok(Some(Arc::new(config)))
}

/// Our certificate with those between it and its authority, and its key.
fn ours(
    client: &ClientCertificate,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), SourceError> {
    let ClientCertificate { certificate_file, key_file } = client;
    let pem = std::fs::read(certificate_file).map_err(|why| unusable(certificate_file, why))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|why| unusable(certificate_file, why))?;
    if chain.is_empty() {
        return Err(unusable(certificate_file, "it holds no certificate"));
    }
    let key = Secret::new(secret(key_file)?);
    let key = PrivateKeyDer::from_pem_slice(key.expose());
    Ok((chain, key.map_err(|why| unusable(key_file, format!("no key that can be used: {why}")))?))
}

/// Reads a file that nobody else may read.
pub(super) fn secret(path: &Path) -> Result<Vec<u8>, SourceError> {
    if secret::is_exposed(path).map_err(|why| unusable(path, why))? {
        return Err(unusable(path, "others than its owner can read it"));
    }
    std::fs::read(path).map_err(|why| unusable(path, why))
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> SourceError {
    SourceError::SecretFile { path: path.display().to_string(), why: why.to_string() }
}

/// Whether a connection ended because the server does not believe who we are.
pub(super) fn refuses_us(why: &io::Error) -> bool {
    use rustls::AlertDescription as Alert;
    let inner = why.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    matches!(
        inner,
        Some(Error::AlertReceived(
            Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::CertificateRequired
                | Alert::UnknownCA
                | Alert::AccessDenied
        ))
    )
}

/// That it did.
pub(super) fn refused_us(host: String, why: &io::Error) -> SourceError {
    SourceError::Authentication { host, why: format!("the client certificate: {why}") }
}

fn authorities(url: &Url, provider: &Arc<CryptoProvider>) -> Result<Authorities, SourceError> {
    let refused = |why: String| SourceError::Certificate { host: url.hosts_text(), why };
    let given = match &url.root_certificates {
        Some(path) => {
            let shown = path.display();
            let pem = std::fs::read(path)
                .map_err(|why| refused(format!("sslrootcert {shown}: {why}")))?;
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            let read = read.map_err(|why| refused(format!("sslrootcert {shown}: {why}")))?;
            if read.is_empty() {
                return Err(refused(format!("sslrootcert {shown} holds no certificate")));
            }
            read
        }
        None => vec![],
    };
    let mut roots = RootCertStore::empty();
    if url.root_certificates.is_some() {
        roots.add_parsable_certificates(given.iter().cloned());
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let chain = chain.build().map_err(|why| refused(format!("no authority is trusted: {why}")))?;
    Ok(Authorities { chain, given })
}

/// Who is believed.
#[derive(Debug)]
struct Authorities {
    chain: Arc<WebPkiServerVerifier>,
    /// The certificates in `sslrootcert`: the server's own, self-signed, may be among them.
    given: Vec<CertificateDer<'static>>,
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    believes: Option<Authorities>,
    named: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authorities) = &self.believes else {
            return Ok(ServerCertVerified::assertion());
        };
        // A self-signed certificate that was handed over is believed for itself: webpki refuses an
        // authority as a server, which is what `openssl req -x509` makes.
        if authorities.given.iter().any(|given| given == end_entity) {
            if self.named {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let verified =
            authorities.chain.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        match verified {
            // The name is looked at last: this certificate is signed by an authority.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.named => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl Channel {
    /// Where the server is.
    pub(crate) fn peer(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Plain(stream) => stream.peer_addr(),
            Self::Tls(stream) => stream.get_ref().0.get_ref().peer_addr(),
            #[cfg(feature = "sim")]
            Self::Memory(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }

    /// Whether nobody on the way can read it.
    pub(crate) fn is_protected(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// What SCRAM binds a log-in to: `tls-server-end-point` (RFC 5929).
    pub(crate) fn end_point(&self) -> Option<Vec<u8>> {
        match self {
            Self::Plain(_) => None,
            #[cfg(feature = "sim")]
            Self::Memory(_) => None,
            Self::Tls(stream) => {
                let (_, session) = stream.get_ref();
                end_point(session.peer_certificates()?.first()?)
            }
        }
    }
}

/// Hash of a certificate by the hash of its signature's algorithm. `None` where that has none of its own.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OID, … }, … }
    let (whole, _) = der(certificate)?;
    let (_, after) = der(whole)?;
    let (algorithm, _) = der(after)?;
    let (oid, _) = der(algorithm)?;
    let hash = SIGNATURE_HASHES.iter().find(|(known, _)| *known == oid).map(|(_, hash)| *hash)?;
    Some(digest::digest(hash, certificate).as_ref().to_vec())
}

/// Content of the first DER element, and what follows it.
fn der(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.get(1..)?.split_first()?;
    let (length, rest) = match first {
        short @ 0..0x80 => (usize::from(short), rest),
        long => {
            let (digits, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            if digits.len() > 4 {
                return None;
            }
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
        }
    };
    rest.split_at_checked(length)
}

/// Object identifiers of signatures (RFC 8017, RFC 5758) and their hashes; MD5 and SHA-1 count as
/// SHA-256 (RFC 5929 §4.1).
static SIGNATURE_HASHES: [(&[u8], &digest::Algorithm); 10] = [
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04", &digest::SHA256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05", &digest::SHA256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", &digest::SHA256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c", &digest::SHA384),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d", &digest::SHA512),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0e", &digest::SHA224),
    (b"\x2a\x86\x48\xce\x3d\x04\x01", &digest::SHA256),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x02", &digest::SHA256),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x03", &digest::SHA384),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x04", &digest::SHA512),
];

impl AsyncRead for Channel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            #[cfg(feature = "sim")]
            Self::Memory(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Channel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            #[cfg(feature = "sim")]
            Self::Memory(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(feature = "sim")]
            Self::Memory(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(feature = "sim")]
            Self::Memory(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl tokio_postgres::tls::TlsStream for Channel {
    fn channel_binding(&self) -> tokio_postgres::tls::ChannelBinding {
        use tokio_postgres::tls::ChannelBinding;
        self.end_point().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

/// As much as a record of the largest, four times.
const PROTECTED_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;
    use rustls::ServerConfig;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_rustls::{TlsAcceptor, TlsConnector, server};

    use super::*;

    /// A channel, and the server at its other end.
    async fn pair() -> (Channel, server::TlsStream<TcpStream>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes());
        let theirs = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.unwrap())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let url = Url::parse("postgresql://box@localhost/shop?sslmode=require").unwrap();
        let ours = TlsConnector::from(settings(&url).unwrap().unwrap());
        let name = ServerName::try_from("localhost").unwrap();
        let (client, server) = tokio::join!(
            ours.connect(name, protected(stream)),
            TlsAcceptor::from(Arc::new(theirs)).accept(accepted)
        );
        (Channel::Tls(Box::new(client.unwrap())), server.unwrap())
    }

    async fn send(server: &mut server::TlsStream<TcpStream>, bytes: &[u8]) {
        server.write_all(bytes).await.unwrap();
        server.flush().await.unwrap();
    }

    #[tokio::test]
    async fn all_records_that_have_come_are_read_at_once() {
        let (mut channel, mut server) = pair().await;
        for n in 0..20 {
            send(&mut server, &[n; 1000]).await;
        }
        assert!(channel.nap(Duration::from_millis(50)).await);
        let mut read = BytesMut::with_capacity(64 << 10);
        assert_eq!(channel.read_buf(&mut read).await.unwrap(), 20_000);
        assert!(read.chunks(1000).zip(0..).all(|(chunk, n)| chunk == [n; 1000]));
        assert!(!channel.nap(Duration::from_millis(1)).await);
        // No more than there is room for; the rest is there, in whatever buffer.
        send(&mut server, &[7; 9000]).await;
        assert!(channel.nap(Duration::from_millis(50)).await);
        channel.read_exact(&mut [0; 8999]).await.unwrap();
        assert!(channel.nap(Duration::from_millis(1)).await);
        assert_eq!(channel.read(&mut [0; 2]).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn what_came_before_an_end_is_read_before_it() {
        for is_in_order in [true, false] {
            let (mut channel, mut server) = pair().await;
            send(&mut server, &[7; 100]).await;
            match is_in_order {
                true => server.shutdown().await.unwrap(),
                false => server.get_mut().0.shutdown().await.unwrap(),
            }
            assert!(channel.nap(Duration::from_millis(50)).await);
            let mut read = BytesMut::with_capacity(64 << 10);
            assert_eq!(channel.read_buf(&mut read).await.unwrap(), 100);
            let end = channel.read_buf(&mut read).await;
            match is_in_order {
                true => assert_eq!(end.unwrap(), 0),
                false => assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof),
            }
        }
    }

    /// A DER element.
    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        match u8::try_from(content.len()) {
            Ok(short) if short < 0x80 => bytes.push(short),
            _ => {
                bytes.push(0x82);
                bytes.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
            }
        }
        bytes.extend(content);
        bytes
    }

    #[test]
    fn the_channel_is_bound_by_the_hash_of_the_certificates_signature() {
        let signed = |oid: &[u8]| {
            let inside =
                [element(0x30, &[7; 300]), element(0x30, &element(6, oid)), element(3, &[1; 64])];
            element(0x30, &inside.concat())
        };
        let rsa384 = signed(b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c");
        let hashed = digest::digest(&digest::SHA384, &rsa384);
        assert_eq!(end_point(&rsa384).unwrap(), hashed.as_ref());
        let ed25519 = signed(b"\x2b\x65\x70");
        assert_eq!(end_point(&ed25519), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_certificate_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            drop(end_point(&bytes));
        }
    }
}
