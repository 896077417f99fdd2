//! The pool from outside: the built program with real guests in hermetic homes, killed, stopped, starved and drained.

mod build;
mod company;
mod confinement;
mod drain;
mod environment;
mod flows;
mod full_disk;
mod handover;
mod home;
mod letters;
mod lost;
mod pressure;
mod queue;
mod refusals;
mod supervisor;
mod timeouts;
mod turns;
mod user;
mod watch;
