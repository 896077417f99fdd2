//! Components without a native artefact through a fault of the host: when each is tried again.

use std::collections::BTreeMap;

use tm_core::time::Millis;

use super::catalogue::ComponentKey;

/// The first delay and the largest; each further one is twice as long.
const DELAY_MS: (u64, u64) = (1_000, 60_000);

#[derive(Debug, Default)]
pub(super) struct Held {
    components: BTreeMap<ComponentKey, Again>,
}

#[derive(Debug, Default)]
struct Again {
    failures: u32,
    /// None until the loop has looked at its clock.
    at: Option<Millis>,
    /// Under way just now.
    trying: bool,
}

impl Held {
    /// It failed once more.
    pub(super) fn add(&mut self, key: &ComponentKey) {
        let again = self.components.entry(key.clone()).or_default();
        *again = Again { failures: again.failures + 1, at: None, trying: false };
    }

    /// How often it failed in a row.
    pub(super) fn failures(&self, key: &ComponentKey) -> u32 {
        self.components.get(key).map_or(0, |again| again.failures)
    }

    pub(super) fn forget(&mut self, key: &ComponentKey) {
        self.components.remove(key);
    }

    /// Those to be tried now.
    pub(super) fn due(&mut self, now: Millis) -> Vec<ComponentKey> {
        let mut due = Vec::new();
        for (key, again) in &mut self.components {
            if !again.trying && again.at.is_some_and(|at| at <= now) {
                again.trying = true;
                due.push(key.clone());
            }
        }
        due
    }

    /// When the next is due, counted from `now` for those that failed just before.
    pub(super) fn next(&mut self, now: Millis) -> Option<Millis> {
        let waiting = self.components.values_mut().filter(|again| !again.trying);
        waiting.map(|again| *again.at.get_or_insert(now.plus(delay_ms(again.failures)))).min()
    }
}

fn delay_ms(failures: u32) -> u64 {
    DELAY_MS.0.saturating_mul(1 << (failures - 1).min(16)).min(DELAY_MS.1)
}

#[cfg(test)]
mod tests {
    use tm_core::id::Digest;

    use super::*;

    #[test]
    fn a_component_is_tried_again_after_growing_delays_until_it_is_there() {
        let (mut held, key) = (Held::default(), ("t".into(), Digest::of(b"component")));
        assert_eq!((held.next(Millis(0)), held.due(Millis(9_999))), (None, vec![]));
        let mut now = Millis(0);
        for delay_ms in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            held.add(&key);
            assert_eq!(held.next(now), Some(now.plus(delay_ms)));
            assert_eq!(held.due(now.plus(delay_ms - 1)), []);
            now = now.plus(delay_ms);
            assert_eq!(held.due(now), std::slice::from_ref(&key));
            assert_eq!((held.due(now), held.next(now)), (vec![], None), "one try at a time");
        }
        held.forget(&key);
        assert_eq!(held.next(now), None);
    }
}
