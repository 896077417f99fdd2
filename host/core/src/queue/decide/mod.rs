//! What follows from an input: one file per verb.
//!
//! A decision runs on a [`Desk`]: it reads the state, proposes facts one by one, and each fact is applied as it is
//! proposed, so that the next question is asked of what is then true. The facts of one decision are one frame; nothing
//! of it is visible outside before the frame is synced (I1). There is no other way to a mutation than [`Desk::fact`].

mod advance;
mod bulk;
mod compact;
mod enqueue;
mod finish;
mod lease;
mod made;
mod operate;
mod pattern;
mod timeout;

pub use bulk::{Bulk, SLICE_MAX, no_room, stopping};
pub use compact::{Sweep, results_dropped, results_kept};
pub use lease::{Runnable, lease};
pub use made::{Arrival, ITEMS_PER_SLICE, Made, Making, unmade};
pub use operate::changes;
pub use timeout::time_out;

use alloc::{
    boxed::Box,
    string::{String, ToString},
    vec::Vec,
};

use crate::{
    api::{ApiError, DlqEntry, ErrorKind, TaskError},
    code::{self, Class},
    flow::{advance::Blobs, evaluate::Evaluate},
    id::{Attempt, TaskRef, WorkerId},
    limits::AT_ONCE_MAX_BYTES,
    queue::{
        effect::{Effect, Input, Step},
        event::Event,
        policy::Policy,
        results::{Ended, Results},
        run::{Letter, Run},
        state::{Registered, State},
    },
    time::Millis,
};

/// What decisions may ask of their surroundings: data and pure functions.
#[derive(Clone, Copy)]
pub struct World<'a> {
    pub policy: &'a Policy,
    pub evaluate: &'a dyn Evaluate,
    pub blobs: &'a dyn Blobs,
    /// Runs that ended and left memory.
    pub results: &'a dyn Results,
    pub now: Millis,
    /// The sequence that the decision's frame will have: what ids are minted from.
    pub sequence: u64,
}

/// One decision in the making.
pub(crate) struct Desk<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) world: World<'a>,
    /// Bytes of inputs that this decision may still make itself.
    pub(crate) at_once_left: u64,
    step: Step,
}

impl<'a> Desk<'a> {
    pub(crate) fn new(state: &'a mut State, world: World<'a>) -> Self {
        Self { state, world, at_once_left: AT_ONCE_MAX_BYTES, step: Step::default() }
    }

    pub(crate) fn fact(&mut self, event: Event) {
        self.state.apply(&event, self.world.now);
        self.step.events.push(event);
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        self.step.effects.push(effect);
    }

    /// What looks for a run that may have ended.
    pub(crate) fn ended(&self) -> Ended<'_> {
        Ended { state: self.state, results: self.world.results, now: self.world.now }
    }

    pub(crate) fn done(self) -> Step {
        self.step
    }
}

/// Decides what follows from one input.
pub fn decide(state: &mut State, world: World<'_>, input: Input) -> Step {
    let bulk = Bulk::of(state, input, SLICE_MAX);
    let mut desk = Desk::new(state, world);
    let input = match bulk.map_err(Arrival::of) {
        Ok(bulk) => {
            bulk.whole(&mut desk);
            return desk.done();
        }
        Err(Ok(arrival)) => {
            arrival.whole(&mut desk);
            return desk.done();
        }
        Err(Err(input)) => input,
    };
    match input {
        Input::Register { ticket, tenant, def, warnings } => desk.register(ticket, tenant, def, warnings),
        Input::Enqueue { ticket, request, input } => desk.enqueue(ticket, &request, input),
        Input::Cancel { ticket, id } => desk.cancel(ticket, &id),
        Input::ForgetKey { ticket, tenant, flow, key } => desk.forget_key(ticket, &tenant, flow, key),
        // [`Bulk::of`] and [`Arrival::of`] have taken them.
        Input::Requeue { .. } | Input::Purge { .. } | Input::Made { .. } => {}
        Input::Report { from, report } => desk.report(from, *report),
        Input::Progress { from, task, attempt, percent } => desk.progress(from, task, attempt, percent),
        Input::WorkerGone { worker } => desk.worker_gone(worker),
        Input::NotStarted { worker, task, attempt } => {
            desk.release(worker, task, attempt, crate::queue::event::ReleaseReason::NotStarted);
        }
        Input::Aborted { worker, task, attempt } => {
            desk.release(worker, task, attempt, crate::queue::event::ReleaseReason::Shutdown);
        }
        Input::Filed { entry } => desk.filed(entry),
    }
    desk.done()
}

/// The first frame of a new queue.
pub fn create(state: &mut State, world: World<'_>, secret: [u8; 16]) -> Step {
    let mut desk = Desk::new(state, world);
    desk.fact(Event::Created { secret, format: crate::record::codec::FORMAT });
    desk.done()
}

/// What a starting supervisor makes of leases that its predecessor left: their workers died with it. One step each.
pub fn orphaned_workers(state: &State) -> Vec<Input> {
    state.indexes.leases.keys().map(|&worker| Input::WorkerGone { worker }).collect()
}

/// Whether `from` holds the lease of this attempt (I3): what a shell asks before it does anything for a report.
#[must_use]
pub fn holds_lease(state: &State, from: WorkerId, task: TaskRef, attempt: Attempt) -> bool {
    finish::holds(state, from, task, attempt)
}

/// The files that are still to be written for dead letters (after a crash between the two).
#[must_use]
pub fn unfiled(state: &State) -> Vec<Effect> {
    let tasks: Vec<TaskRef> = state.letters.values().copied().collect();
    tasks
        .into_iter()
        .filter_map(|task| {
            let entry = entry_of(state, task, "pending", None)?;
            (!letter_of(state, task)?.filed).then(|| Effect::FileEntry { entry: Box::new(entry) })
        })
        .collect()
}

pub(crate) fn refusal(kind: ErrorKind, message: String) -> ApiError {
    ApiError { kind, code: None, message, hint: None, retry_after_ms: None }
}

/// The dead letter of a task.
#[must_use]
pub fn letter_of(state: &State, task: TaskRef) -> Option<&Letter> {
    state.runs.get(&task.run)?.letter(task)
}

/// A task's dead letter as its entry file holds it.
#[must_use]
pub fn entry_of(state: &State, task: TaskRef, as_state: &str, consumed_at: Option<Millis>) -> Option<DlqEntry> {
    let run = state.runs.get(&task.run)?;
    Some(entry(state.flow_of(run)?, task, run.letter(task)?, as_state, consumed_at))
}

/// The entries of a run that was ended with dead letters ([`Effect::ArchiveRun`]), as their files are to hold them.
pub fn purged_entries<'a>(run: &'a Run, flow: &'a Registered, at: Millis) -> impl Iterator<Item = DlqEntry> + 'a {
    run.letters().map(move |(task, letter)| entry(flow, task, letter, "purged", Some(at)))
}

fn entry(flow: &Registered, task: TaskRef, letter: &Letter, as_state: &str, consumed_at: Option<Millis>) -> DlqEntry {
    let step = flow.def.steps.get(usize::from(task.step));
    DlqEntry {
        entry_id: letter.entry.clone(),
        run_id: task.run,
        task_id: step.map_or_else(|| task.name(&task.step.to_string()), |step| task.name(&step.id)),
        flow_id: flow.def.id.clone(),
        tenant: (*flow.tenant).into(),
        attempt: letter.attempt,
        failures: letter.failures,
        timestamp: letter.at,
        state: as_state.into(),
        consumed_at,
        error: error_of(letter),
    }
}

/// A dead letter's error as people and tools see it.
#[must_use]
pub fn error_of(letter: &Letter) -> TaskError {
    let last = letter.last_code.as_deref().unwrap_or(&letter.code);
    TaskError {
        code: letter.code.clone(),
        message: letter.message.clone(),
        retryable: letter.last_code.is_some() && !matches!(code::class_of(last), Some(Class::Fatal)),
        reason: letter.reason.clone(),
        last_code: letter.last_code.clone(),
    }
}
