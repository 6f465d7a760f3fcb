//! One client's connection: its time-outs, and one request after the other.
//!
//! The time-outs of actix-http guard only the first head of a connection. A client that lets its
//! second head trickle, or never reads its answer, would keep the connection for ever. Here one
//! rule covers the handshake, every head and the time between requests.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Sleep, sleep};

use super::framing::{Body, RequestFraming};

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// When a connection is closed because of its client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// For the head of its first or next request.
    pub(super) idle: Duration,
    /// The same while all places are taken.
    pub(super) crowded: Duration,
    /// While it reads nothing of its answer. Its share of the buffers is small, but its place is one of
    /// few.
    pub(super) unread: Duration,
}

#[derive(Clone)]
pub(super) struct Signals {
    pub(super) crowded: watch::Receiver<bool>,
    /// Whether those without a request at work are to end.
    pub(super) closing: watch::Receiver<bool>,
}

/// A connection that ends by itself when its client takes too long.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    timeouts: Timeouts,
    requests: Rc<Requests>,
    /// Bytes that were read with the request at work, and belong to the next one.
    read_ahead: Bytes,
    signals: Signals,
    /// Runs while no request is at work.
    silence: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// Whether that was too long; then it has ended for good.
    silenced: bool,
    /// Runs while the client reads nothing.
    unread: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    /// A connection with a place of its own, or, without one, for a single answer.
    pub(super) fn new(
        stream: Box<dyn Stream>,
        timeouts: Timeouts,
        place: Option<OwnedSemaphorePermit>,
        signals: Signals,
    ) -> Self {
        Self {
            stream,
            timeouts,
            requests: Rc::new(Requests {
                framing: RefCell::new(RequestFraming::new()),
                reader: RefCell::new(None),
                place,
            }),
            read_ahead: Bytes::new(),
            signals,
            silence: None,
            silenced: false,
            unread: None,
        }
    }

    pub(super) fn requests(&self) -> Rc<Requests> {
        Rc::clone(&self.requests)
    }

    /// Whether the client has been silent for too long, or there is nothing to wait for any more.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.silenced {
            return Poll::Ready(());
        }
        self.requests.wake_later(cx.waker());
        if self.requests.framing.borrow().is_busy() {
            self.silence = None;
            return Poll::Pending;
        }
        let (timeouts, signals) = (self.timeouts, &self.signals);
        let silence = self
            .silence
            .get_or_insert_with(|| Box::pin(silent(timeouts, signals.clone())));
        let silenced = silence.as_mut().poll(cx);
        self.silenced = silenced.is_ready();
        silenced
    }

    /// Whether the client has read nothing for too long, given what came of a write.
    fn poll_unread<R>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let unread = self.timeouts.unread;
        let reads_nothing = self.unread.get_or_insert_with(|| Box::pin(sleep(unread)));
        let elapsed = reads_nothing.as_mut().poll(cx);
        elapsed.map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Bytes of the request whose turn it is, from what is read_ahead or from the client.
    fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut framing = self.requests.framing.borrow_mut();
        // Everything else that changes this wakes the reader.
        let allowance = framing.allowance().min(buffer.remaining());
        if allowance == 0 {
            if framing.forget_more() {
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
        if !self.read_ahead.is_empty() {
            let num = allowance.min(self.read_ahead.len());
            let num = framing.hand_on(&self.read_ahead[..num]);
            buffer.put_slice(&self.read_ahead[..num]);
            self.read_ahead.advance(num);
            return Poll::Ready(Ok(()));
        }
        let start = buffer.filled().len();
        let mut limited = ReadBuf::new(buffer.initialize_unfilled_to(allowance));
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut limited))?;
        let num_read = limited.filled().len();
        buffer.advance(num_read);
        let num = framing.hand_on(&buffer.filled()[start..]);
        if num < num_read {
            self.read_ahead = Bytes::copy_from_slice(&buffer.filled()[start + num..]);
            buffer.set_filled(start + num);
        }
        Poll::Ready(Ok(()))
    }
}

/// Resolves when a silence that begins now has been too long.
pub(super) async fn silent(timeouts: Timeouts, mut signals: Signals) {
    let crowded_out = async {
        sleep(timeouts.crowded).await;
        signals.crowded.wait_for(|crowded| *crowded).await.is_ok()
    };
    // An error would be that the listener itself has gone.
    tokio::select! {
        () = sleep(timeouts.idle) => {}
        _ = crowded_out => {}
        _ = signals.closing.wait_for(|closing| *closing) => {}
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.poll_silence(cx).is_ready() {
            // As if the client had gone: what it is still to be sent goes out before the end.
            return Poll::Ready(Ok(()));
        }
        this.poll_bytes(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, data);
        this.poll_unread(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.poll_unread(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.poll_unread(cx, shut)
    }
}

pub(super) struct Requests {
    framing: RefCell<RequestFraming>,
    /// Wakes the reader of the connection: the steps of a request are no events of the connection.
    reader: RefCell<Option<Waker>>,
    place: Option<OwnedSemaphorePermit>,
}

impl Requests {
    /// Whether there was no place, so that nothing may stay.
    pub(super) fn are_beyond_the_limit(&self) -> bool {
        self.place.is_none()
    }

    /// From here until the drop, a request is at work.
    pub(super) fn begin(self: Rc<Self>, body: Body) -> RequestGuard {
        self.change(|framing| framing.begin(body));
        RequestGuard(self)
    }

    pub(super) fn watch(self: Rc<Self>, payload: Payload) -> Payload {
        match payload {
            Payload::None => Payload::None,
            payload => Payload::Stream {
                payload: Box::pin(TrackedBody {
                    payload,
                    requests: self,
                }),
            },
        }
    }

    fn change(&self, change: impl FnOnce(&mut RequestFraming)) {
        change(&mut self.framing.borrow_mut());
        self.wake();
    }

    fn wake(&self) {
        if let Some(reader) = self.reader.borrow().as_ref() {
            reader.wake_by_ref();
        }
    }

    fn wake_later(&self, reader: &Waker) {
        let mut known = self.reader.borrow_mut();
        if !known.as_ref().is_some_and(|known| known.will_wake(reader)) {
            *known = Some(reader.clone());
        }
    }
}

pub(super) struct RequestGuard(Rc<Requests>);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.change(RequestFraming::end);
    }
}

struct TrackedBody {
    payload: Payload,
    requests: Rc<Requests>,
}

impl futures_util::Stream for TrackedBody {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut self.payload).poll_next(cx);
        if next.is_pending() && self.requests.framing.borrow_mut().ask() {
            self.requests.wake();
        }
        next
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        self.requests.change(RequestFraming::forget);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        idle: Duration::from_secs(10),
        crowded: Duration::from_secs(2),
        unread: Duration::from_secs(30),
    };

    struct Senders {
        crowd: watch::Sender<bool>,
        close: watch::Sender<bool>,
    }

    fn connection() -> (Connection, DuplexStream, Senders) {
        let (ours, theirs) = duplex(100);
        let (crowd, crowded) = watch::channel(false);
        let (close, closing) = watch::channel(false);
        let signals = Signals { crowded, closing };
        let connection = Connection::new(Box::new(ours), TIMEOUTS, None, signals);
        (connection, theirs, Senders { crowd, close })
    }

    async fn reads_to_its_end(connection: &mut Connection) -> Duration {
        let started = Instant::now();
        connection.read_to_end(&mut Vec::new()).await.unwrap();
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_trickles_ends_with_the_patience() {
        let (mut connection, mut client, _senders) = connection();
        let trickle = async {
            for byte in *b"GET /api/health HTTP/1.1" {
                client.write_u8(byte).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            () = trickle => panic!("it was let in"),
            took = reads_to_its_end(&mut connection) => assert_eq!(took, TIMEOUTS.idle),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_request_is_at_work_silence_is_no_matter_and_then_counts_anew() {
        let (mut connection, _client, _senders) = connection();
        let busy = connection.requests().begin(Body::NONE);
        let work = Duration::from_secs(1000);
        let answer = async {
            tokio::time::sleep(work).await;
            drop(busy);
        };
        let (took, ()) = tokio::join!(reads_to_its_end(&mut connection), answer);
        assert_eq!(took, work + TIMEOUTS.idle);
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_crowd_silence_is_shorter() {
        for crowded_after in [1, 5].map(Duration::from_secs) {
            let (mut connection, _client, senders) = connection();
            let crowd = async {
                sleep(crowded_after).await;
                senders.crowd.send(true).unwrap();
            };
            let (took, ()) = tokio::join!(reads_to_its_end(&mut connection), crowd);
            assert_eq!(took, TIMEOUTS.crowded.max(crowded_after));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn closing_ends_the_silent_at_once_and_the_busy_after_their_answer() {
        let (mut connection, _client, senders) = connection();
        let busy = connection.requests().begin(Body::NONE);
        let answer = async {
            senders.close.send(true).unwrap();
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(busy);
        };
        let (took, ()) = tokio::join!(reads_to_its_end(&mut connection), answer);
        assert_eq!(took, Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_is_given_up_and_who_reads_slowly_is_not() {
        let (mut connection, mut client, _senders) = connection();
        let _busy = connection.requests().begin(Body::NONE);
        let started = Instant::now();
        let slow = async {
            for _ in 0..10 {
                tokio::time::sleep(TIMEOUTS.unread - Duration::from_secs(1)).await;
                client.read_exact(&mut [0; 100]).await.unwrap();
            }
            client
        };
        let (written, _client) = tokio::join!(connection.write_all(&[0; 1100]), slow);
        written.unwrap();
        assert_eq!(
            started.elapsed(),
            (TIMEOUTS.unread - Duration::from_secs(1)) * 10
        );
        let started = Instant::now();
        let error = connection.write_all(&[0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed(), TIMEOUTS.unread);
    }
}
