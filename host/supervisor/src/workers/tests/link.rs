//! Packets: bounds when sending, distrust when receiving.

use rustix::fd::AsFd;
use tm_core::{
    id::{RunId, TaskRef},
    wire::{CompileInit, ToWorker},
};

use super::*;

fn cancel(step: u16) -> ToWorker {
    ToWorker::Cancel { task: TaskRef { run: RunId(1), step, item: None }, attempt: 1, grace_ms: 0 }
}

/// The packets that wait on the worker's end: how many bytes, messages and descriptors each has.
fn packets(theirs: &OwnedFd) -> Vec<(usize, usize, usize)> {
    rustix::io::ioctl_fionbio(theirs, true).unwrap();
    let mut inbox = Inbox::default();
    let mut found = Vec::new();
    while let Some((bytes, fds)) = receive_raw(theirs.as_fd(), &mut inbox).unwrap() {
        let messages: Vec<serde_json::Value> = serde_json::from_slice(bytes).unwrap();
        found.push((bytes.len(), messages.len(), fds.len()));
    }
    found
}

fn receive_text(text: &str) -> Result<Option<Vec<Received>>, LinkError> {
    let (ours, theirs) = Link::pair().unwrap();
    send_raw(theirs.as_fd(), &[text.as_bytes()], &[]).unwrap();
    ours.receive(&mut Inbox::default())
}

#[test]
fn many_messages_become_few_packets_within_the_bounds() {
    let (ours, theirs) = Link::pair().unwrap();
    let mut outbox = Outbox::default();
    let mut found = Vec::new();
    for step in 0..5_000 {
        outbox.push(&cancel(step), Vec::new()).unwrap();
    }
    while !outbox.send(&ours).unwrap() {
        found.extend(packets(&theirs));
    }
    found.extend(packets(&theirs));
    assert_eq!(found.iter().map(|packet| packet.1).sum::<usize>(), 5_000);
    assert!(found.iter().all(|packet| packet.0 <= PACKET_MAX_BYTES));
    assert!(found[..found.len() - 1].iter().all(|packet| packet.0 > PACKET_MAX_BYTES - 200), "{found:?}");
}

#[test]
fn a_packet_has_at_most_64_descriptors_and_keeps_them_with_their_messages() {
    let (ours, theirs) = Link::pair().unwrap();
    let mut outbox = Outbox::default();
    let file = sealed::make(b"n").unwrap();
    for component in 0..100 {
        outbox.push(&ToWorker::Load { component }, vec![file.try_clone().unwrap()]).unwrap();
    }
    assert!(outbox.send(&ours).unwrap() && outbox.is_empty());
    let counts: Vec<_> = packets(&theirs).into_iter().map(|packet| (packet.1, packet.2)).collect();
    assert_eq!(counts, [(64, 64), (36, 36)]);
    let many = (0..65).map(|_| file.try_clone().unwrap()).collect();
    let refused = outbox.push(&ToWorker::Load { component: 0 }, many);
    assert!(matches!(refused, Err(PushError::TooManyDescriptors { count: 65 })));
}

#[test]
fn the_first_message_travels_alone() {
    let (ours, theirs) = Link::pair().unwrap();
    let mut outbox = Outbox::default();
    let init =
        CompileInit { allow_weaker: false, cpu_seconds_max: 1, memory_max_mb: 1, compile: false, native_max_bytes: 1 };
    outbox.push_init(&Init::Compile(init), vec![sealed::make(b"c").unwrap()]).unwrap();
    outbox.push(&cancel(1), Vec::new()).unwrap();
    outbox.send(&ours).unwrap();
    let counts: Vec<_> = packets(&theirs).into_iter().map(|packet| (packet.1, packet.2)).collect();
    assert_eq!(counts, [(1, 1), (1, 0)]);
}

#[test]
fn a_message_that_just_fits_is_taken_and_one_more_byte_is_refused() {
    let (ours, theirs) = Link::pair().unwrap();
    let mut outbox = Outbox::default();
    // As JSON text it has two quotes, and the packet two brackets.
    outbox.push(&"x".repeat(PACKET_MAX_BYTES - 4), Vec::new()).unwrap();
    let refused = outbox.push(&"x".repeat(PACKET_MAX_BYTES - 3), Vec::new());
    assert!(matches!(refused, Err(PushError::TooLarge { .. })));
    assert!(outbox.send(&ours).unwrap());
    assert_eq!(packets(&theirs), [(PACKET_MAX_BYTES, 1, 0)]);
}

#[test]
fn what_the_socket_does_not_take_stays_and_follows_in_order() {
    let (ours, theirs) = Link::pair().unwrap();
    let mut outbox = Outbox::default();
    let mut pushed = 0;
    while outbox.push(&"y".repeat(100_000), Vec::new()).is_ok() {
        pushed += 1;
    }
    assert!(!outbox.send(&ours).unwrap() && outbox.is_crowded());
    let mut received = packets(&theirs).len();
    while !outbox.send(&ours).unwrap() {
        received += packets(&theirs).len();
    }
    received += packets(&theirs).len();
    assert_eq!(received, pushed);
}

#[test]
fn a_packet_that_is_no_list_of_messages_breaks_the_link() {
    assert!(matches!(receive_text("[]"), Ok(Some(messages)) if messages.is_empty()));
    for text in ["x", "{}", "[1]", "[{\"Ready\":{}}]", "[] []", "[{\"Nothing\":{}}]", &"[".repeat(10_000)] {
        assert!(matches!(receive_text(text), Err(LinkError::Malformed(_))), "{text}");
    }
}

#[test]
fn the_end_of_the_peer_is_told_apart_from_silence() {
    let (ours, theirs) = Link::pair().unwrap();
    let mut inbox = Inbox::default();
    assert!(matches!(ours.receive(&mut inbox), Ok(None)));
    drop(theirs);
    assert!(matches!(ours.receive(&mut inbox), Err(LinkError::Closed)));
    let mut outbox = Outbox::default();
    outbox.push(&cancel(1), Vec::new()).unwrap();
    assert!(matches!(outbox.send(&ours), Err(LinkError::Closed)));
}
