//! The way to the endpoint: TLS by rustls with aws-lc, the system's authorities or given ones.
//!
//! **Invariant:** bytes go in the clear to loopback only; there is no way to trust a certificate blindly.

use std::{fs, net::IpAddr, path::Path, time::Duration};

use aws_smithy_http_client::{Builder, tls};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{ShipError, failure::chain};
use crate::error::Cause;

/// Refuses endpoints to which bytes would go in the clear.
pub(super) fn confidential(endpoint: &str) -> Result<(), String> {
    let url = url::Url::parse(endpoint).map_err(|why| format!("endpoint `{endpoint}`: {why}"))?;
    let loopback = match url.host() {
        Some(url::Host::Ipv4(ip)) => IpAddr::V4(ip).is_loopback(),
        Some(url::Host::Ipv6(ip)) => IpAddr::V6(ip).is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    match url.scheme() {
        "https" => Ok(()),
        "http" if loopback => Ok(()),
        "http" => Err(format!("endpoint `{endpoint}`: http:// only to loopback; use https://")),
        other => Err(format!("endpoint `{endpoint}`: `{other}` is neither https nor http")),
    }
}

/// The client of all requests to `endpoint`, of AWS if it is `None`.
pub(super) fn http_client(
    endpoint: Option<&str>,
    ca_file: Option<&Path>,
) -> Result<SharedHttpClient, ShipError> {
    let mut trust = tls::TrustStore::empty();
    match ca_file {
        None if endpoint.is_some_and(|url| url.starts_with("http://")) => {}
        // The SDK's own lookup takes an empty list for a defect.
        None if rustls_native_certs::load_native_certs().certs.is_empty() => {
            let what =
                "this system trusts no authority: install ca-certificates, or name a ca_file";
            return Err(setup(Cause::Config)(what.into()));
        }
        None => trust = trust.with_native_roots(true),
        Some(path) => {
            let what =
                |why: String| setup(Cause::Config)(format!("ca_file {}: {why}", path.display()));
            let pem = fs::read(path).map_err(|error| what(error.to_string()))?;
            // The SDK panics on what is none, so it is looked at here first.
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            let found = found.map_err(|error| what(format!("{error:?}")))?;
            let mut roots = rustls::RootCertStore::empty();
            let (good, bad) = roots.add_parsable_certificates(found);
            if good == 0 || bad > 0 {
                return Err(what("holds no certificate, or one that cannot be read".into()));
            }
            trust = trust.with_pem_certificate(pem);
        }
    }
    let context = tls::TlsContext::builder().with_trust_store(trust).build();
    let context = context.map_err(|error| setup(Cause::Config)(chain(&error)))?;
    Ok(Builder::new()
        .pool_idle_timeout(IDLE)
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
        .tls_context(context)
        .build_https())
}

/// An error of the configuration.
pub(super) fn setup(cause: Cause) -> impl Fn(String) -> ShipError {
    move |what| ShipError::Setup { what, cause }
}

/// S3 closes idle connections itself after about 20 s; one that it has closed costs a retry.
const IDLE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_in_the_clear_to_loopback_only() {
        for good in [
            "https://s3.eu-central-1.amazonaws.com",
            "http://127.0.0.1:9000",
            "http://[::1]:1",
            "http://localhost:1",
        ] {
            assert_eq!(confidential(good), Ok(()), "{good}");
        }
        for bad in [
            "http://10.0.0.1",
            "http://localhost.evil.example",
            "http://127.0.0.1.nip.io",
            "ftp://127.0.0.1",
            "s3",
            "http://0.0.0.0",
        ] {
            assert!(confidential(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_authority_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        assert!(http_client(None, Some(&path)).is_err());
        let torn = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for text in ["", "hello", torn] {
            fs::write(&path, text).unwrap();
            assert!(http_client(None, Some(&path)).is_err(), "{text}");
        }
    }
}
