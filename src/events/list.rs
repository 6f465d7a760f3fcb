//! `events list`: one line an event.

use event_persister_actors::reader::{EventFilter, EventReader};

use super::{document, each, row};
use crate::output;

/// The longest name of an event or id of a resource in a table: a column is as wide as its longest cell.
const MAX_CELL: usize = 72;

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
    let mut documents: Vec<String> = Vec::new();
    each(reader, filter, limit, |events| {
        match form {
            Form::Table => rows.extend(events.iter().map(|event| short(row(event)))),
            Form::Json => documents.extend(events.iter().filter_map(document::part)),
            Form::Lines => {
                for event in events {
                    output::line_of_many(&document::line(event))?;
                }
            }
        }
        Ok(())
    })
    .await?;
    match form {
        Form::Table if rows.is_empty() => output::line("no events"),
        Form::Table => output::table(&["OCCURRED", "EVENT", "RESOURCE", "ID"], &rows),
        Form::Json => output::line(&document::indented(&format!("[{}]", documents.join(",")))),
        Form::Lines => Ok(()),
    }
}

fn short(row: Vec<String>) -> Vec<String> {
    row.into_iter().map(cut).collect()
}

/// A text that is too long for a cell ends with an ellipsis.
fn cut(mut text: String) -> String {
    if text.chars().nth(MAX_CELL).is_some() {
        text = text.chars().take(MAX_CELL - 1).collect();
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_do_not_make_a_table_wide() {
        let whole = "é".repeat(MAX_CELL);
        assert_eq!(cut(whole.clone()), whole);
        let long = cut("é".repeat(1_000));
        assert_eq!(long, "é".repeat(MAX_CELL - 1) + "…");
    }
}
