//! The service: the pipeline, the listener in front of it, and an end in good order.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix_web::web;
use anyhow::{Context as _, bail};
use event_persister_actors::health::HealthRoutes;
use event_persister_actors::live::LiveEvents;
use event_persister_actors::messages::Drain;
use event_persister_actors::metrics::Metrics;
use event_persister_actors::read_routes::ReadRoutes;
use event_persister_actors::source::EventSource;
use event_persister_actors::store::OpenStore;
use prometheus::Registry;

use crate::api::{Api, Replays, StateParts, StateSource};
use crate::archive;
use crate::cli::Command;
use crate::config::{Config, Supervisor};
use crate::http::{Listen, ListenerParts, ListenerSetup, Publish, RunningListener, Served};
use crate::memory;
use crate::metrics::{self, OfPipelines, Refusals};
use crate::signals::Signals;
use crate::systemd::Notifier;
use crate::wiring::{self, Bus, EventRoutes, Intake, OutRoutes, Stores};

mod pipelines;

pub(crate) use pipelines::Pipelines;

use pipelines::NotStarted;

const READY_EVERY: Duration = Duration::from_millis(100);
const WATCH_EVERY: Duration = Duration::from_secs(1);

const NO_METRICS: &str = "cannot set the metrics up";

pub(crate) const NAME_A_BUS: &str = "give its address with --redis-url (EVENT_PERSISTER_REDIS_URL) or --nats-url \
     (EVENT_PERSISTER_NATS_URL), or set http.publish to off";

/// Serves until a signal ends it.
pub(crate) async fn run(config: &Config) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    memory::give_back().context("cannot start a thread")?;
    let setup = ListenerSetup::find(&config.http)?;
    let intake = wiring::intake(config);
    let publish = config.http.listener.publish;
    let live = LiveEvents::default();
    let (bus, stores) = match publish {
        Publish::Only => (None, None),
        Publish::On | Publish::Off => (wiring::bus(config)?, Some(Stores::new(config))),
    };
    let storing = stores.as_ref().map(|stores| {
        let sources = sources(publish, &intake, bus.as_ref(), setup.is_some());
        storing(
            config,
            sources,
            live.told_by(Arc::clone(&stores.open_store)),
        )
    });
    let storing = storing.transpose()?;
    let publishing = match publish {
        Publish::Off => None,
        Publish::On | Publish::Only => Some(publishing(config, &intake)?),
    };
    let all = storing.iter().chain(&publishing);
    let names: Vec<&str> = all.flat_map(|pipeline| pipeline.sources()).collect();
    let names = names.join(",");
    let metrics = OfPipelines {
        storing: storing.as_ref().map(|pipeline| pipeline.metrics().clone()),
        publishing: publishing
            .as_ref()
            .map(|pipeline| pipeline.metrics().clone()),
    };
    // They run once the listener is bound: a second process on the same address must not touch the database.
    let pipelines = Pipelines {
        storing: storing.as_ref().map(NotStarted::address),
        publishing: publishing.as_ref().map(NotStarted::address),
    };
    let refusals = Refusals::new().context(NO_METRICS)?;
    let archive = stores.as_ref().and_then(|stores| stores.archive.clone());
    let collectors =
        metrics::collectors(config, &metrics, &refusals, &intake, bus.as_ref(), archive);
    let registry = collectors.and_then(metrics::registry).context(NO_METRICS)?;
    let read = stores.as_ref().filter(|_| config.http.listener.read_api);
    let address = Arc::new(OnceLock::new());
    let listener = ListenerParts {
        served: Arc::new(Service {
            pipelines: pipelines.clone(),
            events: intake.routes.clone(),
            api: read.map(|stores| {
                make_api(
                    config,
                    stores,
                    &live,
                    pipelines.clone(),
                    &registry,
                    &address,
                )
            }),
            has_page: read.is_some() && config.http.listener.page,
        }),
        access: wiring::access(config),
        registry,
        refusals,
    };
    let opened = setup.map(|setup| setup.open(&listener));
    let mut listening = opened.transpose()?;
    let listen = RunningListener::addresses(listening.as_ref());
    address.get_or_init(|| listen.clone());
    storing
        .into_iter()
        .chain(publishing)
        .for_each(NotStarted::run);
    announce(config, &names, &listen);
    warn(config, listening.as_ref());
    if stores.is_some() && config.trim.every.is_some() {
        actix_rt::spawn(archive::tell_if_unset(config));
    }
    actix_rt::spawn(tell_when_ready(pipelines.clone(), names, listen));
    let notifier = Notifier::start(Supervisor::of_environment(), pipelines.clone());
    let ended = tokio::select! {
        stop = signals.next() => {
            log::info!("{stop}; taking nothing more in, writing what is held");
            Ok(())
        }
        () = gone(&pipelines) => Err("the pipeline has stopped by itself"),
        () = RunningListener::ended(listening.as_mut()) => Err("the listener has stopped by itself"),
    };
    signals.next_is_final();
    notifier.stopping();
    shut_down(config, &intake, &pipelines, &live, listening, &metrics).await;
    if let Some(stores) = stores
        && let Err(error) = stores.reader.close().await
    {
        log::debug!("cannot close what reads error={error}");
    }
    if let Err(what) = ended {
        bail!("{what}; what was not acknowledged stays with its source. Start the service again");
    }
    Ok(())
}

/// Each has a consumer of its own. Where nobody listens and there is a bus, nothing comes by HTTP.
fn sources(
    publish: Publish,
    intake: &Intake,
    bus: Option<&Bus>,
    listens: bool,
) -> Vec<Arc<dyn EventSource>> {
    let is_stored = publish == Publish::Off && (listens || bus.is_none());
    let bus = bus.map(|bus| Arc::clone(&bus.source));
    let http = is_stored.then(|| Arc::clone(&intake.source));
    bus.into_iter().chain(http).collect()
}

/// The pipeline into the database.
fn storing(
    config: &Config,
    sources: Vec<Arc<dyn EventSource>>,
    open_store: OpenStore,
) -> anyhow::Result<NotStarted> {
    let metrics = Metrics::new().context(NO_METRICS)?;
    let parts = wiring::pipeline_parts(config, sources, open_store, metrics);
    Ok(NotStarted::new(config.pipeline.clone(), parts))
}

/// The pipeline from HTTP to the bus. What a bus keeps is its own affair.
fn publishing(config: &Config, intake: &Intake) -> anyhow::Result<NotStarted> {
    let settings = config.pipeline.clone().without_retention();
    let open_store = wiring::open_bridge(config)?;
    let source = Arc::clone(&intake.source);
    let (parts, _) = wiring::parts_of(&config.events, source, open_store)?;
    Ok(NotStarted::new(settings, parts))
}

struct Service {
    pipelines: Pipelines,
    events: EventRoutes,
    /// The paths by which stored events are read.
    api: Option<Api>,
    has_page: bool,
}

impl Served for Service {
    fn health(&self) -> HealthRoutes {
        let pipelines = self.pipelines.clone();
        HealthRoutes::of_status(move || {
            let pipelines = pipelines.clone();
            Box::pin(async move { pipelines.status().await })
        })
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
    pipelines: Pipelines,
    registry: &Registry,
    address: &Arc<OnceLock<String>>,
) -> Api {
    let clock = wiring::clock();
    let access = wiring::access(config);
    let (reader, letters) = (Arc::clone(&stores.reader), Arc::clone(&stores.operator));
    let open_store = live.told_by(Arc::clone(&stores.open_store));
    let replays = Replays::start(config, Arc::clone(&letters), open_store);
    let state = StateParts {
        pipelines,
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

/// Why nothing could ever come in, and the remedy; `None` where something can.
pub(crate) fn no_source(config: &Config) -> Option<(&'static str, &'static str)> {
    if config.http.listener.listen != Listen::Off {
        return None;
    }
    if config.http.listener.publish == Publish::Only {
        let what = "the listener is off, and http.publish is only";
        let remedy =
            "give an address with --listen or EVENT_PERSISTER_LISTEN, or set http.publish to off";
        return Some((what, remedy));
    }
    (!config.has_bus()).then_some((
        "the listener is off, and no bus is named",
        "give an address with --listen or EVENT_PERSISTER_LISTEN, or a bus with --redis-url (EVENT_PERSISTER_REDIS_URL) \
         or --nats-url (EVENT_PERSISTER_NATS_URL)",
    ))
}

/// A service that nothing can be sent to is a mistake.
pub(crate) fn validate(command: &Command, config: &Config) -> anyhow::Result<()> {
    match (command, no_source(config)) {
        (Command::Serve(flags), Some((what, remedy))) if !flags.shadow => {
            bail!("{what}, so no event could come in; {remedy}")
        }
        (Command::Serve(flags), None) if !flags.shadow && publishes_nowhere(config) => {
            bail!("http.publish is on and no bus is named to publish to; {NAME_A_BUS}")
        }
        _ => Ok(()),
    }
}

/// Whether what comes in is to be published, and there is no bus.
pub(crate) fn publishes_nowhere(config: &Config) -> bool {
    config.http.listener.publish != Publish::Off && !config.has_bus()
}

async fn tell_when_ready(pipelines: Pipelines, sources: String, listen: String) {
    loop {
        match pipelines.status().await {
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
    let nats = wiring::nats_servers(config);
    let nats = nats.map_or_else(String::new, |servers| format!(" nats={servers}"));
    let (publish, store) = match config.http.listener.publish {
        Publish::Off => ("", config.database.url.to_string()),
        Publish::On => (" publish=on", config.database.url.to_string()),
        Publish::Only => (" publish=only", "off".to_owned()),
    };
    log::info!(
        "event-persister {} started listen={listen} sources={sources} redis={redis} \
         guard={guard}{nats}{publish} store={store} writers={}",
        env!("CARGO_PKG_VERSION"),
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
async fn gone(pipelines: &Pipelines) {
    while pipelines.connected() {
        actix_rt::time::sleep(WATCH_EVERY).await;
    }
}

async fn shut_down(
    config: &Config,
    intake: &Intake,
    pipelines: &Pipelines,
    live: &LiveEvents,
    listening: Option<RunningListener>,
    metrics: &OfPipelines,
) {
    intake.handle.stop_accepting();
    let drain = Drain {
        timeout: config.drain_timeout,
    };
    match pipelines.drain(drain).await {
        Ok(drained) if drained.released > 0 => log::warn!(
            "the store did not take everything in time; the senders were told so, and send it again \
             messages={}",
            drained.released
        ),
        Ok(_) => {}
        Err(error) => log::error!("the pipeline was gone before it could drain error={error}"),
    }
    // Those who watch have been told what was committed last.
    live.end();
    if let Some(listening) = listening {
        listening.stop().await;
    }
    let publishing = metrics.publishing.as_ref().map(Metrics::ledger);
    let storing = metrics.storing.as_ref().map(Metrics::ledger);
    let of_publishing = match storing {
        Some(_) => "published",
        None => "stopped",
    };
    for (what, ledger) in [(of_publishing, publishing), ("stopped", storing)] {
        let Some(ledger) = ledger else { continue };
        if !ledger.balances() {
            log::error!(
                "messages are not all accounted for: this is a fault of event-persister, please report it"
            );
        }
        log::info!("{what} {ledger}");
    }
}
