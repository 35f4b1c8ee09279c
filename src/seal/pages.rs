//! The pages of a column of texts or bytes that has no dictionary.
//!
//! Most bytes of most tables are such. The library's encoder grows a buffer for each page, and copies it once more,
//! behind its levels; here a value is copied once, to where it is compressed, and the room stays for the next page. A page is
//! of version 1: levels as runs or in bits, with their length in front, and the values, each with its length
//! (<https://parquet.apache.org/docs/file-format/data-pages/encodings/>, "Plain" and "Run Length Encoding").
//! What is said of them is the library's, from a chunk of the least and the most value of each page.
//!
//! **Invariant:** what stands in such a chunk, and what its statistics and indexes say, is as if the library had written
//! the same rows, in pages that may end elsewhere. (Whether the bounds of its pages ascend is judged by their first
//! [`BOUND_BYTES_MAX`] bytes, more than the index has of them.)

use std::{ops::Range, sync::Arc};

use arrow_array::{
    Array, ArrayRef, BinaryArray, StringArray,
    cast::AsArray,
    types::{BinaryType, ByteArrayType, Utf8Type},
};
use arrow_buffer::{BooleanBufferBuilder, NullBuffer};
use arrow_schema::DataType;
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
        statistics::{Statistics, ValueStatistics},
        writer::{SerializedPageWriter, TrackedWrite},
    },
    schema::types::ColumnPath,
};

use super::{
    column::{Of, encode},
    constant,
    pack::{Packer, varint},
    pieces::Piece,
    texts::{STEP_BYTES, copy},
};

/// What takes the rows of a column.
pub(super) struct Pages {
    packer: Packer,
    page: Page,
    done: Vec<Done>,
    /// Of the bounds in `done`.
    bounds_bytes: usize,
    page_rows: usize,
}

/// The page that is being made.
struct Page {
    is_text: bool,
    /// Room for the levels, and the values behind it.
    body: Vec<u8>,
    room: usize,
    /// A page with so many bytes of values ends.
    bytes_max: usize,
    /// Of each row, in a column that may be NULL: whether there is a value.
    valid: Option<BooleanBufferBuilder>,
    rows: usize,
    values: usize,
    least: Option<Bound>,
    most: Option<Bound>,
}

/// A value of the page.
#[derive(Clone)]
struct Bound {
    /// Its first bytes, as a number: they tell most values apart.
    head: u64,
    at: Range<usize>,
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
    /// For the next chunk of a column; `None`: it is not of this kind.
    pub(super) fn new(of: &Of<'_>, properties: &WriterProperties, packer: &Packer) -> Option<Self> {
        let is_text = match of.field.data_type() {
            DataType::Utf8 => true,
            DataType::Binary => false,
            _ => return None,
        };
        let path = ColumnPath::new(vec![of.field.name().clone()]);
        let is_plain = properties.encoding(&path).is_none_or(|of| of == Encoding::PLAIN);
        let is_told = properties.statistics_enabled(&path) == EnabledStatistics::Page;
        let is_more = properties.dictionary_enabled(&path)
            || properties.bloom_filter_properties(&path).is_some()
            || properties.offset_index_disabled();
        if is_more || !is_plain || !is_told {
            return None;
        }
        let page_rows = properties.column_data_page_row_count_limit(&path);
        let is_nullable = of.field.is_nullable();
        // What bits take of so many rows, and their lengths.
        let room = if is_nullable { page_rows.div_ceil(8) + LEVELS_HEAD_BYTES } else { 0 };
        let page = Page {
            is_text,
            body: vec![0; room],
            room,
            bytes_max: properties.column_data_page_size_limit(&path),
            valid: is_nullable.then(|| BooleanBufferBuilder::new(0)),
            rows: 0,
            values: 0,
            least: None,
            most: None,
        };
        Some(Self { packer: packer.clone(), page, done: vec![], bounds_bytes: 0, page_rows })
    }

    /// Adds rows.
    ///
    /// # Errors
    ///
    /// A page could not be written.
    pub(super) fn add(&mut self, array: &ArrayRef) -> Result<()> {
        match self.page.is_text {
            true => self.add_as::<Utf8Type>(array),
            false => self.add_as::<BinaryType>(array),
        }
    }

    fn add_as<T: ByteArrayType<Offset = i32>>(&mut self, array: &ArrayRef) -> Result<()> {
        let Some(array) = array.as_bytes_opt::<T>() else { return Err(unlike("a column's type")) };
        let (ends, bytes, nulls) = (array.value_offsets(), array.value_data(), array.nulls());
        let at = |end: i32| usize::try_from(end).unwrap_or_default();
        let mut from = 0;
        for (row, ends) in ends.windows(2).enumerate() {
            if nulls.is_none_or(|nulls| nulls.is_valid(row)) {
                self.page.push(&bytes[at(ends[0])..at(ends[1])], &bytes[at(ends[0])..]);
            }
            self.page.rows += 1;
            if self.page.rows >= self.page_rows || self.page.value_bytes() >= self.page.bytes_max {
                self.page.tell(nulls, from..row + 1)?;
                from = row + 1;
                self.end_page()?;
            }
        }
        self.page.tell(nulls, from..array.len())
    }

    /// Bytes that it takes in memory, but for the pages that were compressed.
    pub(super) fn memory(&self) -> usize {
        self.page.body.capacity() + self.bounds_bytes
    }

    fn end_page(&mut self) -> Result<()> {
        let Self { page, packer, done, bounds_bytes, .. } = self;
        let levels = page.levels()?;
        let from = page.room - levels.len();
        page.body[from..page.room].copy_from_slice(&levels);
        let body = &page.body[from..];
        let header = header(page.rows, body.len())?;
        let header_bytes = packer.page(0, &header, body)?;
        let bounds = page.least.take().zip(page.most.take());
        let bounds = bounds.map(|(least, most)| [page.begin(&least).to_vec(), page.above(&most)]);
        *bounds_bytes += bounds.iter().flatten().map(Vec::len).sum::<usize>();
        done.push(Done {
            rows: page.rows,
            nulls: page.rows - page.values,
            value_bytes: page.value_bytes() - page.values * LENGTH_BYTES,
            plain_bytes: header_bytes + body.len(),
            bounds,
        });
        (page.rows, page.values) = (0, 0);
        page.body.truncate(page.room);
        // Of a large value it was more.
        page.body.shrink_to(page.usual_bytes());
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
        if self.page.rows > 0 {
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
        let Some(ColumnIndexMetaData::BYTE_ARRAY(bounds)) = &close.column_index else {
            return Err(unlike("what is said of its pages"));
        };
        let mut index = ColumnIndexBuilder::new(close.metadata.column_type());
        let mut offsets = OffsetIndexBuilder::new();
        if bounds.num_pages() != self.done.len() as u64 {
            return Err(unlike("the number of its pages"));
        }
        for (at, page) in self.done.iter().enumerate() {
            let (rows, nulls) = (signed(page.rows)?, signed(page.nulls)?);
            let bound = |bound: Option<&[u8]>| bound.unwrap_or_default().to_vec();
            let (least, most) = (bound(bounds.min_value(at)), bound(bounds.max_value(at)));
            index.append(page.nulls == page.rows, least, most, nulls, None);
            index.append_histograms(&None, &levels(rows, nulls));
            offsets.append_row_count(rows);
            offsets.append_offset_and_size(0, 0);
            offsets.append_unencoded_byte_array_data_bytes(Some(signed(page.value_bytes)?));
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
            .set_unencoded_byte_array_data_bytes(Some(value_bytes))
            .set_definition_level_histogram(levels(rows, nulls));
        let metadata = match statistics {
            Some(of) => metadata.set_statistics(with_nulls(&of, nulls.cast_unsigned())),
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
        let array: ArrayRef = match self.page.is_text {
            true => {
                let text = |of: Vec<u8>| String::from_utf8(of).map_err(|_| unlike("a text"));
                let texts =
                    bounds.map(|of| of.map(text).transpose()).collect::<Result<Vec<_>>>()?;
                Arc::new(StringArray::from(texts))
            }
            false => Arc::new(BinaryArray::from_iter(bounds)),
        };
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

impl Page {
    /// Bytes of the values, with their lengths.
    fn value_bytes(&self) -> usize {
        self.body.len() - self.room
    }

    /// What the body has room for as a rule.
    fn usual_bytes(&self) -> usize {
        self.room + self.bytes_max + self.bytes_max / 8
    }

    fn make_room(&mut self, more: usize) {
        let (held, has) = (self.body.len(), self.body.capacity());
        if has - held < more {
            let room = (2 * has).min(self.usual_bytes()).max(held + more);
            self.body.reserve_exact(room - held);
        }
    }

    /// `behind`: the value, and what stands behind it.
    fn push(&mut self, value: &[u8], behind: &[u8]) {
        self.make_room(LENGTH_BYTES + value.len() + STEP_BYTES);
        // As Arrow's offsets, which tell it.
        let length = u32::try_from(value.len()).expect("an array has less than 2 GiB");
        self.body.extend_from_slice(&length.to_le_bytes());
        let from = self.body.len();
        copy(&mut self.body, value, behind);
        self.values += 1;
        let head = match value.first_chunk() {
            Some(head) => u64::from_be_bytes(*head),
            None => value.iter().rfold(0, |head, byte| (head >> 8) | (u64::from(*byte) << 56)),
        };
        let is_less = |bound: &Bound| head == bound.head && value < &self.body[bound.at.clone()];
        let is_more = |bound: &Bound| head == bound.head && value > &self.body[bound.at.clone()];
        let new = Bound { head, at: from..self.body.len() };
        let least = self.least.as_ref();
        if least.is_none_or(|least| head < least.head || is_less(least)) {
            self.least = Some(new.clone());
        }
        let most = self.most.as_ref();
        if most.is_none_or(|most| head > most.head || is_more(most)) {
            self.most = Some(new);
        }
    }

    /// Takes which of these rows are NULL.
    fn tell(&mut self, nulls: Option<&NullBuffer>, rows: Range<usize>) -> Result<()> {
        match (&mut self.valid, nulls) {
            (Some(valid), Some(nulls)) => {
                valid.append_buffer(&nulls.inner().slice(rows.start, rows.len()));
            }
            (Some(valid), None) => valid.append_n(rows.len(), true),
            (None, Some(nulls)) if nulls.null_count() > 0 => {
                return Err(unlike("a column that is never NULL"));
            }
            (None, _) => {}
        }
        Ok(())
    }

    /// The levels of its rows; begins anew.
    fn levels(&mut self) -> Result<Vec<u8>> {
        let Some(valid) = &mut self.valid else { return Ok(vec![]) };
        if self.values == self.rows || self.values == 0 {
            valid.truncate(0);
            let rows = u32::try_from(self.rows).map_err(|_| unlike("its rows"))?;
            return Ok(constant::levels(rows, u8::from(self.values > 0)));
        }
        let (bits, groups) = (valid.finish(), self.rows.div_ceil(8));
        let mut levels = vec![0; LENGTH_BYTES];
        varint((groups as u64) << 1 | 1, &mut levels);
        levels.extend_from_slice(&bits.inner().as_slice()[..groups]);
        if let (Some(last), 1..) = (levels.last_mut(), self.rows % 8) {
            *last &= (1 << (self.rows % 8)) - 1;
        }
        let length =
            u32::try_from(levels.len() - LENGTH_BYTES).map_err(|_| unlike("its levels"))?;
        levels[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        Ok(levels)
    }

    /// How a value of it begins: the library makes a bound below it of that.
    fn begin(&self, bound: &Bound) -> &[u8] {
        let value = &self.body[bound.at.clone()];
        let mut length = value.len().min(BOUND_BYTES_MAX);
        // A character is whole, as the library wants it.
        while self.is_text && length < value.len() && value[length] & 0xC0 == 0x80 {
            length -= 1;
        }
        &value[..length]
    }

    /// As much of a value of it as the library makes a bound above it of.
    fn above(&self, bound: &Bound) -> Vec<u8> {
        let begin = self.begin(bound);
        match has_next(begin, self.is_text) {
            true => begin.to_vec(),
            false => self.body[bound.at.clone()].to_vec(),
        }
    }
}

/// Whether the library finds a bound above all values that begin so, and as long as it cuts them: else it takes the value as it is.
fn has_next(begin: &[u8], is_text: bool) -> bool {
    match std::str::from_utf8(begin) {
        Ok(text) if is_text => {
            let mut told = text.char_indices().take_while(|(at, _)| *at < TOLD_BYTES_MIN);
            told.any(|(_, one)| {
                let next = char::from_u32(u32::from(one) + 1);
                next.is_some_and(|next| next.len_utf8() == one.len_utf8())
            })
        }
        _ => begin.iter().take(TOLD_BYTES_MIN).any(|byte| *byte < u8::MAX),
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

/// The same bounds of a chunk with so many NULLs.
fn with_nulls(statistics: &Statistics, nulls: u64) -> Statistics {
    let Statistics::ByteArray(of) = statistics else { return statistics.clone() };
    let (least, most) = (of.min_opt().cloned(), of.max_opt().cloned());
    let with = ValueStatistics::new(least, most, None, Some(nulls), false);
    let with = with.with_min_is_exact(of.min_is_exact()).with_max_is_exact(of.max_is_exact());
    Statistics::ByteArray(with)
}

fn unlike(what: &str) -> ParquetError {
    ParquetError::General(format!("{what} is not what the library says of such a column"))
}

fn signed(number: usize) -> Result<i64> {
    i64::try_from(number).map_err(|_| unlike("a number"))
}

/// In front of a value, and of the levels.
const LENGTH_BYTES: usize = 4;
/// In front of levels in bits: their length, and a varint of how many there are.
const LEVELS_HEAD_BYTES: usize = LENGTH_BYTES + 10;
/// More than the library tells of a bound.
const BOUND_BYTES_MAX: usize = 256;
/// It tells 64 bytes, or fewer if the last character would be cut.
const TOLD_BYTES_MIN: usize = 60;

#[cfg(test)]
mod tests {
    use arrow_array::RecordBatch;
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
        let some = |dice: &mut fastrand::Rng, of: &str| of.repeat(dice.usize(..120));
        match kind {
            0 => format!("{row:08}"),
            1 => format!("{:08}", 1_000_000 - row),
            2 => some(dice, "a") + &dice.u8(..).to_string(),
            3 => some(dice, "\u{10FFFF}"),
            4 => some(dice, "\u{7F}"),
            5 => some(dice, "é") + &some(dice, "x"),
            6 => "same".to_owned(),
            // No longer than bounds are compared.
            7 => "\u{FFFF}\u{D7FF}".repeat(dice.usize(..25)),
            _ => (0..dice.usize(..12)).map(|_| dice.char(..)).collect(),
        }
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
            let columns = [("text", texts, nullable), ("bytes", bytes, nullable)];
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
                // Where one value stands everywhere it is written as a run.
                if ours_of.dictionary_page_offset().is_none() {
                    assert_eq!(told(&ours), told(&theirs), "seed {seed}, column {at}");
                }
                let pages = theirs.page_index_for_row_group(0).num_data_pages(at).unwrap();
                let differ = i64::try_from(2 * pages).unwrap();
                // Lengths take a byte or two; levels in bits are not those of runs.
                let is_whole = theirs_of.statistics().unwrap().null_count_opt() == Some(0);
                if is_whole && ours_of.dictionary_page_offset().is_none() {
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
        let mut pages = Pages::new(&of, properties, &packer).unwrap();
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
