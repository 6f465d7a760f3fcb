//! Source: the dead letters of a store, once more.
//!
//! Each letter is handed out as the message that it was, so that one that is refused again is the same
//! letter. It is removed when it is acknowledged, unless its attempts have been raised since it was read:
//! then it was just refused.
//!
//! The newest come first. Letters that are written meanwhile are newer, so that this comes to an end.
//! If the process dies between commit and removal, the letter stays and is a duplicate the next time.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::LocalBoxFuture;

use crate::delivery::{Entry, Position, Receipt};
use crate::event::{EventLimits, Received};
use crate::store::StoreError;
use crate::store::operator::{DeadLetter, LetterFilter, LetterVersion, OpenLetter, StoreOperator};

use super::{Body, Chunk, EventSource, More, Permit, Retain, Retained, SourceError, lock};

/// The source's name in metrics and logs; a letter keeps that of its own source.
pub const SOURCE_NAME: &str = "dead-letters";

/// Hands out dead letters, each of them once.
pub struct LetterSource {
    letters: Arc<dyn StoreOperator>,
    filter: LetterFilter,
    limits: EventLimits,
    state: Mutex<LetterReading>,
}

#[derive(Default)]
struct LetterReading {
    kept: Retained<Letter>,
    before: Option<i64>,
    ended: bool,
}

struct Letter {
    version: LetterVersion,
    entry: Arc<Entry>,
}

impl Retain for Letter {
    fn num_bytes(&self) -> usize {
        self.entry.num_bytes()
    }

    fn body(&self) -> Body {
        Body::Entry(Arc::clone(&self.entry))
    }
}

impl LetterReading {
    fn take(&mut self, permit: Permit) -> Option<Chunk> {
        let when_empty = if self.ended { More::Ended } else { More::Ready };
        self.kept.hand_out(permit, when_empty)
    }
}

impl LetterSource {
    /// Hands out the letters that fit the filter and have ids below `before`, if given.
    pub fn new(
        letters: Arc<dyn StoreOperator>,
        filter: LetterFilter,
        before: Option<i64>,
        limits: EventLimits,
    ) -> Self {
        Self {
            letters,
            filter,
            limits,
            state: Mutex::new(LetterReading {
                before,
                ..LetterReading::default()
            }),
        }
    }

    /// Reads as many letters as the permit allows, or one, and keeps them; none means the end.
    async fn read_on(&self, permit: Permit) -> Result<(), StoreError> {
        let before = self.lock().before;
        let limit = NonZeroUsize::new(permit.max_messages).unwrap_or(NonZeroUsize::MIN);
        let listed = self
            .letters
            .list_letters(&self.filter, before, limit)
            .await?;
        let ids = ids_within(&listed, permit.max_bytes);
        let opened = if ids.is_empty() {
            Vec::new()
        } else {
            self.letters.open_letters(&ids).await?
        };
        // Nothing is awaited from here on, so that a read that is dropped has either read or not.
        let letters: Vec<_> = opened.into_iter().map(|open| self.letter(open)).collect();
        let mut state = self.lock();
        match ids.last() {
            Some(last) => state.before = Some(*last),
            None => state.ended = true,
        }
        if !state.ended {
            for letter in letters {
                state.kept.push(letter);
            }
        }
        Ok(())
    }

    fn letter(&self, (letter, raw): OpenLetter) -> Letter {
        let received = Received::FromText {
            default: letter.first_seen,
        };
        let entry = Entry::parse(
            letter.source.into(),
            Position::new(letter.position),
            raw.into(),
            &self.limits,
            received,
        );
        Letter {
            version: LetterVersion {
                id: letter.id,
                attempts: letter.attempts,
            },
            entry: Arc::new(entry),
        }
    }

    fn lock(&self) -> MutexGuard<'_, LetterReading> {
        lock(&self.state)
    }
}

fn ids_within(letters: &[DeadLetter], max_bytes: usize) -> Vec<i64> {
    let max_bytes = u64::try_from(max_bytes).unwrap_or(u64::MAX);
    let mut num_bytes = 0_u64;
    let fitting = letters.iter().enumerate().take_while(|(index, letter)| {
        num_bytes = num_bytes.saturating_add(letter.num_bytes);
        *index == 0 || num_bytes <= max_bytes
    });
    fitting.map(|(_, letter)| letter.id).collect()
}

impl EventSource for LetterSource {
    fn name(&self) -> &str {
        SOURCE_NAME
    }

    fn read(&self, permit: Permit) -> LocalBoxFuture<'_, Result<Chunk, SourceError>> {
        Box::pin(async move {
            loop {
                // One poll looks and takes, so that a read that is dropped has taken nothing.
                if let Some(chunk) = self.lock().take(permit) {
                    return Ok(chunk);
                }
                let read = self.read_on(permit).await;
                read.map_err(|error| {
                    SourceError::unavailable("the dead letters cannot be read", error)
                })?;
            }
        })
    }

    fn acknowledge<'a>(
        &'a self,
        receipts: &'a [Receipt],
    ) -> LocalBoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let durable: Vec<_> = {
                let state = self.lock();
                let letters = receipts.iter().filter_map(|it| state.kept.handed_out(*it));
                letters.map(|letter| letter.version).collect()
            };
            if durable.is_empty() {
                return Ok(());
            }
            let removed = self.letters.remove_letters(&durable).await;
            removed.map_err(|error| {
                SourceError::unavailable(
                    "dead letters whose events are stored cannot be removed",
                    error,
                )
            })?;
            self.lock().kept.acknowledge_all(receipts);
            Ok(())
        })
    }

    fn rewind(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            self.lock().kept.rewind();
            Ok(())
        })
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            let mut state = self.lock();
            state.ended = true;
            let let_go = state.kept.clear();
            drop(state);
            drop(let_go);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
