//! The pool from outside: the built program with real guests in hermetic homes, killed, stopped, starved and drained.

mod build;
mod clock;
mod company;
mod confinement;
mod drain;
mod environment;
mod flows;
mod full_disk;
mod handover;
#[path = "../history.rs"]
mod history;
mod home;
mod kept;
mod letters;
mod lost;
mod mounts;
mod neighbours;
mod pressure;
mod queue;
mod read_only;
mod refusals;
mod stopped;
mod supervisor;
mod timeouts;
mod turns;
mod user;
mod watch;
