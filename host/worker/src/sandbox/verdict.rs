//! How an attempt ended: from traps, limits and the step's own error to one outcome of the table.

use std::collections::BTreeMap;

use rustc_demangle::demangle;
use tm_core::{
    code::{self, Class},
    limits::{ERROR_CODE_MAX_BYTES, ERROR_MESSAGE_MAX_BYTES, Limits},
    wire::Failure,
};
use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::{
    ctx::{Ctx, Tripped},
    linker::GuestError,
};

/// The places that messages name: before the first call, and in it.
pub const STARTING: &str = "the start of the step";
pub const RUNNING: &str = "run";
/// Frames of a backtrace that the message shows.
const FRAMES_MAX: usize = 20;
/// A guest's own stack grows down to address 0, below which 32-bit addresses wrap to just under 4 GiB.
const WRAPPED_FROM: u64 = (4 << 30) - (64 << 20);
/// Frames of one function from which a fault there counts as a recursion.
const RECURSION_FRAMES: usize = 4;
/// Frames of one function from which any fault counts as one: a fill or copy that runs off the stack has no address.
const DEEP_RECURSION_FRAMES: usize = 64;

/// A failure with a host code; its class is the table's.
#[must_use]
pub fn host(code: &str, message: &str) -> Failure {
    Failure {
        by_host: true,
        class: code::class_of(code).unwrap_or(Class::Retryable),
        code: code.to_owned(),
        message: bounded(message, ERROR_MESSAGE_MAX_BYTES),
        retry_after_ms: None,
    }
}

/// What ended a call that did not return: a limit, a trap, or the host.
#[must_use]
pub fn of_error(error: &wasmtime::Error, ctx: &Ctx, limits: &Limits, place: &str) -> Failure {
    if let Some(tripped) = ctx.tripped.or_else(|| error.downcast_ref::<Tripped>().copied()) {
        return host(tripped.code(), &tripped.to_string());
    }
    let trap = error.downcast_ref::<Trap>().copied();
    match trap {
        Some(Trap::OutOfFuel) => return host(code::FUEL_EXHAUSTED, &format!("{place} used up fuel = {}", limits.fuel)),
        Some(Trap::Interrupt) => {
            return host(code::TIMEOUT, &format!("{place} ran longer than timeout_ms = {}", limits.timeout_ms));
        }
        Some(Trap::StackOverflow) => return stack_overflow(error, limits, place),
        Some(Trap::MemoryOutOfBounds) if below_own_stack(error) => return stack_overflow(error, limits, place),
        _ => {}
    }
    if ctx.memory.refused() {
        let mut message = format!("{place} wanted more memory than memory_mb = {}", limits.memory_mb);
        push_frames(&mut message, error);
        return host(code::MEMORY_EXCEEDED, &message);
    }
    if let Some(exit) = error.downcast_ref::<I32Exit>() {
        return host(code::TRAP, &format!("{place} called exit({}): a step returns instead", exit.0));
    }
    let root = error.root_cause().to_string();
    if root.contains("hostcalls has been exhausted") {
        return host(code::MEMORY_EXCEEDED, &format!("{place} handed the host more than it buffers for one call"));
    }
    if let Some(error) = error.downcast_ref::<std::io::Error>() {
        let full = error.kind() == std::io::ErrorKind::StorageFull;
        let code = if full { code::DISK_FULL } else { code::HOST_ERROR };
        return host(code, &format!("{place}: the host's part failed: {error}"));
    }
    // Only a text that the step answered is read as UTF-8 while it runs.
    if error.downcast_ref::<std::str::Utf8Error>().is_some() {
        return host(code::OUTPUT_INVALID, "the step's answer is not UTF-8");
    }
    let guest_ran = place == RUNNING || trap.is_some() || error.downcast_ref::<WasmBacktrace>().is_some();
    let mut message = format!("{place}: {root}");
    if let Some(panic) = ctx.capture.panic_text() {
        message.push_str(": ");
        message.push_str(&panic);
    }
    push_frames(&mut message, error);
    host(if guest_ran { code::TRAP } else { code::HOST_ERROR }, &message)
}

fn stack_overflow(error: &wasmtime::Error, limits: &Limits, place: &str) -> Failure {
    let mut message = format!("{place} recursed deeper than its stack (stack_kb = {})", limits.stack_kb);
    push_frames(&mut message, error);
    host(code::STACK_OVERFLOW, &message)
}

/// A fault just below address 0 under a recursion, or without an address under a deep one: the stack that the guest
/// keeps in its memory ran out. Other faults (a pointer before null) stay TRAP.
fn below_own_stack(error: &wasmtime::Error) -> bool {
    let address = error.chain().find_map(|cause| {
        let text = cause.to_string();
        let hex = text.strip_prefix("memory fault at wasm address 0x")?.split(' ').next()?.to_owned();
        u64::from_str_radix(&hex, 16).ok()
    });
    let Some(trace) = error.downcast_ref::<WasmBacktrace>() else { return false };
    let mut counts = BTreeMap::<u32, usize>::new();
    trace.frames().iter().for_each(|frame| *counts.entry(frame.func_index()).or_default() += 1);
    let most = counts.into_values().max().unwrap_or(0);
    match address {
        Some(at) => at >= WRAPPED_FROM && most >= RECURSION_FRAMES,
        None => most >= DEEP_RECURSION_FRAMES,
    }
}

fn push_frames(message: &mut String, error: &wasmtime::Error) {
    use std::fmt::Write;
    let Some(trace) = error.downcast_ref::<WasmBacktrace>() else { return };
    for (place, frame) in trace.frames().iter().take(FRAMES_MAX).enumerate() {
        let symbol = frame.symbols().first().and_then(|symbol| symbol.name());
        let name = symbol.or(frame.func_name());
        let _ = match name {
            Some(name) => write!(message, "\n  {place}: {}", bounded(&format!("{:#}", demangle(name)), 200)),
            None => write!(message, "\n  {place}: function {}", frame.func_index()),
        };
    }
}

/// The step's own error, in its own words as far as they are fit to print.
#[must_use]
pub fn of_step(error: &GuestError) -> Failure {
    let (class, fallback, code, message, retry_after_ms) = match error {
        GuestError::Retryable(f) => (Class::Retryable, code::STEP_FAILED, &f.code, &f.message, f.retry_after_ms),
        GuestError::RateLimited(f) => (Class::RateLimited, code::RATE_LIMITED, &f.code, &f.message, f.retry_after_ms),
        GuestError::InvalidInput(f) => (Class::InvalidInput, code::INVALID_INPUT, &f.code, &f.message, None),
        GuestError::Fatal(f) => (Class::Fatal, code::STEP_FAILED, &f.code, &f.message, None),
    };
    let mut code = bounded(code, ERROR_CODE_MAX_BYTES);
    if code.trim().is_empty() {
        fallback.clone_into(&mut code);
    }
    Failure { by_host: false, class, code, message: bounded(message, ERROR_MESSAGE_MAX_BYTES), retry_after_ms }
}

/// At most `max_bytes` of the text, without control characters except line breaks: terminals and logs show it.
#[must_use]
pub fn bounded(text: &str, max_bytes: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max_bytes));
    // Where a cut text ends, so that the mark of the cut still fits.
    let mut fits = 0;
    for c in text.chars() {
        let c = if c.is_control() && c != '\n' { '\u{fffd}' } else { c };
        if out.len() + c.len_utf8() > max_bytes {
            out.truncate(fits);
            out.push('…');
            break;
        }
        out.push(c);
        if out.len() + '…'.len_utf8() <= max_bytes {
            fits = out.len();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_at_a_character_and_loses_its_control_characters() {
        assert_eq!(bounded("a\u{1b}[31mb\nc", 100), "a\u{fffd}[31mb\nc");
        let cut = bounded(&"é".repeat(100), 64);
        assert!(cut.len() <= 64 && cut.ends_with('…'), "{cut}");
        assert_eq!(bounded(&"x".repeat(64), 64).len(), 64);
    }
}
