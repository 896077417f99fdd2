//! What a queue's log says, read as it lies on the disk, and the rules that every history keeps: the judge of the tests that
//! break the real program.

use std::collections::BTreeMap;

use tm_core::{
    api::RunState,
    id::{Attempt, RunId, TaskRef},
    json::Payload,
    queue::event::{Event, Frame},
    time::Millis,
};
use tm_supervisor::store::{
    disk::{RealDisk, Roots},
    recover,
};

#[derive(Clone, Debug, Default)]
pub(crate) struct Task {
    last: Attempt,
    live: bool,
    dead: bool,
    /// None until it succeeded.
    pub(crate) output: Option<Payload>,
}

/// A queue's log from its first record on.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// Every run, with how it ended.
    pub(crate) runs: BTreeMap<RunId, Option<RunState>>,
    /// Every key that was enqueued, with its run.
    pub(crate) keys: BTreeMap<String, RunId>,
    pub(crate) tasks: BTreeMap<TaskRef, Task>,
    /// Attempts, and those of them that a worker's death or a restart has ended.
    pub(crate) starts: u64,
    pub(crate) lost: u64,
    /// Bytes of a record that was never finished.
    pub(crate) cut_bytes: u64,
    last_at: Millis,
    /// When the keys of ended runs are free again.
    expiry: BTreeMap<RunId, Millis>,
    /// Rules that do not hold.
    faults: Vec<String>,
}

impl History {
    /// Reads the log and changes nothing. Damage and a broken rule fail the test; a torn tail is neither. A clean stop may have
    /// compacted the log, right after `before` was read.
    pub(crate) fn read_after(roots: &Roots, before: &Self) -> Self {
        let disk = RealDisk::existing(roots).expect("the queue's folders");
        let (mut whole, mut after, mut compacted) = (Self::default(), before.clone(), false);
        let found = recover::read(&disk, &mut |frame, _| {
            compacted |= frame.events.iter().any(|event| matches!(event, Event::TotalsSnapshot(_)));
            whole.frame(&frame);
            after.frame(&frame);
        });
        let found = found.expect("a log");
        let mut history = if compacted { after } else { whole };
        assert!(found.damaged.is_empty(), "the log is damaged: {:?}", found.damaged);
        history.cut_bytes = found.cut_bytes;
        assert!(history.faults.is_empty(), "the log breaks rules:\n{}", history.faults.join("\n"));
        history
    }

    fn rule(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.faults.push(what());
        }
    }

    fn frame(&mut self, frame: &Frame) {
        let before = self.last_at;
        self.rule(frame.at >= before, || format!("time goes back from {before} to {}", frame.at));
        self.last_at = frame.at;
        for event in &frame.events {
            self.event(event);
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Enqueued(new) => {
                let before = self.runs.insert(new.run, None);
                self.rule(before.is_none(), || format!("run {} was enqueued twice", new.run));
                if let Some(key) = &new.key {
                    let before = self.keys.insert(key.clone(), new.run);
                    let free = before.is_none_or(|run| self.expiry.get(&run).is_some_and(|at| *at <= self.last_at));
                    self.rule(free, || format!("key {key} has a second run {}", new.run));
                }
            }
            Event::Leased { task, attempt, .. } => self.leased(*task, *attempt),
            Event::Succeeded(end) => {
                let second = self.tasks.get(&end.task).is_some_and(|task| task.output.is_some());
                self.rule(!second, || format!("{:?} succeeded a second time", end.task));
                self.ended(end.task, end.attempt).output = Some(end.output.clone());
            }
            Event::RetryScheduled(end) => drop(self.ended(end.task, end.attempt)),
            Event::Released { task, attempt, .. } => drop(self.ended(*task, *attempt)),
            Event::Lost { task, attempt, .. } => {
                self.lost += 1;
                self.ended(*task, *attempt);
            }
            Event::Dead(end) => self.ended(end.task, end.attempt).dead = true,
            Event::RunEnded { run, state, expires_at, .. } => {
                self.expiry.insert(*run, *expires_at);
                let known = self.runs.get_mut(run).map(|end| end.replace(*state));
                self.rule(known == Some(None), || format!("run {run} ended twice, or was never enqueued"));
                if *state == RunState::Cancelled {
                    let own = self.tasks.iter_mut().filter(|(task, _)| task.run == *run);
                    own.for_each(|(_, found)| found.live = false);
                }
            }
            Event::Created { .. }
            | Event::FlowRegistered { .. }
            | Event::Deduplicated { .. }
            | Event::StepReady { .. }
            | Event::Stalled { .. }
            | Event::ResultsKept(_)
            | Event::TotalsSnapshot(_)
            | Event::Filed { .. } => {}
            other => self.rule(false, || format!("no history of these tests has {other:?}")),
        }
    }

    fn leased(&mut self, task: TaskRef, attempt: Attempt) {
        self.starts += 1;
        let known = self.tasks.entry(task).or_default();
        let free = !known.live && !known.dead && known.output.is_none() && attempt > known.last;
        let before = format!("{known:?}");
        (known.last, known.live) = (attempt, true);
        self.rule(free, || format!("{task:?} was started as attempt {attempt} over {before}"));
    }

    /// The task whose live attempt has ended.
    fn ended(&mut self, task: TaskRef, attempt: Attempt) -> &mut Task {
        let known = self.tasks.get(&task);
        let fits = known.is_some_and(|known| known.live && known.last == attempt);
        let before = format!("{known:?}");
        self.rule(fits, || format!("attempt {attempt} of {task:?} ended over {before}"));
        let known = self.tasks.entry(task).or_default();
        known.live = false;
        known
    }

    /// Attempts that were started and have not ended.
    pub(crate) fn leases(&self) -> usize {
        self.tasks.values().filter(|task| task.live).count()
    }

    /// Every run has ended, or is stalled by a dead letter.
    pub(crate) fn assert_done(&self) {
        let stalled = |run: &RunId| self.tasks.iter().any(|(task, found)| task.run == *run && found.dead);
        let open: Vec<_> = self.runs.iter().filter(|(run, end)| end.is_none() && !stalled(run)).collect();
        assert!(open.is_empty(), "{} runs never ended: {open:.500?}", open.len());
        assert_eq!(self.leases(), 0, "attempts never ended");
    }
}
