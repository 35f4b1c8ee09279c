//! Writes record batches as the row groups of a Parquet file, one column after the other.
//!
//! The batches of a row group are kept as they are until it ends. Then each column in turn is encoded and
//! written, and its arrays are given back. An encoder costs a compressor, a hash table and page buffers
//! whatever comes, some 130 KiB: one for every column at once would be 200 MiB for the 1,600 that a
//! table can have (`seal_encrypt` shows what a thousand take).
//!
//! What a column's chunk showed decides how its next one is encoded: without a dictionary if that did not hold
//! the values, or was most of what was written; without zstd if that gained nothing. Each is tried again
//! every few row groups.
//!
//! **Invariant:** one encoder is there at a time. While the last array of a column is compressed it is
//! there no more: of a large value no more than two copies are alive.

use std::{
    io::{self, Write},
    mem,
    sync::Arc,
};

use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{FieldRef, Schema, SchemaRef};
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_writer::{
            ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves,
        },
    },
    basic::{Compression, Encoding, PageType},
    errors::Result,
    file::{
        properties::{WriterProperties, WriterPropertiesPtr},
        writer::SerializedFileWriter,
    },
    schema::types::{Type, TypePtr},
};

use super::constant::Constant;

/// The writer of one file.
pub(super) struct Writer<W: Write + Send> {
    file: SerializedFileWriter<W>,
    schema: SchemaRef,
    /// Of the open row group, column by column.
    arrays: Vec<Vec<ArrayRef>>,
    /// As the chunks so far advise, column by column.
    advice: Vec<Option<WriterPropertiesPtr>>,
    kept_bytes: usize,
    /// Of all row groups that were written, before they were encoded.
    taken_bytes: usize,
}

impl<W: Write + Send> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    ///
    /// Parquet has no such schema, or `to` refuses the first bytes.
    pub(super) fn new(to: W, schema: &SchemaRef, properties: WriterProperties) -> Result<Self> {
        let writer = ArrowWriter::try_new(to, Arc::clone(schema), Some(properties))?;
        let (file, _) = writer.into_serialized_writer()?;
        let columns = schema.fields().len();
        let (schema, arrays, advice) =
            (Arc::clone(schema), vec![vec![]; columns], vec![None; columns]);
        Ok(Self { file, schema, arrays, advice, kept_bytes: 0, taken_bytes: 0 })
    }

    /// Adds rows to the open row group.
    pub(super) fn add(&mut self, batch: &RecordBatch) {
        self.kept_bytes += batch.get_array_memory_size();
        let columns = self.arrays.iter_mut().zip(batch.columns());
        columns.for_each(|(arrays, array)| arrays.push(Arc::clone(array)));
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
        let properties = Arc::clone(self.file.properties());
        if self.groups().is_multiple_of(TRY_AGAIN_GROUPS) {
            self.advice.fill(None);
        }
        let mut group = self.file.next_row_group()?;
        let columns = self.schema.fields().iter().zip(root.get_fields());
        for (((field, leaves), arrays), advice) in
            columns.zip(&mut self.arrays).zip(&mut self.advice)
        {
            let advised = advice.as_ref().unwrap_or(&properties);
            if let Some(constant) = Constant::new(field, leaves, &properties, arrays)? {
                constant.append_to(&mut group)?;
                arrays.clear();
                continue;
            }
            let chunks = encode(field, leaves, advised, mem::take(arrays))?;
            if let [chunk] = &chunks[..]
                && let Some(news) = advise(chunk, advised)
            {
                *advice = Some(Arc::new(news));
            }
            for chunk in chunks {
                chunk.append_to_row_group(&mut group)?;
            }
        }
        group.close()?;
        self.taken_bytes += mem::take(&mut self.kept_bytes);
        Ok(())
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
/// library makes all of them at once.
pub(super) fn encode(
    field: &FieldRef,
    leaves: &TypePtr,
    properties: &WriterPropertiesPtr,
    arrays: Vec<ArrayRef>,
) -> Result<Vec<ArrowColumnChunk>> {
    let root = Type::group_type_builder("schema").with_fields(vec![Arc::clone(leaves)]).build()?;
    let alone = SerializedFileWriter::new(io::sink(), Arc::new(root), Arc::clone(properties))?;
    let schema = Arc::new(Schema::new(vec![Arc::clone(field)]));
    let factory = ArrowRowGroupWriterFactory::new(&alone, schema);
    let mut encoders = factory.create_column_writers(0)?;
    for array in arrays {
        for (encoder, leaf) in encoders.iter_mut().zip(compute_leaves(field, &array)?) {
            encoder.write(&leaf)?;
        }
    }
    encoders.into_iter().map(ArrowColumnWriter::close).collect()
}

/// How the next chunk of a column is to be encoded, if otherwise than this one.
fn advise(chunk: &ArrowColumnChunk, properties: &WriterProperties) -> Option<WriterProperties> {
    let close = chunk.close();
    let (metadata, pages) = (&close.metadata, close.offset_index.as_ref()?);
    let (packed, plain) = (metadata.compressed_size(), metadata.uncompressed_size());
    if plain < JUDGED_BYTES {
        return None;
    }
    let path = metadata.column_path();
    let data: i64 =
        pages.page_locations().iter().map(|page| i64::from(page.compressed_page_size)).sum();
    let missed = metadata.page_encoding_stats().is_some_and(|pages| {
        pages
            .iter()
            .any(|page| page.page_type == PageType::DATA_PAGE && page.encoding == Encoding::PLAIN)
    });
    let dictionary = properties.dictionary_enabled(path) && (missed || packed - data > packed / 2);
    let zstd = properties.compression(path) != Compression::UNCOMPRESSED
        && packed > plain / 100 * INCOMPRESSIBLE_PERCENT;
    if !dictionary && !zstd {
        return None;
    }
    let mut next = properties.clone().into_builder();
    if dictionary {
        next = next.set_column_dictionary_enabled(path.clone(), false);
    } else if zstd {
        next = next.set_column_compression(path.clone(), Compression::UNCOMPRESSED);
    }
    Some(next.build())
}

/// A chunk of fewer bytes, before compression, shows nothing.
const JUDGED_BYTES: i64 = 16 << 10;
/// Of what was to be compressed.
const INCOMPRESSIBLE_PERCENT: i64 = 95;
/// What was given up is tried again after so many row groups: values change in the course of a table.
const TRY_AGAIN_GROUPS: usize = 16;

#[cfg(test)]
mod tests {
    use arrow_array::{Int64Array, ListArray, StringArray, types::Int32Type};
    use bytes::Bytes;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

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
        let mut writer = Writer::new(vec![], &whole.schema(), properties.clone()).unwrap();
        writer.end_group().unwrap();
        writer.add(&batch(0, 1000));
        writer.add(&batch(1000, 2000));
        assert!(writer.memory() > 3000 * 8);
        writer.end_group().unwrap();
        assert_eq!((writer.memory(), writer.groups()), (0, 1));
        let written = writer.encoded();
        writer.add(&batch(3000, 2000));
        assert!(writer.encoded() > written);
        let file = writer.into_inner().unwrap();
        assert_eq!(read(file), (vec![3000, 2000], whole.clone()));

        let mut library =
            ArrowWriter::try_new(vec![], whole.schema(), Some(properties.clone())).unwrap();
        library.write(&whole).unwrap();
        let mut writer = Writer::new(vec![], &whole.schema(), properties).unwrap();
        writer.add(&whole);
        let (ours, theirs) = (writer.into_inner().unwrap(), library.into_inner().unwrap());
        assert_eq!(ours, theirs, "byte by byte");
    }

    #[test]
    fn a_file_without_rows_has_its_schema() {
        let schema = batch(0, 1).schema();
        let writer = Writer::new(vec![], &schema, WriterProperties::default()).unwrap();
        let file = writer.into_inner().unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file)).unwrap();
        assert_eq!((reader.schema(), reader.metadata().num_row_groups()), (&schema, 0));
    }
}
