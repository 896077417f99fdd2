//! Hostile bytes at every door of the program: what each door promises of them, and how they are varied.
//!
//! A door is a [`Target`]: a plain function that panics when a promise is broken. Two loops call it: `tests/corpora.rs`
//! with the committed inputs and a fixed number of seeded variations (CI), and libFuzzer, guided by coverage
//! (`scripts/fuzz`). Both vary inputs by [`vary::vary`].

pub mod client;
pub mod flow;
pub mod gate;
pub mod log;
pub mod measure;
mod sealing;
pub mod vary;
pub mod wire;

#[path = "../../crash/random.rs"]
mod random;

/// What a door made of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Refused,
    Taken,
}

/// One door.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Also of the folder of its inputs, below `corpus`.
    pub name: &'static str,
    /// Panics when a promise is broken.
    pub run: fn(&[u8]) -> Verdict,
    /// What its inputs are made of.
    pub words: &'static [&'static str],
    /// Makes checksums right again after a change; most changes would get no further than to them.
    pub mend: Option<fn(&mut [u8])>,
    /// Longer inputs are not tried.
    pub len_max: usize,
}

pub const TARGETS: [Target; 5] = [client::TARGET, flow::TARGET, gate::TARGET, log::TARGET, wire::TARGET];

/// The program of a target for libFuzzer.
#[cfg(feature = "libfuzzer")]
#[macro_export]
macro_rules! libfuzzer {
    ($target:expr) => {
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
            if bytes.len() <= $target.len_max {
                ($target.run)(bytes);
            }
        });
        // Every other variation is libFuzzer's own, which knows what the code compared with.
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            let varied = if seed % 2 == 0 {
                $crate::vary::vary(&$target, seed.into(), &data[..size], &data[..size])
            } else {
                let size = libfuzzer_sys::fuzzer_mutate(data, size, max_size);
                $crate::vary::mended(&$target, seed.into(), data[..size].to_vec())
            };
            let size = varied.len().min(max_size);
            data[..size].copy_from_slice(&varied[..size]);
            size
        });
    };
}
