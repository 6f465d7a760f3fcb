//! Finds the end of each request in the bytes of a connection: the next one waits until the answer
//! is sent.
//!
//! actix-http takes pipelined requests all in while the first is at work, and confuses them: it
//! answers a HEAD as the request behind it, closes over a body that is not there yet, goes on after
//! it has said that it closes, and holds up to 16 heads. Here a body is handed on only as far as
//! its handler asks for it.

/// How much of a body is handed on before its handler asks for more.
const WINDOW: usize = 32 * 1024;

#[derive(Debug)]
pub(super) struct RequestFraming {
    position: Position,
    num_requests: usize,
    credit: usize,
    is_forgotten: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// In a head, of which so much has been seen.
    Head(HeadState),
    /// Behind a head whose request is about to begin.
    Begins,
    Body(Body),
    Answered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeadState {
    /// Nothing but empty lines, which count for nothing.
    Nothing,
    Line,
    LineEnd,
}

/// What is still to come of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Length(u64),
    Chunked(Chunked),
    /// It goes on until the connection ends, as a WebSocket does.
    Endless,
}

impl Body {
    pub(super) const NONE: Self = Self::Length(0);
    pub(super) const CHUNKED: Self = Self::Chunked(Chunked::Size(0));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunked {
    Size(u64),
    SizeLine(u64),
    Data(u64),
    DataEnd,
    /// Behind the last chunk, in a line that is empty so far, or is not.
    Trailer {
        is_empty: bool,
    },
}

impl RequestFraming {
    pub(super) fn new() -> Self {
        Self {
            position: Position::Head(HeadState::Nothing),
            num_requests: 0,
            credit: WINDOW,
            is_forgotten: false,
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.num_requests > 0
    }

    pub(super) fn begin(&mut self, body: Body) {
        self.num_requests += 1;
        self.credit = WINDOW;
        self.is_forgotten = false;
        self.position = match body {
            Body::NONE => Position::Answered,
            body => Position::Body(body),
        };
    }

    pub(super) fn end(&mut self) {
        self.num_requests = self.num_requests.saturating_sub(1);
    }

    /// Its handler has taken in all that was handed on, and asks for more; whether that was waited for.
    pub(super) fn ask(&mut self) -> bool {
        let was_waited_for = self.credit == 0;
        self.credit = self.credit.max(WINDOW);
        was_waited_for
    }

    pub(super) fn forget(&mut self) {
        self.is_forgotten = true;
    }

    /// Lets more of a forgotten body come, a window at a time, since it is read into one buffer;
    /// whether there was nothing else to wait for.
    pub(super) fn forget_more(&mut self) -> bool {
        let lets =
            self.is_forgotten && self.credit == 0 && matches!(self.position, Position::Body(_));
        if lets {
            self.credit = WINDOW;
        }
        lets
    }

    /// How many bytes may be handed on now; none while the next have to wait.
    pub(super) fn allowance(&mut self) -> usize {
        if self.position == Position::Answered && !self.is_busy() {
            self.position = Position::Head(HeadState::Nothing);
        }
        match self.position {
            Position::Head(_) => usize::MAX,
            Position::Begins | Position::Answered => 0,
            Position::Body(Body::Length(rest)) => {
                self.credit.min(usize::try_from(rest).unwrap_or(usize::MAX))
            }
            Position::Body(_) => self.credit,
        }
    }

    /// How many of these bytes, no more than the allowance, are handed on: up to the end of a head or of
    /// a body.
    pub(super) fn hand_on(&mut self, bytes: &[u8]) -> usize {
        let num = match &mut self.position {
            Position::Head(seen) => match seen.end(bytes) {
                Some(end) => {
                    self.position = Position::Begins;
                    return end;
                }
                None => return bytes.len(),
            },
            Position::Begins | Position::Answered => return 0,
            Position::Body(Body::Length(rest)) => {
                let num = bytes
                    .len()
                    .min(usize::try_from(*rest).unwrap_or(usize::MAX));
                *rest -= num as u64;
                if *rest == 0 {
                    self.position = Position::Answered;
                }
                num
            }
            Position::Body(Body::Chunked(chunked)) => match chunked.end(bytes) {
                Some(end) => {
                    self.position = Position::Answered;
                    end
                }
                None => bytes.len(),
            },
            Position::Body(Body::Endless) => bytes.len(),
        };
        self.credit = self.credit.saturating_sub(num);
        num
    }
}

impl HeadState {
    /// Where the head ends, if it ends within these bytes: behind its first empty line.
    fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, byte) in bytes.iter().enumerate() {
            *self = match (*self, byte) {
                (Self::LineEnd, b'\n') => return Some(at + 1),
                (Self::Line, b'\n') => Self::LineEnd,
                (seen, b'\r') => seen,
                (Self::Nothing, b'\n') => Self::Nothing,
                _ => Self::Line,
            };
        }
        None
    }
}

impl Chunked {
    fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            at += 1;
            *self = match *self {
                Self::Data(rest) => {
                    // All at once, this byte included.
                    let there = (bytes.len() - at) as u64 + 1;
                    let num = rest.min(there);
                    at += num as usize - 1;
                    match rest - num {
                        0 => Self::DataEnd,
                        rest => Self::Data(rest),
                    }
                }
                Self::Size(0) | Self::SizeLine(0) if *byte == b'\n' => {
                    Self::Trailer { is_empty: true }
                }
                Self::Size(size) | Self::SizeLine(size) if *byte == b'\n' => Self::Data(size),
                Self::Size(size) => match char::from(*byte).to_digit(16) {
                    Some(digit) => Self::Size(size.saturating_mul(16).saturating_add(digit.into())),
                    None => Self::SizeLine(size),
                },
                Self::SizeLine(size) => Self::SizeLine(size),
                Self::DataEnd if *byte == b'\n' => Self::Size(0),
                Self::DataEnd => Self::DataEnd,
                Self::Trailer { is_empty: true } if *byte == b'\n' => return Some(at),
                Self::Trailer { is_empty } => Self::Trailer {
                    is_empty: *byte == b'\n' || (is_empty && *byte == b'\r'),
                },
            };
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"GET /api/health HTTP/1.1\r\nhost: x\r\n\r\n";
    const CHUNKS: &[u8] = b"5\r\nhello\r\n1F;why=\"\n\r\n0123456789012345678901234567890\r\n\
                            0\r\nx: 0\r\n\r\n";

    /// Hands bytes on in pieces, as far as they may be; how many.
    fn hand_on(framing: &mut RequestFraming, bytes: &[u8], step: usize) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let num = step.min(bytes.len() - at).min(framing.allowance());
            let num = framing.hand_on(&bytes[at..at + num]);
            if num == 0 {
                break;
            }
            at += num;
        }
        at
    }

    #[test]
    fn the_next_head_waits_for_the_answer_before_it_however_the_bytes_come() {
        let endings: [&[u8]; 4] = [
            HEAD,
            b"\r\n\nGET / HTTP/1.1\nhost: x\n\n",
            b"GET / HTTP/1.1\r\n\n",
            b"GET / HTTP/1.1\n\r\n",
        ];
        for head in endings {
            for step in [1, 2, 3, 1000] {
                let mut framing = RequestFraming::new();
                let bytes = [head, HEAD, HEAD].concat();
                assert_eq!(hand_on(&mut framing, &bytes, step), head.len());
                assert_eq!(framing.allowance(), 0, "before it has begun");
                framing.begin(Body::NONE);
                assert_eq!(framing.allowance(), 0, "before it has ended");
                framing.end();
                let num = hand_on(&mut framing, &bytes[head.len()..], step);
                assert_eq!(num, HEAD.len());
            }
        }
    }

    #[test]
    fn a_body_is_handed_on_to_its_end() {
        let chunks = [b"0000\r\n\r\n", CHUNKS].map(|chunks| (Body::CHUNKED, chunks.to_vec()));
        let length = (Body::Length(10), b"0123456789".to_vec());
        for (kind, body) in chunks.into_iter().chain([length]) {
            for step in [1, 2, 7, 1000] {
                let mut framing = RequestFraming::new();
                framing.begin(kind);
                let bytes = [&body, HEAD].concat();
                assert_eq!(hand_on(&mut framing, &bytes, step), body.len(), "{body:?}");
                assert_eq!(framing.allowance(), 0);
                framing.end();
                assert_eq!(hand_on(&mut framing, HEAD, step), HEAD.len());
            }
        }
    }

    #[test]
    fn no_more_of_a_body_is_handed_on_than_is_asked_for() {
        for kind in [Body::Length(10 * WINDOW as u64), Body::Endless] {
            let mut framing = RequestFraming::new();
            framing.begin(kind);
            let bytes = vec![0; 10 * WINDOW];
            assert_eq!(hand_on(&mut framing, &bytes, 1000), WINDOW);
            assert!(framing.ask() && !framing.ask());
            assert_eq!(hand_on(&mut framing, &bytes, 1000), WINDOW);
            assert!(!framing.forget_more());
            framing.forget();
            for _ in 0..8 {
                assert!(framing.forget_more() && !framing.forget_more());
                assert_eq!(hand_on(&mut framing, &bytes, 1000), WINDOW);
            }
        }
    }

    #[test]
    fn an_answer_before_the_end_of_the_body_lets_the_rest_be_forgotten() {
        let mut framing = RequestFraming::new();
        framing.begin(Body::Length(100));
        framing.forget();
        framing.end();
        let bytes = [&[0; 100], HEAD, HEAD].concat();
        assert_eq!(hand_on(&mut framing, &bytes, 1000), 100 + HEAD.len());
    }
}
