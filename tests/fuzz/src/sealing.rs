//! Checksums of lines that begin `{"c":"<crc32c>",`, as frames of the log and its small files do, made right again.

use tm_core::record::codec::MARK;

/// Where the checksum's digits end and `",` begins; what is summed begins after that.
const DIGITS: usize = 8;

/// Gives every such line the checksum of what stands behind it.
pub(crate) fn mend(bytes: &mut [u8]) {
    let mut start = 0;
    while start < bytes.len() {
        let end = bytes[start..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| start + at);
        let line = &mut bytes[start..end];
        let summed = MARK.len() + DIGITS + 2;
        if line.len() > summed && line.starts_with(MARK) {
            let sum = crc32c::crc32c(&line[summed..]);
            line[MARK.len()..summed].copy_from_slice(format!("{sum:08x}\",").as_bytes());
        }
        start = end + 1;
    }
}
