//! The ends of attempts: what a worker reports, what the death of one means.

use alloc::{boxed::Box, format, string::String, vec::Vec};

use crate::{
    code::{self, Class},
    id::{Attempt, TaskRef, WorkerId},
    limits::{INPUT_MAX_BYTES, LOST_IN_COMPANY_MAX},
    queue::{
        decide::Desk,
        effect::{Outcome, Report},
        event::{Event, ReleaseReason, RetryScheduled, Succeeded},
        run::{Phase, StepRun, Task},
        state::State,
    },
    wire::{Failure, Usage},
};

/// Whether `from` holds the lease of this attempt (I3).
pub(crate) fn holds(state: &State, from: WorkerId, task: TaskRef, attempt: Attempt) -> bool {
    state
        .runs
        .get(&task.run)
        .and_then(|run| run.task(task))
        .is_some_and(|found| found.phase == Phase::Leased { worker: from } && found.attempt == attempt)
}

impl Desk<'_> {
    pub(crate) fn report(&mut self, from: WorkerId, report: Report) {
        let Report { task, attempt, outcome, usage } = report;
        if !holds(self.state, from, task, attempt) {
            self.state.refused_reports += 1;
            return;
        }
        match outcome {
            Outcome::Succeeded { output, .. } if self.overflows(task, output.size_bytes()) => {
                let message = format!("the outputs of the fan-out are larger than {INPUT_MAX_BYTES} bytes in all");
                self.dead(task, attempt, code::OUTPUT_TOO_LARGE, message, "non_retryable", None, usage);
                self.advance(task.run);
            }
            Outcome::Succeeded { output, artifacts } => {
                self.fact(Event::Succeeded(Box::new(Succeeded { task, attempt, output, usage, artifacts })));
                // The steps that follow stand in the same frame (I5).
                self.advance(task.run);
            }
            Outcome::Failed(failure) => self.failed(task, attempt, failure, usage),
            Outcome::NotStarted => {
                self.fact(Event::Released { task, attempt, reason: ReleaseReason::NotStarted });
            }
        }
    }

    /// Whether an item's output would make the list of its fan-out larger than an input may be.
    fn overflows(&self, task: TaskRef, output_bytes: u64) -> bool {
        let step = self.state.runs.get(&task.run).and_then(|run| run.steps.get(usize::from(task.step)));
        matches!(step, Some(StepRun::Fan(fan)) if fan.output_bytes.saturating_add(output_bytes) > INPUT_MAX_BYTES)
    }

    pub(crate) fn progress(&mut self, from: WorkerId, task: TaskRef, attempt: Attempt, percent: u8) {
        if holds(self.state, from, task, attempt) {
            self.state.progress.insert(task, percent.min(100));
        } else {
            self.state.refused_reports += 1;
        }
    }

    pub(crate) fn release(&mut self, worker: WorkerId, task: TaskRef, attempt: Attempt, reason: ReleaseReason) {
        if holds(self.state, worker, task, attempt) {
            self.fact(Event::Released { task, attempt, reason });
        }
    }

    fn failed(&mut self, task: TaskRef, attempt: Attempt, failure: Failure, usage: Usage) {
        let Failure { class, code, message, retry_after_ms, .. } = failure;
        match class {
            Class::Retryable => self.retry(task, attempt, code, message, retry_after_ms, usage),
            Class::RateLimited => self.rate_limited(task, attempt, message, retry_after_ms, usage),
            Class::InvalidInput | Class::Fatal => {
                self.dead(task, attempt, &code, message, "non_retryable", None, usage);
                self.advance(task.run);
            }
        }
    }

    fn retry(
        &mut self,
        task: TaskRef,
        attempt: Attempt,
        code: String,
        message: String,
        retry_after_ms: Option<u64>,
        usage: Usage,
    ) {
        let Some((found, policy)) = self.task_and_policy(task) else { return };
        let failures = found.failures + 1;
        if failures >= policy.max_attempts {
            return self.exhausted(task, attempt, failures, &code, &message, usage);
        }
        let delay_ms = policy.delay_ms(task, attempt, failures).max(retry_after_ms.unwrap_or(0));
        let ready_at = self.world.now.plus(delay_ms);
        let class = Class::Retryable;
        self.fact(Event::RetryScheduled(Box::new(RetryScheduled {
            task,
            attempt,
            ready_at,
            class,
            code,
            message,
            counted: true,
            usage,
        })));
    }

    fn rate_limited(
        &mut self,
        task: TaskRef,
        attempt: Attempt,
        message: String,
        retry_after_ms: Option<u64>,
        usage: Usage,
    ) {
        let now = self.world.now;
        let Some((found, policy)) = self.task_and_policy(task) else { return };
        let base_ms = policy.base_ms;
        // Not a failure, but not for ever either.
        let most_ms = self.world.policy.rate_limited_max_ms;
        if found.limited_since.as_deref().is_some_and(|&since| now.since(since) >= most_ms) {
            let message = format!("rate-limited for {most_ms} ms: {message}");
            self.dead(
                task,
                attempt,
                code::RETRIES_EXHAUSTED,
                message,
                "rate_limited_max",
                Some(code::RATE_LIMITED),
                usage,
            );
            return self.advance(task.run);
        }
        let ready_at = now.plus(retry_after_ms.unwrap_or(base_ms).clamp(1, most_ms));
        self.fact(Event::RetryScheduled(Box::new(RetryScheduled {
            task,
            attempt,
            ready_at,
            class: Class::RateLimited,
            code: code::RATE_LIMITED.into(),
            message,
            counted: false,
            usage,
        })));
    }

    fn exhausted(
        &mut self,
        task: TaskRef,
        attempt: Attempt,
        failures: u32,
        last_code: &str,
        last_message: &str,
        usage: Usage,
    ) {
        let message = format!("{failures} failures, the last: {last_code}: {last_message}");
        self.dead(task, attempt, code::RETRIES_EXHAUSTED, message, "max_attempts", Some(last_code), usage);
        self.advance(task.run);
    }

    /// The tasks of a dead worker go back at once, each to run alone; the poison among them takes nobody along.
    pub(crate) fn worker_gone(&mut self, worker: WorkerId) {
        let tasks: Vec<TaskRef> = self.state.indexes.leases.get(&worker).into_iter().flatten().copied().collect();
        let alone = tasks.len() == 1;
        for task in tasks {
            let Some((found, policy)) = self.task_and_policy(task) else { continue };
            let (attempt, failures) = (found.attempt, found.failures + 1);
            let counted = alone || found.lost_in_company >= LOST_IN_COMPANY_MAX;
            if counted && failures >= policy.max_attempts {
                let message = String::from("the worker process died while the step ran");
                self.exhausted(task, attempt, failures, code::WORKER_LOST, &message, Usage::default());
            } else {
                self.fact(Event::Lost { task, attempt, counted });
            }
        }
    }

    pub(crate) fn filed(&mut self, entry: String) {
        if self.state.letters.contains_key(&entry) {
            self.fact(Event::Filed { entry });
        }
    }

    fn task_and_policy(&self, task: TaskRef) -> Option<(&Task, crate::backoff::RetryPolicy)> {
        let (_, step) = self.state.step_of(task)?;
        Some((self.state.runs.get(&task.run)?.task(task)?, step.retries.clone()))
    }
}
