//! Whether retention could archive: what `check` finds.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use event_persister_actors::archive::{Begin, Place, identify};
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::finding::Severity;
use event_persister_actors::store::archivable::{ArchivableRows, FileState};

use crate::config::Config;
use crate::wiring::{self, Finding};

/// S3 refuses requests whose time is further from its own.
const MAX_SKEW: TimeDelta = TimeDelta::minutes(5);

pub(crate) async fn judge(config: &Config) -> Vec<Finding> {
    let rows = wiring::archivable(config);
    match wiring::archive(config) {
        None if config.trim.every.is_none() => Vec::new(),
        None => unset(rows.as_ref()).await.into_iter().collect(),
        Some(archive) => {
            let place = archive.place();
            let is_right = is_right(&place, rows.as_ref()).await;
            // Of another database's archive nothing else can be said.
            let is_ours = is_right.severity == Severity::Ok;
            let mut findings = vec![is_right];
            findings.extend(written(&place).await);
            if is_ours {
                findings.extend(compared(&place, rows.as_ref()).await);
            }
            findings
        }
    }
}

/// Tells before anything is removed by whoever has lost the address of the archive.
pub(crate) fn tell_if_unset(config: &Config) -> impl Future<Output = ()> + use<> {
    let rows = wiring::archive(config)
        .is_none()
        .then(|| wiring::archivable(config));
    async move {
        let Some(rows) = rows else { return };
        if let Some(Finding { what, remedy, .. }) = unset(rows.as_ref()).await {
            log::warn!("{what}: {}", remedy.unwrap_or_default());
        }
    }
}

/// What retention removes would be gone, though it was archived before.
async fn unset(rows: &dyn ArchivableRows) -> Option<Finding> {
    let manifests = match rows.manifests(false).await {
        Ok(manifests) => manifests,
        Err(error) => {
            // The other checks tell what stands in the way.
            log::debug!("cannot look for an archive error={error}");
            return None;
        }
    };
    (!manifests.is_empty()).then(|| {
        Finding::warning(
            "archive.unset",
            "archive.url is not set, though events of this database were archived before: what retention \
             removes now is gone",
            "set archive.url to the archive of before, in every process that trims",
        )
    })
}

async fn is_right(place: &Place, rows: &dyn ArchivableRows) -> Finding {
    const ID: &str = "archive.same";
    match identify(place, rows, Begin::Nothing).await {
        Ok(Some(id)) => Finding::ok(ID, format!("{place} is the archive of this database, {id}")),
        Ok(None) => Finding::ok(
            ID,
            format!("no archive yet: one is begun in {place} when the first event has to go"),
        ),
        Err(error) => Finding::of_error(ID, &error),
    }
}

/// Writes a small object, and removes it again.
async fn written(place: &Place) -> Vec<Finding> {
    const WRITABLE: &str = "archive.writable";
    match place.probe().await {
        Ok(None) => vec![Finding::ok(
            WRITABLE,
            "its folder is made by the first pass",
        )],
        Ok(Some(modified)) => vec![
            Finding::ok(WRITABLE, format!("{place} can be written")),
            clock(modified, SystemClock.now()),
        ],
        Err(error) => vec![Finding::error(
            WRITABLE,
            event_persister_actors::status::error_chain(&error),
            "let this process write, list, copy and delete there; while it cannot, retention removes nothing",
        )],
    }
}

fn clock(there: DateTime<Utc>, here: DateTime<Utc>) -> Finding {
    const ID: &str = "archive.clock";
    let skew = (there - here).abs();
    if skew <= MAX_SKEW {
        return Finding::ok(ID, "its clock and ours agree");
    }
    let what = format!("its clock and ours are {} s apart", skew.num_seconds());
    Finding::warning(
        ID,
        what,
        "set the clock that is wrong: retention goes by it, and S3 refuses others",
    )
}

/// The files that readers see, and those that the database knows.
async fn compared(place: &Place, rows: &dyn ArchivableRows) -> Vec<Finding> {
    // The other checks tell what stands in the way.
    let (Ok(manifests), Ok(visible)) = (rows.manifests(false).await, place.visible().await) else {
        return Vec::new();
    };
    let known: HashSet<&str> = manifests.iter().map(|one| one.file.as_str()).collect();
    let there: HashSet<&str> = visible.iter().map(|one| one.path.as_str()).collect();
    let archived = manifests
        .iter()
        .filter(|one| one.state == FileState::Archived);
    let num_missing = archived
        .filter(|one| !there.contains(one.file.as_str()))
        .count();
    vec![
        of_unknown(there.difference(&known).count()),
        of_missing(num_missing),
    ]
}

fn of_unknown(num_files: usize) -> Finding {
    const ID: &str = "archive.known";
    if num_files == 0 {
        return Finding::ok(ID, "the database knows all of its files");
    }
    Finding::warning(
        ID,
        format!("the database does not know {num_files} of its files"),
        "after a restored backup or a failover nothing is to be done: a retention pass takes them in. \
         `event-persister archive verify` names them",
    )
}

fn of_missing(num_files: usize) -> Finding {
    const ID: &str = "archive.complete";
    if num_files == 0 {
        return Finding::ok(ID, "every archived file is there");
    }
    Finding::error(
        ID,
        format!("{num_files} of its files are missing, and their events with them"),
        "bring them back from a copy of the archive; `event-persister archive verify` names them",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_far_off_is_a_warning() {
        let here = DateTime::UNIX_EPOCH;
        for (minutes, severity) in [
            (0, Severity::Ok),
            (5, Severity::Ok),
            (-6, Severity::Warning),
            (6, Severity::Warning),
        ] {
            let finding = clock(here + TimeDelta::minutes(minutes), here);
            assert_eq!(finding.severity, severity, "{minutes}");
        }
    }
}
