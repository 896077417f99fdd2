//! One attempt's memory: all memories and tables of its store in one sum.

use wasmtime::{Error, Result};

use super::engine::TABLE_ELEMENT_BYTES;

/// Counts what the store's memories and tables hold. A refused growth answers -1 to the guest, which may go on with
/// what it has; when it traps instead, [`MemoryMeter::refused`] tells memory from panic.
#[derive(Debug)]
pub struct MemoryMeter {
    limit_bytes: u64,
    used_bytes: u64,
    peak_bytes: u64,
    refused: bool,
}

impl MemoryMeter {
    #[must_use]
    pub fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, used_bytes: 0, peak_bytes: 0, refused: false }
    }

    /// Counts bytes that the host holds for the guest until its end; false when they do not fit.
    #[must_use]
    pub fn buffer(&mut self, bytes: u64) -> bool {
        self.grow(0, bytes, None)
    }

    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    #[must_use]
    pub fn refused(&self) -> bool {
        self.refused
    }

    fn grow(&mut self, current: u64, desired: u64, maximum: Option<u64>) -> bool {
        // The module's own maximum is its own affair, not this limit.
        if maximum.is_some_and(|own| desired > own && own <= self.limit_bytes) {
            return false;
        }
        let after = self.used_bytes.saturating_add(desired.saturating_sub(current));
        if after > self.limit_bytes {
            self.refused = true;
            return false;
        }
        self.used_bytes = after;
        self.peak_bytes = self.peak_bytes.max(after);
        true
    }
}

impl wasmtime::ResourceLimiter for MemoryMeter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        Ok(self.grow(current as u64, desired as u64, maximum.map(|own| own as u64)))
    }

    fn memory_grow_failed(&mut self, _error: Error) -> Result<()> {
        self.refused = true;
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        let bytes = |elements: usize| (elements as u64).saturating_mul(TABLE_ELEMENT_BYTES);
        Ok(self.grow(bytes(current), bytes(desired), maximum.map(bytes)))
    }

    fn table_grow_failed(&mut self, _error: Error) -> Result<()> {
        self.refused = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmtime::ResourceLimiter;

    #[test]
    fn memories_and_tables_share_one_sum() {
        let mut meter = MemoryMeter::new(1000);
        assert!(meter.memory_growing(0, 600, None).unwrap());
        assert!(meter.table_growing(0, 50, None).unwrap());
        assert!(!meter.refused());
        assert!(!meter.table_growing(50, 51, None).unwrap());
        assert!(meter.refused());
        assert_eq!(meter.peak_bytes(), 1000);
    }
}
