//! Objects for this room's tests: a table of every lake type, its rows given as PostgreSQL's text.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};

use crate::{
    disk::work::WorkFile,
    journal::{Cell, Column, Identity, Op, Row},
    ledger::EntryObject,
    replay::Lake,
    seal::{
        Table,
        columns::{RowBuilder, RowMeta, file_metadata},
    },
    ship::{Fetched, Listed, ObjectReader, ShipError, within},
    source::postgres::{pgoutput::PgDecoder, types::lake_type},
    units::{Position, Timestamp},
};

/// A table.
pub(super) struct Sample {
    pub(super) table: Table,
}

/// A row to be written.
#[derive(Clone, Debug)]
pub(super) struct SampleRow {
    op: String,
    sequence: u64,
    position: u64,
    /// `?` stands for what was left out.
    values: Vec<Option<String>>,
}

pub(super) fn row(op: &str, sequence: u64, position: u64, values: &[Option<&str>]) -> SampleRow {
    let values = values.iter().map(|value| value.map(str::to_owned)).collect();
    SampleRow { op: op.into(), sequence, position, values }
}

pub(super) fn column(name: &str, source_type: &str, type_id: u32, modifier: i32) -> Column {
    Column {
        name: name.into(),
        source_type: source_type.into(),
        type_id,
        type_modifier: modifier,
        lake: lake_type(type_id, modifier),
        identity: false,
        not_null: false,
        default: None,
        generated: None,
        number: None,
        before: None,
    }
}

pub(super) fn table(name: &str, columns: Vec<Column>, key: &[&str]) -> Table {
    let key: Vec<String> = key.iter().map(|name| (*name).into()).collect();
    let columns = columns.into_iter().map(|column| Column {
        identity: key.contains(&column.name),
        not_null: key.contains(&column.name),
        ..column
    });
    Table {
        id: 7,
        schema: "public".into(),
        name: name.into(),
        version: 1,
        columns: columns.collect(),
        key,
        identity: Identity::Default,
        types: vec![],
    }
}

impl Sample {
    pub(super) fn new() -> Self {
        let columns = vec![
            column("id", "bigint", 20, -1),
            column("f", "double precision", 701, -1),
            column("at", "timestamp with time zone", 1184, -1),
            column("cost", "numeric(8,2)", 1700, (8 << 16 | 2) + 4),
            column("raw", "bytea", 17, -1),
            column("note", "text", 25, -1),
            column("u", "uuid", 2950, -1),
            column("ok", "boolean", 16, -1),
            column("d", "date", 1082, -1),
        ];
        Self { table: table("t", columns, &["id"]) }
    }

    /// Writes the rows as seal would.
    pub(super) fn write(&self, path: &Path, rows: &[SampleRow]) {
        let mut builder = RowBuilder::new(&self.table);
        for row in rows {
            let mut bytes = vec![];
            let cells = cells(&row.values, &mut bytes);
            let meta = RowMeta {
                op: [Op::Snapshot, Op::Insert, Op::Update, Op::Delete, Op::Truncate, Op::Repair]
                    .into_iter()
                    .find(|op| op.letter() == row.op)
                    .unwrap(),
                sequence: row.sequence,
                position: Position(row.position),
                committed_at: Timestamp(42),
                xid: (row.op != "S").then_some(9),
            };
            let decode = PgDecoder::default();
            builder.append(meta, Some(&cells), None, &bytes, &decode).unwrap();
        }
        let batch = builder.finish();
        let metadata = Some(file_metadata(&self.table));
        let properties = WriterProperties::builder().set_key_value_metadata(metadata).build();
        let file = std::fs::File::create(path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }
}

fn cells(values: &[Option<String>], bytes: &mut Vec<u8>) -> Row {
    let cell = |value: &Option<String>| match value.as_deref() {
        None => Cell::Null,
        Some("?") => Cell::Unchanged,
        Some(text) => {
            let start = bytes.len();
            bytes.extend(text.as_bytes());
            Cell::Text(start..bytes.len())
        }
    };
    values.iter().map(cell).collect()
}

/// A lake in a folder: each object a file named by its key, none encrypted.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn lake(&self) -> Lake {
        let open: super::Open = Arc::new(|sealed, _, plain| {
            std::fs::copy(sealed, plain).unwrap();
            Ok(())
        });
        Lake { reader: Arc::new(Self(self.0.clone())), open }
    }

    /// The object as the ledger would prove it.
    pub(super) fn object(&self, key: &str) -> EntryObject {
        let bytes = std::fs::read(self.0.join(key)).unwrap();
        let sha256 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
        EntryObject {
            key: key.into(),
            bytes: bytes.len() as u64,
            sha256: hex::encode(sha256),
            crc64nvme: String::new(),
            rows: BTreeMap::new(),
            encryption: "none".into(),
            version: None,
        }
    }
}

impl ObjectReader for Folder {
    fn list<'a>(
        &'a self,
        _: &'a str,
        _: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Listed>, ShipError>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn get<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Fetched>, ShipError>> {
        Box::pin(async { Ok(None) })
    }

    fn fetch<'a>(
        &'a self,
        key: &'a str,
        into: &'a WorkFile,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Option<BTreeMap<String, String>>, ShipError>> {
        Box::pin(async move {
            let Ok(bytes) = std::fs::read(self.0.join(key)) else { return Ok(None) };
            within(key, bytes.len() as u64, bytes_max)?;
            into.fill(&bytes).unwrap();
            Ok(Some(BTreeMap::new()))
        })
    }
}
