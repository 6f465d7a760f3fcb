//! Files of the archive, read back: to compare them with their manifests, and to restore their events.

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::names::{self, Day};
use super::place::{Listed, Place, PlaceError};
use super::schema::{RowReader, Unreadable};
use super::writing::hex;
use crate::reader::StoredEvent;
use crate::store::archivable::{EventRow, FileContent, Position};

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    /// It cannot be had.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It cannot be understood.
    #[error("{file} cannot be read")]
    Unreadable {
        /// Its path.
        file: String,
        /// Why.
        #[source]
        source: Unreadable,
    },
    /// It is not what was written.
    #[error("{file} is not what its manifest says: {what}")]
    Differs {
        /// Its path.
        file: String,
        /// The difference.
        what: String,
    },
}

/// Which events are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Those that occurred at this moment or later.
    pub since: Option<DateTime<Utc>>,
    /// Those that occurred before this moment.
    pub until: Option<DateTime<Utc>>,
    /// Those of these names; of all names where there are none.
    pub names: Vec<String>,
}

impl Wanted {
    fn includes(&self, row: &EventRow) -> bool {
        let occurred = row.position.occurred;
        self.since
            .is_none_or(|since| occurred >= since.timestamp_micros())
            && self
                .until
                .is_none_or(|until| occurred < until.timestamp_micros())
            && (self.names.is_empty() || self.names.contains(&row.event))
    }

    /// Whether a day may have such events.
    fn may_be_on(&self, day: Day) -> bool {
        self.since
            .is_none_or(|since| since.timestamp_micros() < day.end())
            && self
                .until
                .is_none_or(|until| day <= Day::of(until.timestamp_micros()))
    }
}

impl Place {
    /// The files that readers see, in the order of their names.
    ///
    /// # Errors
    ///
    /// The archive cannot be listed.
    pub async fn visible(&self) -> Result<Vec<Listed>, PlaceError> {
        let mut visible = self.list("").await?;
        visible.retain(|listed| names::is_visible(&listed.path));
        visible.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(visible)
    }

    /// Reads a file whole.
    ///
    /// # Errors
    ///
    /// It is not there, no file of an archive, or not what its manifest says.
    pub async fn open(
        &self,
        path: &str,
        manifest: Option<&FileContent>,
    ) -> Result<ArchivedFile, FileFault> {
        let bytes = self.read(path).await?;
        let file = path.to_owned();
        let sha256 = hex(&Sha256::digest(&bytes));
        let num_bytes = bytes.len() as u64;
        if let Some(manifest) = manifest {
            let differs = |what: String| FileFault::Differs {
                file: file.clone(),
                what,
            };
            if num_bytes != manifest.num_bytes {
                let what = format!("it has {num_bytes} bytes, not {}", manifest.num_bytes);
                return Err(differs(what));
            }
            if sha256 != manifest.sha256 {
                return Err(differs("its checksum is another".to_owned()));
            }
        }
        let reader = RowReader::new(bytes).map_err(|source| FileFault::Unreadable {
            file: file.clone(),
            source,
        })?;
        let opened = ArchivedFile {
            path: file,
            sha256,
            num_bytes,
            reader,
        };
        if let Some(manifest) = manifest
            && manifest.num_events != opened.num_events()
        {
            return Err(FileFault::Differs {
                file: opened.path,
                what: format!(
                    "it has {} events, not {}",
                    opened.reader.num_events, manifest.num_events
                ),
            });
        }
        Ok(opened)
    }
}

/// A file of the archive, in memory.
pub struct ArchivedFile {
    path: String,
    sha256: String,
    num_bytes: u64,
    reader: RowReader,
}

impl ArchivedFile {
    /// How many events it says that it has.
    pub fn num_events(&self) -> u64 {
        self.reader.num_events
    }

    /// Of its bytes, in hexadecimal digits.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    pub(super) fn archive_id(&self) -> &str {
        &self.reader.archive_id
    }

    fn unreadable(&self) -> impl FnOnce(Unreadable) -> FileFault {
        let file = self.path.clone();
        move |source| FileFault::Unreadable { file, source }
    }

    pub(super) fn positions(&self) -> Result<Vec<Position>, FileFault> {
        self.reader.positions().map_err(self.unreadable())
    }

    /// What its manifest has to say.
    pub(super) fn content(&self) -> Result<FileContent, FileFault> {
        let positions = self.positions()?;
        let (first, last) = (positions.iter().min(), positions.iter().max());
        let first = first.cloned().unwrap_or(Position::FIRST);
        Ok(FileContent {
            num_events: positions.len() as u64,
            num_bytes: self.num_bytes,
            sha256: self.sha256.clone(),
            last: last.cloned().unwrap_or_else(|| first.clone()),
            first,
            schema_version: self.reader.schema_version,
        })
    }

    /// Counts its events by reading all of its columns.
    ///
    /// # Errors
    ///
    /// It cannot be read to its end.
    pub fn count(&self) -> Result<u64, FileFault> {
        let groups = 0..self.reader.num_groups();
        groups
            .map(|number| Ok(self.rows(number)?.len() as u64))
            .sum()
    }

    fn rows(&self, number: usize) -> Result<Vec<EventRow>, FileFault> {
        self.reader.rows(number).map_err(self.unreadable())
    }

    /// How many groups of rows it has.
    pub fn num_groups(&self) -> usize {
        self.reader.num_groups()
    }

    /// The events of a group that are wanted, one JSON object a line as a server takes them.
    ///
    /// # Errors
    ///
    /// The group cannot be read.
    pub fn lines(&self, number: usize, wanted: &Wanted) -> Result<String, FileFault> {
        let mut lines = String::new();
        for row in self
            .rows(number)?
            .into_iter()
            .filter(|row| wanted.includes(row))
        {
            let stored = stored(row).map_err(self.unreadable())?;
            stored.write_json(&mut lines);
            lines.push('\n');
        }
        Ok(lines)
    }
}

/// Whether a file may have events that are wanted, by its name.
pub fn may_have(path: &str, wanted: &Wanted) -> bool {
    Day::of_file(path).is_none_or(|day| wanted.may_be_on(day))
}

fn stored(row: EventRow) -> Result<StoredEvent, Unreadable> {
    let id = |text: &str| Uuid::parse_str(text).map_err(|_| Unreadable::Value("an id"));
    let moment =
        |micros: i64| DateTime::from_timestamp_micros(micros).ok_or(Unreadable::Value("a time"));
    Ok(StoredEvent {
        id: id(&row.position.id)?,
        occurred: moment(row.position.occurred)?,
        received: moment(row.received)?,
        event: row.event,
        resource: row.resource,
        related: row.related,
        payload: row.payload,
        follows: row.follows.as_deref().map(id).transpose()?,
    })
}
