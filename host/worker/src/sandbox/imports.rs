//! Whether what a component imports is there and of the type that this host has.
//!
//! The linker is asked, the one that will bind the component, so that no second description of WASI can disagree with it. It
//! wants a compiled component: the part up to the last import is one, has no code as a rule, and compiles in no time.

use tm_core::interfaces::Interface;
use wasmparser::{component_types::ComponentEntityType, types::Types};
use wasmtime::{
    Engine, Result,
    component::{Component, Linker, LinkerInstance, ResourceType, types::ComponentItem},
};

use super::{
    contract,
    ctx::Ctx,
    linker::{Capabilities, linker},
};

/// Faults that are told; a component with more is another host's.
pub const FAULTS_MAX: usize = 32;
/// Functions that are looked at one by one; of a component that imports more, the first fault alone is told.
const FUNCTIONS_MAX: usize = 1_000;

/// A function that a component imports of an interface that this host has.
struct Function {
    import: String,
    /// The interface's name in the linker, which may have a later version.
    host: String,
    name: String,
}

/// Everything that is missing in this host's interfaces or has another type there, in words. `declared` is the component up
/// to its last import, `types` are those of the component. Interfaces that this host does not have are not its matter.
///
/// # Errors
/// When the declared part does not compile.
pub fn faults(engine: &Engine, declared: &[u8], types: &Types) -> Result<Vec<String>> {
    let component = Component::new(engine, declared)?;
    let mut linker = linker(engine, Capabilities::ALL)?;
    let (functions, mut faults) = place(&mut linker, &component)?;
    // One function after the other is put in the place of the host's, which fits any type: where the first fault goes away
    // by that, it was this function's.
    linker.allow_shadowing(true);
    let mut left = first_fault(&linker, &component);
    for function in functions.iter().take(if functions.len() > FUNCTIONS_MAX { 0 } else { FUNCTIONS_MAX }) {
        let Some(before) = left else { break };
        linker.instance(&function.host)?.func_new(&function.name, |_, _, _, _| Ok(()))?;
        left = first_fault(&linker, &component);
        if left.as_ref() == Some(&before) {
            continue;
        }
        let Function { import, name, .. } = function;
        let found = found(types, function).map(|found| format!("; the component's is `{found}`")).unwrap_or_default();
        faults.push(format!("imports {import}, but its {name} has another type: {}{found}", before.why));
    }
    faults.extend(left.map(|fault| format!("imports what this host has otherwise: {}", fault.whole)));
    faults.truncate(FAULTS_MAX);
    Ok(faults)
}

/// Defines what is not there, so that the rest can be judged. Returns the functions that are there, and of this host's
/// interfaces the functions that are not, in words.
fn place(linker: &mut Linker<Ctx>, component: &Component) -> Result<(Vec<Function>, Vec<String>)> {
    let engine = component.engine();
    let (mut functions, mut faults, mut seen) = (Vec::new(), Vec::new(), Vec::new());
    for (import, external) in component.component_type().imports(engine) {
        let host = Interface::parse(import).and_then(|interface| interface.host_name());
        let (Some(host), ComponentItem::ComponentInstance(instance)) = (host, &external.ty) else {
            stand_in(&mut linker.root(), engine, import, &external.ty, &mut seen)?;
            continue;
        };
        let mut interface = linker.instance(&host)?;
        for (name, export) in instance.exports(engine) {
            match export.ty {
                // Defining it again fails, so it was not there.
                ComponentItem::ComponentFunc(_) if interface.func_new(name, |_, _, _, _| Ok(())).is_ok() => {
                    faults.push(format!("imports {import} with {name}, which this host's does not have"));
                }
                ComponentItem::ComponentFunc(_) => {
                    functions.push(Function { import: import.to_owned(), host: host.clone(), name: name.to_owned() });
                }
                ComponentItem::Resource(ty) => seen.push(ty),
                _ => {}
            }
        }
    }
    Ok((functions, faults))
}

/// Defines an import as whatever it wants to be. A resource that was seen before is an alias of that.
fn stand_in(
    at: &mut LinkerInstance<'_, Ctx>,
    engine: &Engine,
    name: &str,
    item: &ComponentItem,
    seen: &mut Vec<ResourceType>,
) -> Result<()> {
    match item {
        ComponentItem::ComponentFunc(_) => at.func_new(name, |_, _, _, _| Ok(())),
        ComponentItem::ComponentInstance(instance) => {
            let mut inside = at.instance(name)?;
            let mut exports = instance.exports(engine);
            exports.try_for_each(|(name, export)| stand_in(&mut inside, engine, name, &export.ty, seen))
        }
        ComponentItem::Resource(ty) if !seen.contains(ty) => {
            seen.push(*ty);
            at.resource(name, ResourceType::host::<()>(), |_, _| Ok(()))
        }
        _ => Ok(()),
    }
}

/// What the linker says first of a component that it cannot bind.
#[derive(PartialEq, Eq)]
struct Fault {
    whole: String,
    /// Without the names of the interface and the function.
    why: String,
}

fn first_fault(linker: &Linker<Ctx>, component: &Component) -> Option<Fault> {
    let error = linker.instantiate_pre(component).err()?;
    let why: Vec<String> = error.chain().skip(2).map(ToString::to_string).collect();
    Some(Fault { whole: format!("{error:#}"), why: why.join(": ") })
}

/// The type that a component gives a function.
fn found(types: &Types, function: &Function) -> Option<String> {
    let import = types.as_ref().component_item_for_import(&function.import)?;
    let ComponentEntityType::Instance(instance) = import.ty else { return None };
    let ComponentEntityType::Func(found) = types[instance].exports.get(&function.name)?.ty else { return None };
    Some(contract::function_shape(types, &types[found]))
}

#[cfg(test)]
mod tests {
    use tm_core::interfaces::TABLE;

    use super::*;
    use crate::sandbox::engine;

    /// One function of every interface that has any.
    const FUNCTIONS: &[(&str, &str)] = &[
        ("wasi:io/error", "[method]error.to-debug-string"),
        ("wasi:io/poll", "poll"),
        ("wasi:io/streams", "[method]input-stream.read"),
        ("wasi:cli/environment", "get-arguments"),
        ("wasi:cli/exit", "exit"),
        ("wasi:cli/stdin", "get-stdin"),
        ("wasi:cli/stdout", "get-stdout"),
        ("wasi:cli/stderr", "get-stderr"),
        ("wasi:cli/terminal-stdin", "get-terminal-stdin"),
        ("wasi:cli/terminal-stdout", "get-terminal-stdout"),
        ("wasi:cli/terminal-stderr", "get-terminal-stderr"),
        ("wasi:random/insecure-seed", "insecure-seed"),
        ("wasi:random/random", "get-random-u64"),
        ("wasi:random/insecure", "get-insecure-random-u64"),
        ("wasi:clocks/monotonic-clock", "now"),
        ("wasi:clocks/wall-clock", "now"),
        ("wasi:filesystem/types", "filesystem-error-code"),
        ("wasi:filesystem/preopens", "get-directories"),
        ("tracemind:flow/log", "emit"),
        ("tracemind:flow/progress", "report"),
        ("tracemind:flow/cancel", "requested"),
        ("tracemind:flow/artifacts", "create"),
    ];
    /// They hold types alone.
    const WITHOUT: &[&str] = &["wasi:cli/terminal-input", "wasi:cli/terminal-output", "tracemind:flow/types"];

    #[test]
    fn the_linker_has_every_interface_of_the_table_under_its_host_name() {
        let engine = engine::compiler().unwrap();
        let mut linker = linker(&engine, Capabilities::ALL).unwrap();
        for (package, name, _) in TABLE {
            let path = format!("{package}/{name}");
            if WITHOUT.contains(&path.as_str()) {
                continue;
            }
            let function = FUNCTIONS.iter().find(|(interface, _)| *interface == path).expect(&path).1;
            let version = if path.starts_with("wasi:") { "0.2.0" } else { "0.1.0" };
            let host = Interface { package, name, version }.host_name().unwrap();
            let again = linker.instance(&host).unwrap().func_new(function, |_, _, _, _| Ok(()));
            assert!(again.is_err(), "the linker has no {host} {function}");
        }
        assert_eq!(TABLE.len(), FUNCTIONS.len() + WITHOUT.len());
    }
}
