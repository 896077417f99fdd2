//! A run and its tasks, as the state holds them and as a snapshot record keeps them.

use alloc::{boxed::Box, string::String, vec::Vec};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::{
    api::RunState,
    id::{Attempt, Digest, FlowNo, RunId, TaskRef, WorkerId},
    json::{Json, Payload},
    queue::attempts::Attempts,
    time::Millis,
    wire::{ArtifactEntry, Usage},
};

/// An unfinished run (active or stalled).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    pub id: RunId,
    pub flow: FlowNo,
    pub state: RunState,
    pub priority: u8,
    pub enqueued_at: Millis,
    pub input: Payload,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<Box<RunExtra>>,
    /// By the place of the step in the flow. Inline for flows of one step, because a queue may hold a million of them.
    pub steps: SmallVec<[StepRun; 1]>,
    /// The segment that holds the run's newest whole record; not stored.
    #[serde(skip)]
    pub home: u64,
}

/// What few runs have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunExtra {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_digest: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<Json>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// Not before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Millis>,
    /// When a task of it was requeued last, of a run that has a time: it begins anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requeued_at: Option<Millis>,
}

/// A step of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum StepRun {
    /// For its needs.
    Waiting,
    /// For its input, which is made beside the loop.
    Due(Box<Due>),
    Single(Box<Task>),
    Fan(Box<Fan>),
    Skipped,
    /// Done; the output is kept only while an unfinished step needs it, or until the run ends when it is the run's.
    Done(Box<StepDone>),
    /// Its input or condition could not be made; there is no attempt.
    Faulted(Box<Letter>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepDone {
    /// None once nothing needs it.
    pub output: Option<Payload>,
    /// Of a fan-out: how many items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<u32>,
    /// The ends of its tasks, for `queue show`.
    pub tasks: Vec<TaskEnd>,
}

/// A step whose input, or whose list of inputs, is made beside the loop.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Due {
    /// Those of a fan-out that are in the log already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Payload>,
}

/// The tasks of a fan-out, in the order of the list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fan {
    pub tasks: Vec<Task>,
    /// Items from here on wait for `max_parallel`.
    pub next: u32,
    pub succeeded: u32,
    pub dead: u32,
    /// Of the outputs so far: bounded, because their list becomes an input.
    pub output_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    pub input: Payload,
    pub phase: Phase,
    /// The last start's number, 0 before the first.
    pub attempt: Attempt,
    pub failures: u32,
    /// WORKER_LOST in company, in a row.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lost_in_company: u8,
    /// Runs next alone.
    #[serde(default, skip_serializing_if = "is_default")]
    pub suspect: bool,
    /// The start of the first attempt of those that were all rate-limited, up to the last one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limited_since: Option<Box<Millis>>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub attempts: Attempts,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Where a task is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// An item beyond `max_parallel`.
    Held,
    /// `since` orders it among the ready.
    Ready {
        since: Millis,
    },
    /// Before the first attempt a time of the wall, later the end of a backoff in the queue's time.
    Delayed {
        ready_at: Millis,
    },
    Leased {
        worker: WorkerId,
    },
    Succeeded(Box<Success>),
    Dead(Box<Letter>),
}

/// What a task gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Success {
    pub output: Payload,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<ArtifactEntry>,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    pub entry: String,
    pub at: Millis,
    pub attempt: Attempt,
    pub failures: u32,
    pub code: String,
    pub message: String,
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_code: Option<String>,
    /// The entry's file is synced.
    pub filed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    #[serde(rename = "a")]
    pub attempt: Attempt,
    pub started_at: Millis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Millis>,
    #[serde(rename = "w")]
    pub worker: WorkerId,
    /// As [`crate::api::AttemptRow::outcome`]; empty while it runs.
    #[serde(rename = "o", default, skip_serializing_if = "String::is_empty")]
    pub outcome: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(rename = "u")]
    pub usage: Usage,
}

/// How a task of a done step ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskEnd {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<u32>,
    pub last: AttemptRecord,
    /// Those before the last, oldest first: with it at most [`super::attempts::ATTEMPTS_KEPT`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<AttemptRecord>,
}

/// A run that ended, kept until its result expires.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FinishedRun {
    pub id: RunId,
    pub flow: FlowNo,
    pub state: RunState,
    pub priority: u8,
    pub enqueued_at: Millis,
    pub ended_at: Millis,
    pub expires_at: Millis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Payload>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_digest: Option<Digest>,
    pub exec_ms: u64,
    /// The first dead letter, of a run that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letter: Option<Box<Letter>>,
    pub tasks: Vec<(u16, TaskEnd)>,
}

impl Run {
    /// The task, when it exists yet.
    #[must_use]
    pub fn task(&self, task: TaskRef) -> Option<&Task> {
        match (self.steps.get(usize::from(task.step))?, task.item) {
            (StepRun::Single(single), None) => Some(single),
            (StepRun::Fan(fan), Some(item)) => fan.tasks.get(item as usize),
            _ => None,
        }
    }

    #[must_use]
    pub fn task_mut(&mut self, task: TaskRef) -> Option<&mut Task> {
        match (self.steps.get_mut(usize::from(task.step))?, task.item) {
            (StepRun::Single(single), None) => Some(single),
            (StepRun::Fan(fan), Some(item)) => fan.tasks.get_mut(item as usize),
            _ => None,
        }
    }

    /// Tasks that run on the run's own input get its copy: the whole record of a run tells it again for each of them, and
    /// a queue may hold a million.
    pub fn share_input(&mut self) {
        let share = |task: &mut Task| {
            if task.input == self.input {
                task.input = self.input.clone();
            }
        };
        for step in &mut self.steps {
            match step {
                StepRun::Single(single) => share(single),
                StepRun::Fan(fan) => fan.tasks.iter_mut().for_each(share),
                _ => {}
            }
        }
    }

    /// What a step gave, while it is kept.
    #[must_use]
    pub fn output_of(&self, step: u16) -> Option<&Payload> {
        match self.steps.get(usize::from(step))? {
            StepRun::Done(done) => done.output.as_ref(),
            _ => None,
        }
    }

    /// The end that `task` may still be given: any of its phases but those that are final.
    #[must_use]
    pub fn is_open(&self, task: TaskRef) -> bool {
        self.task(task).is_some_and(|task| !matches!(task.phase, Phase::Succeeded(_) | Phase::Dead(_)))
    }

    /// The pending dead letter of a task, or of a step that has no task.
    #[must_use]
    pub fn letter(&self, task: TaskRef) -> Option<&Letter> {
        match (self.steps.get(usize::from(task.step))?, task.item) {
            (StepRun::Faulted(letter), None) => Some(letter),
            _ => match &self.task(task)?.phase {
                Phase::Dead(letter) => Some(letter),
                _ => None,
            },
        }
    }

    #[must_use]
    pub fn letter_mut(&mut self, task: TaskRef) -> Option<&mut Letter> {
        match (self.steps.get_mut(usize::from(task.step))?, task.item) {
            (StepRun::Faulted(letter), None) => Some(letter),
            (StepRun::Single(single), None) => single.letter_mut(),
            (StepRun::Fan(fan), Some(item)) => fan.tasks.get_mut(item as usize)?.letter_mut(),
            _ => None,
        }
    }

    /// The pending dead letters with their tasks, in the order of the flow.
    pub fn letters(&self) -> impl Iterator<Item = (TaskRef, &Letter)> {
        let run = self.id;
        self.steps.iter().zip(0u16..).flat_map(move |(state, step)| {
            let tasks: &[Task] = match state {
                StepRun::Single(task) => core::slice::from_ref(task),
                StepRun::Fan(fan) => &fan.tasks,
                _ => &[],
            };
            let fan = matches!(state, StepRun::Fan(_));
            let faulted = match state {
                StepRun::Faulted(letter) => Some((TaskRef { run, step, item: None }, &**letter)),
                _ => None,
            };
            let dead = tasks.iter().zip(0u32..).filter_map(move |(task, item)| match &task.phase {
                Phase::Dead(letter) => Some((TaskRef { run, step, item: fan.then_some(item) }, &**letter)),
                _ => None,
            });
            faulted.into_iter().chain(dead)
        })
    }

    /// When its time began anew, by the queue's time.
    #[must_use]
    pub fn begun_again(&self) -> Option<Millis> {
        self.extra.as_ref()?.requeued_at
    }

    /// When its time begins by the wall, of a run that was not to start at once.
    #[must_use]
    pub fn begins_later(&self) -> Option<Millis> {
        self.extra.as_ref()?.ready_at
    }

    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.extra.as_ref()?.key.as_deref()
    }
}

impl Fan {
    /// Whether every item succeeded: the list of their outputs is made beside the loop.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.succeeded as usize == self.tasks.len()
    }
}

impl TaskEnd {
    /// Of a task that was started at least once.
    #[must_use]
    pub fn of(item: Option<u32>, attempts: Attempts) -> Option<Self> {
        attempts.into_last().map(|(last, earlier)| Self { item, last, earlier })
    }

    /// Oldest first.
    pub fn attempts(&self) -> impl Iterator<Item = &AttemptRecord> {
        self.earlier.iter().chain([&self.last])
    }
}

impl Task {
    #[must_use]
    pub fn new(input: Payload, phase: Phase) -> Self {
        Self {
            input,
            phase,
            attempt: 0,
            failures: 0,
            lost_in_company: 0,
            suspect: false,
            limited_since: None,
            attempts: Attempts::default(),
        }
    }

    fn letter_mut(&mut self) -> Option<&mut Letter> {
        match &mut self.phase {
            Phase::Dead(letter) => Some(letter),
            _ => None,
        }
    }
}
