//! The worker role as a program of its own, for the tests beside it: `tm-worker-test __worker [landlock|seccomp]` is a
//! worker with both walls or one, `… FIRST FOLDER` one that makes raw system calls where a guest runs when it is told to;
//! `tm-worker-test __probe WALLS CALL…` confines itself as a worker does and then tries what has to work.

mod native;
mod probe;

use std::{path::PathBuf, process::ExitCode};

use tm_worker::{ROLE, confine::Walls, inherited_socket};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let role = arguments.next().unwrap_or_default();
    let walls = match arguments.next().as_deref() {
        Some("landlock") => Walls { landlock: true, seccomp: false },
        Some("seccomp") => Walls { landlock: false, seccomp: true },
        Some("none") => Walls { landlock: false, seccomp: false },
        _ => Walls::BOTH,
    };
    if role == native::EXECUTED {
        println!("< 0");
        return ExitCode::SUCCESS;
    }
    if role == ROLE {
        if let (Some(first), Some(root)) = (arguments.next(), arguments.next()) {
            native::arm(first.parse().expect("a number"), &PathBuf::from(root));
        }
        return tm_worker::main_worker_with(inherited_socket(), walls);
    }
    if role == "__probe" {
        return probe::run(inherited_socket(), walls, arguments);
    }
    eprintln!("error: this program is started by the sandbox tests");
    ExitCode::from(2)
}
