//! Flow files that cannot be: exit 3, every fault with its place, before the queue is touched.

use crate::home::{Home, Ran, snapshot};

/// A flow whose only fault may be its component.
pub(crate) const FLOW: &str = "flow:\n  id: f\n  steps:\n    - { id: a, component: a.wasm }\n";

fn enqueue(flow: &str) -> Ran {
    let home = Home::new();
    home.write("flow.yaml", flow).write("a.wasm", guest("echo"));
    let ran = home.tm(&["enqueue", "flow.yaml"]);
    assert_eq!(home.files(), ["a.wasm", "flow.yaml"], "nothing is created");
    ran
}

#[test]
fn an_unknown_key_is_named_with_its_place() {
    snapshot!(enqueue("flow:\n  id: f\n  stepz: []\n"), @"
    stderr:
    error: flow.yaml:3:3: unknown key 'stepz'
       |
     3 |   stepz: []
       |   ^
     hint: did you mean 'steps'?
    exit: 3
    ");
}

#[test]
fn a_fault_of_the_form_hides_no_other() {
    snapshot!(enqueue(
        "flow:\n  id: f\n  steps:\n    - { id: a, component: a.wasm, limits: { fule: 1 }, needs: a }\n    \
         - { id: b, component: a.wasm, needs: [nobody] }\n    - { component: a.wasm }\n"
    ), @"
    stderr:
    error: flow.yaml:4:45: unknown key 'fule'
       |
     4 |     - { id: a, component: a.wasm, limits: { fule: 1 }, needs: a }
       |                                             ^
     hint: did you mean 'fuel'?
    error: flow.yaml:4:63: needs must be a list, this is the text 'a'
       |
     4 |     - { id: a, component: a.wasm, limits: { fule: 1 }, needs: a }
       |                                                               ^
    error: flow.yaml:6:7: key 'id' is missing
       |
     6 |     - { component: a.wasm }
       |       ^
    exit: 3
    ");
}

#[test]
fn all_faults_of_the_steps_are_said_at_once() {
    snapshot!(enqueue(
        "flow:\n  id: f\n  steps:\n    - { id: a, component: a.wasm, needs: [b] }\n    \
         - { id: b, component: a.wasm, needs: [a] }\n    - { id: b, component: a.wasm, needs: [nobody] }\n"
    ), @"
    stderr:
    error: flow.yaml:4:35: cycle of needs: a needs b needs a
       |
     4 |     - { id: a, component: a.wasm, needs: [b] }
       |                                   ^
     hint: take one of these needs away
    error: flow.yaml:6:13: step id 'b' is taken by steps[1]
       |
     6 |     - { id: b, component: a.wasm, needs: [nobody] }
       |             ^
    error: flow.yaml:6:43: needs unknown step 'nobody'
       |
     6 |     - { id: b, component: a.wasm, needs: [nobody] }
       |                                           ^
    exit: 3
    ");
}

#[test]
fn every_cycle_is_said() {
    snapshot!(enqueue(
        "flow:\n  id: f\n  steps:\n    - { id: a, component: a.wasm, needs: [b] }\n    \
         - { id: b, component: a.wasm, needs: [a] }\n    - { id: c, component: a.wasm, needs: [c] }\n"
    ), @"
    stderr:
    error: flow.yaml:4:35: cycle of needs: a needs b needs a
       |
     4 |     - { id: a, component: a.wasm, needs: [b] }
       |                                   ^
     hint: take one of these needs away
    error: flow.yaml:6:35: cycle of needs: c needs c
       |
     6 |     - { id: c, component: a.wasm, needs: [c] }
       |                                   ^
     hint: take one of these needs away
    exit: 3
    ");
}

#[test]
fn what_is_no_yaml_is_refused() {
    snapshot!(enqueue("flow: [\n"), @"
    stderr:
    error: flow.yaml:1:7: unclosed bracket '['
       |
     1 | flow: [
       |       ^
    exit: 3
    ");
}

#[test]
fn a_component_that_is_missing_is_named() {
    snapshot!(enqueue("flow:\n  id: f\n  steps:\n    - { id: a, component: b.wasm }\n"), @"
    stderr:
    error: flow.yaml:4:27: HOME/b.wasm does not exist
       |
     4 |     - { id: a, component: b.wasm }
       |                           ^
    exit: 3
    ");
}

fn guest(name: &str) -> Vec<u8> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/wat");
    wat::parse_file(folder.join(name).with_extension("wat")).unwrap()
}

#[test]
fn components_that_are_no_steps_are_refused_before_a_run_exists() {
    let home = Home::new();
    home.write("wrong-type.wasm", guest("wrong-type")).write("no-export.wasm", guest("no-export"));
    home.write(
        "flow.yaml",
        "flow:\n  id: f\n  steps:\n    - { id: a, component: wrong-type.wasm }\n    \
         - { id: b, component: no-export.wasm }\n",
    );
    snapshot!(home.tm(&["check", "flow.yaml"]), @"
    stderr:
    error: flow.yaml:4:27: component 'wrong-type.wasm': it exports tracemind:flow/step@0.1.0, but its run has another type: expected `…record { run-id: string, flow-id: string, step-id: string, t…`, found `…u32) -> u32`
       |
     4 |     - { id: a, component: wrong-type.wasm }
       |                           ^
    error: flow.yaml:5:27: the component does not export tracemind:flow/step@0.1.0
       |
     5 |     - { id: b, component: no-export.wasm }
       |                           ^
     hint: a step exports it through the SDK's #[step], or as the world pure-step of wit/
    exit: 3
    ");
    let checked = home.tm(&["check", "flow.yaml", "--json"]);
    assert_eq!(checked.stdout.matches(r#""code":"COMPILE_FAILED""#).count(), 2, "{checked}");
    assert_eq!(home.tm(&["run", "flow.yaml"]).code, Some(3));
}

/// A good step that imports something before.
fn importing(import: &str) -> Vec<u8> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/wat");
    let echo = std::fs::read_to_string(folder.join("echo.wat")).unwrap();
    wat::parse_str(echo.replacen("(component", &format!("(component {import}"), 1)).unwrap()
}

#[test]
fn an_import_of_another_type_is_refused_before_a_run_exists() {
    let home = Home::new();
    home.write(
        "log.wasm",
        importing(r#"(import "tracemind:flow/log@0.1.0" (instance (export "emit" (func (param "level" u32)))))"#),
    );
    home.write("exit.wasm", importing(r#"(import "wasi:cli/exit@0.2.0" (instance (export "leave" (func))))"#));
    home.write(
        "flow.yaml",
        "flow:\n  id: f\n  steps:\n    - { id: a, component: log.wasm }\n    - { id: b, component: exit.wasm }\n",
    );
    let checked = home.tm(&["check", "flow.yaml"]);
    snapshot!(checked, @"
    stderr:
    error: flow.yaml:4:27: imports tracemind:flow/log@0.1.0, but its emit has another type: type mismatch with parameters: expected 2-tuple, found 1-tuple; the component's is `func(u32)`
       |
     4 |     - { id: a, component: log.wasm }
       |                           ^
     hint: build the component against this host's interfaces: WASI 0.2 and wit/
    error: flow.yaml:5:27: imports wasi:cli/exit@0.2.0 with leave, which this host's does not have
       |
     5 |     - { id: b, component: exit.wasm }
       |                           ^
     hint: build the component against this host's interfaces: WASI 0.2 and wit/
    exit: 3
    ");
    for command in [&["run", "flow.yaml"][..], &["enqueue", "flow.yaml"]] {
        let ran = home.tm(command);
        assert_eq!(ran.code, Some(3), "{ran}");
        assert!(["its emit has another type", "with leave"].iter().all(|words| ran.stderr.contains(words)), "{ran}");
    }
}

/// A flow whose text, whose missing component and whose broken component are all at fault.
pub(crate) fn faulty_flow(home: &Home) -> &'static str {
    home.write("broken.wasm", "no component");
    home.write(
        "faulty.yaml",
        "flow:\n  id: f\n  id: g\n  steps:\n    - { id: a, component: broken.wasm, neds: [] }\n    \
         - { id: b, component: gone.wasm }\n",
    );
    "faulty.yaml"
}

#[test]
fn a_fault_of_the_text_hides_none_of_the_components() {
    let home = Home::new();
    let flow = faulty_flow(&home);
    let checked = home.tm(&["check", flow]);
    snapshot!(checked, @r"
    stderr:
    error: faulty.yaml:3:3: key 'id' stands here again, first at 2:3
       |
     3 |   id: g
       |   ^
     hint: keep one of them
    error: faulty.yaml:5:27: component 'broken.wasm': the file is not WebAssembly: it does not begin with \0asm
       |
     5 |     - { id: a, component: broken.wasm, neds: [] }
       |                           ^
    error: faulty.yaml:5:40: unknown key 'neds'
       |
     5 |     - { id: a, component: broken.wasm, neds: [] }
       |                                        ^
     hint: did you mean 'needs'?
    error: faulty.yaml:6:27: HOME/gone.wasm does not exist
       |
     6 |     - { id: b, component: gone.wasm }
       |                           ^
    exit: 3
    ");
    // Whoever takes a flow file says the same.
    assert_eq!(home.tm(&["enqueue", flow]).stderr, checked.stderr);
    assert_eq!(home.tm(&["enqueue", flow, "--batch", "/dev/null"]).stderr, checked.stderr);
    assert_eq!(home.tm(&["run", flow]).stderr, checked.stderr);
    assert_eq!(home.files(), ["broken.wasm", "faulty.yaml"], "nothing is created");
}

#[test]
fn a_step_that_is_not_built_gets_the_command_that_builds_it() {
    let home = Home::new();
    home.write("flow.yaml", "flow:\n  id: f\n  steps:\n    - { id: a, component: step }\n");
    home.write("step/Cargo.toml", "[package]\nname = \"step\"\n");
    snapshot!(home.tm(&["enqueue", "flow.yaml"]), @"
    stderr:
    error: flow.yaml:4:27: HOME/step is not built: HOME/step/target/wasm32-wasip2/release/step.wasm does not exist
       |
     4 |     - { id: a, component: step }
       |                           ^
     hint: run: tm build flow.yaml
    exit: 3
    ");
}

#[test]
fn a_folder_is_no_flow() {
    let home = Home::new();
    home.write("flows/x.yaml", "");
    snapshot!(home.tm(&["enqueue", "flows"]), @"
    stderr:
    error: flows is a folder; a flow is a file
    exit: 3
    ");
}

#[test]
fn a_build_needs_something_that_exists() {
    let home = Home::new();
    snapshot!(home.tm(&["build"]), @"
    stderr:
    error: cannot read flows: no such file or directory
    hint: name a flow file or a step folder: tm build PATH
    exit: 1
    ");
    snapshot!(home.tm(&["build", "nowhere"]), @"
    stderr:
    error: nowhere is neither a flow file nor a step folder
    exit: 2
    ");
}

#[test]
fn building_for_a_missing_target_says_how_to_add_it() {
    let home = Home::new().with("RUSTC", "/bin/true");
    home.write("step/Cargo.toml", "[package]\nname = \"step\"\n");
    snapshot!(home.tm(&["build", "step"]), @"
    stderr:
    error: this Rust cannot build for wasm32-wasip2: the target is missing
    hint: rustup target add wasm32-wasip2
    exit: 3
    ");
}

#[test]
fn building_without_rust_says_how_to_get_it() {
    let home = Home::new().with("RUSTC", "/nowhere/rustc");
    home.write("step/Cargo.toml", "[package]\nname = \"step\"\n");
    snapshot!(home.tm(&["build", "step"]), @"
    stderr:
    error: cannot start rustc: no such file or directory
    hint: install Rust from https://rustup.rs, then open a new shell
    exit: 3
    ");
}

#[test]
fn a_fault_of_the_syntax_comes_before_what_no_flow_has() {
    let home = Home::new();
    home.write("broken.yaml", "a: [1\n");
    let ran = home.tm(&["check", "broken.yaml"]);
    assert!(ran.code == Some(3) && !ran.stderr.contains("unknown"), "{ran}");
    assert!(ran.stderr.starts_with("error: broken.yaml:"), "{ran}");
}
