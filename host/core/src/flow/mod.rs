//! Flows: their definition as written and as registered, and how a run advances through them.

pub mod advance;
pub mod evaluate;
pub mod names;
pub mod order;
pub mod references;
pub mod spec;
pub mod validate;
