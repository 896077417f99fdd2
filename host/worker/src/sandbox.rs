//! The wasmtime surface, and all of it: engines, linkers, stores, limits, and what a guest may reach.

pub mod artifacts;
pub mod capture;
pub mod compile;
pub mod contract;
pub mod ctx;
pub mod engine;
pub mod files;
pub mod imports;
pub mod inspect;
pub mod limits;
pub mod linker;
pub mod run;
pub mod verdict;
pub mod walk;
