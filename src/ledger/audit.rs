//! Reads a lake and has [`verify`](super::verify) judge it. Needs reading credentials and public keys, nothing else.
//!
//! Entries are listed before objects, so that what a running box writes meanwhile is at most not yet in
//! the ledger. Objects are looked up by listing their folders in pages, not one by one. A deep audit
//! reads every object again whose length is listed as it should be, through a file in a scratch folder.
//!
//! Memory: about 300 bytes for each object named by the chain.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    path::Path,
    time::Duration,
};

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{StreamExt, future::BoxFuture, stream};

use super::{
    Entry, Head, LedgerError, Owners, PublicKey, SourceReport, entry, on_thread,
    verify::{Expected, Verifier},
};
use crate::{
    disk::work::WorkFile,
    error::{Classified, Disposition},
    ship::{Fetched, Listed, ObjectReader, ShipError},
};

/// What to look at.
#[derive(Clone, Copy, Debug)]
pub struct Audit<'a> {
    /// The lake's prefix.
    pub prefix: &'a str,
    /// One source, or all that have a ledger.
    pub source: Option<&'a str>,
    /// The keys that may have signed: of the box, and of those whose chains it adopted.
    pub public_keys: &'a [PublicKey],
    /// Whether every object is read again, and the folder through which it goes.
    pub deep: Option<&'a Path>,
}

/// How far an audit is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Progress {
    /// Entries of a source read.
    Entries {
        /// The source.
        source: String,
        /// So far.
        done: u64,
        /// In all.
        all: u64,
    },
    /// Keys listed in the source's folders.
    Listed {
        /// The source.
        source: String,
        /// So far.
        done: u64,
    },
    /// Objects read again.
    Read {
        /// The source.
        source: String,
        /// So far.
        done: u64,
        /// In all.
        all: u64,
        /// Bytes so far.
        bytes: u64,
        /// Bytes in all.
        all_bytes: u64,
    },
}

/// Requests for entries at once.
const ENTRIES_AT_ONCE: usize = 16;
/// Objects read at once; each has one file in the scratch folder.
const OBJECTS_AT_ONCE: usize = 4;
/// Tries of a request.
const TRIES: u32 = 6;
/// Wait before the second try, doubled each time.
const PAUSE: Duration = Duration::from_millis(200);

/// Verifies the chains and what they name. `known_head`: an entry that somebody remembers, by source.
///
/// Damage is in the reports, not an error.
///
/// # Errors
///
/// The lake could not be read, or the scratch folder not be written.
pub async fn audit(
    reader: &dyn ObjectReader,
    what: &Audit<'_>,
    known_head: &(dyn Fn(&str) -> Option<Head> + Send + Sync),
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Vec<SourceReport>, LedgerError> {
    let mut reports = vec![];
    for (source, entries) in chains(reader, what).await? {
        let known = known_head(&source);
        let mut verifier = Verifier::new(what.prefix, &source, what.public_keys, known);
        read_chain(reader, &mut verifier, &source, entries, progress).await?;
        list_objects(reader, &mut verifier, what.prefix, &source, progress).await?;
        if let Some(scratch) = what.deep {
            read_objects(reader, &mut verifier, scratch, &source, progress).await?;
        }
        reports.push(verifier.report(what.deep.is_some()));
    }
    Ok(reports)
}

/// The entries that `report` proves, in order, for those who read the lake back.
///
/// # Errors
///
/// The lake could not be read, or the chain is no longer the one that was judged.
pub async fn entries(
    reader: &dyn ObjectReader,
    prefix: &str,
    report: &SourceReport,
) -> Result<Vec<Entry>, LedgerError> {
    let whole = (report.entries == report.head.entry).then_some(&report.head);
    read_entries(reader, prefix, &report.source, report.entries, whole).await
}

/// All entries up to `head`, which is known to be in the chain, in order.
///
/// # Errors
///
/// As [`entries`].
pub async fn entries_to(
    reader: &dyn ObjectReader,
    prefix: &str,
    source: &str,
    head: &Head,
) -> Result<Vec<Entry>, LedgerError> {
    read_entries(reader, prefix, source, head.entry, Some(head)).await
}

/// The entries behind `head` that are there by now, in order, each signed with one of `keys` that owns the chain there; the
/// head that they make, and whose it is then.
///
/// # Errors
///
/// The lake could not be read, or what is there does not continue the chain.
pub async fn entries_behind(
    reader: &dyn ObjectReader,
    prefix: &str,
    source: &str,
    (head, owners): (&Head, &Owners),
    keys: &[PublicKey],
) -> Result<(Vec<Entry>, Head, Owners), LedgerError> {
    let (mut entries, mut head, mut owners) = (vec![], head.clone(), owners.clone());
    loop {
        let key = entry::key(prefix, source, head.entry + 1);
        let Some(object) = get(reader, &key).await? else { return Ok((entries, head, owners)) };
        let lines = entry::Lines::split(&object.bytes);
        let signed = lines.and_then(|lines| Some((lines.signer(keys)?, lines)));
        let read = signed.and_then(|(signer, lines)| Some((signer, lines.entry().ok()?, lines)));
        let (signer, entry, lines) = read.ok_or(LedgerError::Changed)?;
        let usurped = owners.refuse(&entry, signer, &head.hash).is_some();
        if entry.previous != head.hash || usurped {
            return Err(LedgerError::Changed);
        }
        owners.take(signer);
        head = Head { entry: head.entry + 1, hash: lines.hash() };
        entries.push(entry);
    }
}

/// Keys in the source's folders that no entry names: of objects that were on their way, or not ours.
///
/// # Errors
///
/// The lake could not be read.
pub async fn strangers(
    reader: &dyn ObjectReader,
    prefix: &str,
    source: &str,
    entries: &[Entry],
) -> Result<Vec<String>, LedgerError> {
    let named = entries.iter().flat_map(|entry| &entry.objects);
    let named: BTreeSet<&str> = named.map(|object| object.key.as_str()).collect();
    let mut found = vec![];
    for folder in folders(prefix, source) {
        let mut pages = Pages::new(reader, folder);
        while let Some(page) = pages.next().await? {
            let keys = page.into_iter().map(|listed| listed.key);
            found.extend(keys.filter(|key| !named.contains(key.as_str())));
        }
    }
    Ok(found)
}

async fn read_entries(
    reader: &dyn ObjectReader,
    prefix: &str,
    source: &str,
    count: u64,
    head: Option<&Head>,
) -> Result<Vec<Entry>, LedgerError> {
    let fetches = (1..=count).map(|number| -> BoxFuture<'_, _> {
        let key = entry::key(prefix, source, number);
        Box::pin(async move { get(reader, &key).await })
    });
    let mut fetched = stream::iter(fetches).buffered(ENTRIES_AT_ONCE);
    let (mut entries, mut hash) = (vec![], entry::NO_PREVIOUS.to_owned());
    while let Some(object) = fetched.next().await {
        let object = object?.map(|object| object.bytes).unwrap_or_default();
        let lines = entry::Lines::split(&object);
        let read = lines.and_then(|lines| Some((lines.entry().ok()?, lines.hash())));
        match read {
            Some((entry, next)) if entry.previous == hash => {
                hash = next;
                entries.push(entry);
            }
            _ => return Err(LedgerError::Changed),
        }
    }
    if head.is_some_and(|head| hash != head.hash) {
        return Err(LedgerError::Changed);
    }
    Ok(entries)
}

/// Whether there is an entry of the source.
pub(super) async fn has_entries(
    reader: &dyn ObjectReader,
    prefix: &str,
    source: &str,
) -> Result<bool, LedgerError> {
    let mut pages = Pages::new(reader, entry::folder(prefix, Some(source)));
    while let Some(page) = pages.next().await? {
        if page.iter().any(|listed| entry::parse_key(prefix, &listed.key).is_some()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The entries' keys and numbers by source, in order.
async fn chains(
    reader: &dyn ObjectReader,
    what: &Audit<'_>,
) -> Result<BTreeMap<String, Vec<(u64, String)>>, LedgerError> {
    let mut chains = BTreeMap::<String, Vec<_>>::new();
    if let Some(source) = what.source {
        chains.insert(source.into(), vec![]);
    }
    let mut pages = Pages::new(reader, entry::folder(what.prefix, what.source));
    while let Some(page) = pages.next().await? {
        for listed in page {
            // What is no entry's key proves nothing and is not asked for.
            if let Some((source, number)) = entry::parse_key(what.prefix, &listed.key) {
                let of = source.to_owned();
                chains.entry(of).or_default().push((number, listed.key));
            }
        }
    }
    Ok(chains)
}

async fn read_chain(
    reader: &dyn ObjectReader,
    verifier: &mut Verifier,
    source: &str,
    entries: Vec<(u64, String)>,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), LedgerError> {
    let all = u64::try_from(entries.len()).unwrap_or(u64::MAX);
    let fetches = entries.into_iter().map(|(number, key)| -> BoxFuture<'_, _> {
        Box::pin(async move { (number, get(reader, &key).await) })
    });
    let mut fetched = stream::iter(fetches).buffered(ENTRIES_AT_ONCE);
    let mut done = 0;
    while let Some((number, object)) = fetched.next().await {
        // Listed and gone: the hole shows with the next one, or at the end.
        if let Some(object) = object?
            && !verifier.accept(number, &object.bytes)
        {
            return Ok(());
        }
        done += 1;
        progress(Progress::Entries { source: source.into(), done, all });
    }
    verifier.close();
    Ok(())
}

async fn list_objects(
    reader: &dyn ObjectReader,
    verifier: &mut Verifier,
    prefix: &str,
    source: &str,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), LedgerError> {
    let folders = folders(prefix, source);
    let mut done = 0;
    for folder in &folders {
        let mut pages = Pages::new(reader, folder.clone());
        while let Some(page) = pages.next().await? {
            page.iter().for_each(|listed| verifier.see(&listed.key, listed.bytes));
            done += u64::try_from(page.len()).unwrap_or(u64::MAX);
            progress(Progress::Listed { source: source.into(), done });
        }
    }
    let elsewhere = verifier.objects().map(|(key, _)| key.to_owned());
    let elsewhere: Vec<String> = elsewhere
        .filter(|key| !folders.iter().any(|folder| key.starts_with(folder.as_str())))
        .collect();
    for key in elsewhere {
        let page = again(|| reader.list(&key, None)).await?;
        for listed in page.iter().filter(|listed| listed.key == key) {
            verifier.see(&key, listed.bytes);
        }
    }
    verifier.listed();
    Ok(())
}

/// Where the source's objects lie.
fn folders(prefix: &str, source: &str) -> [String; 2] {
    let folders = [format!("{source}/"), format!("_schema/{source}/")];
    folders.map(|folder| entry::under(prefix, &folder))
}

async fn read_objects(
    reader: &dyn ObjectReader,
    verifier: &mut Verifier,
    scratch: &Path,
    source: &str,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), LedgerError> {
    let expected: Vec<_> =
        verifier.unbroken().map(|(key, expected)| (key.to_owned(), expected.clone())).collect();
    let all = u64::try_from(expected.len()).unwrap_or(u64::MAX);
    let all_bytes = expected.iter().map(|(_, expected)| expected.bytes).sum();
    let reads = expected.into_iter().enumerate().map(|(slot, (key, expected))| {
        let path = scratch.join(format!("verify-{}-{slot}", std::process::id()));
        let read: BoxFuture<'_, _> = Box::pin(async move {
            let found = read_object(reader, &key, &expected, &path).await;
            (key, expected.bytes, found)
        });
        read
    });
    let mut read = stream::iter(reads).buffer_unordered(OBJECTS_AT_ONCE);
    let (mut done, mut bytes) = (0, 0);
    while let Some((key, length, found)) = read.next().await {
        match found? {
            Found::Whole => {}
            Found::Altered(what) => verifier.altered(&key, what),
            Found::Missing => verifier.vanished(&key),
        }
        done += 1;
        bytes += length;
        progress(Progress::Read { source: source.into(), done, all, bytes, all_bytes });
    }
    Ok(())
}

/// What a deep look found.
enum Found {
    Whole,
    Altered(String),
    Missing,
}

async fn read_object(
    reader: &dyn ObjectReader,
    key: &str,
    expected: &Expected,
    path: &Path,
) -> Result<Found, LedgerError> {
    let failed = |why| LedgerError::Disk { path: path.display().to_string(), why };
    let file = WorkFile::create(path).map_err(failed)?;
    match again(|| reader.fetch(key, &file, expected.bytes)).await {
        Err(LedgerError::Ship(ShipError::TooLong { bytes_max, .. })) => {
            let what = format!("has more than the {bytes_max} bytes that the ledger says");
            return Ok(Found::Altered(what));
        }
        fetched => {
            if fetched?.is_none() {
                return Ok(Found::Missing);
            }
        }
    }
    let sums = on_thread("digest", move || sums(&file)).await.map_err(failed)?;
    Ok(sums.compare(expected).map_or(Found::Whole, Found::Altered))
}

/// Length and checksums of a file that was read back.
struct Sums {
    bytes: u64,
    sha256: String,
    crc64nvme: String,
}

impl Sums {
    /// What differs.
    fn compare(&self, expected: &Expected) -> Option<String> {
        if self.bytes != expected.bytes {
            Some(format!("has {} bytes, the ledger says {}", self.bytes, expected.bytes))
        } else if self.sha256 != expected.sha256 {
            Some(format!("has SHA-256 {}, the ledger says {}", self.sha256, expected.sha256))
        } else if self.crc64nvme != expected.crc64nvme {
            Some(format!(
                "has CRC64NVME {}, the ledger says {}",
                self.crc64nvme, expected.crc64nvme
            ))
        } else {
            None
        }
    }
}

/// Reads what was fetched.
fn sums(fetched: &WorkFile) -> io::Result<Sums> {
    let mut file = fetched.rewound()?;
    let mut sha256 = digest::Context::new(&digest::SHA256);
    let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    let mut chunk = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        let length = file.read(&mut chunk)?;
        if length == 0 {
            break;
        }
        sha256.update(&chunk[..length]);
        crc.update(&chunk[..length]);
        bytes += u64::try_from(length).unwrap_or(u64::MAX);
    }
    let sha256 = hex::encode(sha256.finish());
    Ok(Sums { bytes, sha256, crc64nvme: STANDARD.encode(crc.finalize().to_be_bytes()) })
}

/// A listing, page by page.
struct Pages<'a> {
    reader: &'a dyn ObjectReader,
    prefix: String,
    after: Option<String>,
}

impl<'a> Pages<'a> {
    fn new(reader: &'a dyn ObjectReader, prefix: String) -> Self {
        Self { reader, prefix, after: None }
    }

    /// The next page; `None` after the last.
    async fn next(&mut self) -> Result<Option<Vec<Listed>>, LedgerError> {
        let page = again(|| self.reader.list(&self.prefix, self.after.as_deref())).await?;
        let Some(last) = page.last() else { return Ok(None) };
        self.after = Some(last.key.clone());
        Ok(Some(page))
    }
}

async fn get(reader: &dyn ObjectReader, key: &str) -> Result<Option<Fetched>, LedgerError> {
    again(|| reader.get(key)).await
}

/// Repeats a request while its cause can heal, a bounded number of times.
async fn again<'a, T>(
    request: impl Fn() -> BoxFuture<'a, Result<T, ShipError>>,
) -> Result<T, LedgerError> {
    let mut tries = 1;
    loop {
        let error = match request().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let heals = matches!(error.cause().disposition(), Disposition::Retry(_));
        if !heals || tries == TRIES {
            return Err(error.into());
        }
        tokio::time::sleep((PAUSE * (1 << tries)).mul_f64(fastrand::f64())).await;
        tries += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use bytes::Bytes;

    use super::*;
    use crate::ledger::{
        DamageKind, Entry, IdentityKey,
        chain::ChainHead,
        testing::{Bucket, Fate, Lake, built, changes, fates, groups, point, scratch, stamp},
    };

    fn key(seed: u8) -> IdentityKey {
        IdentityKey::from_seed(&[seed; 32])
    }

    fn entry_key(number: u64) -> String {
        entry::key("raw", "erp", number)
    }

    async fn look(
        bucket: &Bucket,
        keys: &[PublicKey],
        deep: bool,
        known: Option<Head>,
    ) -> SourceReport {
        let (lake, dir) = (Lake::new(bucket.clone()), scratch());
        let deep = deep.then_some(dir.path());
        let what = Audit { prefix: "raw", source: Some("erp"), public_keys: keys, deep };
        let reports = audit(&*lake, &what, &|_| known.clone(), &mut |_| {}).await.unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        reports.into_iter().next().unwrap()
    }

    /// The independent verifier's verdict: its output and exit code; `None` where it cannot run.
    fn python(
        bucket: &Bucket,
        keys: &[PublicKey],
        deep: bool,
        known: Option<&Head>,
    ) -> Option<(String, i32)> {
        let dir = scratch();
        for (key, bytes) in bucket {
            let path = dir.path().join("bucket").join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/verify.py");
        let mut command = Command::new("python3");
        let ready = Command::new("python3").args(["-c", "import cryptography"]).output();
        if !ready.is_ok_and(|ready| ready.status.success()) {
            return None;
        }
        command.arg(script).arg(dir.path().join("bucket")).arg("erp");
        for (number, key) in keys.iter().enumerate() {
            let path = dir.path().join(format!("{number}.pub"));
            fs::write(&path, key.to_pem()).unwrap();
            command.arg(path);
        }
        command.args(["--prefix", "raw"]);
        if deep {
            command.arg("--deep");
        }
        if let Some(known) = known {
            command.args(["--head", &known.to_string()]);
        }
        let output = command.output().unwrap();
        let text =
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
        Some((text, output.status.code().unwrap()))
    }

    /// Both verifiers say the same of the bucket. Gives ours.
    async fn both(
        bucket: &Bucket,
        keys: &[PublicKey],
        deep: bool,
        known: Option<Head>,
    ) -> SourceReport {
        let report = look(bucket, keys, deep, known.clone()).await;
        if let Some((text, code)) = python(bucket, keys, deep, known.as_ref()) {
            let mut lines = text.lines();
            let first = match report.proven {
                Some(point) => format!(
                    "erp: PROVEN up to {} (change {}): {} entries, {} objects",
                    point.position, point.sequence.0, report.entries, report.objects
                ),
                None => "erp: nothing is proven: 0 entries, 0 objects".into(),
            };
            assert_eq!(lines.next(), Some(first.as_str()), "{text}");
            let second = report.damage.as_ref().map(|damage| {
                format!("erp: {} entry {} {}", damage.kind.name(), damage.entry, damage.key)
            });
            assert_eq!(lines.next(), second.as_deref(), "{text}");
            assert_eq!(code, i32::from(second.is_some()));
        }
        report
    }

    /// Signs an entry anew after a change to it, as only the holder of the key can.
    fn forge(bucket: &mut Bucket, number: u64, key: &IdentityKey, change: impl FnOnce(&mut Entry)) {
        let object = &bucket[&entry_key(number)];
        let mut entry = entry::Lines::split(object).unwrap().entry().unwrap();
        change(&mut entry);
        bucket.insert(entry_key(number), entry::sign(&entry, key).object.into());
    }

    #[expect(clippy::too_many_lines, reason = "a table of deeds")]
    #[tokio::test]
    async fn every_kind_of_damage_is_told_apart_by_both_verifiers() {
        type Deed = Box<dyn FnOnce(&mut Bucket)>;
        let data = |bucket: &Bucket, number: u64| {
            let entry = entry::Lines::split(&bucket[&entry_key(number)]).unwrap().entry().unwrap();
            entry.objects[0].key.clone()
        };
        let swap = |bucket: &mut Bucket, a: String, b: String| {
            let (one, two) = (bucket[&a].clone(), bucket[&b].clone());
            bucket.extend([(a, two), (b, one)]);
        };
        let deeds: Vec<(DamageKind, u64, bool, Deed)> = vec![
            (
                DamageKind::ObjectMissing,
                5,
                false,
                Box::new(move |bucket| {
                    bucket.remove(&data(bucket, 5));
                }),
            ),
            (
                DamageKind::ObjectAltered,
                2,
                false,
                Box::new(move |bucket| {
                    bucket.insert(data(bucket, 2), Bytes::from("short"));
                }),
            ),
            (
                DamageKind::ObjectAltered,
                5,
                true,
                Box::new(move |bucket| {
                    let mut bytes = bucket[&data(bucket, 5)].to_vec();
                    bytes[3] ^= 1;
                    bucket.insert(data(bucket, 5), bytes.into());
                }),
            ),
            (
                DamageKind::ObjectAltered,
                4,
                true,
                Box::new(move |bucket| {
                    swap(bucket, data(bucket, 4), data(bucket, 5));
                }),
            ),
            (
                DamageKind::EntryMissing,
                4,
                false,
                Box::new(|bucket| {
                    bucket.remove(&entry_key(4));
                }),
            ),
            (
                DamageKind::EntryMissing,
                1,
                false,
                Box::new(|bucket| {
                    bucket.remove(&entry_key(1));
                }),
            ),
            (
                DamageKind::EntriesSwapped,
                5,
                false,
                Box::new(move |bucket| {
                    swap(bucket, entry_key(5), entry_key(6));
                }),
            ),
            (
                DamageKind::EntryAltered,
                6,
                false,
                Box::new(|bucket| {
                    let text = String::from_utf8(bucket[&entry_key(6)].to_vec()).unwrap();
                    bucket.insert(
                        entry_key(6),
                        text.replacen("\"sequence\":", "\"sequence\":1", 1).into(),
                    );
                }),
            ),
            (
                DamageKind::EntryAltered,
                3,
                false,
                Box::new(|bucket| {
                    bucket.insert(entry_key(3), Bytes::from("{}\n"));
                }),
            ),
            (
                DamageKind::EntryAltered,
                7,
                false,
                Box::new(|bucket| {
                    forge(bucket, 7, &key(9), |_| {});
                }),
            ),
            (
                DamageKind::TailTruncated,
                8,
                false,
                Box::new(|bucket| {
                    bucket.remove(&entry_key(9));
                    bucket.remove(&entry_key(8));
                }),
            ),
            (
                DamageKind::ForeignEntry,
                4,
                false,
                Box::new(|bucket| {
                    forge(bucket, 4, &key(1), |entry| entry.source.name = "crm".into());
                }),
            ),
            (
                DamageKind::ForeignEntry,
                4,
                false,
                Box::new(|bucket| {
                    forge(bucket, 4, &key(1), |entry| entry.source.system_identifier = "9".into());
                }),
            ),
            // What it says does not count where nobody that is known signed it.
            (
                DamageKind::EntryAltered,
                4,
                false,
                Box::new(|bucket| {
                    forge(bucket, 4, &key(9), |entry| entry.source.system_identifier = "9".into());
                }),
            ),
            (
                DamageKind::ChainBroken,
                6,
                false,
                Box::new(|bucket| {
                    forge(bucket, 5, &key(1), |entry| entry.at = "later".into());
                }),
            ),
            (
                DamageKind::ChainBroken,
                9,
                false,
                Box::new(|bucket| {
                    forge(bucket, 9, &key(1), |entry| entry.at = "later".into());
                }),
            ),
            (
                DamageKind::NotTiling,
                7,
                false,
                Box::new(|bucket| {
                    forge(bucket, 7, &key(1), |entry| entry.from = point(61, 161));
                }),
            ),
            (
                DamageKind::NotTiling,
                2,
                false,
                Box::new(|bucket| {
                    forge(bucket, 2, &key(1), |entry| entry.to = point(1, 1));
                }),
            ),
            (
                DamageKind::ObjectTwice,
                5,
                false,
                Box::new(|bucket| {
                    let of = entry::Lines::split(&bucket[&entry_key(4)]).unwrap().entry().unwrap();
                    forge(bucket, 5, &key(1), |entry| entry.objects = of.objects);
                    // The chain is broken after it too: the first damage is what counts.
                }),
            ),
        ];
        let whole = built(&groups(9), &key(1));
        let keys = [key(1).public()];
        let report = both(&whole, &keys, true, None).await;
        assert!(report.whole());
        let known = report.head;
        for (kind, entry, deep, deed) in deeds {
            let mut bucket = whole.clone();
            deed(&mut bucket);
            if deep {
                assert!(look(&bucket, &keys, false, Some(known.clone())).await.whole(), "{kind:?}");
            }
            let report = both(&bucket, &keys, deep, Some(known.clone())).await;
            let damage = report.damage.unwrap_or_else(|| panic!("{kind:?} {entry} was not found"));
            assert_eq!((damage.kind, damage.entry), (kind, entry), "{damage}");
            assert_eq!(report.entries, entry - 1);
        }
    }

    #[tokio::test]
    async fn a_lake_without_a_ledger_proves_nothing() {
        let keys = [key(1).public()];
        let report = both(&Bucket::new(), &keys, false, None).await;
        assert_eq!(report.damage.unwrap().kind, DamageKind::EntryMissing);
        let known = Head { entry: 3, hash: "ab".repeat(32) };
        let report = both(&Bucket::new(), &keys, false, Some(known)).await;
        assert_eq!(report.damage.unwrap().kind, DamageKind::TailTruncated);
    }

    /// A chain that the box with key 1 began, and the one with key 2 took over with entry 6.
    fn adopted() -> Bucket {
        let (old, new) = (key(1), key(2));
        let mut bucket = Bucket::new();
        let start = ChainHead::start(old.public().to_string());
        let head = crate::ledger::testing::extend(&mut bucket, start, &groups(5), &old);
        let (fence, next) = head.fence(new.public().to_string(), stamp());
        let signed = entry::sign(&fence, &new);
        bucket.insert(entry_key(6), signed.object.into());
        let head = ChainHead { hash: signed.hash, ..next };
        let more = [changes(1, point(50, 150), point(60, 160), 1)];
        crate::ledger::testing::extend(&mut bucket, head, &more, &new);
        bucket
    }

    #[tokio::test]
    async fn a_fence_hands_the_chain_to_a_key_that_was_given() {
        let (old, new) = (key(1).public(), key(2).public());
        let report = both(&adopted(), &[old, new], false, None).await;
        assert!(report.whole(), "{report}");
        let signers: Vec<_> = report.signers.iter().map(|signer| signer.from_entry).collect();
        assert_eq!((report.entries, signers), (7, vec![1, 6]));
        assert_eq!(report.signers[1].public_key, new.to_string());
        // With the old key alone the chain ends at a stranger's fence; with the new one it never began.
        let report = both(&adopted(), &[old], false, None).await;
        assert_eq!(report.damage.map(|d| (d.kind, d.entry)), Some((DamageKind::ForeignEntry, 6)));
        let report = both(&adopted(), &[new], false, None).await;
        assert_eq!(report.damage.map(|d| (d.kind, d.entry)), Some((DamageKind::EntryAltered, 1)));
    }

    #[tokio::test]
    async fn a_given_key_does_not_sign_without_a_fence() {
        let keys = [key(1).public(), key(2).public()];
        for (number, signer) in [(7, 1), (3, 2)] {
            let mut bucket = adopted();
            forge(&mut bucket, number, &key(signer), |_| {});
            let report = both(&bucket, &keys, false, None).await;
            let found = report.damage.map(|damage| (damage.kind, damage.entry));
            assert_eq!(found, Some((DamageKind::ForeignEntry, number)));
        }
        // A fence of the right signer for somebody else, or that continues something else.
        for change in [
            (|entry| entry.adopts.as_mut().unwrap().public_key = key(1).public().to_string())
                as fn(&mut Entry),
            |entry| entry.adopts.as_mut().unwrap().head = "00".repeat(32),
            |entry| entry.adopts = None,
        ] {
            let mut bucket = adopted();
            forge(&mut bucket, 6, &key(2), change);
            let report = both(&bucket, &keys, false, None).await;
            let found = report.damage.map(|damage| (damage.kind, damage.entry));
            assert_eq!(found, Some((DamageKind::ForeignEntry, 6)));
        }
    }

    /// The chain of [`adopted`], and behind it a fence for the box with this key, and an entry of it.
    fn adopted_again(seed: u8) -> Bucket {
        let (mut bucket, heir) = (adopted(), key(seed));
        let last = entry::Lines::split(&bucket[&entry_key(7)]).unwrap();
        let chain = ChainHead {
            entry: 7,
            hash: last.hash(),
            reached: Some(point(60, 160)),
            ..ChainHead::start(String::new())
        };
        let (fence, next) = chain.fence(heir.public().to_string(), stamp());
        let signed = entry::sign(&fence, &heir);
        bucket.insert(entry_key(8), signed.object.into());
        let head = ChainHead { hash: signed.hash, ..next };
        let more = [changes(1, point(60, 160), point(70, 170), 0)];
        crate::ledger::testing::extend(&mut bucket, head, &more, &heir);
        bucket
    }

    #[tokio::test]
    async fn a_key_that_was_replaced_does_not_own_the_chain_again() {
        let keys = [1, 2, 3].map(|seed| key(seed).public());
        let report = both(&adopted_again(1), &keys, false, None).await;
        let damage = report.damage.unwrap();
        assert_eq!((damage.kind, damage.entry), (DamageKind::ForeignEntry, 8), "{damage}");
        assert!(damage.what.contains("was replaced before"), "{}", damage.what);
        // A new one does; and the one that has it may begin anew.
        for heir in [3, 2] {
            let report = both(&adopted_again(heir), &keys, false, None).await;
            assert!(report.whole() && report.entries == 9, "{report}");
        }
    }

    #[tokio::test]
    async fn entries_that_came_since_are_of_the_chains_owner() {
        let keys = [1, 2, 3].map(|seed| key(seed).public());
        // From the head after so many entries on, which is told apart by its hash.
        let behind = async |bucket: &Bucket, from: u64| {
            let until = |(key, _): &(&String, &Bytes)| {
                entry::parse_key("raw", key).is_none_or(|(_, number)| number <= from)
            };
            let begun = bucket.iter().filter(until).map(|(key, of)| (key.clone(), of.clone()));
            let report = look(&begun.collect(), &keys, false, None).await;
            assert!(report.head.entry == from, "{report}");
            let end = (&report.head, &report.owners());
            let lake = Lake::new(bucket.clone());
            let (more, head, owners) = entries_behind(&*lake, "raw", "erp", end, &keys).await?;
            assert_eq!(head.entry, from + u64::try_from(more.len()).unwrap());
            Ok::<_, LedgerError>((head.entry, owners.owner()))
        };
        let refused = |end: Result<_, LedgerError>| matches!(end, Err(LedgerError::Changed));
        for from in [5, 7, 8] {
            let (last, owner) = behind(&adopted_again(3), from).await.unwrap();
            assert_eq!((last, owner), (9, Some(key(3).public())));
        }
        assert!(refused(behind(&adopted_again(1), 7).await));
        assert!(refused(behind(&adopted_again(1), 5).await));
        // Signed with a key that is known, and no fence says that the chain is its.
        let mut bucket = adopted_again(3);
        forge(&mut bucket, 9, &key(2), |_| {});
        assert!(refused(behind(&bucket, 8).await));
        assert!(refused(behind(&bucket, 5).await));
    }

    /// Gives more bytes of one object than are listed.
    struct Longer {
        lake: std::sync::Arc<Lake>,
        key: String,
    }

    impl ObjectReader for Longer {
        fn list<'a>(
            &'a self,
            prefix: &'a str,
            after: Option<&'a str>,
        ) -> BoxFuture<'a, Result<Vec<Listed>, ShipError>> {
            self.lake.list(prefix, after)
        }

        fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Fetched>, ShipError>> {
            self.lake.get(key)
        }

        fn fetch<'a>(
            &'a self,
            key: &'a str,
            into: &'a WorkFile,
            bytes_max: u64,
        ) -> BoxFuture<'a, Result<Option<BTreeMap<String, String>>, ShipError>> {
            let bytes_max = bytes_max - u64::from(key == self.key);
            self.lake.fetch(key, into, bytes_max)
        }
    }

    #[tokio::test]
    async fn an_object_of_another_length_is_not_read_to_its_end() {
        let mut bucket = built(&groups(5), &key(1));
        let of = |number| {
            entry::Lines::split(&bucket[&entry_key(number)]).unwrap().entry().unwrap().objects
        };
        let (second, fifth) = (of(2)[0].key.clone(), of(5)[0].key.clone());
        let keys = [key(1).public()];
        let dir = scratch();
        let deep = Some(dir.path());
        let what = Audit { prefix: "raw", source: Some("erp"), public_keys: &keys, deep };
        // More bytes come than it has.
        let longer = Longer { lake: Lake::new(bucket.clone()), key: fifth.clone() };
        let report = audit(&longer, &what, &|_| None, &mut |_| {}).await.unwrap().remove(0);
        let damage = report.damage.unwrap();
        let found = (damage.kind, damage.entry, damage.key);
        assert_eq!(found, (DamageKind::ObjectAltered, 5, fifth));
        let fetches = |lake: &Lake| lake.log().iter().filter(|(name, _)| *name == "fetch").count();
        let all = fetches(&longer.lake);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // Another length is listed: it is known to be altered, and not fetched.
        bucket.insert(second.clone(), Bytes::from(vec![b'x'; 4 << 10]));
        let lake = Lake::new(bucket);
        let report = audit(&*lake, &what, &|_| None, &mut |_| {}).await.unwrap().remove(0);
        let damage = report.damage.unwrap();
        let found = (damage.kind, damage.entry, &damage.key);
        assert_eq!(found, (DamageKind::ObjectAltered, 2, &second));
        assert!(damage.what.contains("4096 bytes"), "{}", damage.what);
        assert_eq!(fetches(&lake), all - 1);
    }

    #[tokio::test]
    async fn all_sources_are_found_and_each_is_judged_alone() {
        let mut bucket = built(&groups(4), &key(1));
        bucket.insert("raw/_ledger/crm/00000000000000000001.json".into(), Bytes::from("rubbish"));
        let lake = Lake::new(bucket);
        let keys = [key(1).public()];
        let what = Audit { prefix: "raw", source: None, public_keys: &keys, deep: None };
        let mut seen = vec![];
        let reports = audit(&*lake, &what, &|_| None, &mut |step| seen.push(step)).await.unwrap();
        let whole: Vec<_> = reports.iter().map(|r| (r.source.as_str(), r.whole())).collect();
        assert_eq!(whole, [("crm", false), ("erp", true)]);
        assert!(seen.contains(&Progress::Entries { source: "erp".into(), done: 4, all: 4 }));
    }

    #[tokio::test]
    async fn objects_are_listed_in_pages_and_not_asked_for_one_by_one() {
        let many: Vec<_> =
            (1..=50).map(|id| changes(id, point(id - 1, id - 1), point(id, id), 50)).collect();
        let lake = Lake::new(built(&many, &key(1)));
        let keys = [key(1).public()];
        let what = Audit { prefix: "raw", source: Some("erp"), public_keys: &keys, deep: None };
        let reports = audit(&*lake, &what, &|_| None, &mut |_| {}).await.unwrap();
        assert_eq!((reports[0].whole(), reports[0].objects), (true, 2500));
        let requests = lake.log();
        assert_eq!(requests.iter().filter(|(name, _)| *name == "get").count(), 50);
        assert!(requests.iter().filter(|(name, _)| *name == "list").count() < 10);
    }

    #[tokio::test]
    async fn a_lake_that_cannot_be_read_is_an_error_and_no_verdict() {
        let lake = Lake::new(built(&groups(4), &key(1)));
        lake.decide(fates(|name| if name == "get" { Fate::Denied } else { Fate::Good }));
        let keys = [key(1).public()];
        let what = Audit { prefix: "raw", source: Some("erp"), public_keys: &keys, deep: None };
        assert!(audit(&*lake, &what, &|_| None, &mut |_| {}).await.is_err());
        let mut first = true;
        lake.decide(fates(move |name| match name == "get" && std::mem::take(&mut first) {
            true => Fate::Busy,
            false => Fate::Good,
        }));
        assert!(audit(&*lake, &what, &|_| None, &mut |_| {}).await.unwrap()[0].whole());
    }
}
