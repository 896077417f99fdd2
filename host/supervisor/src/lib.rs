//! The trusted long process: the log, the loop, the workers, the socket.
//!
//! It never links wasmtime and treats guest bytes as bytes (I8).

pub mod clock;
pub mod config;
pub mod daemon;
pub mod deploy;
pub mod evaluate;
pub mod run;
pub mod store;
pub mod turn;
pub mod workers;
