//! Which columns an expression names, as the server prints it. Pure.

use std::borrow::Cow;

use postgres_protocol::escape::escape_identifier;

use crate::journal::Column;

/// An expression in which columns have the names that they have now.
pub(super) fn renamed(expression: &str, kept: &[(&Column, &Column)]) -> String {
    let after = |name: &str| {
        let column = kept.iter().find(|(old, _)| old.name == name);
        column.filter(|(old, new)| old.name != new.name).map(|(_, new)| plainly(&new.name))
    };
    let said = pieces(expression).into_iter();
    said.map(|(piece, name)| name.and_then(|name| after(&name)).unwrap_or_else(|| piece.to_owned()))
        .collect()
}

/// Whether an expression, as the server prints it, names one of these columns.
pub(super) fn names_any(expression: &str, columns: &[&str]) -> bool {
    pieces(expression)
        .iter()
        .any(|(_, name)| name.as_deref().is_some_and(|name| columns.contains(&name)))
}

/// An expression piece by piece, with the name in each that is one of a column, or may be.
fn pieces(expression: &str) -> Vec<(&str, Option<Cow<'_, str>>)> {
    let (mut at, mut pieces) = (0, vec![]);
    while let Some(first) = expression[at..].chars().next() {
        let (said, rest) = expression.split_at(at);
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let end = match first {
            '"' | '\'' => quoted(rest, first),
            _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (piece, behind) = rest.split_at(end);
        // Types, functions, fields, collations, and what EXTRACT takes are no columns; nor are words in capitals, as the
        // server quotes the names of columns that have any.
        let is_other = ["::", ".", "COLLATE ", "EXTRACT("].iter().any(|word| said.ends_with(word))
            || behind.starts_with(['(', '.']);
        let name = match first {
            _ if is_other => None,
            '"' => piece.get(1..end - 1).map(|name| name.replace("\"\"", "\"").into()),
            _ if piece.chars().all(|c| is_word(c) && !c.is_ascii_uppercase()) => Some(piece.into()),
            _ => None,
        };
        pieces.push((piece, name));
        at += end;
    }
    pieces
}

/// Where the quoted text ends with which `rest` begins: a doubled quote is one of it.
fn quoted(rest: &str, quote: char) -> usize {
    let mut end = 1;
    while let Some(next) = rest[end..].find(quote) {
        end += next + 1;
        if !rest[end..].starts_with(quote) {
            return end;
        }
        end += 1;
    }
    rest.len()
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
        let columns = ["a", "B c", "text", "it's", "q\"q", "A"];
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
            ("('\"\"'::citext)", false),
            ("EXTRACT(a FROM x)", false),
            ("('x'::public.a)", false),
            ("((k).a)", false),
            ("(k COLLATE \"it's\")", false),
            ("(A + 1)", false),
            ("5", false),
        ] {
            assert_eq!(names_any(expression, &columns), is_named, "{expression}");
        }
    }
}
