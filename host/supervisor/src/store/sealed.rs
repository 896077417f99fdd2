//! Small files with a checksum of their own: one line of JSON that begins as a frame does, `{"c":"<crc32c>",`.

use serde::{Serialize, de::DeserializeOwned};
use tm_core::record::codec::MARK;

/// `{"c":"01234567",`
const HEAD_BYTES: usize = MARK.len() + 10;

/// The line of a value that serialises as a JSON object.
pub(super) fn seal<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    seal_into(value, &mut bytes);
    bytes
}

/// Appends the line of a value that serialises as a JSON object.
pub(super) fn seal_into<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    let start = out.len();
    // The object's own brace is the last byte of the head, until the head is written.
    out.resize(start + HEAD_BYTES - 1, 0);
    if serde_json::to_writer(&mut *out, value).is_err() {
        out.truncate(start + HEAD_BYTES - 1);
    }
    let sum = crc32c::crc32c(out.get(start + HEAD_BYTES..).unwrap_or_default());
    let head = format!("{{\"c\":\"{sum:08x}\",");
    out[start..start + HEAD_BYTES].copy_from_slice(head.as_bytes());
    out.push(b'\n');
}

/// The value, when every byte is as it was written.
pub(super) fn unseal<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(&object(bytes)?).ok()
}

/// The JSON object, when every byte is as it was written.
pub(super) fn object(bytes: &[u8]) -> Option<Vec<u8>> {
    let rest = bytes.strip_prefix(MARK)?;
    let (stated, rest) = rest.split_at_checked(8)?;
    let body = rest.strip_prefix(b"\",")?.strip_suffix(b"\n")?;
    if stated != format!("{:08x}", crc32c::crc32c(body)).as_bytes() {
        return None;
    }
    Some([b"{", body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_flipped_byte_is_seen() {
        let value = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
        let bytes = seal(&value);
        assert_eq!(unseal(&bytes), Some(value));
        for place in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[place] ^= 0x20;
            assert_eq!(unseal::<BTreeMap<String, u32>>(&bad), None, "byte {place}");
        }
    }
}
