//! How a step comes to its input: conditions, lists and templates over what the run has so far.
//!
//! Plain paths (`input.name`, `steps.list.output.pages`) are resolved here, exactly and at any size up to the input
//! bound; everything else goes to [`Evaluate`] with its bounds. Nothing here changes a run: the results stand in events.

use alloc::{
    boxed::Box,
    format,
    string::{String, ToString},
    vec::Vec,
};
use serde_json::{Map, Value};

use crate::{
    flow::{
        evaluate::{Evaluate, EvaluateFault},
        references::sole_expression,
        spec::{FlowDef, StepDef},
    },
    id::Digest,
    json::{BlobRef, Json, Payload},
    limits::{AT_ONCE_MAX_BYTES, INLINE_MAX_BYTES, INPUT_MAX_BYTES, ITEMS_PER_FAN_OUT_MAX},
    queue::run::{Run, StepRun},
};

/// What a step whose needs are met becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Ready(Payload),
    Fanned(Vec<Payload>),
    Skipped,
}

/// What a run gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunOutput {
    /// The output of this step.
    Of(u16),
    Made(Payload),
}

/// Large payloads by their digest. Written and synced before an event names them (I10).
pub trait Blobs {
    /// `None`: the blob is missing or damaged.
    fn read(&self, digest: &Digest) -> Option<Json>;

    /// Stores one; `None` when there is no room: the payload then stands in the record itself.
    fn put(&self, json: &Json) -> Option<Digest>;
}

/// A payload of `json`: in a blob when it is above the inline bound and the disk has room.
pub fn payload_of(json: Json, blobs: &dyn Blobs) -> Payload {
    if json.size_bytes() > INLINE_MAX_BYTES
        && let Some(digest) = blobs.put(&json)
    {
        return Payload::Blob(Box::new(BlobRef { digest, size_bytes: json.size_bytes() }));
    }
    Payload::Inline(json)
}

/// The makers of inputs for one run at one moment.
pub struct Inputs<'a> {
    pub run: &'a Run,
    pub def: &'a FlowDef,
    pub evaluate: &'a dyn Evaluate,
    pub blobs: &'a dyn Blobs,
}

impl Inputs<'_> {
    /// What the step's input may come to, in bytes of a record, when it is made in no time. None: it is to be made beside
    /// the loop, because a list may be long, and computing with large outputs takes long.
    #[must_use]
    pub fn at_once_bytes(&self, step: &StepDef) -> Option<u64> {
        match self.carried_or_skipped(step) {
            Some(Next::Ready(Payload::Inline(json))) if self.run.input != Payload::Inline(json.clone()) => {
                return Some(json.size_bytes());
            }
            Some(_) => return Some(0),
            None if step.for_each.is_some() => return None,
            None => {}
        }
        let outputs = step.needs.iter().filter_map(|&need| self.run.output_of(need));
        let scope_bytes: u64 = outputs.chain([&self.run.input]).map(Payload::size_bytes).sum();
        let template = step.input.as_ref().map_or("", Json::get);
        // Each expression may give as much as it was given.
        let expressions = 1 + template.matches("{{").count() as u64;
        let bytes = scope_bytes.saturating_mul(expressions).saturating_add(template.len() as u64);
        Some(bytes).filter(|bytes| *bytes <= AT_ONCE_MAX_BYTES)
    }

    /// What becomes of `step`, whose needs all ended.
    ///
    /// A step is skipped when its condition is false, or when it has needs and all of them were skipped. A skipped
    /// need's output is null.
    ///
    /// # Errors
    /// When a condition, list or template fails or its result is too large: TEMPLATE_ERROR.
    pub fn next(&self, step: &StepDef) -> Result<Next, EvaluateFault> {
        if let Some(next) = self.carried_or_skipped(step) {
            return Ok(next);
        }
        if let (None, None, None) = (&step.when, &step.for_each, &step.input) {
            return self.object_of(&step.needs).map(Next::Ready);
        }
        let mut scope = self.scope(step)?;
        if let Some(when) = &step.when
            && !truth(&self.value(when, &scope).map_err(|fault| at("when", &fault))?)
        {
            return Ok(Next::Skipped);
        }
        let Some(for_each) = &step.for_each else {
            let Some(template) = &step.input else { return self.default_input(step).map(Next::Ready) };
            return self.render_input(template, &scope).map(Next::Ready);
        };
        let list = match self.value(for_each, &scope).map_err(|fault| at("for_each", &fault))? {
            Value::Array(list) => list,
            other => return Err(fault(format!("for_each gave {} where a list is needed", kind(&other)))),
        };
        if list.len() > ITEMS_PER_FAN_OUT_MAX {
            let len = list.len();
            return Err(fault(format!("for_each gave {len} items, at most {ITEMS_PER_FAN_OUT_MAX} are allowed")));
        }
        let (mut inputs, mut bytes) = (Vec::with_capacity(list.len()), 0);
        for (index, item) in list.into_iter().enumerate() {
            let payload = match &step.input {
                None => payload_of(Json::of(&item), self.blobs),
                Some(template) => {
                    if let Value::Object(scope) = &mut scope {
                        scope.insert("item".into(), item);
                        scope.insert("index".into(), index.into());
                    }
                    self.render_input(template, &scope)?
                }
            };
            bytes += payload.size_bytes();
            if bytes > INPUT_MAX_BYTES {
                return Err(fault(format!("the inputs of the fan-out are larger than {INPUT_MAX_BYTES} bytes in all")));
            }
            inputs.push(payload);
        }
        Ok(Next::Fanned(inputs))
    }

    /// The output of a run whose steps all ended: that of the step which nothing needs, or an object of several.
    ///
    /// # Errors
    /// When a blob is missing, or the result is too large.
    pub fn output(&self) -> Result<RunOutput, EvaluateFault> {
        let is_last = |place: u16| !self.def.steps.iter().any(|step| step.needs.contains(&place));
        let last: Vec<u16> = (0..)
            .take(self.def.steps.len())
            .filter(|&place| is_last(place) && self.run.output_of(place).is_some())
            .collect();
        match last.as_slice() {
            [] => Ok(RunOutput::Made(Payload::Inline(Json::null()))),
            [one] => Ok(RunOutput::Of(*one)),
            several => self.object_of(several).map(RunOutput::Made),
        }
    }

    /// What needs nothing to be read: a step that is skipped, and the two most frequent inputs.
    fn carried_or_skipped(&self, step: &StepDef) -> Option<Next> {
        let skipped = |need: &u16| matches!(self.run.steps.get(usize::from(*need)), Some(StepRun::Skipped));
        if !step.needs.is_empty() && step.needs.iter().all(skipped) {
            return Some(Next::Skipped);
        }
        if step.when.is_some() || step.for_each.is_some() {
            return None;
        }
        let carried = match &step.input {
            None => step.needs.is_empty().then(|| self.run.input.clone()),
            Some(template) => sole_expression_of(template).and_then(|path| self.carried(step, &path)),
        };
        carried.map(Next::Ready)
    }

    fn default_input(&self, step: &StepDef) -> Result<Payload, EvaluateFault> {
        if step.needs.is_empty() { Ok(self.run.input.clone()) } else { self.object_of(&step.needs) }
    }

    /// `{"<step id>": output, …}`.
    fn object_of(&self, places: &[u16]) -> Result<Payload, EvaluateFault> {
        let mut text = String::from("{");
        for &place in places {
            if text.len() > 1 {
                text.push(',');
            }
            let id = self.def.steps.get(usize::from(place)).map_or("", |step| step.id.as_str());
            text.push_str(Json::of(id).get());
            text.push(':');
            match self.run.output_of(place) {
                Some(output) => text.push_str(self.text(output)?.get()),
                None => text.push_str("null"),
            }
            bounded(&text)?;
        }
        text.push('}');
        self.payload(&text)
    }

    /// `input` or `steps.X.output`, as it is.
    fn carried(&self, step: &StepDef, path: &str) -> Option<Payload> {
        if path == "input" {
            return Some(self.run.input.clone());
        }
        let id = path.strip_prefix("steps.")?.strip_suffix(".output")?;
        let place =
            *step.needs.iter().find(|&&need| self.def.steps.get(usize::from(need)).is_some_and(|s| s.id == id))?;
        self.run.output_of(place).cloned()
    }

    fn text(&self, payload: &Payload) -> Result<Json, EvaluateFault> {
        text_of(payload, self.blobs)
    }

    fn payload(&self, text: &str) -> Result<Payload, EvaluateFault> {
        parsed(text, self.blobs)
    }

    fn scope(&self, step: &StepDef) -> Result<Value, EvaluateFault> {
        let read = |payload: &Payload| -> Result<Value, EvaluateFault> {
            serde_json::from_str(self.text(payload)?.get()).map_err(|error| fault(format!("not JSON: {error}")))
        };
        let mut steps = Map::new();
        for &need in &step.needs {
            let Some(def) = self.def.steps.get(usize::from(need)) else { continue };
            let output = self.run.output_of(need).map_or(Ok(Value::Null), read)?;
            steps.insert(def.id.clone(), Value::Object(Map::from_iter([("output".to_string(), output)])));
        }
        let run = Map::from_iter([
            ("id".to_string(), Value::String(self.run.id.to_string())),
            ("flow".to_string(), Value::String(self.def.id.clone())),
        ]);
        Ok(Value::Object(Map::from_iter([
            ("input".to_string(), read(&self.run.input)?),
            ("steps".to_string(), Value::Object(steps)),
            ("run".to_string(), Value::Object(run)),
        ])))
    }

    fn value(&self, expression: &str, scope: &Value) -> Result<Value, EvaluateFault> {
        match path_of(expression) {
            Some(path) => look_up(&path, scope).cloned(),
            None => self.evaluate.value(expression, scope),
        }
    }

    fn render_input(&self, template: &Json, scope: &Value) -> Result<Payload, EvaluateFault> {
        let template: Value = serde_json::from_str(template.get())
            .map_err(|error| fault(format!("the input template is damaged: {error}")))?;
        let text = serde_json::to_string(&self.render(&template, scope).map_err(|fault| at("input", &fault))?)
            .map_err(|error| fault(format!("the input cannot be written: {error}")))?;
        bounded(&text)?;
        self.payload(&text)
    }

    fn render(&self, template: &Value, scope: &Value) -> Result<Value, EvaluateFault> {
        Ok(match template {
            Value::String(text) => match sole_expression(text) {
                Some(expression) => self.value(expression, scope)?,
                None if text.contains("{{") || text.contains("{%") => Value::String(self.evaluate.text(text, scope)?),
                None => template.clone(),
            },
            Value::Array(list) => {
                Value::Array(list.iter().map(|item| self.render(item, scope)).collect::<Result<_, _>>()?)
            }
            Value::Object(object) => Value::Object(
                object
                    .iter()
                    .map(|(key, item)| Ok((key.clone(), self.render(item, scope)?)))
                    .collect::<Result<_, EvaluateFault>>()?,
            ),
            Value::Null | Value::Bool(_) | Value::Number(_) => template.clone(),
        })
    }
}

/// The outputs of a fan-out's items as one list.
///
/// # Errors
/// When a blob is missing, or the list is too large.
pub fn list(outputs: &[Payload], blobs: &dyn Blobs) -> Result<Payload, EvaluateFault> {
    let mut text = String::from("[");
    for (place, output) in outputs.iter().enumerate() {
        if place > 0 {
            text.push(',');
        }
        text.push_str(text_of(output, blobs)?.get());
        bounded(&text)?;
    }
    text.push(']');
    parsed(&text, blobs)
}

fn text_of(payload: &Payload, blobs: &dyn Blobs) -> Result<Json, EvaluateFault> {
    match payload {
        Payload::Inline(json) => Ok(json.clone()),
        Payload::Blob(blob) => {
            let digest = &blob.digest;
            blobs.read(digest).ok_or_else(|| fault(format!("blob {digest} is missing or damaged")))
        }
    }
}

fn parsed(text: &str, blobs: &dyn Blobs) -> Result<Payload, EvaluateFault> {
    let json = Json::parse(text).map_err(|error| fault(format!("not JSON: {error}")))?;
    Ok(payload_of(json, blobs))
}

fn sole_expression_of(template: &Json) -> Option<String> {
    let text: String = serde_json::from_str(template.get()).ok()?;
    sole_expression(&text).map(Into::into)
}

/// One part of a plain path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    Key(&'a str),
    Index(usize),
}

/// The parts of `a.b[0].c`; `None` when the expression is more than a path.
#[must_use]
pub fn path_of(expression: &str) -> Option<Vec<Part<'_>>> {
    let mut parts = Vec::new();
    for (place, word) in expression.trim().split('.').enumerate() {
        let (name, mut rest) = word.find('[').map_or((word, ""), |at| word.split_at(at));
        let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if !starts_well || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')) {
            return None;
        }
        // Words of the expression language are not names; a `-` is a minus except in the id of a step.
        let reserved = place == 0 && matches!(name, "true" | "false" | "none" | "True" | "False" | "None" | "not");
        let minus = name.contains('-') && !(place == 1 && matches!(parts.first(), Some(Part::Key("steps"))));
        if reserved || minus {
            return None;
        }
        parts.push(Part::Key(name));
        while let Some(inner) = rest.strip_prefix('[') {
            let (digits, after) = inner.split_once(']')?;
            parts.push(Part::Index(digits.parse().ok()?));
            rest = after;
        }
        if !rest.is_empty() {
            return None;
        }
    }
    Some(parts)
}

fn look_up<'v>(path: &[Part<'_>], scope: &'v Value) -> Result<&'v Value, EvaluateFault> {
    let mut found = scope;
    let mut seen = String::new();
    for part in path {
        match part {
            Part::Key(key) => {
                if !seen.is_empty() {
                    seen.push('.');
                }
                seen.push_str(key);
                found = found.get(key).ok_or_else(|| fault(format!("`{seen}` is undefined")))?;
            }
            Part::Index(index) => {
                seen.push_str(&format!("[{index}]"));
                found = found.get(index).ok_or_else(|| fault(format!("`{seen}` is undefined")))?;
            }
        }
    }
    Ok(found)
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
    }
}

pub(super) const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn bounded(text: &str) -> Result<(), EvaluateFault> {
    if text.len() as u64 > INPUT_MAX_BYTES {
        return Err(fault(format!("the result is larger than {INPUT_MAX_BYTES} bytes")));
    }
    Ok(())
}

fn at(place: &str, inner: &EvaluateFault) -> EvaluateFault {
    fault(format!("{place}: {inner}"))
}

const fn fault(message: String) -> EvaluateFault {
    EvaluateFault { message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_are_paths() {
        assert_eq!(
            path_of("input.a[2].b"),
            Some(alloc::vec![Part::Key("input"), Part::Key("a"), Part::Index(2), Part::Key("b")])
        );
        assert_eq!(path_of("steps.make-it.output").map(|path| path.len()), Some(3));
        for more in ["a - b", "a-b", "a|length", "a.b()", "1", "true", "a[x]", "", "a..b", "a == b", "'a'"] {
            assert_eq!(path_of(more), None, "{more}");
        }
    }
}
