//! WebSocket messages out of a request's bytes, and frames into a response's.
//!
//! `actix-ws` and the codec beneath it make room for a frame as soon as it is announced. `actix-ws`
//! also loses the bytes of a text that is not UTF-8, which belong into a dead letter, and reports
//! an error before the good messages ahead of it. So bytes go straight into their message as they
//! come; what is sent is framed by `actix-http`.

use std::convert::Infallible;
use std::sync::Arc;

use actix_codec::Encoder;
use actix_http::ws::{
    CloseCode, CloseReason, Codec, Message as Outgoing, OpCode, Parser, ProtocolError,
};
use actix_web::web;
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::HttpSettings;
use super::buffers::{Arrival, Buffers, Late, Patience, SMALL_BYTES, Share, grown};

/// A control frame's text has no more.
const MAX_CONTROL_BYTES: usize = 125;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Data(Bytes),
    Ping(Bytes),
    Pong,
    Close(Option<CloseReason>),
}

/// Why nothing more can be read; the connection is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a message has more than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("a message {0}; send it again, or smaller ones")]
    Late(#[from] Late),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

impl FrameError {
    /// The code of the close that tells the client of it.
    pub(super) fn close_code(&self) -> CloseCode {
        match self {
            Self::TooLarge { .. } => CloseCode::Size,
            Self::Protocol(_) => CloseCode::Protocol,
            Self::Late(_) => CloseCode::Again,
        }
    }
}

/// The next step of the reader.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Message(Incoming),
    Data,
    /// Bring room: the message is to have a buffer of this many bytes.
    Room(usize),
}

/// Cuts bytes into messages. Plain data, no waiting.
struct MessageAssembler {
    /// Bytes that came last and are not looked at yet.
    input: Bytes,
    header: Header,
    frame: Option<Frame>,
    message: Vec<u8>,
    is_continued: bool,
    control: Vec<u8>,
    limit: usize,
    /// How large the message's buffer may be.
    room: usize,
}

#[derive(Default)]
struct Header {
    bytes: [u8; Self::LONGEST],
    length: usize,
}

struct Frame {
    code: OpCode,
    is_last: bool,
    mask: [u8; 4],
    remaining: usize,
}

impl Header {
    const LONGEST: usize = 14;

    /// How many bytes it has, as far as is known yet.
    fn expected(&self) -> usize {
        if self.length < 2 {
            return 2 + 4;
        }
        let of_length = match self.bytes[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + of_length + 4
    }

    /// Takes what is missing from the input; whether that is all.
    fn fill(&mut self, input: &mut Bytes) -> Result<bool, ProtocolError> {
        while self.length < self.expected() {
            if input.is_empty() {
                return Ok(false);
            }
            self.bytes[self.length] = input.get_u8();
            self.length += 1;
            if self.length == 2 {
                self.check()?;
            }
        }
        Ok(true)
    }

    fn check(&self) -> Result<(), ProtocolError> {
        let [first, second, ..] = self.bytes;
        if first & 0x70 != 0 {
            let reserved = std::io::Error::other("a frame has reserved bits that are set");
            return Err(ProtocolError::Io(reserved));
        }
        if second & 0x80 == 0 {
            return Err(ProtocolError::UnmaskedFrame);
        }
        match OpCode::from(first & 0x0f) {
            OpCode::Bad => Err(ProtocolError::InvalidOpcode(first & 0x0f)),
            _ => Ok(()),
        }
    }

    /// The frame, as soon as its length is known; the mask, which comes last, only when all is there.
    fn frame(&self) -> Result<Option<Frame>, ProtocolError> {
        let at = self.expected() - 4;
        if self.length < at || self.length < 2 {
            return Ok(None);
        }
        let length = match &self.bytes[2..at] {
            [] => u64::from(self.bytes[1] & 0x7f),
            bytes => (bytes.iter()).fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        let remaining = usize::try_from(length)
            .ok()
            .filter(|length| isize::try_from(*length).is_ok())
            .ok_or(ProtocolError::Overflow)?;
        Ok(Some(Frame {
            code: OpCode::from(self.bytes[0] & 0x0f),
            is_last: self.bytes[0] & 0x80 != 0,
            mask: self.bytes[at..at + 4].try_into().unwrap_or_default(),
            remaining,
        }))
    }
}

impl Frame {
    fn is_control(&self) -> bool {
        matches!(self.code, OpCode::Ping | OpCode::Pong | OpCode::Close)
    }

    fn take(&mut self, num: usize, input: &mut Bytes, text: &mut Vec<u8>) {
        let start = text.len();
        text.extend_from_slice(&input[..num]);
        input.advance(num);
        unmask(&mut text[start..], self.mask);
        self.mask.rotate_left(num % 4);
        self.remaining -= num;
    }
}

fn unmask(text: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);
    let (words, rest) = text.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

impl MessageAssembler {
    fn new(limit: usize) -> Self {
        Self {
            input: Bytes::new(),
            header: Header::default(),
            frame: None,
            message: Vec::new(),
            is_continued: false,
            control: Vec::new(),
            limit,
            room: SMALL_BYTES,
        }
    }

    fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    fn extend(&mut self, data: Bytes) {
        debug_assert!(self.input.is_empty());
        self.input = data;
    }

    fn set_room(&mut self, room: usize) {
        self.room = room.max(SMALL_BYTES);
    }

    /// Whether a message has begun that is too large to be read without room.
    fn is_large(&self) -> bool {
        let announced = self.frame.as_ref().map_or(0, |frame| frame.remaining);
        self.message.len().saturating_add(announced) > SMALL_BYTES
    }

    fn next(&mut self) -> Result<Next, FrameError> {
        loop {
            let mut frame = match self.frame.take() {
                Some(frame) => frame,
                None => {
                    let is_whole = self.header.fill(&mut self.input)?;
                    let Some(frame) = self.header.frame()? else {
                        return Ok(Next::Data);
                    };
                    self.check(&frame)?;
                    if !is_whole {
                        return Ok(Next::Data);
                    }
                    self.header = Header::default();
                    frame
                }
            };
            let num = frame.remaining.min(self.input.len());
            if frame.is_control() {
                frame.take(num, &mut self.input, &mut self.control);
            } else if let Some(capacity) = self.lacking(&frame, num) {
                self.frame = Some(frame);
                return Ok(Next::Room(capacity));
            } else {
                frame.take(num, &mut self.input, &mut self.message);
            }
            if frame.remaining > 0 {
                self.frame = Some(frame);
                return Ok(Next::Data);
            }
            if let Some(message) = self.finish(&frame)? {
                return Ok(Next::Message(message));
            }
        }
    }

    /// Refuses a frame by its header, before anything of it is in memory.
    fn check(&self, frame: &Frame) -> Result<(), FrameError> {
        if frame.is_control() {
            if !frame.is_last {
                return Err(ProtocolError::ContinuationFragment(frame.code).into());
            }
            if frame.remaining > MAX_CONTROL_BYTES {
                return Err(ProtocolError::InvalidLength(frame.remaining).into());
            }
            return Ok(());
        }
        match (frame.code == OpCode::Continue, self.is_continued) {
            (true, false) => return Err(ProtocolError::ContinuationNotStarted.into()),
            (false, true) => return Err(ProtocolError::ContinuationStarted.into()),
            (true, true) | (false, false) => {}
        }
        if self.message.len().saturating_add(frame.remaining) > self.limit {
            return Err(FrameError::TooLarge { limit: self.limit });
        }
        Ok(())
    }

    /// Makes the buffer large enough for the next bytes; how large it would have to be, where there
    /// is no room.
    fn lacking(&mut self, frame: &Frame, num: usize) -> Option<usize> {
        let needed = self.message.len() + num;
        if needed <= self.message.capacity() {
            return None;
        }
        let announced = self.message.len() + frame.remaining;
        let capacity = if announced <= SMALL_BYTES {
            announced
        } else if frame.is_last {
            grown(self.message.capacity(), needed, announced)
        } else {
            grown(self.message.capacity(), needed, self.limit.max(announced))
        };
        if capacity > self.room {
            return Some(capacity);
        }
        self.message.reserve_exact(capacity - self.message.len());
        None
    }

    fn finish(&mut self, frame: &Frame) -> Result<Option<Incoming>, FrameError> {
        if frame.is_control() {
            let text = std::mem::take(&mut self.control);
            return Ok(Some(match frame.code {
                OpCode::Ping => Incoming::Ping(text.into()),
                OpCode::Close => Incoming::Close(Parser::try_parse_close_payload(&text)?),
                _ => Incoming::Pong,
            }));
        }
        self.is_continued = !frame.is_last;
        if self.is_continued {
            return Ok(None);
        }
        let mut message = std::mem::take(&mut self.message);
        // An event counts for its text, and keeps its buffer for as long as it waits.
        message.shrink_to_fit();
        self.room = SMALL_BYTES;
        Ok(Some(Incoming::Data(message.into())))
    }

    #[cfg(any(test, feature = "testing"))]
    fn num_held(&self) -> usize {
        self.message.capacity() + self.control.capacity()
    }
}

#[cfg(feature = "testing")]
#[doc(hidden)]
#[derive(Debug)]
pub struct CutMessages {
    pub messages: Vec<String>,
    pub error: Option<String>,
    pub most_held: usize,
}

/// Cuts bytes that arrive in pieces into messages, as a connection does; for tests from outside.
#[cfg(feature = "testing")]
pub fn cut_messages<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limit: usize) -> CutMessages {
    let mut frames = MessageAssembler::new(limit);
    let mut cut = CutMessages {
        messages: Vec::new(),
        error: None,
        most_held: 0,
    };
    for piece in pieces {
        frames.extend(Bytes::copy_from_slice(piece));
        loop {
            match frames.next() {
                Ok(Next::Message(message)) => cut.messages.push(format!("{message:?}")),
                Ok(Next::Room(room)) => frames.set_room(room),
                Ok(Next::Data) => break,
                Err(error) => {
                    cut.error = Some(error.to_string());
                    return cut;
                }
            }
        }
        cut.most_held = cut.most_held.max(frames.num_held());
    }
    cut
}

pub(super) struct MessageReader {
    payload: web::Payload,
    frames: MessageAssembler,
    /// The share of the message that is on its way, or was read last.
    share: Share,
    buffers: Arc<Buffers>,
    patience: Patience,
    arrival: Option<Arrival>,
    waits_since: Option<Instant>,
    ended: bool,
}

impl MessageReader {
    pub(super) fn new(
        payload: web::Payload,
        limit: usize,
        buffers: &Arc<Buffers>,
        settings: &HttpSettings,
    ) -> Self {
        Self {
            payload,
            frames: MessageAssembler::new(limit),
            share: Share::none(buffers),
            buffers: Arc::clone(buffers),
            patience: settings.patience(),
            arrival: None,
            waits_since: None,
            ended: false,
        }
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.frames.set_limit(limit);
    }

    /// The next message; `None` when the connection has ended. Loses nothing when dropped.
    pub(super) async fn next(&mut self) -> Result<Option<Incoming>, FrameError> {
        loop {
            match self.frames.next()? {
                Next::Message(message) => {
                    // One of control may come in the midst of another, whose time goes on.
                    if matches!(message, Incoming::Data(_)) {
                        self.arrival = None;
                    }
                    return Ok(Some(message));
                }
                Next::Room(room) => {
                    let since = *self.waits_since.get_or_insert_with(Instant::now);
                    self.share.grow(room).await;
                    self.waits_since = None;
                    self.frames.set_room(room);
                    let arrival = self.arrival.get_or_insert_with(Arrival::now);
                    arrival.waited(since);
                }
                Next::Data if self.ended => return Ok(None),
                Next::Data => self.read().await?,
            }
        }
    }

    async fn read(&mut self) -> Result<(), FrameError> {
        let data = if self.frames.is_large() {
            let arrival = *self.arrival.get_or_insert_with(Arrival::now);
            tokio::select! {
                biased;
                data = self.payload.next() => data,
                late = arrival.late(self.patience, &self.share) => return Err(late.into()),
            }
        } else {
            self.payload.next().await
        };
        match data {
            Some(Ok(data)) => {
                if let Some(arrival) = &mut self.arrival {
                    arrival.came();
                }
                self.frames.extend(data);
            }
            // How a connection broke is nobody's concern: what came whole was read.
            Some(Err(_)) | None => self.ended = true,
        }
        Ok(())
    }

    /// The share of the message that was read last; to be kept as long as it.
    pub(super) fn take_share(&mut self) -> Share {
        std::mem::replace(&mut self.share, Share::none(&self.buffers))
    }

    /// Reads on, and forgets, until the client closes or goes.
    pub(super) async fn discard(mut self) {
        // A message larger than a close is not worth its memory any more: from there on only the
        // end is awaited.
        self.set_limit(SMALL_BYTES);
        loop {
            match self.next().await {
                Ok(Some(Incoming::Close(_)) | None) => return,
                Ok(Some(_)) => {}
                Err(_) => break,
            }
        }
        let Self { mut payload, .. } = self;
        while let Some(Ok(_)) = payload.next().await {}
    }
}

/// So many frames wait to be sent.
const MAX_WAITING: usize = 4;

pub(super) struct FrameWriter {
    frames: mpsc::Sender<Bytes>,
    codec: Codec,
    /// The answer to the last ping: a client needs none to those before it.
    pong: Option<Bytes>,
}

#[derive(Debug)]
pub(super) struct Gone;

impl FrameWriter {
    /// A writer, and the body of the response that carries its frames and ends with it.
    pub(super) fn new() -> (Self, impl Stream<Item = Result<Bytes, Infallible>>) {
        // A client that does not read its pongs is read no further.
        let (frames, mut receiver) = mpsc::channel(MAX_WAITING);
        let writer = Self {
            frames,
            codec: Codec::new(),
            pong: None,
        };
        let body = stream::poll_fn(move |cx| receiver.poll_recv(cx)).map(Ok);
        (writer, body)
    }

    pub(super) async fn send(&mut self, message: Outgoing) -> Result<(), Gone> {
        let frame = self.encode(message)?;
        self.frames.send(frame).await.map_err(|_| Gone)
    }

    /// Puts a frame behind others, to be sent with them.
    pub(super) fn push(&mut self, message: Outgoing, frames: &mut BytesMut) -> Result<(), Gone> {
        self.codec.encode(message, frames).map_err(|_| Gone)
    }

    /// Sends frames that were put together.
    pub(super) async fn send_frames(&mut self, frames: Bytes) -> Result<(), Gone> {
        self.frames.send(frames).await.map_err(|_| Gone)
    }

    /// Waits until a frame can be sent without waiting.
    pub(super) async fn room(&self) -> Result<(), Gone> {
        self.frames.reserve().await.map(drop).map_err(|_| Gone)
    }

    /// Waits until none waits to be sent.
    pub(super) async fn all_sent(&self) -> Result<(), Gone> {
        let all = self.frames.reserve_many(MAX_WAITING).await;
        all.map(drop).map_err(|_| Gone)
    }

    fn encode(&mut self, message: Outgoing) -> Result<Bytes, Gone> {
        let mut frame = BytesMut::new();
        self.push(message, &mut frame)?;
        Ok(frame.freeze())
    }

    /// Sends a ping, unless something else is on its way, which serves as well.
    pub(super) fn ping(&mut self) {
        if let Ok(frame) = self.encode(Outgoing::Ping(Bytes::new())) {
            // Whether the connection has gone is for `gone` to say.
            self.frames.try_send(frame).ok();
        }
    }

    /// Answers a ping once [`send_pong`](Self::send_pong) is awaited.
    pub(super) fn owe_pong(&mut self, data: Bytes) -> Result<(), Gone> {
        self.pong = Some(self.encode(Outgoing::Pong(data))?);
        Ok(())
    }

    /// Sends the pong that is owed; waits for ever where none is. Loses nothing when dropped.
    pub(super) async fn send_pong(&mut self) -> Result<(), Gone> {
        if self.pong.is_none() {
            return std::future::pending().await;
        }
        let room = self.frames.reserve().await.map_err(|_| Gone)?;
        if let Some(pong) = self.pong.take() {
            room.send(pong);
        }
        Ok(())
    }

    pub(super) async fn gone(&self) {
        self.frames.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use actix_codec::Decoder as _;
    use actix_http::ws::{self, Item};
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 200_000;

    /// MessageAssembler of a client, which are masked.
    fn encode(messages: Vec<Outgoing>) -> Vec<u8> {
        let mut codec = Codec::new().client_mode();
        let mut bytes = BytesMut::new();
        for message in messages {
            codec.encode(message, &mut bytes).unwrap();
        }
        bytes.to_vec()
    }

    fn read(
        frames: &mut MessageAssembler,
        bytes: &[u8],
        step: usize,
    ) -> Result<Vec<Incoming>, FrameError> {
        let mut messages = Vec::new();
        for chunk in bytes.chunks(step) {
            frames.extend(Bytes::copy_from_slice(chunk));
            loop {
                match frames.next()? {
                    Next::Message(message) => messages.push(message),
                    Next::Room(room) => frames.set_room(room),
                    Next::Data => break,
                }
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
            let messages = read(&mut MessageAssembler::new(LIMIT), &bytes, step).unwrap();
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
            read(&mut MessageAssembler::new(LIMIT), &bytes, 1).unwrap(),
            [data(b"\xff\xfe")]
        );
    }

    #[test]
    fn refuses_what_is_too_large_by_its_header() {
        let bytes = encode(vec![Outgoing::Binary(vec![0; LIMIT + 1].into())]);
        let mut frames = MessageAssembler::new(LIMIT);
        let error = read(&mut frames, &bytes[..10], 10).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { limit: LIMIT }));
        let bytes = encode(vec![Outgoing::Binary(vec![0; LIMIT].into())]);
        assert_eq!(
            read(&mut MessageAssembler::new(LIMIT), &bytes, 1000)
                .unwrap()
                .len(),
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
        let mut frames = MessageAssembler::new(LIMIT);
        let error = read(&mut frames, &bytes, 1000).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { limit: LIMIT }));
    }

    #[test]
    fn good_messages_come_before_the_error_behind_them() {
        let mut bytes = encode(vec![Outgoing::Text("good".into())]);
        bytes.extend_from_slice(&[0xff; 8]);
        let mut frames = MessageAssembler::new(LIMIT);
        frames.extend(Bytes::from(bytes));
        assert_eq!(frames.next().unwrap(), Next::Message(data(b"good")));
        assert!(matches!(frames.next(), Err(FrameError::Protocol(_))));
    }

    #[test]
    fn asks_for_room_as_bytes_come_and_never_for_what_is_announced() {
        let mut frames = MessageAssembler::new(usize::MAX);
        let small = encode(vec![Outgoing::Binary(vec![0; SMALL_BYTES].into())]);
        frames.extend(small.into());
        assert!(matches!(frames.next(), Ok(Next::Message(_))));

        const ANNOUNCED: usize = 60_000_000;
        let mut header = vec![0x82, 0xff];
        header.extend((ANNOUNCED as u64).to_be_bytes());
        header.extend([0; 4]);
        frames.extend(header.into());
        assert_eq!(frames.next().unwrap(), Next::Data);
        assert_eq!((frames.num_held(), frames.is_large()), (0, true));
        let mut num_sent = 0;
        while num_sent < 1_000_000 {
            frames.extend(vec![1; 10_000].into());
            num_sent += 10_000;
            if let Next::Room(room) = frames.next().unwrap() {
                assert!(room <= 2 * num_sent, "{room} for {num_sent}");
                frames.set_room(room);
                assert_eq!(frames.next().unwrap(), Next::Data);
            }
            assert!(frames.num_held() <= frames.room);
        }
    }

    #[test]
    fn a_message_takes_no_more_than_its_text_once_it_is_whole() {
        for parts in [1, 3] {
            let mut messages: Vec<Outgoing> = (1..parts)
                .map(|_| Outgoing::Continuation(Item::Continue(vec![0; 30_000].into())))
                .collect();
            let last = vec![0; 30_000].into();
            messages.push(Outgoing::Continuation(Item::Last(last)));
            messages.insert(0, Outgoing::Continuation(Item::FirstText("a".into())));
            let read = read(&mut MessageAssembler::new(LIMIT), &encode(messages), 7_000).unwrap();
            let [Incoming::Data(data)] = read.as_slice() else {
                panic!("{read:?}");
            };
            let vec = Vec::from(data.clone());
            assert_eq!(
                (vec.len(), vec.capacity()),
                (parts * 30_000 + 1, parts * 30_000 + 1)
            );
        }
    }

    /// The messages that the codec of `actix-http` reads from the same bytes; none if it refuses them.
    fn by_another(bytes: &[u8]) -> (Vec<Incoming>, bool) {
        let mut codec = Codec::new().max_size(LIMIT);
        let mut buffer = BytesMut::from(bytes);
        let mut messages = Vec::new();
        let mut parts = Vec::new();
        loop {
            let frame = match codec.decode(&mut buffer) {
                Ok(Some(frame)) => frame,
                Ok(None) => return (messages, false),
                Err(_) => return (messages, true),
            };
            messages.push(match frame {
                ws::Frame::Text(data) | ws::Frame::Binary(data) => Incoming::Data(data),
                ws::Frame::Ping(data) => Incoming::Ping(data),
                ws::Frame::Pong(_) => Incoming::Pong,
                ws::Frame::Close(reason) => Incoming::Close(reason),
                ws::Frame::Continuation(Item::Last(data)) => {
                    parts.extend_from_slice(&data);
                    Incoming::Data(std::mem::take(&mut parts).into())
                }
                ws::Frame::Continuation(
                    Item::FirstText(data) | Item::FirstBinary(data) | Item::Continue(data),
                ) => {
                    parts.extend_from_slice(&data);
                    continue;
                }
            });
        }
    }

    /// Bytes that are mostly frames.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let length = prop_oneof![0_usize..10, 120_usize..130, Just(70_000)];
        let code = prop_oneof![0_u8..3, 8_u8..11, any::<u8>()];
        let frame = (code, any::<bool>(), length, any::<[u8; 4]>(), 0_u8..20);
        let frame = frame.prop_map(|(code, is_last, length, mask, odd)| {
            let first = code | if is_last { 0x80 } else { 0 };
            let masked = if odd == 0 { 0 } else { 0x80 };
            let mut bytes = vec![first];
            match length {
                0..126 => bytes.push(masked | length as u8),
                126..65_536 => {
                    bytes.push(masked | 126);
                    bytes.extend((length as u16).to_be_bytes());
                }
                _ => {
                    bytes.push(masked | 127);
                    bytes.extend((length as u64).to_be_bytes());
                }
            }
            bytes.extend(mask);
            bytes.extend((0..length).map(|at| at as u8));
            bytes
        });
        prop::collection::vec(frame, 0..6).prop_map(|frames| frames.concat())
    }

    proptest! {
        #[test]
        fn reads_what_another_reads_and_refuses_what_it_refuses(
            bytes in stream(),
            step in 1_usize..5_000,
        ) {
            let (expected, is_refused) = by_another(&bytes);
            let mut frames = MessageAssembler::new(LIMIT);
            let mut messages = Vec::new();
            let mut error = None;
            'all: for chunk in bytes.chunks(step) {
                frames.extend(Bytes::copy_from_slice(chunk));
                loop {
                    match frames.next() {
                        Ok(Next::Message(message)) => messages.push(message),
                        Ok(Next::Room(room)) => frames.set_room(room),
                        Ok(Next::Data) => break,
                        Err(refused) => {
                            error = Some(refused);
                            break 'all;
                        }
                    }
                }
            }
            prop_assert_eq!(messages, expected);
            // By its header alone a frame may be refused before the rest of it has come.
            prop_assert!(error.is_some() || !is_refused);
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            step in 1_usize..50,
        ) {
            for message in read(&mut MessageAssembler::new(100), &bytes, step).unwrap_or_default() {
                if let Incoming::Data(data) = message {
                    prop_assert!(data.len() <= 100);
                }
            }
        }
    }
}
