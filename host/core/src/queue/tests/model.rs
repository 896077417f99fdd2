//! The queue against a naive one: random commands, the same answers, and a replay that gives the same state.

use alloc::collections::{BTreeMap, BTreeSet};
use proptest::prelude::*;

use super::*;

const ATTEMPTS_MAX: u32 = 3;

#[derive(Clone, Debug)]
enum Command {
    Enqueue { key: Option<u8>, input: u8, priority: u8, delay_ms: u16 },
    Lease { worker: u8, free: u8 },
    Succeed(u8),
    Fail(u8),
    Kill(u8),
    Lie(u8),
    Die(u8),
    Wait(u16),
    Cancel(u8),
    Requeue(u8),
    Purge(u8),
    Forget(u8),
}

fn command() -> impl Strategy<Value = Command> {
    let key = proptest::option::of(0..4u8);
    prop_oneof![
        5 => (key, 0..2u8, 0..10u8, prop_oneof![3 => Just(0u16), 1 => 1..300u16])
            .prop_map(|(key, input, priority, delay_ms)| Command::Enqueue { key, input, priority, delay_ms }),
        5 => (0..3u8, 1..4u8).prop_map(|(worker, free)| Command::Lease { worker, free }),
        4 => any::<u8>().prop_map(Command::Succeed),
        2 => any::<u8>().prop_map(Command::Fail),
        1 => any::<u8>().prop_map(Command::Kill),
        1 => any::<u8>().prop_map(Command::Lie),
        1 => (0..3u8).prop_map(Command::Die),
        3 => (0..400u16).prop_map(Command::Wait),
        1 => any::<u8>().prop_map(Command::Cancel),
        2 => any::<u8>().prop_map(Command::Requeue),
        1 => any::<u8>().prop_map(Command::Purge),
        1 => (0..4u8).prop_map(Command::Forget),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Ready(Millis),
    Delayed(Millis),
    Leased(u64),
    Dead,
    Ended(RunState),
}

#[derive(Clone, Debug)]
struct Job {
    place: Where,
    priority: u8,
    attempt: u32,
    failures: u32,
    suspect: bool,
    company: u8,
    key: Option<u8>,
    input: u8,
}

/// Lists and loops, no index.
#[derive(Default)]
struct Naive {
    jobs: BTreeMap<RunId, Job>,
    now: Millis,
}

impl Naive {
    fn holder(&self, key: u8) -> Option<RunId> {
        let holds = |job: &Job| job.key == Some(key) && !matches!(job.place, Where::Dead);
        let ended = |job: &Job| matches!(job.place, Where::Ended(state) if state != RunState::Succeeded);
        self.jobs.iter().find(|(_, job)| holds(job) && !ended(job)).map(|(run, _)| *run)
    }

    /// The next task for a worker, and whether it runs alone.
    fn next(&self, idle: bool) -> Option<(RunId, bool)> {
        let due = |job: &Job| match job.place {
            Where::Ready(since) => Some(since),
            Where::Delayed(at) if at <= self.now => Some(at),
            _ => None,
        };
        self.jobs
            .iter()
            .filter(|(_, job)| idle || !job.suspect)
            .filter_map(|(run, job)| Some(((9 - job.priority, due(job)?, *run), job.suspect)))
            .min()
            .map(|((_, _, run), suspect)| (run, suspect))
    }

    fn suspects(&self) -> bool {
        let due = |job: &Job| match job.place {
            Where::Ready(_) => true,
            Where::Delayed(at) => at <= self.now,
            _ => false,
        };
        self.jobs.values().any(|job| job.suspect && due(job))
    }

    fn leased(&self) -> Vec<(RunId, u64)> {
        let leased = |(run, job): (&RunId, &Job)| match job.place {
            Where::Leased(worker) => Some((*run, worker)),
            _ => None,
        };
        self.jobs.iter().filter_map(leased).collect()
    }

    fn dead(&self) -> Vec<RunId> {
        self.jobs.iter().filter(|(_, job)| job.place == Where::Dead).map(|(run, _)| *run).collect()
    }

    fn failed(job: &mut Job, now: Millis, delayed: bool) {
        job.failures += 1;
        job.place = if job.failures >= ATTEMPTS_MAX {
            Where::Dead
        } else if delayed {
            Where::Delayed(now.plus(100 * u64::from(job.failures)))
        } else {
            Where::Ready(now)
        };
    }
}

struct Pair {
    bench: Bench,
    naive: Naive,
}

fn pick<T: Copy>(of: &[T], by: u8) -> Option<T> {
    of.get(usize::from(by) % of.len().max(1)).copied()
}

impl Pair {
    fn new() -> Self {
        let retries = RetryPolicy {
            max_attempts: ATTEMPTS_MAX,
            base_ms: 100,
            factor_thousandths: 2000,
            jitter_ms: 0,
            max_delay_ms: 200,
        };
        let mut bench = Bench::new(vec![flow("one", vec![StepDef { retries, ..step("s", &[]) }])]);
        bench.policy.result_ttl_ms = u64::MAX / 4;
        Self { naive: Naive { now: bench.now, ..Naive::default() }, bench }
    }

    fn entry(&self, run: RunId) -> String {
        self.bench
            .state
            .letters
            .iter()
            .find(|(_, task)| task.run == run)
            .map(|(entry, _)| entry.clone())
            .expect("listed")
    }

    fn lease_of(&self, run: RunId, worker: u64) -> Lease {
        Lease { worker: WorkerId(worker), task: single(run), attempt: self.naive.jobs[&run].attempt }
    }

    fn obey(&mut self, command: &Command) {
        let Self { bench, naive } = self;
        match *command {
            Command::Enqueue { key, input, priority, delay_ms } => {
                let request = EnqueueRequest {
                    input: Json::of(&serde_json::json!({ "n": input })),
                    idempotency_key: key.map(|key| format!("k{key}")),
                    priority: Some(priority),
                    delay_ms: (delay_ms > 0).then_some(delay_ms.into()),
                    ..request("one")
                };
                let answer = bench.ask(request);
                match (key.and_then(|key| naive.holder(key)), answer) {
                    (None, Reply::Enqueued { run }) => {
                        let now = naive.now;
                        let place =
                            if delay_ms > 0 { Where::Delayed(now.plus(delay_ms.into())) } else { Where::Ready(now) };
                        let job =
                            Job { place, priority, attempt: 0, failures: 0, suspect: false, company: 0, key, input };
                        naive.jobs.insert(run, job);
                    }
                    (Some(held), Reply::Duplicate { run, .. }) => {
                        assert_eq!((held, naive.jobs[&held].input), (run, input));
                    }
                    (Some(held), Reply::Error(error)) => {
                        assert!(naive.jobs[&held].input != input && error.message.contains(&held.to_string()));
                    }
                    (held, answer) => panic!("{held:?} and {answer:?}"),
                }
            }
            Command::Lease { worker, free } => {
                let worker = u64::from(worker) + 1;
                let busy = naive.leased().iter().filter(|(_, other)| *other == worker).count();
                let (profile, mut left) = (bench.profile("default"), u32::from(free));
                let mut idle = busy == 0;
                let slot = Slot { worker: WorkerId(worker), profile, free: left, idle };
                let got = bench.lease_to(vec![slot]);
                let mut wanted = Vec::new();
                // While a suspect waits for an idle worker, the emptiest one is given nothing.
                if !idle && naive.suspects() {
                    left = 0;
                }
                while left > 0
                    && let Some((run, alone)) = naive.next(idle)
                {
                    left = if alone { 0 } else { left - 1 };
                    idle = false;
                    let Some(job) = naive.jobs.get_mut(&run) else { break };
                    job.attempt += 1;
                    job.place = Where::Leased(worker);
                    wanted.push(Lease { worker: WorkerId(worker), task: single(run), attempt: job.attempt });
                }
                assert_eq!(got, wanted);
            }
            Command::Succeed(by) | Command::Fail(by) | Command::Kill(by) | Command::Lie(by) => {
                let Some((run, worker)) = pick(&naive.leased(), by) else { return };
                let lease = self.lease_of(run, worker);
                let (bench, naive) = (&mut self.bench, &mut self.naive);
                let Some(job) = naive.jobs.get_mut(&run) else { return };
                match command {
                    Command::Succeed(_) => {
                        bench.succeed(lease, "1");
                        job.place = Where::Ended(RunState::Succeeded);
                    }
                    Command::Fail(_) => {
                        bench.fail(lease, Class::Retryable);
                        Naive::failed(job, naive.now, true);
                        (job.suspect, job.company) = (false, 0);
                    }
                    Command::Kill(_) => {
                        bench.fail(lease, Class::Fatal);
                        job.place = Where::Dead;
                    }
                    _ => {
                        bench.succeed(Lease { worker: WorkerId(worker + 1), ..lease }, "1");
                        bench.succeed(Lease { attempt: lease.attempt - 1, ..lease }, "1");
                    }
                }
            }
            Command::Die(worker) => {
                let worker = u64::from(worker) + 1;
                bench.gone(worker);
                let tasks: Vec<RunId> =
                    naive.leased().into_iter().filter(|(_, other)| *other == worker).map(|(run, _)| run).collect();
                for run in &tasks {
                    let Some(job) = naive.jobs.get_mut(run) else { continue };
                    if tasks.len() == 1 || job.company >= 2 {
                        Naive::failed(job, naive.now, false);
                        job.company = 0;
                    } else {
                        job.company += 1;
                        job.place = Where::Ready(naive.now);
                    }
                    job.suspect |= job.place != Where::Dead;
                }
            }
            Command::Wait(ms) => {
                bench.wait(ms.into());
                naive.now = bench.now;
            }
            Command::Cancel(by) => {
                let open: Vec<RunId> = naive
                    .jobs
                    .iter()
                    .filter(|(_, job)| !matches!(job.place, Where::Ended(_)))
                    .map(|(run, _)| *run)
                    .collect();
                let Some(run) = pick(&open, by) else { return };
                bench.cancel(&run.to_string());
                if let Some(job) = naive.jobs.get_mut(&run) {
                    job.place = Where::Ended(RunState::Cancelled);
                }
            }
            Command::Requeue(by) | Command::Purge(by) => {
                let Some(run) = pick(&naive.dead(), by) else { return };
                let entry = self.entry(run);
                let (bench, naive) = (&mut self.bench, &mut self.naive);
                if matches!(command, Command::Purge(_)) {
                    bench.purge(&entry, false);
                    if let Some(job) = naive.jobs.get_mut(&run) {
                        job.place = Where::Ended(RunState::Failed);
                    }
                    return;
                }
                let Reply::DlqDone(outcomes) = bench.requeue(&entry, false) else { panic!("done") };
                let held = naive.jobs[&run].key.and_then(|key| naive.holder(key));
                assert_eq!(outcomes[0].outcome, if held.is_some() { "skipped" } else { "requeued" });
                if held.is_none()
                    && let Some(job) = naive.jobs.get_mut(&run)
                {
                    (job.place, job.failures, job.suspect, job.company) = (Where::Ready(naive.now), 0, false, 0);
                }
            }
            Command::Forget(key) => {
                let held = naive.holder(key);
                let answer = bench.forget_key("one", &format!("k{key}"));
                assert!(matches!(answer, Reply::Forgotten { existed } if existed == held.is_some()));
                if let Some(job) = held.and_then(|run| naive.jobs.get_mut(&run)) {
                    job.key = None;
                }
            }
        }
    }

    fn compare(&self) {
        for (run, job) in &self.naive.jobs {
            let expected = match job.place {
                Where::Ended(state) => {
                    assert_eq!(self.bench.run_state(*run), state);
                    continue;
                }
                place => place,
            };
            let task = self.bench.state.runs[run].task(single(*run)).expect("a task");
            let place = match &task.phase {
                Phase::Ready { since } => Where::Ready(*since),
                Phase::Delayed { ready_at } => Where::Delayed(*ready_at),
                Phase::Leased { worker } => Where::Leased(worker.0),
                Phase::Dead(_) => Where::Dead,
                other => panic!("{other:?}"),
            };
            // Both know that what is due is ready.
            let due = |place| match place {
                Where::Delayed(at) if at <= self.naive.now => Where::Ready(at),
                other => other,
            };
            assert_eq!(due(place), due(expected), "run {run}");
            assert_eq!((task.attempt, task.failures), (job.attempt, job.failures), "run {run}");
            assert!(task.suspect == job.suspect || place == Where::Dead, "run {run} is suspect or not");
        }
        let keys: BTreeSet<RunId> = self.bench.state.keys.values().copied().collect();
        let naive: BTreeSet<RunId> = (0..4).filter_map(|key| self.naive.holder(key)).collect();
        assert_eq!(keys, naive, "the keys are held by the same runs");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_queue_behaves_as_a_naive_one(commands in proptest::collection::vec(command(), 1..120)) {
        let mut pair = Pair::new();
        for command in &commands {
            pair.obey(command);
            pair.compare();
        }
        let mut replayed = pair.bench.replayed();
        replayed.promote(pair.bench.now);
        pair.bench.state.promote(pair.bench.now);
        assert_same(&pair.bench.state, &replayed);
    }
}
