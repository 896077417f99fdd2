//! The confined child: inspects, compiles and runs guests under both walls.
//!
//! [`main_worker`] is the whole program of a worker process: it becomes what the first packet says (a runner of steps
//! or a single-use compiler), and talks to its supervisor in the messages of [`tm_core::wire`], over the socket alone.

pub mod confine;
pub mod packet;
mod pulse;
pub mod sandbox;
mod serve;
mod start;

pub use start::{ROLE, inherited_socket, main_worker, main_worker_with};
