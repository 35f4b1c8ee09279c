//! PostgreSQL's built-in types: their numbers, names, arrays and the form of their binary values. Pure.
//!
//! The numbers never change: <https://github.com/postgres/postgres/blob/master/src/include/catalog/pg_type.dat>.
//! A type that is not here has no known binary form.

/// How a value looks in binary (what the type's `send` function gives).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Form {
    /// The text itself.
    Raw,
    /// A version byte, then the text.
    Versioned,
    Boolean,
    Int2,
    Int4,
    Int8,
    /// Four bytes without sign.
    Unsigned4,
    /// Eight bytes without sign.
    Unsigned8,
    Float4,
    Float8,
    Numeric,
    Bytea,
    Date,
    Time,
    TimeZoned,
    Timestamp,
    TimestampZoned,
    Interval,
    Uuid,
    Network,
    /// Bytes, printed in hex with colons.
    Hardware,
    Bits,
    Lsn,
    Tuple,
    Point,
    Segment,
    Box,
    Path,
    Polygon,
    Line,
    Circle,
    /// Of a subtype.
    Range(u32),
    /// Of a range type.
    Multirange(u32),
    /// Of an element type.
    Array(u32),
    /// Not read: its text is asked for.
    Opaque,
}

macro_rules! types {
    ($($id:literal $array:literal $name:literal $form:expr,)+) => {
        /// The binary form of a type.
        pub(super) fn form(type_id: u32) -> Form {
            use Form::*;
            match type_id {
                $($id => $form,)+
                $($array => if matches!($form, Opaque) { Opaque } else { Array($id) },)+
                _ => Opaque,
            }
        }

        /// The name of a type, and whether it is an array of it.
        fn base(type_id: u32) -> Option<(&'static str, bool)> {
            match type_id {
                $($id => Some(($name, false)),)+
                $($array => Some(($name, true)),)+
                _ => None,
            }
        }

        /// Every type and its array type, for tests.
        #[cfg(any(test, feature = "fuzz"))]
        pub(super) const ALL: &[(u32, u32)] = &[$(($id, $array)),+];
    };
}

types! {
    16 1000 "boolean" Boolean,
    17 1001 "bytea" Bytea,
    18 1002 "\"char\"" Opaque,
    19 1003 "name" Raw,
    20 1016 "bigint" Int8,
    21 1005 "smallint" Int2,
    22 1006 "int2vector" Opaque,
    23 1007 "integer" Int4,
    24 1008 "regproc" Opaque,
    25 1009 "text" Raw,
    26 1028 "oid" Unsigned4,
    27 1010 "tid" Tuple,
    28 1011 "xid" Unsigned4,
    29 1012 "cid" Unsigned4,
    30 1013 "oidvector" Opaque,
    114 199 "json" Raw,
    142 143 "xml" Opaque,
    600 1017 "point" Point,
    601 1018 "lseg" Segment,
    602 1019 "path" Path,
    603 1020 "box" Box,
    604 1027 "polygon" Polygon,
    628 629 "line" Line,
    650 651 "cidr" Network,
    700 1021 "real" Float4,
    701 1022 "double precision" Float8,
    718 719 "circle" Circle,
    774 775 "macaddr8" Hardware,
    790 791 "money" Opaque,
    829 1040 "macaddr" Hardware,
    869 1041 "inet" Network,
    1033 1034 "aclitem" Opaque,
    1042 1014 "character" Raw,
    1043 1015 "character varying" Raw,
    1082 1182 "date" Date,
    1083 1183 "time without time zone" Time,
    1114 1115 "timestamp without time zone" Timestamp,
    1184 1185 "timestamp with time zone" TimestampZoned,
    1186 1187 "interval" Interval,
    1266 1270 "time with time zone" TimeZoned,
    1560 1561 "bit" Bits,
    1562 1563 "bit varying" Bits,
    1700 1231 "numeric" Numeric,
    1790 2201 "refcursor" Raw,
    2202 2207 "regprocedure" Opaque,
    2203 2208 "regoper" Opaque,
    2204 2209 "regoperator" Opaque,
    2205 2210 "regclass" Opaque,
    2206 2211 "regtype" Opaque,
    2950 2951 "uuid" Uuid,
    2970 2949 "txid_snapshot" Opaque,
    3220 3221 "pg_lsn" Lsn,
    3614 3643 "tsvector" Opaque,
    3615 3645 "tsquery" Opaque,
    3734 3735 "regconfig" Opaque,
    3769 3770 "regdictionary" Opaque,
    3802 3807 "jsonb" Versioned,
    3904 3905 "int4range" Range(23),
    3906 3907 "numrange" Range(1700),
    3908 3909 "tsrange" Range(1114),
    3910 3911 "tstzrange" Range(1184),
    3912 3913 "daterange" Range(1082),
    3926 3927 "int8range" Range(20),
    4072 4073 "jsonpath" Versioned,
    4089 4090 "regnamespace" Opaque,
    4096 4097 "regrole" Opaque,
    4191 4192 "regcollation" Opaque,
    4451 6150 "int4multirange" Multirange(3904),
    4532 6151 "nummultirange" Multirange(3906),
    4533 6152 "tsmultirange" Multirange(3908),
    4534 6153 "tstzmultirange" Multirange(3910),
    4535 6155 "datemultirange" Multirange(3912),
    4536 6157 "int8multirange" Multirange(3926),
    5038 5039 "pg_snapshot" Opaque,
    5069 271 "xid8" Unsigned8,
}

/// Types below this number are the server's own.
pub(super) const FIRST_USER_TYPE: u32 = 16_384;

/// The name of a built-in type with its modifier, as `format_type` gives it; `None` for others.
pub(super) fn name(type_id: u32, modifier: i32) -> Option<String> {
    let (base, array) = base(type_id)?;
    let element = if array { element_of(type_id) } else { type_id };
    let mut name = modified(element, base, modifier);
    if array {
        name.push_str("[]");
    }
    Some(name)
}

/// Precision and scale of a `numeric` with a modifier.
pub(super) fn precision_and_scale(modifier: i32) -> Option<(i32, i32)> {
    let packed = modifier.checked_sub(4).filter(|packed| *packed >= 0)?;
    Some((packed >> 16 & 0xFFFF, ((packed & 0x7FF) ^ 1_024) - 1_024))
}

fn element_of(array: u32) -> u32 {
    if let Form::Array(element) = form(array) {
        return element;
    }
    // An array of opaque elements: none of those types prints a modifier.
    array
}

fn modified(type_id: u32, base: &str, modifier: i32) -> String {
    let length = modifier.saturating_sub(4);
    match type_id {
        1042 if modifier < 0 => "bpchar".into(),
        1042 | 1043 if modifier >= 4 => format!("{base}({length})"),
        1560 if modifier < 0 => "\"bit\"".into(),
        1560 | 1562 if modifier >= 0 => format!("{base}({modifier})"),
        1083 | 1114 | 1184 | 1266 if modifier >= 0 => {
            base.replacen(' ', &format!("({modifier}) "), 1)
        }
        1700 => precision_and_scale(modifier).map_or_else(
            || base.into(),
            |(precision, scale)| format!("{base}({precision},{scale})"),
        ),
        1186 if modifier >= 0 => interval(modifier),
        _ => base.into(),
    }
}

/// <https://github.com/postgres/postgres/blob/REL_15_STABLE/src/backend/utils/adt/timestamp.c> `intervaltypmodout`.
fn interval(modifier: i32) -> String {
    let fields = match modifier >> 16 & 0x7FFF {
        0x4 => " year",
        0x2 => " month",
        0x8 => " day",
        0x400 => " hour",
        0x800 => " minute",
        0x1000 => " second",
        0x6 => " year to month",
        0x408 => " day to hour",
        0xC08 => " day to minute",
        0x1C08 => " day to second",
        0xC00 => " hour to minute",
        0x1C00 => " hour to second",
        0x1800 => " minute to second",
        _ => "",
    };
    match modifier & 0xFFFF {
        0xFFFF => format!("interval{fields}"),
        precision => format!("interval{fields}({precision})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The right side is PostgreSQL 15's `format_type`.
    #[test]
    fn names_carry_their_modifiers() {
        for (type_id, modifier, expected) in [
            (1700, 786_438, "numeric(12,2)"),
            (1700, 786_434 + 2_048, "numeric(12,-2)"),
            (1700, -1, "numeric"),
            (1700, i32::MIN, "numeric"),
            (1043, 24, "character varying(20)"),
            (1043, -1, "character varying"),
            (1042, 7, "character(3)"),
            (1042, -1, "bpchar"),
            (1560, 3, "bit(3)"),
            (1560, -1, "\"bit\""),
            (1114, 3, "timestamp(3) without time zone"),
            (1184, -1, "timestamp with time zone"),
            (1186, 0x7FFF_0003, "interval(3)"),
            (1186, 0x1C08_FFFF, "interval day to second"),
            (1231, 786_438, "numeric(12,2)[]"),
            (1007, -1, "integer[]"),
        ] {
            assert_eq!(name(type_id, modifier).as_deref(), Some(expected));
        }
        assert_eq!(name(FIRST_USER_TYPE, -1), None);
    }

    #[test]
    fn an_array_has_a_form_if_its_element_has_one() {
        for (type_id, array) in ALL {
            let expected = match form(*type_id) {
                Form::Opaque => Form::Opaque,
                _ => Form::Array(*type_id),
            };
            assert_eq!(form(*array), expected);
        }
    }
}
