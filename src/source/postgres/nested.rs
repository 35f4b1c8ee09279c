//! Arrays, ranges and multiranges: binary values that hold values, as PostgreSQL prints them. Pure.
//!
//! Array: `i32 dimensions | i32 has NULLs | u32 element type | dimensions × (i32 length, i32 lower
//! bound) | elements`, an element being `i32 length (-1: NULL) | bytes`. Range: `u8 flags | bounds`, a
//! bound being `i32 length | bytes`. Multirange: `i32 count | count × (i32 length | range)`.
//! Sources: `array_out`, `range_out`, `multirange_out` in
//! <https://github.com/postgres/postgres/tree/REL_15_STABLE/src/backend/utils/adt>.

use std::fmt::Write;

use super::{
    builtin::{Form, form},
    render::render,
};

/// Appends the text of an array, range or multirange.
pub(super) fn print(form: Form, bytes: &[u8], into: &mut String) -> Option<()> {
    let mut rest = bytes;
    match form {
        Form::Array(element) => array(element, &mut rest, into)?,
        Form::Range(subtype) => range(subtype, &mut rest, into)?,
        Form::Multirange(range_type) => multirange(range_type, &mut rest, into)?,
        _ => return None,
    }
    rest.is_empty().then_some(())
}

fn array(element: u32, rest: &mut &[u8], into: &mut String) -> Option<()> {
    let count = usize::try_from(take_i32(rest)?).ok()?;
    take_i32(rest)?;
    if take_i32(rest)?.cast_unsigned() != element || count > DIMENSIONS_MAX {
        return None;
    }
    if count == 0 {
        into.push_str("{}");
        return Some(());
    }
    let mut lengths = [0; DIMENSIONS_MAX];
    let mut lower = [1; DIMENSIONS_MAX];
    for dimension in 0..count {
        lengths[dimension] = take_i32(rest)?;
        lower[dimension] = take_i32(rest)?;
        if lengths[dimension] <= 0 {
            return None;
        }
    }
    let (lengths, lower) = (&lengths[..count], &lower[..count]);
    if lower.iter().any(|bound| *bound != 1) {
        for (length, bound) in lengths.iter().zip(lower) {
            write!(into, "[{bound}:{}]", bound.checked_add(length - 1)?).ok()?;
        }
        into.push('=');
    }
    let mut scratch = String::new();
    dimension(element, lengths, rest, &mut scratch, into)
}

/// Appends one dimension in braces: elements, or the dimensions within it.
fn dimension(
    element: u32,
    lengths: &[i32],
    rest: &mut &[u8],
    scratch: &mut String,
    into: &mut String,
) -> Option<()> {
    let (length, within) = lengths.split_first()?;
    let delimiter = if form(element) == Form::Box { ';' } else { ',' };
    into.push('{');
    for index in 0..*length {
        if index > 0 {
            into.push(delimiter);
        }
        if !within.is_empty() {
            dimension(element, within, rest, scratch, into)?;
            continue;
        }
        match take_value(rest)? {
            None => into.push_str("NULL"),
            Some(bytes) => {
                scratch.clear();
                render(element, bytes, scratch)?;
                push_element(scratch, delimiter, into);
            }
        }
    }
    into.push('}');
    Some(())
}

/// Quotes what could be read otherwise.
fn push_element(element: &str, delimiter: char, into: &mut String) {
    let special = |c: char| matches!(c, '"' | '\\' | '{' | '}') || c == delimiter || is_space(c);
    if !element.is_empty() && !element.eq_ignore_ascii_case("null") && !element.contains(special) {
        return into.push_str(element);
    }
    into.push('"');
    for c in element.chars() {
        if matches!(c, '"' | '\\') {
            into.push('\\');
        }
        into.push(c);
    }
    into.push('"');
}

fn range(subtype: u32, rest: &mut &[u8], into: &mut String) -> Option<()> {
    let (flags, after) = rest.split_first()?;
    *rest = after;
    if flags & EMPTY != 0 {
        into.push_str("empty");
        return Some(());
    }
    into.push(if flags & LOWER_INCLUSIVE != 0 { '[' } else { '(' });
    if flags & LOWER_INFINITE == 0 {
        bound(subtype, take_value(rest)??, into)?;
    }
    into.push(',');
    if flags & UPPER_INFINITE == 0 {
        bound(subtype, take_value(rest)??, into)?;
    }
    into.push(if flags & UPPER_INCLUSIVE != 0 { ']' } else { ')' });
    Some(())
}

/// The subtypes are numbers and times: of what makes a bound be quoted they can hold only a blank.
fn bound(subtype: u32, bytes: &[u8], into: &mut String) -> Option<()> {
    let start = into.len();
    render(subtype, bytes, into)?;
    if into[start..].contains(is_space) {
        into.insert(start, '"');
        into.push('"');
    }
    Some(())
}

fn multirange(range_type: u32, rest: &mut &[u8], into: &mut String) -> Option<()> {
    let count = take_i32(rest)?;
    into.push('{');
    for index in 0..count {
        if index > 0 {
            into.push(',');
        }
        render(range_type, take_value(rest)??, into)?;
    }
    into.push('}');
    (count >= 0).then_some(())
}

/// A length and that many bytes; the inner `None` is NULL.
fn take_value<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let length = take_i32(rest)?;
    if length == -1 {
        return Some(None);
    }
    let (value, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = after;
    Some(Some(value))
}

fn take_i32(rest: &mut &[u8]) -> Option<i32> {
    let (number, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(i32::from_be_bytes(*number))
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0B' | '\x0C')
}

/// PostgreSQL's `MAXDIM`.
const DIMENSIONS_MAX: usize = 6;
const EMPTY: u8 = 0x01;
const LOWER_INCLUSIVE: u8 = 0x02;
const UPPER_INCLUSIVE: u8 = 0x04;
const LOWER_INFINITE: u8 = 0x08;
const UPPER_INFINITE: u8 = 0x10;
