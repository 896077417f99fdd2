//! JSON to the machine's values and back, types kept, counted.

use minijinja::value::{Value as Jinja, ValueKind};
use serde_json::{Map, Number, Value};
use tm_core::flow::evaluate::EVALUATE_RESULT_MAX_BYTES;

const DEPTH_MAX: usize = 128;

/// Why a value is no result.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    #[error("the result is larger than {} KiB", EVALUATE_RESULT_MAX_BYTES / 1024)]
    TooLarge,
    #[error("the result is nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    #[error("an undefined value")]
    Undefined,
    #[error("the result holds a number that JSON has not (not finite, or beyond 64 bits)")]
    Number,
    #[error("the result holds a key that is not a string")]
    Key,
    #[error("the result is {0}, which is not a JSON value")]
    NotJson(ValueKind),
}

/// `None` when it is larger than what is `left`.
pub(super) fn to_value(value: &Value, left: &mut usize) -> Option<Jinja> {
    let mut charge = |bytes: usize| {
        *left = left.checked_sub(bytes)?;
        Some(())
    };
    charge(8)?;
    Some(match value {
        Value::Null => Jinja::from(()),
        Value::Bool(bool) => Jinja::from(*bool),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(signed), _) => Jinja::from(signed),
            (None, Some(unsigned)) => Jinja::from(unsigned),
            (None, None) => Jinja::from(number.as_f64()?),
        },
        Value::String(text) => {
            charge(text.len())?;
            Jinja::from(text.as_str())
        }
        Value::Array(items) => Jinja::from(items.iter().map(|item| to_value(item, left)).collect::<Option<Vec<_>>>()?),
        Value::Object(fields) => {
            let mut pairs = Vec::with_capacity(fields.len());
            for (key, field) in fields {
                *left = left.checked_sub(key.len())?;
                pairs.push((key.as_str(), to_value(field, left)?));
            }
            Jinja::from_pairs(pairs)
        }
    })
}

/// The JSON of a value, at most [`EVALUATE_RESULT_MAX_BYTES`] of text.
pub(super) fn from_value(value: &Jinja) -> Result<Value, Problem> {
    let mut left = EVALUATE_RESULT_MAX_BYTES;
    take(value, &mut left, DEPTH_MAX)
}

fn take(value: &Jinja, left: &mut usize, depth: usize) -> Result<Value, Problem> {
    let depth = depth.checked_sub(1).ok_or(Problem::TooDeep)?;
    charge(left, 1)?;
    Ok(match value.kind() {
        ValueKind::Undefined => return Err(Problem::Undefined),
        ValueKind::None => Value::Null,
        ValueKind::Bool => Value::Bool(value.is_true()),
        ValueKind::Number => {
            charge(left, 7)?;
            Value::Number(number(value)?)
        }
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            charge(left, text.len() + 1)?;
            Value::String(text.to_owned())
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter().map_err(|_| Problem::NotJson(value.kind()))?;
            let mut list = Vec::new();
            for item in items {
                list.push(take(&item, left, depth)?);
            }
            Value::Array(list)
        }
        ValueKind::Map => {
            let keys = value.try_iter().map_err(|_| Problem::NotJson(value.kind()))?;
            let mut map = Map::new();
            for key in keys {
                let field = value.get_item(&key).map_err(|_| Problem::Undefined)?;
                let name = key.as_str().ok_or(Problem::Key)?;
                charge(left, name.len() + 3)?;
                map.insert(name.to_owned(), take(&field, left, depth)?);
            }
            Value::Object(map)
        }
        other => return Err(Problem::NotJson(other)),
    })
}

fn charge(left: &mut usize, bytes: usize) -> Result<(), Problem> {
    *left = left.checked_sub(bytes).ok_or(Problem::TooLarge)?;
    Ok(())
}

fn number(value: &Jinja) -> Result<Number, Problem> {
    if !value.is_integer() {
        return f64::try_from(value.clone()).ok().and_then(Number::from_f64).ok_or(Problem::Number);
    }
    if let Ok(signed) = i64::try_from(value.clone()) {
        return Ok(Number::from(signed));
    }
    u64::try_from(value.clone()).map(Number::from).map_err(|_| Problem::Number)
}
