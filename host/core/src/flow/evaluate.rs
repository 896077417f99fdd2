//! Expressions, as a seam: the core knows what it wants to know, not in which language it is written.

use alloc::string::String;
use serde_json::Value;

/// Steps of one evaluation and bytes of its result, because small ones run on the loop, for everybody.
pub const EVALUATE_STEPS_MAX: u64 = 10_000;
pub const EVALUATE_RESULT_MAX_BYTES: usize = 64 * 1024;

/// Why an expression gave no value. The text is for the flow's author: the expression, what failed, no values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EvaluateFault {
    pub message: String,
}

/// A pure, bounded expression language over JSON ([`EVALUATE_STEPS_MAX`], [`EVALUATE_RESULT_MAX_BYTES`]).
pub trait Evaluate {
    /// The value of an expression, with JSON types kept.
    ///
    /// # Errors
    /// When it does not parse, names what is undefined, or exceeds a bound.
    fn value(&self, expression: &str, scope: &Value) -> Result<Value, EvaluateFault>;

    /// Text with `{{ expression }}` in it, rendered.
    ///
    /// # Errors
    /// As [`Evaluate::value`].
    fn text(&self, template: &str, scope: &Value) -> Result<String, EvaluateFault>;

    /// Whether an expression parses, for `tm check`.
    ///
    /// # Errors
    /// When it does not.
    fn check_value(&self, expression: &str) -> Result<(), EvaluateFault>;

    /// Whether a template parses.
    ///
    /// # Errors
    /// When it does not.
    fn check_text(&self, template: &str) -> Result<(), EvaluateFault>;
}
