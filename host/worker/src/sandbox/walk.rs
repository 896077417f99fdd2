//! What a component says of itself, from its bytes alone: validated and walked, without an engine.

use tm_core::{
    id::Digest,
    wire::{Inspection, Required},
};
use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentOuterAliasKind, Encoding, Instance, Parser, Payload, Validator,
    WasmFeatures,
    component_types::{ComponentAnyTypeId, ComponentEntityType, ComponentItem},
    types::Types,
};

use super::contract;

/// The bytes are no component that can be taken.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    #[error("the file is not WebAssembly: it does not begin with \\0asm")]
    NotWasm,
    #[error(
        "the file is a core module, not a component: build it for wasm32-wasip2, or wrap it with wasm-tools component new"
    )]
    CoreModule,
    #[error("the component is damaged or cut off: {0}")]
    Damaged(#[from] wasmparser::BinaryReaderError),
    #[error("it {0}")]
    OtherStep(String),
}

/// Validates the component, lists its imports, its exports and what it needs of a pool, and holds its step against the
/// contract.
///
/// # Errors
/// When the bytes are not a valid component; never worth a retry.
pub fn walk(bytes: &[u8]) -> Result<(Walk, Types), WalkError> {
    if !bytes.starts_with(b"\0asm") {
        return Err(WalkError::NotWasm);
    }
    if Parser::is_core_wasm(bytes) {
        return Err(WalkError::CoreModule);
    }
    let types = Validator::new_with_features(WasmFeatures::default()).validate_all(bytes)?;
    let mut walk = Walk::default();
    for payload in Parser::new(0).parse_all(bytes) {
        walk.take(payload?)?;
    }
    walk.imports.retain(|name| gives_something(&types, name));
    contract::check(&types, walk.exports.iter().map(String::as_str)).map_err(WalkError::OtherStep)?;
    Ok((walk, types))
}

/// Whether an import can be called or holds a handle. An interface that is imported for the shapes of its records alone
/// (`wasi:filesystem` names a type of `wasi:clocks`) gives nothing to hold against a grant.
fn gives_something(types: &Types, name: &str) -> bool {
    let Some(item) = types.as_ref().component_item_for_import(name) else { return true };
    let ComponentEntityType::Instance(instance) = item.ty else {
        return !matches!(item.ty, ComponentEntityType::Type { .. });
    };
    let is_plain = |item: &ComponentItem| matches!(item.ty, ComponentEntityType::Type { created, .. } if !matches!(created, ComponentAnyTypeId::Resource(_)));
    !types[instance].exports.values().all(is_plain)
}

/// What a core module brings into the pool each time it is instantiated.
#[derive(Clone, Copy, Default)]
struct Shape {
    memories: u32,
    tables: u32,
    table_elements_max: u64,
    memory_min_bytes: u64,
}

/// One component under way: the index space of its core modules.
#[derive(Default)]
struct Level {
    modules: Vec<Shape>,
}

/// A component that was walked through.
#[derive(Default)]
pub struct Walk {
    levels: Vec<Level>,
    module: Option<Shape>,
    imports: Vec<String>,
    exports: Vec<String>,
    required: Required,
    /// The end of the component's last section of imports: what stands before it is a component too.
    pub imports_end: Option<usize>,
    has_code: bool,
    pub code_before_imports: bool,
}

impl Walk {
    /// What is told of it.
    #[must_use]
    pub fn inspection(self, bytes: &[u8], import_faults: Vec<String>) -> Inspection {
        let Self { imports, exports, required, .. } = self;
        Inspection { digest: Digest::of(bytes), imports, exports, import_faults, required }
    }

    fn take(&mut self, payload: Payload<'_>) -> Result<(), wasmparser::BinaryReaderError> {
        match payload {
            Payload::Version { encoding: Encoding::Component, .. } => self.levels.push(Level::default()),
            Payload::Version { encoding: Encoding::Module, .. } => self.module = Some(Shape::default()),
            Payload::MemorySection(section) => {
                for memory in section {
                    let memory = memory?;
                    let page = 1u64 << memory.page_size_log2.unwrap_or(16);
                    self.shape().memories += 1;
                    let bytes = memory.initial.saturating_mul(page);
                    self.shape().memory_min_bytes = self.shape().memory_min_bytes.max(bytes);
                }
            }
            Payload::TableSection(section) => {
                for table in section {
                    let elements = table?.ty.initial;
                    self.shape().tables += 1;
                    self.shape().table_elements_max = self.shape().table_elements_max.max(elements);
                }
            }
            Payload::End(_) => match (self.module.take(), self.levels.last_mut()) {
                (Some(shape), Some(level)) => level.modules.push(shape),
                _ => drop(self.levels.pop()),
            },
            Payload::InstanceSection(section) => {
                for instance in section {
                    if let Instance::Instantiate { module_index, .. } = instance? {
                        self.instantiate(module_index);
                    }
                }
            }
            Payload::ComponentAliasSection(section) => {
                for alias in section {
                    self.alias(&alias?);
                }
            }
            Payload::CodeSectionStart { .. } => self.has_code = true,
            Payload::ComponentImportSection(section) if self.levels.len() == 1 => {
                self.imports_end = Some(section.range().end);
                self.code_before_imports = self.has_code;
                for import in section {
                    self.imports.push(import?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if self.levels.len() == 1 => {
                for export in section {
                    self.exports.push(export?.name.name.to_owned());
                }
            }
            // Adapters between components are modules of their own, made by the compiler.
            Payload::ComponentInstanceSection(section) => self.required.core_instances += section.count(),
            _ => {}
        }
        Ok(())
    }

    fn shape(&mut self) -> &mut Shape {
        self.module.get_or_insert_default()
    }

    /// A module that came by an alias or an import counts as the largest known.
    fn instantiate(&mut self, module: u32) {
        let level = self.levels.last();
        let shape = level.and_then(|level| level.modules.get(module as usize)).copied().unwrap_or_default();
        let required = &mut self.required;
        required.core_instances += 1;
        required.memories += shape.memories;
        required.tables += shape.tables;
        required.table_elements_max = required.table_elements_max.max(shape.table_elements_max);
        required.memory_min_bytes = required.memory_min_bytes.max(shape.memory_min_bytes);
    }

    fn alias(&mut self, alias: &ComponentAlias<'_>) {
        let shape = match alias {
            ComponentAlias::Outer { kind: ComponentOuterAliasKind::CoreModule, count, index } => {
                let outer = self.levels.len().checked_sub(1 + *count as usize).and_then(|at| self.levels.get(at));
                outer.and_then(|level| level.modules.get(*index as usize)).copied()
            }
            ComponentAlias::InstanceExport { kind: ComponentExternalKind::Module, .. } => None,
            _ => return,
        };
        let known = self.levels.iter().flat_map(|level| &level.modules).copied();
        let shape = shape.or_else(|| known.max_by_key(|shape| shape.memories)).unwrap_or_default();
        if let Some(level) = self.levels.last_mut() {
            level.modules.push(shape);
        }
    }
}
