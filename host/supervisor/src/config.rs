//! The configuration: `trace_config.toml` as written, resolved into [`Settings`] with every number known.
//!
//! A missing file means defaults. A wrong type, an unknown key or a value out of range is an error that names the file,
//! the line and the key. Flags of the command line are put into [`Settings`] afterwards and [`Settings::check`]ed.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use tm_core::{
    backoff::RetryPolicy,
    flow::{spec::RetriesSpec, validate},
    limits::Limits,
    queue::policy::Policy,
};

pub mod ceiling;
mod place;
pub mod units;
pub mod watch;
mod written;

pub use crate::store::kept::Bounds;
pub use ceiling::{Ceiling, Ceilings, Denied};
pub use watch::WatchedCeilings;
pub use written::{Backend, Fsync, Isolation};

const DAY_MS: u64 = 24 * 3_600_000;
/// The configuration file when `--config` says nothing.
pub const DEFAULT_PATH: &str = "trace_config.toml";

/// Why there is no configuration to work with. Exit code 3.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}:{line}:{column}: {problem}", path.display())]
    Invalid { path: PathBuf, line: usize, column: usize, problem: Problem },
    #[error("heartbeat is 0 ms: it must be above 0")]
    NoHeartbeat,
    #[error(
        "heartbeat ({heartbeat_ms} ms) < heartbeat_timeout ({timeout_ms} ms) <= lease_ms ({lease_ms} ms) does not hold"
    )]
    Heartbeat { heartbeat_ms: u64, timeout_ms: u64, lease_ms: u64 },
}

/// What is wrong at a place of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("unknown key '{key}'{}", hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default())]
    UnknownKey { key: String, hint: Option<String> },
    #[error("{key}: {message}")]
    OutOfRange { key: String, message: String },
    #[error("{key}: {message}")]
    Type { key: String, message: String },
    #[error("{message}")]
    Syntax { message: String },
}

/// Everything that the operator may set, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub queue: Queue,
    pub workers: Workers,
    pub retries: Retries,
    pub result_ttl_ms: u64,
    pub ceilings: Ceilings,
    pub weights: BTreeMap<String, u32>,
    /// None: off.
    pub backpressure: Option<Backpressure>,
    pub scratch: Scratch,
    pub retention: Retention,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    pub backend: Backend,
    pub segment_max_bytes: u64,
    /// The visibility timeout.
    pub lease_ms: u64,
    pub fsync: Fsync,
    pub results_max_bytes: u64,
    pub keys_max: u64,
    pub hard_depth: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workers {
    /// Live worker processes.
    pub num: u32,
    /// Steps interleaved in one worker.
    pub concurrency: u32,
    pub isolation: Isolation,
    /// Spare processes, started and not assigned.
    pub warm_pool: u32,
    pub memory_max: units::Share,
    pub heartbeat_ms: u64,
    pub heartbeat_timeout_ms: u64,
    pub drain_grace_ms: u64,
}

/// The retry policy of every flow, before the flow's own words.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Retries {
    pub default: RetryPolicy,
    pub flows: BTreeMap<String, RetriesSpec>,
}

/// Over both thresholds, dequeuing pauses.
#[derive(Clone, Debug, PartialEq)]
pub struct Backpressure {
    /// Tasks in the queue, as `depth` counts them.
    pub high_watermark: u64,
    /// Of the load average of a minute, per processor.
    pub load_threshold: f64,
    pub pause_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scratch {
    pub keep_on_success: bool,
    /// Of the folders that stay after their attempts.
    pub kept: Bounds,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Of runs whose result is forgotten.
    pub artifacts: Bounds,
    /// Requeued and purged dead letters.
    pub dlq_archive: Bounds,
}

impl Default for Settings {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            queue: Queue {
                backend: Backend::File,
                segment_max_bytes: 64 * units::MIB,
                lease_ms: 30_000,
                fsync: Fsync::Always,
                results_max_bytes: policy.results_max_bytes,
                keys_max: policy.keys_max,
                hard_depth: policy.hard_depth,
            },
            workers: Workers {
                num: 1,
                concurrency: 16,
                isolation: Isolation::Shared,
                warm_pool: 0,
                memory_max: units::Share::Percent(70),
                heartbeat_ms: 5_000,
                heartbeat_timeout_ms: 15_000,
                drain_grace_ms: 10_000,
            },
            retries: Retries::default(),
            result_ttl_ms: policy.result_ttl_ms,
            ceilings: Ceilings::default(),
            weights: BTreeMap::new(),
            backpressure: None,
            scratch: Scratch {
                keep_on_success: false,
                kept: Bounds { max_age_ms: 7 * DAY_MS, max_bytes: 1024 * units::MIB },
            },
            retention: Retention {
                artifacts: Bounds { max_age_ms: 0, max_bytes: 10 * units::GIB },
                dlq_archive: Bounds { max_age_ms: 30 * DAY_MS, max_bytes: 1024 * units::MIB },
            },
        }
    }
}

impl Settings {
    /// Reads a configuration; a file that does not exist gives the defaults.
    ///
    /// # Errors
    /// When it cannot be read, or says what cannot be.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    /// Takes a configuration's text. Folders in it are relative to the folder of `path`.
    ///
    /// # Errors
    /// The first thing that cannot be, with its line.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let settings = written::resolve(text, path)?;
        settings.check()?;
        Ok(settings)
    }

    /// What must hold between the numbers, whoever set them.
    ///
    /// # Errors
    /// When heartbeat is 0, or heartbeat < heartbeat_timeout <= lease_ms does not hold.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (heartbeat_ms, timeout_ms) = (self.workers.heartbeat_ms, self.workers.heartbeat_timeout_ms);
        let lease_ms = self.queue.lease_ms;
        if heartbeat_ms == 0 {
            return Err(ConfigError::NoHeartbeat);
        }
        if heartbeat_ms >= timeout_ms || timeout_ms > lease_ms {
            return Err(ConfigError::Heartbeat { heartbeat_ms, timeout_ms, lease_ms });
        }
        Ok(())
    }

    /// What decisions of the core need to know.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            result_ttl_ms: self.result_ttl_ms,
            results_max_bytes: self.queue.results_max_bytes,
            keys_max: self.queue.keys_max,
            hard_depth: self.queue.hard_depth,
            weights: self.weights.clone(),
            ..Policy::default()
        }
    }

    /// The retry policy that a flow's steps start from.
    #[must_use]
    pub fn retry_base(&self, flow_id: &str) -> RetryPolicy {
        let base = &self.retries.default;
        self.retries.flows.get(flow_id).map_or_else(|| base.clone(), |spec| spec.over(base))
    }
}

/// The most that any ceiling may say, and what a ceiling is without a word about limits.
pub const LIMITS_MAX: Limits = validate::LIMITS_MAX;

#[cfg(test)]
mod tests;
