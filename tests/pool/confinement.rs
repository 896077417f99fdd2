//! A host without one of the walls: refused, unless the operator says otherwise.

use std::{
    process::{Command, Output, Stdio},
    thread,
};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use crate::{
    home::Home,
    supervisor::{Supervisor, started},
};

/// `landlock_create_ruleset`, the same number on all architectures.
const LANDLOCK_CREATE_RULESET: i64 = 444;
const QUICK: &str = r#"{"do":"nothing"}"#;

#[test]
fn without_a_wall_nothing_runs_until_the_operator_allows_it() {
    let home = Home::new();
    home.flow("quick", "compute", &[]);
    home.enqueue("quick.yaml", QUICK, &["--delay", "1d"]);
    let output = without_landlock(&mut home.command(&["workers", "start"]));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in ["landlock", "--allow-weaker-confinement"] {
        assert!(text.contains(word), "'{word}' is missing in: {text}");
    }
    let output = without_landlock(&mut home.command(&["run", "quick.yaml", "-i", QUICK]));
    assert!(!output.status.success(), "a step ran without a wall");

    let pool = Supervisor::start_by(&home, &["--allow-weaker-confinement"], |command| in_thread(|| started(command)));
    pool.says("weaker confinement: landlock");
    let run = home.enqueue("quick", QUICK, &[]);
    assert_eq!(home.result(&run)["status"], "succeeded");
    pool.stop();
}

fn without_landlock(command: &mut Command) -> Output {
    in_thread(|| command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap())
}

/// Runs in a thread that has no landlock, and neither have the processes that it starts.
fn in_thread<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    let rules = [(LANDLOCK_CREATE_RULESET, Vec::new())].into();
    let not_there = SeccompAction::Errno(38);
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, not_there, std::env::consts::ARCH.try_into().unwrap()).unwrap();
    thread::scope(|scope| {
        let without = scope.spawn(|| {
            apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
            run()
        });
        without.join().unwrap()
    })
}
