//! Compresses the pages of column chunks with zstd, as they come from the library's encoders.
//!
//! The library would compress them itself, but with nothing to choose than a level, and a context made anew for each
//! chunk. How well a column's values lend themselves shows in its first page: a smaller hash table, and longer steps
//! while nothing matches, cost a third less and find as much in values that are random or all alike; in prose they find
//! a fifth less. In digits at random there is nothing to be found, and what stands between them is found in longer
//! steps still. [`Method`] is the cheapest that comes near what zstd's own level makes of them; how near, and which
//! level, is a question of what is [`Scarce`].
//!
//! **Invariant:** what a chunk says of its pages, their lengths and where they lie, is so of what was written.

use std::{
    fmt,
    io::{self, Read},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    vec,
};

use bytes::Bytes;
use parquet::{
    basic::{Compression, ZstdLevel},
    column::{
        page_store::{PageKey, PageStore, PageStoreArgs, PageStoreFactory},
        writer::ColumnCloseResult,
    },
    errors::{ParquetError, Result},
    file::reader::{ChunkReader, Length},
};
use zstd::{
    bulk::Compressor,
    zstd_safe::{CParameter, ParamSwitch, compress_bound},
};

use self::header::Header;
pub(super) use self::header::varint;
use super::rising::Numbers;

mod header;

/// What there is less of than is asked for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Scarce {
    /// The link takes all that is sealed.
    #[default]
    Cpu,
    /// What is sealed waits for it.
    Link,
}

/// How a column's pages are compressed, the cheapest first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Method {
    /// Not at all.
    Raw,
    /// By how often each byte comes alone: nothing is looked for that came before.
    Literals,
    /// With a hash table of 16 KiB, and in steps of sixteen bytes: of what lies between others that look random.
    Strides,
    /// With a hash table of 16 KiB, and in steps of four bytes.
    Quickest,
    /// With a hash table of 16 KiB, and in steps of three bytes.
    Quick,
    /// With a hash table of 32 KiB.
    Small,
    /// As level 1 has it.
    Whole,
    /// As level 3 has it.
    Dense,
}

/// What compresses, for any number of threads: each takes one for a page, and puts it back.
#[derive(Clone, Debug, Default)]
pub(super) struct Presses(Arc<Mutex<Vec<Press>>>);

/// Compresses the pages of the chunks of one field: of its leaves.
#[derive(Clone)]
pub(super) struct Packer(Arc<Mutex<Inner>>);

/// A chunk's pages, ready to be written: with their headers, the dictionary's first.
pub(super) struct Chunk(Vec<Bytes>);

/// What is left of a chunk.
pub(super) struct Rest {
    page: Bytes,
    pages: vec::IntoIter<Bytes>,
}

/// A compressor, and where it puts what it makes.
struct Press {
    compressor: Compressor<'static>,
    /// What the compressor is set to.
    set: Option<Method>,
    packed: Vec<u8>,
}

struct Inner {
    presses: Presses,
    /// What all pages of this chunk are compressed by; `None`: their first shows it.
    method: Option<Method>,
    /// Whether that is what its values advise.
    is_advised: bool,
    /// Whether there are pages of numbers that rise, which are zstd's: no page is to be uncompressed.
    rises: bool,
    scarce: Scarce,
    leaves: Vec<Leaf>,
}

/// What has come of one leaf.
#[derive(Default)]
struct Leaf {
    /// Of the page whose body is next.
    header: Option<Bytes>,
    dictionary: Option<Bytes>,
    /// Pages of data.
    data: Vec<Bytes>,
}

/// What the encoder of one leaf hands its pages to.
struct Store {
    packer: Packer,
    leaf: usize,
}

impl Presses {
    fn take(&self) -> Result<Press> {
        let press = self.lock().pop();
        press.map_or_else(Press::new, Ok)
    }

    fn put_back(&self, mut press: Press) {
        // Of a page with a large value it was more.
        if press.packed.capacity() > IDLE_BYTES_MAX {
            press.packed = vec![];
        }
        let mut all = self.lock();
        if all.len() < IDLE_PRESSES_MAX {
            all.push(press);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Press>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Packer {
    /// For the chunks of a field, whose pages are compressed by `method`, or as the first one advises.
    pub(super) fn new(presses: &Presses, scarce: Scarce, method: Option<Method>) -> Self {
        let (presses, is_advised) = (presses.clone(), method.is_some());
        Self(Arc::new(Mutex::new(Inner {
            presses,
            method,
            is_advised,
            rises: false,
            scarce,
            leaves: vec![],
        })))
    }

    /// What the pages were compressed by; `None`: the first was too small to show anything.
    pub(super) fn method(&self) -> Option<Method> {
        let inner = self.lock();
        inner.method.filter(|_| inner.is_advised)
    }

    /// Takes the next page of a leaf: its header, with any length of the body that is written, its body, and where the
    /// numbers in it stand, if its values are whole numbers. Bytes of the header as it is written.
    ///
    /// # Errors
    ///
    /// It has another header than a page has.
    pub(super) fn page(
        &self,
        leaf: usize,
        header: &[u8],
        body: &[u8],
        numbers: Option<Numbers>,
    ) -> Result<usize> {
        let mut inner = self.lock();
        inner.know(leaf);
        inner.page(leaf, header, body, numbers)
    }

    /// Bytes of a leaf's pages.
    pub(super) fn memory(&self, leaf: usize) -> usize {
        self.lock().memory(leaf)
    }

    /// Ends the chunk of a leaf: its pages, and what is said of them.
    ///
    /// # Errors
    ///
    /// The library said something else than it wrote.
    pub(super) fn end(
        &self,
        leaf: usize,
        mut close: ColumnCloseResult,
    ) -> Result<(Chunk, ColumnCloseResult)> {
        let mut inner = self.lock();
        let codec = inner.codec()?;
        let Leaf { dictionary, data, .. } =
            inner.leaves.get_mut(leaf).map(mem::take).unwrap_or_default();
        drop(inner);
        let begin = signed(dictionary.as_ref().map_or(0, Bytes::len))?;
        let length = signed(data.iter().map(Bytes::len).sum())?;
        if let Some(offsets) = &mut close.offset_index {
            if offsets.page_locations.len() != data.len() {
                return Err(unlike("the number of its pages"));
            }
            let mut at = begin;
            for (location, page) in offsets.page_locations.iter_mut().zip(&data) {
                let length =
                    i32::try_from(page.len()).map_err(|_| unlike("the length of a page"))?;
                (location.offset, location.compressed_page_size) = (at, length);
                at += i64::from(length);
            }
        }
        let metadata = close
            .metadata
            .into_builder()
            .set_compression(codec)
            .set_total_compressed_size(begin + length)
            .set_dictionary_page_offset((begin > 0).then_some(0))
            .set_data_page_offset(begin);
        close.metadata = metadata.build()?;
        close.bytes_written = (begin + length).cast_unsigned();
        Ok((Chunk(dictionary.into_iter().chain(data).collect()), close))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn put(&mut self, leaf: usize, blob: Bytes) -> Result<()> {
        self.know(leaf);
        let Some(header) = self.leaves[leaf].header.take() else {
            self.leaves[leaf].header = Some(blob);
            return Ok(());
        };
        self.page(leaf, &header, &blob, None).map(drop)
    }

    /// See [`Packer::page`].
    fn page(
        &mut self,
        leaf: usize,
        header: &[u8],
        body: &[u8],
        numbers: Option<Numbers>,
    ) -> Result<usize> {
        let presses = self.presses.clone();
        let mut press = presses.take()?;
        // Once one is uncompressed, all that follow are, whatever they hold.
        let numbers = numbers.filter(|_| self.method != Some(Method::Raw));
        let packed = if numbers.is_some_and(|of| of.pack(self.scarce, body, &mut press.packed)) {
            self.rises = true;
            &press.packed
        } else {
            let (method, is_packed) = match self.method {
                Some(method) => (method, false),
                None if body.len() < JUDGED_BYTES => (Method::Whole, false),
                None => {
                    self.is_advised = true;
                    match press.advised(self.scarce, body)? {
                        (Method::Raw, _) if self.rises => (Method::Literals, false),
                        advised => advised,
                    }
                }
            };
            self.method = Some(method);
            match method {
                Method::Raw => body,
                _ if is_packed => &press.packed,
                method => press.compress(method, body)?,
            }
        };
        let (kind, before, after) = Header::parts(header)?;
        let mut page = Vec::with_capacity(header.len() + LENGTH_BYTES_MAX + packed.len());
        page.extend_from_slice(before);
        Header::put(signed(packed.len())?, &mut page);
        page.extend_from_slice(after);
        let header_bytes = page.len();
        page.extend_from_slice(packed);
        presses.put_back(press);
        let (page, leaf) = (Bytes::from(page), &mut self.leaves[leaf]);
        match kind {
            DICTIONARY_PAGE => leaf.dictionary = Some(page),
            _ => leaf.data.push(page),
        }
        Ok(header_bytes)
    }

    fn know(&mut self, leaf: usize) {
        if self.leaves.len() <= leaf {
            self.leaves.resize_with(leaf + 1, Leaf::default);
        }
    }

    fn memory(&self, leaf: usize) -> usize {
        let Some(leaf) = self.leaves.get(leaf) else { return 0 };
        leaf.dictionary.iter().chain(&leaf.data).map(Bytes::len).sum()
    }

    fn codec(&self) -> Result<Compression> {
        match self.method {
            Some(Method::Raw) => Ok(Compression::UNCOMPRESSED),
            _ => Ok(Compression::ZSTD(ZstdLevel::try_new(LEVEL)?)),
        }
    }
}

impl Press {
    fn new() -> Result<Self> {
        Ok(Self { compressor: Compressor::new(LEVEL)?, set: None, packed: vec![] })
    }

    /// The cheapest method that makes about as little of these values as the dearest does, and those that are cheaper still;
    /// and whether what it makes of them is there.
    fn advised(&mut self, scarce: Scarce, page: &[u8]) -> Result<(Method, bool)> {
        let sample = &page[..page.len().min(SAMPLE_BYTES)];
        let (cheaper, dearest, near) = match scarce {
            Scarce::Cpu => (&CHEAPER_THAN_WHOLE[..], Method::Whole, NEAR_OF_CPU),
            Scarce::Link => (&CHEAPER_THAN_DENSE[..], Method::Dense, NEAR_OF_LINK),
        };
        let mut least = self.compress(dearest, sample)?.len();
        for (before, method) in cheaper.iter().enumerate() {
            let size = self.compress(*method, sample)?.len();
            least = least.min(size);
            if before == 0 && least > sample.len() / 100 * INCOMPRESSIBLE_PERCENT {
                return Ok((Method::Raw, false));
            }
            if size <= least + least / near {
                return Ok((*method, sample.len() == page.len()));
            }
        }
        Ok((dearest, false))
    }

    fn compress(&mut self, method: Method, plain: &[u8]) -> io::Result<&[u8]> {
        if self.set != Some(method) {
            self.set = None;
            for parameter in method.parameters() {
                self.compressor.set_parameter(parameter)?;
            }
            self.set = Some(method);
        }
        self.packed.clear();
        self.packed.reserve(compress_bound(plain.len()));
        self.compressor.compress_to_buffer(plain, &mut self.packed)?;
        Ok(&self.packed)
    }
}

impl Method {
    fn parameters(self) -> [CParameter; 4] {
        // 0: as the level has it. Steps longer than two would leave literals as they are.
        let (level, hash, step, literals) = match self {
            Self::Literals => (LEVEL, 12, STEP_MAX, ParamSwitch::Enable),
            Self::Strides => (LEVEL, 12, 15, ParamSwitch::Enable),
            Self::Quickest => (LEVEL, 12, 3, ParamSwitch::Enable),
            Self::Quick => (LEVEL, 12, 2, ParamSwitch::Enable),
            Self::Small => (LEVEL, 13, 0, ParamSwitch::Auto),
            Self::Raw | Self::Whole => (LEVEL, 0, 0, ParamSwitch::Auto),
            Self::Dense => (DENSE_LEVEL, 0, 0, ParamSwitch::Auto),
        };
        [
            CParameter::CompressionLevel(level),
            CParameter::HashLog(hash),
            CParameter::TargetLength(step),
            CParameter::LiteralCompressionMode(literals),
        ]
    }
}

impl PageStore for Store {
    fn put(&mut self, value: Bytes) -> Result<PageKey> {
        self.packer.lock().put(self.leaf, value)?;
        Ok(PageKey::new(0))
    }

    fn take(&mut self, _: PageKey) -> Result<Bytes> {
        Err(unlike("who asks for its pages"))
    }

    fn memory_size(&self) -> usize {
        self.packer.memory(self.leaf)
    }
}

impl PageStoreFactory for Packer {
    fn create(&self, of: &PageStoreArgs<'_>) -> Result<Box<dyn PageStore>> {
        Ok(Box::new(Store { packer: self.clone(), leaf: of.column_index() }))
    }
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl fmt::Debug for Press {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Press").field("set", &self.set).finish_non_exhaustive()
    }
}

impl Length for Chunk {
    fn len(&self) -> u64 {
        self.0.iter().map(|page| page.len() as u64).sum()
    }
}

impl ChunkReader for Chunk {
    type T = Rest;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        let mut rest = Rest { page: Bytes::new(), pages: self.0.clone().into_iter() };
        io::copy(&mut (&mut rest).take(start), &mut io::sink())?;
        Ok(rest)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let mut bytes = vec![0; length];
        self.get_read(start)?.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

impl Read for Rest {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.page.is_empty() {
            let Some(page) = self.pages.next() else { return Ok(0) };
            self.page = page;
        }
        let length = to.len().min(self.page.len());
        to[..length].copy_from_slice(&self.page.split_to(length));
        Ok(length)
    }
}

fn unlike(what: &str) -> ParquetError {
    ParquetError::General(format!("{what} is not what the encoder of a column should give"))
}

fn signed(length: usize) -> Result<i64> {
    i64::try_from(length).map_err(|_| unlike("the length of a page"))
}

/// A whole block: what zstd compresses at once.
const STEP_MAX: u32 = 128 << 10;
/// What is usual: of many values level 3 makes no less (FACTS §4).
const LEVEL: i32 = 1;
/// Where every byte counts.
const DENSE_LEVEL: i32 = 3;
/// The most that the length of a page takes in its header.
const LENGTH_BYTES_MAX: usize = 5;
/// The kind of a dictionary's page, 2, in zigzag.
const DICTIONARY_PAGE: u8 = 4;
/// A page of fewer bytes shows nothing.
const JUDGED_BYTES: usize = 16 << 10;
/// As many threads seal a snapshot as a rule, and one more the changes; one that is made anew costs little
/// beside the page that it compresses.
const IDLE_PRESSES_MAX: usize = 3;
/// Each keeps no more room than this beside the compressor: as pages take as a rule.
const IDLE_BYTES_MAX: usize = 512 << 10;
/// So much of it does.
const SAMPLE_BYTES: usize = 1 << 20;
/// The cheapest first.
const CHEAPER_THAN_WHOLE: [Method; 5] =
    [Method::Literals, Method::Strides, Method::Quickest, Method::Quick, Method::Small];
/// As above, of those that are worth it where every byte counts.
const CHEAPER_THAN_DENSE: [Method; 2] = [Method::Small, Method::Whole];
/// Of what was to be compressed.
const INCOMPRESSIBLE_PERCENT: usize = 93;
/// One part in so many more than the least is near, while the processor is scarce.
const NEAR_OF_CPU: usize = 16;
/// As above, while the link is.
const NEAR_OF_LINK: usize = 128;

#[cfg(test)]
mod tests {
    use arrow_array::{
        ArrayRef, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, types::Int32Type,
    };
    use parquet::{
        arrow::arrow_reader::{
            ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
        },
        basic::Encoding,
        file::{metadata::PageIndexPolicy, properties::WriterProperties},
    };

    use super::*;
    use crate::config::Integers;
    use crate::seal::{
        habits::{Habits, Terms},
        pieces::Piece,
        writer::Writer,
    };

    const ROWS: i64 = 20_000;

    /// A column without a dictionary, one with, one that outgrows it, one that is nested.
    fn batch() -> RecordBatch {
        let text = |n: i64| {
            (n % 5 > 0)
                .then(|| format!("{:016x}", n.cast_unsigned().wrapping_mul(0x9E37_79B9_7F4A_7C15)))
        };
        let lists = (0..ROWS).map(|n| Some((0..n % 4).map(move |m| i32::try_from(n * m).ok())));
        RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(Int64Array::from_iter_values(0..ROWS)) as ArrayRef, false),
            ("few", Arc::new(Int64Array::from_iter_values((0..ROWS).map(|n| n % 7))), true),
            ("text", Arc::new(StringArray::from_iter((0..ROWS).map(text))), true),
            ("list", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists)), true),
        ])
        .unwrap()
    }

    fn properties() -> WriterProperties {
        WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(LEVEL).unwrap()))
            .set_data_page_row_count_limit(3000)
            .set_dictionary_page_size_limit(32 << 10)
            .set_column_dictionary_enabled("id".into(), false)
            .build()
    }

    #[test]
    fn any_page_is_found_and_read_by_the_library() {
        let batch = batch();
        for scarce in [Scarce::Cpu, Scarce::Link] {
            let mut writer = Writer::new(
                vec![],
                &batch.schema(),
                properties(),
                Habits::default(),
                Terms { scarce, ..Terms::default() },
            )
            .unwrap();
            for _ in 0..3 {
                writer.add(batch.columns().iter().cloned().map(Piece::Array).collect()).unwrap();
                writer.end_group().unwrap();
            }
            let file = Bytes::from(writer.into_inner().unwrap());
            let options =
                || ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
            let open = || {
                ParquetRecordBatchReaderBuilder::try_new_with_options(file.clone(), options())
                    .unwrap()
                    .with_batch_size(100_000)
            };
            let mut end = 4;
            for group in open().metadata().row_groups() {
                for chunk in group.columns() {
                    let begin = chunk.dictionary_page_offset();
                    let begin = begin.unwrap_or_else(|| chunk.data_page_offset());
                    assert_eq!(begin, end, "no gap before {}", chunk.column_path());
                    end = begin + chunk.compressed_size();
                    assert!(chunk.compressed_size() < chunk.uncompressed_size());
                }
            }
            // Rows within pages, which the reader goes to by the index.
            for at in [0, 2_999, 3_000, 19_990, 20_001, 47_123] {
                let rows = vec![RowSelector::skip(at), RowSelector::select(7)];
                let mut read = open().with_row_selection(RowSelection::from(rows)).build().unwrap();
                let whole = arrow_select::concat::concat_batches(&batch.schema(), [&batch; 3]);
                assert_eq!(read.next().unwrap().unwrap(), whole.unwrap().slice(at, 7), "{at}");
            }
        }
    }

    #[test]
    fn all_pages_of_a_chunk_have_its_codec() {
        // A small page, which shows nothing, then some that do not shrink; and the other way round.
        let mut dice = fastrand::Rng::with_seed(3);
        let mut noise: Vec<Option<i64>> = (0..60_000).map(|_| Some(dice.i64(..))).collect();
        noise[..20_000].fill(None);
        // Of differences, a key that rises and then jumps.
        let key = |n: i64| if n < 20_000 { n } else { dice.i64(..) };
        let keys: Vec<Option<i64>> = (0..60_000).map(key).map(Some).collect();
        // And one whose first page, and second one, show something else than its last ones.
        let late = keys.iter().copied().skip(20_000).chain(keys[..20_000].to_vec()).collect();
        let (first, last) = (noise.clone(), noise.into_iter().rev().collect::<Vec<_>>());
        for (values, integers) in [
            (first, Integers::Plain),
            (last, Integers::Plain),
            (keys.clone(), Integers::Rising),
            (late, Integers::Rising),
            (keys, Integers::Delta),
        ] {
            let column = Arc::new(Int64Array::from(values)) as ArrayRef;
            let batch = RecordBatch::try_from_iter_with_nullable([("id", column, true)]).unwrap();
            let (habits, properties) = (Habits::default(), properties());
            let terms = Terms { integers, ..Terms::default() };
            let mut writer =
                Writer::new(vec![], &batch.schema(), properties, habits, terms).unwrap();
            for _ in 0..2 {
                writer.add(vec![Piece::Array(Arc::clone(batch.column(0)))]).unwrap();
                writer.end_group().unwrap();
            }
            let file = Bytes::from(writer.into_inner().unwrap());
            let read = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
            let mut read = read.with_batch_size(60_000).build().unwrap();
            assert!((0..2).all(|_| read.next().unwrap().unwrap() == batch));
        }
    }

    #[test]
    fn keys_that_rise_take_little_in_plain_encoding() {
        let all = [
            (Scarce::Cpu, Integers::Rising),
            (Scarce::Link, Integers::Rising),
            (Scarce::Cpu, Integers::Plain),
        ];
        for (scarce, integers) in all {
            let rising = Int64Array::from_iter_values(1 << 40..(1 << 40) + 60_000);
            let short = rising.values().iter().map(|key| i32::try_from(*key & 0xFF_FFFF).ok());
            let sometimes = rising.values().iter().map(|key| (key % 9 > 0).then_some(*key));
            let batch = RecordBatch::try_from_iter_with_nullable([
                ("sometimes", Arc::new(Int64Array::from_iter(sometimes)) as ArrayRef, true),
                ("short", Arc::new(Int32Array::from_iter(short)), true),
                ("rising", Arc::new(rising), false),
            ])
            .unwrap();
            let properties = properties().into_builder().set_dictionary_enabled(false);
            let properties = properties.set_data_page_row_count_limit(100_000).build();
            let terms = Terms { scarce, integers, ..Terms::default() };
            let mut writer =
                Writer::new(vec![], &batch.schema(), properties, Habits::default(), terms).unwrap();
            writer.add(batch.columns().iter().cloned().map(Piece::Array).collect()).unwrap();
            let file = Bytes::from(writer.into_inner().unwrap());
            let read = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
            let group = read.metadata().row_group(0).clone();
            for (of, most) in group.columns().iter().zip([80_000, 8000, 8000]) {
                let plain = [Encoding::PLAIN, Encoding::RLE];
                assert!(of.encodings().all(|of| plain.contains(&of)), "{:?}", of.column_path());
                let is_little = of.compressed_size() < most || integers == Integers::Plain;
                assert!(is_little, "{}: {}", of.column_path(), of.compressed_size());
                // As zstd finds it.
                let is_much = of.compressed_size() > 50_000 || integers == Integers::Rising;
                assert!(is_much, "{}: {}", of.column_path(), of.compressed_size());
            }
            assert_eq!(
                read.with_batch_size(60_000).build().unwrap().next().unwrap().unwrap(),
                batch
            );
        }
    }

    #[test]
    fn the_first_page_shows_the_method() {
        let advised = |scarce, page: &[u8]| {
            let mut press = Press::new().unwrap();
            let (method, is_packed) = press.advised(scarce, page).unwrap();
            if is_packed {
                let packed = press.packed.clone();
                assert_eq!(packed, press.compress(method, page).unwrap());
            }
            // What it makes is what zstd reads.
            let packed = press.compress(method, page).unwrap();
            assert_eq!(zstd::bulk::decompress(packed, page.len()).unwrap(), page);
            method
        };
        let mut dice = fastrand::Rng::with_seed(1);
        let noise: Vec<u8> = (0..100_000).map(|_| dice.u8(..)).collect();
        assert_eq!(advised(Scarce::Cpu, &noise), Method::Raw);
        assert_eq!(advised(Scarce::Link, &noise), Method::Raw);
        let digits = hex::encode(&noise);
        assert_eq!(advised(Scarce::Cpu, digits.as_bytes()), Method::Literals);
        // Behind each name: what it begins with comes again, and long before the next byte does.
        let names = digits.as_bytes().chunks(32);
        let names: Vec<u8> =
            names.flat_map(|name| [b"\x29\0\0\0customer_", name].concat()).collect();
        assert_eq!(advised(Scarce::Cpu, &names), Method::Strides);
        // Words in many orders: what a larger table finds, a small one has forgotten.
        let words: Vec<String> = (0..3000).map(|n| hex::encode(&noise[n * 9..n * 9 + 7])).collect();
        let prose: String = (0..70_000).map(|_| dice.choice(&words).unwrap().as_str()).collect();
        assert_eq!(advised(Scarce::Cpu, prose.as_bytes()), Method::Whole);
        assert_eq!(advised(Scarce::Link, prose.as_bytes()), Method::Dense);
    }
}
