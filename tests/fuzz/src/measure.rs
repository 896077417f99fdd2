//! What a call may cost: bytes held at once and processor time, both of its own thread alone.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

thread_local! {
    /// Bytes that this thread took and did not give back; negative when it gives back what others took.
    static HELD: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: i64) {
    let held = HELD.get() + bytes;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

// SAFETY: every call goes to the system's allocator as it came; the counters hold no pointer and allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as the caller of this function promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as the caller of this function promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: as the caller of this function promises.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(signed(bytes) - signed(layout.size()));
        // SAFETY: as the caller of this function promises.
        unsafe { System.realloc(block, layout, bytes) }
    }
}

/// Makes a call that may hold `bytes_max` more than before at once, and take `time_max` of the processor.
///
/// # Panics
/// When it takes more.
pub fn within<T>(what: &str, bytes_max: usize, time_max: Duration, call: impl FnOnce() -> T) -> T {
    let (before, begun) = (HELD.get(), thread_time());
    PEAK.set(before);
    let done = call();
    let (bytes, time) = (PEAK.get() - before, thread_time() - begun);
    assert!(bytes <= signed(bytes_max), "{what} held {bytes} bytes at once, {bytes_max} are allowed");
    assert!(time <= time_max, "{what} took {time:?} of the processor, {time_max:?} are allowed");
    done
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_holds_or_takes_too_much_is_caught() {
        let long = Duration::from_secs(60);
        let hold = |bytes: usize| within("a call", 5000, long, || drop(std::hint::black_box(vec![1_u8; bytes])));
        hold(4000);
        assert!(std::panic::catch_unwind(|| hold(6000)).is_err());
        let spin = || {
            let until = thread_time() + Duration::from_millis(20);
            while thread_time() < until {}
        };
        assert!(std::panic::catch_unwind(|| within("a call", 5000, Duration::from_millis(10), spin)).is_err());
    }
}
