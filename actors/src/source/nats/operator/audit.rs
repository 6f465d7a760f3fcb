//! Reads the stream as it stands, to be compared with the database: takes nothing and changes nothing.
//!
//! It reads through a consumer of its own, which acknowledges nothing and is gone afterwards. Up to where
//! everything is acknowledged is asked before each page; so what a page has up to there was committed before the
//! page is here, and must be found in the database afterwards. The server does not say which of the messages
//! behind that are acknowledged, so these count as pending.

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::delivery::Position;
use crate::source::operator::{StreamPage, StreamWalk};
use crate::source::{Body, SourceError};

use super::super::api::{ConsumerInfo, Pull, nanos};
use super::super::connection::{Link, PullEnd, Pulled};
use super::super::failure::NatsError;
use super::super::fitness::Flaw;
use super::super::member::consumer_info;
use super::NatsOperator;

/// One page; a single larger message comes alone.
const PAGE_MESSAGES: usize = 1_000;
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// After so long without a page the server removes our consumer by itself.
const FORGOTTEN_AFTER_SECS: u64 = 300;

pub(super) struct NatsWalk<'a> {
    operator: &'a NatsOperator,
    /// The name of our own consumer; `None` where there is nothing to read, or no more.
    reader: Option<String>,
    last: u64,
    num_unread: u64,
    misplaced: Option<String>,
    /// It keeps nothing that was acknowledged, and lets nobody else read.
    is_work_queue: bool,
}

#[derive(Deserialize)]
struct MadeReader {
    name: String,
}

#[derive(Deserialize)]
struct Removed {}

impl NatsOperator {
    pub(super) async fn begin_walk(&self) -> Result<NatsWalk<'_>, NatsError> {
        let link = self.connections.link().await?;
        let found = self.find(&link).await?;
        let mut walk = NatsWalk {
            operator: self,
            reader: None,
            last: 0,
            num_unread: 0,
            misplaced: found.misplaced(self.settings()).map(Flaw::what_and_remedy),
            is_work_queue: false,
        };
        let Some(stream) = &found.stream else {
            return Ok(walk);
        };
        let Some(consumer) = &found.consumer else {
            walk.num_unread = stream.state.messages;
            return Ok(walk);
        };
        walk.last = consumer.delivered.stream_seq;
        walk.num_unread = consumer.num_pending;
        walk.is_work_queue = stream.config.retention == "workqueue";
        if !walk.is_work_queue && walk.last >= stream.state.first_seq {
            let mut config = beginning_with(consumer);
            config["ack_policy"] = "none".into();
            config["replay_policy"] = "instant".into();
            config["mem_storage"] = true.into();
            config["inactive_threshold"] = (FORGOTTEN_AFTER_SECS * 1_000_000_000).into();
            match consumer.config.filters()[..] {
                [] => {}
                [one] => config["filter_subject"] = one.into(),
                ref several => config["filter_subjects"] = json!(several),
            }
            let body = json!({ "stream_name": self.settings().stream, "config": config });
            let what = format!("CONSUMER.CREATE.{}", self.settings().stream);
            let made: MadeReader = link.ask(&what, Some(&body)).await?;
            walk.reader = Some(made.name);
        }
        Ok(walk)
    }
}

/// What is before the beginning of the consumer was never its to read.
fn beginning_with(consumer: &ConsumerInfo) -> Value {
    let config = &consumer.config;
    match config.deliver_policy.as_str() {
        "" | "all" => json!({ "deliver_policy": "all" }),
        "by_start_sequence" => json!({
            "deliver_policy": "by_start_sequence", "opt_start_seq": config.opt_start_seq,
        }),
        // The others began about when they were made.
        _ => json!({
            "deliver_policy": "by_start_time",
            "opt_start_time": config.opt_start_time.unwrap_or(consumer.created),
        }),
    }
}

impl NatsWalk<'_> {
    async fn read_on(&mut self) -> Result<Option<StreamPage>, NatsError> {
        let Some(reader) = self.reader.clone() else {
            return Ok(None);
        };
        let settings = self.operator.settings();
        let link = self.operator.connections.link().await?;
        let floor = match consumer_info(&link, settings).await {
            Ok(consumer) => consumer.ack_floor.stream_seq,
            // It was removed meanwhile, and begins anew.
            Err(error) if error.is_missing_consumer() => 0,
            Err(error) => return Err(error),
        };
        let mut page = StreamPage::default();
        let mut has_ended = false;
        let pull = Pull {
            batch: PAGE_MESSAGES,
            max_bytes: Some(PAGE_BYTES),
            expires: nanos(settings.block),
            no_wait: true,
        };
        let mut end = self
            .read_page(&link, &reader, pull, floor, &mut page, &mut has_ended)
            .await?;
        let is_empty = page.acknowledged.is_empty() && page.pending.is_empty();
        if end == PullEnd::TooLarge && is_empty {
            let alone = Pull {
                batch: 1,
                max_bytes: None,
                ..pull
            };
            end = self
                .read_page(&link, &reader, alone, floor, &mut page, &mut has_ended)
                .await?;
        }
        if let PullEnd::Ended(why) = end {
            return Err(NatsError::Unexpected(why));
        }
        if has_ended || end == PullEnd::NoMore {
            self.reader = None;
            let what = format!("CONSUMER.DELETE.{}.{reader}", settings.stream);
            if let Err(error) = link.ask::<Removed>(&what, None).await {
                log::debug!("the server will remove the reader by itself error={error}");
            }
        }
        Ok(Some(page))
    }

    async fn read_page(
        &self,
        link: &Link,
        reader: &str,
        pull: Pull,
        floor: u64,
        page: &mut StreamPage,
        has_ended: &mut bool,
    ) -> Result<PullEnd, NatsError> {
        let take = |pulled| {
            let Pulled::Message(delivered, data) = pulled else {
                return Ok(());
            };
            let sequence = delivered.identity.sequence;
            let body = body_of(sequence, &data);
            *has_ended |= sequence >= self.last;
            if sequence <= floor && sequence <= self.last {
                page.acknowledged.push(body);
            } else if sequence <= self.last {
                page.pending.push(body);
            }
            Ok(())
        };
        let stream = &self.operator.settings().stream;
        link.pull(stream, reader, pull, take).await
    }
}

fn body_of(sequence: u64, data: &[u8]) -> Body {
    Body::Raw {
        position: Position::new(sequence.to_string()),
        data: Bytes::copy_from_slice(data),
    }
}

impl StreamWalk for NatsWalk<'_> {
    fn next_page(&mut self) -> LocalBoxFuture<'_, Result<Option<StreamPage>, SourceError>> {
        Box::pin(async move {
            let operator = self.operator;
            let page = self.read_on().await;
            operator.done("reading the stream", page)
        })
    }

    fn misplaced(&self) -> Option<&str> {
        self.misplaced.as_deref()
    }

    fn shows_nothing(&self) -> Option<&'static str> {
        const WORK_QUEUE: &str = "the stream is a work queue, which keeps nothing that was acknowledged: nothing of it \
                                  was compared with the tables";
        self.is_work_queue.then_some(WORK_QUEUE)
    }

    fn num_unread(&self) -> u64 {
        self.num_unread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walk_begins_where_the_consumer_began() {
        let mut consumer = ConsumerInfo::default();
        let begins = |consumer: &ConsumerInfo| beginning_with(consumer);
        assert_eq!(begins(&consumer), json!({ "deliver_policy": "all" }));
        consumer.config.deliver_policy = "by_start_sequence".to_owned();
        consumer.config.opt_start_seq = 7;
        assert_eq!(begins(&consumer)["opt_start_seq"], 7);
        consumer.config.deliver_policy = "new".to_owned();
        let made = json!(consumer.created);
        assert_eq!(begins(&consumer)["opt_start_time"], made);
    }
}
