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

/// How far an archive that is not there yet may be begun.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Not at all: somebody only looks.
    Nothing,
    /// The database notes which archive is its own, so that a backup of it knows. The folder or bucket stays as it
    /// is: it may be mounted later.
    Note,
    /// There is an event for it.
    Archive,
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

fn of_another(place: &Place) -> StoreError {
    wrong(format!(
        "{place} is the archive of another database, or this database went back to a backup from before it had \
         an archive. Set archive.url to a folder or a prefix of its own"
    ))
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

/// The id of the archive, which database and archive have to agree on. `None` where there is no archive yet, and
/// none may be made.
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
    begin: Begin,
) -> Result<Option<String>, StoreError> {
    let mut noted = rows.archive_id(None).await?;
    let found = marked(place).await?;
    if noted.is_none() && found.is_none() && begin != Begin::Nothing {
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
        (None, Some(_)) => Err(of_another(place)),
        (Some(noted), None) => {
            if !rows.manifests(false).await?.is_empty() {
                return Err(wrong(format!(
                    "{place} holds no archive, though events of this database were archived before: mount \
                     it, or set archive.url to where they are"
                )));
            }
            if begin != Begin::Archive {
                return Ok(None);
            }
            make(place, &noted).await.map(Some)
        }
        (None, None) => Ok(None),
    }
}

/// Looks whether it is still the archive that a pass began with: a folder may have been unmounted meanwhile.
pub(super) async fn confirm(place: &Place, id: &str) -> Result<(), StoreError> {
    match marked(place).await? {
        Some(found) if found == id => Ok(()),
        _ => Err(wrong(format!(
            "{place} is not the archive any more that it was when the pass began: mount it, or set archive.url \
             to where it is"
        ))),
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
        _ => Err(of_another(place)),
    }
}
