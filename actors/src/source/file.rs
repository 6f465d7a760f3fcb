//! Source: events from any reader, such as a file or the standard input.
//!
//! Most often they are newline-delimited. A list of events, and events that are spread over several lines,
//! are recognised by the beginning and read one event at a time. A byte-order mark is skipped; an encoding
//! other than UTF-8 is refused before anything is taken.
//!
//! Lines end at `\n` alone; blank lines are skipped. A line longer than the limit goes on as a rejection that
//! keeps its beginning. Memory holds one line at most and what the pipeline has not acknowledged.
//!
//! When the reader fails, the lines before are handed out, and then every read reports it. Reading is not
//! tried again: a false end of file after an error would lose events without a word.
//!
//! Reading has a thread of its own, since a read of a terminal or a pipe may never return, and the runtime
//! waits at its shutdown for every blocking task.

use std::io::{self, Read};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use futures_util::future::LocalBoxFuture;
use tokio::sync::Notify;

use crate::delivery::{Content, Entry, Position, Receipt, Rejection};

use super::{Body, Chunk, EventSource, More, Permit, Retained, SourceError, lock};

mod documents;
mod lines;

use lines::{Item, Lines, Text, Unreadable};

/// The source's name in dead letters, metrics and logs.
pub const SOURCE_NAME: &str = "file";

/// The default of the longest line that is taken as an event.
pub const DEFAULT_MAX_LINE_BYTES: usize = 64 * 1024 * 1024;

/// How far a file has been read; shared, to be looked at from anywhere.
#[derive(Debug, Default)]
pub struct FileProgress {
    num_bytes: AtomicU64,
    num_lines: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl FileProgress {
    /// Bytes read so far, line ends included.
    pub fn num_bytes(&self) -> u64 {
        self.num_bytes.load(Ordering::Relaxed)
    }

    /// Messages read so far: lines that are not blank, or elements of a list.
    pub fn num_lines(&self) -> u64 {
        self.num_lines.load(Ordering::Relaxed)
    }

    /// Why nothing more is read, if the reader failed. It is final: every read reports it.
    pub fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }
}

/// Hands out the lines of one reader.
pub struct FileSource {
    shared: Arc<FileState>,
    /// Asks the reading thread for the next lines; the thread ends with this.
    requests: Mutex<Option<mpsc::Sender<Permit>>>,
}

impl FileSource {
    /// Reads lines from `reader`; `name` stands for it in positions and errors.
    ///
    /// # Errors
    ///
    /// The system gives no thread to read with.
    pub fn new(
        reader: Box<dyn Read + Send>,
        name: impl Into<Arc<str>>,
        max_line_bytes: usize,
    ) -> io::Result<Self> {
        let progress = Arc::new(FileProgress::default());
        let lines = Lines::new(reader, max_line_bytes, Arc::clone(&progress));
        let shared = Arc::new(FileState {
            name: name.into(),
            progress,
            changed: Notify::new(),
            state: Mutex::default(),
        });
        let (requests, receiver) = mpsc::channel();
        let for_thread = Arc::clone(&shared);
        thread::Builder::new()
            .name("file-source".to_owned())
            .spawn(move || for_thread.serve(lines, &receiver))?;
        Ok(Self {
            shared,
            requests: Mutex::new(Some(requests)),
        })
    }

    /// How far it has been read.
    pub fn progress(&self) -> Arc<FileProgress> {
        Arc::clone(&self.shared.progress)
    }

    fn request(&self, state: &mut Reading, permit: Permit) {
        if state.reading {
            return;
        }
        let sent = lock(&self.requests)
            .as_ref()
            .is_some_and(|requests| requests.send(permit).is_ok());
        if sent {
            state.reading = true;
        } else {
            let gone = || Err(self.shared.fail("its reader is gone"));
            state.end.get_or_insert_with(gone);
            self.shared.changed.notify_one();
        }
    }
}

impl EventSource for FileSource {
    fn name(&self) -> &str {
        SOURCE_NAME
    }

    fn read(&self, permit: Permit) -> LocalBoxFuture<'_, Result<Chunk, SourceError>> {
        Box::pin(async move {
            loop {
                {
                    // One poll looks and takes, so a dropped read has taken nothing.
                    let mut state = self.shared.lock();
                    if let Some(taken) = state.take(permit) {
                        return taken;
                    }
                    self.request(&mut state, permit);
                }
                self.shared.changed.notified().await;
            }
        })
    }

    fn acknowledge<'a>(
        &'a self,
        receipts: &'a [Receipt],
    ) -> LocalBoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            self.shared.lock().lines.acknowledge_all(receipts);
            Ok(())
        })
    }

    fn rewind(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            self.shared.lock().lines.rewind();
            Ok(())
        })
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            lock(&self.requests).take();
            let dropped = {
                let mut state = self.shared.lock();
                state.end = Some(Ok(()));
                state.closed = true;
                state.lines.clear()
            };
            drop(dropped);
            self.shared.changed.notify_one();
            Ok(())
        })
    }
}

struct FileState {
    name: Arc<str>,
    progress: Arc<FileProgress>,
    changed: Notify,
    state: Mutex<Reading>,
}

#[derive(Default)]
struct Reading {
    lines: Retained<Body>,
    /// The thread was asked for lines and has not answered.
    reading: bool,
    /// The end of the reader, or why nothing more can be read of it.
    end: Option<Result<(), String>>,
    closed: bool,
}

impl Reading {
    fn take(&mut self, permit: Permit) -> Option<Result<Chunk, SourceError>> {
        let when_empty = match self.end {
            Some(Ok(())) => More::Ended,
            Some(Err(_)) | None => More::Ready,
        };
        if let Some(chunk) = self.lines.hand_out(permit, when_empty) {
            return Some(Ok(chunk));
        }
        let what = self.end.clone()?.err()?;
        Some(Err(SourceError::Broken { what }))
    }
}

impl FileState {
    fn lock(&self) -> MutexGuard<'_, Reading> {
        lock(&self.state)
    }

    /// Reads lines whenever it is asked, until there are none or nobody asks.
    fn serve(&self, mut lines: Lines, requests: &mpsc::Receiver<Permit>) {
        while let Ok(permit) = requests.recv() {
            let mut read = Vec::new();
            // Any reader may be given, and one that panics must not leave the pipeline waiting.
            let chunk = AssertUnwindSafe(|| self.read_chunk(&mut lines, permit, &mut read));
            let end = panic::catch_unwind(chunk).unwrap_or_else(|_| {
                let line = lines.input.line_number;
                Some(Err(
                    self.fail(&format!("its reader panicked after line {line}"))
                ))
            });
            let mut state = self.lock();
            state.reading = false;
            if !state.closed {
                for line in read {
                    state.lines.push(line);
                }
                state.end = end.clone();
            }
            drop(state);
            self.changed.notify_one();
            if end.is_some() {
                return;
            }
        }
    }

    fn read_chunk(
        &self,
        lines: &mut Lines,
        permit: Permit,
        read: &mut Vec<Body>,
    ) -> Option<Result<(), String>> {
        let mut num_bytes = 0_usize;
        while read.len() < permit.max_messages && num_bytes < permit.max_bytes {
            match lines.next() {
                Ok(Some(item)) => {
                    let line = self.line(item);
                    num_bytes = num_bytes.saturating_add(line.num_bytes());
                    self.progress.num_lines.fetch_add(1, Ordering::Relaxed);
                    read.push(line);
                }
                Ok(None) => return Some(Ok(())),
                Err(unreadable) => {
                    let line = lines.input.line_number + 1;
                    return Some(Err(self.cannot_read(line, &unreadable)));
                }
            }
            // A line that has been typed or piped must not wait for the next one.
            if !lines.has_more() {
                break;
            }
        }
        None
    }

    fn cannot_read(&self, line: u64, unreadable: &Unreadable) -> String {
        match unreadable {
            Unreadable::Failed(error) => self.fail(&format!("line {line}: {error}")),
            Unreadable::Encoded(encoding) => {
                let (name, encoding) = (&self.name, encoding.name());
                self.end_with(format!(
                    "cannot read {name}: it is {encoding} and not UTF-8, and nothing of it was taken; \
                     convert it, such as with `iconv -f {encoding} -t UTF-8`, and read the result"
                ))
            }
            Unreadable::Broken(why) => self.end_with(format!(
                "cannot read {} any further: line {line}: {why}; the events before are taken. Correct it \
                 and read it again from its beginning: events that are stored count as duplicates",
                self.name
            )),
        }
    }

    fn fail(&self, why: &str) -> String {
        self.end_with(format!(
            "cannot read {} any further: {why}; the lines before are taken. Once it can be read, read \
             it again from its beginning: events that are stored count as duplicates",
            self.name
        ))
    }

    fn end_with(&self, what: String) -> String {
        *lock(&self.progress.failure) = Some(what.clone());
        what
    }

    fn line(&self, Item { text, line, index }: Item) -> Body {
        let name = &self.name;
        let position = Position::new(match index {
            None => format!("{name}:{line}"),
            Some(index) => format!("{name}:{line}[{index}]"),
        });
        let what = index.map_or("line", |_| "event");
        match text {
            Text::Whole(data) => Body::Raw { position, data },
            Text::TooLong {
                beginning,
                num_bytes,
                limit,
            } => Body::Entry(Arc::new(Entry {
                source: Arc::from(SOURCE_NAME),
                position,
                content: Content::Rejected(Rejection {
                    reason: format!(
                        "the {what} has {num_bytes} bytes, more than the limit of {limit}; only the \
                         first {} are kept",
                        beginning.len()
                    ),
                    raw: beginning,
                    event_id: None,
                }),
            })),
        }
    }
}

#[cfg(test)]
mod tests;
