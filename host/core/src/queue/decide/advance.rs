//! A run goes on: steps whose needs ended become tasks, the run ends or stalls.

use alloc::{string::ToString, sync::Arc};

use crate::{
    api::RunState,
    code,
    flow::{
        advance::{Inputs, RunOutput},
        evaluate::EvaluateFault,
    },
    id::{RunId, TaskRef},
    json::{Json, Payload},
    queue::{
        decide::Desk,
        effect::Effect,
        event::{Dead, Event},
        run::{Phase, Run, StepRun},
    },
    wire::Usage,
};

impl Desk<'_> {
    /// Takes a run as far as it goes now. Idempotent: a run that cannot go on is left as it is.
    pub(crate) fn advance(&mut self, id: RunId) {
        let Some(def) =
            self.state.runs.get(&id).and_then(|run| self.state.flow_of(run)).map(|flow| Arc::clone(&flow.def))
        else {
            return;
        };
        for (step, place) in def.steps.iter().zip(0u16..) {
            let Some(run) = self.state.runs.get(&id) else { return };
            match run.steps.get(usize::from(place)) {
                Some(StepRun::Waiting) if step.needs.iter().all(|&need| has_ended(run, need)) => {
                    let inputs = Inputs { run, def: &def, evaluate: self.world.evaluate, blobs: self.world.blobs };
                    match inputs.at_once_bytes(step).filter(|bytes| *bytes <= self.at_once_left) {
                        Some(bytes) => {
                            let next = inputs.next(step);
                            self.at_once_left -= bytes;
                            self.became(id, place, next);
                        }
                        None => {
                            self.fact(Event::StepDue { run: id, step: place });
                            self.ask(id, place);
                        }
                    }
                }
                Some(StepRun::Due(_)) => self.ask(id, place),
                Some(StepRun::Fan(fan)) if fan.is_full() => self.ask(id, place),
                _ => {}
            }
        }
        self.settle(id);
    }

    /// Ends a run whose steps all ended; marks one stalled that cannot go on.
    fn settle(&mut self, id: RunId) {
        let Some(run) = self.state.runs.get(&id) else { return };
        if run.steps.iter().all(|step| matches!(step, StepRun::Done(_) | StepRun::Skipped)) {
            let Some(def) = self.state.flow_of(run).map(|flow| Arc::clone(&flow.def)) else { return };
            let inputs = Inputs { run, def: &def, evaluate: self.world.evaluate, blobs: self.world.blobs };
            let (output, step) = match inputs.output() {
                Ok(RunOutput::Of(step)) => (None, Some(step)),
                Ok(RunOutput::Made(output)) => (Some(output), None),
                Err(_) => (Some(Payload::Inline(Json::null())), None),
            };
            let expires_at = self.world.now.plus(self.world.policy.result_ttl_ms);
            self.fact(Event::RunEnded { run: id, state: RunState::Succeeded, output, step, expires_at });
            self.effect(Effect::RunEnded { run: id });
        } else if run.state == RunState::Active && !in_flight(run) {
            self.fact(Event::Stalled { run: id });
            self.effect(Effect::RunEnded { run: id });
        }
    }

    pub(crate) fn fault(&mut self, task: TaskRef, fault: &EvaluateFault) {
        self.dead(task, 0, code::TEMPLATE_ERROR, fault.to_string(), "non_retryable", None, Usage::default());
    }

    /// Ends a task as a dead letter, with its file to be written.
    #[expect(clippy::too_many_arguments, reason = "the fields of one record")]
    pub(crate) fn dead(
        &mut self,
        task: TaskRef,
        attempt: u32,
        code: &str,
        message: alloc::string::String,
        reason: &str,
        last_code: Option<&str>,
        usage: Usage,
    ) {
        let entry = self.entry_id(task, attempt);
        self.fact(Event::Dead(alloc::boxed::Box::new(Dead {
            task,
            attempt,
            entry,
            code: code.into(),
            message,
            reason: reason.into(),
            last_code: last_code.map(Into::into),
            usage,
        })));
        if let Some(entry) = super::entry_of(self.state, task, "pending", None) {
            self.effect(Effect::FileEntry { entry: alloc::boxed::Box::new(entry) });
        }
    }

    /// `dlq-<unix ms>-<suffix>`: unique per task and attempt, however many die in one millisecond.
    fn entry_id(&self, task: TaskRef, attempt: u32) -> alloc::string::String {
        use core::hash::Hasher;
        let mut hasher = siphasher::sip::SipHasher24::new_with_key(&self.state.secret);
        hasher.write(&task.run.0.to_le_bytes());
        hasher.write_u32(u32::from(task.step));
        hasher.write_u32(task.item.map_or(0, |item| item + 1));
        hasher.write_u32(attempt);
        hasher.write_u64(self.world.sequence);
        alloc::format!("dlq-{}-{:016x}", self.world.now.0, hasher.finish())
    }
}

fn has_ended(run: &Run, need: u16) -> bool {
    matches!(run.steps.get(usize::from(need)), Some(StepRun::Done(_) | StepRun::Skipped))
}

/// Whether something of the run can still move by itself.
fn in_flight(run: &Run) -> bool {
    run.steps.iter().any(|step| match step {
        StepRun::Single(task) => !matches!(task.phase, Phase::Dead(_)),
        StepRun::Due(_) => true,
        StepRun::Fan(fan) => fan.is_full() || ((fan.succeeded + fan.dead) as usize) < fan.tasks.len(),
        StepRun::Waiting | StepRun::Done(_) | StepRun::Skipped | StepRun::Faulted(_) => false,
    })
}
