//! The components in text form beside the crate are valid, and are about what their names say.

use std::fs;
use std::path::PathBuf;

use wasmparser::{Parser, Payload, Validator, WasmFeatures};

const CONTRACT: &str = "tracemind:flow/step@0.1.0";

/// The names that a component imports and exports.
struct Outside {
    imports: Vec<String>,
    exports: Vec<String>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../wat")
}

fn outside(name: &str) -> Outside {
    let bytes = wat::parse_file(folder().join(name).with_extension("wat")).unwrap_or_else(|why| panic!("{why}"));
    Validator::new_with_features(WasmFeatures::default())
        .validate_all(&bytes)
        .unwrap_or_else(|why| panic!("{name}: {why}"));
    let (mut imports, mut exports, mut depth) = (Vec::new(), Vec::new(), 0);
    for payload in Parser::new(0).parse_all(&bytes) {
        match payload.unwrap() {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(section) if depth == 0 => {
                imports.extend(section.into_iter().map(|import| import.unwrap().name.name.to_owned()));
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                exports.extend(section.into_iter().map(|export| export.unwrap().name.name.to_owned()));
            }
            _ => {}
        }
    }
    Outside { imports, exports }
}

#[test]
fn every_text_is_valid() {
    let names: Vec<_> = fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(names.len() > 20, "{}", names.len());
    for path in names {
        outside(path.file_stem().unwrap().to_str().unwrap());
    }
}

#[test]
fn the_good_one_imports_nothing_and_exports_the_contract() {
    let echo = outside("echo");
    assert!(echo.imports.is_empty());
    assert_eq!(echo.exports, [CONTRACT]);
}

#[test]
fn the_misfits_differ_in_what_they_are_named_for() {
    assert_eq!(outside("other-version").exports, ["tracemind:flow/step@0.2.0"]);
    assert!(outside("no-export").exports.is_empty());
    assert_eq!(outside("unknown-import").imports, ["acme:weather/forecast@1.0.0"]);
    assert_eq!(outside("wants-sockets").imports, ["wasi:sockets/instance-network@0.2.0"]);
    assert_eq!(outside("wrong-type").exports, [CONTRACT]);
    assert!(outside("module").exports.is_empty());
}
