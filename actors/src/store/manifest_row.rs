//! A manifest as it stands in its table, which is the same in all databases but for the types of its times.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};

use super::archivable::{FileContent, Manifest, Position};
use super::as_count;

pub(super) const READ_MANIFESTS: &str = "SELECT file, state, beats, events, bytes, sha256, first_occurred, \
    first_id, last_occurred, last_id, schema_version, begun FROM event_persister_archives";

/// All columns but the times.
#[derive(QueryableByName)]
pub(super) struct ManifestRow {
    #[diesel(sql_type = Text)]
    file: String,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = BigInt)]
    beats: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    events: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    bytes: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    sha256: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    first_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    last_id: Option<String>,
    #[diesel(sql_type = Nullable<Integer>)]
    schema_version: Option<i32>,
}

impl ManifestRow {
    /// With the times of the first event and of the last one; an error says what to do.
    pub(super) fn manifest(
        self,
        times: Option<(i64, i64)>,
        begun: DateTime<Utc>,
    ) -> Result<Manifest, String> {
        let state = self.state.parse().map_err(|_| {
            format!(
                "the manifest of {} has a state that this version does not know; upgrade event-persister",
                self.file
            )
        })?;
        Ok(Manifest {
            content: times.and_then(|times| self.content(times)),
            file: self.file,
            state,
            beats: self.beats,
            begun,
        })
    }

    fn content(&self, (first, last): (i64, i64)) -> Option<FileContent> {
        let position = |occurred: i64, id: &Option<String>| {
            let id = id.clone()?;
            Some(Position { occurred, id })
        };
        Some(FileContent {
            num_events: as_count(self.events?),
            num_bytes: as_count(self.bytes?),
            sha256: self.sha256.clone()?,
            first: position(first, &self.first_id)?,
            last: position(last, &self.last_id)?,
            schema_version: u32::try_from(self.schema_version?).ok()?,
        })
    }
}
