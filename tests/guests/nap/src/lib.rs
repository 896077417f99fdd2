//! A step that waits: one sleep of its standard library, without looking up.

use std::time::Duration;

use tm_guest::prelude::*;

#[payload]
struct Nap {
    sleep_ms: u64,
}

#[step]
fn nap(_ctx: &Context, Json(nap): Json<Nap>) -> Result<Json<Nap>, StepError> {
    std::thread::sleep(Duration::from_millis(nap.sleep_ms));
    Ok(Json(nap))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tm_guest::testing;

    #[test]
    fn a_nap_ends() {
        let output = testing::run(nap, &Context::test(), json!({"sleep_ms": 1})).unwrap();
        assert_eq!(output, json!({"sleep_ms": 1}));
    }
}
