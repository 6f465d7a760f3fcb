//! Publishes events to the stream of a source, each under the subject that the stream takes.

use std::sync::Mutex;

use futures_util::future::LocalBoxFuture;

use crate::delivery::Entry;
use crate::publisher::EventPublisher;
use crate::source::{SourceError, lock};

use super::api::StreamInfo;
use super::connection::{Connections, Link};
use super::failure::NatsError;
use super::member::stream_info;
use super::settings::{NatsSettings, NatsSettingsError};

/// Publishes with the event's id as `Nats-Msg-Id`.
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
        let found = stream_info(link, self.settings()).await?;
        subject_in(&found, self.settings())
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

/// The subject to publish under, if the stream keeps what is published, and says so.
fn subject_in(found: &StreamInfo, settings: &NatsSettings) -> Result<String, NatsError> {
    let stream = &settings.stream;
    let config = &found.config;
    let subjects = config.subjects.join(", ");
    let unfit = |what: String, remedy: &str| {
        let remedy = remedy.to_owned();
        Err(NatsError::Unfit { what, remedy })
    };
    if config.subjects.is_empty() {
        let what = format!("the stream {stream} takes nothing: it copies another stream");
        return unfit(what, "name that one in nats.stream");
    }
    if config.no_ack {
        let what = format!(
            "the stream {stream} confirms no message (no_ack): nobody knows whether it has one"
        );
        return unfit(
            what,
            "have it confirm messages, or name another in nats.stream",
        );
    }
    if config.keeps_for_consumers_alone() && found.state.consumer_count == 0 {
        let what = format!(
            "the stream {stream} drops what is published: it keeps messages for its consumers (retention interest), \
             and has none"
        );
        return unfit(what, "start a service that reads it first");
    }
    match &settings.publish_subject {
        Some(subject) if config.takes(subject) => Ok(subject.clone()),
        Some(subject) => unfit(
            format!("the stream {stream} does not take the subject {subject}, but {subjects}"),
            "name one that it takes in nats.publish_subject, or have the stream take this one too",
        ),
        None => {
            let mut plain = config.subjects.iter();
            let plain = plain.find(|subject| !subject.contains(['*', '>']));
            plain.map_or_else(
                || {
                    unfit(
                        format!("the stream {stream} takes subjects by patterns alone: {subjects}"),
                        "name one of them in nats.publish_subject",
                    )
                },
                |plain| Ok(plain.clone()),
            )
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::nats::api::{StreamConfig, StreamState};

    fn stream() -> StreamInfo {
        StreamInfo {
            config: StreamConfig {
                subjects: vec!["events.*".to_owned(), "orders".to_owned()],
                ..StreamConfig::default()
            },
            ..StreamInfo::default()
        }
    }

    fn under(subject: Option<&str>) -> NatsSettings {
        NatsSettings {
            publish_subject: subject.map(str::to_owned),
            ..NatsSettings::default()
        }
    }

    fn refused(change: fn(&mut StreamInfo)) -> String {
        let mut stream = stream();
        change(&mut stream);
        subject_in(&stream, &under(None)).unwrap_err().to_string()
    }

    #[test]
    fn the_subject_is_one_that_the_stream_takes() {
        let subject = |subject| subject_in(&stream(), &under(subject));
        assert_eq!(subject(None).unwrap(), "orders");
        assert_eq!(subject(Some("events.a")).unwrap(), "events.a");
        let other = subject(Some("other")).unwrap_err().to_string();
        assert!(other.contains("does not take the subject other"), "{other}");
    }

    #[test]
    fn a_stream_that_may_drop_what_it_is_given_is_refused() {
        let copies = refused(|stream| stream.config.subjects.clear());
        assert!(copies.contains("copies another"), "{copies}");
        let patterns = refused(|stream| stream.config.subjects.truncate(1));
        assert!(patterns.contains("patterns alone"), "{patterns}");
        let silent = refused(|stream| stream.config.no_ack = true);
        assert!(silent.contains("no_ack"), "{silent}");
        let nobody = refused(|stream| stream.config.retention = "interest".to_owned());
        assert!(nobody.contains("has none"), "{nobody}");
        let mut read = stream();
        read.config.retention = "interest".to_owned();
        read.state = StreamState {
            consumer_count: 1,
            ..StreamState::default()
        };
        assert_eq!(subject_in(&read, &under(None)).unwrap(), "orders");
    }
}
