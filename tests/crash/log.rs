//! The log of a crash test: the judge of every history, and what is more to it here, where every run has a key and
//! succeeds with its input as its output.

use std::{collections::BTreeMap, fs, mem::MaybeUninit, os::fd::OwnedFd, path::Path};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
};
use tm_core::{api::RunState, json::Payload};
use tm_supervisor::store::{disk::Roots, segment};

use crate::{client::input_of, history::History};

/// Reads the log, which is well so far, and was compacted after `compacted` was read, if at all.
pub(crate) fn read(roots: &Roots, compacted: &History) -> History {
    let history = History::read_after(roots, compacted);
    let keys: BTreeMap<_, _> = history.keys.iter().map(|(key, run)| (run, key)).collect();
    for (run, end) in &history.runs {
        assert!(end.is_none_or(|end| end == RunState::Succeeded), "run {run} ended as {end:?}");
        assert!(keys.contains_key(run), "run {run} has no key");
    }
    for (task, found) in &history.tasks {
        let right = match &found.output {
            Some(Payload::Inline(json)) => input_of(keys[&task.run]) == json.get(),
            Some(Payload::Blob(_)) => false,
            None => true,
        };
        assert!(right, "{task:?} has another result than its input: {:?}", found.output);
    }
    history
}

/// Every run ended, and each by its one task.
pub(crate) fn assert_done(history: &History) {
    history.assert_done();
    let done = history.tasks.values().filter(|task| task.output.is_some()).count();
    assert_eq!(done, history.runs.len(), "every run has one task, which succeeds once");
}

/// The number of the oldest segment: compaction raises it.
pub(crate) fn oldest_segment(roots: &Roots) -> u64 {
    let names = fs::read_dir(&roots.queue).expect("the queue").flatten();
    let numbers = names.filter_map(|entry| segment::number(&entry.file_name().into_string().ok()?));
    numbers.min().expect("a segment")
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
