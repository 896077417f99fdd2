//! Handing out work: free slots take ready tasks in fair order.

use alloc::{collections::BTreeMap, vec::Vec};
use core::cell::RefCell;

use crate::{
    id::{FlowNo, TaskRef},
    queue::{
        decide::{Desk, World},
        effect::{Effect, Step},
        event::Event,
        lanes::{FairOrder, Lane, Rank, Slot},
        state::State,
    },
    wire::Usage,
};

/// Whether the tasks of a step can run now; asked at every lease, so that a revocation reaches runs in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runnable {
    Yes,
    /// The native artefact is not there yet.
    Compiling,
    /// The host cannot do its part now, and tries again by itself: the tasks wait.
    Held {
        why: alloc::string::String,
    },
    /// The operator's ceiling no longer allows it, or it cannot be compiled: the tasks are dead-lettered.
    Denied {
        code: &'static str,
        message: alloc::string::String,
    },
}

/// Leases at most `most` ready tasks to free slots, and takes the slots' room. All of it is one frame.
///
/// A task that must run alone takes a whole idle worker; while one waits and none is idle, the emptiest worker of its
/// profile is given nothing new.
pub fn lease(
    state: &mut State,
    world: World<'_>,
    fair: &mut FairOrder,
    slots: &mut Vec<Slot>,
    most: usize,
    runnable: &dyn Fn(FlowNo, u16) -> Runnable,
) -> Step {
    let known = RefCell::new(BTreeMap::new());
    let runnable = |flow, step| known.borrow_mut().entry((flow, step)).or_insert_with(|| runnable(flow, step)).clone();
    let mut desk = Desk::new(state, world);
    desk.state.promote(world.now);
    reserve_for_solo(desk.state, slots);
    let mut taken = 0;
    while taken < most && slots.iter().any(|slot| slot.free > 0) {
        let Some((tenant, choice)) = choose(desk.state, fair, slots, &runnable) else { break };
        match choice {
            // A run that is over its time takes no slot; there were too many of them, or too little room, to end it before.
            Choice::Lease { rank, .. } if desk.is_over(rank.task().run) => {
                desk.end_task_over(rank.task());
                desk.advance(rank.task().run);
            }
            Choice::Lease { rank, slot, solo } => {
                let worker = slots[slot].worker;
                slots[slot].free = if solo { 0 } else { slots[slot].free - 1 };
                slots[slot].idle = false;
                if slots[slot].free == 0 {
                    slots.swap_remove(slot);
                }
                desk.start(rank.task(), worker);
                let weight = desk.state_weight(tenant);
                fair.took(tenant, weight);
            }
            Choice::Refuse { task, code, message } => {
                desk.dead(task, 0, code, message, "non_retryable", None, Usage::default());
                desk.advance(task.run);
            }
        }
        taken += 1;
    }
    desk.done()
}

enum Choice {
    Lease { rank: Rank, slot: usize, solo: bool },
    Refuse { task: TaskRef, code: &'static str, message: alloc::string::String },
}

fn choose(
    state: &State,
    fair: &FairOrder,
    slots: &[Slot],
    runnable: &dyn Fn(FlowNo, u16) -> Runnable,
) -> Option<(u32, Choice)> {
    for tenant in fair.order(&state.indexes.lanes) {
        let mut best: Option<(Rank, usize, bool)> = None;
        for lane in state.indexes.lanes.lanes_of(tenant) {
            match runnable(lane.flow, lane.step) {
                Runnable::Yes => {}
                Runnable::Compiling | Runnable::Held { .. } => continue,
                Runnable::Denied { code, message } => {
                    let task = lane.ready.first().or(lane.solo.first())?.task();
                    return Some((tenant, Choice::Refuse { task, code, message }));
                }
            }
            for (rank, slot, solo) in heads(lane, slots) {
                if best.is_none_or(|(other, ..)| rank < other) {
                    best = Some((rank, slot, solo));
                }
            }
        }
        if let Some((rank, slot, solo)) = best {
            return Some((tenant, Choice::Lease { rank, slot, solo }));
        }
    }
    None
}

/// The lane's next tasks that have a place: the first that must run alone, and the first of the others.
fn heads(lane: &Lane, slots: &[Slot]) -> impl Iterator<Item = (Rank, usize, bool)> {
    let place = |wanted: &dyn Fn(&Slot) -> bool| {
        // The fullest worker last: work spreads over the processes.
        slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.profile == lane.profile && slot.free > 0 && wanted(slot))
            .max_by_key(|(_, slot)| slot.free)
            .map(|(at, _)| at)
    };
    let solo = lane.solo.first().and_then(|rank| Some((*rank, place(&|slot| slot.idle)?, true)));
    let ready = lane.ready.first().and_then(|rank| Some((*rank, place(&|_| true)?, false)));
    [solo, ready].into_iter().flatten()
}

/// While a task waits to run alone and no worker of its profile is idle, one of them is left to run empty.
fn reserve_for_solo(state: &State, slots: &mut Vec<Slot>) {
    let waiting: Vec<_> =
        state.indexes.lanes.busy().filter(|lane| !lane.solo.is_empty()).map(|lane| lane.profile).collect();
    for profile in waiting {
        if slots.iter().any(|slot| slot.profile == profile && slot.idle) {
            continue;
        }
        let emptiest =
            slots.iter().enumerate().filter(|(_, slot)| slot.profile == profile).max_by_key(|(_, slot)| slot.free);
        if let Some((at, _)) = emptiest {
            slots.swap_remove(at);
        }
    }
}

impl Desk<'_> {
    fn start(&mut self, task: TaskRef, worker: crate::id::WorkerId) {
        let Some(run) = self.state.runs.get(&task.run) else { return };
        let Some(attempt) = run.task(task).map(|found| found.attempt + 1) else { return };
        self.fact(Event::Leased { task, attempt, worker });
        self.effect(Effect::Start { worker, task, attempt });
    }

    fn state_weight(&self, tenant: u32) -> u32 {
        let name = self.state.indexes.lanes.tenant(tenant);
        name.and_then(|name| self.world.policy.weights.get(name)).copied().unwrap_or(1)
    }
}
