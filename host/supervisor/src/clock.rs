//! The clock: the queue's time, which begins with the wall's, runs with the monotonic clock and never goes back.
//!
//! When the wall was set forward by more than a second (or the machine slept), the queue's time leaps with it. When it was set
//! back, the queue's time goes on from where it is, ahead of the wall: it does not stand still, or nothing would be retried
//! until the wall has come after. The clock tells of both, so that spans pass as they were meant and points in time are
//! those of the wall.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tm_core::time::Millis;

/// A smaller difference between the wall and the queue's time is none.
pub const DRIFT_MAX_MS: u64 = 1_000;

/// Where time comes from: the machine, or a test.
trait Source {
    fn wall_ms(&self) -> u64;
    /// Since any fixed point; never decreases.
    fn monotonic_ms(&self) -> u64;
}

#[derive(Debug)]
struct Machine {
    start: Instant,
}

impl Source for Machine {
    fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What became of the wall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// What the queue's time leapt since this was asked for last, without that it passed.
    pub leapt_ms: u64,
    /// How far the queue's time is ahead of the wall's.
    pub ahead_ms: u64,
}

/// The clock of the loop; one per process.
#[derive(Debug)]
pub struct Clock(Anchored<Machine>);

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// A clock that starts at the wall's time.
    #[must_use]
    pub fn new() -> Self {
        Self::not_before(Millis(0))
    }

    /// A clock that gives no time before `floor`, the last one that the log holds.
    #[must_use]
    pub fn not_before(floor: Millis) -> Self {
        Self(Anchored::new(Machine { start: Instant::now() }, floor))
    }

    /// Milliseconds since the Unix epoch; never smaller than before.
    pub fn now(&mut self) -> Millis {
        self.0.now()
    }

    /// What [`Clock::now`] saw of the wall; none when nothing changed since this was asked for last.
    pub fn moved(&mut self) -> Option<Moved> {
        self.0.moved()
    }
}

#[derive(Debug)]
struct Anchored<S> {
    source: S,
    /// The queue's time at the monotonic time 0, in milliseconds; may lie before the epoch. Only grows.
    offset_ms: i128,
    moved: Moved,
    told: Moved,
}

impl<S: Source> Anchored<S> {
    fn new(source: S, floor: Millis) -> Self {
        let offset_ms = i128::from(source.wall_ms().max(floor.0)) - i128::from(source.monotonic_ms());
        Self { source, offset_ms, moved: Moved::default(), told: Moved::default() }
    }

    fn now(&mut self) -> Millis {
        let (wall, monotonic) = (i128::from(self.source.wall_ms()), i128::from(self.source.monotonic_ms()));
        let drift_ms = wall - (self.offset_ms + monotonic);
        let beyond = |ms: i128| u64::try_from(ms).ok().filter(|ms| *ms > DRIFT_MAX_MS).unwrap_or(0);
        let (leap_ms, ahead_ms) = (beyond(drift_ms), beyond(-drift_ms));
        if leap_ms > 0 {
            tracing::warn!(by_ms = leap_ms, "the wall clock was set forward; the queue's time leaps with it");
            self.offset_ms += drift_ms;
            self.moved.leapt_ms = self.moved.leapt_ms.saturating_add(leap_ms);
        }
        if ahead_ms.abs_diff(self.moved.ahead_ms) > DRIFT_MAX_MS {
            tracing::warn!(ahead_ms, "the wall clock was set; the queue's time, which never goes back, is ahead of it");
            self.moved.ahead_ms = ahead_ms;
        }
        Millis(u64::try_from((self.offset_ms + monotonic).max(0)).unwrap_or(u64::MAX))
    }

    fn moved(&mut self) -> Option<Moved> {
        let moved = self.moved;
        let is_new = moved != self.told;
        self.moved.leapt_ms = 0;
        self.told = self.moved;
        is_new.then_some(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[derive(Debug, Default)]
    struct Fake {
        wall: Cell<u64>,
        monotonic: Cell<u64>,
    }

    impl Source for Fake {
        fn wall_ms(&self) -> u64 {
            self.wall.get()
        }
        fn monotonic_ms(&self) -> u64 {
            self.monotonic.get()
        }
    }

    fn clock(floor: u64) -> Anchored<Fake> {
        let source = Fake { wall: Cell::new(1_000_000), monotonic: Cell::new(50) };
        Anchored::new(source, Millis(floor))
    }

    fn set(clock: &Anchored<Fake>, wall: u64, monotonic: u64) {
        clock.source.wall.set(wall);
        clock.source.monotonic.set(monotonic);
    }

    #[test]
    fn small_drift_is_ignored_and_a_wall_that_was_set_forward_is_followed() {
        let mut clock = clock(0);
        assert_eq!(clock.now(), Millis(1_000_000));
        set(&clock, 1_001_500, 1_050);
        assert_eq!((clock.now(), clock.moved()), (Millis(1_001_000), None), "the monotonic time counts");
        set(&clock, 1_010_000, 2_050);
        assert_eq!(clock.now(), Millis(1_010_000), "the wall was set");
        set(&clock, 1_020_100, 2_150);
        assert_eq!(clock.now(), Millis(1_020_100), "and again");
        assert_eq!(clock.moved(), Some(Moved { leapt_ms: 8_000 + 10_000, ahead_ms: 0 }));
        assert_eq!(clock.moved(), None);
    }

    #[test]
    fn time_goes_on_when_the_wall_is_set_back() {
        let mut clock = clock(0);
        set(&clock, 1_000_500, 550);
        assert_eq!(clock.now(), Millis(1_000_500));
        set(&clock, 500_000, 650);
        assert_eq!(clock.now(), Millis(1_000_600), "the wall was set back");
        assert_eq!(clock.moved(), Some(Moved { leapt_ms: 0, ahead_ms: 500_600 }));
        set(&clock, 500_400, 1_050);
        assert_eq!((clock.now(), clock.moved()), (Millis(1_001_000), None));
        set(&clock, 900_000, 1_150);
        assert_eq!(clock.now(), Millis(1_001_100), "forward, but not as far");
        assert_eq!(clock.moved(), Some(Moved { leapt_ms: 0, ahead_ms: 101_100 }));
        set(&clock, 1_011_200, 1_250);
        assert_eq!(clock.now(), Millis(1_011_200), "further than that");
        assert_eq!(clock.moved(), Some(Moved { leapt_ms: 10_000, ahead_ms: 0 }));
    }

    #[test]
    fn a_log_from_the_future_is_where_time_goes_on() {
        let mut clock = clock(2_000_000);
        assert_eq!(clock.now(), Millis(2_000_000));
        assert_eq!(clock.moved(), Some(Moved { leapt_ms: 0, ahead_ms: 1_000_000 }));
        set(&clock, 1_000_100, 150);
        assert_eq!((clock.now(), clock.moved()), (Millis(2_000_100), None));
    }

    #[test]
    fn the_machines_clock_runs() {
        let mut clock = Clock::new();
        let first = clock.now();
        assert!(first > Millis(1_700_000_000_000) && clock.now() >= first);
    }
}
