//! libFuzzer at what a worker sends: scripts/fuzz wire.
#![no_main]
tm_fuzz::libfuzzer!(tm_fuzz::wire::TARGET);
