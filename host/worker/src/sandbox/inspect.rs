//! What a component is, from its bytes alone: none of its code is compiled, nothing runs.

use tm_core::{code, wire::Inspection};
use wasmtime::Engine;

use super::{
    imports,
    walk::{WalkError, walk},
};

/// The bytes are no component that can be taken.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error(transparent)]
    Walk(#[from] WalkError),
    #[error("what it imports cannot be told: {0}")]
    Imports(String),
    #[error("it {}", .0.join("; "))]
    OtherImports(Vec<String>),
}

impl InspectError {
    /// The host code of the table.
    #[must_use]
    pub fn code(&self) -> &'static str {
        code::COMPILE_FAILED
    }
}

/// Validates the component and lists its imports, exports and what it needs of a pool, and holds what it imports against
/// the linker of this host.
///
/// Where code stands before an import, that takes as long as the compilation of that code: it is left to it then. The
/// inspection `before_compiling` does it in any case, and refuses what does not fit.
///
/// # Errors
/// When the bytes are not a valid component; never worth a retry.
pub fn inspect(engine: &Engine, bytes: &[u8], before_compiling: bool) -> Result<Inspection, InspectError> {
    let (walk, types) = walk(bytes)?;
    let import_faults = match walk.imports_end.and_then(|end| bytes.get(..end)) {
        Some(declared) if before_compiling || !walk.code_before_imports => {
            imports::faults(engine, declared, &types).map_err(|error| InspectError::Imports(format!("{error:#}")))?
        }
        _ => Vec::new(),
    };
    if before_compiling && !import_faults.is_empty() {
        return Err(InspectError::OtherImports(import_faults));
    }
    Ok(walk.inspection(bytes, import_faults))
}
