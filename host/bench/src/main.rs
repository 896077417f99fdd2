//! Measures the product and its floor in the same run: scripts/bench.

fn main() {}
