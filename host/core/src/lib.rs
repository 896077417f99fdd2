//! The rules of `tm`: runs, tasks, attempts, leases, records and messages, decided without I/O.
//!
//! Nothing here can name a file, a clock, a thread or a source of randomness. What needs std comes in as data (`now`)
//! or as a plain function (`Evaluate`). The numbered promises I1… are in docs/architecture.md.
#![no_std]

extern crate alloc;

pub mod api;
pub mod backoff;
pub mod code;
pub mod flow;
pub mod id;
pub mod interfaces;
pub mod json;
pub mod limits;
pub mod queue;
pub mod record;
pub mod spin;
pub mod time;
pub mod wire;
