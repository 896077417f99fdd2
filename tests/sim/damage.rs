//! What damage to one chosen record costs.

use std::collections::VecDeque;

use tm_core::{
    api::{EnqueueRequest, RunState},
    json::{Json, Payload},
    queue::effect::{Input, Ticket},
    time::Millis,
};
use tm_supervisor::{
    store::{log::LogOptions, recover::Recovery},
    turn::{Rules, Turn},
};

use crate::{
    disk::SimDisk,
    faults::Without,
    flows::{Expressions, NoBlobs, flow},
    random::Random,
    world::World,
};

fn open(disk: &SimDisk) -> (Turn<SimDisk>, Recovery) {
    let policy = tm_core::queue::policy::Policy::default();
    let rules = Rules { policy, evaluate: Box::new(Expressions), blobs: Box::new(NoBlobs) };
    Turn::open(disk.clone(), LogOptions::default(), rules, [3; 16], Millis(1)).unwrap_or_else(|error| panic!("{error}"))
}

fn world(disk: &SimDisk) -> World {
    let mut world = World::new(Random::new(7), disk.clone(), Without::default());
    world.kind = true;
    world
}

/// Turns until `done`; returns the time.
fn until(
    turn: &mut Turn<SimDisk>,
    (world, inputs): (&mut World, &mut VecDeque<Input>),
    mut now: Millis,
    done: &dyn Fn(&Turn<SimDisk>) -> bool,
) -> Millis {
    for _ in 0..1000 {
        if done(turn) {
            return now;
        }
        now = now.plus(20);
        world.arrivals(now, inputs);
        turn.turn(now, inputs, world).unwrap_or_else(|error| panic!("{error}"));
    }
    panic!("this never came: depth {}", turn.state.depth())
}

#[test]
fn damage_to_a_success_makes_its_step_run_again() {
    let disk = SimDisk::new(Random::new(1), 0);
    let (mut turn, _) = open(&disk);
    let input = Json::parse("{}").unwrap_or_else(|error| panic!("{error:?}"));
    let request = EnqueueRequest::of("anton", "chain", input.clone());
    let def = Box::new(flow("chain", 1));
    let mut inputs = VecDeque::from([
        Input::Register { ticket: Ticket(1), tenant: "anton".into(), def, warnings: Vec::new() },
        Input::Enqueue { ticket: Ticket(2), request: Box::new(request), input: Payload::Inline(input) },
    ]);
    let succeeded = |turn: &Turn<SimDisk>| turn.state.totals.tasks_succeeded;
    let now = until(&mut turn, (&mut world(&disk), &mut inputs), Millis(1), &|turn| succeeded(turn) == 1);
    drop(turn);

    let mut disk_inner = disk.inner();
    let (path, id) = disk_inner
        .storage
        .paths()
        .find(|(path, _)| path.ends_with(".log"))
        .map(|(p, id)| (p.to_owned(), id))
        .unwrap_or_default();
    let text = String::from_utf8_lossy(disk_inner.storage.file(id).cache.data()).into_owned();
    let place = text.find("\"Succeeded\"").unwrap_or_else(|| panic!("no success in {path}: {text}"));
    // Something stands behind it, so it is not the torn end of the log.
    assert!(text[place..].contains("\n{\"c\":"), "the success is the newest record");
    disk_inner.storage.rot(id, place as u64, 0);
    drop(disk_inner);

    let (mut turn, recovery) = open(&disk);
    assert_eq!(recovery.damaged.len(), 1, "{:?}", recovery.damaged);
    assert!(recovery.damaged[0].lost.is_some_and(|(first, last)| first == last), "{:?}", recovery.damaged);
    assert_eq!(succeeded(&turn), 0, "the success is gone");
    let (mut world, mut inputs) = (world(&disk), turn.recover().into());
    until(&mut turn, (&mut world, &mut inputs), now, &|turn| {
        turn.state.depth() == 0 && !turn.state.finished.is_empty()
    });
    let first = world.starts.iter().filter(|start| start.task.step == 0).count();
    assert_eq!(first, 1, "the first step runs once more");
    assert!(turn.state.finished.values().all(|run| run.state == RunState::Succeeded));
}
