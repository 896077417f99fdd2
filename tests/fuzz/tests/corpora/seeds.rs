//! Where the first inputs come from: the golden log, the example flows, messages of every kind, guests in text form, and
//! what was made smaller of inputs that failed.
//!
//! `TM_FUZZ_SEEDS=1 cargo test -p tm-fuzz --test corpora seeds` writes them below `corpus`, as `seed-*`; nothing else does.

use std::{fs, path::Path};

use tm_core::{
    api::{DlqAction, DlqFilter, EnqueueRequest, ListRequest, RegisterRequest, Request, RunState},
    code::Class,
    id::{Digest, FlowNo, RunId, TaskRef},
    json::{Json, Payload},
    queue::{
        event::{Event, Frame},
        results::ResultsMark,
        run::FinishedRun,
    },
    record::codec,
    time::Millis,
    wire::{ArtifactEntry, Body, Confinement, Failure, FromWorker, Inspection, Outcome, Report, Required, Usage},
};
use tm_fuzz::{TARGETS, log::input_of};
use tm_supervisor::store::{
    disk::{MemDisk, read_whole},
    results::{ResultLine, ResultStore},
};

const SECRET: [u8; 16] = [7; 16];

type Seeds = Vec<(String, Vec<u8>)>;

#[test]
fn seeds_are_written_when_that_is_asked_for() {
    let made = [("client", client()), ("flow", flow()), ("gate", gate()), ("log", log()), ("wire", wire())];
    for (name, seeds) in made {
        let target = TARGETS.iter().find(|target| target.name == name).unwrap();
        for (file, bytes) in seeds {
            assert!(bytes.len() <= target.len_max, "{name}/{file}: {} bytes", bytes.len());
            if std::env::var_os("TM_FUZZ_SEEDS").is_some() {
                fs::create_dir_all(super::corpus(target)).unwrap();
                fs::write(super::corpus(target).join(format!("seed-{file}")), bytes).unwrap();
            }
        }
    }
}

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn files(folder: &str, ending: &str) -> Seeds {
    let mut files: Seeds = fs::read_dir(root().join(folder))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(ending) && entry.path().is_file())
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

fn flow() -> Seeds {
    let mut seeds = files("flows", ".yaml");
    let json = r#"{"flow":{"id":"j","steps":[{"id":"a","component":"a.wasm","input":{"x":[1,2.5,"{{ input }}"]}}]}}"#;
    let full = "\
flow:
  id: full
  version: 1.0
  run_timeout_ms: 60000
  steps:
    - { id: list, component: a.wasm, limits: { memory_mb: 16, fuel: 1000 } }
    - id: each
      component: b.wasm
      needs: [list]
      when: input.go
      for_each: ' steps.list.output '
      max_parallel: 8
      input: { path: '{{ item }}', n: 1.50, text: 'no {{ index }}' }
      retries: { base_ms: 7, factor: 2.5, max_attempts: 3 }
      grants:
        clocks: true
        env: [ LANG, { name: RATE, from: caller } ]
        files: [ { host: ., guest: /docs, mode: write, max_mb: 1 } ]
";
    let faulty = "\
flow:
  id: f
  verzion: 2
  steps:
    - id: a
      component: x
      need: [b]
      limits: { fuel: 0, memory_mb: 5000000000 }
      when: '1 +'
    - 7
";
    let more = [
        ("json", json),
        ("full.yaml", full),
        ("faulty.yaml", faulty),
        ("syntax.yaml", "flow: [\n"),
        // What has failed once.
        ("carriage-return.yaml", "flow:\r  id: f\r  stepz: []\r"),
        ("no-place.yaml", "\t!a\t!a"),
    ];
    seeds.extend(more.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec())));
    seeds
}

fn gate() -> Seeds {
    let mut seeds = Seeds::new();
    for name in ["echo", "instances", "memories", "tables", "module", "no-export", "wrong-type", "wants-sockets"] {
        let bytes = wat::parse_file(root().join(format!("tests/guests/wat/{name}.wat"))).unwrap();
        if name == "echo" {
            for part in [4, 2] {
                seeds.push((format!("echo-cut-{part}.wasm"), bytes[..bytes.len() / part].to_vec()));
            }
        }
        seeds.push((format!("{name}.wasm"), bytes));
    }
    seeds.push(("script".to_owned(), b"#!/bin/sh\n".to_vec()));
    seeds
}

/// Room is only newlines: without it an input says the same.
fn without_room(mut files: Seeds) -> Seeds {
    for (name, bytes) in &mut files {
        if name.ends_with(".log") {
            let end = bytes.iter().rposition(|&byte| byte != b'\n').map_or(0, |last| last + 2);
            bytes.truncate(end);
        }
    }
    files
}

fn sealed(rest: &str) -> Vec<u8> {
    format!("{{\"c\":\"{:08x}\",{rest}\n", crc32c::crc32c(rest.as_bytes())).into_bytes()
}

/// A segment of results with its index.
fn results() -> (Vec<u8>, Vec<u8>) {
    let disk = MemDisk::default();
    let mut store = ResultStore::write(disk.clone(), SECRET, &ResultsMark::default(), 1 << 20).unwrap();
    let run = |no: u32| FinishedRun {
        id: RunId(no.into()),
        flow: FlowNo(1),
        state: RunState::Succeeded,
        priority: 5,
        enqueued_at: Millis(1),
        ended_at: Millis(2),
        expires_at: Millis(9_000_000),
        output: Some(Payload::Inline(Json::of(&format!("output {no}")))),
        key: no.is_multiple_of(2).then(|| format!("order-{no}")),
        input_digest: None,
        exec_ms: 1,
        letter: None,
        tasks: Vec::new(),
    };
    let runs: Vec<FinishedRun> = (1..=5).map(run).collect();
    store.append(runs.iter().map(|run| ResultLine { tenant: "default", flow: "f", run })).unwrap();
    store.close().unwrap();
    let file = |path: &str| read_whole(&disk, path, 1 << 20).unwrap();
    (file("queue/results-000001.log"), file("queue/results-000001.idx"))
}

fn log() -> Seeds {
    let golden = without_room(files("tests/golden/log-v1", ""));
    let mut last_missing = golden.clone();
    last_missing.retain(|(name, _)| name != "segment-000002.log");
    let line = |sequence: u64, event: Event| {
        let mut line = Vec::new();
        codec::encode(&Frame { at: Millis(5), events: vec![event] }, sequence, &mut line);
        line
    };
    let filed = |sequence: u64| line(sequence, Event::Filed { entry: format!("dlq-{sequence}-a") });
    let created = line(1, Event::Created { secret: SECRET, format: 1 });
    let newer = line(4, Event::Created { secret: SECRET, format: 2 });
    let one = |parts: &[&[u8]]| input_of(&[("segment-000001.log".to_owned(), parts.concat())]);
    let mut bad = filed(3);
    bad[30] ^= 1;
    let torn = &filed(4)[..20];
    let segments = |parts: &[(u64, &[u8])]| {
        let files = parts.iter().map(|(no, bytes)| (format!("segment-{no:06}.log"), bytes.to_vec()));
        input_of(&files.collect::<Seeds>())
    };
    let (first, second) = ([created.clone(), filed(2), filed(3)].concat(), [filed(4), filed(5)].concat());
    let other = [created.clone(), filed(2)].concat();
    let last_gone = |parts: &[&[u8]]| {
        let active = parts.len() + 1;
        let meta = sealed(&format!(r#""format":1,"oldest_segment":1,"active_segment":{active},"room_bytes":0}}"#));
        let parts: Vec<_> = (1..).zip(parts.iter().copied()).collect();
        [b"==> queue.meta <==\n", meta.as_slice(), b"\n", &segments(&parts)].concat()
    };
    let told_by_foreign = [created.clone(), bad.clone(), filed(4), filed(6), filed(3), filed(5)].concat();
    let foreign_first = [bad.clone(), filed(900), filed(4), filed(5)].concat();
    let mut foreign = segments(&[(1, &first), (2, &second), (3, &other)]);
    foreign.extend_from_slice(b"\n==> accepted.json <==\n");
    foreign.extend(sealed(r#""lost":[[2,2]],"segments":[[4,5]]}"#));
    let kept = |oldest: u64, segment: u64, bytes: u64| {
        line(3, Event::ResultsKept(Box::new(ResultsMark { oldest, segment, bytes, ..ResultsMark::default() })))
    };
    let (results, index) = results();
    let half = results[..results.len() / 2].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
    let (one_half, other_half) = results.split_at(half);
    let with_results = |kept: Vec<u8>, parts: &[(&str, &[u8])]| {
        let log = ("segment-000001.log".to_owned(), [created.clone(), filed(2), kept].concat());
        let parts = parts.iter().map(|(name, bytes)| (format!("results-{name}"), bytes.to_vec()));
        input_of(&std::iter::once(log).chain(parts).collect::<Seeds>())
    };
    let whole = || kept(0, 1, results.len() as u64);
    let stranger = sealed(r#""tenant":"default","flow":"f","run":{"id":7,"cost":"much"}}"#);
    let seeds = [
        ("results", with_results(whole(), &[("000001.log", &results), ("000001.idx", &index)])),
        ("results-two", with_results(kept(1, 2, 9), &[("000001.log", one_half), ("000002.log", other_half)])),
        ("results-gone", with_results(kept(2, 2, 0), &[("000001.log", one_half), ("000002.log", other_half)])),
        ("results-lost", with_results(whole(), &[("000001.log", one_half), ("000001.idx", &index)])),
        ("results-newer", with_results(whole(), &[("000001.log", &[&results, stranger.as_slice()].concat())])),
        ("results-impossible", with_results(kept(1, u64::MAX, u64::MAX), &[("000001.log", &results)])),
        ("golden", input_of(&golden)),
        ("golden-last-missing", input_of(&last_missing)),
        ("whole", one(&[&first, b"\n\n\n"])),
        ("torn", one(&[&first, torn, b"\n\n"])),
        ("damaged", one(&[&created, &filed(2), &bad, &filed(4), &filed(5)])),
        ("gap-and-doubled", one(&[&created, &filed(2), &filed(5), &filed(5), &filed(6)])),
        ("newer", one(&[&first, &newer])),
        ("foreign", foreign),
        // What has failed once.
        ("doubled-at-the-end", one(&[&created, &filed(2), &filed(3), &created])),
        ("held-before-doubled", one(&[&created, &filed(2), &filed(5), &filed(5), &created])),
        ("index-without-segment", input_of(&[("segment-000001.idx".to_owned(), b"{\"c\":".to_vec())])),
        ("foreign-among-missing", segments(&[(1, &first), (3, &other), (9, &second)])),
        ("same-first-record", segments(&[(1, &first), (3, &other), (4, &second)])),
        ("begun-behind-damage", segments(&[(1, &[first.as_slice(), torn].concat()), (2, b"")])),
        ("told-by-foreign", last_gone(&[&told_by_foreign])),
        ("foreign-first", last_gone(&[&first, &foreign_first])),
        ("number-without-next", segments(&[(1, &first), (u64::MAX, &second)])),
    ];
    seeds.map(|(name, bytes)| (name.to_owned(), bytes)).into()
}

fn task(item: Option<u32>) -> TaskRef {
    TaskRef { run: RunId(0x0123_4567_89AB_CDEF_0123_4567_89AB_CDEF), step: 1, item }
}

fn report(outcome: Outcome) -> FromWorker {
    let usage = Usage { fuel: 12_345, peak_memory_bytes: 65_536, exec_us: 789 };
    FromWorker::Report(Box::new(Report { task: task(Some(2)), attempt: 3, outcome, usage, log: "a line\n".into() }))
}

fn bytes_of(packet: &[FromWorker]) -> Vec<u8> {
    packet.iter().flat_map(|message| tm_core::wire::codec::write(message).unwrap()).collect()
}

fn wire() -> Seeds {
    let json = |text: &str| Body::Inline(Json::parse(text).unwrap());
    let artifacts = vec![ArtifactEntry { name: "a/b.html".into(), size_bytes: 3 }];
    let failure = Failure {
        by_host: false,
        class: Class::RateLimited,
        code: "LATER".into(),
        message: "not \u{1b}[31mnow\n".into(),
        retry_after_ms: Some(5),
    };
    let ready = Confinement {
        landlock_abi: Some(7),
        seccomp: true,
        missing: vec!["nothing".into()],
        memory_bound_bytes: 1 << 30,
        compatibility: "00ff".into(),
    };
    let inspection = Inspection {
        digest: Digest::of(b"component"),
        imports: vec!["wasi:io/streams@0.2.6".into()],
        import_faults: vec!["imports nothing of its type".into()],
        exports: vec!["tracemind:flow/step@0.1.0".into()],
        required: Required { core_instances: 4, memories: 1, ..Required::default() },
    };
    let packets = vec![
        ("start", vec![FromWorker::Ready(ready), FromWorker::Loaded { component: 1 }]),
        ("unable", vec![FromWorker::Unable { reason: "seccomp: no".into() }]),
        (
            "beat",
            vec![
                FromWorker::Heartbeat { running: 2, memory_bytes: 1 << 26 },
                FromWorker::Progress { task: task(None), attempt: 1, percent: 40, message: Some("half".into()) },
            ],
        ),
        (
            "reports",
            vec![
                report(Outcome::Succeeded { output: json(r#"{"a":[1,2.50,"x"]}"#), artifacts }),
                report(Outcome::Failed(failure)),
                report(Outcome::NotStarted { reason: "no room".into() }),
            ],
        ),
        ("large", vec![report(Outcome::Succeeded { output: Body::Fd { size_bytes: 70_000 }, artifacts: vec![] })]),
        (
            "compile",
            vec![
                FromWorker::Inspected(Box::new(inspection)),
                FromWorker::Compiled { size_bytes: 900, compatibility: "00ff".into() },
                FromWorker::CompileFailed { code: "COMPILE_LIMIT".into(), message: "too long".into() },
                FromWorker::LoadFailed { component: 1, reason: "other engine".into() },
            ],
        ),
    ];
    let mut seeds: Seeds = packets.into_iter().map(|(name, packet)| (name.to_owned(), bytes_of(&packet))).collect();
    seeds.extend([("empty".to_owned(), Vec::new()), ("no-message".to_owned(), b"{\"Loaded\":{}}".to_vec())]);
    seeds
}

fn client() -> Seeds {
    let id = || "01HZ".to_owned();
    let run = RunId(0x0123_4567_89AB_CDEF_0123_4567_89AB_CDEF);
    let enqueue = EnqueueRequest {
        idempotency_key: Some("order-1".into()),
        headers: Some(Json::parse(r#"{"a": 1}"#).unwrap()),
        trace: Some(Json::parse(r#"{"traceparent":"00-x"}"#).unwrap()),
        at: Some(Millis(1_800_000_000_000)),
        delay_ms: Some(5),
        priority: Some(9),
        env: vec![("RATE".into(), "0.05".into())],
        ..EnqueueRequest::of("default", "hello", Json::parse(r#"{"name":"x"}"#).unwrap())
    };
    let register = RegisterRequest {
        tenant: "default".into(),
        text: "flow: { id: f, steps: [ { id: a, component: a.wasm } ] }\n".into(),
        path: "/srv/f.yaml".into(),
        components: vec!["/srv/a.wasm".into()],
    };
    let action = DlqAction { pattern: "dlq-1*".into(), all: true, ..DlqAction::default() };
    let key = || ("default".to_owned(), "hello".to_owned());
    let requests = [
        Request::Ping,
        Request::Register(Box::new(register)),
        Request::FlowEnv { tenant: key().0, flow: key().1 },
        Request::Enqueue(Box::new(enqueue)),
        Request::Wait { run },
        Request::Stats,
        Request::List(ListRequest { state: Some("all".into()), flow: None, limit: 20, below: None }),
        Request::Show { id: id() },
        Request::Result { id: id() },
        Request::Cancel { id: id() },
        Request::ForgetKey { tenant: key().0, flow: key().1, key: "order-1".into() },
        Request::DlqList(DlqFilter { since: Some(Millis(5)), limit: 20, ..DlqFilter::default() }),
        Request::DlqShow { entry: "dlq-1-a".into() },
        Request::DlqRequeue(action.clone()),
        Request::DlqPurge(action),
        Request::Workers,
        Request::Counters,
    ];
    let lines: Vec<Vec<u8>> =
        requests.iter().map(|request| [serde_json::to_vec(request).unwrap().as_slice(), b"\n"].concat()).collect();
    vec![
        ("all".to_owned(), lines.concat()),
        ("enqueue".to_owned(), lines[3].clone()),
        ("register-twice".to_owned(), [lines[1].clone(), lines[1].clone()].concat()),
        ("no-request".to_owned(), b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("unfinished".to_owned(), lines[3][..40].to_vec()),
    ]
}
