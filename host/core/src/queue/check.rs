//! What must be true of any state: the simulation and the model ask after every turn.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};

use crate::{
    api::RunState,
    id::{TaskRef, WorkerId},
    queue::{
        indexes::{due_steps, each_task},
        run::{Phase, StepRun},
        state::State,
    },
};

/// Every rule that the state breaks, in words; empty when all hold.
#[must_use]
pub fn check(state: &State) -> Vec<String> {
    let mut broken = Vec::new();
    let (mut ready, mut delayed, mut backing_off) = (0u64, BTreeSet::new(), BTreeSet::new());
    let mut leases: BTreeMap<WorkerId, BTreeSet<TaskRef>> = BTreeMap::new();
    let mut letters = BTreeMap::new();
    let mut due = BTreeSet::new();
    let mut timed = BTreeSet::new();
    for run in state.runs.values() {
        let Some(flow) = state.flow_of(run) else {
            broken.push(format!("run {} names flow {} which is not registered", run.id, run.flow.0));
            continue;
        };
        if !matches!(run.state, RunState::Active | RunState::Stalled) {
            broken.push(format!("run {} has ended and is still among the unfinished", run.id));
        }
        if flow.def.run_timeout_ms.is_some() && run.state == RunState::Active {
            timed.insert(run.id);
        }
        let mut moving = due_steps(run).next().is_some();
        due.extend(due_steps(run));
        each_task(run, |task, found| {
            match &found.phase {
                Phase::Ready { .. } => ready += 1,
                Phase::Delayed { ready_at } => {
                    let waiting = if found.attempt == 0 { &mut delayed } else { &mut backing_off };
                    waiting.insert((*ready_at, task));
                }
                Phase::Leased { worker } => {
                    if !leases.entry(*worker).or_default().insert(task) {
                        broken.push(format!("task {task:?} is leased twice"));
                    }
                    if found.attempt == 0 {
                        broken.push(format!("task {task:?} is leased without an attempt (I4)"));
                    }
                }
                Phase::Dead(letter) => {
                    letters.insert(letter.entry.clone(), task);
                }
                Phase::Held | Phase::Succeeded(_) => {}
            }
            moving |= matches!(found.phase, Phase::Ready { .. } | Phase::Delayed { .. } | Phase::Leased { .. });
            let rising = found.attempts.windows(2).all(|pair| pair[0].attempt < pair[1].attempt);
            if !rising || found.attempts.last().is_some_and(|last| last.attempt > found.attempt) {
                broken.push(format!("task {task:?}: attempts do not strictly increase (I3)"));
            }
        });
        for (step, place) in run.steps.iter().zip(0u16..) {
            match step {
                StepRun::Faulted(letter) => {
                    letters.insert(letter.entry.clone(), TaskRef { run: run.id, step: place, item: None });
                }
                StepRun::Fan(fan) => {
                    let count =
                        |wanted: fn(&Phase) -> bool| fan.tasks.iter().filter(|task| wanted(&task.phase)).count();
                    if count(|phase| matches!(phase, Phase::Succeeded(_))) != fan.succeeded as usize
                        || count(|phase| matches!(phase, Phase::Dead(_))) != fan.dead as usize
                    {
                        broken.push(format!("run {} step {place}: the fan-out miscounts its ends", run.id));
                    }
                }
                StepRun::Waiting => {
                    let needs = flow.def.steps.get(usize::from(place)).map_or(&[][..], |step| &step.needs);
                    let met = needs.iter().all(|need| {
                        matches!(run.steps.get(usize::from(*need)), Some(StepRun::Done(_) | StepRun::Skipped))
                    });
                    if met {
                        broken.push(format!("run {} step {place}: its needs are met and it waits (I5)", run.id));
                    }
                }
                StepRun::Due(_) | StepRun::Single(_) | StepRun::Skipped | StepRun::Done(_) => {}
            }
        }
        if run.state == RunState::Active && !moving {
            broken.push(format!("run {} is active and nothing of it can move", run.id));
        }
        if run.state == RunState::Stalled && moving {
            broken.push(format!("run {} is stalled and something of it moves", run.id));
        }
    }
    if ready != state.indexes.lanes.len() {
        broken.push(format!("{ready} tasks are ready, {} stand in lanes", state.indexes.lanes.len()));
    }
    if delayed != state.indexes.delayed || backing_off != state.indexes.backing_off {
        broken.push(String::from("the delayed tasks and their index differ"));
    }
    if leases != state.indexes.leases
        || leases.values().map(BTreeSet::len).sum::<usize>() as u64 != state.indexes.leased
    {
        broken.push(String::from("the leased tasks and their index differ"));
    }
    if due != state.indexes.due {
        broken.push(String::from("the steps for which something is made and their index differ"));
    }
    if !state.asked.is_subset(&state.indexes.due) {
        broken.push(String::from("something is made for a step that does not wait for it"));
    }
    if timed != state.indexes.deadlines.runs() {
        broken.push(String::from("the active runs that have a time and their index differ"));
    }
    if letters != state.letters {
        broken.push(String::from("the dead letters and their index differ"));
    }
    for (name, holder) in &state.keys {
        let holds = state.runs.get(holder).is_some_and(|run| run.key() == Some(name.2.as_str()))
            || state.finished.get(holder).is_some_and(|run| run.key.as_deref() == Some(name.2.as_str()));
        if !holds {
            broken.push(format!("key {} is held by {holder}, which does not know it (I6)", name.2));
        }
    }
    broken
}
