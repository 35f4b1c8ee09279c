//! Quantities with their units, and places in a log. Pure.
//!
//! **Invariant:** the text of a [`Position`] is fixed-width, so that text order is log order.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A size in bytes. Written `64 MiB`, `10 GiB`, `500 MB` or `4096`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ByteSize(pub u64);

/// A rate in bits per second. Written `800 Mbit/s`, `1 Gbit/s`, `64 kbit/s`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct BitRate(pub u64);

/// A span of time. Written `60 s`, `5 min`, `2 h`, `250 ms`, `7 d`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Age(pub Duration);

/// Where in the source's own log, for PostgreSQL an LSN. A transaction stands at the *end* LSN of
/// its commit record. Text: `00000016/B374D848`; in keys: `00000016B374D848`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Position(pub u64);

/// Dense number of a change within one source, from 1. 0 stands before the first.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(transparent)]
pub struct Sequence(pub u64);

/// A point that the whole source has reached: after change `sequence`, at `position`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Point {
    /// The last change at or before the point.
    pub sequence: Sequence,
    /// The commit's end.
    pub position: Position,
}

/// Wall time: microseconds since 1970-01-01 UTC. For people and partitions only: nothing is ordered by it.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

/// Text that is not of a unit's form.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is not {what}; write it like {example}")]
pub struct UnitError {
    /// What stood there.
    pub text: String,
    /// What was wanted, with its article.
    pub what: &'static str,
    /// A value of the right form.
    pub example: &'static str,
}

impl Position {
    /// The 16 hex digits that stand in object keys.
    pub fn key(self) -> String {
        format!("{:016X}", self.0)
    }
}

impl Timestamp {
    /// `YYYY-MM-DD` in UTC, the partition of a commit.
    pub fn date(self) -> String {
        self.civil().strftime("%Y-%m-%d").to_string()
    }

    /// RFC 3339 with microseconds, in UTC.
    pub fn rfc3339(self) -> String {
        self.civil().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
    }

    fn civil(self) -> jiff::Timestamp {
        jiff::Timestamp::from_microsecond(self.0).unwrap_or_default()
    }
}

impl FromStr for Timestamp {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let parsed = text.parse::<jiff::Timestamp>();
        parsed.map(|at| Self(at.as_microsecond())).map_err(|_| UnitError {
            text: text.into(),
            what: "a time",
            example: "2026-11-21T08:30:00Z",
        })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}/{:08X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Position {
    type Err = UnitError;

    /// Accepts PostgreSQL's own short form (`16/B374D848`) too.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let parse = || {
            let (high, low) = text.split_once('/')?;
            let high = u32::from_str_radix(high, 16).ok()?;
            let low = u32::from_str_radix(low, 16).ok()?;
            Some(Self(u64::from(high) << 32 | u64::from(low)))
        };
        parse().ok_or_else(|| UnitError {
            text: text.into(),
            what: "a position",
            example: "00000016/B374D848",
        })
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        scaled(text, BYTE_UNITS).map(Self).ok_or_else(|| UnitError {
            text: text.into(),
            what: "a size",
            example: "\"64 MiB\"",
        })
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.into_iter().find(|(_, unit)| self.0 >= *unit) {
            Some((name, unit)) => {
                let tenths = u128::from(self.0) * 10 / u128::from(unit);
                write!(f, "{}.{} {name}", tenths / 10, tenths % 10)
            }
            None => write!(f, "{} B", self.0),
        }
    }
}

impl FromStr for BitRate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        scaled(text, RATE_UNITS).filter(|rate| *rate > 0).map(Self).ok_or_else(|| UnitError {
            text: text.into(),
            what: "a rate",
            example: "\"800 Mbit/s\"",
        })
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, unit): &&(&str, u64)| self.0 >= *unit && self.0.is_multiple_of(*unit);
        let (name, unit) = RATE_UNITS.iter().rev().find(whole).copied().unwrap_or(("bit/s", 1));
        write!(f, "{} {name}", self.0 / unit)
    }
}

impl FromStr for Age {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        scaled(text, AGE_UNITS).map(|ms| Self(Duration::from_millis(ms))).ok_or_else(|| UnitError {
            text: text.into(),
            what: "a span of time",
            example: "\"60 s\"",
        })
    }
}

macro_rules! deserialize_from_text {
    ($($unit:ty),*) => {$(
        impl<'de> Deserialize<'de> for $unit {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    )*};
}
deserialize_from_text!(ByteSize, BitRate, Age);

/// `<number> <unit>` in the unit's smallest measure. Whole numbers only: a size has no fraction.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*factor)
}

const BYTE_UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];
const RATE_UNITS: &[(&str, u64)] =
    &[("bit/s", 1), ("kbit/s", 1_000), ("Mbit/s", 1_000_000), ("Gbit/s", 1_000_000_000)];
const AGE_UNITS: &[(&str, u64)] =
    &[("ms", 1), ("s", 1_000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_order_of_positions_is_log_order() {
        let near =
            [0x9_FFFF_FFFF, 0xA_0000_0000, 0x10_0000_0000].map(|lsn| Position(lsn).to_string());
        assert!(near.is_sorted());
        assert_eq!("16/B374D848".parse(), Ok(Position(0x16_B374_D848)));
        assert_eq!(Position(0x16_B374_D848).to_string(), "00000016/B374D848");
        assert_eq!(Position(0x16_B374_D848).key(), "00000016B374D848");
    }

    #[test]
    fn sizes_need_a_whole_number_and_a_known_unit() {
        assert_eq!("64 MiB".parse(), Ok(ByteSize(64 << 20)));
        assert_eq!("50GiB".parse(), Ok(ByteSize(50 << 30)));
        assert_eq!("4096".parse(), Ok(ByteSize(4096)));
        for wrong in ["", "MiB", "1.5 GiB", "-1 GiB", "5 Gib", "99999999999 TiB"] {
            assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_time_has_its_date_in_utc() {
        let at: Timestamp = "2026-11-21T01:30:00+02:00".parse().unwrap();
        assert_eq!(at.date(), "2026-11-20");
        assert_eq!(at.rfc3339(), "2026-11-20T23:30:00.000000Z");
    }

    #[test]
    fn rates_and_spans_read_as_people_write_them() {
        assert_eq!("800 Mbit/s".parse(), Ok(BitRate(800_000_000)));
        assert_eq!("2 h".parse(), Ok(Age(Duration::from_secs(7200))));
        assert!("0 bit/s".parse::<BitRate>().is_err());
        for text in ["800 Mbit/s", "1 Gbit/s", "1500 kbit/s", "64001 bit/s"] {
            assert_eq!(text.parse::<BitRate>().unwrap().to_string(), text);
        }
        assert_eq!(ByteSize(1536 << 20).to_string(), "1.5 GiB");
    }
}
