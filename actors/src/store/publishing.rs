//! Store: another bus. Events are published there, for a service that reads it to store.
//!
//! There is no place for dead letters. An import leaves out what is no event, and logs it. A bridge publishes it as it
//! came: the reader makes a dead letter of it. What the bus refuses is counted, and the sender is told.

use std::future::ready;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::LocalBoxFuture;

use crate::delivery::{Batch, Content, Entry};
use crate::publisher::EventPublisher;
use crate::source::SourceError;

use super::{Cutoffs, EventStore, Outcome, RefusalReason, StoreError, TrimStep};

/// Of more the log says only how many there are at the end.
const NAMED: usize = 20;

/// Publishes what is written to it.
pub struct PublishingStore {
    publisher: Arc<dyn EventPublisher>,
    is_bridge: bool,
    num_named: AtomicUsize,
}

impl PublishingStore {
    /// To this publisher's stream.
    pub fn new(publisher: Arc<dyn EventPublisher>) -> Self {
        Self {
            publisher,
            is_bridge: false,
            num_named: AtomicUsize::new(0),
        }
    }

    /// The same for a service: what is no event is published as well.
    pub fn bridge(publisher: Arc<dyn EventPublisher>) -> Self {
        Self {
            is_bridge: true,
            ..Self::new(publisher)
        }
    }

    async fn publish(&self, batch: &Batch) -> Result<Vec<Outcome>, StoreError> {
        if let Some(condemned) = batch.condemned() {
            let all = batch.entries().iter();
            return Ok(all
                .map(|entry| self.refused(entry, &condemned.reason))
                .collect());
        }
        let entries = batch.entries().iter().map(|entry| &**entry);
        let goes = |entry: &&Entry| self.is_bridge || entry.event().is_some();
        let going: Vec<&Entry> = entries.clone().filter(goes).collect();
        let published = self.publisher.publish(&going).await.map_err(failed)?;
        if published.len() != going.len() {
            return Err(StoreError::unavailable(format!(
                "{} answered for {} of {} messages; they are published again",
                self.publisher.place(),
                published.len(),
                going.len()
            )));
        }
        let mut published = published.into_iter();
        let outcomes = entries.map(|entry| match &entry.content {
            Content::Rejected(rejection) if !self.is_bridge => {
                self.tell(entry, &rejection.reason);
                Outcome::RejectedAtParse
            }
            Content::Rejected(_) | Content::Event(_) => match published.next() {
                Some(Err(reason)) => self.refused(entry, &reason),
                Some(Ok(())) | None => Outcome::Stored,
            },
        });
        Ok(outcomes.collect())
    }

    fn refused(&self, entry: &Entry, reason: &str) -> Outcome {
        self.tell(entry, reason);
        Outcome::RefusedByStore(RefusalReason::Other)
    }

    fn tell(&self, entry: &Entry, reason: &str) {
        if self.num_named.fetch_add(1, Ordering::Relaxed) < NAMED {
            log::warn!("not published: {reason} position={}", entry.position);
        }
    }
}

fn failed(error: SourceError) -> StoreError {
    match error {
        SourceError::TimedOut { what, source } => StoreError::TooSlow {
            what,
            code: None,
            source,
        },
        SourceError::Unavailable { what, source } => StoreError::Unavailable {
            what,
            fault: None,
            source,
        },
        SourceError::Broken { what } => StoreError::unavailable(what),
    }
}

impl EventStore for PublishingStore {
    fn write(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        Box::pin(async move { self.publish(&batch).await })
    }

    /// Nothing can be published and taken back: it is asked whether the stream is there.
    fn rehearse(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        Box::pin(async move {
            self.publisher.check().await.map_err(failed)?;
            Ok(vec![Outcome::Stored; batch.len()])
        })
    }

    /// What a bus keeps is its own affair.
    fn trim<'a>(
        &'a self,
        _: &'a Cutoffs,
        _: NonZeroUsize,
    ) -> LocalBoxFuture<'a, Result<TrimStep, StoreError>> {
        Box::pin(ready(Ok(TrimStep::Finished)))
    }

    fn check(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let checked = self.publisher.check().await;
            checked.map(drop).map_err(failed)
        })
    }

    fn place(&self) -> Option<String> {
        Some(self.publisher.place())
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        Box::pin(ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::BatchId;
    use crate::testing::rejected_entry;

    struct Failing(fn(String) -> SourceError);

    impl EventPublisher for Failing {
        fn place(&self) -> String {
            "nowhere".to_owned()
        }

        fn publish<'a>(
            &'a self,
            _: &'a [&'a Entry],
        ) -> LocalBoxFuture<'a, Result<Vec<Result<(), String>>, SourceError>> {
            Box::pin(ready(Err(self.0("no answer".to_owned()))))
        }

        fn check(&self) -> LocalBoxFuture<'_, Result<Option<usize>, SourceError>> {
            Box::pin(ready(Ok(None)))
        }
    }

    #[tokio::test]
    async fn what_takes_too_long_may_be_published_in_smaller_portions() {
        let batch = Batch::new(BatchId(0), vec![rejected_entry("1", b"{", "a test")]);
        let batch = Arc::new(batch);
        let written = async |publisher| {
            let store = PublishingStore::bridge(Arc::new(publisher));
            store.write(Arc::clone(&batch)).await.unwrap_err()
        };
        let late = |what| SourceError::TimedOut { what, source: None };
        let late = written(Failing(late)).await;
        assert!(
            matches!(late, StoreError::TooSlow { code: None, .. }),
            "{late:?}"
        );
        assert_eq!(late.to_string(), "no answer");
        let away = |what| SourceError::Unavailable { what, source: None };
        let away = written(Failing(away)).await;
        assert!(matches!(away, StoreError::Unavailable { .. }), "{away:?}");
    }
}
