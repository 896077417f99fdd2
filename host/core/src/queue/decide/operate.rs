//! The operator's verbs: cancel a run, requeue and purge dead letters.

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};

use crate::{
    api::{ApiError, DlqAction, DlqOutcome, ErrorKind, Reply, RunState},
    id::{RunId, TaskRef},
    queue::{
        apply::key_name,
        decide::{Desk, Input, entry_of, pattern, refusal},
        effect::{Effect, Ticket},
        event::Event,
        indexes::each_task,
        results::Ended,
        run::Phase,
        state::State,
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
        Input::Requeue { action, .. } => {
            !action.dry_run
                && chosen(state, action).is_ok_and(|all| all.iter().any(|(_, task)| key_holder(ended, *task).is_none()))
        }
        Input::Purge { action, .. } => !action.dry_run && chosen(state, action).is_ok(),
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

    pub(crate) fn requeue(&mut self, ticket: Ticket, action: &DlqAction) {
        let reply = match chosen(self.state, action) {
            Err(error) => Reply::Error(*error),
            Ok(chosen) => {
                let mut outcomes = Vec::new();
                for (entry_id, task) in chosen {
                    let task_id = self.state.task_name(task);
                    let (outcome, why) = match key_holder(self.ended(), task) {
                        Some(holder) => ("skipped", Some(format!("key held by {holder}"))),
                        None if action.dry_run => ("would requeue", None),
                        None => {
                            self.requeue_one(entry_id.clone(), task);
                            ("requeued", None)
                        }
                    };
                    outcomes.push(DlqOutcome { entry_id, task_id, outcome: outcome.into(), why });
                }
                Reply::DlqDone(outcomes)
            }
        };
        self.effect(Effect::Reply { ticket, reply });
    }

    fn requeue_one(&mut self, entry: String, task: TaskRef) {
        let archived = entry_of(self.state, task, "requeued", Some(self.world.now));
        self.fact(Event::Requeued { entry, task });
        if let Some(entry) = archived {
            self.effect(Effect::ArchiveEntry { entry: Box::new(entry) });
        }
        self.advance(task.run);
    }

    pub(crate) fn purge(&mut self, ticket: Ticket, action: &DlqAction) {
        let reply = match chosen(self.state, action) {
            Err(error) => Reply::Error(*error),
            Ok(chosen) => {
                let mut outcomes = Vec::new();
                for (entry_id, task) in chosen {
                    let task_id = self.state.task_name(task);
                    // An earlier one of this action may have ended the run, and this entry with it.
                    if !action.dry_run && self.state.letters.contains_key(&entry_id) {
                        // A run that lost a task for good can never succeed.
                        self.end_run(task.run, RunState::Failed);
                    }
                    let outcome = if action.dry_run { "would purge" } else { "purged" };
                    outcomes.push(DlqOutcome { entry_id, task_id, outcome: outcome.into(), why: None });
                }
                Reply::DlqDone(outcomes)
            }
        };
        self.effect(Effect::Reply { ticket, reply });
    }

    /// Ends a run before its time: its dead letters are purged with it, its running attempts are told to stop.
    fn end_run(&mut self, id: RunId, state: RunState) {
        let Some(run) = self.state.runs.get(&id) else { return };
        let letters: Vec<(String, TaskRef)> =
            run.letters().map(|(task, letter)| (letter.entry.clone(), task)).collect();
        let mut running = Vec::new();
        each_task(run, |task, found| {
            if let Phase::Leased { worker } = found.phase {
                running.push((worker, task, found.attempt));
            }
        });
        for (entry, task) in letters {
            self.purge_one(entry, task);
        }
        let expires_at = self.world.now.plus(self.world.policy.result_ttl_ms);
        self.fact(Event::RunEnded { run: id, state, output: None, step: None, expires_at });
        for (worker, task, attempt) in running {
            self.effect(Effect::Cancel { worker, task, attempt });
        }
        self.effect(Effect::RunEnded { run: id });
    }

    fn purge_one(&mut self, entry: String, task: TaskRef) {
        let archived = entry_of(self.state, task, "purged", Some(self.world.now));
        self.fact(Event::Purged { entry, task });
        if let Some(entry) = archived {
            self.effect(Effect::ArchiveEntry { entry: Box::new(entry) });
        }
    }
}

/// Another run that holds the idempotency key of this task's run.
fn key_holder(ended: Ended<'_>, task: TaskRef) -> Option<RunId> {
    let run = ended.state.runs.get(&task.run)?;
    let holder = ended.holder(&key_name(&ended.state.flows, run)?)?;
    (holder != task.run).then_some(holder)
}

fn chosen(state: &State, action: &DlqAction) -> Result<Vec<(String, TaskRef)>, Box<ApiError>> {
    let pattern = &action.pattern;
    let found = pattern::matches(state, action);
    if found.is_empty() {
        return Err(Box::new(refusal(ErrorKind::Failed, format!("no DLQ entries match '{pattern}'"))));
    }
    if found.len() > 1 && pattern::is_glob(pattern) && !action.all && !action.dry_run {
        let count = found.len();
        let message = format!("'{pattern}' matches {count} entries; nothing was changed");
        let hint = Some(String::from("add --all to act on all of them, or --dry-run to see them"));
        return Err(Box::new(ApiError { hint, ..refusal(ErrorKind::Usage, message) }));
    }
    Ok(found)
}
