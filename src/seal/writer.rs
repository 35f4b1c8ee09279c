//! Writes record batches as the row groups of a Parquet file, one column after the other.
//!
//! Within a row group each column is a [`Column`] of its own. What its chunk showed decides how its next one is encoded
//! ([`Habits`]). When the row group ends its chunks are written in the order of the schema.

use std::{io::Write, mem, sync::Arc};

use arrow_schema::SchemaRef;
use parquet::{
    arrow::ArrowWriter,
    basic::Compression,
    errors::Result,
    file::{
        properties::{WriterProperties, WriterPropertiesPtr, WriterVersion},
        writer::SerializedFileWriter,
    },
    schema::types::ColumnPath,
};

use super::{
    column::{Column, Of, early_bytes},
    habits::{Habit, Habits, Terms},
    pieces::Piece,
};

/// The writer of one file.
pub(super) struct Writer<W: Write + Send> {
    file: SerializedFileWriter<W>,
    schema: SchemaRef,
    /// Of the open row group.
    columns: Vec<Column>,
    rows: usize,
    /// Bytes that these rows took in memory as they came.
    came_bytes: usize,
    /// Bytes that they take now.
    kept_bytes: usize,
    habits: Habits,
    /// Of the file's properties what concerns its columns.
    properties: WriterPropertiesPtr,
    /// Whether pages are compressed here, and not by the library.
    packs: bool,
    terms: Terms,
    /// Of all row groups that were written, as they came.
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
        Ok(Self {
            file,
            schema: Arc::clone(schema),
            columns: std::iter::repeat_with(Column::default).take(width).collect(),
            rows: 0,
            came_bytes: 0,
            kept_bytes: 0,
            habits,
            properties: Arc::new(columns),
            packs,
            terms,
            taken_bytes: 0,
        })
    }

    /// Adds rows to the open row group: a piece of each column.
    ///
    /// # Errors
    ///
    /// They do not fit the schema.
    pub(super) fn add(&mut self, pieces: Vec<Piece>) -> Result<()> {
        if self.rows == 0 {
            self.habits.next();
        }
        self.rows += pieces.first().map_or(0, Piece::rows);
        let root = self.file.schema_descr().root_schema_ptr();
        let early_bytes = early_bytes(self.columns.len());
        let fields = self.schema.fields().iter().zip(root.get_fields());
        let columns = self.columns.iter_mut().zip(&self.habits.columns);
        self.kept_bytes = 0;
        for (((field, leaves), (column, habit)), piece) in fields.zip(columns).zip(pieces) {
            let (properties, terms, packs) = (&self.properties, &self.terms, self.packs);
            self.came_bytes += piece.memory();
            column.add(
                &Of { field, leaves, properties, terms, packs, early_bytes },
                *habit,
                piece,
            )?;
            self.kept_bytes += column.memory();
        }
        Ok(())
    }

    /// Writes the open row group, if there is one.
    ///
    /// # Errors
    ///
    /// The rows do not fit the schema, or the file refuses them.
    pub(super) fn end_group(&mut self) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let root = self.file.schema_descr().root_schema_ptr();
        let mut group = self.file.next_row_group()?;
        let early_bytes = early_bytes(self.columns.len());
        let fields = self.schema.fields().iter().zip(root.get_fields());
        let columns = self.columns.iter_mut().zip(&mut self.habits.columns);
        for ((field, leaves), (column, habit)) in fields.zip(columns) {
            let (properties, terms, packs) = (&self.properties, &self.terms, self.packs);
            column.end(
                &Of { field, leaves, properties, terms, packs, early_bytes },
                habit,
                &mut group,
            )?;
        }
        group.close()?;
        self.taken_bytes += mem::take(&mut self.came_bytes);
        (self.rows, self.kept_bytes) = (0, 0);
        Ok(())
    }

    /// Whether the open row group should end: by what came, by its rows, or by what one of its columns is with a value for
    /// each row.
    pub(super) fn is_full(&self) -> bool {
        self.came_bytes > ROW_GROUP_BYTES_MAX
            || self.rows >= ROW_GROUP_ROWS_MAX
            || self.columns.iter().any(|column| column.expanded() > COLUMN_BYTES_MAX)
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
            0 => self.came_bytes / 2,
            taken => self.came_bytes.saturating_mul(written) / taken,
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

/// A row group ends when its rows, before they are encoded, have taken this much memory.
const ROW_GROUP_BYTES_MAX: usize = 16 << 20;
/// As above, by their number: of a table whose columns hold one value each they hold next to nothing.
const ROW_GROUP_ROWS_MAX: usize = 1 << 20;
/// As above, of one column with a value for each row.
const COLUMN_BYTES_MAX: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use arrow_array::{
        ArrayRef, BinaryArray, Int64Array, ListArray, RecordBatch, StringArray, types::Int32Type,
    };
    use bytes::Bytes;
    use parquet::{
        arrow::arrow_reader::ParquetRecordBatchReaderBuilder, basic::ZstdLevel,
        file::metadata::ColumnChunkMetaData,
    };

    use super::*;
    use crate::seal::habits::TRY_AGAIN_GROUPS;

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
        writer.add(pieces(&batch(0, 1000))).unwrap();
        writer.add(pieces(&batch(1000, 2000))).unwrap();
        assert!(writer.memory() > 3000 * 8);
        writer.end_group().unwrap();
        assert_eq!((writer.memory(), writer.groups()), (0, 1));
        let written = writer.encoded();
        writer.add(pieces(&batch(3000, 2000))).unwrap();
        assert!(writer.encoded() > written);
        let file = writer.into_inner().unwrap();
        assert_eq!(read(file), (vec![3000, 2000], whole.clone()));

        let mut library =
            ArrowWriter::try_new(vec![], whole.schema(), Some(properties.clone())).unwrap();
        library.write(&whole).unwrap();
        let mut writer =
            Writer::new(vec![], &whole.schema(), properties, Habits::default(), Terms::default())
                .unwrap();
        writer.add(pieces(&whole)).unwrap();
        let (ours, theirs) = (writer.into_inner().unwrap(), library.into_inner().unwrap());
        assert_eq!(ours, theirs, "byte by byte");
    }

    /// Columns whose values are few, each another, noise, few at first, and in turn.
    fn of_each_habit() -> RecordBatch {
        let mut dice = fastrand::Rng::with_seed(1);
        let mut noise = || (0..40).map(|_| dice.u8(..)).collect::<Vec<_>>();
        let rows = 30_000;
        let few = (0..rows).map(|n| format!("state {}", n % 7));
        let each = (0..rows).map(|n| n * 2_654_435_761 % 1_000_000_007);
        // They fit, and are most of what is written.
        let late =
            (0..rows).map(|n| if n < 20_000 { n % 7 } else { n * 2_654_435_761 % 1_000_007 });
        // What comes in turn looks like what never comes again.
        let turn = (0..rows).map(|n| format!("sensor of the line {:05}", n % 3000));
        RecordBatch::try_from_iter([
            ("few", Arc::new(StringArray::from_iter_values(few)) as ArrayRef),
            ("each", Arc::new(Int64Array::from_iter_values(each))),
            ("noise", Arc::new(BinaryArray::from_iter_values((0..rows).map(|_| noise())))),
            ("late", Arc::new(Int64Array::from_iter_values(late))),
            ("turn", Arc::new(StringArray::from_iter_values(turn))),
        ])
        .unwrap()
    }

    /// Of each column in each row group, whether it has a dictionary and whether it is compressed.
    fn shapes(file: &[u8]) -> Vec<Vec<(bool, bool)>> {
        let reader =
            ParquetRecordBatchReaderBuilder::try_new(Bytes::copy_from_slice(file)).unwrap();
        let shape = |of: &ColumnChunkMetaData| {
            (of.dictionary_page_offset().is_some(), of.compression() != Compression::UNCOMPRESSED)
        };
        let groups = reader.metadata().row_groups().iter();
        groups.map(|group| group.columns().iter().map(shape).collect()).collect()
    }

    #[test]
    fn a_column_is_encoded_as_its_last_chunk_advises() {
        let group = of_each_habit();
        let properties = || {
            WriterProperties::builder()
                .set_compression(Compression::ZSTD(ZstdLevel::default()))
                .set_dictionary_page_size_limit(128 << 10)
                .build()
        };
        let mut writer =
            Writer::new(vec![], &group.schema(), properties(), Habits::default(), Terms::default())
                .unwrap();
        for _ in 0..3 {
            writer.add(pieces(&group)).unwrap();
            writer.end_group().unwrap();
        }
        let habits = writer.habits().clone();
        let first_file = shapes(&writer.into_inner().unwrap());
        let (first, plain, raw) = ((true, true), (false, true), (false, false));
        // What has many values shows it in its first rows, and what does not shrink in its first page.
        assert_eq!(first_file[0], [first, plain, raw, first, first]);
        assert_eq!(first_file[1], [first, plain, raw, plain, first]);
        assert_eq!(first_file[2], [first, plain, raw, plain, first]);
        // The next file of the table begins with what this one has shown, and tries again at last.
        let mut writer =
            Writer::new(vec![], &group.schema(), properties(), habits, Terms::default()).unwrap();
        for _ in 0..TRY_AGAIN_GROUPS {
            writer.add(pieces(&group)).unwrap();
            writer.end_group().unwrap();
        }
        let file = writer.into_inner().unwrap();
        let again = shapes(&file);
        assert_eq!((&again[0], &again[11]), (&first_file[2], &first_file[2]));
        assert_eq!((&again[12], &again[13]), (&first_file[0], &first_file[2]));
        let read = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file)).unwrap();
        let read = read.with_batch_size(group.num_rows()).build().unwrap().map(Result::unwrap);
        assert!(read.map(|batch| batch.columns().to_vec()).all(|found| found == group.columns()));
    }

    /// Rows of about 120 bytes, of which some columns hold one value at first.
    fn orders(from: i64, rows: i64) -> RecordBatch {
        let range = from..from + rows;
        let notes =
            range.clone().map(|n| format!("order {n} left at {:05} as it always does", n % 977));
        let late = range.clone().map(|n| if n < 40_960 { "none" } else { "some" });
        let lists = range.clone().map(|n| (n >= 70_000).then_some(Some([Some(1), None])));
        let lists =
            lists.map(|list| Some(list.flatten().into_iter().flatten().collect::<Vec<_>>()));
        RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(Int64Array::from_iter_values(range.clone())) as ArrayRef, false),
            ("note", Arc::new(StringArray::from_iter_values(notes)), true),
            ("one", Arc::new(Int64Array::from_iter_values(range.map(|_| 7))), true),
            ("late", Arc::new(StringArray::from_iter_values(late)), true),
            ("list", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists)), true),
        ])
        .unwrap()
    }

    #[test]
    fn what_is_encoded_as_it_comes_says_what_it_says_had_it_come_at_once_and_takes_little() {
        let rows = 81_920;
        let whole = orders(0, rows);
        let writer = || {
            let zstd = Compression::ZSTD(ZstdLevel::default());
            let properties = WriterProperties::builder().set_compression(zstd);
            let properties = properties.set_dictionary_page_size_limit(128 << 10);
            let (habits, terms) = (Habits::default(), Terms::default());
            Writer::new(vec![], &whole.schema(), properties.build(), habits, terms).unwrap()
        };
        let (mut once, mut often) = (writer(), writer());
        once.add(pieces(&whole)).unwrap();
        let mut most = 0;
        for from in (0..rows).step_by(2048) {
            often.add(pieces(&orders(from, 2048))).unwrap();
            most = most.max(often.memory());
        }
        let came: usize = pieces(&whole).iter().map(Piece::memory).sum();
        assert!(most < came / 3, "{most} of {came}");
        let (once, often) = (once.into_inner().unwrap(), often.into_inner().unwrap());
        // The same but for their pages, which are cut at other rows.
        let said = |file: &[u8]| {
            let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::copy_from_slice(file));
            let metadata = Arc::clone(reader.unwrap().metadata());
            let columns = metadata.row_group(0).columns().iter();
            let said = columns.map(|of| {
                (of.dictionary_page_offset().is_some(), of.num_values(), of.statistics().cloned())
            });
            said.collect::<Vec<_>>()
        };
        assert_eq!(said(&once), said(&often));
        assert_eq!(read(once), (vec![81_920], whole.clone()));
        assert_eq!(read(often), (vec![81_920], whole));
    }

    #[test]
    fn of_what_is_one_value_everywhere_one_is_held() {
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["the same text again"; 20_000]));
        let whole = RecordBatch::try_from_iter([("text", texts)]).unwrap();
        let zstd = Compression::ZSTD(ZstdLevel::default());
        let properties = WriterProperties::builder().set_compression(zstd).build();
        let (habits, terms) = (Habits::default(), Terms::default());
        let mut writer = Writer::new(vec![], &whole.schema(), properties, habits, terms).unwrap();
        for rows in 1..4 {
            writer.add(pieces(&whole)).unwrap();
            assert!(writer.memory() < 1 << 10, "{} after {rows}", writer.memory());
        }
        let reader = Bytes::from(writer.into_inner().unwrap());
        let reader = ParquetRecordBatchReaderBuilder::try_new(reader).unwrap();
        let found = reader.with_batch_size(20_000).build().unwrap().map(Result::unwrap);
        assert!(found.collect::<Vec<_>>() == vec![whole; 3]);
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
