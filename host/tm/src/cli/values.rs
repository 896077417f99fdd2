//! Values of flags: durations, times, names, JSON objects.

use std::{
    io::{self, Read as _},
    path::Path,
};

use tm_core::{
    api::ErrorKind,
    code,
    json::Json,
    limits::{IDEMPOTENCY_KEY_MAX_BYTES, INPUT_MAX_BYTES, READY_AT_MAX},
    time::Millis,
};
use tm_supervisor::{config::units, deploy::open_regular};

use super::exit::{Failure, reason};

/// A span such as `500ms`, `10s`, `5m`, `2h`, `1d`, in milliseconds.
pub(crate) fn duration_ms(text: &str) -> Result<u64, String> {
    units::duration_ms(text).map_err(|_| "a whole number with a unit is needed: 500ms, 10s, 5m, 2h, 1d".to_owned())
}

/// As [`duration_ms`], at least 100 ms: how often something is printed again.
pub(crate) fn interval_ms(text: &str) -> Result<u64, String> {
    duration_ms(text)
        .and_then(|ms| if ms < 100 { Err("an interval of at least 100ms is needed".to_owned()) } else { Ok(ms) })
}

/// Seconds as a number, or a duration with a unit; in milliseconds.
pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(whole) => whole.checked_mul(1_000).ok_or_else(|| "too large".to_owned()),
        Err(_) => duration_ms(text).map_err(|_| "seconds are needed: 5, or with a unit: 500ms, 5s, 1m".to_owned()),
    }
}

/// As [`seconds`], above 0: how long something is kept.
pub(crate) fn some_seconds(text: &str) -> Result<u64, String> {
    seconds(text).and_then(|ms| if ms == 0 { Err("more than 0 is needed".to_owned()) } else { Ok(ms) })
}

/// A time in RFC 3339 with its offset.
pub(crate) fn time(text: &str) -> Result<Millis, String> {
    let time: jiff::Timestamp =
        text.parse().map_err(|_| format!("a time in RFC 3339 up to {READY_AT_MAX} is needed: 2026-01-31T12:00:00Z"))?;
    match u64::try_from(time.as_millisecond()).map(Millis) {
        Err(_) => Err("the time is before 1970".to_owned()),
        Ok(time) if time > READY_AT_MAX => Err(format!("the time is after {READY_AT_MAX}")),
        Ok(time) => Ok(time),
    }
}

/// A name of a tenant.
pub(crate) fn name(text: &str) -> Result<String, String> {
    if tm_core::id::is_name(text) {
        Ok(text.to_owned())
    } else {
        Err("1 to 64 of a-z A-Z 0-9 . _ - are needed, the first a letter or digit".to_owned())
    }
}

/// An idempotency key. One that is too long is not repeated in the error.
///
/// # Errors
/// Usage, naming `from`, when it is empty or too long.
pub(crate) fn key(text: &str, from: &str) -> Result<String, Failure> {
    match text.len() {
        1..=IDEMPOTENCY_KEY_MAX_BYTES => Ok(text.to_owned()),
        length => {
            Err(Failure::usage(format!("{from} has {length} bytes, 1 to {IDEMPOTENCY_KEY_MAX_BYTES} are allowed")))
        }
    }
}

/// The input of a run: JSON text, `@FILE`, or `@-` for standard input. It must be an object of at most 16 MiB.
///
/// # Errors
/// Usage, with line and column, when it is not a JSON object; INPUT_TOO_LARGE.
pub(crate) fn input(argument: &str) -> Result<Json, Failure> {
    let (text, from) = match argument.strip_prefix('@') {
        None => (argument.to_owned(), "--input".to_owned()),
        Some("-") => (read(io::stdin().lock(), "standard input")?, "--input from standard input".to_owned()),
        Some(path) => {
            let file = open_regular(Path::new(path))
                .map_err(|error| Failure::usage(format!("cannot read the input file {path}: {}", reason(&error))))?;
            (read(file, path)?, format!("--input from {path}"))
        }
    };
    if text.len() as u64 > INPUT_MAX_BYTES {
        return Err(too_large(&from));
    }
    // Only what stands in the command line went through the shell: nothing else can be quoted better.
    object(&text, &from).map_err(|mut failure| {
        failure.hint = failure.hint.filter(|_| !argument.starts_with('@'));
        failure
    })
}

fn read(source: impl io::Read, name: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    source
        .take(INPUT_MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::io("read the input", Path::new(name), &error))?;
    if bytes.len() as u64 > INPUT_MAX_BYTES {
        return Err(too_large(name));
    }
    String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        Failure::usage(format!("{name} is not UTF-8 text: byte {place} does not belong there"))
    })
}

pub(crate) fn too_large(from: &str) -> Failure {
    Failure::new(
        ErrorKind::Usage,
        format!("{}: {from} is larger than {} MiB", code::INPUT_TOO_LARGE, INPUT_MAX_BYTES >> 20),
    )
    .hint("put the data into a folder that the flow may read, and pass its name")
}

/// Text that must be one JSON object.
///
/// # Errors
/// Usage, naming `from`, with line and column when the text is not JSON.
pub(crate) fn object(text: &str, from: &str) -> Result<Json, Failure> {
    let json = Json::parse(text).map_err(|error| {
        Failure::usage(format!("{from} is not JSON: {error}")).hint("quote it for the shell: -i '{\"name\": \"x\"}'")
    })?;
    is_object(json, from)
}

/// Refuses JSON of another kind.
pub(crate) fn is_object(json: Json, from: &str) -> Result<Json, Failure> {
    let found = match json.get().trim_start().as_bytes().first() {
        Some(b'{') => return Ok(json),
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        _ => "a number",
    };
    Err(Failure::usage(format!("{from} must be a JSON object, found {found}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration_ms("500ms"), Ok(500));
        assert_eq!(duration_ms("10s"), Ok(10_000));
        assert_eq!(duration_ms("5m"), Ok(300_000));
        assert_eq!(duration_ms("2h"), Ok(7_200_000));
        assert_eq!(duration_ms("1d"), Ok(86_400_000));
        for bad in ["", "5", "s", "-1s", "1.5h", "1w", "99999999999999999999d", "18446744073709551615d"] {
            assert!(duration_ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_an_offset() {
        assert_eq!(time("1970-01-01T00:00:01Z"), Ok(Millis(1_000)));
        assert_eq!(time("2020-02-29T14:34:56.789+02:00"), Ok(Millis(1_582_979_696_789)));
        assert_eq!(time("9999-12-30T22:00:00Z"), Ok(READY_AT_MAX));
        assert!(time("9999-12-31T23:59:59Z").unwrap_err().contains("up to 9999-12-30T22:00:00"));
        for bad in [
            "",
            "tomorrow",
            "9999-12-30T22:00:00.001Z",
            "2020-02-30T00:00:00Z",
            "2020-02-29T12:00:00",
            "1960-01-01T00:00:00Z",
        ] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn seconds_may_have_a_unit() {
        assert_eq!(seconds("5"), Ok(5_000));
        assert_eq!(seconds("200ms"), Ok(200));
        assert!(seconds("-5").is_err() && seconds("x").is_err());
        assert!(some_seconds("0").is_err() && some_seconds("0m").is_err() && some_seconds("1").is_ok());
    }

    #[test]
    fn only_an_object_is_an_input() {
        assert!(object(" {\"a\": [1]} ", "i").is_ok());
        for bad in ["", "{", "[1]", "\"x\"", "7", "null", "true", "{}{}"] {
            assert!(object(bad, "i").is_err(), "{bad}");
        }
    }
}
