//! Reads the parts of tables that are not sealed yet, several at once, under one exported snapshot.
//!
//! Each part is read in a transaction of its own, so that a table is locked (ACCESS SHARE) for
//! seconds only. What could make a part differ from the snapshot is looked at under that lock: a
//! table that was rewritten or emptied since looks empty to an older snapshot, so its file must
//! still be the one that the snapshot knows; else the table waits for the next pass.
//!
//! A part counts as done when seal has recorded its fact ([`chunk_fact`], [`reread_fact`]).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, atomic::Ordering},
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{
    catalog::{self, Described, Listed, quoted},
    chunks::Plan,
    connect::Target,
    error::SourceError,
    exported::{begin, lock_unchanged},
    hand::{BATCHES, Handed, hand, lock, taken, wait_sealed},
    login::Purpose,
    pace::Heap,
    pulse, reach, reread, rewritten,
    session::{Fresh, Shared},
    size::size,
    wire::Wire,
};
use crate::{
    facts::{self, FactBatch},
    heap::large::{self, LARGE_BYTES},
    shutdown::Tasks,
    source::{Reading, RowBatch, SnapshotChunk, chunk_facts},
    units::{Position, Timestamp},
};

/// Where the plans stand.
pub(crate) const PLAN_FACTS: &str = "source/snapshot/";

/// One pass over what is missing.
pub(crate) struct Pass {
    pub(crate) shared: Arc<Shared>,
    /// Gaps that were gone past before its snapshot was taken.
    pub(crate) gaps: u64,
    pub(crate) chunks: mpsc::Sender<SnapshotChunk>,
    pub(crate) fresh: Fresh,
    /// The tables, by id; those that `fresh` does not cover are left to the next pass.
    pub(crate) tables: BTreeMap<u32, Listed>,
    /// Of those whose parts are all sealed: the notes of rows to be read again.
    pub(crate) keys: BTreeMap<u32, Vec<String>>,
}

/// A part to be read.
struct Job {
    described: Arc<Described>,
    filenode: u32,
    number: u32,
    chunks: u32,
    /// Pages of the table's file, 0 if they do not matter.
    blocks: u32,
    /// What is read from: the table and which rows of it, or rows of keys that are gone.
    from: String,
    /// Where they stand, if not where the snapshot does.
    position: Option<Position>,
    reading: Reading,
}

/// What the workers share.
struct Work {
    shared: Arc<Shared>,
    sender: mpsc::Sender<SnapshotChunk>,
    snapshot: String,
    position: Position,
    at: Timestamp,
    since: Instant,
    /// Gaps before it.
    gaps: u64,
    jobs: Mutex<VecDeque<Job>>,
    /// Tables that changed under our hands: the next pass reads them.
    aside: Mutex<BTreeSet<u32>>,
    handed: Mutex<Handed>,
    /// As many parts are read at once as seal takes.
    turns: Semaphore,
}

/// Key of a table's [`Plan`].
pub(crate) fn plan_fact(table_id: u32) -> String {
    format!("{PLAN_FACTS}{table_id:010}")
}

impl Pass {
    /// Reads what is missing, and waits until it is sealed.
    ///
    /// # Errors
    ///
    /// The first thing that kept a part from being read. All others were read.
    pub(crate) async fn run(self, tasks: &Tasks) -> Result<(), SourceError> {
        let Self { shared, gaps, chunks, fresh, tables, keys } = self;
        let target = Target::load(&shared.config, &shared.url)?;
        if !reach::remember(&shared, fresh.timeline, fresh.held.position, gaps).await? {
            return Err(SourceError::broken(READING, "the server is judged anew"));
        }
        let covered = tables.into_iter().filter(|(id, _)| fresh.tables.contains(id)).collect();
        let jobs = plan(&shared, &target, &fresh, &covered, &keys).await?;
        let turns = Semaphore::new(chunks.max_capacity());
        let workers = usize::try_from(shared.config.snapshot_workers).unwrap_or(1).clamp(1, 16);
        let workers = workers.min(jobs.len());
        tracing::info!(parts = jobs.len(), position = %fresh.held.position, "reading a snapshot");
        let work = Arc::new(Work {
            shared: Arc::clone(&shared),
            sender: chunks,
            snapshot: fresh.held.snapshot.clone(),
            position: fresh.held.position,
            at: fresh.held.at,
            since: shared.clock.now(),
            gaps,
            jobs: Mutex::new(jobs),
            aside: Mutex::default(),
            handed: Mutex::default(),
            turns,
        });
        let feeling = tasks.child();
        pulse::begin(&shared);
        let (pulse, token) = (pulse::run(Arc::clone(&shared)), feeling.token());
        feeling.spawn(async move {
            token.run_until_cancelled(pulse).await;
        });
        let mut ends = vec![];
        for _ in 0..workers {
            let (tell, told) = oneshot::channel();
            let (work, target, token) = (Arc::clone(&work), target.clone(), tasks.token());
            tasks.spawn(async move {
                let end = token.run_until_cancelled(worker(&work, &target)).await;
                // Nobody listens any more if the pass itself was stopped.
                drop(tell.send(end.unwrap_or(Err(SourceError::Ended))));
            });
            ends.push(told);
        }
        let mut first = Ok(());
        for end in ends {
            let end = end.await.unwrap_or(Err(SourceError::Ended));
            first = first.and(end);
        }
        // The server may clean up from here on; sealing needs it no more.
        drop(fresh);
        feeling.stop().await;
        shared.pacer.let_go();
        shared.board.write(|status| status.snapshot_rate_bytes_per_s = None);
        wait_sealed(&shared, &work.handed).await?;
        first
    }
}

/// Makes or completes the plans, records them, and lists the parts to be read.
async fn plan(
    shared: &Shared,
    target: &Target,
    fresh: &Fresh,
    tables: &BTreeMap<u32, Listed>,
    keys: &BTreeMap<u32, Vec<String>>,
) -> Result<VecDeque<Job>, SourceError> {
    let mut wire = target.open(Purpose::Sql).await?;
    begin(&mut wire, &fresh.held.snapshot).await?;
    let visible = catalog::describe(&mut wire, tables.keys().copied()).await?;
    let layouts = rewritten::layouts(&mut wire, tables.keys()).await?;
    let (mut jobs, mut batch) = (VecDeque::new(), FactBatch::default());
    for (id, mut described) in visible {
        let Some(listed) = tables.get(&id) else { continue };
        let Some((filenode, size)) = size(&mut wire, id, listed).await? else {
            continue;
        };
        rewritten::settle(&*shared.facts, id, &mut described)?;
        let described = Arc::new(described);
        if let Some(notes) = keys.get(&id) {
            match reread::chunks(shared, &described, notes)? {
                Some(chunks) => jobs.extend(key_jobs(&described, filenode, chunks)),
                None => reread::note_all(shared, id).await?,
            }
            continue;
        }
        let done = sealed(shared, id);
        let known: Option<Plan> = facts::read(&*shared.facts, &plan_fact(id))?;
        let new = || Plan::new(listed.qualified(), filenode, size.extent);
        let to_be_made = known.as_ref().is_some_and(Plan::is_to_be_made);
        let mut plan = match known {
            Some(plan) if !to_be_made => plan,
            Some(_) | None => new(),
        };
        let is_rewritten = plan.filenode != filenode;
        if let Some((_, layout)) = layouts.get(&id) {
            let before = plan.see(filenode, layout.clone());
            if before.is_some_and(|before| layout.is_changed(&before, is_rewritten)) {
                // No look need see it: neither file nor number of columns may have changed.
                rewritten::read_anew(&*shared.facts, (id, &plan), None, &mut batch)?;
                continue;
            }
        }
        if plan.again {
            let standing = (&done, size.extent);
            match reread::divide(shared, &mut wire, &described, plan, standing).await? {
                Some(divided) => plan = divided,
                None => continue,
            }
        }
        if is_rewritten {
            plan.renew(&done, filenode, size.extent);
        }
        batch.put(plan_fact(id), &plan);
        size.tell(shared, (id, &plan), &done)?;
        let reading = match plan.again {
            true => Reading::Again { by_key: plan.ranges.is_some() },
            false => Reading::Snapshot,
        };
        let parts = plan.missing(&done).filter_map(|number| {
            let (described, chunks) = (Arc::clone(&described), plan.count());
            let (from, reading) = (from(&described, &plan.condition(number)?), reading.clone());
            let blocks = size.extent.blocks;
            Some(Job { described, filenode, number, chunks, blocks, from, position: None, reading })
        });
        jobs.extend(parts);
    }
    shared.facts.record(batch).await?;
    Ok(jobs)
}

/// Rows of one table to be read by their keys.
fn key_jobs(
    described: &Arc<Described>,
    filenode: u32,
    chunks: Vec<reread::Chunk>,
) -> impl Iterator<Item = Job> {
    let count = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
    let table = described.table.qualified();
    tracing::info!(table, chunks = count, "rows that may lack values are read again");
    chunks.into_iter().zip(0..).map(move |(chunk, number)| {
        let (number, position, from, reading) = match chunk.gone {
            Some((position, own)) => (own, Some(position), chunk.from, Reading::Gone(chunk.notes)),
            None => (number, None, from(described, &chunk.from), Reading::Keys(chunk.notes)),
        };
        let described = Arc::clone(described);
        Job { described, filenode, number, chunks: count, blocks: 0, from, position, reading }
    })
}

/// A table, and the condition on its rows.
fn from(described: &Described, condition: &str) -> String {
    let table = &described.table;
    format!("ONLY {}{condition}", quoted(&table.schema, &table.name))
}

/// Reads parts until there are none. A connection that breaks ends it.
async fn worker(work: &Work, target: &Target) -> Result<(), SourceError> {
    let (mut wire, mut first) = (None, Ok(()));
    loop {
        let _turn = work.turns.acquire().await.map_err(|_| SourceError::Ended)?;
        if work.is_over() {
            return first;
        }
        let Some(job) = lock(&work.jobs).pop_front() else {
            return first;
        };
        let id = job.described.table.id;
        if lock(&work.aside).contains(&id) {
            continue;
        }
        let connection = match &mut wire {
            Some(wire) => wire,
            none => none.insert(target.open(Purpose::Sql).await?),
        };
        let read = tokio::select! {
            read = read(work, connection, &job) => Some(read),
            () = work.shared.pacer.wanted(id) => None,
        };
        let table = job.described.table.qualified();
        match read {
            Some(Ok(tell)) => {
                lock(&work.handed).add(id, tell);
                continue;
            }
            // Whoever waits is let in as soon as the server sees that the connection is gone.
            None => tracing::info!(table, "somebody waits for the table: it is read later"),
            // It was dropped or renamed: the next look knows.
            Some(Err(error)) if error.is_of_a_gone_table() => {
                tracing::info!(table, %error, "a table went while its snapshot was read");
            }
            // The server refused: this table waits, the others go on.
            Some(Err(error @ (SourceError::Server { .. } | SourceError::Gap(_)))) => {
                let (of_values, error) = (error.is_of_values(), error.discreet());
                tracing::warn!(table, %error, "a table's snapshot waits for the next pass");
                if of_values {
                    work.values_refused(&job).await?;
                }
                first = first.and(Err(error));
            }
            Some(Err(error)) => return Err(error),
        }
        lock(&work.aside).insert(id);
        wire = None;
    }
}

impl Work {
    /// Whether the snapshot is to be read under no more.
    fn is_over(&self) -> bool {
        let age = self.shared.clock.now().saturating_duration_since(self.since);
        if age >= self.shared.config.snapshot_age {
            // The server cannot clean up behind a snapshot (P5): the next pass takes a fresh one.
            tracing::info!("the snapshot has grown old: going on under a new one");
            return true;
        }
        let gap = self.shared.gaps.load(Ordering::Relaxed) != self.gaps;
        if gap {
            tracing::info!("a gap came: what is missing is looked at anew");
        }
        gap
    }

    /// The server refused values of rows that were asked for by their keys: they are asked for otherwise.
    async fn values_refused(&self, job: &Job) -> Result<(), SourceError> {
        let id = job.described.table.id;
        match &job.reading {
            Reading::Keys(_) | Reading::Gone(_) => reread::note_all(&self.shared, id).await,
            Reading::Again { by_key: true } => reread::spoil(&self.shared, id).await,
            Reading::Snapshot | Reading::Again { .. } | Reading::Look { .. } => Ok(()),
        }
    }
}

/// Reads one part into seal, and gives the channel by which it went: it closes when seal is done with it.
async fn read(
    work: &Work,
    wire: &mut Wire,
    job: &Job,
) -> Result<mpsc::Sender<RowBatch>, SourceError> {
    let (table, pacer) = (&job.described.table, &work.shared.pacer);
    begin(wire, &work.snapshot).await?;
    lock_unchanged(wire, table, job.filenode).await?;
    pacer.reads(Heap::new(table.id, quoted(&table.schema, &table.name), job.blocks));
    let (tell, rows) = mpsc::channel(BATCHES);
    let chunk = SnapshotChunk {
        table: Arc::new(table.clone()),
        number: job.number,
        chunks: job.chunks,
        position: job.position.unwrap_or(work.position),
        at: work.at,
        reading: job.reading.clone(),
        rows,
    };
    work.sender.send(chunk).await.map_err(|_| SourceError::Ended)?;
    if job.reading == (Reading::Again { by_key: true }) {
        // Without statistics the whole table would be read for each part.
        wire.query("read by the key's index", "SET LOCAL enable_seqscan = off").await?;
    }
    let (list, from) = (job.described.select_list(), &job.from);
    let mut gulp = match pacer.is_held() {
        true => wire.open_cursor(COPYING, &format!("SELECT {list} FROM {from}")).await?,
        false => {
            let sql = format!("COPY (SELECT {list} FROM {from}) TO STDOUT (FORMAT binary)");
            wire.copy_out(COPYING, &sql).await?.framed()
        }
    };
    let mut total = 0;
    loop {
        gulp.sip(pacer.sip());
        let large = match wire.row_ahead()? {
            ahead if ahead > LARGE_BYTES => {
                // Seal, which may wait for room first, is at this part.
                taken(&tell, Bytes::new()).await?;
                Some(large::read(ahead).await)
            }
            _ => None,
        };
        let Some(rows) = wire.rows(COPYING, &mut gulp, LARGE_BYTES).await? else { break };
        total += rows.rows;
        let bytes = rows.payload();
        hand(&work.shared, &table.qualified(), &tell, rows, large).await?;
        pacer.take(bytes, &*work.shared.clock).await;
    }
    // Nothing here can fail any more once seal has the end: a part that it may record is not read again.
    wire.query("end a part", "COMMIT").await?;
    work.shared.pacer.part();
    tell.send(RowBatch::End(total)).await.map_err(|_| SourceError::Ended)?;
    Ok(tell)
}

/// Brings a table's progress up to date, and marks its plan when all its parts are sealed. Whether they are.
pub(crate) fn progress(shared: &Shared, id: u32) -> Result<Option<Plan>, SourceError> {
    let Some(mut plan) = facts::read::<Plan>(&*shared.facts, &plan_fact(id))? else {
        return Ok(None);
    };
    let done = sealed(shared, id);
    let open = plan.missing(&done).count();
    plan.done = open == 0 && (plan.done || plan.count() > 0);
    if plan.done && plan.count() == 0 {
        // Another box has read it, which this one took over from.
        return Ok(Some(plan));
    }
    shared.board.write(|status| {
        let progress = status.snapshot.entry(plan.table.clone()).or_default();
        progress.chunks = plan.count();
        progress.chunks_done = u32::try_from(done.len()).unwrap_or(u32::MAX);
    });
    Ok(Some(plan))
}

/// Numbers of a table's parts that are sealed.
pub(crate) fn sealed(shared: &Shared, id: u32) -> BTreeSet<u32> {
    let keys = shared.facts.scan(&chunk_facts(id));
    keys.iter().filter_map(|(key, _)| key.rsplit('/').next()?.parse().ok()).collect()
}

const READING: &str = "read under a snapshot";
const COPYING: &str = "copy a table";
