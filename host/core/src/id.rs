//! Names of runs, tasks, flows, components and tenants.

use alloc::string::{String, ToString};
use core::{fmt, str::FromStr};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use siphasher::sip::SipHasher24;

use crate::time::Millis;

/// Crockford's base 32, as the ULID specification uses it.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const NO_DIGIT: u8 = u8::MAX;
/// The value of each character, in either case.
const DIGITS: [u8; 256] = {
    let mut digits = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 32 {
        digits[ALPHABET[value as usize] as usize] = value;
        digits[ALPHABET[value as usize].to_ascii_lowercase() as usize] = value;
        value += 1;
    }
    digits
};

/// A run: a ULID of 48 bits of time, 16 bits of partition, 16 bits of its place in the millisecond, 48 bits of keyed hash.
///
/// Minted without randomness, yet not guessable without the queue's secret. Prints as 26 characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u128);

impl RunId {
    /// The id of the run that the record `sequence` creates at `now`. It sorts after `newest`, the last one before it, also
    /// within a millisecond (of which 65,536 are in order).
    #[must_use]
    pub fn mint(now: Millis, partition: u16, secret: &[u8; 16], sequence: u64, newest: Option<Self>) -> Self {
        use core::hash::Hasher;
        let mut hasher = SipHasher24::new_with_key(secret);
        hasher.write_u64(sequence);
        let begin = u128::from(now.0 & 0xFFFF_FFFF_FFFF) << 80 | u128::from(partition) << 64;
        let before = newest.map_or(0, |newest| newest.0 >> 48);
        let place = if before >> 16 == begin >> 64 { (before & 0xFFFF).saturating_add(1).min(0xFFFF) } else { 0 };
        Self(begin | place << 48 | u128::from(hasher.finish() >> 16))
    }

    /// When it was minted, which is when the run was enqueued.
    #[must_use]
    pub const fn minted_at(self) -> Millis {
        Millis((self.0 >> 80) as u64)
    }
}

impl RunId {
    fn text(self) -> [u8; 26] {
        let mut text = [0u8; 26];
        for (place, out) in text.iter_mut().rev().enumerate() {
            *out = ALPHABET[(self.0 >> (5 * place)) as usize & 31];
        }
        text
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(core::str::from_utf8(&self.text()).map_err(|_| fmt::Error)?)
    }
}

/// The text is not an id: wrong length or a character outside Crockford's base 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id: 26 characters of 0-9 and A-Z without I, L, O, U are needed")]
pub struct NotAnId;

impl FromStr for RunId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        if text.len() != 26 || text.as_bytes()[0] > b'7' {
            return Err(NotAnId);
        }
        text.bytes()
            .try_fold(0u128, |id, byte| {
                let digit = DIGITS[usize::from(byte)];
                if digit == NO_DIGIT { Err(NotAnId) } else { Ok(id << 5 | u128::from(digit)) }
            })
            .map(Self)
    }
}

impl Serialize for RunId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(core::str::from_utf8(&self.text()).map_err(ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for RunId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = alloc::borrow::Cow::<str>::deserialize(d)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A task: one step (or one item of a fan-out) of one run, kept over retries.
///
/// `step` is the step's place in the flow; `item` the place in the fan-out's list. Its public name, `RUN.step[3]`,
/// needs the flow: `queue::State::task_name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskRef {
    #[serde(rename = "r")]
    pub run: RunId,
    #[serde(rename = "n")]
    pub step: u16,
    #[serde(rename = "i", default, skip_serializing_if = "Option::is_none")]
    pub item: Option<u32>,
}

impl TaskRef {
    /// The public name of the task, `RUN.step` or `RUN.step[item]`.
    #[must_use]
    pub fn name(&self, step_id: &str) -> String {
        match self.item {
            None => alloc::format!("{}.{step_id}", self.run),
            Some(item) => alloc::format!("{}.{step_id}[{item}]", self.run),
        }
    }
}

/// The number of a start of a task, from 1, never reset: identity and fence.
pub type Attempt = u32;

/// A worker process's incarnation, unique while the supervisor lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub u64);

/// The number of a flow registration in this queue, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FlowNo(pub u32);

/// SHA-256 of bytes, printed as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotADigest);
        }
        let mut bytes = [0; 32];
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).map_err(|_| NotADigest)?;
        }
        Ok(Self(bytes))
    }
}

/// The text is not a SHA-256 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a digest: 64 hex digits are needed")]
pub struct NotADigest;

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.to_string())
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        alloc::borrow::Cow::<str>::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// Whether `name` may stand as a tenant, flow id or step id: 1 to 64 of `a-z A-Z 0-9 . _ -`, first a letter or digit.
///
/// These names become parts of file names, so `..`, `/` and a leading dot cannot occur.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=64).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !name.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text() {
        let id = RunId::mint(Millis(1_700_000_000_123), 0, &[7; 16], 42, None);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().len(), 26);
        assert_eq!(RunId(u128::MAX).to_string().parse(), Ok(RunId(u128::MAX)));
        assert_eq!("8ZZZZZZZZZZZZZZZZZZZZZZZZZ".parse::<RunId>(), Err(NotAnId));
    }

    #[test]
    fn later_ids_sort_later_and_other_secrets_give_other_ids() {
        let mint = |at, secret, sequence, newest| RunId::mint(Millis(at), 0, &[secret; 16], sequence, newest);
        let first = mint(1, 1, 9, None);
        let mut newest = first;
        for sequence in 10..200 {
            let next = mint(1, 1, sequence, Some(newest));
            assert!(newest < next, "within a millisecond too");
            newest = next;
        }
        assert!(newest < mint(2, 1, 8, Some(newest)));
        assert_ne!(mint(1, 2, 9, None), first);
    }

    #[test]
    fn names_that_could_leave_a_folder_are_refused() {
        for bad in ["", ".", "..", "a/b", "a..b", "-x", " a", "a\n", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad:?}");
        }
        assert!(is_name("docs-site") && is_name("a.b_c-9"));
    }
}
