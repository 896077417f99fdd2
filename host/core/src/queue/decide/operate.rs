//! The operator's verbs on one thing: cancel a run, put a dead task back.

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};

use crate::{
    api::{ErrorKind, Reply, RunState},
    id::{RunId, TaskRef},
    queue::{
        decide::{Desk, Input, entry_of, refusal},
        effect::{Effect, Ticket},
        event::Event,
        indexes::each_task,
        results::Ended,
        run::Phase,
        view::{self, Found},
    },
};

/// Whether an operator's input would change anything: what looks and what is refused needs no room in the log.
#[must_use]
pub fn changes(ended: Ended<'_>, input: &Input) -> bool {
    let state = ended.state;
    match input {
        Input::Cancel { id, .. } => {
            matches!(view::find_run(ended, id), Found::Run(run) if state.runs.contains_key(&run))
        }
        Input::ForgetKey { tenant, flow, key, .. } => {
            ended.holder(&(Arc::from(tenant.as_str()), flow.clone(), key.clone())).is_some()
        }
        _ => true,
    }
}

impl Desk<'_> {
    pub(crate) fn cancel(&mut self, ticket: Ticket, id: &str) {
        let reply = match view::find_run(self.ended(), id) {
            Found::Run(run) if self.state.runs.contains_key(&run) => {
                self.end_run(run, RunState::Cancelled);
                Reply::Cancelled { run }
            }
            Found::Run(run) => {
                let ended = self.ended().run(run).and_then(Result::ok);
                let state = ended.map_or(RunState::Failed, |ended| ended.state);
                let state = format!("{state:?}").to_lowercase();
                Reply::Error(refusal(ErrorKind::Failed, format!("run {run} has ended already: {state}")))
            }
            Found::None => Reply::Error(view::no_run(id)),
            Found::Several(count) => Reply::Error(view::several_runs(id, count)),
        };
        self.effect(Effect::Reply { ticket, reply });
    }

    /// Puts a dead task back, and lets its run go on.
    pub(crate) fn requeue(&mut self, entry: String, task: TaskRef) {
        let archived = entry_of(self.state, task, "requeued", Some(self.world.now));
        self.fact(Event::Requeued { entry, task });
        if let Some(entry) = archived {
            self.effect(Effect::ArchiveEntry { entry: Box::new(entry) });
        }
        self.advance(task.run);
    }

    /// Ends a run before its time, in one frame that is as small for a run of 10,000 tasks as for one of one: its dead
    /// letters are purged with it, its running attempts are told to stop.
    pub(crate) fn end_run(&mut self, id: RunId, state: RunState) {
        let Some(run) = self.state.runs.get(&id) else { return };
        let mut running = Vec::new();
        each_task(run, |task, found| {
            if let Phase::Leased { worker } = found.phase {
                running.push((worker, task, found.attempt));
            }
        });
        let expires_at = self.world.now.plus(self.world.policy.result_ttl_ms);
        self.fact(Event::RunEnded { run: id, state, output: None, step: None, expires_at });
        if let Some(run) = self.state.purged.take()
            && let Some(flow) = self.state.flow_of(&run).cloned()
        {
            self.effect(Effect::ArchiveRun { run, flow, at: self.world.now });
        }
        for (worker, task, attempt) in running {
            self.effect(Effect::Cancel { worker, task, attempt });
        }
        self.effect(Effect::RunEnded { run: id });
    }
}
