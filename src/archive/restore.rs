//! `archive restore`: archived events through the pipeline, into whichever database is configured.
//!
//! A file that this database has archived is compared with its manifest before any of it is taken. One that
//! cannot be restored stops none of the others, unless the whole place is away; all are named in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc;

use anyhow::{Context as _, bail};
use event_persister_actors::archive::{ArchivedFile, FileFault, Place, Wanted, may_have};
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::event::EventLimits;
use event_persister_actors::status::error_chain;
use event_persister_actors::store::archivable::{FileState, Manifest};
use indicatif::MultiProgress;
use tokio::sync::mpsc::{Receiver, channel};

use crate::cli::RestoreFlags;
use crate::config::Config;
use crate::finite_run::{Destination, Words};
use crate::import::{self, How, Input};
use crate::wiring::{self, Missing};

const RESTORING: Words = Words {
    again: "restore again: events that are stored count as duplicates",
    place: "the database",
};

/// What was stored once is taken again, whatever the limits are by now.
const NO_LIMITS: EventLimits = EventLimits {
    max_labels_per_resource: usize::MAX,
    max_related_resources: usize::MAX,
    max_event_name_length: usize::MAX,
};

pub(super) async fn run(
    config: &Config,
    screen: &MultiProgress,
    place: Arc<Place>,
    flags: &RestoreFlags,
) -> anyhow::Result<bool> {
    let now = SystemClock.now();
    let wanted = Wanted {
        since: flags.since.map(|since| since.at(now)),
        until: flags.until.map(|until| until.at(now)),
        names: flags.event.clone(),
    };
    // Before the files are listed: those that come meanwhile are not missing.
    let known = known(config).await;
    let visible = place.visible().await.context("cannot list the archive")?;
    if visible.is_empty() {
        bail!("there are no files in the archive {place}");
    }
    let paths = visible.into_iter().map(|listed| listed.path);
    let paths: BTreeSet<String> = paths.filter(|path| may_have(path, &wanted)).collect();
    let name = place.to_string();
    let (report, faults) = mpsc::channel();
    for missing in known.values().filter(|manifest| {
        manifest.state == FileState::Archived
            && may_have(&manifest.file, &wanted)
            && !paths.contains(&manifest.file)
    }) {
        report.send(format!(
            "{} is not in the archive {name} any more",
            missing.file
        ))?;
    }
    // One file is read while another is written.
    let (sender, files) = channel(1);
    let report_unopened = report.clone();
    actix_rt::spawn(async move {
        for path in paths {
            let content = known
                .get(&path)
                .and_then(|manifest| manifest.content.as_ref());
            let is_needed = match place.open(&path, content).await {
                Ok(file) => sender.send(file).await.is_ok(),
                // No other file can be had either.
                Err(FileFault::Place(error)) if !error.is_missing() => {
                    let told = format!("{}; no file behind it was restored", error_chain(&error));
                    drop(report_unopened.send(told));
                    false
                }
                Err(fault) => report_unopened.send(error_chain(&fault)).is_ok(),
            };
            if !is_needed {
                return;
            }
        }
    });
    let lines = Lines {
        files,
        report,
        open: None,
        wanted,
        text: Vec::new(),
        read: 0,
    };
    let input = Input {
        reader: Box::new(lines),
        position: name.clone(),
        name,
        num_bytes: None,
    };
    let destination = Destination {
        open_store: wiring::open_store(config, Missing::Create),
        event_limits: NO_LIMITS,
        words: RESTORING,
    };
    let how = How {
        publishes: false,
        wait: flags.wait,
        json: flags.output.json,
    };
    let restored = import::run_on(config, screen, input, destination, how).await;
    let faults: Vec<String> = faults.try_iter().collect();
    for fault in &faults {
        log::error!("{fault}");
    }
    let is_all_taken = restored?;
    if !faults.is_empty() {
        bail!(
            "not all of the archive was restored: put the files that are named above back from a copy, and {}",
            RESTORING.again
        );
    }
    Ok(is_all_taken)
}

/// What the database that is restored into has archived itself, by file.
async fn known(config: &Config) -> BTreeMap<String, Manifest> {
    let manifests = wiring::archivable(config).manifests(false).await;
    let manifests = manifests.unwrap_or_else(|error| {
        // A database that is new knows no file, and one that is away is waited for.
        log::debug!("cannot look for manifests error={error}");
        Vec::new()
    });
    let by_file = manifests.into_iter();
    by_file
        .map(|manifest| (manifest.file.clone(), manifest))
        .collect()
}

/// Files of the archive as lines of JSON, for a thread that reads.
struct Lines {
    files: Receiver<ArchivedFile>,
    /// Of files that cannot be read.
    report: mpsc::Sender<String>,
    /// The file, and the next group of its rows.
    open: Option<(ArchivedFile, usize)>,
    wanted: Wanted,
    text: Vec<u8>,
    read: usize,
}

impl Lines {
    /// The next group's lines; `None` at the end.
    fn next(&mut self) -> Option<String> {
        loop {
            match self.group() {
                Some(Ok(lines)) => return Some(lines),
                Some(Err(fault)) => {
                    self.open = None;
                    self.report.send(error_chain(&fault)).ok()?;
                }
                None => self.open = Some((self.files.blocking_recv()?, 0)),
            }
        }
    }

    /// The next group of the file that is open; `None` where there is none.
    fn group(&mut self) -> Option<Result<String, FileFault>> {
        let (file, group) = self.open.as_mut()?;
        if *group == file.num_groups() {
            return None;
        }
        *group += 1;
        Some(file.lines(*group - 1, &self.wanted))
    }
}

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.text.len() {
            let Some(lines) = self.next() else {
                return Ok(0);
            };
            (self.text, self.read) = (lines.into_bytes(), 0);
        }
        let rest = self.text.get(self.read..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..length), rest.get(..length)) {
            to.copy_from_slice(from);
        }
        self.read += length;
        Ok(length)
    }
}
