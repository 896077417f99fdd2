//! Engines: one with a pool that runs steps, one without that compiles for it.

use std::{fmt::Write, hash::Hasher, num::NonZeroUsize};

use tm_core::wire::{ExecuteInit, Required};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Kept resident per memory and per table of the pool: with PAGEMAP_SCAN only the touched pages below are cleared.
const MEMORY_KEEP_BYTES: usize = 2 << 20;
const TABLE_KEEP_BYTES: usize = 1 << 20;
/// Stack that host functions may use on top of the guest's.
const HOST_STACK_BYTES: usize = 1 << 20;
/// Frames of a trap: enough to tell a recursion, more than a message shows.
const BACKTRACE_FRAMES: usize = 128;
/// Bytes of one table element.
pub const TABLE_ELEMENT_BYTES: u64 = 8;
/// The pool's least shape, so that a worker can take more components than it was started for.
const LEAST: Required = Required {
    core_instances: 16,
    memories: 4,
    tables: 8,
    table_elements_max: 20_000,
    memory_min_bytes: 0,
    instance_bytes: 1 << 20,
};
/// Six memory maps each: `vm.max_map_count` is 65,530 by default.
const INSTANCES_MAX: u32 = 5_000;
/// What the host holds for one attempt beside its memory: captured log, buffers of streams, tables of resources.
pub const HOST_BYTES_PER_ATTEMPT: u64 = 4 << 20;

/// An engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("engine: {0}")]
    Wasmtime(wasmtime::Error),
    #[error("PAGEMAP_SCAN is not available though the kernel ({release}) has it: is /proc mounted?")]
    NoPagemapScan { release: String },
    #[error("concurrency {concurrency} needs more than {INSTANCES_MAX} instances in one process")]
    TooMany { concurrency: u32 },
}

impl From<wasmtime::Error> for EngineError {
    fn from(error: wasmtime::Error) -> Self {
        Self::Wasmtime(error)
    }
}

/// What must be the same where an artefact is made and where it is loaded.
fn common() -> Config {
    let mut config = Config::new();
    config.consume_fuel(true).epoch_interruption(true).concurrency_support(false);
    config.wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES));
    config
}

/// The engine of the compile role: no pool, so RLIMIT_AS can hold it.
///
/// # Errors
/// When wasmtime refuses the configuration.
pub fn compiler() -> Result<Engine, EngineError> {
    Ok(Engine::new(&common())?)
}

/// The engine of the execute role, and the most memory that it and the host can hold for guests.
///
/// # Errors
/// When the pool cannot be reserved, or PAGEMAP_SCAN is missing on a kernel that has it (it would fail silently and
/// cost two thirds of the speed).
pub fn executor(init: &ExecuteInit) -> Result<(Engine, u64), EngineError> {
    let slots = init.concurrency.max(1);
    let need = |required: u32, least: u32| required.max(least).saturating_mul(slots);
    let core_instances = need(init.required.core_instances, LEAST.core_instances);
    if slots > INSTANCES_MAX {
        return Err(EngineError::TooMany { concurrency: slots });
    }
    let stack_bytes = usize::try_from(init.stack_max_kb).unwrap_or(usize::MAX).saturating_mul(1024);
    let memory_bytes = usize::try_from(init.memory_max_mb).unwrap_or(usize::MAX).saturating_mul(1 << 20);
    let instance_bytes = usize::try_from(init.required.instance_bytes.max(LEAST.instance_bytes)).unwrap_or(usize::MAX);
    let tables = init.required.tables.max(LEAST.tables);
    let memories = init.required.memories.max(LEAST.memories);
    // Tables count in the same sum as memories, so one table can be as large as the sum allows.
    let elements = (init.memory_max_mb as u64) * (1 << 20) / TABLE_ELEMENT_BYTES;
    let elements = elements.min(1 << 24).max(init.required.table_elements_max).max(LEAST.table_elements_max);

    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(core_instances)
        .total_memories(need(init.required.memories, LEAST.memories))
        .total_tables(need(init.required.tables, LEAST.tables))
        .total_stacks(slots)
        .max_memories_per_module(memories)
        .max_tables_per_module(tables)
        .max_memory_size(memory_bytes)
        .table_elements(usize::try_from(elements).unwrap_or(usize::MAX))
        .max_component_instance_size(instance_bytes)
        .max_core_instance_size(instance_bytes)
        .max_unused_warm_slots(slots.saturating_mul(2))
        .linear_memory_keep_resident(MEMORY_KEEP_BYTES)
        .table_keep_resident(TABLE_KEEP_BYTES);
    if scan_available()? {
        pool.pagemap_scan(Enabled::Yes);
    }
    let mut config = common();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .max_wasm_stack(stack_bytes)
        .async_stack_size(stack_bytes.saturating_add(HOST_STACK_BYTES));
    let engine = Engine::new(&config)?;

    // Slots that are warm but unused keep their resident part; those in use are counted by their attempt's limit.
    let warm = u64::from(slots) * 2 * (MEMORY_KEEP_BYTES + TABLE_KEEP_BYTES) as u64;
    // One call at a time lifts arguments out of a guest: the thread is one.
    let lifted = memory_bytes as u64;
    let attempt = memory_bytes as u64 + (stack_bytes + HOST_STACK_BYTES) as u64 + HOST_BYTES_PER_ATTEMPT;
    Ok((engine, u64::from(slots).saturating_mul(attempt).saturating_add(warm + lifted)))
}

/// Whether the pool can ask the kernel for touched pages. Linux has it since 6.7.
fn scan_available() -> Result<bool, EngineError> {
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        return Ok(true);
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (6, 7) { Err(EngineError::NoPagemapScan { release }) } else { Ok(false) }
}

/// Hex of the engine's compatibility hash: artefacts load only where it is the same.
#[must_use]
pub fn compatibility(engine: &Engine) -> String {
    use std::hash::{DefaultHasher, Hash};
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    let mut text = String::with_capacity(16);
    let _ = write!(text, "{:016x}", hasher.finish());
    text
}
