//! The connection through which entries are read, and their answer as it arrives.
//!
//! How large entries are shows only when they come, and behind thousands of small ones there may stand
//! a backlog of huge ones. So an answer is never in memory as a whole: entries are kept while there is
//! room for them. The others are read over; they are pending for us then, and are read again in their turn.
//!
//! # Why not the client's connection
//!
//! It hands out a reply once it has all of it, several times as large as what it holds. And a script in
//! Redis that looks at sizes before it takes anything costs Redis three times what the read itself does,
//! since all texts pass through the script.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use redis::{Cmd, RedisResult, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::source::Permit;

use super::connection::{LIBRARY, RESPONSE_TIMEOUT, Stream};
use super::failure::timed_out;
use super::replies::{RawEntry, unexpected};
use super::stream_id::StreamId;
use super::url::RedisUrl;

/// What is taken from the connection in one go. Smaller means more system calls; larger is no faster,
/// and is kept as long as the connection.
const CHUNK: usize = 64 * 1024;

/// The head of a part of an answer, or an error's text, is never longer.
const MAX_LINE: usize = 64 * 1024;

/// For longer texts room is made as they come, whatever their heads say.
const MAX_AHEAD: usize = 64 * 1024 * 1024;

/// A connection on which one command at a time is sent, and nothing but reads of entries.
pub(super) struct Reads {
    stream: Box<dyn Stream>,
    /// What has arrived and is not understood yet.
    buffer: BytesMut,
    /// How long the next piece of an answer may take.
    patience: Duration,
    id: Option<i64>,
}

/// What an answer may fill.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) permit: Permit,
    /// Nothing is taken yet: one entry is, however large.
    pub(super) must_take_one: bool,
}

impl Room {
    pub(super) fn use_up(&mut self, read: &EntriesRead) {
        let num_bytes = read.entries.iter().map(RawEntry::num_bytes).sum();
        let Permit {
            max_messages,
            max_bytes,
        } = &mut self.permit;
        *max_messages = max_messages.saturating_sub(read.entries.len());
        *max_bytes = max_bytes.saturating_sub(num_bytes);
        self.must_take_one &= read.entries.is_empty();
    }
}

/// What a read brought.
#[derive(Default)]
pub(super) struct EntriesRead {
    /// In the stream's order.
    pub(super) entries: Vec<RawEntry>,
    /// Those behind them for which there was no room, with their sizes.
    pub(super) left: Vec<(StreamId, usize)>,
}

impl EntriesRead {
    pub(super) fn num(&self) -> usize {
        self.entries.len() + self.left.len()
    }
}

/// What a part of an answer begins with; a length is `None` for nil.
#[derive(Debug, PartialEq)]
enum Head {
    List(Option<usize>),
    Text(Option<usize>),
    /// All of it: a number, a status or an error.
    Whole(Value),
}

impl Reads {
    /// Introduces itself on a new connection.
    pub(super) async fn greet(stream: Box<dyn Stream>, url: &RedisUrl) -> RedisResult<Self> {
        let mut reads = Self {
            stream,
            buffer: BytesMut::with_capacity(CHUNK),
            patience: RESPONSE_TIMEOUT,
            id: None,
        };
        if let Some(password) = &url.password {
            let mut command = redis::cmd("AUTH");
            command.arg(url.username.as_deref()).arg(password);
            reads.ask(&command).await?;
        }
        if url.database != 0 {
            reads.ask(redis::cmd("SELECT").arg(url.database)).await?;
        }
        let about_us = [
            ("LIB-NAME", LIBRARY),
            ("LIB-VER", env!("CARGO_PKG_VERSION")),
        ];
        for (what, value) in about_us {
            let mut command = redis::cmd("CLIENT");
            reads
                .try_ask(command.arg("SETINFO").arg(what).arg(value))
                .await?;
        }
        let id = reads.try_ask(redis::cmd("CLIENT").arg("ID")).await?;
        reads.id = match id {
            Value::Int(id) => Some(id),
            // Not to us.
            _ => None,
        };
        Ok(reads)
    }

    /// What the server calls this connection; `None` if it does not say, or not to us.
    pub(super) fn id(&self) -> Option<i64> {
        self.id
    }

    /// Sends an XREADGROUP of one stream and takes in what it brings. The first piece of the answer may
    /// take as long as said; each further one as long as any answer.
    ///
    /// # Errors
    ///
    /// Unless it is the server's answer, the connection cannot be used any more.
    pub(super) async fn entries(
        &mut self,
        command: &Cmd,
        mut room: Room,
        patience: Duration,
    ) -> RedisResult<EntriesRead> {
        self.send(command, patience).await?;
        let mut read = EntriesRead::default();
        let num_streams = match self.head().await? {
            Head::List(num) => num.unwrap_or(0),
            Head::Text(None) => 0,
            Head::Whole(Value::ServerError(error)) => return Err(error.into()),
            _ => return Err(unexpected("a list of streams")),
        };
        for _ in 0..num_streams {
            self.pair().await?;
            self.text().await?;
            for _ in 0..self.list().await?.unwrap_or(0) {
                self.entry(&mut read, &mut room).await?;
            }
        }
        Ok(read)
    }

    /// Takes in one entry, or reads over it.
    async fn entry(&mut self, read: &mut EntriesRead, room: &mut Room) -> RedisResult<()> {
        self.pair().await?;
        let id = self.text().await?;
        let id = std::str::from_utf8(&id)
            .ok()
            .and_then(|id| id.parse::<StreamId>().ok());
        let id = id.ok_or_else(|| unexpected("an id"))?;
        let num_texts = self.list().await?;
        let max_bytes = if room.must_take_one {
            usize::MAX
        } else {
            room.permit.max_bytes
        };
        // What is kept stands before all that is left.
        let may_be_kept = |size| read.left.is_empty() && size <= max_bytes;
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
            room.must_take_one = false;
            room.permit.max_bytes = room.permit.max_bytes.saturating_sub(size);
            let fields = num_texts.map(|_| pairs(texts)).transpose()?;
            read.entries.push(RawEntry { id, fields });
        } else {
            read.left.push((id, size));
        }
        Ok(())
    }

    /// A command that must succeed.
    async fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self.try_ask(command).await? {
            Value::ServerError(error) => Err(error.into()),
            value => Ok(value),
        }
    }

    /// A command whose answer is a number, a status or an error.
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

    /// The list that stands for a pair.
    async fn pair(&mut self) -> RedisResult<()> {
        match self.list().await? {
            Some(2) => Ok(()),
            _ => Err(unexpected("a pair")),
        }
    }

    async fn list(&mut self) -> RedisResult<Option<usize>> {
        match self.head().await? {
            Head::List(num) => Ok(num),
            Head::Text(None) => Ok(None),
            Head::Text(Some(_)) | Head::Whole(_) => Err(unexpected("a list")),
        }
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

    /// What has arrived, at least something.
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

fn pairs(texts: Vec<Bytes>) -> RedisResult<Vec<(Bytes, Bytes)>> {
    let mut pairs = Vec::with_capacity(texts.len() / 2);
    let mut texts = texts.into_iter();
    while let Some(name) = texts.next() {
        let value = texts.next();
        pairs.push((
            name,
            value.ok_or_else(|| unexpected("a value for each field"))?,
        ));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests;
