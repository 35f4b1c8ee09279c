//! What it costs to read rows: from the bytes that PostgreSQL sent to cells, to values, to columns.
//!
//! `cargo bench --bench decode [-- MIB [NAME…]]`: so many MiB go through each stage, or through those of
//! which each NAME is a word, as in `copy wide columns`. `copy` is what a snapshot
//! reads (tuples of a binary COPY), `stream` what follows (binary Insert and Update messages of
//! pgoutput). Each stage holds the one before: `cells` finds where the values lie, `values` reads them,
//! `columns` appends them to Arrow arrays, with the columns that the lake adds.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench speaks to a person")]

use std::hint::black_box;

use lakehead::{
    clock::{Clock, SystemClock},
    journal::{Cells, Decode, DecodeError, Event, Op, RecordKind, Row, Table},
    seal::columns::{Block, Metas, RowBuilder, RowMeta},
    source::postgres::pgoutput::PgDecoder,
    units::{Position, Timestamp},
};

use rows::{orders, put_length, row, tuples, wide};

mod cpu;
mod rows;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let mib: usize = arguments.next().map_or(256, |text| text.parse().unwrap());
    let names: Vec<String> = arguments.collect();
    let wanted = |from: &str, table: &Table, stage: Stage| {
        let own = [from, &table.name, stage.name()];
        names.iter().all(|name| own.contains(&name.as_str()))
    };
    println!(
        "from    table   stage         rows  bytes/row     rows/s  ns/row  ns/value  CPU-s/GB"
    );
    for table in [orders(), wide()] {
        for stage in [Stage::Cells, Stage::Values, Stage::Columns] {
            if wanted(Tuples::NAME, &table, stage) {
                measure(&Tuples::new(&table), stage, mib << 20);
            }
        }
        for stage in [Stage::Cells, Stage::Values, Stage::Columns] {
            if wanted(Messages::NAME, &table, stage) {
                measure(&Messages::new(&table), stage, mib << 20);
            }
        }
    }
}

/// How far a row is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Cells,
    Values,
    Columns,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Cells => "cells",
            Self::Values => "values",
            Self::Columns => "columns",
        }
    }
}

/// Rows in the form that a server sends them.
trait Source {
    const NAME: &str;
    fn table(&self) -> &Table;
    /// Bytes of one batch.
    fn bytes(&self) -> usize;
    /// Reads the batch once, and calls `each` with every row.
    fn read(&mut self, each: &mut Each<'_>);
    /// What is read a column after the other.
    fn tuples(&self) -> Option<(&PgDecoder, &[u8])> {
        None
    }
}

/// Hears of a row: how to read it, what was done to it, its cells, and what they point into.
type Each<'a> = dyn FnMut(&PgDecoder, Op, &Row, &[u8]) + 'a;

fn meta(op: Op, sequence: u64, position: u64) -> RowMeta {
    let (position, committed_at) = (Position(position), Timestamp(0));
    RowMeta { op, sequence, position, committed_at, xid: Some(7) }
}

fn measure<S: Source + Clone>(source: &S, stage: Stage, total: usize) {
    let mut source = source.clone();
    let table = source.table().clone();
    let mut builder = RowBuilder::new(&table);
    let (mut rows, mut values) = (0_u64, 0_u64);
    let mut cells = Cells::new(table.columns.len(), BLOCK_CELLS / table.columns.len(), BLOCK_BYTES);
    let batches = (total / source.bytes()).max(1);
    let (clock, cpu) = (SystemClock, cpu::seconds());
    let start = clock.now();
    for _ in 0..batches {
        if let Some((decoder, bytes)) = source.tuples().filter(|_| stage == Stage::Columns) {
            let mut at = 0;
            while at < bytes.len() {
                cells.clear();
                at = decoder.block(&table, bytes, at, &mut cells).unwrap();
                let block = Block { cells: &cells, bytes };
                let metas = Metas::Same(meta(Op::Snapshot, 0, 1));
                builder.append_block(metas, &block, decoder).unwrap();
                rows += cells.rows() as u64;
                values += (cells.rows() * cells.columns()) as u64;
                if builder.rows() >= BATCH_ROWS || builder.bytes() >= BATCH_BYTES {
                    black_box(builder.take());
                }
            }
            continue;
        }
        source.read(&mut |decoder, op, row, bytes| {
            rows += 1;
            values += row.len() as u64;
            match stage {
                Stage::Cells => drop(black_box(row.len())),
                Stage::Values => {
                    for (column, cell) in table.columns.iter().zip(row) {
                        black_box(decoder.value(column, cell, bytes).unwrap());
                    }
                }
                Stage::Columns => {
                    let meta = meta(op, rows, rows / 100);
                    builder.append(meta, Some(row), None, bytes, decoder).unwrap();
                    if builder.rows() >= BATCH_ROWS || builder.bytes() >= BATCH_BYTES {
                        black_box(builder.take());
                    }
                }
            }
        });
    }
    let (seconds, cpu) = ((clock.now() - start).as_secs_f64(), cpu::seconds() - cpu);
    let bytes = (batches * source.bytes()) as f64;
    println!(
        "{:7} {:7} {:8} {rows:9} {:10.0} {:10.0} {:7.0} {:9.1} {:9.2}",
        S::NAME,
        table.name,
        stage.name(),
        bytes / rows as f64,
        rows as f64 / seconds,
        cpu / rows as f64 * 1e9,
        cpu / values as f64 * 1e9,
        cpu / bytes * 1e9,
    );
}

/// Tuples of a binary COPY.
#[derive(Clone)]
struct Tuples {
    table: Table,
    decoder: PgDecoder,
    batch: Vec<u8>,
}

impl Tuples {
    fn new(table: &Table) -> Self {
        let (batch, _) = tuples(table, 1, SOURCE_BYTES, &mut fastrand::Rng::with_seed(1));
        Self { table: table.clone(), decoder: PgDecoder::new([table.clone()]), batch }
    }
}

impl Source for Tuples {
    const NAME: &str = "copy";

    fn table(&self) -> &Table {
        &self.table
    }

    fn bytes(&self) -> usize {
        self.batch.len()
    }

    fn read(&mut self, each: &mut Each<'_>) {
        let Self { table, decoder, batch } = self;
        let mut every = |row: &Row| -> Result<(), DecodeError> {
            each(decoder, Op::Snapshot, row, batch);
            Ok(())
        };
        decoder.rows(table, batch, &mut every).unwrap();
    }

    fn tuples(&self) -> Option<(&PgDecoder, &[u8])> {
        Some((&self.decoder, &self.batch))
    }
}

/// Messages of pgoutput, in binary: an Insert, then an Update of the same row, and so on.
#[derive(Clone)]
struct Messages {
    table: Table,
    decoder: PgDecoder,
    messages: Vec<Vec<u8>>,
}

impl Messages {
    fn new(table: &Table) -> Self {
        let (mut messages, mut bytes) = (vec![], 0);
        let (mut dice, mut number) = (fastrand::Rng::with_seed(1), 0);
        while bytes < SOURCE_BYTES {
            number += 1;
            for kind in [b'I', b'U'] {
                let values = row(table, number, &mut dice);
                let mut message = vec![kind];
                message.extend(table.id.to_be_bytes());
                message.push(b'N');
                message.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
                for value in values {
                    message.push(if value.is_some() { b'b' } else { b'n' });
                    if value.is_some() {
                        put_length(&mut message, value.as_deref());
                    }
                }
                bytes += message.len();
                messages.push(message);
            }
        }
        Self { table: table.clone(), decoder: PgDecoder::new([table.clone()]), messages }
    }
}

impl Source for Messages {
    const NAME: &str = "stream";

    fn table(&self) -> &Table {
        &self.table
    }

    fn bytes(&self) -> usize {
        self.messages.iter().map(Vec::len).sum()
    }

    fn read(&mut self, each: &mut Each<'_>) {
        for message in &self.messages {
            let event = self.decoder.decode(RecordKind::Message, message).unwrap();
            if let Event::Change(change) = event {
                each(&self.decoder, change.op, &change.new.unwrap(), message);
            }
        }
    }
}

/// As the sealer appends them.
const BLOCK_CELLS: usize = 2048;
/// As above.
const BLOCK_BYTES: usize = 64 << 10;
/// As the encoder hands them on.
const BATCH_ROWS: usize = 8192;
/// As above.
const BATCH_BYTES: usize = 1 << 20;
/// Of one batch of a COPY, and of the messages read over and over.
const SOURCE_BYTES: usize = 256 << 10;
