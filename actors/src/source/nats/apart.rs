//! Reads messages apart whose headers the client cannot parse.
//!
//! The client drops the connection where such a message comes, and does not say which it was; what came behind it
//! is lost with it, until it is handed out again. So after a connection is lost once more while the same message is
//! missing, what is missing is asked for by its number: then headers are data like any other.

use async_nats::StatusCode;
use async_nats::header::HeaderName;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use tokio::time::Instant;

use super::api::{ConsumerInfo, StoredHead};
use super::connection::Link;
use super::delivery::{Delivered, Identity};
use super::failure::NatsError;
use super::member::{Member, stored};

/// Messages that are looked at after one loss. The first that is missing is among them, and one that nobody can read
/// stays the first.
const LOOKED_AT: u64 = 1_000;

/// Their text and headers in base64, at most but for those that are under way; that first one is always among them.
const LOOKED_AT_BYTES: usize = 64 << 20;

/// More at once would only take memory: each answer has a whole message.
const AT_ONCE: usize = 16;

struct Unreadable {
    delivered: Delivered,
    data: Bytes,
}

/// One message that was looked at.
#[derive(Default)]
struct Looked {
    num_bytes: usize,
    unreadable: Option<Unreadable>,
}

impl Member {
    /// The numbers of what the consumer has given, nobody has acknowledged and is not here.
    pub(super) fn missing(&self, consumer: &ConsumerInfo) -> Vec<u64> {
        let floor = consumer.ack_floor.stream_seq;
        let last = consumer.delivered.stream_seq.min(floor + LOOKED_AT);
        let reading = self.reading();
        (floor + 1..=last)
            .filter(|sequence| !reading.pending.has(*sequence))
            .collect()
    }

    /// Takes in what the client cannot read of these.
    pub(super) async fn read_apart(
        &self,
        link: &Link,
        consumer: &ConsumerInfo,
        sequences: Vec<u64>,
    ) -> Result<(), NatsError> {
        let mut messages = stream::iter(sequences)
            .map(|sequence| self.look_at(link, consumer, sequence))
            .buffered(AT_ONCE);
        let mut num_bytes = 0;
        while num_bytes < LOOKED_AT_BYTES
            && let Some(looked) = messages.try_next().await?
        {
            num_bytes += looked.num_bytes;
            let Some(Unreadable { delivered, data }) = looked.unreadable else {
                continue;
            };
            log::warn!(
                "the headers of a message cannot be read, and break the connection; it is read without them: see who \
                 publishes such nats.stream={} nats.sequence={}",
                self.settings.stream,
                delivered.identity.sequence
            );
            self.reading().pending.add(delivered, data, Instant::now());
        }
        Ok(())
    }

    /// Whether the message of this number, if it is there, is one that the client cannot read.
    async fn look_at(
        &self,
        link: &Link,
        consumer: &ConsumerInfo,
        sequence: u64,
    ) -> Result<Looked, NatsError> {
        let which = json!({ "seq": sequence });
        let Some(message) = stored(link, &self.settings, &which).await? else {
            return Ok(Looked::default());
        };
        let num_bytes = [&message.hdrs, &message.data]
            .into_iter()
            .flatten()
            .map(String::len)
            .sum();
        let is_readable = headers_of(&message)?.is_none_or(|headers| are_readable(&headers));
        if is_readable || !consumer.config.takes(&message.subject) {
            return Ok(Looked {
                num_bytes,
                unreadable: None,
            });
        }
        let delivered = self.as_delivered(&message);
        let data = decoded(message.data.as_deref())?.unwrap_or_default();
        let data = Bytes::from(data);
        Ok(Looked {
            num_bytes,
            unreadable: delivered.map(|delivered| Unreadable { delivered, data }),
        })
    }

    /// As if it had come: the server goes by stream, consumer and sequence.
    fn as_delivered(&self, message: &StoredHead) -> Option<Delivered> {
        let identity = Identity {
            sequence: message.seq,
            stored_at: message.stored_at()?,
        };
        let (stream, consumer) = (&self.settings.stream, &self.settings.consumer);
        Delivered::of(&format!(
            "$JS.ACK.{stream}.{consumer}.1.{}.0.{}.0",
            identity.sequence, identity.stored_at
        ))
    }
}

fn headers_of(message: &StoredHead) -> Result<Option<Vec<u8>>, NatsError> {
    decoded(message.hdrs.as_deref())
}

pub(super) fn decoded(text: Option<&str>) -> Result<Option<Vec<u8>>, NatsError> {
    let decoded = text.map(|text| BASE64_STANDARD.decode(text)).transpose();
    decoded.map_err(|error| NatsError::Unexpected(error.to_string()))
}

/// Whether the client can parse them, or nearly: one that is read apart without need only comes twice.
fn are_readable(headers: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(headers) else {
        return false;
    };
    let mut lines = text.lines();
    let status = lines.next().and_then(|line| line.strip_prefix("NATS/1.0"));
    let is_status = |status: &str| {
        let status = status.trim();
        let (status, _) = status.split_once(' ').unwrap_or((status, ""));
        status.trim().is_empty() || status.trim().parse::<StatusCode>().is_ok()
    };
    let mut is_in_value = false;
    let is_header = |line: &str| {
        let goes_on = is_in_value && line.starts_with(char::is_whitespace);
        let name = line.split_once(':').map(|(name, _)| name);
        is_in_value = goes_on || name.is_some_and(|name| name.parse::<HeaderName>().is_ok());
        is_in_value || line.is_empty()
    };
    status.is_some_and(is_status) && lines.all(is_header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_told_apart_as_the_client_does() {
        for readable in [
            "NATS/1.0\r\n\r\n",
            "NATS/1.0\r\nNats-Msg-Id: 1\r\nlong: a\r\n b\r\n\r\n",
            "NATS/1.0 404 x\r\n\r\n",
            "NATS/1.0\r\na: b\r\n c\r\n \r\n\r\nd: e\r\n\r\n",
        ] {
            assert!(are_readable(readable.as_bytes()), "{readable}");
        }
        for unreadable in [
            &b"NATS/1.0\r\na: \xff\r\n\r\n"[..],
            b"NATS/1.0\r\nof two words: b\r\n\r\n",
            b"NATS/1.0\r\n\xc3\xa4: b\r\n\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"NATS/1.0 none\r\n\r\n",
            b"NATS/1.0 404\tx\r\n\r\n",
            b"NATS/1.0\r\n folded\r\n\r\n",
            b"NATS/1.0\r\n a: folded\r\n\r\n",
            b"NATS/1.0\r\na: b\r\n\r\n folded\r\n\r\n",
            b"NATS/2.0\r\n\r\n",
        ] {
            assert!(!are_readable(unreadable), "{}", unreadable.escape_ascii());
        }
    }
}
