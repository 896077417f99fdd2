//! Linkers, one per set of grants: what is not granted is not there to be imported.

use std::io::{Read, Write};

use tm_core::interfaces::FLOW_VERSION;
use wasmtime::{
    Engine, Result, StoreContextMut,
    component::{
        ComponentType, HasData, Lift, Linker, Lower, Resource, ResourceTable, ResourceType, WasmList, WasmStr,
    },
};
use wasmtime_wasi::{
    cli::{WasiCli, WasiCliView},
    clocks::{WasiClocks, WasiClocksView},
    p2::bindings::{cli, clocks, filesystem, io, random},
    random::{WasiRandom, WasiRandomView},
};

use super::{
    artifacts::{ArtifactError, Reader, Writer},
    ctx::Ctx,
    files::CountedFiles,
    verdict::bounded,
};

/// The largest answer of `reader.read`.
const READ_MAX_BYTES: u32 = 1 << 20;
const PROGRESS_MESSAGE_MAX_BYTES: usize = 1024;

/// What a step was granted beyond the baseline, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Capabilities(u8);

impl Capabilities {
    const CLOCKS: u8 = 1;
    const RANDOM: u8 = 2;
    const FILES: u8 = 4;
    const ARTIFACTS: u8 = 8;
    pub const ALL: Self = Self(Self::CLOCKS | Self::RANDOM | Self::FILES | Self::ARTIFACTS);

    #[must_use]
    pub fn of(grants: &tm_core::wire::StartGrants) -> Self {
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        Self(
            bit(grants.clocks, Self::CLOCKS)
                | bit(grants.random, Self::RANDOM)
                | bit(grants.scratch || !grants.files.is_empty(), Self::FILES)
                | bit(grants.artifacts || !grants.readable.is_empty(), Self::ARTIFACTS),
        )
    }

    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

#[derive(ComponentType, Lower)]
#[component(record)]
pub struct GuestContext {
    #[component(name = "run-id")]
    pub run_id: String,
    #[component(name = "flow-id")]
    pub flow_id: String,
    #[component(name = "step-id")]
    pub step_id: String,
    #[component(name = "task-id")]
    pub task_id: String,
    pub attempt: u32,
    #[component(name = "max-attempts")]
    pub max_attempts: u32,
    #[component(name = "idempotency-key")]
    pub idempotency_key: String,
    #[component(name = "deadline-ms")]
    pub deadline_ms: u64,
    #[component(name = "trace-parent")]
    pub trace_parent: Option<String>,
}

/// Texts stay in the guest's memory until their length is judged.
#[derive(ComponentType, Lift)]
#[component(record)]
pub struct GuestFailure {
    pub code: String,
    pub message: String,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub struct GuestRetryable {
    pub code: String,
    pub message: String,
    #[component(name = "retry-after-ms")]
    pub retry_after_ms: Option<u64>,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub enum GuestError {
    #[component(name = "retryable")]
    Retryable(GuestRetryable),
    #[component(name = "rate-limited")]
    RateLimited(GuestRetryable),
    #[component(name = "invalid-input")]
    InvalidInput(GuestFailure),
    #[component(name = "fatal")]
    Fatal(GuestFailure),
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "made by lifting, which writes the number")]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

impl Level {
    const NAMES: [&str; 5] = ["trace", "debug", "info", "warn", "error"];

    fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct Entry {
    name: String,
    #[component(name = "size-bytes")]
    size_bytes: u64,
}

struct Table;

impl HasData for Table {
    type Data<'a> = &'a mut ResourceTable;
}

struct Counted;

impl HasData for Counted {
    type Data<'a> = CountedFiles<'a>;
}

/// A linker for steps with these grants.
///
/// # Errors
/// When two interfaces clash, which the tests would show.
pub fn linker(engine: &Engine, grants: Capabilities) -> Result<Linker<Ctx>> {
    let mut linker = Linker::new(engine);
    let l = &mut linker;
    io::error::add_to_linker::<Ctx, Table>(l, |ctx| &mut ctx.table)?;
    io::poll::add_to_linker::<Ctx, Table>(l, |ctx| &mut ctx.table)?;
    io::streams::add_to_linker::<Ctx, Table>(l, |ctx| &mut ctx.table)?;
    cli::exit::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::environment::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::stdin::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::stdout::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::stderr::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::terminal_input::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::terminal_output::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::terminal_stdin::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::terminal_stdout::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::terminal_stderr::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    random::insecure_seed::add_to_linker::<Ctx, WasiRandom>(l, Ctx::random)?;
    tracemind(l)?;
    if grants.has(Capabilities::CLOCKS) {
        clocks::wall_clock::add_to_linker::<Ctx, WasiClocks>(l, Ctx::clocks)?;
        clocks::monotonic_clock::add_to_linker::<Ctx, WasiClocks>(l, Ctx::clocks)?;
    }
    if grants.has(Capabilities::RANDOM) {
        random::random::add_to_linker::<Ctx, WasiRandom>(l, Ctx::random)?;
        random::insecure::add_to_linker::<Ctx, WasiRandom>(l, Ctx::random)?;
    }
    if grants.has(Capabilities::FILES) {
        filesystem::preopens::add_to_linker::<Ctx, Counted>(l, Ctx::counted_files)?;
        filesystem::types::add_to_linker::<Ctx, Counted>(l, Ctx::counted_files)?;
    }
    if grants.has(Capabilities::ARTIFACTS) {
        artifacts(l)?;
    }
    Ok(linker)
}

fn name(interface: &str) -> String {
    format!("tracemind:flow/{interface}@{FLOW_VERSION}")
}

/// The baseline of the contract: types, log, progress, cancel.
fn tracemind(linker: &mut Linker<Ctx>) -> Result<()> {
    linker.instance(&name("types"))?;
    linker.instance(&name("log"))?.func_wrap(
        "emit",
        |store: StoreContextMut<'_, Ctx>, (level, message): (Level, WasmStr)| {
            let message = message.to_str(&store)?;
            store.data().capture.emit(level.name(), &message);
            Ok(())
        },
    )?;
    linker.instance(&name("progress"))?.func_wrap(
        "report",
        |mut store: StoreContextMut<'_, Ctx>, (percent, message): (u8, Option<WasmStr>)| {
            let due = store.data_mut().progress_due(percent);
            if due {
                let message =
                    message.map(|text| text.to_str(&store).map(|text| bounded(&text, PROGRESS_MESSAGE_MAX_BYTES)));
                let message = message.transpose()?;
                store.data_mut().progress(percent, message);
            }
            Ok(())
        },
    )?;
    linker.instance(&name("cancel"))?.func_wrap("requested", |store: StoreContextMut<'_, Ctx>, (): ()| {
        Ok((store.data().signals.cancel.load(std::sync::atomic::Ordering::Relaxed),))
    })
}

/// `artifacts`: what is written goes through [`super::artifacts::Artifacts`], which counts.
fn artifacts(linker: &mut Linker<Ctx>) -> Result<()> {
    let mut instance = linker.instance(&name("artifacts"))?;
    instance.resource("writer", ResourceType::host::<Writer>(), |mut store, rep| {
        let writer = store.data_mut().table.delete(Resource::<Writer>::new_own(rep))?;
        store.data_mut().artifacts.abandon(&writer);
        Ok(())
    })?;
    instance.resource("reader", ResourceType::host::<Reader>(), |mut store, rep| {
        store.data_mut().table.delete(Resource::<Reader>::new_own(rep))?;
        Ok(())
    })?;
    instance.func_wrap("create", |mut store: StoreContextMut<'_, Ctx>, (name,): (String,)| {
        let ctx = store.data_mut();
        Ok((match ctx.artifacts.create(&name) {
            Ok(writer) => Ok(ctx.table.push(writer)?),
            Err(error) => Err(error),
        },))
    })?;
    instance.func_wrap(
        "[method]writer.write",
        |mut store: StoreContextMut<'_, Ctx>, (writer, bytes): (Resource<Writer>, WasmList<u8>)| {
            let length = bytes.len() as u64;
            let ctx = store.data_mut();
            let charged = ctx.artifacts.charge(length);
            if let Err(tripped) = charged {
                ctx.trip(tripped);
                return Ok((Err(ArtifactError::LimitExceeded),));
            }
            let writer = ctx.table.get_mut(&writer)?;
            writer.size_bytes += length;
            let file = writer.file.clone();
            let written = file.as_ref().write_all(bytes.as_le_slice(&store));
            Ok((written.map_err(|error| ArtifactError::io(&error)),))
        },
    )?;
    instance.func_wrap(
        "[method]writer.finish",
        |mut store: StoreContextMut<'_, Ctx>, (writer,): (Resource<Writer>,)| {
            let ctx = store.data_mut();
            let writer = ctx.table.get_mut(&writer)?;
            Ok((match ctx.artifacts.finish(writer) {
                Ok(()) => Ok(()),
                Err(failed) => {
                    if let Some(tripped) = failed.tripped {
                        ctx.trip(tripped);
                    }
                    Err(failed.error)
                }
            },))
        },
    )?;
    instance.func_wrap(
        "[method]reader.read",
        |mut store: StoreContextMut<'_, Ctx>, (reader, max_bytes): (Resource<Reader>, u32)| {
            let reader = store.data_mut().table.get_mut(&reader)?;
            let mut bytes = Vec::new();
            let read = (&reader.file).take(u64::from(max_bytes.min(READ_MAX_BYTES))).read_to_end(&mut bytes);
            Ok((read.map(|_| bytes).map_err(|error| ArtifactError::io(&error)),))
        },
    )?;
    instance.func_wrap("open", |mut store: StoreContextMut<'_, Ctx>, (step, name): (String, String)| {
        let ctx = store.data_mut();
        Ok((match ctx.artifacts.open(&step, &name) {
            Ok(reader) => Ok(ctx.table.push(reader)?),
            Err(error) => Err(error),
        },))
    })?;
    instance.func_wrap("entries", |store: StoreContextMut<'_, Ctx>, (step,): (String,)| {
        let entries = store.data().artifacts.entries(&step);
        Ok((entries
            .map(|found| found.into_iter().map(|(name, size_bytes)| Entry { name, size_bytes }).collect::<Vec<_>>()),))
    })
}
