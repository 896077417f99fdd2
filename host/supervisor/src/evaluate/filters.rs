//! The filters, tests and functions that expressions may use: each bounded by what it is given, or counting.

use minijinja::{
    Environment, Error, ErrorKind, filters, tests,
    value::{Kwargs, Value, ValueKind},
};
use tm_core::flow::evaluate::{EVALUATE_RESULT_MAX_BYTES, EVALUATE_STEPS_MAX};

use super::json;

/// Starts the text of an error that was written here and holds no values.
pub(super) const OWN: &str = "\u{1}";

pub(super) fn register(environment: &mut Environment<'static>) {
    environment.add_filter("abs", filters::abs);
    environment.add_filter("bool", filters::bool);
    environment.add_filter("d", filters::default);
    environment.add_filter("default", filters::default);
    environment.add_filter("first", filters::first);
    environment.add_filter("float", filters::float);
    environment.add_filter("int", filters::int);
    environment.add_filter("items", filters::items);
    environment.add_filter("join", join);
    environment.add_filter("keys", keys);
    environment.add_filter("last", filters::last);
    environment.add_filter("length", filters::length);
    environment.add_filter("list", filters::list);
    environment.add_filter("lower", filters::lower);
    environment.add_filter("map", map);
    environment.add_filter("max", filters::max);
    environment.add_filter("min", filters::min);
    environment.add_filter("reject", filters::reject);
    environment.add_filter("rejectattr", filters::rejectattr);
    environment.add_filter("replace", replace);
    environment.add_filter("reverse", filters::reverse);
    environment.add_filter("round", filters::round);
    environment.add_filter("select", filters::select);
    environment.add_filter("selectattr", filters::selectattr);
    environment.add_filter("sort", sort);
    environment.add_filter("split", split);
    environment.add_filter("string", filters::string);
    environment.add_filter("sum", sum);
    environment.add_filter("times", times);
    environment.add_filter("tojson", tojson);
    environment.add_filter("trim", filters::trim);
    environment.add_filter("unique", unique);
    environment.add_filter("upper", filters::upper);

    // No test `in`: over a list in `select` it would be quadratic.
    environment.add_test("defined", tests::is_defined);
    environment.add_test("undefined", tests::is_undefined);
    environment.add_test("none", tests::is_none);
    environment.add_test("boolean", tests::is_boolean);
    environment.add_test("number", tests::is_number);
    environment.add_test("integer", tests::is_integer);
    environment.add_test("float", tests::is_float);
    environment.add_test("string", tests::is_string);
    environment.add_test("sequence", tests::is_sequence);
    environment.add_test("mapping", tests::is_mapping);
    environment.add_test("odd", tests::is_odd);
    environment.add_test("even", tests::is_even);
    environment.add_test("startingwith", tests::is_startingwith);
    environment.add_test("endingwith", tests::is_endingwith);
    environment.add_test("eq", tests::is_eq);
    environment.add_test("ne", tests::is_ne);
    environment.add_test("lt", tests::is_lt);
    environment.add_test("le", tests::is_le);
    environment.add_test("gt", tests::is_gt);
    environment.add_test("ge", tests::is_ge);

    environment.add_function("range", range);
}

fn refuse(text: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{OWN}{text}"))
}

fn too_large(filter: &str) -> Error {
    refuse(&format!("{filter} would make more than {} KiB", EVALUATE_RESULT_MAX_BYTES / 1024))
}

fn text_of<'a>(filter: &str, value: &'a Value) -> Result<&'a str, Error> {
    value.as_str().ok_or_else(|| refuse(&format!("{filter} wants a string, this is a {}", value.kind())))
}

fn items_of(filter: &str, value: &Value) -> Result<Vec<Value>, Error> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(refuse(&format!("{filter} wants a list, this is a {}", value.kind())));
    }
    Ok(value.try_iter()?.collect())
}

fn join(value: &Value, separator: Option<&str>) -> Result<String, Error> {
    let separator = separator.unwrap_or_default();
    let mut joined = String::new();
    for (at, item) in items_of("join", value)?.iter().enumerate() {
        if at > 0 {
            joined.push_str(separator);
        }
        match item.as_str() {
            Some(text) => joined.push_str(text),
            None => joined.push_str(&tojson(item)?),
        }
        if joined.len() > EVALUATE_RESULT_MAX_BYTES {
            return Err(too_large("join"));
        }
    }
    Ok(joined)
}

fn keys(value: &Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Map {
        return Err(refuse(&format!("keys wants a map, this is a {}", value.kind())));
    }
    Ok(value.try_iter()?.collect::<Vec<_>>().into())
}

/// Only `map(attribute="path")`.
fn map(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let attribute: &str = kwargs.get("attribute").map_err(|_| refuse("map wants attribute=\"name\""))?;
    kwargs.assert_all_used().map_err(|_| refuse("map wants attribute=\"name\" and nothing else"))?;
    let mut list = Vec::new();
    for item in items_of("map", value)? {
        list.push(attribute_of(&item, attribute)?);
    }
    Ok(list.into())
}

fn attribute_of(item: &Value, path: &str) -> Result<Value, Error> {
    path.split('.').try_fold(item.clone(), |value, name| {
        let found = value.get_attr(name).map_err(|_| refuse(&format!("an item has no attribute '{name}'")))?;
        if found.is_undefined() {
            return Err(refuse(&format!("an item has no attribute '{name}'")));
        }
        Ok(found)
    })
}

fn replace(value: &Value, from: &str, to: &str) -> Result<String, Error> {
    let text = text_of("replace", value)?;
    let count = text.matches(from).count();
    let grown = count.saturating_mul(to.len().saturating_sub(from.len()));
    if text.len().saturating_add(grown) > EVALUATE_RESULT_MAX_BYTES {
        return Err(too_large("replace"));
    }
    Ok(text.replace(from, to))
}

/// `sort(attribute="path", reverse=true)`; strings by their bytes.
fn sort(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let attribute: Option<&str> = kwargs.get("attribute")?;
    let reverse: Option<bool> = kwargs.get("reverse")?;
    kwargs.assert_all_used().map_err(|_| refuse("sort takes attribute and reverse"))?;
    let mut keyed = items_of("sort", value)?
        .into_iter()
        .map(|item| Ok((attribute.map_or_else(|| Ok(item.clone()), |path| attribute_of(&item, path))?, item)))
        .collect::<Result<Vec<_>, Error>>()?;
    keyed.sort_by(|a, b| if reverse == Some(true) { b.0.cmp(&a.0) } else { a.0.cmp(&b.0) });
    Ok(keyed.into_iter().map(|(_, item)| item).collect::<Vec<_>>().into())
}

fn unique(value: &Value) -> Result<Value, Error> {
    let mut seen = std::collections::BTreeSet::new();
    let items = items_of("unique", value)?;
    Ok(items.into_iter().filter(|item| seen.insert(item.clone())).collect::<Vec<_>>().into())
}

fn split(value: &Value, separator: Option<&str>) -> Result<Value, Error> {
    let text = text_of("split", value)?;
    let most = usize::try_from(EVALUATE_STEPS_MAX).unwrap_or(usize::MAX);
    let parts: Vec<Value> = match separator {
        None => text.split_whitespace().take(most + 1).map(Value::from).collect(),
        Some("") => return Err(refuse("split wants a separator that is not empty")),
        Some(separator) => text.split(separator).take(most + 1).map(Value::from).collect(),
    };
    if parts.len() > most {
        return Err(refuse(&format!("split would make more than {most} parts")));
    }
    Ok(parts.into())
}

fn sum(value: &Value) -> Result<Value, Error> {
    items_of("sum", value)?
        .into_iter()
        .try_fold(Value::from(0), |total, item| arithmetic("sum", &total, &item, i128::checked_add, |a, b| a + b))
}

/// The product of two numbers: `*` would repeat strings and lists.
fn times(value: &Value, other: &Value) -> Result<Value, Error> {
    arithmetic("times", value, other, i128::checked_mul, |a, b| a * b)
}

fn arithmetic(
    filter: &str,
    a: &Value,
    b: &Value,
    whole: fn(i128, i128) -> Option<i128>,
    real: fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    if let Some(other) = [a, b].into_iter().find(|value| !value.is_number()) {
        return Err(refuse(&format!("{filter} wants numbers, this is a {}", other.kind())));
    }
    if a.is_integer() && b.is_integer() {
        let result = whole(i128::try_from(a.clone())?, i128::try_from(b.clone())?)
            .ok_or_else(|| refuse(&format!("{filter} overflows")))?;
        return Ok(i64::try_from(result).map_or_else(|_| Value::from(result), Value::from));
    }
    let number = |value: &Value| match i128::try_from(value.clone()) {
        #[expect(clippy::cast_precision_loss, reason = "a float takes part, so the result is one")]
        Ok(whole) if value.is_integer() => Ok(whole as f64),
        _ => f64::try_from(value.clone()),
    };
    Ok(Value::from(real(number(a)?, number(b)?)))
}

fn tojson(value: &Value) -> Result<String, Error> {
    json::from_value(value).map(|json| json.to_string()).map_err(|problem| refuse(&problem.to_string()))
}

fn range(start: i64, stop: Option<i64>) -> Result<Value, Error> {
    let (start, stop) = stop.map_or((0, start), |stop| (start, stop));
    if stop.saturating_sub(start) > i64::try_from(EVALUATE_STEPS_MAX).unwrap_or(i64::MAX) {
        return Err(refuse(&format!("range would make more than {EVALUATE_STEPS_MAX} numbers")));
    }
    Ok((start..stop).map(Value::from).collect::<Vec<_>>().into())
}
