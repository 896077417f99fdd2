//! Round robin over connections: a client that pipelines a thousand calls does not keep another waiting.

use std::collections::{BTreeMap, VecDeque};

/// Waiting items by source, taken one per source in turn.
#[derive(Debug)]
pub struct RoundRobin<T> {
    queues: BTreeMap<u32, VecDeque<T>>,
    last: u32,
    len: usize,
}

impl<T> Default for RoundRobin<T> {
    fn default() -> Self {
        Self { queues: BTreeMap::new(), last: 0, len: 0 }
    }
}

impl<T> RoundRobin<T> {
    pub fn push(&mut self, source: u32, item: T) {
        self.queues.entry(source).or_default().push_back(item);
        self.len += 1;
    }

    /// The next item; those of one source in their order.
    pub fn pop(&mut self) -> Option<T> {
        let next = self.queues.range(self.last.checked_add(1)?..).next().or_else(|| self.queues.iter().next());
        let source = *next?.0;
        let queue = self.queues.get_mut(&source)?;
        let item = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&source);
        }
        self.last = if source == u32::MAX { 0 } else { source };
        self.len -= usize::from(item.is_some());
        item
    }

    /// Drops what a source still has waiting.
    pub fn forget(&mut self, source: u32) {
        self.len -= self.queues.remove(&source).map_or(0, |queue| queue.len());
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_take_turns_and_each_keeps_its_order() {
        let mut fair = RoundRobin::default();
        for item in ["a1", "a2", "a3"] {
            fair.push(1, item);
        }
        fair.push(7, "b1");
        fair.push(u32::MAX, "c1");
        assert_eq!(fair.pop(), Some("a1"));
        fair.push(7, "b2");
        let rest: Vec<_> = std::iter::from_fn(|| fair.pop()).collect();
        assert_eq!(rest, ["b1", "c1", "a2", "b2", "a3"]);
        fair.push(3, "d");
        fair.forget(3);
        assert!(fair.is_empty() && fair.pop().is_none());
    }
}
