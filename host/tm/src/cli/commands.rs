//! One file per command, or per family of commands that ask the same.

pub(crate) mod batch;
pub(crate) mod build;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod dlq;
pub(crate) mod enqueue;
pub(crate) mod queue_runs;
pub(crate) mod queue_stats;
pub(crate) mod queue_verify;
pub(crate) mod run;
pub(crate) mod workers_start;
pub(crate) mod workers_stop;
