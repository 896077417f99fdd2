//! One frame as one line: `{"c":"<crc32c>","s":<sequence>,"t":<ms>,"e":[…]}` and a newline.
//!
//! `c` is CRC-32C, 8 lower-case hex digits, over everything after its own field (from `"s"`) up to the newline. `s` has
//! no gaps over all segments. JSON escapes newlines in strings, so a line never holds one inside.

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize, de::IgnoredAny};

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
    let parsed: LineIn = serde_json::from_slice(line).map_err(|e| BadLine::Content(alloc::format!("{e}")))?;
    Ok((parsed.s, Frame { at: parsed.t, events: parsed.e }))
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
