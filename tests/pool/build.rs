//! `tm build`: from a step's source to the component that its flow names.

use std::{env, path::PathBuf};

use crate::home::{Home, Ran, ran};

const MANIFEST: &str = r#"
[package]
name = "shout"
version = "0.1.0"
edition = "2024"

[lib]
crate-type = ["cdylib"]
"#;
const FLOW: &str = "flow:\n  id: shout\n  steps:\n    - id: s\n      component: shout\n";

/// Runs `tm` with the Rust of these tests.
fn tm(home: &Home, arguments: &[&str]) -> Ran {
    let mut command = home.command(arguments);
    let own_home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    for (name, folder) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
        command.env(name, env::var_os(name).unwrap_or_else(|| own_home.join(folder).into()));
    }
    command.env("PATH", env::var_os("PATH").unwrap()).env("CARGO", env!("CARGO"));
    ran(command.output().unwrap())
}

#[test]
fn a_step_is_built_where_its_flow_looks_for_it() {
    let home = Home::new();
    home.write("flows/shout/Cargo.toml", MANIFEST).write("flows/shout.yaml", FLOW);
    home.write("flows/shout/src/lib.rs", "#[unsafe(no_mangle)]\npub extern \"C\" fn unused() {}\n");
    tm(&home, &["check", "flows/shout.yaml"]).refused(3, &["shout", "tm build"]);
    let ran = tm(&home, &["build"]);
    assert_eq!(ran.code, Some(0), "{ran}");
    let built = "flows/shout/target/wasm32-wasip2/release/shout.wasm";
    assert!(ran.stdout.starts_with(&format!("built flows/shout -> {built} (")), "{ran}");
    assert!(home.path(built).is_file());
    // It is found now, and it is what it is: no step.
    tm(&home, &["check", "flows/shout.yaml"]).refused(3, &["tracemind:flow"]);
}

#[test]
fn a_step_that_does_not_compile_is_named() {
    let home = Home::new();
    home.write("shout/Cargo.toml", MANIFEST).write("shout/src/lib.rs", "fn f() -> u8 { \"loud\" }\n");
    tm(&home, &["build", "shout"]).refused(1, &["mismatched types", "cargo could not build shout"]);
    home.write("shout/Cargo.toml", MANIFEST.replace("cdylib", "rlib"));
    tm(&home, &["build", "shout"]).refused(3, &["no library of type cdylib", "crate-type"]);
    tm(&home, &["build", "nowhere"]).refused(2, &["nowhere is neither"]);
}
