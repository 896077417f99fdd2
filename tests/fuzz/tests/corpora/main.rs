//! The committed inputs of every door, and a fixed number of seeded variations of them: what CI runs of the fuzzing.
//!
//! `TM_FUZZ_RUNS=100000` says how many variations of each door run (2,000 without it), `TM_FUZZ_SEED=42` the number of the
//! first. The input that ran last stands in the file that a failure names; kept below `tests/fuzz/corpus`, it is a test.

mod seeds;

use std::{
    fs,
    path::{Path, PathBuf},
};

use tm_fuzz::{TARGETS, Target, Verdict, vary::vary};

const RUNS: u64 = 2_000;

fn number(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number"))
}

fn corpus(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

fn inputs(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = corpus(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap())
        })
        .collect();
    inputs.sort();
    inputs
}

/// Runs one input, which stands in a file when it does not return.
fn run(target: &Target, what: &str, input: &[u8]) -> Verdict {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", target.name));
    fs::write(&file, input).unwrap();
    let hint = Hint(format!("{} failed on {what}; the input stands in {}", target.name, file.display()));
    let verdict = (target.run)(input);
    std::mem::forget(hint);
    fs::remove_file(file).unwrap();
    verdict
}

/// Says what ran when a door panicked.
struct Hint(String);

impl Drop for Hint {
    fn drop(&mut self) {
        eprintln!("{}", self.0);
    }
}

fn holds(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let inputs = inputs(target);
    let mut verdicts: Vec<_> = inputs.iter().map(|(file, input)| run(target, file, input)).collect();
    verdicts.sort_unstable();
    verdicts.dedup();
    assert_eq!(verdicts, [Verdict::Refused, Verdict::Taken], "{name}: the inputs have to be of both kinds");
    let first = number("TM_FUZZ_SEED", 1);
    let place = |seed: u64| usize::try_from(seed % inputs.len() as u64).unwrap();
    let mut taken = 0;
    for seed in first..first + number("TM_FUZZ_RUNS", RUNS) {
        let (file, input) = &inputs[place(seed)];
        let varied = vary(target, seed, input, &inputs[place(seed / 7)].1);
        taken += u64::from(run(target, &format!("{file} varied by {seed}"), &varied) == Verdict::Taken);
    }
    println!("{name}: {} inputs, of their variations {taken} were taken", inputs.len());
}

#[test]
fn the_log_reader_keeps_its_promises_for_any_bytes() {
    holds("log");
}

#[test]
fn the_reader_of_flows_keeps_its_promises_for_any_text() {
    holds("flow");
}

#[test]
fn the_link_keeps_its_promises_for_any_packet_of_a_worker() {
    holds("wire");
}

#[test]
fn a_connection_keeps_its_promises_for_any_bytes_of_a_client() {
    holds("client");
}

#[test]
fn the_inspection_keeps_its_promises_for_any_bytes_of_a_component() {
    holds("gate");
}
