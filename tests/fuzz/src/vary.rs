//! Variations of an input: a few changes each, the same for the same seed.

use std::ops::Range;

use crate::{Target, random::Random};

const CHANGES_MAX: u64 = 4;
/// Numbers at the edges of what code counts with.
const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "-1",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "9007199254740992",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e400",
];

/// A variation of `input`; parts of it may come from `other`.
#[must_use]
pub fn vary(target: &Target, seed: u64, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = input.to_vec();
    for _ in 0..random.within(1, CHANGES_MAX + 1) {
        change(&mut bytes, &mut random, target.words, other);
    }
    bytes.truncate(target.len_max);
    mended(target, seed, bytes)
}

/// The bytes with right checksums, in three cases of four.
#[must_use]
pub fn mended(target: &Target, seed: u64, mut bytes: Vec<u8>) -> Vec<u8> {
    // Another number than the one that chose the changes.
    if let Some(mend) = target.mend.filter(|_| Random::new(!seed).within(0, 4) > 0) {
        mend(&mut bytes);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, random: &mut Random, words: &[&str], other: &[u8]) {
    let at = random.place(bytes.len() + 1);
    match random.within(0, 12) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.within(0, 8);
            }
        }
        1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = [0, b'\n', b'"', b' ', 0x7F, 0x80, 0xFF][random.place(7)];
            }
        }
        2 => put(bytes, at..at, words[random.place(words.len())].as_bytes()),
        3 => put(bytes, range(random, bytes.len()), &[]),
        4 => {
            let part = bytes[range(random, bytes.len())].to_vec();
            put(bytes, at..at, &part);
        }
        5 => {
            let from = range(random, other.len());
            let to = range(random, bytes.len());
            put(bytes, to, &other[from]);
        }
        6 => bytes.truncate(at),
        7 | 8 => {
            if let Some(number) = number(bytes, at) {
                put(bytes, number, NUMBERS[random.place(NUMBERS.len())].as_bytes());
            }
        }
        9 => {
            let line = line(bytes, at);
            put(bytes, line, &[]);
        }
        10 => {
            let (from, to) = (line(bytes, at), line(bytes, random.place(bytes.len() + 1)));
            let part = bytes[from].to_vec();
            put(bytes, to.start..to.start, &part);
        }
        _ => {
            // A line of the other input in place of one of this.
            let (from, to) = (line(other, random.place(other.len() + 1)), line(bytes, at));
            put(bytes, to, &other[from]);
        }
    }
}

fn put(bytes: &mut Vec<u8>, place: Range<usize>, part: &[u8]) {
    bytes.splice(place, part.iter().copied());
}

/// A stretch, more often a short one.
fn range(random: &mut Random, len: usize) -> Range<usize> {
    let start = random.place(len + 1);
    let longest = [4, 32, 256, len][random.place(4)].min(len - start);
    start..start + random.place(longest + 1)
}

/// The line around a place, with its newline.
fn line(bytes: &[u8], at: usize) -> Range<usize> {
    let start = bytes[..at].iter().rposition(|&byte| byte == b'\n').map_or(0, |before| before + 1);
    let end = bytes[at..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |after| at + after + 1);
    start..end
}

/// The next number at or after a place.
fn number(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let start = at + bytes[at..].iter().position(u8::is_ascii_digit)?;
    let digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    Some(start..start + digits)
}
