//! What the configuration gives access to: the bucket and the keys.

use std::{fs, path::PathBuf, sync::Arc};

use super::RunError;
use crate::{
    clock::Clock,
    config::{self, Config, ConfigError, Environment, Secret},
    error::Cause,
    journal,
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
        owner: lake.owner.clone(),
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
/// The file cannot be read or made; or it is gone, and a journal is there that was written with it.
pub fn journal_key(config: &Config) -> Result<Secret, ConfigError> {
    let own = config.appliance.data_dir.join(JOURNAL_KEY);
    match config.journal.key_file {
        None if !own.exists() && !has_segments(config) => config::make_key32(&own),
        _ => held_journal_key(config),
    }
}

/// [`journal_key`] of a box that has one: makes nothing.
///
/// # Errors
///
/// The file cannot be read.
pub fn held_journal_key(config: &Config) -> Result<Secret, ConfigError> {
    let own = config.appliance.data_dir.join(JOURNAL_KEY);
    match &config.journal.key_file {
        Some(path) => config::load_key32(path),
        None if own.exists() => config::load_key32(&own),
        None => {
            let remedy = match has_segments(config) {
                true => {
                    "put it back from its copy, or name it again with [journal] key_file; if there is none, what is not in \
                     the lake yet is lost: take the chain over with an empty data_dir (lakehead adopt)"
                }
                false => "start the gateway once, or name the key with [journal] key_file",
            };
            Err(ConfigError::secret(&own, "the journal's key is not there", remedy))
        }
    }
}

/// Or an index, which is sealed with it, too. Also of a source that is not in the configuration: it can come back.
fn has_segments(config: &Config) -> bool {
    let within = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten();
    let sources = within(config.appliance.data_dir.join("journal"));
    let mut files = sources.flat_map(|source| within(source.path()));
    files.any(|file| journal::is_segment(&file.path()) || file.file_name() == "index")
}

/// Whether a road with this configuration could be opened, as far as files of others decide it: the keys, the
/// credentials, the certificates of authorities. Changes nothing.
///
/// # Errors
///
/// As [`run`](super::run), which would end with it.
pub fn openable(config: &Config, clock: &Arc<dyn Clock>) -> Result<(), RunError> {
    lake(config, clock)?;
    lake_key(config)?;
    if config.journal.key_file.is_some() || has_segments(config) {
        held_journal_key(config)?;
    }
    Ok(())
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

const JOURNAL_KEY: &str = "journal.key";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_journal_that_is_there_is_never_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[appliance]\nname = \"a\"\ndata_dir = {:?}\n[[source]]\nname = \"shop\"\nkind = \"postgres\"\n\
             url = \"postgresql://u@127.0.0.1/d\"\ntables = [\"*\"]\n\
             [lake]\nbucket = \"raw\"\nprefix = \"raw\"\nregion = \"eu-central-1\"\n[encryption]\nmode = \"none\"",
            dir.path()
        );
        let config = Config::parse("x".as_ref(), &text, &Environment::default()).unwrap();
        let key = dir.path().join(JOURNAL_KEY);
        assert!(held_journal_key(&config).is_err() && !key.exists());
        let made = journal_key(&config).unwrap();
        assert_eq!(held_journal_key(&config).unwrap().expose(), made.expose());
        fs::remove_file(&key).unwrap();
        let journal = dir.path().join("journal/of-before");
        fs::create_dir_all(&journal).unwrap();
        fs::write(journal.join("seg-00000000000000000001.log"), "x").unwrap();
        let error = journal_key(&config).unwrap_err();
        assert!(error.to_string().contains("is not there") && !key.exists(), "{error}");
        assert!(
            openable(&config, &(Arc::new(crate::clock::SystemClock) as Arc<dyn Clock>)).is_err()
        );
    }
}
