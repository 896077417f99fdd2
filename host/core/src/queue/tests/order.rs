//! Whose task is next: priorities within a tenant, turns between tenants.

use super::*;

#[test]
fn larger_priority_first_then_older() {
    let mut bench = Bench::new(vec![flow("one", vec![step("s", &[])]), flow("two", vec![step("s", &[])])]);
    let mut ask = |flow: &str, priority| {
        bench.now = bench.now.plus(1);
        run_of(&bench.ask(EnqueueRequest { priority: Some(priority), ..request(flow) }))
    };
    let (low, old, urgent, young) = (ask("one", 2), ask("one", 5), ask("two", 9), ask("two", 5));
    let order: Vec<RunId> = bench.lease(1, 9).into_iter().map(|lease| lease.task.run).collect();
    assert_eq!(order, [urgent, old, young, low]);
}

#[test]
fn what_came_in_one_millisecond_starts_as_it_came() {
    let mut bench = Bench::new(vec![flow("one", vec![step("s", &[])])]);
    let asked: Vec<RunId> = (0..50).map(|_| run_of(&bench.ask(request("one")))).collect();
    let order: Vec<RunId> = bench.lease(1, 50).into_iter().map(|lease| lease.task.run).collect();
    assert_eq!(order, asked);
}

#[test]
fn a_tenant_with_100_000_tasks_does_not_keep_another_waiting() {
    let mut bench = Bench::new(vec![flow("one", vec![step("s", &[])])]);
    bench.register("other", flow("one", vec![step("s", &[])]));
    for _ in 0..100_000 {
        let ask = request("one");
        let input = Payload::Inline(ask.input.clone());
        let world = World {
            policy: &bench.policy,
            evaluate: &Paths,
            blobs: &NoBlobs,
            results: &NoResults,
            now: bench.now,
            sequence: bench.state.runs.len() as u64 + 10,
        };
        decide(&mut bench.state, world, Input::Enqueue { ticket: Ticket(1), request: Box::new(ask), input });
    }
    let (mine, theirs) = (bench.profile("default"), bench.profile("other"));
    let slot = |profile, worker| Slot { worker: WorkerId(worker), profile, free: 1, idle: true };
    let lone = run_of(&bench.ask(EnqueueRequest { tenant: "other".into(), ..request("one") }));
    let mut fair = core::mem::take(&mut bench.fair);
    let world = World {
        policy: &bench.policy,
        evaluate: &Paths,
        blobs: &NoBlobs,
        results: &NoResults,
        now: bench.now,
        sequence: 1_000_000,
    };
    let mut slots = vec![slot(mine, 1), slot(mine, 2), slot(theirs, 3)];
    let step = decide::lease(&mut bench.state, world, &mut fair, &mut slots, 2, &|_, _| Runnable::Yes);
    let started: Vec<RunId> = step
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Start { task, .. } => Some(task.run),
            _ => None,
        })
        .collect();
    assert!(started.contains(&lone), "it starts within two tasks");
}

#[test]
fn what_the_host_cannot_run_now_waits_and_holds_nobody_else_up() {
    let mut bench = Bench::new(vec![flow("held", vec![step("s", &[])]), flow("free", vec![step("s", &[])])]);
    let (held, free) = (bench.enqueue("held"), bench.enqueue("free"));
    let held_flow = bench.state.runs[&held].flow;
    let (mut fair, mut slots) = (
        FairOrder::default(),
        vec![Slot { worker: WorkerId(1), profile: bench.profile("default"), free: 2, idle: true }],
    );
    let runnable = |flow, _| if flow == held_flow { Runnable::Held { why: "no memory".into() } } else { Runnable::Yes };
    bench.make(|state, world| decide::lease(state, world, &mut fair, &mut slots, 9, &runnable));
    assert!(matches!(bench.phase(single(held)), Phase::Ready { .. }) && bench.state.letters.is_empty());
    assert!(matches!(bench.phase(single(free)), Phase::Leased { .. }));
}

#[test]
fn a_delayed_run_is_ready_at_its_time_and_not_before() {
    let mut bench = Bench::new(vec![flow("one", vec![step("s", &[])])]);
    let at = bench.now.plus(500);
    bench.ask(EnqueueRequest { at: Some(at), ..request("one") });
    assert_eq!((bench.lease(1, 1), bench.state.next_deadline()), (vec![], Some(at)));
    bench.now = at;
    assert_eq!(bench.lease(1, 1).len(), 1);
}

#[test]
fn a_wall_that_was_set_forward_ends_no_backoff_and_is_followed_by_what_waits_for_it() {
    let mut bench = Bench::new(vec![flow("one", vec![step("s", &[])])]);
    bench.enqueue("one");
    let failing = bench.lease(1, 1)[0];
    bench.fail(failing, Class::Retryable);
    bench.ask(EnqueueRequest { delay_ms: Some(3_600_000), ..request("one") });
    bench.wait(150);
    bench.state.clock_moved(3_600_000, 0);
    bench.wait(3_600_000);
    let waited = bench.lease(1, 9);
    assert!(waited.len() == 1 && waited[0].task != failing.task, "{waited:?}");
    bench.wait(49);
    assert_eq!(bench.lease(1, 9), []);
    bench.wait(1);
    assert_eq!(bench.lease(1, 9).iter().map(|lease| lease.task).collect::<Vec<_>>(), [failing.task]);
}

#[test]
fn a_wall_that_was_set_back_is_waited_for_and_holds_back_no_backoff() {
    let mut bench = Bench::new(vec![flow("one", vec![step("s", &[])])]);
    let at = bench.now.plus(500);
    bench.ask(EnqueueRequest { at: Some(at), ..request("one") });
    bench.state.clock_moved(0, 60_000);
    bench.wait(500);
    assert_eq!((bench.lease(1, 1), bench.state.next_deadline()), (vec![], Some(at.plus(60_000))));
    bench.enqueue("one");
    let failing = bench.lease(1, 1)[0];
    bench.fail(failing, Class::Retryable);
    bench.wait(200);
    assert_eq!(bench.lease(1, 1)[0].task, failing.task);
    let wall = bench.state.wall(bench.now);
    for (at, delay_ms) in [(Some(wall.plus(100)), None), (None, Some(100))] {
        bench.ask(EnqueueRequest { at, delay_ms, ..request("one") });
    }
    assert_eq!(bench.lease(1, 9), []);
    bench.wait(100);
    assert_eq!(bench.lease(1, 9).len(), 2);
    // A later start finds the same times in the log, and the clock as it is then.
    let mut replayed = bench.replayed();
    assert_eq!(replayed.next_deadline(), Some(at));
    replayed.clock_moved(0, 60_000);
    assert_eq!(replayed.next_deadline(), Some(at.plus(60_000)));
}

#[test]
fn beyond_hard_depth_enqueues_are_refused_with_a_time_to_come_again() {
    let mut bench = Bench::new(vec![flow("one", vec![step("s", &[])])]);
    bench.policy.hard_depth = 1;
    bench.enqueue("one");
    let Reply::Error(error) = bench.ask(request("one")) else { panic!("refused") };
    assert_eq!((error.code.as_deref(), error.retry_after_ms.is_some()), (Some("QUEUE_FULL"), true));
    bench.run_all("1");
    bench.enqueue("one");
}

#[test]
fn what_is_not_an_enqueue_is_refused_and_writes_nothing() {
    let mut bench = Bench::new(vec![flow("one", vec![step("s", &[])])]);
    let frames = bench.log.len();
    let list = EnqueueRequest { input: Json::parse("[1]").expect("JSON"), ..request("one") };
    let headers = EnqueueRequest { headers: Json::parse("3").ok(), ..request("one") };
    let priority = EnqueueRequest { priority: Some(10), ..request("one") };
    let key = EnqueueRequest { idempotency_key: Some(String::new()), ..request("one") };
    for bad in [list, headers, priority, key, request("on")] {
        message_of(&bench.ask(bad));
    }
    assert_eq!(bench.log.len(), frames);
}
