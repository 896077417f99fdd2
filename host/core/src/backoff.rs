//! Retry policy: how long until the next attempt.

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

use crate::id::{Attempt, TaskRef};

/// `min(max_delay_ms, base_ms * factor^(failures-1)) + jitter`, with `jitter` in `[0, jitter_ms]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    pub max_attempts: u32,
    pub base_ms: u64,
    /// The factor in thousandths: 2000 doubles.
    pub factor_thousandths: u64,
    pub jitter_ms: u64,
    pub max_delay_ms: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 5, base_ms: 200, factor_thousandths: 2000, jitter_ms: 50, max_delay_ms: 300_000 }
    }
}

impl RetryPolicy {
    /// The delay before the attempt that follows `failures` failures, the jitter drawn from task and attempt.
    #[must_use]
    pub fn delay_ms(&self, task: TaskRef, attempt: Attempt, failures: u32) -> u64 {
        let mut delay = u128::from(self.base_ms);
        for _ in 1..failures {
            delay = delay * u128::from(self.factor_thousandths) / 1000;
            if delay >= u128::from(self.max_delay_ms) || delay == 0 {
                break;
            }
        }
        let delay = u64::try_from(delay).unwrap_or(u64::MAX);
        let jitter = match self.jitter_ms {
            0 => 0,
            span => jitter_hash(task, attempt) % (span.saturating_add(1)),
        };
        delay.min(self.max_delay_ms).saturating_add(jitter)
    }
}

fn jitter_hash(task: TaskRef, attempt: Attempt) -> u64 {
    use core::hash::Hasher;
    let mut hasher = SipHasher24::new();
    hasher.write(&task.run.0.to_le_bytes());
    hasher.write_u32(u32::from(task.step));
    hasher.write_u32(task.item.unwrap_or(u32::MAX));
    hasher.write_u32(attempt);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RunId;

    const TASK: TaskRef = TaskRef { run: RunId(5), step: 0, item: None };

    #[test]
    fn delays_double_up_to_the_cap_and_jitter_stays_in_its_span() {
        let policy = RetryPolicy { max_delay_ms: 1000, ..RetryPolicy::default() };
        for (failures, least) in [(1, 200), (2, 400), (3, 800), (4, 1000), (400, 1000)] {
            let delay = policy.delay_ms(TASK, failures, failures);
            assert!((least..=least + 50).contains(&delay), "{failures}: {delay}");
        }
    }

    #[test]
    fn extreme_policies_saturate() {
        let policy = RetryPolicy {
            max_attempts: u32::MAX,
            base_ms: u64::MAX,
            factor_thousandths: u64::MAX,
            jitter_ms: u64::MAX,
            max_delay_ms: u64::MAX,
        };
        assert_eq!(policy.delay_ms(TASK, 7, 7), u64::MAX);
    }
}
