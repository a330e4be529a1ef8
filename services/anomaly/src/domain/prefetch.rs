//! Fetching memory ahead of its use.

/// Octets of a line of the cache.
const LINE: usize = 64;
/// Lines fetched of a large value at most; the processor follows a longer row of lines by itself.
const MOST_LINES: usize = 9;

/// Asks for a value to be brought near. Nothing can be observed of it but time.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let lines = size_of::<T>().div_ceil(LINE).clamp(1, MOST_LINES);
        for line in 0..lines {
            let address = std::ptr::from_ref(value).cast::<i8>().wrapping_add(line * LINE);
            // SAFETY: a prefetch reads nothing that the program sees and faults nowhere, whatever the address; the
            // instruction is part of every x86-64 (SSE).
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
