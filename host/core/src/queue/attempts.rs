//! The attempts that a task remembers.

use alloc::{boxed::Box, vec::Vec};
use core::ops::{Deref, DerefMut};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::queue::run::AttemptRecord;

/// Attempts that a task remembers for `queue show`, also after its end.
pub const ATTEMPTS_KEPT: usize = 32;

/// The newest attempts, oldest first, at most [`ATTEMPTS_KEPT`]. One pointer, because a queue may hold a million tasks that
/// were never started; and one allocation, because most tasks are started once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempts(Option<Box<SmallVec<[AttemptRecord; 1]>>>);

impl Attempts {
    /// Takes a newer one; the oldest is forgotten for it when there are many.
    pub fn push(&mut self, record: AttemptRecord) {
        let kept = self.0.get_or_insert_default();
        if kept.len() == ATTEMPTS_KEPT {
            kept.remove(0);
        }
        kept.push(record);
    }

    /// The newest, and those before it, oldest first.
    #[must_use]
    pub fn into_last(self) -> Option<(AttemptRecord, Vec<AttemptRecord>)> {
        let mut kept = self.0?;
        let last = kept.pop()?;
        Some((last, kept.into_vec()))
    }
}

impl FromIterator<AttemptRecord> for Attempts {
    fn from_iter<I: IntoIterator<Item = AttemptRecord>>(records: I) -> Self {
        let mut attempts = Self::default();
        records.into_iter().for_each(|record| attempts.push(record));
        attempts
    }
}

impl Deref for Attempts {
    type Target = [AttemptRecord];

    fn deref(&self) -> &[AttemptRecord] {
        self.0.as_deref().map_or(&[], |kept| kept)
    }
}

impl DerefMut for Attempts {
    fn deref_mut(&mut self) -> &mut [AttemptRecord] {
        self.0.as_deref_mut().map_or(&mut [], |kept| kept)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::*;
    use crate::{
        id::WorkerId,
        queue::run::{Run, Task},
        time::Millis,
        wire::Usage,
    };

    fn record(attempt: u32) -> AttemptRecord {
        AttemptRecord {
            attempt,
            started_at: Millis(1),
            ended_at: None,
            worker: WorkerId(1),
            outcome: String::new(),
            code: None,
            usage: Usage::default(),
        }
    }

    #[test]
    fn the_newest_are_kept_in_order_and_read_again_as_a_list() {
        assert!(Attempts::default().is_empty() && Attempts::default().into_last().is_none());
        let attempts: Attempts = (1..=40).map(record).collect();
        assert!(attempts.iter().map(|record| record.attempt).eq(9..=40));
        let text = serde_json::to_string(&attempts).unwrap();
        assert!(text.starts_with("[{"));
        assert_eq!(serde_json::from_str::<Attempts>(&text).unwrap(), attempts);
        let (last, earlier) = attempts.into_last().unwrap();
        assert_eq!((last.attempt, earlier.len()), (40, 31));
    }

    #[test]
    fn what_a_queue_may_hold_a_million_of_stays_small() {
        assert_eq!((size_of::<Run>(), size_of::<Task>()), (96, 64));
    }
}
