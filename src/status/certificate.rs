//! The page's certificate: the site's own, or one that the box makes for itself at first start, and again
//! when it is not for a name by which the page is asked.
//!
//! Takes the configuration and gives what TLS is served with. Keeps its own in `data_dir` as `status.crt` and
//! `status.key`. Nobody vouches for it: a browser asks once, and the log names its SHA-256, to compare.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::digest;
use rustls::{
    ServerConfig,
    client::verify_server_name,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::ParsedCertificate,
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

/// The one that is there, as long as it is for all names; else a new one.
fn own(status: &config::Status, data_dir: &Path) -> Result<(PathBuf, PathBuf), StatusError> {
    let [chain, key] = ["status.crt", "status.key"].map(|name| data_dir.join(name));
    // By others no client can ask.
    let mut names = names(status);
    names.retain(|name| ServerName::try_from(name.as_str()).is_ok());
    let kept = kept(&chain, &key);
    if kept.as_ref().is_some_and(|kept| names.iter().all(|name| is_for(kept, name))) {
        return Ok((chain, key));
    }
    match make(&chain, &key, &names) {
        Ok(()) if kept.is_some() => {
            let names = names.join(", ");
            tracing::warn!(names, "the status page's own certificate was remade for its names");
        }
        Ok(()) => {}
        // On a full disk an old page is better than none.
        Err(why) if kept.is_some() => {
            tracing::error!(%why, "the status page's own certificate is not for all its names");
        }
        Err(why) => return Err(StatusError::Certificate { path: chain, why }),
    }
    Ok((chain, key))
}

/// The certificate that is there, if the key is its key.
fn kept(chain: &Path, key: &Path) -> Option<CertificateDer<'static>> {
    let certificates = CertificateDer::pem_file_iter(chain).ok()?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().ok()?;
    let first = certificates.first()?.clone();
    let private = PrivateKeyDer::from_pem_file(key).ok()?;
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_protocol_versions(&[&TLS13, &TLS12]).ok()?.with_no_client_auth();
    builder.with_single_cert(certificates, private).ok().map(|_| first)
}

/// Whether a client that asks by `name` takes the certificate.
fn is_for(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let parsed = ParsedCertificate::try_from(certificate);
    let name = ServerName::try_from(name);
    matches!((parsed, name), (Ok(parsed), Ok(name)) if verify_server_name(&parsed, &name).is_ok())
}

fn make(chain: &Path, key: &Path, names: &[String]) -> Result<(), String> {
    let made = rcgen::generate_simple_self_signed(names).map_err(|why| why.to_string())?;
    let pem = zeroize::Zeroizing::new(made.signing_key.serialize_pem());
    let before = fs::read(key).map(zeroize::Zeroizing::new);
    // After a power cut between the two the key is not its key, and they are made again.
    disk::write_durably(key, pem.as_bytes()).map_err(|why| why.to_string())?;
    disk::write_durably(chain, made.cert.pem().as_bytes()).map_err(|why| {
        if let Ok(before) = before {
            disk::write_durably(key, &before).ok();
        }
        why.to_string()
    })
}

/// By what the page can be asked, whatever the order in the configuration.
fn names(status: &config::Status) -> Vec<String> {
    let mut names = vec!["localhost".to_owned()];
    if !status.listen.ip().is_unspecified() {
        names.push(status.listen.ip().to_string());
    }
    names.extend(status.hosts.iter().map(|host| host.trim_end_matches('.').to_owned()));
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(dir: &Path) -> Vec<u8> {
        fs::read(dir.join("status.crt")).unwrap()
    }

    fn is_for(dir: &Path, name: &str) -> bool {
        super::is_for(&CertificateDer::from_pem_slice(&made(dir)).unwrap(), name)
    }

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
        let first = made(dir.path());
        assert!(!disk::readable_by_others(&dir.path().join("status.key")).unwrap());
        server_config(&status(), dir.path()).unwrap();
        assert_eq!(made(dir.path()), first);
    }

    #[test]
    fn the_boxs_own_certificate_is_remade_when_its_names_change() {
        let dir = tempfile::tempdir().unwrap();
        let with = |listen: &str, hosts: &[&str]| {
            let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
            let status = config::Status { listen: listen.parse().unwrap(), hosts, ..status() };
            server_config(&status, dir.path()).unwrap();
            made(dir.path())
        };
        let first = with("0.0.0.0:8443", &["plant7-a.lan"]);
        assert!(is_for(dir.path(), "plant7-a.lan") && !is_for(dir.path(), "a.plant7.lan"));
        let second = with("0.0.0.0:8443", &["plant7-a.lan", "a.plant7.lan"]);
        assert_ne!(second, first);
        assert!(is_for(dir.path(), "plant7-a.lan") && is_for(dir.path(), "a.plant7.lan"));
        assert_eq!(with("0.0.0.0:9443", &["a.plant7.lan", "plant7-a.lan", "localhost"]), second);
        let third = with("192.0.2.7:8443", &["a.plant7.lan"]);
        assert_ne!(third, second);
        assert!(is_for(dir.path(), "192.0.2.7") && is_for(dir.path(), "localhost"));
        // So does one that lacks what no client can ask by.
        let fourth = with("192.0.2.7:8443", &["plant7.1", "plant8.lan."]);
        assert!(is_for(dir.path(), "plant8.lan"));
        assert_eq!(with("192.0.2.7:8443", &["plant7.1", "plant8.lan."]), fourth);
        let third = fourth;
        // One that has more names stays: who pinned it need not know.
        assert_eq!(with("192.0.2.7:8443", &[]), third);
    }

    #[test]
    fn a_certificate_that_was_not_finished_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        server_config(&status(), dir.path()).unwrap();
        let first = made(dir.path());
        let other = tempfile::tempdir().unwrap();
        server_config(&status(), other.path()).unwrap();
        fs::copy(other.path().join("status.key"), dir.path().join("status.key")).unwrap();
        server_config(&status(), dir.path()).unwrap();
        assert_ne!(made(dir.path()), first);
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
