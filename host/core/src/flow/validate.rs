//! What is wrong with a flow, all at once, before anything of it runs.
//!
//! A fault names its place as a path into the definition (`steps[2].needs[0]`); the shell maps it to line and column.

use alloc::{
    borrow::ToOwned,
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};

use crate::{
    flow::{
        advance::kind,
        evaluate::{Evaluate, EvaluateFault},
        names::shorten,
        order::cycles,
        references,
        spec::{FlowSpec, GrantsSpec, LimitsSpec, Mode, RetriesSpec, StepSpec},
    },
    id::is_name,
    limits::{Limits, STEPS_PER_FLOW_MAX},
};

pub use crate::flow::names::nearest;

/// No configuration allows more than this.
pub const LIMITS_MAX: Limits = Limits {
    fuel: 1_000_000_000_000_000,
    // A 32-bit memory's address space.
    memory_mb: 4096,
    timeout_ms: DAY_MS,
    stack_kb: 64 * 1024,
    // An output is an input of the next step.
    output_kb: 16 * 1024,
    log_kb: 16 * 1024,
    scratch_mb: 64 * 1024,
    artifacts_mb: 64 * 1024,
};
pub const MAX_ATTEMPTS_MAX: u32 = 100;
pub const RETRY_FACTOR_MAX: f64 = 1000.0;
/// Of `base_ms`, `jitter_ms`, `max_delay_ms`.
pub const RETRY_DELAY_MAX_MS: u64 = DAY_MS;
pub const RUN_TIMEOUT_MAX_MS: u64 = 365 * DAY_MS;
pub const EXPRESSION_MAX_BYTES: usize = 4 * 1024;
const DAY_MS: u64 = 24 * 3600 * 1000;
const INPUT_DEPTH_MAX: usize = 64;

/// One fault of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Below `flow`: `id`, `steps[2].needs[0]`, `steps[0].input.pages`.
    pub path: String,
    pub message: String,
    /// What to do, where there is something to say.
    pub hint: Option<String>,
}

/// All faults of a flow, in the order of its text; empty when it may be registered.
#[must_use]
pub fn validate(flow: &FlowSpec, evaluate: &dyn Evaluate) -> Vec<Fault> {
    let mut faults = Faults(Vec::new());
    faults.name("id", "flow id", &flow.id);
    if let Some(timeout) = flow.run_timeout_ms {
        faults.range("run_timeout_ms", timeout, 1, RUN_TIMEOUT_MAX_MS);
    }
    match flow.steps.len() {
        0 => faults.add("steps", "a flow needs at least one step", None),
        count if count > STEPS_PER_FLOW_MAX => {
            faults.add("steps", format!("{count} steps, at most {STEPS_PER_FLOW_MAX} are allowed"), None);
            return faults.0;
        }
        _ => {}
    }
    let mut places = BTreeMap::new();
    for (place, step) in flow.steps.iter().enumerate() {
        let path = format!("steps[{place}]");
        faults.name(&format!("{path}.id"), "step id", &step.id);
        if let Some(first) = places.get(step.id.as_str()) {
            faults.add(format!("{path}.id"), format!("step id '{}' is taken by steps[{first}]", step.id), None);
        } else {
            places.insert(step.id.as_str(), place);
        }
    }
    for (place, step) in flow.steps.iter().enumerate() {
        check_step(&mut faults, &format!("steps[{place}]"), step, &places, evaluate);
    }
    for (place, cycle) in cycles(flow, &places) {
        let hint = "take one of these needs away".to_owned();
        faults.add(format!("steps[{place}].needs"), format!("cycle of needs: {cycle}"), Some(hint));
    }
    faults.0
}

struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>, hint: Option<String>) {
        self.0.push(Fault { path: path.into(), message: message.into(), hint });
    }

    fn name(&mut self, path: &str, what: &str, name: &str) {
        if !is_name(name) {
            let hint = "1 to 64 of a-z A-Z 0-9 . _ -, first a letter or digit, without '..'".to_owned();
            self.add(path, format!("{what} '{}' is not a name", shorten(name)), Some(hint));
        }
    }

    fn range(&mut self, path: &str, value: u64, least: u64, most: u64) {
        if value < least || value > most {
            let key = path.rsplit('.').next().unwrap_or(path);
            self.add(path, format!("{key}: {value} is not between {least} and {most}"), None);
        }
    }
}

fn check_step(
    faults: &mut Faults,
    path: &str,
    step: &StepSpec,
    places: &BTreeMap<&str, usize>,
    evaluate: &dyn Evaluate,
) {
    if step.component.trim().is_empty() {
        let hint = "a .wasm file, or a folder with a Cargo.toml, relative to the flow file".to_owned();
        faults.add(format!("{path}.component"), "component is empty", Some(hint));
    }
    for (at, need) in step.needs.iter().enumerate() {
        let path = format!("{path}.needs[{at}]");
        if !places.contains_key(need.as_str()) {
            let near = nearest(need, places.keys().copied());
            faults.add(path, format!("needs unknown step '{}'", shorten(need)), near);
        } else if step.needs[..at].contains(need) {
            faults.add(path, format!("needs step '{need}' twice"), None);
        }
    }
    if step.max_parallel.is_some() && step.for_each.is_none() {
        let hint = "add for_each, or take max_parallel away".to_owned();
        faults.add(format!("{path}.max_parallel"), "max_parallel without for_each has no meaning", Some(hint));
    }
    if step.max_parallel == Some(0) {
        faults.add(format!("{path}.max_parallel"), "max_parallel is 0: no item would ever start", None);
    }
    let scope = Scope { step, places, evaluate };
    if let Some(expression) = &step.when {
        scope.expression(faults, &format!("{path}.when"), expression);
    }
    if let Some(expression) = &step.for_each {
        let path = format!("{path}.for_each");
        // A number or another constant is a sound expression, and is met by every run.
        match serde_json::from_str::<serde_json::Value>(expression) {
            Ok(constant) if !constant.is_array() => {
                let hint = "name a list, as in: input.items".to_owned();
                faults.add(path, format!("for_each gives {} where a list is needed", kind(&constant)), Some(hint));
            }
            _ => scope.expression(faults, &path, expression),
        }
    }
    if let Some(input) = &step.input {
        scope.template(faults, &format!("{path}.input"), input, 0);
    }
    check_limits(faults, &format!("{path}.limits"), &step.limits);
    check_retries(faults, &format!("{path}.retries"), &step.retries);
    check_grants(faults, &format!("{path}.grants"), &step.grants);
}

/// What the expressions of one step may name.
struct Scope<'a> {
    step: &'a StepSpec,
    places: &'a BTreeMap<&'a str, usize>,
    evaluate: &'a dyn Evaluate,
}

impl Scope<'_> {
    fn expression(&self, faults: &mut Faults, path: &str, expression: &str) {
        let bare = expression.trim();
        if let Some(inner) = references::sole_expression(bare) {
            let hint = format!("write it without the braces: {}", shorten(inner));
            faults.add(path, "an expression stands here, not a template", Some(hint));
            return;
        }
        self.verdict(faults, path, bare, self.evaluate.check_value(bare));
    }

    /// Every string of the input template.
    fn template(&self, faults: &mut Faults, path: &str, value: &serde_json::Value, depth: usize) {
        if depth > INPUT_DEPTH_MAX {
            faults.add(path, format!("nested deeper than {INPUT_DEPTH_MAX} levels"), None);
            return;
        }
        match value {
            serde_json::Value::String(text) => {
                if let Some(expression) = references::sole_expression(text) {
                    self.verdict(faults, path, expression, self.evaluate.check_value(expression));
                } else if references::is_template(text) {
                    if let Err(fault) = self.evaluate.check_text(text) {
                        faults.add(path, fault.message, None);
                        return;
                    }
                    for part in references::parts(text).unwrap_or_default() {
                        if let references::Part::Expression(expression) = part {
                            self.verdict(faults, path, expression, Ok(()));
                        }
                    }
                }
            }
            serde_json::Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.template(faults, &format!("{path}[{at}]"), item, depth + 1);
                }
            }
            serde_json::Value::Object(fields) => {
                for (key, field) in fields {
                    self.template(faults, &format!("{path}.{key}"), field, depth + 1);
                }
            }
            _ => {}
        }
    }

    fn verdict(&self, faults: &mut Faults, path: &str, text: &str, parsed: Result<(), EvaluateFault>) {
        if text.len() > EXPRESSION_MAX_BYTES {
            faults.add(path, format!("{} bytes, an expression has at most {EXPRESSION_MAX_BYTES}", text.len()), None);
            return;
        }
        if let Err(fault) = parsed {
            faults.add(path, fault.message, None);
            return;
        }
        let mut seen = BTreeSet::new();
        for name in references::steps_named_in(text) {
            // `steps.docs-list` reads as a subtraction.
            let dashed = references::dashed_name(text, &name).filter(|whole| self.places.contains_key(whole.as_str()));
            if !seen.insert(name.clone()) || self.step.needs.contains(&name) {
                continue;
            }
            if let Some(whole) = dashed {
                let hint = format!("write steps[\"{whole}\"]");
                faults.add(path, format!("'steps.{whole}' reads as a subtraction"), Some(hint));
            } else if name == self.step.id {
                faults.add(path, format!("names its own step '{name}'"), None);
            } else if self.places.contains_key(name.as_str()) {
                let hint = format!("add '{name}' to the needs of step '{}'", self.step.id);
                faults.add(path, format!("names step '{name}', which is not in its needs"), Some(hint));
            } else {
                let near = nearest(&name, self.places.keys().copied());
                faults.add(path, format!("names unknown step '{}'", shorten(&name)), near);
            }
        }
    }
}

fn check_limits(faults: &mut Faults, path: &str, limits: &LimitsSpec) {
    for (key, asked, most) in [
        ("fuel", limits.fuel, LIMITS_MAX.fuel),
        ("memory_mb", limits.memory_mb.map(u64::from), u64::from(LIMITS_MAX.memory_mb)),
        ("timeout_ms", limits.timeout_ms, LIMITS_MAX.timeout_ms),
        ("stack_kb", limits.stack_kb.map(u64::from), u64::from(LIMITS_MAX.stack_kb)),
        ("output_kb", limits.output_kb.map(u64::from), u64::from(LIMITS_MAX.output_kb)),
        ("log_kb", limits.log_kb.map(u64::from), u64::from(LIMITS_MAX.log_kb)),
        ("scratch_mb", limits.scratch_mb.map(u64::from), u64::from(LIMITS_MAX.scratch_mb)),
        ("artifacts_mb", limits.artifacts_mb.map(u64::from), u64::from(LIMITS_MAX.artifacts_mb)),
    ] {
        if let Some(asked) = asked {
            faults.range(&format!("{path}.{key}"), asked, 1, most);
        }
    }
}

fn check_retries(faults: &mut Faults, path: &str, retries: &RetriesSpec) {
    for (key, message) in retries_out_of_range(retries) {
        faults.add(format!("{path}.{key}"), format!("{key}: {message}"), None);
    }
}

/// The keys of a retry policy, of a flow or a configuration, that are out of range, with what is wrong.
#[must_use]
pub fn retries_out_of_range(retries: &RetriesSpec) -> Vec<(&'static str, String)> {
    let mut bad = Vec::new();
    let mut range = |key, value: u64, least: u64, most: u64| {
        if value < least || value > most {
            bad.push((key, format!("{value} is not between {least} and {most}")));
        }
    };
    if let Some(count) = retries.max_attempts {
        range("max_attempts", u64::from(count), 1, u64::from(MAX_ATTEMPTS_MAX));
    }
    for (key, span) in
        [("base_ms", retries.base_ms), ("jitter_ms", retries.jitter_ms), ("max_delay_ms", retries.max_delay_ms)]
    {
        if let Some(span) = span {
            range(key, span, 0, RETRY_DELAY_MAX_MS);
        }
    }
    if let Some(factor) = retries.factor.filter(|factor| !(1.0..=RETRY_FACTOR_MAX).contains(factor)) {
        bad.push(("factor", format!("{factor} is not between 1 and {RETRY_FACTOR_MAX}")));
    }
    bad
}

fn check_grants(faults: &mut Faults, path: &str, grants: &GrantsSpec) {
    let mut guests: Vec<&str> = Vec::new();
    for (at, files) in grants.files.iter().enumerate() {
        let path = format!("{path}.files[{at}]");
        if files.host.trim().is_empty() || files.host.contains('\0') {
            faults.add(format!("{path}.host"), "host folder is empty", None);
        }
        if let Some(message) = guest_path_fault(&files.guest) {
            let hint = "an absolute path as the step sees it, like /data".to_owned();
            faults.add(format!("{path}.guest"), message, Some(hint));
        } else if let Some(other) = guests.iter().find(|other| overlap(other, &files.guest)) {
            faults.add(format!("{path}.guest"), format!("guest path '{}' overlaps '{other}'", files.guest), None);
        } else {
            guests.push(&files.guest);
        }
        if files.mode == Mode::Write {
            faults.range(&format!("{path}.max_mb"), u64::from(files.max_mb), 1, u64::from(LIMITS_MAX.scratch_mb));
        }
    }
    let mut names = BTreeSet::new();
    for (at, variable) in grants.env.iter().enumerate() {
        let (path, name) = (format!("{path}.env[{at}]"), variable.name());
        if !is_env_name(name) {
            let hint = "letters, digits and _, first not a digit, at most 128".to_owned();
            faults.add(path, format!("'{}' is not a name of a variable", shorten(name)), Some(hint));
        } else if !names.insert(name) {
            faults.add(path, format!("variable {name} is asked for twice"), None);
        }
    }
}

fn guest_path_fault(guest: &str) -> Option<String> {
    let shown = shorten(guest);
    if !guest.starts_with('/') {
        return Some(format!("guest path '{shown}' is not absolute"));
    }
    if guest == "/" {
        return Some("guest path '/' is the root itself".to_owned());
    }
    if guest.len() > 255 || guest.contains(char::is_control) {
        return Some(format!("guest path '{shown}' is longer than 255 bytes or holds a control character"));
    }
    let odd = guest[1..].trim_end_matches('/').split('/').any(|part| matches!(part, "" | "." | ".."));
    odd.then(|| format!("guest path '{shown}' holds '.', '..' or an empty part"))
}

fn overlap(a: &str, b: &str) -> bool {
    let (a, b) = (a.trim_end_matches('/'), b.trim_end_matches('/'));
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    long.strip_prefix(short).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether an environment variable may be granted under this name.
#[must_use]
pub fn is_env_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.as_bytes()[0].is_ascii_digit()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
