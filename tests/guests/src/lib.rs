//! A step whose input says what it does wrong, and whose output says how that went.
//!
//! Input `{"do": "<what>", …}`, see [`Do`]. Output `{"ok": …}`, or `{"err": "…"}` when the sandbox refused something in
//! a way that a guest can see. What the sandbox ends, has no output. Each has a size, so that a test can also stay just
//! below the limit.

#[cfg(feature = "capabilities")]
mod reach;
mod spend;

use tm_guest::prelude::*;

#[payload]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
enum Do {
    /// Nothing: `{"ok": null}`.
    Nothing {},
    /// An endless loop, with `mb` of memory in which every page is written.
    Spin {
        #[serde(default)]
        mb: u64,
    },
    /// Exactly `fuel` rounds of a loop of constant cost.
    Fuel { fuel: u64 },
    /// Takes `mb` in pieces of 1 MiB and writes every page; without `mb`, until it is refused (and then aborts).
    Hog { mb: Option<u64> },
    /// Takes `pieces` times one page of 64 KiB by `memory.grow`; without it, until refused: `{"err": …}` with the count.
    GrowSmallPieces { pieces: Option<u64> },
    /// Takes `mb` in one piece and writes every page.
    TouchMemory { mb: u64 },
    /// An output of exactly `bytes` bytes of JSON (at least 9).
    Output { bytes: usize },
    /// `bytes` through the `log` interface, in lines of 100 bytes.
    LogFlood { bytes: usize },
    /// `bytes` to stdout, in lines of 100 bytes.
    StdoutFlood { bytes: usize },
    /// `bytes` to stderr, in lines of 100 bytes; with `then_panic` a panic follows.
    StderrFlood {
        bytes: usize,
        #[serde(default)]
        then_panic: bool,
    },
    /// `count` calls of `progress`.
    ProgressFlood { count: u64 },
    /// Recursion with 1 KiB of guest stack a call, to `depth`; without it, without end.
    Recurse { depth: Option<u64> },
    /// A panic with this text.
    Panic { text: String },
    /// `abort` without a word.
    Abort {},
    /// `exit` with this code.
    Exit { code: i32 },
    /// The value of a variable, or null.
    Env { name: String },
    /// All variables.
    EnvAll {},
    /// The arguments.
    Argv {},
    /// What stdin holds.
    Stdin {},
    /// The order of a hash map's keys: the same for the same task.
    Hashmap {},
    /// The context as it arrived.
    Context {},
    /// Polls `cancel` until the host wants the attempt to end.
    WaitForCancel {},
    /// Returns an error of this class with a message of `bytes` bytes.
    Fail { class: Class, bytes: usize },

    /// Reads a file: `{"ok": "<content>"}`.
    #[cfg(feature = "capabilities")]
    Read { path: String },
    /// Writes a file of `bytes` bytes in pieces of 64 KiB.
    #[cfg(feature = "capabilities")]
    Write { path: String, bytes: u64 },
    /// Names in a folder, sorted.
    #[cfg(feature = "capabilities")]
    List { path: String },
    /// Size and kind, following links.
    #[cfg(feature = "capabilities")]
    Stat { path: String },
    #[cfg(feature = "capabilities")]
    Mkdir { path: String },
    #[cfg(feature = "capabilities")]
    Remove { path: String },
    #[cfg(feature = "capabilities")]
    Rename { from: String, to: String },
    /// Makes a symbolic link at `path` to `to`, then reads through it.
    #[cfg(feature = "capabilities")]
    Symlink { path: String, to: String },
    /// Makes a hard link at `path` to `to`, then reads it.
    #[cfg(feature = "capabilities")]
    Hardlink { path: String, to: String },
    /// Sets the size of a file without writing it.
    #[cfg(feature = "capabilities")]
    Sparse { path: String, bytes: u64 },
    /// Writes one byte at `offset` of a file.
    #[cfg(feature = "capabilities")]
    WriteAt { path: String, offset: u64 },
    /// Sets the times of what stands at a path.
    #[cfg(feature = "capabilities")]
    Touch { path: String },
    /// Adds its attempt's number to a file, a line each time, `count` times, `every_ms` apart.
    #[cfg(feature = "capabilities")]
    Tick { path: String, every_ms: u64, count: u64 },
    /// Makes `count` empty files in a folder.
    #[cfg(feature = "capabilities")]
    ManyFiles { path: String, count: u64 },
    /// Opens a file `count` times and keeps it open.
    #[cfg(feature = "capabilities")]
    KeepOpen { path: String, count: u64 },
    /// Writes `bytes` to `/scratch/file`, in pieces of 64 KiB.
    #[cfg(feature = "capabilities")]
    Scratch { bytes: u64 },
    #[cfg(feature = "capabilities")]
    SleepMs { ms: u64 },
    /// Milliseconds since the epoch.
    #[cfg(feature = "capabilities")]
    Clock {},
    /// 16 bytes of `wasi:random/random`, as hexadecimal.
    #[cfg(feature = "capabilities")]
    Random {},
    /// Writes an artefact of `bytes` bytes; `finish: false` drops it unfinished.
    #[cfg(feature = "capabilities")]
    Artifact {
        name: String,
        bytes: u64,
        #[serde(default = "yes")]
        finish: bool,
    },
    /// Starts `count` artefacts and keeps them open.
    #[cfg(feature = "capabilities")]
    ManyArtifacts { count: u64 },
    /// Reads an artefact of another step: its size.
    #[cfg(feature = "capabilities")]
    ReadArtifact { step: String, name: String },
    /// Names of another step's artefacts.
    #[cfg(feature = "capabilities")]
    ListArtifacts { step: String },
}

#[payload]
#[serde(rename_all = "kebab-case")]
enum Class {
    Retryable,
    RateLimited,
    InvalidInput,
    Fatal,
}

#[cfg(feature = "capabilities")]
fn yes() -> bool {
    true
}

/// What a guest could see: the result, or the refusal in the system's words.
type Seen = Result<Value, String>;

#[step]
fn misbehave(ctx: &Context, Json(wish): Json<Do>) -> Result<Json<Value>, StepError> {
    if let Do::Fail { class, bytes } = wish {
        return Err(failure(class, "x".repeat(bytes)));
    }
    Ok(Json(match act(ctx, wish) {
        Ok(value) => json!({ "ok": value }),
        Err(why) => json!({ "err": why }),
    }))
}

fn act(ctx: &Context, wish: Do) -> Seen {
    match wish {
        Do::Nothing {} | Do::Fail { .. } => Ok(Value::Null),
        Do::Spin { mb } => spend::spin(mb),
        Do::Fuel { fuel } => spend::rounds(fuel),
        Do::Hog { mb } => spend::hog(mb),
        Do::GrowSmallPieces { pieces } => spend::grow(pieces),
        Do::TouchMemory { mb } => spend::touch(mb),
        Do::Output { bytes } => Ok(Value::String("x".repeat(bytes.saturating_sub(r#"{"ok":""}"#.len())))),
        Do::LogFlood { bytes } => spend::flood(bytes, |line| log::info(line)),
        Do::StdoutFlood { bytes } => spend::flood(bytes, |line| println!("{line}")),
        Do::StderrFlood { bytes, then_panic } => {
            let flooded = spend::flood(bytes, |line| eprintln!("{line}"));
            assert!(!then_panic, "after the flood");
            flooded
        }
        Do::ProgressFlood { count } => {
            (0..count).for_each(|n| progress::report((n % 101) as u8, Some("flood")));
            Ok(count.into())
        }
        Do::Recurse { depth } => Ok(spend::recurse(depth.unwrap_or(u64::MAX)).into()),
        Do::Panic { text } => panic!("{text}"),
        Do::Abort {} => std::process::abort(),
        Do::Exit { code } => std::process::exit(code),
        Do::Env { name } => Ok(std::env::var(name).ok().into()),
        Do::EnvAll {} => Ok(std::env::vars().map(|(name, value)| json!([name, value])).collect()),
        Do::Argv {} => Ok(std::env::args().collect()),
        Do::Stdin {} => std::io::read_to_string(std::io::stdin()).map(Value::from).map_err(|why| why.to_string()),
        Do::Hashmap {} => Ok(spend::hash_order()),
        Do::Context {} => Ok(describe(ctx)),
        Do::WaitForCancel {} => {
            while !cancel::requested() {}
            Ok(Value::Null)
        }
        #[cfg(feature = "capabilities")]
        other => reach::act(ctx, other),
    }
}

fn failure(class: Class, message: String) -> StepError {
    match class {
        Class::Retryable => StepError::retryable("HOSTILE", message),
        Class::RateLimited => StepError::rate_limited(100, message),
        Class::InvalidInput => StepError::invalid_input("HOSTILE", message),
        Class::Fatal => StepError::fatal("HOSTILE", message),
    }
}

fn describe(ctx: &Context) -> Value {
    json!({
        "run_id": ctx.run_id, "flow_id": ctx.flow_id, "step_id": ctx.step_id, "task_id": ctx.task_id,
        "attempt": ctx.attempt, "max_attempts": ctx.max_attempts, "idempotency_key": ctx.idempotency_key,
        "deadline_ms": ctx.deadline_ms, "trace_parent": ctx.trace_parent,
    })
}
