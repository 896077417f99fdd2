//! Durable tasks, end to end: the log's thread commits what arrived during its last sync, executors run the guest.
//!
//! A closed loop: each durable result lets the next task in.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::time::ClockId;
use serde_json::{Value, json};

use crate::{Outcome, guest::Guest, log::Log, percentiles::Percentiles, processor};

pub(crate) struct Load {
    pub(crate) input: String,
    pub(crate) in_flight: usize,
    /// Well below the number in flight, so that the disk and the processors work at the same time.
    pub(crate) batch: usize,
    pub(crate) duration: Duration,
}

/// A part of the run that is left out of the figures.
const WARM_UP: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Queues {
    /// Tasks whose enqueue is durable, by number.
    ready: VecDeque<u64>,
    done: Vec<(u64, Outcome<String>)>,
    ends: bool,
}

#[derive(Default)]
struct Shared {
    queues: Mutex<Queues>,
    more_ready: Condvar,
    more_done: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn run(guests: Vec<Guest>, log: Log, load: &Load) -> Outcome<Value> {
    let shared = Shared::default();
    thread::scope(|scope| {
        for guest in &guests {
            let (shared, load) = (&shared, load);
            scope.spawn(move || execute(guest, shared, load));
        }
        let figures = feed(&shared, log, load);
        shared.lock().ends = true;
        shared.more_ready.notify_all();
        figures
    })
}

fn execute(guest: &Guest, shared: &Shared, load: &Load) {
    let mut taken = Vec::with_capacity(load.batch);
    let mut done = Vec::with_capacity(load.batch);
    loop {
        {
            let mut queues = shared.lock();
            while queues.ready.is_empty() && !queues.ends {
                queues = shared.more_ready.wait(queues).unwrap_or_else(PoisonError::into_inner);
            }
            if queues.ends {
                return;
            }
            let count = queues.ready.len().min(load.batch);
            taken.extend(queues.ready.drain(..count));
        }
        done.extend(taken.drain(..).map(|task| (task, guest.call(&load.input))));
        shared.lock().done.append(&mut done);
        shared.more_done.notify_one();
    }
}

fn feed(shared: &Shared, mut log: Log, load: &Load) -> Outcome<Value> {
    let mut begun: VecDeque<(u64, Instant)> = VecDeque::new();
    let mut waiting = load.in_flight;
    let (mut next, mut finished, mut syncs_before, mut cpu_before) = (0_u64, 0_u64, 0, Duration::ZERO);
    let mut done: Vec<(u64, Outcome<String>)> = Vec::new();
    let mut latencies = Percentiles::default();
    let start = Instant::now();
    let mut measured_from = None;
    loop {
        let now = Instant::now();
        if measured_from.is_none() && now - start >= WARM_UP {
            (measured_from, finished, syncs_before) = (Some(now), 0, log.syncs);
            latencies = Percentiles::default();
            cpu_before = processor(ClockId::ProcessCPUTime);
        }
        if measured_from.is_some_and(|from| now - from >= load.duration) {
            break;
        }
        let first = next;
        for _ in 0..waiting {
            log.append(load.input.as_bytes());
            begun.push_back((next, now));
            next += 1;
        }
        waiting = 0;
        for (task, output) in &done {
            let output = output.as_ref().map_err(|error| format!("task {task} failed: {error}"))?;
            log.append(output.as_bytes());
        }
        log.commit()?;
        let durable = Instant::now();
        // Results come in nearly the order of their tasks: the search is short.
        for (task, _) in done.drain(..) {
            if let Some(place) = begun.iter().position(|(number, _)| *number == task)
                && let Some((_, since)) = begun.remove(place)
            {
                latencies.add(durable - since);
                finished += 1;
                waiting += 1;
            }
        }
        let mut queues = shared.lock();
        if next > first {
            queues.ready.extend(first..next);
            if next - first > load.batch as u64 {
                shared.more_ready.notify_all()
            } else {
                shared.more_ready.notify_one()
            }
        }
        // With results to answer, the next tasks go into the next commit at once.
        while waiting == 0 && queues.done.is_empty() {
            queues = shared.more_done.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut done, &mut queues.done);
    }
    let seconds = measured_from.map_or(0.0, |from| from.elapsed().as_secs_f64());
    let cpu = processor(ClockId::ProcessCPUTime).saturating_sub(cpu_before);
    Ok(json!({
        "cpu_us_per_task": cpu.as_secs_f64() * 1e6 / finished as f64,
        "tasks_per_second": finished as f64 / seconds,
        "syncs_per_task": (log.syncs - syncs_before) as f64 / finished as f64,
        "latency": crate::percentiles(&mut latencies),
    }))
}
