//! Heartbeats: which worker has been silent for too long, decided from times alone.
//!
//! Silence is measured where messages are received. A turn of the receiver that took too long says nothing about the
//! workers, so after one everybody gets a full timeout again. Times are milliseconds of any monotonic clock.

use std::{collections::BTreeMap, time::Duration};

use tm_core::id::WorkerId;

/// Late heartbeats in a row after which a worker is called degraded.
pub const LATE_IN_ROW_MAX: u32 = 3;

#[derive(Clone, Copy, Debug)]
pub struct WatchSettings {
    pub heartbeat_ms: u64,
    pub heartbeat_timeout_ms: u64,
    /// From exec to ready.
    pub start_timeout_ms: u64,
}

/// A heartbeat came, late again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Degraded {
    pub late_in_row: u32,
    pub gap_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The last sign of life, or the reason to expect one.
    heard: u64,
    beat: Option<u64>,
    late_in_row: u32,
    expects: Expects,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    Nothing,
    Ready,
    Heartbeats,
}

/// The watch over all workers of a pool.
#[derive(Debug)]
pub struct Watch {
    settings: WatchSettings,
    seen: BTreeMap<WorkerId, Seen>,
    next_scan: u64,
    last_turn: u64,
    seed: u64,
}

impl Watch {
    /// `seed` spreads the scans of several supervisors.
    #[must_use]
    pub fn new(settings: WatchSettings, now: u64, seed: u64) -> Self {
        let mut watch = Self { settings, seen: BTreeMap::new(), next_scan: 0, last_turn: now, seed };
        watch.next_scan = now + watch.jittered_scan();
        watch
    }

    /// The worker was started for a profile and has to become ready; said again, it changes nothing.
    pub fn starting(&mut self, worker: WorkerId, now: u64) {
        let seen = Seen { heard: now, beat: None, late_in_row: 0, expects: Expects::Ready };
        self.seen.entry(worker).or_insert(seen);
    }

    /// The worker is ready: silence counts while it runs something.
    pub fn ready(&mut self, worker: WorkerId, now: u64) {
        self.seen.insert(worker, Seen { heard: now, beat: None, late_in_row: 0, expects: Expects::Nothing });
    }

    /// A worker with running steps owes heartbeats, from this moment on; one without owes none.
    pub fn busy(&mut self, worker: WorkerId, busy: bool, now: u64) {
        let Some(seen) = self.seen.get_mut(&worker) else { return };
        match (seen.expects, busy) {
            (Expects::Nothing, true) => {
                *seen = Seen { heard: now, beat: Some(now), late_in_row: 0, expects: Expects::Heartbeats };
            }
            (Expects::Heartbeats, false) => {
                seen.expects = Expects::Nothing;
                seen.beat = None;
            }
            _ => {}
        }
    }

    /// Something came from the worker.
    pub fn heard(&mut self, worker: WorkerId, now: u64) {
        if let Some(seen) = self.seen.get_mut(&worker)
            && seen.expects != Expects::Ready
        {
            seen.heard = now;
        }
    }

    /// A heartbeat came; says when more than [`LATE_IN_ROW_MAX`] in a row were late.
    pub fn beat(&mut self, worker: WorkerId, now: u64) -> Option<Degraded> {
        let seen = self.seen.get_mut(&worker)?;
        if seen.expects != Expects::Heartbeats {
            return None;
        }
        let gap_ms = now.saturating_sub(seen.beat?);
        seen.beat = Some(now);
        seen.late_in_row = if gap_ms > self.settings.heartbeat_ms * 3 / 2 { seen.late_in_row + 1 } else { 0 };
        (seen.late_in_row == LATE_IN_ROW_MAX + 1).then_some(Degraded { late_in_row: seen.late_in_row, gap_ms })
    }

    pub fn gone(&mut self, worker: WorkerId) {
        self.seen.remove(&worker);
    }

    /// How long the receiver may wait for messages.
    #[must_use]
    pub fn wait(&self, now: u64) -> Duration {
        Duration::from_millis(self.next_scan.saturating_sub(now).max(1))
    }

    /// To be called once in every turn of the receiver, before it takes messages.
    pub fn turn(&mut self, now: u64) {
        // The receiver never waits longer than one scan, so a longer turn means that it could not run.
        let slow_ms = self.scan_ms() * 2 + self.settings.heartbeat_ms / 2;
        if now.saturating_sub(self.last_turn) > slow_ms {
            for seen in self.seen.values_mut() {
                seen.heard = now;
                seen.beat = seen.beat.map(|_| now);
            }
        }
        self.last_turn = now;
    }

    /// The workers that have been silent for too long, with the silence in milliseconds; empty between two scans. To
    /// be called after all messages that had arrived were taken.
    pub fn scan(&mut self, now: u64) -> Vec<(WorkerId, u64)> {
        // The process may have stood still since the turn began.
        self.turn(now);
        if now < self.next_scan {
            return Vec::new();
        }
        self.next_scan = now + self.jittered_scan();
        self.seen
            .iter()
            .filter_map(|(&worker, seen)| {
                let silent_ms = now.saturating_sub(seen.heard);
                let allowed_ms = match seen.expects {
                    Expects::Nothing => return None,
                    Expects::Ready => self.settings.start_timeout_ms,
                    Expects::Heartbeats => self.settings.heartbeat_timeout_ms,
                };
                (silent_ms > allowed_ms).then_some((worker, silent_ms))
            })
            .collect()
    }

    /// A tenth of the timeout, at most 500 ms, so that a silent worker is found within timeout + 1 s.
    fn scan_ms(&self) -> u64 {
        (self.settings.heartbeat_timeout_ms / 10).clamp(10, 500)
    }

    /// The scan interval ± 10 %.
    fn jittered_scan(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        self.scan_ms() * (900 + mixed % 201) / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WorkerId = WorkerId(1);
    const B: WorkerId = WorkerId(2);

    fn watch() -> Watch {
        let settings = WatchSettings { heartbeat_ms: 5_000, heartbeat_timeout_ms: 15_000, start_timeout_ms: 30_000 };
        let mut watch = Watch::new(settings, 0, 7);
        for worker in [A, B] {
            watch.starting(worker, 0);
            watch.ready(worker, 0);
            watch.busy(worker, true, 0);
        }
        watch
    }

    /// Turns of the receiver until `end`, in which `beats` sends heartbeats; the workers found silent, with the time.
    fn run(watch: &mut Watch, from: u64, end: u64, beats: &[WorkerId]) -> Vec<(WorkerId, u64)> {
        let (mut now, mut found) = (from, Vec::new());
        while now < end {
            now += u64::try_from(watch.wait(now).as_millis()).unwrap();
            watch.turn(now);
            for &worker in beats {
                watch.heard(worker, now);
            }
            found.extend(watch.scan(now).into_iter().map(|(worker, _)| (worker, now)));
        }
        found
    }

    #[test]
    fn the_silent_worker_is_found_within_the_timeout_and_a_second() {
        let mut watch = watch();
        let found = run(&mut watch, 0, 16_500, &[B]);
        let (worker, at) = found[0];
        assert_eq!(worker, A);
        assert!((15_001..=16_000).contains(&at), "{at}");
        assert!(found.iter().all(|(worker, _)| *worker == A));
    }

    #[test]
    fn a_worker_without_running_steps_owes_nothing() {
        let mut watch = watch();
        watch.busy(A, false, 100);
        watch.busy(B, false, 100);
        assert_eq!(run(&mut watch, 100, 60_000, &[]), []);
        // The silence before the next start does not count.
        watch.busy(A, true, 60_000);
        assert_eq!(run(&mut watch, 60_000, 74_000, &[]), []);
        assert_eq!(run(&mut watch, 74_000, 75_900, &[])[0].0, A);
    }

    #[test]
    fn after_a_slow_turn_everybody_gets_a_full_timeout_again() {
        let mut watch = watch();
        assert_eq!(run(&mut watch, 0, 10_000, &[]), []);
        watch.turn(40_000);
        assert_eq!(watch.scan(40_000), []);
        assert_eq!(run(&mut watch, 40_000, 54_000, &[]), []);
        let found: Vec<_> = run(&mut watch, 54_000, 56_100, &[]).into_iter().map(|(worker, _)| worker).collect();
        assert!(found.contains(&A) && found.contains(&B), "{found:?}");
    }

    #[test]
    fn a_turn_that_stands_still_in_its_middle_finds_nobody_silent() {
        let mut watch = watch();
        assert_eq!(run(&mut watch, 0, 10_000, &[]), []);
        watch.turn(10_400);
        assert_eq!(watch.scan(40_000), []);
        assert_eq!(run(&mut watch, 40_000, 54_000, &[]), []);
        let found: Vec<_> = run(&mut watch, 54_000, 56_100, &[]).into_iter().map(|(worker, _)| worker).collect();
        assert!(found.contains(&A) && found.contains(&B), "{found:?}");
    }

    #[test]
    fn a_worker_that_never_becomes_ready_is_found() {
        let mut watch = watch();
        watch.gone(A);
        watch.starting(A, 0);
        let found = run(&mut watch, 0, 31_000, &[A, B]);
        assert_eq!(found[0].0, A);
        assert!(found[0].1 > 30_000);
    }

    #[test]
    fn the_fourth_late_heartbeat_in_a_row_is_reported_once() {
        let mut watch = watch();
        let late: Vec<_> = (1..=6).map(|n| watch.beat(A, n * 8_000).is_some()).collect();
        assert_eq!(late, [false, false, false, true, false, false]);
        assert_eq!(watch.beat(A, 48_000 + 5_000), None);
        assert_eq!(watch.beat(A, 53_000 + 8_000), None);
    }

    #[test]
    fn scans_are_spread_by_a_tenth() {
        let mut watch = watch();
        let spans: Vec<_> = (0..200).map(|_| watch.jittered_scan()).collect();
        assert!(spans.iter().all(|span| (450..=550).contains(span)));
        assert!(spans.iter().any(|&span| span < 470) && spans.iter().any(|&span| span > 530));
    }
}
