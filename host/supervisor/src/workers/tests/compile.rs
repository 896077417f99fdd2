//! Single-use processes: what they find, and how their deaths are understood.

use std::os::fd::AsFd;

use super::*;
use crate::workers::{sealed, tests::fake};

fn compiler(behaviour: &str, change: impl FnOnce(&mut CompileSettings)) -> Compiler {
    let mut settings = CompileSettings::default();
    change(&mut settings);
    Compiler::new(fake::spawner(behaviour), settings).unwrap()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, CompileError>) -> (&'static str, String) {
    match result {
        Err(CompileError::Refused { code, message }) => (code, message),
        other => panic!("a refusal was expected: {other:?}"),
    }
}

#[test]
fn an_inspection_and_a_compilation_bring_their_results() {
    let (compiler, component) = (compiler("good", |_| {}), sealed::make(b"component").unwrap());
    let inspection = compiler.inspect(component.as_fd()).unwrap();
    assert_eq!(inspection.digest, tm_core::id::Digest::of(b"component"));
    let native = compiler.compile(component.as_fd()).unwrap();
    assert_eq!((native.inspection, native.compatibility.as_str()), (inspection, "00ff"));
    assert_eq!(sealed::read(&native.artefact, native.size_bytes).unwrap(), b"native code");
}

#[test]
fn what_takes_too_much_is_compile_limit_however_the_process_dies() {
    let component = sealed::make(b"component").unwrap();
    let burn = compiler("burn", |settings| settings.cpu_seconds_max = 1);
    let (code, message) = refusal(burn.compile(component.as_fd()));
    assert!(code == COMPILE_LIMIT && message.contains("1 s of CPU time"), "{message}");
    let hang = compiler("hang", |settings| settings.inspect_timeout = Duration::from_millis(200));
    let (code, message) = refusal(hang.inspect(component.as_fd()));
    assert!(code == COMPILE_LIMIT && message.contains("longer than 0.2 s"), "{message}");
    let (code, message) = refusal(compiler("swallow", |_| {}).compile(component.as_fd()));
    assert!(code == COMPILE_LIMIT && message.contains("4096 MiB"), "{message}");
    assert_eq!(refusal(compiler("killed", |_| {}).compile(component.as_fd())).0, COMPILE_LIMIT);
}

#[test]
fn a_refusal_reaches_the_caller_on_one_line() {
    let component = sealed::make(b"component").unwrap();
    let (code, message) = refusal(compiler("refuse", |_| {}).inspect(component.as_fd()));
    assert_eq!((code, message.as_str()), (COMPILE_FAILED, "not a component:  a core module"));
}

#[test]
fn a_name_that_could_leave_its_folder_is_not_believed() {
    let component = sealed::make(b"component").unwrap();
    let result = compiler("bad name", |_| {}).compile(component.as_fd());
    assert!(matches!(result, Err(CompileError::Process { .. })), "{result:?}");
}

#[test]
fn a_process_that_cannot_start_is_not_the_components_fault() {
    let component = sealed::make(b"component").unwrap();
    for (behaviour, words) in [("die early", "out of luck"), ("unable", "no walls here")] {
        match compiler(behaviour, |_| {}).inspect(component.as_fd()) {
            Err(CompileError::Process { reason }) => assert!(reason.contains(words), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_stop_ends_those_who_wait_and_those_who_run() {
    let compiler = compiler("hang", |settings| settings.compiles_max = 1);
    let component = sealed::make(b"component").unwrap();
    std::thread::scope(|scope| {
        let (compiler, component) = (&compiler, &component);
        let waiting: Vec<_> = (0..3).map(|_| scope.spawn(move || compiler.compile(component.as_fd()))).collect();
        compiler.stop();
        for thread in waiting {
            assert!(matches!(thread.join().unwrap(), Err(CompileError::Stopping)));
        }
    });
    assert!(matches!(compiler.inspect(component.as_fd()), Err(CompileError::Stopping)));
}
