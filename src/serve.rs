//! The service: the pipeline, the listener in front of it, and an end in good order.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor as _, Addr};
use anyhow::{Context as _, bail};
use event_persister_actors::messages::Drain;
use event_persister_actors::metrics::Metrics;
use event_persister_actors::pipeline::PipelineActor;
use event_persister_actors::source::EventSource;
use prometheus::Registry;
use tokio::task::JoinHandle;

use crate::config::{Config, Listen, Supervisor};
use crate::http::{self, Certificate, Listener, Place};
use crate::metrics::{self, Refusals};
use crate::signals::Signals;
use crate::systemd::Notifier;
use crate::wiring::{self, Bus, Intake};

/// How often it is looked at whether the pipeline is still there.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Serves until a signal ends it.
pub(crate) async fn run(config: &Config) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let metrics = Metrics::new().context("cannot set the metrics up")?;
    let place = match &config.http.listen {
        Listen::Off => None,
        Listen::At(address) => Some(Place::resolve(address)?),
    };
    let certificate = match &config.http.tls {
        None => None,
        Some(files) => Some(Certificate::read(files.clone())?),
    };
    let intake = wiring::intake(config);
    let bus = wiring::bus(config)?;
    let sources = sources(&intake, bus.as_ref(), place.is_some());
    let names: Vec<String> = sources
        .iter()
        .map(|source| source.name().to_owned())
        .collect();
    let parts = wiring::pipeline_parts(config, sources, metrics.clone())?;
    let refusals = Refusals::new().context("cannot set the metrics up")?;
    let registry = metrics::registry(config, &metrics, &refusals, &intake, bus.as_ref())?;
    // An actor does nothing until this thread next awaits, and the listener is bound before that:
    // a second process on the same address ends here, and has not touched the database.
    let pipeline = PipelineActor::new(wiring::pipeline_settings(config), parts).start();
    let mut listening = match &place {
        None => None,
        Some(place) => {
            let listener = listener(place, &intake, &pipeline, registry, refusals);
            Some(listen(config, place, certificate, &listener)?)
        }
    };
    announce(config, &names.join(","), listening.as_ref());
    warn(config, &intake, place.as_ref());
    let notifier = Notifier::start(Supervisor::of_environment(), pipeline.clone());
    let ended = tokio::select! {
        stop = signals.next() => {
            log::info!("{stop}; taking nothing more in, writing what is held");
            Ok(())
        }
        () = gone(&pipeline) => Err("the pipeline has stopped by itself"),
        () = listener_ended(listening.as_mut()) => Err("the listener has stopped by itself"),
    };
    signals.next_is_final();
    notifier.stopping();
    shut_down(config, &intake, &pipeline, listening, &metrics).await;
    if let Err(what) = ended {
        bail!("{what}; what was not acknowledged stays with its source. Start the service again");
    }
    Ok(())
}

/// Each has a consumer of its own. Where nobody listens and there is Redis, nothing comes by HTTP.
fn sources(intake: &Intake, bus: Option<&Bus>, listens: bool) -> Vec<Arc<dyn EventSource>> {
    let redis = bus.map(|bus| Arc::clone(&bus.source));
    let http = (listens || redis.is_none()).then(|| intake.source());
    redis.into_iter().chain(http).collect()
}

/// A listener at work, and the task that it works in.
struct Listening {
    running: http::Running,
    server: JoinHandle<std::io::Result<()>>,
}

fn listen(
    config: &Config,
    place: &Place,
    certificate: Option<Arc<Certificate>>,
    listener: &Listener,
) -> anyhow::Result<Listening> {
    let (server, running) = http::start(place, &config.http, certificate.as_ref(), listener)?;
    if let Some(certificate) = certificate {
        actix_rt::spawn(certificate.follow());
    }
    Ok(Listening {
        running,
        server: actix_rt::spawn(server),
    })
}

fn listener(
    place: &Place,
    intake: &Intake,
    pipeline: &Addr<PipelineActor>,
    registry: Registry,
    refusals: Refusals,
) -> Listener {
    Listener {
        pipeline: pipeline.clone(),
        events: intake.routes(),
        open: is_open(place, intake),
        auth: intake.auth(),
        registry,
        refusals,
    }
}

/// Whoever forgets the auth string opens nothing to the network.
fn is_open(place: &Place, intake: &Intake) -> bool {
    place.is_loopback() || intake.auth().is_some()
}

fn announce(config: &Config, sources: &str, listening: Option<&Listening>) {
    let addresses: Vec<String> = listening
        .iter()
        .flat_map(|listening| {
            let http::Running {
                scheme, addresses, ..
            } = &listening.running;
            addresses
                .iter()
                .map(move |address| format!("{scheme}://{address}"))
        })
        .collect();
    let listen = if addresses.is_empty() {
        "off".to_owned()
    } else {
        addresses.join(",")
    };
    let redis = config
        .redis
        .as_ref()
        .map_or_else(|| "off".to_owned(), |redis| redis.address.to_string());
    let guard = match &config.redis {
        Some(redis) if redis.guard => "on",
        _ => "off",
    };
    log::info!(
        "event-persister {} started listen={listen} sources={sources} redis={redis} \
         guard={guard} store={} writers={}",
        env!("CARGO_PKG_VERSION"),
        config.database.url,
        config.pipeline.writers
    );
}

fn warn(config: &Config, intake: &Intake, place: Option<&Place>) {
    for warning in &config.prefect.warnings {
        log::warn!("{warning}");
    }
    match place {
        None if config.redis.is_none() => {
            log::warn!("the listener is off and there is no other source: no events come in");
        }
        Some(place) if !is_open(place, intake) => log::warn!(
            "reachable from beyond this machine without an auth string: only /api/health and \
             /api/ready are served; set http.auth_string (EVENT_PERSISTER_HTTP_AUTH_STRING), or \
             listen on 127.0.0.1"
        ),
        _ => {}
    }
}

/// Resolves when the pipeline's actor is no longer there, which it never should.
async fn gone(pipeline: &Addr<PipelineActor>) {
    while pipeline.connected() {
        actix_rt::time::sleep(WATCH_EVERY).await;
    }
}

async fn listener_ended(listening: Option<&mut Listening>) {
    match listening {
        None => pending().await,
        Some(listening) => match (&mut listening.server).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::error!("the listener has failed error={error}"),
            Err(error) => log::error!("the listener has failed error={error}"),
        },
    }
}

/// Takes nothing more in, makes durable what is held, lets whoever waits have the answer, stops.
async fn shut_down(
    config: &Config,
    intake: &Intake,
    pipeline: &Addr<PipelineActor>,
    listening: Option<Listening>,
    metrics: &Metrics,
) {
    intake.stop_accepting();
    let drain = Drain {
        timeout: config.pipeline.drain_timeout,
    };
    match pipeline.send(drain).await {
        Ok(drained) if drained.released > 0 => log::warn!(
            "the store did not take everything in time; whoever sent it was told so and sends it \
             again messages={}",
            drained.released
        ),
        Ok(_) => {}
        Err(error) => log::error!("the pipeline was gone before it could drain error={error}"),
    }
    if let Some(listening) = listening {
        listening.running.stop().await;
    }
    let ledger = metrics.ledger();
    if !ledger.balances() {
        log::error!("messages are not all accounted for, which is a fault of event-persister");
    }
    log::info!("stopped {ledger}");
}
