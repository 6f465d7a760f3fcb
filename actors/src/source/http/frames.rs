//! WebSocket messages out of a request's bytes, and frames into a response's.
//!
//! # Why not `actix-ws`
//!
//! Its stream looks at a frame's size only when all of it is in memory, loses the bytes of a text
//! that is not UTF-8, which belong into a dead letter, and reports an error before the good
//! messages that came ahead of it. The framing itself is `actix-http`'s here as there.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_codec::{Decoder, Encoder};
use actix_http::ws::{CloseReason, Codec, Frame, Item, Message as Outgoing, ProtocolError};
use actix_web::error::PayloadError;
use actix_web::web;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};

use super::HttpSettings;

/// Messages below this are read without asking the budget for buffers: that many bytes every
/// connection may hold. Larger saves questions, smaller saves memory.
pub(super) const SMALL_MESSAGE_BYTES: usize = 64 * 1024;

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// A text or binary message, whole.
    Data(Bytes),
    Ping(Bytes),
    Pong,
    Close(Option<CloseReason>),
}

/// What cannot be read; the connection is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a message has more than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("a message stopped in its middle for {stalled:?}; send it again")]
    Stalled { stalled: Duration },
    #[error("a message was not there after {limit:?}; send smaller ones")]
    Slow { limit: Duration },
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// Cuts bytes into messages. Plain data, no waiting.
struct Frames {
    buffer: BytesMut,
    codec: Codec,
    limit: usize,
    /// The parts so far of a message that comes in several frames.
    parts: Option<BytesMut>,
}

impl Frames {
    fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            codec: Codec::new().max_size(limit),
            limit,
            parts: None,
        }
    }

    fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.codec = self.codec.clone().max_size(limit);
    }

    fn extend(&mut self, data: &Bytes) {
        self.buffer.extend_from_slice(data);
    }

    /// The next whole message; `None` if more bytes are needed.
    fn next(&mut self) -> Result<Option<Incoming>, FrameError> {
        loop {
            self.check_size()?;
            let Some(frame) = self.codec.decode(&mut self.buffer)? else {
                return Ok(None);
            };
            let message = match frame {
                Frame::Text(data) | Frame::Binary(data) => Incoming::Data(data),
                Frame::Ping(data) => Incoming::Ping(data),
                Frame::Pong(_) => Incoming::Pong,
                Frame::Close(reason) => Incoming::Close(reason),
                Frame::Continuation(item) => match self.join(item) {
                    Some(data) => Incoming::Data(data),
                    None => continue,
                },
            };
            return Ok(Some(message));
        }
    }

    fn join(&mut self, item: Item) -> Option<Bytes> {
        let parts = self.parts.get_or_insert_default();
        match item {
            Item::FirstText(data) | Item::FirstBinary(data) | Item::Continue(data) => {
                parts.extend_from_slice(&data);
                None
            }
            Item::Last(data) => {
                parts.extend_from_slice(&data);
                self.parts.take().map(BytesMut::freeze)
            }
        }
    }

    /// Refuses what is too large by its header, before it is in memory.
    fn check_size(&self) -> Result<(), FrameError> {
        let expected = self.announced().unwrap_or(0);
        let in_parts = self.parts.as_ref().map_or(0, BytesMut::len);
        let is_control = self.buffer.first().is_some_and(|first| first & 0x08 != 0);
        let whole = if is_control {
            expected
        } else {
            expected.saturating_add(in_parts)
        };
        if whole > self.limit {
            return Err(FrameError::TooLarge { limit: self.limit });
        }
        Ok(())
    }

    /// The size of the frame at the head of the buffer, once its header tells.
    fn announced(&self) -> Option<usize> {
        let length = match self.buffer.get(1)? & 0x7f {
            126 => u64::from(u16::from_be_bytes(self.header()?)),
            127 => u64::from_be_bytes(self.header()?),
            short => u64::from(short),
        };
        Some(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn header<const N: usize>(&self) -> Option<[u8; N]> {
        self.buffer.get(2..2 + N)?.try_into().ok()
    }

    /// How much a message that has begun and not ended takes of the budget; 0 for a small one.
    ///
    /// A message in parts does not tell its size: it takes what the largest would. Asking bit by
    /// bit, two connections could each hold what the other waits for.
    fn budget(&self) -> usize {
        match &self.parts {
            Some(parts) if parts.len() >= SMALL_MESSAGE_BYTES => self.limit,
            _ => match self.announced() {
                Some(announced) if announced < SMALL_MESSAGE_BYTES => 0,
                Some(_) if self.parts.is_some() => self.limit,
                Some(announced) => announced,
                None => 0,
            },
        }
    }
}

/// What [`cut_messages`] made of some bytes.
#[cfg(feature = "testing")]
#[derive(Debug)]
pub struct CutMessages {
    /// The messages, as debug output shows them.
    pub messages: Vec<String>,
    /// Why the rest was refused.
    pub error: Option<String>,
    /// The most bytes that were in memory between two pieces.
    pub most_held: usize,
}

/// Cuts bytes that arrive in pieces into messages, as a connection does; for tests from outside.
#[cfg(feature = "testing")]
pub fn cut_messages<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limit: usize) -> CutMessages {
    let mut frames = Frames::new(limit);
    let mut cut = CutMessages {
        messages: Vec::new(),
        error: None,
        most_held: 0,
    };
    for piece in pieces {
        frames.extend(&Bytes::copy_from_slice(piece));
        loop {
            match frames.next() {
                Ok(Some(message)) => cut.messages.push(format!("{message:?}")),
                Ok(None) => break,
                Err(error) => {
                    cut.error = Some(error.to_string());
                    return cut;
                }
            }
        }
        let in_parts = frames.parts.as_ref().map_or(0, BytesMut::len);
        cut.most_held = cut.most_held.max(frames.buffer.len() + in_parts);
    }
    cut
}

/// Reads the messages of one connection.
pub(super) struct Reader {
    payload: web::Payload,
    frames: Frames,
    budget: Arc<Semaphore>,
    reserved: Option<OwnedSemaphorePermit>,
    /// Who holds a part of the budget may let the connection rest for so long, from the last byte.
    stall_timeout: Duration,
    last_data: Instant,
    /// And for so long in all, from when it was given that part.
    body_timeout: Duration,
    reserved_at: Instant,
    ended: bool,
}

impl Reader {
    pub(super) fn new(
        payload: web::Payload,
        limit: usize,
        budget: Arc<Semaphore>,
        settings: &HttpSettings,
    ) -> Self {
        let now = Instant::now();
        Self {
            payload,
            frames: Frames::new(limit),
            budget,
            reserved: None,
            stall_timeout: settings.request_timeout,
            last_data: now,
            body_timeout: settings.body_timeout,
            reserved_at: now,
            ended: false,
        }
    }

    /// From now on, messages may have this many bytes.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.frames.set_limit(limit);
    }

    /// The next message; `None` when the connection has ended. Loses nothing when dropped.
    pub(super) async fn next(&mut self) -> Result<Option<Incoming>, FrameError> {
        loop {
            if let Some(message) = self.frames.next()? {
                return Ok(Some(message));
            }
            if self.ended {
                return Ok(None);
            }
            let budget = self.frames.budget();
            if budget > 0 && self.reserved.is_none() {
                let num = u32::try_from(budget).unwrap_or(u32::MAX);
                let reserved = Arc::clone(&self.budget).acquire_many_owned(num).await;
                // The budget is never closed.
                self.reserved = reserved.ok();
                self.reserved_at = Instant::now();
                self.last_data = self.reserved_at;
            }
            match self.next_data().await? {
                Some(Ok(data)) => {
                    self.last_data = Instant::now();
                    self.frames.extend(&data);
                }
                // How a connection broke is nobody's concern: what came whole was read.
                Some(Err(_)) | None => self.ended = true,
            }
        }
    }

    /// More bytes; a client that stops in the middle of a large message, or lets it trickle, must
    /// not keep the budget from all others.
    async fn next_data(&mut self) -> Result<Option<Result<Bytes, PayloadError>>, FrameError> {
        if self.reserved.is_none() {
            return Ok(self.payload.next().await);
        }
        let stalled = self.last_data + self.stall_timeout;
        let slow = self.reserved_at + self.body_timeout;
        timeout_at(stalled.min(slow), self.payload.next())
            .await
            .map_err(|_elapsed| match stalled < slow {
                true => FrameError::Stalled {
                    stalled: self.stall_timeout,
                },
                false => FrameError::Slow {
                    limit: self.body_timeout,
                },
            })
    }

    /// What the message that was read last has taken of the budget; to be kept as long as it.
    pub(super) fn take_reserved(&mut self) -> Option<OwnedSemaphorePermit> {
        self.reserved.take()
    }

    /// Reads on, and forgets, until the client closes or goes.
    pub(super) async fn discard(mut self) {
        // Whatever is larger than a close is not worth its memory any more: then bytes are
        // counted no longer, and the end of the connection is what is waited for.
        self.set_limit(SMALL_MESSAGE_BYTES);
        loop {
            match self.next().await {
                Ok(Some(Incoming::Close(_)) | None) => return,
                Ok(Some(_)) => {}
                Err(_) => break,
            }
        }
        self.frames.buffer = BytesMut::new();
        self.frames.parts = None;
        self.reserved = None;
        while let Some(Ok(_)) = self.payload.next().await {}
    }
}

/// Writes frames to one connection.
pub(super) struct Writer {
    frames: mpsc::Sender<Bytes>,
    codec: Codec,
}

/// The connection has gone.
#[derive(Debug)]
pub(super) struct Gone;

impl Writer {
    /// A writer, and the body of the response that carries its frames.
    pub(super) fn new() -> (Self, FrameBody) {
        // A few: a client that does not read its pongs is read no further.
        let (frames, receiver) = mpsc::channel(4);
        let writer = Self {
            frames,
            codec: Codec::new(),
        };
        (writer, FrameBody(receiver))
    }

    pub(super) async fn send(&mut self, message: Outgoing) -> Result<(), Gone> {
        let mut frame = BytesMut::new();
        self.codec.encode(message, &mut frame).map_err(|_| Gone)?;
        self.frames.send(frame.freeze()).await.map_err(|_| Gone)
    }

    /// Sends a ping, unless something else is on its way, which serves as well.
    pub(super) fn ping(&mut self) {
        let mut frame = BytesMut::new();
        if self
            .codec
            .encode(Outgoing::Ping(Bytes::new()), &mut frame)
            .is_ok()
        {
            // Whether the connection has gone is for `gone` to say.
            self.frames.try_send(frame.freeze()).ok();
        }
    }

    /// Resolves when the connection has gone.
    pub(super) async fn gone(&self) {
        self.frames.closed().await;
    }
}

/// The body of a WebSocket's response; ends with its [`Writer`].
pub(super) struct FrameBody(mpsc::Receiver<Bytes>);

impl Stream for FrameBody {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 200_000;

    /// What a client would send: masked, as they have to.
    fn encode(messages: Vec<Outgoing>) -> Vec<u8> {
        let mut codec = Codec::new().client_mode();
        let mut bytes = BytesMut::new();
        for message in messages {
            codec.encode(message, &mut bytes).unwrap();
        }
        bytes.to_vec()
    }

    fn read(frames: &mut Frames, bytes: &[u8], step: usize) -> Result<Vec<Incoming>, FrameError> {
        let mut messages = Vec::new();
        for chunk in bytes.chunks(step) {
            frames.extend(&Bytes::copy_from_slice(chunk));
            while let Some(message) = frames.next()? {
                messages.push(message);
            }
        }
        Ok(messages)
    }

    fn data(text: &'static [u8]) -> Incoming {
        Incoming::Data(Bytes::from_static(text))
    }

    #[test]
    fn joins_parts_and_lets_control_frames_through_between_them() {
        let bytes = encode(vec![
            Outgoing::Text("one".into()),
            Outgoing::Continuation(Item::FirstText("tw".into())),
            Outgoing::Ping("now".into()),
            Outgoing::Continuation(Item::Continue("".into())),
            Outgoing::Continuation(Item::Last("o".into())),
            Outgoing::Binary("three".into()),
            Outgoing::Close(None),
        ]);
        for step in [1, 3, bytes.len()] {
            let messages = read(&mut Frames::new(LIMIT), &bytes, step).unwrap();
            let expected = [
                data(b"one"),
                Incoming::Ping("now".into()),
                data(b"two"),
                data(b"three"),
                Incoming::Close(None),
            ];
            assert_eq!(messages, expected);
        }
    }

    #[test]
    fn keeps_the_bytes_of_what_is_not_utf_8() {
        let mut bytes = encode(vec![Outgoing::Binary(Bytes::from_static(b"\xff\xfe"))]);
        bytes[0] = 0x81; // the same frame, as text
        assert_eq!(
            read(&mut Frames::new(LIMIT), &bytes, 1).unwrap(),
            [data(b"\xff\xfe")]
        );
    }

    #[test]
    fn refuses_what_is_too_large_by_its_header() {
        let bytes = encode(vec![Outgoing::Binary(vec![0; LIMIT + 1].into())]);
        let mut frames = Frames::new(LIMIT);
        let error = read(&mut frames, &bytes[..10], 10).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { limit: LIMIT }));
        let bytes = encode(vec![Outgoing::Binary(vec![0; LIMIT].into())]);
        assert_eq!(
            read(&mut Frames::new(LIMIT), &bytes, 1000).unwrap().len(),
            1
        );
    }

    #[test]
    fn refuses_parts_that_are_too_large_together() {
        let bytes = encode(vec![
            Outgoing::Continuation(Item::FirstBinary(vec![0; LIMIT].into())),
            Outgoing::Ping("a ping is no part".into()),
            Outgoing::Continuation(Item::Last("1".into())),
        ]);
        let mut frames = Frames::new(LIMIT);
        let error = read(&mut frames, &bytes, 1000).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { limit: LIMIT }));
    }

    #[test]
    fn good_messages_come_before_the_error_behind_them() {
        let mut bytes = encode(vec![Outgoing::Text("good".into())]);
        bytes.extend_from_slice(&[0xff; 8]);
        let mut frames = Frames::new(LIMIT);
        frames.extend(&Bytes::from(bytes));
        assert_eq!(frames.next().unwrap(), Some(data(b"good")));
        assert!(matches!(frames.next(), Err(FrameError::Protocol(_))));
    }

    #[test]
    fn asks_for_room_once_and_only_for_large_messages() {
        let mut frames = Frames::new(LIMIT);
        assert_eq!(frames.budget(), 0);
        let small = encode(vec![Outgoing::Binary(
            vec![0; SMALL_MESSAGE_BYTES - 1].into(),
        )]);
        read(&mut frames, &small[..100], 100).unwrap();
        assert_eq!(frames.budget(), 0);
        let mut frames = Frames::new(LIMIT);
        let large = encode(vec![Outgoing::Binary(vec![0; SMALL_MESSAGE_BYTES].into())]);
        read(&mut frames, &large[..100], 100).unwrap();
        assert_eq!(frames.budget(), SMALL_MESSAGE_BYTES);
        let mut frames = Frames::new(LIMIT);
        let part = vec![0; SMALL_MESSAGE_BYTES - 1];
        let parts = encode(vec![
            Outgoing::Continuation(Item::FirstBinary(part.clone().into())),
            Outgoing::Continuation(Item::Continue(part.into())),
        ]);
        read(&mut frames, &parts, 1000).unwrap();
        assert_eq!(frames.budget(), LIMIT);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            step in 1_usize..50,
        ) {
            for message in read(&mut Frames::new(100), &bytes, step).unwrap_or_default() {
                if let Incoming::Data(data) = message {
                    prop_assert!(data.len() <= 100);
                }
            }
        }
    }
}
