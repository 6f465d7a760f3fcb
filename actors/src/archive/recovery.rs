//! Whether the archive is the right one, and what an earlier pass left unfinished.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::place::Place;
use crate::store::StoreError;
use crate::store::archivable::ArchivableRows;

/// What stands in the marker.
#[derive(Serialize, Deserialize)]
struct Marker {
    archive_id: String,
}

/// What a failure of the archive means for retention.
pub(super) fn away(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Unavailable {
        what: "the archive cannot be used, and nothing is removed until it can".to_owned(),
        fault: None,
        source: Some(Box::new(error)),
    }
}

fn wrong(what: String) -> StoreError {
    StoreError::unavailable(format!("{what}; nothing is removed until then"))
}

async fn marked(place: &Place) -> Result<Option<String>, StoreError> {
    if !place.is_there() {
        return Ok(None);
    }
    let Some(text) = place.marker().await.map_err(away)? else {
        return Ok(None);
    };
    let marker: Marker = serde_json::from_slice(&text).map_err(away)?;
    Ok(Some(marker.archive_id))
}

/// The id of the archive, which database and archive have to agree on. A new archive gets one, if it may.
///
/// So a folder that is not mounted, another bucket, and a second database in one archive are found before
/// anything is written there.
///
/// # Errors
///
/// They do not agree, or one of them cannot be asked.
pub async fn identify(
    place: &Place,
    rows: &dyn ArchivableRows,
    may_make: bool,
) -> Result<Option<String>, StoreError> {
    let mut noted = rows.archive_id(None).await?;
    let found = marked(place).await?;
    if noted.is_none() && found.is_none() && may_make {
        let proposed = Uuid::new_v4().to_string();
        // First here, so that of two processes both take the same.
        noted = rows.archive_id(Some(&proposed)).await?;
    }
    match (noted, found) {
        (Some(noted), Some(found)) if noted == found => Ok(Some(noted)),
        (Some(noted), Some(found)) => Err(wrong(format!(
            "{place} is another archive than before: its id is {found}, and the files of this database are \
             in {noted}. Set archive.url to that one"
        ))),
        (None, Some(_)) => Err(wrong(format!(
            "{place} is the archive of another database. Set archive.url to a folder or a prefix of its own"
        ))),
        (Some(noted), None) => {
            if !rows.manifests(false).await?.is_empty() {
                return Err(wrong(format!(
                    "{place} holds no archive, though events of this database were archived before: mount \
                     it, or set archive.url to where they are"
                )));
            }
            if !may_make {
                return Ok(None);
            }
            make(place, &noted).await.map(Some)
        }
        (None, None) => Ok(None),
    }
}

async fn make(place: &Place, id: &str) -> Result<String, StoreError> {
    place.make().await.map_err(away)?;
    let marker = Marker {
        archive_id: id.to_owned(),
    };
    let text = serde_json::to_string(&marker).map_err(away)?;
    match place.mark(text).await {
        Ok(()) => log::info!("a new archive is begun archive.place={place} archive.id={id}"),
        Err(error) if error.is_there_already() => {}
        Err(error) => return Err(away(error)),
    }
    match marked(place).await? {
        Some(found) if found == id => Ok(found),
        _ => Err(wrong(format!(
            "{place} is the archive of another database. Set archive.url to a folder or a prefix of its own"
        ))),
    }
}
