//! A step that fails on demand: its input chooses the outcome, FAIL_RATE lets a share of the attempts fail.

use std::time::{Duration, Instant};

use tm_guest::prelude::*;

/// The longest sleep; the flow's `timeout_ms` is above it.
const SLEEP_MAX_MS: u64 = 60_000;
/// Sleep is taken in slices of this length, so that a drain or a cancel is seen in time.
const SLICE_MS: u64 = 100;
/// Over the flow's `output_kb`.
const FLOOD_BYTES: usize = 1024 * 1024;
const HOG_PIECE_BYTES: usize = 1024 * 1024;

#[payload]
struct In {
    fail: Option<Failure>,
    sleep_ms: Option<u64>,
}

#[payload]
#[derive(Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum Failure {
    /// A retryable error on every attempt: ends as RETRIES_EXHAUSTED.
    Retryable,
    /// Asks for a short pause on the first two attempts, then succeeds.
    RateLimited,
    InvalidInput,
    Fatal,
    /// A panic.
    Trap,
    /// An endless loop: FUEL_EXHAUSTED.
    Spin,
    /// Takes memory until it is refused: MEMORY_EXCEEDED.
    Hog,
    /// A result over `output_kb`: OUTPUT_TOO_LARGE.
    Flood,
}

#[payload]
struct Out {
    attempt: u32,
    slept_ms: u64,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    padding: String,
}

#[step]
fn flaky(ctx: &Context, Json(input): Json<In>) -> Result<Json<Out>, StepError> {
    let slept_ms = sleep(input.sleep_ms.unwrap_or(0))?;
    let mut padding = String::new();
    match input.fail {
        Some(Failure::Flood) => padding = "x".repeat(FLOOD_BYTES),
        Some(failure) => fail(ctx, failure)?,
        None => injected(ctx, std::env::var("FAIL_RATE").ok().as_deref())?,
    }
    Ok(Json(Out { attempt: ctx.attempt, slept_ms, padding }))
}

/// Sleeps, unless the host wants the attempt to end.
fn sleep(ms: u64) -> Result<u64, StepError> {
    if ms > SLEEP_MAX_MS {
        return Err(StepError::invalid_input("SLEEP_TOO_LONG", format!("sleep_ms is {ms}, at most {SLEEP_MAX_MS}")));
    }
    if ms == 0 {
        return Ok(0);
    }
    let (start, wanted) = (Instant::now(), Duration::from_millis(ms));
    while let Some(left) = wanted.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        if cancel::requested() {
            return Err(StepError::retryable("STOPPED", "the host asked the attempt to end"));
        }
        std::thread::sleep(left.min(Duration::from_millis(SLICE_MS)));
        progress::report((start.elapsed().as_millis() as u64 * 100 / ms).min(100) as u8, None);
    }
    Ok(ms)
}

fn fail(ctx: &Context, failure: Failure) -> Result<(), StepError> {
    match failure {
        Failure::Retryable => Err(StepError::retryable("FLAKY_RETRYABLE", "asked to fail; another attempt may help")),
        Failure::RateLimited if ctx.attempt <= 2 => Err(StepError::rate_limited(200, "asked to come back later")),
        Failure::RateLimited | Failure::Flood => Ok(()),
        Failure::InvalidInput => Err(StepError::invalid_input("FLAKY_INVALID", "asked to refuse its input")),
        Failure::Fatal => Err(StepError::fatal("FLAKY_FATAL", "asked to fail for good")),
        Failure::Trap => panic!("asked to panic on attempt {}", ctx.attempt),
        Failure::Spin => loop {
            std::hint::black_box(ctx);
        },
        Failure::Hog => {
            let mut taken = Vec::new();
            loop {
                taken.push(vec![1_u8; HOG_PIECE_BYTES]);
                std::hint::black_box(&taken);
            }
        }
    }
}

/// Fails for good when (task, attempt) falls into the share `rate`; so a requeue, a new attempt, is a new draw.
fn injected(ctx: &Context, rate: Option<&str>) -> Result<(), StepError> {
    let Some(text) = rate.filter(|text| !text.is_empty()) else { return Ok(()) };
    let rate: f64 = match text.parse() {
        Ok(rate) if (0.0..=1.0).contains(&rate) => rate,
        _ => {
            let why = format!("FAIL_RATE is '{text}', not a number from 0 to 1");
            return Err(StepError::invalid_input("INVALID_FAIL_RATE", why));
        }
    };
    if draw(&ctx.task_id, ctx.attempt) < rate {
        return Err(StepError::fatal("INJECTED", format!("FAIL_RATE={text} chose attempt {}", ctx.attempt)));
    }
    Ok(())
}

/// A number in [0, 1) that depends on the task and the attempt alone: FNV-1a, mixed so that neighbours differ.
fn draw(task_id: &str, attempt: u32) -> f64 {
    let bytes = task_id.bytes().chain(attempt.to_le_bytes());
    let mut x = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use tm_guest::testing;

    fn run(input: Value) -> Result<Value, StepError> {
        testing::run(flaky, &Context::test(), input)
    }

    #[test]
    fn without_a_wish_it_succeeds() {
        assert_eq!(run(json!({})).unwrap(), json!({"attempt": 1, "slept_ms": 0}));
    }

    #[test]
    fn each_error_class_has_its_code() {
        assert_eq!(run(json!({"fail": "retryable"})).unwrap_err().code(), "FLAKY_RETRYABLE");
        assert!(matches!(run(json!({"fail": "rate-limited"})).unwrap_err(), StepError::RateLimited { .. }));
        assert!(matches!(run(json!({"fail": "invalid-input"})).unwrap_err(), StepError::InvalidInput { .. }));
        assert!(matches!(run(json!({"fail": "fatal"})).unwrap_err(), StepError::Fatal { .. }));
        assert_eq!(run(json!({"fail": "no such"})).unwrap_err().code(), "INVALID_INPUT");
    }

    #[test]
    fn a_flood_is_larger_than_the_flow_allows() {
        assert!(run(json!({"fail": "flood"})).unwrap().to_string().len() > FLOOD_BYTES);
    }

    #[test]
    fn a_sleep_ends_and_one_that_is_too_long_is_refused() {
        assert_eq!(run(json!({"sleep_ms": 5})).unwrap()["slept_ms"], 5);
        assert_eq!(run(json!({"sleep_ms": 60_001})).unwrap_err().code(), "SLEEP_TOO_LONG");
    }

    #[test]
    fn a_cancelled_sleep_ends_at_once() {
        testing::request_cancel();
        assert_eq!(run(json!({"sleep_ms": 60_000})).unwrap_err().code(), "STOPPED");
    }

    #[test]
    fn the_injected_share_is_near_the_rate_and_a_requeue_draws_anew() {
        let at = |n: u32, attempt| Context { task_id: format!("01J{n:023}.flip"), attempt, ..Context::test() };
        let hit = |n, attempt| injected(&at(n, attempt), Some("0.05")).is_err();
        let hits: Vec<u32> = (0..10_000).filter(|&n| hit(n, 1)).collect();
        assert!((400..600).contains(&hits.len()), "{}", hits.len());
        assert!(hits.iter().filter(|&&n| hit(n, 2)).count() < hits.len() / 4);
        assert!(injected(&at(1, 1), Some("0")).is_ok() && injected(&at(1, 1), Some("1")).is_err());
        assert_eq!(injected(&at(1, 1), Some("often")).unwrap_err().code(), "INVALID_FAIL_RATE");
    }
}
