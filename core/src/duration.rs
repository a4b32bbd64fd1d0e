//! Durations as Kubernetes and Istio write them: `10s`, `1h30m`, `250ms`, `0.5s`.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DurationError {
    /// Not of the form number and unit.
    #[error("is not a duration such as 10s, 1m30s or 250ms")]
    Syntax,
    /// Below zero.
    #[error("is negative")]
    Negative,
    /// More than fits.
    #[error("is too long")]
    TooLong,
}

/// Longest that we accept: 100 years, so that sums never overflow.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// Reads a duration: one or more numbers, each with a unit (`h`, `m`, `s`, `ms`, `us`, `µs`, `ns`), or a bare `0`.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    if text.starts_with('-') {
        return Err(DurationError::Negative);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(DurationError::Syntax);
    }
    let mut total = 0_u128;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(DurationError::Syntax)?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        total = total.checked_add(nanos(number, unit)?).ok_or(DurationError::TooLong)?;
        rest = tail;
    }
    if total > LONGEST.as_nanos() {
        return Err(DurationError::TooLong);
    }
    let seconds = u64::try_from(total / 1_000_000_000).map_err(|_| DurationError::TooLong)?;
    Ok(Duration::new(seconds, (total % 1_000_000_000) as u32))
}

/// One number with its unit, in nanoseconds; digits beyond a nanosecond are cut.
fn nanos(number: &str, unit: &str) -> Result<u128, DurationError> {
    let scale: u128 = match unit {
        "h" => 3_600_000_000_000,
        "m" => 60_000_000_000,
        "s" => 1_000_000_000,
        "ms" => 1_000_000,
        "us" | "µs" | "μs" => 1_000,
        "ns" => 1,
        _ => return Err(DurationError::Syntax),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(DurationError::Syntax);
    }
    if whole.len() > 20 || fraction.len() > 30 {
        return Err(DurationError::TooLong);
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| DurationError::Syntax)? };
    let mut total = whole.checked_mul(scale).ok_or(DurationError::TooLong)?;
    let mut unit_left = scale;
    for digit in fraction.bytes() {
        // exact as long as the unit divides by ten; below that less than a nanosecond is left
        total += u128::from(digit - b'0') * unit_left / 10;
        unit_left /= 10;
    }
    Ok(total)
}

/// Writes a duration in the shortest form that [`parse`] reads back: `1h30m`, `1.5s`, `250ms`.
pub fn display(duration: Duration) -> impl fmt::Display {
    Shown(duration)
}

struct Shown(Duration);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.as_nanos();
        if total == 0 {
            return f.write_str("0s");
        }
        if total < 1_000_000_000 {
            let (scale, unit) = match total {
                t if t % 1_000_000 == 0 => (1_000_000, "ms"),
                t if t % 1_000 == 0 => (1_000, "us"),
                _ => (1, "ns"),
            };
            return write!(f, "{}{unit}", total / scale);
        }
        let seconds = self.0.as_secs();
        let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        match self.0.subsec_nanos() {
            0 if rest > 0 => write!(f, "{rest}s"),
            0 => Ok(()),
            fraction => write!(f, "{rest}.{}s", format!("{fraction:09}").trim_end_matches('0')),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads() {
        for (text, wanted) in [
            ("10s", Ok(Duration::from_secs(10))),
            ("1m", Ok(Duration::from_secs(60))),
            ("1h30m", Ok(Duration::from_secs(5400))),
            ("250ms", Ok(Duration::from_millis(250))),
            ("0.5s", Ok(Duration::from_millis(500))),
            (".5s", Ok(Duration::from_millis(500))),
            ("1.5h", Ok(Duration::from_secs(5400))),
            ("0", Ok(Duration::ZERO)),
            ("0s", Ok(Duration::ZERO)),
            ("1us", Ok(Duration::from_micros(1))),
            ("1ns", Ok(Duration::from_nanos(1))),
            ("", Err(DurationError::Syntax)),
            ("10", Err(DurationError::Syntax)),
            ("s", Err(DurationError::Syntax)),
            (".s", Err(DurationError::Syntax)),
            ("1.2.3s", Err(DurationError::Syntax)),
            ("10 s", Err(DurationError::Syntax)),
            ("5d", Err(DurationError::Syntax)),
            ("-1s", Err(DurationError::Negative)),
            ("99999999999h", Err(DurationError::TooLong)),
        ] {
            assert_eq!(parse(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn writes() {
        for (duration, wanted) in [
            (Duration::ZERO, "0s"),
            (Duration::from_millis(250), "250ms"),
            (Duration::from_millis(1500), "1.5s"),
            (Duration::from_secs(5400), "1h30m"),
            (Duration::from_secs(61), "1m1s"),
        ] {
            assert_eq!(display(duration).to_string(), wanted);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(nanos in 0_u64..4_000_000_000_000_000_000) {
            let duration = Duration::from_nanos(nanos.min(LONGEST.as_nanos() as u64));
            prop_assert_eq!(parse(&display(duration).to_string()), Ok(duration));
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }
    }
}
