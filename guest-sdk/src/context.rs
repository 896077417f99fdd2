//! What a step is told about the attempt that it runs in.

/// One start of one step of one run. The fields are those of the record `context` in `wit/flow.wit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    pub run_id: String,
    pub flow_id: String,
    pub step_id: String,
    /// `RUN.step`, or `RUN.step[3]` for an item of a fan-out; the same for all attempts.
    pub task_id: String,
    /// The number of this start, from 1.
    pub attempt: u32,
    pub max_attempts: u32,
    /// The same for all attempts of a task: hand it to systems that can tell repeats apart.
    pub idempotency_key: String,
    /// When the host stops this attempt, in milliseconds since the Unix epoch.
    pub deadline_ms: u64,
    /// The caller's W3C `traceparent`, when there was one.
    pub trace_parent: Option<String>,
}

#[cfg(not(target_arch = "wasm32"))]
impl Context {
    /// The first attempt of a made-up task, for unit tests: `Context { attempt: 2, ..Context::test() }`.
    pub fn test() -> Context {
        Context {
            run_id: "01TEST0000000000000000RUN0".to_owned(),
            flow_id: "test".to_owned(),
            step_id: "step".to_owned(),
            task_id: "01TEST0000000000000000RUN0.step".to_owned(),
            attempt: 1,
            max_attempts: 5,
            idempotency_key: "test-key".to_owned(),
            deadline_ms: u64::MAX,
            trace_parent: None,
        }
    }
}
