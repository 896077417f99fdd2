//! Clients against a running edge: order, bounds, descriptors, ends.

use super::*;
use crate::daemon::{
    connection::IN_FLIGHT_MAX,
    edge::{Edge, Incoming, connection_of},
    fair::RoundRobin,
};
use std::{
    fs::File,
    io::{Read, Write as _},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::{Duration, Instant},
};
use tm_core::api::{DlqOutcome, ErrorKind, RegisterRequest};

const SOON: Duration = Duration::from_secs(20);

struct Case {
    folder: tempfile::TempDir,
    edge: Edge,
    inbox: mpsc::Receiver<Incoming>,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (sender, inbox) = mpsc::channel();
        let listener = listen::bind(folder.path()).unwrap();
        let sender = Mutex::new(sender);
        let edge = Edge::start(listener, false, move |incoming| {
            let _the_case_is_over = sender.lock().unwrap().send(incoming);
        });
        Self { folder, edge: edge.unwrap(), inbox }
    }

    fn client(&self) -> Client {
        Client::connect(self.folder.path()).unwrap()
    }

    fn next(&self) -> Incoming {
        self.inbox.recv_timeout(SOON).unwrap()
    }

    fn call(&self) -> crate::daemon::ApiCall {
        match self.next() {
            Incoming::Call(call) => call,
            other => panic!("{other:?}"),
        }
    }
}

fn show(id: impl ToString) -> Request {
    Request::Show { id: id.to_string() }
}

fn pong(pid: u32) -> Reply {
    Reply::Pong { pid, version: String::new() }
}

fn pid_of(reply: &Reply) -> u32 {
    match reply {
        Reply::Pong { pid, .. } => *pid,
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_supervisor_the_client_says_so() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Client::connect(folder.path()), Err(ClientError::NotRunning { .. })));
    drop(listen::bind(folder.path()).unwrap());
    assert!(matches!(Client::connect(folder.path()), Err(ClientError::StaleSocket { .. })));
}

#[test]
fn answers_come_in_the_order_of_the_requests() {
    let case = Case::new();
    let mut client = case.client();
    client
        .send(&[line_of(&show(1)).unwrap(), b"nonsense\n".to_vec(), line_of(&show(3)).unwrap()].concat(), &[])
        .unwrap();
    let (first, third) = (case.call(), case.call());
    case.edge.answer([(third.ticket, pong(3))]);
    case.edge.answer([(first.ticket, pong(1))]);
    assert_eq!(pid_of(&client.receive().unwrap()), 1);
    match client.receive().unwrap() {
        Reply::Error(error) => assert!(error.kind == ErrorKind::Usage && error.message.starts_with("not a request")),
        other => panic!("{other:?}"),
    }
    assert_eq!(pid_of(&client.receive().unwrap()), 3);
    drop(client);
    assert!(matches!(case.next(), Incoming::Closed { connection } if connection == first.connection));
}

#[test]
fn descriptors_come_with_their_registration_even_more_than_one_message_holds() {
    let case = Case::new();
    let mut client = case.client();
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<File> = (0..150)
        .map(|n| {
            let path = folder.path().join(n.to_string());
            std::fs::write(&path, n.to_string()).unwrap();
            File::open(path).unwrap()
        })
        .collect();
    let register = Request::Register(Box::new(RegisterRequest {
        tenant: "default".into(),
        text: "x".repeat(100_000),
        path: "/f".into(),
        components: (0..150).map(|n| n.to_string()).collect(),
    }));
    let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    client.send(&line_of(&register).unwrap(), &fds).unwrap();
    let call = case.call();
    let contents: Vec<String> = call
        .fds
        .into_iter()
        .map(|fd| {
            let mut text = String::new();
            File::from(fd).read_to_string(&mut text).unwrap();
            text
        })
        .collect();
    assert_eq!(contents, (0..150).map(|n| n.to_string()).collect::<Vec<_>>());
    client.send(&line_of(&register).unwrap(), &fds[..1]).unwrap();
    match client.stream.get_ref().set_read_timeout(Some(SOON)).map(|()| case.edge.answer([(call.ticket, pong(1))])) {
        Ok(()) => assert_eq!(pid_of(&client.receive().unwrap()), 1),
        Err(error) => panic!("{error}"),
    }
    assert!(matches!(client.receive().unwrap(), Reply::Error(_)), "a registration without its descriptors is refused");
}

#[test]
fn a_pipeline_is_answered_in_order_and_one_connection_cannot_fill_the_inbox() {
    let case = Case::new();
    let count = 5_000u32;
    let folder = case.folder.path().to_owned();
    let client = std::thread::spawn(move || {
        let mut next = 0;
        let mut client = Client::connect(&folder).unwrap();
        client
            .pipeline((0..count).map(show), |number, reply| {
                assert_eq!((number, pid_of(&reply)), (next as usize, next));
                next += 1;
            })
            .unwrap();
        next
    });
    let mut raw = case.client();
    let raw_lines = line_of(&show("raw")).unwrap().repeat(3_000);
    raw.send(&raw_lines, &[]).unwrap();
    let (mut held, mut answered) = (Vec::new(), 0);
    while answered < count {
        let call = case.call();
        match &call.request {
            Request::Show { id } if id == "raw" => held.push(call.ticket),
            Request::Show { id } => {
                case.edge.answer([(call.ticket, pong(id.parse().unwrap()))]);
                answered += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(client.join().unwrap(), count);
    assert!(held.len() <= IN_FLIGHT_MAX as usize, "{} calls of one connection are in flight", held.len());
    // Answering lets the rest of them in.
    for round in 0..3_000 {
        if held.is_empty() {
            match case.next() {
                Incoming::Call(call) => held.push(call.ticket),
                Incoming::Closed { .. } | Incoming::Signal(_) => continue,
            }
        }
        case.edge.answer([(held.remove(0), pong(round))]);
        assert_eq!(pid_of(&raw.receive().unwrap()), round);
        if round == 2_000 {
            break;
        }
    }
}

#[test]
fn an_endless_line_is_refused() {
    let case = Case::new();
    let mut client = case.client();
    let chunk = vec![b'x'; 1024 * 1024];
    let mut failed = false;
    for _ in 0..API_LINE_MAX_BYTES / chunk.len() + 8 {
        failed |= client.stream.get_mut().write_all(&chunk).is_err();
    }
    match client.receive() {
        Ok(Reply::Error(error)) => assert!(error.message.contains("at most"), "{}", error.message),
        Ok(other) => panic!("{other:?}"),
        // Closed while it still wrote: the refusal may be lost with the connection.
        Err(_) => assert!(failed),
    }
}

#[test]
fn stopping_writes_what_was_answered_and_closes() {
    let case = Case::new();
    let mut client = case.client();
    client.send(&[line_of(&show(1)).unwrap(), line_of(&show(2)).unwrap()].concat(), &[]).unwrap();
    let first = case.call();
    assert_eq!(connection_of(first.ticket), first.connection);
    let _never_answered = case.call();
    case.edge.answer([(first.ticket, pong(1))]);
    case.edge.stop();
    assert_eq!(pid_of(&client.receive().unwrap()), 1);
    assert!(matches!(client.receive(), Err(ClientError::Closed)));
    assert!(matches!(Client::connect(case.folder.path()), Err(ClientError::StaleSocket { .. })));
}

#[test]
fn a_stop_answers_what_was_taken_and_tells_the_rest_that_it_was_not() {
    let case = Case::new();
    let (mut busy, mut idle, mut waiting) = (case.client(), case.client(), case.client());
    busy.send(&line_of(&show(1)).unwrap(), &[]).unwrap();
    let taken = case.call();
    waiting.send(&line_of(&show(2)).unwrap(), &[]).unwrap();
    let _it_waits_for_what_does_not_come = case.call();
    case.edge.close();
    busy.send(&line_of(&show(3)).unwrap(), &[]).unwrap();
    // Connected, and not yet let in perhaps.
    let mut late = case.client();
    late.send(&line_of(&show(4)).unwrap(), &[]).unwrap();
    case.edge.answer([(taken.ticket, pong(1))]);
    case.edge.stop();
    assert_eq!(pid_of(&busy.receive().unwrap()), 1);
    for client in [&mut busy, &mut late, &mut waiting] {
        assert!(matches!(client.receive(), Err(ClientError::NotTaken)));
    }
    assert!(matches!(idle.call(&show(5)), Err(ClientError::NotTaken)));
    assert!(!case.inbox.try_iter().any(|incoming| matches!(incoming, Incoming::Call(_))));
    assert!(matches!(Client::connect(case.folder.path()), Err(ClientError::StaleSocket { .. })));
}

#[test]
fn a_pipeline_that_a_stop_cuts_off_knows_what_was_taken() {
    let case = Case::new();
    let folder = case.folder.path().to_owned();
    let client = std::thread::spawn(move || {
        let mut answers = 0;
        let ended = Client::connect(&folder).unwrap().pipeline((0..100_000).map(show), |_, _| answers += 1);
        assert!(matches!(ended, Err(ClientError::NotTaken)), "{ended:?}");
        answers
    });
    let mut taken = 0;
    let mut take = |call: crate::daemon::ApiCall| {
        case.edge.answer([(call.ticket, pong(taken))]);
        taken += 1;
    };
    for _ in 0..3_000 {
        take(case.call());
    }
    case.edge.close();
    for incoming in case.inbox.try_iter() {
        match incoming {
            Incoming::Call(call) => take(call),
            other => panic!("{other:?}"),
        }
    }
    case.edge.stop();
    assert_eq!(client.join().unwrap(), taken);
}

#[test]
fn an_answer_in_parts_comes_as_it_is_given_and_before_the_next_answer() {
    let case = Case::new();
    let mut client = case.client();
    let outcomes = |count: usize| {
        let outcome =
            |n| DlqOutcome { entry_id: format!("{n}"), task_id: String::new(), outcome: String::new(), why: None };
        (0..count).map(outcome).collect::<Vec<_>>()
    };
    let lengths = |reply: &Reply| match reply {
        Reply::DlqSome(some) => (some.len(), true),
        Reply::DlqDone(last) => (last.len(), false),
        other => panic!("{other:?}"),
    };
    client.send(&[line_of(&show(1)).unwrap(), line_of(&show(2)).unwrap()].concat(), &[]).unwrap();
    let (first, second) = (case.call().ticket, case.call().ticket);
    // An answer in parts that has to wait for the one before it.
    case.edge.answer([(second, Reply::DlqSome(outcomes(3)))]);
    case.edge.answer([(second, Reply::DlqSome(outcomes(2)))]);
    case.edge.answer([(first, Reply::DlqSome(outcomes(1)))]);
    assert_eq!(lengths(&client.receive().unwrap()), (1, true));
    case.edge.answer([(first, Reply::DlqDone(outcomes(0)))]);
    assert_eq!(lengths(&client.receive().unwrap()), (0, false));
    assert_eq!(lengths(&client.more().unwrap()), (3, true));
    case.edge.answer([(second, Reply::DlqDone(outcomes(4)))]);
    let rest = client.more().unwrap().whole(|| client.more()).unwrap();
    assert_eq!(lengths(&rest), (6, false));
}

#[test]
fn a_supervisor_that_dies_leaves_in_doubt_only_what_it_had_read() {
    let folder = tempfile::tempdir().unwrap();
    let listener = listen::bind(folder.path()).unwrap();
    let connected = |reads: usize| {
        let mut client = Client::connect(folder.path()).unwrap();
        client.send(&line_of(&show(1)).unwrap(), &[]).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        peer.read_exact(&mut vec![0; reads]).unwrap();
        client
    };
    let whole = line_of(&show(1)).unwrap().len();
    let outcome = |mut client: Client| client.received(Ok(()));
    assert!(matches!(outcome(connected(whole)), Err(ClientError::Closed)));
    assert!(matches!(outcome(connected(whole - 1)), Err(ClientError::NotTaken)));
    let mut waiting = Client::connect(folder.path()).unwrap();
    drop(listener);
    assert!(matches!(waiting.call(&show(1)), Err(ClientError::NotTaken)));
}

#[test]
fn a_supervisor_that_answers_nobody_is_given_up() {
    static NOTICES: AtomicUsize = AtomicUsize::new(0);
    let folder = tempfile::tempdir().unwrap();
    let _listener = listen::bind(folder.path()).unwrap();
    // A small request waits for its answer, a large one for its sending.
    for size_bytes in [1, 4 * 1024 * 1024] {
        let mut client = Client::connect(folder.path()).unwrap();
        client.on_silence(|_| {
            NOTICES.fetch_add(1, SeqCst);
        });
        let (quiet, give_up) = (Duration::from_millis(10), Duration::from_millis(1_000));
        client.patience = Patience { quiet, give_up, ..client.patience };
        let begun = Instant::now();
        let ended = client.call(&show("x".repeat(size_bytes)));
        assert!(matches!(ended, Err(ClientError::Silent { seconds: 1, .. })), "{ended:?}");
        assert!(begun.elapsed() >= give_up);
    }
    assert_eq!(NOTICES.load(SeqCst), 2);
}

#[test]
fn a_supervisor_that_answers_others_is_waited_for() {
    let case = Case::new();
    let mut client = case.client();
    client.on_silence(|_| panic!("it answers"));
    // What the supervisor may take for an answer to others: long enough for a slow machine.
    let give_up = Duration::from_secs(2);
    client.patience = Patience { quiet: give_up, give_up, ..client.patience };
    let asked = std::thread::spawn(move || client.call(&show(1)));
    let first = case.call();
    let begun = Instant::now();
    while begun.elapsed() < give_up * 2 {
        match case.next() {
            Incoming::Call(call) => case.edge.answer([(call.ticket, pong(0))]),
            Incoming::Closed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    case.edge.answer([(first.ticket, pong(1))]);
    assert_eq!(pid_of(&asked.join().unwrap().unwrap()), 1);
}

#[test]
fn another_user_is_told_why() {
    let folder = tempfile::tempdir().unwrap();
    let own = rustix::process::geteuid().as_raw();
    let owner = rustix::process::Uid::from_raw(own + 1);
    let _edge = Edge::start_for(owner, listen::bind(folder.path()).unwrap(), false, |_| {}).unwrap();
    for size_bytes in [1, 8 * 1024 * 1024] {
        let mut client = Client::connect(folder.path()).unwrap();
        match client.call(&show("x".repeat(size_bytes))).unwrap() {
            Reply::Error(error) => assert!(error.message.contains("another user") && error.hint.is_some()),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_loop_can_take_calls_in_turn() {
    let case = Case::new();
    let fair = Arc::new(Mutex::new(RoundRobin::default()));
    let (mut greedy, mut modest) = (case.client(), case.client());
    greedy.send(&line_of(&show("greedy")).unwrap().repeat(100), &[]).unwrap();
    for _ in 0..100 {
        let call = case.call();
        fair.lock().unwrap().push(call.connection, call);
    }
    modest.send(&line_of(&show("modest")).unwrap(), &[]).unwrap();
    let call = case.call();
    fair.lock().unwrap().push(call.connection, call);
    let second: Vec<_> = (0..2).filter_map(|_| fair.lock().unwrap().pop()).collect();
    assert!(matches!(&second[1].request, Request::Show { id } if id == "modest"));
}

#[test]
fn the_first_signal_drains_and_the_second_stops() {
    use crate::daemon::Signal;
    use rustix::process::{Signal as Raw, getpid, kill_process};
    let folder = tempfile::tempdir().unwrap();
    let (sender, inbox) = mpsc::channel();
    let sender = Mutex::new(sender);
    let listener = listen::bind(folder.path()).unwrap();
    let _edge = Edge::start(listener, true, move |incoming| {
        let _the_case_is_over = sender.lock().unwrap().send(incoming);
    })
    .unwrap();
    for (raw, expected) in [(Raw::TERM, Signal::Drain), (Raw::INT, Signal::Stop), (Raw::TERM, Signal::Stop)] {
        kill_process(getpid(), raw).unwrap();
        assert!(matches!(inbox.recv_timeout(SOON).unwrap(), Incoming::Signal(signal) if signal == expected));
    }
}
