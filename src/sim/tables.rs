//! The tables of one life: looks what of them the lake lacks, and reads it under a snapshot.
//!
//! It mirrors `source::postgres::tables` and `snapshot`, as far as they speak SQL: the listing, the planning
//! of parts (one for a table) and COPY are the model's; what is missing, what a gap makes of it and how it is
//! sealed are the real `Tables::settle` and the sealer's. A part takes its time between the snapshot, its
//! reading and its sealing, in which anything can happen.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use bytes::BufMut;
use futures_util::future::LocalBoxFuture;
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    appliance::{End, Site},
    lock,
    server::{Snapshot, TABLES, is_ours, table_id, table_name},
    session::relation,
};
use crate::{
    facts::{self, FactBatch},
    journal::{Decode, Event, Reading, RowBatch, SnapshotChunk, Table},
    seal::{Group, Sealer},
    shutdown::Tasks,
    source::{
        RecordKind,
        postgres::{
            catalog::{Computed, Listed},
            chunks::{Extent, Plan},
            error::SourceError,
            gone::Noted,
            pgoutput::PgDecoder,
            reach,
            session::Shared,
            snapshot::{plan_fact, sealed},
            tables::{Missing, Tables},
        },
    },
};

/// What the sessions of a life give to its tables.
#[derive(Default)]
pub(crate) struct Handed {
    /// Cancelled with the first session.
    pub(crate) opened: CancellationToken,
    /// The snapshot that came with the slot, until it is used.
    pub(crate) fresh: Mutex<Option<Snapshot>>,
}

/// Who looks after the tables.
pub(crate) struct Reader<'a> {
    pub(crate) site: &'a Site,
    pub(crate) shared: Arc<Shared>,
    pub(crate) handed: Arc<Handed>,
    pub(crate) sealer: &'a Sealer,
    pub(crate) groups: mpsc::Sender<Group>,
    pub(crate) random: Mutex<fastrand::Rng>,
}

impl Reader<'_> {
    /// Runs until the process must end for it.
    pub(crate) async fn run(&self) -> End {
        self.handed.opened.cancelled().await;
        let (chunks, _never) = mpsc::channel(1);
        let mut tables = Tables::new(Arc::clone(&self.shared), chunks, Tasks::new(), None);
        let mut pass: Option<LocalBoxFuture<'_, Result<(), SourceError>>> = None;
        loop {
            match Box::pin(self.look(&mut tables, pass.is_some())).await {
                Ok(missing) if pass.is_none() && !missing.tables.is_empty() => {
                    pass = Some(Box::pin(self.read(missing)));
                }
                Ok(_) => {}
                Err(error) if error.is_fatal() => return End::Failed(error.to_string()),
                Err(error) => self.note(&error),
            }
            let Some(running) = &mut pass else {
                sleep(LOOK_EVERY).await;
                continue;
            };
            tokio::select! {
                biased;
                end = running => {
                    pass = None;
                    match end {
                        Ok(()) => {}
                        Err(error) if error.is_fatal() => return End::Failed(error.to_string()),
                        Err(error) => {
                            self.note(&error);
                            sleep(RETRY_MIN).await;
                        }
                    }
                }
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn note(&self, error: &SourceError) {
        self.site.oracle.note(format_args!("{}: tables: {error}", self.site.name));
    }

    async fn look(&self, tables: &mut Tables, running: bool) -> Result<Missing, SourceError> {
        let noted = Noted::read(&*self.shared.facts)?;
        // It is up.
        self.site.server.identify()?;
        if self.site.server.with(|state| state.is_unseen()) {
            // Spared to the box: a snapshot taken before a session has judged the server.
            return Err(SourceError::broken("look at the tables", "gone back"));
        }
        let ours = (0..TABLES).filter(|table| is_ours(*table));
        let listing = ours.map(|table| (table_id(table), listed(table))).collect();
        tables.settle(listing, &noted, running).await
    }

    /// One pass over what is missing.
    async fn read(&self, missing: Missing) -> Result<(), SourceError> {
        let (site, shared) = (self.site, &self.shared);
        let gaps = shared.gaps.load(Ordering::Relaxed);
        let fresh = lock(&self.handed.fresh).take().filter(|_| gaps == 0);
        let snapshot = match fresh {
            Some(fresh) => fresh,
            None => site.server.snapshot()?,
        };
        if !site.server.has(&snapshot) {
            return Err(SourceError::broken("copy a table", "the snapshot is gone"));
        }
        let timeline = site.server.identify()?.timeline;
        if !reach::remember(shared, timeline, snapshot.position, gaps).await? {
            return Err(SourceError::broken("copy a table", "the server is judged anew"));
        }
        if let Some(table) = missing.keys.keys().next() {
            let what = format!("rows of table {table}, which has one part, are to be read again");
            site.oracle.i12_one_part_is_enough(&what);
        }
        let tables: BTreeSet<usize> =
            (0..TABLES).filter(|table| missing.tables.contains_key(&table_id(*table))).collect();
        let plans = self.plan(&tables).await?;
        for (table, plan) in plans {
            for number in plan.missing(&sealed(shared, table_id(table))) {
                self.rest(600).await;
                if shared.gaps.load(Ordering::Relaxed) != gaps {
                    return Ok(());
                }
                if !site.server.has(&snapshot) {
                    return Err(SourceError::broken("copy a table", "the snapshot is gone"));
                }
                let reading = Reading::Snapshot;
                let chunk = self.part(table, (number, plan.count()), &snapshot, reading);
                self.rest(if lock(&self.random).u8(..8) == 0 { 20_000 } else { 300 }).await;
                self.seal(chunk);
            }
        }
        Ok(())
    }

    /// The plans of tables, as they are recorded before their first part is read.
    async fn plan(&self, tables: &BTreeSet<usize>) -> Result<BTreeMap<usize, Plan>, SourceError> {
        let (mut plans, mut batch) = (BTreeMap::new(), FactBatch::default());
        for &table in tables {
            let id = table_id(table);
            let known: Option<Plan> = facts::read(&*self.shared.facts, &plan_fact(id))?;
            let extent = Extent { blocks: 1, block_bytes: 8192, divisible: false };
            let new = || Plan::new(listed(table).qualified(), FILENODE, extent);
            let plan = known.filter(|plan| !plan.is_to_be_made()).unwrap_or_else(new);
            batch.put(plan_fact(id), &plan);
            plans.insert(table, plan);
        }
        self.shared.facts.record(batch).await?;
        Ok(plans)
    }

    fn part(
        &self,
        table: usize,
        (number, chunks): (u32, u32),
        snapshot: &Snapshot,
        reading: Reading,
    ) -> SnapshotChunk {
        let (more, stands) = &snapshot.tables[table];
        let (mut bytes, mut count) = (vec![], 0);
        for (key, values) in stands {
            tuple(&mut bytes, *key, values, *more);
            count += 1;
        }
        let (tell, rows) = mpsc::channel(2);
        let batches = (count > 0).then(|| RowBatch::Rows(bytes.into()));
        for batch in batches.into_iter().chain([RowBatch::End(count)]) {
            tell.try_send(batch).expect("the channel holds both");
        }
        let at = self.shared.clock.wall();
        let (table, position) = (defined(table, *more), snapshot.position);
        SnapshotChunk { table, number, chunks, position, at, reading, rows }
    }

    /// As a sealing thread does. What it cannot seal is missing, and read again.
    fn seal(&self, chunk: SnapshotChunk) {
        let site = self.site;
        let what = format!("{} at {}", chunk.table.name, chunk.position);
        let sealed = self.sealer.seal_chunk(chunk, &PgDecoder::default(), self.groups.clone());
        match sealed {
            Ok(()) => site.oracle.note(format_args!("{}: a part of {what}", site.name)),
            Err(error) => site.oracle.note(format_args!("{}: {what}: {error}", site.name)),
        }
    }

    async fn rest(&self, most_ms: u64) {
        let rest_ms = lock(&self.random).u64(0..most_ms);
        sleep(Duration::from_millis(rest_ms)).await;
    }
}

/// The table as the catalog lists it.
fn listed(table: usize) -> Listed {
    Listed {
        schema: "public".into(),
        name: table_name(table),
        keyed: true,
        identified: true,
        computed: Computed::None,
        computed_key: false,
        addressable: false,
        selectable: true,
        filenode: FILENODE,
        attributes: 0,
    }
}

/// The table as the stream describes it.
fn defined(table: usize, more: usize) -> Arc<Table> {
    let described = PgDecoder::default().decode(RecordKind::Message, &relation(table, more));
    match described {
        Ok(Event::Table(table)) => table,
        other => unreachable!("the model's own relation: {other:?}"),
    }
}

/// A tuple of binary COPY: `values` stand in the columns after the key.
fn tuple(out: &mut Vec<u8>, key: u64, values: &str, more: usize) {
    out.put_u16(u16::try_from(2 + more).unwrap_or(0));
    out.put_i32(8);
    out.put_u64(key);
    let mut words = values.split(' ');
    for _ in 0..=more {
        match words.next() {
            Some(word) => {
                out.put_u32(u32::try_from(word.len()).unwrap_or(0));
                out.put_slice(word.as_bytes());
            }
            None => out.put_i32(-1),
        }
    }
}

const FILENODE: u32 = 1;
const LOOK_EVERY: Duration = Duration::from_secs(10);
const RETRY_MIN: Duration = Duration::from_secs(1);
