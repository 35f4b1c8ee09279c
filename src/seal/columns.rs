//! Rows as Arrow record batches, in the columns that the lake's files have (DESIGN §7). Pure.
//!
//! First the table's own columns in their order, all nullable. Then
//!
//! | column | type | |
//! |---|---|---|
//! | `_op` | UTF8 | `S`, `I`, `U`, `D`, `T` or `R` |
//! | `_sequence` | INT64 | 0 for `S` and `R` |
//! | `_position` | UTF8 | zero-padded: text order is log order |
//! | `_committed_at` | TIMESTAMP(µs, UTC) | of a snapshot: when it was taken |
//! | `_xid` | INT64, nullable | NULL for a snapshot |
//! | `_unchanged` | LIST&lt;UTF8&gt; | columns that the server left out; empty if none |
//! | `_exact` | MAP&lt;UTF8, UTF8&gt; | column → text, where the typed column cannot hold the value; empty if none |
//! | `_key` | MAP&lt;UTF8, UTF8&gt;, nullable | of an update whose key changed: old key column → text |
//!
//! An update of a table with REPLICA IDENTITY FULL and no primary key has the whole old row in
//! `_key`. A delete has its key (or the whole old row) in the table's columns. A truncate has NULLs.
//! A column of the table named like one of ours, or like the folders of days (`dt=…`, a column of their own to who reads all
//! files as one table), in any case and with any number of underscores
//! after it, gets one more underscore: `_op` is `_op_`, `_OP_` is `_OP__`. Three maps name columns as
//! the file does. **Invariant:** a value stands in exactly one of column, `_unchanged`, `_exact`.

use std::{collections::HashMap, sync::Arc};

use arrow_array::RecordBatch;
use arrow_schema::{Field, Schema, SchemaRef};
use parquet::file::metadata::KeyValue;

use super::{
    arrays::{ColumnArray, data_type, width_bytes},
    meta::{self, MetaArrays, Pairs},
};
pub use super::{
    meta::{Metas, RowMeta},
    pieces::Piece,
};
use crate::journal::{
    Cell, Cells, Column, Decode, DecodeError, Identity, LakeType, OldRow, Plain, Row, Table, Value,
};

/// Rows of one table on their way into a file.
#[derive(Debug)]
pub struct RowBuilder {
    schema: SchemaRef,
    table: Table,
    /// As in the file.
    names: Vec<String>,
    /// Columns of the primary key.
    key: Vec<usize>,
    arrays: Vec<ColumnArray>,
    /// Of each column, once the first row came: how most of its values are read.
    plain: Vec<Option<Plain>>,
    meta: MetaArrays,
    scratch: String,
    rows: usize,
    bytes: usize,
    /// Of every row.
    row_bytes: usize,
}

/// Rows of one table that are read a column after the other.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// Their cells.
    pub cells: &'a Cells,
    /// What these point into.
    pub bytes: &'a [u8],
}

/// The schema of a table's files.
pub fn arrow_schema(table: &Table) -> SchemaRef {
    let mut fields: Vec<Field> = table.columns.iter().map(own_field).collect();
    fields.extend(meta::fields());
    let metadata = described(table).map(|(key, value)| (key.to_owned(), value));
    Arc::new(Schema::new_with_metadata(fields, HashMap::from(metadata)))
}

/// The schema's metadata as Parquet keeps it, for [`WriterProperties`]: its Arrow writer hides them
/// inside `ARROW:schema`, where not every reader looks.
///
/// [`WriterProperties`]: parquet::file::properties::WriterProperties
pub fn file_metadata(table: &Table) -> Vec<KeyValue> {
    described(table).map(|(key, value)| KeyValue::new(key.to_owned(), value)).into()
}

/// Key of the file's metadata that holds [`Table::version`].
pub const VERSION_KEY: &str = "lakehead.version";

fn described(table: &Table) -> [(&'static str, String); 3] {
    [
        ("lakehead.schema", table.schema.clone()),
        ("lakehead.table", table.name.clone()),
        (VERSION_KEY, table.version.to_string()),
    ]
}

/// What a column of the table is called in its files.
pub fn file_name(column: &str) -> String {
    if is_like_partition(column) { format!("{column}_") } else { file_name_before(column) }
}

/// What the columns are called of a file that has rows of `version`, and columns by the names that `has` knows: in the
/// files of earlier firmware one like [`PARTITION`] is called as in the table.
pub fn spelling(version: &Table, has: impl Fn(&str) -> bool) -> fn(&str) -> String {
    let mut like = version.columns.iter().filter(|column| is_like_partition(&column.name));
    if like.all(|column| has(&column.name)) { file_name_before } else { file_name }
}

fn file_name_before(column: &str) -> String {
    let stem = column.trim_end_matches('_');
    let ours = OUR_NAMES.iter().any(|name| name.eq_ignore_ascii_case(stem));
    if ours { format!("{column}_") } else { column.to_owned() }
}

/// Whether [`spelling`] tells of it: how it is spelt tells files of earlier firmware from others.
pub fn is_like_partition(column: &str) -> bool {
    column.trim_end_matches('_').eq_ignore_ascii_case(PARTITION)
}

impl RowBuilder {
    /// An empty builder for one version of a table.
    pub fn new(table: &Table) -> Self {
        let position_of = |name: &String| table.columns.iter().position(|c| c.name == *name);
        let widths = table.columns.iter().map(|column| width_bytes(column.lake));
        Self {
            schema: arrow_schema(table),
            names: table.columns.iter().map(|column| file_name(&column.name)).collect(),
            key: table.key.iter().filter_map(position_of).collect(),
            arrays: table.columns.iter().map(|column| ColumnArray::new(column.lake)).collect(),
            plain: vec![],
            meta: MetaArrays::new(),
            scratch: String::new(),
            rows: 0,
            bytes: 0,
            row_bytes: widths.sum::<usize>() + META_ROW_BYTES,
            table: table.clone(),
        }
    }

    /// Appends a row. `row` is the new one, `old` the old one as the change gives it; a delete has
    /// only the latter, a truncate neither. `bytes` is what their cells point into.
    ///
    /// # Errors
    ///
    /// The cells are no row of this table, or a value is not of its type. Part of the row may have
    /// been appended: the builder is of no more use.
    pub fn append(
        &mut self,
        meta: RowMeta,
        row: Option<&Row>,
        old: Option<(OldRow, &Row)>,
        bytes: &[u8],
        decode: &dyn Decode,
    ) -> Result<(), DecodeError> {
        for cells in row.into_iter().chain(old.map(|(_, cells)| cells)) {
            self.check_width(cells)?;
        }
        self.begin(decode, ColumnArray::make_room);
        let key = match (row, old) {
            (Some(new), old) => {
                let full = old.filter(|(kind, _)| *kind == OldRow::Full).map(|(_, cells)| cells);
                self.append_values(new, full, bytes, decode)?;
                self.append_key(new, old, bytes, decode)?
            }
            (None, Some((_, old))) => {
                self.append_values(old, None, bytes, decode)?;
                false
            }
            (None, None) => {
                self.arrays.iter_mut().for_each(ColumnArray::push_null);
                false
            }
        };
        self.meta.append(meta, key);
        self.rows += 1;
        self.bytes += self.row_bytes;
        Ok(())
    }

    /// Appends rows a column after the other: what [`RowBuilder::append`] would for each of them, were its cells those of its
    /// new row and no old one there, at less cost. `metas` has as many as the block has rows.
    ///
    /// # Errors
    ///
    /// As [`RowBuilder::append`].
    pub fn append_block(
        &mut self,
        metas: Metas<'_>,
        block: &Block<'_>,
        decode: &dyn Decode,
    ) -> Result<(), DecodeError> {
        let width = self.arrays.len();
        let rows = block.cells.rows();
        if block.cells.columns() != width {
            return Err(self.another_width(block.cells.columns()));
        }
        self.begin(decode, ColumnArray::begin_run);
        let mut odd = vec![];
        for index in 0..width {
            self.append_column(index, block, decode, &mut odd)?;
        }
        if odd.is_empty() {
            self.meta.append_all(&metas, rows);
        } else {
            // Stable: of a row they stay in the order of the columns.
            odd.sort_by_key(|(row, ..)| *row);
            let mut odd = odd.into_iter().peekable();
            for row in 0..rows {
                while let Some((_, index, text)) = odd.next_if(|(of, ..)| *of == row) {
                    let name = &self.names[index];
                    self.bytes += name.len() + text.as_ref().map_or(0, String::len);
                    match text {
                        None => self.meta.unchanged().push(name),
                        Some(text) => {
                            let column = &self.table.columns[index];
                            push_pair(self.meta.exact(), column, name, Some(&text))?;
                        }
                    }
                }
                self.meta.append(metas.of(row), false);
            }
        }
        self.rows += rows;
        self.bytes += self.row_bytes * rows;
        Ok(())
    }

    /// Appends one column of a block. Cells whose value stands elsewhere are added to `odd`: row, column and
    /// exact text, or none of those that are unchanged.
    fn append_column(
        &mut self,
        index: usize,
        block: &Block<'_>,
        decode: &dyn Decode,
        odd: &mut Vec<(usize, usize, Option<String>)>,
    ) -> Result<(), DecodeError> {
        let (column, array) = (&self.table.columns[index], &mut self.arrays[index]);
        let places = block.cells.column(index);
        let mut row = 0;
        loop {
            if let Some(plain) = &self.plain[index] {
                row += array.extend(plain, &places[row..], block.bytes, &mut self.bytes);
            }
            let Some(cell) = places.get(row).map(|place| place.cell()) else { return Ok(()) };
            match decoded(column, &cell, block.bytes, decode)? {
                None => {
                    array.push_null();
                    odd.push((row, index, None));
                }
                Some(Value::Null) => array.push_null(),
                Some(Value::Exact(text)) => {
                    array.push_null();
                    odd.push((row, index, Some(text.into_owned())));
                }
                Some(value) => {
                    self.bytes += array.push(&value).ok_or_else(|| wrong_value(column))?;
                }
            }
            row += 1;
        }
    }

    /// Before a row is appended.
    fn begin(&mut self, decode: &dyn Decode, first: fn(&mut ColumnArray)) {
        if self.plain.len() < self.arrays.len() {
            self.plain = self.table.columns.iter().map(|column| decode.plain(column)).collect();
        }
        if self.rows == 0 {
            self.arrays.iter_mut().for_each(first);
        }
    }

    /// Rows appended since the last [`RowBuilder::finish`].
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that these rows take in memory, about. Arrow holds at most 2 GiB of one column in a
    /// batch: finish long before that.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives the rows, and begins anew.
    pub fn finish(&mut self) -> RecordBatch {
        let pieces = self.take();
        let arrays = pieces.iter().map(Piece::array).collect::<Result<_, _>>();
        let arrays = arrays.expect("rows of a batch are bounded, and so are these arrays");
        RecordBatch::try_new(self.schema.clone(), arrays)
            .expect("every append makes each array longer by one, of the type in the schema")
    }

    /// Gives the rows, a piece of each column of the schema, and begins anew.
    pub fn take(&mut self) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = self.arrays.iter_mut().map(ColumnArray::finish).collect();
        pieces.extend(self.meta.finish());
        self.rows = 0;
        self.bytes = 0;
        pieces
    }

    fn append_values(
        &mut self,
        cells: &Row,
        full: Option<&Row>,
        bytes: &[u8],
        decode: &dyn Decode,
    ) -> Result<(), DecodeError> {
        for (index, cell) in cells.iter().enumerate() {
            let column = &self.table.columns[index];
            let cell = known(cell, full.map(|old| &old[index]));
            if *cell == Cell::Unchanged {
                self.arrays[index].push_null();
                self.meta.unchanged().push(&self.names[index]);
                self.bytes += self.names[index].len();
                continue;
            }
            let plain = match (cell, &self.plain[index]) {
                (Cell::Binary(range), Some(plain)) => {
                    bytes.get(range.clone()).and_then(|cell| plain.value(cell))
                }
                (Cell::Null, _) => Some(Value::Null),
                _ => None,
            };
            let value = match plain {
                Some(value) => value,
                None => decode.value(column, cell, bytes)?,
            };
            match value {
                Value::Null => self.arrays[index].push_null(),
                Value::Exact(text) => {
                    self.arrays[index].push_null();
                    push_pair(self.meta.exact(), column, &self.names[index], Some(&text))?;
                    self.bytes += self.names[index].len() + text.len();
                }
                value => {
                    let pushed = self.arrays[index].push(&value);
                    self.bytes += pushed.ok_or_else(|| wrong_value(column))?;
                }
            }
        }
        Ok(())
    }

    /// Fills `_key`: the identity columns as the server named them, or, where it sent the whole old
    /// row, the primary key if it changed; without one all of it. False: NULL.
    fn append_key(
        &mut self,
        new: &Row,
        old: Option<(OldRow, &Row)>,
        bytes: &[u8],
        decode: &dyn Decode,
    ) -> Result<bool, DecodeError> {
        let Some((kind, old)) = old else { return Ok(false) };
        let by_key = kind == OldRow::Full && !self.key.is_empty();
        if by_key && self.key.iter().all(|index| same(&old[*index], &new[*index], bytes)) {
            return Ok(false);
        }
        for (index, cell) in old.iter().enumerate() {
            let column = &self.table.columns[index];
            let named = match kind {
                OldRow::Full => !by_key || self.key.contains(&index),
                OldRow::Key => column.identity || self.table.identity == Identity::Full,
            };
            if !named || *cell == Cell::Unchanged {
                continue;
            }
            let value = decode.value(column, cell, bytes)?;
            self.scratch.clear();
            value.print(column.lake, &mut self.scratch);
            let text = (value != Value::Null).then_some(self.scratch.as_str());
            push_pair(self.meta.key(), column, &self.names[index], text)?;
            self.bytes += self.names[index].len() + self.scratch.len();
        }
        Ok(true)
    }

    fn check_width(&self, cells: &Row) -> Result<(), DecodeError> {
        if cells.len() == self.arrays.len() {
            return Ok(());
        }
        Err(self.another_width(cells.len()))
    }

    fn another_width(&self, found: usize) -> DecodeError {
        DecodeError::Columns { table: self.table.qualified(), expected: self.arrays.len(), found }
    }
}

/// The cell, or the old row's where the server left the new one out and sent the whole old row.
/// (An old NULL is not believed: some servers send it for a column added with a default.)
fn known<'a>(cell: &'a Cell, old: Option<&'a Cell>) -> &'a Cell {
    match (cell, old) {
        (Cell::Unchanged, Some(old @ (Cell::Binary(_) | Cell::Text(_)))) => old,
        _ => cell,
    }
}

/// Whether a key column has the same value in both rows.
fn same(old: &Cell, new: &Cell, bytes: &[u8]) -> bool {
    match (old, new) {
        (Cell::Binary(old), Cell::Binary(new)) | (Cell::Text(old), Cell::Text(new)) => {
            bytes.get(old.clone()) == bytes.get(new.clone())
        }
        (Cell::Null, Cell::Null) | (_, Cell::Unchanged) => true,
        _ => false,
    }
}

/// The value of a cell; `None`: the server left it out.
fn decoded<'a>(
    column: &Column,
    cell: &Cell,
    bytes: &'a [u8],
    decode: &dyn Decode,
) -> Result<Option<Value<'a>>, DecodeError> {
    match cell {
        Cell::Unchanged => Ok(None),
        cell => decode.value(column, cell, bytes).map(Some),
    }
}

fn push_pair(
    pairs: &mut Pairs,
    column: &Column,
    name: &str,
    text: Option<&str>,
) -> Result<(), DecodeError> {
    pairs.push(name, text).ok_or_else(|| wrong_value(column))
}

fn wrong_value(column: &Column) -> DecodeError {
    DecodeError::Value { column: column.name.clone(), source_type: column.source_type.clone() }
}

fn own_field(column: &Column) -> Field {
    let name = file_name(&column.name);
    let mut metadata = HashMap::from([("source_type".to_owned(), column.source_type.clone())]);
    if name != column.name {
        metadata.insert("source_name".into(), column.name.clone());
    }
    if column.lake == LakeType::Uuid {
        metadata.insert("ARROW:extension:name".into(), "arrow.uuid".into());
    }
    Field::new(name, data_type(column.lake), true).with_metadata(metadata)
}

/// The columns after the table's own.
pub const OUR_NAMES: [&str; 8] =
    ["_op", "_sequence", "_position", "_committed_at", "_xid", "_unchanged", "_exact", "_key"];

/// What readers of all files of a table as one find in the names of their folders.
const PARTITION: &str = "dt";

/// What a row takes in our columns.
const META_ROW_BYTES: usize = 80;

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use arrow_array::{
        Array,
        cast::AsArray,
        types::{Decimal128Type, Int64Type, TimestampMicrosecondType},
    };
    use parquet::{
        arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
        basic::LogicalType,
        file::{metadata::ParquetMetaData, properties::WriterProperties},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::{
        journal::{Commit, Event, Op, Place, RecordKind},
        units::{Position, Timestamp},
    };

    /// Cells hold text: an integer, `inf` (which no column holds) or anything else; or an integer or a text in
    /// binary.
    struct Plain;

    impl Decode for Plain {
        fn decode(&mut self, _: RecordKind, _: &[u8]) -> Result<Event, DecodeError> {
            Ok(Event::Nothing)
        }

        fn commit(&self, _: RecordKind, _: &[u8]) -> Option<Commit> {
            None
        }

        fn block(
            &self,
            _: &Table,
            batch: &[u8],
            _: usize,
            _: &mut Cells,
        ) -> Result<usize, DecodeError> {
            Ok(batch.len())
        }

        fn value<'a>(
            &self,
            column: &Column,
            cell: &Cell,
            bytes: &'a [u8],
        ) -> Result<Value<'a>, DecodeError> {
            let range = match cell {
                Cell::Binary(range) => {
                    let read =
                        self.plain(column).and_then(|plain| plain.value(&bytes[range.clone()]));
                    return read.ok_or_else(|| wrong_value(column));
                }
                Cell::Text(range) => range,
                Cell::Null | Cell::Unchanged => return Ok(Value::Null),
            };
            let text = std::str::from_utf8(&bytes[range.clone()]).unwrap();
            Ok(match column.lake {
                _ if text == "inf" => Value::Exact(Cow::Borrowed(text)),
                LakeType::Int64 => Value::Int(text.parse().unwrap()),
                LakeType::Decimal { .. } => Value::Decimal(text.parse().unwrap()),
                LakeType::Uuid => Value::Bytes(Cow::Borrowed(text.as_bytes())),
                _ => Value::Text(Cow::Borrowed(text)),
            })
        }

        fn plain(&self, column: &Column) -> Option<crate::journal::Plain> {
            match column.lake {
                LakeType::Int64 => Some(crate::journal::Plain::Int64),
                LakeType::Text => Some(crate::journal::Plain::Text),
                _ => None,
            }
        }

        fn tables(&self) -> Vec<Arc<Table>> {
            vec![]
        }
    }

    fn column(name: &str, lake: LakeType, identity: bool) -> Column {
        Column {
            name: name.into(),
            source_type: "any".into(),
            type_id: 0,
            type_modifier: -1,
            lake,
            identity,
            not_null: false,
            default: None,
            generated: None,
            number: None,
            before: None,
        }
    }

    fn table(columns: Vec<Column>, key: &[&str], identity: Identity) -> Table {
        Table {
            id: 1,
            schema: "public".into(),
            name: "t".into(),
            version: 3,
            columns,
            key: key.iter().map(|name| (*name).into()).collect(),
            identity,
            types: vec![],
        }
    }

    fn meta(op: Op) -> RowMeta {
        RowMeta {
            op,
            sequence: 7,
            position: Position(0x16_0000_0001),
            committed_at: Timestamp(42),
            xid: Some(u32::MAX),
        }
    }

    fn pairs(map: &dyn Array, row: usize) -> Option<Vec<(String, Option<String>)>> {
        let map = map.as_map();
        let entries = (!map.is_null(row)).then(|| map.value(row))?;
        let values = entries.column(1).as_string::<i32>();
        let keys = entries.column(0).as_string::<i32>().iter().flatten().map(str::to_owned);
        Some(keys.zip(values.iter().map(|value| value.map(str::to_owned))).collect())
    }

    fn parquet(table: &Table, rows: &RecordBatch) -> (Vec<u8>, ParquetMetaData) {
        let metadata = Some(file_metadata(table));
        let properties = WriterProperties::builder().set_key_value_metadata(metadata).build();
        let mut file = vec![];
        let mut writer = ArrowWriter::try_new(&mut file, rows.schema(), Some(properties)).unwrap();
        writer.write(rows).unwrap();
        let closed = writer.close().unwrap();
        (file, closed)
    }

    fn two_columns(identity: Identity, key: &[&str]) -> RowBuilder {
        RowBuilder::new(&table(
            vec![column("id", LakeType::Int64, true), column("note", LakeType::Text, false)],
            key,
            identity,
        ))
    }

    #[test]
    fn a_value_stands_in_its_column_or_is_named() {
        let mut builder = two_columns(Identity::Default, &["id"]);
        let row = vec![Cell::Text(0..2), Cell::Unchanged];
        let old = vec![Cell::Text(2..3), Cell::Null];
        builder
            .append(meta(Op::Update), Some(&row), Some((OldRow::Key, &old)), b"429", &Plain)
            .unwrap();
        let exact = vec![Cell::Text(0..3), Cell::Null];
        builder.append(meta(Op::Insert), Some(&exact), None, b"inf", &Plain).unwrap();
        builder.append(meta(Op::Delete), None, Some((OldRow::Key, &old)), b"429", &Plain).unwrap();
        builder.append(meta(Op::Truncate), None, None, b"", &Plain).unwrap();
        assert_eq!(builder.rows(), 4);
        let batch = builder.finish();
        assert_eq!((builder.rows(), builder.bytes()), (0, 0));
        let ids = batch.column(0).as_primitive::<Int64Type>();
        assert_eq!(ids.iter().collect::<Vec<_>>(), [Some(42), None, Some(9), None]);
        let unchanged = batch.column_by_name("_unchanged").unwrap().as_list::<i32>();
        assert_eq!(unchanged.value(0).as_string::<i32>().value(0), "note");
        assert_eq!(unchanged.value(1).len(), 0);
        let exact = batch.column_by_name("_exact").unwrap();
        assert_eq!(pairs(exact, 0), Some(vec![]));
        assert_eq!(pairs(exact, 1), Some(vec![("id".into(), Some("inf".into()))]));
        let key = batch.column_by_name("_key").unwrap();
        assert_eq!(pairs(key, 0), Some(vec![("id".into(), Some("9".into()))]));
        assert_eq!(pairs(key, 2), None);
        let positions = batch.column_by_name("_position").unwrap().as_string::<i32>();
        assert_eq!(positions.value(3), "00000016/00000001");
        let at = batch.column_by_name("_committed_at").unwrap();
        assert_eq!(at.as_primitive::<TimestampMicrosecondType>().value(0), 42);
    }

    #[test]
    fn a_whole_old_row_fills_what_the_server_left_out() {
        let mut builder = two_columns(Identity::Full, &[]);
        let new = vec![Cell::Text(0..1), Cell::Unchanged];
        let old = vec![Cell::Text(0..1), Cell::Text(1..4)];
        builder
            .append(meta(Op::Update), Some(&new), Some((OldRow::Full, &old)), b"1big", &Plain)
            .unwrap();
        let batch = builder.finish();
        assert_eq!(batch.column(1).as_string::<i32>().value(0), "big");
        assert_eq!(batch.column_by_name("_unchanged").unwrap().as_list::<i32>().value(0).len(), 0);
        let whole = vec![("id".into(), Some("1".into())), ("note".into(), Some("big".into()))];
        assert_eq!(pairs(batch.column_by_name("_key").unwrap(), 0), Some(whole));
    }

    #[test]
    fn a_whole_old_row_names_the_key_only_where_it_changed() {
        let mut builder = two_columns(Identity::Full, &["id"]);
        let old = vec![Cell::Text(0..1), Cell::Null];
        for new in [Cell::Text(1..2), Cell::Text(2..3)] {
            let new = vec![new, Cell::Null];
            let old = Some((OldRow::Full, &old));
            builder.append(meta(Op::Update), Some(&new), old, b"112", &Plain).unwrap();
        }
        let batch = builder.finish();
        let key = batch.column_by_name("_key").unwrap();
        assert_eq!(pairs(key, 0), None);
        assert_eq!(pairs(key, 1), Some(vec![("id".into(), Some("1".into()))]));
    }

    #[test]
    fn our_names_stay_ours_and_no_two_names_meet() {
        let names = ["_op", "_op_", "_OP", "_key__", "_opx", "op", "_xid"].map(file_name);
        assert_eq!(names, ["_op_", "_op__", "_OP_", "_key___", "_opx", "op", "_xid_"]);
        let table = table(vec![column("_op", LakeType::Text, false)], &[], Identity::Nothing);
        let schema = arrow_schema(&table);
        assert_eq!(schema.field(0).metadata()["source_name"], "_op");
        assert_eq!(schema.fields().iter().filter(|field| field.name() == "_op").count(), 1);
    }

    #[test]
    fn a_column_like_the_partition_is_found_in_files_of_either_spelling() {
        assert_eq!(["dt", "DT_", "dts", "d_t"].map(file_name), ["dt_", "DT__", "dts", "d_t"]);
        for names in [&["dt"][..], &["dt_"], &["dt", "dt_"], &["dt__", "dt", "dt_"], &["DT", "_op"]]
        {
            let columns = names.iter().map(|name| column(name, LakeType::Text, false)).collect();
            let table = table(columns, &[], Identity::Nothing);
            for written in [file_name, file_name_before] {
                let files: Vec<String> = names.iter().map(|name| written(name)).collect();
                let read = spelling(&table, |name| files.iter().any(|own| own == name));
                let found: Vec<String> = names.iter().map(|name| read(name)).collect();
                assert_eq!(found, files, "{names:?}");
            }
        }
    }

    #[test]
    fn tables_of_no_columns_and_of_1600_go_through_parquet() {
        for count in [0, 1_600] {
            let columns = (0..count).map(|n| column(&format!("c{n}"), LakeType::Int64, false));
            let table = table(columns.collect(), &[], Identity::Nothing);
            let mut builder = RowBuilder::new(&table);
            let row = vec![Cell::Text(0..1); count];
            builder.append(meta(Op::Snapshot), Some(&row), None, b"5", &Plain).unwrap();
            let written = builder.finish();
            let (file, _) = parquet(&table, &written);
            let reader =
                ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(file)).unwrap();
            assert_eq!(reader.schema().as_ref(), written.schema().as_ref());
            let read = reader.build().unwrap().next().unwrap().unwrap();
            assert_eq!(read.columns(), written.columns());
        }
    }

    #[test]
    fn a_uuid_and_a_decimal_are_parquets_own() {
        let decimal = LakeType::Decimal { precision: 38, scale: 2 };
        let columns = vec![column("u", LakeType::Uuid, true), column("d", decimal, false)];
        let table = table(columns, &[], Identity::Nothing);
        let mut builder = RowBuilder::new(&table);
        let row = vec![Cell::Text(0..16), Cell::Text(0..4)];
        builder.append(meta(Op::Snapshot), Some(&row), None, b"0123456789abcdef", &Plain).unwrap();
        let written = builder.finish();
        assert_eq!(written.column(1).as_primitive::<Decimal128Type>().value(0), 123);
        let (_, closed) = parquet(&table, &written);
        let leaf = closed.file_metadata().schema_descr().column(0);
        assert_eq!(leaf.logical_type_ref(), Some(&LogicalType::Uuid));
    }

    const DECIMAL: LakeType = LakeType::Decimal { precision: 38, scale: 2 };

    /// Rows of `columns` columns.
    fn block(columns: usize, cells: &[Cell]) -> Cells {
        let mut block = Cells::new(columns, cells.len() / columns, usize::MAX);
        for row in cells.chunks(columns) {
            (0..).zip(row).for_each(|(column, cell)| block.set(column, Place::of(cell).unwrap()));
            block.end(0);
        }
        block
    }

    /// A cell, and the bytes that it points to.
    fn any_cell(lake: LakeType) -> impl Strategy<Value = (Cell, Vec<u8>)> {
        let text = |bytes: Vec<u8>| (Cell::Text(0..bytes.len()), bytes);
        let binary = |bytes: Vec<u8>| (Cell::Binary(0..bytes.len()), bytes);
        prop_oneof![
            40 => match lake {
                LakeType::Int64 => any::<[u8; 8]>().prop_map(Vec::from).prop_map(binary).boxed(),
                LakeType::Text => any::<String>().prop_map(Vec::from).prop_map(binary).boxed(),
                _ => any::<i32>().prop_map(move |n| text(n.to_string().into())).boxed(),
            },
            60 => match lake {
                LakeType::Int64 => Just(binary(7_i64.to_be_bytes().into())).boxed(),
                LakeType::Text => Just(binary(b"again".into())).boxed(),
                _ => Just(text(b"7".into())).boxed(),
            },
            8 => Just((Cell::Null, vec![])),
            4 => Just((Cell::Unchanged, vec![])),
            4 => Just(text(b"inf".into())),
            4 => any::<i32>().prop_map(move |n| text(n.to_string().into())),
            1 => any::<[u8; 9]>().prop_map(move |n| binary(n.into())),
        ]
    }

    /// A block of one value in all rows is held once, until another comes.
    #[test]
    fn what_all_rows_have_is_held_once() {
        let table = table(
            vec![column("n", LakeType::Int64, true), column("t", LakeType::Text, false)],
            &["n"],
            Identity::Default,
        );
        let bytes = [&7_i64.to_be_bytes()[..], &8_i64.to_be_bytes(), b"same"].concat();
        let row = |n: usize| [Cell::Binary(n * 8..n * 8 + 8), Cell::Binary(16..20)];
        let mut builder = RowBuilder::new(&table);
        let mut add = |rows: &[Cell]| {
            let block = Block { cells: &block(2, rows), bytes: &bytes };
            builder.append_block(Metas::Same(meta(Op::Snapshot)), &block, &Plain).unwrap();
        };
        add(&[row(0), row(0)].concat());
        add(&[row(0), row(1), row(0)].concat());
        assert_eq!(builder.bytes(), 5 * (builder.row_bytes + 4));
        let pieces = builder.take();
        assert!(pieces.iter().all(|piece| piece.rows() == 5));
        let same = pieces.iter().map(|piece| matches!(piece, Piece::Runs(..)));
        assert_eq!(same.collect::<Vec<_>>(), [&[false][..], &[true; 9]].concat());
        let numbers = pieces[0].array().unwrap();
        assert_eq!(numbers.as_primitive::<Int64Type>().values(), &[7, 7, 7, 8, 7]);
        assert_eq!(pieces[1].array().unwrap().as_string::<i32>().value(4), "same");
        assert_eq!(builder.take().iter().map(Piece::rows).sum::<usize>(), 0);
    }

    proptest! {
        #[test]
        fn a_block_is_what_its_rows_are(
            rows in prop::collection::vec(
                (any_cell(LakeType::Int64), any_cell(LakeType::Text), any_cell(DECIMAL)), 1..40,
            ),
            at in any::<prop::sample::Index>(), kinds in prop::option::of([0_u32..4, 0..4, 0..4]),
        ) {
            let columns = [("n", LakeType::Int64), ("t", LakeType::Text), ("d", DECIMAL)]
                .map(|(name, lake)| column(name, lake, name == "n"));
            let table = table(columns.into(), &["n"], Identity::Default);
            let (mut cells, mut bytes) = (vec![], vec![]);
            for (cell, of_it) in rows.into_iter().flat_map(|(n, t, d)| [n, t, d]) {
                let range = bytes.len()..bytes.len() + of_it.len();
                bytes.extend(of_it);
                cells.push(match cell {
                    Cell::Binary(_) => Cell::Binary(range),
                    Cell::Text(_) => Cell::Text(range),
                    other => other,
                });
            }
            let (mut one_by_one, mut together) = (RowBuilder::new(&table), RowBuilder::new(&table));
            // Runs of a few rows of each kind, or all the same.
            let meta_of = |row: usize| match kinds {
                None => meta(Op::Snapshot),
                Some(kinds) => {
                    let kind = kinds[row / 5 % 3];
                    RowMeta {
                        op: [Op::Insert, Op::Update, Op::Delete][row / 2 % 3],
                        sequence: row as u64,
                        position: Position(kind.into()),
                        committed_at: Timestamp(kind.into()),
                        xid: (kind > 0).then_some(kind),
                    }
                }
            };
            let metas: Vec<_> = (0..cells.len() / 3).map(meta_of).collect();
            let mut rows = cells.chunks(3).map(<[_]>::to_vec).zip(&metas);
            let single = rows.try_for_each(|(row, meta)| {
                one_by_one.append(*meta, Some(&row), None, &bytes, &Plain)
            });
            let at = at.index(cells.len() / 3);
            let parts = [(&cells[..at * 3], &metas[..at]), (&cells[at * 3..], &metas[at..])];
            let blocks = parts.into_iter().try_for_each(|(cells, metas)| {
                let block = Block { cells: &block(3, cells), bytes: &bytes };
                let metas = kinds.map_or(Metas::Same(meta(Op::Snapshot)), |_| Metas::Each(metas));
                together.append_block(metas, &block, &Plain)
            });
            prop_assert_eq!(single.is_ok(), blocks.is_ok());
            if single.is_ok() {
                prop_assert_eq!(one_by_one.rows(), together.rows());
                prop_assert_eq!(one_by_one.bytes(), together.bytes());
                prop_assert_eq!(one_by_one.finish(), together.finish());
            }
        }
    }

    #[test]
    fn a_row_of_another_table_is_refused() {
        let mut builder = two_columns(Identity::Default, &["id"]);
        let row = vec![Cell::Null];
        let refused = builder.append(meta(Op::Insert), Some(&row), None, b"", &Plain);
        assert!(matches!(refused, Err(DecodeError::Columns { expected: 2, found: 1, .. })));
        let cells = block(1, &[Cell::Null, Cell::Null, Cell::Null]);
        let block = Block { cells: &cells, bytes: b"" };
        let refused = builder.append_block(Metas::Same(meta(Op::Snapshot)), &block, &Plain);
        assert!(matches!(refused, Err(DecodeError::Columns { expected: 2, found: 1, .. })));
        let row = vec![Cell::Null, Cell::Null];
        builder.append(meta(Op::Insert), Some(&row), None, b"", &Plain).unwrap();
        assert_eq!(builder.finish().num_rows(), 1);
    }
}
