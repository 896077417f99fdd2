//! `tm queue stats --watch`: until a signal, or until nobody reads.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    process::{Child, Stdio},
};

use rustix::process::Signal;

use crate::{
    home::{Home, until},
    supervisor::{Supervisor, send},
};

fn watch(home: &Home) -> Child {
    let mut command = home.command(&["queue", "stats", "--watch", "100ms"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn counts_are_printed_again_until_a_signal_whether_or_not_a_supervisor_runs() {
    let home = Home::new();
    home.flow("quick", "compute", &[]);
    let delayed = |depth: usize| {
        home.enqueue("quick.yaml", "{}", &["--delay", "1d"]);
        format!("depth={depth} ")
    };
    let first = delayed(1);
    let mut watching = watch(&home);
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut sees = |what: &str| assert!(lines.any(|line| line.contains(what)), "it ended without {what}");
    sees(&first);
    let pool = Supervisor::start(&home, &[]);
    sees(&delayed(2));
    pool.stop();
    sees(&delayed(3));
    send(watching.id(), Signal::INT);
    let ended = until("its end", || watching.try_wait().unwrap());
    assert_eq!(ended.signal(), Some(Signal::INT.as_raw()));
}

#[test]
fn it_ends_quietly_when_nobody_reads() {
    let home = Home::new();
    home.flow("quick", "compute", &[]);
    home.enqueue("quick.yaml", "{}", &["--delay", "1d"]);
    let mut watching = watch(&home);
    drop(watching.stdout.take());
    let ended = until("its end", || watching.try_wait().unwrap());
    let said = std::io::read_to_string(watching.stderr.take().unwrap()).unwrap();
    assert_eq!((ended.code(), said.as_str()), (Some(0), ""));
}
