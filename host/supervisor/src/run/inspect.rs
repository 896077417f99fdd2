//! The compiler's processes as the inspection that deploying asks for.

use std::os::fd::BorrowedFd;

use tm_core::wire::Inspection;

use crate::{
    deploy::{Inspect, InspectError},
    workers::compile::{CompileError, Compiler},
};

impl Inspect for Compiler {
    fn inspect(&self, component: BorrowedFd<'_>) -> Result<Inspection, InspectError> {
        Self::inspect(self, component).map_err(|error| match error {
            CompileError::Refused { code, message } => InspectError::Refused { code, message },
            other => InspectError::Process { reason: other.to_string() },
        })
    }
}
