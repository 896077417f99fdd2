//! The program `tm`: the command line and, re-executed by its supervisor, a confined worker.

mod cli;

use std::{env, panic, process::ExitCode};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A worker confines itself on its main thread before any other thread exists and before it reads anything else.
    if env::args_os().nth(1).is_some_and(|role| role == tm_worker::ROLE) {
        return tm_worker::main_worker(tm_worker::inherited_socket());
    }
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        report(panic);
        let _ = cli::render::error(
            "an internal error stopped tm",
            Some("this is a bug; please report it with the lines above"),
        );
        // A supervisor of which one thread is gone must not go on: its files are made to be reopened.
        std::process::exit(i32::from(cli::exit::code(tm_core::api::ErrorKind::Internal)));
    }));
    cli::main()
}
