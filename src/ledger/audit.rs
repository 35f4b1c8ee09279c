//! Reads chains and objects from the lake for [`verify`](super::verify). The audit's awaits.

use std::{collections::BTreeMap, path::Path};

use super::{
    Entry, LedgerError, entry,
    key::PublicKey,
    verify::{Found, KnownHead, Report, Walk},
};
use crate::ship::{Listed, ObjectReader};

/// What is to be audited.
pub struct Audit<'a> {
    /// The lake, with credentials that can read.
    pub reader: &'a dyn ObjectReader,
    /// First part of every key.
    pub prefix: &'a str,
    /// Keys whose signatures count.
    pub keys: &'a [PublicKey],
    /// A folder for objects while their bytes are read, if they are to be.
    pub deep: Option<&'a Path>,
}

/// How far an audit is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    /// Entries read.
    pub entries: u64,
    /// Entries there are.
    pub entries_all: u64,
    /// Objects checked.
    pub objects: u64,
    /// Bytes of objects read.
    pub bytes: u64,
}

impl Audit<'_> {
    /// Names of the sources that have a chain.
    ///
    /// # Errors
    ///
    /// The lake cannot be read.
    pub async fn sources(&self) -> Result<Vec<String>, LedgerError> {
        let mut sources: Vec<String> = vec![];
        let root = entry::root(self.prefix);
        let mut after: Option<String> = None;
        loop {
            let page = self.reader.list(&root, after.as_deref()).await?;
            let Some(last) = page.last().map(|listed| listed.key.clone()) else { break };
            for listed in &page {
                if let Some((source, _)) = entry::parse_key(self.prefix, &listed.key)
                    && sources.last().is_none_or(|known| known != source)
                {
                    sources.push(source.to_owned());
                }
            }
            // Past all entries of the source that the page ended in: its digits sort below `~`.
            let past =
                entry::parse_key(self.prefix, &last).map(|(source, _)| format!("{root}{source}/~"));
            after = Some(past.unwrap_or(last));
        }
        sources.dedup();
        Ok(sources)
    }

    /// Audits one source. `each` is given every entry that holds, in order.
    ///
    /// # Errors
    ///
    /// The lake cannot be read: nothing is said about the chain.
    pub async fn source(
        &self,
        source: &str,
        known: Option<KnownHead>,
        each: &mut (dyn FnMut(Entry, Progress) + Send),
    ) -> Result<Report, LedgerError> {
        let stored = self.stored(source).await?;
        let entries = self.listed(&entry::folder(self.prefix, source)).await?;
        let mut walk = Walk::new(source, self.keys, known, self.deep.is_some());
        let all = u64::try_from(entries.len()).unwrap_or(u64::MAX);
        let mut progress = Progress { entries: 0, entries_all: all, objects: 0, bytes: 0 };
        let mut outcome = Ok(());
        for listed in entries {
            let Some((_, number)) = entry::parse_key(self.prefix, &listed.key) else { continue };
            let bytes =
                self.reader.get(&listed.key).await?.map(|found| found.bytes).unwrap_or_default();
            let held = match walk.entry(&listed.key, number, &bytes) {
                Ok(entry) => {
                    self.objects(&mut walk, &entry, &stored, &mut progress).await?.map(|()| entry)
                }
                Err(broken) => Err(broken),
            };
            progress.entries += 1;
            match held {
                Ok(entry) => each(entry, progress),
                Err(broken) => {
                    outcome = Err(broken);
                    break;
                }
            }
        }
        Ok(walk.finish(outcome, stored.keys().map(String::as_str)))
    }

    async fn objects(
        &self,
        walk: &mut Walk<'_>,
        entry: &Entry,
        stored: &BTreeMap<String, u64>,
        progress: &mut Progress,
    ) -> Result<Result<(), Box<super::verify::Break>>, LedgerError> {
        for object in &entry.objects {
            let found =
                stored.get(&object.key).map_or(Found::Nothing, |bytes| Found::Bytes(*bytes));
            if let Err(broken) = walk.object(entry, object, found) {
                return Ok(Err(broken));
            }
            progress.objects += 1;
            if let Some(folder) = self.deep {
                let sha256 = self.content(&object.key, folder).await?;
                let found = sha256.as_deref().map_or(Found::Nothing, Found::Content);
                if let Err(broken) = walk.object(entry, object, found) {
                    return Ok(Err(broken));
                }
                progress.bytes += object.bytes;
            }
        }
        Ok(Ok(()))
    }

    /// SHA-256 of an object's bytes, read again.
    async fn content(&self, key: &str, folder: &Path) -> Result<Option<String>, LedgerError> {
        let path = folder.join("audit.object");
        if self.reader.fetch(key, &path).await?.is_none() {
            return Ok(None);
        }
        let at = path.clone();
        let hashed = tokio::task::spawn_blocking(move || hash_file(&at)).await;
        let hash = hashed.unwrap_or_else(|why| Err(std::io::Error::other(why)));
        let failed = |why| LedgerError::File { path: path.display().to_string(), why };
        let hash = hash.map_err(failed)?;
        crate::disk::remove(&path).map_err(failed)?;
        Ok(Some(hash))
    }

    /// Keys and lengths of the source's data and schema objects.
    async fn stored(&self, source: &str) -> Result<BTreeMap<String, u64>, LedgerError> {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        let mut stored = BTreeMap::new();
        for folder in [
            format!("{}{slash}{source}/", self.prefix),
            format!("{}{slash}_schema/{source}/", self.prefix),
        ] {
            let listed = self.listed(&folder).await?;
            stored.extend(listed.into_iter().map(|listed| (listed.key, listed.bytes)));
        }
        Ok(stored)
    }

    async fn listed(&self, folder: &str) -> Result<Vec<Listed>, LedgerError> {
        let mut all: Vec<Listed> = vec![];
        loop {
            let after = all.last().map(|listed| listed.key.clone());
            let page = self.reader.list(folder, after.as_deref()).await?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }
}

fn hash_file(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut file = std::fs::File::open(path)?;
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut buffer = vec![0; HASH_BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(context.finish())),
            read => context.update(&buffer[..read]),
        }
    }
}

const HASH_BUFFER_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{
        super::{
            chain::{self, Head, tests::*},
            entry::{self as entries, tests::key},
            key::IdentityKey,
            verify::Damage,
        },
        *,
    };
    use crate::ship::memory::Memory;

    /// A chain of one snapshot and three epochs.
    fn lake(key: &IdentityKey) -> Memory {
        let store = Memory::new(1);
        let mut head = Head::default();
        let at = [point(0, 100), point(5, 200), point(9, 300), point(9, 350)];
        let groups = [
            chunk(1, true),
            changes(2, at[0], at[1]),
            changes(3, at[1], at[2]),
            changes(4, at[2], at[3]),
        ];
        for group in groups {
            let (entry, mut next) =
                chain::next(&head, std::slice::from_ref(&group), &stamp()).unwrap();
            let signed = entries::sign(&entry, key);
            next.hash = signed.hash;
            store.tamper(
                &entries::object_key("raw", "erp", entry.entry),
                Some(signed.object.into()),
            );
            for object in &group.objects {
                store.tamper(&object.key, Some(Bytes::from_static(b"abc")));
            }
            head = next;
        }
        store
    }

    async fn audit(store: &Memory, key: &IdentityKey, known: Option<KnownHead>) -> Report {
        let dir = tempfile::tempdir().unwrap();
        let keys = [key.public()];
        let audit = Audit { reader: store, prefix: "raw", keys: &keys, deep: Some(dir.path()) };
        audit.source("erp", known, &mut |_, _| ()).await.unwrap()
    }

    fn entry_key(number: u64) -> String {
        entries::object_key("raw", "erp", number)
    }

    async fn damage(store: &Memory, key: &IdentityKey, known: Option<KnownHead>) -> (Damage, u64) {
        let report = audit(store, key, known).await;
        let broken = report.broken.unwrap();
        (broken.damage, broken.entry)
    }

    #[tokio::test]
    async fn a_whole_chain_is_proven() {
        let (_dir, key) = key();
        let report = audit(&lake(&key), &key, None).await;
        assert!(report.proven, "{:?}", report.broken);
        assert_eq!((report.entries, report.objects, report.point), (4, 4, point(9, 350)));
        assert_eq!(report.snapshots.len(), 1);
    }

    #[tokio::test]
    async fn objects_missing_and_altered_are_told_apart() {
        let (_dir, key) = key();
        let object = "raw/erp/public.t/dt=1970-01-01/changes-3.parquet";
        for (bytes, expected) in [
            (None, Damage::ObjectMissing),
            (Some(&b"ab"[..]), Damage::ObjectAltered),
            (Some(b"abd"), Damage::ObjectAltered),
        ] {
            let store = lake(&key);
            store.tamper(object, bytes.map(Bytes::from_static));
            let broken = audit(&store, &key, None).await.broken.unwrap();
            assert_eq!(
                (broken.damage, broken.entry, broken.object.as_str()),
                (expected, 3, object)
            );
            assert_eq!((broken.from, broken.to), (point(5, 200), Some(point(9, 300))));
        }
    }

    #[tokio::test]
    async fn entries_missing_swapped_altered_and_foreign_are_told_apart() {
        let (_other_dir, other) = key();
        let (_dir, key) = key();
        let store = lake(&key);
        store.tamper(&entry_key(2), None);
        assert_eq!(damage(&store, &key, None).await, (Damage::EntryMissing, 2));

        let store = lake(&key);
        let objects = store.objects();
        store.tamper(&entry_key(2), Some(objects[&entry_key(3)].clone()));
        store.tamper(&entry_key(3), Some(objects[&entry_key(2)].clone()));
        assert_eq!(damage(&store, &key, None).await, (Damage::EntriesSwapped, 2));

        let store = lake(&key);
        let text = String::from_utf8(store.objects()[&entry_key(3)].to_vec()).unwrap();
        store.tamper(&entry_key(3), Some(text.replace("\"bytes\":3", "\"bytes\":4").into()));
        assert_eq!(damage(&store, &key, None).await, (Damage::EntryAltered, 3));
        assert_eq!(damage(&lake(&other), &key, None).await, (Damage::EntryAltered, 1));

        let store = lake(&key);
        let mut foreign = entries::read(&store.objects()[&entry_key(3)]).unwrap().entry;
        foreign.source.name = "crm".into();
        store.tamper(&entry_key(3), Some(entries::sign(&foreign, &key).object.into()));
        assert_eq!(damage(&store, &key, None).await, (Damage::ForeignEntry, 3));
    }

    #[tokio::test]
    async fn a_tail_is_missed_by_who_knows_the_head() {
        let (_dir, key) = key();
        let store = lake(&key);
        let whole = audit(&store, &key, None).await;
        let known = KnownHead { entry: whole.entries, hash: whole.head };
        store.tamper(&entry_key(4), None);
        assert!(audit(&store, &key, None).await.proven);
        assert_eq!(damage(&store, &key, Some(known)).await, (Damage::TailTruncated, 4));
    }

    #[tokio::test]
    async fn a_chain_signed_anew_without_an_entry_does_not_tile() {
        let (_dir, key) = key();
        let store = lake(&key);
        let objects = store.objects();
        let mut last = entries::read(&objects[&entry_key(4)]).unwrap().entry;
        let second = entries::read(&objects[&entry_key(2)]).unwrap();
        (last.entry, last.previous) = (3, second.hash);
        store.tamper(&entry_key(3), Some(entries::sign(&last, &key).object.into()));
        store.tamper(&entry_key(4), None);
        assert_eq!(damage(&store, &key, None).await, (Damage::NotTiling, 3));
    }

    #[tokio::test]
    async fn sources_are_found_by_their_chains() {
        let (_dir, key) = key();
        let store = lake(&key);
        store.tamper(&entries::object_key("raw", "crm", 1), Some(Bytes::new()));
        let audit = Audit { reader: &store, prefix: "raw", keys: &[], deep: None };
        assert_eq!(audit.sources().await.unwrap(), ["crm", "erp"]);
    }
}
