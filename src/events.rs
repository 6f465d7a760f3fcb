//! The stored events, for somebody at a terminal or a program behind a pipe: one file a command.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use event_persister_actors::reader::{
    AnyResourceFilter, EventFilter, EventReader, MAX_PAGE, Occurred, Order, Part, StoredEvent,
};
use event_persister_actors::store::StoreError;

use crate::cli::{EventFlags, EventsCommand};
use crate::config::Config;
use crate::{output, wiring};
use document::Head;

mod document;
mod follow;
mod known;
mod list;
mod tail;

/// Runs one of the commands.
pub(crate) async fn run(config: &Config, command: &EventsCommand) -> anyhow::Result<()> {
    let done = run_one(config, command).await;
    match output::or_unread(done) {
        Err(error) if error.is::<StoreError>() && wiring::has_no_tables(config).await => bail!(
            "cannot read the events: there are no tables; run `event-persister migrate` or, if the \
             database is Prefect's, start Prefect's server, which makes them"
        ),
        done => done,
    }
}

async fn run_one(config: &Config, command: &EventsCommand) -> anyhow::Result<()> {
    let reader = wiring::reader(config);
    match command {
        EventsCommand::List {
            limit,
            oldest_first,
            jsonl,
            output,
            filter,
        } => {
            let mut filter = filter_of(filter)?;
            filter.order = if *oldest_first {
                Order::Asc
            } else {
                Order::Desc
            };
            let form = match (output.json, jsonl) {
                (true, _) => list::Form::Json,
                (_, true) => list::Form::Lines,
                _ => list::Form::Table,
            };
            list::run(&*reader, &filter, limit.get(), form).await
        }
        EventsCommand::Show { id, .. } => {
            let event = reader.event(*id).await.context("cannot read the event")?;
            let Some(event) = event else {
                bail!("there is no event {id}");
            };
            output::line(&document::indented(&document::line(&event)))
        }
        EventsCommand::Tail { url, jsonl, filter } => match url {
            None => tail::run(reader, filter_of(filter)?, *jsonl).await,
            Some(url) => follow::run(config, url, filter_of(filter)?, *jsonl).await,
        },
        EventsCommand::Export { filter } => {
            let mut filter = filter_of(filter)?;
            filter.order = Order::Asc;
            each(&*reader, &filter, usize::MAX, |events| {
                let mut lines = String::new();
                for event in events {
                    lines.push_str(&document::line(event));
                    lines.push('\n');
                }
                output::part(lines.as_bytes())
            })
            .await
        }
    }
}

/// Flags that ask for nothing mean all events of all time.
fn filter_of(flags: &EventFlags) -> anyhow::Result<EventFilter> {
    let now = wiring::clock().now();
    let at = |moment: Option<crate::cli::Moment>, otherwise: DateTime<Utc>| {
        moment.map_or(otherwise, |moment| moment.at(now))
    };
    let mut filter = EventFilter::all(now);
    filter.occurred = Occurred {
        since: at(flags.since, DateTime::<Utc>::MIN_UTC),
        until: at(flags.until, DateTime::<Utc>::MAX_UTC),
    };
    (filter.event.prefix, filter.event.name) = split(&flags.event);
    if !filter.event.prefix.is_empty() && !filter.event.name.is_empty() {
        bail!("give --event either whole names or beginnings with a *, not both");
    }
    let (id_prefix, id) = split(&flags.resource);
    if !id_prefix.is_empty() && !id.is_empty() {
        bail!("give --resource either whole ids or beginnings with a *, not both");
    }
    if !flags.resource.is_empty() {
        filter.any_resource = vec![AnyResourceFilter {
            id,
            id_prefix,
            ..AnyResourceFilter::default()
        }];
    }
    filter.text.clone_from(&flags.text);
    Ok(filter)
}

/// Beginnings, and whole texts.
fn split(texts: &[String]) -> (Vec<String>, Vec<String>) {
    let (begin, whole): (Vec<&String>, Vec<&String>) =
        texts.iter().partition(|text| text.ends_with('*'));
    let begin = begin
        .iter()
        .map(|text| text.trim_end_matches('*').to_owned());
    (begin.collect(), whole.into_iter().cloned().collect())
}

/// Reads so many events, and does something with each page of them.
async fn each(
    reader: &dyn EventReader,
    filter: &EventFilter,
    limit: usize,
    mut done: impl FnMut(&[StoredEvent]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut left = limit;
    let mut after = None;
    while left > 0 {
        let part = Part {
            limit: left.min(MAX_PAGE),
            after,
            counts: false,
        };
        let page = reader
            .page(filter, part)
            .await
            .context("cannot read the events")?;
        let Some(last) = page.events.last() else {
            break;
        };
        after = Some(last.place());
        done(&page.events)?;
        left -= page.events.len();
        if page.events.len() < part.limit && !page.is_cut {
            break;
        }
    }
    Ok(())
}

/// One event for people: when, which and about what.
fn row(event: &StoredEvent) -> Vec<String> {
    row_of(&Head {
        id: event.id.to_string(),
        occurred: event.occurred,
        event: event.event.clone(),
        resource: serde_json::from_str(&event.resource).unwrap_or_default(),
        received: Some(event.received),
    })
}

fn row_of(event: &Head) -> Vec<String> {
    vec![
        output::time(event.occurred),
        event.event.clone(),
        document::resource_id(&event.resource).to_owned(),
        event.id.clone(),
    ]
}

type Reader = Arc<dyn EventReader>;
