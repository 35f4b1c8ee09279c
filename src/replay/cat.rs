//! Rows of one object as JSON lines.
//!
//! One object per row, columns in the file's order, `_` columns included: integers and finite floats
//! as numbers, booleans as such, bytes in base64, NaN and infinities and everything else (decimals,
//! dates, times, uuids, text) as the string that PostgreSQL prints; NULL as `null`. `_committed_at` is
//! RFC 3339. `_unchanged` is an array, `_exact` and `_key` are objects from column to text.

use std::{
    io::{self, Write},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value as Json, json};

use super::{
    ReplayError,
    read::{BATCH_BYTES, Field, LakeFile, Rows},
};
use crate::{
    journal::{LakeType, Value},
    seal::columns::OUR_NAMES,
};

/// Writes the rows of the opened object at `path`, and gives their number.
///
/// # Errors
///
/// The object cannot be read, or `out` refuses: a closed pipe is [`ReplayError::File`] too.
pub fn cat(path: &Path, key: &str, out: &mut dyn Write) -> Result<u64, ReplayError> {
    let mut file = LakeFile::open(path, key, BATCH_BYTES)?;
    let mut count = 0;
    while let Some(rows) = file.next_rows()? {
        for row in 0..rows.len() {
            line(&rows, row, out).map_err(|why| ReplayError::file(Path::new("output"), why))?;
            count += 1;
        }
    }
    Ok(count)
}

fn line(rows: &Rows, row: usize, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"{")?;
    for (column, name) in rows.names().enumerate() {
        let value = match rows.field(row, column) {
            Field::Value(value) => json_value(&value, rows.lake(column)),
            Field::Unchanged => Json::Null,
        };
        serde_json::to_writer(&mut *out, name)?;
        out.write_all(b":")?;
        serde_json::to_writer(&mut *out, &value)?;
        out.write_all(b",")?;
    }
    let meta = rows.meta(row);
    let pairs = |pairs: Vec<(&str, Option<&str>)>| {
        Json::Object(
            pairs
                .into_iter()
                .map(|(name, text)| (name.to_owned(), json!(text)))
                .collect::<Map<_, _>>(),
        )
    };
    let ours = [
        json!(meta.op.letter()),
        json!(meta.sequence),
        json!(meta.position.to_string()),
        json!(meta.committed_at.rfc3339()),
        json!(meta.xid),
        json!(rows.unchanged(row).collect::<Vec<_>>()),
        pairs(rows.exact(row)),
        rows.old_key(row).map_or(Json::Null, pairs),
    ];
    for (at, (name, value)) in OUR_NAMES.iter().zip(&ours).enumerate() {
        write!(out, "{}\"{name}\":{value}", if at == 0 { "" } else { "," })?;
    }
    out.write_all(b"}\n")
}

/// A value that stands in `_exact` is null in its column, as in the file.
fn json_value(value: &Value<'_>, lake: LakeType) -> Json {
    match value {
        Value::Null | Value::Exact(_) => Json::Null,
        Value::Boolean(value) => json!(value),
        Value::Int(value) => json!(value),
        Value::Float32(value) if value.is_finite() => json!(value),
        Value::Float64(value) if value.is_finite() => json!(value),
        Value::Bytes(bytes) if lake == LakeType::Binary => json!(STANDARD.encode(bytes)),
        other => {
            let mut text = String::new();
            other.print(lake, &mut text);
            Json::String(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::sample::{Sample, row};

    #[test]
    fn a_row_is_one_line_of_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o.parquet");
        let values = [
            Some("1"),
            Some("NaN"),
            Some("infinity"),
            Some("12.50"),
            Some("\\x00ff"),
            Some("a\"b"),
            None,
            Some("t"),
            None,
        ];
        Sample::new().write(&path, &[row("I", 5, 7, &values)]);
        let mut out = vec![];
        assert_eq!(cat(&path, "k", &mut out).unwrap(), 1);
        let line = String::from_utf8(out).unwrap();
        let read: Json = serde_json::from_str(&line).unwrap();
        let expected = json!({
            "id": 1, "f": "NaN", "at": null, "cost": "12.50", "raw": "AP8=", "note": "a\"b", "u": null, "ok": true,
            "d": null, "_op": "I", "_sequence": 5, "_position": "00000000/00000007",
            "_committed_at": "1970-01-01T00:00:00.000042Z", "_xid": 9, "_unchanged": [], "_exact": {"at": "infinity"}, "_key": null
        });
        assert_eq!(read, expected);
        assert!(line.starts_with("{\"id\":1,\"f\":\"NaN\","), "{line}");
    }
}
