//! Takes over the chain of a lost box: with reading credentials once, and its public key.
//!
//! The chain is verified, and its head becomes this box's. The first entry written is a `fence`: it is
//! signed by this box's key and names it, so that a verifier who is given both keys sees who signed
//! from where on; should the lost box come back, it finds its next number taken and stops.
//!
//! **Invariant:** nothing of this box's own is continued: its facts for the source must be empty, but
//! for an adoption that was interrupted, which is finished, or that was refused, which is tried again.

use std::{collections::BTreeMap, fs, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::{
    Audit, Head, IdentityKey, LedgerError, LedgerOptions, Progress, PublicKey, SourceIdentity,
    SourceReport,
    audit::{self, audit},
    chain::{ChainHead, Stamp},
    on_thread,
    settle::{Pauses, Settle},
    store::{Pending, Stage, Store},
    write::{keep_head, pending},
};
use crate::{
    clock::Clock,
    disk,
    facts::Facts,
    ship::{ObjectReader, ObjectStore},
    telemetry::board::SourceBoard,
    units::{Point, Position},
};

/// What a box needs to continue a chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Adopted {
    /// The fence, which is the chain's head now.
    pub head: Head,
    /// Where the chain stands: the next epoch begins here. Before any epoch zero.
    pub point: Point,
    /// Latest version of each table's schema.
    pub tables: BTreeMap<String, u32>,
    /// Tables whose snapshot is whole, and the position of its last chunk.
    pub completes: BTreeMap<String, Position>,
    /// The database that the chain speaks of.
    pub source: SourceIdentity,
}

/// The box that adopts.
pub struct Adopter<'a> {
    /// Which chain. `options.identity` is not asked: the chain says it.
    pub options: LedgerOptions,
    /// This box's key.
    pub key: IdentityKey,
    /// Writes the fence.
    pub lake: Arc<dyn ObjectStore>,
    /// This box's facts for the source.
    pub facts: Arc<dyn Facts>,
    /// Where it shows that it waits.
    pub board: SourceBoard,
    /// For the fence's time.
    pub clock: Arc<dyn Clock>,
    /// Stops it.
    pub token: &'a CancellationToken,
}

/// Name of the file in `data_dir` with the public keys, in PEM, that may have signed an adopted chain.
pub fn trusted_file_name(source: &str) -> String {
    format!("trusted-{source}.pub")
}

/// A chain that is whole, and that this box may take over.
pub struct Inspected {
    /// What the chain holds.
    pub report: SourceReport,
    keys: Vec<PublicKey>,
    before: Option<ChainHead>,
}

impl Inspected {
    /// Whether this box has fenced it already.
    pub fn fenced(&self) -> bool {
        self.before.is_some()
    }
}

/// Verifies the chain with `public_keys`, those of the boxes that wrote it. Changes nothing.
///
/// # Errors
///
/// [`LedgerError::NotEmpty`], [`LedgerError::NoChain`], [`LedgerError::Broken`], [`LedgerError::Replaced`], or what S3 and
/// the disk say.
pub async fn inspect(
    reader: &dyn ObjectReader,
    public_keys: &[PublicKey],
    adopter: &Adopter<'_>,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Inspected, LedgerError> {
    let store = Store(adopter.facts.clone());
    let own = adopter.key.public();
    let mut keys = public_keys.to_vec();
    if !keys.contains(&own) {
        keys.push(own);
    }
    let LedgerOptions { prefix, source, .. } = &adopter.options;
    if !audit::has_entries(reader, prefix, source).await? {
        return Err(LedgerError::NoChain(super::entry::folder(prefix, Some(source))));
    }
    let what = Audit { prefix, source: Some(source), public_keys: &keys, deep: None };
    let before = store.head()?;
    let known = before.as_ref().map(|head| Head { entry: head.entry, hash: head.hash.clone() });
    let reports = audit(reader, &what, &|_| known.clone(), progress).await?;
    let report = reports.into_iter().next();
    let mut report = report.expect("the one source asked for has its report");
    if let Some(damage) = report.damage.take() {
        return Err(LedgerError::Broken(Box::new(damage)));
    }
    if let Some(head) = &before {
        has_only_fenced(head, &report, &store)?;
    }
    if report.owners().has_replaced(own) {
        return Err(LedgerError::Replaced(source.clone()));
    }
    Ok(Inspected { report, keys, before })
}

/// Takes the chain over. Leaves the keys, with this box's own, in [`trusted_file_name`]. Can be
/// repeated after a crash, from [`inspect`] on.
///
/// # Errors
///
/// [`LedgerError::NotEmpty`]: nothing was done. [`LedgerError::Fenced`]: another box was faster. Or what
/// S3 and the disk say.
pub async fn adopt(adopter: Adopter<'_>, inspected: Inspected) -> Result<Adopted, LedgerError> {
    let Inspected { report, keys, before } = inspected;
    let store = Store(adopter.facts.clone());
    keep_trusted(&adopter.options, &keys).await?;
    let head = match before {
        Some(head) => head,
        None => fence(&adopter, &store, &report).await?,
    };
    keep_head(&adopter.options, &head).await?;
    Ok(Adopted {
        head: Head { entry: head.entry, hash: head.hash },
        point: report.proven.unwrap_or_default(),
        tables: report.tables,
        completes: report.completes,
        source: report.identity.expect("a chain with entries names its source"),
    })
}

/// Refuses a box that has gone on since it adopted.
fn has_only_fenced(
    head: &ChainHead,
    report: &SourceReport,
    store: &Store,
) -> Result<(), LedgerError> {
    let at_fence = head.group == 0 && head.hash == report.head.hash;
    if at_fence && store.pending()?.is_none() {
        return Ok(());
    }
    Err(LedgerError::NotEmpty(report.source.clone()))
}

async fn fence(
    adopter: &Adopter<'_>,
    store: &Store,
    report: &SourceReport,
) -> Result<ChainHead, LedgerError> {
    let mut fence = match store.pending()? {
        // Interrupted: the same bytes go on. It may stand in the lake already.
        Some(begun) if resumes(&begun, report) => begun,
        Some(begun) if begun.stage != Stage::Refused => {
            return Err(LedgerError::NotEmpty(report.source.clone()));
        }
        _ if store.has_groups() => return Err(LedgerError::NotEmpty(report.source.clone())),
        _ => make(adopter, report),
    };
    let settle = Settle {
        lake: &*adopter.lake,
        store,
        encryption: &adopter.options.encryption,
        board: &adopter.board,
        clock: &*adopter.clock,
        pauses: Pauses::default(),
        token: adopter.token,
    };
    settle.settle(&mut fence).await?;
    store.commit(&fence, &[]).await?;
    Ok(fence.next)
}

/// Whether `begun` is a fence of ours right behind the chain, or its last entry.
fn resumes(begun: &Pending, report: &SourceReport) -> bool {
    let next = begun.next.entry == report.head.entry + 1;
    let there = begun.next.hash == report.head.hash;
    begun.groups.is_empty() && begun.stage != Stage::Refused && (next || there)
}

fn make(adopter: &Adopter<'_>, report: &SourceReport) -> Pending {
    let chain = ChainHead {
        entry: report.head.entry,
        hash: report.head.hash.clone(),
        reached: report.reached,
        batch: 0,
        group: 0,
        signed_by: String::new(),
        transactions: 0,
    };
    let stamp = Stamp {
        source: report.identity.clone().expect("a chain with entries names its source"),
        release: report.release.clone().unwrap_or_default(),
        appliance: adopter.options.appliance.clone(),
        at: adopter.clock.wall().rfc3339(),
    };
    let (entry, next) = chain.fence(adopter.key.public().to_string(), stamp);
    pending(&entry, next, &adopter.key, &adopter.options, vec![])
}

async fn keep_trusted(options: &LedgerOptions, keys: &[PublicKey]) -> Result<(), LedgerError> {
    let path = options.data_dir.join(trusted_file_name(&options.source));
    let shown = path.display().to_string();
    let pem: String = keys.iter().map(|key| key.to_pem()).collect();
    let wrote = on_thread("trusted", move || disk::write_durably(&path, pem.as_bytes())).await;
    wrote.map_err(|why| LedgerError::Disk { path: shown, why })
}

/// The keys that may have signed this source's chain: this box's, and those of boxes that it replaced. Blocks.
///
/// # Errors
///
/// [`LedgerError::KeyFile`] if a file is unreadable or holds no key.
pub fn trusted_keys(
    data_dir: &std::path::Path,
    source: &str,
) -> Result<Vec<PublicKey>, LedgerError> {
    let own = data_dir.join(super::key::PUBLIC_FILE);
    let adopted = data_dir.join(trusted_file_name(source));
    let path = if adopted.exists() { adopted } else { own };
    let refused = |why| LedgerError::KeyFile { path: path.display().to_string(), why };
    let text = fs::read_to_string(&path).map_err(|_| refused("cannot be read"))?;
    let keys = PublicKey::all_from_pem(&text).ok_or_else(|| refused("is no Ed25519 public key"))?;
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::{
        clock::SystemClock,
        facts::{FactBatch, MemoryFacts},
        ledger::{
            DamageKind, Encryption, EntryKind, Group, Ledger, Proven, Shipped,
            entry::{self, Lines},
            testing::{self, Bucket, CrashFacts, Fate, Lake, built, changes, fates, groups, point},
        },
    };

    struct World {
        lake: Arc<Lake>,
        memory: Arc<MemoryFacts>,
        dir: tempfile::TempDir,
    }

    fn key(seed: u8) -> IdentityKey {
        IdentityKey::from_seed(&[seed; 32])
    }

    impl World {
        fn new(bucket: Bucket) -> Self {
            let memory = Arc::default();
            Self { lake: Lake::new(bucket), memory, dir: testing::scratch() }
        }

        fn options(&self) -> LedgerOptions {
            LedgerOptions {
                appliance: "plant7-b".into(),
                source: "erp".into(),
                prefix: "raw".into(),
                data_dir: self.dir.path().into(),
                identity: Arc::new(|| Some(testing::identity())),
                encryption: Encryption::None,
            }
        }

        fn facts(&self) -> Arc<CrashFacts> {
            Arc::new(CrashFacts { memory: self.memory.clone(), lake: self.lake.clone() })
        }

        /// `None`: the box died.
        async fn adopt(&self) -> Option<Result<Adopted, LedgerError>> {
            let (token, crash) = (CancellationToken::new(), CancellationToken::new());
            *self.lake.crash.lock().unwrap() = crash.clone();
            let adopter = Adopter {
                options: self.options(),
                key: key(2),
                lake: self.lake.clone(),
                facts: self.facts(),
                board: SourceBoard::default(),
                clock: Arc::new(SystemClock),
                token: &token,
            };
            let keys = [key(1).public()];
            let mut quiet = |_| {};
            tokio::select! {
                adopted = async {
                    let inspected = inspect(&*self.lake, &keys, &adopter, &mut quiet).await?;
                    adopt(adopter, inspected).await
                } => Some(adopted),
                () = crash.cancelled() => None,
            }
        }

        /// The new box's first life after the adoption.
        async fn go_on(&self, group: Group) -> Proven {
            let ledger = Ledger::open(
                self.options(),
                key(2),
                self.lake.clone(),
                self.facts(),
                SourceBoard::default(),
                Arc::new(SystemClock),
                Arc::new(|| "lake".into()),
            );
            let (give, shipped) = mpsc::channel(1);
            give.send(Shipped { group }).await.unwrap();
            drop(give);
            let (proven, proved) = watch::channel(Proven::default());
            let (done, _given) = mpsc::channel(1);
            ledger.unwrap().run(shipped, proven, done, CancellationToken::new()).await.unwrap();
            *proved.borrow()
        }

        async fn report(&self) -> SourceReport {
            let keys = trusted_keys(self.dir.path(), "erp").unwrap();
            let what = Audit { prefix: "raw", source: Some("erp"), public_keys: &keys, deep: None };
            audit(&*self.lake, &what, &|_| None, &mut |_| {}).await.unwrap().remove(0)
        }
    }

    #[tokio::test]
    async fn a_new_box_goes_on_where_the_lost_one_ended() {
        let world = World::new(built(&groups(5), &key(1)));
        let adopted = world.adopt().await.unwrap().unwrap();
        assert_eq!((adopted.head.entry, adopted.point), (6, point(50, 150)));
        assert_eq!(adopted.tables, BTreeMap::from([("public.t".into(), 1)]));
        assert_eq!(adopted.source, testing::identity());
        let fence = &world.lake.bucket()[&entry::key("raw", "erp", 6)];
        let fence = Lines::split(fence).unwrap().entry().unwrap();
        assert_eq!(fence.kind, EntryKind::Fence);
        let proven = world.go_on(changes(1, point(50, 150), point(60, 160), 0)).await;
        assert_eq!(proven, Proven { point: point(60, 160), batch: 1, entry: 7 });
        let report = world.report().await;
        assert!(report.whole() && report.entries == 7, "{report}");
        assert_eq!(report.signers.len(), 2);
    }

    #[tokio::test]
    async fn a_crash_anywhere_leaves_one_fence() {
        for at in 0..40 {
            for effect in [false, true] {
                let world = World::new(built(&groups(5), &key(1)));
                let mut count = 0;
                world.lake.decide(fates(move |_| {
                    count += 1;
                    if count - 1 == at { Fate::Crash { effect } } else { Fate::Good }
                }));
                let first = world.adopt().await;
                world.lake.decide(fates(|_| Fate::Good));
                let again = world.adopt().await.unwrap().unwrap();
                assert_eq!(again.head.entry, 6, "{at} {effect}");
                if let Some(first) = first {
                    assert_eq!(first.unwrap(), again);
                }
                let report = world.report().await;
                assert!(report.whole() && report.entries == 6, "{report}");
            }
        }
    }

    #[tokio::test]
    async fn a_broken_chain_or_none_is_not_adopted() {
        let mut bucket = built(&groups(5), &key(1));
        bucket.remove(&entry::key("raw", "erp", 3));
        let world = World::new(bucket.clone());
        let Err(LedgerError::Broken(damage)) = world.adopt().await.unwrap() else { panic!() };
        assert_eq!(damage.kind, DamageKind::EntryMissing);
        assert_eq!(world.lake.bucket(), bucket);
        // Of another box altogether, from its first entry on.
        let world = World::new(built(&groups(5), &key(3)));
        let Err(LedgerError::Broken(damage)) = world.adopt().await.unwrap() else { panic!() };
        assert_eq!((damage.kind, damage.entry), (DamageKind::EntryAltered, 1));
        let error = World::new(Bucket::new()).adopt().await.unwrap();
        assert!(matches!(error, Err(LedgerError::NoChain(_))), "{error:?}");
    }

    #[tokio::test]
    async fn a_box_with_work_of_its_own_does_not_adopt() {
        let world = World::new(built(&groups(5), &key(1)));
        let own = changes(1, point(0, 0), point(1, 1), 1);
        let mut batch = FactBatch::default();
        batch.put(own.fact(), &own);
        world.memory.record_blocking(batch).unwrap();
        let error = world.adopt().await.unwrap();
        assert!(matches!(error, Err(LedgerError::NotEmpty(_))), "{error:?}");
        // Nor one that has gone on since.
        let world = World::new(built(&groups(5), &key(1)));
        world.adopt().await.unwrap().unwrap();
        world.go_on(changes(1, point(50, 150), point(60, 160), 0)).await;
        let error = world.adopt().await.unwrap();
        assert!(matches!(error, Err(LedgerError::NotEmpty(_))), "{error:?}");
        assert_eq!(world.report().await.entries, 7);
    }

    #[tokio::test]
    async fn a_key_that_was_replaced_is_not_given_the_chain_back() {
        // This box's own chain, before another took it over: its key was put back from a copy.
        let mut bucket = built(&groups(5), &key(2));
        let last = Lines::split(&bucket[&entry::key("raw", "erp", 5)]).unwrap();
        let chain = ChainHead {
            entry: 5,
            hash: last.hash(),
            reached: Some(point(50, 150)),
            ..ChainHead::start(String::new())
        };
        let (fence, _) = chain.fence(key(1).public().to_string(), testing::stamp());
        let signed = entry::sign(&fence, &key(1));
        bucket.insert(entry::key("raw", "erp", 6), signed.object.into());
        let world = World::new(bucket.clone());
        let error = world.adopt().await.unwrap();
        assert!(matches!(error, Err(LedgerError::Replaced(_))), "{error:?}");
        assert_eq!(world.lake.bucket(), bucket);
        // While it is this box's it may begin anew.
        let world = World::new(built(&groups(5), &key(2)));
        assert_eq!(world.adopt().await.unwrap().unwrap().head.entry, 6);
    }

    #[tokio::test]
    async fn a_lost_box_that_still_writes_wins_and_adoption_can_be_repeated() {
        let world = World::new(built(&groups(5), &key(1)));
        let (lake, whole) = (world.lake.clone(), built(&groups(6), &key(1)));
        world.lake.decide(fates(move |name| {
            if name == "part" {
                whole.iter().for_each(|(key, bytes)| lake.insert(key, bytes.clone()));
            }
            Fate::Good
        }));
        let fenced = world.adopt().await.unwrap();
        assert!(matches!(fenced, Err(LedgerError::Fenced { .. })), "{fenced:?}");
        world.lake.decide(fates(|_| Fate::Good));
        assert_eq!(world.adopt().await.unwrap().unwrap().head.entry, 7);
    }
}
