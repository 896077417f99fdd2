//! Packets: bounds when sending, distrust when receiving.

use rustix::fd::AsFd;
use serde::de::DeserializeOwned;
use tm_core::{
    id::{RunId, TaskRef},
    wire::{CompileInit, FromWorker, ToWorker},
};

use super::*;

fn cancel(step: u16) -> ToWorker {
    ToWorker::Cancel { task: TaskRef { run: RunId(1), step, item: None }, attempt: 1, grace_ms: 0 }
}

/// The packets that wait on the worker's end: how many bytes, messages and descriptors each has.
fn packets<T: DeserializeOwned>(theirs: &OwnedFd) -> Vec<(usize, usize, usize)> {
    rustix::io::ioctl_fionbio(theirs, true).unwrap();
    let mut inbox = Inbox::default();
    let mut found = Vec::new();
    while let Some((bytes, fds)) = receive_raw(theirs.as_fd(), &mut inbox).unwrap() {
        let messages: Vec<T> = codec::read(bytes).unwrap();
        found.push((bytes.len(), messages.len(), fds.len()));
    }
    found
}

fn receive_bytes(bytes: &[u8]) -> Result<Option<Vec<Received>>, LinkError> {
    let (ours, theirs) = Link::pair().unwrap();
    send_raw(theirs.as_fd(), bytes, &[]).unwrap();
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
        found.extend(packets::<ToWorker>(&theirs));
    }
    found.extend(packets::<ToWorker>(&theirs));
    assert_eq!(found.iter().map(|packet| packet.1).sum::<usize>(), 5_000);
    assert!(found[..4].iter().all(|packet| packet.1 == PACKET_MAX_MESSAGES), "{found:?}");
}

#[test]
fn what_does_not_fit_into_a_packet_any_more_goes_into_the_next() {
    let (ours, theirs) = Link::pair().unwrap();
    let mut outbox = Outbox::default();
    for _ in 0..4 {
        outbox.push(&"z".repeat(PACKET_MAX_BYTES / 3), Vec::new()).unwrap();
    }
    assert!(outbox.send(&ours).unwrap());
    let counts: Vec<_> = packets::<String>(&theirs).into_iter().map(|packet| packet.1).collect();
    assert_eq!(counts, [2, 2]);
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
    let counts: Vec<_> = packets::<ToWorker>(&theirs).into_iter().map(|packet| (packet.1, packet.2)).collect();
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
    let mut inbox = Inbox::default();
    let (init, fds) = receive_raw(theirs.as_fd(), &mut inbox).unwrap().unwrap();
    assert_eq!((codec::read::<Init>(init).unwrap().len(), fds.len()), (1, 1));
    assert_eq!(
        packets::<ToWorker>(&theirs).into_iter().map(|packet| (packet.1, packet.2)).collect::<Vec<_>>(),
        [(1, 0)]
    );
}

#[test]
fn a_message_that_just_fits_is_taken_and_one_more_byte_is_refused() {
    let (ours, theirs) = Link::pair().unwrap();
    let mut outbox = Outbox::default();
    // Its length takes three bytes.
    outbox.push(&"x".repeat(PACKET_MAX_BYTES - 3), Vec::new()).unwrap();
    let refused = outbox.push(&"x".repeat(PACKET_MAX_BYTES - 2), Vec::new());
    assert!(matches!(refused, Err(PushError::TooLarge { .. })));
    assert!(outbox.send(&ours).unwrap());
    assert_eq!(packets::<String>(&theirs), [(PACKET_MAX_BYTES, 1, 0)]);
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
    let mut received = packets::<String>(&theirs).len();
    while !outbox.send(&ours).unwrap() {
        received += packets::<String>(&theirs).len();
    }
    received += packets::<String>(&theirs).len();
    assert_eq!(received, pushed);
}

#[test]
fn a_packet_of_anything_but_messages_breaks_the_link() {
    let loaded = codec::write(&FromWorker::Loaded { component: 1 }).unwrap();
    let two = [loaded.as_slice(), &loaded].concat();
    assert!(matches!(receive_bytes(&two), Ok(Some(messages)) if messages.len() == 2));
    let rest = [loaded.as_slice(), b"\xff"].concat();
    for bytes in [b"[]".as_slice(), b"\xff", &loaded[..loaded.len() - 1], &rest, &[0xff; 10_000]] {
        assert!(matches!(receive_bytes(bytes), Err(LinkError::Malformed(_))), "{bytes:?}");
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
