//! A tenant whose steps do everything wrong beside one whose steps are good.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use tm_core::{
    api::{EnqueueRequest, Reply, Request, RunState},
    json::Json,
};
use tm_supervisor::daemon::Client;

use crate::{
    home::{Home, until},
    supervisor::Supervisor,
};

/// Good tasks in flight, each by a client of its own.
const CLIENTS: usize = 16;
/// Good tasks are measured in so many parts of so many; medians count.
const PARTS: usize = 3;
const GOOD: usize = 1_000;
/// More than end while the good ones are measured.
const HOSTILE: usize = 3_000;
/// Sixteen steps at once in each of two workers.
const MEMORY_MAX_MB: u64 = 1100;

/// The flows of the hostile tenant with what their tasks are told to do. In turn, so that every kind is there all the time.
const DEEDS: &[(&str, &str)] = &[
    ("hostile", r#"{"do":"spin","mb":12}"#),
    ("hostile", r#"{"do":"wait_for_cancel"}"#),
    ("hostile", r#"{"do":"hog"}"#),
    ("hostile", r#"{"do":"grow_small_pieces"}"#),
    ("memories", "{}"),
    ("tables", "{}"),
    ("start-spin", "{}"),
    ("hostile", r#"{"do":"output","bytes":250000}"#),
    ("hostile", r#"{"do":"output","bytes":1000000}"#),
    ("hostile", r#"{"do":"log_flood","bytes":1000000}"#),
    ("hostile", r#"{"do":"stdout_flood","bytes":1000000}"#),
    ("hostile", r#"{"do":"stderr_flood","bytes":1000000,"then_panic":true}"#),
    ("hostile", r#"{"do":"progress_flood","count":100000}"#),
    ("hostile", r#"{"do":"recurse"}"#),
    ("hostile", r#"{"do":"abort"}"#),
    ("hostile", r#"{"do":"fail","class":"fatal","bytes":4000}"#),
];
/// The components among them that are no `compute`.
const COMPONENTS: &[&str] = &["memories", "tables", "start-spin"];
/// How they end, unless their limit cuts what they gave and they succeed.
const CODES: &[&str] = &["HOSTILE", "MEMORY_EXCEEDED", "OUTPUT_TOO_LARGE", "STACK_OVERFLOW", "TIMEOUT", "TRAP"];

fn enqueue(tenant: &str, flow: &str, input: &str) -> Request {
    Request::Enqueue(Box::new(EnqueueRequest::of(tenant, flow, Json::parse(input).unwrap())))
}

#[derive(Debug)]
struct Measured {
    per_second: f64,
    p99_ms: f64,
}

/// Runs good tasks, one after the other per client, each measured from its enqueue to its durable result.
fn good_tasks(home: &Home) -> Measured {
    let mut parts: Vec<_> = (0..PARTS).map(|_| one_part(home)).collect();
    let mut median = |of: fn(&Measured) -> f64| {
        parts.sort_unstable_by(|one, other| of(one).total_cmp(&of(other)));
        of(&parts[PARTS / 2])
    };
    Measured { per_second: median(|part| part.per_second), p99_ms: median(|part| part.p99_ms) }
}

fn one_part(home: &Home) -> Measured {
    let begun = Instant::now();
    let mut took_ms: Vec<f64> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| one_client(home))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let per_second = took_ms.len() as f64 / begun.elapsed().as_secs_f64();
    took_ms.sort_unstable_by(f64::total_cmp);
    Measured { per_second, p99_ms: took_ms[took_ms.len() * 99 / 100] }
}

/// How long each of a client's tasks took, in milliseconds.
fn one_client(home: &Home) -> Vec<f64> {
    let mut client = Client::connect(&home.path("data/queue")).unwrap();
    let enqueue = enqueue("good", "good", r#"{"do":"hashmap"}"#);
    let one = |_| {
        let begun = Instant::now();
        let Reply::Enqueued { run } = client.call(&enqueue).unwrap() else { panic!("not enqueued") };
        match client.call(&Request::Wait { run }).unwrap() {
            Reply::Ended(end) if end.status == RunState::Succeeded => begun.elapsed().as_secs_f64() * 1e3,
            other => panic!("a good task did not succeed: {other:?}"),
        }
    };
    (0..GOOD / CLIENTS).map(one).collect()
}

/// Does something while the memory of the workers is watched; what that gave, and the most that all of them held, in MiB.
fn watched<T>(supervisor: u32, work: impl FnOnce() -> T) -> (T, u64) {
    let (most, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let done = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) {
                most.fetch_max(resident_kb_below(supervisor), SeqCst);
                thread::sleep(Duration::from_millis(5));
            }
        });
        let done = work();
        over.store(true, SeqCst);
        done
    });
    (done, most.load(SeqCst) >> 10)
}

/// The resident memory of all processes that a process started.
fn resident_kb_below(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // A thread may end while it is looked at.
    let children = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let pids = children.collect::<String>();
    let resident = |pid: &str| {
        let status = fs::read_to_string(Path::new("/proc").join(pid).join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    pids.split_whitespace().filter_map(resident).sum()
}

/// The two bounds that a start printed, in MiB: of the workers that were up, and of any.
fn printed(home: &Home) -> (u64, u64) {
    let said = fs::read_to_string(home.path("supervisor.log")).unwrap();
    let number = |before: &str| said.split_once(before).unwrap().1.split(' ').next().unwrap().parse().unwrap();
    (number(" with at most "), number(" never more than "))
}

fn hostile_home() -> Home {
    let home = Home::new();
    let tenants = "[tenants.\"good\"]\n[tenants.\"hostile\"]\n";
    home.write("trace_config.toml", format!("[workers]\nmemory_max = \"{MEMORY_MAX_MB}MiB\"\n{tenants}"));
    let limits = "limits: { memory_mb: 16, timeout_ms: 400, stack_kb: 256, output_kb: 256, log_kb: 16 }";
    home.flow("good", "compute", &["limits: { memory_mb: 16 }"]);
    home.flow("hostile", "compute", &[limits, "retries: { max_attempts: 1 }"]);
    for component in COMPONENTS {
        let text = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/guests/wat/{component}.wat"));
        home.write(&format!("guests/{component}.wasm"), wat::parse_file(text).unwrap());
        home.flow(component, component, &[limits, "retries: { max_attempts: 1 }"]);
    }
    home
}

/// The codes of all dead letters.
fn codes(home: &Home) -> BTreeSet<String> {
    let letters = home.tm(&["dlq", "ls", "--limit", "0"]).stdout;
    let code = |line: &str| {
        let letter: Value = serde_json::from_str(line).unwrap();
        let error = &letter["error"];
        error["last_code"].as_str().or(error["error_code"].as_str()).unwrap().to_owned()
    };
    letters.lines().map(code).collect()
}

#[test]
fn hostile_tasks_leave_another_tenant_its_share_and_the_pool_its_bound() {
    let home = hostile_home();
    // The start finds the flows of both tenants, so that its bound is that of a worker for each.
    let later = |flow: &str, tenant: &str| {
        home.enqueue(&format!("{flow}.yaml"), r#"{"do":"nothing"}"#, &["--tenant", tenant, "--delay", "1d"]);
    };
    later("good", "good");
    later("hostile", "hostile");
    COMPONENTS.iter().for_each(|component| later(component, "hostile"));
    let mut pool = Supervisor::start(&home, &["-n", "2"]);
    one_part(&home);
    let alone = good_tasks(&home);

    let hostile = (0..HOSTILE).map(|no| DEEDS[no % DEEDS.len()]).map(|(flow, deed)| enqueue("hostile", flow, deed));
    let mut client = Client::connect(&home.path("data/queue")).unwrap();
    client.pipeline(hostile, |_, reply| assert!(matches!(reply, Reply::Enqueued { .. }), "{reply:?}")).unwrap();
    until("a hostile task's end", || (pool.stats().totals.tasks_dead > 0).then_some(()));
    let (beside, beside_mb) = watched(pool.pid(), || good_tasks(&home));
    let left = pool.stats().ready;
    // Without others the hostile tenant has both workers.
    let (all, all_mb) = watched(pool.pid(), || {
        until("a hostile task's end of each kind", || Some(codes(&home)).filter(|codes| codes.len() == CODES.len()))
    });

    let (up_mb, any_mb) = printed(&home);
    println!("alone {alone:?}, beside {beside:?}, {left} left; {beside_mb} and {all_mb} MiB of {up_mb} and {any_mb}");
    assert!(left > 0, "the hostile tasks were over before the good ones");
    // Of a quiet machine scripts/bench asks 0.45 and 3.
    assert!(beside.per_second >= 0.3 * alone.per_second, "alone {alone:?}, beside {beside:?}");
    assert!(beside.p99_ms <= 6.0 * alone.p99_ms, "alone {alone:?}, beside {beside:?}");
    assert!(beside_mb <= up_mb && all_mb <= any_mb, "{beside_mb} and {all_mb} MiB of {up_mb} and {any_mb}");
    assert_eq!((any_mb, all.iter().map(String::as_str).collect::<Vec<_>>()), (MEMORY_MAX_MB, CODES.to_vec()));
    let totals = pool.stats().totals;
    assert_eq!((totals.redelivered, totals.runs_failed), (0, 0), "a hostile task took its worker along");
    pool.signal(Signal::KILL);
    assert!(!pool.wait().success());
}
