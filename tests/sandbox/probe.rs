//! Calls from behind the walls that have to work, and some that show why they stand in that order.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
};

use tm_core::wire::Init;
use tm_worker::{
    confine::{self, Role, Walls},
    packet::Receiver,
};

/// Confines itself with the first packet's folders, makes each call by its name and prints `NAME: ok` or
/// `NAME: errno N`.
pub(crate) fn run(socket: OwnedFd, walls: Walls, calls: impl Iterator<Item = String>) -> ExitCode {
    confine::early(3).expect("early steps");
    let mut receiver = Receiver::new();
    let packet = receiver.receive(socket.as_fd()).expect("a packet").expect("an open socket");
    let Init::Execute(init) = packet.messages::<Init>().expect("messages").remove(0) else { panic!("not Execute") };
    let folders: Vec<_> = init.folders.into_iter().zip(packet.fds.map(File::from)).collect();
    confine::walls(Role::Execute, walls, &folders, false).expect("both walls");
    for call in calls {
        let answer = make(&call, socket.as_fd(), &mut receiver);
        let text = match answer {
            Ok(()) => format!("{call}: ok\n"),
            Err(error) => format!("{call}: errno {}\n", error.raw_os_error().unwrap_or(-1)),
        };
        std::io::stdout().write_all(text.as_bytes()).expect("standard output");
    }
    ExitCode::SUCCESS
}

fn make(call: &str, socket: std::os::fd::BorrowedFd<'_>, receiver: &mut Receiver) -> std::io::Result<()> {
    let (name, argument) = call.split_once('=').unwrap_or((call, ""));
    match name {
        "rename" => {
            let (from, to) = argument.split_once(',').expect("two paths");
            std::fs::rename(from, to)
        }
        "read-own-folder" => {
            // The granted folder is descriptor 4: the first that arrived after the socket.
            let file = rustix::fs::openat(folder(), argument, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())?;
            File::from(file).read_to_string(&mut String::new()).map(drop)
        }
        "own-folder-by-proc" => std::fs::read_dir("/proc/self/fd/4").map(drop),
        "late-folder" => {
            let packet = receiver.receive(socket).map_err(|_| std::io::Error::from_raw_os_error(libc::EPROTO))?;
            let late = packet.and_then(|mut packet| packet.fd().ok()).expect("a descriptor");
            let found = rustix::fs::openat(&late, argument, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())?;
            File::from(found).read_to_string(&mut String::new()).map(drop)
        }
        "thread" => std::thread::Builder::new().spawn(|| {})?.join().map_err(|_| std::io::Error::other("panicked")),
        "clone3" => raw(libc::SYS_clone3, &[0, 0]),
        "signal-self" => {
            let own = std::process::id() as usize;
            raw(libc::SYS_tgkill, &[own, own, 0])
        }
        "abort" => std::process::abort(),
        other => panic!("unknown probe {other}"),
    }
}

fn folder() -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: descriptor 4 is the first folder, open until the process ends.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(4) }
}

fn raw(number: libc::c_long, arguments: &[usize]) -> std::io::Result<()> {
    let at = |place: usize| arguments.get(place).copied().unwrap_or(0);
    // SAFETY: the pointers among the arguments are static strings or outlive the call; everything else is a number.
    let answer = unsafe { libc::syscall(number, at(0), at(1), at(2), at(3), at(4), at(5)) };
    if answer == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
