//! The pipelines of a service as one: what stores, what publishes, or both.

use actix::{Addr, AsyncContext as _, Context, MailboxError};
use event_persister_actors::messages::{Drain, Drained, Status};
use event_persister_actors::metrics::Metrics;
use event_persister_actors::pipeline::{PipelineActor, PipelineParts, PipelineSettings};
use event_persister_actors::status::PipelineStatus;
use futures_util::future::{try_join, try_join_all};

/// A pipeline that has an address already, and does not run yet.
pub(super) struct NotStarted {
    context: Context<PipelineActor>,
    settings: PipelineSettings,
    parts: PipelineParts,
}

impl NotStarted {
    pub(super) fn new(settings: PipelineSettings, parts: PipelineParts) -> Self {
        Self {
            context: Context::new(),
            settings,
            parts,
        }
    }

    pub(super) fn address(&self) -> Addr<PipelineActor> {
        self.context.address()
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.parts.metrics
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = &str> {
        self.parts.sources.iter().map(|source| source.name())
    }

    pub(super) fn run(self) {
        self.context
            .run(PipelineActor::new(self.settings, self.parts));
    }
}

/// At least one of the two.
#[derive(Clone)]
pub(crate) struct Pipelines {
    /// Into the database.
    pub(crate) storing: Option<Addr<PipelineActor>>,
    /// From HTTP to the bus.
    pub(crate) publishing: Option<Addr<PipelineActor>>,
}

impl Pipelines {
    fn all(&self) -> impl Iterator<Item = &Addr<PipelineActor>> {
        self.storing.iter().chain(&self.publishing)
    }

    /// Whether all of them run.
    pub(crate) fn connected(&self) -> bool {
        self.all().all(Addr::connected)
    }

    pub(crate) async fn status(&self) -> Result<PipelineStatus, MailboxError> {
        let ask = async |pipeline: &Option<Addr<PipelineActor>>| match pipeline {
            Some(pipeline) => pipeline.send(Status).await.map(Some),
            None => Ok(None),
        };
        let (storing, publishing) = try_join(ask(&self.storing), ask(&self.publishing)).await?;
        let publishing = publishing.map(of_publishing);
        match (storing, publishing) {
            (Some(storing), Some(publishing)) => Ok(beside(storing, publishing)),
            (Some(one), None) | (None, Some(one)) => Ok(one),
            (None, None) => Err(MailboxError::Closed),
        }
    }

    pub(crate) async fn drain(&self, drain: Drain) -> Result<Drained, MailboxError> {
        let drained = try_join_all(self.all().map(|pipeline| pipeline.send(drain))).await?;
        let released = drained.iter().map(|drained| drained.released).sum();
        Ok(Drained { released })
    }
}

/// What it writes to is called by its name.
fn of_publishing(mut status: PipelineStatus) -> PipelineStatus {
    let rename = |text: &mut String| {
        if let Some(rest) = text.strip_prefix("store") {
            *text = format!("bus{rest}");
        }
    };
    (status.components.iter_mut()).for_each(|part| rename(&mut part.name));
    (status.reason.iter_mut())
        .chain(&mut status.degraded)
        .chain(&mut status.warnings)
        .for_each(rename);
    status
}

/// Both. The ledger is that of what is stored: the other's messages come to it by the bus.
fn beside(storing: PipelineStatus, publishing: PipelineStatus) -> PipelineStatus {
    let concatenated = |mut of_one: Vec<String>, of_other: Vec<String>| {
        of_one.extend(of_other);
        of_one
    };
    let mut components = storing.components;
    components.extend(publishing.components);
    PipelineStatus {
        ready: storing.ready && publishing.ready,
        reason: storing.reason.or(publishing.reason),
        draining: storing.draining || publishing.draining,
        degraded: storing.degraded.or(publishing.degraded),
        warnings: concatenated(storing.warnings, publishing.warnings),
        oldest_unflushed: storing.oldest_unflushed.max(publishing.oldest_unflushed),
        components,
        ..storing
    }
}

#[cfg(test)]
mod tests {
    use event_persister_actors::metrics::LedgerCounts;
    use event_persister_actors::status::{Component, RetentionStatus};

    use super::*;

    fn status(source: &str, reason: Option<&str>, received: u64) -> PipelineStatus {
        let part = |name: &str| Component::new(name).snapshot();
        PipelineStatus {
            ready: reason.is_none(),
            reason: reason.map(str::to_owned),
            degraded: None,
            generation: 1,
            draining: false,
            components: vec![part(source), part("store"), part("store.refusals")],
            warnings: vec!["store: slow".to_owned()],
            ledger: LedgerCounts {
                received,
                ..LedgerCounts::default()
            },
            oldest_unflushed: None,
            retention: RetentionStatus::default(),
        }
    }

    #[test]
    fn both_are_told_as_one_and_what_is_published_to_by_its_name() {
        let storing = status("source.nats", None, 7);
        let publishing = of_publishing(status("source.http", Some("store: away"), 3));
        let both = beside(storing, publishing);
        assert!(!both.ready);
        assert_eq!(both.reason.as_deref(), Some("bus: away"));
        assert_eq!(both.warnings, ["store: slow", "bus: slow"]);
        assert_eq!(both.ledger.received, 7);
        let names: Vec<_> = both.components.iter().map(|part| &*part.name).collect();
        let expected = [
            "source.nats",
            "store",
            "store.refusals",
            "source.http",
            "bus",
            "bus.refusals",
        ];
        assert_eq!(names, expected);
    }
}
