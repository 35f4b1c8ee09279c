//! Makes one object: bytes go in once, and come out encrypted, summed and in the spool.
//!
//! ```text
//! Parquet or JSON ──▶ AES-256-GCM (mode client) ──▶ SHA-256, CRC64NVME ──▶ spool file
//! ```

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::{Mutex, PoisonError},
};

use super::{
    Encryption, LakeKey, Object, Op, SealError, Table,
    encode::EncodeWith,
    envelope::{self, Metadata},
    gcm::Encryptor,
    habits::{Habits, Terms},
    key::Keys,
    pack::{Presses, Scarce},
    spool::{Spool, SpoolFile},
    sums::Sums,
};
use crate::config::{Integers, Uuids};

/// How objects are to be encrypted.
#[derive(Clone, Debug)]
pub enum SealEncryption {
    /// Not at all.
    None,
    /// By S3, under the customer's key.
    SseKms {
        /// The key's ARN or alias.
        key_id: String,
    },
    /// By us, as the envelope module says.
    Client(LakeKey),
}

/// What all objects of a source have in common.
#[derive(Debug)]
pub(super) struct Maker {
    pub(super) keys: Keys,
    pub(super) source: String,
    pub(super) encryption: SealEncryption,
    pub(super) integers: Integers,
    pub(super) uuids: Uuids,
    pub(super) spool: Spool,
    /// How rows become bytes.
    pub(super) encode: EncodeWith,
    /// By table: its version, and what the columns of the last object showed.
    pub(super) habits: Mutex<BTreeMap<u32, (u32, Habits)>>,
    pub(super) presses: Presses,
}

/// An object that is in the spool but in no group yet. Dropping it removes its file.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) object: Object,
    pub(super) file: SpoolFile,
}

/// Where the bytes of an object go.
pub(super) struct Sink {
    encryption: Encryption,
    encryptor: Option<Encryptor>,
    metadata: Metadata,
    sums: Sums,
    file: SpoolFile,
    /// Bytes that were encrypted.
    plain_bytes: u64,
}

impl Maker {
    /// What the columns of the last object of `table` showed.
    pub(super) fn habits(&self, table: &Table) -> Habits {
        let all = self.habits.lock().unwrap_or_else(PoisonError::into_inner);
        let last = all.get(&table.id).filter(|(version, _)| *version == table.version);
        last.map(|(_, habits)| habits.clone()).unwrap_or_default()
    }

    /// Keeps what the columns of an object of `table` showed.
    pub(super) fn keep_habits(&self, table: &Table, habits: &Habits) {
        let mut all = self.habits.lock().unwrap_or_else(PoisonError::into_inner);
        // Only advice is lost: tables that are gone leave theirs behind.
        if all.len() >= HABITS_MAX && !all.contains_key(&table.id) {
            all.clear();
        }
        all.insert(table.id, (table.version, habits.clone()));
    }

    /// What the objects that begin now should save, and how.
    pub(super) fn terms(&self) -> Terms {
        let is_behind = self.spool.bytes_waiting() > BEHIND_BYTES;
        let scarce = if is_behind { Scarce::Link } else { Scarce::Cpu };
        Terms { scarce, integers: self.integers, presses: self.presses.clone() }
    }

    /// Begins an object of `table`.
    pub(super) fn sink(&self, table: &str) -> Result<Sink, SealError> {
        let (encryption, encryptor, metadata) = match &self.encryption {
            SealEncryption::None => (Encryption::None, None, Metadata::new()),
            SealEncryption::SseKms { key_id } => {
                (Encryption::SseKms { key_id: key_id.clone() }, None, Metadata::new())
            }
            SealEncryption::Client(key) => {
                let (encryptor, metadata) = envelope::begin(key, &self.source, table)?;
                (Encryption::Client, Some(encryptor), metadata)
            }
        };
        self.begin(encryption, encryptor, metadata)
    }

    /// Begins an object that is lost once more: the same bytes are to come, whatever others are encrypted with by now.
    pub(super) fn sink_again(&self, lost: &Object) -> Result<Sink, SealError> {
        let encryptor = match (&lost.encryption, &self.encryption) {
            (Encryption::Client, SealEncryption::Client(key)) => {
                Some(envelope::again(key, &lost.metadata)?)
            }
            (Encryption::Client, _) => {
                return Err(SealError::Key(" that is made anew: there is none"));
            }
            (Encryption::None | Encryption::SseKms { .. }, _) => None,
        };
        self.begin(lost.encryption.clone(), encryptor, lost.metadata.clone())
    }

    fn begin(
        &self,
        encryption: Encryption,
        encryptor: Option<Encryptor>,
        metadata: Metadata,
    ) -> Result<Sink, SealError> {
        Ok(Sink {
            encryption,
            encryptor,
            metadata,
            sums: Sums::new(),
            file: self.spool.create()?,
            plain_bytes: 0,
        })
    }
}

impl Sink {
    /// Ends the object. `key` makes its key from its SHA-256.
    pub(super) fn finish(
        mut self,
        table: &Table,
        rows: BTreeMap<Op, u64>,
        key: impl FnOnce(&str) -> String,
    ) -> Result<Draft, SealError> {
        if let Some(encryptor) = self.encryptor.take() {
            envelope::end(&mut self.metadata, self.plain_bytes);
            let tag = encryptor.finish()?;
            // As it is: there is no encryptor any more.
            self.write_all(&tag).map_err(|why| self.file.failed(why))?;
        }
        self.file.finish()?;
        let summed = self.sums.finish();
        let object = Object {
            key: key(&summed.sha256),
            bytes: summed.bytes,
            sha256: summed.sha256,
            crc64nvme: summed.crc64nvme,
            rows,
            table: table.qualified(),
            version: table.version,
            encryption: self.encryption,
            metadata: self.metadata,
            spool: self.file.name().into(),
            sums: summed.so_far,
        };
        Ok(Draft { object, file: self.file })
    }

    /// The error of a write that its file refused.
    pub(super) fn failed(&self, why: io::Error) -> SealError {
        self.file.failed(why)
    }

    /// Bytes held in memory.
    pub(super) fn memory(&self) -> usize {
        self.file.memory()
    }

    /// Whether it has a file on disk.
    pub(super) fn has_file(&self) -> bool {
        self.file.is_made()
    }
}

/// What is written is encrypted and summed where it lies in the file's buffer, 64 KiB at most at a time: that fits the
/// processor's cache.
impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.file.room(bytes.len())?;
        room.copy_from_slice(&bytes[..room.len()]);
        if let Some(encryptor) = &mut self.encryptor {
            encryptor.apply(room).map_err(io::Error::other)?;
            self.plain_bytes += room.len() as u64;
        }
        self.sums.update(room);
        Ok(room.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The link is behind if more waits for it: some objects of the usual size are on their way at any time.
const BEHIND_BYTES: u64 = 256 << 20;
/// Tables of which it is known what their columns showed.
const HABITS_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use crate::seal::{
        Encryption, SealEncryption, crc64nvme, crc64nvme_text,
        memory::{Bench, Log, NOON, change, relation, table},
    };

    #[test]
    fn the_sums_and_the_key_are_of_the_bytes_sent() {
        let kms = || SealEncryption::SseKms { key_id: "alias/lake".into() };
        for bench in [Bench::new(), Bench::client(1), {
            let mut bench = Bench::new();
            bench.options.encryption = kms();
            bench
        }] {
            let mut log = Log::default();
            log.whole(NOON, &[&[relation(&table(1, "a")), change(b'I', 1, &["1", "n"])]]);
            log.whole(NOON, &[&[]]).whole(NOON, &[&[]]).whole(NOON, &[&[]]);
            let groups = bench.run(log.batches).unwrap();
            for object in groups.iter().flat_map(|group| &group.objects) {
                let sent = bench.sent(object);
                let sha256 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &sent);
                assert_eq!(object.sha256, hex::encode(sha256));
                assert_eq!(object.crc64nvme, crc64nvme_text(crc64nvme(&sent)));
                assert_eq!(object.bytes, sent.len() as u64);
                let expected = match &bench.options.encryption {
                    SealEncryption::None => Encryption::None,
                    SealEncryption::SseKms { key_id } => {
                        Encryption::SseKms { key_id: key_id.clone() }
                    }
                    SealEncryption::Client(_) => Encryption::Client,
                };
                assert_eq!(object.encryption, expected);
                if object.key.ends_with(".parquet") {
                    assert!(object.key.ends_with(&format!("-{}.parquet", &object.sha256[..16])));
                }
            }
        }
    }
}
