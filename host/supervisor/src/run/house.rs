//! The real [`Shell`]: workers, files beside the log, and those who wait for answers.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::Sender,
    },
};

use tm_core::{
    api::{ApiError, DlqEntry, ErrorKind, Reply, WorkerRow},
    code,
    id::{Digest, FlowNo, RunId, TaskRef, WorkerId},
    json::Payload,
    queue::{
        decide::{Making, Runnable, purged_entries},
        effect::{Effect, Input, Outcome, Report, Ticket},
        lanes::{Slot, Want},
        results::Ended,
        run::{FinishedRun, Task},
        state::{Registered, State},
        view,
    },
    time::Millis,
    wire::{ArtifactEntry, Usage, staging_path},
};

use super::{
    Happening,
    answers::has_ended,
    catalogue::{Catalogue, ComponentKey, Native, profile_of},
    held::Held,
    jobs::Lane,
    natives::{Failed, Natives},
    pause::Pause,
    payloads::StoredBlobs,
    start::start_of,
    sweep::scratch_left,
};
use crate::{
    daemon::edge::connection_of,
    evaluate::MiniJinja,
    store::{
        artifacts::{Artifacts, ManifestFile},
        disk::Disk,
        dlq::Dlq,
    },
    turn::Shell,
    workers::{Pool, profile::WorkerUser, sealed},
};

/// How often in a row the process that compiles a component may fail before the component is given up.
const PROCESS_FAILURES_MAX: u32 = 4;
/// How long a cancelled attempt may go on before it is stopped.
const CANCEL_GRACE_MS: u64 = 2_000;
/// Dead letters whose files wait to be archived: beyond it bulk actions wait.
const ARCHIVES_MAX: u64 = 256;

pub(super) struct House<D: Disk> {
    pub(super) catalogue: Catalogue,
    /// None in a session without workers.
    pub(super) pool: Option<Pool>,
    pub(super) natives: Natives<D>,
    /// Components whose artefact the host could not make or hold.
    pub(super) held: Held,
    /// Attempts that succeed leave their scratch folders.
    pub(super) keep_scratch: bool,
    /// Artefacts stay for a while after their run is forgotten.
    pub(super) artifacts_stay: bool,
    /// When nothing is handed out although workers are free.
    pub(super) pause: Pause,
    pub(super) artifacts: Artifacts<D>,
    /// The store's folder, and the user that reads results in it.
    pub(super) store: PathBuf,
    pub(super) user: Option<WorkerUser>,
    pub(super) blobs: StoredBlobs<D>,
    pub(super) letters: Dlq<D>,
    /// Writes dead letters' files.
    pub(super) files: Lane,
    /// Makes inputs and lists.
    pub(super) makers: Lane,
    pub(super) evaluate: Arc<MiniJinja>,
    /// What is being made.
    pub(super) making: u64,
    /// Dead letters whose files are still to be archived.
    pub(super) archives: Arc<AtomicU64>,
    pub(super) happenings: Sender<Happening>,
    /// Variables of this process that the configuration lets tenants have.
    pub(super) host_env: BTreeMap<String, String>,
    /// What the shell itself found out, for the next turn.
    pub(super) inputs: VecDeque<Input>,
    pub(super) replies: Vec<(Ticket, Reply)>,
    pub(super) waiters: BTreeMap<RunId, Vec<Ticket>>,
    /// When the pool wants to be asked again although nothing happened.
    pub(super) again_at: Option<Millis>,
}

impl<D: Disk> Shell for House<D> {
    fn slots(&mut self) -> Vec<Slot> {
        if self.pause.why().is_some() {
            return Vec::new();
        }
        self.pool.as_ref().map_or_else(Vec::new, Pool::slots)
    }

    fn flow(&mut self, no: FlowNo, flow: &Registered) {
        for key in self.catalogue.learn(no, flow) {
            self.find_native(&key);
        }
    }

    fn runnable(&self, flow: FlowNo, step: u16) -> Runnable {
        self.catalogue.runnable(flow, step)
    }

    fn wanted(&mut self, state: &State, wants: &[Want], now: Millis) {
        let Some(pool) = &mut self.pool else { return };
        if !wants.is_empty() {
            self.pause.turn(now, state.depth());
        }
        let catalogue = &self.catalogue;
        self.again_at =
            pool.want(wants, &|no| profile_of(state, no).and_then(|profile| catalogue.spec(profile)).cloned(), now.0);
    }

    fn perform(&mut self, ended: Ended<'_>, effect: Effect, now: Millis) {
        match effect {
            Effect::Reply { ticket, reply } => self.replies.push((ticket, reply)),
            Effect::Start { worker, task, attempt } => self.start(ended.state, worker, task, attempt, now),
            Effect::Make(making) => self.make(making),
            Effect::Cancel { worker, task, attempt } => {
                if let Some(pool) = &mut self.pool {
                    pool.cancel(worker, task, attempt, CANCEL_GRACE_MS);
                }
            }
            Effect::FileEntry { entry } => {
                let (letters, happenings) = (self.letters.clone(), self.happenings.clone());
                self.files.give(move || match letters.file(&entry) {
                    Ok(()) => drop(happenings.send(Happening::Input(Input::Filed { entry: entry.entry_id.clone() }))),
                    // The log still holds it, so it is tried again.
                    Err(error) => {
                        tracing::warn!(entry = %entry.entry_id, %error, "a dead letter's file cannot be written");
                        drop(happenings.send(Happening::Unfiled));
                    }
                });
            }
            Effect::ArchiveEntry { entry } => self.archive(1, move || std::iter::once(*entry)),
            // Its entries are made there too: it may have 10,000.
            Effect::ArchiveRun { run, flow, at } => {
                let letters = run.letters().count() as u64;
                self.archive(letters, move || purged_entries(&run, &flow, at).collect::<Vec<_>>());
            }
            Effect::RunEnded { run } => {
                for ticket in self.waiters.remove(&run).unwrap_or_default() {
                    self.replies.push((ticket, end_of(ended, run, &self.blobs)));
                }
            }
        }
    }

    fn keeps_up(&self) -> bool {
        self.archives.load(Ordering::Acquire) < ARCHIVES_MAX
    }

    fn forgotten(&mut self, run: &FinishedRun) {
        let Some((tenant, _)) = self.catalogue.def(run.flow).filter(|_| !self.artifacts_stay) else { return };
        let (artifacts, tenant, id) = (self.artifacts.clone(), Arc::clone(tenant), run.id);
        self.files.give(move || {
            if let Err(error) = artifacts.remove_run(&tenant, id) {
                tracing::warn!(run = %id, %error, "a forgotten run's artefacts cannot be removed");
            }
        });
    }
}

impl<D: Disk> House<D> {
    /// Starts workers for the steps of registered flows before any task is ready.
    pub(super) fn warm_up(&mut self, state: &State, now: Millis) {
        let steps =
            state.flows.iter().flat_map(|(no, flow)| (0u16..).zip(&flow.def.steps).map(|(step, _)| (*no, step)));
        let profiles: BTreeSet<_> =
            steps.filter_map(|(flow, step)| state.indexes.lanes.lane(flow, step)).map(|lane| lane.profile).collect();
        let hints: Vec<Want> = profiles.into_iter().map(|profile| Want { profile, ready: 0, since: now }).collect();
        self.wanted(state, &hints, now);
    }

    fn make(&mut self, making: Making) {
        let (evaluate, blobs, happenings) = (Arc::clone(&self.evaluate), self.blobs.clone(), self.happenings.clone());
        self.making += 1;
        self.makers.give(move || {
            let made = making.make(&*evaluate, &blobs);
            // Nobody listens any more when the supervisor stops: the next one makes it again.
            drop(happenings.send(Happening::Made { run: making.run, step: making.step, made }));
        });
    }

    /// Archives files of dead letters beside the loop, and calls it when bulk actions may go on.
    fn archive<E: IntoIterator<Item = DlqEntry>>(&self, count: u64, entries: impl FnOnce() -> E + Send + 'static) {
        let (letters, happenings, archives) =
            (self.letters.clone(), self.happenings.clone(), Arc::clone(&self.archives));
        archives.fetch_add(count, Ordering::AcqRel);
        self.files.give(move || {
            for entry in entries() {
                if let Err(error) = letters.archive(&entry) {
                    tracing::warn!(entry = %entry.entry_id, %error, "a dead letter's file cannot be archived");
                }
            }
            let before = archives.fetch_sub(count, Ordering::AcqRel);
            if before >= ARCHIVES_MAX && before - count < ARCHIVES_MAX {
                // Nobody waits any more when the loop is gone.
                drop(happenings.send(Happening::CaughtUp));
            }
        });
    }

    pub(super) fn workers(&self) -> Vec<WorkerRow> {
        self.pool.as_ref().map_or_else(Vec::new, Pool::rows)
    }

    /// Answers when the run ended; at once when it has.
    pub(super) fn wait(&mut self, ended: Ended<'_>, ticket: Ticket, run: RunId) {
        if has_ended(ended, run) {
            self.replies.push((ticket, end_of(ended, run, &self.blobs)));
        } else if ended.state.runs.contains_key(&run) {
            self.waiters.entry(run).or_default().push(ticket);
        } else {
            self.replies.push((ticket, Reply::Error(view::no_run(&run.to_string()))));
        }
    }

    /// A client that is gone waits for nothing.
    pub(super) fn forget_waiters(&mut self, connection: u32) {
        self.waiters.retain(|_, tickets| {
            tickets.retain(|ticket| connection_of(*ticket) != connection);
            !tickets.is_empty()
        });
    }

    /// Finds a component's native artefact, or has it compiled.
    fn find_native(&mut self, key: &ComponentKey) {
        if self.pool.is_none() {
            return;
        }
        let native = match self.natives.find(key) {
            Ok(true) => {
                self.held.forget(key);
                Native::Here
            }
            Ok(false) => {
                self.natives.compile(key.clone(), self.happenings.clone());
                Native::Compiling
            }
            Err(failed) => self.failed(key, failed),
        };
        self.catalogue.set_native(key, native);
    }

    /// What a component is without an artefact: given up, or held until it is tried again.
    fn failed(&mut self, key: &ComponentKey, failed: Failed) -> Native {
        match failed {
            Failed::Component { code, message } => {
                tracing::warn!(component = %key.1, code, %message, "a component cannot be compiled");
                Native::Failed { code, message }
            }
            Failed::Process { why } if self.held.failures(key) >= PROCESS_FAILURES_MAX => {
                self.held.forget(key);
                self.failed(key, Failed::Component { code: code::COMPILE_FAILED, message: why })
            }
            Failed::Host { why } | Failed::Process { why } => {
                tracing::warn!(component = %key.1, %why, "the host has no native artefact of a component; its tasks wait");
                self.held.add(key);
                Native::Held { why }
            }
        }
    }

    /// Tries again what is due of the components that are held. Returns when the next is.
    pub(super) fn try_held(&mut self, now: Millis) -> Option<Millis> {
        for key in self.held.due(now) {
            self.find_native(&key);
        }
        self.held.next(now)
    }

    pub(super) fn compiled(&mut self, key: &ComponentKey, outcome: Result<OwnedFd, Failed>) {
        let native = match outcome {
            Ok(artefact) => {
                self.held.forget(key);
                self.natives.keep(key, artefact);
                Native::Here
            }
            Err(failed) => self.failed(key, failed),
        };
        self.catalogue.set_native(key, native);
    }

    /// Says what an attempt leaves in its scratch folder, beside the loop.
    pub(super) fn tell_scratch(&self, state: &State, task: TaskRef, attempt: u32) {
        let Some((flow, step)) = state.step_of(task).filter(|(_, step)| step.grants.scratch) else { return };
        let scratch = self.store.join("tenants").join(&*flow.tenant).join("scratch");
        let folder = scratch.join(staging_path(&task.name(&step.id), attempt));
        self.files.give(move || {
            if let Some(bytes) = scratch_left(&folder) {
                tracing::info!(folder = %folder.display(), bytes, "the scratch folder of an attempt is kept");
            }
        });
    }

    /// What an earlier attempt published completely before its success could be logged: it need not run again.
    fn published(&self, state: &State, task: TaskRef) -> Option<(Payload, Vec<ArtifactEntry>)> {
        let (flow, step) = state.step_of(task)?;
        let found = state.runs.get(&task.run)?.task(task)?;
        if !step.grants.artifacts || found.attempt < 2 {
            return None;
        }
        let manifest = self.artifacts.lookup(&flow.tenant, task, &step.id, step.component, input_digest(found))?;
        let entry = |file: ManifestFile| ArtifactEntry { name: file.name, size_bytes: file.size_bytes };
        Some((manifest.output, manifest.files.into_iter().map(entry).collect()))
    }

    fn start(&mut self, state: &State, worker: WorkerId, task: TaskRef, attempt: u32, now: Millis) {
        if let Some((output, artifacts)) = self.published(state, task) {
            let outcome = Outcome::Succeeded { output, artifacts };
            let report = Box::new(Report { task, attempt, outcome, usage: Usage::default() });
            return self.inputs.push_back(Input::Report { from: worker, report });
        }
        if let Err(why) = self.try_start(state, worker, task, attempt, now) {
            tracing::warn!(task = %state.task_name(task), %why, "a task could not be handed to its worker");
            // It goes back as if it had never started. The reason is the host's: at once it would be the same.
            self.pause.host_failed(now, &why);
            self.inputs.push_back(Input::NotStarted { worker, task, attempt });
        }
    }

    fn try_start(
        &mut self,
        state: &State,
        worker: WorkerId,
        task: TaskRef,
        attempt: u32,
        now: Millis,
    ) -> Result<(), String> {
        let (flow, step) = state.step_of(task).ok_or("its run is gone")?;
        let key = (Arc::clone(&flow.tenant), step.component);
        let component = self.catalogue.component(&key).ok_or("its component is unknown")?.no;
        let blobs = &self.blobs;
        let open = |payload: &Payload| -> Result<OwnedFd, String> {
            match payload {
                Payload::Blob(blob) => blobs.open(&blob.digest).map_err(|error| error.to_string()),
                Payload::Inline(json) => sealed::make(json.get().as_bytes()).map_err(|error| error.to_string()),
            }
        };
        let (start, fds) = start_of(state, task, attempt, component, &self.host_env, self.keep_scratch, now, &open)
            .map_err(|error| error.to_string())?;
        let pool = self.pool.as_mut().ok_or("there are no workers")?;
        if !pool.has_loaded(worker, component) {
            pool.load(worker, component, self.natives.open(&key)?);
        }
        pool.start_task(worker, start, fds).map_err(|error| error.to_string())
    }
}

fn end_of<D: Disk>(ended: Ended<'_>, run: RunId, blobs: &StoredBlobs<D>) -> Reply {
    match view::run_end(ended, run, blobs) {
        Ok(Some(end)) => Reply::Ended(Box::new(end)),
        Err(error) => Reply::Error(*error),
        Ok(None) => Reply::Error(ApiError {
            kind: ErrorKind::Internal,
            code: None,
            message: format!("run {run} ended and cannot be found"),
            hint: None,
            retry_after_ms: None,
        }),
    }
}

/// The digest of a task's input, with which its artefacts are proven.
pub(super) fn input_digest(task: &Task) -> Digest {
    match &task.input {
        Payload::Inline(json) => Digest::of(json.get().as_bytes()),
        Payload::Blob(blob) => blob.digest,
    }
}
