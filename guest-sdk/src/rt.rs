//! What the expansion of `#[step]` calls. Not part of the API.

use serde::{Serialize, de::DeserializeOwned};

use crate::{Context, StepError};

/// The JSON of a step: taken apart in the parameter list, `Json(input): Json<In>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Json<T>(pub T);

/// Runs a step on JSON text, as the host does.
///
/// # Errors
/// What the step returns; `InvalidInput` with the code INVALID_INPUT when the input does not have its shape; `Fatal`
/// with the code OUTPUT_NOT_JSON when the output cannot be written as JSON (a map with keys that are not strings).
pub fn run_json<In, Out>(
    step: impl FnOnce(&Context, Json<In>) -> Result<Json<Out>, StepError>,
    ctx: &Context,
    input: &str,
) -> Result<String, StepError>
where
    In: DeserializeOwned,
    Out: Serialize,
{
    let input =
        serde_json::from_str(input).map_err(|why| StepError::invalid_input("INVALID_INPUT", why.to_string()))?;
    let Json(output) = step(ctx, Json(input))?;
    serde_json::to_string(&output).map_err(|why| StepError::fatal("OUTPUT_NOT_JSON", why.to_string()))
}

/// Built for the host: the component's export.
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[macro_export]
macro_rules! export_step {
    ($step:ident) => {
        const _: () = {
            struct TheStep;
            impl $crate::wasm::Guest for TheStep {
                fn run(
                    ctx: $crate::wasm::Context,
                    input: $crate::wasm::Input,
                ) -> ::core::result::Result<$crate::wasm::Input, $crate::wasm::StepError> {
                    $crate::wasm::enter($step, ctx, input)
                }
            }
    $crate::wasm::bindings::export!(TheStep with_types_in $crate::wasm::bindings);
        };
    };
}

/// Built natively: only a check of the function's shape.
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
#[macro_export]
macro_rules! export_step {
    ($step:ident) => {
        const _: fn(&$crate::Context, &str) -> ::core::result::Result<::std::string::String, $crate::StepError> =
            |ctx, input| $crate::rt::run_json($step, ctx, input);
    };
}
