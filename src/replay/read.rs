//! Rows of one opened object, read in batches of bounded size.
//!
//! The reader of Parquet panics over some files that are none; that is contained, and an error like others.
//!
//! **Invariant:** a value reads as PostgreSQL printed it, be it in its typed column or in `_exact`.

use std::{borrow::Cow, fs::File, ops::Range, path::Path};

use arrow_array::{
    Array, ArrayRef, MapArray, RecordBatch,
    cast::AsArray,
    types::{
        Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
        TimestampMicrosecondType,
    },
};
use arrow_schema::{DataType, TimeUnit};
use parquet::{
    arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
    basic::{ConvertedType, Type as PhysicalType},
    file::metadata::RowGroupMetaData,
};

use super::ReplayError;
use crate::{
    journal::{LakeType, Value},
    seal::{
        Op,
        columns::{OUR_NAMES, RowMeta, VERSION_KEY, is_like_partition},
    },
    shutdown::panics,
    units::{Position, Timestamp},
};

/// An object's file.
pub struct LakeFile {
    key: String,
    version: Option<u32>,
    reader: ParquetRecordBatchReader,
}

/// Some rows of an object.
#[derive(Debug)]
pub struct Rows {
    batch: RecordBatch,
    /// The table's own columns come first.
    own: usize,
    lake: Vec<LakeType>,
    spelt: usize,
}

/// Where a column's value stands in a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Field<'a> {
    /// Here; SQL NULL included.
    Value(Value<'a>),
    /// In the row's previous version.
    Unchanged,
}

impl LakeFile {
    /// Opens the Parquet file `path`, which holds the object `key`. Its rows come in batches of about
    /// `batch_bytes`, of one row at least.
    ///
    /// # Errors
    ///
    /// It is none of ours.
    pub fn open(path: &Path, key: &str, batch_bytes: usize) -> Result<Self, ReplayError> {
        Self::of(File::open(path).map_err(|why| ReplayError::file(path, why))?, key, batch_bytes)
    }

    /// As [`LakeFile::open`], of a file that is open.
    ///
    /// # Errors
    ///
    /// It is none of ours.
    pub fn of(file: File, key: &str, batch_bytes: usize) -> Result<Self, ReplayError> {
        panics::contain(|| Self::read(file, key, batch_bytes))
            .unwrap_or_else(|why| Err(ReplayError::object(key, why)))
    }

    fn read(file: File, key: &str, batch_bytes: usize) -> Result<Self, ReplayError> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)
            .map_err(|why| ReplayError::object(key, why))?;
        let kept = builder.metadata().file_metadata().key_value_metadata();
        let version = kept.into_iter().flatten().find(|pair| pair.key == VERSION_KEY);
        let version = version.and_then(|pair| pair.value.as_ref()?.parse().ok());
        let groups = builder.metadata().row_groups().iter();
        let row_bytes = groups.map(row_bytes).max().unwrap_or(1).max(1);
        let rows = (batch_bytes / row_bytes).clamp(1, BATCH_ROWS);
        let reader = builder.with_batch_size(rows).build();
        let reader = reader.map_err(|why| ReplayError::object(key, why))?;
        Ok(Self { key: key.into(), version, reader })
    }

    /// The version of the table's schema, if the file says it.
    pub fn version(&self) -> Option<u32> {
        self.version
    }

    /// The next rows, or `None` after the last.
    ///
    /// # Errors
    ///
    /// The file is damaged, or none of ours.
    pub fn next_rows(&mut self) -> Result<Option<Rows>, ReplayError> {
        let next = panics::contain(|| self.reader.next());
        let next = next.map_err(|why| ReplayError::object(&self.key, why))?;
        let Some(batch) = next else { return Ok(None) };
        let batch = batch.map_err(|why| ReplayError::object(&self.key, why))?;
        Rows::new(batch).map(Some).map_err(|why| ReplayError::object(&self.key, why))
    }
}

impl std::fmt::Debug for LakeFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LakeFile").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Rows {
    /// Checks that the batch has the columns of DESIGN §7.
    fn new(batch: RecordBatch) -> Result<Self, String> {
        let schema = batch.schema();
        let fields = schema.fields();
        let own = fields.len().checked_sub(OUR_NAMES.len()).ok_or("columns are missing")?;
        for (field, name) in fields[own..].iter().zip(OUR_NAMES) {
            if field.name() != name || !is_ours(name, field.data_type()) {
                return Err(format!("`{}` stands where `{name}` was expected", field.name()));
            }
        }
        let lake = fields[..own].iter().map(|field| {
            lake_type(field.data_type())
                .ok_or_else(|| format!("`{}` has a strange type", field.name()))
        });
        let lake = lake.collect::<Result<_, _>>()?;
        for row in 0..batch.num_rows() {
            let ops = batch.column(own).as_string::<i32>();
            let positions = batch.column(own + 2).as_string::<i32>();
            if op_of(ops.value(row)).is_none() || positions.value(row).parse::<Position>().is_err()
            {
                return Err(format!("row {row} has no known `_op` or `_position`"));
            }
        }
        let like = fields[..own].iter().filter(|field| is_like_partition(field.name()));
        let spelt = like.map(|field| field.name().len()).min().unwrap_or(0);
        Ok(Self { batch, own, lake, spelt })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.batch.num_rows()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Differs between files of one version that spell their columns otherwise ([`columns::spelling`]).
    ///
    /// [`columns::spelling`]: crate::seal::columns::spelling
    pub fn spelt(&self) -> usize {
        self.spelt
    }

    /// Names of the table's own columns, as in the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.batch.schema_ref().fields()[..self.own].iter().map(|field| field.name().as_str())
    }

    /// What the lake's column holds.
    pub fn lake(&self, column: usize) -> LakeType {
        self.lake[column]
    }

    /// What the row has besides its values.
    pub fn meta(&self, row: usize) -> RowMeta {
        let text = |at: usize| self.batch.column(self.own + at).as_string::<i32>().value(row);
        let number = |at: usize| self.batch.column(self.own + at).as_primitive::<Int64Type>();
        let at = self.batch.column(self.own + 3).as_primitive::<TimestampMicrosecondType>();
        let xid = number(4);
        RowMeta {
            op: op_of(text(0)).expect("checked when the batch was read"),
            sequence: u64::try_from(number(1).value(row)).unwrap_or(0),
            position: text(2).parse().expect("checked when the batch was read"),
            committed_at: Timestamp(at.value(row)),
            xid: xid.is_valid(row).then(|| u32::try_from(xid.value(row)).ok()).flatten(),
        }
    }

    /// A value. `column` counts the table's own.
    pub fn field(&self, row: usize, column: usize) -> Field<'_> {
        let array = self.batch.column(column);
        if array.is_valid(row) {
            return Field::Value(read(array, row));
        }
        let name = self.batch.schema_ref().field(column).name();
        if self.unchanged(row).any(|unchanged| unchanged == name) {
            return Field::Unchanged;
        }
        let mut exact = self.pairs(row, 6).into_iter().flatten();
        let found = exact.find(|(column, _)| column == name).and_then(|(_, text)| text);
        Field::Value(found.map_or(Value::Null, |text| Value::Exact(Cow::Borrowed(text))))
    }

    /// Names of columns whose value is that of the row's previous version.
    pub fn unchanged(&self, row: usize) -> impl Iterator<Item = &str> {
        let list = self.batch.column(self.own + 5).as_list::<i32>();
        let names = list.values().as_string::<i32>();
        range(list.value_offsets(), row).map(|at| names.value(at))
    }

    /// Column → text of the values that the typed columns cannot hold.
    pub fn exact(&self, row: usize) -> Vec<(&str, Option<&str>)> {
        self.pairs(row, 6).unwrap_or_default()
    }

    /// Column → text of the old row's key, or of the whole old row, if the row has one.
    pub fn old_key(&self, row: usize) -> Option<Vec<(&str, Option<&str>)>> {
        self.pairs(row, 7)
    }

    fn pairs(&self, row: usize, at: usize) -> Option<Vec<(&str, Option<&str>)>> {
        let map: &MapArray = self.batch.column(self.own + at).as_map();
        if map.is_null(row) {
            return None;
        }
        let (keys, values) = (map.keys().as_string::<i32>(), map.values().as_string::<i32>());
        let pair = |at| (keys.value(at), values.is_valid(at).then(|| values.value(at)));
        Some(range(map.value_offsets(), row).map(pair).collect())
    }
}

fn read(array: &ArrayRef, row: usize) -> Value<'_> {
    match array.data_type() {
        DataType::Boolean => Value::Boolean(array.as_boolean().value(row)),
        DataType::Int16 => Value::Int(array.as_primitive::<Int16Type>().value(row).into()),
        DataType::Int32 => Value::Int(array.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => Value::Int(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => Value::Float32(array.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => Value::Float64(array.as_primitive::<Float64Type>().value(row)),
        DataType::Date32 => Value::Date(array.as_primitive::<Date32Type>().value(row)),
        DataType::Timestamp(..) => {
            Value::Micros(array.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        DataType::Decimal128(..) => {
            Value::Decimal(array.as_primitive::<Decimal128Type>().value(row))
        }
        DataType::Binary => Value::Bytes(Cow::Borrowed(array.as_binary::<i32>().value(row))),
        DataType::FixedSizeBinary(_) => {
            Value::Bytes(Cow::Borrowed(array.as_fixed_size_binary().value(row)))
        }
        _ => Value::Text(Cow::Borrowed(array.as_string::<i32>().value(row))),
    }
}

/// The inverse of the type that seal gives a column.
fn lake_type(data_type: &DataType) -> Option<LakeType> {
    Some(match data_type {
        DataType::Boolean => LakeType::Boolean,
        DataType::Int16 => LakeType::Int16,
        DataType::Int32 => LakeType::Int32,
        DataType::Int64 => LakeType::Int64,
        DataType::Float32 => LakeType::Float32,
        DataType::Float64 => LakeType::Float64,
        DataType::Date32 => LakeType::Date,
        DataType::Timestamp(TimeUnit::Microsecond, None) => LakeType::Timestamp,
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => LakeType::TimestampUtc,
        DataType::Decimal128(precision, scale) => {
            LakeType::Decimal { precision: *precision, scale: u8::try_from(*scale).ok()? }
        }
        DataType::Binary => LakeType::Binary,
        DataType::FixedSizeBinary(16) => LakeType::Uuid,
        DataType::Utf8 => LakeType::Text,
        _ => return None,
    })
}

fn is_ours(name: &str, data_type: &DataType) -> bool {
    let text = |field: &arrow_schema::Field| *field.data_type() == DataType::Utf8;
    match (name, data_type) {
        ("_op" | "_position", DataType::Utf8) => true,
        ("_sequence" | "_xid", DataType::Int64) => true,
        ("_committed_at", DataType::Timestamp(TimeUnit::Microsecond, Some(_))) => true,
        ("_unchanged", DataType::List(element)) => text(element),
        ("_exact" | "_key", DataType::Map(entry, _)) => match entry.data_type() {
            DataType::Struct(pair) => pair.len() == 2 && pair.iter().all(|field| text(field)),
            _ => false,
        },
        _ => false,
    }
}

/// What a row takes in memory on average: a dictionary, or a run, may hold its values once for many rows.
fn row_bytes(group: &RowGroupMetaData) -> usize {
    let columns = group.columns().iter().map(|column| {
        let width = match column.column_type() {
            // Where it begins, beside its bytes.
            PhysicalType::BYTE_ARRAY => 4,
            _ if column.column_descr().converted_type() == ConvertedType::DECIMAL => 16,
            PhysicalType::BOOLEAN => 1,
            PhysicalType::INT32 | PhysicalType::FLOAT => 4,
            PhysicalType::INT64 | PhysicalType::DOUBLE => 8,
            PhysicalType::INT96 | PhysicalType::FIXED_LEN_BYTE_ARRAY => 16,
        };
        let values = column.num_values().saturating_mul(width);
        values.saturating_add(column.unencoded_byte_array_data_bytes().unwrap_or(0))
    });
    let bytes = group.total_byte_size().max(columns.fold(0, i64::saturating_add));
    usize::try_from(bytes / group.num_rows().max(1)).unwrap_or(usize::MAX)
}

fn op_of(letter: &str) -> Option<Op> {
    [Op::Snapshot, Op::Insert, Op::Update, Op::Delete, Op::Truncate, Op::Repair]
        .into_iter()
        .find(|op| op.letter() == letter)
}

fn range(offsets: &[i32], row: usize) -> Range<usize> {
    let at =
        |index: usize| offsets.get(index).and_then(|at| usize::try_from(*at).ok()).unwrap_or(0);
    at(row)..at(row + 1)
}

/// What a batch may take in memory, where one file is read at a time.
pub const BATCH_BYTES: usize = 8 << 20;
const BATCH_ROWS: usize = 4_096;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    use bytes::Bytes;
    use parquet::arrow::ArrowWriter;

    use arrow_schema::Schema;

    use super::*;
    use crate::{
        replay::sample::{self, Sample},
        seal::{Table, columns::RowBuilder},
    };

    #[test]
    fn a_row_takes_what_it_takes_in_memory_however_small_its_file_is() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![None; 5000]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["twelve bytes"; 5000]));
        let columns = (0..50).map(|at| (format!("n{at}"), Arc::clone(&numbers), true));
        let columns = columns.chain([("t".to_owned(), texts, true)]);
        let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        let mut writer = ArrowWriter::try_new(vec![], batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        let file = Bytes::from(writer.into_inner().unwrap());
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        assert_eq!(row_bytes(reader.metadata().row_group(0)), 50 * 8 + 4 + 12);
    }

    #[test]
    fn files_of_one_version_that_spell_their_columns_otherwise_are_told_apart() {
        let mut table = Sample::new().table;
        let rows = |table: &Table| {
            let batch = RowBuilder::new(table).finish();
            let spelt = batch.schema();
            let fields = spelt.fields().iter().map(|field| match field.name().as_str() {
                "dt_" => Arc::new(field.as_ref().clone().with_name("dt")),
                _ => Arc::clone(field),
            });
            let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
            let before = RecordBatch::try_new(schema, batch.columns().to_vec()).unwrap();
            [before, batch].map(|batch| Rows::new(batch).unwrap().spelt())
        };
        assert_eq!(rows(&table), [0, 0]);
        table.columns[1].name = "dt".into();
        assert_eq!(rows(&table), [2, 3]);
    }

    #[test]
    fn what_was_sealed_reads_back_as_it_was_printed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o.parquet");
        let sample = Sample::new();
        let matrix: [(&str, &[Option<&str>]); 3] = [
            (
                "S",
                &[
                    Some("1"),
                    Some("-0.5"),
                    Some("2026-11-21 08:30:00.25+00"),
                    Some("12.50"),
                    Some("\\x00ff"),
                    Some("a\tb"),
                    Some("00010203-0405-0607-0809-0a0b0c0d0e0f"),
                    Some("t"),
                    Some("2024-02-29"),
                ],
            ),
            (
                "S",
                &[
                    Some("2"),
                    Some("NaN"),
                    Some("infinity"),
                    Some("NaN"),
                    None,
                    None,
                    None,
                    Some("f"),
                    Some("0044-03-15 BC"),
                ],
            ),
            (
                "S",
                &[
                    Some("3"),
                    Some("1e+300"),
                    Some("294276-12-31 23:59:59.999999+00"),
                    Some("-999999.99"),
                    Some("\\x"),
                    Some(""),
                    None,
                    None,
                    Some("9999-12-31"),
                ],
            ),
        ];
        sample.write(&path, &matrix.map(|(op, values)| sample::row(op, 0, 7, values)));
        let mut file = LakeFile::open(&path, "k", BATCH_BYTES).unwrap();
        assert_eq!(file.version(), Some(1));
        let rows = file.next_rows().unwrap().unwrap();
        for (at, (_, expected)) in matrix.iter().enumerate() {
            for (column, expected) in expected.iter().enumerate() {
                let Field::Value(value) = rows.field(at, column) else { panic!() };
                let mut text = String::new();
                value.print(rows.lake(column), &mut text);
                assert_eq!((value != Value::Null).then_some(text.as_str()), *expected);
            }
        }
        assert_eq!(rows.meta(2).position, Position(7));
        assert!(file.next_rows().unwrap().is_none());
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o.parquet");
        std::fs::write(&path, b"PAR1 and nothing else PAR1").unwrap();
        assert!(matches!(LakeFile::open(&path, "k", BATCH_BYTES), Err(ReplayError::Object { .. })));
        assert!(matches!(
            LakeFile::open(&dir.path().join("x"), "k", BATCH_BYTES),
            Err(ReplayError::File { .. })
        ));
    }
}
