//! What the configuration gives access to: the bucket and the keys.

use std::sync::Arc;

use super::RunError;
use crate::{
    clock::Clock,
    config::{self, Config, ConfigError, Environment, Secret},
    error::Cause,
    link::{Dialer, Link},
    seal::{LakeKey, SealEncryption},
    ship::{
        Encryption, ShipError,
        credentials::{Credentials, Keys},
        patience,
        s3::{S3, S3Options},
    },
    telemetry::board::Board,
};

/// The configured link, if there is one. `board` tells of it.
pub(super) fn link(config: &Config, board: &Board, clock: &Arc<dyn Clock>) -> Option<Arc<Link>> {
    let one = |link: &config::Link| Link::new(link, board.link(&link.name), Arc::clone(clock));
    config.link.as_ref().map(one).map(Arc::new)
}

/// The way to the bucket, over the configured link, with the configured credentials.
///
/// # Errors
///
/// A file or value of the configuration cannot be used.
pub fn lake(config: &Config, clock: &Arc<dyn Clock>) -> Result<S3, RunError> {
    lake_over(link(config, &Board::default(), clock), config, clock)
}

/// As [`lake`], over a link that is there already.
pub(super) fn lake_over(
    link: Option<Arc<Link>>,
    config: &Config,
    clock: &Arc<dyn Clock>,
) -> Result<S3, RunError> {
    let lake = &config.lake;
    let credentials = match (&lake.credentials_file, Environment::read().aws) {
        (Some(file), _) => Credentials::File(file.clone()),
        (None, Some(keys)) => Credentials::Keys(Keys {
            access_key_id: keys.access_key_id,
            secret_access_key: keys.secret_access_key,
            session_token: keys.session_token,
        }),
        (None, None) => {
            let what = "no credentials_file in [lake], and no AWS_ACCESS_KEY_ID in the environment";
            return Err(
                ShipError::Setup { what: what.into(), cause: Cause::LakeCredentials }.into()
            );
        }
    };
    let rate = config.link.as_ref().map(|link| link.rate);
    let options = S3Options {
        bucket: lake.bucket.clone(),
        region: lake.region.clone(),
        endpoint: lake.endpoint.clone(),
        path_style: lake.path_style,
        ca_file: lake.ca_file.clone(),
        owner: None,
        encryption: object_encryption(config),
        appliance: config.appliance.name.clone(),
        clock: Arc::clone(clock),
        // Each source has requests of its own, and its ledger one.
        patience: patience(rate, config.sources.len() * (config.ship.requests + 1)),
    };
    Ok(S3::new(options, credentials, Dialer::new(link))?)
}

/// The key that the journal and the spool are encrypted with: the operator's, or one made at the first start.
///
/// # Errors
///
/// The file cannot be read or made.
pub fn journal_key(config: &Config) -> Result<Secret, ConfigError> {
    let own = config.appliance.data_dir.join("journal.key");
    match &config.journal.key_file {
        Some(path) => config::load_key32(path),
        None if own.exists() => config::load_key32(&own),
        None => config::make_key32(&own),
    }
}

/// The key that opens objects, if the lake is of mode `client`.
///
/// # Errors
///
/// The file cannot be read.
pub fn lake_key(config: &Config) -> Result<Option<LakeKey>, RunError> {
    Ok(match &config.encryption {
        config::Encryption::Client { key_file } => {
            Some(LakeKey::new(config::load_key32(key_file)?)?)
        }
        config::Encryption::SseKms { .. } | config::Encryption::None => None,
    })
}

/// How S3 is told to encrypt.
pub(super) fn object_encryption(config: &Config) -> Encryption {
    match &config.encryption {
        config::Encryption::None => Encryption::None,
        config::Encryption::SseKms { kms_key_id } => {
            Encryption::SseKms { key_id: kms_key_id.clone() }
        }
        config::Encryption::Client { .. } => Encryption::Client,
    }
}

/// How objects are encrypted, with its key loaded.
pub(super) fn encryption(config: &Config) -> Result<SealEncryption, RunError> {
    Ok(match &config.encryption {
        config::Encryption::None => {
            tracing::warn!("encryption mode \"none\": whoever reads the bucket reads the data");
            SealEncryption::None
        }
        config::Encryption::SseKms { kms_key_id } => {
            SealEncryption::SseKms { key_id: kms_key_id.clone() }
        }
        config::Encryption::Client { key_file } => {
            SealEncryption::Client(LakeKey::new(config::load_key32(key_file)?)?)
        }
    })
}
