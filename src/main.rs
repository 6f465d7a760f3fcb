//! The event persister as a server process: command line → configuration → logging → one command.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

use indicatif::MultiProgress;

use crate::cli::{Command, ConfigCommand};
use crate::config::Config;

mod api;
mod archive;
mod check;
mod cli;
mod comparing;
mod config;
mod dead_letters;
mod events;
mod finite_run;
mod guard;
mod health;
mod http;
mod import;
mod logging;
mod memory;
mod metrics;
mod migrate;
mod output;
mod serve;
mod settings;
mod shadow;
mod signals;
mod systemd;
mod trim;
mod verify;
mod wiring;

/// The bodies of the fuzz targets, which play their seeds here.
#[cfg(test)]
#[path = "../tests/fuzz/src/targets/mod.rs"]
mod fuzz;

const DONE: i32 = 0;
/// The work itself failed.
const FAILED: i32 = 1;
/// Wrong usage or configuration: nothing was tried.
const WRONG_USAGE: i32 = 2;

fn main() {
    memory::keep_once();
    // Ended so, rather than by returning, since a thread that waits for a terminal or a pipe would
    // hold the end of the runtime up.
    std::process::exit(run());
}

fn run() -> i32 {
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    let (flags, command) = match cli::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        // Help and version come this way as well, and are no errors.
        Err(error) => error.exit(),
    };
    // These need no configuration.
    let printed = match &command {
        Command::Completions { shell } => Some(output::bytes(&cli::completions(*shell))),
        Command::Manual { folder } => Some(cli::manual(folder)),
        Command::Config(ConfigCommand::Example) => {
            Some(output::bytes(config::example().as_bytes()))
        }
        Command::Config(ConfigCommand::Schema) => Some(output::json(&config::schema())),
        _ => None,
    };
    if let Some(printed) = printed {
        return exit_code(printed.map(|()| true));
    }
    let flags = command.settle(flags);
    let config = match Config::load(&flags) {
        Ok(config) => config,
        Err(error) => {
            output::error(&error.to_string());
            return WRONG_USAGE;
        }
    };
    if let Command::Config(ConfigCommand::Show(output)) = &command {
        return exit_code(settings::show(&config, output.json).map(|()| true));
    }
    let valid = wiring::validate(&config)
        .and_then(|()| guard::validate(&command, &config))
        .and_then(|()| shadow::validate(&command, &config))
        .and_then(|()| import::validate(&command, &config))
        .and_then(|()| serve::validate(&command, &config));
    if let Err(error) = valid {
        output::error(&format!("{error:#}"));
        return WRONG_USAGE;
    }
    exit_code(
        logging::start(&config.log).and_then(|screen| {
            actix_rt::System::new().block_on(execute(&command, &config, &screen))
        }),
    )
}

fn exit_code(done: anyhow::Result<bool>) -> i32 {
    match done {
        Ok(true) => DONE,
        Ok(false) => FAILED,
        Err(error) => {
            output::error(&format!("{error:#}"));
            FAILED
        }
    }
}

/// Runs one command; whether it did all that it was asked.
async fn execute(
    command: &Command,
    config: &Config,
    screen: &MultiProgress,
) -> anyhow::Result<bool> {
    let is_service = matches!(command, Command::Serve(_) | Command::Health { .. });
    if !is_service {
        wiring::follow_the_replicas(config).await;
    }
    let done = execute_one(command, config, screen).await;
    if !is_service && let Some(server) = wiring::server_asked(config) {
        log::info!("asked the database store.server=\"{server}\"");
    }
    done
}

async fn execute_one(
    command: &Command,
    config: &Config,
    screen: &MultiProgress,
) -> anyhow::Result<bool> {
    match command {
        Command::Serve(flags) if flags.shadow => return shadow::run(config, flags).await,
        Command::Serve(_) => serve::run(config).await?,
        Command::Import(flags) => return import::run(config, screen, flags).await,
        Command::Check(output) => return check::run(config, output.json).await,
        Command::Health { ready, timeout } => return health::run(config, *ready, *timeout).await,
        Command::Migrate(flags) => migrate::run(config, *flags).await?,
        Command::Trim(flags) => trim::run(config, *flags).await?,
        Command::DeadLetters(command) => return dead_letters::run(config, screen, command).await,
        Command::Events(command) => events::run(config, command).await?,
        Command::Archive(command) => return archive::run(config, screen, command).await,
        Command::Guard(command) => guard::run(config, command).await?,
        // They were done before, since they need no more than the configuration.
        Command::Completions { .. } | Command::Manual { .. } | Command::Config(_) => {}
        Command::Verify(flags) => return verify::run(config, *flags).await,
    }
    Ok(true)
}
