//! The command line of `events`.

use std::num::NonZeroUsize;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use uuid::Uuid;

use super::Output;
use super::letters::Moment;

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum EventsCommand {
    /// List stored events, the newest first
    #[command(after_help = "Examples:
  event-persister events list
  event-persister events list --event 'order.*' --since 1h
  event-persister events list --text timeout --limit 1000 --jsonl")]
    List {
        /// List at most so many
        #[arg(long, value_name = "NUMBER", default_value = "50")]
        limit: NonZeroUsize,
        /// The oldest first
        #[arg(long)]
        oldest_first: bool,
        /// Print one JSON document a line, an event each
        #[arg(long, conflicts_with = "json")]
        jsonl: bool,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        filter: EventFlags,
    },
    /// Show one stored event
    #[command(after_help = "Examples:
  event-persister events show 0196f0a2-5e0b-7c1d-9a53-0242ac120002")]
    Show {
        /// Its id
        id: Uuid,
        #[command(flatten)]
        output: Output,
    },
    /// Print events as they are stored, whoever stores them, until SIGINT (Ctrl-C)
    ///
    /// Looks into the database twice a second, and needs no service.
    #[command(after_help = "Examples:
  event-persister events tail
  event-persister events tail --event 'prefect.flow-run.*' --jsonl")]
    Tail {
        /// Print one JSON document a line, an event each
        #[arg(long)]
        jsonl: bool,
        #[command(flatten)]
        filter: EventFlags,
    },
    /// Print all events, the oldest first, one a line, as `import` takes them back
    ///
    /// Any number of them needs no more memory than a page.
    #[command(after_help = "Examples:
  event-persister events export > events.jsonl
  event-persister events export --since 30d --event 'order.*' | zstd > orders.jsonl.zst")]
    Export {
        #[command(flatten)]
        filter: EventFlags,
    },
}

/// Conditions on the events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Which events")]
pub(crate) struct EventFlags {
    /// Only events of this name; one that ends with * means all that begin so. Given twice, either
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) event: Vec<String>,
    /// Only events that this resource is involved in; * at its end as above
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) resource: Vec<String>,
    /// Only events in which these words are found: one of them, +this too, -that not, "a phrase"
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub(crate) text: Option<String>,
    /// Only events that occurred at this time or later: 2026-01-31T12:00:00Z, or a span before now: 2h
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Moment>,
    /// Only events that occurred at this time or before
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<Moment>,
}
