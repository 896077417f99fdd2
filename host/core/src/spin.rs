//! Adaptive spinning: a thread whose waits are short stays awake through them, while little is going on.
//!
//! Waking a thread that sleeps on an idle processor costs tens of microseconds, which is more than a worker needs for a
//! small step. With many tasks in flight that cost is shared by all of a batch, and the processors have better to do. Who
//! asks again should give the processor away between two looks.

/// How long a wait is sat out awake at most, in microseconds: longer than a sync of a good disk, which a worker waits
/// through between two steps of a flow.
const SPIN_MAX_US: u64 = 200;
/// A wait of up to this long makes the next one begin awake, in microseconds: little more, or the spin would be in vain
/// every time.
const SHORT_US: u64 = SPIN_MAX_US + 50;
/// With more tasks in flight nobody spins.
const TASKS_MAX: u64 = 2;

/// What one thread knows of its waits. It starts asleep.
#[derive(Clone, Copy, Debug)]
pub struct Spin {
    /// Whoever is waited for has a processor of its own.
    is_useful: bool,
    is_short: bool,
}

impl Spin {
    /// For a process that may use so many processors at once.
    #[must_use]
    pub const fn on(processors: usize) -> Self {
        Self { is_useful: processors > 1, is_short: false }
    }

    /// Asks until there is an answer, at most for 200 µs, and not at all while waits are long. `waited_us` tells how long
    /// this wait has taken.
    pub fn ask<T>(&self, waited_us: impl Fn() -> u64, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
        while self.is_short && waited_us() < SPIN_MAX_US {
            if let Some(answer) = ask() {
                return Some(answer);
            }
        }
        None
    }

    /// Learns how long a wait took, awake and asleep together, in microseconds, and how many tasks run or wait for a worker
    /// in the whole queue.
    pub const fn waited(&mut self, us: u64, tasks: u64) {
        self.is_short = self.is_useful && us <= SHORT_US && tasks <= TASKS_MAX;
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    /// A clock that a question moves on by 10 µs, and what came of asking for an answer that is there from `at_us` on.
    fn ask(spin: Spin, at_us: u64) -> (Option<u64>, u64) {
        let now = Cell::new(0);
        let answer = spin.ask(
            || now.get(),
            || {
                now.set(now.get() + 10);
                (now.get() >= at_us).then(|| now.get())
            },
        );
        (answer, now.get())
    }

    #[test]
    fn nobody_spins_before_a_short_wait_after_a_long_one_among_many_tasks_or_on_one_processor() {
        let mut spin = Spin::on(2);
        assert_eq!(ask(spin, 0), (None, 0));
        spin.waited(SHORT_US, TASKS_MAX);
        assert_eq!(ask(spin, 30), (Some(30), 30));
        spin.waited(SHORT_US + 1, 0);
        assert_eq!(ask(spin, 0), (None, 0));
        spin.waited(0, TASKS_MAX + 1);
        assert_eq!(ask(spin, 0), (None, 0));
        let mut alone = Spin::on(1);
        alone.waited(0, 0);
        assert_eq!(ask(alone, 0), (None, 0));
    }

    #[test]
    fn a_spin_ends_without_an_answer_after_its_span() {
        let mut spin = Spin::on(2);
        spin.waited(10, 1);
        assert_eq!(ask(spin, SPIN_MAX_US + 1), (None, SPIN_MAX_US));
    }
}
