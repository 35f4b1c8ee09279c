//! The pages of a column that has no dictionary, of texts, bytes, integers, moments, decimals of up to 18 digits, or uuids.
//!
//! Most bytes of most tables are such. The library's encoder grows a buffer for each page, and copies it once more,
//! behind its levels; decimals it copies to others before, and of each uuid it makes a value by itself. Here a value is copied
//! once, to where it is compressed, and the room stays for the next page. A page is
//! of version 1: levels as runs or in bits, with their length in front, and the values, those of texts and bytes each with its
//! length (<https://parquet.apache.org/docs/file-format/data-pages/encodings/>, "Plain" and "Run Length Encoding").
//! What is said of them is the library's, from a chunk of the least and the most value of each page.
//!
//! **Invariant:** what stands in such a chunk, and what its statistics and indexes say, is as if the library had written
//! the same rows, in pages that may end elsewhere. (Whether the bounds of pages of texts or bytes ascend is judged by their first
//! [`BOUND_BYTES_MAX`](page::BOUND_BYTES_MAX) bytes, more than the index has of them.)

use arrow_array::{Array, ArrayRef};
use parquet::{
    basic::{BoundaryOrder, Encoding, PageType},
    column::{
        page::{CompressedPage, Page as LibraryPage, PageWriter},
        writer::ColumnCloseResult,
    },
    errors::{ParquetError, Result},
    file::{
        metadata::{ColumnIndexBuilder, LevelHistogram, OffsetIndexBuilder, PageEncodingStats},
        page_index::column_index::ColumnIndexMetaData,
        properties::{EnabledStatistics, WriterProperties},
        writer::{SerializedPageWriter, TrackedWrite},
    },
    schema::types::ColumnPath,
};

pub(super) use self::bounds::{told, with_nulls};
use self::page::{Kind, LENGTH_BYTES, Page};
use super::{
    column::{Of, encode},
    pack::Packer,
    pieces::Piece,
    rising::Numbers,
};
use crate::config::Integers;

mod bounds;
mod page;

/// What takes the rows of a column.
pub(super) struct Pages {
    packer: Packer,
    page: Page,
    /// Whether numbers that rise are compressed as such.
    rises: bool,
    done: Vec<Done>,
    /// Of the bounds in `done`.
    bounds_bytes: usize,
}

/// What is known of a page that was written.
struct Done {
    rows: usize,
    nulls: usize,
    /// Of the values, without their lengths.
    value_bytes: usize,
    /// With its header, before it was compressed.
    plain_bytes: usize,
    /// Least and most, or as much of them as matters, until the library has them; `None`: all its rows are NULL.
    bounds: Option<[Vec<u8>; 2]>,
}

impl Pages {
    /// For the next chunk of a column, of so many bytes as far as is known; `None`: it is not of this kind.
    pub(super) fn new(
        of: &Of<'_>,
        properties: &WriterProperties,
        packer: &Packer,
        bytes: usize,
    ) -> Option<Self> {
        let kind = Kind::of(of.field.data_type())?;
        let path = ColumnPath::new(vec![of.field.name().clone()]);
        let is_plain = properties.encoding(&path).is_none_or(|of| of == Encoding::PLAIN);
        let is_told = properties.statistics_enabled(&path) == EnabledStatistics::Page;
        let is_more = properties.dictionary_enabled(&path)
            || properties.bloom_filter_properties(&path).is_some()
            || properties.offset_index_disabled();
        if is_more || !is_plain || !is_told {
            return None;
        }
        let rows_max = properties.column_data_page_row_count_limit(&path);
        let bytes_max = properties.column_data_page_size_limit(&path);
        let page = Page::new(kind, of.field.is_nullable(), [rows_max, bytes_max], bytes);
        let (packer, rises) = (packer.clone(), of.terms.integers == Integers::Rising);
        Some(Self { packer, page, rises, done: vec![], bounds_bytes: 0 })
    }

    /// Adds rows.
    ///
    /// # Errors
    ///
    /// A page could not be written.
    pub(super) fn add(&mut self, array: &ArrayRef) -> Result<()> {
        let mut from = 0;
        while from < array.len() {
            from = self.page.take(array, from)?;
            if self.page.is_full() {
                self.end_page()?;
            }
        }
        Ok(())
    }

    /// Bytes that it takes in memory, but for the pages that were compressed.
    pub(super) fn memory(&self) -> usize {
        self.page.memory() + self.bounds_bytes
    }

    fn end_page(&mut self) -> Result<()> {
        let Self { page, packer, rises, done, bounds_bytes } = self;
        let (rows, values) = (page.rows(), page.values());
        let bounds = page.bounds();
        let lengths = if page.kind().has_lengths() { values * LENGTH_BYTES } else { 0 };
        let (bytes, width) = (page.value_bytes(), page.kind().width().filter(|_| *rises));
        let body = page.body()?;
        let header = header(rows, body.len())?;
        let from = body.len() - bytes;
        let numbers = width.map(|width| Numbers { from, width });
        let header_bytes = packer.page(0, &header, body, numbers)?;
        *bounds_bytes += bounds.iter().flatten().map(Vec::len).sum::<usize>();
        done.push(Done {
            rows,
            nulls: rows - values,
            value_bytes: bytes - lengths,
            plain_bytes: header_bytes + body.len(),
            bounds,
        });
        page.begin();
        Ok(())
    }

    /// Ends the chunk: what is to be said of it, but for where its pages lie.
    ///
    /// # Errors
    ///
    /// A page could not be written, or the library does not know the column.
    pub(super) fn end(
        mut self,
        of: &Of<'_>,
        properties: &WriterProperties,
    ) -> Result<ColumnCloseResult> {
        if self.page.rows() > 0 {
            self.end_page()?;
        }
        let mut close = self.bounds(of, properties)?;
        let total = |of: fn(&Done) -> usize| signed(self.done.iter().map(of).sum());
        let (rows, nulls) = (total(|page| page.rows)?, total(|page| page.nulls)?);
        let (value_bytes, plain_bytes) =
            (total(|page| page.value_bytes)?, total(|page| page.plain_bytes)?);
        let is_nullable = close.metadata.column_descr().max_def_level() > 0;
        let levels =
            |rows, nulls| is_nullable.then(|| LevelHistogram::from(vec![nulls, rows - nulls]));
        let has_lengths = self.page.kind().has_lengths();
        let Some(bounds) = &close.column_index else {
            return Err(unlike("what is said of its pages"));
        };
        let mut index = ColumnIndexBuilder::new(close.metadata.column_type());
        let mut offsets = OffsetIndexBuilder::new();
        if bounds.num_pages() != self.done.len() as u64 {
            return Err(unlike("the number of its pages"));
        }
        for (at, page) in self.done.iter().enumerate() {
            let (rows, nulls) = (signed(page.rows)?, signed(page.nulls)?);
            let [least, most] = told(bounds, at)?;
            index.append(page.nulls == page.rows, least, most, nulls, None);
            index.append_histograms(&None, &levels(rows, nulls));
            offsets.append_row_count(rows);
            offsets.append_offset_and_size(0, 0);
            let bytes = has_lengths.then(|| signed(page.value_bytes)).transpose()?;
            offsets.append_unencoded_byte_array_data_bytes(bytes);
        }
        let order = close.column_index.as_ref().and_then(ColumnIndexMetaData::get_boundary_order);
        index.set_boundary_order(order.unwrap_or(BoundaryOrder::UNORDERED));
        close.column_index = Some(index.build()?);
        close.offset_index = Some(offsets.build());
        let statistics = close.metadata.statistics().cloned();
        let pages = PageEncodingStats {
            page_type: PageType::DATA_PAGE,
            encoding: Encoding::PLAIN,
            count: i32::try_from(self.done.len()).unwrap_or(i32::MAX),
        };
        let metadata = close
            .metadata
            .into_builder()
            .set_num_values(rows)
            .set_total_uncompressed_size(plain_bytes)
            .set_page_encoding_stats(vec![pages])
            .set_unencoded_byte_array_data_bytes(has_lengths.then_some(value_bytes))
            .set_definition_level_histogram(levels(rows, nulls));
        let metadata = match statistics {
            Some(of) => metadata.set_statistics(with_nulls(of, nulls.cast_unsigned())),
            None => metadata,
        };
        close.metadata = metadata.build()?;
        close.rows_written = rows.cast_unsigned();
        Ok(close)
    }

    /// What the library says of a chunk whose pages have two rows each: the least and the most value of each of ours.
    fn bounds(&mut self, of: &Of<'_>, properties: &WriterProperties) -> Result<ColumnCloseResult> {
        let bounds = self.done.iter_mut().flat_map(|page| match page.bounds.take() {
            Some(bounds) => bounds.map(Some),
            None => [None, None],
        });
        let array = bounds::array(of.field.data_type(), bounds.collect())?;
        let properties = properties
            .clone()
            .into_builder()
            .set_data_page_row_count_limit(2)
            .set_write_batch_size(2)
            .set_data_page_size_limit(usize::MAX)
            .build();
        let chunks = encode(of.field, of.leaves, &properties.into(), vec![Piece::Array(array)])?;
        match <[_; 1]>::try_from(chunks) {
            Ok([chunk]) => Ok(chunk.close().clone()),
            Err(_) => Err(unlike("the number of its leaves")),
        }
    }
}

/// The header of a page with so many rows, and a body of so many bytes; as if its compressed body had none.
fn header(rows: usize, body_bytes: usize) -> Result<Vec<u8>> {
    let mut sink = TrackedWrite::new(vec![]);
    let page = LibraryPage::DataPage {
        buf: vec![].into(),
        num_values: u32::try_from(rows).map_err(|_| unlike("its rows"))?,
        encoding: Encoding::PLAIN,
        def_level_encoding: Encoding::RLE,
        rep_level_encoding: Encoding::RLE,
        statistics: None,
    };
    SerializedPageWriter::new(&mut sink).write_page(CompressedPage::new(page, body_bytes))?;
    sink.into_inner()
}

fn unlike(what: &str) -> ParquetError {
    ParquetError::General(format!("{what} is not what the library says of such a column"))
}

fn signed(number: usize) -> Result<i64> {
    i64::try_from(number).map_err(|_| unlike("a number"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{
        BinaryArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Int32Array, Int64Array,
        RecordBatch, StringArray, TimestampMicrosecondArray,
    };
    use arrow_schema::DataType;
    use bytes::Bytes;
    use parquet::{
        arrow::{
            ArrowWriter,
            arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
        },
        basic::{Compression, ZstdLevel},
        file::{
            metadata::{PageIndexPolicy, ParquetMetaData},
            properties::WriterPropertiesBuilder,
        },
    };

    use super::*;
    use crate::seal::{
        habits::{Habits, Terms},
        writer::Writer,
    };

    fn terms() -> WriterPropertiesBuilder {
        let zstd = Compression::ZSTD(ZstdLevel::default());
        WriterProperties::builder().set_compression(zstd).set_dictionary_enabled(false)
    }

    fn written(batches: &[RecordBatch], properties: &WriterProperties) -> Vec<u8> {
        let (habits, terms) = (Habits::default(), Terms::default());
        let schema = batches[0].schema();
        let mut writer = Writer::new(vec![], &schema, properties.clone(), habits, terms).unwrap();
        for batch in batches {
            // As parts of others, too, whose values do not begin at the beginning.
            let half = batch.num_rows() / 2;
            for part in [batch.slice(0, half), batch.slice(half, batch.num_rows() - half)] {
                let pieces = part.columns().iter().map(|array| Piece::Array(Arc::clone(array)));
                writer.add(pieces.collect()).unwrap();
            }
        }
        writer.into_inner().unwrap()
    }

    fn read(file: Vec<u8>) -> (Arc<ParquetMetaData>, Vec<RecordBatch>) {
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
        let reader =
            ParquetRecordBatchReaderBuilder::try_new_with_options(Bytes::from(file), options);
        let reader = reader.unwrap();
        let metadata = Arc::clone(reader.metadata());
        (metadata, reader.build().unwrap().map(Result::unwrap).collect())
    }

    /// Texts that are ordered, or not, long, alike in their beginnings, or beyond which there is none of their length.
    fn text(dice: &mut fastrand::Rng, kind: u8, row: usize) -> String {
        // With what bytes have behind them no longer than bounds are compared.
        let some = |dice: &mut fastrand::Rng, of: &str| of.repeat(dice.usize(..160 / of.len()));
        match kind {
            0 => format!("{row:08}"),
            1 => format!("{:08}", 1_000_000 - row),
            2 => some(dice, "a") + &dice.u8(..).to_string(),
            3 => some(dice, "\u{10FFFF}"),
            4 => some(dice, "\u{7F}"),
            5 => some(dice, "é€") + "x",
            6 => "same".to_owned(),
            7 => some(dice, "\u{FFFF}\u{D7FF}"),
            _ => (0..dice.usize(..12)).map(|_| dice.char(..)).collect(),
        }
    }

    /// Columns of each type whose values are of one length, random, within a narrow range, or at the ends of it.
    fn fixed(
        dice: &mut fastrand::Rng,
        kind: u8,
        rows: usize,
        nulls: u8,
    ) -> Vec<(&'static str, ArrayRef)> {
        let mut numbers = |bound: i128| -> Vec<Option<i128>> {
            let mut number = || match kind {
                0 => dice.i128(-bound..=bound),
                1 => dice.i128(-3..3),
                2 => -bound,
                _ => *dice.choice(&[-bound, bound, 0, -1]).unwrap(),
            };
            let numbers: Vec<_> = (0..rows).map(|_| number()).collect();
            numbers.into_iter().map(|of| (dice.u8(..100) >= nulls).then_some(of)).collect()
        };
        let long = |of: Vec<Option<i128>>| -> Vec<Option<i64>> {
            of.into_iter().map(|of| Some(i64::try_from(of?).unwrap())).collect()
        };
        let short = |of: Vec<Option<i128>>| -> Vec<Option<i32>> {
            of.into_iter().map(|of| Some(i32::try_from(of?).unwrap())).collect()
        };
        let (i32s, i64s) = (i32::MAX.into(), i64::MAX.into());
        let mut decimal = |precision: u8, scale| -> ArrayRef {
            let array = Decimal128Array::from(numbers(10_i128.pow(precision.into()) - 1));
            Arc::new(array.with_precision_and_scale(precision, scale).unwrap())
        };
        let (nine, eighteen) = (decimal(9, 2), decimal(18, 4));
        let uuids = numbers(i128::MAX).into_iter().map(|of| Some(of?.to_be_bytes()));
        let uuids = FixedSizeBinaryArray::try_from_sparse_iter_with_size(uuids, 16).unwrap();
        let moments = TimestampMicrosecondArray::from(long(numbers(i64s))).with_timezone("UTC");
        vec![
            ("int32", Arc::new(Int32Array::from(short(numbers(i32s))))),
            ("int64", Arc::new(Int64Array::from(long(numbers(i64s))))),
            ("date", Arc::new(Date32Array::from(short(numbers(i32s))))),
            ("moment", Arc::new(moments)),
            ("uuid", Arc::new(uuids)),
            ("nine", nine),
            ("eighteen", eighteen),
        ]
    }

    fn batches(dice: &mut fastrand::Rng) -> Vec<RecordBatch> {
        let (kind, nullable) = (dice.u8(..9), dice.bool());
        let nulls = [0, 0, 10, 95, 100][dice.usize(..5)];
        let mut row = 0;
        let mut batch = |dice: &mut fastrand::Rng| {
            let rows = dice.usize(..200);
            let texts = (row..row + rows).map(|row| {
                let is_null = nullable && dice.u8(..100) < nulls;
                let text = text(dice, kind, row);
                (!is_null).then_some(text)
            });
            let texts: Vec<_> = texts.collect();
            row += rows;
            // The same as bytes, which no text is.
            let bytes = texts.iter().map(|text| {
                Some([text.as_deref()?.as_bytes(), &[0xFF; 90][..dice.usize(..90)]].concat())
            });
            let bytes: ArrayRef = Arc::new(BinaryArray::from_iter(bytes));
            let texts: ArrayRef = Arc::new(StringArray::from_iter(texts));
            let mut columns = vec![("text", texts, nullable), ("bytes", bytes, nullable)];
            let fixed = fixed(dice, kind, rows, if nullable { nulls } else { 0 });
            columns.extend(fixed.into_iter().map(|(name, array)| (name, array, nullable)));
            RecordBatch::try_from_iter_with_nullable(columns).unwrap()
        };
        (0..dice.usize(1..5)).map(|_| batch(dice)).collect()
    }

    #[test]
    fn a_chunk_reads_as_its_rows_and_says_of_itself_what_the_library_says() {
        for seed in 0..200 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let batches = batches(&mut dice);
            let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
            if rows == 0 {
                continue;
            }
            // So that pages of both end where they are told to.
            let properties =
                terms().set_data_page_row_count_limit(dice.usize(1..80)).set_write_batch_size(1);
            let properties = properties.build();
            let ours = written(&batches, &properties);
            let schema = batches[0].schema();
            let mut library = ArrowWriter::try_new(vec![], schema, Some(properties)).unwrap();
            for batch in &batches {
                // It looks how many rows a page has behind those that came at once.
                (0..batch.num_rows()).for_each(|row| library.write(&batch.slice(row, 1)).unwrap());
            }
            let (theirs, whole) = read(library.into_inner().unwrap());
            let (ours, found) = read(ours);
            assert_eq!(found, whole, "seed {seed}");
            for (at, theirs_of) in theirs.row_group(0).columns().iter().enumerate() {
                let ours_of = ours.row_group(0).column(at);
                let told = |metadata: &ParquetMetaData| {
                    let of = metadata.row_group(0).column(at);
                    let index = metadata.page_index_for_row_group(0);
                    let offsets = index.offset_index(at).unwrap();
                    let rows = offsets.page_locations().iter().map(|page| page.first_row_index);
                    (
                        (
                            of.statistics().cloned(),
                            of.num_values(),
                            of.unencoded_byte_array_data_bytes(),
                        ),
                        of.definition_level_histogram().cloned(),
                        of.encodings().collect::<Vec<_>>(),
                        of.page_encoding_stats_mask().cloned(),
                        index.column_index(at).cloned(),
                        offsets.unencoded_byte_array_data_bytes().cloned(),
                        rows.collect::<Vec<_>>(),
                    )
                };
                // Where one value stands everywhere, or none, it is written as a run.
                let nulls = theirs_of.statistics().unwrap().null_count_opt();
                let is_nothing = rows >= 256 && nulls == Some(rows as u64);
                if ours_of.dictionary_page_offset().is_none() && !is_nothing {
                    assert_eq!(told(&ours), told(&theirs), "seed {seed}, column {at}");
                }
                let pages = theirs.page_index_for_row_group(0).num_data_pages(at).unwrap();
                let differ = i64::try_from(2 * pages).unwrap();
                // Lengths take a byte or two; levels in bits are not those of runs.
                if nulls == Some(0) && ours_of.dictionary_page_offset().is_none() {
                    let [one, other] = [ours_of, theirs_of].map(|of| of.uncompressed_size());
                    assert!((one - other).abs() <= differ, "seed {seed}");
                }
            }
        }
    }

    #[test]
    fn values_above_which_there_is_none_of_their_length_bound_their_own_pages() {
        let (large, small) = (vec![0xFF; 300 << 10], b"small".to_vec());
        let rows = [&large, &large, &small, &small].map(|row| Some(&row[..]));
        let array: ArrayRef = Arc::new(BinaryArray::from_iter(rows));
        let batch = RecordBatch::try_from_iter_with_nullable([("bytes", array, true)]).unwrap();
        let properties = terms().set_data_page_size_limit(256 << 10).build();
        let (metadata, found) = read(written(std::slice::from_ref(&batch), &properties));
        assert_eq!(found, [batch]);
        let index = metadata.page_index_for_row_group(0);
        let Some(ColumnIndexMetaData::BYTE_ARRAY(bounds)) = index.column_index(0) else {
            panic!("it has none");
        };
        let most: Vec<_> = bounds.max_values_iter().flatten().collect();
        assert_eq!(most, [&large[..], &large[..], &small[..]]);
        let least: Vec<_> = bounds.min_values_iter().flatten().collect();
        assert_eq!(least, [&large[..64], &large[..64], &small[..]]);
    }

    #[test]
    fn what_it_holds_is_counted() {
        let long = "é".repeat(40_000);
        let texts: ArrayRef = Arc::new(StringArray::from(vec![&long[..]; 20]));
        let field = Arc::new(arrow_schema::Field::new("text", DataType::Utf8, true));
        let properties = Arc::new(terms().set_data_page_size_limit(256 << 10).build());
        let schema = arrow_schema::Schema::new(vec![Arc::clone(&field)]);
        let schema = parquet::arrow::ArrowSchemaConverter::new().convert(&schema).unwrap();
        let leaves = &schema.root_schema().get_fields()[0];
        let terms = Terms::default();
        let (properties, packs, early_bytes) = (&properties, true, 0);
        let of = Of { field: &field, leaves, properties, terms: &terms, packs, early_bytes };
        let packer = Packer::new(&terms.presses, terms.scarce, None);
        let mut pages = Pages::new(&of, properties, &packer, 0).unwrap();
        assert!(pages.memory() < 4 << 10, "little before the first value");
        pages.add(&texts).unwrap();
        assert!((256 << 10..400 << 10).contains(&pages.memory()), "{}", pages.memory());
        assert_eq!(pages.done.len(), 5);
    }

    #[test]
    fn a_page_ends_when_it_is_large_enough() {
        let long = "x".repeat(5000);
        let texts =
            (0..3000).map(|row| if row == 700 { long.clone() } else { format!("{row:06}") });
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
        let batch = RecordBatch::try_from_iter_with_nullable([("text", texts, true)]).unwrap();
        let properties = terms().set_data_page_size_limit(1000).build();
        let (metadata, found) = read(written(&[batch.clone(), batch.clone()], &properties));
        let schema = batch.schema();
        let concat = |batches: &[RecordBatch]| {
            arrow_select::concat::concat_batches(&schema, batches).unwrap()
        };
        assert_eq!(concat(&found), concat(&[batch.clone(), batch]));
        let pages = metadata.page_index_for_row_group(0).page_locations(0).unwrap().clone();
        let starts: Vec<_> = pages.iter().map(|page| page.first_row_index).collect();
        // A hundred of ten bytes each; the long one ends its page.
        assert_eq!(starts[..9], [0, 100, 200, 300, 400, 500, 600, 700, 701]);
        assert!(starts.windows(2).all(|of| of[1] - of[0] <= 100), "{starts:?}");
    }
}
