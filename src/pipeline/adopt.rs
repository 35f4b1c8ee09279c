//! Takes over the chain of a lost box, and prepares every room so that `run` simply goes on.
//!
//! | step | durable when it is done |
//! |---|---|
//! | begun | fact `pipeline/adoption`: from here on `run` refuses |
//! | the chain is verified, nobody reads from its slot; it is fenced | the fence in S3; `ledger/head`; the trusted keys |
//! | the lake is read, the database is looked at | |
//! | the journal begins behind the chain's end | the head of a segment |
//! | the rooms are told | versions of schemas, tables that are whole; then, in one batch, where the changes were cut, which slot is followed, and that it is finished |
//!
//! **Invariant:** each step can be done again and comes to the same, so that an adoption that was cut
//! anywhere is finished by another; and nothing but an adoption starts on what one has begun.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{RunError, estate::Estate, journal_key, journal_options, ledger_options};
use crate::{
    clock::Clock,
    config::{self, Config},
    facts::{self, FactBatch, Facts},
    journal::{self, Durable, Journal, Keep, ORIGIN_FACT},
    ledger::{
        self, Adopted, IdentityKey, LedgerError, Progress as Audited, PublicKey, adopt::Adopter,
        audit,
    },
    replay::{Lake, fetch::Fetcher, restore::read_definitions},
    seal::{put_taken, put_version},
    ship::ObjectStore,
    shutdown::Tasks,
    source::{
        postgres::{Chain, Outlook, Said, Succession, put_said, succeed, unused},
        reread::{EPOCH_FACT, EpochEnd},
    },
    telemetry::board::SourceBoard,
    units::Point,
};

/// What is to be taken over, and with what.
pub struct Asked<'a> {
    /// This box's own configuration.
    pub config: &'a Config,
    /// The source's.
    pub source: &'a config::Source,
    /// The keys of the boxes that wrote the chain.
    pub public_keys: &'a [PublicKey],
    /// Reads the lake: not with the box's credentials, which cannot.
    pub lake: Lake,
    /// Writes the fence, with the box's own.
    pub store: Arc<dyn ObjectStore>,
    /// For objects on their way.
    pub work_dir: &'a Path,
    /// Where it shows what it waits for.
    pub board: SourceBoard,
    /// For the fence's time.
    pub clock: Arc<dyn Clock>,
}

/// How far it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Progress {
    /// The chain is verified.
    Audit(Audited),
    /// The chain is this box's; what it holds is read.
    Reading {
        /// Entries of the chain.
        entries: u64,
    },
}

/// What was taken over.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Takeover {
    /// The fence's number.
    pub entry: u64,
    /// Where the chain ends, and this box goes on. Before any change zero.
    pub point: Point,
    /// Whether it was taken over by an earlier call: then nothing was done, and what follows is empty.
    pub earlier: bool,
    /// The appliances that wrote the chain.
    pub appliances: Vec<String>,
    /// The slot that is followed from here on.
    pub slot: String,
    /// Tables of whose rows all are in the lake.
    pub whole: Vec<String>,
    /// Tables whose rows are read anew.
    pub partial: Vec<String>,
    /// Objects that were on their way when the box was lost: no entry names them, nor ever will.
    pub strangers: Vec<String>,
    /// What is lost between the chain and the database, in a sentence.
    pub gap: Option<String>,
    /// Why the database could not be asked for that.
    pub unasked: Option<String>,
}

/// Where an adoption is. Set by [`adopt`] only; durable before what it allows.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Stage {
    /// A fence may have been written.
    Begun,
    /// The rooms are ready.
    Done {
        /// The fence's number.
        entry: u64,
        /// Where this box began.
        point: Point,
    },
}

/// Key of the [`Stage`].
const ADOPTION_FACT: &str = "pipeline/adoption";

/// Takes the chain of a source over. The caller holds `data_dir`.
///
/// # Errors
///
/// The chain is not there or broken, its box still reads from the slot, or this one has work of its own:
/// nothing was done. All else leaves
/// what another call finishes.
pub async fn adopt(
    asked: &Asked<'_>,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Takeover, RunError> {
    let key = journal_key(asked.config)?;
    let options = journal_options(asked.config, &asked.source.name, &key);
    let journal = open(&options, asked).await?;
    let facts: Arc<dyn Facts> = Arc::clone(&journal) as Arc<dyn Facts>;
    let fenced = fence(asked, &journal, &facts, progress).await;
    let prepared = match fenced {
        Ok(Fenced::Earlier(takeover)) => Ok(Err(takeover)),
        Ok(Fenced::Now(adopted)) => prepare(asked, adopted, progress).await.map(Ok),
        Err(error) => Err(error),
    };
    journal.stop().await;
    drop(journal);
    let prepared = match prepared? {
        Ok(prepared) => prepared,
        Err(earlier) => return Ok(earlier),
    };
    if let Some(reached) = prepared.estate.reached {
        let begun = options.clone();
        on_thread(move || journal::begin_at(&begun, reached)).await?;
    }
    let journal = open(&options, asked).await?;
    let told = tell(&*journal, &prepared).await;
    journal.stop().await;
    told.map(|()| prepared.takeover)
}

/// Refuses to start on what an adoption has begun and not finished.
///
/// # Errors
///
/// [`RunError::Adopting`].
pub(super) fn whole(facts: &dyn Facts, source: &str) -> Result<(), RunError> {
    match facts::read::<Stage>(facts, ADOPTION_FACT)? {
        Some(Stage::Begun) => Err(RunError::Adopting(source.into())),
        Some(Stage::Done { .. }) | None => Ok(()),
    }
}

enum Fenced {
    Now(Adopted),
    Earlier(Takeover),
}

/// Verifies the chain and writes the fence.
async fn fence(
    asked: &Asked<'_>,
    journal: &Journal,
    facts: &Arc<dyn Facts>,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Fenced, RunError> {
    match facts::read::<Stage>(&**facts, ADOPTION_FACT)? {
        Some(Stage::Done { entry, point }) => {
            return Ok(Fenced::Earlier(Takeover::earlier(entry, point)));
        }
        Some(Stage::Begun) => {}
        None if has_own_work(journal, &**facts) => {
            return Err(LedgerError::NotEmpty(asked.source.name.clone()).into());
        }
        None => {
            let mut begun = FactBatch::default();
            begun.put(ADOPTION_FACT, &Stage::Begun);
            facts.record(begun).await?;
        }
    }
    let identity = IdentityKey::open(&asked.config.appliance.data_dir)?;
    let token = CancellationToken::new();
    let adopter = Adopter {
        options: ledger_options(asked.config, &asked.source.name, Arc::new(|| None)),
        key: identity,
        lake: Arc::clone(&asked.store),
        facts: Arc::clone(facts),
        board: asked.board.clone(),
        clock: Arc::clone(&asked.clock),
        token: &token,
    };
    let adopted = take(asked, adopter, progress).await;
    if adopted.is_err() && facts.scan(LEDGER_FACTS).is_empty() {
        // No fence was begun: the box is as fresh as it was.
        let mut undone = FactBatch::default();
        undone.delete(ADOPTION_FACT);
        facts.record(undone).await?;
    }
    Ok(Fenced::Now(adopted?))
}

async fn take(
    asked: &Asked<'_>,
    adopter: Adopter<'_>,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Adopted, RunError> {
    let (reader, keys) = (&*asked.lake.reader, asked.public_keys);
    let mut show = |audited| progress(Progress::Audit(audited));
    let inspected = ledger::inspect(reader, keys, &adopter, &mut show).await?;
    if !inspected.fenced() {
        let signers = inspected.report.signers.iter();
        let appliances: Vec<String> = signers.map(|signer| signer.appliance.clone()).collect();
        unused(asked.source, &appliances).await?;
    }
    Ok(ledger::adopt(adopter, inspected).await?)
}

/// Whether this box has read, or begun to read, a database by itself.
fn has_own_work(journal: &Journal, facts: &dyn Facts) -> bool {
    let rooms = ["source/", "seal/", LEDGER_FACTS];
    *journal.durable().borrow() != Durable::default()
        || rooms.iter().any(|room| !facts.scan(room).is_empty())
}

/// What the rooms are to be told.
struct Prepared {
    estate: Estate,
    succession: Succession,
    takeover: Takeover,
}

/// Reads what the chain holds, and looks at the database.
async fn prepare(
    asked: &Asked<'_>,
    adopted: Adopted,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Prepared, RunError> {
    progress(Progress::Reading { entries: adopted.head.entry });
    let (prefix, name) = (&asked.config.lake.prefix, &asked.source.name);
    let reader = &*asked.lake.reader;
    let entries = audit::entries_to(reader, prefix, name, &adopted.head).await?;
    let strangers = audit::strangers(reader, prefix, name, &entries).await?;
    let fetcher = Fetcher::new(asked.lake.clone(), asked.work_dir)?;
    let known = read_definitions(&fetcher, &entries).await?;
    let estate = Estate::of(&entries, &known, &strangers);
    let chain = Chain {
        appliances: estate.appliances.clone(),
        system_identifier: adopted.source.system_identifier,
        timeline: adopted.source.timeline,
        reached: estate.reached.map(|point| point.position),
        snapshot: estate.snapshot,
    };
    let succession = succeed(asked.source, &chain).await?;
    let (gap, unasked) = match succession.outlook.clone() {
        Outlook::Continues => (None, None),
        Outlook::Gap(what) => (Some(what), None),
        Outlook::Unknown(why) => (None, Some(why)),
    };
    let whole: BTreeSet<&String> = estate.whole.values().collect();
    let takeover = Takeover {
        entry: adopted.head.entry,
        point: adopted.point,
        earlier: false,
        appliances: estate.appliances.clone(),
        slot: succession.origin.slot.clone(),
        whole: whole.into_iter().cloned().collect(),
        partial: estate.partial.iter().cloned().collect(),
        strangers,
        gap,
        unasked,
    };
    Ok(Prepared { estate, succession, takeover })
}

/// Tells the rooms; the last batch lets them start.
async fn tell(facts: &dyn Facts, prepared: &Prepared) -> Result<(), RunError> {
    let Prepared { estate, succession, takeover } = prepared;
    for versions in estate.versions.chunks(BATCH_TABLES) {
        let mut batch = FactBatch::default();
        versions.iter().for_each(|table| put_version(&mut batch, table));
        facts.record(batch).await?;
    }
    let mut batch = FactBatch::default();
    for (name, version) in &estate.taken {
        put_taken(&mut batch, name, *version);
    }
    for (id, name) in estate.whole.iter().chain(&estate.left) {
        let (whole, left) = (estate.whole.contains_key(id), estate.left.contains_key(id));
        put_said(&mut batch, *id, name, Said { whole, left });
    }
    if let Some(end) = estate.reached {
        // The new journal's batches, and seal's groups, are numbered from 1.
        batch.put(EPOCH_FACT, &EpochEnd { end, batch: 0 });
    }
    let done = Stage::Done { entry: takeover.entry, point: takeover.point };
    batch.put(ORIGIN_FACT, &succession.origin).put(ADOPTION_FACT, &done);
    Ok(facts.record(batch).await?)
}

impl Takeover {
    fn earlier(entry: u64, point: Point) -> Self {
        Self {
            entry,
            point,
            earlier: true,
            appliances: vec![],
            slot: String::new(),
            whole: vec![],
            partial: vec![],
            strangers: vec![],
            gap: None,
            unasked: None,
        }
    }
}

async fn open(options: &journal::Options, asked: &Asked<'_>) -> Result<Arc<Journal>, RunError> {
    let (options, board, clock) = (options.clone(), asked.board.clone(), Arc::clone(&asked.clock));
    // Its own owner: it is stopped when the facts are told.
    on_thread(move || Journal::open(options, board, clock, &Tasks::new())).await
}

/// Disks are read: not on a worker of the runtime.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, journal::JournalError> + Send + 'static,
) -> Result<T, RunError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.expect("recovery does not panic, and is not aborted")?)
}

/// Under which the ledger keeps its facts.
const LEDGER_FACTS: &str = "ledger/";
/// Definitions in one batch of facts: a few MiB.
const BATCH_TABLES: usize = 500;
