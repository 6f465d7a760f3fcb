//! End-to-end and contract tests: one binary.

mod cli;
mod support;
