//! The exact moments at which tests make something break.
//!
//! Only a build with the feature `failpoints`, which is for tests, has them; what happens where is
//! then told by the variable `FAILPOINTS`, in the syntax of the crate `fail`: `return` ends the
//! process on the spot, as `kill -9` would; `panic`, `sleep` and `pause` do what they say.

#[cfg(feature = "failpoints")]
pub(crate) fn pass(moment: &'static str) {
    fail::fail_point!(moment, |_| std::process::abort());
}

/// Whether a test has set one of the moments, to `return`.
#[cfg(all(feature = "failpoints", feature = "archive"))]
pub(crate) fn is_set(moment: &'static str) -> bool {
    fail::fail_point!(moment, |_| true);
    false
}

#[cfg(all(not(feature = "failpoints"), feature = "archive"))]
#[inline(always)]
pub(crate) fn is_set(_: &'static str) -> bool {
    false
}

/// Passes one of the moments: nothing happens in a build that is not for tests.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) fn pass(_: &'static str) {}
