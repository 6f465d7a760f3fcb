//! `archive restore`: archived events through the pipeline, into whichever database is configured.

use std::io::{self, Read};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use event_persister_actors::archive::{ArchivedFile, FileFault, Place, Wanted, may_have};
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::event::EventLimits;
use event_persister_actors::status::error_chain;
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
    let visible = place.visible().await.context("cannot list the archive")?;
    if visible.is_empty() {
        bail!("there are no files in the archive {place}");
    }
    let paths = visible.into_iter().map(|listed| listed.path);
    let paths: Vec<String> = paths.filter(|path| may_have(path, &wanted)).collect();
    let name = place.to_string();
    // One file is read while another is written.
    let (sender, files) = channel(1);
    actix_rt::spawn(async move {
        for path in paths {
            let opened = place.open(&path, None).await;
            let is_last = opened.is_err();
            if sender.send(opened).await.is_err() || is_last {
                return;
            }
        }
    });
    let lines = Lines {
        files,
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
    import::run_on(config, screen, input, destination, how).await
}

/// Files of the archive as lines of JSON, for a thread that reads.
struct Lines {
    files: Receiver<Result<ArchivedFile, FileFault>>,
    /// The file, and the next group of its rows.
    open: Option<(ArchivedFile, usize)>,
    wanted: Wanted,
    text: Vec<u8>,
    read: usize,
}

impl Lines {
    /// The next group's lines; `None` at the end.
    fn next(&mut self) -> Result<Option<String>, FileFault> {
        loop {
            if let Some((file, group)) = &mut self.open {
                if *group < file.num_groups() {
                    *group += 1;
                    return file.lines(*group - 1, &self.wanted).map(Some);
                }
                self.open = None;
            }
            match self.files.blocking_recv() {
                None => return Ok(None),
                Some(file) => self.open = Some((file?, 0)),
            }
        }
    }
}

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.text.len() {
            match self.next() {
                Ok(Some(lines)) => (self.text, self.read) = (lines.into_bytes(), 0),
                Ok(None) => return Ok(0),
                Err(fault) => return Err(io::Error::other(error_chain(&fault))),
            }
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
