//! Reads the stream as it stands, to be compared with the database: takes nothing and changes nothing.
//!
//! How far the group was given entries is asked first, and which of them are pending together with each
//! page. So an entry of a page that is not pending was committed before the page is here, and must be found
//! in the database afterwards. The other way round, one that is committed in between would be missed.

use std::collections::HashSet;

use futures_util::future::LocalBoxFuture;
use redis::RedisResult;

use crate::source::operator::{StreamPage, StreamWalk};
use crate::source::redis::connection::RESPONSE_TIMEOUT;
use crate::source::redis::entry_reader::{Reply, Room};
use crate::source::redis::position::GroupAhead;
use crate::source::redis::sizes::Sizes;
use crate::source::redis::stream_id::StreamId;
use crate::source::{Permit, SourceError};

use super::RedisOperator;
use super::commands::read_page;

/// One page; a single larger entry comes alone.
const PAGE: Permit = Permit {
    max_messages: usize::MAX,
    max_bytes: 4 * 1024 * 1024,
};

pub(super) struct RedisWalk<'a> {
    operator: &'a RedisOperator,
    behind: StreamId,
    last: StreamId,
    length: u64,
    num_seen: u64,
    misplaced: Option<String>,
    sizes: Sizes,
}

impl RedisOperator {
    pub(super) async fn begin_walk(&self) -> RedisResult<RedisWalk<'_>> {
        let mut walk = RedisWalk {
            operator: self,
            behind: StreamId::ZERO,
            last: StreamId::ZERO,
            length: 0,
            num_seen: 0,
            misplaced: None,
            sizes: Sizes::default(),
        };
        let mut commands = self.connections.commands().await?;
        let Some(snapshot) = commands.look_from_outside().await? else {
            return Ok(walk);
        };
        let settings = self.settings();
        let group = snapshot.group(&settings.group);
        walk.last = group.map_or(StreamId::ZERO, |group| group.last_delivered);
        walk.length = snapshot.length;
        let ahead = GroupAhead::of(&snapshot, settings);
        walk.misplaced = ahead.map(|ahead| ahead.what_and_remedy(settings));
        Ok(walk)
    }
}

impl RedisWalk<'_> {
    async fn read_on(&mut self) -> RedisResult<Option<StreamPage>> {
        let Self { behind, last, .. } = *self;
        let count = self.sizes.at_least_one(PAGE);
        let connections = &self.operator.connections;
        let command = read_page(&connections.settings, behind, last, count);
        let mut room = Room::new(PAGE);
        let read = connections.read(&command, Reply::Page, &mut room, RESPONSE_TIMEOUT, None);
        let read = read.await?;
        // The next page begins with what was skipped.
        for (_, num_bytes) in &read.skipped {
            self.sizes.saw(*num_bytes);
        }
        let Some(newest) = read.entries.last() else {
            return Ok(None);
        };
        self.behind = newest.id;
        self.num_seen += read.entries.len() as u64;
        let pending: HashSet<StreamId> = read.pending.into_iter().collect();
        let mut page = StreamPage::default();
        for entry in read.entries {
            let Some(body) = entry.body else { continue };
            self.sizes.saw(body.num_bytes());
            if pending.contains(&entry.id) {
                page.pending.push(body);
            } else {
                page.acknowledged.push(body);
            }
        }
        Ok(Some(page))
    }
}

impl StreamWalk for RedisWalk<'_> {
    fn next_page(&mut self) -> LocalBoxFuture<'_, Result<Option<StreamPage>, SourceError>> {
        Box::pin(async move {
            if self.behind >= self.last {
                return Ok(None);
            }
            let operator = self.operator;
            let page = self.read_on().await;
            page.map_err(|error| operator.connections.failed("reading the stream", error))
        })
    }

    fn misplaced(&self) -> Option<&str> {
        self.misplaced.as_deref()
    }

    fn num_unread(&self) -> u64 {
        self.length.saturating_sub(self.num_seen)
    }
}
