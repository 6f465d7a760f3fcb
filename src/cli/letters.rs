//! The command line of `dead-letters`.

use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser as _};
use clap::{ArgGroup, Args, Subcommand};
use event_persister_actors::store::Stage;
use strum::VariantNames as _;

use super::Output;

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// List dead letters, the newest first
    #[command(after_help = "Examples:
  event-persister dead-letters list
  event-persister dead-letters list --stage store --since 2h
  event-persister dead-letters list --before 1200 --limit 20 --json")]
    List {
        /// List at most so many
        #[arg(long, value_name = "NUMBER", default_value = "100")]
        limit: NonZeroUsize,
        /// Only letters with a smaller id: give the last id of the page before
        #[arg(long, value_name = "ID")]
        before: Option<i64>,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        filter: LetterFlags,
    },
    /// Show one dead letter with its message (in hexadecimal if it is not UTF-8)
    ///
    /// Control characters are escaped, since a terminal would obey them. --raw and --json print the
    /// message as it came.
    #[command(after_help = "Examples:
  event-persister dead-letters show 17
  event-persister dead-letters show 17 --raw > message.json
  event-persister dead-letters show 17 --json")]
    Show {
        /// Its id, as `list` shows it
        id: i64,
        /// Print the bytes of the message and nothing else
        #[arg(long, conflicts_with = "json")]
        raw: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Send dead letters through the pipeline again, and remove those that are stored
    ///
    /// Cure the cause first: raise a limit, drop an index, correct a trigger. A letter that is refused
    /// again stays, with one attempt more and the newest reason; the exit code is 1 then. Works beside a
    /// service, and needs no Redis.
    #[command(after_help = "Examples:
  event-persister dead-letters replay 17 18
  event-persister dead-letters replay --code 54000 --since 2h
  event-persister dead-letters replay --all --json")]
    Replay {
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        letters: Letters,
    },
    /// Remove dead letters for good, with their messages
    #[command(after_help = "Examples:
  event-persister dead-letters purge 17 18
  event-persister dead-letters purge --stage parse --until 30d --yes
  event-persister dead-letters purge --all")]
    Purge {
        /// Do not ask. Needed if standard input is no terminal
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        letters: Letters,
    },
}

/// The letters that a command works on; at least one of the arguments is needed.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(group = ArgGroup::new("letters").required(true).multiple(true).args([
    "ids", "all", "source", "stage", "reason", "code", "since", "until",
]))]
pub(crate) struct Letters {
    /// Ids of letters, as `list` shows them
    #[arg(
        value_name = "ID",
        conflicts_with_all = ["all", "source", "stage", "reason", "code", "since", "until"]
    )]
    pub(crate) ids: Vec<i64>,
    /// All letters, or all that match the other flags
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) filter: LetterFlags,
}

/// What the letters have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Which letters")]
pub(crate) struct LetterFlags {
    /// Only letters from this source, such as redis, nats, http or file
    // An empty name would mean every letter, and nobody asks for them in this way.
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) source: Option<String>,
    /// Only letters that the parser refused (parse) or the database refused (store)
    #[arg(
        long,
        value_name = "STAGE",
        value_parser = PossibleValuesParser::new(Stage::VARIANTS).try_map(|name| name.parse::<Stage>())
    )]
    pub(crate) stage: Option<Stage>,
    /// Only letters with exactly this text in their reason
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) reason: Option<String>,
    /// Only letters with this code of the database, such as 54000 or SQLITE_CONSTRAINT_CHECK
    #[arg(long, value_name = "SQLSTATE", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) code: Option<String>,
    /// Only letters that came last at this time or later: 2026-01-31T12:00:00Z, or a span before now: 2h
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Moment>,
    /// Only letters that came last before this time
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<Moment>,
}

/// A time, or a span before now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    At(DateTime<Utc>),
    Ago(Duration),
}

impl Moment {
    pub(crate) fn at(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::At(at) => at,
            Self::Ago(span) => TimeDelta::from_std(span)
                .ok()
                .and_then(|span| now.checked_sub_signed(span))
                .unwrap_or(DateTime::<Utc>::MIN_UTC),
        }
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(at) = DateTime::parse_from_rfc3339(text) {
            return Ok(Self::At(at.to_utc()));
        }
        humantime::parse_duration(text).map(Self::Ago).map_err(|_| {
            "neither a time such as 2026-01-31T12:00:00Z nor a span before now such as 2h or 30d"
                .to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::{Command, parse};

    fn parsed(line: &str) -> Option<DeadLettersCommand> {
        let words = format!("event-persister dead-letters {line}");
        let (_, command) = parse(words.split(' ').map(OsString::from)).ok()?;
        match command {
            Command::DeadLetters(command) => Some(command),
            _ => None,
        }
    }

    #[test]
    fn some_letters_must_be_meant() {
        for command in ["replay", "purge"] {
            for wrong in [
                "",
                " --yes",
                " 7 --all",
                " 7 --stage parse",
                " --stage both",
            ] {
                assert_eq!(parsed(&format!("{command}{wrong}")), None, "{wrong}");
            }
            for right in ["7", "7 8", "--all", "--code 54000", "--all --since 2h"] {
                assert!(parsed(&format!("{command} {right}")).is_some(), "{right}");
            }
        }
        assert!(parsed("list").is_some());
    }

    #[test]
    fn flags_arrive_as_what_they_mean() {
        let Some(DeadLettersCommand::List { filter, .. }) =
            parsed("list --stage store --since 2026-01-31T13:00:00+01:00 --until 90m")
        else {
            panic!("not understood");
        };
        let now: DateTime<Utc> = "2026-02-01T00:00:00Z".parse().unwrap();
        let at = |moment: Option<Moment>| moment.unwrap().at(now).to_rfc3339();
        assert_eq!(filter.stage, Some(Stage::Store));
        assert_eq!(at(filter.since), "2026-01-31T12:00:00+00:00");
        assert_eq!(at(filter.until), "2026-01-31T22:30:00+00:00");
    }

    #[test]
    fn a_span_longer_than_time_is_the_beginning_of_time() {
        let moment: Moment = "500000000years".parse().unwrap();
        assert_eq!(moment.at(DateTime::UNIX_EPOCH), DateTime::<Utc>::MIN_UTC);
        "yesterday".parse::<Moment>().unwrap_err();
    }
}
