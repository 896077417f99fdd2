//! What the operator's configuration says to decisions. Never read by `apply`.

use alloc::{collections::BTreeMap, string::String};

use crate::limits::RATE_LIMITED_MAX_MS;

#[derive(Clone, Debug)]
pub struct Policy {
    pub partition: u16,
    pub result_ttl_ms: u64,
    /// What the shell's results segments hold at most, keys whose results were evicted not counted.
    pub results_max_bytes: u64,
    /// Idempotency keys held at most.
    pub keys_max: u64,
    /// Unfinished tasks at most; beyond it enqueues are refused.
    pub hard_depth: u64,
    /// Tenants and their weights; absent ones weigh 1.
    pub weights: BTreeMap<String, u32>,
    pub rate_limited_max_ms: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            partition: 0,
            result_ttl_ms: 3_600_000,
            results_max_bytes: 512 * 1024 * 1024,
            keys_max: 1_000_000,
            hard_depth: 1_000_000,
            weights: BTreeMap::new(),
            rate_limited_max_ms: RATE_LIMITED_MAX_MS,
        }
    }
}
