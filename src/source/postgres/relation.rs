//! Reads pgoutput's Relation message, as far as the stream's own decisions need it. Pure.
//!
//! `'R' | id u32 | schema cstring | name cstring | identity u8 | columns u16 | (flags u8 | name
//! cstring | type u32 | modifier i32)*`
//! (<https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>).

use super::{catalog::FIRST_USER_ID, error::SourceError, message::unknown, types::renders_binary};

/// A table as the stream describes it before its rows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Relation {
    pub(crate) id: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) columns: Vec<Named>,
}

/// A column as the stream describes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) type_id: u32,
}

impl Relation {
    /// Reads the message, its kind included.
    pub(crate) fn parse(message: &[u8]) -> Result<Self, SourceError> {
        let mut bytes = message;
        let relation = (|| {
            let _kind = take::<1>(&mut bytes)?;
            let id = u32::from_be_bytes(take(&mut bytes)?);
            let (schema, name) = (text(&mut bytes)?, text(&mut bytes)?);
            let _identity = take::<1>(&mut bytes)?;
            let columns = (0..u16::from_be_bytes(take(&mut bytes)?)).map(|_| {
                let _flags = take::<1>(&mut bytes)?;
                let name = text(&mut bytes)?;
                let type_id = u32::from_be_bytes(take(&mut bytes)?);
                let _modifier = take::<4>(&mut bytes)?;
                Some(Named { name, type_id })
            });
            let columns = columns.collect::<Option<Vec<_>>>()?;
            // An empty schema stands for pg_catalog.
            Some(Self { id, schema, name, columns })
        })();
        relation
            .filter(|_| bytes.is_empty())
            .ok_or_else(|| unknown("a Relation message", "cut short or too long"))
    }

    /// Whether all columns, as far as their own numbers tell, are read in binary form. A type that a
    /// user made may be a domain over one that is: only the catalog knows.
    pub(crate) fn renders_binary(&self) -> bool {
        self.columns
            .iter()
            .all(|column| column.type_id < FIRST_USER_ID && renders_binary(column.type_id))
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

fn text(bytes: &mut &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(&bytes[..end]).ok()?.to_owned();
    *bytes = &bytes[end + 1..];
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESSAGE: &[u8] =
        b"R\0\0\x40\x01public\0t\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0m\0\0\0\x40\x02\xff\xff\xff\xff";

    #[test]
    fn a_relation_gives_its_columns_in_order() {
        let relation = Relation::parse(MESSAGE).unwrap();
        assert_eq!((relation.id, relation.name.as_str()), (16385, "t"));
        assert_eq!(relation.columns[1], Named { name: "m".into(), type_id: 16386 });
        assert!(!relation.renders_binary());
    }

    #[test]
    fn a_relation_cut_anywhere_is_refused() {
        for end in 0..MESSAGE.len() {
            assert!(Relation::parse(&MESSAGE[..end]).is_err(), "{end}");
        }
        assert!(Relation::parse(&[MESSAGE, b"x"].concat()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            drop(Relation::parse(&bytes));
        }
    }
}
