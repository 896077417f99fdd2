//! What is kept for a while, and what is swept.

use std::{fs, path::PathBuf};

use tm_core::api::{Reply, Request, RunState};

use crate::{
    home::{Home, until},
    supervisor::Supervisor,
};

fn scratch(home: &Home, run: &str, attempt: u32) -> PathBuf {
    home.path(format!("data/store/tenants/default/scratch/{run}.s.{attempt}"))
}

fn results(home: &Home, run: &str) -> PathBuf {
    home.path(format!("data/store/tenants/default/results/{run}/s"))
}

#[test]
fn a_scratch_folder_stays_after_a_failure_and_its_size_is_said() {
    let home = Home::new();
    home.flow("work", "hostile", &["limits: { scratch_mb: 1 }"]);
    let mut pool = Supervisor::start(&home, &[]);
    let good = home.enqueue("work.yaml", r#"{"do":"scratch","bytes":1000}"#, &[]);
    assert_eq!(pool.ended(&good).state, RunState::Succeeded);
    let bad = home.enqueue("work", r#"{"do":"scratch","bytes":10000000}"#, &[]);
    assert_eq!(pool.ended(&bad).state, RunState::Stalled);
    assert!(!scratch(&home, &good, 1).exists(), "it goes with a success");
    let kept = scratch(&home, &bad, 1);
    let bytes: u64 = fs::read_dir(&kept).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    pool.says(&format!("bytes={bytes}"));
    pool.says(&format!("folder={}", kept.strip_prefix(home.path("")).unwrap().display()));
    pool.stop();
}

#[test]
fn a_scratch_folder_stays_after_a_success_when_the_operator_says_so() {
    let home = Home::new();
    home.write("trace_config.toml", "[scratch]\nkeep_on_success = true\n");
    home.flow("work", "hostile", &[]);
    let mut pool = Supervisor::start(&home, &[]);
    let run = home.enqueue("work.yaml", r#"{"do":"scratch","bytes":1000}"#, &[]);
    assert_eq!(pool.ended(&run).state, RunState::Succeeded);
    assert_eq!(fs::metadata(scratch(&home, &run, 1).join("file")).unwrap().len(), 1000);
    pool.says("bytes=1000");
    pool.stop();
}

#[test]
fn artefacts_stay_as_long_as_something_names_them_and_then_as_long_as_the_operator_says() {
    let home = Home::new();
    home.write("trace_config.toml", "[retention]\nartifacts_max_age = \"1h\"\n");
    home.flow("make", "hostile", &[]);
    let input = r#"{"do":"artifact","name":"a","bytes":1000,"finish":true}"#;
    let mut pool = Supervisor::start(&home, &["--result-ttl", "1"]);
    let forgotten = home.enqueue("make.yaml", input, &[]);
    assert_eq!(pool.ended(&forgotten).state, RunState::Succeeded);
    until("a result that is forgotten", || {
        matches!(pool.ask(&Request::Result { id: forgotten.clone() }), Reply::Error(_)).then_some(())
    });
    pool.stop();
    let mut pool = Supervisor::start(&home, &[]);
    let named = home.enqueue("make", input, &[]);
    assert_eq!(pool.ended(&named).state, RunState::Succeeded);
    pool.stop();
    assert!(results(&home, &forgotten).join("a").exists(), "the hour is not over");
    home.write("trace_config.toml", "[retention]\nartifacts_max_age = \"1ms\"\n");
    let pool = Supervisor::start(&home, &[]);
    pool.says(&format!("run={forgotten}"));
    until("the sweep", || (!results(&home, &forgotten).exists()).then_some(()));
    assert!(results(&home, &named).join("a").exists(), "its run is known (I10)");
    pool.stop();
}

#[test]
fn archived_letters_go_when_they_are_over_their_bounds_and_pending_ones_stay() {
    let home = Home::new();
    home.flow("fail", "hostile", &["retries: { max_attempts: 1 }"]);
    let mut pool = Supervisor::start(&home, &[]);
    let runs: Vec<_> = (0..2).map(|_| home.enqueue("fail.yaml", r#"{"do":"abort"}"#, &[])).collect();
    runs.iter().for_each(|run| assert_eq!(pool.ended(run).state, RunState::Stalled));
    assert_eq!(home.tm(&["dlq", "purge", &runs[0], "--yes"]).code, Some(0));
    let files = |folder: &str| fs::read_dir(home.path(format!("data/dlq/{folder}"))).map_or(0, Iterator::count);
    until("the archive", || (files("archive/purged") == 1).then_some(()));
    pool.stop();
    assert_eq!(home.tm(&["dlq", "purge", &runs[1], "--dry-run"]).code, Some(0));
    home.write("trace_config.toml", "[retention]\ndlq_archive_max_age = \"0s\"\n");
    home.tm(&["dlq", "purge", &runs[1], "--dry-run"]);
    assert_eq!(files("archive/purged"), 1, "a dry run sweeps nothing, nor does a command that passes");
    let pool = Supervisor::start(&home, &[]);
    until("the sweep", || (files("archive/purged") == 0).then_some(()));
    assert_eq!(files("pending"), 1);
    pool.stop();
}
