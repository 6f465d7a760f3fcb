//! PORT: a bus that events are published to.

use futures_util::future::LocalBoxFuture;

use crate::delivery::Entry;
use crate::source::SourceError;

/// Publishes messages to one stream.
pub trait EventPublisher: Send + Sync {
    /// Where they go, for a person.
    fn place(&self) -> String;

    /// Returns once the bus has confirmed each entry, or refused it with the reason. On an error some may be
    /// there: to publish them again does no harm, since events are known by their ids. What is no event is published
    /// as it came.
    fn publish<'a>(
        &'a self,
        entries: &'a [&'a Entry],
    ) -> LocalBoxFuture<'a, Result<Vec<Result<(), String>>, SourceError>>;

    /// Whether the stream can be reached; the largest message that it takes, where it has a limit.
    fn check(&self) -> LocalBoxFuture<'_, Result<Option<usize>, SourceError>>;
}
