//! The edge towards clients: the socket, its connections, signals, the pid file, and the client's side of the same.
//!
//! One thread runs it all; the loop never waits for it. Calls and signals go into the loop's inbox by a plain function,
//! answers come back by ticket.

pub mod client;
pub mod connection;
pub mod edge;
pub mod fair;
mod lines;
pub mod listen;
mod patience;
pub mod pid_file;
mod requests;
pub mod signals;

pub use client::{Client, ClientError};
pub use connection::ApiCall;
pub use edge::{Edge, EdgeError, Incoming};
pub use fair::RoundRobin;
pub use listen::{ListenError, SOCKET_NAME};
pub use requests::Requests;
pub use signals::Signal;
