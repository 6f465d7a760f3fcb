//! Which server is the master, by the sentinels that watch it.
//!
//! # Why a server's own word is not enough
//!
//! A master that was frozen, restarted or replaced says for seconds that it is the master, until a sentinel has told
//! it otherwise. What is read and acknowledged there is lost. So all listed sentinels are asked, and the newest
//! configuration that any of them knows counts: each failover has a number (`config-epoch`), which grows. A
//! sentinel that was cut off knows an older one, and is not believed against what was known before. Only if most of
//! those that are listed say it, an older number is right: then somebody has set up the sentinels anew.
//!
//! # Why they are asked again and again
//!
//! Their message `+switch-master` needs another right, and is lost with its connection. So it only makes us ask sooner
//! (`hints`).

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{ErrorKind, RedisError, RedisResult};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::source::lock;

use super::connection::Connection;
use super::failure::{self, timed_out};
use super::reach::reach;
use super::settings::RedisSettings;
use super::url::{Sentinels, host_with_port};

pub(super) mod hints;

/// How long one may take to answer, and each of its addresses to connect: longer keeps a dead one from being passed
/// over, shorter passes over a busy one.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// What one sentinel knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) config_epoch: u64,
    pub(super) host: String,
    pub(super) port: u16,
    /// How many must agree that the master is down, and how many others it knows.
    pub(super) quorum: usize,
    pub(super) num_others: usize,
}

/// A server that is the master until there is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Master {
    pub(super) host: String,
    pub(super) port: u16,
    config_epoch: u64,
    /// Counts the masters that this process has seen, from 1. What was read from one means nothing to the next.
    pub(super) epoch: u64,
}

impl Master {
    pub(super) fn is_at_the_place_of(&self, other: &Self) -> bool {
        (&self.host, self.port) == (&other.host, other.port)
    }
}

impl fmt::Display for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&host_with_port(&self.host, self.port))
    }
}

/// A connection to a sentinel.
struct Asked {
    connection: Connection,
    /// Whether its user may only ask for all masters at once, which is what Python's client asks for.
    lists_only: bool,
}

/// Why nobody can be called the master.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum NoMaster {
    #[error("they disagree on the newest master: {0}")]
    Disagree(String),
    #[error(
        "those that answer know an older master than the one that was used, so they were cut off"
    )]
    Outdated,
}

/// The sentinels of a URL, and what they said last.
pub(super) struct Watch {
    settings: RedisSettings,
    sentinels: Sentinels,
    /// The open connection to each.
    connections: Vec<tokio::sync::Mutex<Option<Asked>>>,
    known: Mutex<Option<Master>>,
    /// Those that were the master before, until somebody asks for them.
    replaced: Mutex<Vec<Master>>,
    /// There is another master.
    pub(super) renewed: Notify,
}

impl Watch {
    pub(super) fn new(settings: &RedisSettings, sentinels: &Sentinels) -> Self {
        let connections = sentinels.members.iter();
        Self {
            settings: settings.clone(),
            sentinels: sentinels.clone(),
            connections: connections.map(|_| tokio::sync::Mutex::default()).collect(),
            known: Mutex::default(),
            replaced: Mutex::default(),
            renewed: Notify::new(),
        }
    }

    /// The master as it was last known.
    pub(super) fn known(&self) -> Option<Master> {
        lock(&self.known).clone()
    }

    /// The masters that were replaced since this was asked last.
    pub(super) fn take_replaced(&self) -> Vec<Master> {
        std::mem::take(&mut *lock(&self.replaced))
    }

    /// Asks all sentinels for the master.
    pub(super) async fn master(&self) -> RedisResult<Master> {
        let (answers, failures): (Vec<_>, Vec<_>) = {
            let asked = self.ask_all().await.into_iter();
            asked.partition(|(_, answer)| answer.is_ok())
        };
        let answers: Vec<Answer> = answers.into_iter().filter_map(|(_, a)| a.ok()).collect();
        if answers.is_empty() {
            let failures = failures.into_iter().filter_map(|(who, answer)| {
                let error = answer.err()?;
                Some(format!("{who}: {error}"))
            });
            let failures: Vec<String> = failures.collect();
            return Err(no_master(&format!("none answers: {}", failures.join("; "))));
        }
        let mut known = lock(&self.known);
        let chosen = choose(known.as_ref(), &answers, self.connections.len());
        let master = chosen.map_err(|why| no_master(&why.to_string()))?;
        let before = known.replace(master.clone());
        let replaced = before.filter(|before| before.epoch != master.epoch);
        if let Some(replaced) = replaced {
            lock(&self.replaced).push(replaced);
            self.renewed.notify_waiters();
        }
        Ok(master)
    }

    /// What each says, with its name.
    pub(super) async fn ask_all(&self) -> Vec<(String, RedisResult<Answer>)> {
        let members = self.sentinels.members.iter().zip(&self.connections);
        let asking = members.map(|((host, port), connection)| async move {
            let answer = self.ask(host, *port, connection).await;
            (host_with_port(host, *port), answer)
        });
        join_all(asking).await
    }

    async fn ask(
        &self,
        host: &str,
        port: u16,
        connection: &tokio::sync::Mutex<Option<Asked>>,
    ) -> RedisResult<Answer> {
        let mut place = within(async { Ok(connection.lock().await) }).await?;
        // It goes back only if all went well.
        let mut asked = match place.take() {
            Some(asked) => asked,
            None => {
                let greet = |stream| Connection::greet(stream, self.sentinels.login(), 0);
                Asked {
                    connection: reach(&self.settings, host, port, ANSWERS_WITHIN, greet).await?,
                    lists_only: false,
                }
            }
        };
        let answer = within(self.question(&mut asked)).await?;
        *place = Some(asked);
        Ok(answer)
    }

    async fn question(&self, asked: &mut Asked) -> RedisResult<Answer> {
        let Asked {
            connection,
            lists_only,
        } = asked;
        if !*lists_only {
            match self.ask_for_one(connection).await {
                Err(error) if failure::code(&error).as_deref() == Some("NOPERM") => {
                    *lists_only = true;
                }
                answer => return answer,
            }
        }
        self.ask_for_all(connection).await
    }

    /// While a failover is under way the number and the address change one after the other, so the number must be
    /// the same before and after.
    async fn ask_for_one(&self, connection: &mut Connection) -> RedisResult<Answer> {
        let sentinel = |what: &str| {
            let mut command = redis::cmd("SENTINEL");
            command.arg(what).arg(&self.sentinels.service);
            command
        };
        for _ in 0..3 {
            let (before, address, after): (HashMap<String, String>, Option<(String, u16)>, _) =
                redis::pipe()
                    .add_command(sentinel("MASTER"))
                    .add_command(sentinel("GET-MASTER-ADDR-BY-NAME"))
                    .add_command(sentinel("MASTER"))
                    .query_async(&mut connection.redis)
                    .await?;
            let after: HashMap<String, String> = after;
            let (Some(config_epoch), Some((host, port))) =
                (number(&before, "config-epoch"), address)
            else {
                return Err(unknown_service());
            };
            if number(&after, "config-epoch") == Some(config_epoch) {
                return Ok(Answer::of(config_epoch, host, port, &after));
            }
        }
        Err(under_way())
    }

    /// All in one answer. But it names the old master for as long as this sentinel fails over, with the number of
    /// the new one.
    async fn ask_for_all(&self, connection: &mut Connection) -> RedisResult<Answer> {
        let mut command = redis::cmd("SENTINEL");
        command.arg("MASTERS");
        let masters: Vec<HashMap<String, String>> =
            command.query_async(&mut connection.redis).await?;
        let service = &self.sentinels.service;
        let mut masters = masters.into_iter();
        let master = masters.find(|master| master.get("name") == Some(service));
        let master = master.ok_or_else(unknown_service)?;
        let has = |flag: &str| {
            let flags = master.get("flags").into_iter();
            flags.flat_map(|flags| flags.split(',')).any(|f| f == flag)
        };
        if has("failover_in_progress") {
            return Err(under_way());
        }
        let port = number(&master, "port").and_then(|port| u16::try_from(port).ok());
        let (Some(config_epoch), Some(host), Some(port)) =
            (number(&master, "config-epoch"), master.get("ip"), port)
        else {
            return Err(failure::unexpected("a master with its address"));
        };
        Ok(Answer::of(config_epoch, host.clone(), port, &master))
    }
}

impl Answer {
    fn of(config_epoch: u64, host: String, port: u16, facts: &HashMap<String, String>) -> Self {
        let size = |name| number(facts, name).and_then(|n| usize::try_from(n).ok());
        Self {
            config_epoch,
            host,
            port,
            quorum: size("quorum").unwrap_or_default(),
            num_others: size("num-other-sentinels").unwrap_or_default(),
        }
    }
}

fn number(of: &HashMap<String, String>, name: &str) -> Option<u64> {
    of.get(name)?.parse().ok()
}

/// The rule: the newest that any knows, unless it is older than what was known and most do not say so.
fn choose(
    known: Option<&Master>,
    answers: &[Answer],
    num_members: usize,
) -> Result<Master, NoMaster> {
    let newest = answers.iter().map(|answer| answer.config_epoch).max();
    let newest = newest.ok_or(NoMaster::Outdated)?;
    let mut votes: HashMap<(&str, u16), usize> = HashMap::new();
    for answer in answers
        .iter()
        .filter(|answer| answer.config_epoch == newest)
    {
        *votes.entry((&answer.host, answer.port)).or_default() += 1;
    }
    let most = votes.values().copied().max().unwrap_or_default();
    let mut chosen = votes.iter().filter(|(_, votes)| **votes == most);
    let Some((&(host, port), _)) = chosen.next() else {
        return Err(NoMaster::Outdated);
    };
    if chosen.next().is_some() {
        let mut named: Vec<String> = votes
            .keys()
            .map(|(host, port)| host_with_port(host, *port))
            .collect();
        named.sort();
        return Err(NoMaster::Disagree(named.join(", ")));
    }
    let same = known.filter(|known| (&known.host[..], known.port) == (host, port));
    if let Some(known) = known {
        let is_older = newest < known.config_epoch;
        if is_older && most * 2 <= num_members {
            return Err(NoMaster::Outdated);
        }
    }
    Ok(Master {
        host: host.to_owned(),
        port,
        config_epoch: newest,
        epoch: match (known, same) {
            (None, _) => 1,
            // One that was replaced and came back has lost what it had meanwhile.
            (Some(known), Some(_)) if known.config_epoch == newest => known.epoch,
            (Some(known), _) => known.epoch + 1,
        },
    })
}

async fn within<T>(answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    let answer = timeout(ANSWERS_WITHIN, answer).await;
    answer.unwrap_or_else(|_| Err(timed_out("it says nothing")))
}

fn unknown_service() -> RedisError {
    no_master("it does not know the service")
}

fn under_way() -> RedisError {
    no_master("a failover is under way")
}

fn no_master(why: &str) -> RedisError {
    RedisError::from((
        ErrorKind::Client,
        "the sentinels name no master",
        why.to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(config_epoch: u64, port: u16) -> Answer {
        Answer {
            config_epoch,
            host: "h".to_owned(),
            port,
            quorum: 2,
            num_others: 2,
        }
    }

    fn chosen(known: Option<&Master>, answers: &[Answer]) -> Result<(u16, u64), NoMaster> {
        choose(known, answers, 3).map(|master| (master.port, master.epoch))
    }

    #[test]
    fn the_newest_configuration_counts_whoever_knows_it() {
        let first = choose(None, &[says(0, 1), says(0, 1), says(0, 1)], 3).unwrap();
        assert_eq!((first.port, first.epoch), (1, 1));
        // One has heard of the failover, and the others have not.
        assert_eq!(
            chosen(Some(&first), &[says(0, 1), says(4, 2), says(0, 1)]),
            Ok((2, 2))
        );
        assert_eq!(
            chosen(Some(&first), &[says(0, 1)]),
            Ok((1, 1)),
            "two are away"
        );
    }

    #[test]
    fn one_that_was_cut_off_is_not_believed() {
        let second = choose(None, &[says(4, 2), says(4, 2)], 3).unwrap();
        assert_eq!(
            chosen(Some(&second), &[says(0, 1)]),
            Err(NoMaster::Outdated)
        );
        assert_eq!(chosen(Some(&second), &[says(0, 1), says(4, 2)]), Ok((2, 1)));
        // Sentinels that were set up anew begin at 0.
        assert_eq!(chosen(Some(&second), &[says(0, 1), says(0, 1)]), Ok((1, 2)));
        assert_eq!(chosen(Some(&second), &[says(0, 2), says(0, 2)]), Ok((2, 2)));
    }

    #[test]
    fn an_older_number_needs_more_than_half_of_those_that_are_listed() {
        let known = choose(None, &[says(4, 2)], 5).unwrap();
        for (num, expected) in [(2, Err(NoMaster::Outdated)), (3, Ok(1))] {
            let answers = vec![says(0, 1); num];
            let port = choose(Some(&known), &answers, 5).map(|master| master.port);
            assert_eq!(port, expected, "{num} of 5");
        }
        let half = choose(Some(&known), &[says(0, 1), says(0, 1)], 4);
        assert_eq!(half, Err(NoMaster::Outdated));
    }

    #[test]
    fn a_master_that_comes_back_is_a_new_one() {
        let mut known = choose(None, &[says(1, 1)], 3).unwrap();
        for (config_epoch, port, epoch) in [(2, 2, 2), (3, 1, 3), (3, 1, 3), (9, 1, 4)] {
            known = choose(Some(&known), &[says(config_epoch, port)], 3).unwrap();
            assert_eq!((known.port, known.epoch), (port, epoch));
        }
    }

    #[test]
    fn two_masters_of_one_number_are_none() {
        let disagree = chosen(None, &[says(1, 1), says(1, 2)]);
        assert_eq!(disagree, Err(NoMaster::Disagree("h:1, h:2".to_owned())));
        assert_eq!(
            chosen(None, &[says(1, 1), says(1, 2), says(1, 2)]),
            Ok((2, 1))
        );
    }
}
