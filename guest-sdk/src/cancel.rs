//! Whether the host wants the attempt to end. Needs no grant.

/// True once the run was cancelled or the worker drains. A step that stops early returns a retryable error; one that
/// does not look is stopped after the grace period.
pub fn requested() -> bool {
    crate::backend::requested()
}
