//! Which columns an expression names, as the server prints it. Pure.

use postgres_protocol::escape::escape_identifier;

use crate::journal::Column;

/// An expression in which columns have the names that they have now.
pub(super) fn renamed(expression: &str, kept: &[(&Column, &Column)]) -> String {
    let after = |name: &str| {
        let column = kept.iter().find(|(old, _)| old.name == name);
        column.filter(|(old, new)| old.name != new.name).map(|(_, new)| plainly(&new.name))
    };
    let said = pieces(expression).into_iter();
    said.map(|(piece, name)| name.and_then(after).unwrap_or_else(|| piece.to_owned())).collect()
}

/// Whether an expression, as the server prints it, names one of these columns. Of a name with a quote in it that is not
/// told, and taken to be so.
pub(super) fn names_any(expression: &str, columns: &[&str]) -> bool {
    let is_named =
        |(_, name): (&str, Option<&str>)| name.is_some_and(|name| columns.contains(&name));
    let in_doubt = expression.contains("\"\"") && !columns.is_empty();
    in_doubt || pieces(expression).into_iter().any(is_named)
}

/// An expression piece by piece, with the name in each that is one of a column, or may be.
fn pieces(expression: &str) -> Vec<(&str, Option<&str>)> {
    let (mut rest, mut pieces) = (expression, vec![]);
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let end = match first {
            // A doubled quote ends one piece and begins the next.
            '"' | '\'' => rest[1..].find(first).map_or(rest.len(), |at| at + 2),
            _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (piece, behind) = rest.split_at(end);
        let is_type = expression[..expression.len() - rest.len()].ends_with("::");
        let name = match first {
            '\'' => None,
            _ if is_type || behind.starts_with('(') => None,
            '"' => piece.get(1..end - 1),
            _ => Some(piece),
        };
        pieces.push((piece, name));
        rest = behind;
    }
    pieces
}

/// A name as the server prints it: quoted only where it has to be, as far as that can be told without its keywords.
fn plainly(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    match name.chars().all(is_plain) && !name.starts_with(|c: char| c.is_ascii_digit()) {
        true => name.to_owned(),
        false => escape_identifier(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::sample::column;

    #[test]
    fn an_expression_whose_columns_have_other_names_is_the_same() {
        let columns = |names: [&str; 3]| names.map(|name| column(name, "text", 25, -1));
        let (old, new) = (columns(["a", "B c", "it"]), columns(["aa", "bc", "It's"]));
        let kept: Vec<_> = old.iter().zip(&new).collect();
        for (before, after) in [
            ("(a || 'a'::text)", "(aa || 'a'::text)"),
            ("(a1 + \"B c\")", "(a1 + bc)"),
            ("lower(it) || 'it''s'", "lower(\"It's\") || 'it''s'"),
            ("'open", "'open"),
        ] {
            assert_eq!(renamed(before, &kept), after);
        }
    }

    #[test]
    fn what_is_no_name_names_no_column() {
        let columns = ["a", "B c", "text", "it's"];
        for (expression, is_named) in [
            ("(a * 2)", true),
            ("(ab * a1)", false),
            ("lower(\"B c\")", true),
            ("lower('a'::character varying)", false),
            ("('x \"B c\" it''s a'::citext)", false),
            ("(\"it's\" || 'b')", true),
            ("('b'::text)", false),
            ("text(5)", false),
            ("text || 'b'::text", true),
            ("(\"q\"\"q\" + 1)", true),
            ("5", false),
        ] {
            assert_eq!(names_any(expression, &columns), is_named, "{expression}");
        }
        assert!(!names_any("(\"q\"\"q\" + a)", &[]));
    }
}
