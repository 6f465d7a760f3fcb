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

use super::super::apart::decoded;
use super::super::api::{ConsumerConfig, ConsumerInfo, Pull, nanos};
use super::super::connection::{Link, PullEnd, Pulled};
use super::super::failure::NatsError;
use super::super::fitness::Flaw;
use super::super::member::{consumer_info, first_of_each_subject};
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
    /// The consumer that is audited.
    audited: ConsumerConfig,
    /// The last message that was read; `None` where the walk begins at a time, until one was.
    read_up_to: Option<u64>,
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
            audited: ConsumerConfig::default(),
            read_up_to: None,
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
            walk.audited = consumer.config.clone();
            let beginning = beginning_with(consumer);
            walk.read_up_to = match (&beginning["deliver_policy"], &beginning["opt_start_seq"]) {
                (_, start) if start.is_u64() => start.as_u64().map(|start| start.saturating_sub(1)),
                (policy, _) => (policy == "all").then_some(0),
            };
            walk.make_reader(&link, beginning).await?;
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
    /// Makes the consumer to read by, which begins there.
    async fn make_reader(&mut self, link: &Link, beginning: Value) -> Result<(), NatsError> {
        let mut config = beginning;
        config["ack_policy"] = "none".into();
        config["replay_policy"] = "instant".into();
        config["mem_storage"] = true.into();
        config["inactive_threshold"] = (FORGOTTEN_AFTER_SECS * 1_000_000_000).into();
        match self.audited.filters()[..] {
            [] => {}
            [one] => config["filter_subject"] = one.into(),
            ref several => config["filter_subjects"] = json!(several),
        }
        let stream = &self.operator.settings().stream;
        let body = json!({ "stream_name": stream, "config": config });
        let what = format!("CONSUMER.CREATE.{stream}");
        let made: MadeReader = link.ask(&what, Some(&body)).await?;
        self.reader = Some(made.name);
        Ok(())
    }

    async fn remove_reader(&mut self, link: &Link) {
        let Some(reader) = self.reader.take() else {
            return;
        };
        let stream = &self.operator.settings().stream;
        let what = format!("CONSUMER.DELETE.{stream}.{reader}");
        if let Err(error) = link.ask::<Removed>(&what, None).await {
            log::debug!("the server will remove the reader by itself error={error}");
        }
    }

    /// Up to where the audited consumer has acknowledged everything.
    async fn floor(&self, link: &Link) -> Result<u64, NatsError> {
        match consumer_info(link, self.operator.settings()).await {
            Ok(consumer) => Ok(consumer.ack_floor.stream_seq),
            // It was removed meanwhile, and begins anew.
            Err(error) if error.is_missing_consumer() => Ok(0),
            Err(error) => Err(error),
        }
    }

    async fn read_on(&mut self) -> Result<Option<StreamPage>, NatsError> {
        let Some(reader) = self.reader.clone() else {
            return Ok(None);
        };
        let mut page = StreamPage::default();
        match (self.read_by(&reader, &mut page).await, self.read_up_to) {
            (Err(NatsError::Lost(_)), Some(read_up_to)) => {
                self.read_past(read_up_to, &mut page).await?;
            }
            (read, _) => read?,
        }
        Ok(Some(page))
    }

    /// After a lost connection: the message behind the last may have headers that the client cannot parse, and for which
    /// it ends the connection. So that one is asked for by its number, and the rest read by another consumer.
    async fn read_past(&mut self, read_up_to: u64, page: &mut StreamPage) -> Result<(), NatsError> {
        let operator = self.operator;
        operator.connections.reset();
        let link = operator.connections.link().await?;
        self.remove_reader(&link).await;
        let floor = self.floor(&link).await?;
        let settings = operator.settings();
        let next = first_of_each_subject(&link, settings, &self.audited, read_up_to + 1).await?;
        let next = next.into_iter().min_by_key(|next| next.seq);
        let Some(next) = next.filter(|next| next.seq <= self.last) else {
            return Ok(());
        };
        let data = decoded(next.data.as_deref())?.unwrap_or_default();
        self.take(next.seq, &data, floor, page);
        if next.seq < self.last {
            let beginning =
                json!({ "deliver_policy": "by_start_sequence", "opt_start_seq": next.seq + 1 });
            self.make_reader(&link, beginning).await?;
        }
        Ok(())
    }

    fn take(&mut self, sequence: u64, data: &[u8], floor: u64, page: &mut StreamPage) {
        self.read_up_to = Some(sequence);
        if sequence > self.last {
            return;
        }
        let body = body_of(sequence, data);
        match sequence <= floor {
            true => page.acknowledged.push(body),
            false => page.pending.push(body),
        }
    }

    async fn read_by(&mut self, reader: &str, page: &mut StreamPage) -> Result<(), NatsError> {
        let settings = self.operator.settings();
        let link = self.operator.connections.link().await?;
        let floor = self.floor(&link).await?;
        let pull = Pull {
            batch: PAGE_MESSAGES,
            max_bytes: Some(PAGE_BYTES),
            expires: nanos(settings.block),
            no_wait: true,
        };
        let mut end = self.read_page(&link, reader, pull, floor, page).await?;
        let is_empty = page.acknowledged.is_empty() && page.pending.is_empty();
        if end == PullEnd::TooLarge && is_empty {
            let alone = Pull {
                batch: 1,
                max_bytes: None,
                ..pull
            };
            end = self.read_page(&link, reader, alone, floor, page).await?;
        }
        if let PullEnd::Ended(why) = end {
            return Err(NatsError::Unexpected(why));
        }
        let has_ended = self.read_up_to.is_some_and(|read| read >= self.last);
        if has_ended || end == PullEnd::NoMore {
            self.remove_reader(&link).await;
        }
        Ok(())
    }

    async fn read_page(
        &mut self,
        link: &Link,
        reader: &str,
        pull: Pull,
        floor: u64,
        page: &mut StreamPage,
    ) -> Result<PullEnd, NatsError> {
        let stream = &self.operator.settings().stream;
        let take = |pulled| {
            if let Pulled::Message(delivered, data) = pulled {
                self.take(delivered.identity.sequence, &data, floor, page);
            }
            Ok(())
        };
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
