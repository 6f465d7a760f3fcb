//! One fetch at a time: one request for messages, which ends with some, with none, or with an error.
//!
//! A fetch runs on its own. When the future of a read is dropped, the messages that the fetch brings wait for
//! the next read, and no second request is sent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use crate::source::{More, Permit};

use super::api::{Pull, nanos};
use super::connection::{Link, PullEnd, Pulled};
use super::delivery::Delivered;
use super::failure::NatsError;
use super::member::{Limits, Member, consumer_info};

/// Messages of one request at most. With fewer, both sides wait for each other more often; more would only be
/// handed out later.
const MAX_BATCH: usize = 1_000;

/// More than this of one request is read again where the server counts in small numbers.
const MAX_BYTES: usize = 1 << 30;

/// While events trickle in, requests are this far apart. Longer saves requests, at the price of the delay.
const PACE: Duration = Duration::from_millis(5);

/// After a request that ended for another reason than that it was done: a new leader takes a moment.
const AFTER_END: Duration = Duration::from_millis(100);

/// For so long that may go on: a cluster elects its leaders in less.
const UNSERVED_AT_MOST: Duration = Duration::from_secs(5);

/// Begins a fetch, which leaves its outcome for the next read. It counts as over also if its task ends before
/// its first poll.
pub(super) fn begin(member: Arc<Member>, permit: Permit) -> impl Future<Output = ()> + Send {
    let fetching = Fetching(member);
    async move {
        let member = &fetching.0;
        let outcome = member.fetch(permit).await;
        let outcome = outcome.map_err(|(doing, error)| member.failed(doing, error));
        member.reading().outcome = Some(outcome);
    }
}

/// Leaves the state right however the fetch ends, also if it is aborted.
struct Fetching(Arc<Member>);

impl Drop for Fetching {
    fn drop(&mut self) {
        self.0.reading().is_fetching = false;
        self.0.changed.notify_one();
    }
}

type Failed = (&'static str, NatsError);

impl Member {
    async fn fetch(&self, permit: Permit) -> Result<(), Failed> {
        let joined = self.joined().await;
        let link = joined.map_err(|error| ("looking at the stream and its consumer", error))?;
        self.keep_the_pace().await;
        let while_reading = |error| ("reading the stream", error);
        self.heal(&link).await.map_err(while_reading)?;
        let began = Instant::now();
        let (limits, block) = (self.reading().limits, self.settings.block);
        let (mut end, mut num) = self
            .pull(&link, request(permit, limits, block))
            .await
            .map_err(while_reading)?;
        if end == PullEnd::TooLarge && num == 0 {
            // One may come alone, however large.
            let alone = Pull {
                batch: 1,
                max_bytes: (limits.max_bytes > 0).then_some(limits.max_bytes),
                ..request(permit, limits, block)
            };
            (end, num) = self.pull(&link, alone).await.map_err(while_reading)?;
            if end == PullEnd::TooLarge {
                return Err(while_reading(too_large(limits)));
            }
        }
        self.has_ended(&end, num, began);
        match end {
            PullEnd::Ended(why) => self.after_end(why).await.map_err(while_reading),
            // All that may be in flight is: the next request would end at once as well.
            PullEnd::NoMore if num == 0 && began.elapsed() < AFTER_END => {
                sleep(AFTER_END).await;
                Ok(())
            }
            PullEnd::NoMore | PullEnd::Full | PullEnd::TooLarge => Ok(()),
        }
    }

    /// After a connection was lost while messages came: one of them may have broken it. An outage does so once. A
    /// message that does is still missing after it does so again.
    async fn heal(&self, link: &Link) -> Result<(), NatsError> {
        if !self.reading().was_cut_off {
            return Ok(());
        }
        let consumer = consumer_info(link, &self.settings).await?;
        let missing = self.missing(&consumer);
        let first = missing.first().copied();
        let before = std::mem::replace(&mut self.reading().missing_at_cut_off, first);
        if before == first {
            self.read_apart(link, &consumer, missing).await?;
        }
        self.reading().was_cut_off = false;
        Ok(())
    }

    /// After a request that ended for another reason than that it was done: a moment of rest, or an error where that
    /// has gone on for long.
    async fn after_end(&self, why: String) -> Result<(), NatsError> {
        log::debug!("a request for messages has ended reason=\"{why}\"");
        let unserved_since = self.reading().unserved_since;
        let unserved_for = unserved_since.map_or(Duration::ZERO, |since| since.elapsed());
        if unserved_for > UNSERVED_AT_MOST {
            return Err(NatsError::Unserved(unserved_for, why));
        }
        sleep(AFTER_END).await;
        Ok(())
    }

    fn has_ended(&self, end: &PullEnd, num: usize, began: Instant) {
        let mut reading = self.reading();
        reading.last_read = Instant::now();
        reading.last_was_short = num > 0 && *end == PullEnd::NoMore;
        reading.more = match end {
            PullEnd::Full | PullEnd::TooLarge => More::Ready,
            PullEnd::NoMore | PullEnd::Ended(_) => More::Later,
        };
        if !matches!(end, PullEnd::Ended(_)) {
            reading.unserved_since = None;
            return;
        }
        // The consumer may be gone.
        reading.doubt();
        if num > 0 {
            reading.unserved_since = None;
        } else {
            reading.unserved_since.get_or_insert(began);
        }
    }

    async fn pull(&self, link: &Link, pull: Pull) -> Result<(PullEnd, usize), NatsError> {
        let (mut num, mut num_untold) = (0, 0);
        let take = |pulled| {
            match pulled {
                Pulled::Message(delivered, data) => {
                    num += 1;
                    num_untold += usize::from(self.take(delivered, &data));
                }
                // They are handed out although more may come: they may be all that the server lets be in flight.
                Pulled::Pause if num_untold > 0 => {
                    num_untold = 0;
                    self.changed.notify_one();
                }
                Pulled::Pause => {}
            }
            Ok(())
        };
        let (stream, consumer) = (&self.settings.stream, &self.settings.consumer);
        let end = link.pull(stream, consumer, pull, take).await;
        if matches!(end, Err(NatsError::Lost(_))) {
            self.reading().was_cut_off = true;
        }
        Ok((end?, num))
    }

    /// Whether it was not here already.
    fn take(&self, delivered: Delivered, data: &[u8]) -> bool {
        let came_before = delivered.num_deliveries > 1;
        // A copy: a part of what was read would keep all of it in memory.
        let data = Bytes::copy_from_slice(data);
        let is_new = self.reading().pending.add(delivered, data, Instant::now());
        if came_before {
            self.stats.update(|seen| seen.num_redelivered += 1);
        }
        is_new
    }

    async fn keep_the_pace(&self) {
        let rest = {
            let reading = self.reading();
            let since = reading.last_read.elapsed();
            let rest = reading.last_was_short.then(|| PACE.checked_sub(since));
            rest.flatten()
        };
        if let Some(rest) = rest {
            sleep(rest).await;
        }
    }
}

/// A consumer may set limits to what is asked of it.
fn request(permit: Permit, limits: Limits, block: Duration) -> Pull {
    let within = |asked: usize, limit: usize| match limit {
        0 => asked,
        limit => asked.min(limit),
    };
    let block = nanos(block);
    Pull {
        batch: within(permit.max_messages.clamp(1, MAX_BATCH), limits.max_batch),
        max_bytes: Some(within(
            permit.max_bytes.clamp(1, MAX_BYTES),
            limits.max_bytes,
        )),
        expires: match limits.max_expires {
            0 => block,
            limit => block.min(limit),
        },
        no_wait: true,
    }
}

fn too_large(limits: Limits) -> NatsError {
    NatsError::Unfit {
        what: format!(
            "the next message is larger than the consumer lets anybody ask for, {} bytes",
            limits.max_bytes
        ),
        remedy: "remove the limit (`nats consumer edit`, max_bytes)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_for_no_more_than_is_permitted_and_than_the_consumer_allows() {
        let block = Duration::from_secs(1);
        let pull = request(Permit::UNLIMITED, Limits::default(), block);
        assert_eq!((pull.batch, pull.max_bytes), (MAX_BATCH, Some(MAX_BYTES)));
        assert_eq!(pull.expires, 1_000_000_000);
        let permit = Permit {
            max_messages: 7,
            max_bytes: 100,
        };
        let pull = request(permit, Limits::default(), block);
        assert_eq!((pull.batch, pull.max_bytes), (7, Some(100)));
        let limits = Limits {
            max_batch: 5,
            max_bytes: 50,
            max_expires: 3,
        };
        let pull = request(permit, limits, block);
        assert_eq!((pull.batch, pull.max_bytes, pull.expires), (5, Some(50), 3));
    }
}
