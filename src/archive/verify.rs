//! `archive verify`: every file against its manifest.

use std::collections::BTreeSet;

use anyhow::Context as _;
use event_persister_actors::archive::{Begin, Place, identify};
use event_persister_actors::status::error_chain;
use event_persister_actors::store::archivable::{ArchivableRows, FileState, Manifest};
use serde::Serialize;

use crate::output;

#[derive(Debug, Default, Serialize)]
struct Report {
    files: u64,
    events: u64,
    bytes: u64,
    /// Files that the next retention pass finishes.
    unfinished: u64,
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct Problem {
    /// `None` where it is about the whole archive.
    file: Option<String>,
    what: String,
}

pub(super) async fn run(
    rows: &dyn ArchivableRows,
    place: &Place,
    json: bool,
) -> anyhow::Result<bool> {
    let mut report = Report::default();
    let mut problem = |file: Option<&str>, what: String| {
        let file = file.map(str::to_owned);
        report.problems.push(Problem { file, what });
    };
    if let Err(error) = identify(place, rows, Begin::Nothing).await {
        problem(None, error_chain(&error));
    }
    let manifests = rows.manifests(false).await;
    let manifests = manifests.context("cannot read what was archived")?;
    let visible = if manifests.is_empty() {
        place.visible().await.unwrap_or_default()
    } else {
        place.visible().await.context("cannot list the archive")?
    };
    let known: BTreeSet<&str> = manifests
        .iter()
        .map(|manifest| manifest.file.as_str())
        .collect();
    for listed in &visible {
        if !known.contains(listed.path.as_str()) {
            problem(
                Some(&listed.path),
                unknown(place, &listed.path, &manifests).await,
            );
        }
    }
    for manifest in &manifests {
        match verify(place, manifest).await {
            Ok(None) => report.unfinished += 1,
            Ok(Some(num_events)) => {
                report.files += 1;
                report.events += num_events;
                report.bytes += manifest
                    .content
                    .as_ref()
                    .map_or(0, |content| content.num_bytes);
            }
            Err(what) => {
                let file = Some(manifest.file.clone());
                report.problems.push(Problem { file, what });
            }
        }
    }
    print(&report, json)?;
    Ok(report.problems.is_empty())
}

/// Why the database does not know a file.
async fn unknown(place: &Place, path: &str, manifests: &[Manifest]) -> String {
    let opened = match place.open(path, None).await {
        Ok(opened) => opened,
        Err(error) => return error_chain(&error),
    };
    let original = manifests.iter().find(|manifest| {
        let content = manifest.content.as_ref();
        content.is_some_and(|content| content.sha256 == opened.sha256())
    });
    original.map_or_else(
        || {
            "the database does not know it: the database is older than the archive, as after a restored backup \
             or a failover; the next retention pass of its day takes it in"
                .to_owned()
        },
        |original| {
            format!(
                "it is a copy of {}: who reads all files sees its events twice; remove it",
                original.file
            )
        },
    )
}

/// The number of its events; `None` where it is not archived yet.
async fn verify(place: &Place, manifest: &Manifest) -> Result<Option<u64>, String> {
    if manifest.state != FileState::Archived {
        return Ok(None);
    }
    let opened = place.open(&manifest.file, manifest.content.as_ref()).await;
    let counted = opened.and_then(|opened| opened.count());
    let num_events = counted.map_err(|error| error_chain(&error))?;
    match &manifest.content {
        Some(content) if content.num_events != num_events => Err(format!(
            "{num_events} events can be read, not {}",
            content.num_events
        )),
        _ => Ok(Some(num_events)),
    }
}

fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(report);
    }
    let files = output::counted(report.files, "file");
    let events = output::counted(report.events, "event");
    output::line(&format!(
        "{files} with {events} are right, {} bytes",
        report.bytes
    ))?;
    if report.unfinished > 0 {
        let unfinished = output::counted(report.unfinished, "file");
        output::line(&format!(
            "{unfinished} not archived yet; the next retention pass goes on"
        ))?;
    }
    for problem in &report.problems {
        match &problem.file {
            Some(file) => output::line(&format!("{file}: {}", problem.what))?,
            None => output::line(&problem.what)?,
        }
    }
    Ok(())
}
