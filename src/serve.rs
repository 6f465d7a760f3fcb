//! The service: the pipeline, the listener in front of it, and an end in good order.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix::{Addr, AsyncContext as _, Context};
use actix_web::web;
use anyhow::{Context as _, bail};
use event_persister_actors::health::HealthRoutes;
use event_persister_actors::live::LiveEvents;
use event_persister_actors::messages::{Drain, Status};
use event_persister_actors::metrics::Metrics;
use event_persister_actors::pipeline::PipelineActor;
use event_persister_actors::read_routes::ReadRoutes;
use event_persister_actors::source::EventSource;
use prometheus::Registry;

use crate::api::{Api, Replays, StateParts, StateSource};
use crate::cli::Command;
use crate::config::{Config, Supervisor};
use crate::http::{Listen, ListenerParts, ListenerSetup, RunningListener, Served};
use crate::memory;
use crate::metrics::{self, Refusals};
use crate::signals::Signals;
use crate::systemd::Notifier;
use crate::wiring::{self, Bus, EventRoutes, Intake, OutRoutes, Stores};

const READY_EVERY: Duration = Duration::from_millis(100);
const WATCH_EVERY: Duration = Duration::from_secs(1);

const NO_METRICS: &str = "cannot set the metrics up";

/// Serves until a signal ends it.
pub(crate) async fn run(config: &Config) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    memory::give_back().context("cannot start a thread")?;
    let metrics = Metrics::new().context(NO_METRICS)?;
    let setup = ListenerSetup::find(&config.http)?;
    let intake = wiring::intake(config);
    let bus = wiring::bus(config)?;
    let sources = sources(&intake, bus.as_ref(), setup.is_some());
    let names: Vec<&str> = sources.iter().map(|source| source.name()).collect();
    let names = names.join(",");
    let stores = Stores::new(config);
    let live = LiveEvents::default();
    let open_store = live.told_by(Arc::clone(&stores.open_store));
    let parts = wiring::pipeline_parts(config, sources, open_store, metrics.clone());
    let refusals = Refusals::new().context(NO_METRICS)?;
    let collectors = metrics::collectors(config, &metrics, &refusals, &intake, bus.as_ref());
    let registry = collectors.and_then(metrics::registry).context(NO_METRICS)?;
    // It runs once the listener is bound: a second process on the same address must not touch the database.
    let context = Context::new();
    let pipeline = context.address();
    let api = config.http.listener.read_api;
    let address = Arc::new(OnceLock::new());
    let listener = ListenerParts {
        served: Arc::new(Service {
            pipeline: pipeline.clone(),
            events: intake.routes.clone(),
            api: api.then(|| {
                make_api(
                    config,
                    &stores,
                    &live,
                    pipeline.clone(),
                    &registry,
                    &address,
                )
            }),
            has_page: api && config.http.listener.page,
        }),
        access: wiring::access(config),
        registry,
        refusals,
    };
    let opened = setup.map(|setup| setup.open(&listener));
    let mut listening = opened.transpose()?;
    let listen = RunningListener::addresses(listening.as_ref());
    address.get_or_init(|| listen.clone());
    context.run(PipelineActor::new(config.pipeline.clone(), parts));
    announce(config, &names, &listen);
    warn(config, listening.as_ref());
    actix_rt::spawn(tell_when_ready(pipeline.clone(), names, listen));
    let notifier = Notifier::start(Supervisor::of_environment(), pipeline.clone());
    let ended = tokio::select! {
        stop = signals.next() => {
            log::info!("{stop}; taking nothing more in, writing what is held");
            Ok(())
        }
        () = gone(&pipeline) => Err("the pipeline has stopped by itself"),
        () = RunningListener::ended(listening.as_mut()) => Err("the listener has stopped by itself"),
    };
    signals.next_is_final();
    notifier.stopping();
    shut_down(config, &intake, &pipeline, listening, &metrics).await;
    if let Err(error) = stores.reader.close().await {
        log::debug!("cannot close what reads error={error}");
    }
    if let Err(what) = ended {
        bail!("{what}; what was not acknowledged stays with its source. Start the service again");
    }
    Ok(())
}

/// Each has a consumer of its own. Where nobody listens and there is Redis, nothing comes by HTTP.
fn sources(intake: &Intake, bus: Option<&Bus>, listens: bool) -> Vec<Arc<dyn EventSource>> {
    let redis = bus.map(|bus| Arc::clone(&bus.source));
    let http = (listens || redis.is_none()).then(|| Arc::clone(&intake.source));
    redis.into_iter().chain(http).collect()
}

struct Service {
    pipeline: Addr<PipelineActor>,
    events: EventRoutes,
    /// The paths by which stored events are read.
    api: Option<Api>,
    has_page: bool,
}

impl Served for Service {
    fn health(&self) -> HealthRoutes {
        HealthRoutes::new(self.pipeline.clone())
    }

    fn mount(&self, config: &mut web::ServiceConfig) {
        self.events.configure(config);
        if let Some(api) = &self.api {
            api.configure(config);
        }
    }

    fn has_page(&self) -> bool {
        self.has_page
    }
}

/// The paths by which what is stored is read.
fn make_api(
    config: &Config,
    stores: &Stores,
    live: &LiveEvents,
    pipeline: Addr<PipelineActor>,
    registry: &Registry,
    address: &Arc<OnceLock<String>>,
) -> Api {
    let clock = wiring::clock();
    let access = wiring::access(config);
    let (reader, letters) = (Arc::clone(&stores.reader), Arc::clone(&stores.operator));
    let open_store = live.told_by(Arc::clone(&stores.open_store));
    let replays = Replays::start(config, Arc::clone(&letters), open_store);
    let state = StateParts {
        pipeline,
        registry: registry.clone(),
        reader: Arc::clone(&reader),
        letters: Arc::clone(&letters),
        clock: Arc::clone(&clock),
        address: Arc::clone(address),
    };
    let state = StateSource::new(config, state);
    let looking = live.clone();
    let (of_others, at) = (Arc::clone(&reader), Arc::clone(&clock));
    actix_rt::spawn(async move { looking.look(of_others, at).await });
    let out = OutRoutes::new(
        live.clone(),
        Arc::clone(&reader),
        access.clone(),
        Arc::clone(&clock),
    );
    let events = ReadRoutes::new(reader, access.clone(), clock);
    Api::new(access, events, out, letters, replays, state)
}

/// The remedy where nothing could ever come in; `None` where something can.
pub(crate) fn no_source(config: &Config) -> Option<&'static str> {
    let listens = config.http.listener.listen != Listen::Off;
    (!listens && config.redis.is_none()).then_some(
        "give an address with --listen or EVENT_PERSISTER_LISTEN, or a Redis with --redis-url or \
         EVENT_PERSISTER_REDIS_URL",
    )
}

/// A service that nothing can be sent to is a mistake.
pub(crate) fn validate(command: &Command, config: &Config) -> anyhow::Result<()> {
    match (command, no_source(config)) {
        (Command::Serve(flags), Some(remedy)) if !flags.shadow => {
            bail!("the listener is off and no Redis is named, so no event could come in; {remedy}")
        }
        _ => Ok(()),
    }
}

async fn tell_when_ready(pipeline: Addr<PipelineActor>, sources: String, listen: String) {
    loop {
        match pipeline.send(Status).await {
            Ok(status) if status.ready => break,
            Ok(status) if !status.draining => actix_rt::time::sleep(READY_EVERY).await,
            _ => return,
        }
    }
    log::info!(
        "ready: events that come in are stored from now on listen={listen} sources={sources}"
    );
}

fn announce(config: &Config, sources: &str, listen: &str) {
    let (redis, guard) = match &config.redis {
        Some(redis) => (redis.url.masked(), if redis.guard { "on" } else { "off" }),
        None => ("off".to_owned(), "off"),
    };
    log::info!(
        "event-persister {} started listen={listen} sources={sources} redis={redis} \
         guard={guard} store={} writers={}",
        env!("CARGO_PKG_VERSION"),
        config.database.url,
        config.pipeline.writers
    );
}

fn warn(config: &Config, listening: Option<&RunningListener>) {
    for warning in config.prefect.warning_lines() {
        log::warn!("{warning}");
    }
    if let Some(listening) = listening {
        listening.warn();
    }
}

/// Never resolves while all is well.
async fn gone(pipeline: &Addr<PipelineActor>) {
    while pipeline.connected() {
        actix_rt::time::sleep(WATCH_EVERY).await;
    }
}

async fn shut_down(
    config: &Config,
    intake: &Intake,
    pipeline: &Addr<PipelineActor>,
    listening: Option<RunningListener>,
    metrics: &Metrics,
) {
    intake.handle.stop_accepting();
    let drain = Drain {
        timeout: config.drain_timeout,
    };
    match pipeline.send(drain).await {
        Ok(drained) if drained.released > 0 => log::warn!(
            "the store did not take everything in time; the senders were told so, and send it again \
             messages={}",
            drained.released
        ),
        Ok(_) => {}
        Err(error) => log::error!("the pipeline was gone before it could drain error={error}"),
    }
    if let Some(listening) = listening {
        listening.stop().await;
    }
    let ledger = metrics.ledger();
    if !ledger.balances() {
        log::error!(
            "messages are not all accounted for: this is a fault of event-persister, please report it"
        );
    }
    log::info!("stopped {ledger}");
}
