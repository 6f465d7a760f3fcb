//! Deletes what retention no longer keeps, on its own interval.
//!
//! Receives [`Trim`], from its own timer and from operators; sends nothing.
//! Guarantee: an event goes together with its resources, and not before its time has come by a
//! clock that is believed (`steadiness`, [`Caution`]). A pass that was cut off is repaired by the
//! next. How fast a pass goes is chosen here too (`pace`): the stores only make single steps.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::lifeline::{Lifeline, close};
use crate::messages::{Drain, Drained, Trim, TrimError, stops_when_retired};
use crate::metrics::{Metrics, PassOutcome};
use crate::retention::Retention;
use crate::settings::{As, ByEvent, Count, Interval, LongerThanZero};
use crate::status::{Component, Pass, Passes, error_chain};
use crate::store::{Cutoffs, EventStore, Removed, StoreError, TrimStep, Trimmed};

mod caution;
mod pace;
mod steadiness;

pub use caution::Caution;
use pace::Pace;
use steadiness::Steadiness;

/// How long events are kept, and how they are removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrimSettings {
    /// How often events beyond their retention are deleted, or `off`. Shorter means smaller passes.
    #[serde(with = "As::<Interval>")]
    pub every: Option<Duration>,
    /// How long events are kept, by the time at which they occurred.
    #[serde(with = "As::<LongerThanZero>")]
    pub retention: Duration,
    /// Retention of single event names, shorter or longer: a table in the file, `name=30d,other=1h` or JSON
    /// in a variable. Replaces the default.
    #[serde(with = "As::<ByEvent>")]
    pub overrides: BTreeMap<String, Duration>,
    /// Events deleted in one transaction; fewer let SQLite's writers in sooner, more finish earlier. SQLite
    /// takes up to four times as many while nobody else writes; while this process writes to PostgreSQL at
    /// most 1,000, and a second four times what it writes, or 5,000 if that is more.
    #[serde(with = "As::<Count>")]
    pub batch_size: NonZeroUsize,
}

impl Default for TrimSettings {
    fn default() -> Self {
        const DAY: u64 = 24 * 60 * 60;
        Self {
            every: Some(Duration::from_secs(15 * 60)),
            retention: Duration::from_secs(7 * DAY),
            overrides: BTreeMap::from([(
                "prefect.flow-run.heartbeat".to_owned(),
                Duration::from_secs(7 * DAY),
            )]),
            batch_size: NonZeroUsize::MIN.saturating_add(4_999),
        }
    }
}

impl From<&TrimSettings> for Retention {
    fn from(settings: &TrimSettings) -> Self {
        Self {
            default: settings.retention,
            overrides: settings.overrides.clone(),
        }
    }
}

/// From retention to moments; an error where it reaches back before the first one that can be told.
pub fn cutoffs(settings: &TrimSettings, now: DateTime<Utc>) -> Result<Cutoffs, TrimError> {
    let cutoff = |name: &str, retention: Duration| {
        TimeDelta::from_std(retention)
            .ok()
            .and_then(|retention| now.checked_sub_signed(retention))
            .ok_or_else(|| {
                TrimError::AbsurdCutoff(format!(
                    "{name} of {retention:?} reaches back beyond all time; make it shorter"
                ))
            })
    };
    Ok(Cutoffs {
        default: cutoff("the retention", settings.retention)?,
        overrides: settings
            .overrides
            .iter()
            .map(|(event, retention)| {
                let cutoff = cutoff(&format!("the retention of {event}"), *retention)?;
                Ok((event.clone(), cutoff))
            })
            .collect::<Result<_, TrimError>>()?,
    })
}

/// One retention pass of a process that writes nothing: bounded steps until nothing is left to remove.
///
/// Each step is told of at once, since what it removed stays removed whatever the next one does.
pub async fn run_pass(
    store: &dyn EventStore,
    cutoffs: &Cutoffs,
    batch_size: NonZeroUsize,
    mut note: impl FnMut(&Trimmed),
) -> Result<Trimmed, TrimError> {
    let pace = Pace::alone(store.contention(), batch_size);
    run_pass_at(pace, store, cutoffs, |removed| note(&removed.rows)).await
}

async fn run_pass_at(
    mut pace: Pace,
    store: &dyn EventStore,
    cutoffs: &Cutoffs,
    mut note: impl FnMut(&Removed),
) -> Result<Trimmed, TrimError> {
    let mut total = Trimmed::default();
    loop {
        let started = Instant::now();
        let step = pace.next(started);
        let max_events = step.max_events;
        let trimmed = match store.trim(cutoffs, max_events).await {
            Err(StoreError::TooSlow { what, .. }) if pace.halve() => {
                log::warn!(
                    "a step of retention took too long and is made with half as many events batch.len={max_events} error={what}"
                );
                continue;
            }
            trimmed => trimmed?,
        };
        match trimmed {
            TrimStep::Removed(removed) => {
                note(&removed);
                total += removed.rows;
                let rest = pace.rest(step, &removed, started.elapsed());
                if !rest.is_zero() {
                    tokio::time::sleep(rest).await;
                }
            }
            TrimStep::Finished => return Ok(total),
            TrimStep::TakenByAnother => return Err(TrimError::TakenByAnother(total)),
        }
    }
}

/// Notes a pass for the next one. Without the note that one is held against the newest event.
pub async fn note_pass(store: &dyn EventStore, at: DateTime<Utc>) {
    if let Err(error) = store.note_pass(at).await {
        let error = error_chain(&error);
        log::debug!("a retention pass could not be noted error={error}");
    }
}

fn put_forward(by: TimeDelta) -> TrimError {
    TrimError::AbsurdCutoff(format!(
        "the clock was put forward by {} s; if it is right now, trimming goes on once it has been \
         steady for a while",
        by.num_seconds()
    ))
}

#[derive(Clone)]
pub(crate) struct TrimParts {
    pub(crate) component: Component,
    pub(crate) passes: Passes,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Arc<dyn Clock>,
}

pub(crate) struct TrimActor {
    store: Arc<dyn EventStore>,
    settings: Arc<TrimSettings>,
    steadiness: Steadiness,
    caution: Caution,
    parts: TrimParts,
    under_way: bool,
    _lifeline: Lifeline,
}

impl TrimActor {
    /// A trimmer that makes its first pass one jittered interval after it starts.
    pub(crate) fn new(
        store: Arc<dyn EventStore>,
        settings: TrimSettings,
        parts: TrimParts,
        lifeline: Lifeline,
    ) -> Self {
        let now = parts.clock.now();
        Self {
            store,
            caution: Caution {
                began: now,
                passed: None,
                every: settings.every.unwrap_or_default(),
            },
            settings: Arc::new(settings),
            steadiness: Steadiness::new(now, Instant::now()),
            parts,
            under_way: false,
            _lifeline: lifeline,
        }
    }

    /// Replicas that started together should not trim together: up to a fifth is taken off.
    fn schedule(&self, ctx: &mut Context<Self>) {
        let Some(every) = self.settings.every else {
            return;
        };
        let delay = every.mul_f64(1.0 - 0.2 * fastrand::f64());
        let next = TimeDelta::from_std(delay).ok();
        let now = self.parts.clock.now();
        let passes = &self.parts.passes;
        passes.plan(next.and_then(|delay| now.checked_add_signed(delay)));
        ctx.run_later(delay, |actor, ctx| {
            actor.parts.passes.plan(None);
            let pass = actor.pass();
            ctx.spawn(pass.map(|_, actor, ctx| actor.schedule(ctx)));
        });
    }

    /// Notes, where no pass is remembered, how it was before this process stored anything: what it
    /// stores by a wrong clock must not speak for that clock after a restart.
    fn look_around(&self, ctx: &mut Context<Self>) {
        let store = Arc::clone(&self.store);
        let began = self.caution.began;
        let look = async move {
            match store.last_pass(began).await {
                Ok(last) if !last.is_noted => {
                    if let Some(at) = last.at {
                        note_pass(store.as_ref(), at).await;
                    }
                }
                Ok(_) => {}
                Err(error) => log::debug!(
                    "the last retention pass could not be looked up error={}",
                    error_chain(&error)
                ),
            }
        };
        ctx.spawn(look.into_actor(self));
    }

    fn pass(&mut self) -> ResponseActFuture<Self, Result<Trimmed, TrimError>> {
        if self.under_way {
            return Box::pin(actix::fut::ready(Err(TrimError::UnderWay)));
        }
        self.under_way = true;
        let store = Arc::clone(&self.store);
        let settings = Arc::clone(&self.settings);
        let now = self.parts.clock.now();
        let started = Instant::now();
        let believed = self.steadiness.look(now, started);
        let metrics = self.parts.metrics.clone();
        let batch_size = settings.batch_size;
        let pace = Pace::beside_writers(store.contention(), batch_size, metrics.clone());
        let caution = self.caution;
        let pass = async move {
            let mut removed = Trimmed::default();
            let note = |step: &Removed| {
                metrics.trimmed(step);
                removed += step.rows;
            };
            let pass = async {
                believed.map_err(put_forward)?;
                let cutoffs = cutoffs(&settings, now)?;
                let looked = caution.look(store.as_ref(), &cutoffs).await?;
                let last = looked.map_err(TrimError::HeldBack)?;
                let trimmed = run_pass_at(pace, store.as_ref(), &cutoffs, note).await?;
                note_pass(store.as_ref(), last.now).await;
                Ok((trimmed, last.now))
            };
            (pass.await, removed)
        };
        Box::pin(
            pass.into_actor(self)
                .map(move |(result, removed), actor, _| {
                    actor.under_way = false;
                    let result = result.map(|(trimmed, passed)| {
                        actor.caution.passed = Some(passed);
                        trimmed
                    });
                    let (outcome, took) = (PassOutcome::of(&result), started.elapsed());
                    actor.parts.metrics.trim_pass(outcome, took);
                    actor.parts.passes.ended(Pass {
                        began: now,
                        took,
                        outcome,
                        removed,
                    });
                    actor.note(&result, took);
                    result
                }),
        )
    }

    fn succeeded(&self) {
        let component = &self.parts.component;
        // The next pass is a long time away: one that succeeded is the end of a trouble.
        if let Some(failures) = component.succeeded().or_else(|| component.closes()) {
            log::info!("retention works again failures={failures}");
        }
    }

    fn note(&self, result: &Result<Trimmed, TrimError>, took: Duration) {
        match result {
            Ok(trimmed) => {
                self.succeeded();
                let level = if *trimmed == Trimmed::default() {
                    log::Level::Debug
                } else {
                    log::Level::Info
                };
                log::log!(
                    level,
                    "trimmed what retention no longer keeps events={} resources={} \
                     duration={took:?}",
                    trimmed.events,
                    trimmed.resources
                );
            }
            Err(TrimError::TakenByAnother(_) | TrimError::UnderWay) => {
                self.succeeded();
                log::debug!("left trimming to another");
            }
            Err(TrimError::HeldBack(held_back)) => {
                let what = held_back.to_string();
                let at = self.parts.clock.now();
                if self.parts.component.failed(what.clone(), at) {
                    log::warn!("retention waits for a person: {what}");
                }
            }
            Err(error @ (TrimError::Off | TrimError::AbsurdCutoff(_) | TrimError::Store(_))) => {
                let error = error_chain(error);
                let at = self.parts.clock.now();
                let level = if self.parts.component.failed(error.clone(), at) {
                    log::Level::Warn
                } else {
                    log::Level::Debug
                };
                log::log!(
                    level,
                    "a retention pass failed; the next one makes up for it error={error}"
                );
            }
        }
    }
}

impl PassOutcome {
    fn of(result: &Result<Trimmed, TrimError>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(TrimError::TakenByAnother(_) | TrimError::UnderWay) => Self::LeftToAnother,
            Err(
                TrimError::Off
                | TrimError::AbsurdCutoff(_)
                | TrimError::HeldBack(_)
                | TrimError::Store(_),
            ) => Self::Failed,
        }
    }
}

impl Actor for TrimActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.parts.component.started();
        self.look_around(ctx);
        self.schedule(ctx);
    }
}

impl Handler<Trim> for TrimActor {
    type Result = ResponseActFuture<Self, Result<Trimmed, TrimError>>;

    fn handle(&mut self, _: Trim, _: &mut Self::Context) -> Self::Result {
        self.pass()
    }
}

impl Handler<Drain> for TrimActor {
    type Result = ResponseFuture<Drained>;

    /// Stops at once: a transaction under way is rolled back or committed whole.
    ///
    /// The store is closed behind the actor's end: a pass that waits for a lock, and is not polled any more,
    /// would keep its place in the queue in front of all who close.
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        self.parts.passes.plan(None);
        ctx.stop();
        Box::pin(close(Arc::clone(&self.store), log::Level::Debug))
    }
}

stops_when_retired!(TrimActor);

#[cfg(test)]
mod tests;
