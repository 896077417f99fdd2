//! The pool from outside: the built program with real guests in hermetic homes, killed, stopped, starved and drained.

mod company;
mod drain;
mod environment;
mod flows;
mod home;
mod lost;
mod queue;
mod refusals;
mod supervisor;
mod turns;
