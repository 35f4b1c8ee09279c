//! Reads the large objects that the lake lacks, in parts, beside the tables and at their pace.
//!
//! All of a pass is read in one transaction that sees one moment, until the snapshot has grown old: then the next pass
//! goes on. Objects are cut into pieces by the server, so that of a great one there is one piece at a time between it
//! and seal (P4); what a crash costs is a part.
//!
//! **Invariant:** what is recorded of a part becomes durable with its rows; that the lake has all of them is said
//! only once each part of the pass is recorded.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::{sync::mpsc, time::sleep};

use super::{
    catalog::literal,
    connect::Target,
    error::SourceError,
    large_objects::{self, Closed, Listed, begins_anew, difference},
    login::Purpose,
    pulse,
    session::Shared,
    wire::Wire,
};
use crate::{
    facts::{self, FactBatch},
    shutdown::Tasks,
    source::{
        Reading, RowBatch, Sight, SnapshotChunk,
        large_object::{
            self, Begun, LOOK_FACT, Look, PART_FACTS, PIECE_BYTES, Part, merge, missing, outdate,
            part_fact, part_number, pieces, run, runs, table,
        },
    },
    units::Position,
};

/// One pass over what is missing.
pub(crate) struct Pass {
    pub(crate) shared: Arc<Shared>,
    pub(crate) chunks: mpsc::Sender<SnapshotChunk>,
    /// All that were committed up to here are seen by a transaction that begins now.
    pub(crate) stands: Position,
    /// Told if it ends before all is read.
    pub(crate) is_cut: Arc<AtomicBool>,
}

/// A pass under way.
struct Work {
    shared: Arc<Shared>,
    chunks: mpsc::Sender<SnapshotChunk>,
    wire: Wire,
    stands: Position,
    since: Instant,
    gaps: u64,
    begun: Begun,
    /// Of the next chunk.
    number: u32,
    /// Those that were handed to seal.
    handed: BTreeSet<u32>,
    open: Vec<mpsc::Sender<RowBatch>>,
    closed: Closed,
    /// What is read with the next part.
    gathered: Gathered,
}

/// Whole objects, or a range of pieces of a great one.
#[derive(Debug, Default)]
struct Gathered {
    cuts: Vec<Cut>,
    pieces: u32,
    /// Pieces that the lake has of older ones, and the new ones have not.
    stale: Vec<(u32, u32, u32)>,
}

/// Pieces of one object.
#[derive(Debug)]
struct Cut {
    id: u32,
    owner: String,
    size: u64,
    from: u32,
    to: u32,
}

impl Pass {
    /// Reads what is missing, until all is there or the snapshot is old, and waits until it is sealed. What the
    /// server refuses is an alarm.
    ///
    /// # Errors
    ///
    /// The connection broke, or the process ends.
    pub(crate) async fn run(self, tasks: &Tasks) -> Result<(), SourceError> {
        let Self { shared, chunks, stands, is_cut } = self;
        let look = begin(&shared, stands).await?;
        let target = Target::load(&shared.config, &shared.url)?;
        let mut work = Work {
            wire: target.open(Purpose::Sql).await?,
            stands,
            since: shared.clock.now(),
            gaps: shared.gaps.load(Ordering::Relaxed),
            begun: large_object::begun(&*shared.facts)?,
            number: look.number,
            handed: BTreeSet::new(),
            open: vec![],
            closed: Closed::default(),
            gathered: Gathered::default(),
            chunks,
            shared: Arc::clone(&shared),
        };
        tracing::info!(position = %stands, "reading large objects");
        let feeling = tasks.child();
        pulse::begin(&shared);
        let (pulse, token) = (pulse::run(Arc::clone(&shared)), feeling.token());
        feeling.spawn(async move {
            token.run_until_cancelled(pulse).await;
        });
        let read = work.read_all().await;
        feeling.stop().await;
        shared.pacer.let_go();
        shared.board.write(|status| status.snapshot_rate_bytes_per_s = None);
        let mut whole = match read {
            Ok(whole) => whole,
            Err(error @ SourceError::Server { .. }) => {
                large_objects::tell_refused(&shared, &error.discreet());
                return work.sealed().await.map(drop);
            }
            Err(error) => return Err(error),
        };
        whole &= work.sealed().await? && !work.is_over();
        is_cut.store(!whole, Ordering::Relaxed);
        if whole {
            work.closed.tell(&shared);
            work.end(look).await?;
        }
        Ok(())
    }
}

/// Brings the facts up to date with what is sealed, and to the last gap.
async fn begin(shared: &Shared, stands: Position) -> Result<Look, SourceError> {
    let facts = &*shared.facts;
    let mut look = settle(shared).await?;
    if begins_anew(facts, look)? {
        let begun = large_object::begun(facts)?;
        for (from, _) in runs((0, u32::MAX)) {
            let batch = outdate(facts, run(from), &begun)?;
            if !batch.changes.is_empty() {
                facts.record(batch).await?;
            }
        }
        let number = look.unwrap_or_default().number;
        let anew = Look { position: Position(0), begun: Some(stands), number };
        let mut batch = FactBatch::default();
        batch.put(LOOK_FACT, &anew);
        facts.record(batch).await?;
        look = Some(anew);
    }
    Ok(look.unwrap_or_default())
}

/// Merges what was sealed into what the lake has.
async fn settle(shared: &Shared) -> Result<Option<Look>, SourceError> {
    let facts = &*shared.facts;
    let begun = large_object::begun(facts)?;
    let mut look: Option<Look> = facts::read(facts, LOOK_FACT)?;
    for number in sealed(shared) {
        let mut batch = merge(facts, number, &begun)?;
        if let Some(look) = look.as_mut().filter(|look| look.number <= number) {
            look.number = number.saturating_add(1);
            batch.put(LOOK_FACT, look);
        }
        facts.record(batch).await?;
    }
    Ok(look)
}

/// Numbers of the parts that are sealed, and not merged.
fn sealed(shared: &Shared) -> BTreeSet<u32> {
    let keys = shared.facts.scan(PART_FACTS);
    keys.iter().filter_map(|(key, _)| part_number(key)).collect()
}

impl Work {
    /// Whether the snapshot is to be read under no more.
    fn is_over(&self) -> bool {
        let age = self.shared.clock.now().saturating_duration_since(self.since);
        age >= self.shared.config.snapshot_age
            || self.shared.gaps.load(Ordering::Relaxed) != self.gaps
    }

    /// Whether all was read.
    async fn read_all(&mut self) -> Result<bool, SourceError> {
        let sql = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        self.wire.query(READING, sql).await?;
        let mut from = Some(0);
        while let Some(first) = from {
            let page = large_objects::page(&mut self.wire, first).await?;
            for range in runs((page.from, page.to)) {
                let found = difference(&*self.shared.facts, &page, range, &self.begun)?;
                self.tell_gone(found.gone).await?;
                let new: Vec<(u32, u32)> = found.new.into_iter().collect();
                for some in new.chunks(PART_OBJECTS) {
                    self.gather(some, &page.listed).await?;
                    if self.is_over() {
                        return Ok(false);
                    }
                }
            }
            self.closed.add(&page);
            from = page.to.checked_add(1);
        }
        self.read_gathered().await?;
        self.wire.query(READING, "COMMIT").await?;
        Ok(true)
    }

    /// Takes objects into the next parts, and reads those that are full.
    async fn gather(
        &mut self,
        new: &[(u32, u32)],
        listed: &BTreeMap<u32, Listed>,
    ) -> Result<(), SourceError> {
        let sizes = sizes(&mut self.wire, new).await?;
        for (id, before) in new {
            let (Some(size), Some(listed)) = (sizes.get(id), listed.get(id)) else { continue };
            let (size, count, owner) = (*size, pieces(*size), &listed.owner);
            if *before > count {
                self.gathered.stale.push((*id, count, *before));
            }
            let cut = |from, to| Cut { id: *id, owner: owner.clone(), size, from, to };
            if count <= PART_PIECES {
                self.gathered.pieces += count;
                self.gathered.cuts.push(cut(0, count));
                let full = self.gathered.cuts.len() >= PART_OBJECTS;
                if full || self.gathered.pieces >= PART_PIECES {
                    self.read_gathered().await?;
                }
            } else {
                self.read_gathered().await?;
                let begun = self.begun.get(id).cloned().unwrap_or_default();
                for (from, to) in missing(&begun, count, PART_PIECES) {
                    let part = Part::Pieces { id: *id, from, to, of: count };
                    let stale = std::mem::take(&mut self.gathered.stale);
                    self.read(&[cut(from, to)], part, &stale).await?;
                    if self.is_over() {
                        return Ok(());
                    }
                }
            }
            if self.is_over() {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn read_gathered(&mut self) -> Result<(), SourceError> {
        let Gathered { cuts, stale, .. } = std::mem::take(&mut self.gathered);
        if cuts.is_empty() {
            return Ok(());
        }
        let part = Part::Objects(cuts.iter().map(|cut| (cut.id, cut.to)).collect());
        self.read(&cuts, part, &stale).await
    }

    /// Reads a part into seal.
    async fn read(
        &mut self,
        cuts: &[Cut],
        part: Part,
        stale: &[(u32, u32, u32)],
    ) -> Result<(), SourceError> {
        let tell = self.hand(part).await?;
        let mut gulp = self.wire.copy_out(COPYING, &copy(cuts)).await?;
        let mut total = 0;
        while let Some(rows) = self.wire.rows(COPYING, &mut gulp, usize::MAX).await? {
            total += rows.rows;
            let bytes = u64::try_from(rows.bytes.len()).unwrap_or(u64::MAX);
            tell.send(RowBatch::Rows(rows.bytes)).await.map_err(|_| SourceError::Ended)?;
            self.shared.pacer.take(bytes, &*self.shared.clock).await;
        }
        for (id, from, to) in stale {
            total += send_gone(&tell, *id, *from..*to).await?;
        }
        self.shared.pacer.part();
        tell.send(RowBatch::End(total)).await.map_err(|_| SourceError::Ended)?;
        self.open.push(tell);
        Ok(())
    }

    /// Tells of objects that are gone.
    async fn tell_gone(&mut self, gone: BTreeMap<u32, u32>) -> Result<(), SourceError> {
        let gone: Vec<(u32, u32)> = gone.into_iter().collect();
        for some in gone.chunks(GONE_AT_ONCE) {
            let part = Part::Gone(some.iter().map(|(id, _)| *id).collect());
            let tell = self.hand(part).await?;
            let mut total = 0;
            for (id, pieces) in some {
                total += send_gone(&tell, *id, 0..*pieces).await?;
            }
            tell.send(RowBatch::End(total)).await.map_err(|_| SourceError::Ended)?;
            self.open.push(tell);
        }
        Ok(())
    }

    /// Hands a part to seal, which is recorded with its rows.
    async fn hand(&mut self, part: Part) -> Result<mpsc::Sender<RowBatch>, SourceError> {
        self.open.retain(|tell| !tell.is_closed());
        let (number, mut batch) = (self.number, FactBatch::default());
        batch.put(part_fact(number), &part);
        let place = (self.stands, number);
        let (chunk, tell) = chunk(&self.shared, place, Sight::LargeObjects, batch);
        self.chunks.send(chunk).await.map_err(|_| SourceError::Ended)?;
        self.handed.insert(number);
        self.number = number.saturating_add(1);
        Ok(tell)
    }

    /// Waits until seal has let go of every part, and merges them. Whether all are recorded.
    async fn sealed(&mut self) -> Result<bool, SourceError> {
        while self.open.iter().any(|tell| !tell.is_closed()) {
            sleep(SEALED_POLL).await;
        }
        let all = self.handed.is_subset(&sealed(&self.shared));
        settle(&self.shared).await?;
        Ok(all)
    }

    /// Has the ledger say that the lake has all of them.
    async fn end(&self, begun: Look) -> Result<(), SourceError> {
        let (position, number) = (self.stands, self.number);
        let mut batch = FactBatch::default();
        batch.put(LOOK_FACT, &Look { position, begun: None, number: number.saturating_add(1) });
        let (chunk, tell) = end(&self.shared, (position, number), begun.begun, batch);
        self.chunks.send(chunk).await.map_err(|_| SourceError::Ended)?;
        while !tell.is_closed() {
            sleep(SEALED_POLL).await;
        }
        Ok(())
    }
}

/// A chunk without rows by which the ledger says that the lake has all of them, and the channel by which it went.
pub(super) fn end(
    shared: &Shared,
    place: (Position, u32),
    from: Option<Position>,
    facts: FactBatch,
) -> (SnapshotChunk, mpsc::Sender<RowBatch>) {
    let (chunk, tell) = chunk(shared, place, Sight::LargeObjectsEnd { from }, facts);
    tell.try_send(RowBatch::End(0)).expect("nothing else was sent");
    (chunk, tell)
}

fn chunk(
    shared: &Shared,
    (position, number): (Position, u32),
    of: Sight,
    facts: FactBatch,
) -> (SnapshotChunk, mpsc::Sender<RowBatch>) {
    let (tell, rows) = mpsc::channel(BATCHES);
    let chunk = SnapshotChunk {
        table: table().into(),
        number,
        chunks: 1,
        position,
        at: shared.clock.wall(),
        reading: Reading::Look { of, facts },
        rows,
    };
    (chunk, tell)
}

/// Sends the keys of pieces that are gone. Gives their number.
async fn send_gone(
    tell: &mpsc::Sender<RowBatch>,
    id: u32,
    gone: std::ops::Range<u32>,
) -> Result<u64, SourceError> {
    let total = u64::from(gone.end.saturating_sub(gone.start));
    let mut open = BytesMut::new();
    let last = gone.end.saturating_sub(1);
    for piece in gone {
        tuple_gone(id, piece, &mut open);
        if open.len() >= BATCH_BYTES || piece == last {
            let rows: Bytes = std::mem::take(&mut open).freeze();
            tell.send(RowBatch::Gone(rows)).await.map_err(|_| SourceError::Ended)?;
        }
    }
    Ok(total)
}

/// Appends the row by which a piece that is gone is named, as binary COPY has it.
fn tuple_gone(id: u32, piece: u32, into: &mut BytesMut) {
    into.put_i16(5);
    into.put_i32(8);
    into.put_i64(id.into());
    into.put_i32(4);
    into.put_u32(piece);
    (0..3).for_each(|_| into.put_i32(-1));
}

/// How many bytes each has.
async fn sizes(wire: &mut Wire, new: &[(u32, u32)]) -> Result<BTreeMap<u32, u64>, SourceError> {
    let ids: Vec<String> = new.iter().map(|(id, _)| id.to_string()).collect();
    // 262144 is INV_READ.
    let sql = format!(
        "SELECT o.id, lo_lseek64(o.fd, 0, 2), lo_close(o.fd) FROM \
         (SELECT id, lo_open(id, 262144) AS fd FROM unnest('{{{}}}'::oid[]) id OFFSET 0) o",
        ids.join(",")
    );
    let rows = wire.query(READING, &sql).await?;
    rows.iter().map(|row| Ok((row.parse_as(0)?, row.parse_as(1)?))).collect()
}

/// Asks for pieces, in order; not for those of only zeros, but for the first of each object.
fn copy(cuts: &[Cut]) -> String {
    let mut values = String::new();
    for Cut { id, owner, size, from, to } in cuts {
        let comma = if values.is_empty() { "" } else { "," };
        let (owner, last) = (literal(owner), to.saturating_sub(1));
        write!(values, "{comma}({id}::oid,{size}::int8,{from}::int4,{last}::int4,{owner}::text)")
            .expect("a string takes it");
    }
    format!(
        "COPY (SELECT id::int8, piece, owner, size, data FROM (SELECT id, piece, owner, size, \
         lo_get(id, piece::int8 * {PIECE_BYTES}, {PIECE_BYTES}) AS data FROM (SELECT id, size, owner, \
         generate_series(first, last) AS piece FROM (VALUES {values}) AS v (id, size, first, last, owner)) AS p OFFSET 0) AS d \
         WHERE piece = 0 OR data <> decode(repeat('00', {PIECE_BYTES}), 'hex')) TO STDOUT (FORMAT binary)"
    )
}

const READING: &str = "read large objects";
const COPYING: &str = "copy large objects";
/// Batches between the server and seal: 3 MiB, with the largest pieces.
const BATCHES: usize = 4;
const BATCH_BYTES: usize = 256 << 10;
/// Objects of a part, at most.
const PART_OBJECTS: usize = 4096;
/// Pieces of a part: 128 MiB, which is what a crash costs.
const PART_PIECES: u32 = 256;
const GONE_AT_ONCE: usize = 50_000;
const SEALED_POLL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Cell, Decode, postgres::pgoutput::PgDecoder};

    #[test]
    fn pieces_are_asked_for_in_order_by_quoted_owners() {
        let cut = |id, owner: &str, from, to| Cut { id, owner: owner.into(), size: 9, from, to };
        let sql = copy(&[cut(1, "a'b", 0, 1), cut(4_000_000_000, "c", 256, 300)]);
        assert!(sql.contains("VALUES (1::oid,9::int8,0::int4,0::int4,'a''b'::text),"), "{sql}");
        assert!(sql.contains("(4000000000::oid,9::int8,256::int4,299::int4,'c'::text))"), "{sql}");
    }

    #[tokio::test]
    async fn a_piece_that_is_gone_is_read_as_a_row_of_a_copy() {
        let (tell, mut sent) = mpsc::channel(9);
        assert_eq!(send_gone(&tell, 7, 3..5).await.unwrap(), 2);
        assert_eq!(send_gone(&tell, 7, 5..5).await.unwrap(), 0);
        let Some(RowBatch::Gone(bytes)) = sent.recv().await else { panic!() };
        let mut rows = vec![];
        PgDecoder::default()
            .rows(&table(), &bytes, &mut |row| {
                rows.push(row.clone());
                Ok(())
            })
            .unwrap();
        let [Cell::Binary(id), Cell::Binary(piece), rest @ ..] = &rows[1][..] else { panic!() };
        assert_eq!(bytes[id.clone()], 7i64.to_be_bytes());
        assert_eq!(bytes[piece.clone()], 4i32.to_be_bytes());
        assert!(rest.iter().all(|cell| *cell == Cell::Null));
        drop(tell);
        assert!(sent.recv().await.is_none());
    }
}
