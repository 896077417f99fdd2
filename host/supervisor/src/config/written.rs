//! The configuration as written, and its way to [`Settings`].

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use tm_core::{
    backoff::RetryPolicy,
    flow::{
        spec::{LimitsSpec, Mode, RetriesSpec},
        validate,
    },
    id::is_name,
    limits::Limits,
};
use toml::Spanned;

use super::{
    Backpressure, Bounds, Ceiling, Ceilings, ConfigError, Settings,
    ceiling::Folder,
    place::{Place, Span},
    units::{self, MIB},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    File,
    Memory,
}

/// When the log is synced. With the last two, an acknowledged enqueue may be lost in a power failure (I1, I6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fsync {
    Always,
    Interval,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Steps of one profile share processes.
    Shared,
    /// Every task in a fresh process.
    Task,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    queue: Queue,
    workers: Workers,
    retries: Retries,
    idempotency: Idempotency,
    tenants: Option<BTreeMap<Spanned<String>, Tenant>>,
    backpressure: Option<Pressure>,
    scratch: Scratch,
    retention: Retention,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Queue {
    backend: Option<Backend>,
    segment_max_mb: Option<Spanned<u64>>,
    lease_ms: Option<Spanned<u64>>,
    fsync: Option<Fsync>,
    /// The older name: true is always, false is never.
    fsync_on_put: Option<Spanned<bool>>,
    results_max_mb: Option<Spanned<u64>>,
    keys_max: Option<Spanned<u64>>,
    hard_depth: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Workers {
    num: Option<Spanned<u32>>,
    concurrency: Option<Spanned<u32>>,
    isolation: Option<Isolation>,
    warm_pool: Option<Spanned<u32>>,
    memory_max: Option<Spanned<String>>,
    heartbeat: Option<Spanned<Span>>,
    heartbeat_timeout: Option<Spanned<Span>>,
    drain_grace: Option<Spanned<Span>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Retries {
    default: Option<Spanned<RetriesSpec>>,
    flow: BTreeMap<String, Spanned<RetriesSpec>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Idempotency {
    result_ttl_sec: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tenant {
    weight: Option<Spanned<u32>>,
    allow: Allow,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Allow {
    files: Vec<AllowFolder>,
    env: Vec<Spanned<String>>,
    limits: Option<Spanned<LimitsSpec>>,
    scratch: Option<bool>,
    artifacts: Option<bool>,
    clocks: Option<bool>,
    random: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AllowFolder {
    host: Spanned<String>,
    #[serde(default)]
    mode: Mode,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pressure {
    high_watermark: Spanned<u64>,
    load_threshold: Option<Spanned<f64>>,
    pause_ms: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Scratch {
    keep_on_success: bool,
    max_age: Option<Spanned<Span>>,
    max_mb: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Retention {
    artifacts_max_age: Option<Spanned<Span>>,
    artifacts_max_mb: Option<Spanned<u64>>,
    dlq_archive_max_age: Option<Spanned<Span>>,
    dlq_archive_max_mb: Option<Spanned<u64>>,
}

pub(super) fn resolve(text: &str, path: &Path) -> Result<Settings, ConfigError> {
    let place = Place { text, path };
    let file: File = toml::from_str(text).map_err(|error| place.of_toml(&error))?;
    // What does not go together is shown at the first of them that the file sets.
    let lease = file.queue.lease_ms.as_ref().map(|lease| ("queue.lease_ms", lease.span()));
    let beats = [
        ("workers.heartbeat", &file.workers.heartbeat),
        ("workers.heartbeat_timeout", &file.workers.heartbeat_timeout),
    ]
    .into_iter()
    .filter_map(|(key, beat)| Some((key, beat.as_ref()?.span())));
    let beats = beats.chain(lease).min_by_key(|(_, span)| span.start);
    let mut settings = Settings::default();
    queue(&place, &file.queue, &mut settings.queue)?;
    workers(&place, file.workers, &mut settings.workers)?;
    retries(&place, file.retries, &mut settings.retries)?;
    if let Some(ttl) = file.idempotency.result_ttl_sec {
        settings.result_ttl_ms = 1000 * place.within("idempotency.result_ttl_sec", &ttl, 1, 10 * 366 * 86_400)?;
    }
    if let Some(tenants) = file.tenants {
        settings.ceilings = Ceilings::Tenants(BTreeMap::new());
        for (name, tenant) in tenants {
            let weight = match &tenant.weight {
                None => 1,
                Some(weight) => place.within(&format!("tenants.\"{}\".weight", name.get_ref()), weight, 1, 1_000)?,
            };
            if !is_name(name.get_ref()) {
                let message = "1 to 64 of a-z A-Z 0-9 . _ -, first a letter or digit".to_owned();
                return Err(place.range(name.span(), format!("tenants.\"{}\"", name.get_ref()), message));
            }
            let ceiling = ceiling(&place, name.get_ref(), tenant.allow)?;
            settings.weights.insert(name.get_ref().clone(), weight);
            if let Ceilings::Tenants(tenants) = &mut settings.ceilings {
                tenants.insert(name.into_inner(), ceiling);
            }
        }
    }
    if let Some(pressure) = file.backpressure {
        let mut backpressure = Backpressure {
            high_watermark: place.within("backpressure.high_watermark", &pressure.high_watermark, 1, 100_000_000)?,
            load_threshold: 1.0,
            pause_ms: 500,
        };
        if let Some(load) = &pressure.load_threshold {
            backpressure.load_threshold = place.within("backpressure.load_threshold", load, 0.0, 1000.0)?;
        }
        if let Some(span) = &pressure.pause_ms {
            backpressure.pause_ms = place.within("backpressure.pause_ms", span, 1, 3_600_000)?;
        }
        settings.backpressure = Some(backpressure);
    }
    settings.scratch.keep_on_success = file.scratch.keep_on_success;
    let (scratch, retention) = (&file.scratch, &file.retention);
    kept(&place, ("scratch", "max"), (&scratch.max_age, &scratch.max_mb), &mut settings.scratch.kept)?;
    let (age, size) = (&retention.artifacts_max_age, &retention.artifacts_max_mb);
    kept(&place, ("retention", "artifacts_max"), (age, size), &mut settings.retention.artifacts)?;
    let (age, size) = (&retention.dlq_archive_max_age, &retention.dlq_archive_max_mb);
    kept(&place, ("retention", "dlq_archive_max"), (age, size), &mut settings.retention.dlq_archive)?;
    match (settings.check(), beats) {
        (Err(error @ (ConfigError::NoHeartbeat | ConfigError::Heartbeat { .. })), Some((key, span))) => {
            Err(place.range(span, key.to_owned(), error.to_string()))
        }
        _ => Ok(settings),
    }
}

/// The bounds of `table.key_age` and `table.key_mb`.
fn kept(
    place: &Place<'_>,
    (table, key): (&str, &str),
    (age, size): (&Option<Spanned<Span>>, &Option<Spanned<u64>>),
    bounds: &mut Bounds,
) -> Result<(), ConfigError> {
    if let Some(age) = age {
        bounds.max_age_ms = place.span(&format!("{table}.{key}_age"), age)?;
    }
    if let Some(size) = size {
        bounds.max_bytes = MIB * place.within(&format!("{table}.{key}_mb"), size, 1, MIB)?;
    }
    Ok(())
}

fn queue(place: &Place<'_>, written: &Queue, queue: &mut super::Queue) -> Result<(), ConfigError> {
    queue.backend = written.backend.unwrap_or(queue.backend);
    if let Some(size) = &written.segment_max_mb {
        queue.segment_max_bytes = MIB * place.within("queue.segment_max_mb", size, 1, 4096)?;
    }
    if let Some(lease) = &written.lease_ms {
        queue.lease_ms = place.within("queue.lease_ms", lease, 100, 86_400_000)?;
    }
    queue.fsync = match (written.fsync, &written.fsync_on_put) {
        (Some(_), Some(older)) => {
            let message = "is the older name of fsync, which is set too; keep one".to_owned();
            return Err(place.range(older.span(), "queue.fsync_on_put".to_owned(), message));
        }
        (Some(fsync), None) => fsync,
        (None, Some(older)) if *older.get_ref() => Fsync::Always,
        (None, Some(_)) => Fsync::Never,
        (None, None) => queue.fsync,
    };
    if let Some(size) = &written.results_max_mb {
        queue.results_max_bytes = MIB * place.within("queue.results_max_mb", size, 1, MIB)?;
    }
    if let Some(count) = &written.keys_max {
        queue.keys_max = place.within("queue.keys_max", count, 1, 100_000_000)?;
    }
    if let Some(depth) = &written.hard_depth {
        queue.hard_depth = place.within("queue.hard_depth", depth, 1, 100_000_000)?;
    }
    Ok(())
}

fn workers(place: &Place<'_>, written: Workers, workers: &mut super::Workers) -> Result<(), ConfigError> {
    if let Some(num) = &written.num {
        workers.num = place.within("workers.num", num, 1, 1024)?;
    }
    if let Some(count) = &written.concurrency {
        workers.concurrency = place.within("workers.concurrency", count, 1, 5000)?;
    }
    workers.isolation = written.isolation.unwrap_or(workers.isolation);
    if let Some(count) = &written.warm_pool {
        workers.warm_pool = place.within("workers.warm_pool", count, 0, 1024)?;
    }
    if let Some(memory) = &written.memory_max {
        workers.memory_max = units::share(memory.get_ref())
            .map_err(|error| place.range(memory.span(), "workers.memory_max".to_owned(), error.to_string()))?;
    }
    for (key, written, target) in [
        ("workers.heartbeat", written.heartbeat, &mut workers.heartbeat_ms),
        ("workers.heartbeat_timeout", written.heartbeat_timeout, &mut workers.heartbeat_timeout_ms),
        ("workers.drain_grace", written.drain_grace, &mut workers.drain_grace_ms),
    ] {
        if let Some(span) = written {
            *target = place.span(key, &span)?;
        }
    }
    Ok(())
}

fn retries(place: &Place<'_>, written: Retries, retries: &mut super::Retries) -> Result<(), ConfigError> {
    let checked = |name: String, spec: &Spanned<RetriesSpec>| {
        validate::retries_out_of_range(spec.get_ref()).into_iter().next().map_or(Ok(()), |(key, message)| {
            Err(place.range(place.key_within(spec.span(), key), format!("{name}.{key}"), message))
        })
    };
    if let Some(spec) = written.default {
        checked("retries.default".to_owned(), &spec)?;
        retries.default = spec.get_ref().over(&RetryPolicy::default());
    }
    for (flow, spec) in written.flow {
        checked(format!("retries.flow.\"{flow}\""), &spec)?;
        retries.flows.insert(flow, spec.into_inner());
    }
    Ok(())
}

fn ceiling(place: &Place<'_>, tenant: &str, allow: Allow) -> Result<Ceiling, ConfigError> {
    let base = place.path.parent().unwrap_or(Path::new(""));
    let mut folders = Vec::new();
    for folder in allow.files {
        if folder.host.get_ref().is_empty() {
            let key = format!("tenants.\"{tenant}\".allow.files.host");
            return Err(place.range(folder.host.span(), key, "is empty".to_owned()));
        }
        let path = std::path::absolute(base.join(folder.host.get_ref()))
            .map_err(|source| ConfigError::Read { path: place.path.to_owned(), source })?;
        folders.push(Folder { shown: folder.host.into_inner(), path, mode: folder.mode });
    }
    let mut env = Vec::new();
    for name in allow.env {
        if !validate::is_env_name(name.get_ref()) {
            let key = format!("tenants.\"{tenant}\".allow.env");
            return Err(place.range(name.span(), key, format!("'{}' is not a name of a variable", name.get_ref())));
        }
        env.push(name.into_inner());
    }
    let limits = match allow.limits {
        None => Limits::CEILING,
        Some(spec) => {
            let limits = spec.get_ref().over(&Limits::CEILING);
            if let Some((key, asked, most)) = super::ceiling::excesses(&limits, &super::LIMITS_MAX).into_iter().next() {
                let span = place.key_within(spec.span(), key);
                let name = format!("tenants.\"{tenant}\".allow.limits.{key}");
                return Err(place.range(span, name, format!("{asked} is over {most}, the most of all")));
            }
            limits
        }
    };
    Ok(Ceiling {
        folders,
        env,
        limits,
        scratch: allow.scratch.unwrap_or(true),
        artifacts: allow.artifacts.unwrap_or(true),
        clocks: allow.clocks.unwrap_or(true),
        random: allow.random.unwrap_or(true),
    })
}
