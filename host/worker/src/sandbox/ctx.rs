//! The data of one attempt's store: what its host functions may reach.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tm_core::{
    code,
    id::{Attempt, TaskRef},
    wire::{FromWorker, Start},
};
use tokio::sync::{Notify, mpsc::UnboundedSender};
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView, filesystem::WasiFilesystemCtxView};

use super::{
    artifacts::Artifacts,
    capture::{Capture, Standard},
    files::{CountedFiles, Files, FilesError},
    limits::MemoryMeter,
};
use crate::serve::{Folders, Outgoing};

/// Handles that one attempt may hold at once: streams, files, pollables.
const RESOURCES_MAX: usize = 4096;
/// One call of `wasi:random`.
const RANDOM_MAX_BYTES: u64 = 1 << 20;
/// Progress is told when it grew, or this long after the last time.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// A limit of the table, reached in a host function. The attempt ends with its code, whatever the guest makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Tripped {
    #[error("the step wrote more than scratch_mb = {limit_mb}")]
    Scratch { limit_mb: u32 },
    #[error("the step wrote more than max_mb = {limit_mb} into a folder")]
    Folder { limit_mb: u32 },
    #[error("the step's artefacts are larger than artifacts_mb = {limit_mb}")]
    Artifacts { limit_mb: u32 },
    #[error("the step has more artefacts than a report can name (about 1,500)")]
    ArtifactCount,
    #[error("the step finished an artefact of zero bytes")]
    ArtifactEmpty,
    #[error("the attempt ran longer than timeout_ms = {limit_ms}")]
    Timeout { limit_ms: u64 },
    #[error("the run was cancelled and the step did not end within its grace")]
    Cancelled,
}

impl Tripped {
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Scratch { .. } | Self::Folder { .. } => code::SCRATCH_EXCEEDED,
            Self::Artifacts { .. } | Self::ArtifactCount => code::ARTIFACTS_EXCEEDED,
            Self::ArtifactEmpty => code::ARTIFACT_EMPTY,
            Self::Timeout { .. } => code::TIMEOUT,
            Self::Cancelled => code::CANCELLED,
        }
    }
}

/// What the packet loop and a running attempt share.
#[derive(Debug, Default)]
pub struct Signals {
    pub cancel: AtomicBool,
    pub killed: AtomicBool,
    pub kill: Notify,
}

impl Signals {
    /// Ends the attempt at its next yield or wait.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
        self.kill.notify_one();
    }
}

/// When progress was told last.
struct Told {
    percent: u8,
    at: Instant,
}

/// Data of a store.
pub struct Ctx {
    wasi: Wasi,
    pub table: ResourceTable,
    pub capture: Capture,
    pub memory: MemoryMeter,
    pub files: Files,
    pub artifacts: Artifacts,
    pub signals: Arc<Signals>,
    pub tripped: Option<Tripped>,
    task: TaskRef,
    attempt: Attempt,
    out: UnboundedSender<Outgoing>,
    told: Option<Told>,
}

impl Ctx {
    /// # Errors
    /// When a grant names a folder that this worker does not have.
    pub fn new(
        start: &Start,
        folders: &Arc<Folders>,
        signals: Arc<Signals>,
        out: UnboundedSender<Outgoing>,
    ) -> Result<Self, FilesError> {
        let limits = &start.limits;
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        Ok(Self {
            wasi: Wasi { made: None, env: start.grants.env.clone(), task: start.task },
            table,
            capture: Capture::new(limits.log_kb as usize * 1024),
            memory: MemoryMeter::new(u64::from(limits.memory_mb) << 20),
            files: Files::new(start, folders)?,
            artifacts: Artifacts::new(start, folders),
            signals,
            tripped: None,
            task: start.task,
            attempt: start.attempt,
            out,
            told: None,
        })
    }

    /// The first limit that was reached wins.
    pub fn trip(&mut self, what: Tripped) {
        self.tripped.get_or_insert(what);
    }

    /// What `wasi:filesystem` works on: disjoint parts of this store's data.
    pub fn counted_files(&mut self) -> CountedFiles<'_> {
        let view = WasiFilesystemCtxView { ctx: self.wasi.get(&self.capture).filesystem(), table: &mut self.table };
        CountedFiles { view, files: &mut self.files }
    }

    /// Whether progress is worth telling: it grew, or half a second passed since the last time, or it is complete.
    pub fn progress_due(&self, percent: u8) -> bool {
        let percent = percent.min(100);
        self.told.as_ref().is_none_or(|told| percent > told.percent || told.at.elapsed() >= PROGRESS_EVERY)
    }

    /// Tells progress.
    pub fn progress(&mut self, percent: u8, message: Option<String>) {
        let percent = percent.min(100);
        self.told = Some(Told { percent, at: Instant::now() });
        let told = FromWorker::Progress { task: self.task, attempt: self.attempt, percent, message };
        // A closed channel means that the worker ends.
        let _ = self.out.send(Outgoing { message: told, fd: None });
    }
}

impl WasiView for Ctx {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: self.wasi.get(&self.capture), table: &mut self.table }
    }
}

/// What WASI answers from, made when the guest first asks: many steps never do.
struct Wasi {
    made: Option<Box<WasiCtx>>,
    env: Vec<(String, String)>,
    task: TaskRef,
}

impl Wasi {
    fn get(&mut self, capture: &Capture) -> &mut WasiCtx {
        self.made.get_or_insert_with(|| {
            let mut wasi = WasiCtx::builder();
            wasi.stdout(Standard { capture: capture.clone(), error: false })
                .stderr(Standard { capture: capture.clone(), error: true })
                .envs(&self.env)
                .max_random_size(RANDOM_MAX_BYTES)
                .insecure_random_seed(seed(self.task));
            Box::new(wasi.build())
        })
    }
}

/// Hash maps of the guest work and repeat: the seed is the same for every attempt of a task.
fn seed(task: TaskRef) -> u128 {
    // A run's id holds a keyed hash already; the tasks of one run only have to differ.
    let place = u128::from(task.step) << 32 | u128::from(task.item.map_or(0, |item| item.saturating_add(1)));
    task.run.0.rotate_left(64) ^ place << 64
}
