//! The repository itself, tested: headers, lengths, edges between crates, banned calls, codes, promises, generated pages.
//!
//! Works on the text of the files, with std alone. `TM_BLESS=1` writes the generated parts of docs/reference anew.

#[path = "tidy/blocks.rs"]
mod blocks;
#[path = "tidy/source.rs"]
mod source;

use std::{collections::BTreeSet, fs};

use source::{Source, root, walk};
use tm_core::code::TABLE;

const LINES_MAX: usize = 600;
const LINES_WARN: usize = 400;

/// Fails with all findings at once.
fn report(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

fn rust_files() -> Vec<Source> {
    walk(&["rs"]).into_iter().map(|path| Source::read(&path)).collect()
}

/// What ships of the host: no tests, no comments.
fn shipped(sources: &[Source]) -> impl Iterator<Item = (&Source, usize, &str)> {
    let shipped = sources.iter().filter(|source| source.name.starts_with("host/") && !source.is_test_file());
    shipped.flat_map(|source| source.production().map(move |(number, line)| (source, number, line)))
}

#[test]
fn every_source_file_says_at_its_top_what_it_is_for() {
    let bare = rust_files().into_iter().filter(|source| !source.text.starts_with("//! "));
    report(bare.map(|source| format!("{}:1: starts with no `//! ` line", source.name)).collect());
}

#[test]
fn no_source_file_is_longer_than_600_lines() {
    let mut long = Vec::new();
    for source in rust_files() {
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            long.push(format!("{}: {lines} lines, at most {LINES_MAX}: split it by noun or verb", source.name));
        } else if lines > LINES_WARN {
            eprintln!("warning: {}: {lines} lines, more than {LINES_WARN}", source.name);
        }
    }
    report(long);
}

/// A crate is a set of allowed effects; these dependencies would widen it.
#[test]
fn crates_depend_only_in_the_allowed_direction() {
    let guests = ["wasmtime", "wasmtime-wasi", "wasmparser"];
    let command_line = ["anyhow", "clap", "clap_complete"];
    let core = ["tm-supervisor", "tm-worker", "tokio", "tracing", "rustix", "nix", "libc", "tempfile"];
    let banned = [
        ("core", [&core[..], &guests, &command_line].concat()),
        ("supervisor", [&["tm-worker"][..], &guests, &command_line].concat()),
        ("worker", [&["tm-supervisor", "minijinja", "serde-saphyr", "toml"][..], &command_line].concat()),
        // It measures the supervisor from outside.
        ("bench", vec!["tm-supervisor", "anyhow"]),
    ];
    let mut found = Vec::new();
    for (folder, names) in banned {
        let manifest = format!("host/{folder}/Cargo.toml");
        for name in source::dependencies(&root().join(&manifest)) {
            if names.contains(&name.as_str()) {
                found.push(format!("{manifest}: depends on {name}"));
            }
        }
    }
    report(found);
}

#[test]
fn the_core_cannot_name_a_file_a_clock_or_a_thread() {
    let lib = fs::read_to_string(root().join("host/core/src/lib.rs")).unwrap();
    assert!(lib.contains("#![no_std]"), "host/core/src/lib.rs is not no_std");
    let sources = rust_files();
    let core = shipped(&sources).filter(|(source, ..)| source.name.starts_with("host/core/"));
    let uses = core.filter(|(_, _, line)| source::has_word(line, "std") && !line.contains("no_std"));
    report(uses.map(|(source, number, line)| format!("{}:{number}: {}", source.name, line.trim())).collect());
}

/// Call, the places that may make it (as the start of a name), why the others may not.
const BANNED: &[(&str, &[&str], &str)] = &[
    (
        "Instant::now(",
        &[
            "host/supervisor/src/clock.rs",
            "host/supervisor/src/daemon/patience.rs",
            "host/supervisor/src/workers/",
            "host/supervisor/src/run/supervise.rs",
            "host/supervisor/src/store/lock.rs",
            "host/worker/src/",
            "host/tm/src/cli/",
            "host/bench/src/",
        ],
        "time is a value that clock.rs reads; only those who wait for a process or measure a guest look themselves",
    ),
    (
        "SystemTime::now(",
        &[
            "host/supervisor/src/clock.rs",
            "host/supervisor/src/deploy/known.rs",
            "host/supervisor/src/store/lock.rs",
            "host/tm/src/cli/",
        ],
        "time is a value that clock.rs reads; only file ages and the name of a lock's holder need the wall clock",
    ),
    ("println!(", &["host/tm/src/", "host/bench/src/"], "only the command line has a standard output"),
    ("print!(", &["host/tm/src/"], "only the command line has a standard output"),
    (
        "eprintln!(",
        &["host/tm/src/", "host/bench/src/", "host/worker/src/main.rs", "host/worker/src/serve.rs"],
        "libraries log with tracing; a worker that dies has only its standard error",
    ),
    ("dbg!(", &[], "left over"),
    (".unwrap()", &[], "a library answers with an error"),
    (".expect(", &[], "a library answers with an error"),
    ("panic!(", &[], "a library answers with an error"),
    (
        "thread::sleep(",
        &[
            "host/tm/src/cli/",
            "host/supervisor/src/store/lock.rs",
            "host/worker/src/pulse.rs",
            "host/worker/src/sandbox/compile.rs",
            "host/bench/src/",
        ],
        "wait for a condition with a bound",
    ),
];

#[test]
fn banned_calls_stand_only_where_they_are_allowed() {
    let sources = rust_files();
    let mut found = Vec::new();
    for (source, number, line) in shipped(&sources) {
        for (call, allowed, why) in BANNED {
            if source::has_call(line, call) && !allowed.iter().any(|start| source.name.starts_with(start)) {
                found.push(format!("{}:{number}: {call}…): {why}", source.name));
            }
        }
    }
    report(found);
}

#[test]
fn lints_are_expected_with_a_reason_and_never_allowed() {
    let mut found = Vec::new();
    for source in rust_files() {
        for (number, line) in source.code() {
            if line.contains(concat!("#[", "allow(")) || line.contains(concat!("#![", "allow(")) {
                found.push(format!("{}:{number}: write #[expect(lint, reason = \"…\")]", source.name));
            }
            if line.contains(concat!("#[", "ignore]")) {
                found.push(format!("{}:{number}: say why it is ignored: #[ignore = \"…\"]", source.name));
            }
        }
    }
    report(found);
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let mut found = Vec::new();
    for source in rust_files() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in source.code() {
            let block = line.contains("unsafe {") || line.contains("unsafe impl");
            let above = &lines[number.saturating_sub(8)..number];
            if block && !above.iter().any(|line| line.contains("SAFETY:")) {
                found.push(format!("{}:{number}: unsafe without a SAFETY comment", source.name));
            }
        }
    }
    report(found);
}

/// Literals in upper case that are no error codes: variables of the environment, names of the kernel, codes of warnings.
const NO_CODES: &[&str] =
    &["CARGO", "NO_COLOR", "RUSTC", "TM_", "XDG_", "RUST_", "SIG", "CAP_", "PR_", "SYS_", "HEARTBEAT_DEGRADED"];

#[test]
fn every_error_code_in_the_host_stands_in_the_table() {
    let known: BTreeSet<&str> = TABLE.iter().map(|row| row.0).collect();
    let mut found = Vec::new();
    for source in rust_files().iter().filter(|s| s.name.starts_with("host/") && !s.is_test_file()) {
        for (number, text) in source.strings() {
            let code = text.contains('_') && text.starts_with(|c: char| c.is_ascii_uppercase());
            let upper = text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
            let other = NO_CODES.iter().any(|start| text.starts_with(start));
            if code && upper && !other && !known.contains(text.as_str()) {
                found.push(format!("{}:{number}: code {text} is not in tm_core::code::TABLE", source.name));
            }
        }
    }
    report(found);
}

#[test]
fn nothing_is_left_for_later() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("unimpl", "emented")];
    let mut found = Vec::new();
    for path in walk(&["rs", "sh", "md", "toml", "yaml", "yml", "wit", ""]) {
        let name = source::name_of(&path);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            if let Some(mark) = marks.iter().find(|mark| source::has_word(line, mark)) {
                found.push(format!("{name}:{}: {mark}", number + 1));
            }
        }
    }
    report(found);
}

#[test]
fn the_tests_stand_where_the_architecture_says() {
    let places = [
        "tests/sim",
        "tests/crash",
        "tests/sandbox",
        "tests/cli",
        "tests/golden",
        "tests/fuzz",
        "tests/guests",
        "tests/broken",
        "scripts/setup",
        "scripts/demo",
        "scripts/test",
        "scripts/inner",
        "scripts/broken",
        ".ci/run",
    ];
    report(places.iter().filter(|place| !root().join(place).exists()).map(|p| format!("{p} is missing")).collect());
}

#[test]
fn every_promise_is_cited_documented_and_broken_by_a_patch() {
    let sources = rust_files();
    let architecture = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let mut missing = Vec::new();
    for number in 1..=12 {
        let promise = format!("I{number}");
        let cited = sources.iter().any(|s| s.name.starts_with("host/") && source::has_word(&s.text, &promise));
        if !cited {
            missing.push(format!("{promise} is cited nowhere in host/"));
        }
        if !source::has_word(&architecture, &promise) {
            missing.push(format!("{promise} is not in docs/architecture.md"));
        }
        if !root().join(format!("tests/broken/{promise}.patch")).exists() {
            missing.push(format!("tests/broken/{promise}.patch is missing"));
        }
    }
    report(missing);
}

/// The generated parts of the reference pages say what the code says.
#[test]
fn the_reference_pages_agree_with_the_code() {
    let bless = std::env::var_os("TM_BLESS").is_some();
    let mut stale = Vec::new();
    for path in walk(&["md"]).into_iter().filter(|path| source::name_of(path).starts_with("docs/")) {
        let text = fs::read_to_string(&path).unwrap();
        let fresh = blocks::renew(&text, &source::name_of(&path));
        if fresh != text && bless {
            fs::write(&path, fresh).unwrap();
        } else if fresh != text {
            stale.push(format!("{} is stale: TM_BLESS=1 cargo test -p tm-core --test tidy", source::name_of(&path)));
        }
    }
    report(stale);
}

#[test]
fn every_configuration_key_is_documented_and_no_other() {
    let page = fs::read_to_string(root().join("docs/reference/configuration.md")).unwrap();
    let keys = blocks::configuration_keys();
    assert!(keys.len() > 30, "only {} keys found in config/written.rs", keys.len());
    let rows: BTreeSet<String> = page.lines().filter_map(blocks::first_cell).collect();
    let missing = keys.difference(&rows).map(|key| format!("docs/reference/configuration.md: no row for `{key}`"));
    let unknown = rows.difference(&keys).map(|key| format!("docs/reference/configuration.md: `{key}` is no key"));
    report(missing.chain(unknown).collect());
}

#[test]
fn every_exit_code_is_documented() {
    let page = fs::read_to_string(root().join("docs/reference/exit-codes.md")).unwrap();
    let exit = fs::read_to_string(root().join("host/tm/src/cli/exit.rs")).unwrap();
    let codes = exit.lines().filter_map(|line| line.trim().strip_prefix("ErrorKind::")?.split_once("=> "));
    let codes: Vec<&str> =
        codes.map(|(_, code)| code.trim_end_matches(',')).filter(|c| c.parse::<u8>().is_ok()).collect();
    assert!(codes.len() >= 6, "the codes are not found in exit.rs any more: {codes:?}");
    report(
        codes.iter().filter(|code| !page.contains(&format!("| {code} |"))).map(|c| format!("no row for {c}")).collect(),
    );
}

#[test]
fn every_dependency_is_explained_and_no_other() {
    let page = fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let rows: BTreeSet<String> = page.lines().filter_map(blocks::first_cell).collect();
    let manifests = walk(&["toml"]).into_iter().filter(|path| path.ends_with("Cargo.toml"));
    let used: BTreeSet<String> = manifests
        .flat_map(|path| [source::dependencies(&path), source::dev_dependencies(&path)].concat())
        .filter(|name| !name.starts_with("tm-"))
        .collect();
    let missing = used.difference(&rows).map(|name| format!("docs/dependencies.md: no row for {name}"));
    let unused = rows.difference(&used).map(|name| format!("docs/dependencies.md: nothing depends on {name}"));
    report(missing.chain(unused).collect());
}

#[test]
fn links_between_pages_lead_to_files() {
    let mut found = Vec::new();
    for path in walk(&["md"]) {
        let text = fs::read_to_string(&path).unwrap();
        for link in source::links(&text) {
            let file = link.split(['#', '?']).next().unwrap_or_default();
            let elsewhere = link.contains("://") || link.starts_with("mailto:") || file.is_empty();
            if !elsewhere && !path.parent().unwrap().join(file).exists() {
                found.push(format!("{}: {link} leads nowhere", source::name_of(&path)));
            }
        }
    }
    report(found);
}
