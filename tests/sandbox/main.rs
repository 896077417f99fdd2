//! Hostile guests in a real, confined worker process, and native probes in the guest's place.

mod compile;
mod escapes;
mod harness;
mod hostile;
mod smoke;
mod table;
mod walls;
