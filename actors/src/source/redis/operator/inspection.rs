//! What would stop or hurt a source on this server, looked for without changing anything.
//!
//! Whatever may be forbidden to us is asked for on its own, so that one refusal hides nothing else.

use std::time::Duration;

use redis::{RedisError, RedisResult};

use crate::finding::Finding;

use super::commands::Commands;
use super::connection::Connections;
use super::failure;
use super::guard::find;
use super::position::Ahead;
use super::replies::{self, Consumer};
use super::settings::{RedisSettings, RedisSettingsError};
use super::stream_id::StreamId;

mod permissions;
mod server;
mod stream;

use server::ServerFacts;
use stream::StreamFacts;

/// Looks at a server and its stream.
pub struct RedisInspection {
    settings: RedisSettings,
    connections: Connections,
}

impl RedisInspection {
    /// Of the server and the stream of a source with these settings.
    ///
    /// # Errors
    ///
    /// The settings cannot work.
    pub fn new(settings: RedisSettings) -> Result<Self, RedisSettingsError> {
        settings.check()?;
        let connections = Connections::new(&settings);
        Ok(Self {
            settings,
            connections,
        })
    }

    /// Everything that was looked at. `retention` is how long events are kept in the store, if they
    /// are ever deleted there.
    pub async fn inspect(&self, retention: Option<Duration>) -> Vec<Finding> {
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
            // What is forbidden was told already, and is why.
            Err(_) if !forbidden.is_empty() => {}
            Err(error) => findings.push(unreachable(&server, "looking at the stream", &error)),
        }
        findings
    }

    async fn commands(&self) -> RedisResult<Commands<'_>> {
        Ok(Commands {
            connection: self.connections.commands().await?,
            settings: &self.settings,
        })
    }
}

fn unreachable(server: &str, doing: &str, error: &RedisError) -> Finding {
    Finding::error(
        "redis.reachable",
        format!("Redis at {server}: {doing} failed ({error})"),
        failure::remedy(error),
    )
}

impl Commands<'_> {
    async fn info(&mut self) -> RedisResult<String> {
        let info = self.send(&redis::cmd("INFO")).await?;
        replies::lossy_text(info)
    }

    /// The server's clock, by which it numbers entries.
    async fn now(&mut self) -> RedisResult<u64> {
        let (seconds, micros): (u64, u64) =
            redis::from_redis_value(self.send(&redis::cmd("TIME")).await?)?;
        Ok(seconds.saturating_mul(1000).saturating_add(micros / 1000))
    }

    async fn consumers(&mut self) -> RedisResult<Vec<Consumer>> {
        let mut command = redis::cmd("XINFO");
        command.arg("CONSUMERS").arg(&self.settings.stream);
        command.arg(&self.settings.group);
        replies::consumers(self.send(&command).await?)
    }
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
            facts.end = commands.last_id().await?;
            StreamId::ZERO
        }
        Some(_) => {
            // All at one moment, since a guard is compared with what is pending.
            let sight = commands.look(None).await?;
            facts.end = sight.end;
            let ahead = (sight.end).and_then(|end| Ahead::of(&sight, end, commands.settings));
            facts.ahead = ahead;
            facts.groups = sight.groups;
            facts.pending = sight.pending;
            facts.consumers = commands.consumers().await?;
            let group = find(&facts.groups, &commands.settings.group);
            let last = group.map_or(StreamId::ZERO, |group| group.last_delivered);
            ahead.map_or(last, |ahead| ahead.back_to)
        }
    };
    facts.oldest_unread = commands.first_behind(behind).await?;
    Ok(facts)
}
