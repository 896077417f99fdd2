//! The contract's `run`, held against what a component exports under its name: by shape, as the call needs it.

use std::fmt::{self, Write};

use tm_core::interfaces::FLOW_SERIES;
use wasmparser::{
    component_types::{ComponentDefinedType, ComponentEntityType, ComponentFuncType, ComponentValType},
    types::Types,
};

/// `run` of `wit/`, its named types written out.
const RUN: &str = "func(record { run-id: string, flow-id: string, step-id: string, task-id: string, attempt: u32, \
                   max-attempts: u32, idempotency-key: string, deadline-ms: u64, trace-parent: option<string> }, string) \
                   -> result<string, variant { \
                   retryable(record { code: string, message: string, retry-after-ms: option<u64> }), \
                   rate-limited(record { code: string, message: string, retry-after-ms: option<u64> }), \
                   invalid-input(record { code: string, message: string }), \
                   fatal(record { code: string, message: string }) }>";
/// A type is written out no further: one that names its parts twice on every level doubles with each.
const SHAPE_MAX_BYTES: usize = 4096;
/// What a message shows of a shape, from where it differs.
const SHOWN_MAX_CHARS: usize = 60;
/// What a message shows of a function that is imported.
const FUNCTION_MAX_CHARS: usize = 200;

/// The exports of this contract's series, and what is wrong with them; a component without one has no fault here.
///
/// # Errors
/// What is there and what was expected, in words.
pub fn check<'a>(types: &Types, exports: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let prefix = format!("tracemind:flow/step@{FLOW_SERIES}");
    exports.filter(|name| name.starts_with(&prefix)).try_for_each(|name| check_step(types, name))
}

fn check_step(types: &Types, name: &str) -> Result<(), String> {
    let item = types.component_item_for_export(name).map(|item| item.ty);
    let Some(ComponentEntityType::Instance(instance)) = item else {
        return Err(format!("exports {name}, but not as an interface"));
    };
    match types[instance].exports.get("run").map(|item| item.ty) {
        None => Err(format!("exports {name} without its function run")),
        Some(ComponentEntityType::Func(run)) => {
            let mut found = Shape { types, text: String::new() };
            // The error is a text that is full: it differs then.
            let _ = found.function(&types[run]);
            if found.text == RUN { Ok(()) } else { Err(different(name, &found.text)) }
        }
        Some(_) => Err(format!("exports {name}, but its run is not a function")),
    }
}

/// A function's type in words, the end cut off when it is long.
pub fn function_shape(types: &Types, function: &ComponentFuncType) -> String {
    let mut found = Shape { types, text: String::new() };
    // The error is a text that is full.
    let _ = found.function(function);
    match found.text.char_indices().nth(FUNCTION_MAX_CHARS) {
        Some((at, _)) => format!("{}…", &found.text[..at]),
        None => found.text,
    }
}

fn different(name: &str, found: &str) -> String {
    let alike: usize = RUN.chars().zip(found.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    // From the beginning of the name or type that differs.
    let from = RUN[..alike].rfind([' ', '(', '<']).map_or(0, |at| at + 1);
    let shown = |text: &str| {
        let before = if from == 0 { "" } else { "…" };
        let part: String = text[from..].chars().take(SHOWN_MAX_CHARS).collect();
        let after = if from + part.len() < text.len() { "…" } else { "" };
        format!("`{before}{part}{after}`")
    };
    format!("exports {name}, but its run has another type: expected {}, found {}", shown(RUN), shown(found))
}

/// A type as `wit/` would write it, without names of its own.
struct Shape<'a> {
    types: &'a Types,
    text: String,
}

impl Write for Shape<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if self.text.len() + part.len() > SHAPE_MAX_BYTES {
            return Err(fmt::Error);
        }
        self.text.push_str(part);
        Ok(())
    }
}

impl Shape<'_> {
    fn function(&mut self, function: &ComponentFuncType) -> fmt::Result {
        self.write_str(if function.async_ { "async func(" } else { "func(" })?;
        self.list(function.params.iter().map(|(_, value)| (None, Some(*value))))?;
        self.write_str(")")?;
        let Some(result) = function.result else { return Ok(()) };
        self.write_str(" -> ")?;
        self.value(result)
    }

    /// Values after names, parted by commas; a name alone where there is no value.
    fn list<'n>(&mut self, parts: impl Iterator<Item = (Option<&'n str>, Option<ComponentValType>)>) -> fmt::Result {
        for (at, (name, value)) in parts.enumerate() {
            self.write_str(if at == 0 { "" } else { ", " })?;
            match (name, value) {
                (Some(name), Some(value)) => {
                    write!(self, "{name}: ")?;
                    self.value(value)?;
                }
                (Some(name), None) => self.write_str(name)?,
                (None, Some(value)) => self.value(value)?,
                (None, None) => self.write_str("_")?,
            }
        }
        Ok(())
    }

    fn around<'n>(
        &mut self,
        open: &str,
        parts: impl Iterator<Item = (Option<&'n str>, Option<ComponentValType>)>,
        close: &str,
    ) -> fmt::Result {
        self.write_str(open)?;
        self.list(parts)?;
        self.write_str(close)
    }

    fn value(&mut self, value: ComponentValType) -> fmt::Result {
        let id = match value {
            ComponentValType::Primitive(primitive) => return write!(self, "{primitive}"),
            ComponentValType::Type(id) => id,
        };
        let types = self.types;
        let one = |value: &ComponentValType| std::iter::once((None, Some(*value)));
        match &types[id] {
            ComponentDefinedType::Primitive(primitive) => write!(self, "{primitive}"),
            ComponentDefinedType::Record(record) => {
                self.around("record { ", record.fields.iter().map(|(name, ty)| (Some(name.as_str()), Some(*ty))), " }")
            }
            ComponentDefinedType::Variant(variant) => {
                self.write_str("variant { ")?;
                for (at, (name, case)) in variant.cases.iter().enumerate() {
                    self.write_str(if at == 0 { "" } else { ", " })?;
                    self.write_str(name.as_str())?;
                    if let Some(value) = &case.ty {
                        self.around("(", one(value), ")")?;
                    }
                }
                self.write_str(" }")
            }
            ComponentDefinedType::Tuple(tuple) => {
                self.around("tuple<", tuple.types.iter().map(|ty| (None, Some(*ty))), ">")
            }
            ComponentDefinedType::List { element, .. } => self.around("list<", one(element), ">"),
            ComponentDefinedType::Option { ty, .. } => self.around("option<", one(ty), ">"),
            ComponentDefinedType::Result { ok, err, .. } => {
                self.around("result<", [(None, *ok), (None, *err)].into_iter(), ">")
            }
            ComponentDefinedType::Enum(names) => {
                self.around("enum { ", names.iter().map(|name| (Some(name.as_str()), None)), " }")
            }
            ComponentDefinedType::Flags(names) => {
                self.around("flags { ", names.iter().map(|name| (Some(name.as_str()), None)), " }")
            }
            ComponentDefinedType::Own(_) | ComponentDefinedType::Borrow(_) => self.write_str("a handle"),
            _ => self.write_str("a type that the contract does not use"),
        }
    }
}
