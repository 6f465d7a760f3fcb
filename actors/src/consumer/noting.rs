//! What is told of a source: that it fails, once, and that it is back.

use std::num::NonZeroU64;

use super::ConsumerActor;
use crate::metrics::RetryKind;
use crate::source::SourceError;
use crate::status::error_chain;

impl ConsumerActor {
    /// A success ends a failure once neither reading nor acknowledging fails any more.
    pub(super) fn note_success(&self) {
        if self.failed_reads > 0 || self.acks.failures > 0 {
            return;
        }
        if let Some(failures) = self.parts.component.succeeded() {
            self.tell_of_return(failures);
        }
    }

    /// Nothing more is read: failures that were over are told of now or never.
    pub(super) fn note_end(&self) {
        if let Some(failures) = self.parts.component.closes() {
            self.tell_of_return(failures);
        }
    }

    fn tell_of_return(&self, failures: NonZeroU64) {
        log::info!(
            "the source is back source.name={} failures={failures}",
            self.source_name
        );
    }

    pub(super) fn note_failure(&self, kind: RetryKind, what: &str, error: &SourceError) {
        self.parts.metrics.retries(kind);
        let consequence = match error {
            SourceError::Unavailable { .. } => "trying again until it works",
            SourceError::Broken { .. } => "nothing more is read of it",
        };
        let error = error_chain(error);
        let at = self.parts.clock.now();
        let first = self.parts.component.failed(error.clone(), at);
        let level = if first {
            log::Level::Warn
        } else {
            log::Level::Debug
        };
        log::log!(
            level,
            "a source {what}; {consequence} source.name={} error={error}",
            self.source_name
        );
    }
}
