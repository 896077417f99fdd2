//! Bytes of a connection, cut into lines without moving what waits behind each.

use std::ops::Range;

/// What one read takes at most.
const READ_BYTES: usize = 64 * 1024;

/// What was received and not taken yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// All of it is initialised once; `taken..filled` is what was received.
    bytes: Vec<u8>,
    taken: usize,
    searched: usize,
    filled: usize,
}

impl Lines {
    /// Where the next whole line stands, without its newline. It counts as taken.
    pub(super) fn next(&mut self) -> Option<Range<usize>> {
        let Some(at) = memchr::memchr(b'\n', &self.bytes[self.searched..self.filled]) else {
            self.searched = self.filled;
            return None;
        };
        let line = self.taken..self.searched + at;
        (self.taken, self.searched) = (line.end + 1, line.end + 1);
        Some(line)
    }

    /// A line that [`Lines::next`] named, before the next call of [`Lines::room`].
    pub(super) fn get(&self, line: Range<usize>) -> &[u8] {
        &self.bytes[line]
    }

    /// Bytes of a line whose end has not come.
    pub(super) const fn waiting(&self) -> usize {
        self.filled - self.taken
    }

    /// Where to receive to; [`Lines::received`] says how much it became.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.taken..self.filled, 0);
        (self.searched, self.filled) = (self.searched - self.taken, self.filled - self.taken);
        self.taken = 0;
        if self.bytes.len() - self.filled < READ_BYTES / 2 {
            let wanted = (self.filled * 2).max(READ_BYTES);
            self.bytes.resize(wanted, 0);
        }
        let end = self.bytes.len().min(self.filled + READ_BYTES);
        &mut self.bytes[self.filled..end]
    }

    pub(super) fn received(&mut self, count: usize) {
        self.filled = (self.filled + count).min(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(lines: &mut Lines, bytes: &[u8]) {
        let room = lines.room();
        room[..bytes.len()].copy_from_slice(bytes);
        lines.received(bytes.len());
    }

    fn all(lines: &mut Lines) -> Vec<String> {
        std::iter::from_fn(|| lines.next().map(|line| String::from_utf8_lossy(lines.get(line)).into_owned())).collect()
    }

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let mut lines = Lines::default();
        receive(&mut lines, b"one\ntwo\nth");
        assert_eq!(all(&mut lines), ["one", "two"]);
        assert_eq!(lines.waiting(), 2);
        receive(&mut lines, b"ree");
        assert!(all(&mut lines).is_empty());
        receive(&mut lines, b"\n\nfour\n");
        assert_eq!(all(&mut lines), ["three", "", "four"]);
        assert_eq!(lines.waiting(), 0);
    }

    #[test]
    fn a_line_may_be_longer_than_one_read() {
        let mut lines = Lines::default();
        let part = vec![b'x'; READ_BYTES / 2];
        for _ in 0..40 {
            receive(&mut lines, &part);
            assert!(lines.next().is_none());
        }
        receive(&mut lines, b"y\nz");
        let line = lines.next().unwrap();
        assert_eq!((line.len(), lines.get(line).last().copied()), (20 * READ_BYTES + 1, Some(b'y')));
        assert_eq!(lines.waiting(), 1);
    }
}
