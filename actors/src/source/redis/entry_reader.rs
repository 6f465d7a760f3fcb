//! The connection that entries are read through: their reply is taken in as it arrives.
//!
//! The size of an entry shows only when it comes, and thousands of small ones may be followed by huge ones.
//! So a reply is never in memory as a whole: entries are kept while there is room, and of the rest only ids
//! and sizes. Those are pending for this consumer then, and are read again in their turn.
//!
//! The client's own connection hands out a reply once it has all of it, and needs several times the memory
//! of its content. A script that looks at sizes first costs Redis three times as much as the read.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use redis::{Cmd, RedisResult, Value};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::delivery::{Content, Entry, Position, Rejection};
use crate::source::{Body, Permit};

use super::SOURCE_NAME;
use super::connection::{LIBRARY, RESPONSE_TIMEOUT, Stream};
use super::failure::{timed_out, unexpected};
use super::stream_id::StreamId;
use super::url::RedisUrl;

/// Bytes that are read from the connection at once. Smaller means more system calls; larger is no
/// faster, and is kept as long as the connection.
const CHUNK: usize = 64 * 1024;

/// The head of a part of a reply, or an error's text, is never longer.
const MAX_LINE: usize = 64 * 1024;

/// For longer texts room is made as they come, whatever their heads say.
const MAX_AHEAD: usize = 64 * 1024 * 1024;

/// A connection on which one command at a time is sent, and nothing but reads of entries.
pub(super) struct EntryReader {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
    patience: Duration,
    /// The server's id of this connection; `None` if it does not say, or not to us.
    pub(super) id: Option<i64>,
}

/// How much of a reply may be kept; less with each entry.
pub(super) struct Room {
    pub(super) permit: Permit,
    /// Nothing is kept yet: one entry is, however large.
    pub(super) must_take_one: bool,
}

impl Room {
    pub(super) fn new(permit: Permit) -> Self {
        Self {
            permit,
            must_take_one: true,
        }
    }
}

#[derive(Clone, Copy)]
pub(super) enum Reply {
    /// As XREADGROUP of one stream.
    Streams,
    /// A number of lost entries, and then as XREADGROUP.
    LostAndStreams,
    /// Entries, and the ids of those that are pending.
    Page,
}

pub(super) struct StreamEntry {
    pub(super) id: StreamId,
    /// `None` if its text is gone and only its id is still pending.
    pub(super) body: Option<Body>,
}

#[derive(Default)]
pub(super) struct EntriesRead {
    pub(super) entries: Vec<StreamEntry>,
    /// Those behind them for which there was no room, with their sizes.
    pub(super) skipped: Vec<(StreamId, usize)>,
    pub(super) num_lost: usize,
    pub(super) pending: Vec<StreamId>,
}

impl EntriesRead {
    pub(super) fn num(&self) -> usize {
        self.entries.len() + self.skipped.len()
    }
}

/// The beginning of a part of a reply; a length is `None` for nil.
enum Head {
    List(Option<usize>),
    Text(Option<usize>),
    /// All of it: a number, a status or an error.
    Whole(Value),
}

impl EntryReader {
    pub(super) async fn greet(stream: Box<dyn Stream>, url: &RedisUrl) -> RedisResult<Self> {
        let mut reader = Self {
            stream,
            buffer: BytesMut::with_capacity(CHUNK),
            patience: RESPONSE_TIMEOUT,
            id: None,
        };
        if let Some((username, password)) = url.login() {
            let mut command = redis::cmd("AUTH");
            command.arg(username).arg(password);
            reader.ask(&command).await?;
        }
        if url.database != 0 {
            reader.ask(redis::cmd("SELECT").arg(url.database)).await?;
        }
        let version = env!("CARGO_PKG_VERSION");
        for (what, value) in [("LIB-NAME", LIBRARY), ("LIB-VER", version)] {
            let mut command = redis::cmd("CLIENT");
            command.arg("SETINFO").arg(what).arg(value);
            reader.try_ask(&command).await?;
        }
        if let Value::Int(id) = reader.try_ask(redis::cmd("CLIENT").arg("ID")).await? {
            reader.id = Some(id);
        }
        Ok(reader)
    }

    /// Sends a command and takes in the entries that it brings. The first piece of the reply may take as
    /// long as `patience`; each further one as long as any reply. After an error that is not the server's
    /// reply the connection cannot be used any more.
    pub(super) async fn read(
        &mut self,
        command: &Cmd,
        reply: Reply,
        room: &mut Room,
        patience: Duration,
    ) -> RedisResult<EntriesRead> {
        self.send(command, patience).await?;
        let mut read = EntriesRead::default();
        let num = self.reply().await?;
        match reply {
            Reply::Streams => self.streams(num, &mut read, room).await?,
            Reply::LostAndStreams | Reply::Page if num != Some(2) => {
                return Err(unexpected("a pair"));
            }
            Reply::LostAndStreams => {
                let Head::Whole(Value::Int(num_lost)) = self.head().await? else {
                    return Err(unexpected("a number"));
                };
                read.num_lost = usize::try_from(num_lost).unwrap_or_default();
                let num_streams = self.list().await?;
                self.streams(num_streams, &mut read, room).await?;
            }
            Reply::Page => {
                self.entries(&mut read, room).await?;
                for _ in 0..self.list().await?.unwrap_or(0) {
                    read.pending.push(self.entry_id().await?);
                }
            }
        }
        Ok(read)
    }

    async fn streams(
        &mut self,
        num_streams: Option<usize>,
        read: &mut EntriesRead,
        room: &mut Room,
    ) -> RedisResult<()> {
        for _ in 0..num_streams.unwrap_or(0) {
            self.pair().await?;
            self.text().await?;
            self.entries(read, room).await?;
        }
        Ok(())
    }

    async fn entries(&mut self, read: &mut EntriesRead, room: &mut Room) -> RedisResult<()> {
        for _ in 0..self.list().await?.unwrap_or(0) {
            self.entry(read, room).await?;
        }
        Ok(())
    }

    async fn entry(&mut self, read: &mut EntriesRead, room: &mut Room) -> RedisResult<()> {
        self.pair().await?;
        let id = self.entry_id().await?;
        let num_texts = self.list().await?;
        let max_bytes = if room.must_take_one {
            usize::MAX
        } else {
            room.permit.max_bytes
        };
        // Kept entries stand before all that are skipped.
        let may_be_kept = |size| read.skipped.is_empty() && size <= max_bytes;
        let mut size = 0_usize;
        let mut texts = Vec::with_capacity(num_texts.unwrap_or(0).min(4));
        for _ in 0..num_texts.unwrap_or(0) {
            let num_bytes = self.text_head().await?;
            size = size.saturating_add(num_bytes);
            if may_be_kept(size) {
                texts.push(self.rest_of_text(num_bytes).await?);
            } else {
                texts = Vec::new();
                self.skip(num_bytes.saturating_add(2)).await?;
            }
        }
        if may_be_kept(size) {
            let Permit {
                max_messages,
                max_bytes,
            } = &mut room.permit;
            *max_messages = max_messages.saturating_sub(1);
            *max_bytes = max_bytes.saturating_sub(size);
            room.must_take_one = false;
            let body = num_texts.map(|_| body(id, &texts)).transpose()?;
            read.entries.push(StreamEntry { id, body });
        } else {
            read.skipped.push((id, size));
        }
        Ok(())
    }

    async fn entry_id(&mut self) -> RedisResult<StreamId> {
        let id = self.text().await?;
        let id = std::str::from_utf8(&id).ok().and_then(|id| id.parse().ok());
        id.ok_or_else(|| unexpected("an id"))
    }

    async fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self.try_ask(command).await? {
            Value::ServerError(error) => Err(error.into()),
            value => Ok(value),
        }
    }

    /// A command that may fail, and whose answer is a number, a status or an error.
    async fn try_ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.send(command, RESPONSE_TIMEOUT).await?;
        match self.head().await? {
            Head::Whole(value) => Ok(value),
            Head::List(_) | Head::Text(_) => Err(unexpected("a short answer")),
        }
    }

    async fn send(&mut self, command: &Cmd, patience: Duration) -> RedisResult<()> {
        let command = command.get_packed_command();
        let sent = timeout(RESPONSE_TIMEOUT, async {
            self.stream.write_all(&command).await?;
            self.stream.flush().await
        });
        sent.await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?;
        self.patience = patience;
        Ok(())
    }

    async fn reply(&mut self) -> RedisResult<Option<usize>> {
        match self.head().await? {
            Head::Whole(Value::ServerError(error)) => Err(error.into()),
            head => list(&head),
        }
    }

    async fn pair(&mut self) -> RedisResult<()> {
        match self.list().await? {
            Some(2) => Ok(()),
            _ => Err(unexpected("a pair")),
        }
    }

    async fn list(&mut self) -> RedisResult<Option<usize>> {
        list(&self.head().await?)
    }

    async fn text(&mut self) -> RedisResult<Bytes> {
        let num_bytes = self.text_head().await?;
        self.rest_of_text(num_bytes).await
    }

    async fn text_head(&mut self) -> RedisResult<usize> {
        match self.head().await? {
            Head::Text(Some(num_bytes)) => Ok(num_bytes),
            _ => Err(unexpected("a text")),
        }
    }

    /// A copy, so that no entry keeps more in memory than itself.
    async fn rest_of_text(&mut self, num_bytes: usize) -> RedisResult<Bytes> {
        let mut text = Vec::with_capacity(num_bytes.min(MAX_AHEAD));
        while text.len() < num_bytes {
            let some = self.some().await?;
            let some = &some[..some.len().min(num_bytes - text.len())];
            text.extend_from_slice(some);
            let num = some.len();
            self.buffer.advance(num);
        }
        self.skip(2).await?;
        Ok(text.into())
    }

    async fn skip(&mut self, num_bytes: usize) -> RedisResult<()> {
        let mut rest = num_bytes;
        while rest > 0 {
            let num = self.some().await?.len().min(rest);
            self.buffer.advance(num);
            rest -= num;
        }
        Ok(())
    }

    async fn head(&mut self) -> RedisResult<Head> {
        loop {
            if let Some((head, num_bytes)) = head(&self.buffer)? {
                self.buffer.advance(num_bytes);
                return Ok(head);
            }
            self.fill().await?;
        }
    }

    async fn some(&mut self) -> RedisResult<&[u8]> {
        if self.buffer.is_empty() {
            self.fill().await?;
        }
        Ok(&self.buffer)
    }

    async fn fill(&mut self) -> RedisResult<()> {
        self.buffer.reserve(CHUNK);
        let arriving = self.stream.read_buf(&mut self.buffer);
        let arrived = timeout(self.patience, arriving).await;
        self.patience = RESPONSE_TIMEOUT;
        match arrived {
            Ok(Ok(0)) => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(timed_out("no answer within its time")),
        }
    }
}

/// The head that these bytes begin with and its length, if it has arrived as a whole.
fn head(bytes: &[u8]) -> RedisResult<Option<(Head, usize)>> {
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        return match bytes.len() {
            0..=MAX_LINE => Ok(None),
            _ => Err(unexpected("a line")),
        };
    };
    let line = &bytes[..=end];
    let head = match line {
        [b'*', num @ .., b'\r', b'\n'] => Head::List(length(num)?),
        [b'$', num @ .., b'\r', b'\n'] => Head::Text(length(num)?),
        _ => Head::Whole(redis::parse_redis_value(line)?),
    };
    Ok(Some((head, line.len())))
}

fn list(head: &Head) -> RedisResult<Option<usize>> {
    match head {
        Head::List(num) => Ok(*num),
        Head::Text(None) => Ok(None),
        Head::Text(Some(_)) | Head::Whole(_) => Err(unexpected("a list")),
    }
}

/// A length; -1 is nil.
fn length(digits: &[u8]) -> RedisResult<Option<usize>> {
    if digits == b"-1" {
        return Ok(None);
    }
    let number = std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok());
    number.map(Some).ok_or_else(|| unexpected("a length"))
}

/// The event is the field `data`; the last one, should there be several, as a client that makes a map
/// of the fields sees it.
///
/// The field `attributes` is not looked at. Prefect's consumer leaves an entry pending for ever when
/// that is no JSON; but it only repeats the id and the name, and what is an event is stored.
fn body(id: StreamId, texts: &[Bytes]) -> RedisResult<Body> {
    let (fields, rest) = texts.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(unexpected("a value for each field"));
    }
    let position = Position::new(id.to_string());
    if let Some([_, data]) = fields.iter().rfind(|[field, _]| field == "data") {
        return Ok(Body::Raw {
            position,
            data: data.clone(),
        });
    }
    let rejection = Rejection {
        raw: Bytes::from(as_json(fields)),
        reason:
            "the stream's entry has no field `data`; what it has is kept as a list of fields and \
                 values"
                .to_owned(),
        event_id: None,
    };
    Ok(Body::Entry(Arc::new(Entry {
        source: Arc::from(SOURCE_NAME),
        position,
        content: Content::Rejected(rejection),
    })))
}

/// All fields in their order, as JSON; what is no UTF-8 as `{"hex": "…"}`.
fn as_json(fields: &[[Bytes; 2]]) -> String {
    let fields = fields
        .iter()
        .map(|[field, value]| json!([text_or_hex(field), text_or_hex(value)]));
    serde_json::Value::Array(fields.collect()).to_string()
}

fn text_or_hex(bytes: &[u8]) -> serde_json::Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({"hex": hex})
        }
    }
}

#[cfg(test)]
mod tests;
