//! Proves that the lake has what its source has: both sides as they are at one position, while others write.
//!
//! 1. The lake is read as far as the ledger reaches, and its rows become records on disk.
//! 2. The database is asked for a snapshot, whose position is known, and for digests of each table under it.
//! 3. The ledger is waited for until it reaches the position; what came meanwhile is read too.
//! 4. The lake's rows at the position are digested, and compared; buckets that differ are looked into.
//!
//! So the snapshot is held for as long as the database needs to read its tables once, and the ledger to reach it;
//! not while the lake is read. What cannot be compared is said, and never taken for a difference.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream};

use super::{
    Lake,
    fetch::Fetcher,
    plan::{Plan, TablePlan, plan_closed, plan_whole},
    proof_compare::{Stopped, compare},
    proof_error::ProofError,
    proof_lake::{Lakeside, View, rows_of},
    proof_layout::Scope,
    proof_order::{ORDER_ROWS_MAX, in_short, order},
    proof_report::{KEYS_MAX, ProofReport, TableProof, Verdict},
    proof_spill::Spill,
    restore::read_definitions,
};
use crate::{
    clock::Clock,
    config,
    ledger::{Entry, EntryKind, Head, Owners, PublicKey, audit},
    source::{
        digest::{Sum, bits},
        order::Order,
        postgres::{Calling, Measure, SourceError, Unread, Witness, url::Url},
    },
    units::Position,
};

/// What is to be proven.
#[derive(Debug)]
pub struct ProofOptions<'a> {
    /// The source.
    pub source: &'a config::Source,
    /// Another way to it than the configured one, with its password.
    pub instead: Option<Url>,
    /// The appliance's name.
    pub appliance: &'a str,
    /// The lake's prefix.
    pub prefix: &'a str,
    /// The keys that may have signed.
    pub public_keys: &'a [PublicKey],
    /// How long the ledger may take to reach the position, and transactions that are open on the server to end.
    pub ledger_wait_max: Duration,
    /// How long the database's snapshot may be held.
    pub snapshot_age_max: Duration,
    /// Compare as if behind each gap all were repaired, and say what a box is to repair.
    pub repair: bool,
    /// For objects and records on their way: as much as the tables' keys and short values need.
    pub work_dir: PathBuf,
}

/// A chain that was proven, as far as it reached.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its entries, in order.
    pub entries: Vec<Entry>,
    /// The last of them.
    pub head: Head,
    /// Whose it is.
    pub owners: Owners,
}

/// How far a proof is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ProofProgress {
    /// Rows of the lake's objects read.
    Lake {
        /// The table.
        table: String,
        /// So far.
        done: u64,
        /// In all.
        all: u64,
    },
    /// The database is asked for a snapshot: transactions that are open there are waited for.
    Snapshot,
    /// Parts of tables digested by the database.
    Source {
        /// The table.
        table: String,
        /// Tables so far.
        done: u64,
        /// In all.
        all: u64,
    },
    /// Bytes of the source's log by which the ledger has come nearer to the position.
    Ledger {
        /// So far.
        done: u64,
        /// In all.
        all: u64,
    },
    /// Tables compared.
    Compared {
        /// So far.
        done: u64,
        /// In all.
        all: u64,
    },
}

type Told<'a> = &'a mut (dyn FnMut(ProofProgress) + Send);

/// Compares the lake with its source.
///
/// # Errors
///
/// What kept both sides from being compared. What differs is in the report, not an error; what of it a box is to
/// repair in the order, if that is asked for and a table waits for it.
pub async fn prove(
    options: &ProofOptions<'_>,
    lake: Lake,
    mut chain: Chain,
    clock: &Arc<dyn Clock>,
    told: Told<'_>,
) -> Result<(ProofReport, Option<Order>), ProofError> {
    let fetcher = Fetcher::new(lake.clone(), &options.work_dir)?;
    let rows_max = if options.repair { ORDER_ROWS_MAX } else { KEYS_MAX };
    let mut lakeside = Lakeside::new(&fetcher, Spill::new(&options.work_dir)?, rows_max);
    let planned = if options.repair { plan_closed } else { plan_whole };
    let known = read_definitions(&fetcher, &chain.entries).await?;
    let (ahead, _) = planned(&chain.entries, &known, None)?;
    let mut tell = |table: &str, done, all| {
        told(ProofProgress::Lake { table: table.into(), done, all });
    };
    lakeside.take(&ahead, &known, &mut tell).await?;
    told(ProofProgress::Snapshot);
    let calling = Calling {
        source: options.source,
        instead: options.instead.clone(),
        appliance: options.appliance,
        wait_max: options.ledger_wait_max,
        age_max: options.snapshot_age_max,
    };
    let witness = Witness::call(calling, Arc::clone(clock)).await?;
    is_same(&chain.entries, &witness)?;
    witness.nudge().await;
    let mut sides = Sides::new(&ahead, &lakeside, &witness);
    sides.ask(&witness, options.source.snapshot_workers, told).await?;
    follow(options, &lake, &mut chain, &witness, clock, told).await?;
    let known = read_definitions(&fetcher, &chain.entries).await?;
    let (plan, lacking) = planned(&chain.entries, &known, Some(witness.position()))?;
    let mut tell = |table: &str, done, all| {
        told(ProofProgress::Lake { table: table.into(), done, all });
    };
    lakeside.take(&plan, &known, &mut tell).await?;
    let tables = judge(&plan, &mut lakeside, &witness, sides, lacking, told).await?;
    let mut report = ProofReport {
        source: options.source.name.clone(),
        position: witness.position(),
        snapshot_held_s: witness.age().as_secs(),
        source_bytes: witness.received_bytes(),
        tables,
        ordered: None,
    };
    let order = match options.repair {
        true => {
            let sides = (&lakeside, &witness);
            let chain = (&chain.entries[..], &known);
            order(&options.source.name, chain, &plan, sides, &report.tables)?
        }
        false => None,
    };
    report.ordered = order.as_ref().map(in_short);
    report.shorten();
    Ok((report, order))
}

fn is_same(entries: &[Entry], witness: &Witness) -> Result<(), ProofError> {
    let expected = entries.last().map(|entry| entry.source.system_identifier.as_str());
    let found = witness.system_identifier();
    match expected {
        Some(expected) if expected != found => {
            Err(ProofError::Another { found: found.into(), expected: expected.into() })
        }
        _ => Ok(()),
    }
}

/// What the database was asked of each table.
#[derive(Default)]
struct Sides(BTreeMap<u32, Side>);

struct Side {
    table: String,
    scope: Result<Scope, String>,
    measure: Measure,
    sums: BTreeMap<u16, Sum>,
}

impl Sides {
    /// By what the lake had when it was read first: a table whose columns changed since is not compared.
    fn new(plan: &Plan, lakeside: &Lakeside<'_>, witness: &Witness) -> Self {
        let mut sides = BTreeMap::new();
        for (id, table) in &plan.tables {
            let (Some(held), Some(source)) = (lakeside.held(*id), witness.table(*id)) else {
                continue;
            };
            let identified = witness.is_identified(*id);
            let mut scope = held.layout.scope(&held.last, source, identified);
            if let Ok(of) = &scope
                && held.layout.key.is_empty()
                && of.columns != held.layout.columns
            {
                scope = Err("it has no key, and other columns than in the lake".into());
            }
            let columns = scope.as_ref().map(|scope| scope.columns.clone()).unwrap_or_default();
            let measure = Measure {
                sure: columns.clone(),
                columns,
                key: held.layout.key.clone(),
                bits: bits(rows(*id, table, plan)),
            };
            let side = Side { table: source.qualified(), scope, measure, sums: BTreeMap::new() };
            sides.insert(*id, side);
        }
        Self(sides)
    }

    /// Asks for the digests, of several tables at once.
    async fn ask(
        &mut self,
        witness: &Witness,
        workers: u32,
        told: Told<'_>,
    ) -> Result<(), SourceError> {
        let all = u64::try_from(self.0.len()).unwrap_or(u64::MAX);
        let told = Mutex::new((0, told));
        let workers = usize::try_from(workers).unwrap_or(1).clamp(1, 16);
        let asked = self.0.iter_mut().map(|(id, side)| async {
            if side.scope.is_err() {
                return Ok(());
            }
            let mut read = |part, parts| {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                let table = format!("{}, part {} of {parts}", side.table, part + 1);
                let done = told.0;
                (told.1)(ProofProgress::Source { table, done, all });
            };
            let sums = witness.sums(*id, &side.measure, &mut read).await;
            told.lock().unwrap_or_else(PoisonError::into_inner).0 += 1;
            match sums {
                Ok(sums) => side.sums = sums,
                Err(Unread::Table(why)) => side.scope = Err(why),
                Err(Unread::All(why)) => return Err(why),
            }
            Ok(())
        });
        let mut asked = stream::iter(asked).buffer_unordered(workers);
        while let Some(done) = asked.next().await {
            done?;
        }
        Ok(())
    }
}

/// About how many rows a table has.
fn rows(id: u32, table: &TablePlan, plan: &Plan) -> u64 {
    let tracks = plan.epochs.iter().flat_map(|epoch| &epoch.tracks);
    let changes = tracks.filter(|track| track.table == id).flat_map(|track| &track.objects);
    let inserts =
        changes.filter_map(|object| object.rows.get(&crate::journal::Op::Insert)).sum::<u64>();
    table.rows.iter().map(|rows| rows_of(&rows.object)).sum::<u64>() + inserts
}

/// Waits until the ledger has come to the witness's position.
async fn follow(
    options: &ProofOptions<'_>,
    lake: &Lake,
    chain: &mut Chain,
    witness: &Witness,
    clock: &Arc<dyn Clock>,
    told: Told<'_>,
) -> Result<(), ProofError> {
    let (position, since) = (witness.position(), clock.now());
    let reached = |entries: &[Entry]| {
        let last = entries.iter().rev();
        let mut tiles =
            last.filter(|entry| matches!(entry.kind, EntryKind::Changes | EntryKind::Gap));
        tiles.next().map_or(Position(0), |entry| entry.to.position)
    };
    let begun = reached(&chain.entries);
    loop {
        let (more, head, owners) = audit::entries_behind(
            &*lake.reader,
            options.prefix,
            &options.source.name,
            (&chain.head, &chain.owners),
            options.public_keys,
        )
        .await?;
        chain.entries.extend(more);
        (chain.head, chain.owners) = (head, owners);
        let reached = reached(&chain.entries);
        if reached >= position {
            return Ok(());
        }
        let way = |to: Position| to.0.saturating_sub(begun.0);
        told(ProofProgress::Ledger { done: way(reached), all: way(position) });
        let waited = clock.now().saturating_duration_since(since);
        if waited >= options.ledger_wait_max {
            return Err(ProofError::Behind { reached, position, waited });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Compares table by table.
async fn judge(
    plan: &Plan,
    lakeside: &mut Lakeside<'_>,
    witness: &Witness,
    mut sides: Sides,
    lacking: Vec<(String, String)>,
    told: Told<'_>,
) -> Result<Vec<TableProof>, ProofError> {
    let mut tables = vec![];
    let all = u64::try_from(plan.tables.len()).unwrap_or(u64::MAX);
    for (done, (id, table)) in (0..).zip(&plan.tables) {
        told(ProofProgress::Compared { done, all });
        tables.push(one((*id, table), lakeside, witness, sides.0.remove(id)).await?);
    }
    let unknown =
        |table: String, why: String| TableProof { table, why: Some(why), ..TableProof::default() };
    for (table, why) in lacking {
        tables.push(unknown(table, format!("it is not whole in the lake: {why}")));
    }
    for away in &plan.away {
        let proof = unknown(away.table.clone(), away.why());
        // It may be there again, and not in the lake yet.
        let mut there = witness.tables();
        let verdict = match there.any(|(own, included)| included && own.qualified() == away.table) {
            true => proof.verdict,
            false => Verdict::Untold,
        };
        tables.push(TableProof { verdict, ..proof });
    }
    let named: BTreeSet<String> = tables.iter().map(|proof| proof.table.clone()).collect();
    for (table, included) in witness.tables() {
        if included && !named.contains(&table.qualified()) {
            tables.push(unknown(table.qualified(), "the lake does not have it yet".into()));
        }
    }
    tables.sort_by(|one, other| one.table.cmp(&other.table));
    Ok(tables)
}

async fn one(
    (id, planned): (u32, &TablePlan),
    lakeside: &mut Lakeside<'_>,
    witness: &Witness,
    side: Option<Side>,
) -> Result<TableProof, ProofError> {
    let held = lakeside.held(id);
    let name = held.map(|held| held.last.qualified()).unwrap_or_default();
    let mut proof = TableProof { id, table: name, ..TableProof::default() };
    let (last, layout) = match held {
        Some(held) => (Arc::clone(&held.last), held.layout.clone()),
        None => return Ok(proof),
    };
    proof.without_key = layout.key.is_empty();
    if let Some(entry) = planned.left {
        // It is no promise of the lake any more.
        proof.verdict = Verdict::Untold;
        proof.why = Some(format!(
            "it left (entry {entry}): it was dropped, excluded, unreadable, or a statement changed values of it that are in no stream"
        ));
        return Ok(proof);
    }
    let problem = held.and_then(|held| held.problem.clone());
    let source = witness.table(id);
    let (Some(side), Some(source), None) = (side, source, &problem) else {
        let gone = "the database has it no more, or made it anew";
        let new = "it came to the lake while it was read: compare again";
        let why = if source.is_none() { gone } else { new };
        proof.why = Some(problem.unwrap_or_else(|| why.into()));
        return Ok(proof);
    };
    let scope = match side.scope {
        Ok(scope) => scope,
        Err(why) => {
            proof.why = Some(why);
            return Ok(proof);
        }
    };
    if layout.key != side.measure.key || !is_same_scope(&scope, &layout.scope(&last, source, true))
    {
        proof.why = Some("its columns changed while it was read: compare again".into());
        return Ok(proof);
    }
    let bounds = lakeside.bounds(id, planned, witness.position());
    lakeside.follow(id, &bounds)?;
    let view = View { id, bounds, scope: &scope, source };
    digests(lakeside, witness, &view, (side.measure, &side.sums), &mut proof).await?;
    if proof.verdict == Verdict::Different && scope.appends {
        proof.verdict = Verdict::Untold;
        proof.differences = None;
        proof.why = Some(
            "only its inserts are in the change stream, and it differs: REPLICA IDENTITY FULL would tell the rest"
                .into(),
        );
    }
    Ok(proof)
}

/// Compares the digests of a table, and looks into those that differ.
async fn digests(
    lakeside: &mut Lakeside<'_>,
    witness: &Witness,
    view: &View<'_>,
    (mut measure, sums): (Measure, &BTreeMap<u16, Sum>),
    proof: &mut TableProof,
) -> Result<(), ProofError> {
    proof.left_out.clone_from(&view.scope.left_out);
    let lake = lakeside.sums(view, measure.bits)?;
    proof.source_rows = sums.values().map(|sum| sum.rows).sum();
    proof.lake_rows = lake.buckets.values().map(|sum| sum.rows).sum();
    let every: BTreeSet<u16> = sums.keys().chain(lake.buckets.keys()).copied().collect();
    let sum = |sums: &BTreeMap<u16, Sum>, at: &u16| sums.get(at).copied().unwrap_or_default();
    let differ: BTreeSet<u16> =
        every.into_iter().filter(|at| sum(sums, at) != sum(&lake.buckets, at)).collect();
    proof.verdict = Verdict::Equal;
    proof.unknown_rows = Some(vec![]);
    if differ.is_empty() {
        return Ok(());
    }
    measure.sure.retain(|column| !lake.unsure.contains_key(column));
    match compare(lakeside, witness, view, (&measure, &differ), proof).await {
        Ok(()) => Ok(()),
        Err(Stopped::Table(why)) => {
            proof.verdict = Verdict::Unknown;
            let buckets = differ.len();
            proof.why =
                Some(format!("{buckets} of its buckets differ, and were not looked into: {why}"));
            Ok(())
        }
        Err(Stopped::Source(why)) => Err(why.into()),
        Err(Stopped::Replay(why)) => Err(why.into()),
    }
}

fn is_same_scope(asked: &Scope, now: &Result<Scope, String>) -> bool {
    now.as_ref().is_ok_and(|now| now.columns == asked.columns)
}

/// Between two looks at the ledger.
const LOOK_EVERY: Duration = Duration::from_millis(500);
