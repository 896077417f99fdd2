//! One frame as one line: `{"c":"<crc32c>","s":<sequence>,"t":<ms>,"e":[…]}` and a newline.
//!
//! `c` is CRC-32C, 8 lower-case hex digits, over everything after its own field (from `"s"`) up to the newline. `s` has
//! no gaps over all segments. JSON escapes newlines in strings, so a line never holds one inside.

use alloc::{borrow::ToOwned, string::String, vec::Vec};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::value::RawValue;

use crate::queue::event::{Event, Frame};
use crate::time::Millis;

/// How a line starts; after a damaged line the reader looks for the next of these.
pub const MARK: &[u8] = b"{\"c\":\"";
/// `{"c":"01234567",`
const HEAD_BYTES: usize = 16;
/// The format that [`Event::Created`] names.
pub const FORMAT: u32 = 1;
/// Numbers of segments are below: at a segment a second, a queue comes so far in thirty thousand years.
pub const SEGMENTS_END: u64 = 1_000_000_000_000;

#[derive(Serialize)]
struct LineOut<'a> {
    s: u64,
    t: Millis,
    e: &'a [Event],
}

#[derive(Deserialize)]
struct LineIn {
    #[serde(rename = "c")]
    _checked: IgnoredAny,
    s: u64,
    t: Millis,
    e: Vec<Event>,
}

/// Appends the line of `frame` to `out`.
///
/// # Panics
/// Never: every event serialises.
pub fn encode(frame: &Frame, sequence: u64, out: &mut Vec<u8>) {
    let line = serde_json::to_vec(&LineOut { s: sequence, t: frame.at, e: &frame.events }).unwrap_or_default();
    debug_assert!(!line.is_empty(), "events serialise");
    let rest = line.get(1..).unwrap_or_default();
    out.extend_from_slice(MARK);
    let sum = crc32c::crc32c(rest);
    out.extend((0..8).map(|place| b"0123456789abcdef"[(sum >> (28 - 4 * place)) as usize & 15]));
    out.extend_from_slice(b"\",");
    out.extend_from_slice(rest);
    out.push(b'\n');
}

/// Why a line is not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    #[error("does not start with {{\"c\":\"")]
    NoMark,
    #[error("checksum does not match")]
    Checksum,
    #[error("checksum matches, but the content is not a frame: {0}")]
    Content(String),
    /// Whole, and with the form of a frame: no damage, but of a program that writes what this one cannot read. `format`
    /// is the number that an [`Event::Created`] in it names.
    #[error("a whole record that this program cannot read: {why}")]
    Unknown { why: String, format: Option<u64> },
}

/// What a record of every format has, so that an older program can tell it from damage.
#[derive(Deserialize)]
struct Form<'l> {
    #[serde(rename = "s")]
    _sequence: u64,
    #[serde(rename = "t")]
    _at: u64,
    #[serde(borrow)]
    e: Vec<&'l RawValue>,
}

#[derive(Deserialize)]
struct Begins {
    #[serde(rename = "Created")]
    created: Format,
}

#[derive(Deserialize)]
struct Format {
    format: u64,
}

/// Reads one line (without its newline).
///
/// # Errors
/// When it is not whole, byte for byte, or not a frame of this format.
pub fn decode(line: &[u8]) -> Result<(u64, Frame), BadLine> {
    if line.len() < HEAD_BYTES + 2 || !line.starts_with(MARK) || &line[HEAD_BYTES - 2..HEAD_BYTES] != b"\"," {
        return Err(BadLine::NoMark);
    }
    let digits = &line[MARK.len()..MARK.len() + 8];
    let lower = digits.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    let stated = core::str::from_utf8(digits).ok().and_then(|text| u32::from_str_radix(text, 16).ok());
    if !lower || stated != Some(crc32c::crc32c(&line[HEAD_BYTES..])) {
        return Err(BadLine::Checksum);
    }
    let parsed: LineIn = serde_json::from_slice(line).map_err(|error| unreadable(line, &error))?;
    Ok((parsed.s, Frame { at: parsed.t, events: parsed.e }))
}

/// What serde cannot read, without the list of all that it can and without the place.
#[must_use]
pub fn without_choices(error: &serde_json::Error) -> String {
    let text = alloc::format!("{error}");
    let end = [", expected one of", " at line "].iter().filter_map(|rest| text.find(rest)).min();
    text.get(..end.unwrap_or(text.len())).unwrap_or_default().to_owned()
}

fn unreadable(line: &[u8], error: &serde_json::Error) -> BadLine {
    let why = without_choices(error);
    let Ok(form) = serde_json::from_slice::<Form<'_>>(line) else { return BadLine::Content(why) };
    let named = |event: &&RawValue| Some(serde_json::from_str::<Begins>(event.get()).ok()?.created.format);
    BadLine::Unknown { why, format: form.e.iter().filter_map(named).max() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Vec<u8> {
        let mut out = Vec::new();
        encode(
            &Frame { at: Millis(7), events: alloc::vec![Event::Filed { entry: "dlq-1-a\nb".into() }] },
            41,
            &mut out,
        );
        out
    }

    #[test]
    fn a_frame_is_one_line_and_survives_it() {
        let line = line();
        assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
        let (sequence, frame) = decode(&line[..line.len() - 1]).unwrap();
        assert_eq!((sequence, frame.at, frame.events.len()), (41, Millis(7), 1));
        assert!(line.starts_with(b"{\"c\":\""));
        assert!(core::str::from_utf8(&line).unwrap().contains(r#","s":41,"t":7,"e":[{"Filed":"#));
    }

    fn sealed(rest: &str) -> Vec<u8> {
        alloc::format!("{{\"c\":\"{:08x}\",{rest}", crc32c::crc32c(rest.as_bytes())).into_bytes()
    }

    #[test]
    fn a_whole_record_that_cannot_be_read_is_told_apart_from_damage() {
        let unknown = |rest: &str| match decode(&sealed(rest)) {
            Err(BadLine::Unknown { why, format }) => (why, format),
            other => panic!("{rest}: {other:?}"),
        };
        let (why, format) = unknown(r#""s":4,"t":5,"e":[{"Paused":{"run":"x"}}]}"#);
        assert_eq!((why.as_str(), format), ("unknown variant `Paused`", None));
        assert_eq!(unknown(r#""s":1,"t":5,"e":[{"Created":{"format":3,"key":"new"}}]}"#).1, Some(3));
        assert_eq!(unknown(r#""s":1,"t":5,"e":[{"Filed":{}}],"x":[]}"#).1, None);
        for damage in [r#""s":4,"e":[]}"#, r#""s":4,"t":5,"e":{}}"#, r#""s":4,"t":5,"e":[{"Paused":{}}]}}"#] {
            assert!(matches!(decode(&sealed(damage)), Err(BadLine::Content(_))), "{damage}");
        }
    }

    #[test]
    fn what_a_known_event_has_more_is_passed_over() {
        let (sequence, frame) =
            decode(&sealed(r#""s":4,"t":5,"e":[{"Filed":{"entry":"e","by":"x"}}],"z":1}"#)).unwrap();
        assert_eq!((sequence, frame.events.len()), (4, 1));
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let line = line();
        for place in 0..line.len() - 1 {
            for bit in 0..8 {
                let mut bad = line[..line.len() - 1].to_vec();
                bad[place] ^= 1 << bit;
                assert!(decode(&bad).is_err(), "byte {place} bit {bit}");
            }
        }
    }
}
