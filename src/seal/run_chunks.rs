//! Column chunks in which few values stand in many rows each, written as runs.
//!
//! Of every snapshot such are all columns that the lake adds, and of many tables a state, a filler, or what the table is ordered by. The
//! library's writer hashes and compares each row: of narrow rows that was a third of sealing.
//! The values themselves, their dictionary page and their statistics are the library's, from a chunk of one row of each; a
//! data page is a run of that many rows for each
//! (<https://parquet.apache.org/docs/file-format/data-pages/encodings/>, "Run Length Encoding").
//!
//! **Invariant:** what stands in such a chunk, and what its statistics and indexes say, is as if the library had
//! written the same rows, in pages that end with a run.

use std::{collections::HashMap, io::Write, iter, ops::Range, sync::Arc};

use arrow_array::{
    Array, ArrayRef, UInt32Array,
    cast::AsArray,
    types::{Float32Type, Float64Type},
};
use arrow_schema::{DataType, FieldRef};
use arrow_select::take::take;
use bytes::Bytes;
use parquet::{
    basic::{BoundaryOrder, Compression, Encoding, Type as PhysicalType},
    column::{
        page::{CompressedPage, Page, PageWriter},
        writer::ColumnCloseResult,
    },
    errors::{ParquetError, Result},
    file::{
        metadata::{ColumnIndexBuilder, LevelHistogram, OffsetIndexBuilder},
        properties::{EnabledStatistics, WriterPropertiesPtr},
        writer::{
            SerializedFileWriter, SerializedPageWriter, SerializedRowGroupWriter, TrackedWrite,
        },
    },
    schema::types::{ColumnDescriptor, ColumnPath, Type, TypePtr},
};

use super::{
    column::encode,
    pack::varint,
    pages::{told, with_nulls},
    pieces::Piece,
    runs::{Cells, Runs},
};

/// The chunks of a column, ready to be written: of a flat column one.
pub(super) struct RunChunks(Vec<(Bytes, ColumnCloseResult)>);

/// A data page of runs.
struct RunPage {
    /// Which runs.
    runs: Range<usize>,
    rows: usize,
}

impl RunChunks {
    /// The chunks of these rows; `None`: they hold too many values, or are few.
    ///
    /// # Errors
    ///
    /// The rows do not fit the schema.
    pub(super) fn new(
        field: &FieldRef,
        leaves: &TypePtr,
        properties: &WriterPropertiesPtr,
        pieces: &[Piece],
    ) -> Result<Option<Self>> {
        let path = ColumnPath::new(vec![field.name().clone()]);
        if properties.statistics_enabled(&path) == EnabledStatistics::None {
            return Ok(None);
        }
        let rows: usize = pieces.iter().map(Piece::rows).sum();
        if rows < ROWS_MIN {
            return Ok(None);
        }
        let Some(runs) = Runs::of(pieces)? else { return Ok(None) };
        let (values, _) = runs.values();
        if values.data_type().is_nested() || values.null_count() > 0 {
            return nothing(field, leaves, properties, values, rows).map(Some);
        }
        // Statistics count what is no number, one by one.
        if is_nan(values) {
            return Ok(None);
        }
        let chunk = flat(field, leaves, properties, &runs)?;
        Ok(chunk.map(|chunk| Self(vec![chunk])))
    }

    /// Writes them as the group's next chunks.
    ///
    /// # Errors
    ///
    /// They are of another column, or the file refuses them.
    pub(super) fn append_to<W: Write + Send>(
        self,
        group: &mut SerializedRowGroupWriter<'_, W>,
    ) -> Result<()> {
        self.0.into_iter().try_for_each(|(bytes, close)| group.append_column(&bytes, close))
    }
}

/// The chunk of a flat column; `None`: its values have no bounds, or are long.
fn flat(
    field: &FieldRef,
    leaves: &TypePtr,
    properties: &WriterPropertiesPtr,
    runs: &Runs,
) -> Result<Option<(Bytes, ColumnCloseResult)>> {
    let (values, rows) = runs.values();
    let Some(cells) = Cells::of(values) else { return Ok(None) };
    let path = ColumnPath::new(vec![field.name().clone()]);
    let (which, dictionary_bytes) = which(&cells, rows.len());
    if rows.len() > 1 && dictionary_bytes > DICTIONARY_BYTES_MAX {
        return Ok(None);
    }
    let pages = pages(rows, properties.column_data_page_row_count_limit(&path));
    let chunk = of_each(field, leaves, properties, (values, &cells), &pages)?;
    let Some((mut chunk, mut close)) = chunk else { return Ok(None) };
    let Some(bounds) = close.column_index.take() else { return Ok(None) };
    let is_bound = close.metadata.statistics().is_some_and(|found| found.min_bytes_opt().is_some());
    if !is_bound || bounds.num_pages() != pages.len() as u64 {
        return Ok(None);
    }
    let (descriptor, begin) = (close.metadata.column_descr_ptr(), chunk.len());
    let is_nullable = descriptor.max_def_level() > 0;
    let levels_of = |rows| is_nullable.then(|| LevelHistogram::from(vec![0, signed(rows)]));
    let has_lengths = close.metadata.unencoded_byte_array_data_bytes().is_some();
    let bits = which.iter().max().and_then(|most| most.checked_ilog2()).map_or(0, |top| top + 1);
    let mut index = ColumnIndexBuilder::new(descriptor.physical_type());
    let (mut offsets, mut bytes) = (OffsetIndexBuilder::new(), 0);
    for (at, of) in pages.iter().enumerate() {
        let levels = if is_nullable { levels(of.rows, 1) } else { vec![] };
        let mut body = [levels, vec![u8::try_from(bits).expect("a u32 has 32")]].concat();
        let mut page_bytes = 0;
        for at in of.runs.clone() {
            body.extend(run(rows[at]));
            body.extend_from_slice(&which[at].to_le_bytes()[..bits.div_ceil(8) as usize]);
            page_bytes += cells.row(at).len() * rows[at];
        }
        let page = page(of.rows, Encoding::RLE_DICTIONARY, body)?;
        let [least, most] = told(&bounds, at)?;
        index.append(false, least, most, 0, is_float(&descriptor).then_some(0));
        index.append_histograms(&None, &levels_of(of.rows));
        offsets.append_row_count(signed(of.rows));
        let length = i32::try_from(page.len()).map_err(|_| too_many(of.rows))?;
        offsets.append_offset_and_size(signed(chunk.len()), length);
        offsets.append_unencoded_byte_array_data_bytes(has_lengths.then(|| signed(page_bytes)));
        bytes += page_bytes;
        chunk.extend(page);
    }
    index.set_boundary_order(bounds.get_boundary_order().unwrap_or(BoundaryOrder::UNORDERED));
    let metadata = close
        .metadata
        .into_builder()
        .set_dictionary_page_offset(Some(0))
        .set_definition_level_histogram(levels_of(runs.rows()))
        .set_unencoded_byte_array_data_bytes(has_lengths.then(|| signed(bytes)));
    close.metadata = metadata.build()?;
    (close.column_index, close.offset_index) = (Some(index.build()?), Some(offsets.build()));
    let close = closed(close, begin, chunk.len(), runs.rows())?;
    Ok(Some((chunk.into(), close)))
}

/// Runs by pages, which end with a run: none that is not long has many more rows than `rows_max`.
fn pages(rows: &[usize], rows_max: usize) -> Vec<RunPage> {
    let mut pages: Vec<RunPage> = vec![];
    for (at, run_rows) in rows.iter().enumerate() {
        match pages.last_mut() {
            Some(page) if page.rows < rows_max && page.runs.len() < PAGE_RUNS_MAX => {
                page.runs.end = at + 1;
                page.rows += run_rows;
            }
            _ => pages.push(RunPage { runs: at..at + 1, rows: *run_rows }),
        }
    }
    pages
}

/// Of each run, which of the values it has, in the order in which they come; and bytes of the values.
fn which(cells: &Cells, runs: usize) -> (Vec<u32>, usize) {
    let mut known = HashMap::new();
    let which = (0..runs).map(|run| {
        let next = u32::try_from(known.len()).expect("not more than there are runs");
        *known.entry(cells.row(run)).or_insert(next)
    });
    let which = which.collect();
    (which, known.keys().map(|cell| cell.len()).sum())
}

/// The chunks of a column that is NULL in every row, or of a list or map that is empty, or NULL: one for each of its leaves.
fn nothing(
    field: &FieldRef,
    leaves: &TypePtr,
    properties: &WriterPropertiesPtr,
    value: &ArrayRef,
    rows: usize,
) -> Result<RunChunks> {
    let properties = properties.as_ref().clone().into_builder().set_dictionary_enabled(false);
    let properties = Arc::new(properties.build());
    let one = encode(field, leaves, &properties, vec![Piece::same(Arc::clone(value), 1)])?;
    let level = u8::from(field.is_nullable() && value.is_valid(0));
    let chunks = one.into_iter().map(|chunk| {
        let mut close = chunk.close().clone();
        let descriptor = close.metadata.column_descr_ptr();
        let repeated = (descriptor.max_rep_level() > 0).then(|| levels(rows, 0));
        let body = [repeated.unwrap_or_default(), levels(rows, level)].concat();
        let page = page(rows, Encoding::PLAIN, body)?;
        let histogram = |most: i16, level: u8| {
            let mut counts = vec![0; usize::try_from(most).unwrap_or(0) + 1];
            counts[usize::from(level)] = signed(rows);
            (most > 0).then(|| LevelHistogram::from(counts))
        };
        let (repeated, defined) = (
            histogram(descriptor.max_rep_level(), 0),
            histogram(descriptor.max_def_level(), level),
        );
        let mut index = ColumnIndexBuilder::new(descriptor.physical_type());
        index.append(true, vec![], vec![], signed(rows), is_float(&descriptor).then_some(0));
        index.set_boundary_order(BoundaryOrder::ASCENDING);
        index.append_histograms(&repeated, &defined);
        let statistics = close.metadata.statistics().cloned();
        let mut metadata = close
            .metadata
            .into_builder()
            .set_compression(Compression::UNCOMPRESSED)
            .set_dictionary_page_offset(None)
            .set_repetition_level_histogram(repeated)
            .set_definition_level_histogram(defined);
        if let Some(of_one) = statistics {
            metadata = metadata.set_statistics(with_nulls(of_one, rows as u64));
        }
        close.metadata = metadata.build()?;
        let mut offsets = OffsetIndexBuilder::new();
        offsets.append_row_count(signed(rows));
        let length = i32::try_from(page.len()).map_err(|_| too_many(rows))?;
        offsets.append_offset_and_size(0, length);
        let bytes = close.metadata.unencoded_byte_array_data_bytes();
        offsets.append_unencoded_byte_array_data_bytes(bytes);
        (close.column_index, close.offset_index) = (Some(index.build()?), Some(offsets.build()));
        let close = closed(close, 0, page.len(), rows)?;
        Ok((page.into(), close))
    });
    chunks.collect::<Result<_>>().map(RunChunks)
}

/// What is said of a chunk of so many bytes and rows, whose first data page is at `begin`.
fn closed(
    mut close: ColumnCloseResult,
    begin: usize,
    bytes: usize,
    rows: usize,
) -> Result<ColumnCloseResult> {
    close.metadata = close
        .metadata
        .into_builder()
        .set_num_values(signed(rows))
        .set_total_compressed_size(signed(bytes))
        .set_total_uncompressed_size(signed(bytes))
        .set_data_page_offset(signed(begin))
        .build()?;
    (close.rows_written, close.bytes_written) = (rows as u64, bytes as u64);
    Ok(close)
}

/// The dictionary page of a chunk that the library writes of a row of each run, without compression, and what it says
/// of that chunk, page by page; `None`: it has none.
fn of_each(
    field: &FieldRef,
    leaves: &TypePtr,
    properties: &WriterPropertiesPtr,
    (values, cells): (&ArrayRef, &Cells),
    pages: &[RunPage],
) -> Result<Option<(Vec<u8>, ColumnCloseResult)>> {
    // Its pages have as many rows each: the shortest value of ours again and again.
    let width = pages.iter().map(|page| page.runs.len()).max().unwrap_or(1);
    let filled = pages.iter().flat_map(|page| {
        let shortest = page.runs.clone().min_by_key(|run| cells.row(*run).len());
        let again = iter::repeat(shortest.unwrap_or(page.runs.start));
        page.runs.clone().chain(again).take(width)
    });
    let filled = filled.map(|run| u32::try_from(run).expect("Arrow's offsets are shorter"));
    let values = take(values, &UInt32Array::from_iter_values(filled), None)?;
    let path = ColumnPath::new(vec![field.name().clone()]);
    let properties = WriterPropertiesPtr::clone(properties).as_ref().clone().into_builder();
    let properties = properties
        .set_column_compression(path.clone(), Compression::UNCOMPRESSED)
        .set_column_dictionary_enabled(path.clone(), true)
        .set_column_dictionary_page_size_limit(path.clone(), usize::MAX)
        .set_column_data_page_size_limit(path.clone(), usize::MAX)
        .set_column_data_page_row_count_limit(path, width)
        .set_write_batch_size(width)
        .build();
    let properties = Arc::new(properties);
    let chunks = encode(field, leaves, &properties, vec![Piece::Array(values)])?;
    let Ok([chunk]) = <[_; 1]>::try_from(chunks) else { return Ok(None) };
    let close = chunk.close().clone();
    let root = Type::group_type_builder("schema").with_fields(vec![Arc::clone(leaves)]).build()?;
    let mut alone = SerializedFileWriter::new(vec![], Arc::new(root), properties)?;
    let mut group = alone.next_row_group()?;
    chunk.append_to_row_group(&mut group)?;
    let written = group.close()?;
    let file = alone.into_inner()?;
    let written = written.column(0);
    let bounds = written.dictionary_page_offset().map(|at| at..written.data_page_offset());
    let page = bounds.and_then(|bounds| {
        let (from, to) = (usize::try_from(bounds.start).ok()?, usize::try_from(bounds.end).ok()?);
        file.get(from..to)
    });
    Ok(page.map(|page| (page.to_vec(), close)))
}

/// A data page of version 1, with its header.
fn page(rows: usize, encoding: Encoding, body: Vec<u8>) -> Result<Vec<u8>> {
    let (body_bytes, mut sink) = (body.len(), TrackedWrite::new(vec![]));
    let num_values = u32::try_from(rows).map_err(|_| too_many(rows))?;
    let page = Page::DataPage {
        buf: body.into(),
        num_values,
        encoding,
        def_level_encoding: Encoding::RLE,
        rep_level_encoding: Encoding::RLE,
        statistics: None,
    };
    SerializedPageWriter::new(&mut sink).write_page(CompressedPage::new(page, body_bytes))?;
    sink.into_inner()
}

/// Levels of a page of version 1 that are one in every row.
pub(super) fn levels(rows: usize, level: u8) -> Vec<u8> {
    let run = run(rows);
    let length = u32::try_from(run.len() + 1).expect("a run's head is a few bytes");
    [&length.to_le_bytes()[..], &run, &[level]].concat()
}

/// The head of a run: what is repeated, if it takes any bits, follows.
fn run(rows: usize) -> Vec<u8> {
    let mut run = vec![];
    varint((rows as u64) << 1, &mut run);
    run
}

/// Whether it is no number, of an array of one.
fn is_nan(value: &ArrayRef) -> bool {
    match value.data_type() {
        DataType::Float32 => value.as_primitive::<Float32Type>().values()[0].is_nan(),
        DataType::Float64 => value.as_primitive::<Float64Type>().values()[0].is_nan(),
        _ => false,
    }
}

fn is_float(descriptor: &ColumnDescriptor) -> bool {
    matches!(descriptor.physical_type(), PhysicalType::FLOAT | PhysicalType::DOUBLE)
}

fn too_many(rows: usize) -> ParquetError {
    ParquetError::General(format!("{rows} rows are too many for a page"))
}

fn signed(number: usize) -> i64 {
    i64::try_from(number).expect("of what lies in memory")
}

/// Of fewer rows it costs more than it saves.
const ROWS_MIN: usize = 256;
/// Of a page, however few rows they are.
const PAGE_RUNS_MAX: usize = 128;
/// Values that take more are worth being compressed: they are left to who does it.
const DICTIONARY_BYTES_MAX: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use arrow_array::{
        BinaryArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float32Array,
        Float64Array, Int16Array, Int32Array, Int64Array, RecordBatch, StringArray,
        TimestampMicrosecondArray, new_null_array,
    };
    use parquet::{
        arrow::{
            ArrowWriter,
            arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
        },
        file::{
            metadata::{
                ColumnChunkMetaData, PageIndexPolicy, ParquetMetaData,
                page_index::RowGroupPageIndex,
            },
            page_index::column_index::ColumnIndexMetaData,
            properties::WriterProperties,
        },
    };

    use super::*;
    use crate::{
        seal::{
            Op,
            habits::{Habits, Terms},
            meta::{MetaArrays, RowMeta},
            writer::Writer,
        },
        units::{Position, Timestamp},
    };

    const ROWS: usize = 30_000;

    /// Columns of one value each, then two that are not; with and without NULLs allowed.
    fn columns(rows: usize) -> Vec<(&'static str, ArrayRef, bool)> {
        let uuids = iter::repeat_n([7; 16], rows);
        let decimal =
            Decimal128Array::from(vec![-5; rows]).with_precision_and_scale(38, 2).unwrap();
        let mut own = MetaArrays::new();
        let (op, position, committed_at) = (Op::Snapshot, Position(1), Timestamp(0));
        let meta = RowMeta { op, sequence: 0, position, committed_at, xid: None };
        own.append_alike(meta, rows);
        let [.., names, pairs, gone] = own.finish().map(|piece| piece.array().unwrap());
        (0..rows - 1).for_each(|_| own.append(meta, true));
        own.unchanged().push("last");
        own.append(meta, true);
        let [.., some, _, empty] = own.finish().map(|piece| piece.array().unwrap());
        let last = |row: usize| if row + 1 < rows { "same" } else { "samf" };
        vec![
            ("small", Arc::new(Int16Array::from(vec![-3; rows])), true),
            ("int", Arc::new(Int32Array::from(vec![5; rows])), true),
            ("long", Arc::new(Int64Array::from(vec![0; rows])), false),
            ("float", Arc::new(Float64Array::from(vec![2.5; rows])), true),
            ("nan", Arc::new(Float64Array::from(vec![f64::NAN; rows])), true),
            (
                "at",
                Arc::new(TimestampMicrosecondArray::from(vec![1 << 50; rows]).with_timezone("UTC")),
                false,
            ),
            ("decimal", Arc::new(decimal), true),
            ("uuid", Arc::new(FixedSizeBinaryArray::try_from_iter(uuids).unwrap()), true),
            ("blob", Arc::new(BinaryArray::from_iter_values(iter::repeat_n([255, 0], rows))), true),
            ("text", Arc::new(StringArray::from(vec!["0000000A/00000001"; rows])), false),
            ("empty", Arc::new(StringArray::from(vec![""; rows])), true),
            ("large", Arc::new(StringArray::from(vec!["é".repeat(70); rows])), true),
            ("day", Arc::new(Date32Array::from(vec![19_000; rows])), true),
            ("single", Arc::new(Float32Array::from(vec![-0.0; rows])), true),
            (
                "price",
                Arc::new(
                    Decimal128Array::from(vec![5; rows]).with_precision_and_scale(9, 2).unwrap(),
                ),
                true,
            ),
            (
                "sum",
                Arc::new(
                    Decimal128Array::from(vec![5; rows]).with_precision_and_scale(18, 2).unwrap(),
                ),
                true,
            ),
            (
                "most",
                Arc::new(BinaryArray::from_iter_values(iter::repeat_n([255; 90], rows))),
                true,
            ),
            ("names", names, false),
            ("pairs", pairs, false),
            ("gone", gone, true),
            ("no_pairs", empty, true),
            ("some", some, false),
            ("other", Arc::new(StringArray::from_iter_values((0..rows).map(last))), true),
            (
                "often",
                Arc::new(Int32Array::from_iter_values((0..).map(|row| row / 200).take(rows))),
                true,
            ),
        ]
    }

    /// Columns that are NULL everywhere, or hold some values in many rows each, again and again.
    fn more_columns(rows: usize) -> Vec<(&'static str, ArrayRef, bool)> {
        let bytes = || (0..rows).map(|row| u8::try_from(row / 500 * 7 % 23).unwrap());
        let (numbers, shorts) = (|| bytes().map(i64::from), || bytes().map(i32::from));
        let decimals = || Decimal128Array::from_iter_values(numbers().map(|n| i128::from(n) - 9));
        let uuids = numbers().map(|n| (i128::from(n) << 70).to_be_bytes());
        // Ten runs in a page, then one.
        let uneven = (0_i64..).take(rows).map(|row| match row / 5000 % 2 {
            0 => row / 500,
            _ => 1000 + row / 5000,
        });
        let of_type = |of: DataType| new_null_array(&of, rows);
        vec![
            ("uneven", Arc::new(Int64Array::from_iter_values(uneven)), true),
            ("numbers", Arc::new(Int64Array::from_iter_values(numbers())), true),
            ("never", Arc::new(Int64Array::from_iter_values(numbers())), false),
            ("shorts", Arc::new(Int32Array::from_iter_values(shorts())), true),
            (
                "smalls",
                Arc::new(Int16Array::from_iter_values(bytes().map(|n| -i16::from(n)))),
                true,
            ),
            ("days", Arc::new(Date32Array::from_iter_values(shorts())), true),
            (
                "moments",
                Arc::new(
                    TimestampMicrosecondArray::from_iter_values(numbers()).with_timezone("UTC"),
                ),
                true,
            ),
            ("nines", Arc::new(decimals().with_precision_and_scale(9, 2).unwrap()), true),
            ("longs", Arc::new(decimals().with_precision_and_scale(38, 2).unwrap()), true),
            ("uuids", Arc::new(FixedSizeBinaryArray::try_from_iter(uuids).unwrap()), true),
            (
                "texts",
                Arc::new(StringArray::from_iter_values(
                    bytes().map(|n| "x".repeat(7 * usize::from(n))),
                )),
                true,
            ),
            ("blobs", Arc::new(BinaryArray::from_iter_values(bytes().map(|n| vec![n; 90]))), true),
            ("null", of_type(DataType::Int32), true),
            ("null_bit", of_type(DataType::Boolean), true),
            ("null_long", of_type(DataType::Int64), true),
            ("null_float", of_type(DataType::Float64), true),
            ("null_text", of_type(DataType::Utf8), true),
            ("null_decimal", of_type(DataType::Decimal128(38, 2)), true),
            ("null_uuid", of_type(DataType::FixedSizeBinary(16)), true),
        ]
    }

    fn batch(rows: usize) -> RecordBatch {
        let columns = [columns(rows), more_columns(rows)].concat();
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    }

    fn pieces(arrays: &[ArrayRef]) -> Vec<Piece> {
        arrays.iter().cloned().map(Piece::Array).collect()
    }

    /// Of what is one value, one.
    fn halves(arrays: &[ArrayRef]) -> Vec<Piece> {
        let half = |array: &ArrayRef| {
            let piece = Piece::Array(Arc::clone(array));
            Runs::of(std::slice::from_ref(&piece)).unwrap().map_or(piece, Piece::Runs)
        };
        arrays.iter().map(half).collect()
    }

    fn read(file: Vec<u8>) -> (Arc<ParquetMetaData>, Vec<RecordBatch>) {
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
        let reader =
            ParquetRecordBatchReaderBuilder::try_new_with_options(Bytes::from(file), options);
        let reader = reader.unwrap();
        let metadata = Arc::clone(reader.metadata());
        (metadata, reader.with_batch_size(ROWS).build().unwrap().map(Result::unwrap).collect())
    }

    #[test]
    fn a_run_reads_as_the_rows_that_the_library_writes() {
        read_as_the_library_writes(ROWS);
    }

    #[test]
    fn runs_of_several_pages_read_as_the_rows_that_the_library_writes() {
        // Ten runs.
        read_as_the_library_writes(5000);
    }

    /// What a file says of a chunk.
    fn said(of: &ColumnChunkMetaData) -> String {
        let histogram = of.definition_level_histogram();
        let repeated = of.repetition_level_histogram();
        let bytes = of.unencoded_byte_array_data_bytes();
        let (values, statistics) = (of.num_values(), of.statistics());
        format!("{values} {statistics:?} {histogram:?} {repeated:?} {bytes:?}")
    }

    /// What a file says of the pages of a chunk: where they begin, what they take, and their bounds.
    fn pages_of(index: &RowGroupPageIndex, at: usize) -> (Vec<i64>, Option<Vec<i64>>, String) {
        let offsets = index.offset_index(at).unwrap();
        let rows = offsets.page_locations().iter().map(|page| page.first_row_index);
        let bytes = offsets.unencoded_byte_array_data_bytes().cloned();
        (rows.collect(), bytes, format!("{:?}", index.column_index(at)))
    }

    fn read_as_the_library_writes(page_rows: usize) {
        let whole = batch(ROWS);
        let zstd = Compression::ZSTD(parquet::basic::ZstdLevel::default());
        let properties = WriterProperties::builder()
            .set_compression(zstd)
            .set_data_page_row_count_limit(page_rows)
            .set_write_batch_size(500)
            .build();
        let mut writer = Writer::new(
            vec![],
            &whole.schema(),
            properties.clone(),
            Habits::default(),
            Terms::default(),
        )
        .unwrap();
        let mut library = ArrowWriter::try_new(vec![], whole.schema(), Some(properties)).unwrap();
        for _ in 0..2 {
            writer.add(pieces(whole.slice(0, 17).columns())).unwrap();
            writer.add(halves(whole.slice(17, ROWS - 17).columns())).unwrap();
            writer.end_group().unwrap();
            library.write(&whole).unwrap();
            library.flush().unwrap();
        }
        let (ours, found) = read(writer.into_inner().unwrap());
        let (theirs, expected) = read(library.into_inner().unwrap());
        assert_eq!(format!("{found:?}"), format!("{expected:?}"));
        let (mut runs, mut several) = (0, 0);
        for group in 0..2 {
            let indexes = [&ours, &theirs].map(|of| of.page_index_for_row_group(group));
            let chunks = [&ours, &theirs].map(|of| of.row_group(group).columns().iter());
            let [ours, theirs] = chunks;
            for (at, (ours, theirs)) in ours.zip(theirs).enumerate() {
                let name = ours.column_path().string();
                assert_eq!(said(ours), said(theirs), "{name}");
                let is_run = ours.compression() == Compression::UNCOMPRESSED;
                let [of_ours, of_theirs] = [0, 1].map(|of| pages_of(&indexes[of], at));
                // What is the same everywhere has one page; what is nearly so, or no runs, has pages that end elsewhere.
                let is_several = is_run && of_ours.0.len() > 1 && name != "other";
                if is_several || page_rows == ROWS {
                    assert_eq!(of_ours, of_theirs, "{name}");
                }
                several += usize::from(is_several);
                if is_run {
                    let encodings = |of: &ColumnChunkMetaData| {
                        of.encodings().map(|of| of.to_string()).collect::<BTreeSet<_>>()
                    };
                    if ours.dictionary_page_offset().is_some() {
                        assert_eq!(encodings(ours), encodings(theirs), "{name}");
                    }
                    assert_eq!(ours.byte_range().1, ours.compressed_size().cast_unsigned());
                }
                runs += usize::from(is_run);
                let column = name.split('.').next().unwrap();
                let others = ["nan", "often", "some"];
                assert_eq!(is_run, !others.contains(&column), "{name}");
            }
        }
        // A map has two leaves.
        let columns = columns(1).len() + more_columns(1).len();
        assert_eq!(runs, 2 * (columns - 3 + 3));
        // Of twelve columns.
        assert_eq!(several, if page_rows < ROWS { 24 } else { 0 });
    }

    #[test]
    fn of_more_than_256_values_an_index_takes_two_bytes() {
        let numbers = Int64Array::from_iter_values((0..300_000).map(|row| row / 257 * 3 % 2000));
        let texts = (0..300_000).map(|row| format!("day {}", row / 1000));
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
        // A value, and a run's head and index: of 1,168 and of 300 runs; and the heads of 16 pages.
        let most = [1168 * (8 + 4) + 500, 300 * (11 + 4) + 500];
        for (column, most) in [Arc::new(numbers) as ArrayRef, texts].into_iter().zip(most) {
            let (metadata, found) = chunk_of(&column, 8192);
            assert_eq!(&found, &column);
            let bytes = metadata.row_group(0).column(0).compressed_size();
            assert!(bytes < most, "{bytes}");
        }
    }

    /// What a writer makes of a column that comes in pieces of so many rows.
    fn chunk_of(column: &ArrayRef, rows: usize) -> (Arc<ParquetMetaData>, ArrayRef) {
        let whole = RecordBatch::try_from_iter([("column", Arc::clone(column))]).unwrap();
        let zstd = Compression::ZSTD(parquet::basic::ZstdLevel::default());
        let properties = WriterProperties::builder().set_compression(zstd).build();
        let (habits, terms) = (Habits::default(), Terms::default());
        let mut writer = Writer::new(vec![], &whole.schema(), properties, habits, terms).unwrap();
        for from in (0..whole.num_rows()).step_by(rows) {
            let part = whole.slice(from, rows.min(whole.num_rows() - from));
            writer.add(pieces(part.columns())).unwrap();
        }
        let (metadata, found) = read(writer.into_inner().unwrap());
        let found: Vec<_> = found.iter().map(|batch| &**batch.column(0)).collect();
        (metadata, arrow_select::concat::concat(&found).unwrap())
    }

    #[test]
    fn long_values_are_left_to_who_compresses_them() {
        let texts = (0..36_000).map(|row| format!("{:0>200}", row / 300));
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
        let (metadata, found) = chunk_of(&texts, 8192);
        assert_eq!(&found, &texts);
        let column = metadata.row_group(0).column(0);
        assert!(column.compression() != Compression::UNCOMPRESSED);
        assert!(column.compressed_size() < 8000, "{}", column.compressed_size());
    }

    #[test]
    fn a_page_ends_after_so_many_runs_and_tells_its_bounds() {
        // A long run, 200 of a row each, and a long one.
        let rows = (0..200_000_i64).map(|row| match row {
            100_000..100_200 => 500 - (row - 100_000),
            _ => 7,
        });
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(rows));
        let (metadata, found) = chunk_of(&numbers, 1 << 16);
        assert_eq!(&found, &numbers);
        let index = metadata.page_index_for_row_group(0);
        let (rows, _, _) = pages_of(&index, 0);
        assert_eq!(rows, [0, 100_000, 100_128]);
        let Some(ColumnIndexMetaData::INT64(bounds)) = index.column_index(0) else {
            panic!("it has none");
        };
        let bounds: Vec<_> = bounds
            .min_values_iter()
            .zip(bounds.max_values_iter())
            .map(|(a, b)| (*a.unwrap(), *b.unwrap()))
            .collect();
        assert_eq!(bounds, [(7, 7), (373, 500), (7, 372)]);
    }

    #[test]
    fn the_run_is_pinned() {
        assert_eq!(run(1), [2]);
        assert_eq!(run(300), [0xD8, 0x04]);
        assert_eq!(levels(300, 1), [3, 0, 0, 0, 0xD8, 0x04, 1]);
    }
}
