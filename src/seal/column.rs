//! One column of the open row group: its rows on their way into chunks, one for each of its leaves.
//!
//! They are held as they are while they are few, or in runs; from [`Of::early_bytes`] on an encoder takes them as they
//! come, and what it makes of them is compressed page by page. So a row group takes little more memory than what is written of
//! it. An encoder costs a hash table and page buffers, some 130 to 300 KiB: one for every column
//! from the first row on would be 200 MiB for the 1,600 that a table can have (`seal_encrypt` shows what a thousand take).
//!
//! **Invariant:** of large rows the last array of a column is there no more while it is compressed: of a large value no
//! more than two copies are alive.

use std::{
    io::{self, Write},
    mem,
    sync::Arc,
};

use arrow_schema::{FieldRef, Schema};
use parquet::{
    arrow::arrow_writer::{
        ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves,
    },
    errors::Result,
    file::{
        properties::WriterPropertiesPtr,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::types::{Type, TypePtr},
};

use super::{
    habits::{Habit, Terms},
    pack::Packer,
    pages::Pages,
    pieces::Piece,
    run_chunks::RunChunks,
    runs::Runs,
};

/// A column of the open row group.
#[derive(Default)]
pub(super) struct Column {
    /// Its rows, while they are held.
    held: Vec<Piece>,
    held_bytes: usize,
    /// So many of them would tell more than there are.
    held_until: usize,
    /// Bytes of all its rows with a value for each.
    expanded_bytes: usize,
    /// What takes them, from some row on.
    open: Option<Open>,
}

/// What is being made of a column.
struct Open {
    encoding: Encoding,
    habit: Habit,
    properties: WriterPropertiesPtr,
    packer: Packer,
}

/// Who makes its pages.
enum Encoding {
    /// The library, of each leaf.
    Leaves(Vec<ArrowColumnWriter>),
    Own(Box<Pages>),
}

/// Which column it is, and what is to be made of it.
pub(super) struct Of<'a> {
    pub(super) field: &'a FieldRef,
    pub(super) leaves: &'a TypePtr,
    /// The file's, of its columns.
    pub(super) properties: &'a WriterPropertiesPtr,
    pub(super) terms: &'a Terms,
    /// Whether pages are compressed here, and not by the library.
    pub(super) packs: bool,
    /// From here on a column is worth an encoder.
    pub(super) early_bytes: usize,
}

impl Column {
    /// Adds rows. `habit`: how this chunk is encoded.
    ///
    /// # Errors
    ///
    /// They do not fit the schema.
    pub(super) fn add(&mut self, of: &Of<'_>, habit: Habit, piece: Piece) -> Result<()> {
        self.expanded_bytes = self.expanded_bytes.saturating_add(piece.expanded());
        if let Some(open) = &mut self.open {
            return open.add(of, piece);
        }
        self.held_bytes += piece.memory();
        self.held.push(piece);
        if !of.packs || self.held_bytes < self.held_until.max(of.early_bytes) {
            return Ok(());
        }
        // Of runs that fill nearly what may be held, every piece would ask anew.
        if let Some(runs) = Runs::of(&self.held)?
            && (runs.is_one() || runs.memory() < of.early_bytes / 2)
        {
            self.held_bytes = runs.memory();
            self.held = vec![Piece::Runs(runs)];
            return Ok(());
        }
        let seen = habit.seeing(&self.held, of.properties, of.field);
        if seen.is_none() && self.held_bytes < UNCLEAR_BYTES_MAX {
            self.held_until = 2 * self.held_bytes;
            return Ok(());
        }
        let mut open = Open::new(of, seen.unwrap_or(habit))?;
        self.held_bytes = 0;
        mem::take(&mut self.held).into_iter().try_for_each(|piece| open.add(of, piece))?;
        self.open = Some(open);
        Ok(())
    }

    /// Writes its chunks, and begins anew. `habit` takes what they show.
    ///
    /// # Errors
    ///
    /// Its rows do not fit the schema, or the file refuses them.
    pub(super) fn end<W: Write + Send>(
        &mut self,
        of: &Of<'_>,
        habit: &mut Habit,
        group: &mut SerializedRowGroupWriter<'_, W>,
    ) -> Result<()> {
        let Self { held, open, expanded_bytes, .. } = mem::take(self);
        if let Some(open) = open {
            return open.end(of, habit, group);
        }
        if let Some(chunks) = RunChunks::new(of.field, of.leaves, of.properties, &held)? {
            return chunks.append_to(group);
        }
        if of.packs {
            let seen = habit.seeing(&held, of.properties, of.field).unwrap_or(*habit);
            let mut open = Open::new(of, seen.of_bytes(expanded_bytes))?;
            held.into_iter().try_for_each(|piece| open.add(of, piece))?;
            return open.end(of, habit, group);
        }
        let properties = habit.applied(of.properties, of.field, of.terms);
        let chunks = encode(of.field, of.leaves, &properties, held)?;
        chunks.into_iter().try_for_each(|chunk| chunk.append_to_row_group(group))
    }

    /// Bytes that its rows take in memory, as they are or encoded.
    pub(super) fn memory(&self) -> usize {
        self.held_bytes + self.open.as_ref().map_or(0, Open::memory)
    }

    /// Bytes of its rows, with a value for each.
    pub(super) fn expanded(&self) -> usize {
        self.expanded_bytes
    }
}

impl Open {
    fn new(of: &Of<'_>, habit: Habit) -> Result<Self> {
        let properties = habit.applied(of.properties, of.field, of.terms);
        let method = habit.method(&properties, of.field, of.terms);
        let packer = Packer::new(&of.terms.presses, of.terms.scarce, method);
        let encoding = match Pages::new(of, &properties, &packer, habit.bytes()) {
            Some(pages) => Encoding::Own(Box::new(pages)),
            None => Encoding::Leaves(encoders(of.field, of.leaves, &properties, Some(&packer))?),
        };
        Ok(Self { encoding, habit, properties, packer })
    }

    fn add(&mut self, of: &Of<'_>, piece: Piece) -> Result<()> {
        let encoders = match &mut self.encoding {
            Encoding::Leaves(encoders) => encoders,
            Encoding::Own(pages) => {
                return piece.parts().iter().try_for_each(|part| pages.add(&part.array()?));
            }
        };
        write(encoders, of.field, piece)
    }

    fn memory(&self) -> usize {
        match &self.encoding {
            Encoding::Leaves(encoders) => encoders.iter().map(ArrowColumnWriter::memory_size).sum(),
            Encoding::Own(pages) => pages.memory() + self.packer.memory(0),
        }
    }

    fn end<W: Write + Send>(
        self,
        of: &Of<'_>,
        habit: &mut Habit,
        group: &mut SerializedRowGroupWriter<'_, W>,
    ) -> Result<()> {
        let Self { encoding, habit: applied, properties, packer } = self;
        let is_flat = !of.field.data_type().is_nested();
        let closed = match encoding {
            Encoding::Leaves(encoders) => encoders
                .into_iter()
                .map(|encoder| Ok(encoder.close()?.close().clone()))
                .collect::<Result<_>>()?,
            Encoding::Own(pages) => vec![pages.end(of, &properties)?],
        };
        for (leaf, close) in closed.into_iter().enumerate() {
            let (chunk, close) = packer.end(leaf, close)?;
            if is_flat {
                let method = packer.method().map(|method| (of.terms.scarce, method));
                habit.learn(applied, &close, &properties, method);
            }
            group.append_column(&chunk, close)?;
        }
        Ok(())
    }
}

/// Encodes a column by itself, its pages within the chunks.
pub(super) fn encode(
    field: &FieldRef,
    leaves: &TypePtr,
    properties: &WriterPropertiesPtr,
    pieces: Vec<Piece>,
) -> Result<Vec<ArrowColumnChunk>> {
    let mut encoders = encoders(field, leaves, properties, None)?;
    for piece in pieces {
        write(&mut encoders, field, piece)?;
    }
    encoders.into_iter().map(ArrowColumnWriter::close).collect()
}

/// The encoders of a column's `leaves`: asked for those of the whole schema, the library makes all of them at once. With a
/// packer the pages go there, and not into the chunk.
fn encoders(
    field: &FieldRef,
    leaves: &TypePtr,
    properties: &WriterPropertiesPtr,
    packer: Option<&Packer>,
) -> Result<Vec<ArrowColumnWriter>> {
    let root = Type::group_type_builder("schema").with_fields(vec![Arc::clone(leaves)]).build()?;
    let alone = SerializedFileWriter::new(io::sink(), Arc::new(root), Arc::clone(properties))?;
    let schema = Arc::new(Schema::new(vec![Arc::clone(field)]));
    let mut factory = ArrowRowGroupWriterFactory::new(&alone, schema);
    if let Some(packer) = packer {
        factory = factory.with_page_store_factory(Arc::new(packer.clone()));
    }
    factory.create_column_writers(0)
}

fn write(encoders: &mut [ArrowColumnWriter], field: &FieldRef, piece: Piece) -> Result<()> {
    for part in piece.parts() {
        let array = part.array()?;
        drop(part);
        for (encoder, leaf) in encoders.iter_mut().zip(compute_leaves(field, &array)?) {
            encoder.write(&leaf)?;
        }
    }
    Ok(())
}

/// [`Of::early_bytes`] of a table with so many columns: of those that have many, no more than 64 have an encoder.
pub(super) fn early_bytes(columns: usize) -> usize {
    if columns <= NARROW { 64 << 10 } else { 256 << 10 }
}

/// So much of a column is held at most until it shows whether a dictionary holds its values: these are often twice as large here as
/// there, and of four bytes four times.
const UNCLEAR_BYTES_MAX: usize = 512 << 10;
/// Columns of a table that is not wide.
const NARROW: usize = 32;
