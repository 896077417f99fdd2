//! One attempt: a fresh store and instance, one call, one report.

use std::{
    future::Future,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tm_core::{
    code,
    interfaces::FLOW_VERSION,
    json::Json,
    limits::INLINE_MAX_BYTES,
    wire::{Body, Failure, Outcome, Report, Start, Usage},
};
use tokio::sync::mpsc::UnboundedSender;
use wasmtime::{
    Engine, Store, UpdateDeadline,
    component::{Component, ComponentExportIndex, InstancePre},
};

use super::{
    ctx::{Ctx, Signals, Tripped},
    linker::{GuestContext, GuestError},
    verdict,
};
use crate::{
    packet,
    serve::{Folders, Outgoing},
};

/// What a call of the step answers.
/// Owned texts: the guest takes its own back in post-return, which runs before the call answers.
type Answer = (Result<String, GuestError>,);

/// A component that can run, with its entry found.
pub struct Entry {
    pub pre: InstancePre<Ctx>,
    pub run: ComponentExportIndex,
}

/// `tracemind:flow/step@0.1.0` `run`, when the component has it.
#[must_use]
pub fn entry_point(component: &Component) -> Option<ComponentExportIndex> {
    let step = component.get_export_index(None, format!("tracemind:flow/step@{FLOW_VERSION}").as_str())?;
    component.get_export_index(Some(&step), "run")
}

/// What an attempt needs of its worker.
pub struct Place {
    pub engine: Engine,
    pub folders: Arc<Folders>,
    pub signals: Arc<Signals>,
    pub out: UnboundedSender<Outgoing>,
}

/// Runs one attempt to its end; `read` is an input that came by descriptor. The descriptor of the answer is the output's, when it is too large for the packet.
pub async fn attempt(entry: &Entry, place: &Place, start: &Start, read: Option<&str>) -> (Report, Option<OwnedFd>) {
    let begun = Instant::now();
    let input = match &start.input {
        Body::Inline(json) => json.get(),
        Body::Fd { .. } => read.unwrap_or_default(),
    };
    let ctx = Ctx::new(start, &place.folders, Arc::clone(&place.signals), place.out.clone());
    let (outcome, usage, log, fd) = match ctx {
        Err(error) => (Outcome::NotStarted { reason: error.to_string() }, Usage::default(), String::new(), None),
        Ok(ctx) => {
            let mut store = store(place, start, ctx, begun);
            let (outcome, fd) = match finish(&mut store, entry, start, input, begun).await {
                Ok(output) => succeed(&mut store, output),
                Err(failure) => (Outcome::Failed(failure), None),
            };
            let usage = Usage {
                fuel: start.limits.fuel - store.get_fuel().unwrap_or(0).min(start.limits.fuel),
                peak_memory_bytes: store.data().memory.peak_bytes(),
                exec_us: u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
            };
            (outcome, usage, store.data().capture.take(), fd)
        }
    };
    (Report { task: start.task, attempt: start.attempt, outcome, usage, log }, fd)
}

fn store(place: &Place, start: &Start, ctx: Ctx, begun: Instant) -> Store<Ctx> {
    let mut store = Store::new(&place.engine, ctx);
    store.limiter(|ctx| &mut ctx.memory);
    // Fails only without fuel in the engine's configuration.
    let _ = store.set_fuel(start.limits.fuel);
    // What one host call may lift out of the guest: the texts of one list can name the same bytes again and again.
    store.set_hostcall_fuel((start.limits.memory_mb as usize) << 20);
    store.set_epoch_deadline(1);
    let (limit_ms, signals) = (start.limits.timeout_ms, Arc::clone(&place.signals));
    let deadline = begun + Duration::from_millis(limit_ms);
    store.epoch_deadline_callback(move |_| {
        if Instant::now() >= deadline {
            return Err(Tripped::Timeout { limit_ms }.into());
        }
        if signals.killed.load(Ordering::Relaxed) {
            return Err(Tripped::Cancelled.into());
        }
        // tokio's yield lets sockets and timers have their turn, unlike a plain wake.
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    });
    store
}

/// From the instance to a judged output.
async fn finish(
    store: &mut Store<Ctx>,
    entry: &Entry,
    start: &Start,
    input: &str,
    begun: Instant,
) -> Result<Json, Failure> {
    let limits = &start.limits;
    if !store.data_mut().memory.buffer(input.len() as u64) {
        let message =
            format!("the input ({} bytes) alone is larger than memory_mb = {}", input.len(), limits.memory_mb);
        return Err(verdict::host(code::MEMORY_EXCEEDED, &message));
    }
    let signals = Arc::clone(&store.data().signals);
    let deadline = tokio::time::Instant::from_std(begun + Duration::from_millis(limits.timeout_ms));
    let ended = {
        let call = std::pin::pin!(call(store, entry, start, input));
        tokio::select! {
            biased;
            answer = call => answer,
            // These two end a guest that waits inside a host function; one that computes ends at its next epoch.
            () = killed(&signals) => Err(Stop::Tripped(Tripped::Cancelled)),
            () = tokio::time::sleep_until(deadline) =>
                Err(Stop::Tripped(Tripped::Timeout { limit_ms: limits.timeout_ms })),
        }
    };
    let answer = match ended {
        Ok(answer) => answer,
        Err(Stop::Tripped(tripped)) => return Err(verdict::host(tripped.code(), &tripped.to_string())),
        Err(Stop::Mismatch(error)) => {
            return Err(verdict::host(code::COMPILE_FAILED, &format!("the step's run has another type: {error:#}")));
        }
        Err(Stop::Guest { error, place }) => return Err(verdict::of_error(&error, store.data(), limits, place)),
    };
    if let Some(tripped) = store.data().tripped {
        return Err(verdict::host(tripped.code(), &tripped.to_string()));
    }
    match answer {
        Ok(output) => judge(&output, limits.output_kb),
        Err(error) => Err(verdict::of_step(&error)),
    }
}

/// Why no answer came.
enum Stop {
    Tripped(Tripped),
    /// What the component exports cannot be called as a step; its inspection should have told.
    Mismatch(wasmtime::Error),
    Guest {
        error: wasmtime::Error,
        place: &'static str,
    },
}

fn killed(signals: &Signals) -> impl Future<Output = ()> {
    signals.kill.notified()
}

async fn call(
    store: &mut Store<Ctx>,
    entry: &Entry,
    start: &Start,
    input: &str,
) -> Result<Result<String, GuestError>, Stop> {
    let starting = |error| Stop::Guest { error, place: verdict::STARTING };
    let running = |error| Stop::Guest { error, place: verdict::RUNNING };
    let instance = entry.pre.instantiate_async(&mut *store).await.map_err(starting)?;
    let run =
        instance.get_typed_func::<(GuestContext, &str), Answer>(&mut *store, entry.run).map_err(Stop::Mismatch)?;
    let (answer,) = run.call_async(&mut *store, (context(start), input)).await.map_err(running)?;
    Ok(answer)
}

fn context(start: &Start) -> GuestContext {
    let given = &start.context;
    let name = start.task_name();
    GuestContext {
        run_id: start.task.run.to_string(),
        flow_id: given.flow_id.clone(),
        step_id: given.step_id.clone(),
        task_id: name.clone(),
        attempt: start.attempt,
        max_attempts: given.max_attempts,
        idempotency_key: name,
        deadline_ms: given.deadline_ms,
        trace_parent: given.trace_parent.clone(),
    }
}

/// The output must fit and must be JSON. Its copy is bounded by the memory that the guest may have.
fn judge(text: &str, output_kb: u32) -> Result<Json, Failure> {
    if text.len() as u64 > u64::from(output_kb) * 1024 {
        let message = format!("the step's output has {} bytes, output_kb = {output_kb} allows less", text.len());
        return Err(verdict::host(code::OUTPUT_TOO_LARGE, &message));
    }
    Json::parse(text)
        .map_err(|error| verdict::host(code::OUTPUT_INVALID, &format!("the step's output is not JSON: {error}")))
}

fn succeed(store: &mut Store<Ctx>, output: Json) -> (Outcome, Option<OwnedFd>) {
    let ctx = store.data_mut();
    ctx.files.remove_scratch();
    let artifacts = ctx.artifacts.conclude();
    if output.size_bytes() <= INLINE_MAX_BYTES {
        return (Outcome::Succeeded { output: Body::Inline(output), artifacts }, None);
    }
    match packet::sealed("output", output.get().as_bytes()) {
        Ok(fd) => (Outcome::Succeeded { output: Body::Fd { size_bytes: output.size_bytes() }, artifacts }, Some(fd)),
        Err(errno) => {
            (Outcome::Failed(verdict::host(code::HOST_ERROR, &format!("room for the step's output: {errno}"))), None)
        }
    }
}

/// The text of an input that does not stand in the packet, from its descriptor.
///
/// # Errors
/// In words, when the descriptor cannot be read or does not hold text.
pub fn read_input(body: &Body, fd: Option<&OwnedFd>) -> Result<Option<String>, String> {
    match (body, fd) {
        (Body::Inline(_), _) => Ok(None),
        (Body::Fd { .. }, None) => Err("the input's descriptor is missing".to_owned()),
        (Body::Fd { .. }, Some(fd)) => {
            let bytes = packet::read_whole(fd.as_fd(), tm_core::limits::INPUT_MAX_BYTES);
            let bytes = bytes.map_err(|errno| format!("the input's descriptor: {errno}"))?;
            String::from_utf8(bytes).map(Some).map_err(|_| "the input is not UTF-8".to_owned())
        }
    }
}
