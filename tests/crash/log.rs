//! What the log says, read as it lies on the disk, and the rules that every history keeps.

use std::{collections::BTreeMap, fs, mem::MaybeUninit, os::fd::OwnedFd, path::Path};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
};
use tm_core::{
    api::RunState,
    id::{Attempt, RunId, TaskRef},
    json::Payload,
    queue::event::{Event, Frame},
};
use tm_supervisor::store::{
    disk::{RealDisk, Roots},
    recover, segment,
};

use crate::client::input_of;

#[derive(Debug, Default)]
struct Task {
    last: Attempt,
    live: bool,
    succeeded: bool,
}

/// A queue's log from its first record on.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Every key that was enqueued, with its run.
    pub(crate) keys: BTreeMap<String, RunId>,
    runs: BTreeMap<RunId, (String, bool)>,
    tasks: BTreeMap<TaskRef, Task>,
    pub(crate) starts: u64,
    pub(crate) lost: u64,
    /// Bytes of a record that was never finished.
    pub(crate) cut_bytes: u64,
    /// Rules that do not hold.
    faults: Vec<String>,
}

impl History {
    /// Reads the log and changes nothing. Damage fails the test; a torn tail is none.
    pub(crate) fn read(roots: &Roots) -> Self {
        let disk = RealDisk::existing(roots).expect("the queue's folders");
        let mut history = Self::default();
        let found = recover::read(&disk, &mut |frame, _| history.frame(&frame)).expect("a log");
        assert!(found.damaged.is_empty(), "a crash damaged the log: {:?}", found.damaged);
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
        for event in &frame.events {
            match event {
                Event::Enqueued(new) => {
                    let key = new.key.clone().unwrap_or_default();
                    let before = self.keys.insert(key.clone(), new.run);
                    self.rule(before.is_none(), || format!("key {key} has a second run {}", new.run));
                    let before = self.runs.insert(new.run, (key, false));
                    self.rule(before.is_none(), || format!("run {} was enqueued twice", new.run));
                }
                Event::Leased { task, attempt, .. } => self.leased(*task, *attempt),
                Event::Succeeded(end) => {
                    let expected = self.runs.get(&end.task.run).map(|(key, _)| input_of(key));
                    let right = match &end.output {
                        Payload::Inline(json) => expected.as_deref() == Some(json.get()),
                        Payload::Blob(_) => false,
                    };
                    self.rule(right, || format!("{:?} has another result than its input: {:?}", end.task, end.output));
                    let second = self.tasks.get(&end.task).is_some_and(|task| task.succeeded);
                    self.rule(!second, || format!("{:?} succeeded a second time", end.task));
                    self.ended(end.task, end.attempt).succeeded = true;
                }
                Event::RetryScheduled(end) => drop(self.ended(end.task, end.attempt)),
                Event::Released { task, attempt, .. } => drop(self.ended(*task, *attempt)),
                Event::Lost { task, attempt, .. } => {
                    self.lost += 1;
                    self.ended(*task, *attempt);
                }
                Event::RunEnded { run, state, .. } => {
                    let known = self.runs.get_mut(run).map(|(_, ended)| std::mem::replace(ended, true));
                    self.rule(known == Some(false), || format!("run {run} ended twice, or was never enqueued"));
                    self.rule(*state == RunState::Succeeded, || format!("run {run} ended as {state:?}"));
                }
                Event::Created { .. }
                | Event::FlowRegistered { .. }
                | Event::Deduplicated { .. }
                | Event::StepReady { .. }
                | Event::ResultsKept(_) => {}
                other => self.rule(false, || format!("no history of this test has {other:?}")),
            }
        }
    }

    fn leased(&mut self, task: TaskRef, attempt: Attempt) {
        self.starts += 1;
        let known = self.tasks.entry(task).or_default();
        let free = !known.live && !known.succeeded && attempt > known.last;
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

    /// Every run ended, and every task of it.
    pub(crate) fn assert_done(&self) {
        let open: Vec<_> = self.runs.iter().filter(|(_, (_, ended))| !ended).collect();
        assert!(open.is_empty(), "{} runs never ended: {open:.500?}", open.len());
        assert_eq!(self.leases(), 0, "attempts never ended");
        let done = self.tasks.values().filter(|task| task.succeeded).count();
        assert_eq!(done, self.runs.len(), "every run has one task, which succeeds once");
    }
}

/// Sees the moment at which the log's active segment was written to.
pub(crate) struct Watch(OwnedFd);

impl Watch {
    pub(crate) fn new(queue: &Path) -> Self {
        let names =
            fs::read_dir(queue).expect("the queue").flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let active = names.filter_map(|name| segment::number(&name)).max().expect("a segment");
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let watch = inotify::init(flags).expect("inotify");
        let path = queue.join(format!("segment-{active:06}.log"));
        inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY).expect("a watch");
        Self(watch)
    }

    /// Returns at the next write from now on, or after `patience_ms`: whether there was one.
    pub(crate) fn next(&self, patience_ms: i64) -> bool {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut space);
        while reader.next().is_ok() {}
        let timeout = Timespec { tv_sec: 0, tv_nsec: patience_ms * 1_000_000 };
        poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
    }
}
