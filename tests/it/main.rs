//! End-to-end and contract tests: one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod store_contract;
mod support;
