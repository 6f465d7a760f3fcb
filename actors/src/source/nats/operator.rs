//! The operator's tools of a NATS stream: inspection and audit.
//!
//! They use the connection and the API of the path; the path uses nothing of theirs.

use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use crate::finding::Finding;
use crate::primary::Primary;
use crate::source::operator::{
    BusOperator, BusReport, ConsumerProgress, ConsumerReport, ReadAgain, StreamShadow, StreamWalk,
    TrimGuard,
};
use crate::source::{SourceError, lock};

use super::SOURCE_NAME;
use super::api::{ConsumerInfo, StreamConfig, StreamInfo};
use super::connection::{Connections, Link};
use super::failure::NatsError;
use super::fitness::{Flaw, command_to_make_anew, misplaced};
use super::member::{consumer_info, stream_info};
use super::settings::{NatsSettings, NatsSettingsError};

mod audit;
mod inspection;

/// The operator's side of the stream of a source. Connects when it is first used.
pub struct NatsOperator {
    connections: Connections,
    /// How the stream was found to keep its messages.
    kept_by: Mutex<StreamConfig>,
}

/// The stream and its consumer, as far as they are there.
#[derive(Debug, Default)]
struct Found {
    stream: Option<StreamInfo>,
    consumer: Option<ConsumerInfo>,
}

impl Found {
    /// The fault of the consumer's position, if it cannot be right.
    fn misplaced(&self, settings: &NatsSettings) -> Option<Flaw> {
        misplaced(self.stream.as_ref()?, self.consumer.as_ref()?, settings)
    }
}

impl NatsOperator {
    /// For a source with these settings; an error says why they cannot work.
    pub fn new(settings: NatsSettings) -> Result<Self, NatsSettingsError> {
        settings.check()?;
        let connections = Connections::new(settings);
        Ok(Self {
            connections,
            kept_by: Mutex::default(),
        })
    }

    fn settings(&self) -> &NatsSettings {
        &self.connections.settings
    }

    /// The consumer is asked first: what is published and delivered in between puts it behind the stream.
    async fn find(&self, link: &Link) -> Result<Found, NatsError> {
        let consumer = match consumer_info(link, self.settings()).await {
            Err(error) if error.is_missing_consumer() || error.is_missing_stream() => None,
            consumer => Some(consumer?),
        };
        let stream = match stream_info(link, self.settings()).await {
            Err(error) if error.is_missing_stream() => None,
            stream => Some(stream?),
        };
        if let Some(stream) = &stream {
            *lock(&self.kept_by) = stream.config.clone();
        }
        Ok(Found { stream, consumer })
    }

    async fn consumer_report(&self) -> Result<ConsumerReport, NatsError> {
        let link = self.connections.link().await?;
        let found = self.find(&link).await?;
        let settings = self.settings();
        let state = found.stream.as_ref().map(|stream| &stream.state);
        Ok(ConsumerReport {
            stream: settings.stream.clone(),
            messages: state.map(|state| state.messages),
            bytes: state.map(|state| state.bytes),
            first: state.map(|state| state.first_seq),
            last: state.map(|state| state.last_seq),
            consumer: settings.consumer.clone(),
            consumer_state: found.consumer.as_ref().map(|consumer| ConsumerProgress {
                delivered: consumer.delivered.stream_seq,
                acknowledged: consumer.ack_floor.stream_seq,
                pending: consumer.num_ack_pending,
                lag: consumer.num_pending,
            }),
            misplaced: found.misplaced(settings).map(Flaw::what_and_remedy),
        })
    }

    fn done<T>(&self, doing: &str, result: Result<T, NatsError>) -> Result<T, SourceError> {
        result.map_err(|error| {
            self.connections.reset();
            error.into_source_error(self.settings(), doing)
        })
    }
}

impl BusOperator for NatsOperator {
    fn name(&self) -> &'static str {
        SOURCE_NAME
    }

    fn stream(&self) -> &str {
        &self.settings().stream
    }

    fn group(&self) -> &str {
        &self.settings().consumer
    }

    fn inspect(&self, retention: Option<Duration>) -> LocalBoxFuture<'_, Vec<Finding>> {
        Box::pin(self.look_for_trouble(retention))
    }

    fn server_version(&self) -> LocalBoxFuture<'_, Result<Option<String>, SourceError>> {
        Box::pin(async move {
            let link = self.done("connecting", self.connections.link().await)?;
            Ok(Some(link.server_version()))
        })
    }

    fn report(&self) -> LocalBoxFuture<'_, Result<BusReport, SourceError>> {
        Box::pin(async move {
            let report = self.consumer_report().await;
            let report = self.done("looking at the stream and its consumer", report)?;
            Ok(BusReport::Consumer(report))
        })
    }

    /// Replicas agree on nothing here: each goes by the servers of the database that it knows.
    fn primary(&self) -> LocalBoxFuture<'_, Result<Option<Primary>, SourceError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn guard(&self) -> Option<&dyn TrimGuard> {
        None
    }

    fn walk(&self) -> LocalBoxFuture<'_, Result<Box<dyn StreamWalk + '_>, SourceError>> {
        Box::pin(async move {
            let walk = self.begin_walk().await;
            let walk = self.done("looking at the stream and its consumer", walk)?;
            Ok(Box::new(walk) as Box<dyn StreamWalk + '_>)
        })
    }

    /// The position of a consumer cannot be moved.
    fn read_again(&self, _: &str) -> Option<ReadAgain> {
        let kept_by = lock(&self.kept_by);
        Some(ReadAgain {
            command: command_to_make_anew(&kept_by, self.settings()),
            while_there: "until its limits remove them",
            does: match kept_by.keeps_for_consumers_alone() {
                true => {
                    "(with -s and --creds as for your servers) while event-persister serves. The first keeps what is \
                     unread until the consumer is made anew; remove it then. All that is in the stream is read once \
                     more"
                }
                false => {
                    "(with -s and --creds as for your servers) while event-persister serves. The consumer is made \
                     anew, and all that is in the stream is read once more"
                }
            },
        })
    }

    fn shadow(&self) -> Option<Box<dyn StreamShadow>> {
        None
    }
}
