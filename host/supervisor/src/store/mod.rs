//! What is kept on disk: the log, and the files around it.

pub mod artifacts;
pub mod blobs;
pub mod disk;
pub mod dlq;
pub mod idempotency;
pub mod kept;
pub mod lock;
pub mod log;
mod meta;
pub mod native;
pub mod recover;
pub mod repair;
pub mod results;
mod sealed;
pub mod segment;
mod spare;
pub mod verify;

#[cfg(test)]
mod artifacts_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
pub(crate) mod faults;
#[cfg(test)]
mod going_on_tests;
#[cfg(test)]
mod log_tests;
#[cfg(test)]
mod recover_tests;
#[cfg(test)]
mod reliability_tests;
#[cfg(test)]
pub(crate) mod small_queue_tests;
#[cfg(test)]
mod upgrade_tests;
#[cfg(test)]
mod verify_tests;
