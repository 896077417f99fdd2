//! libFuzzer at what a client sends: scripts/fuzz client.
#![no_main]
tm_fuzz::libfuzzer!(tm_fuzz::client::TARGET);
