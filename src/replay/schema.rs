//! A table's definition as the statements that make it again. Pure.
//!
//! Columns with their types and NOT NULL, the key, the replica identity, defaults; those that take from a
//! sequence, and identity, only once it is there (`restore_sequences`). Generated columns are computed by the target again where their expression is
//! known. What is left out is said by [`left_out`]. Names are always quoted; types stand as the source
//! printed them under an empty `search_path`.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use crate::{
    journal::{Before, Column, Identity},
    seal::Table,
};

/// A name as SQL spells it, always quoted.
pub fn identifier(name: &str) -> String {
    escape_identifier(name)
}

/// The table's name, qualified and quoted.
pub fn qualified(table: &Table) -> String {
    format!("{}.{}", escape_identifier(&table.schema), escape_identifier(&table.name))
}

/// Makes a schema if it is not there.
pub fn create_schema(schema: &str) -> String {
    format!("CREATE SCHEMA IF NOT EXISTS {}", escape_identifier(schema))
}

/// The schema in a type's qualified name, as SQL spells it: quoted or not.
pub fn schema_of(qualified: &str) -> Option<String> {
    let Some(quoted) = qualified.strip_prefix('"') else {
        return qualified.split_once('.').map(|(schema, _)| schema.to_owned());
    };
    let mut schema = String::new();
    let mut chars = quoted.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '"' && chars.next_if_eq(&'"').is_none() {
            return (chars.next() == Some('.')).then_some(schema);
        }
        schema.push(c);
    }
    None
}

/// The statement that makes a type; of an extension, with those that it needs.
pub fn create_type(create: &str) -> String {
    let cascade = if create.starts_with("CREATE EXTENSION ") { " CASCADE" } else { "" };
    format!("{create}{cascade}")
}

/// Whether the table comes with an extension, as its row type does.
pub fn of_extension(table: &Table) -> bool {
    let own = qualified(table);
    table.types.iter().any(|known| known.name == own)
}

/// Makes the table.
pub fn create_table(table: &Table) -> String {
    let mut parts: Vec<String> = table.columns.iter().map(column).collect();
    if !table.key.is_empty() {
        parts.push(format!("PRIMARY KEY ({})", list(&table.key)));
    }
    let index = unique_columns(table);
    if !index.is_empty() {
        parts.push(format!("UNIQUE ({})", list(&index)));
    }
    format!("CREATE TABLE {} ({})", qualified(table), parts.join(", "))
}

/// Names the old row of a change as the source does; where that is by an index, see [`identity_index`].
pub fn replica_identity(table: &Table) -> String {
    let how = match table.identity {
        Identity::Full => "FULL",
        Identity::Nothing => "NOTHING",
        Identity::Default | Identity::Index => "DEFAULT",
    };
    format!("ALTER TABLE {} REPLICA IDENTITY {how}", qualified(table))
}

/// Names the old row of a change by the index of the columns that name it, once they are NOT NULL; makes it, if there is
/// none. `None`: it is not named so.
pub fn identity_index(table: &Table) -> Option<String> {
    let columns = identity_columns(table);
    let is_named = table.identity == Identity::Index && !columns.is_empty();
    let name = qualified(table).replace('\'', "''");
    is_named.then(|| {
        code_block(&format!(
            "DECLARE found name; BEGIN FOR tried IN 0..1 LOOP \
             SELECT c.relname INTO found FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid \
             WHERE i.indrelid = '{name}'::regclass AND i.indisunique AND i.indimmediate AND i.indpred IS NULL AND {} \
             ORDER BY i.indisprimary, c.relname LIMIT 1; \
             EXIT WHEN found IS NOT NULL; ALTER TABLE {} ADD UNIQUE ({}); END LOOP; \
             EXECUTE pg_catalog.format('ALTER TABLE {} REPLICA IDENTITY USING INDEX %I', found); \
             END",
            is_of("i.indrelid", "i.indkey", &columns),
            qualified(table),
            list(&columns),
            name.replace('%', "%%")
        ))
    })
}

/// Makes an index by which these columns are unique, if there is none.
pub fn add_unique(table: &Table, columns: &[String]) -> String {
    let name = qualified(table).replace('\'', "''");
    code_block(&format!(
        "BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = '{name}'::regclass \
         AND i.indisunique AND i.indimmediate AND i.indpred IS NULL AND {}) \
         THEN ALTER TABLE {} ADD UNIQUE ({}); END IF; END",
        is_of("i.indrelid", "i.indkey", columns),
        qualified(table),
        list(columns)
    ))
}

/// The statement that runs a block of PL/pgSQL. Its body is a string of its own: between dollars a name could end it.
pub fn code_block(body: &str) -> String {
    format!("DO {}", escape_literal(body).trim_start())
}

/// A definition whose rows are named by what they have: no value of a generated column is in the lake, so that a key or
/// an index of one names none.
pub fn named_by_values(mut table: Table) -> Table {
    let computed = table.columns.iter().filter(|column| column.is_computed());
    let computed: Vec<String> = computed.map(|column| column.name.clone()).collect();
    if table.key.iter().any(|name| computed.contains(name)) {
        table.key.clear();
    }
    let index = identity_columns(&table);
    if table.identity == Identity::Index && index.iter().any(|name| computed.contains(name)) {
        table.identity = Identity::Nothing;
        table.columns.iter_mut().for_each(|column| column.identity = false);
    }
    table
}

/// Whether an array of column numbers is of these columns of a table.
pub fn is_of(table: &str, numbers: &str, columns: &[String]) -> String {
    let names = columns.iter().map(|name| escape_literal(name)).collect::<Vec<_>>().join(", ");
    format!(
        "pg_catalog.array_length({numbers}::int2[], 1) = {0} AND {0} = (SELECT pg_catalog.count(*) \
         FROM pg_catalog.pg_attribute WHERE attrelid = {table} AND attnum = ANY ({numbers}) AND attname IN ({names}))",
        columns.len()
    )
}

/// A column as CREATE TABLE and ADD COLUMN spell it, without its default.
pub fn column(column: &Column) -> String {
    let mut text = format!("{} {}", escape_identifier(&column.name), column.source_type);
    if let Some(expression) = computed(column) {
        text.push_str(&format!(" GENERATED ALWAYS AS ({expression}) STORED"));
    }
    if column.not_null {
        text.push_str(" NOT NULL");
    }
    text
}

/// Sets a column's default. `None`: it has none, or one that needs a sequence.
pub fn set_default(table: &Table, column: &Column) -> Option<String> {
    let expression = plain_default(column)?;
    let name = escape_identifier(&column.name);
    Some(format!("ALTER TABLE {} ALTER COLUMN {name} SET DEFAULT {expression}", qualified(table)))
}

/// Sets a column's default that takes from a sequence, which is there. `None`: it has none.
pub fn sequence_default(table: &Table, column: &Column) -> Option<String> {
    let expression = column.default.as_deref().filter(|_| column.generated.is_none())?;
    let name = escape_identifier(&column.name);
    let set =
        || format!("ALTER TABLE {} ALTER COLUMN {name} SET DEFAULT {expression}", qualified(table));
    needs_sequence(expression).then(set)
}

/// A default that can stand without a sequence.
pub fn plain_default(column: &Column) -> Option<&str> {
    let expression = column.default.as_deref().filter(|_| column.generated.is_none())?;
    (!needs_sequence(expression)).then_some(expression)
}

/// The expression of a generated column, if it is known.
pub fn computed(column: &Column) -> Option<&str> {
    column.default.as_deref().filter(|_| column.is_computed())
}

/// What of a table's definition is not made again, in sentences.
pub fn left_out(table: &Table) -> Vec<String> {
    let about = |column: &Column| {
        let name = format!("{}.{}", table.qualified(), column.name);
        match column.generated.as_deref() {
            Some("stored" | "virtual") if column.default.is_none() => {
                Some(format!("{name}: a plain column, not a generated one"))
            }
            _ => None,
        }
    };
    table.columns.iter().filter_map(about).collect()
}

/// Columns that name the old row of a change.
pub fn identity_columns(table: &Table) -> Vec<String> {
    let named = table.columns.iter().filter(|column| column.identity);
    named.map(|column| column.name.clone()).collect()
}

/// The columns of the index by which a table names the old row of a change, if that is not its key's; else none.
pub fn unique_columns(table: &Table) -> Vec<String> {
    let index = identity_columns(table);
    match table.identity == Identity::Index && !same_names(&index, &table.key) {
        true => index,
        false => vec![],
    }
}

/// The column of `table` that is this column of another version of it: by its number, where both have one.
pub fn same_column<'a>(table: &'a Table, column: &Column) -> Option<&'a Column> {
    let is_same = |own: &&Column| match own.number.zip(column.number) {
        Some((own, other)) => own == other,
        None => own.name == column.name,
    };
    table.columns.iter().find(is_same)
}

/// What rows have in a column that were there before it came, if that is known: a text as the server prints it, or
/// NULL.
pub fn before(column: &Column) -> Option<Option<&str>> {
    match &column.before {
        Some(Before::Value(value)) => Some(Some(value)),
        Some(Before::Null) => Some(None),
        None => None,
    }
}

/// Names as SQL lists them.
pub fn list(names: &[String]) -> String {
    names.iter().map(|name| escape_identifier(name)).collect::<Vec<_>>().join(", ")
}

/// Whether two lists hold the same names, in any order.
pub fn same_names(one: &[String], other: &[String]) -> bool {
    one.len() == other.len() && one.iter().all(|name| other.contains(name))
}

fn needs_sequence(expression: &str) -> bool {
    expression.contains("nextval(")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::sample::{self, Sample};

    #[test]
    fn a_table_is_made_with_its_key_and_types() {
        let mut table = Sample::new().table;
        table.columns.truncate(2);
        table.columns[1].name = "odd \"name\"".into();
        table.columns[1].default = Some("nextval('s'::regclass)".into());
        assert_eq!(
            create_table(&table),
            "CREATE TABLE \"public\".\"t\" (\"id\" bigint NOT NULL, \"odd \"\"name\"\"\" double precision, PRIMARY KEY (\"id\"))"
        );
        assert_eq!(set_default(&table, &table.columns[1]), None);
        assert!(sequence_default(&table, &table.columns[1]).unwrap().ends_with("'s'::regclass)"));
        assert_eq!(sequence_default(&table, &table.columns[0]), None);
        table.columns[1].default = Some("1.5".into());
        assert!(set_default(&table, &table.columns[1]).unwrap().ends_with("SET DEFAULT 1.5"));
    }

    #[test]
    fn a_name_with_dollars_does_not_end_the_block_that_it_stands_in() {
        let mut table = sample::table("x$$y", vec![sample::column("a$$'b", "bigint", 20, -1)], &[]);
        table.identity = Identity::Index;
        table.columns[0].identity = true;
        let names = identity_columns(&table);
        for made in [identity_index(&table).unwrap(), add_unique(&table, &names)] {
            let body = made.strip_prefix("DO '").unwrap().strip_suffix("END'").unwrap();
            // Each quote of the body is doubled.
            assert!(body.split("''").all(|part| !part.contains('\'')), "{made}");
            let body = body.replace("''", "'");
            assert!(body.contains("'\"public\".\"x$$y\"'::regclass"), "{body}");
            assert!(body.contains("attname IN ('a$$''b')"), "{body}");
        }
        assert_eq!(code_block("a \\ b"), r"DO E'a \\ b'");
    }

    #[test]
    fn a_generated_column_is_computed_again() {
        let mut twice = sample::column("twice", "bigint", 20, -1);
        twice.generated = Some("stored".into());
        twice.default = Some("(id * 2)".into());
        assert_eq!(column(&twice), "\"twice\" bigint GENERATED ALWAYS AS ((id * 2)) STORED");
        let mut table = sample::table("t", vec![twice], &[]);
        table.identity = Identity::Full;
        assert!(left_out(&table).is_empty());
        assert!(replica_identity(&table).ends_with("REPLICA IDENTITY FULL"));
    }

    #[test]
    fn the_schema_of_a_type_is_found_in_its_name() {
        assert_eq!(schema_of("public.mood"), Some("public".into()));
        assert_eq!(schema_of("\"my \"\"x\"\".y\".\"mood\""), Some("my \"x\".y".into()));
        assert_eq!(schema_of("mood"), None);
        assert_eq!(schema_of("\"mood"), None);
    }
}
