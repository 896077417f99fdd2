//! libFuzzer at the reader of flows: scripts/fuzz flow.
#![no_main]
tm_fuzz::libfuzzer!(tm_fuzz::flow::TARGET);
