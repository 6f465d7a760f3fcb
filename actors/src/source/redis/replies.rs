//! What Redis answers, as data. Nothing here waits, and nothing that is sent can break it.

use std::collections::HashMap;

use bytes::Bytes;
use redis::{ErrorKind, RedisError, RedisResult, Value};

use super::stream_id::StreamId;

/// One entry of a stream; without fields if its text is gone and only its id is still pending.
pub(super) struct RawEntry {
    pub(super) id: StreamId,
    pub(super) fields: Option<Vec<(Bytes, Bytes)>>,
}

impl RawEntry {
    /// Of all texts in it.
    pub(super) fn num_bytes(&self) -> usize {
        let fields = self.fields.iter().flatten();
        fields.map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// What XAUTOCLAIM found.
pub(super) struct Claimed {
    /// Where to go on; zero at the end.
    pub(super) next: StreamId,
    pub(super) entries: Vec<RawEntry>,
    /// Ids whose text is gone (since Redis 7.0).
    pub(super) deleted: Vec<StreamId>,
    /// Whether some text is gone and Redis does not say whose (before 7.0).
    pub(super) some_deleted: bool,
}

/// A group as XINFO GROUPS shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) consumers: u64,
    pub(super) pending: u64,
    pub(super) last_delivered: StreamId,
    /// Entries not yet delivered; Redis does not always know.
    pub(super) lag: Option<u64>,
}

/// What is pending in a group, as the short form of XPENDING shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) num: u64,
    pub(super) smallest: Option<StreamId>,
    pub(super) by_consumer: HashMap<String, u64>,
}

/// The entries of the one stream that an XREADGROUP asked for.
pub(super) fn entries_read(reply: Value) -> RedisResult<Vec<RawEntry>> {
    let Some(streams) = array_or_nil(reply)? else {
        return Ok(Vec::new());
    };
    let mut entries = Vec::new();
    for stream in streams {
        let [_, of_stream] = fixed(stream)?;
        for entry in array(of_stream)? {
            entries.push(raw_entry(entry)?);
        }
    }
    Ok(entries)
}

/// Entries that nobody was given before.
pub(super) struct NewEntries {
    /// Whether there are more at once.
    pub(super) more: bool,
    pub(super) entries: Vec<RawEntry>,
}

/// What the script that reads within a number of bytes has taken.
pub(super) fn read_within(reply: Value) -> RedisResult<NewEntries> {
    let [more, entries] = fixed(reply)?;
    let entries = array(entries)?.into_iter().map(raw_entry);
    Ok(NewEntries {
        more: number(more)? > 0,
        entries: entries.collect::<RedisResult<_>>()?,
    })
}

/// Entries of the stream, and the ids of those that are pending.
pub(super) fn page(reply: Value) -> RedisResult<(Vec<RawEntry>, Vec<StreamId>)> {
    let [entries, pending] = fixed(reply)?;
    let entries = array(entries)?.into_iter().map(raw_entry);
    Ok((entries.collect::<RedisResult<_>>()?, ids_of(pending)?))
}

pub(super) fn claimed(reply: Value) -> RedisResult<Claimed> {
    let mut parts = array(reply)?.into_iter();
    let next = id(parts.next().unwrap_or(Value::Nil))?;
    let mut entries = Vec::new();
    let mut some_deleted = false;
    for entry in array(parts.next().unwrap_or(Value::Nil))? {
        if entry == Value::Nil {
            some_deleted = true;
        } else {
            entries.push(raw_entry(entry)?);
        }
    }
    let deleted = match parts.next() {
        Some(ids) => ids_of(ids)?,
        None => Vec::new(),
    };
    Ok(Claimed {
        next,
        entries,
        deleted,
        some_deleted,
    })
}

/// The ids of an XPENDING with a range.
pub(super) fn pending_ids(reply: Value) -> RedisResult<Vec<StreamId>> {
    array(reply)?
        .into_iter()
        .map(|entry| id(array(entry)?.into_iter().next().unwrap_or(Value::Nil)))
        .collect()
}

/// A list of ids.
pub(super) fn ids_of(reply: Value) -> RedisResult<Vec<StreamId>> {
    array(reply)?.into_iter().map(id).collect()
}

/// The short form of XPENDING.
pub(super) fn pending(reply: Value) -> RedisResult<Pending> {
    let [num, smallest, _, consumers] = fixed(reply)?;
    let mut by_consumer = HashMap::new();
    for consumer in array_or_nil(consumers)?.unwrap_or_default() {
        let [name, num] = fixed(consumer)?;
        by_consumer.insert(text(name)?, number(num)?);
    }
    Ok(Pending {
        num: number(num)?,
        smallest: match smallest {
            Value::Nil => None,
            smallest => Some(id(smallest)?),
        },
        by_consumer,
    })
}

/// How many entries were removed unread, and then what was read.
pub(super) fn losses_and_read(reply: Value) -> RedisResult<(u64, NewEntries)> {
    let [lost, read] = fixed(reply)?;
    let [lost] = numbers(lost)?;
    Ok((lost, read_within(read)?))
}

/// What was seen of a stream, at one moment.
pub(super) struct Sight {
    pub(super) groups: Vec<Group>,
    pub(super) pending: Pending,
    pub(super) length: u64,
    /// The last id of the stream; `None` if it was not asked for, since the groups are not ahead of
    /// where it was before.
    pub(super) end: Option<StreamId>,
}

pub(super) fn sight(reply: Value) -> RedisResult<Sight> {
    let [seen, in_group, length, end] = fixed(reply)?;
    let end = text(end)?;
    Ok(Sight {
        groups: groups(seen)?,
        pending: pending(in_group)?,
        length: number(length)?,
        end: match end.as_str() {
            "" => None,
            end => Some(
                end.parse()
                    .map_err(|()| unexpected("the stream's last id"))?,
            ),
        },
    })
}

pub(super) fn groups(reply: Value) -> RedisResult<Vec<Group>> {
    array(reply)?.into_iter().map(group).collect()
}

fn group(reply: Value) -> RedisResult<Group> {
    let mut fields = named(reply)?;
    let mut take = |name: &str| fields.remove(name).unwrap_or(Value::Nil);
    Ok(Group {
        name: text(take("name"))?,
        consumers: number(take("consumers"))?,
        pending: number(take("pending"))?,
        last_delivered: id(take("last-delivered-id"))?,
        lag: number(take("lag")).ok(),
    })
}

/// A consumer as XINFO CONSUMERS shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Consumer {
    pub(super) name: String,
    pub(super) pending: u64,
    /// Milliseconds since it last did something.
    pub(super) idle: u64,
}

pub(super) fn consumers(reply: Value) -> RedisResult<Vec<Consumer>> {
    array(reply)?
        .into_iter()
        .map(|consumer| {
            let mut fields = named(consumer)?;
            let mut take = |name: &str| fields.remove(name).unwrap_or(Value::Nil);
            Ok(Consumer {
                name: text(take("name"))?,
                pending: number(take("pending"))?,
                idle: number(take("idle"))?,
            })
        })
        .collect()
}

/// A text that is not needed to the letter.
pub(super) fn lossy_text(reply: Value) -> RedisResult<String> {
    match reply {
        // RESP3 says which format it is in.
        Value::VerbatimString { text, .. } => Ok(text),
        reply => text(reply),
    }
}

/// Numbers that a script answered.
pub(super) fn numbers<const N: usize>(reply: Value) -> RedisResult<[u64; N]> {
    let numbers: Vec<u64> = array(reply)?
        .into_iter()
        .map(number)
        .collect::<RedisResult<_>>()?;
    numbers
        .try_into()
        .map_err(|_| unexpected("so many numbers"))
}

/// Texts that a script answered.
pub(super) fn texts(reply: Value) -> RedisResult<Vec<String>> {
    array(reply)?.into_iter().map(text).collect()
}

pub(super) fn number(reply: Value) -> RedisResult<u64> {
    match reply {
        Value::Int(number) => u64::try_from(number).map_err(|_| unexpected("a count")),
        // XPENDING counts in strings.
        Value::BulkString(digits) => std::str::from_utf8(&digits)
            .ok()
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| unexpected("a number")),
        _ => Err(unexpected("a number")),
    }
}

fn raw_entry(reply: Value) -> RedisResult<RawEntry> {
    let [key, fields] = fixed(reply)?;
    let fields = array_or_nil(fields)?.map(pairs).transpose()?;
    Ok(RawEntry {
        id: id(key)?,
        fields,
    })
}

fn pairs(values: Vec<Value>) -> RedisResult<Vec<(Bytes, Bytes)>> {
    let mut pairs = Vec::with_capacity(values.len() / 2);
    let mut values = values.into_iter();
    while let Some(field) = values.next() {
        let value = values
            .next()
            .ok_or_else(|| unexpected("a value for each field"))?;
        pairs.push((bytes(field)?, bytes(value)?));
    }
    Ok(pairs)
}

/// A list of names and values, or a map.
fn named(reply: Value) -> RedisResult<HashMap<String, Value>> {
    if let Value::Map(map) = reply {
        return map
            .into_iter()
            .map(|(name, value)| Ok((text(name)?, value)))
            .collect();
    }
    let mut named = HashMap::new();
    let mut values = array(reply)?.into_iter();
    while let (Some(name), Some(value)) = (values.next(), values.next()) {
        named.insert(text(name)?, value);
    }
    Ok(named)
}

fn bytes(value: Value) -> RedisResult<Bytes> {
    match value {
        Value::BulkString(bytes) => Ok(bytes.into()),
        Value::SimpleString(text) => Ok(text.into()),
        Value::Okay => Ok(Bytes::from_static(b"OK")),
        _ => Err(unexpected("a string")),
    }
}

fn text(value: Value) -> RedisResult<String> {
    Ok(String::from_utf8_lossy(&bytes(value)?).into_owned())
}

fn id(value: Value) -> RedisResult<StreamId> {
    text(value)?
        .parse()
        .map_err(|()| unexpected("an entry's id"))
}

fn array(value: Value) -> RedisResult<Vec<Value>> {
    array_or_nil(value)?.ok_or_else(|| unexpected("a list"))
}

fn array_or_nil(value: Value) -> RedisResult<Option<Vec<Value>>> {
    match value {
        Value::Nil => Ok(None),
        Value::Array(values) | Value::Set(values) => Ok(Some(values)),
        Value::ServerError(error) => Err(error.into()),
        _ => Err(unexpected("a list")),
    }
}

fn fixed<const N: usize>(value: Value) -> RedisResult<[Value; N]> {
    array(value)?
        .try_into()
        .map_err(|_| unexpected("a list of another length"))
}

pub(super) fn unexpected(wanted: &'static str) -> RedisError {
    let what = "the answer has another form than Redis documents";
    RedisError::from((
        ErrorKind::UnexpectedReturnType,
        what,
        format!("wanted {wanted}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn list<const N: usize>(values: [Value; N]) -> Value {
        Value::Array(values.to_vec())
    }

    #[test]
    fn a_read_may_bring_nothing_and_entries_without_text() {
        assert!(entries_read(Value::Nil).unwrap().is_empty());
        let entry = list([bulk("5-1"), list([bulk("data"), bulk("{}")])]);
        let gone = list([bulk("5-2"), Value::Nil]);
        let reply = list([list([bulk("events"), list([entry, gone])])]);
        let entries = entries_read(reply).unwrap();
        assert_eq!(entries[0].fields.as_ref().unwrap()[0].0, "data");
        assert_eq!(entries[1].id.to_string(), "5-2");
        assert!(entries[1].fields.is_none());
    }

    #[test]
    fn both_forms_of_xautoclaim_are_understood() {
        let entry = list([bulk("5-1"), list([bulk("data"), bulk("{}")])]);
        let old = list([bulk("0-0"), list([entry.clone(), Value::Nil])]);
        let old = claimed(old).unwrap();
        assert!(old.some_deleted && old.deleted.is_empty());
        assert_eq!(old.entries.len(), 1);
        let new = list([bulk("6-0"), list([entry]), list([bulk("5-9")])]);
        let new = claimed(new).unwrap();
        assert!(!new.some_deleted);
        assert_eq!(new.deleted[0].to_string(), "5-9");
        assert_eq!(new.next.to_string(), "6-0");
    }

    #[test]
    fn groups_and_what_is_pending_are_understood() {
        let reply = list([list([
            bulk("name"),
            bulk("g"),
            bulk("consumers"),
            Value::Int(2),
            bulk("pending"),
            Value::Int(3),
            bulk("last-delivered-id"),
            bulk("7-0"),
            bulk("entries-read"),
            Value::Nil,
            bulk("lag"),
            Value::Nil,
        ])]);
        let group = groups(reply).unwrap().remove(0);
        assert_eq!((group.consumers, group.pending, group.lag), (2, 3, None));
        let nothing = list([Value::Int(0), Value::Nil, Value::Nil, Value::Nil]);
        assert_eq!(pending(nothing).unwrap(), Pending::default());
        let consumer = list([bulk("me"), bulk("1")]);
        let reply = list([Value::Int(1), bulk("5-1"), bulk("5-1"), list([consumer])]);
        let some = pending(reply).unwrap();
        assert_eq!(some.smallest.unwrap().to_string(), "5-1");
        assert_eq!(some.by_consumer["me"], 1);
    }

    #[test]
    fn anything_else_is_an_error() {
        assert!(entries_read(Value::Okay).is_err());
        assert!(claimed(Value::Nil).is_err());
        assert!(pending_ids(list([Value::Int(1)])).is_err());
        assert!(groups(list([list([bulk("name"), bulk("g")])])).is_err());
    }
}
