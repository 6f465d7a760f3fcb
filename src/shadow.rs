//! The shadow: reads beside Prefect's persister, writes nothing, and compares what would be written
//! with the rows that are there.
//!
//! A message is compared once the group at work has acknowledged it and Prefect's flush interval is
//! over, with five seconds to spare; what is not as expected then is looked at once more, after as
//! long again. One loop does it all, and reading pauses when too much waits.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use event_persister_actors::delivery::Entry;
use event_persister_actors::status::error_chain;
use event_persister_actors::store::operator::StoreOperator;
use tokio::time::Instant;

use self::health::{Failed, Health};
use self::metrics::ShadowMetrics;
use self::report::Report;
use self::tally::{Class, Tally};
use self::waiting::WaitingMessages;
use crate::cli::{Command, ServeFlags};
use crate::comparing;
use crate::config::Config;
use crate::http::{ListenerSetup, RunningListener};
use crate::signals::Signals;
use crate::wiring::{self, BusOperator, Missing, StreamShadow};

mod health;
mod listener;
mod metrics;
mod report;
mod tally;
mod waiting;

/// How long Prefect's persister holds what it has acknowledged, where its environment does not say.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);
const TO_SPARE: Duration = Duration::from_secs(5);
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long a database that has nothing to answer is left alone, before it is tried.
const TRY_EVERY: Duration = Duration::from_secs(10);
const QUESTIONS_AT_ONCE: usize = 8;
const TELL_EVERY: Duration = Duration::from_secs(60);
/// How long the loop rests when there is nothing to do, and after a failure.
const REST: Duration = Duration::from_millis(250);
const REST_AFTER_FAILURE: Duration = Duration::from_secs(1);
const DESTROY_TIMEOUT: Duration = Duration::from_secs(5);
const LIMIT: usize = 20;

const NO_REDIS: &str = "no Redis is configured, so there is no persister to compare with; give \
     --redis-url or EVENT_PERSISTER_REDIS_URL, or run this in the environment of the Prefect server";

pub(crate) fn validate(command: &Command, config: &Config) -> anyhow::Result<()> {
    match command {
        Command::Serve(flags) if flags.shadow && config.redis.is_none() => bail!("{NO_REDIS}"),
        _ => Ok(()),
    }
}

/// Compares until a signal, or the end of its span; whether nothing differs, nor was refused here and
/// stored by Prefect.
pub(crate) async fn run(config: &Config, flags: &ServeFlags) -> anyhow::Result<bool> {
    let mut signals = Signals::listen()?;
    let setup = ListenerSetup::find(&config.http)?;
    let mut shadow = Shadow::new(config, flags)?;
    let listener = listener::listener(config, &shadow.health, &shadow.metrics);
    let opened = setup.map(|setup| setup.open(&listener));
    let mut listening = opened.transpose()?;
    shadow.announce(listening.as_ref());
    let ended = tokio::select! {
        stop = signals.next() => {
            log::info!("{stop}; comparing nothing more");
            Ok(())
        }
        () = shadow.work(flags.span) => Ok(()),
        () = RunningListener::ended(listening.as_mut()) => Err("the listener has stopped by itself"),
    };
    signals.next_is_final();
    shadow.leave().await;
    if let Some(listening) = listening {
        listening.stop().await;
    }
    shadow.report(flags.json)?;
    if let Err(what) = ended {
        bail!("{what}; start the shadow again");
    }
    shadow.outcome()
}

struct Shadow<'a> {
    config: &'a Config,
    bus: Box<dyn BusOperator>,
    beside: Box<dyn StreamShadow>,
    tables: Arc<dyn StoreOperator>,
    waiting: WaitingMessages,
    delay: Duration,
    tally: Tally,
    metrics: ShadowMetrics,
    health: Health,
    started: Instant,
    asked: Option<Instant>,
    tried: Option<Instant>,
    is_paused: bool,
    num_named: usize,
}

impl<'a> Shadow<'a> {
    fn new(config: &'a Config, flags: &ServeFlags) -> anyhow::Result<Self> {
        let flush_interval = config.prefect.flush_interval.unwrap_or(FLUSH_INTERVAL);
        let delay = flush_interval + TO_SPARE;
        let bus = wiring::bus_operator(config)?.context(NO_REDIS)?;
        Ok(Self {
            config,
            beside: bus.shadow().context(NO_REDIS)?,
            bus,
            tables: wiring::operator(config, Missing::Ignore),
            waiting: WaitingMessages::new(delay),
            delay,
            tally: Tally::new(flags.limit.unwrap_or(LIMIT)),
            metrics: ShadowMetrics::new().context("cannot set the metrics up")?,
            health: Health::new(),
            started: Instant::now(),
            asked: None,
            tried: None,
            is_paused: false,
            num_named: 0,
        })
    }

    fn announce(&self, listening: Option<&RunningListener>) {
        let listen = RunningListener::addresses(listening);
        log::info!(
            "event-persister {} started as a shadow, which writes nothing listen={listen} \
             stream={} beside={} group={} store={} delay={:?}",
            env!("CARGO_PKG_VERSION"),
            self.bus.stream(),
            self.bus.group(),
            self.beside.own_group(),
            self.config.database.url,
            self.delay,
        );
        if let Some(listening) = listening {
            listening.warn();
        }
    }

    /// Reads for as long as the span is, then compares what is held, and returns.
    async fn work(&mut self, span: Option<Duration>) {
        self.tell_of_others().await;
        let mut told = Instant::now();
        let mut last_moment = None;
        loop {
            let now = Instant::now();
            let is_over = span.is_some_and(|span| now.duration_since(self.started) >= span);
            if is_over {
                let end = *last_moment.get_or_insert(now + 2 * self.delay + TO_SPARE);
                if self.waiting.len() == 0 || now >= end {
                    return;
                }
            }
            let rest = match self.step(!is_over).await {
                Ok(true) => Duration::ZERO,
                Ok(false) if is_over || self.is_paused => REST,
                // The read has waited.
                Ok(false) => Duration::ZERO,
                Err(Failed) => REST_AFTER_FAILURE,
            };
            tokio::time::sleep(rest).await;
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                self.tell();
            }
        }
    }

    async fn step(&mut self, reads: bool) -> Result<bool, Failed> {
        let read_more = if reads { self.read().await? } else { false };
        self.ask().await?;
        // A read waits for the first entry, and what is due must not wait with it.
        let mut num_compared = 0;
        while num_compared < QUESTIONS_AT_ONCE && self.compare().await? {
            num_compared += 1;
        }
        self.metrics.waiting(self.waiting.len());
        Ok(read_more || num_compared > 0)
    }

    async fn read(&mut self) -> Result<bool, Failed> {
        let room = self.waiting.room();
        if room.is_none() != std::mem::replace(&mut self.is_paused, room.is_none()) {
            match room {
                None => log::warn!(
                    "reading pauses: too much waits to be compared, because the group at work is behind or the \
                     database does not answer waiting={}",
                    self.waiting.len()
                ),
                Some(_) => log::info!("reading goes on"),
            }
        }
        let Some(permit) = room else {
            return Ok(false);
        };
        let read = self.beside.read(permit).await;
        let read = self.health.bus_answered(read)?;
        if read.num_gone > 0 {
            log::warn!(
                "entries were trimmed from the stream before the shadow could read them; they are \
                 not compared entries={}",
                read.num_gone
            );
            self.add(Class::Trimmed, read.num_gone);
        }
        let now = Instant::now();
        for body in read.bodies {
            if comparing::is_empty(&body) {
                self.add(Class::Ignored, 1);
            } else {
                self.waiting.push(body, now);
            }
        }
        Ok(read.more)
    }

    async fn ask(&mut self) -> Result<(), Failed> {
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY) {
            return Ok(());
        }
        let from = self.waiting.first_unacknowledged().unwrap_or("0-1");
        let work = self.beside.work_from(from).await;
        let work = self.health.bus_answered(work)?;
        let now = Instant::now();
        self.asked = Some(now);
        self.health.group_is_there(work.is_some(), self.bus.group());
        let Some(work) = work else {
            return Ok(());
        };
        let has_acknowledged = |position: &str| work.has_acknowledged(position);
        self.waiting.acknowledged(has_acknowledged, now);
        let was_delivered = |position: &str| work.has_delivered(position);
        let num_given_up = self.waiting.give_up(was_delivered, now);
        self.add(Class::Unacknowledged, num_given_up);
        Ok(())
    }

    async fn compare(&mut self) -> Result<bool, Failed> {
        let now = Instant::now();
        let cutoffs = comparing::cutoffs(self.config);
        let cutoffs = self.health.tables_answered(cutoffs)?;
        let due = self.waiting.take_due(now);
        let was_tried = self.tried.is_some_and(|tried| tried.elapsed() < TRY_EVERY);
        if due.is_empty() && was_tried {
            return Ok(false);
        }
        let entries = due.iter();
        let entries: Vec<Arc<Entry>> = entries
            .map(|held| comparing::entry(self.bus.name(), &held.body, &self.config.events))
            .collect();
        let compared = self.tables.compare(&entries).await;
        let compared = match self.health.tables_answered(compared) {
            Ok(compared) => compared,
            Err(failed) => {
                self.waiting.put_back(due, now);
                return Err(failed);
            }
        };
        self.tried = Some(Instant::now());
        let was_any = !due.is_empty();
        for ((held, entry), compared) in due.into_iter().zip(entries).zip(compared) {
            match self.tally.judge(&entry, compared, &cutoffs, held.look) {
                None => self.waiting.look_again(held, Instant::now()),
                Some(class) => self.metrics.count(class, 1),
            }
        }
        self.name_findings();
        Ok(was_any)
    }

    fn add(&mut self, class: Class, number: usize) {
        self.tally.add(class, number as u64);
        self.metrics.count(class, number as u64);
    }

    /// Logs the findings that are new: ids, columns and what the parser says, never values.
    fn name_findings(&mut self) {
        for finding in self.tally.findings.iter().skip(self.num_named) {
            log::warn!(
                "{} stream.id={} event.id={} {}",
                finding.class.as_ref(),
                finding.stream_id,
                finding.event_id.as_deref().unwrap_or("-"),
                finding.detail()
            );
        }
        self.num_named = self.tally.findings.len();
        self.metrics.columns(&self.tally.columns);
    }

    fn tell(&self) {
        log::info!("shadow {} waiting={}", self.tally, self.waiting.len());
    }

    /// Says which groups of other shadows there are: one that was killed has left its own.
    async fn tell_of_others(&self) {
        let Ok(others) = self.beside.others().await else {
            return;
        };
        for other in others {
            log::warn!(
                "there is the group of another shadow; if none is running, it was killed: remove it \
                 with `redis-cli XGROUP DESTROY {} {other}`",
                self.bus.stream()
            );
        }
    }

    async fn leave(&mut self) {
        self.add(Class::Unfinished, self.waiting.len());
        self.tell();
        let destroyed = tokio::time::timeout(DESTROY_TIMEOUT, self.beside.destroy()).await;
        let why = match destroyed {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error_chain(&error),
            Err(_) => "Redis does not answer".to_owned(),
        };
        log::error!(
            "the shadow's group may still be there; remove it with `redis-cli XGROUP DESTROY {} {}` \
             error={why}",
            self.bus.stream(),
            self.beside.own_group()
        );
    }

    fn report(&self, as_json: bool) -> anyhow::Result<()> {
        let report = Report {
            stream: self.bus.stream(),
            group: self.bus.group(),
            lasted: self.started.elapsed(),
            tally: &self.tally,
        };
        report.print(as_json)
    }

    /// A shadow that could not see anything must not look as if all were well.
    fn outcome(&self) -> anyhow::Result<bool> {
        if self.tally.num_compared() == 0
            && let Some(why) = self.health.failure()
        {
            bail!("nothing was compared: {why}");
        }
        Ok(self.tally.is_well())
    }
}

#[cfg(test)]
mod tests;
