//! Spans and sizes as people write them: `500ms`, `10s`, `5m`, `2h`, `1d`; `512MiB`, `2GB`, `70%`.

use std::fmt;

pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;
pub const GIB: u64 = 1024 * MIB;

/// The text is no span or size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("'{text}' is not a duration: write a whole number and ms, s, m, h or d, like 500ms or 10s")]
    Duration { text: String },
    #[error("'{text}' is not a size: write a whole number and KiB, MiB, GiB, KB, MB or GB, like 512MiB")]
    Size { text: String },
    #[error("'{text}' is not a share of memory: write 1% to 100%, or a size like 2GiB")]
    Share { text: String },
}

/// A part of what the machine has, or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    Percent(u8),
    Bytes(u64),
}

impl Share {
    /// The bytes of it, when the whole is `total` bytes. A size may be larger than the whole: it counts what may be
    /// taken, and steps that mostly sleep take far less.
    #[must_use]
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Percent(percent) => total / 100 * u64::from(percent),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) if bytes.is_multiple_of(GIB) => write!(f, "{} GiB", bytes / GIB),
            Self::Bytes(bytes) if bytes.is_multiple_of(MIB) => write!(f, "{} MiB", bytes / MIB),
            Self::Bytes(bytes) if bytes.is_multiple_of(KIB) => write!(f, "{} KiB", bytes / KIB),
            Self::Bytes(bytes) => write!(f, "{bytes} bytes"),
        }
    }
}

/// A span in milliseconds.
///
/// # Errors
/// When the text has no unit, another unit, or does not fit.
pub fn duration_ms(text: &str) -> Result<u64, UnitError> {
    let factor = |unit: &str| match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    scaled(text, factor).ok_or_else(|| UnitError::Duration { text: text.to_owned() })
}

/// A size in bytes.
///
/// # Errors
/// When the text has no unit, another unit, or does not fit.
pub fn size_bytes(text: &str) -> Result<u64, UnitError> {
    let factor = |unit: &str| match unit {
        "KiB" => Some(KIB),
        "MiB" => Some(MIB),
        "GiB" => Some(GIB),
        "KB" => Some(1_000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        _ => None,
    };
    scaled(text, factor).ok_or_else(|| UnitError::Size { text: text.to_owned() })
}

/// A percentage or a size.
///
/// # Errors
/// When the text is neither, or the percentage is not 1 to 100.
pub fn share(text: &str) -> Result<Share, UnitError> {
    let wrong = || UnitError::Share { text: text.to_owned() };
    match text.trim().strip_suffix('%') {
        Some(percent) => percent
            .trim()
            .parse()
            .ok()
            .filter(|percent| (1..=100).contains(percent))
            .map(Share::Percent)
            .ok_or_else(wrong),
        None => size_bytes(text).ok().filter(|&bytes| bytes > 0).map(Share::Bytes).ok_or_else(wrong),
    }
}

fn scaled(text: &str, factor: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let text = text.trim();
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (count, unit) = text.split_at(unit);
    count.parse::<u64>().ok()?.checked_mul(factor(unit.trim_start())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_are_read_with_their_unit_and_never_without() {
        for (text, ms) in [("500ms", 500), ("10s", 10_000), ("5 m", 300_000), ("2h", 7_200_000), ("1d", 86_400_000)] {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
        }
        for text in ["", "5", "s", "1.5s", "-1s", "5 weeks", "99999999999999999999s", "18446744073709551615d"] {
            assert!(duration_ms(text).is_err(), "{text}");
        }
        assert_eq!(size_bytes("2GiB"), Ok(2 * GIB));
        assert_eq!(size_bytes("5 MB"), Ok(5_000_000));
        assert!(size_bytes("5").is_err() && size_bytes("5mb").is_err());
    }

    #[test]
    fn a_share_is_a_percentage_or_a_size() {
        assert_eq!(share("70%").unwrap().of(1000), 700);
        assert_eq!(share("1GiB").unwrap().of(MIB), GIB);
        for (text, shown) in [("7%", "7%"), ("2GiB", "2 GiB"), ("1025MiB", "1025 MiB"), ("1KB", "1000 bytes")] {
            assert_eq!(share(text).unwrap().to_string(), shown);
        }
        for text in ["0%", "101%", "70", "0MiB", "%"] {
            assert!(share(text).is_err(), "{text}");
        }
    }
}
