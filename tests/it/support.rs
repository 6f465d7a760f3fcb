//! Shared helpers.

#[cfg(feature = "service-tests")]
pub(crate) mod logs;
#[cfg(feature = "service-tests")]
pub(crate) mod postgres;
#[cfg(feature = "service-tests")]
pub(crate) mod redis;
