//! Looks for what would stop or hurt a source on this server, and changes nothing.
//!
//! Each thing that may be forbidden is asked for on its own, so that one refusal hides nothing else.

use std::time::Duration;

use redis::{RedisError, RedisResult};

use crate::finding::Finding;
use crate::source::redis::commands::Commands;
use crate::source::redis::failure;
use crate::source::redis::position::GroupAhead;
use crate::source::redis::snapshot::find;
use crate::source::redis::stream_id::StreamId;

use super::RedisOperator;

mod permissions;
mod server;
mod stream;

use server::ServerFacts;
use stream::StreamFacts;

impl RedisOperator {
    pub(super) async fn look_for_trouble(&self, retention: Option<Duration>) -> Vec<Finding> {
        let server = self.settings.url.to_string();
        let mut commands = match self.commands().await {
            Ok(commands) => commands,
            Err(error) => return vec![unreachable(&server, "connecting", &error)],
        };
        let mut findings = Vec::new();
        match commands.info().await {
            Ok(info) => findings.extend(ServerFacts::of(&info).judge(&server)),
            Err(error) if failure::is_answer(&error) => findings.push(server::unknown(&error)),
            Err(error) => return vec![unreachable(&server, "asking", &error)],
        }
        let forbidden = permissions::forbidden(&mut commands).await;
        findings.push(permissions::judge(&forbidden, &self.settings));
        match stream_facts(&mut commands).await {
            Ok(facts) => findings.extend(facts.judge(&self.settings, retention)),
            // A missing right was told already, and is why.
            Err(_) if !forbidden.is_empty() => {}
            Err(error) => findings.push(unreachable(&server, "looking at the stream", &error)),
        }
        findings
    }
}

fn unreachable(server: &str, doing: &str, error: &RedisError) -> Finding {
    Finding::error(
        "redis.reachable",
        format!("Redis at {server}: {doing} failed ({error})"),
        failure::remedy(error),
    )
}

async fn stream_facts(commands: &mut Commands<'_>) -> RedisResult<StreamFacts> {
    let mut facts = StreamFacts {
        now: commands.now().await?,
        ..StreamFacts::default()
    };
    if !commands.stream_exists().await? {
        return Ok(facts);
    }
    facts.length = Some(commands.length().await?);
    facts.groups = commands.all_groups().await?;
    let behind = match find(&facts.groups, &commands.settings.group) {
        None => {
            facts.end = Some(commands.last_id().await?);
            StreamId::ZERO
        }
        Some(_) => {
            // All at one moment, since a guard is compared with what is pending.
            let snapshot = commands.look(None).await?;
            let ahead = GroupAhead::of(&snapshot, commands.settings);
            facts.end = snapshot.end;
            facts.ahead = ahead;
            facts.groups = snapshot.groups;
            facts.pending = snapshot.pending;
            facts.consumers = commands.consumers().await?;
            let group = find(&facts.groups, &commands.settings.group);
            let last = group.map_or(StreamId::ZERO, |group| group.last_delivered);
            ahead.map_or(last, |ahead| ahead.back_to)
        }
    };
    facts.oldest_unread = commands.first_behind(behind).await?;
    Ok(facts)
}
