//! Expressions of flows, in Jinja's expression language, bounded because small ones run on the loop, for everybody.
//!
//! What bounds it: expressions only (no statements, no templates, no loaders); 10,000 steps of the machine; 4 KiB of text;
//! only what the text names is taken from the scope, at most 1 MiB of it; only filters whose result cannot outgrow what
//! they were given, or that count it; no `*` (it repeats strings and lists); joins are few enough for their operands;
//! 64 KiB of result. A plain path (`steps.list.output`) computes nothing: it is looked up, exact and of any size.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use minijinja::{Environment, Error, ErrorKind, Expression, UndefinedBehavior};
use serde_json::Value;
use tm_core::flow::{
    evaluate::{EVALUATE_RESULT_MAX_BYTES, EVALUATE_STEPS_MAX, Evaluate, EvaluateFault},
    references::{self, Marks, Part},
    validate::EXPRESSION_MAX_BYTES,
};

mod filters;
mod json;
mod scope;

/// Bytes of the scope that one computing expression may look at.
pub const SCOPE_MAX_BYTES: usize = 1024 * 1024;
/// Joins (`~`, `+`, `,`) squared times the largest operand: what repeated joining may copy at most.
const COPIED_MAX_BYTES: usize = 256 * 1024 * 1024;
/// Compiled expressions that are kept.
const CACHE_MAX_COUNT: usize = 1024;

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::empty();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(EVALUATE_STEPS_MAX));
    filters::register(&mut environment);
    environment
});

/// [`Evaluate`] by the crate minijinja. Cheap to share; keeps the newest compiled expressions.
#[derive(Default)]
pub struct MiniJinja {
    cache: Mutex<HashMap<String, Arc<Compiled>>>,
}

struct Compiled {
    expression: Expression<'static, 'static>,
    paths: scope::Paths,
    joins: usize,
    filters: usize,
}

impl MiniJinja {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn compiled(&self, expression: &str) -> Result<Arc<Compiled>, EvaluateFault> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = cache.get(expression) {
            return Ok(Arc::clone(known));
        }
        let compiled = Arc::new(compile(expression)?);
        if cache.len() >= CACHE_MAX_COUNT {
            cache.clear();
        }
        cache.insert(expression.to_owned(), Arc::clone(&compiled));
        Ok(compiled)
    }
}

impl Evaluate for MiniJinja {
    fn value(&self, expression: &str, scope: &Value) -> Result<Value, EvaluateFault> {
        let expression = expression.trim();
        if let Some(path) = scope::plain_path(expression) {
            return path.find(scope).cloned().ok_or_else(|| undefined(expression, expression));
        }
        let compiled = self.compiled(expression)?;
        let (context, bytes) = compiled.paths.context(scope).ok_or_else(|| {
            let limit = format!("it looks at more than {} KiB of values", SCOPE_MAX_BYTES / 1024);
            fault(expression, &limit)
        })?;
        // What a filter makes new is at most a result's size.
        let operand = bytes + compiled.filters * EVALUATE_RESULT_MAX_BYTES + expression.len();
        if compiled.joins * compiled.joins * operand > COPIED_MAX_BYTES {
            return Err(fault(expression, "it joins too many values of this size"));
        }
        let value = compiled.expression.eval(context).map_err(|error| failure(expression, &error, scope))?;
        json::from_value(&value).map_err(|problem| match problem {
            json::Problem::Undefined => undefined(expression, &scope::missing(expression, scope)),
            other => fault(expression, &other.to_string()),
        })
    }

    /// Strings stand as they are, everything else as compact JSON.
    fn text(&self, template: &str, scope: &Value) -> Result<String, EvaluateFault> {
        let mut text = String::new();
        for part in split(template)? {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Expression(expression) => match self.value(expression, scope)? {
                    Value::String(string) => text.push_str(&string),
                    other => text.push_str(&other.to_string()),
                },
            }
            if text.len() > EVALUATE_RESULT_MAX_BYTES {
                return Err(fault(template, &json::Problem::TooLarge.to_string()));
            }
        }
        Ok(text)
    }

    fn check_value(&self, expression: &str) -> Result<(), EvaluateFault> {
        let expression = expression.trim();
        if scope::plain_path(expression).is_some() {
            return Ok(());
        }
        self.compiled(expression).map(drop)
    }

    fn check_text(&self, template: &str) -> Result<(), EvaluateFault> {
        split(template)?.into_iter().try_for_each(|part| match part {
            Part::Literal(_) => Ok(()),
            Part::Expression(expression) => self.check_value(expression),
        })
    }
}

fn split(template: &str) -> Result<Vec<Part<'_>>, EvaluateFault> {
    let parts = references::parts(template).ok_or_else(|| fault(template, "a '{{' without its '}}'"))?;
    let statement = parts.iter().any(|part| matches!(part, Part::Literal(text) if text.contains("{%")));
    if statement {
        return Err(fault(template, "statements ({% … %}) are not available, only {{ expressions }}"));
    }
    Ok(parts)
}

fn compile(expression: &str) -> Result<Compiled, EvaluateFault> {
    if expression.len() > EXPRESSION_MAX_BYTES {
        return Err(fault(expression, &format!("it is longer than {EXPRESSION_MAX_BYTES} bytes")));
    }
    if expression.is_empty() {
        return Err(fault(expression, "it is empty"));
    }
    let marks: Vec<(usize, u8)> = Marks::new(expression).collect();
    if multiplies(&marks) {
        // The language repeats strings and lists with it, before any bound is seen.
        return Err(fault(expression, "'*' is not available; write a | times(b)"));
    }
    let count = |wanted: &[u8]| marks.iter().filter(|(_, byte)| wanted.contains(byte)).count();
    Ok(Compiled {
        joins: count(b"~+,"),
        filters: count(b"|"),
        paths: scope::Paths::of(expression),
        expression: ENVIRONMENT
            .compile_expression_owned(expression.to_owned())
            .map_err(|error| parse(expression, &error))?,
    })
}

/// Whether a single `*` stands in it; `**` is a power, of numbers only, and checked.
fn multiplies(marks: &[(usize, u8)]) -> bool {
    let mut run = 0;
    for pair in marks.iter().map(Some).chain([None]) {
        match pair {
            Some((_, b'*')) => run += 1,
            _ if run == 0 || run == 2 => run = 0,
            _ => return true,
        }
    }
    false
}

fn parse(expression: &str, error: &Error) -> EvaluateFault {
    match (error.kind(), error.detail()) {
        (ErrorKind::SyntaxError, Some(detail)) => fault(expression, &format!("it does not parse: {detail}")),
        (_, Some(detail)) => fault(expression, detail),
        (kind, None) => fault(expression, &kind.to_string()),
    }
}

/// The fault of an evaluation. The library's text is taken only where it holds names and types, never values.
fn failure(expression: &str, error: &Error, scope: &Value) -> EvaluateFault {
    let detail = error.detail().unwrap_or_default();
    match error.kind() {
        ErrorKind::OutOfFuel => fault(expression, &format!("it takes more than {EVALUATE_STEPS_MAX} steps")),
        ErrorKind::UndefinedError => undefined(expression, &scope::missing(expression, scope)),
        ErrorKind::InvalidOperation if detail.contains("undefined") && !detail.starts_with(filters::OWN) => {
            undefined(expression, &scope::missing(expression, scope))
        }
        ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction => fault(expression, detail),
        ErrorKind::InvalidOperation
            if detail.starts_with("tried to use")
                || detail.starts_with(filters::OWN)
                || detail.contains("is not iterable") =>
        {
            fault(expression, detail.trim_start_matches(filters::OWN))
        }
        kind => fault(expression, &kind.to_string()),
    }
}

fn undefined(expression: &str, name: &str) -> EvaluateFault {
    fault(expression, &format!("'{name}' is not there"))
}

fn fault(expression: &str, problem: &str) -> EvaluateFault {
    const SHOWN_CHARS: usize = 120;
    let mut shown: String =
        expression.chars().take(SHOWN_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if shown.len() < expression.len() {
        shown.push('…');
    }
    EvaluateFault { message: format!("expression `{shown}`: {problem}") }
}

#[cfg(test)]
mod tests;
