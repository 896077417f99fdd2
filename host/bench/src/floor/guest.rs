//! A component in an engine of its own: a fresh store and instance for each call.

use std::{
    path::Path,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store, StoreContextMut,
    component::{
        Component, ComponentExportIndex, ComponentType, InstancePre, Lift, Linker, Lower, ResourceTable, WasmStr,
    },
};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::Outcome;

/// As the product's workers.
const MEMORY_KEEP_BYTES: usize = 2 << 20;
const TABLE_KEEP_BYTES: usize = 1 << 20;
const MEMORY_MAX_BYTES: usize = 16 << 20;
const FUEL: u64 = 1_000_000_000;
const TICK: Duration = Duration::from_millis(1);
const SLOTS: u32 = 16;

#[derive(ComponentType, Lower)]
#[component(record)]
struct Context {
    #[component(name = "run-id")]
    run_id: &'static str,
    #[component(name = "flow-id")]
    flow_id: &'static str,
    #[component(name = "step-id")]
    step_id: &'static str,
    #[component(name = "task-id")]
    task_id: &'static str,
    attempt: u32,
    #[component(name = "max-attempts")]
    max_attempts: u32,
    #[component(name = "idempotency-key")]
    idempotency_key: &'static str,
    #[component(name = "deadline-ms")]
    deadline_ms: u64,
    #[component(name = "trace-parent")]
    trace_parent: Option<String>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct Failed {
    code: String,
    message: String,
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct Again {
    code: String,
    message: String,
    #[component(name = "retry-after-ms")]
    after_ms: Option<u64>,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
enum StepError {
    #[component(name = "retryable")]
    Retryable(Again),
    #[component(name = "rate-limited")]
    RateLimited(Again),
    #[component(name = "invalid-input")]
    InvalidInput(Failed),
    #[component(name = "fatal")]
    Fatal(Failed),
}

impl StepError {
    fn words(&self) -> String {
        match self {
            Self::Retryable(Again { code, message, after_ms })
            | Self::RateLimited(Again { code, message, after_ms }) => {
                format!("{code}: {message} (again after {after_ms:?} ms)")
            }
            Self::InvalidInput(Failed { code, message }) | Self::Fatal(Failed { code, message }) => {
                format!("{code}: {message}")
            }
        }
    }
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

struct Ctx {
    wasi: WasiCtx,
    table: ResourceTable,
}

impl WasiView for Ctx {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

pub(crate) struct Guest {
    engine: Engine,
    pre: InstancePre<Ctx>,
    run: ComponentExportIndex,
    ends: Arc<AtomicBool>,
}

impl Guest {
    pub(crate) fn load(path: &Path) -> Outcome<Self> {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(SLOTS)
            .total_core_instances(16 * SLOTS)
            .total_memories(4 * SLOTS)
            .total_tables(8 * SLOTS)
            .total_stacks(SLOTS)
            .max_memory_size(MEMORY_MAX_BYTES)
            .max_unused_warm_slots(2 * SLOTS)
            .linear_memory_keep_resident(MEMORY_KEEP_BYTES)
            .table_keep_resident(TABLE_KEEP_BYTES);
        if PoolingAllocationConfig::is_pagemap_scan_available() {
            pool.pagemap_scan(Enabled::Yes);
        }
        let mut config = Config::new();
        config
            .consume_fuel(true)
            .epoch_interruption(true)
            .concurrency_support(false)
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let engine = Engine::new(&config)?;
        let component = Component::from_file(&engine, path)?;
        let mut linker = Linker::<Ctx>::new(&engine);
        wasmtime_wasi::p2::add_to_linker_sync(&mut linker)?;
        contract(&mut linker)?;
        let step = component.get_export_index(None, "tracemind:flow/step@0.1.0").ok_or("the component is no step")?;
        let run = component.get_export_index(Some(&step), "run").ok_or("the component has no run")?;
        let pre = linker.instantiate_pre(&component)?;
        let ends = Arc::new(AtomicBool::new(false));
        let (ticked, seen) = (engine.clone(), Arc::clone(&ends));
        thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                thread::sleep(TICK);
                ticked.increment_epoch();
            }
        });
        Ok(Self { engine, pre, run, ends })
    }

    /// One task: what the guest answers.
    pub(crate) fn call(&self, input: &str) -> Outcome<String> {
        let ctx = Ctx { wasi: WasiCtx::builder().build(), table: ResourceTable::new() };
        let mut store = Store::new(&self.engine, ctx);
        store.set_fuel(FUEL)?;
        store.set_epoch_deadline(1000);
        let instance = self.pre.instantiate(&mut store)?;
        let run = instance.get_typed_func::<(Context, &str), (Result<String, StepError>,)>(&mut store, self.run)?;
        let context = Context {
            run_id: "01J9ZQ3Z3Z3Z3Z3Z3Z3Z3Z3Z3Z",
            flow_id: "bench",
            step_id: "totals",
            task_id: "01J9ZQ3Z3Z3Z3Z3Z3Z3Z3Z3Z3Z.totals",
            attempt: 1,
            max_attempts: 5,
            idempotency_key: "01J9ZQ3Z3Z3Z3Z3Z3Z3Z3Z3Z3Z.totals",
            deadline_ms: 1,
            trace_parent: None,
        };
        match run.call(&mut store, (context, input))?.0 {
            Ok(output) => Ok(output),
            Err(error) => Err(format!("the guest failed: {}", error.words()).into()),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

/// What a step may import beside WASI.
fn contract(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    linker.instance("tracemind:flow/types@0.1.0")?;
    linker
        .instance("tracemind:flow/log@0.1.0")?
        .func_wrap("emit", |_: StoreContextMut<'_, Ctx>, (_, _): (Level, WasmStr)| Ok(()))?;
    linker
        .instance("tracemind:flow/progress@0.1.0")?
        .func_wrap("report", |_: StoreContextMut<'_, Ctx>, (_, _): (u8, Option<WasmStr>)| Ok(()))?;
    linker
        .instance("tracemind:flow/cancel@0.1.0")?
        .func_wrap("requested", |_: StoreContextMut<'_, Ctx>, (): ()| Ok((false,)))
}
