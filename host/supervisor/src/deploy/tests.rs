//! Flows from text to definition, and what stops them.

use super::*;
use crate::{deploy::known::InspectError, evaluate::MiniJinja};
use std::{io::Read, os::fd::BorrowedFd};
use tm_core::wire::Inspection;

/// Takes a component's bytes for the list of its imports, one a line; `!` starts a refusal.
struct Lines;

impl Inspect for Lines {
    fn inspect(&self, component: BorrowedFd<'_>) -> Result<Inspection, InspectError> {
        let mut text = String::new();
        let mut file = File::from(component.try_clone_to_owned()?);
        std::io::Seek::rewind(&mut file)?;
        file.read_to_string(&mut text)?;
        if let Some(message) = text.strip_prefix('!') {
            return Err(InspectError::Refused { code: COMPILE_FAILED, message: message.to_owned() });
        }
        Ok(Inspection {
            digest: Digest([0; 32]),
            imports: text.lines().map(str::to_owned).collect(),
            exports: vec!["tracemind:flow/step@0.1.0".to_owned()],
            import_faults: Vec::new(),
            required: Required { memory_min_bytes: 2 * MIB, ..Required::default() },
        })
    }
}

struct Case {
    root: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("flows/docs")).unwrap();
        std::fs::create_dir_all(root.path().join("outside")).unwrap();
        Self { root }
    }

    fn folder(&self) -> PathBuf {
        self.root.path().canonicalize().unwrap().join("flows")
    }

    fn resolve(&self, text: &str, components: &[&str]) -> Result<Resolved, DeployError> {
        self.resolve_with(text, components, &Settings::default())
    }

    fn resolve_with(&self, text: &str, components: &[&str], settings: &Settings) -> Result<Resolved, DeployError> {
        let files: Vec<Result<File, Missing>> = components
            .iter()
            .enumerate()
            .map(|(at, content)| {
                let path = self.root.path().join(format!("{at}.wasm"));
                std::fs::write(&path, content).unwrap();
                Ok(File::open(path).unwrap())
            })
            .collect();
        let path = self.folder().join("f.yaml");
        let source = Source { tenant: "default", text, path: &path, shown: &path, components: &files };
        let known = &mut KnownFiles::default();
        resolve(&source, settings, &settings.ceilings, &MiniJinja::new(), known, &Lines)
    }

    /// Each fault as `line:column code message`, the case's folder cut out.
    fn faults(&self, text: &str, components: &[&str]) -> Vec<String> {
        let error = self.resolve(text, components).unwrap_err();
        let root = self.root.path().canonicalize().unwrap();
        let shown = |fault: &FlowFault| {
            let code = fault.code.map(|code| format!("{code} ")).unwrap_or_default();
            format!("{}:{} {code}{}", fault.line, fault.column, fault.message).replace(root.to_str().unwrap(), "")
        };
        error.faults.iter().map(shown).collect()
    }
}

const DAG: &str = "\
flow:
  id: site
  run_timeout_ms: 1000
  steps:
    - id: b
      component: b.wasm
      needs: [a]
      for_each: ' steps.a.output '
      input: { path: '{{ item }}', n: 1.50 }
      retries: { base_ms: 7 }
      grants:
        clocks: true
        env: [ { name: RATE, from: caller } ]
    - id: a
      component: a.wasm
      limits: { memory_mb: 16 }
      grants:
        files: [ { host: docs, guest: /docs/ } ]
";

#[test]
fn a_flow_is_resolved_in_topological_order_with_everything_pinned() {
    let case = Case::new();
    let components = ["wasi:clocks/wall-clock@0.2.0\nwasi:cli/environment@0.2.0", "wasi:filesystem/types@0.2.0"];
    let resolved = case.resolve(DAG, &components).unwrap();
    let def = &resolved.def;
    let ids: Vec<&str> = def.steps.iter().map(|step| step.id.as_str()).collect();
    assert_eq!(ids, ["a", "b"]);
    let (a, b) = (&def.steps[0], &def.steps[1]);
    assert_eq!((b.needs.as_slice(), b.for_each.as_deref()), ([0u16].as_slice(), Some("steps.a.output")));
    assert_eq!(b.input.as_ref().unwrap().get(), r#"{"n":1.5,"path":"{{ item }}"}"#);
    assert_eq!((b.retries.base_ms, b.retries.max_attempts, b.max_parallel), (7, 5, 10_000));
    assert_eq!((a.limits.memory_mb, a.limits.output_kb), (16, Limits::DEFAULT.output_kb));
    assert_eq!(a.grants.files[0].host, case.folder().join("docs").to_str().unwrap());
    assert_eq!(a.grants.files[0].guest, "/docs");
    assert_eq!(a.component, Digest::of(components[1].as_bytes()));
    assert_eq!((def.caller_env.as_slice(), resolved.components.len()), (["RATE".to_owned()].as_slice(), 2));
    assert!(resolved.warnings.is_empty(), "{:?}", resolved.warnings);
    let text = serde_json::to_string(&def).unwrap();
    let back: FlowDef = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), text, "a definition survives its record");
}

#[test]
fn the_digest_changes_with_the_definition_and_with_a_components_bytes_only() {
    let case = Case::new();
    let components = ["wasi:clocks/wall-clock@0.2.0\nwasi:cli/environment@0.2.0", "wasi:filesystem/types@0.2.0"];
    let digest = |text: &str, components: &[&str]| case.resolve(text, components).unwrap().def.digest;
    let first = digest(DAG, &components);
    assert_eq!(digest(&format!("# a comment\n{DAG}"), &components), first);
    assert_ne!(digest(&DAG.replace("base_ms: 7", "base_ms: 8"), &components), first);
    assert_ne!(digest(DAG, &[components[0], "wasi:filesystem/types@0.2.1"]), first);
}

#[test]
fn json_is_a_flow_too() {
    let case = Case::new();
    let text = r#"{"flow": {"id": "j", "steps": [{"id": "a", "component": "a.wasm"}]}}"#;
    assert_eq!(case.resolve(text, &[""]).unwrap().def.id, "j");
    let text =
        "{\"flow\": {\"id\": \"j\",\n \"steps\": [{\"id\": \"a\", \"component\": \"a.wasm\", \"needs\": [\"b\"]}]}}";
    assert_eq!(case.faults(text, &[""]), ["2:57 needs unknown step 'b'"]);
}

#[test]
fn faults_of_the_form_have_line_and_column() {
    let case = Case::new();
    let found = |text: &str| case.faults(text, &[""]);
    let unknown = found("flow:\n  id: f\n  stepz: []\n");
    assert_eq!(unknown, ["3:3 unknown key 'stepz'"], "which says what is missing, too");
    let kind = found("flow:\n  id: f\n  steps:\n    - id: a\n      component: x\n      needs: 5\n");
    assert_eq!(kind, ["6:14 needs must be a list, this is 5"]);
    let returns = "# as\r# YAML\r\n# counts\nflow:\r  id: f\r  stepz: []\r";
    assert_eq!(found(returns), ["6:3 unknown key 'stepz'"], "a carriage return alone ends a line");
    let shown = case.resolve(returns, &[""]).unwrap_err().faults.remove(0).source;
    assert_eq!(shown.as_deref(), Some("  stepz: []"));
    let placed = found("\t!a\t!a");
    assert!(placed.len() == 1 && placed[0].starts_with("1:5 "), "the syntax alone, with its place: {placed:?}");
    let syntax = found("flow: [\n");
    assert!(syntax.len() == 1 && !syntax[0].starts_with("0:"), "{syntax:?}");
    for empty in ["", "[]", "5", "other: 1"] {
        assert!(found(empty).contains(&"1:1 key 'flow' is missing".to_owned()), "{:?}", found(empty));
    }
}

#[test]
fn faults_of_form_and_content_come_at_once() {
    let text = "\
flow:
  id: f
  verzion: 2
  run_timeout_ms: soon
  steps:
    - id: a
      component: x
      need: [b]
      limits: { fuel: 0, memory_mb: 5000000000, time: 1 }
      retries: { factor: high }
      grants:
        files: [ { host: docs, guest: data, mode: rw } ]
        env: [ { name: A }, [] ]
        clocks: 1
    - component: x
      needs: [a, nobody]
      when: '1 +'
      max_parallel: -1
    - id: c
      component: [x]
      needs: c
    - 7
extra: 1
";
    assert_eq!(
        Case::new().faults(text, &["", "", "", ""]),
        [
            "3:3 unknown key 'verzion'",
            "4:19 run_timeout_ms must be a whole number, this is the text 'soon'",
            "8:7 unknown key 'need'",
            "9:23 fuel: 0 is not between 1 and 1000000000000000",
            "9:37 memory_mb must be a whole number up to 4294967295, this is 5000000000",
            "9:49 unknown key 'time'",
            "10:26 factor must be a number, this is the text 'high'",
            "12:39 guest path 'data' is not absolute",
            "12:51 mode must be read or write, this is the text 'rw'",
            "13:16 key 'from' is missing",
            "13:29 env[1] must be a name or a table of keys, this is a list",
            "14:17 clocks must be true or false, this is 1",
            "15:7 key 'id' is missing",
            "17:13 expression `1 +`: it does not parse: unexpected end of input, expected expression",
            "18:21 max_parallel must be a whole number up to 4294967295, this is -1",
            "20:18 component must be text, this is a list",
            "21:14 needs must be a list, this is the text 'c'",
            "22:7 steps[3] must be a table of keys, this is 7",
            "23:1 unknown key 'extra'",
        ]
    );
}

#[test]
fn every_key_that_stands_twice_is_named_with_both_places() {
    let text = "\
flow:
  id: f
  id: g
  steps:
    - id: a
      component: x
      input: { deep: [ { k: 1, k: 2, k: 3 } ] }
      grants: { clocks: true, clocks: false }
    - { id: b, component: y, colour: { r: 1, r: 2 } }
  steps: []
";
    assert_eq!(
        Case::new().faults(text, &["!bad", "!bad"]),
        [
            "3:3 key 'id' stands here again, first at 2:3",
            "7:32 key 'k' stands here again, first at 7:26",
            "7:38 key 'k' stands here again, first at 7:26",
            "8:31 key 'clocks' stands here again, first at 8:17",
            "9:30 unknown key 'colour'",
            "9:46 key 'r' stands here again, first at 9:40",
            "10:3 key 'steps' stands here again, first at 4:3",
        ]
    );
    // The parser compares numbers as numbers, and tells of the first alone.
    let numbers = "flow:\n  id: f\n  steps:\n    - { id: a, component: x, input: { 7: a, 0x7: b } }\n";
    assert_eq!(Case::new().faults(numbers, &[""]), ["4:45 key '0x7' stands here again"]);
}

#[test]
fn what_an_alias_repeats_is_named_once() {
    let text = "\
flow:
  id: f
  steps:
    - id: a
      component: x
      input: { one: &map { k: 1, k: 2 }, two: *map, three: *map }
";
    assert_eq!(Case::new().faults(text, &[""]), ["6:34 key 'k' stands here again, first at 6:28"]);
}

#[test]
fn components_are_looked_at_whatever_else_is_wrong_with_the_text() {
    let text = "\
flow:
  id: f
  verzion: 2
  steps:
    - id: a
      component: a.wasm
      max_parallel: 3
    - id: b
      component: b.wasm
      grants: { clock: true }
    - id: c
      component: [c.wasm]
    - component: d.wasm
      limits: { memory_mb: 1, fuel: many }
    - id: e
      component: e.wasm
      component: f.wasm
";
    let clocks = "wasi:clocks/wall-clock@0.2.0";
    assert_eq!(
        Case::new()
            .faults(text, &["!no component", &format!("{clocks}\nacme:x/y"), "!never read", clocks, "!never read"]),
        [
            "3:3 unknown key 'verzion'",
            "6:18 COMPILE_FAILED component 'a.wasm': no component",
            "7:21 max_parallel without for_each has no meaning",
            "9:18 CAPABILITY_DENIED imports acme:x/y, which this host does not offer",
            // That the clocks are not granted follows from it.
            "10:17 unknown key 'clock'",
            "12:18 component must be text, this is a list",
            "13:7 key 'id' is missing",
            "13:7 CAPABILITY_DENIED step 'steps[3]' imports wasi:clocks/wall-clock@0.2.0 without a grant for it",
            "14:28 CAPABILITY_DENIED component 'd.wasm' starts with 2 MiB of memory, memory_mb is 1",
            "14:37 fuel must be a whole number, this is the text 'many'",
            // Which of the two is meant is not known.
            "17:7 key 'component' stands here again, first at 16:7",
        ]
    );
}

#[test]
fn a_component_that_is_missing_hides_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f.yaml");
    let steps =
        "    - { id: a, component: a.wasm }\n    - { id: b, component: b.wasm }\n    - { id: c, component: c }\n";
    std::fs::write(&path, format!("flow:\n  id: f\n  steps:\n{steps}  wrong: 1\n")).unwrap();
    std::fs::write(folder.path().join("b.wasm"), "!not a component").unwrap();
    let opened = crate::deploy::Opened::open(&path, &MiniJinja::new()).unwrap();
    assert!(!opened.is_whole());
    let (settings, known) = (Settings::default(), &mut KnownFiles::default());
    let source = opened.source("default");
    let error = resolve(&source, &settings, &settings.ceilings, &MiniJinja::new(), known, &Lines).unwrap_err();
    let found: Vec<_> = error.faults.iter().map(|fault| (fault.line, fault.column, fault.message.as_str())).collect();
    let root = folder.path().canonicalize().unwrap();
    assert_eq!(
        found,
        [
            (4, 27, format!("{} does not exist", root.join("a.wasm").display()).as_str()),
            (5, 27, "component 'b.wasm': not a component"),
            (6, 27, format!("{} does not exist", root.join("c").display()).as_str()),
            (7, 3, "unknown key 'wrong'"),
        ]
    );
}

#[test]
fn a_file_full_of_faults_is_answered_in_bounds() {
    let text = format!("flow:\n  id: f\n  steps:\n{}", "    - { x: 1, y: 2 }\n".repeat(20_000));
    let found = Case::new().faults(&text, &[""]);
    assert!((100..200).contains(&found.len()), "{}", found.len());
}

#[test]
fn an_unknown_key_is_shown_in_its_line_with_the_near_name() {
    let case = Case::new();
    let text = "flow:\n  id: f\n  steps:\n    - id: a\n      component: x\n      neds: [b]\n";
    let error = case.resolve(text, &[""]).unwrap_err();
    let shown = error.to_string();
    assert!(shown.contains("f.yaml:6:7: unknown key 'neds'"), "{shown}");
    assert!(shown.contains("\n 6 |       neds: [b]\n   |       ^\n hint: did you mean 'needs'?"), "{shown}");
    assert_eq!(error.to_api().kind, tm_core::api::ErrorKind::Invalid);
}

#[test]
fn faults_of_the_content_come_at_once_each_at_its_place() {
    let case = Case::new();
    let text = "\
flow:
  id: f
  steps:
    - id: a
      component: x
      needs:
        - nope
      when: '1 +'
      limits:
        fuel: 0
    - id: a
      component: x
      input: { deep: [ '{{ steps.a }}', '{{ steps.b.x }}' ] }
      max_parallel: 3
";
    assert_eq!(
        case.faults(text, &["", ""]),
        [
            "7:11 needs unknown step 'nope'",
            "8:13 expression `1 +`: it does not parse: unexpected end of input, expected expression",
            "10:15 fuel: 0 is not between 1 and 1000000000000000",
            "11:11 step id 'a' is taken by steps[0]",
            "13:24 names its own step 'a'",
            "13:41 names unknown step 'b'",
            "14:21 max_parallel without for_each has no meaning",
        ]
    );
}

#[test]
fn faults_of_components_folders_and_ceiling_come_at_once_each_at_its_place() {
    let case = Case::new();
    let text = "\
flow:
  id: f
  steps:
    - id: a
      component: a.wasm
      limits: { memory_mb: 2048 }
      grants:
        files:
          - { host: nowhere, guest: /a }
          - { host: ../outside, guest: /b }
        env: [HOME]
    - id: b
      component: b.wasm
    - id: c
      component: c.wasm
      limits: { memory_mb: 1 }
";
    assert_eq!(
        case.faults(
            text,
            &["wasi:sockets/tcp@0.2.0", "!not a component: a core module", "wasi:clocks/wall-clock@0.2.0"]
        ),
        [
            "5:18 CAPABILITY_DENIED imports wasi:sockets/tcp@0.2.0, which this host does not offer",
            "6:28 CAPABILITY_DENIED step 'a' asks limits.memory_mb: 2048; tenant 'default' allows: 1024",
            "7:7 CAPABILITY_DENIED step 'a' asks files: /outside (read); tenant 'default' allows: folders below the flow file's \
             (read)",
            "7:7 CAPABILITY_DENIED step 'a' asks env: HOME; tenant 'default' allows: none",
            "9:21 folder /flows/nowhere: No such file or directory (os error 2)",
            "13:18 COMPILE_FAILED component 'b.wasm': not a component: a core module",
            "14:7 CAPABILITY_DENIED step 'c' imports wasi:clocks/wall-clock@0.2.0 without a grant for it",
            "16:28 CAPABILITY_DENIED component 'c.wasm' starts with 2 MiB of memory, memory_mb is 1",
        ]
    );
}

#[test]
fn a_symlink_out_of_the_flows_folder_is_seen() {
    let case = Case::new();
    std::os::unix::fs::symlink(case.root.path().join("outside"), case.folder().join("inside")).unwrap();
    let text = "flow:\n  id: f\n  steps:\n    - id: a\n      component: a\n      grants: { files: [ { host: inside, guest: /a } ] }\n";
    let found = case.faults(text, &["wasi:filesystem/types@0.2.0"]);
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("asks files: /outside (read)"), "{found:?}");
}

#[test]
fn steps_and_components_must_be_as_many() {
    let found = Case::new().faults("flow:\n  id: f\n  steps:\n    - id: a\n      component: a\n", &[]);
    assert_eq!(found, ["0:0 1 steps came with 0 components"]);
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut text = String::from(
        "flow:\n  id: f\n  steps:\n    - id: a\n      component: x\n      input:\n        a0: &a0 [x, x]\n",
    );
    for level in 1..30 {
        let before = level - 1;
        text.push_str(&format!("        a{level}: &a{level} [*a{before}, *a{before}, *a{before}, *a{before}]\n"));
    }
    let found = Case::new().faults(&text, &[""]);
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn the_shipped_flows_have_no_fault() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../flows");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            if let Err(error) = FlowText::read(&text, &path, &MiniJinja::new()) {
                panic!("{error}");
            }
            seen += 1;
        }
    }
    assert!(seen >= 3);
}
