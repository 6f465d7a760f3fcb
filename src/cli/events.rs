//! The command line of `events`.

use std::num::NonZeroUsize;
use std::str::FromStr;

use actix_web::http::Uri;
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
    /// Looks into the database twice a second, and needs no service. With --url a service tells them, the
    /// moment that they are stored; it is asked again when it is gone for a while.
    #[command(after_help = "Examples:
  event-persister events tail
  event-persister events tail --event 'prefect.flow-run.*' --jsonl
  event-persister events tail --url
  event-persister events tail --url https://events.example.com --text timeout")]
    Tail {
        /// Follow a running service: the one at this address or, without an address, the one that these
        /// settings configure. It is sent http.auth_string
        #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "")]
        url: Option<Followed>,
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

/// A service to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Followed {
    /// The one that is configured, on this machine.
    Configured,
    At(ServiceUrl),
}

impl FromStr for Followed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Ok(Self::Configured),
            url => Ok(Self::At(url.parse()?)),
        }
    }
}

/// The address of a service, perhaps behind a proxy that has put it under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceUrl {
    pub(crate) encrypted: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Without a slash at its end.
    pub(crate) path: String,
}

impl FromStr for ServiceUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || "give a URL, such as http://localhost:4280".to_owned();
        let url: Uri = text.parse().map_err(|_| wrong())?;
        let encrypted = match url.scheme_str() {
            Some("http" | "ws") => false,
            Some("https" | "wss") => true,
            _ => return Err(wrong()),
        };
        let host = url
            .host()
            .filter(|host| !host.is_empty())
            .ok_or_else(wrong)?;
        let authority = url.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err(
                "a secret in it is seen by everybody who lists processes: set http.auth_string \
                 (EVENT_PERSISTER_HTTP_AUTH_STRING) instead"
                    .to_owned(),
            );
        }
        Ok(Self {
            encrypted,
            host: host.to_owned(),
            port: url.port_u16().unwrap_or(if encrypted { 443 } else { 80 }),
            path: url.path().trim_end_matches('/').to_owned(),
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_by_a_url_without_a_secret() {
        let parts = |text: &str| {
            let url = text.parse::<ServiceUrl>()?;
            let scheme = if url.encrypted { "https" } else { "http" };
            Ok::<_, String>(format!("{scheme} {} {} {}", url.host, url.port, url.path))
        };
        for (text, expected) in [
            ("http://localhost:4280", "http localhost 4280 "),
            ("http://[::1]:4280/", "http [::1] 4280 "),
            ("ws://10.0.0.1", "http 10.0.0.1 80 "),
            ("https://a.example/events/", "https a.example 443 /events"),
        ] {
            assert_eq!(parts(text).unwrap(), expected);
        }
        for text in [
            "localhost:4280",
            "ftp://a",
            "http://",
            "/events",
            "http://a b",
        ] {
            assert!(
                parts(text).unwrap_err().contains("http://localhost:4280"),
                "{text}"
            );
        }
        let secret = parts("http://ada:hush@localhost").unwrap_err();
        assert!(
            secret.contains("http.auth_string") && !secret.contains("hush"),
            "{secret}"
        );
    }
}
