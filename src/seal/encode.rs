//! Encodes the rows of one object as Parquet: zstd, dictionaries, statistics, row groups bounded in memory.
//!
//! Rows gather in a [`RowBuilder`] and go to the Parquet writer in batches; a table with few rows has no
//! writer until its object ends. The file's key-value metadata: that of [`file_metadata`],
//! `lakehead.source`, and `lakehead.source_types`, a JSON object from column to source type.
//!
//! **Invariant:** an open object holds at most about a row group ([`Writer::is_full`]), plus one row. Rows that
//! are larger than [`LARGE_ROW_BYTES`] are the exception that P4 names: they go into objects laid out so
//! that no more than two copies of a value are alive at once ([`Layout::Large`]).

use std::{collections::BTreeMap, sync::Arc};

use parquet::{
    basic::{Compression, Encoding, ZstdLevel},
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties, WriterVersion},
    },
    schema::types::ColumnPath,
};

use super::{
    Op, SealError, Table,
    columns::{Block, Metas, RowBuilder, RowMeta, arrow_schema, file_metadata, file_name},
    habits::Habits,
    object::{Draft, Maker, Sink},
    writer::Writer,
};
use crate::{
    config::Uuids,
    heap::large::LARGE_BYTES,
    journal::{Cell, Column, Decode, LakeType, OldRow, Row},
    units::Sequence,
};

/// A row on its way into an object.
pub(super) struct RowIn<'a> {
    meta: RowMeta,
    row: Option<&'a Row>,
    old: Option<(OldRow, &'a Row)>,
    bytes: &'a [u8],
    decode: &'a dyn Decode,
    weight: usize,
}

/// Rows on their way into an object together.
pub(super) struct BlockIn<'a> {
    /// What we add to them.
    pub(super) metas: Metas<'a>,
    /// At least one row.
    pub(super) block: Block<'a>,
    pub(super) decode: &'a dyn Decode,
}

/// What makes the bytes of one object of its rows.
pub(super) trait Encode: Send {
    /// Adds a row.
    fn append(&mut self, maker: &Maker, row: &RowIn<'_>) -> Result<(), SealError>;
    /// Adds rows, of which none is large.
    fn append_block(&mut self, maker: &Maker, rows: &BlockIn<'_>) -> Result<(), SealError> {
        let Block { cells, bytes } = rows.block;
        for number in 0..cells.rows() {
            let (meta, row) = (rows.metas.of(number), cells.row(number).collect());
            self.append(maker, &RowIn::new(meta, Some(&row), None, bytes, rows.decode))?;
        }
        Ok(())
    }

    /// Counts rows of `op` though there are none.
    fn declare(&mut self, op: Op);

    /// Writes all that is held in memory, but for the writer's own bookkeeping.
    fn write_all(&mut self, maker: &Maker) -> Result<(), SealError>;

    /// Ends the object. `key` makes its key from its SHA-256.
    fn finish(
        self: Box<Self>,
        maker: &Maker,
        key: &dyn Fn(&str) -> String,
    ) -> Result<Draft, SealError>;

    /// The table at its version.
    fn table(&self) -> &Arc<Table>;

    /// How it is laid out.
    fn layout(&self) -> Layout;

    /// The first and the last change in it.
    fn range(&self) -> Option<(Sequence, Sequence)>;

    /// Bytes of the object so far: written, and encoded in memory.
    fn encoded(&self) -> u64;

    /// Whether it has a file on disk.
    fn has_file(&self) -> bool;

    /// Bytes in memory that [`Encode::write_all`] would free, and bytes that only the end frees.
    fn memory(&self) -> (usize, usize);
}

/// Begins an object of a table.
pub(super) type EncodeWith = fn(&Maker, &Arc<Table>, Layout) -> Box<dyn Encode>;

/// Begins an object in Parquet.
pub(super) fn parquet(maker: &Maker, table: &Arc<Table>, layout: Layout) -> Box<dyn Encode> {
    Box::new(Encoder::new(table, laid_down(table, maker.uuids), layout))
}

/// The table as its files have it.
fn laid_down(table: &Arc<Table>, uuids: Uuids) -> Arc<Table> {
    let is_other = |column: &Column| uuids == Uuids::Text && column.lake == LakeType::Uuid;
    if !table.columns.iter().any(is_other) {
        return Arc::clone(table);
    }
    let mut laid_down = Table::clone(table);
    for column in laid_down.columns.iter_mut().filter(|column| is_other(column)) {
        column.lake = LakeType::Text;
    }
    Arc::new(laid_down)
}

/// How the Parquet file is laid out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Layout {
    /// For rows of ordinary size.
    Rows,
    /// For rows with large values. The writer copies a value once into its page buffer, and once more
    /// while compressing it, when the batch is gone: no dictionary and no statistics, which hold values
    /// back, and pages that end only with the row group, of version 2, which saves a copy.
    Large,
}

/// One object that is being written.
pub(super) struct Encoder {
    table: Arc<Table>,
    /// The same, as the file has it.
    laid_down: Arc<Table>,
    layout: Layout,
    builder: RowBuilder,
    writer: Option<Writer<Sink>>,
    columns: usize,
    rows: BTreeMap<Op, u64>,
    range: Option<(Sequence, Sequence)>,
    encoded_bytes: u64,
}

impl Encoder {
    /// An object without rows yet.
    fn new(table: &Arc<Table>, laid_down: Arc<Table>, layout: Layout) -> Self {
        let builder = RowBuilder::new(&laid_down);
        let columns = table.columns.len() + OWN_COLUMNS;
        Self {
            table: Arc::clone(table),
            laid_down,
            layout,
            builder,
            writer: None,
            columns,
            rows: BTreeMap::new(),
            range: None,
            encoded_bytes: 0,
        }
    }

    /// Before rows that weigh as much are added.
    fn make_room(&mut self, maker: &Maker, weight: usize) -> Result<(), SealError> {
        match self.builder.rows() >= BATCH_ROWS || self.builder.bytes() + weight > BATCH_BYTES {
            true => self.write_rows(maker),
            false => Ok(()),
        }
    }

    fn count(&mut self, metas: &Metas<'_>, rows: usize) {
        let (first, last) = (metas.of(0), metas.of(rows - 1));
        self.range = Some((
            self.range.map_or(Sequence(first.sequence), |(first, _)| first),
            Sequence(last.sequence),
        ));
        let mut count = |op, rows: usize| *self.rows.entry(op).or_default() += rows as u64;
        match metas {
            Metas::Same(meta) => count(meta.op, rows),
            Metas::Each(metas) => {
                metas
                    .chunk_by(|one, next| one.op == next.op)
                    .for_each(|run| count(run[0].op, run.len()));
            }
        }
    }

    /// Hands the gathered rows to the writer, and ends the row group when it is large enough.
    fn write_rows(&mut self, maker: &Maker) -> Result<(), SealError> {
        if self.builder.rows() == 0 {
            return Ok(());
        }
        let pieces = self.builder.take();
        self.writer(maker)?;
        let writer = self.writer.as_mut().expect("made above");
        let failed = |why| SealError::parquet(&self.table.qualified(), why);
        writer.add(pieces).map_err(failed)?;
        if writer.is_full() {
            writer.end_group().map_err(failed)?;
        }
        self.encoded_bytes = writer.encoded();
        Ok(())
    }

    fn writer(&mut self, maker: &Maker) -> Result<(), SealError> {
        if self.writer.is_none() {
            let sink = maker.sink(&self.table.qualified())?;
            let properties = properties(&maker.source, &self.table, self.layout);
            let habits = match self.layout {
                Layout::Rows => maker.habits(&self.table),
                Layout::Large => Habits::default(),
            };
            let schema = arrow_schema(&self.laid_down);
            let made = Writer::new(sink, &schema, properties, habits, maker.terms());
            let made = made.map_err(|why| SealError::parquet(&self.table.qualified(), why))?;
            self.writer = Some(made);
        }
        Ok(())
    }
}

impl Encode for Encoder {
    /// What gathered before is written first when it is enough, so that a large row is alone in its batch.
    fn append(&mut self, maker: &Maker, row: &RowIn<'_>) -> Result<(), SealError> {
        self.make_room(maker, row.weight)?;
        self.builder
            .append(row.meta, row.row, row.old, row.bytes, row.decode)
            .map_err(|why| SealError::Decode { what: self.table.qualified(), why })?;
        self.count(&Metas::Same(row.meta), 1);
        Ok(())
    }

    fn append_block(&mut self, maker: &Maker, rows: &BlockIn<'_>) -> Result<(), SealError> {
        self.make_room(maker, rows.block.cells.bytes())?;
        self.builder
            .append_block(rows.metas, &rows.block, rows.decode)
            .map_err(|why| SealError::Decode { what: self.table.qualified(), why })?;
        self.count(&rows.metas, rows.block.cells.rows());
        Ok(())
    }

    fn declare(&mut self, op: Op) {
        self.rows.entry(op).or_default();
    }

    fn write_all(&mut self, maker: &Maker) -> Result<(), SealError> {
        self.write_rows(maker)?;
        match &mut self.writer {
            Some(writer) => {
                writer.end_group().map_err(|why| SealError::parquet(&self.table.qualified(), why))
            }
            None => Ok(()),
        }
    }

    fn finish(
        mut self: Box<Self>,
        maker: &Maker,
        key: &dyn Fn(&str) -> String,
    ) -> Result<Draft, SealError> {
        self.write_rows(maker)?;
        self.writer(maker)?;
        let mut writer = self.writer.take().expect("made above");
        let failed = |why| SealError::parquet(&self.table.qualified(), why);
        writer.end_group().map_err(failed)?;
        if self.layout == Layout::Rows {
            maker.keep_habits(&self.table, writer.habits());
        }
        let sink = writer.into_inner().map_err(failed)?;
        sink.finish(&self.table, self.rows, key)
    }

    fn table(&self) -> &Arc<Table> {
        &self.table
    }

    fn layout(&self) -> Layout {
        self.layout
    }

    fn range(&self) -> Option<(Sequence, Sequence)> {
        self.range
    }

    fn encoded(&self) -> u64 {
        self.encoded_bytes
    }

    fn has_file(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| writer.inner().has_file())
    }

    fn memory(&self) -> (usize, usize) {
        let Some(writer) = &self.writer else {
            return (0, self.builder.bytes() + self.columns * BUILDER_MEMORY);
        };
        let groups = writer.groups() * self.columns * GROUP_MEMORY;
        let own = WRITER_MEMORY + groups + writer.inner().memory();
        let builder = self.columns * BUILDER_MEMORY;
        (self.builder.bytes() + writer.memory(), own + builder)
    }
}

impl<'a> RowIn<'a> {
    /// A row with what we add to it (`meta`). The cells point into `bytes`.
    pub(super) fn new(
        meta: RowMeta,
        row: Option<&'a Row>,
        old: Option<(OldRow, &'a Row)>,
        bytes: &'a [u8],
        decode: &'a dyn Decode,
    ) -> Self {
        let rows = row.into_iter().chain(old.map(|(_, row)| row));
        let weight = rows.flatten().map(Cell::len).sum();
        Self { meta, row, old, bytes, decode, weight }
    }

    /// What we add to it.
    pub(super) fn meta(&self) -> &RowMeta {
        &self.meta
    }

    /// Its cells: of the new row, or else of the old one.
    #[cfg(feature = "sim")]
    pub(super) fn cells(&self) -> &[Cell] {
        self.row.or(self.old.map(|(_, row)| row)).map_or(&[], Vec::as_slice)
    }

    /// What they point into.
    #[cfg(feature = "sim")]
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// Bytes of its values.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }
}

fn properties(source: &str, table: &Table, layout: Layout) -> WriterProperties {
    let types: serde_json::Map<_, _> = table
        .columns
        .iter()
        .map(|column| (file_name(&column.name), column.source_type.clone().into()))
        .collect();
    let mut metadata = file_metadata(table);
    metadata.push(KeyValue::new("lakehead.source".into(), source.to_owned()));
    let types = serde_json::Value::Object(types).to_string();
    metadata.push(KeyValue::new("lakehead.source_types".into(), types));
    let zstd = ZstdLevel::try_new(ZSTD_LEVEL).expect("1 is a level");
    let properties = WriterProperties::builder()
        .set_created_by(format!("lakehead {}", env!("CARGO_PKG_VERSION")))
        .set_compression(Compression::ZSTD(zstd))
        .set_key_value_metadata(Some(metadata));
    match layout {
        Layout::Rows => distinct(table)
            .map(|column| ColumnPath::new(vec![column]))
            .fold(properties, |to, path| to.set_column_dictionary_enabled(path, false))
            .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX)
            .set_data_page_size_limit(PAGE_BYTES)
            .build(),
        Layout::Large => properties
            .set_writer_version(WriterVersion::PARQUET_2_0)
            .set_encoding(Encoding::PLAIN)
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_data_page_size_limit(usize::MAX)
            .set_write_batch_size(1)
            .build(),
    }
}

/// Columns whose values, of fixed width, hardly ever come twice: a dictionary of them costs a look-up for
/// each, and holds them all beside their numbers.
fn distinct(table: &Table) -> impl Iterator<Item = String> {
    let fixed = |lake| matches!(lake, LakeType::Int32 | LakeType::Int64 | LakeType::Uuid);
    let key = match &table.key[..] {
        [key] => table.columns.iter().find(|column| column.name == *key && fixed(column.lake)),
        _ => None,
    };
    key.map(|column| file_name(&column.name)).into_iter().chain(["_sequence".into()])
}

/// Rows whose values weigh more than this are written in [`Layout::Large`].
pub(super) const LARGE_ROW_BYTES: usize = LARGE_BYTES;
/// Rows and bytes that go to the writer at once.
const BATCH_ROWS: usize = 8192;
/// As above.
const BATCH_BYTES: usize = 1 << 20;
/// Of a column: one with more distinct values soon costs more to look up than it saves.
const DICTIONARY_BYTES_MAX: usize = 128 << 10;
/// Of a column, before it is compressed, about: what is written, copied and compressed of it stays in the processor's
/// cache meanwhile.
const PAGE_BYTES: usize = 256 << 10;
/// Level 1: level 3 buys nothing inside Parquet (FACTS §4).
const ZSTD_LEVEL: i32 = 1;
/// `_op`, `_sequence` and so on, as leaves.
const OWN_COLUMNS: usize = 10;
/// What an empty column of a [`RowBuilder`] costs.
const BUILDER_MEMORY: usize = 1 << 10;
/// What a writer costs by itself.
const WRITER_MEMORY: usize = 32 << 10;
/// What the metadata of a column in an ended row group costs.
const GROUP_MEMORY: usize = 1 << 10;

#[cfg(test)]
mod tests {
    use arrow_schema::DataType;

    use super::*;
    use crate::seal::memory::table;

    #[test]
    fn what_never_comes_twice_has_no_dictionary() {
        let mut orders = table(1, "a");
        let has = |table: &Table, column: &str| {
            properties("shop", table, Layout::Rows).dictionary_enabled(&ColumnPath::from(column))
        };
        let key = orders.key[0].clone();
        assert!(!has(&orders, "_sequence") && !has(&orders, &key));
        assert!(has(&orders, "_position") && has(&orders, &orders.columns[1].name));
        // Either half of such a key comes many times.
        orders.key.push(orders.columns[1].name.clone());
        assert!(has(&orders, &key));
    }

    #[test]
    fn a_uuid_is_a_text_where_that_is_asked_for() {
        let mut orders = table(1, "a");
        orders.columns[0].lake = LakeType::Uuid;
        let orders = Arc::new(orders);
        let laid_down = |uuids| laid_down(&orders, uuids);
        assert!(Arc::ptr_eq(&laid_down(Uuids::Uuid), &orders), "nothing is another way");
        let text = laid_down(Uuids::Text);
        let field = &arrow_schema(&text).fields()[0].clone();
        assert_eq!((field.data_type(), field.extension_type_name()), (&DataType::Utf8, None));
        assert_eq!(field.metadata()["source_type"], orders.columns[0].source_type);
        assert_eq!(text.columns[1..], orders.columns[1..]);
        let none = Arc::new(table(1, "a"));
        assert!(Arc::ptr_eq(&super::laid_down(&none, Uuids::Text), &none), "nothing to lay down");
    }
}
