//! The event persister as a server process: command line → configuration → logging → one command.

#![allow(dead_code, reason = "the commands that use all of it come next")]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

use std::process::ExitCode;

mod cli;
mod config;
mod logging;
mod output;

/// Wrong usage or configuration, as opposed to 1: the work itself failed.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let (flags, command) = match cli::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(error) => error.exit(),
    };
    let config = match config::Config::load(&flags) {
        Ok(config) => config,
        Err(error) => {
            output::error(&error.to_string());
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let _progress = match logging::start(&config.log) {
        Ok(progress) => progress,
        Err(error) => {
            output::error(&format!("{error:#}"));
            return ExitCode::FAILURE;
        }
    };
    output::error(&format!("{command:?} is not there yet"));
    ExitCode::FAILURE
}
