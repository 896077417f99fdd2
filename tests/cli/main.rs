//! The command line from outside: the built program in a hermetic home, snapshots of what it prints and returns.

mod arguments;
mod configuration;
mod damage;
mod flows;
mod home;
mod newer;
mod no_queue;
mod refusals;
mod stop;
mod supervisor;
