//! What a person has a box repair behind a gap: which tables were compared with the database, and what differs. Made
//! by `lakehead verify --against-source --repair`, which may read the lake; taken by the box, which may not. Pure.
//!
//! A file `<data_dir>/repair/<source>.json`, an [`Order`]. It holds keys of rows: it is readable by its owner only, and
//! the box removes it when it has taken it.
//!
//! **Invariant:** an order loses no row that the database has. Of a key that is said to be gone the row is read too,
//! and stands behind that in the lake if it is there.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::units::Position;

/// What is to be repaired in one source.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Order {
    /// Of its form: [`VERSION`].
    pub version: u32,
    /// The source's name.
    pub source: String,
    /// The database's `system_identifier`.
    pub system_identifier: String,
    /// Where the last gap in the ledger ends.
    pub behind: Position,
    /// Where the lake and the database were compared.
    pub position: Position,
    /// The tables.
    pub tables: Vec<Ordered>,
}

/// What is to be repaired in a table.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Ordered {
    /// Its number in the database.
    pub id: u32,
    /// Its qualified name, for people.
    pub table: String,
    /// How.
    pub how: How,
}

/// How a table is repaired.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// As a whole: why.
    Anew(String),
    /// By the keys of the rows that differ; none, if nothing does.
    Keys(Keys),
}

/// Keys of rows, as the database prints them.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Keys {
    /// The key's columns.
    pub columns: Vec<String>,
    /// Rows that the database has, and the lake lacks or has otherwise.
    pub read: Vec<Vec<String>>,
    /// Rows that only the lake has.
    pub gone: Vec<Vec<String>>,
}

/// The only form there is.
pub const VERSION: u32 = 1;
/// Of all keys of an order together, as [`Keys::bytes`] counts them.
pub const KEYS_BYTES_MAX: usize = 512 << 10;
/// Of its file.
pub const FILE_BYTES_MAX: u64 = 4 << 20;
/// In a box's `data_dir`.
pub const FOLDER: &str = "repair";

/// The file of a source's order.
pub fn file(data_dir: &Path, source: &str) -> PathBuf {
    data_dir.join(FOLDER).join(format!("{source}.json"))
}

impl Keys {
    /// What they take in the box's facts, about: of one that is gone the row is looked for, too.
    pub fn bytes(&self) -> usize {
        let keys = self.read.iter().chain(&self.gone).chain(&self.gone);
        keys.map(|key| key.iter().map(|text| text.len() + 3).sum::<usize>() + 2).sum()
    }

    /// Whether each key has a value for each column.
    fn fits(&self) -> bool {
        let mut keys = self.read.iter().chain(&self.gone);
        !self.columns.is_empty() && keys.all(|key| key.len() == self.columns.len())
    }
}

impl Order {
    /// Reads an order for `source`.
    ///
    /// # Errors
    ///
    /// A sentence that says what is wrong with it, without its keys.
    pub fn read(bytes: &[u8], source: &str) -> Result<Self, String> {
        let order: Self = serde_json::from_slice(bytes).map_err(|why| {
            // Not its text: it may quote a key.
            format!("it is no order: line {}, column {}", why.line(), why.column())
        })?;
        if order.version != VERSION {
            return Err(format!("its form is {}, this firmware takes {VERSION}", order.version));
        }
        if order.source != source {
            return Err(format!("it is for the source `{}`", order.source));
        }
        let mut bytes = 0;
        for ordered in &order.tables {
            let How::Keys(keys) = &ordered.how else { continue };
            bytes += keys.bytes();
            if !keys.fits() {
                return Err(format!("{}: a key has not as many values as columns", ordered.table));
            }
        }
        match bytes > KEYS_BYTES_MAX {
            true => Err(format!("its keys take {bytes} bytes, at most {KEYS_BYTES_MAX} are taken")),
            false => Ok(order),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        let key = |text: &str| vec![text.to_owned()];
        let keys = Keys { columns: vec!["id".into()], read: vec![key("7")], gone: vec![key("8")] };
        let tables = vec![
            Ordered { id: 1, table: "public.t".into(), how: How::Keys(keys) },
            Ordered { id: 2, table: "public.u".into(), how: How::Anew("it has no key".into()) },
        ];
        Order {
            version: VERSION,
            source: "erp".into(),
            system_identifier: "7".into(),
            behind: Position(0x50),
            position: Position(0x60),
            tables,
        }
    }

    #[test]
    fn an_order_keeps_its_bytes() {
        let json = serde_json::to_string(&order()).unwrap();
        assert_eq!(
            json,
            r#"{"version":1,"source":"erp","system_identifier":"7","behind":"00000000/00000050","position":"00000000/00000060","tables":[{"id":1,"table":"public.t","how":{"keys":{"columns":["id"],"read":[["7"]],"gone":[["8"]]}}},{"id":2,"table":"public.u","how":{"anew":"it has no key"}}]}"#
        );
        assert_eq!(Order::read(json.as_bytes(), "erp").unwrap(), order());
        let path = file(Path::new("/var/lib/lakehead"), "erp");
        assert_eq!(path, Path::new("/var/lib/lakehead/repair/erp.json"));
    }

    #[test]
    fn an_order_that_cannot_be_taken_says_why_and_quotes_no_key() {
        let refused = |change: &dyn Fn(&mut Order)| {
            let mut order = order();
            change(&mut order);
            Order::read(&serde_json::to_vec(&order).unwrap(), "erp").unwrap_err()
        };
        assert!(refused(&|order| order.version = 2).contains("form is 2"));
        assert!(refused(&|order| order.source = "crm".into()).contains("`crm`"));
        let with =
            |keys: Keys| move |order: &mut Order| order.tables[0].how = How::Keys(keys.clone());
        let two = Keys {
            columns: vec!["a".into(), "b".into()],
            read: vec![vec!["1".into()]],
            gone: vec![],
        };
        assert!(refused(&with(two)).contains("as many values"));
        let long = "x".repeat(1000);
        let many = Keys {
            columns: vec!["id".into()],
            read: vec![],
            gone: vec![vec![long]; KEYS_BYTES_MAX / 1000],
        };
        assert!(refused(&with(many)).contains("at most 524288"));
        let json = serde_json::to_string(&order()).unwrap();
        let torn = Order::read(&json.as_bytes()[..json.len() / 2], "erp").unwrap_err();
        assert!(torn.starts_with("it is no order: line 1"), "{torn}");
    }
}
