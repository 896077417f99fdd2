//! One seed, one history: a small generator whose numbers never change between versions of a library.

/// SplitMix64 (Steele, Lea and Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Within `from..end`; `from` when that is empty.
    pub(crate) fn within(&mut self, from: u64, end: u64) -> u64 {
        if end <= from { from } else { from + self.next() % (end - from) }
    }

    /// A place in a list of `len` things; 0 when it is empty.
    pub(crate) fn place(&mut self, len: usize) -> usize {
        usize::try_from(self.within(0, len as u64)).unwrap_or(0)
    }
}
