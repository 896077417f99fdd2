//! When nothing is handed out although workers are free: under `[backpressure]`, and after the host could not do its part.

use tm_core::time::Millis;

use crate::config::Backpressure;

/// How long nothing is handed out after the host could not hand over a task: it has no descriptor or no memory left.
const HOST_PAUSE_MS: u64 = 200;
/// How often the load is read at most; it is an average over a minute.
const LOOK_EVERY_MS: u64 = 100;

/// The load of the processors, 1.0 is all of them; none when it cannot be told.
pub(super) type Load = fn() -> Option<f64>;

pub(super) struct Pause {
    settings: Option<Backpressure>,
    load: Load,
    looked: Option<(Millis, f64)>,
    until: Option<Millis>,
    /// Why the pause is, for people.
    why: String,
    /// Pauses under `[backpressure]` so far.
    pub(super) pauses_total: u64,
}

impl Pause {
    pub(super) fn new(settings: Option<Backpressure>, load: Load) -> Self {
        Self { settings, load, looked: None, until: None, why: String::new(), pauses_total: 0 }
    }

    /// Looks whether to pause, when tasks are ready. A pause that is over lets one turn hand out all that is free before
    /// the next one begins, so that work goes on under any load.
    pub(super) fn turn(&mut self, now: Millis, depth: u64) {
        match self.until {
            Some(until) if now < until => {}
            Some(_) => self.until = None,
            None => self.press(now, depth),
        }
    }

    fn press(&mut self, now: Millis, depth: u64) {
        let Some(Backpressure { high_watermark, load_threshold, pause_ms }) = self.settings else { return };
        if depth <= high_watermark {
            return;
        }
        let Some(load) = self.load(now).filter(|load| *load > load_threshold) else { return };
        self.pauses_total += 1;
        self.until = Some(now.plus(pause_ms));
        self.why = format!(
            "backpressure: {depth} tasks are more than {high_watermark}, and a load of {load:.2} is more than {load_threshold}"
        );
        tracing::info!(depth, load, pause_ms, "dequeuing pauses");
    }

    fn load(&mut self, now: Millis) -> Option<f64> {
        match self.looked {
            Some((at, load)) if now.since(at) < LOOK_EVERY_MS => Some(load),
            _ => {
                let load = (self.load)()?;
                self.looked = Some((now, load));
                Some(load)
            }
        }
    }

    /// The host could not do its part for a task just now.
    pub(super) fn host_failed(&mut self, now: Millis, why: &str) {
        self.until = Some(now.plus(HOST_PAUSE_MS));
        why.clone_into(&mut self.why);
    }

    /// Why nothing is handed out; none when it is.
    pub(super) fn why(&self) -> Option<&str> {
        self.until.is_some().then_some(&self.why)
    }

    /// When it is over.
    pub(super) fn until(&self) -> Option<Millis> {
        self.until
    }
}

/// The load average of the last minute, per processor.
pub(super) fn processor_load() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let minute: f64 = text.split(' ').next()?.parse().ok()?;
    let processors = std::thread::available_parallelism().ok()?;
    Some(minute / processors.get() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(load: Load) -> Pause {
        Pause::new(Some(Backpressure { high_watermark: 10, load_threshold: 0.8, pause_ms: 500 }), load)
    }

    #[test]
    fn dequeuing_pauses_when_depth_and_load_are_both_over_and_goes_on_in_between() {
        let mut pause = pause(|| Some(0.9));
        pause.turn(Millis(0), 10);
        assert_eq!((pause.why(), pause.pauses_total), (None, 0), "the depth is not over");
        pause.turn(Millis(1), 11);
        assert_eq!((pause.until(), pause.pauses_total), (Some(Millis(501)), 1));
        assert!(pause.why().is_some_and(|why| why.contains("11 tasks") && why.contains("0.90")), "{:?}", pause.why());
        pause.turn(Millis(500), 11);
        assert!(pause.why().is_some());
        pause.turn(Millis(501), 11);
        assert_eq!((pause.why(), pause.pauses_total), (None, 1), "one turn hands out");
        pause.turn(Millis(502), 11);
        assert_eq!((pause.until(), pause.pauses_total), (Some(Millis(1002)), 2));
    }

    #[test]
    fn nothing_pauses_below_the_load_or_without_a_word_of_the_operator() {
        let mut idle = pause(|| Some(0.8));
        idle.turn(Millis(0), 1_000_000);
        assert_eq!(idle.until(), None);
        let mut unknown = pause(|| None);
        unknown.turn(Millis(0), 1_000_000);
        assert_eq!(unknown.until(), None);
        let mut off = Pause::new(None, || Some(100.0));
        off.turn(Millis(0), 1_000_000);
        assert_eq!((off.until(), off.pauses_total), (None, 0));
    }

    #[test]
    fn the_hosts_own_failures_pause_without_being_counted() {
        let mut off = Pause::new(None, || None);
        off.host_failed(Millis(0), "no descriptor is left");
        assert_eq!((off.why(), off.until(), off.pauses_total), (Some("no descriptor is left"), Some(Millis(200)), 0));
        off.turn(Millis(200), 1);
        assert_eq!(off.why(), None);
    }

    #[test]
    fn the_load_of_this_machine_can_be_told() {
        assert!(processor_load().is_some_and(|load| load >= 0.0));
    }
}
