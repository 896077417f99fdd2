//! The clock: wall time at the start plus monotonic time since, so that spans never jump.
//!
//! When the wall has moved away by more than a second (someone set it, the machine slept), it is logged and the clock
//! takes the wall's time again. A time that was given out is never followed by a smaller one.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tm_core::time::Millis;

/// A larger difference between wall and monotonic time is re-anchored.
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
        Self(Anchored::new(Machine { start: Instant::now() }, Millis(0)))
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

    /// Milliseconds since the clock was made: for spans that a set wall must not change.
    #[must_use]
    pub fn monotonic_ms(&self) -> u64 {
        self.0.source.monotonic_ms()
    }
}

#[derive(Debug)]
struct Anchored<S> {
    source: S,
    /// Wall time that belongs to the monotonic time 0, in milliseconds; may lie before the epoch.
    offset_ms: i128,
    last: Millis,
}

impl<S: Source> Anchored<S> {
    fn new(source: S, floor: Millis) -> Self {
        let offset_ms = i128::from(source.wall_ms()) - i128::from(source.monotonic_ms());
        Self { source, offset_ms, last: floor }
    }

    fn now(&mut self) -> Millis {
        let (wall, monotonic) = (i128::from(self.source.wall_ms()), i128::from(self.source.monotonic_ms()));
        let drift_ms = wall - (self.offset_ms + monotonic);
        if drift_ms.unsigned_abs() > u128::from(DRIFT_MAX_MS) {
            tracing::warn!(drift_ms = %drift_ms, "the wall clock moved; taking its time");
            self.offset_ms = wall - monotonic;
        }
        let now = u64::try_from((self.offset_ms + monotonic).max(0)).unwrap_or(u64::MAX);
        self.last = self.last.max(Millis(now));
        self.last
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
    fn small_drift_is_ignored_and_large_drift_is_taken_over() {
        let mut clock = clock(0);
        assert_eq!(clock.now(), Millis(1_000_000));
        set(&clock, 1_001_500, 1_050);
        assert_eq!(clock.now(), Millis(1_001_000), "the monotonic time counts");
        set(&clock, 1_010_000, 2_050);
        assert_eq!(clock.now(), Millis(1_010_000), "the wall was set");
        set(&clock, 1_010_100, 2_150);
        assert_eq!(clock.now(), Millis(1_010_100));
    }

    #[test]
    fn time_never_goes_back() {
        let mut clock = clock(0);
        set(&clock, 1_000_500, 550);
        assert_eq!(clock.now(), Millis(1_000_500));
        set(&clock, 500_000, 650);
        assert_eq!(clock.now(), Millis(1_000_500), "the wall was set back");
        set(&clock, 1_000_400, 501_050);
        assert_eq!(clock.now(), Millis(1_000_500));
        set(&clock, 1_000_700, 501_350);
        assert_eq!(clock.now(), Millis(1_000_700));
    }

    #[test]
    fn a_log_from_the_future_holds_the_clock() {
        assert_eq!(clock(2_000_000).now(), Millis(2_000_000));
    }

    #[test]
    fn the_machines_clock_runs() {
        let mut clock = Clock::new();
        let first = clock.now();
        assert!(first > Millis(1_700_000_000_000) && clock.now() >= first);
    }
}
