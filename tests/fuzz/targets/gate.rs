//! libFuzzer at the inspection of components: scripts/fuzz gate.
#![no_main]
tm_fuzz::libfuzzer!(tm_fuzz::gate::TARGET);
