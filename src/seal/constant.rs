//! Column chunks in which one value stands in every row, written as one run.
//!
//! Of every snapshot such are all columns that the lake adds, and of many tables a state or a filler. The library's writer hashes and compares each row: of narrow rows that was a third of sealing.
//! The value itself, its dictionary page and its statistics are the library's, from a chunk of one row; the
//! data page is a run of that many rows
//! (<https://parquet.apache.org/docs/file-format/data-pages/encodings/>, "Run Length Encoding").
//!
//! **Invariant:** what stands in such a chunk, and what its statistics and indexes say, is as if the library had
//! written the same rows.

use std::{io::Write, sync::Arc};

use arrow_array::{
    Array, ArrayRef,
    cast::AsArray,
    types::{Float32Type, Float64Type},
};
use arrow_schema::{DataType, FieldRef};
use bytes::Bytes;
use parquet::{
    basic::{BoundaryOrder, Compression, Encoding, Type as PhysicalType},
    column::{
        page::{CompressedPage, Page, PageWriter},
        writer::ColumnCloseResult,
    },
    errors::Result,
    file::{
        metadata::{ColumnIndexBuilder, LevelHistogram, OffsetIndexBuilder},
        properties::{EnabledStatistics, WriterPropertiesPtr},
        statistics::Statistics,
        writer::{
            SerializedFileWriter, SerializedPageWriter, SerializedRowGroupWriter, TrackedWrite,
        },
    },
    schema::types::{ColumnPath, Type, TypePtr},
};

use super::{column::encode, pack::varint, pieces::Piece};

/// The chunks of a column, ready to be written: of a flat column one.
pub(super) struct Constant(Vec<(Bytes, ColumnCloseResult)>);

impl Constant {
    /// The chunks of these rows; `None`: they do not hold one value only, or are few.
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
        let Some(value) = value(pieces).filter(|_| rows >= ROWS_MIN) else { return Ok(None) };
        let Ok(rows) = u32::try_from(rows) else { return Ok(None) };
        if value.data_type().is_nested() {
            return nothing(field, leaves, properties, &value, rows).map(Some);
        }
        let chunk = flat(field, leaves, properties, &value, rows)?;
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

/// The chunk of a flat column; `None`: its value has no bounds.
fn flat(
    field: &FieldRef,
    leaves: &TypePtr,
    properties: &WriterPropertiesPtr,
    value: &ArrayRef,
    rows: u32,
) -> Result<Option<(Bytes, ColumnCloseResult)>> {
    let Some((dictionary, mut close)) = one_row(field, leaves, properties, value)? else {
        return Ok(None);
    };
    let descriptor = close.metadata.column_descr_ptr();
    let mut body = vec![];
    if descriptor.max_def_level() > 0 {
        body.extend(levels(rows, 1));
    }
    // The width of an index: there is one.
    body.push(0);
    body.extend(run(rows));
    let page = page(rows, Encoding::RLE_DICTIONARY, body)?;
    let statistics = close.metadata.statistics();
    let bounds =
        statistics.and_then(|found| Some((found.min_bytes_opt()?, found.max_bytes_opt()?)));
    let Some((least, most)) = bounds else { return Ok(None) };
    let rows = i64::from(rows);
    let levels = (descriptor.max_def_level() > 0).then(|| LevelHistogram::from(vec![0, rows]));
    let mut index = ColumnIndexBuilder::new(descriptor.physical_type());
    let is_float = matches!(descriptor.physical_type(), PhysicalType::FLOAT | PhysicalType::DOUBLE);
    index.append(false, least.to_vec(), most.to_vec(), 0, is_float.then_some(0));
    index.set_boundary_order(BoundaryOrder::ASCENDING);
    index.append_histograms(&None, &levels);
    let long = close.metadata.unencoded_byte_array_data_bytes().map(|bytes| bytes * rows);
    let metadata = close
        .metadata
        .into_builder()
        .set_dictionary_page_offset(Some(0))
        .set_definition_level_histogram(levels)
        .set_unencoded_byte_array_data_bytes(long);
    close.metadata = metadata.build()?;
    close.column_index = Some(index.build()?);
    let at = signed(dictionary.len());
    let close = closed(close, (at, signed(page.len())), rows)?;
    Ok(Some(([dictionary, page].concat().into(), close)))
}

/// The chunks of a list or map, one for each of its leaves, that is empty, or NULL, in every row.
fn nothing(
    field: &FieldRef,
    leaves: &TypePtr,
    properties: &WriterPropertiesPtr,
    value: &ArrayRef,
    rows: u32,
) -> Result<Constant> {
    let properties = properties.as_ref().clone().into_builder().set_dictionary_enabled(false);
    let properties = Arc::new(properties.build());
    let one = encode(field, leaves, &properties, vec![Piece::Same(Arc::clone(value), 1)])?;
    let level = u8::from(field.is_nullable() && value.is_valid(0));
    let chunks = one.into_iter().map(|chunk| {
        let mut close = chunk.close().clone();
        let descriptor = close.metadata.column_descr_ptr();
        let page = page(rows, Encoding::PLAIN, [levels(rows, 0), levels(rows, level)].concat())?;
        let rows = i64::from(rows);
        let histogram = |most: i16, level: u8| {
            let mut counts = vec![0; usize::try_from(most).unwrap_or(0) + 1];
            counts[usize::from(level)] = rows;
            Some(LevelHistogram::from(counts))
        };
        let (repeated, defined) = (
            histogram(descriptor.max_rep_level(), 0),
            histogram(descriptor.max_def_level(), level),
        );
        let mut index = ColumnIndexBuilder::new(descriptor.physical_type());
        index.append(true, vec![], vec![], rows, None);
        index.set_boundary_order(BoundaryOrder::ASCENDING);
        index.append_histograms(&repeated, &defined);
        let nulls = Some(rows.cast_unsigned());
        let metadata = close
            .metadata
            .into_builder()
            .set_compression(Compression::UNCOMPRESSED)
            .set_dictionary_page_offset(None)
            .set_statistics(Statistics::byte_array(None, None, None, nulls, false))
            .set_repetition_level_histogram(repeated)
            .set_definition_level_histogram(defined);
        close.metadata = metadata.build()?;
        close.column_index = Some(index.build()?);
        let close = closed(close, (0, signed(page.len())), rows)?;
        Ok((page.into(), close))
    });
    chunks.collect::<Result<_>>().map(Constant)
}

/// What is said of a chunk whose data page, of so many rows, is at `at` and has `length` bytes.
fn closed(
    mut close: ColumnCloseResult,
    (at, length): (i64, i64),
    rows: i64,
) -> Result<ColumnCloseResult> {
    let mut offsets = OffsetIndexBuilder::new();
    offsets.append_row_count(rows);
    offsets.append_offset_and_size(at, i32::try_from(length).unwrap_or(i32::MAX));
    offsets
        .append_unencoded_byte_array_data_bytes(close.metadata.unencoded_byte_array_data_bytes());
    close.offset_index = Some(offsets.build());
    close.metadata = close
        .metadata
        .into_builder()
        .set_num_values(rows)
        .set_total_compressed_size(at + length)
        .set_total_uncompressed_size(at + length)
        .set_data_page_offset(at)
        .build()?;
    (close.rows_written, close.bytes_written) =
        (rows.cast_unsigned(), (at + length).cast_unsigned());
    Ok(close)
}

/// The dictionary page of a chunk that the library writes of one row, without compression, and what it says
/// of that chunk; `None`: it has none.
fn one_row(
    field: &FieldRef,
    leaves: &TypePtr,
    properties: &WriterPropertiesPtr,
    value: &ArrayRef,
) -> Result<Option<(Vec<u8>, ColumnCloseResult)>> {
    let path = ColumnPath::new(vec![field.name().clone()]);
    let properties = WriterPropertiesPtr::clone(properties).as_ref().clone().into_builder();
    let properties = properties
        .set_column_compression(path.clone(), Compression::UNCOMPRESSED)
        .set_column_dictionary_enabled(path, true)
        .build();
    let properties = Arc::new(properties);
    let chunks = encode(field, leaves, &properties, vec![Piece::Same(Arc::clone(value), 1)])?;
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
fn page(rows: u32, encoding: Encoding, body: Vec<u8>) -> Result<Vec<u8>> {
    let (body_bytes, mut sink) = (body.len(), TrackedWrite::new(vec![]));
    let page = Page::DataPage {
        buf: body.into(),
        num_values: rows,
        encoding,
        def_level_encoding: Encoding::RLE,
        rep_level_encoding: Encoding::RLE,
        statistics: None,
    };
    SerializedPageWriter::new(&mut sink).write_page(CompressedPage::new(page, body_bytes))?;
    sink.into_inner()
}

/// Levels of a page of version 1 that are one in every row.
pub(super) fn levels(rows: u32, level: u8) -> Vec<u8> {
    let run = run(rows);
    let length = u32::try_from(run.len() + 1).expect("a run's head is a few bytes");
    [&length.to_le_bytes()[..], &run, &[level]].concat()
}

/// The head of a run: what is repeated, if it takes any bits, follows.
fn run(rows: u32) -> Vec<u8> {
    let mut run = vec![];
    varint(u64::from(rows) << 1, &mut run);
    run
}

/// The value that stands everywhere, as an array of one.
pub(super) fn value(pieces: &[Piece]) -> Option<ArrayRef> {
    let value = pieces.iter().find_map(|piece| match piece {
        Piece::Array(array) => (!array.is_empty()).then(|| array.slice(0, 1)),
        Piece::Same(value, rows) => (*rows > 0).then(|| Arc::clone(value)),
    })?;
    let data = value.to_data();
    let same = |piece: &Piece| match piece {
        Piece::Array(array) => {
            array.is_empty() || (is_alike(array) && array.slice(0, 1).to_data() == data)
        }
        Piece::Same(value, rows) => *rows == 0 || (is_alike(value) && value.to_data() == data),
    };
    let counts = !value.data_type().is_nested() && (value.null_count() > 0 || is_nan(&value));
    (!counts && pieces.iter().all(same)).then_some(value)
}

/// Whether it is no number: statistics count such, one by one.
fn is_nan(value: &ArrayRef) -> bool {
    match value.data_type() {
        DataType::Float32 => value.as_primitive::<Float32Type>().values()[0].is_nan(),
        DataType::Float64 => value.as_primitive::<Float64Type>().values()[0].is_nan(),
        _ => false,
    }
}

/// Whether all values are the same, and none NULL; of lists and maps, whether all are empty, or all NULL.
fn is_alike(array: &ArrayRef) -> bool {
    let bounds = match array.data_type() {
        DataType::List(_) => Some(array.as_list::<i32>().offsets()),
        DataType::Map(..) => Some(array.as_map().offsets()),
        _ => None,
    };
    if let Some(bounds) = bounds {
        let nulls = array.null_count();
        return bounds.first() == bounds.last() && (nulls == 0 || nulls == array.len());
    }
    if array.null_count() > 0 {
        return false;
    }
    match array.data_type() {
        DataType::Utf8 => {
            let array = array.as_string::<i32>();
            is_repeated_text(array.offsets(), array.value_data())
        }
        DataType::Binary => {
            let array = array.as_binary::<i32>();
            is_repeated_text(array.offsets(), array.value_data())
        }
        DataType::FixedSizeBinary(_) => is_repeated(array),
        flat if flat.primitive_width().is_some() => is_repeated(array),
        _ => false,
    }
}

fn is_repeated(array: &ArrayRef) -> bool {
    let data = array.to_data();
    let width = match array.data_type() {
        DataType::FixedSizeBinary(width) => usize::try_from(*width).ok(),
        flat => flat.primitive_width(),
    };
    let bytes = width.zip(data.buffers().first()).and_then(|(width, buffer)| {
        buffer.get(data.offset() * width..(data.offset() + data.len()) * width)
    });
    bytes.zip(width).is_some_and(|(bytes, width)| repeats(bytes, width))
}

fn is_repeated_text(offsets: &[i32], values: &[u8]) -> bool {
    let length = offsets[1] - offsets[0];
    let bounds =
        usize::try_from(offsets[0]).ok().zip(usize::try_from(offsets[offsets.len() - 1]).ok());
    offsets.windows(2).all(|ends| ends[1] - ends[0] == length)
        && bounds
            .zip(usize::try_from(length).ok())
            .is_some_and(|((from, to), length)| repeats(&values[from..to], length))
}

/// Whether each `width` bytes are those before them.
fn repeats(bytes: &[u8], width: usize) -> bool {
    bytes.len() <= width || bytes[width..] == bytes[..bytes.len() - width]
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).expect("a page of a few bytes and one value")
}

/// Of fewer rows it costs more than it saves.
const ROWS_MIN: usize = 256;

#[cfg(test)]
mod tests {
    use arrow_array::{
        BinaryArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float32Array,
        Float64Array, Int16Array, Int32Array, Int64Array, RecordBatch, StringArray,
        TimestampMicrosecondArray,
    };
    use parquet::{
        arrow::{
            ArrowWriter,
            arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
        },
        file::{
            metadata::{ColumnChunkMetaData, PageIndexPolicy, ParquetMetaData},
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
        let uuids = std::iter::repeat_n([7; 16], rows);
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
            (
                "blob",
                Arc::new(BinaryArray::from_iter_values(std::iter::repeat_n([255, 0], rows))),
                true,
            ),
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
                Arc::new(BinaryArray::from_iter_values(std::iter::repeat_n([255; 90], rows))),
                true,
            ),
            ("names", names, false),
            ("pairs", pairs, false),
            ("gone", gone, true),
            ("no_pairs", empty, true),
            ("some", some, false),
            ("none", Arc::new(Int32Array::from(vec![None; rows])), true),
            ("other", Arc::new(StringArray::from_iter_values((0..rows).map(last))), true),
        ]
    }

    fn batch(rows: usize) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns(rows)).unwrap()
    }

    fn pieces(arrays: &[ArrayRef]) -> Vec<Piece> {
        arrays.iter().cloned().map(Piece::Array).collect()
    }

    /// Of what is one value, one.
    fn halves(arrays: &[ArrayRef]) -> Vec<Piece> {
        let half = |array: &ArrayRef| match is_alike(array) {
            true => Piece::Same(array.slice(0, 1), array.len()),
            false => Piece::Array(Arc::clone(array)),
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
        let whole = batch(ROWS);
        let zstd = Compression::ZSTD(parquet::basic::ZstdLevel::default());
        let properties = WriterProperties::builder()
            .set_compression(zstd)
            .set_data_page_row_count_limit(ROWS)
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
        let mut runs = 0;
        for group in 0..2 {
            let indexes = [&ours, &theirs].map(|of| of.page_index_for_row_group(group));
            let chunks = [&ours, &theirs].map(|of| of.row_group(group).columns().iter());
            let [ours, theirs] = chunks;
            for (at, (ours, theirs)) in ours.zip(theirs).enumerate() {
                let name = ours.column_path().string();
                let said = |of: &ColumnChunkMetaData| {
                    let histogram = of.definition_level_histogram();
                    let repeated = of.repetition_level_histogram();
                    let bytes = of.unencoded_byte_array_data_bytes();
                    let (values, statistics) = (of.num_values(), of.statistics());
                    format!("{values} {statistics:?} {histogram:?} {repeated:?} {bytes:?}")
                };
                assert_eq!(said(ours), said(theirs), "{name}");
                let index = |index: usize| format!("{:?}", indexes[index].column_index(at));
                assert_eq!(index(0), index(1), "{name}");
                let is_run = ours.compression() == Compression::UNCOMPRESSED;
                runs += usize::from(is_run);
                let column = name.split('.').next().unwrap();
                let others = ["nan", "none", "other", "some"];
                assert_eq!(is_run, !others.contains(&column), "{name}");
            }
        }
        // A map has two leaves.
        assert_eq!(runs, 2 * (columns(1).len() - 4 + 3));
    }

    #[test]
    fn few_rows_and_other_values_are_no_run() {
        let value = |arrays: &[ArrayRef]| value(&pieces(arrays));
        let number = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
        assert!(value(&[]).is_none());
        assert!(value(&[number(vec![])]).is_none());
        assert!(value(&[number(vec![1, 1]), number(vec![1, 2])]).is_none());
        assert!(value(&[number(vec![1, 1]), number(vec![2, 2])]).is_none());
        assert!(value(&[number(vec![1, 1]), number(vec![]), number(vec![1])]).is_some());
        // Sliced: what lies before and behind does not count.
        assert!(value(&[number(vec![3, 1, 1, 4]).slice(1, 2)]).is_some());
        let text = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
        assert!(value(&[text(vec!["x", "ab", "ab", "y"]).slice(1, 2)]).is_some());
        assert!(value(&[text(vec!["a", "aa"])]).is_none());
        assert!(value(&[text(vec!["ab", "ba"])]).is_none());
    }

    #[test]
    fn the_run_is_pinned() {
        assert_eq!(run(1), [2]);
        assert_eq!(run(300), [0xD8, 0x04]);
        assert_eq!(levels(300, 1), [3, 0, 0, 0, 0xD8, 0x04, 1]);
    }
}
