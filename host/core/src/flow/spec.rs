//! A flow as its author writes it ([`FlowFile`]) and as the queue keeps it ([`FlowDef`]).

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

use crate::{backoff::RetryPolicy, id::Digest, json::Json, limits::Limits, wire::Required};

/// The file: one `flow:`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FlowFile {
    pub flow: FlowSpec,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FlowSpec {
    pub id: String,
    #[serde(default)]
    pub version: Option<String>,
    #[serde(default)]
    pub description: Option<String>,
    /// From the enqueue, from when a delayed run may start, or anew from a requeue; then what waits or runs of it ends with
    /// RUN_TIMEOUT.
    #[serde(default)]
    pub run_timeout_ms: Option<u64>,
    pub steps: Vec<StepSpec>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StepSpec {
    pub id: String,
    /// A `.wasm` or a folder with a Cargo.toml that `tm build` builds, relative to the flow file.
    pub component: String,
    #[serde(default)]
    pub needs: Vec<String>,
    /// An expression; false, none, 0, empty: the step is skipped.
    #[serde(default)]
    pub when: Option<String>,
    /// An expression that gives a list: one task per item, with `item` and `index` in scope. A constant that is no list is refused.
    #[serde(default)]
    pub for_each: Option<String>,
    /// Items in flight at once.
    #[serde(default)]
    pub max_parallel: Option<u32>,
    /// A JSON value with `{{ expression }}` in its strings; a string that is one expression keeps the JSON type.
    #[serde(default)]
    pub input: Option<serde_json::Value>,
    #[serde(default)]
    pub limits: LimitsSpec,
    #[serde(default)]
    pub retries: RetriesSpec,
    #[serde(default)]
    pub grants: GrantsSpec,
}

/// The limits that a step asks for; what is absent is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack_kb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_kb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_kb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch_mb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifacts_mb: Option<u32>,
}

impl LimitsSpec {
    /// These limits, with `base` where nothing is asked.
    #[must_use]
    pub fn over(&self, base: &Limits) -> Limits {
        Limits {
            fuel: self.fuel.unwrap_or(base.fuel),
            memory_mb: self.memory_mb.unwrap_or(base.memory_mb),
            timeout_ms: self.timeout_ms.unwrap_or(base.timeout_ms),
            stack_kb: self.stack_kb.unwrap_or(base.stack_kb),
            output_kb: self.output_kb.unwrap_or(base.output_kb),
            log_kb: self.log_kb.unwrap_or(base.log_kb),
            scratch_mb: self.scratch_mb.unwrap_or(base.scratch_mb),
            artifacts_mb: self.artifacts_mb.unwrap_or(base.artifacts_mb),
        }
    }
}

/// The retry policy that a step asks for; inherits key by key.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RetriesSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_delay_ms: Option<u64>,
}

impl RetriesSpec {
    /// This policy, with `base` where nothing is said. `factor` is bounded to 1…1000 by validation.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "validated to 1…1000, and `as` saturates"
    )]
    pub fn over(&self, base: &RetryPolicy) -> RetryPolicy {
        RetryPolicy {
            max_attempts: self.max_attempts.unwrap_or(base.max_attempts),
            base_ms: self.base_ms.unwrap_or(base.base_ms),
            factor_thousandths: self.factor.map_or(base.factor_thousandths, |factor| (factor * 1000.0) as u64),
            jitter_ms: self.jitter_ms.unwrap_or(base.jitter_ms),
            max_delay_ms: self.max_delay_ms.unwrap_or(base.max_delay_ms),
        }
    }
}

/// What a step asks for. The operator's ceiling decides what it gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrantsSpec {
    pub files: Vec<FilesSpec>,
    pub env: Vec<EnvSpec>,
    pub scratch: bool,
    pub artifacts: bool,
    pub clocks: bool,
    pub random: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FilesSpec {
    /// Relative to the flow file.
    pub host: String,
    /// Absolute path that the step sees.
    pub guest: String,
    #[serde(default)]
    pub mode: Mode,
    /// With `write`: what the attempt may write below it.
    #[serde(default = "default_files_max_mb")]
    pub max_mb: u32,
}

fn default_files_max_mb() -> u32 {
    Limits::DEFAULT.scratch_mb
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    #[default]
    Read,
    Write,
}

/// `NAME`: from the supervisor's environment. `{ name: NAME, from: caller }`: copied by the enqueue.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum EnvSpec {
    Host(String),
    From(EnvFrom),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EnvFrom {
    pub name: String,
    pub from: EnvSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EnvSource {
    Caller,
    Host,
}

impl EnvSpec {
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Host(name) => name,
            Self::From(from) => &from.name,
        }
    }

    #[must_use]
    pub fn from_caller(&self) -> bool {
        matches!(self, Self::From(EnvFrom { from: EnvSource::Caller, .. }))
    }
}

/// A flow as registered: content-addressed, everything resolved, replayable without the file.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct FlowDef {
    pub id: String,
    pub version: Option<String>,
    pub run_timeout_ms: Option<u64>,
    /// Digest over the definition with its components' digests: the same content is the same flow.
    pub digest: Digest,
    pub steps: Vec<StepDef>,
    /// Names that the enqueue copies from its caller's environment.
    pub caller_env: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StepDef {
    pub id: String,
    pub component: Digest,
    pub required: Required,
    /// Places of the needed steps, all smaller than this step's own: steps stand in topological order.
    pub needs: Vec<u16>,
    pub when: Option<String>,
    pub for_each: Option<String>,
    pub max_parallel: u32,
    /// The template, none for the default.
    pub input: Option<Json>,
    pub limits: Limits,
    pub retries: RetryPolicy,
    pub grants: GrantsDef,
}

/// Grants with their host folders resolved (absolute, without symlinks) when the flow was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct GrantsDef {
    pub files: Vec<FilesSpec>,
    pub env: Vec<EnvSpec>,
    pub scratch: bool,
    pub artifacts: bool,
    pub clocks: bool,
    pub random: bool,
}

impl FlowDef {
    /// The place of a step by its id.
    #[must_use]
    pub fn place(&self, step_id: &str) -> Option<u16> {
        self.steps.iter().position(|step| step.id == step_id).and_then(|place| u16::try_from(place).ok())
    }
}
