//! A wall clock that is set while a supervisor runs: spans go on as they were, points in time follow the wall.

use std::{
    env,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::process::Signal;
use tm_core::{
    api::{RunState, TaskState},
    time::Millis,
};
use tm_supervisor::store::disk::Roots;

use crate::{
    history::History,
    home::{Home, Ran, until},
    supervisor::{Supervisor, exists},
};

const HOUR_MS: i64 = 3_600_000;
const QUICK: &str = r#"{"do":"nothing"}"#;
const FAIL: &str = r#"{"do":"fail","class":"retryable","bytes":1}"#;
/// Of the flow `fail`, between its two attempts.
const BACKOFF: Duration = Duration::from_millis(800);
/// What the two readings of a clock may be apart.
const READING: Duration = Duration::from_millis(100);
/// What a busy machine may add to what takes a moment.
const MOMENT: Duration = Duration::from_secs(10);

/// The wall clock of this test's processes: how far it is from the machine's, for all who have the preloaded library.
struct Wall {
    file: File,
    path: PathBuf,
}

impl Wall {
    fn new(home: &Home) -> Self {
        let path = home.path("clock");
        home.write("clock", 0_i64.to_ne_bytes());
        Self { file: File::options().write(true).open(&path).unwrap(), path }
    }

    /// Sets the clock to so far from the machine's.
    fn set(&self, moved_ms: i64) {
        self.file.write_all_at(&moved_ms.to_ne_bytes(), 0).unwrap();
    }

    fn variables(&self) -> [(&str, &str); 2] {
        [("LD_PRELOAD", library().to_str().unwrap()), ("TM_POOL_CLOCK", self.path.to_str().unwrap())]
    }

    fn tm(&self, home: &Home, arguments: &[&str]) -> Ran {
        home.tm_with(&self.variables(), arguments)
    }

    fn enqueue(&self, home: &Home, flow: &str, input: &str, flags: &[&str]) -> String {
        let ran = self.tm(home, &[&["enqueue", flow, "--json", "-i", input], flags].concat());
        assert_eq!(ran.code, Some(0), "{ran}");
        ran.json()["id"].as_str().unwrap().to_owned()
    }
}

/// Built with the compiler that also links Rust programs.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/pool/clock.c");
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clock.so");
        let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&built, &source]).status();
        assert!(status.is_ok_and(|status| status.success()), "cc cannot build {}", source.display());
        built
    })
}

/// The machine's wall and so far from it, in the form of `--at`.
fn at(moved_ms: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    Millis(u64::try_from(i64::try_from(now).unwrap() + moved_ms).unwrap()).to_string()
}

/// Waits for the start of a run's only attempt, without waking the supervisor by asking it.
fn starts_by_itself(home: &Home, run: &str) {
    let begun = Instant::now();
    let leased = format!("{{\"Leased\":{{\"k\":{{\"r\":\"{run}\"");
    until(&leased, || {
        let log = fs::read_to_string(home.path("data/queue/segment-000001.log")).unwrap();
        log.contains(&leased).then_some(())
    });
    assert!(begun.elapsed() < MOMENT, "{:?}", begun.elapsed());
}

/// The state of the first task of a run.
fn state(pool: &mut Supervisor<'_>, run: &str) -> TaskState {
    pool.show(run).tasks[0].state
}

/// Waits for the end of a run of the flow `fail`, whose second attempt must come a backoff after the first one, although the
/// queue's time leaps by so much meanwhile.
fn backs_off(pool: &mut Supervisor<'_>, run: &str, leap_ms: i64, jump: impl FnOnce()) {
    until("the first attempt's end", || (state(pool, run) == TaskState::Delayed).then_some(()));
    jump();
    let ended = pool.ended(run);
    let [first, second] = &ended.tasks[0].attempts[..] else { panic!("{:?}", ended.tasks[0].attempts) };
    let passed_ms = second.started_at.since(first.ended_at.unwrap());
    let waited = Duration::from_millis(passed_ms.saturating_sub(leap_ms.unsigned_abs()));
    // The clocks are not read at the same moment.
    assert!(waited + READING >= BACKOFF && waited < BACKOFF + MOMENT, "waited {waited:?} of {passed_ms} ms");
}

#[test]
fn a_wall_that_jumps_moves_what_was_set_by_it_and_nothing_else() {
    let home = Home::new();
    let wall = Wall::new(&home);
    let backoff = BACKOFF.as_millis();
    home.write("trace_config.toml", "[idempotency]\nresult_ttl_sec = 7200\n");
    home.flow("quick", "compute", &[]);
    home.flow("fail", "compute", &[&format!("retries: {{ max_attempts: 2, base_ms: {backoff}, jitter_ms: 0 }}")]);
    home.flow("sleep", "hostile", &["limits: { timeout_ms: 600000 }"]);
    let mut pool = Supervisor::start_with(&home, &wall.variables(), &["-n", "2", "--drain-grace", "1"]);
    for flow in ["quick", "fail"] {
        let run = wall.enqueue(&home, &format!("{flow}.yaml"), QUICK, &[]);
        assert_eq!(pool.ended(&run).state, RunState::Succeeded);
    }

    // What lives through all jumps: a step that runs, a key, and points in time.
    let long = wall.enqueue(&home, "sleep.yaml", r#"{"do":"sleep_ms","ms":500000}"#, &[]);
    let (_, worker) = pool.running(&long);
    let keyed = wall.enqueue(&home, "quick", QUICK, &["--idempotency-key", "k"]);
    pool.ended(&keyed);
    let in_an_hour = wall.enqueue(&home, "quick", QUICK, &["--at", &at(HOUR_MS - 5000)]);
    let in_nine = wall.enqueue(&home, "quick", QUICK, &["--delay", "9h"]);

    // Forward by half an hour, and by another one.
    let run = wall.enqueue(&home, "fail", FAIL, &[]);
    backs_off(&mut pool, &run, HOUR_MS / 2, || wall.set(HOUR_MS / 2));
    assert_eq!(state(&mut pool, &in_an_hour), TaskState::Delayed);
    assert_eq!(wall.enqueue(&home, "quick", QUICK, &["--idempotency-key", "k"]), keyed);
    let run = wall.enqueue(&home, "fail", FAIL, &[]);
    backs_off(&mut pool, &run, HOUR_MS / 2, || wall.set(HOUR_MS));
    starts_by_itself(&home, &in_an_hour);
    assert_eq!(wall.enqueue(&home, "quick", QUICK, &["--idempotency-key", "k"]), keyed);

    // Far forward: the key's time is over.
    wall.set(4 * HOUR_MS);
    let again = wall.enqueue(&home, "quick", QUICK, &["--idempotency-key", "k"]);
    assert_ne!(again, keyed);
    assert_eq!(pool.ended(&again).state, RunState::Succeeded);

    // Back by three hours: nothing stands still until the wall is there again.
    let soon = wall.enqueue(&home, "quick", QUICK, &["--at", &at(4 * HOUR_MS + 60_000)]);
    let run = wall.enqueue(&home, "fail", FAIL, &[]);
    backs_off(&mut pool, &run, 0, || wall.set(HOUR_MS));
    let run = wall.enqueue(&home, "fail", FAIL, &[]);
    backs_off(&mut pool, &run, 0, || {});
    let delayed = wall.enqueue(&home, "quick", QUICK, &["--delay", "1s"]);
    assert_eq!(pool.ended(&delayed).state, RunState::Succeeded);
    let begun = Instant::now();
    let pointed = wall.enqueue(&home, "quick", QUICK, &["--at", &at(HOUR_MS + 1000)]);
    assert_eq!(pool.ended(&pointed).state, RunState::Succeeded);
    assert!(begun.elapsed() < MOMENT, "{:?}", begun.elapsed());
    assert_eq!(wall.enqueue(&home, "quick", QUICK, &["--idempotency-key", "k"]), again);
    assert_eq!((state(&mut pool, &soon), state(&mut pool, &in_nine)), (TaskState::Delayed, TaskState::Delayed));

    // The step has seen nothing of all this.
    let (attempt, same) = pool.running(&long);
    assert_eq!((attempt, same.pid), (1, worker.pid));
    assert!(exists(worker.pid));

    // A drain's grace is a span too, and a start on a log from the future is one like any other.
    let begun = Instant::now();
    pool.signal(Signal::TERM);
    pool.says("draining");
    wall.set(HOUR_MS / 2);
    assert!(pool.wait().success());
    assert!(begun.elapsed() < MOMENT, "{:?}", begun.elapsed());
    let mut pool = Supervisor::start_with(&home, &wall.variables(), &["-n", "2", "--drain-grace", "1"]);
    let run = wall.enqueue(&home, "fail", FAIL, &[]);
    backs_off(&mut pool, &run, 0, || {});
    assert_eq!(pool.running(&long).0, 2);
    assert_eq!((state(&mut pool, &soon), state(&mut pool, &in_nine)), (TaskState::Delayed, TaskState::Delayed));
    wall.set(4 * HOUR_MS + 60_000);
    starts_by_itself(&home, &soon);
    assert_eq!(pool.ended(&soon).state, RunState::Succeeded);
    assert_eq!(state(&mut pool, &in_nine), TaskState::Delayed);
    wall.set(9 * HOUR_MS + 60_000);
    assert_eq!(pool.ended(&in_nine).state, RunState::Succeeded);
    assert_eq!(home.tm(&["queue", "cancel", &long]).code, Some(0));
    pool.stop();

    assert_eq!(home.tm(&["queue", "verify"]).code, Some(0));
    let history = History::read_after(&Roots::below(&home.path("data")), &History::default());
    history.assert_done();
    assert_eq!(history.lost, 0);
}
