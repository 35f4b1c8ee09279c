//! The page's certificate: the site's own, or one that the box makes for itself at first start.
//!
//! Its own lies in `data_dir` as `status.crt` and `status.key`. Nobody vouches for it: a browser asks
//! once, and the log names its SHA-256, to compare.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::digest;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    version::{TLS12, TLS13},
};

use super::StatusError;
use crate::{config, disk};

/// What the listener serves TLS with.
pub(super) fn server_config(
    status: &config::Status,
    data_dir: &Path,
) -> Result<Arc<ServerConfig>, StatusError> {
    let (chain, key) = match (&status.certificate, &status.certificate_key) {
        (Some(chain), Some(key)) => (chain.clone(), key.clone()),
        _ => own(status, data_dir)?,
    };
    let wrong = |path: &Path, why: String| StatusError::Certificate { path: path.into(), why };
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&chain)
        .and_then(Iterator::collect)
        .map_err(|why| wrong(&chain, why.to_string()))?;
    let Some(first) = certificates.first() else {
        return Err(wrong(&chain, "holds no certificate".into()));
    };
    let print = hex::encode(digest::digest(&digest::SHA256, first));
    // Read by the rule for secrets: others must not be able to.
    let pem = config::load_secret(&key)?;
    let private =
        PrivateKeyDer::from_pem_slice(pem.expose()).map_err(|why| wrong(&key, why.to_string()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|why| wrong(&chain, why.to_string()))?
        .with_no_client_auth()
        .with_single_cert(certificates, private)
        .map_err(|why| wrong(&chain, why.to_string()))?;
    tracing::info!(sha256 = print, path = %chain.display(), "certificate of the status page");
    Ok(Arc::new(config))
}

/// Made once. The key is written first: a certificate without its key is made again.
fn own(status: &config::Status, data_dir: &Path) -> Result<(PathBuf, PathBuf), StatusError> {
    let (chain, key) = (data_dir.join("status.crt"), data_dir.join("status.key"));
    if chain.exists() && key.exists() {
        return Ok((chain, key));
    }
    let wrong = |why: String| StatusError::Certificate { path: chain.clone(), why };
    let mut names = vec!["localhost".to_owned()];
    if !status.listen.ip().is_unspecified() {
        names.push(status.listen.ip().to_string());
    }
    names.extend(status.hosts.iter().cloned());
    let made = rcgen::generate_simple_self_signed(names).map_err(|why| wrong(why.to_string()))?;
    let pem = zeroize::Zeroizing::new(made.signing_key.serialize_pem());
    disk::write_durably(&key, pem.as_bytes()).map_err(|why| wrong(why.to_string()))?;
    disk::write_durably(&chain, made.cert.pem().as_bytes())
        .map_err(|why| wrong(why.to_string()))?;
    Ok((chain, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> config::Status {
        config::Status {
            listen: "0.0.0.0:8443".parse().unwrap(),
            certificate: None,
            certificate_key: None,
            hosts: vec!["plant7-a.lan".into()],
        }
    }

    #[test]
    fn the_boxs_own_certificate_is_made_once_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        server_config(&status(), dir.path()).unwrap();
        let made = std::fs::read(dir.path().join("status.crt")).unwrap();
        assert!(!disk::readable_by_others(&dir.path().join("status.key")).unwrap());
        server_config(&status(), dir.path()).unwrap();
        assert_eq!(std::fs::read(dir.path().join("status.crt")).unwrap(), made);
    }

    #[test]
    fn a_file_that_is_no_certificate_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page.pem");
        disk::write_durably(&path, b"nonsense").unwrap();
        let given = config::Status {
            certificate: Some(path.clone()),
            certificate_key: Some(path),
            ..status()
        };
        let wrong = server_config(&given, dir.path()).unwrap_err();
        assert!(wrong.to_string().contains("page.pem"), "{wrong}");
    }
}
