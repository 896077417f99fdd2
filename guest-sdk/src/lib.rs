//! `tm-guest`: write a step of a TraceMind flow as one function.
//!
//! ```
//! use tm_guest::prelude::*;
//!
//! #[payload]
//! struct In { name: String }
//! #[payload]
//! struct Out { greeting: String }
//!
//! #[step]
//! fn greet(_ctx: &Context, Json(input): Json<In>) -> Result<Json<Out>, StepError> {
//!     if input.name.is_empty() {
//!         return Err(StepError::invalid_input("EMPTY_NAME", "name must not be empty"));
//!     }
//!     Ok(Json(Out { greeting: format!("hello, {}", input.name) }))
//! }
//! # fn main() {}
//! ```
//!
//! Built for `wasm32-wasip2` the function is the export `tracemind:flow/step`; only the capabilities that it calls
//! ([`log`], [`progress`], [`artifacts`], [`cancel`], and what std needs) become imports of the component. Built
//! natively it stays an ordinary function and the capabilities write to an in-memory recorder, see `testing`.
//!
//! A panic is reported to the host as one line on stderr that begins with [`PANIC_MARKER`].

// The attributes name this crate by its outer name; its own tests use them too.
extern crate self as tm_guest;

pub mod artifacts;
pub mod cancel;
mod context;
mod error;
pub mod log;
mod panic;
pub mod progress;
#[doc(hidden)]
pub mod rt;

#[cfg(not(target_arch = "wasm32"))]
mod recorder;
#[cfg(not(target_arch = "wasm32"))]
use recorder as backend;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod wasm;
#[cfg(target_arch = "wasm32")]
use wasm as backend;

pub use context::Context;
pub use error::StepError;
pub use panic::PANIC_MARKER;
pub use rt::Json;
pub use serde;
pub use serde_json;
pub use tm_guest_macros::{payload, step};

/// Everything that an ordinary step names: `use tm_guest::prelude::*`.
pub mod prelude {
    pub use crate::{Context, Json, StepError, artifacts, cancel, log, payload, progress, step};
    pub use serde::{Deserialize, Serialize};
    pub use serde_json::{Value, json};
}
