//! Writes record batches as the row groups of a Parquet file, one column after the other.
//!
//! The pieces of a row group are kept as they are until it ends. Then each column in turn is encoded and
//! written, and its pieces are given back. An encoder costs a compressor, a hash table and page buffers
//! whatever comes, some 130 KiB: one for every column at once would be 200 MiB for the 1,600 that a
//! table can have (`seal_encrypt` shows what a thousand take).
//!
//! What a column's chunk showed decides how its next one is encoded, in this file or the next of the table:
//! without a dictionary if that did not hold the values, or was most of what was written; and then compressed by
//! what its first page advised ([`Method`]). Each is tried again every few row groups.
//!
//! **Invariant:** one encoder is there at a time. While the last array of a column is compressed it is
//! there no more: of a large value no more than two copies are alive.

use std::{
    io::{self, Write},
    mem,
    sync::Arc,
};

use arrow_schema::{DataType, FieldRef, Schema, SchemaRef};
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_writer::{
            ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves,
        },
    },
    basic::{Compression, Encoding, PageType},
    column::writer::ColumnCloseResult,
    errors::Result,
    file::{
        properties::{WriterProperties, WriterPropertiesPtr, WriterVersion},
        writer::SerializedFileWriter,
    },
    schema::types::{ColumnPath, Type, TypePtr},
};

use super::{
    constant::Constant,
    pack::{Method, Packer, Scarce},
    pieces::Piece,
};
use crate::config::Integers;

/// How the columns of a table are encoded, as their chunks so far advise.
#[derive(Clone, Debug, Default)]
pub(super) struct Habits {
    columns: Vec<Habit>,
    /// Row groups since all was tried.
    groups: usize,
}

/// How a column is encoded.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Habit {
    /// Without a dictionary.
    plain: bool,
    /// How its pages are compressed, without a dictionary, and what that was chosen for; `None`: the next one shows it.
    method: Option<(Scarce, Method)>,
}

/// What the columns of a file should save, and how.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terms {
    pub(super) scarce: Scarce,
    pub(super) integers: Integers,
}

/// The writer of one file.
pub(super) struct Writer<W: Write + Send> {
    file: SerializedFileWriter<W>,
    schema: SchemaRef,
    /// Of the open row group, column by column.
    pieces: Vec<Vec<Piece>>,
    /// Of each column: bytes of these with a value for each row.
    expanded_bytes: Vec<usize>,
    rows: usize,
    habits: Habits,
    /// Of the file's properties what concerns its columns.
    columns: WriterPropertiesPtr,
    /// Whether pages are compressed here, and not by the library.
    packs: bool,
    terms: Terms,
    kept_bytes: usize,
    /// Of all row groups that were written, before they were encoded.
    taken_bytes: usize,
}

impl<W: Write + Send> Writer<W> {
    /// Begins a file. `habits`: of the file before, of the same schema.
    ///
    /// # Errors
    ///
    /// Parquet has no such schema, or `to` refuses the first bytes.
    pub(super) fn new(
        to: W,
        schema: &SchemaRef,
        properties: WriterProperties,
        mut habits: Habits,
        terms: Terms,
    ) -> Result<Self> {
        let columns = properties.clone().into_builder().set_key_value_metadata(None);
        let packs = properties.writer_version() == WriterVersion::PARQUET_1_0
            && matches!(properties.compression(&ColumnPath::new(vec![])), Compression::ZSTD(_));
        let columns = match packs {
            true => columns.set_compression(Compression::UNCOMPRESSED).build(),
            false => columns.build(),
        };
        let writer = ArrowWriter::try_new(to, Arc::clone(schema), Some(properties))?;
        let (file, _) = writer.into_serialized_writer()?;
        let width = schema.fields().len();
        habits.columns.resize(width, Habit::default());
        let (schema, pieces) = (Arc::clone(schema), vec![vec![]; width]);
        let columns = Arc::new(columns);
        Ok(Self {
            file,
            schema,
            pieces,
            expanded_bytes: vec![0; width],
            rows: 0,
            habits,
            columns,
            packs,
            terms,
            kept_bytes: 0,
            taken_bytes: 0,
        })
    }

    /// Adds rows to the open row group: a piece of each column.
    pub(super) fn add(&mut self, pieces: Vec<Piece>) {
        self.rows += pieces.first().map_or(0, Piece::rows);
        self.kept_bytes += pieces.iter().map(Piece::memory).sum::<usize>();
        let columns = self.pieces.iter_mut().zip(&mut self.expanded_bytes).zip(pieces);
        for ((pieces, expanded_bytes), piece) in columns {
            *expanded_bytes = expanded_bytes.saturating_add(piece.expanded());
            pieces.push(piece);
        }
    }

    /// Writes the open row group, if there is one.
    ///
    /// # Errors
    ///
    /// The rows do not fit the schema, or the file refuses them.
    pub(super) fn end_group(&mut self) -> Result<()> {
        if self.kept_bytes == 0 {
            return Ok(());
        }
        let root = self.file.schema_descr().root_schema_ptr();
        let properties = Arc::clone(&self.columns);
        self.habits.next();
        let packer = self.packs.then(|| Packer::new(self.terms.scarce)).transpose()?;
        let mut group = self.file.next_row_group()?;
        let columns = self.schema.fields().iter().zip(root.get_fields());
        for (((field, leaves), pieces), habit) in
            columns.zip(&mut self.pieces).zip(&mut self.habits.columns)
        {
            let pieces = mem::take(pieces);
            if let Some(constant) = Constant::new(field, leaves, &properties, &pieces)? {
                constant.append_to(&mut group)?;
                continue;
            }
            let properties = habit.applied(&properties, field, self.terms);
            let Some(packer) = &packer else {
                for chunk in encode(field, leaves, &properties, pieces, None)? {
                    chunk.append_to_row_group(&mut group)?;
                }
                continue;
            };
            packer.begin(habit.method(&properties, field, self.terms));
            let chunks = encode(field, leaves, &properties, pieces, Some(packer))?;
            let is_flat = !field.data_type().is_nested();
            for (leaf, chunk) in (0..).zip(chunks) {
                let (chunk, close) = packer.end(leaf, chunk.close().clone())?;
                if is_flat {
                    let method = packer.method().map(|method| (self.terms.scarce, method));
                    habit.learn(&close, &properties, method);
                }
                group.append_column(&chunk, close)?;
            }
        }
        group.close()?;
        self.taken_bytes += mem::take(&mut self.kept_bytes);
        self.rows = 0;
        self.expanded_bytes.fill(0);
        Ok(())
    }

    /// Whether the open row group should end: by what it takes in memory, by its rows, or by what one of its columns takes
    /// while it is encoded, unless it holds one value only.
    pub(super) fn is_full(&self) -> bool {
        self.kept_bytes > ROW_GROUP_MEMORY_MAX
            || self.rows >= ROW_GROUP_ROWS_MAX
            || self.expanded_bytes.iter().any(|bytes| *bytes > COLUMN_BYTES_MAX)
    }

    /// Bytes in memory that [`Writer::end_group`] frees.
    pub(super) fn memory(&self) -> usize {
        self.kept_bytes
    }

    /// Bytes of the file: written, and what the open row group is expected to take. It will be about as
    /// much smaller than its arrays as those before; of the first one half is expected.
    pub(super) fn encoded(&self) -> u64 {
        let written = self.file.bytes_written();
        let expected = match self.taken_bytes {
            0 => self.kept_bytes / 2,
            taken => self.kept_bytes.saturating_mul(written) / taken,
        };
        (written + expected) as u64
    }

    /// Row groups that were written.
    pub(super) fn groups(&self) -> usize {
        self.file.flushed_row_groups().len()
    }

    /// What its columns have shown.
    pub(super) fn habits(&self) -> &Habits {
        &self.habits
    }

    /// Where the file goes.
    pub(super) fn inner(&self) -> &W {
        self.file.inner()
    }

    /// Ends the file.
    ///
    /// # Errors
    ///
    /// As [`Writer::end_group`].
    pub(super) fn into_inner(mut self) -> Result<W> {
        self.end_group()?;
        self.file.into_inner()
    }
}

/// Encodes one column, whose `leaves` have encoders of their own: asked for those of the whole schema, the
/// library makes all of them at once. With a packer the pages go there, and not into the chunk.
pub(super) fn encode(
    field: &FieldRef,
    leaves: &TypePtr,
    properties: &WriterPropertiesPtr,
    pieces: Vec<Piece>,
    packer: Option<&Packer>,
) -> Result<Vec<ArrowColumnChunk>> {
    let root = Type::group_type_builder("schema").with_fields(vec![Arc::clone(leaves)]).build()?;
    let alone = SerializedFileWriter::new(io::sink(), Arc::new(root), Arc::clone(properties))?;
    let schema = Arc::new(Schema::new(vec![Arc::clone(field)]));
    let mut factory = ArrowRowGroupWriterFactory::new(&alone, schema);
    if let Some(packer) = packer {
        factory = factory.with_page_store_factory(Arc::new(packer.clone()));
    }
    let mut encoders = factory.create_column_writers(0)?;
    for piece in pieces {
        let array = piece.array()?;
        drop(piece);
        for (encoder, leaf) in encoders.iter_mut().zip(compute_leaves(field, &array)?) {
            encoder.write(&leaf)?;
        }
    }
    encoders.into_iter().map(ArrowColumnWriter::close).collect()
}

impl Habits {
    /// A row group comes.
    fn next(&mut self) {
        self.groups += 1;
        if self.groups > TRY_ALL_AGAIN_GROUPS {
            self.groups = 0;
            self.columns.fill(Habit::default());
        } else if self.groups.is_multiple_of(TRY_AGAIN_GROUPS) {
            for habit in &mut self.columns {
                habit.plain = false;
                habit.method = habit.method.filter(|(_, method)| *method != Method::Raw);
            }
        }
    }
}

impl Habit {
    fn applied(
        self,
        properties: &WriterPropertiesPtr,
        field: &FieldRef,
        terms: Terms,
    ) -> WriterPropertiesPtr {
        let is_delta = terms.integers == Integers::Delta && is_whole_number(field.data_type());
        if !self.plain && !is_delta {
            return Arc::clone(properties);
        }
        let path = ColumnPath::new(vec![field.name().clone()]);
        let mut builder = properties.as_ref().clone().into_builder();
        if self.plain {
            builder = builder.set_column_dictionary_enabled(path.clone(), false);
        }
        if is_delta {
            builder = builder.set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
        }
        Arc::new(builder.build())
    }

    /// How the next chunk's pages are to be compressed, if that is known.
    fn method(
        self,
        properties: &WriterProperties,
        field: &FieldRef,
        terms: Terms,
    ) -> Option<Method> {
        let path = ColumnPath::new(vec![field.name().clone()]);
        match self.method {
            // The numbers of a dictionary always shrink, and say nothing of the values; of a list there are some, too.
            _ if field.data_type().is_nested() || properties.dictionary_enabled(&path) => {
                Some(Method::Whole)
            }
            Some((of, method)) if of == terms.scarce => Some(method),
            _ => None,
        }
    }

    /// Takes what a chunk shows that was written with these properties, and by this method.
    fn learn(
        &mut self,
        close: &ColumnCloseResult,
        properties: &WriterProperties,
        method: Option<(Scarce, Method)>,
    ) {
        let (packed, plain) =
            (close.metadata.compressed_size(), close.metadata.uncompressed_size());
        let Some(pages) = close.offset_index.as_ref().filter(|_| plain >= JUDGED_BYTES) else {
            return;
        };
        if properties.dictionary_enabled(close.metadata.column_path()) {
            let sizes = pages.page_locations().iter().map(|page| page.compressed_page_size);
            let dictionary = packed - sizes.map(i64::from).sum::<i64>();
            let mut encodings = close.metadata.page_encoding_stats().into_iter().flatten();
            let missed = encodings.any(|pages| {
                pages.page_type == PageType::DATA_PAGE && pages.encoding != Encoding::RLE_DICTIONARY
            });
            self.plain = missed || dictionary > packed / 2;
        } else {
            self.method = method;
        }
    }
}

/// Whether the values are whole numbers in the file, of at most 64 bits.
fn is_whole_number(of: &DataType) -> bool {
    match of {
        DataType::Decimal128(precision, _) => *precision <= DECIMAL_DIGITS_64,
        other => other.is_integer() || other.is_temporal(),
    }
}

/// A row group ends when its rows, before they are encoded, hold this much memory.
const ROW_GROUP_MEMORY_MAX: usize = 16 << 20;
/// As above, by their number: of a table whose columns hold one value each they hold next to nothing.
const ROW_GROUP_ROWS_MAX: usize = 1 << 20;
/// As above, of one column with a value for each row.
const COLUMN_BYTES_MAX: usize = 32 << 20;
/// Of a decimal that is an INT32 or INT64 in the file
/// (<https://github.com/apache/parquet-format/blob/master/LogicalTypes.md#decimal>).
const DECIMAL_DIGITS_64: u8 = 18;
/// A chunk of fewer bytes, before compression, shows nothing.
const JUDGED_BYTES: i64 = 16 << 10;
/// A dictionary, or compression, that was given up is tried again after so many row groups: values change in the course
/// of a table.
const TRY_AGAIN_GROUPS: usize = 16;
/// As above, all: to compress a page in several ways costs as much as some pages do.
const TRY_ALL_AGAIN_GROUPS: usize = 64;

#[cfg(test)]
mod tests {
    use arrow_array::{
        ArrayRef, BinaryArray, Int64Array, ListArray, RecordBatch, StringArray, types::Int32Type,
    };
    use bytes::Bytes;
    use parquet::{
        arrow::arrow_reader::ParquetRecordBatchReaderBuilder, file::metadata::ColumnChunkMetaData,
    };

    use super::*;

    fn batch(from: i64, rows: i64) -> RecordBatch {
        let range = from..from + rows;
        let texts = range.clone().map(|n| (n % 3 > 0).then(|| format!("text {}", n % 100)));
        let lists = range.clone().map(|n| Some((0..n % 4).map(|n| i32::try_from(n).ok())));
        RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(Int64Array::from_iter_values(range)) as ArrayRef, false),
            ("text", Arc::new(StringArray::from_iter(texts)), true),
            ("list", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists)), true),
        ])
        .unwrap()
    }

    fn pieces(batch: &RecordBatch) -> Vec<Piece> {
        batch.columns().iter().map(|array| Piece::Array(Arc::clone(array))).collect()
    }

    fn read(file: Vec<u8>) -> (Vec<usize>, RecordBatch) {
        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file)).unwrap();
        let groups = reader.metadata().row_groups().iter();
        let groups = groups.map(|group| usize::try_from(group.num_rows()).unwrap()).collect();
        let mut batches = reader.with_batch_size(1 << 20).build().unwrap();
        let found = batches.next().unwrap().unwrap();
        assert!(batches.next().is_none());
        (groups, found)
    }

    #[test]
    fn what_is_written_in_turn_reads_as_it_was_and_as_the_library_writes_it() {
        let whole = batch(0, 5000);
        let properties = WriterProperties::builder().build();
        let mut writer = Writer::new(
            vec![],
            &whole.schema(),
            properties.clone(),
            Habits::default(),
            Terms::default(),
        )
        .unwrap();
        writer.end_group().unwrap();
        writer.add(pieces(&batch(0, 1000)));
        writer.add(pieces(&batch(1000, 2000)));
        assert!(writer.memory() > 3000 * 8);
        writer.end_group().unwrap();
        assert_eq!((writer.memory(), writer.groups()), (0, 1));
        let written = writer.encoded();
        writer.add(pieces(&batch(3000, 2000)));
        assert!(writer.encoded() > written);
        let file = writer.into_inner().unwrap();
        assert_eq!(read(file), (vec![3000, 2000], whole.clone()));

        let mut library =
            ArrowWriter::try_new(vec![], whole.schema(), Some(properties.clone())).unwrap();
        library.write(&whole).unwrap();
        let mut writer =
            Writer::new(vec![], &whole.schema(), properties, Habits::default(), Terms::default())
                .unwrap();
        writer.add(pieces(&whole));
        let (ours, theirs) = (writer.into_inner().unwrap(), library.into_inner().unwrap());
        assert_eq!(ours, theirs, "byte by byte");
    }

    #[test]
    fn a_column_is_encoded_as_its_last_chunk_advises() {
        let mut dice = fastrand::Rng::with_seed(1);
        let mut noise = || (0..40).map(|_| dice.u8(..)).collect::<Vec<_>>();
        let rows = 10_000;
        let group = RecordBatch::try_from_iter([
            (
                "few",
                Arc::new(StringArray::from_iter_values(
                    (0..rows).map(|n| format!("state {}", n % 7)),
                )) as ArrayRef,
            ),
            (
                "each",
                Arc::new(Int64Array::from_iter_values(
                    (0..rows).map(|n| n * 2_654_435_761 % 1_000_000_007),
                )),
            ),
            ("noise", Arc::new(BinaryArray::from_iter_values((0..rows).map(|_| noise())))),
        ])
        .unwrap();
        let shape = |file: Vec<u8>| {
            let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file)).unwrap();
            let shape = |of: &ColumnChunkMetaData| {
                (
                    of.dictionary_page_offset().is_some(),
                    of.compression() != Compression::UNCOMPRESSED,
                )
            };
            let groups = reader.metadata().row_groups().iter();
            groups.map(|group| group.columns().iter().map(shape).collect()).collect::<Vec<Vec<_>>>()
        };
        let zstd = Compression::ZSTD(parquet::basic::ZstdLevel::default());
        let properties = || {
            WriterProperties::builder()
                .set_compression(zstd)
                .set_dictionary_page_size_limit(128 << 10)
                .build()
        };
        let mut writer =
            Writer::new(vec![], &group.schema(), properties(), Habits::default(), Terms::default())
                .unwrap();
        for _ in 0..3 {
            writer.add(pieces(&group));
            writer.end_group().unwrap();
        }
        let habits = writer.habits().clone();
        let shapes = shape(writer.into_inner().unwrap());
        let (first, plain, raw) = ((true, true), (false, true), (false, false));
        assert_eq!(shapes[0], [first, first, first]);
        // What does not shrink shows it in its first page.
        assert_eq!(shapes[1], [first, plain, raw]);
        assert_eq!(shapes[2], [first, plain, raw]);
        // The next file of the table begins with what this one has shown, and tries again at last.
        let mut writer =
            Writer::new(vec![], &group.schema(), properties(), habits, Terms::default()).unwrap();
        for _ in 0..TRY_AGAIN_GROUPS {
            writer.add(pieces(&group));
            writer.end_group().unwrap();
        }
        let file = writer.into_inner().unwrap();
        let again = shape(file.clone());
        assert_eq!((&again[0], &again[11]), (&shapes[2], &shapes[2]));
        assert_eq!((&again[12], &again[13]), (&shapes[0], &shapes[2]));
        let read = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file)).unwrap();
        let read = read.with_batch_size(10_000).build().unwrap().map(Result::unwrap);
        assert!(read.map(|batch| batch.columns().to_vec()).all(|found| found == group.columns()));
    }

    #[test]
    fn a_file_without_rows_has_its_schema() {
        let schema = batch(0, 1).schema();
        let writer = Writer::new(
            vec![],
            &schema,
            WriterProperties::default(),
            Habits::default(),
            Terms::default(),
        )
        .unwrap();
        let file = writer.into_inner().unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file)).unwrap();
        assert_eq!((reader.schema(), reader.metadata().num_row_groups()), (&schema, 0));
    }
}
