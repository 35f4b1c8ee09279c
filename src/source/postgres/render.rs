//! Binary values of built-in types as the text that PostgreSQL prints. Pure.
//!
//! Only types whose text follows from the bytes alone, under the pinned settings ([`super::types`]);
//! each was compared with PostgreSQL 15's own output. `None`: the bytes are no value of the type.

use std::fmt::Write;

use super::{
    builtin::{Form, form},
    calendar::{self, EPOCH_DAYS, two},
    float, network,
    numeric::Numeric,
    text,
};

/// Appends the text of one value.
pub(super) fn render(type_id: u32, bytes: &[u8], into: &mut String) -> Option<()> {
    match form(type_id) {
        Form::Raw => into.push_str(std::str::from_utf8(bytes).ok()?),
        Form::Versioned => into.push_str(versioned(bytes)?),
        Form::Boolean => into.push(match bytes {
            [0] => 'f',
            [1] => 't',
            _ => return None,
        }),
        Form::Int2 => put(into, i16::from_be_bytes(bytes.try_into().ok()?)),
        Form::Int4 => put(into, i32::from_be_bytes(bytes.try_into().ok()?)),
        Form::Int8 => put(into, i64::from_be_bytes(bytes.try_into().ok()?)),
        Form::Unsigned4 => put(into, u32::from_be_bytes(bytes.try_into().ok()?)),
        Form::Unsigned8 => put(into, u64::from_be_bytes(bytes.try_into().ok()?)),
        Form::Float4 => float::print_f32(f32::from_be_bytes(bytes.try_into().ok()?), into),
        Form::Float8 => float::print_f64(f64::from_be_bytes(bytes.try_into().ok()?), into),
        Form::Numeric => Numeric::read(bytes)?.print(into),
        Form::Bytea => text::print_bytea(bytes, into),
        Form::Uuid => text::print_uuid(<&[u8; 16]>::try_from(bytes).ok()?, into),
        Form::Date => date(bytes, into)?,
        Form::Timestamp => timestamp(bytes, false, into)?,
        Form::TimestampZoned => timestamp(bytes, true, into)?,
        Form::Time => clock(bytes, into)?,
        Form::TimeZoned => clock_zoned(bytes, into)?,
        Form::Interval => interval(bytes, into)?,
        Form::Network => network::print(bytes, into)?,
        Form::Hardware => hardware(bytes, into)?,
        Form::Bits => bits(bytes, into)?,
        Form::Lsn => {
            let lsn = u64::from_be_bytes(bytes.try_into().ok()?);
            write!(into, "{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF).ok()?;
        }
        Form::Tuple => {
            let [block @ .., high, low] = <[u8; 6]>::try_from(bytes).ok()?;
            let offset = u16::from_be_bytes([high, low]);
            write!(into, "({},{offset})", u32::from_be_bytes(block)).ok()?;
        }
        Form::Point | Form::Segment | Form::Box | Form::Path | Form::Polygon | Form::Line => {
            shape(form(type_id), bytes, into)?;
        }
        Form::Circle => shape(Form::Circle, bytes, into)?,
        Form::Range(_) | Form::Multirange(_) | Form::Array(_) => {
            super::nested::print(form(type_id), bytes, into)?;
        }
        Form::Opaque => return None,
    }
    Some(())
}

/// What follows the version byte of a `jsonb` or `jsonpath`.
pub(super) fn versioned(bytes: &[u8]) -> Option<&str> {
    let (version, rest) = bytes.split_first()?;
    (*version == 1).then(|| std::str::from_utf8(rest).ok()).flatten()
}

fn put(into: &mut String, number: impl std::fmt::Display) {
    write!(into, "{number}").expect("a String takes all");
}

fn date(bytes: &[u8], into: &mut String) -> Option<()> {
    match i32::from_be_bytes(bytes.try_into().ok()?) {
        i32::MAX => into.push_str("infinity"),
        i32::MIN => into.push_str("-infinity"),
        days if DATES.contains(&days) => calendar::print_date(i64::from(days) + EPOCH_DAYS, into),
        _ => return None,
    }
    Some(())
}

fn timestamp(bytes: &[u8], zoned: bool, into: &mut String) -> Option<()> {
    match i64::from_be_bytes(bytes.try_into().ok()?) {
        i64::MAX => into.push_str("infinity"),
        i64::MIN => into.push_str("-infinity"),
        micros if TIMESTAMPS.contains(&micros) => {
            let days = micros.div_euclid(calendar::DAY_US) + EPOCH_DAYS;
            calendar::print_timestamp(days, micros.rem_euclid(calendar::DAY_US), zoned, into);
        }
        _ => return None,
    }
    Some(())
}

fn clock(bytes: &[u8], into: &mut String) -> Option<()> {
    let micros = i64::from_be_bytes(bytes.try_into().ok()?);
    (0..=calendar::DAY_US).contains(&micros).then(|| calendar::print_clock(micros, into))
}

fn clock_zoned(bytes: &[u8], into: &mut String) -> Option<()> {
    let (micros, west) = bytes.split_at_checked(8)?;
    clock(micros, into)?;
    let west = i32::from_be_bytes(west.try_into().ok()?);
    into.push(if west <= 0 { '+' } else { '-' });
    let seconds = i64::from(west.unsigned_abs());
    two(seconds / 3_600, into);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    for part in [minutes, seconds].into_iter().take(if seconds != 0 {
        2
    } else {
        usize::from(minutes != 0)
    }) {
        into.push(':');
        two(part, into);
    }
    Some(())
}

/// `IntervalStyle = postgres`. A part after a negative one shows its plus sign.
fn interval(bytes: &[u8], into: &mut String) -> Option<()> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    let [t0, t1, t2, t3, t4, t5, t6, t7, d0, d1, d2, d3, m @ ..] = bytes;
    let micros = i64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
    let days = i32::from_be_bytes([d0, d1, d2, d3]);
    let months = i32::from_be_bytes(m);
    let infinite = match (micros, days, months) {
        (i64::MAX, i32::MAX, i32::MAX) => "infinity",
        (i64::MIN, i32::MIN, i32::MIN) => "-infinity",
        _ => "",
    };
    if !infinite.is_empty() {
        into.push_str(infinite);
        return Some(());
    }
    let start = into.len();
    let mut after_negative = false;
    for (number, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if number == 0 {
            continue;
        }
        let gap = if into.len() > start { " " } else { "" };
        let plus = if after_negative && number > 0 { "+" } else { "" };
        let plural = if number == 1 { "" } else { "s" };
        write!(into, "{gap}{plus}{number} {unit}{plural}").ok()?;
        after_negative = number < 0;
    }
    if into.len() == start || micros != 0 {
        if into.len() > start {
            into.push(' ');
        }
        if micros < 0 {
            into.push('-');
        } else if after_negative {
            into.push('+');
        }
        let span = micros.unsigned_abs();
        let seconds = i64::try_from(span / 1_000_000).ok()?;
        calendar::print_seconds(seconds, into);
        calendar::print_fraction(i64::try_from(span % 1_000_000).ok()?, into);
    }
    Some(())
}

fn hardware(bytes: &[u8], into: &mut String) -> Option<()> {
    for (index, byte) in bytes.iter().enumerate() {
        if index > 0 {
            into.push(':');
        }
        text::print_hex(&[*byte], into);
    }
    matches!(bytes.len(), 6 | 8).then_some(())
}

fn bits(bytes: &[u8], into: &mut String) -> Option<()> {
    let (count, packed) = bytes.split_at_checked(4)?;
    let count = usize::try_from(i32::from_be_bytes(count.try_into().ok()?)).ok()?;
    if packed.len() != count.div_ceil(8) {
        return None;
    }
    let bit = |index: usize| packed[index / 8] >> (7 - index % 8) & 1;
    into.extend((0..count).map(|index| if bit(index) == 1 { '1' } else { '0' }));
    Some(())
}

/// Geometric types: points are pairs of `float8`.
fn shape(form: Form, bytes: &[u8], into: &mut String) -> Option<()> {
    let (head, bytes) = match form {
        Form::Path => bytes.split_at_checked(5)?,
        Form::Polygon => bytes.split_at_checked(4)?,
        _ => (&[][..], bytes),
    };
    let (numbers, []) = bytes.as_chunks::<8>() else { return None };
    let wanted = match (form, head) {
        (Form::Point, _) => 2,
        (Form::Line | Form::Circle, _) => 3,
        (Form::Path | Form::Polygon, [.., a, b, c, d]) => {
            usize::try_from(i32::from_be_bytes([*a, *b, *c, *d])).ok()?.checked_mul(2)?
        }
        _ => 4,
    };
    if numbers.len() != wanted {
        return None;
    }
    let (open, close) = match (form, head.first()) {
        (Form::Point, _) => ("", ""),
        (Form::Box, _) => ("", ""),
        (Form::Line, _) => ("{", "}"),
        (Form::Circle, _) => ("<", ">"),
        (Form::Segment, _) | (Form::Path, Some(0)) => ("[", "]"),
        _ => ("(", ")"),
    };
    into.push_str(open);
    for (index, number) in numbers.iter().enumerate() {
        let of_point = form != Form::Line && index < wanted - wanted % 2;
        if index > 0 {
            into.push(',');
        }
        if of_point && index % 2 == 0 {
            into.push('(');
        }
        float::print_f64(f64::from_be_bytes(*number), into);
        if of_point && index % 2 == 1 {
            into.push(')');
        }
    }
    into.push_str(close);
    Some(())
}

/// From 4714-11-24 BC on, in days and microseconds since 2000-01-01: PostgreSQL has no others.
/// <https://github.com/postgres/postgres/blob/REL_15_STABLE/src/include/datatype/timestamp.h>
const DATES: std::ops::Range<i32> = -2_451_545..2_145_031_949;
const TIMESTAMPS: std::ops::Range<i64> = -211_813_488_000_000_000..9_223_371_331_200_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_postgresql_does_not_have_is_no_value() {
        for (type_id, bytes) in [
            (1082, &(DATES.start - 1).to_be_bytes()[..]),
            (1082, &DATES.end.to_be_bytes()),
            (1114, &(TIMESTAMPS.start - 1).to_be_bytes()),
            (1184, &TIMESTAMPS.end.to_be_bytes()),
        ] {
            assert_eq!(render(type_id, bytes, &mut String::new()), None, "{bytes:?}");
        }
        let mut first = String::new();
        render(1184, &TIMESTAMPS.start.to_be_bytes(), &mut first).unwrap();
        assert_eq!(first, "4714-11-24 00:00:00+00 BC");
    }

    /// Undoes the escapes of COPY's text format.
    fn unescape(text: &str) -> String {
        let mut plain = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match (c, if c == '\\' { chars.next() } else { None }) {
                (_, Some('n')) => plain.push('\n'),
                (_, Some('t')) => plain.push('\t'),
                (_, Some('r')) => plain.push('\r'),
                (_, Some('v')) => plain.push('\x0B'),
                (_, Some('f')) => plain.push('\x0C'),
                (_, Some(escaped)) => plain.push(escaped),
                (c, None) => plain.push(c),
            }
        }
        plain
    }

    /// Each line: type, hex of what its `send` function gave, and the text that PostgreSQL 15 printed.
    #[test]
    fn every_value_of_the_matrix_prints_as_postgresql_15_printed_it() {
        let matrix = include_str!("../../../tests/fixtures/postgres-15-values.tsv");
        let mut wrong = vec![];
        for line in matrix.lines() {
            let mut fields = line.splitn(3, '\t');
            let type_id = fields.next().unwrap().parse().unwrap();
            let bytes = hex::decode(fields.next().unwrap()).unwrap();
            let expected = unescape(fields.next().unwrap());
            let mut text = String::new();
            if render(type_id, &bytes, &mut text).is_none() || text != expected {
                wrong.push(format!("type {type_id}: {text} instead of {expected}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(matrix.lines().count() > 200);
    }
}
