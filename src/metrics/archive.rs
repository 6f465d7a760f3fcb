//! What was written to the archive, for `/metrics`.

use event_persister_actors::archive::{ArchiveStats, ArchiveStatus};

use super::looked_up::LookedUp;

pub(super) fn of_archive(
    stats: ArchiveStats,
) -> Result<LookedUp<ArchiveStatus>, prometheus::Error> {
    LookedUp::new(move || stats.status())
        .counter(
            "event_persister_archive_files_total",
            "Files that were written to the archive.",
            |status| Some(status.num_files as f64),
        )?
        .counter(
            "event_persister_archive_events_total",
            "Events in these files.",
            |status| Some(status.num_events as f64),
        )?
        .counter(
            "event_persister_archive_bytes_total",
            "Bytes of these files.",
            |status| Some(status.num_bytes as f64),
        )?
        .counter(
            "event_persister_archive_known_events_total",
            "Events that retention removed and did not write, since the archive held them already.",
            |status| Some(status.num_known as f64),
        )?
        .counter(
            "event_persister_archive_failures_total",
            "Passes of retention that failed, the archive's failures among them.",
            |status| Some(status.num_failures as f64),
        )?
        .gauge(
            "event_persister_archive_failing",
            "1 while the last pass of retention failed, so that nothing is removed, else 0.",
            |status| Some(f64::from(status.failure.is_some())),
        )
}
