//! Tenants share what is handed out by their weights, however long the backlog of one of them is.

use std::collections::{BTreeMap, VecDeque};

use tm_core::{
    api::EnqueueRequest,
    id::{FlowNo, WorkerId},
    json::{Json, Payload},
    queue::{
        decide::Runnable,
        effect::{Effect, Input, Ticket},
        lanes::{Slot, Want},
        policy::Policy,
        results::Ended,
        run::FinishedRun,
        state::{Registered, State},
    },
    time::Millis,
};
use tm_supervisor::{
    store::log::LogOptions,
    turn::{Rules, Shell, Turn},
};

use crate::{
    disk::SimDisk,
    flows::{Expressions, NoBlobs, TENANTS, flow},
    random::Random,
};

const WEIGHTS: [u32; 3] = [1, 2, 4];

/// Workers with more room than one turn hands out, once they are there.
#[derive(Default)]
struct Room {
    open: bool,
    wants: Vec<Want>,
    /// Tenants in the order in which their steps were started.
    started: Vec<String>,
}

impl Shell for Room {
    fn slots(&mut self) -> Vec<Slot> {
        let slots = self.wants.iter().filter(|_| self.open);
        slots.map(|want| Slot { worker: WorkerId(1), profile: want.profile, free: 5000, idle: true }).collect()
    }

    fn flow(&mut self, _: FlowNo, _: &Registered) {}

    fn runnable(&self, _: FlowNo, _: u16) -> Runnable {
        Runnable::Yes
    }

    fn wanted(&mut self, _: &State, wants: &[Want], _: Millis) {
        self.wants = wants.to_vec();
    }

    fn perform(&mut self, ended: Ended<'_>, effect: Effect, _: Millis) {
        if let Effect::Start { task, .. } = effect {
            self.started.extend(ended.state.step_of(task).map(|(flow, _)| flow.tenant.to_string()));
        }
    }

    fn forgotten(&mut self, _: &FinishedRun) {}
}

fn enqueue(tenant: &str, ticket: u64) -> Input {
    let input = Json::parse("{}").unwrap_or_else(|error| panic!("{error:?}"));
    let request = EnqueueRequest::of(tenant, "single", input.clone());
    Input::Enqueue { ticket: Ticket(ticket), request: Box::new(request), input: Payload::Inline(input) }
}

#[test]
fn tenants_share_by_weight_within_one_round() {
    let weights: BTreeMap<String, u32> = TENANTS.into_iter().map(str::to_owned).zip(WEIGHTS).collect();
    let policy = Policy { weights: weights.clone(), ..Policy::default() };
    let rules = Rules { policy, evaluate: Box::new(Expressions), blobs: Box::new(NoBlobs) };
    let disk = SimDisk::new(Random::new(1), 0);
    let opened = Turn::open(disk, LogOptions::default(), rules, [3; 16], Millis(1));
    let (mut turn, _) = opened.unwrap_or_else(|error| panic!("{error}"));
    let (mut room, mut inputs) = (Room::default(), VecDeque::new());
    for tenant in TENANTS {
        let def = Box::new(flow("single", 1));
        inputs.push_back(Input::Register { ticket: Ticket(0), tenant: tenant.into(), def, warnings: Vec::new() });
    }
    // The first one brings its whole backlog before the others come.
    inputs.extend(TENANTS.into_iter().flat_map(|tenant| (0..1500).map(move |number| enqueue(tenant, number))));
    let mut now = Millis(1);
    while !inputs.is_empty() {
        turn.turn(now, &mut inputs, &mut room).unwrap_or_else(|error| panic!("{error}"));
        now = now.plus(1);
    }
    room.open = true;
    for _ in 0..2 {
        turn.turn(now, &mut inputs, &mut room).unwrap_or_else(|error| panic!("{error}"));
        now = now.plus(1);
    }
    assert!(room.started.len() > 2000, "{} steps were started", room.started.len());
    let mut taken: BTreeMap<&str, f64> = TENANTS.into_iter().map(|tenant| (tenant, 0.0)).collect();
    for (place, tenant) in room.started.iter().enumerate() {
        *taken.entry(tenant).or_default() += 1.0 / f64::from(weights[tenant]);
        let (least, most) =
            taken.values().fold((f64::MAX, 0.0_f64), |(least, most), &rounds| (least.min(rounds), most.max(rounds)));
        assert!(most - least <= 1.0, "after {place} starts a tenant is more than one round behind: {taken:?}");
    }
}
