//! End-to-end and contract tests: one binary.

mod store_contract;
mod support;
