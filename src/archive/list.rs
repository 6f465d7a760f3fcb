//! `archive list`: one line a file.

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use event_persister_actors::store::archivable::{ArchivableRows, Manifest, Position};
use serde_json::{Value, json};

use crate::output;

pub(super) async fn run(rows: &dyn ArchivableRows, json: bool) -> anyhow::Result<()> {
    let manifests = rows.manifests(false).await;
    let manifests = manifests.context("cannot read what was archived")?;
    if json {
        return output::json(&manifests.iter().map(document).collect::<Vec<_>>());
    }
    if manifests.is_empty() {
        return output::line("nothing was archived");
    }
    let header = ["FILE", "STATE", "EVENTS", "BYTES", "FIRST", "LAST"];
    output::table(&header, &manifests.iter().map(row).collect::<Vec<_>>())
}

/// `None` for what is before all time.
fn moment(position: &Position) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(position.occurred)
}

fn row(manifest: &Manifest) -> Vec<String> {
    let content = manifest.content.as_ref();
    let number = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
    let time = |position: Option<&Position>| {
        position
            .and_then(moment)
            .map_or_else(String::new, output::time)
    };
    vec![
        manifest.file.clone(),
        manifest.state.as_str().to_owned(),
        number(content.map(|content| content.num_events)),
        number(content.map(|content| content.num_bytes)),
        time(content.map(|content| &content.first)),
        time(content.map(|content| &content.last)),
    ]
}

fn document(manifest: &Manifest) -> Value {
    let content = manifest.content.as_ref();
    json!({
        "file": manifest.file,
        "state": manifest.state.as_str(),
        "events": content.map(|content| content.num_events),
        "bytes": content.map(|content| content.num_bytes),
        "sha256": content.map(|content| &content.sha256),
        "schema_version": content.map(|content| content.schema_version),
        "first_occurred": content.and_then(|content| moment(&content.first)),
        "last_occurred": content.and_then(|content| moment(&content.last)),
        "begun": manifest.begun,
    })
}
