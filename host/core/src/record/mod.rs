//! Records as they stand on disk.

pub mod codec;
