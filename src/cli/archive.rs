//! The command line of `archive`.

use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use super::{Moment, Output, span};

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum ArchiveCommand {
    /// List the files of the archive, as the database knows them
    #[command(after_help = "Examples:
  event-persister archive list
  event-persister archive list --json | jq '[.[].events] | add'")]
    List(Output),
    /// Read every file, and compare it with what the database knows of it
    ///
    /// Compares sizes, checksums and numbers of events, and looks for files that are missing and for files
    /// that the database does not know. Changes nothing. The exit code is 1 if anything is wrong.
    #[command(after_help = "Examples:
  event-persister archive verify
  event-persister archive verify --json")]
    Verify(Output),
    /// Store archived events again, in this database or in another
    ///
    /// Reads the files that archive.url names, and sends their events through the same pipeline as the
    /// service's. An event that is stored already stays as it is. The archive stays as it is too: retention
    /// removes events that were restored into their own database with its next pass, and does not archive
    /// them twice. To keep them, restore them into another database (--database-url), or keep events longer
    /// (trim.retention).
    #[command(after_help = "Examples:
  event-persister archive restore --since 2026-01-01T00:00:00Z --until 2026-02-01T00:00:00Z
  event-persister archive restore --event order.paid --database-url sqlite://january.db --json")]
    Restore(RestoreFlags),
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct RestoreFlags {
    /// Only events that occurred at this time or later: 2026-01-31T12:00:00Z, or a span before now: 30d
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Moment>,
    /// Only events that occurred before this time
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<Moment>,
    /// Only events of this name. Given twice, either
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) event: Vec<String>,
    /// How long to wait for a database that cannot be written to [default: for ever]
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub(crate) wait: Option<Duration>,
    #[command(flatten)]
    pub(crate) output: Output,
}
