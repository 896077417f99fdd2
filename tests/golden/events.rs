//! One of every kind of event, with every optional field once present and once absent.

use tm_core::{
    api::{RunState, Totals},
    backoff::RetryPolicy,
    code::Class,
    flow::spec::{EnvFrom, EnvSource, EnvSpec, FilesSpec, FlowDef, GrantsDef, Mode, StepDef},
    id::{Digest, FlowNo, RunId, TaskRef, WorkerId},
    json::{BlobRef, Json, Payload},
    limits::Limits,
    queue::{
        event::{Dead, Enqueued, Event, Frame, ReleaseReason, RetryScheduled, Succeeded},
        results::ResultsMark,
        run::{
            AttemptRecord, Due, Fan, FinishedRun, Letter, Phase, Run, RunExtra, StepDone, StepRun, Success, Task,
            TaskEnd,
        },
    },
    time::Millis,
    wire::{ArtifactEntry, Required, Usage},
};

pub(crate) const AT: Millis = Millis(1_800_000_000_000);
const RUN: RunId = RunId(0x0123_4567_89AB_CDEF_0123_4567_89AB_CDEF);
const TASK: TaskRef = TaskRef { run: RUN, step: 0, item: None };
const ITEM: TaskRef = TaskRef { run: RUN, step: 1, item: Some(2) };
const WORKER: WorkerId = WorkerId(3);
const USAGE: Usage = Usage { fuel: 12_345, peak_memory_bytes: 65_536, exec_us: 789 };

/// Kinds of events in format 1.
pub(crate) const KINDS: usize = 27;

/// The place of the event's kind. A new kind does not compile until it stands here and in [`frames`].
pub(crate) fn kind(event: &Event) -> usize {
    match event {
        Event::Created { .. } => 0,
        Event::FlowRegistered { .. } => 1,
        Event::Enqueued(_) => 2,
        Event::Deduplicated { .. } => 3,
        Event::Leased { .. } => 4,
        Event::Succeeded(_) => 5,
        Event::RetryScheduled(_) => 6,
        Event::Released { .. } => 7,
        Event::Lost { .. } => 8,
        Event::Dead(_) => 9,
        Event::StepReady { .. } => 10,
        Event::StepFanned { .. } => 11,
        Event::FanDone { .. } => 12,
        Event::StepSkipped { .. } => 13,
        Event::Stalled { .. } => 14,
        Event::RunEnded { .. } => 15,
        Event::Filed { .. } => 16,
        Event::Requeued { .. } => 17,
        Event::Purged { .. } => 18,
        Event::KeyForgotten { .. } => 19,
        Event::RunSnapshot(_) => 20,
        Event::TotalsSnapshot(_) => 21,
        Event::KeyFreed { .. } => 22,
        Event::ResultsKept(_) => 23,
        Event::ResultsDropped { .. } => 24,
        Event::StepDue { .. } => 25,
        Event::FanInputs { .. } => 26,
    }
}

pub(crate) fn frames() -> Vec<Frame> {
    let groups = vec![
        vec![Event::Created { secret: [7; 16], format: 1 }],
        vec![Event::FlowRegistered { no: FlowNo(1), tenant: "default".into(), def: Box::new(flow()) }],
        vec![Event::Enqueued(Box::new(enqueued(false)))],
        vec![Event::Enqueued(Box::new(enqueued(true))), Event::Deduplicated { run: RUN }],
        vec![
            Event::Leased { task: TASK, attempt: 1, worker: WORKER },
            Event::Leased { task: ITEM, attempt: u32::MAX, worker: WorkerId(u64::MAX) },
        ],
        vec![Event::RetryScheduled(Box::new(RetryScheduled {
            task: ITEM,
            attempt: 1,
            ready_at: AT.plus(200),
            class: Class::RateLimited,
            code: "RATE_LIMITED".into(),
            message: "later \"please\"\n\u{1F40C}".into(),
            counted: false,
            usage: USAGE,
        }))],
        vec![
            Event::Released { task: TASK, attempt: 1, reason: ReleaseReason::Shutdown },
            Event::Released { task: TASK, attempt: 2, reason: ReleaseReason::NotStarted },
            Event::Lost { task: TASK, attempt: 3, counted: true },
        ],
        vec![
            Event::Succeeded(Box::new(succeeded(true))),
            Event::StepReady { run: RUN, step: 2, input: Some(json("{\"from\":[1,2.50,\"x\"]}")) },
            Event::StepReady { run: RUN, step: 3, input: None },
            Event::StepFanned { run: RUN, step: 1, from: 0, inputs: vec![json("1"), json("\"two\""), blob()] },
            Event::StepSkipped { run: RUN, step: 3 },
        ],
        vec![
            Event::Succeeded(Box::new(succeeded(false))),
            Event::FanDone { run: RUN, step: 1, output: json("[1,2,3]") },
        ],
        vec![Event::Dead(Box::new(dead(false))), Event::Dead(Box::new(dead(true))), Event::Stalled { run: RUN }],
        vec![Event::Filed { entry: "dlq-1800000000000-a".into() }],
        vec![Event::Requeued { entry: "dlq-1800000000000-a".into(), task: TASK }],
        vec![Event::Purged { entry: "dlq-1800000000000-b".into(), task: ITEM }],
        vec![
            Event::RunEnded {
                run: RUN,
                state: RunState::Succeeded,
                output: Some(blob()),
                step: None,
                expires_at: AT.plus(3_600_000),
            },
            Event::RunEnded { run: RUN, state: RunState::Cancelled, output: None, step: Some(0), expires_at: AT },
        ],
        vec![Event::KeyForgotten { tenant: "default".into(), flow: "hello".into(), key: "order-1".into() }],
        vec![Event::RunSnapshot(Box::new(run()))],
        vec![
            Event::KeyFreed { run: RUN, until: AT.plus(3_600_000) },
            Event::ResultsKept(Box::new(ResultsMark { oldest: 2, dropped: [4, 7].into(), segment: 9, bytes: 512 })),
            Event::ResultsDropped { segment: 2 },
        ],
        vec![Event::TotalsSnapshot(Box::new(totals()))],
        vec![Event::StepDue { run: RUN, step: 1 }, Event::StepDue { run: RUN, step: 2 }],
        vec![Event::FanInputs { run: RUN, step: 1, from: 0, inputs: vec![json("1"), blob()] }],
        vec![Event::StepFanned { run: RUN, step: 1, from: 2, inputs: vec![json("[]")] }],
        vec![Event::RunSnapshot(Box::new(due()))],
    ];
    (0..).zip(groups).map(|(n, events)| Frame { at: AT.plus(n), events }).collect()
}

fn json(text: &str) -> Payload {
    Payload::Inline(Json::parse(text).expect("valid JSON"))
}

fn raw(text: &str) -> Json {
    Json::parse(text).expect("valid JSON")
}

fn blob() -> Payload {
    Payload::Blob(Box::new(BlobRef { digest: Digest::of(b"blob"), size_bytes: 70_000 }))
}

fn flow() -> FlowDef {
    let step = |id: &str, full: bool| StepDef {
        id: id.into(),
        component: Digest::of(id.as_bytes()),
        required: if full {
            Required {
                core_instances: 4,
                memories: 1,
                tables: 2,
                table_elements_max: 10_000,
                memory_min_bytes: 1_114_112,
                instance_bytes: 4096,
            }
        } else {
            Required::default()
        },
        needs: if full { vec![0] } else { vec![] },
        when: full.then(|| "input.go".into()),
        for_each: full.then(|| "steps.list.output".into()),
        max_parallel: 8,
        input: full.then(|| raw("{\"page\":\"{{ item }}\"}")),
        limits: Limits::DEFAULT,
        retries: RetryPolicy::default(),
        grants: if full { grants() } else { GrantsDef::default() },
    };
    FlowDef {
        id: "hello".into(),
        version: Some("1.0".into()),
        run_timeout_ms: Some(60_000),
        digest: Digest::of(b"flow"),
        steps: vec![step("list", false), step("render", true)],
        caller_env: vec!["FAIL_RATE".into()],
    }
}

fn grants() -> GrantsDef {
    GrantsDef {
        files: vec![
            FilesSpec { host: "/srv/docs".into(), guest: "/docs".into(), mode: Mode::Read, max_mb: 64 },
            FilesSpec { host: "/srv/out".into(), guest: "/out".into(), mode: Mode::Write, max_mb: 1 },
        ],
        env: vec![
            EnvSpec::Host("LANG".into()),
            EnvSpec::From(EnvFrom { name: "FAIL_RATE".into(), from: EnvSource::Caller }),
        ],
        scratch: true,
        artifacts: true,
        clocks: false,
        random: true,
    }
}

fn enqueued(full: bool) -> Enqueued {
    Enqueued {
        run: RUN,
        flow: FlowNo(1),
        input: if full { blob() } else { json("{}") },
        priority: 5,
        key: full.then(|| "order-1".into()),
        input_digest: full.then(|| Digest::of(b"input")),
        headers: full.then(|| raw("{\"a\":1}")),
        trace: full.then(|| raw("{\"traceparent\":\"00-x\"}")),
        env: if full { vec![("FAIL_RATE".into(), "0.05".into())] } else { vec![] },
        ready_at: full.then(|| AT.plus(5)),
    }
}

fn succeeded(full: bool) -> Succeeded {
    let artifacts = if full { vec![ArtifactEntry { name: "a/b.html".into(), size_bytes: 3 }] } else { vec![] };
    Succeeded { task: if full { TASK } else { ITEM }, attempt: 4, output: json("null"), usage: USAGE, artifacts }
}

fn dead(full: bool) -> Dead {
    Dead {
        task: ITEM,
        attempt: if full { 5 } else { 0 },
        entry: "dlq-1800000000000-b".into(),
        code: if full { "RETRIES_EXHAUSTED" } else { "TEMPLATE_ERROR" }.into(),
        message: "m".into(),
        reason: if full { "max_attempts" } else { "non_retryable" }.into(),
        last_code: full.then(|| "TRAP".into()),
        usage: USAGE,
    }
}

fn letter(full: bool) -> Letter {
    Letter {
        entry: "dlq-1800000000000-a".into(),
        at: AT,
        attempt: 5,
        failures: 5,
        code: "RETRIES_EXHAUSTED".into(),
        message: "m".into(),
        reason: "max_attempts".into(),
        last_code: full.then(|| "TRAP".into()),
        filed: full,
    }
}

fn attempt(full: bool) -> AttemptRecord {
    AttemptRecord {
        attempt: 1,
        started_at: AT,
        ended_at: full.then(|| AT.plus(9)),
        worker: WORKER,
        outcome: if full { "retry".into() } else { String::new() },
        code: full.then(|| "TRAP".into()),
        usage: USAGE,
    }
}

fn end(item: Option<u32>) -> TaskEnd {
    let earlier = item.map(|_| attempt(true)).into_iter().collect();
    TaskEnd { item, last: attempt(true), earlier }
}

fn run() -> Run {
    let task = |phase| Task::new(json("{}"), phase);
    let tried = Task {
        attempt: 2,
        failures: 1,
        lost_in_company: 1,
        suspect: true,
        attempts: [attempt(true), attempt(false)].into_iter().collect(),
        ..task(Phase::Leased { worker: WORKER })
    };
    let artifacts = vec![ArtifactEntry { name: "a".into(), size_bytes: 1 }];
    let fan = Fan {
        tasks: vec![
            task(Phase::Held),
            task(Phase::Ready { since: AT }),
            task(Phase::Delayed { ready_at: AT.plus(1) }),
            task(Phase::Succeeded(Box::new(Success { output: json("1"), artifacts }))),
            task(Phase::Succeeded(Box::new(Success { output: blob(), artifacts: vec![] }))),
            task(Phase::Dead(Box::new(letter(true)))),
        ],
        next: 1,
        succeeded: 2,
        dead: 1,
        output_bytes: 70_001,
    };
    let done = |full: bool| StepDone {
        output: full.then(|| json("[1]")),
        items: full.then_some(1),
        tasks: vec![end(full.then_some(0))],
    };
    Run {
        id: RUN,
        flow: FlowNo(1),
        state: RunState::Stalled,
        priority: 9,
        enqueued_at: AT,
        input: json("{\"deep\":{\"er\":[true,null]}}"),
        extra: Some(Box::new(RunExtra {
            key: Some("order-1".into()),
            input_digest: Some(Digest::of(b"input")),
            headers: Some(raw("{}")),
            trace: Some(raw("{}")),
            env: vec![("A".into(), "b".into())],
            ready_at: Some(AT),
            requeued_at: None,
        })),
        steps: vec![
            StepRun::Waiting,
            StepRun::Single(Box::new(tried)),
            StepRun::Fan(Box::new(fan)),
            StepRun::Skipped,
            StepRun::Done(Box::new(done(true))),
            StepRun::Done(Box::new(done(false))),
            StepRun::Faulted(Box::new(letter(false))),
        ]
        .into(),
        home: 0,
    }
}

/// A run of which two inputs are made beside the loop.
fn due() -> Run {
    let said = Due { inputs: vec![json("1"), blob()] };
    let steps = [StepRun::Due(Box::new(said)), StepRun::Due(Box::default())];
    Run { state: RunState::Active, extra: None, steps: steps.into_iter().collect(), ..run() }
}

pub(crate) fn finished(full: bool) -> FinishedRun {
    FinishedRun {
        id: RUN,
        flow: FlowNo(1),
        state: if full { RunState::Failed } else { RunState::Succeeded },
        priority: 5,
        enqueued_at: AT,
        ended_at: AT.plus(100),
        expires_at: AT.plus(3_600_000),
        output: full.then(|| json("{}")),
        key: full.then(|| "order-1".into()),
        input_digest: full.then(|| Digest::of(b"input")),
        exec_ms: 90,
        letter: full.then(|| Box::new(letter(true))),
        tasks: vec![(0, end(None)), (1, end(Some(2)))],
    }
}

fn totals() -> Totals {
    Totals {
        runs_enqueued: 1,
        runs_succeeded: 2,
        runs_failed: 3,
        runs_cancelled: 4,
        tasks_started: 5,
        tasks_succeeded: 6,
        tasks_dead: 7,
        retries: 8,
        redelivered: 9,
        idempotency_hits: 10,
        dlq_requeued: 11,
        dlq_purged: 12,
        orphans: 13,
        refused_reports: 14,
    }
}
