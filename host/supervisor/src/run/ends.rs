//! How attempts end: what a worker reports, on its way to the queue.
//!
//! An output that becomes a blob is written, and artefacts are moved to their place, before the success is logged; a
//! thread beside the loop does that and brings the report afterwards. What a worker said comes before its end.

use std::os::fd::OwnedFd;

use tm_core::{
    code::{self, Class},
    flow::spec::StepDef,
    id::{Digest, TaskRef, WorkerId},
    queue::{
        decide::holds_lease,
        effect::{Input, Outcome, Report},
        state::Registered,
    },
    wire::{self, Body, Failure, staging_path},
};

use super::{
    Happening,
    house::input_digest,
    reports::{artifact_failure, host_failure, report_of},
    session::Session,
};
use crate::{
    store::{artifacts::Publication, disk::Disk},
    workers::profile::{ProfileError, share},
};

/// Large outputs that wait to be written: beyond it the loop writes them itself, and takes no more meanwhile.
const ENDING_MAX: usize = 64;

impl<D: Disk> Session<D> {
    pub(super) fn report(&mut self, from: WorkerId, report: wire::Report, fds: Vec<OwnedFd>) {
        let (task, attempt) = (report.task, report.attempt);
        if let Some(pool) = &mut self.house.pool {
            pool.ended(from, task);
        }
        if !report.log.is_empty() {
            tracing::debug!(task = %self.turn.state.task_name(task), attempt, log = %report.log, "a step said");
        }
        // Nothing is read or moved for a report that the core would refuse.
        let state = &self.turn.state;
        let found = state.runs.get(&task.run).and_then(|run| run.task(task)).zip(state.step_of(task));
        let Some((found, (flow, step))) = found.filter(|_| holds_lease(state, from, task, attempt)) else {
            self.turn.state.refused_reports += 1;
            return;
        };
        let output_max_bytes = u64::from(step.limits.output_kb) * 1024;
        let (is_large, publishes) = match &report.outcome {
            wire::Outcome::Succeeded { output, artifacts } => {
                (matches!(output, Body::Fd { .. }), !artifacts.is_empty())
            }
            _ => (false, false),
        };
        let publish = publishes.then(|| self.publication(task, attempt, input_digest(found), flow, step));
        let ending = self.ending.values().sum::<usize>();
        if publish.is_none() && (!is_large || ending >= ENDING_MAX) {
            let report = Box::new(report_of(report, &fds, output_max_bytes, &self.house.blobs));
            return self.take_end(from, report);
        }
        *self.ending.entry(from).or_default() += 1;
        let (blobs, happenings) = (self.house.blobs.clone(), self.house.happenings.clone());
        self.movers.give(move || {
            let mut report = Box::new(report_of(report, &fds, output_max_bytes, &blobs));
            if let Some(publish) = publish
                && let Err(failure) = publish(&report)
            {
                report.outcome = Outcome::Failed(failure);
            }
            // Nobody listens any more when the supervisor stops: the attempt is then made again, or found complete.
            drop(happenings.send(Happening::Ended { from, report }));
        });
    }

    /// The thread beside the loop is done with a report.
    pub(super) fn ended(&mut self, from: WorkerId, report: Box<Report>) {
        if let Some(left) = self.ending.get_mut(&from) {
            *left -= 1;
            if *left == 0 {
                self.ending.remove(&from);
            }
        }
        self.take_end(from, report);
    }

    /// A worker is gone, after all that it had said.
    pub(super) fn gone(&mut self, worker: WorkerId) {
        let gone = Input::WorkerGone { worker };
        if self.ending.contains_key(&worker) {
            let happenings = self.house.happenings.clone();
            self.movers.give(move || drop(happenings.send(Happening::Input(gone))));
        } else {
            self.reports.push_back(gone);
        }
    }

    /// A report whose output and artefacts are where they belong.
    fn take_end(&mut self, from: WorkerId, report: Box<Report>) {
        let (task, attempt) = (report.task, report.attempt);
        let (stays, published) = match &report.outcome {
            Outcome::Succeeded { artifacts, .. } => (self.house.keep_scratch, !artifacts.is_empty()),
            Outcome::Failed(_) => (true, false),
            Outcome::NotStarted => (false, false),
        };
        if stays {
            self.house.tell_scratch(&self.turn.state, task, attempt);
        }
        if !published {
            self.discard(task, attempt);
        }
        self.reports.push_back(Input::Report { from, report });
    }

    /// How a successful attempt's artefacts are moved, once its output is known.
    fn publication(
        &self,
        task: TaskRef,
        attempt: u32,
        input: Digest,
        flow: &Registered,
        step: &StepDef,
    ) -> impl FnOnce(&Report) -> Result<(), Failure> + Send + use<D> {
        let max_bytes = u64::from(step.limits.artifacts_mb) << 20;
        let (tenant, step_id, component) = (flow.tenant.clone(), step.id.clone(), step.component);
        let staging = staging_path(&task.name(&step_id), attempt);
        let (store, user) = (self.house.artifacts.clone(), self.house.user.clone());
        let results = self.house.store.join("tenants").join(&*tenant).join("results").join(task.run.to_string());
        move |report: &Report| {
            let Outcome::Succeeded { output, .. } = &report.outcome else { return Ok(()) };
            let (tenant, staging, step_id) = (&*tenant, staging.as_str(), step_id.as_str());
            let publication = Publication { tenant, staging, task, step_id, component, input, output, max_bytes };
            store.publish(&publication).map_err(|error| artifact_failure(&error))?;
            let failed = |error: ProfileError| host_failure(code::HOST_ERROR, Class::Retryable, error.to_string());
            share(&results, user.as_ref()).map_err(failed)
        }
    }

    /// Removes what an attempt without artefacts to publish may have left in staging.
    fn discard(&self, task: TaskRef, attempt: u32) {
        let Some((flow, step)) = self.turn.state.step_of(task) else { return };
        if !step.grants.artifacts {
            return;
        }
        let (tenant, store) = (flow.tenant.clone(), self.house.artifacts.clone());
        let folder = staging_path(&task.name(&step.id), attempt);
        self.movers.give(move || {
            let done = store.tenant(&tenant).and_then(|folders| store.discard(&folders.tmp, &folder));
            if let Err(error) = done {
                tracing::warn!(%error, "what a failed attempt staged stays until the next start");
            }
        });
    }
}
