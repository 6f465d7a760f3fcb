//! How the pipeline is: its parts, its readiness, and the probing of the store.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::time::timeout;

use super::{Phase, PipelineActor, PipelineParts, PipelineSettings};
use crate::batcher::HELD_UP_AFTER;
use crate::source::EventSource;
use crate::status::{Component, ComponentState, HeldUp, Passes, PipelineStatus, error_chain};
use crate::store::StoreError;

/// How often readiness is looked at, and the store probed while it is away.
const TICK: Duration = Duration::from_secs(1);
/// How often the store is probed while it is there and nothing is written.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// How long the store may take to answer a probe. With the time between two probes this is how late
/// an outage can show.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// How long a probe goes on after that. It may be on the way from a host that is silent to another one, and
/// must not begin anew with the first.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(30);
/// How long writers may be at work without a single commit before that counts as an outage, whatever
/// time-out the store itself has.
const COMMITS_WITHIN: Duration = Duration::from_secs(4);

#[derive(Clone)]
pub(super) struct Components {
    pub(super) store: Component,
    pub(super) refusals: Component,
    pub(super) held_up: HeldUp,
    pub(super) sources: Vec<Component>,
    pub(super) trim: Option<Component>,
    pub(super) passes: Passes,
}

impl Components {
    pub(super) fn new(settings: &PipelineSettings, parts: &PipelineParts) -> Self {
        let named =
            |source: &Arc<dyn EventSource>| Component::new(format!("source.{}", source.name()));
        Self {
            store: Component::new("store"),
            refusals: Component::new("store.refusals"),
            held_up: HeldUp::default(),
            sources: parts.sources.iter().map(named).collect(),
            trim: settings.trim.as_ref().map(|_| Component::new("trim")),
            passes: Passes::default(),
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Component> {
        let store = [&self.store, &self.refusals];
        self.sources.iter().chain(store).chain(&self.trim)
    }
}

impl PipelineActor {
    pub(super) fn status(&self) -> PipelineStatus {
        let reason = self.why_not_ready();
        let degraded = reason.is_none().then(|| self.why_degraded()).flatten();
        let mut warnings = self.warnings();
        warnings.extend(degraded.clone());
        PipelineStatus {
            ready: reason.is_none(),
            reason,
            degraded,
            generation: self.generation,
            draining: matches!(self.phase, Phase::Draining | Phase::Drained),
            components: self.components.all().map(Component::snapshot).collect(),
            warnings,
            ledger: self.parts.metrics.ledger(),
            oldest_unflushed: self.parts.metrics.oldest_unflushed(),
            retention: self.components.passes.get(),
        }
    }

    fn why_not_ready(&self) -> Option<String> {
        match self.phase {
            Phase::Starting => return Some("the pipeline is starting".to_owned()),
            Phase::Draining | Phase::Drained => {
                return Some("the pipeline is draining".to_owned());
            }
            Phase::Running => {}
        }
        // Without the trimmer the tables grow, but no event is refused or lost.
        let Components {
            sources,
            store,
            refusals,
            trim: _,
            passes: _,
            held_up: _,
        } = &self.components;
        let needed = sources.iter().chain([store, refusals]);
        needed
            .map(Component::snapshot)
            .find_map(|part| match part.state {
                ComponentState::Starting => Some(format!("{} has not answered yet", part.name)),
                ComponentState::Failing => {
                    let error = part.last_error.unwrap_or_default();
                    Some(format!("{}: {error}", part.name))
                }
                ComponentState::Ok | ComponentState::Ended => None,
            })
            .or_else(|| self.why_stalled())
    }

    fn warnings(&self) -> Vec<String> {
        let of_each = self.parts.sources.iter().map(|source| {
            let name = source.name().to_owned();
            let warnings = source.warnings().into_iter();
            warnings.map(move |warning| format!("source.{name}: {warning}"))
        });
        let of_store = self.probe.warnings().into_iter();
        let of_store = of_store.map(|warning| format!("store: {warning}"));
        let trim = self.components.trim.as_ref().map(Component::snapshot);
        let of_trim = trim
            .filter(|trim| trim.state == ComponentState::Failing)
            .map(|trim| format!("trim: {}", trim.last_error.unwrap_or_default()));
        of_each.flatten().chain(of_store).chain(of_trim).collect()
    }

    /// A store that does not answer says no error either.
    fn why_stalled(&self) -> Option<String> {
        let stalled = self.parts.metrics.stalled()?;
        (stalled > COMMITS_WITHIN).then(|| {
            format!(
                "store: nothing was committed for {} s, though there is something to write{}",
                stalled.as_secs(),
                self.at_place()
            )
        })
    }

    /// Where the store is, as the end of a sentence.
    fn at_place(&self) -> String {
        let place = self.probe.place();
        place.map_or_else(String::new, |place| format!(" ({place})"))
    }

    fn unanswered(&self, within: Duration) -> StoreError {
        let at_place = self.at_place();
        StoreError::unavailable(format!(
            "the store has not answered for {within:?}{at_place}"
        ))
    }

    fn why_degraded(&self) -> Option<String> {
        let oldest = self.parts.metrics.oldest_unflushed()?;
        (oldest > HELD_UP_AFTER).then(|| {
            let what = self.components.held_up.get();
            let what = what.unwrap_or_else(|| "the oldest event".to_owned());
            format!(
                "store: not stored for {} s although others are: {what}",
                oldest.as_secs()
            )
        })
    }

    /// Keeps what is scraped of the parts and of readiness no older than a tick.
    pub(super) fn keep_showing(&self, ctx: &mut Context<Self>) {
        self.show();
        ctx.run_interval(TICK, |actor, _| {
            actor.show();
            actor.tell_of_degradation();
        });
    }

    pub(super) fn show(&self) {
        let metrics = &self.parts.metrics;
        for part in self.components.all().map(Component::snapshot) {
            metrics.set_up(&part.name, part.state == ComponentState::Ok);
        }
        let is_ready = self.why_not_ready().is_none();
        metrics.set_ready(is_ready);
        metrics.set_degraded(is_ready && self.why_degraded().is_some());
    }

    /// Says once that something is held up, and once that nothing is any more.
    fn tell_of_degradation(&mut self) {
        let is_running = self.phase == Phase::Running && self.why_not_ready().is_none();
        let degraded = is_running.then(|| self.why_degraded()).flatten();
        match (&degraded, self.is_degraded) {
            (Some(why), false) => log::warn!("{why}"),
            (None, true) if is_running => log::info!("nothing is held up any more"),
            _ => {}
        }
        if is_running {
            self.is_degraded = degraded.is_some();
        }
    }

    /// Asks the store how it is while no writer does.
    pub(super) fn watch_store(&mut self, ctx: &mut Context<Self>) {
        if matches!(self.phase, Phase::Draining | Phase::Drained) {
            return;
        }
        if self.writers_know() {
            ctx.run_later(TICK, |actor, ctx| actor.watch_store(ctx));
            return;
        }
        let probe = Arc::clone(&self.probe);
        let check = async move { timeout(GIVEN_UP_AFTER, probe.check()).await };
        let late = ctx.run_later(ANSWERS_WITHIN, |actor, _| {
            actor.note_probe(Err(actor.unanswered(ANSWERS_WITHIN)));
        });
        ctx.spawn(check.into_actor(self).map(move |result, actor, ctx| {
            ctx.cancel_future(late);
            let result = result.unwrap_or_else(|_| Err(actor.unanswered(GIVEN_UP_AFTER)));
            let next = if result.is_ok() { PROBE_EVERY } else { TICK };
            actor.note_probe(result);
            ctx.run_later(next, |actor, ctx| actor.watch_store(ctx));
        }));
    }

    /// Whether there is something to write, so that the writers find out how the store is. A suspect
    /// does not count: it may be held for days, and its attempts are far between.
    fn writers_know(&self) -> bool {
        let unknown = self.components.store.snapshot().state == ComponentState::Starting;
        !unknown && self.parts.metrics.holds_more_than_suspects()
    }

    fn is_failing(&self) -> bool {
        self.components.store.snapshot().state == ComponentState::Failing
    }

    fn note_probe(&self, result: Result<(), StoreError>) {
        if self.writers_know() {
            return;
        }
        match result {
            // The controls beside a suspect see more than a probe does: if they failed, a control that
            // passes has to tell that the store is back.
            Ok(()) if self.is_failing() && self.parts.metrics.ledger().in_flight > 0 => {}
            Ok(()) => {
                if let Some(failures) = self.components.store.succeeded() {
                    log::info!("the store is back failures={failures}");
                }
            }
            Err(error) => {
                let error = error_chain(&error);
                let at = self.parts.clock.now();
                if self.components.store.failed(error.clone(), at) {
                    log::warn!("the store is not ready; asking until it is error={error}");
                }
            }
        }
        self.show();
    }
}
