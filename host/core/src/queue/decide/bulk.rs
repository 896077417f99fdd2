//! Requeueing and purging dead letters by pattern, a slice at a time: a glob may name a million of them.
//!
//! [`Bulk::look`] finds the next entries and changes nothing; [`Bulk::slice`] does to them what was asked, in one frame.
//! Between two slices anything may happen. What is not pending any more when its turn comes is skipped by name, or was
//! never found. What dies after the beginning is not looked at, so that a requeued task which dies again is not requeued
//! for ever.

use alloc::{
    collections::VecDeque,
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::{
    mem::take,
    ops::Bound::{self, Excluded, Included, Unbounded},
};

use crate::{
    api::{ApiError, DlqAction, DlqOutcome, ErrorKind, Reply, RunState},
    code,
    id::{RunId, TaskRef},
    queue::{
        apply::key_name,
        decide::{Desk, World, pattern, refusal},
        effect::{Effect, Input, Step, Ticket},
        event::Event,
        results::Ended,
        run::StepRun,
        state::State,
    },
};

/// Entries that one slice acts on, at most, unless its caller wants fewer.
pub const SLICE_MAX: usize = 64;
/// Entries that are looked through for as much as acting on one costs.
const LOOKS_PER_ENTRY: usize = 32;
/// Tasks of a run whose end counts as much as an entry.
const TASKS_PER_ENTRY: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Requeue,
    Purge,
}

/// One requeue or purge on its way through the dead letters.
#[derive(Clone, Debug)]
pub struct Bulk {
    ticket: Ticket,
    verb: Verb,
    action: DlqAction,
    /// Entries of a slice.
    most: usize,
    /// Found and not acted on yet, the next one first.
    next: VecDeque<(String, TaskRef)>,
    /// What of a glob is still to be looked through.
    rest: Option<Rest>,
    /// A glob without `--all` is counted before anything is done.
    counts: bool,
    found: u64,
    done: u64,
    /// The run that the newest purge ended: its other entries went with it.
    ended: Option<RunId>,
    outcomes: Vec<DlqOutcome>,
    /// Of the newest slice.
    cost: usize,
    is_through: bool,
}

/// Entries from one id to another.
#[derive(Clone, Debug)]
struct Rest {
    from: Bound<String>,
    /// The newest entry when the action began.
    until: String,
}

impl Bulk {
    /// The action that `input` asks for, in slices of `most` entries.
    ///
    /// # Errors
    /// The input, when it asks for something else.
    pub fn of(state: &State, input: Input, most: usize) -> Result<Self, Input> {
        let (verb, ticket, action) = match input {
            Input::Requeue { ticket, action } => (Verb::Requeue, ticket, action),
            Input::Purge { ticket, action } => (Verb::Purge, ticket, action),
            other => return Err(other),
        };
        let is_glob = pattern::is_glob(&action.pattern);
        let next: VecDeque<_> = if is_glob { VecDeque::new() } else { pattern::named(state, &action).into() };
        let until = state.letters.last_key_value().filter(|_| is_glob).map(|(newest, _)| newest.clone());
        let from = Included(pattern::literal_start(&action.pattern).into());
        Ok(Self {
            ticket,
            verb,
            counts: is_glob && !action.all && !action.dry_run,
            found: next.len() as u64,
            next,
            rest: until.map(|until| Rest { from, until }),
            done: 0,
            ended: None,
            outcomes: Vec::new(),
            cost: 0,
            is_through: false,
            action,
            most,
        })
    }

    #[must_use]
    pub const fn is_through(&self) -> bool {
        self.is_through
    }

    /// What the newest slice cost, in entries acted on; at least 1, at most twice a slice and its last entry.
    #[must_use]
    pub const fn cost(&self) -> usize {
        self.cost
    }

    /// Finds the next entries, at most as many as a slice acts on, looking through a bounded number of others.
    pub fn look(&mut self, state: &State) {
        self.cost = 1;
        let Some(rest) = self.rest.as_mut().filter(|_| self.next.len() < self.most) else { return };
        let start = pattern::literal_start(&self.action.pattern);
        let letters = state.letters.range::<str, _>((rest.from.as_ref().map(String::as_str), Unbounded));
        let mut last = None;
        for (looked, (entry, task)) in letters.enumerate() {
            if *entry > rest.until || !entry.starts_with(start) {
                last = None;
                break;
            }
            if looked == LOOKS_PER_ENTRY * self.most || self.next.len() >= self.most {
                break;
            }
            last = Some(entry);
            self.cost = 1 + looked / LOOKS_PER_ENTRY;
            if !pattern::matches(state, &self.action, entry, *task) {
                continue;
            }
            self.found += 1;
            if !self.counts || self.found == 1 {
                self.next.push_back((entry.clone(), *task));
            }
        }
        match last.filter(|last| **last < rest.until) {
            Some(last) => rest.from = Excluded(last.clone()),
            None => self.rest = None,
        }
    }

    /// How many entries the next slice would change; 0 when it writes nothing.
    #[must_use]
    pub fn changes(&self, ended: Ended<'_>) -> usize {
        if self.action.dry_run || (self.counts && (self.rest.is_some() || self.found > 1)) {
            return 0;
        }
        let is_changed = |(entry, task): &&(String, TaskRef)| {
            ended.state.letters.contains_key(entry) && (self.verb == Verb::Purge || key_holder(ended, *task).is_none())
        };
        self.next.iter().take(self.most).filter(is_changed).count()
    }

    /// Acts on what was found. The answer is given with the last slice.
    pub fn slice(&mut self, state: &mut State, world: World<'_>) -> Step {
        let mut desk = Desk::new(state, world);
        self.act(&mut desk);
        desk.done()
    }

    /// Outcomes that were not told yet.
    pub fn told(&mut self) -> Option<Effect> {
        let outcomes = take(&mut self.outcomes);
        let is_news = !outcomes.is_empty();
        is_news.then_some(Effect::Reply { ticket: self.ticket, reply: Reply::DlqSome(outcomes) })
    }

    /// The answer of an action that does not go on, because of `why`: what was done, and that the rest was not.
    #[must_use]
    pub fn broken_off(self, why: ApiError) -> Effect {
        let reply = Reply::Error(if self.done == 0 {
            ApiError { message: format!("{}; nothing was changed", why.message), ..why }
        } else {
            let (what, many) = (self.verb.done(), if self.done == 1 { "entry was" } else { "entries were" });
            let message = format!("{}: {} {many} {what}, the others stay as they are", why.message, self.done);
            ApiError { message, ..why }
        });
        Effect::Reply { ticket: self.ticket, reply }
    }

    /// All slices at once, for who takes no turns.
    pub(crate) fn whole(mut self, desk: &mut Desk<'_>) {
        while !self.is_through {
            self.look(desk.state);
            self.act(desk);
        }
    }

    fn act(&mut self, desk: &mut Desk<'_>) {
        if self.counts {
            if self.rest.is_some() {
                return;
            }
            if self.found > 1 {
                let error = several(&self.action.pattern, self.found);
                return self.answer(desk, Reply::Error(error));
            }
            self.counts = false;
        }
        let mut cost = 0;
        while cost < self.most
            && let Some((entry, task)) = self.next.pop_front()
        {
            cost += self.one(desk, entry, task);
        }
        self.cost += cost;
        if self.next.is_empty() && self.rest.is_none() {
            let reply = match self.found {
                0 => {
                    let message = format!("no DLQ entries match '{}'", self.action.pattern);
                    Reply::Error(refusal(ErrorKind::Failed, message))
                }
                _ => Reply::DlqDone(take(&mut self.outcomes)),
            };
            self.answer(desk, reply);
        }
    }

    fn answer(&mut self, desk: &mut Desk<'_>, reply: Reply) {
        desk.effect(Effect::Reply { ticket: self.ticket, reply });
        self.is_through = true;
    }

    /// Acts on one entry; returns what it cost.
    fn one(&mut self, desk: &mut Desk<'_>, entry: String, task: TaskRef) -> usize {
        let task_id = desk.state.task_name(task);
        let is_pending = desk.state.letters.get(&entry) == Some(&task);
        let dry_run = self.action.dry_run;
        let mut weight = 1;
        let (outcome, why) = match self.verb {
            _ if !is_pending && self.ended == Some(task.run) => (self.verb.done(), None),
            _ if !is_pending => ("skipped", Some(String::from("no longer pending"))),
            Verb::Purge if dry_run => ("would purge", None),
            Verb::Purge => {
                weight += tasks_of(desk.state, task.run) / TASKS_PER_ENTRY;
                self.purge(desk, entry.clone(), task);
                ("purged", None)
            }
            Verb::Requeue => match key_holder(desk.ended(), task) {
                Some(holder) => ("skipped", Some(format!("key held by {holder}"))),
                None if dry_run => ("would requeue", None),
                None => {
                    if is_evaluated_again(desk.state, task) {
                        weight = self.most;
                    }
                    desk.requeue(entry.clone(), task);
                    ("requeued", None)
                }
            },
        };
        self.done += u64::from(outcome == self.verb.done());
        self.outcomes.push(DlqOutcome { entry_id: entry, task_id, outcome: outcome.into(), why });
        weight
    }

    /// A run that lost a task for good can never succeed: it ends, and its other entries with it. Those of them that the
    /// action names too are told next.
    fn purge(&mut self, desk: &mut Desk<'_>, entry: String, task: TaskRef) {
        let is_with_it = |(_, other): &(String, TaskRef)| other.run == task.run;
        let mut with_it: Vec<_> = self.next.iter().filter(|other| is_with_it(other)).cloned().collect();
        self.next.retain(|other| !is_with_it(other));
        if let (Some(rest), Some(run)) = (&self.rest, desk.state.runs.get(&task.run)) {
            let is_named = |other: &str, task| {
                other <= rest.until.as_str() && pattern::matches(desk.state, &self.action, other, task)
            };
            let found = with_it.len();
            for (other, letter) in run.letters().filter(|(other, _)| *other != task) {
                if is_named(&letter.entry, other) && !with_it[..found].iter().any(|(_, known)| *known == other) {
                    with_it.push((letter.entry.clone(), other));
                }
            }
            with_it.sort_unstable();
        }
        with_it.into_iter().rev().for_each(|other| self.next.push_front(other));
        self.ended = Some(task.run);
        desk.fact(Event::Purged { entry, task });
        desk.end_run(task.run, RunState::Failed);
    }
}

impl Verb {
    const fn done(self) -> &'static str {
        match self {
            Self::Requeue => "requeued",
            Self::Purge => "purged",
        }
    }
}

/// Another run that holds the idempotency key of this task's run.
fn key_holder(ended: Ended<'_>, task: TaskRef) -> Option<RunId> {
    let run = ended.state.runs.get(&task.run)?;
    let holder = ended.holder(&key_name(&ended.state.flows, run)?)?;
    (holder != task.run).then_some(holder)
}

/// Whether requeueing makes the step's input anew, which may take as long as many entries.
fn is_evaluated_again(state: &State, task: TaskRef) -> bool {
    let step = state.runs.get(&task.run).and_then(|run| run.steps.get(usize::from(task.step)));
    matches!(step, Some(StepRun::Faulted(_)))
}

fn tasks_of(state: &State, run: RunId) -> usize {
    let steps = state.runs.get(&run).map_or(&[][..], |run| &run.steps);
    let tasks = |step: &StepRun| match step {
        StepRun::Fan(fan) => fan.tasks.len(),
        StepRun::Done(done) => done.tasks.len(),
        _ => 1,
    };
    steps.iter().map(tasks).sum()
}

fn several(pattern: &str, count: u64) -> ApiError {
    let message = format!("'{pattern}' matches {count} entries; nothing was changed");
    let hint = Some("add --all to act on all of them, or --dry-run to see them".to_string());
    ApiError { hint, ..refusal(ErrorKind::Usage, message) }
}

/// Why an action ends early when the disk is full.
#[must_use]
pub fn no_room() -> ApiError {
    ApiError {
        code: Some(code::QUEUE_FULL.into()),
        hint: Some("free space on the disk of the queue directory, then try again".into()),
        retry_after_ms: Some(5000),
        ..refusal(ErrorKind::Busy, "the queue's disk has no room".into())
    }
}

/// Why an action ends early when its supervisor does.
#[must_use]
pub fn stopping() -> ApiError {
    let hint = Some("asking again is safe".into());
    ApiError { hint, ..refusal(ErrorKind::Busy, "the supervisor stops".into()) }
}
