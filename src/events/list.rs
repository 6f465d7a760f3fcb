//! `events list`: one line an event.

use event_persister_actors::reader::{EventFilter, EventReader};

use super::{each, row};
use crate::output;

/// In which form events are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Table,
    /// One list.
    Json,
    /// A document a line.
    Lines,
}

pub(super) async fn run(
    reader: &dyn EventReader,
    filter: &EventFilter,
    limit: usize,
    form: Form,
) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut documents: Vec<serde_json::Value> = Vec::new();
    each(reader, filter, limit, |events| {
        for event in events {
            match form {
                Form::Table => rows.push(row(event)),
                Form::Json => documents.push(serde_json::from_str(&event.to_json())?),
                Form::Lines => output::line(&output::plain_json(&event.to_json()))?,
            }
        }
        Ok(())
    })
    .await?;
    match form {
        Form::Table if rows.is_empty() => output::line("no events"),
        Form::Table => output::table(&["OCCURRED", "EVENT", "RESOURCE", "ID"], &rows),
        Form::Json => output::json(&documents),
        Form::Lines => Ok(()),
    }
}
