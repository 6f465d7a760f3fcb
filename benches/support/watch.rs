//! When all that is in a stream has been acknowledged, and how many commands that took.

use std::time::Duration;

use redis::{Connection, FromRedisValue as _, Value};
use tokio::time::Instant;

use super::redis::RedisServer;

/// Nothing takes that long without any progress.
const PATIENCE: Duration = Duration::from_secs(60);
/// How exactly the end is seen; each look costs Redis one command.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// One group of the stream `events`, looked at through one connection.
pub(crate) struct Watch {
    connection: Connection,
    group: &'static str,
    /// Of its own, since the count began.
    num_commands: f64,
}

impl Watch {
    /// Begins to count the server's commands.
    pub(crate) fn start(redis: &RedisServer, group: &'static str) -> Self {
        let mut connection = redis.stream().connect();
        let mut reset = redis::cmd("CONFIG");
        let _: String = reset.arg("RESETSTAT").query(&mut connection).unwrap();
        Self {
            connection,
            group,
            num_commands: 0.0,
        }
    }

    /// Waits until the group has acknowledged all that is in the stream.
    pub(crate) fn until_settled(&mut self, log: impl Fn() -> String) {
        let last = self.last_id();
        let mut progress = (Instant::now(), None);
        loop {
            let state = self.delivered_and_pending();
            if state == Some((last.clone(), 0)) {
                return;
            }
            if progress.1 != state {
                progress = (Instant::now(), state);
            }
            assert!(progress.0.elapsed() < PATIENCE, "no progress: {}", log());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// How many commands the others have sent.
    pub(crate) fn commands_of_others(&mut self) -> f64 {
        let stats: String = self.query("INFO stats").unwrap();
        let mut lines = stats.lines();
        let count = lines.find_map(|line| line.strip_prefix("total_commands_processed:"));
        // One that is at work is not counted yet.
        let count: f64 = count.unwrap().trim().parse().unwrap();
        count - (self.num_commands - 1.0)
    }

    fn query<T: redis::FromRedisValue>(&mut self, words: &str) -> redis::RedisResult<T> {
        self.num_commands += 1.0;
        let mut words = words.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>());
        command.query(&mut self.connection)
    }

    fn last_id(&mut self) -> String {
        let entries: Vec<(String, Value)> = self.query("XREVRANGE events + - COUNT 1").unwrap();
        entries.into_iter().next().unwrap().0
    }

    /// Nothing while the group is not there.
    fn delivered_and_pending(&mut self) -> Option<(String, u64)> {
        let groups: Vec<Vec<Value>> = self.query("XINFO GROUPS events").ok()?;
        groups.into_iter().find_map(|fields| {
            let value = |name: &str| {
                let mut pairs = fields.chunks(2);
                let pair = pairs.find(|pair| {
                    String::from_redis_value_ref(&pair[0]).is_ok_and(|key| key == name)
                });
                pair.map(|pair| pair[1].clone())
            };
            let text = |name| redis::from_redis_value::<String>(value(name)?).ok();
            let is_ours = text("name")? == self.group;
            let pending = redis::from_redis_value(value("pending")?).ok()?;
            is_ours.then_some((text("last-delivered-id")?, pending))
        })
    }
}
