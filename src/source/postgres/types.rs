//! PostgreSQL's values as the lake's typed columns hold them. Pure.
//!
//! Every connection pins `DateStyle = ISO`, `IntervalStyle = postgres`, `TimeZone = UTC`,
//! `bytea_output = hex` and `extra_float_digits = 3`, so that the text of a value is one.
//!
//! **A binary cell of a type that is not [`renders_binary`] holds text**: the snapshot selects such
//! columns as `column::text`, whose binary form is the text's bytes. From the change stream such a
//! cell would be the type's own binary form, so the decoder refuses it there.
//!
//! **Invariant (I15):** a value that the typed column cannot hold is [`Value::Exact`]: infinities,
//! years before 1 and after 9999, NaN in a decimal, text that is not UTF-8 (a database in `SQL_ASCII` does not
//! look, and one in UTF-8 not at everything).

use std::borrow::Cow;

use super::{
    super::{Cell, Column, DecodeError, LakeType, Plain, Value},
    builtin::{self, Form, form},
    calendar::{self, DAY_US, EPOCH_DAYS, FIRST_DAY, LAST_DAY},
    numeric::{self, Numeric},
    render::{render, versioned},
};

/// What a column of this type is in the lake (DESIGN §7).
pub fn lake_type(type_id: u32, type_modifier: i32) -> LakeType {
    match form(type_id) {
        Form::Boolean => LakeType::Boolean,
        Form::Int2 => LakeType::Int16,
        Form::Int4 => LakeType::Int32,
        Form::Int8 => LakeType::Int64,
        Form::Unsigned4 if type_id == OID => LakeType::Int64,
        Form::Float4 => LakeType::Float32,
        Form::Float8 => LakeType::Float64,
        Form::Date => LakeType::Date,
        Form::Timestamp => LakeType::Timestamp,
        Form::TimestampZoned => LakeType::TimestampUtc,
        Form::Bytea => LakeType::Binary,
        Form::Uuid => LakeType::Uuid,
        Form::Numeric => decimal(type_modifier).unwrap_or(LakeType::Text),
        _ => LakeType::Text,
    }
}

/// Whether the binary form of the type can be read here. Others are asked for as text.
pub fn renders_binary(type_id: u32) -> bool {
    // The most frequent ones, at the price of one comparison.
    matches!(type_id, 16 | 17 | 20 | 21 | 23 | 25 | 26) || form(type_id) != Form::Opaque
}

/// How the binary form of a column's values is its value in the lake, if it needs no more than that.
pub fn plain(column: &Column) -> Option<Plain> {
    Some(match (column.lake, form(column.type_id)) {
        (LakeType::Boolean, Form::Boolean) => Plain::Boolean,
        (LakeType::Int16, Form::Int2) => Plain::Int16,
        (LakeType::Int32, Form::Int4) => Plain::Int32,
        (LakeType::Int64, Form::Int8) => Plain::Int64,
        (LakeType::Float32, Form::Float4) => Plain::Float32,
        (LakeType::Float64, Form::Float8) => Plain::Float64,
        (LakeType::Timestamp, Form::Timestamp) | (LakeType::TimestampUtc, Form::TimestampZoned) => {
            Plain::Micros { zero: EPOCH_DAYS * DAY_US, within: TYPED_MICROS }
        }
        (LakeType::Date, Form::Date) => {
            Plain::Days { zero: EPOCH_DAYS, within: FIRST_DAY..LAST_DAY + 1 }
        }
        (LakeType::Decimal { precision, scale }, Form::Numeric) => {
            Plain::Groups { precision, scale }
        }
        (LakeType::Uuid, Form::Uuid) => Plain::Uuid,
        (LakeType::Binary, Form::Bytea) => Plain::Bytes,
        (LakeType::Text, Form::Raw) => Plain::Text,
        (LakeType::Text, Form::Versioned) => Plain::Versioned,
        _ => return None,
    })
}

/// Reads one value. `bytes` is the payload or batch that the cell points into.
///
/// # Errors
///
/// [`DecodeError::Value`]: the bytes are no value of the column's type, or the server left the value out.
pub fn value<'a>(column: &Column, cell: &Cell, bytes: &'a [u8]) -> Result<Value<'a>, DecodeError> {
    let within = |range: &std::ops::Range<usize>| {
        bytes.get(range.clone()).ok_or_else(|| DecodeError::cut("a value"))
    };
    let read = match cell {
        Cell::Null => Some(Value::Null),
        Cell::Unchanged => None,
        Cell::Binary(range) if renders_binary(column.type_id) => {
            of_binary(column.lake, column.type_id, within(range)?)
        }
        Cell::Binary(range) | Cell::Text(range) => match std::str::from_utf8(within(range)?) {
            Ok(text) => of_text(column.lake, text),
            Err(_) if column.lake == LakeType::Text => Some(Value::not_utf8(within(range)?)),
            Err(_) => return Err(DecodeError::Utf8 { what: "a value" }),
        },
    };
    read.ok_or_else(|| DecodeError::Value {
        column: column.name.clone(),
        source_type: column.source_type.clone(),
    })
}

/// Reads the binary form of a type for a column that holds `lake`.
fn of_binary(lake: LakeType, type_id: u32, bytes: &[u8]) -> Option<Value<'_>> {
    Some(match lake {
        LakeType::Boolean => match bytes {
            [0] => Value::Boolean(false),
            [1] => Value::Boolean(true),
            _ => return None,
        },
        LakeType::Int16 => Value::Int(i16::from_be_bytes(bytes.try_into().ok()?).into()),
        LakeType::Int32 => Value::Int(i32::from_be_bytes(bytes.try_into().ok()?).into()),
        LakeType::Int64 if type_id == OID => {
            Value::Int(u32::from_be_bytes(bytes.try_into().ok()?).into())
        }
        LakeType::Int64 => Value::Int(i64::from_be_bytes(bytes.try_into().ok()?)),
        LakeType::Float32 => Value::Float32(f32::from_be_bytes(bytes.try_into().ok()?)),
        LakeType::Float64 => Value::Float64(f64::from_be_bytes(bytes.try_into().ok()?)),
        LakeType::Date => {
            let days = i32::from_be_bytes(bytes.try_into().ok()?);
            match typed_day(i64::from(days) + EPOCH_DAYS) {
                Some(day) => Value::Date(day),
                None => exact(type_id, bytes)?,
            }
        }
        LakeType::Timestamp | LakeType::TimestampUtc => {
            let micros = i64::from_be_bytes(bytes.try_into().ok()?);
            let since_1970 = micros.checked_add(EPOCH_DAYS * DAY_US);
            match since_1970.filter(|at| TYPED_MICROS.contains(at)) {
                Some(micros) => Value::Micros(micros),
                None => exact(type_id, bytes)?,
            }
        }
        LakeType::Decimal { precision, scale } => {
            let read = Numeric::read(bytes)?;
            match read.unscaled(precision, scale) {
                Some(unscaled) => Value::Decimal(unscaled),
                None if read.is_short() => exact(type_id, bytes)?,
                // No server keeps such a one in such a column.
                None => return None,
            }
        }
        LakeType::Binary => Value::Bytes(Cow::Borrowed(bytes)),
        LakeType::Uuid if bytes.len() == 16 => Value::Bytes(Cow::Borrowed(bytes)),
        LakeType::Uuid => return None,
        LakeType::Text => match form(type_id) {
            Form::Raw => match std::str::from_utf8(bytes) {
                Ok(text) => Value::Text(Cow::Borrowed(text)),
                Err(_) => Value::not_utf8(bytes),
            },
            Form::Versioned => Value::Text(Cow::Borrowed(versioned(bytes)?)),
            _ => Value::Text(rendered(type_id, bytes)?),
        },
    })
}

/// Reads PostgreSQL's text for a column that holds `lake`.
fn of_text(lake: LakeType, text: &str) -> Option<Value<'_>> {
    Some(match lake {
        LakeType::Boolean => match text {
            "t" => Value::Boolean(true),
            "f" => Value::Boolean(false),
            _ => return None,
        },
        LakeType::Int16 => Value::Int(text.parse::<i16>().ok()?.into()),
        LakeType::Int32 => Value::Int(text.parse::<i32>().ok()?.into()),
        LakeType::Int64 => Value::Int(text.parse().ok()?),
        LakeType::Float32 => Value::Float32(text.parse().ok()?),
        LakeType::Float64 => Value::Float64(text.parse().ok()?),
        LakeType::Date if is_infinite(text) => Value::Exact(text.into()),
        LakeType::Date => match typed_day(calendar::parse_date(text)?) {
            Some(day) => Value::Date(day),
            None => Value::Exact(text.into()),
        },
        LakeType::Timestamp | LakeType::TimestampUtc if is_infinite(text) => {
            Value::Exact(text.into())
        }
        LakeType::Timestamp | LakeType::TimestampUtc => {
            let (day, within) = calendar::parse_timestamp(text)?;
            match typed_day(day) {
                Some(day) => Value::Micros(i64::from(day) * DAY_US + within),
                None => Value::Exact(text.into()),
            }
        }
        LakeType::Decimal { precision, scale } => {
            match numeric::unscaled_of_text(text, precision, scale) {
                Some(unscaled) => Value::Decimal(unscaled),
                None if numeric::is_numeric(text) => Value::Exact(text.into()),
                None => return None,
            }
        }
        LakeType::Binary => Value::Bytes(Cow::Owned(hex::decode(text.strip_prefix("\\x")?).ok()?)),
        LakeType::Uuid => Value::Bytes(Cow::Owned(uuid(text)?.to_vec())),
        LakeType::Text => Value::Text(text.into()),
    })
}

fn exact(type_id: u32, bytes: &[u8]) -> Option<Value<'static>> {
    rendered(type_id, bytes).map(Value::Exact)
}

fn rendered(type_id: u32, bytes: &[u8]) -> Option<Cow<'static, str>> {
    let mut text = String::new();
    render(type_id, bytes, &mut text)?;
    Some(Cow::Owned(text))
}

fn decimal(type_modifier: i32) -> Option<LakeType> {
    let (precision, scale) = builtin::precision_and_scale(type_modifier)?;
    let (precision, scale) = (u8::try_from(precision).ok()?, u8::try_from(scale).ok()?);
    ((1..=38).contains(&precision) && scale <= precision)
        .then_some(LakeType::Decimal { precision, scale })
}

fn typed_day(days: i64) -> Option<i32> {
    i32::try_from(days).ok().filter(|_| (FIRST_DAY..=LAST_DAY).contains(&days))
}

fn is_infinite(text: &str) -> bool {
    matches!(text, "infinity" | "-infinity")
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let mut digits = [0; 32];
    for (index, byte) in text.bytes().filter(|byte| *byte != b'-').enumerate() {
        *digits.get_mut(index)? = byte;
    }
    let mut bytes = [0; 16];
    hex::decode_to_slice(digits, &mut bytes).ok()?;
    Some(bytes)
}

const OID: u32 = 26;
const TYPED_MICROS: std::ops::Range<i64> = FIRST_DAY * DAY_US..(LAST_DAY + 1) * DAY_US;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn column(type_id: u32, type_modifier: i32) -> Column {
        Column {
            name: "c".into(),
            source_type: "any".into(),
            type_id,
            type_modifier,
            lake: lake_type(type_id, type_modifier),
            identity: false,
            not_null: false,
            default: None,
            generated: None,
            number: None,
            before: None,
        }
    }

    fn binary(type_id: u32, type_modifier: i32, bytes: &[u8]) -> Value<'_> {
        value(&column(type_id, type_modifier), &Cell::Binary(0..bytes.len()), bytes).unwrap()
    }

    fn printed(type_id: u32, type_modifier: i32, text: &str) -> Value<'_> {
        let cell = Cell::Text(0..text.len());
        value(&column(type_id, type_modifier), &cell, text.as_bytes()).unwrap()
    }

    proptest! {
        /// Of every type, and bytes as they come and as they are: most lie within what a column holds.
        #[test]
        fn a_plain_column_says_what_its_value_says(
            at in 0..builtin::ALL.len(),
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..20),
                (-300_000_000_000_000_000_i64..300_000_000_000_000_000).prop_map(|n| n.to_be_bytes().into()),
                "[a-zé]{0,9}".prop_map(String::into_bytes),
                "\u{1}[a-zé]{0,9}".prop_map(String::into_bytes),
                (-900_000..3_000_000_i32).prop_map(|n| n.to_be_bytes().into()),
            ],
        ) {
            let column = column(builtin::ALL[at].0, -1);
            if let Some(plain) = plain(&column) {
                let known = value(&column, &Cell::Binary(0..bytes.len()), &bytes).ok();
                match plain.value(&bytes) {
                    // A float that is no number equals nothing.
                    Some(read) => prop_assert_eq!(format!("{:?}", Some(read)), format!("{known:?}")),
                    // Of a decimal it reads those of a few digits.
                    None => prop_assert!(matches!(
                        known,
                        None | Some(Value::Exact(_) | Value::Decimal(_))
                    )),
                }
            }
        }
    }

    #[test]
    fn a_uuid_is_a_text_where_the_lake_has_it_so() {
        let (bytes, text) = ([0xA0; 16], "a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0");
        let column = Column { lake: LakeType::Text, ..column(2950, -1) };
        assert_eq!(plain(&column), None, "its bytes are no text");
        let read = value(&column, &Cell::Binary(0..16), &bytes);
        assert_eq!(read, Ok(Value::Text(text.into())));
        let read = value(&column, &Cell::Text(0..36), text.as_bytes());
        assert_eq!(read, Ok(Value::Text(text.into())));
        assert!(value(&column, &Cell::Binary(0..15), &bytes).is_err());
    }

    #[test]
    fn the_frequent_types_are_plain() {
        for type_id in [16, 20, 21, 23, 25, 700, 701, 1043, 1114, 1184, 17] {
            assert!(plain(&column(type_id, -1)).is_some(), "{type_id}");
        }
        let decimal = Some(Plain::Groups { precision: 5, scale: 2 });
        assert_eq!(plain(&column(1700, NUMERIC_5_2)), decimal);
        assert_eq!(plain(&column(1700, -1)), None);
        assert!(
            builtin::ALL.iter().all(|(id, _)| renders_binary(*id) == (form(*id) != Form::Opaque))
        );
    }

    const NUMERIC_5_2: i32 = (5 << 16 | 2) + 4;

    #[test]
    fn a_decimal_of_more_digits_than_any_column_has_is_no_value() {
        let bytes = |weight: i16| [1, weight, 0, 2, 7].map(i16::to_be_bytes).concat();
        let read = |weight| {
            value(&column(1700, NUMERIC_5_2), &Cell::Binary(0..10), &bytes(weight)).map(drop)
        };
        assert!(read(0).is_ok() && read(249).is_ok());
        assert!(read(250).is_err() && read(i16::MAX).is_err());
    }

    #[test]
    fn a_decimal_needs_a_precision_that_a_reader_has() {
        let of =
            |precision: i32, scale: i32| lake_type(1700, (precision << 16 | scale & 0x7FF) + 4);
        assert_eq!(of(5, 2), LakeType::Decimal { precision: 5, scale: 2 });
        assert_eq!(of(38, 38), LakeType::Decimal { precision: 38, scale: 38 });
        assert_eq!(of(39, 0), LakeType::Text);
        assert_eq!(of(3, 5), LakeType::Text);
        assert_eq!(of(3, -2), LakeType::Text);
        assert_eq!(lake_type(1700, -1), LakeType::Text);
        assert_eq!(lake_type(26, -1), LakeType::Int64);
        assert_eq!(lake_type(28, -1), LakeType::Text);
        assert_eq!(lake_type(99_999, -1), LakeType::Text);
    }

    #[test]
    fn what_a_typed_column_cannot_hold_stands_exactly() {
        let exact = |value: &str| Value::Exact(value.to_owned().into());
        assert_eq!(binary(1082, -1, &i32::MAX.to_be_bytes()), exact("infinity"));
        assert_eq!(binary(1082, -1, &(-730_120i32).to_be_bytes()), exact("0001-12-31 BC"));
        assert_eq!(binary(1082, -1, &(-730_119i32).to_be_bytes()), Value::Date(-719_162));
        assert_eq!(binary(1184, -1, &i64::MIN.to_be_bytes()), exact("-infinity"));
        let last = 9_223_371_331_199_999_999i64.to_be_bytes();
        assert_eq!(binary(1184, -1, &last), exact("294276-12-31 23:59:59.999999+00"));
        assert_eq!(
            printed(1184, -1, "294276-12-31 23:59:59.999999+00"),
            exact("294276-12-31 23:59:59.999999+00")
        );
        assert_eq!(printed(1114, -1, "0044-03-15 12:00:00 BC"), exact("0044-03-15 12:00:00 BC"));
        assert_eq!(printed(1700, NUMERIC_5_2, "NaN"), exact("NaN"));
        assert_eq!(printed(1700, NUMERIC_5_2, "1234.56"), exact("1234.56"));
        assert_eq!(printed(1700, NUMERIC_5_2, "-123.45"), Value::Decimal(-12_345));
        assert_eq!(
            printed(1114, -1, "9999-12-31 23:59:59.999999"),
            Value::Micros(TYPED_MICROS.end - 1)
        );
    }

    #[test]
    fn a_text_that_is_not_utf8_stands_with_its_bytes() {
        let latin = |type_id, cell| value(&column(type_id, -1), &cell, b"caf\xE9").unwrap();
        for cell in [Cell::Text(0..4), Cell::Binary(0..4)] {
            let read = latin(25, cell.clone());
            assert_eq!(read, Value::Exact("\\x636166e9".into()));
            assert_eq!(latin(99_999, cell), read, "a type that is not built in");
            let Value::Exact(exact) = read else { panic!() };
            assert_eq!(Value::repaired(&exact), "caf\u{FFFD}");
        }
        assert_eq!(["\\x6", "\\x61"].map(Value::repaired), ["\\x6", "\\x61"]);
    }

    #[test]
    fn a_type_without_known_binary_form_is_text_in_binary() {
        assert_eq!(binary(3614, -1, b"'a':1"), Value::Text("'a':1".into()));
        assert_eq!(binary(3802, -1, b"\x01{}"), Value::Text("{}".into()));
    }

    #[test]
    fn what_is_no_value_is_an_error() {
        for (type_id, bytes) in [(23, &b"abc"[..]), (16, b"\x02"), (3802, b"\x02{}"), (2950, b"12")]
        {
            let cell = Cell::Binary(0..bytes.len());
            assert!(matches!(
                value(&column(type_id, -1), &cell, bytes),
                Err(DecodeError::Value { .. })
            ));
        }
        for (type_id, wrong) in
            [(23, "2147483648"), (16, "true"), (1082, "today"), (17, "abc"), (2950, "a-")]
        {
            let cell = Cell::Text(0..wrong.len());
            let read = value(&column(type_id, -1), &cell, wrong.as_bytes());
            assert!(matches!(read, Err(DecodeError::Value { .. })), "{wrong}");
        }
        let latin = value(&column(23, -1), &Cell::Text(0..1), b"\xE9");
        assert_eq!(latin, Err(DecodeError::Utf8 { what: "a value" }));
        assert!(value(&column(25, -1), &Cell::Unchanged, b"").is_err());
        assert!(value(&column(25, -1), &Cell::Text(1..9), b"abc").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_of_any_type_make_it_panic(pick: prop::sample::Index, array: bool, modifier: i32, bytes: Vec<u8>) {
            let (type_id, array_id) = builtin::ALL[pick.index(builtin::ALL.len())];
            let column = column(if array { array_id } else { type_id }, modifier);
            for cell in [Cell::Binary(0..bytes.len()), Cell::Text(0..bytes.len())] {
                if let Ok(read) = value(&column, &cell, &bytes) {
                    let mut printed = String::new();
                    read.print(column.lake, &mut printed);
                }
            }
        }
    }
}
