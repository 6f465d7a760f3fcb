//! A file that is being written: rows are gathered into groups, encoded, and sent off.
//!
//! One group is encoded while the next one is gathered. Memory holds the rows of both, the encoded form of one,
//! and two parts of the upload.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use parquet::errors::ParquetError;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

use super::place::{Place, PlaceError, Upload};
use super::schema::{RowWriter, SCHEMA_VERSION};
use crate::lock::lock;
use crate::store::archivable::{EventRow, FileContent, Position};

/// A group ends when its rows take so many bytes in memory, or are so many. Smaller ones compress worse,
/// larger ones take memory.
const GROUP_BYTES: usize = 6 << 20;
const GROUP_EVENTS: usize = 20_000;

/// A file ends once it is so large. Files are read whole when their events are compared with the tables'.
const FILE_BYTES: u64 = 32 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("events cannot be written as Parquet")]
    Parquet(#[from] ParquetError),
    #[error("the encoding of events was given up")]
    GivenUp,
}

/// Takes what was encoded until it is sent.
#[derive(Clone, Default)]
struct Encoded(Arc<Mutex<Vec<u8>>>);

impl Write for Encoded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) struct FileWriter {
    rows: Arc<Mutex<RowWriter<Encoded>>>,
    /// The last group, until it was waited for.
    encoding: Option<JoinHandle<Result<(), ParquetError>>>,
    encoded: Encoded,
    upload: Upload,
    hash: Sha256,
    num_bytes: u64,
    group: Vec<EventRow>,
    group_bytes: usize,
    num_events: u64,
    range: Option<(Position, Position)>,
}

impl FileWriter {
    pub(super) async fn new(
        place: &Place,
        path: &str,
        archive_id: &str,
    ) -> Result<Self, WriteError> {
        let encoded = Encoded::default();
        Ok(Self {
            rows: Arc::new(Mutex::new(RowWriter::new(encoded.clone(), archive_id)?)),
            encoding: None,
            encoded,
            upload: place.upload(path).await?,
            hash: Sha256::new(),
            num_bytes: 0,
            group: Vec::new(),
            group_bytes: 0,
            num_events: 0,
            range: None,
        })
    }

    pub(super) fn is_large(&self) -> bool {
        self.num_bytes >= FILE_BYTES
    }

    pub(super) async fn push(&mut self, row: EventRow) -> Result<(), WriteError> {
        let position = &row.position;
        match &mut self.range {
            Some((_, last)) => last.clone_from(position),
            None => self.range = Some((position.clone(), position.clone())),
        }
        self.num_events += 1;
        self.group_bytes += row.num_bytes();
        self.group.push(row);
        if self.group_bytes >= GROUP_BYTES || self.group.len() >= GROUP_EVENTS {
            self.end_group().await?;
        }
        Ok(())
    }

    async fn end_group(&mut self) -> Result<(), WriteError> {
        let group = std::mem::take(&mut self.group);
        self.group_bytes = 0;
        if !group.is_empty() {
            self.encode(move |rows| rows.write_group(&group)).await?;
        }
        Ok(())
    }

    /// Begins the work once the one before is done. Elsewhere, since it takes as long as nobody on this thread
    /// should wait.
    async fn encode(
        &mut self,
        work: impl FnOnce(&mut RowWriter<Encoded>) -> Result<(), ParquetError> + Send + 'static,
    ) -> Result<(), WriteError> {
        self.encoded().await?;
        let rows = Arc::clone(&self.rows);
        self.encoding = Some(tokio::task::spawn_blocking(move || work(&mut lock(&rows))));
        Ok(())
    }

    /// Waits for the work that was begun, and sends off what came of it.
    async fn encoded(&mut self) -> Result<(), WriteError> {
        if let Some(encoding) = self.encoding.take() {
            encoding.await.map_err(|_| WriteError::GivenUp)??;
            self.send().await?;
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<(), WriteError> {
        let encoded = std::mem::take(&mut *lock(&self.encoded.0));
        self.hash.update(&encoded);
        self.num_bytes += encoded.len() as u64;
        self.upload.write(&encoded).await?;
        Ok(())
    }

    /// Sends what is left; the file is there once this returns. `None` where nothing was written.
    pub(super) async fn finish(mut self) -> Result<Option<FileContent>, WriteError> {
        self.end_group().await?;
        let Some((first, last)) = self.range.take() else {
            self.upload.abort().await;
            return Ok(None);
        };
        self.encode(RowWriter::finish).await?;
        self.encoded().await?;
        self.upload.finish().await?;
        Ok(Some(FileContent {
            num_events: self.num_events,
            num_bytes: self.num_bytes,
            sha256: hex(&self.hash.finalize()),
            first,
            last,
            schema_version: SCHEMA_VERSION,
        }))
    }

    pub(super) async fn abort(self) {
        self.upload.abort().await;
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
