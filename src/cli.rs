//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use event_persister_actors::store::Period;

mod archive;
mod completions;
mod events;
mod letters;
mod manual;

pub(crate) use archive::ArchiveCommand;
#[cfg(feature = "archive")]
pub(crate) use archive::RestoreFlags;
pub(crate) use completions::completions;
pub(crate) use events::{EventFlags, EventsCommand, Followed, ServiceUrl};
pub(crate) use letters::{DeadLettersCommand, LetterFlags, Letters, Moment};
pub(crate) use manual::manual;

/// Moves event messages to a database as fast as the database can take them, and never loses one.
///
/// Without a command it serves. It takes events in by HTTP and WebSocket, and from Redis or
/// NATS if there is one. It writes them to an SQLite file in the working directory, or to the database that is named.
/// In the environment of a Prefect server it takes the place of Prefect's own persister.
#[derive(Debug, Parser)]
#[command(name = "event-persister", version, after_help = EXAMPLES, after_long_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    flags: Flags,

    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  event-persister                                       serve on 127.0.0.1:4280, write to ./event-persister.db
  event-persister --database-url sqlite:///var/lib/e.db --listen 127.0.0.1:8080
  event-persister --redis-url redis://localhost --database-url postgresql://me@localhost/events
  event-persister --nats-url nats://localhost --database-url postgresql://me@localhost/events
  event-persister import events.jsonl
  event-persister import events.jsonl.gz
  event-persister check --config event-persister.toml
  event-persister dead-letters list

Settings: `key` in a `[section]` of the configuration file is also the environment variable
EVENT_PERSISTER_<SECTION>_<KEY>. Flags come before variables, variables before the file, and the
file before the PREFECT_… variables of a Prefect server. `event-persister config show` lists all
settings, their values and where each came from; `event-persister config example` prints a file with what
each means.

Secrets: everyone on the machine can read the flags of a running process. Give a URL with a password
as a variable, or name a file that holds it: EVENT_PERSISTER_DATABASE_URL_FILE,
EVENT_PERSISTER_REDIS_URL_FILE, EVENT_PERSISTER_NATS_URL_FILE, EVENT_PERSISTER_HTTP_AUTH_STRING_FILE.

Exit codes: 0 done, 1 the work itself failed, 2 wrong usage or configuration, 130 and 143 ended at
once by a second SIGINT or SIGTERM.";

/// The settings that have a flag; `None` where the command line says nothing.
///
/// Their variables are named here for `--help` only. The configuration reads them: there an empty variable is
/// unset, and every value keeps its origin.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings")]
pub(crate) struct Flags {
    /// The configuration file (TOML) [env: EVENT_PERSISTER_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Where events go [default: sqlite://event-persister.db] [env: EVENT_PERSISTER_DATABASE_URL]
    ///
    /// SQLite: sqlite://events.db or sqlite:///var/lib/events.db; all after `sqlite://` is the path.
    /// PostgreSQL: postgresql://user:password@host:5432/database. SQLAlchemy's forms work too:
    /// sqlite+aiosqlite:///relative.db, sqlite+aiosqlite:////absolute.db, postgresql+asyncpg://…
    #[arg(long, value_name = "URL")]
    pub(crate) database_url: Option<String>,

    /// The Redis whose stream is read, beside HTTP; `off` for none [env: EVENT_PERSISTER_REDIS_URL]
    ///
    /// redis://user:password@host:6379/0, or rediss:// for TLS.
    #[arg(long, value_name = "URL")]
    pub(crate) redis_url: Option<String>,

    /// The NATS servers whose stream is read, beside HTTP; `off` for none [env: EVENT_PERSISTER_NATS_URL]
    ///
    /// nats://user:password@host:4222,host:4222, or tls:// for TLS.
    #[cfg(feature = "nats")]
    #[arg(long, value_name = "URL")]
    pub(crate) nats_url: Option<String>,

    /// Where to listen, or `off` [default: 127.0.0.1:4280] [env: EVENT_PERSISTER_LISTEN]
    ///
    /// An address beyond loopback needs an auth string (http.auth_string). Without one it serves
    /// only the two health paths.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,

    /// How many batches are written at the same time [default: 2] [env: EVENT_PERSISTER_WRITERS]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) writers: Option<String>,

    /// The format of log lines: text or json [default: text] [env: EVENT_PERSISTER_LOG_FORMAT]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) log_format: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Take events in and write them, until SIGTERM or SIGINT (the default)
    ///
    /// Events come by `POST /api/events` (a JSON list), by the WebSocket `/api/events/in`, and from
    /// Redis or NATS. A 204 or a pong means that they are committed. `/api/health`, `/api/ready` and
    /// `/metrics` tell how it is. The first signal writes what is held and exits; a second exits at
    /// once.
    #[command(after_help = "Examples:
  event-persister serve
  event-persister serve --redis-url redis://localhost --listen off
  event-persister serve --config /etc/event-persister.toml --writers 4
  event-persister serve --shadow --for 10m")]
    Serve(ServeFlags),

    /// Write events from a file: one JSON object a line, or a JSON list, also compressed
    ///
    /// The first bytes of the file tell its format; gzip and zstd are decompressed. A line or an element
    /// that is no event becomes a dead letter with its position. The rest is stored, and the exit code
    /// is 1. To import a file again changes nothing: known events count as duplicates. While the
    /// database is away it says so and waits. SIGINT or SIGTERM ends it.
    ///
    /// With --to the events are published to a bus instead, for a service that reads it: to Redis in the form
    /// of Prefect's messages, to NATS with the event's id as Nats-Msg-Id. What is no event is logged then.
    #[command(after_help = "Examples:
  event-persister import events.jsonl
  event-persister import events.jsonl --to nats://localhost
  event-persister import events.json.gz --wait 30s
  ssh host cat events.jsonl.zst | event-persister import - --json")]
    Import(ImportFlags),

    /// Show the settings in effect and where each came from, then look for everything that would stop
    /// or hurt the service
    ///
    /// Looks at the configuration, the listener's address, Redis or NATS and its stream, and the database
    /// with its tables, privileges, durability and room. Each finding is ok, a warning or an error,
    /// and says what to do. Also lists which variables of a Prefect server were seen and not taken
    /// over. Changes nothing, and may run beside a service. The exit code is 1 if there is an error.
    #[command(after_help = "Examples:
  event-persister check
  event-persister check --config /etc/event-persister.toml
  event-persister check --json | jq '.findings[] | select(.severity != \"ok\")'")]
    Check(Output),

    /// Ask the service on this machine whether it is alive: a health check for containers
    ///
    /// Give it the settings that the service has, flags included. It asks `/api/health` at the address
    /// where the service listens (at loopback, if that is every address), with TLS if the service has a
    /// certificate. It sends no auth string, and does not verify the certificate. It prints one line.
    /// The exit code is 0, or 1 without the right answer in time.
    #[command(after_help = "Examples:
  event-persister health
  event-persister health --ready --timeout 10s
  event-persister health --listen 127.0.0.1:8080")]
    Health {
        /// Ask whether it is ready (`/api/ready`); it is not while the database is away
        #[arg(long)]
        ready: bool,
        /// How long to wait for the answer
        #[arg(long, value_name = "SPAN", default_value = "4s", value_parser = span)]
        timeout: Duration,
    },

    /// Create or upgrade the database's tables, Prefect's two included
    ///
    /// Not for a database that a Prefect server uses or will use: Prefect's migrations create the two
    /// tables, and fail where they exist.
    ///
    /// With --partition-by it makes both tables partitioned by the time at which events occurred, for
    /// PostgreSQL databases that hold years of events. Services go on writing meanwhile. A run that was cut
    /// off goes on where it stopped when it is started again.
    #[command(after_help = "Examples:
  event-persister migrate
  event-persister migrate --database-url postgresql://owner@localhost/events
  event-persister migrate --partition-by day")]
    Migrate(MigrateFlags),

    /// Delete now the events that retention no longer keeps
    #[command(after_help = "Examples:
  event-persister trim --dry-run
  event-persister trim --json
  event-persister trim --yes
  EVENT_PERSISTER_TRIM_RETENTION=30d event-persister trim")]
    Trim(TrimFlags),

    /// Look at messages that were refused, by the parser or by the database; try them again or remove
    /// them
    #[command(after_help = "Examples:
  event-persister dead-letters list
  event-persister dead-letters show 17
  event-persister dead-letters replay --all")]
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),

    /// Look at what is stored: list, show, follow or export events
    #[command(after_help = "Examples:
  event-persister events list --event 'order.*' --since 1h
  event-persister events tail
  event-persister events export > events.jsonl")]
    #[command(subcommand)]
    Events(EventsCommand),

    /// List, verify or restore what retention has archived
    ///
    /// With archive.url, retention writes events to Parquet files before it removes them.
    #[command(after_help = "Examples:
  event-persister archive list
  event-persister archive verify
  event-persister archive restore --since 90d --until 60d")]
    #[command(subcommand)]
    Archive(ArchiveCommand),

    /// Look at the trim guard in Redis, or remove it
    ///
    /// The guard is a consumer group without consumers. It keeps Prefect's consumers from trimming
    /// entries that are not committed yet.
    #[command(after_help = "Examples:
  event-persister guard show
  event-persister guard remove")]
    #[command(subcommand)]
    Guard(GuardCommand),

    /// Print a configuration file to start from, its JSON schema, or what is in effect
    #[command(after_help = "Examples:
  event-persister config example > event-persister.toml
  event-persister config schema > event-persister.schema.json
  event-persister config show --config event-persister.toml")]
    #[command(subcommand)]
    Config(ConfigCommand),

    /// Print the completion script for a shell
    #[command(after_help = "Examples:
  event-persister completions bash > /etc/bash_completion.d/event-persister
  event-persister completions zsh > \"${fpath[1]}/_event-persister\"
  event-persister completions fish > ~/.config/fish/completions/event-persister.fish")]
    Completions {
        /// The shell
        #[arg(value_parser = completions::shell())]
        shell: clap_complete::Shell,
    },

    /// Write the manual's pages, one to each command, into a folder
    #[command(after_help = "Examples:
  event-persister manual ~/.local/share/man/man1")]
    Manual {
        /// The folder, which is made if it is missing
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
    },

    /// Compare stream, tables and dead letters, content included
    ///
    /// Every acknowledged entry that is still in the stream must be in the database with the same
    /// content, or a dead letter (else: missing, differing). Every event in the database must have all
    /// of its resources, once, as its own columns say (else: half-written, doubled, differing). Prefect
    /// must be able to read it (else: unreadable). Pending and unread entries are counted, and so are
    /// events that retention may have deleted (expired).
    ///
    /// Changes nothing, and runs beside services at work: it looks once more, six seconds later, at
    /// what looks wrong. Without a bus it looks at the database alone. The exit code is 1 if anything is
    /// wrong.
    ///
    /// It reads both tables, and sends each entry of the stream to the database once more, in short
    /// transactions. One question, about resources without an event, keeps a snapshot open while it
    /// reads that table. On millions of rows give --since. Some megabytes of the stream are in memory at
    /// a time.
    #[command(after_help = "Examples:
  event-persister verify
  event-persister verify --since 1h --json")]
    Verify(VerifyFlags),
}

fn bus_url(text: &str) -> Result<String, String> {
    let schemes = [
        "redis://",
        "rediss://",
        "unix://",
        "redis+sentinel://",
        "rediss+sentinel://",
        "nats://",
        "tls://",
    ];
    let is_known = schemes.iter().any(|scheme| text.starts_with(scheme));
    if is_known || text == CONFIGURED_BUS {
        return Ok(text.to_owned());
    }
    Err(format!(
        "no bus: give redis://…, nats://… or `{CONFIGURED_BUS}` for the one that is configured"
    ))
}

fn span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "not a span of time: give one such as 30s, 15m, 2h or 7d".to_owned())
}

fn period() -> impl TypedValueParser<Value = Period> {
    PossibleValuesParser::new(["day", "week", "month"]).try_map(|name| name.parse::<Period>())
}

/// The word for the bus that the configuration names.
pub(crate) const CONFIGURED_BUS: &str = "bus";

impl Command {
    /// The flags with what this command makes of them: a bus to publish to is the one bus.
    pub(crate) fn settle(&self, flags: Flags) -> Flags {
        let Self::Import(ImportFlags { to: Some(to), .. }) = self else {
            return flags;
        };
        #[cfg(feature = "nats")]
        let off = || Some("off".to_owned());
        match to.split_once(':').map(|(scheme, _)| scheme) {
            None if to == CONFIGURED_BUS => flags,
            #[cfg(feature = "nats")]
            Some("nats" | "tls") => Flags {
                nats_url: Some(to.clone()),
                redis_url: off(),
                ..flags
            },
            _ => Flags {
                redis_url: Some(to.clone()),
                #[cfg(feature = "nats")]
                nats_url: off(),
                ..flags
            },
        }
    }
}

impl Default for Command {
    fn default() -> Self {
        Self::Serve(ServeFlags::default())
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct ServeFlags {
    /// Write nothing, and compare what would be written with the rows that Prefect's persister writes
    ///
    /// Reads the stream with a consumer group of its own, which is removed at the end. Looks at the
    /// tables some time after Prefect acknowledged an event. Takes no events by HTTP. The exit code is
    /// 1 if rows differ, or if Prefect stored what would be refused here.
    #[arg(long)]
    pub(crate) shadow: bool,
    /// With --shadow: read for so long, such as 10m, then compare the rest and exit
    #[arg(
        long = "for",
        value_name = "SPAN",
        value_parser = span,
        requires = "shadow"
    )]
    pub(crate) span: Option<Duration>,
    /// With --shadow: show at most so many findings of each kind; all are counted [default: 20]
    #[arg(long, value_name = "NUMBER", requires = "shadow")]
    pub(crate) limit: Option<usize>,
    /// With --shadow: print the summary as one JSON document
    #[arg(long, requires = "shadow")]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct ImportFlags {
    /// The file, or `-` for standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Publish to this bus instead of storing: redis://…, nats://…, or `bus` for the one that is configured
    ///
    /// All but its address comes from the sections `redis` and `nats`, such as the stream's name.
    #[arg(long, value_name = "URL", value_parser = bus_url)]
    pub(crate) to: Option<String>,
    /// How long to wait for a database or a bus that cannot be written to [default: for ever]
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub(crate) wait: Option<Duration>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct MigrateFlags {
    /// Partition the tables: how much time one partition holds
    #[arg(long, value_name = "PERIOD", value_parser = period())]
    pub(crate) partition_by: Option<Period>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct TrimFlags {
    /// Count what would be deleted, and delete nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Also delete events without resources and resources without an event
    ///
    /// Prefect's own persister leaves them behind when it crashes. PostgreSQL only. A dry run counts
    /// them.
    #[arg(long)]
    pub(crate) remove_half_events: bool,
    /// Confirm that the clock is right, and delete even if most events would go
    ///
    /// Without this flag nothing is deleted if the last pass was more than a day ago and more than
    /// half of the events would go: the clock may be wrong. Needed once.
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct VerifyFlags {
    /// Look only at events in the tables that occurred within this time, such as 15m or 7d
    /// [default: all]
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub(crate) since: Option<Duration>,
    /// Show at most so many findings; all are counted
    #[arg(long, value_name = "NUMBER", default_value = "20")]
    pub(crate) limit: usize,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print a configuration file of all settings, commented out, each with its default and its meaning
    #[command(after_help = "Examples:
  event-persister config example > event-persister.toml")]
    Example,
    /// Print the JSON schema of the configuration file, by which editors check and complete it
    #[command(after_help = "Examples:
  event-persister config schema > event-persister.schema.json")]
    Schema,
    /// Print every setting, the value in effect and where it came from; secrets are masked
    #[command(after_help = "Examples:
  event-persister config show
  event-persister config show --json | jq '.[] | select(.from != \"default\")'")]
    Show(Output),
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum GuardCommand {
    /// Show the positions of the guard and of the consumer group, and the length of the stream
    #[command(after_help = "Examples:
  event-persister guard show
  event-persister guard show --redis-url redis://localhost --json")]
    Show(Output),
    /// Remove the guard, once event-persister is stopped for good
    ///
    /// A guard that nobody moves keeps every entry, and the stream grows until Redis is full.
    #[command(after_help = "Examples:
  event-persister guard remove")]
    Remove(Output),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct Output {
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

const ALL: &[&str] = &[
    "config",
    "database_url",
    "redis_url",
    "nats_url",
    "listen",
    "writers",
    "log_format",
];
const WITH_DATABASE: &[&str] = &["config", "database_url", "log_format"];

/// Which settings a command uses, and its own commands with it; `serve` and `check` use all.
const OBEYED: [(&str, &[&str]); 16] = [
    (
        "import",
        &[
            "config",
            "database_url",
            "redis_url",
            "nats_url",
            "writers",
            "log_format",
        ],
    ),
    ("health", &["config", "listen"]),
    ("migrate", WITH_DATABASE),
    ("trim", WITH_DATABASE),
    ("dead-letters", WITH_DATABASE),
    (
        "dead-letters replay",
        &["config", "database_url", "writers", "log_format"],
    ),
    ("events", WITH_DATABASE),
    ("archive", WITH_DATABASE),
    (
        "archive restore",
        &["config", "database_url", "writers", "log_format"],
    ),
    ("guard", &["config", "redis_url", "log_format"]),
    (
        "verify",
        &[
            "config",
            "database_url",
            "redis_url",
            "nats_url",
            "log_format",
        ],
    ),
    ("config example", &[]),
    ("config schema", &[]),
    ("completions", &[]),
    ("manual", &[]),
    ("help", &[]),
];

/// The command line, whose help lists with each command what it obeys. All flags are taken
/// everywhere, since one command line is often made from another.
fn command() -> clap::Command {
    let mut cli = Cli::command().mut_args(|flag| flag.global(true));
    // Only now the commands have the flags that stand before them.
    cli.build();
    hide_unused(cli, "", ALL)
}

fn hide_unused(command: clap::Command, path: &str, inherited: &[&str]) -> clap::Command {
    let own = OBEYED.iter().find(|(name, _)| *name == path);
    let obeyed = own.map_or(inherited, |(_, obeyed)| obeyed);
    let is_unused = |id: &str| ALL.contains(&id) && !obeyed.contains(&id);
    command
        .mut_args(|flag| match is_unused(flag.get_id().as_str()) {
            true => flag.hide(true),
            false => flag,
        })
        .mut_subcommands(|nested| {
            let path = format!("{path} {}", nested.get_name());
            hide_unused(nested, path.trim_start(), obeyed)
        })
}

/// Reads the command line; the error is clap's own, help and version included.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(Flags, Command), clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    let cli = Cli::from_arg_matches(&matches)?;
    Ok((cli.flags, cli.command.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> (Flags, Command) {
        parse(line.split(' ').map(OsString::from)).unwrap()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    /// All commands, those of commands too.
    fn all_commands(command: &clap::Command) -> Vec<&clap::Command> {
        let nested = command.get_subcommands().flat_map(all_commands);
        std::iter::once(command).chain(nested).collect()
    }

    #[test]
    fn every_command_has_examples_that_are_right() {
        let cli = Cli::command();
        for command in all_commands(&cli) {
            let name = command.get_name();
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_else(|| panic!("{name} has no examples"));
            let examples: Vec<&str> = help
                .lines()
                .filter_map(|line| line.strip_prefix("  "))
                .filter_map(|line| line.split_once("event-persister").map(|(_, rest)| rest))
                .map(|rest| rest.split(['|', '>']).next().unwrap_or_default())
                .map(|rest| rest.split("   ").next().unwrap_or_default())
                .collect();
            assert!(!examples.is_empty(), "{name}");
            for example in examples {
                let words = ["event-persister"].into_iter();
                let words = words.chain(example.split_whitespace());
                assert!(
                    parse(words.map(OsString::from)).is_ok(),
                    "{name}: {example}"
                );
            }
        }
    }

    #[test]
    fn the_help_of_a_command_lists_what_it_obeys_and_nothing_else() {
        let help = |words: &[&str]| {
            let words = ["event-persister"].iter().chain(words).chain(&["--help"]);
            let error = parse(words.map(OsString::from)).unwrap_err();
            error.to_string()
        };
        const SETTINGS: [&str; 7] = [
            "--config",
            "--database-url",
            "--redis-url",
            "--nats-url",
            "--listen",
            "--writers",
            "--log-format",
        ];
        let listed = |words: &[&str]| -> Vec<&str> {
            let help = help(words);
            let is_listed = |flag: &&str| help.contains(&format!(" {flag} <"));
            SETTINGS.into_iter().filter(is_listed).collect()
        };
        for all in [&[][..], &["serve"], &["check"]] {
            assert_eq!(listed(all), SETTINGS, "{all:?}");
        }
        assert_eq!(listed(&["completions"]), [""; 0]);
        assert_eq!(listed(&["config", "show"]), SETTINGS);
        assert_eq!(listed(&["config", "example"]), [""; 0]);
        assert_eq!(listed(&["health"]), ["--config", "--listen"]);
        for guard in [&["guard"][..], &["guard", "show"], &["guard", "remove"]] {
            assert_eq!(
                listed(guard),
                ["--config", "--redis-url", "--log-format"],
                "{guard:?}"
            );
        }
        assert!(listed(&["dead-letters", "replay"]).contains(&"--writers"));
        for looking in [&["dead-letters"][..], &["dead-letters", "list"]] {
            assert_eq!(
                listed(looking),
                ["--config", "--database-url", "--log-format"]
            );
        }
        // Each command is looked at, a new one too.
        for command in command().get_subcommands() {
            let name = command.get_name();
            let knows_all = ["serve", "check", "config"].contains(&name);
            let is_named = OBEYED.iter().any(|(obeying, _)| *obeying == name);
            assert!(knows_all != is_named, "{name}");
        }
        assert!(help(&["guard", "show"]).contains("--json"));
    }

    #[test]
    fn without_a_command_it_serves() {
        let (flags, command) = parse_line("event-persister --writers 4");
        assert_eq!(command, Command::default());
        assert_eq!(flags.writers.as_deref(), Some("4"));
        assert_eq!(flags.listen, None);
    }

    #[test]
    fn what_is_about_a_shadow_needs_one() {
        let (_, command) = parse_line("event-persister serve --shadow --for 10m --json");
        let Command::Serve(flags) = command else {
            panic!("it serves");
        };
        assert_eq!(flags.span, Some(Duration::from_secs(600)));
        for flag in ["--for=10m", "--limit=5", "--json"] {
            assert!(parse(["event-persister", "serve", flag].map(OsString::from)).is_err());
        }
    }

    #[test]
    fn settings_stand_before_or_behind_the_command() {
        for line in [
            "event-persister --listen off dead-letters list",
            "event-persister dead-letters --listen off list",
            "event-persister dead-letters list --listen off",
        ] {
            let (flags, _) = parse_line(line);
            assert_eq!(flags.listen.as_deref(), Some("off"), "{line}");
        }
    }

    #[test]
    fn standard_input_is_a_hyphen() {
        let (_, command) = parse_line("event-persister import -");
        assert!(matches!(command, Command::Import(flags) if flags.file.as_os_str() == "-"));
    }
}
