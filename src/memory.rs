//! How this process gives memory back.
//!
//! This file holds all unsafe code of the program.
#![allow(unsafe_code)]

/// Buffers of at least this many bytes are given back as soon as they are free. A batch on its way to
/// PostgreSQL takes several of some MiB.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 128 << 10;

/// Has glibc give large buffers back at once.
///
/// By itself it keeps them, more of them the more threads there are: 71 MiB rather than 50 with two
/// writers at full speed. Asking the kernel anew costs less than can be measured.
pub(crate) fn give_large_buffers_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call takes two numbers and touches nothing of ours; it is made before there are other
    // threads. What it answers does not matter: refused, all stays as it was.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}
