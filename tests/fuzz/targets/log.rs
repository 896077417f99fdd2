//! libFuzzer at the log reader: scripts/fuzz log.
#![no_main]
tm_fuzz::libfuzzer!(tm_fuzz::log::TARGET);
