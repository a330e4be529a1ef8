//! Asks the processor for memory before it is needed, so that searches in a large table wait for it together.
//!
//! The one `unsafe` of the packet path: the instruction has no safe form in the standard library.

#![allow(unsafe_code)] // an instruction of the processor

/// Has every cache line of a value brought near. Nothing else happens, and on other processors nothing at all.
#[inline(always)]
pub(super) fn fetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let start = std::ptr::from_ref(value).cast::<i8>();
        let last = size_of::<T>().saturating_sub(1);
        let mut at = 0;
        while at < last {
            // SAFETY: a prefetch reads nothing that the program can see and faults on no address; this one lies within
            // the value.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(at)) };
            at += 64;
        }
        // What is no longer than its alignment lies on one line.
        if size_of::<T>() > align_of::<T>() {
            // SAFETY: as above; the last octet may lie on one more line.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(last)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
