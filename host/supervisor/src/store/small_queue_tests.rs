//! A queue directory of every kind of file, made by the real turn, log and stores: what the tests of damage are done to.

use std::{collections::VecDeque, ops::ControlFlow};

use tm_core::{
    api::{DlqAction, EnqueueRequest},
    backoff::RetryPolicy,
    code::Class,
    flow::{
        advance::{Blobs, payload_of},
        spec::{FlowDef, GrantsDef, StepDef},
    },
    id::{Digest, FlowNo, WorkerId},
    json::{Json, Payload},
    limits::Limits,
    queue::{
        decide::{Runnable, purged_entries},
        effect::{Effect, Input, Outcome, Report, Ticket},
        lanes::{ProfileNo, Slot, Want},
        policy::Policy,
        results::Ended,
        run::FinishedRun,
        state::{Registered, State},
    },
    time::Millis,
    wire::{Failure, Required, Usage},
};

use super::{
    blobs::BlobStore,
    disk::{Disk, How, Kind, MemDisk, read_whole},
    dlq::{Dlq, Place},
    idempotency::KeyFile,
    log::{Fsync, Log, LogOptions},
};
use crate::{
    evaluate::MiniJinja,
    turn::{Reserve, Rules, Shell, Turn},
};

/// Large enough for no compaction to begin: [`rotate`] begins the segments.
const OPTIONS: LogOptions = LogOptions { segment_max_bytes: 64 * 1024, fsync: Fsync::Always };
const RUNS: u64 = 60;

struct Stored(BlobStore<MemDisk>);

impl Blobs for Stored {
    fn read(&self, digest: &Digest) -> Option<Json> {
        Json::parse(std::str::from_utf8(&self.0.get(digest).ok()?).ok()?).ok()
    }

    fn put(&self, json: &Json) -> Option<Digest> {
        Some(self.0.put(json.get().as_bytes()).ok()?.digest())
    }
}

/// One worker that ends every attempt at once: in the flow `poison` fatally, elsewhere well, each third after a retry.
struct Hands {
    letters: Dlq<MemDisk>,
    profile: Option<ProfileNo>,
    inputs: VecDeque<Input>,
}

impl Shell for Hands {
    fn slots(&mut self) -> Vec<Slot> {
        self.profile.map(|profile| Slot { worker: WorkerId(1), profile, free: 4, idle: true }).into_iter().collect()
    }

    fn flow(&mut self, _: FlowNo, _: &Registered) {}

    fn runnable(&self, _: FlowNo, _: u16) -> Runnable {
        Runnable::Yes
    }

    fn wanted(&mut self, _: &State, wants: &[Want], _: Millis) {
        self.profile = wants.first().map(|want| want.profile);
    }

    fn perform(&mut self, ended: Ended<'_>, effect: Effect, _: Millis) {
        match effect {
            Effect::Start { worker, task, attempt } => {
                let poison = ended.state.step_of(task).is_some_and(|(flow, _)| flow.def.id == "poison");
                let outcome = match (poison, attempt) {
                    (true, _) => failed(Class::Fatal),
                    (false, 1) if task.run.0 % 3 == 0 => failed(Class::Retryable),
                    _ => Outcome::Succeeded { output: json("{\"ok\":true}"), artifacts: vec![] },
                };
                let report = Box::new(Report { task, attempt, outcome, usage: Usage::default() });
                self.inputs.push_back(Input::Report { from: worker, report });
            }
            Effect::FileEntry { entry } => {
                self.letters.file(&entry).unwrap();
                self.inputs.push_back(Input::Filed { entry: entry.entry_id });
            }
            Effect::ArchiveEntry { entry } => self.letters.archive(&entry).unwrap(),
            Effect::ArchiveRun { run, flow, at } => {
                purged_entries(&run, &flow, at).for_each(|entry| self.letters.archive(&entry).unwrap());
            }
            Effect::Make(making) => panic!("nothing here is made beside the loop: {making:?}"),
            Effect::Reply { .. } | Effect::Cancel { .. } | Effect::RunEnded { .. } => {}
        }
    }

    fn forgotten(&mut self, _: &FinishedRun) {}
}

fn failed(class: Class) -> Outcome {
    let (code, message) = ("TRAP".into(), "no".into());
    Outcome::Failed(Failure { by_host: true, class, code, message, retry_after_ms: None })
}

fn json(text: &str) -> Payload {
    Payload::Inline(Json::parse(text).unwrap())
}

fn register(id: &str, component: Digest) -> Input {
    let step = |id: &str, needs: Vec<u16>| StepDef {
        id: id.into(),
        component,
        required: Required::default(),
        needs,
        when: None,
        for_each: None,
        max_parallel: 8,
        input: None,
        limits: Limits::DEFAULT,
        retries: RetryPolicy::default(),
        grants: GrantsDef::default(),
    };
    let steps = vec![step("first", vec![]), step("second", vec![0])];
    let digest = Digest::of(id.as_bytes());
    let def = FlowDef { id: id.into(), version: None, run_timeout_ms: None, digest, steps, caller_env: vec![] };
    Input::Register { ticket: Ticket(0), tenant: "default".into(), def: Box::new(def), warnings: vec![] }
}

fn enqueue(flow: &str, key: Option<String>, input: Payload) -> Input {
    let request = EnqueueRequest { idempotency_key: key, ..EnqueueRequest::of("default", flow, Json::null()) };
    Input::Enqueue { ticket: Ticket(0), request: Box::new(request), input }
}

/// The queue of a disk, opened by what a supervisor opens it with.
pub(crate) fn open(disk: &MemDisk) -> Turn<MemDisk> {
    open_with(disk, Policy::default())
}

/// As [`open`]; most runs that ended leave memory at once, a few of them to each results segment.
fn open_keeping(disk: &MemDisk) -> Turn<MemDisk> {
    open_with(disk, Policy { results_max_bytes: 32 * 1024, ..Policy::default() }).with_finished_max(8)
}

fn open_with(disk: &MemDisk, policy: Policy) -> Turn<MemDisk> {
    let blobs = Stored(BlobStore::new(disk.clone()).unwrap());
    let rules = Rules { policy, evaluate: Box::new(MiniJinja::new()), blobs: Box::new(blobs) };
    let reserve = Reserve { end_bytes: 2048, sweep_bytes: 8192, slack_bytes: 1024 };
    Turn::open(disk.clone(), OPTIONS, rules, [3; 16], Millis(1_000_000)).unwrap().0.with_reserve(reserve)
}

/// Takes the inputs, then everything that follows from them.
fn settle(turn: &mut Turn<MemDisk>, disk: &MemDisk, now: &mut Millis, inputs: impl IntoIterator<Item = Input>) {
    let letters = Dlq::open(disk.clone()).unwrap();
    let mut hands = Hands { letters, profile: None, inputs: inputs.into_iter().collect() };
    let inputs = turn.recover();
    hands.inputs.extend(inputs);
    loop {
        let mut inputs = std::mem::take(&mut hands.inputs);
        turn.turn(*now, &mut inputs, &mut hands).unwrap();
        hands.inputs.extend(inputs);
        // Beyond every delay of a retry.
        *now = now.plus(1000);
        if hands.inputs.is_empty() && turn.state.depth() == 0 {
            return;
        }
    }
}

/// A new queue with one run of the flow `good` that waits for a worker.
pub(crate) fn waiting() -> Turn<MemDisk> {
    let disk = MemDisk::default();
    let mut turn = open(&disk);
    let inputs = [register("good", Digest([1; 32])), enqueue("good", None, json("{}"))];
    let letters = Dlq::open(disk).unwrap();
    let mut hands = Hands { letters, profile: None, inputs: VecDeque::new() };
    turn.draining = true;
    turn.turn(Millis(1_000_000), &mut VecDeque::from(inputs), &mut hands).unwrap();
    turn
}

/// More than 300 records over several segments, a closed log, segments of results, blobs, dead letters in every folder, the
/// file of keys.
pub(crate) fn make() -> MemDisk {
    let disk = MemDisk::default();
    let mut now = Millis(1_000_000);
    let blobs = BlobStore::new(disk.clone()).unwrap();
    let component = blobs.put(b"a component").unwrap().digest();
    let mut turn = open(&disk);
    settle(&mut turn, &disk, &mut now, [register("good", component), register("poison", component)]);
    for n in 0..RUNS {
        if n % 20 == 19 && n < 50 {
            turn.close().unwrap();
            rotate(&disk);
            turn = open_keeping(&disk);
        }
        let flow = if n % 10 == 9 { "poison" } else { "good" };
        let key = (n % 4 == 0).then(|| format!("order-{n}"));
        settle(&mut turn, &disk, &mut now, [enqueue(flow, key, json(&format!("{{\"n\":{n}}}")))]);
    }
    let large = Json::parse(&format!("\"{}\"", "x".repeat(70_000))).unwrap();
    let large = payload_of(large, &Stored(blobs));
    assert!(large.blob().is_some());
    settle(&mut turn, &disk, &mut now, [enqueue("poison", None, large)]);
    // The room that a large input reserves goes with the rotation.
    turn.close().unwrap();
    rotate(&disk);
    turn = open(&disk);
    let entries: Vec<String> = turn.state.letters.keys().take(2).cloned().collect();
    let action = |at: usize| DlqAction { pattern: entries[at].clone(), ..DlqAction::default() };
    let (requeue, purge) = (
        Input::Requeue { ticket: Ticket(0), action: action(0) },
        Input::Purge { ticket: Ticket(0), action: action(1) },
    );
    settle(&mut turn, &disk, &mut now, [requeue, purge]);
    let mut keys = KeyFile::new(disk.clone());
    while keys.turn(turn.ended(now)) == Some(now) {}
    turn.close().unwrap();
    for place in [Place::Pending, Place::Requeued, Place::Purged] {
        let mut some = false;
        let damaged = Dlq::reading(disk.clone()).newest_first(place, &mut |_| {
            some = true;
            ControlFlow::Break(())
        });
        assert!(some && damaged.unwrap().is_empty(), "{place:?}");
    }
    disk
}

/// Enqueues a run that waits for a worker, and closes the queue.
pub(crate) fn leave_waiting(disk: &MemDisk) {
    let mut turn = open(disk);
    turn.draining = true;
    let mut hands = Hands { letters: Dlq::open(disk.clone()).unwrap(), profile: None, inputs: VecDeque::new() };
    let mut inputs = VecDeque::from([enqueue("good", Some("waits".into()), json("{}"))]);
    let now = turn.state.last_at;
    turn.turn(now, &mut inputs, &mut hands).unwrap();
    turn.close().unwrap();
}

/// Closes the active segment, however little is in it, and begins the next one.
fn rotate(disk: &MemDisk) {
    let full = LogOptions { segment_max_bytes: 1, ..OPTIONS };
    let (mut log, _) = Log::open(disk.clone(), full, &mut |_, _| {}).unwrap();
    assert!(log.ensure(1024).unwrap());
    log.close().unwrap();
}

/// A run of the flow `good`, from its enqueue to its end, if the queue still knows the flow.
pub(crate) fn goes_on(disk: &MemDisk) -> bool {
    let mut turn = open(disk);
    let mut now = turn.state.last_at.plus(1_000_000);
    if turn.state.latest_flow("default", "good").is_none() {
        settle(&mut turn, disk, &mut now, [register("good", Digest([1; 32]))]);
    }
    let before = turn.state.totals.runs_succeeded;
    settle(&mut turn, disk, &mut now, [enqueue("good", None, json("{}"))]);
    let done = turn.state.totals.runs_succeeded > before;
    turn.close().unwrap();
    done
}

/// Every file below the folders of a queue, by path.
pub(crate) fn files(disk: &MemDisk) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders: Vec<String> = ["queue", "dlq", "idempotency", "store"].map(String::from).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in disk.list(&folder).unwrap() {
            let path = format!("{folder}/{}", entry.name);
            match entry.kind {
                Kind::Folder => folders.push(path),
                _ => files.push((path.clone(), read_whole(disk, &path, 1 << 30).unwrap())),
            }
        }
    }
    files.sort();
    files
}

/// Another disk with the same files.
pub(crate) fn copy(files: &[(String, Vec<u8>)]) -> MemDisk {
    let disk = MemDisk::default();
    for (path, bytes) in files {
        let (folder, _) = path.rsplit_once('/').unwrap();
        super::disk::create_folders(&disk, folder).unwrap();
        put(&disk, path, bytes);
    }
    disk
}

pub(crate) fn put(disk: &MemDisk, path: &str, bytes: &[u8]) {
    let file = disk.open(path, How::Replace).unwrap();
    disk.write_at(&file, 0, bytes).unwrap();
}
