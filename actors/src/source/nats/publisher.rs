//! Publishes events to the stream of a source, each under the subject that the stream takes.

use std::sync::Mutex;

use futures_util::future::LocalBoxFuture;

use crate::delivery::Entry;
use crate::publisher::EventPublisher;
use crate::source::{SourceError, lock};

use super::connection::{Connections, Link};
use super::failure::NatsError;
use super::member::stream_info;
use super::settings::{NatsSettings, NatsSettingsError};

/// Publishes with the event's id as `Nats-Msg-Id`, so that the stream drops what it has just been given.
pub struct NatsPublisher {
    connections: Connections,
    /// As it was found, until something fails.
    subject: Mutex<Option<String>>,
}

impl NatsPublisher {
    /// To the stream of these settings; an error says why they cannot work.
    pub fn new(settings: NatsSettings) -> Result<Self, NatsSettingsError> {
        settings.check()?;
        let connections = Connections::new(settings);
        Ok(Self {
            connections,
            subject: Mutex::default(),
        })
    }

    fn settings(&self) -> &NatsSettings {
        &self.connections.settings
    }

    async fn subject(&self, link: &Link) -> Result<String, NatsError> {
        if let Some(subject) = &self.settings().publish_subject {
            return Ok(subject.clone());
        }
        let stream = &self.settings().stream;
        let subjects = stream_info(link, self.settings()).await?.config.subjects;
        if subjects.is_empty() {
            return Err(NatsError::Unfit {
                what: format!("the stream {stream} takes nothing: it copies another stream"),
                remedy: "name that one in nats.stream".to_owned(),
            });
        }
        let plain = subjects
            .iter()
            .find(|subject| !subject.contains(['*', '>']));
        plain.cloned().ok_or_else(|| NatsError::Unfit {
            what: format!(
                "the stream {stream} takes subjects by patterns alone: {}",
                subjects.join(", ")
            ),
            remedy: "name one of them in nats.publish_subject".to_owned(),
        })
    }

    /// A connection, and the subject to publish under.
    async fn ready(&self) -> Result<(Link, String), NatsError> {
        let link = self.connections.link().await?;
        let known = lock(&self.subject).clone();
        let subject = match known {
            Some(known) => known,
            None => self.subject(&link).await?,
        };
        *lock(&self.subject) = Some(subject.clone());
        Ok((link, subject))
    }

    async fn publish_all(
        &self,
        entries: &[&Entry],
    ) -> Result<Vec<Result<(), String>>, SourceError> {
        let (link, subject) = self.done("publishing", self.ready().await)?;
        let messages = entries.iter().map(|entry| {
            let id = entry.event().map(|event| event.id.hyphenated().to_string());
            (id, entry.raw())
        });
        let published = link
            .publish(&subject, &self.settings().stream, messages)
            .await;
        let is_timeout = matches!(published, Err(NatsError::TimedOut(..)));
        let published = self.done("publishing", published);
        published.map_err(|error| match error {
            // Fewer may take less time.
            SourceError::Unavailable { what, source } if is_timeout => {
                SourceError::TimedOut { what, source }
            }
            error => error,
        })
    }

    async fn look(&self) -> Result<usize, NatsError> {
        let link = self.connections.link().await?;
        self.subject(&link).await?;
        Ok(link.max_message())
    }

    fn done<T>(&self, doing: &str, result: Result<T, NatsError>) -> Result<T, SourceError> {
        result.map_err(|error| {
            lock(&self.subject).take();
            if !error.leaves_connection_sound() {
                self.connections.reset();
            }
            error.into_source_error(self.settings(), doing)
        })
    }
}

impl EventPublisher for NatsPublisher {
    fn place(&self) -> String {
        let NatsSettings { url, stream, .. } = self.settings();
        format!("the stream {stream} of NATS at {url}")
    }

    fn publish<'a>(
        &'a self,
        entries: &'a [&'a Entry],
    ) -> LocalBoxFuture<'a, Result<Vec<Result<(), String>>, SourceError>> {
        Box::pin(self.publish_all(entries))
    }

    fn check(&self) -> LocalBoxFuture<'_, Result<Option<usize>, SourceError>> {
        Box::pin(async move {
            let found = self.look().await;
            self.done("looking at the stream", found).map(Some)
        })
    }
}
