//! A site's configuration and its secret files, written for a gateway of our own.

use std::{
    io,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::disk;

/// What the configuration is made of. The fields are those of DESIGN §12.
#[derive(Clone, Debug)]
pub struct Site {
    /// Folder of the configuration, the secrets and `data`.
    pub dir: PathBuf,
    /// Name of the one source.
    pub source: String,
    /// Its URL, without password.
    pub url: String,
    /// Its password.
    pub password: String,
    /// Its tables.
    pub tables: Vec<String>,
    /// `auto`, `journal` or `lake`.
    pub release: String,
    /// Where the lake is.
    pub lake: Lake,
    /// Lines of `[encryption]`: see [`CLIENT`] and [`NONE`].
    pub encryption: String,
    /// `[journal] max_bytes`
    pub journal_max: String,
    /// `[seal] object_bytes`
    pub object_bytes: String,
    /// `[seal] object_age`
    pub object_age: String,
    /// `[seal] integers`: `rising`, `plain` or `delta`.
    pub integers: String,
    /// `[seal] uuids`: `uuid` or `text`.
    pub uuids: String,
    /// `[status] listen`, if there is to be a page.
    pub listen: Option<String>,
}

/// A bucket, and who may do what in it.
#[derive(Clone, Debug)]
pub struct Lake {
    /// The store's URL.
    pub endpoint: String,
    /// Authority of the store's certificate, PEM; none over `http://`.
    pub ca_pem: Option<String>,
    /// Bucket.
    pub bucket: String,
    /// Region.
    pub region: String,
    /// Prefix.
    pub prefix: String,
    /// The box's credentials: they only write.
    pub writer: Key,
    /// The auditor's credentials: they only read.
    pub reader: Key,
}

impl Lake {
    /// Writes both credentials and the authority's certificate into `dir`: [`WRITER`], [`READER`],
    /// [`CA`].
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        disk::write_durably(&dir.join(WRITER), credentials(&self.writer).as_bytes())?;
        disk::write_durably(&dir.join(READER), credentials(&self.reader).as_bytes())?;
        match &self.ca_pem {
            Some(pem) => disk::write_durably(&dir.join(CA), pem.as_bytes()),
            None => Ok(()),
        }
    }
}

/// An access key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: String,
}

impl Site {
    /// Writes the secrets, `site.toml` for the box and `audit.toml`, the same with the auditor's
    /// credentials. Gives the paths of both. The lake's key is made once and kept.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn write(&self, lake_key: &[u8; 32]) -> io::Result<(PathBuf, PathBuf)> {
        disk::create_dir(&self.dir)?;
        disk::write_durably(&self.file("source.password"), self.password.as_bytes())?;
        disk::write_durably(&self.file("lake.key"), STANDARD.encode(lake_key).as_bytes())?;
        self.lake.write(&self.dir)?;
        let (site, audit) = (self.file("site.toml"), self.file("audit.toml"));
        disk::write_durably(&site, self.text(WRITER).as_bytes())?;
        disk::write_durably(&audit, self.text(READER).as_bytes())?;
        Ok((site, audit))
    }

    /// The configuration as text.
    pub fn text(&self, credentials: &str) -> String {
        let mut tables: Vec<String> = vec![];
        tables.extend(self.tables.iter().map(|pattern| quoted(pattern)));
        let ca =
            self.lake.ca_pem.as_ref().map_or_else(String::new, |_| {
                format!("ca_file = {}\n", quoted_path(&self.file(CA)))
            });
        let listen = self.listen.as_ref().map_or_else(String::new, |listen| {
            format!("\n[status]\nlisten = {}\n", quoted(listen))
        });
        format!(
            r#"[appliance]
name = "demo-a"
data_dir = {data}

[[source]]
name = {name}
kind = "postgres"
url = {url}
password_file = {password}
tables = [{tables}]
release = {release}

[lake]
bucket = {bucket}
prefix = {prefix}
region = {region}
endpoint = {endpoint}
path_style = true
credentials_file = {credentials}
{ca}
[encryption]
{encryption}

[journal]
max_bytes = {journal_max}

[seal]
object_bytes = {object_bytes}
object_age = {object_age}
integers = {integers}
uuids = {uuids}
{listen}"#,
            data = quoted_path(&self.data_dir()),
            name = quoted(&self.source),
            url = quoted(&self.url),
            password = quoted_path(&self.file("source.password")),
            tables = tables.join(", "),
            release = quoted(&self.release),
            bucket = quoted(&self.lake.bucket),
            prefix = quoted(&self.lake.prefix),
            region = quoted(&self.lake.region),
            endpoint = quoted(&self.lake.endpoint),
            credentials = quoted_path(&self.file(credentials)),
            encryption = self.encryption.replace("{lake.key}", &quoted_path(&self.key_file())),
            journal_max = quoted(&self.journal_max),
            object_bytes = quoted(&self.object_bytes),
            object_age = quoted(&self.object_age),
            integers = quoted(&self.integers),
            uuids = quoted(&self.uuids),
        )
    }

    /// The box's data.
    pub fn data_dir(&self) -> PathBuf {
        self.file("data")
    }

    /// The lake's key.
    pub fn key_file(&self) -> PathBuf {
        self.file("lake.key")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn credentials(key: &Key) -> String {
    format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", key.id, key.secret)
}

/// A TOML string.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON; and a JSON string is a TOML string")
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// Encryption by the box, with the key file.
pub const CLIENT: &str = "mode = \"client\"\nkey_file = {lake.key}";
/// No encryption.
pub const NONE: &str = "mode = \"none\"";
/// Name of the credentials that only write, for [`Site::text`].
pub const WRITER: &str = "lake.credentials";
/// Name of the credentials that only read.
pub const READER: &str = "audit.credentials";
/// Name of the certificate of the store's authority.
pub const CA: &str = "lake-ca.pem";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_quotes_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let key = Key { id: "a".into(), secret: "b".into() };
        let site = Site {
            dir: dir.path().join("a \"b\""),
            source: "shop".into(),
            url: "postgresql://lakehead@127.0.0.1:1/shop".into(),
            password: "p".into(),
            tables: vec!["Büro.*".into(), "public.\"x\\".into()],
            release: "auto".into(),
            lake: Lake {
                endpoint: "https://127.0.0.1:2".into(),
                ca_pem: Some("pem".into()),
                bucket: "lake".into(),
                region: "eu-central-1".into(),
                prefix: "raw".into(),
                writer: key.clone(),
                reader: key,
            },
            encryption: CLIENT.into(),
            journal_max: "1 GiB".into(),
            object_bytes: "8 MiB".into(),
            object_age: "5 s".into(),
            integers: "rising".into(),
            uuids: "uuid".into(),
            listen: Some("127.0.0.1:3".into()),
        };
        let (path, _) = site.write(&[7; 32]).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let read: toml::Table = text.parse().unwrap();
        assert_eq!(read["source"][0]["tables"][1].as_str(), Some("public.\"x\\"));
        assert_eq!(read["encryption"]["key_file"].as_str(), site.key_file().to_str());
        assert!(!disk::readable_by_others(&site.key_file()).unwrap());
    }
}
