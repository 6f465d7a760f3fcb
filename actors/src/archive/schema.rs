//! The form of a file: one row an event, resources nested, JSON as text.
//!
//! The version counts changes that a reader has to know of. A column that is added at the end is none.

use std::borrow::Cow;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::reader::get_typed_column_reader;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{WriterProperties, WriterPropertiesPtr};
use parquet::file::reader::{FileReader as _, RowGroupReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use serde::Deserialize;

use crate::store::archivable::{EventRow, Position, YEAR_1};

/// The version of [`SCHEMA`].
pub const SCHEMA_VERSION: u32 = 1;

/// The schema of every file.
pub const SCHEMA: &str = "\
message event {
  required binary id (STRING);
  required int64 occurred (TIMESTAMP(MICROS,true));
  required int64 received (TIMESTAMP(MICROS,true));
  required int64 recorded (TIMESTAMP(MICROS,true));
  required binary event (STRING);
  optional binary follows (STRING);
  required group resources (LIST) {
    repeated group list {
      required group element {
        required binary resource_id (STRING);
        required binary resource_role (STRING);
        required binary resource (STRING);
      }
    }
  }
  required binary payload (STRING);
}
";

const VERSION_KEY: &str = "event_persister.schema_version";
const ARCHIVE_KEY: &str = "event_persister.archive_id";

/// Of the columns in [`SCHEMA`], in their order.
const NUM_RESOURCE_COLUMNS: usize = 3;
const FIRST_RESOURCE_COLUMN: usize = 6;
const PAYLOAD_COLUMN: usize = FIRST_RESOURCE_COLUMN + NUM_RESOURCE_COLUMNS;

/// Prefect's events are as small at level 1 as at level 3, in less time.
const ZSTD_LEVEL: i32 = 1;

fn properties(archive_id: &str) -> Result<WriterPropertiesPtr, ParquetError> {
    let metadata = [
        (VERSION_KEY, SCHEMA_VERSION.to_string()),
        (ARCHIVE_KEY, archive_id.to_owned()),
    ];
    let metadata = metadata.map(|(key, value)| KeyValue::new(key.to_owned(), value));
    let level = ZstdLevel::try_new(ZSTD_LEVEL)?;
    // Values that are all different gain nothing from a dictionary, which would have to hold all of them.
    let without_dictionary = ["id", "payload", "follows"];
    let builder = WriterProperties::builder()
        .set_created_by(concat!("event-persister ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(level))
        .set_key_value_metadata(Some(metadata.into()));
    let builder = without_dictionary
        .into_iter()
        .fold(builder, |builder, name| {
            builder.set_column_dictionary_enabled(ColumnPath::from(name), false)
        });
    Ok(Arc::new(builder.build()))
}

/// Writes groups of rows into a sink.
pub(super) struct RowWriter<W: Write + Send>(SerializedFileWriter<W>);

impl<W: Write + Send> RowWriter<W> {
    pub(super) fn new(sink: W, archive_id: &str) -> Result<Self, ParquetError> {
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let properties = properties(archive_id)?;
        Ok(Self(SerializedFileWriter::new(sink, schema, properties)?))
    }

    pub(super) fn write_group(&mut self, rows: &[EventRow]) -> Result<(), ParquetError> {
        let mut group = self.0.next_row_group()?;
        texts(&mut group, rows.iter().map(|row| row.position.id.as_str()))?;
        times(&mut group, rows.iter().map(|row| row.position.occurred))?;
        times(&mut group, rows.iter().map(|row| row.received))?;
        times(&mut group, rows.iter().map(|row| row.recorded))?;
        texts(&mut group, rows.iter().map(|row| row.event.as_str()))?;
        let levels: Vec<i16> = rows
            .iter()
            .map(|row| row.follows.is_some().into())
            .collect();
        let follows: Vec<ByteArray> = rows
            .iter()
            .filter_map(|row| row.follows.as_deref())
            .map(value)
            .collect();
        column::<_, ByteArrayType>(&mut group, &follows, Some(&levels), None)?;
        let resources: Vec<Vec<NamedResource<'_>>> = rows.iter().map(resources_of).collect();
        let repeated: Vec<i16> = (resources.iter())
            .flat_map(|resources| (0..resources.len()).map(|number| i16::from(number > 0)))
            .collect();
        let defined = vec![1; repeated.len()];
        let parts: [fn(&NamedResource<'_>) -> ByteArray; NUM_RESOURCE_COLUMNS] = [
            |resource| value(&resource.id),
            |resource| value(&resource.role),
            |resource| value(resource.labels),
        ];
        for part in parts {
            let values: Vec<ByteArray> = resources.iter().flatten().map(part).collect();
            column::<_, ByteArrayType>(&mut group, &values, Some(&defined), Some(&repeated))?;
        }
        texts(&mut group, rows.iter().map(|row| row.payload.as_str()))?;
        group.close()?;
        self.0.flush()?;
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Result<(), ParquetError> {
        self.0.finish()?;
        Ok(self.0.flush()?)
    }
}

type Group<'a, W> = SerializedRowGroupWriter<'a, W>;

fn value(text: &str) -> ByteArray {
    text.as_bytes().to_vec().into()
}

fn texts<'t, W: Write + Send>(
    group: &mut Group<'_, W>,
    texts: impl Iterator<Item = &'t str>,
) -> Result<(), ParquetError> {
    column::<_, ByteArrayType>(group, &texts.map(value).collect::<Vec<_>>(), None, None)
}

fn times<W: Write + Send>(
    group: &mut Group<'_, W>,
    times: impl Iterator<Item = i64>,
) -> Result<(), ParquetError> {
    let times: Vec<i64> = times.map(|micros| micros.max(YEAR_1)).collect();
    column::<_, Int64Type>(group, &times, None, None)
}

fn column<W: Write + Send, T: DataType>(
    group: &mut Group<'_, W>,
    values: &[T::T],
    defined: Option<&[i16]>,
    repeated: Option<&[i16]>,
) -> Result<(), ParquetError> {
    let Some(mut column) = group.next_column()? else {
        return Err(ParquetError::General(
            "the schema has no such column".to_owned(),
        ));
    };
    column.typed::<T>().write_batch(values, defined, repeated)?;
    column.close()
}

/// A resource as the archive has it. The first of an event is the one that it concerns.
struct NamedResource<'t> {
    id: Cow<'t, str>,
    role: Cow<'t, str>,
    labels: &'t str,
}

#[derive(Default, Deserialize)]
struct Names<'t> {
    #[serde(borrow, default, rename = "prefect.resource.id")]
    id: Cow<'t, str>,
    #[serde(borrow, default, rename = "prefect.resource.role")]
    role: Cow<'t, str>,
}

impl<'t> NamedResource<'t> {
    /// Labels that somebody else wrote in another form are kept as they are, without a name.
    fn new(labels: &'t str) -> Self {
        let Names { id, role } = serde_json::from_str(labels).unwrap_or_default();
        Self { id, role, labels }
    }
}

fn resources_of(row: &EventRow) -> Vec<NamedResource<'_>> {
    let mut labels = vec![row.resource.as_str()];
    match elements(&row.related) {
        Some(elements) => labels.extend(elements),
        // No list: somebody else wrote it. It must not be lost.
        None => labels.push(&row.related),
    }
    labels.into_iter().map(NamedResource::new).collect()
}

/// The texts of the elements of a JSON list.
fn elements(list: &str) -> Option<Vec<&str>> {
    let inner = list.trim().strip_prefix('[')?.strip_suffix(']')?;
    let mut elements = Vec::new();
    let (mut depth, mut in_text, mut escaped, mut start) = (0_usize, false, false, 0);
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b',' if depth == 0 => {
                elements.push(inner.get(start..at)?.trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    let last = inner.get(start..)?.trim();
    if !last.is_empty() {
        elements.push(last);
    }
    Some(elements)
}

/// A file of the archive, held in memory.
pub(super) struct RowReader {
    file: SerializedFileReader<Bytes>,
    pub(super) archive_id: String,
    pub(super) schema_version: u32,
    pub(super) num_events: u64,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Unreadable {
    #[error("it is no Parquet file that can be read")]
    Parquet(#[from] ParquetError),
    #[error("it was not written by event-persister: it lacks the metadata {0}")]
    Foreign(&'static str),
    #[error(
        "its schema has version {0}, and this version reads {SCHEMA_VERSION}: upgrade event-persister"
    )]
    Newer(u32),
    #[error("a text in it is not UTF-8")]
    Text(#[from] std::str::Utf8Error),
    #[error("{0} in it is none")]
    Value(&'static str),
    #[error("a column in it has fewer values than rows")]
    Short,
}

impl RowReader {
    pub(super) fn new(bytes: Bytes) -> Result<Self, Unreadable> {
        let file = SerializedFileReader::new(bytes)?;
        let metadata = file.metadata().file_metadata();
        let find = |key: &'static str| {
            let all = metadata.key_value_metadata().into_iter().flatten();
            let mut found = all.filter(|pair| pair.key == key);
            let found = found.next().and_then(|pair| pair.value.clone());
            found.ok_or(Unreadable::Foreign(key))
        };
        let schema_version = find(VERSION_KEY)?
            .parse()
            .map_err(|_| Unreadable::Foreign(VERSION_KEY))?;
        if schema_version > SCHEMA_VERSION {
            return Err(Unreadable::Newer(schema_version));
        }
        Ok(Self {
            archive_id: find(ARCHIVE_KEY)?,
            schema_version,
            num_events: u64::try_from(metadata.num_rows()).unwrap_or_default(),
            file,
        })
    }

    pub(super) fn num_groups(&self) -> usize {
        self.file.num_row_groups()
    }

    /// The positions of all events, in order.
    pub(super) fn positions(&self) -> Result<Vec<Position>, Unreadable> {
        let mut positions = Vec::new();
        for number in 0..self.num_groups() {
            let group = self.file.get_row_group(number)?;
            let ids = read_texts(group.as_ref(), 0)?.values;
            let occurred = read_times(group.as_ref(), 1)?;
            let both = ids.into_iter().zip(occurred);
            positions.extend(both.map(|(id, occurred)| Position { occurred, id }));
        }
        Ok(positions)
    }

    /// The rows of a group.
    pub(super) fn rows(&self, number: usize) -> Result<Vec<EventRow>, Unreadable> {
        let group = self.file.get_row_group(number)?;
        let group = group.as_ref();
        let mut ids = read_texts(group, 0)?.values.into_iter();
        let mut occurred = read_times(group, 1)?.into_iter();
        let mut received = read_times(group, 2)?.into_iter();
        let mut recorded = read_times(group, 3)?.into_iter();
        let mut events = read_texts(group, 4)?.values.into_iter();
        let Column {
            values, defined, ..
        } = read_texts(group, 5)?;
        let mut follows = values.into_iter();
        let Column {
            values: labels,
            repeated,
            ..
        } = read_texts(group, PAYLOAD_COLUMN - 1)?;
        let mut payloads = read_texts(group, PAYLOAD_COLUMN)?.values.into_iter();
        let mut labels = repeated.into_iter().zip(labels).peekable();
        let mut rows = Vec::new();
        for defined in defined {
            let next =
                |column: &mut std::vec::IntoIter<String>| column.next().ok_or(Unreadable::Short);
            let time =
                |column: &mut std::vec::IntoIter<i64>| column.next().ok_or(Unreadable::Short);
            let (_, resource) = labels.next().ok_or(Unreadable::Short)?;
            let mut related = String::from("[");
            while let Some((_, labels)) = labels.next_if(|(repeated, _)| *repeated > 0) {
                if related.len() > 1 {
                    related.push(',');
                }
                related.push_str(&labels);
            }
            related.push(']');
            rows.push(EventRow {
                position: Position {
                    occurred: time(&mut occurred)?,
                    id: next(&mut ids)?,
                },
                received: time(&mut received)?,
                recorded: time(&mut recorded)?,
                event: next(&mut events)?,
                follows: if defined > 0 {
                    Some(next(&mut follows)?)
                } else {
                    None
                },
                resource,
                related,
                payload: next(&mut payloads)?,
            });
        }
        Ok(rows)
    }
}

struct Column {
    values: Vec<String>,
    defined: Vec<i16>,
    repeated: Vec<i16>,
}

fn read_texts(group: &dyn RowGroupReader, number: usize) -> Result<Column, Unreadable> {
    let mut reader = get_typed_column_reader::<ByteArrayType>(group.get_column_reader(number)?);
    let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
    let num_rows = num_rows(group);
    let mut num_read = 0;
    while num_read < num_rows {
        let left = num_rows - num_read;
        let (records, _, _) =
            reader.read_records(left, Some(&mut defined), Some(&mut repeated), &mut values)?;
        if records == 0 {
            return Err(Unreadable::Short);
        }
        num_read += records;
    }
    let texts = values.iter().map(|value| Ok(value_text(value)?.to_owned()));
    Ok(Column {
        values: texts.collect::<Result<_, Unreadable>>()?,
        defined,
        repeated,
    })
}

fn value_text(value: &ByteArray) -> Result<&str, Unreadable> {
    Ok(std::str::from_utf8(value.data())?)
}

fn read_times(group: &dyn RowGroupReader, number: usize) -> Result<Vec<i64>, Unreadable> {
    let mut reader = get_typed_column_reader::<Int64Type>(group.get_column_reader(number)?);
    let mut values = Vec::new();
    let num_rows = num_rows(group);
    while values.len() < num_rows {
        let left = num_rows - values.len();
        let (records, _, _) = reader.read_records(left, None, None, &mut values)?;
        if records == 0 {
            return Err(Unreadable::Short);
        }
    }
    Ok(values)
}

fn num_rows(group: &dyn RowGroupReader) -> usize {
    usize::try_from(group.metadata().num_rows()).unwrap_or_default()
}
