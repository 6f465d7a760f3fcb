//! A stream and its groups as they were at one moment.

use std::collections::HashMap;

use redis::streams::{StreamInfoGroup, StreamInfoGroupsReply, StreamPendingReply};
use redis::{FromRedisValue, ParsingError, Value, from_redis_value};

use super::stream_id::StreamId;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StreamSnapshot {
    pub(super) groups: Vec<Group>,
    pub(super) pending: PendingSummary,
    pub(super) length: u64,
    /// The last id of the stream; `None` if it was not asked for, since the groups are not ahead of
    /// where it was before.
    pub(super) end: Option<StreamId>,
    /// Of the master that was looked at.
    pub(super) epoch: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) num_consumers: u64,
    pub(super) last_delivered: StreamId,
    /// Entries not yet delivered; Redis does not always know.
    pub(super) lag: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PendingSummary {
    pub(super) num: u64,
    pub(super) smallest: Option<StreamId>,
    pub(super) by_consumer: HashMap<String, u64>,
}

impl StreamSnapshot {
    pub(super) fn group(&self, name: &str) -> Option<&Group> {
        find(&self.groups, name)
    }
}

pub(super) fn find<'a>(groups: &'a [Group], name: &str) -> Option<&'a Group> {
    groups.iter().find(|group| group.name == name)
}

impl FromRedisValue for StreamSnapshot {
    fn from_redis_value(reply: Value) -> Result<Self, ParsingError> {
        let (groups, pending, length, end): (Groups, PendingSummary, u64, String) =
            from_redis_value(reply)?;
        let end = (!end.is_empty()).then(|| end.parse()).transpose()?;
        Ok(Self {
            groups: groups.0,
            pending,
            length,
            end,
            epoch: 0,
        })
    }
}

pub(super) struct Groups(pub(super) Vec<Group>);

impl FromRedisValue for Groups {
    fn from_redis_value(reply: Value) -> Result<Self, ParsingError> {
        let StreamInfoGroupsReply { groups, .. } = from_redis_value(reply)?;
        let group = |group: StreamInfoGroup| {
            Ok(Group {
                num_consumers: as_u64(group.consumers),
                last_delivered: group.last_delivered_id.parse()?,
                lag: group.lag.map(as_u64),
                name: group.name,
            })
        };
        let groups: Result<_, ParsingError> = groups.into_iter().map(group).collect();
        groups.map(Self)
    }
}

impl FromRedisValue for PendingSummary {
    fn from_redis_value(reply: Value) -> Result<Self, ParsingError> {
        let StreamPendingReply::Data(pending) = from_redis_value(reply)? else {
            return Ok(Self::default());
        };
        let consumers = pending.consumers.into_iter();
        Ok(Self {
            num: as_u64(pending.count),
            smallest: Some(pending.start_id.parse()?),
            by_consumer: consumers
                .map(|consumer| (consumer.name, as_u64(consumer.pending)))
                .collect(),
        })
    }
}

pub(super) fn ids<'a>(
    texts: impl IntoIterator<Item = &'a String>,
) -> Result<Vec<StreamId>, ParsingError> {
    texts.into_iter().map(|text| text.parse()).collect()
}

pub(super) fn as_u64(num: usize) -> u64 {
    u64::try_from(num).unwrap_or(u64::MAX)
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

    fn group(last_delivered: Value) -> Value {
        list([
            bulk("name"),
            bulk("g"),
            bulk("consumers"),
            Value::Int(2),
            bulk("pending"),
            Value::Int(3),
            bulk("last-delivered-id"),
            last_delivered,
            bulk("entries-read"),
            Value::Nil,
            bulk("lag"),
            Value::Nil,
        ])
    }

    #[test]
    fn groups_and_what_is_pending_are_understood() {
        let nothing = list([Value::Int(0), Value::Nil, Value::Nil, Value::Nil]);
        let groups = list([group(bulk("7-0"))]);
        let reply = list([groups, nothing, Value::Int(4), bulk("")]);
        let snapshot: StreamSnapshot = from_redis_value(reply).unwrap();
        let group = snapshot.group("g").unwrap();
        assert_eq!((group.num_consumers, group.lag), (2, None));
        assert_eq!(group.last_delivered.to_string(), "7-0");
        assert_eq!(snapshot.pending, PendingSummary::default());
        assert_eq!((snapshot.length, snapshot.end), (4, None));
        let consumer = list([bulk("me"), bulk("1")]);
        let reply = list([Value::Int(1), bulk("5-1"), bulk("5-1"), list([consumer])]);
        let some: PendingSummary = from_redis_value(reply).unwrap();
        assert_eq!(some.smallest.unwrap().to_string(), "5-1");
        assert_eq!(some.by_consumer["me"], 1);
    }

    #[test]
    fn anything_else_is_an_error() {
        assert!(from_redis_value::<StreamSnapshot>(Value::Nil).is_err());
        assert!(from_redis_value::<Groups>(list([group(bulk("7"))])).is_err());
        assert!(from_redis_value::<Groups>(list([group(Value::Nil)])).is_err());
        assert!(from_redis_value::<StreamId>(Value::Okay).is_err());
    }
}
