//! Looks for what would stop or hurt a source on this server, and changes nothing.
//!
//! Each thing that may be forbidden is asked for on its own, so that one refusal hides nothing else.

use std::time::Duration;

use redis::{RedisError, RedisResult};

use crate::finding::Finding;
use crate::source::redis::connection::Commands;
use crate::source::redis::failure;
use crate::source::redis::position::GroupAhead;
use crate::source::redis::stream_id::StreamId;

use super::RedisOperator;

mod permissions;
mod sentinels;
mod server;
mod stream;

use server::ServerFacts;
use stream::StreamFacts;

impl RedisOperator {
    pub(super) async fn look_for_trouble(&self, retention: Option<Duration>) -> Vec<Finding> {
        let settings = self.settings();
        let server = settings.url.to_string();
        let mut findings = Vec::new();
        let watch = self.connections.watch.as_ref();
        if let Some(watch) = watch {
            findings.extend(sentinels::judge(&watch.ask_all().await));
        }
        let mut commands = match self.connections.commands().await {
            Ok(commands) => commands,
            Err(error) => {
                findings.push(unreachable(&server, "connecting", &error));
                return findings;
            }
        };
        match commands.info().await {
            Ok(info) => {
                findings.extend(ServerFacts::of(&info).judge(&server));
                findings.extend(watch.map(|_| sentinels::judge_master(&info)));
            }
            Err(error) if failure::is_answer(&error) => findings.push(server::unknown(&error)),
            Err(error) => {
                findings.push(unreachable(&server, "asking", &error));
                return findings;
            }
        }
        let forbidden = permissions::forbidden(&mut commands).await;
        findings.push(permissions::judge(&forbidden, settings));
        match stream_facts(&mut commands).await {
            Ok(facts) => findings.extend(facts.judge(settings, retention)),
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
    let Some(snapshot) = commands.look_from_outside().await? else {
        return Ok(facts);
    };
    let ahead = GroupAhead::of(&snapshot, commands.settings);
    let mut behind = StreamId::ZERO;
    if let Some(group) = snapshot.group(&commands.settings.group) {
        behind = ahead.map_or(group.last_delivered, |ahead| ahead.back_to);
        facts.consumers = commands.consumers().await?;
    }
    facts.oldest_unread = commands.first_behind(behind).await?;
    facts.length = Some(snapshot.length);
    facts.end = snapshot.end;
    facts.ahead = ahead;
    facts.groups = snapshot.groups;
    facts.pending = snapshot.pending;
    Ok(facts)
}
