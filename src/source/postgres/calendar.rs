//! Days and microseconds as PostgreSQL's ISO text, and back. Pure.
//!
//! The calendar is Gregorian throughout, as PostgreSQL's is; the year before 1 is 1 BC. Printed are
//! dates (`2026-11-21`, `0044-03-15 BC`, `294276-12-31`) and times (`2026-11-21 08:30:00.25`, with
//! `+00` for a zoned one), fractions without trailing zeros.

use std::fmt::Write;

/// Microseconds of a day.
pub const DAY_US: i64 = 86_400_000_000;
/// 2000-01-01, where PostgreSQL counts from, in days since 1970-01-01.
pub const EPOCH_DAYS: i64 = 10_957;
/// 0001-01-01 in days since 1970-01-01: where typed columns begin.
pub const FIRST_DAY: i64 = -719_162;
/// 9999-12-31 in days since 1970-01-01: where typed columns end.
pub const LAST_DAY: i64 = 2_932_896;

/// Year (astronomical: 0 is 1 BC), month and day of a number of days since 1970-01-01.
/// <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>
pub fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Days since 1970-01-01 of a civil date; `None` if there is no such day.
pub fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(-10_000..=6_000_000).contains(&year)
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
    {
        return None;
    }
    let year_shifted = year - i64::from(month <= 2);
    let era = year_shifted.div_euclid(400);
    let year_of_era = year_shifted.rem_euclid(400);
    let month_shifted = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * month_shifted + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let found = era * 146_097 + day_of_era - 719_468;
    (civil(found) == (year, month, day)).then_some(found)
}

/// Appends a date.
pub fn print_date(days: i64, into: &mut String) {
    print_day(days, into);
    print_era(days, into);
}

/// Appends a time: the day since 1970-01-01 and the microseconds within it, with `+00` if `zoned`.
pub fn print_timestamp(days: i64, within: i64, zoned: bool, into: &mut String) {
    print_day(days, into);
    into.push(' ');
    print_clock(within, into);
    if zoned {
        into.push_str("+00");
    }
    print_era(days, into);
}

/// Appends a time of day as `HH:MM:SS[.ffffff]`.
pub fn print_clock(micros: i64, into: &mut String) {
    print_seconds(micros / 1_000_000, into);
    print_fraction(micros % 1_000_000, into);
}

/// Appends a span as `HH:MM:SS`, with as many hours as it has.
pub fn print_seconds(seconds: i64, into: &mut String) {
    two(seconds / 3_600, into);
    into.push(':');
    two(seconds / 60 % 60, into);
    into.push(':');
    two(seconds % 60, into);
}

/// Appends `.ffffff` without trailing zeros; nothing for 0.
pub fn print_fraction(micros: i64, into: &mut String) {
    if micros == 0 {
        return;
    }
    into.push('.');
    let mut rest = micros;
    let mut unit = 100_000;
    while rest > 0 {
        push_digit(rest / unit, into);
        rest %= unit;
        unit /= 10;
    }
}

/// Reads a date; `None` if it is none, `infinity` too.
pub fn parse_date(text: &str) -> Option<i64> {
    let (text, bc) = split_era(text);
    day_of(text, bc)
}

/// Reads a time, with or without an offset: the day since 1970-01-01 (UTC if it has one) and the
/// microseconds within it. Both, because PostgreSQL's last years are beyond one `i64`.
pub fn parse_timestamp(text: &str) -> Option<(i64, i64)> {
    let (text, bc) = split_era(text);
    let (date, clock) = text.split_once(' ')?;
    let zone = clock.find(['+', '-']).unwrap_or(clock.len());
    let offset = if zone < clock.len() { parse_offset(&clock[zone..])? } else { 0 };
    let within = parse_clock(&clock[..zone])?;
    let within = within - offset * 1_000_000;
    Some((day_of(date, bc)? + within.div_euclid(DAY_US), within.rem_euclid(DAY_US)))
}

/// Reads `HH:MM:SS[.ffffff]`.
fn parse_clock(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, ':');
    let (hours, minutes, seconds) = (parts.next()?, parts.next()?, parts.next()?);
    let (seconds, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let places = u32::try_from(fraction.len()).ok().filter(|places| *places <= 6)?;
    let fraction = if places == 0 { 0 } else { natural(fraction)? };
    let whole = natural(hours)? * 3_600 + natural(minutes)? * 60 + natural(seconds)?;
    Some(whole * 1_000_000 + fraction * 10i64.pow(6 - places))
}

/// Reads `+HH[:MM[:SS]]` as seconds east of UTC.
fn parse_offset(text: &str) -> Option<i64> {
    let (sign, rest) = (if text.starts_with('-') { -1 } else { 1 }, &text[1..]);
    let mut seconds = 0;
    let mut unit = 3_600;
    for part in rest.split(':') {
        seconds += natural(part)?.checked_mul(unit)?;
        unit /= 60;
    }
    Some(sign * seconds)
}

fn day_of(text: &str, bc: bool) -> Option<i64> {
    let mut parts = text.splitn(3, '-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let year = natural(year)?;
    days(if bc { 1 - year } else { year }, natural(month)?, natural(day)?)
}

/// Digits only: no sign, no blank, at most 7 of them.
fn natural(text: &str) -> Option<i64> {
    let digits = (1..=7).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn split_era(text: &str) -> (&str, bool) {
    text.strip_suffix(" BC").map_or((text, false), |rest| (rest, true))
}

fn print_day(days: i64, into: &mut String) {
    let (year, month, day) = civil(days);
    let shown = if year > 0 { year } else { 1 - year };
    if shown <= 9_999 {
        two(shown / 100, into);
        two(shown % 100, into);
    } else {
        write!(into, "{shown}").expect("a String takes all");
    }
    into.push('-');
    two(month, into);
    into.push('-');
    two(day, into);
}

fn print_era(days: i64, into: &mut String) {
    if civil(days).0 <= 0 {
        into.push_str(" BC");
    }
}

/// Appends at least two digits.
pub(super) fn two(number: i64, into: &mut String) {
    if number >= 100 {
        write!(into, "{number}").expect("a String takes all");
    } else {
        push_digit(number / 10, into);
        push_digit(number % 10, into);
    }
}

fn push_digit(digit: i64, into: &mut String) {
    let digit = u8::try_from(digit).expect("a digit is between 0 and 9");
    into.push(char::from(b'0' + digit));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn date(days: i64) -> String {
        let mut text = String::new();
        print_date(days, &mut text);
        text
    }

    fn timestamp((days, within): (i64, i64), zoned: bool) -> String {
        let mut text = String::new();
        print_timestamp(days, within, zoned, &mut text);
        text
    }

    #[test]
    fn the_edges_print_as_postgresql_prints_them() {
        assert_eq!(date(FIRST_DAY), "0001-01-01");
        assert_eq!(date(FIRST_DAY - 1), "0001-12-31 BC");
        assert_eq!(date(LAST_DAY), "9999-12-31");
        assert_eq!(date(LAST_DAY + 1), "10000-01-01");
        assert_eq!(date(EPOCH_DAYS), "2000-01-01");
        assert_eq!(timestamp((-1, DAY_US - 1), false), "1969-12-31 23:59:59.999999");
        assert_eq!(timestamp((0, 1_500_000), true), "1970-01-01 00:00:01.5+00");
        let long_ago = parse_timestamp("4714-11-24 00:00:00+00 BC").unwrap();
        assert_eq!(timestamp(long_ago, true), "4714-11-24 00:00:00+00 BC");
    }

    #[test]
    fn an_offset_is_taken_off() {
        assert_eq!(parse_timestamp("1970-01-01 02:30:00+02:30"), Some((0, 0)));
        let before = parse_timestamp("1970-01-01 00:00:00+00:00:01");
        assert_eq!(before, Some((-1, DAY_US - 1_000_000)));
    }

    #[test]
    fn what_is_no_day_is_refused() {
        for wrong in ["", "infinity", "2023-02-29", "2023-13-01", "2023-1", "-1-01-01", "2023-+1-1"]
        {
            assert_eq!(parse_date(wrong), None, "{wrong}");
        }
        assert_eq!(parse_date("2024-02-29"), Some(19_782));
    }

    proptest! {
        #[test]
        fn dates_and_times_read_back(days in -2_500_000i64..2_145_000_000, within in 0..DAY_US) {
            let day = days.min(2_140_000_000);
            prop_assert_eq!(parse_date(&date(day)), Some(day));
            for zoned in [false, true] {
                let at = (day, within);
                prop_assert_eq!(parse_timestamp(&timestamp(at, zoned)), Some(at));
            }
        }
    }
}
