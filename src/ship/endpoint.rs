//! The way to the endpoint: TLS by rustls with aws-lc, the system's authorities or given ones.
//!
//! **Invariant:** bytes go in the clear to loopback only; there is no way to trust a certificate blindly.

use std::{fs, net::IpAddr, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

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

/// What is needed to speak TLS to `endpoint`, of AWS if it is `None`.
pub(super) fn tls(
    endpoint: Option<&str>,
    ca_file: Option<&Path>,
) -> Result<ClientConfig, ShipError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        None if endpoint.is_some_and(|url| url.starts_with("http://")) => {}
        None => {
            let system = rustls_native_certs::load_native_certs();
            if roots.add_parsable_certificates(system.certs).0 == 0 {
                let what =
                    "this system trusts no authority: install ca-certificates, or name a ca_file";
                return Err(setup(Cause::Config)(what.into()));
            }
        }
        Some(path) => {
            let what =
                |why: String| setup(Cause::Config)(format!("ca_file {}: {why}", path.display()));
            let pem = fs::read(path).map_err(|error| what(error.to_string()))?;
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            let found = found.map_err(|error| what(format!("{error:?}")))?;
            let (good, bad) = roots.add_parsable_certificates(found);
            if good == 0 || bad > 0 {
                return Err(what("holds no certificate, or one that cannot be read".into()));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| setup(Cause::Defect)(chain(&error)))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// An error of the configuration.
pub(super) fn setup(cause: Cause) -> impl Fn(String) -> ShipError {
    move |what| ShipError::Setup { what, cause }
}

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
        assert!(tls(None, Some(&path)).is_err());
        let torn = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for text in ["", "hello", torn] {
            fs::write(&path, text).unwrap();
            assert!(tls(None, Some(&path)).is_err(), "{text}");
        }
    }
}
