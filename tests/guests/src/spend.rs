//! What a guest can waste without any capability: fuel, memory, stack, output.

use std::collections::HashMap;
use std::hint::black_box;

use tm_guest::prelude::*;

use crate::Seen;

const MIB: usize = 1024 * 1024;
const LINE: &str =
    "0123456789 a line of a flood, one hundred bytes long with its line break ..........................";

pub(crate) fn spin(mb: u64) -> ! {
    let memory = written(mb);
    loop {
        black_box(&memory);
    }
}

pub(crate) fn rounds(count: u64) -> Seen {
    let sum = (0..count).fold(0_u64, |sum, n| black_box(sum ^ n));
    Ok(sum.into())
}

pub(crate) fn hog(mb: Option<u64>) -> Seen {
    let mut taken = Vec::new();
    while mb.is_none_or(|mb| (taken.len() as u64) < mb) {
        taken.push(vec![1_u8; MIB]);
        black_box(&taken);
    }
    Ok(taken.len().into())
}

#[cfg(target_arch = "wasm32")]
pub(crate) fn grow(pieces: Option<u64>) -> Seen {
    let mut grown = 0_u64;
    while pieces.is_none_or(|pieces| grown < pieces) {
        if core::arch::wasm32::memory_grow(0, 1) == usize::MAX {
            return Err(format!("refused after {grown} pages"));
        }
        grown += 1;
    }
    Ok(grown.into())
}

#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn grow(_pieces: Option<u64>) -> Seen {
    Err("only a guest has memory.grow".to_owned())
}

pub(crate) fn touch(mb: u64) -> Seen {
    Ok(black_box(written(mb)).len().into())
}

fn written(mb: u64) -> Vec<u8> {
    let mut memory = vec![0_u8; mb as usize * MIB];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    memory
}

pub(crate) fn flood(bytes: usize, line: impl Fn(&str)) -> Seen {
    let lines = bytes.div_ceil(LINE.len() + 1);
    (0..lines).for_each(|_| line(LINE));
    Ok((lines * (LINE.len() + 1)).into())
}

/// Not inlined and not a loop in disguise: the frame is used before and after the inner call.
#[inline(never)]
pub(crate) fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 128]);
    let below = if depth == 0 { 0 } else { recurse(depth - 1) + 1 };
    black_box(frame);
    below
}

pub(crate) fn hash_order() -> Value {
    let map: HashMap<u32, ()> = (0..16).map(|n| (n, ())).collect();
    map.into_keys().collect()
}
