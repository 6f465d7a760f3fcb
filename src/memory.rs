//! How this process keeps memory.
//!
//! This file holds all unsafe code of the program.
#![allow(unsafe_code)]

/// Buffers up to this size come from memory that is kept. A batch on its way to PostgreSQL takes several
/// of some MiB; to ask the kernel for them anew costs a fifth of all that this process works.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: libc::c_int = 32 << 20;

/// Has glibc keep freed memory, and keep it once for all threads.
///
/// By itself it keeps some for each thread, and never uses it for another. No thread here allocates so
/// much that they would wait for each other.
pub(crate) fn keep_once() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the calls take two numbers and touch nothing of ours; they are made before there are other
    // threads. What they answer does not matter: refused, all stays as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}
