//! `GET /api/status`: the whole service in one answer, for the page. It is asked every two seconds by everybody who
//! looks, so the numbers come out of memory, and the database is asked at most that often.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::{DateTime, TimeDelta, Utc};
use event_persister_actors::clock::Clock;
use event_persister_actors::reader::{EventReader, Overview};
use event_persister_actors::status::{PipelineStatus, RetentionStatus};
use event_persister_actors::store::Stage;
use event_persister_actors::store::operator::{LetterFilter, StoreOperator};
use prometheus::Registry;
use prometheus::proto::{Metric, MetricFamily};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::recent::{RecentTimes, Times};
use super::{Shared, fresh};
use crate::config::Config;
use crate::serve::Pipelines;

/// How old an answer of the database may be.
const FRESH: Duration = Duration::from_secs(2);
/// How long the pipeline may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Where the parts of the answer come from.
pub(crate) struct StateParts {
    pub(crate) pipelines: Pipelines,
    pub(crate) registry: Registry,
    pub(crate) reader: Arc<dyn EventReader>,
    pub(crate) letters: Arc<dyn StoreOperator>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Where it listens, once it does.
    pub(crate) address: Arc<OnceLock<String>>,
}

/// The source of the answers, kept between them.
pub(crate) struct StateSource {
    parts: StateParts,
    started: DateTime<Utc>,
    since: Instant,
    settings: Settings,
    seen: Mutex<Option<Seen>>,
    flushes: Mutex<RecentTimes>,
}

/// The part of the configuration that is shown.
struct Settings {
    writers: usize,
    max_events: usize,
    max_bytes: usize,
    retention: Option<(Duration, Duration)>,
    archive: Option<String>,
    bus: Option<ShownBus>,
    has_guard: bool,
}

/// The stream, and how the numbers of `/metrics` about it begin.
struct ShownBus {
    kind: &'static str,
    stream: String,
    group: String,
}

impl ShownBus {
    fn of(config: &Config) -> Option<Self> {
        if let Some(redis) = &config.redis {
            return Some(Self {
                kind: "redis",
                stream: redis.stream.clone(),
                group: redis.group.clone(),
            });
        }
        #[cfg(feature = "nats")]
        if let Some(nats) = &config.nats {
            return Some(Self {
                kind: "nats",
                stream: nats.stream.clone(),
                group: nats.consumer.clone(),
            });
        }
        None
    }
}

/// The last answer of the database.
struct Seen {
    at: Instant,
    database: Option<Overview>,
    letters: Value,
}

impl StateSource {
    pub(crate) fn new(config: &Config, parts: StateParts) -> Self {
        let pipeline = &config.pipeline;
        let credit = (pipeline.writers.get() + 2).saturating_mul(pipeline.batch.max_events.get());
        let trim = pipeline.trim.as_ref();
        let settings = Settings {
            writers: pipeline.writers.get(),
            max_events: credit,
            max_bytes: pipeline.max_bytes_in_flight.get(),
            retention: trim.and_then(|trim| Some((trim.retention, trim.every?))),
            archive: config.archive.url.as_ref().map(ToString::to_string),
            bus: ShownBus::of(config),
            has_guard: config.redis.as_ref().is_some_and(|redis| redis.guard),
        };
        Self {
            started: parts.clock.now(),
            since: Instant::now(),
            parts,
            settings,
            seen: Mutex::default(),
            flushes: Mutex::default(),
        }
    }

    async fn tell(&self, has_auth: bool, has_session: bool) -> Value {
        let asked = timeout(ANSWERS_WITHIN, self.parts.pipelines.status()).await;
        let pipeline = asked.ok().and_then(Result::ok);
        // Of the same moment: what comes in is told by the difference of two such answers.
        let numbers = Numbers::of(&self.parts.registry);
        let uptime = self.since.elapsed();
        let flushes = numbers.times("event_persister_flush_seconds");
        let flushes = self
            .flushes
            .lock()
            .await
            .look(&flushes, uptime, Instant::now());
        let (database, letters) = self.database().await;
        let warnings = pipeline.as_ref().map(|pipeline| &pipeline.warnings[..]);
        let warnings = warnings.unwrap_or_default().iter().map(|warning| {
            let (part, what) = warning.split_once(": ").unwrap_or(("pipeline", warning));
            json!({ "part": part, "what": what, "remedy": "" })
        });
        json!({
            "now": self.parts.clock.now(),
            "service": {
                "version": env!("CARGO_PKG_VERSION"),
                "started": self.started,
                "uptime": uptime.as_secs_f64(),
                "address": self.parts.address.get(),
                "has_auth": has_auth,
                "has_session": has_session,
            },
            "warnings": warnings.collect::<Vec<_>>(),
            "flow": self.flow(pipeline.as_ref(), &numbers, &flushes, database, letters),
            "retention": self.retention(pipeline.as_ref(), &numbers),
            "stream": self.stream(&numbers),
            "guard": self.guard(&numbers),
            "pipeline": pipeline.map_or_else(gone, |pipeline| json!(pipeline)),
        })
    }

    fn flow(
        &self,
        pipeline: Option<&PipelineStatus>,
        numbers: &Numbers,
        flushes: &Times,
        database: Value,
        letters: Value,
    ) -> Value {
        let components = pipeline
            .map(|pipeline| &pipeline.components[..])
            .unwrap_or_default();
        let sources = components
            .iter()
            .filter_map(|part| part.name.strip_prefix("source."));
        let num_sources = sources.count();
        let sources = components.iter().filter_map(|part| {
            let name = part.name.strip_prefix("source.")?;
            let (waiting, bytes) = match name {
                "http" => (
                    "event_persister_intake_events",
                    "event_persister_intake_bytes",
                ),
                "nats" => ("event_persister_nats_lag", ""),
                _ => ("event_persister_redis_lag", ""),
            };
            let mut source = json!({
                "name": name,
                "state": part.state,
                "last_error": part.last_error,
                "waiting": numbers.value(waiting),
                "waiting_bytes": numbers.value(bytes),
            });
            // They are counted together.
            if num_sources == 1 {
                let counts = [
                    "event_persister_received_total",
                    "event_persister_redelivered_total",
                ];
                source["received"] = json!(
                    counts
                        .map(|count| numbers.value(count))
                        .iter()
                        .flatten()
                        .sum::<f64>()
                );
            }
            Some(source)
        });
        let bytes = numbers.value("event_persister_in_flight_bytes");
        json!({
            "sources": sources.collect::<Vec<_>>(),
            "in_flight": {
                "events": numbers.value("event_persister_in_flight"),
                "max_events": self.settings.max_events,
                "bytes": bytes,
                "max_bytes": self.settings.max_bytes,
            },
            "writers": {
                "num": self.settings.writers,
                "busy": numbers.value("event_persister_writers_busy"),
                "batches": numbers.sum("event_persister_batches_total"),
                "flush_p50": flushes.percentile(0.5),
                "flush_p99": flushes.percentile(0.99),
                "retries": numbers.sum("event_persister_retries_total"),
            },
            "database": database,
            "dead_letters": letters,
        })
    }

    /// The content of the database, as it was asked a moment ago.
    async fn database(&self) -> (Value, Value) {
        // Those who ask meanwhile wait for the same answer.
        let mut seen = self.seen.lock().await;
        if seen.as_ref().is_none_or(|seen| seen.at.elapsed() > FRESH) {
            let database = self.parts.reader.overview().await.ok();
            let unknown = || json!({ "num": null, "parse": null, "store": null, "newest": null });
            let letters = self.letters().await.unwrap_or_else(unknown);
            let at = Instant::now();
            *seen = Some(Seen {
                at,
                database,
                letters,
            });
        }
        let Some(Seen {
            database, letters, ..
        }) = seen.as_ref()
        else {
            return (Value::Null, Value::Null);
        };
        let database = match database {
            Some(database) => json!({
                "kind": database.kind,
                "version": database.version,
                "name": database.name,
                "events": database.num_events,
                "is_estimate": database.is_estimate,
                "bytes": database.num_bytes,
                "oldest": database.oldest,
                "newest": database.newest,
            }),
            None => json!({
                "kind": "", "version": "", "name": "", "events": null, "is_estimate": true,
                "bytes": null, "oldest": null, "newest": null,
            }),
        };
        (database, letters.clone())
    }

    async fn letters(&self) -> Option<Value> {
        let letters = &self.parts.letters;
        let of = |stage| LetterFilter {
            stage,
            ..LetterFilter::default()
        };
        let all = of(None);
        let newest = letters
            .list_letters(&all, None, std::num::NonZeroUsize::MIN)
            .await
            .ok()?;
        let Some(newest) = newest.first() else {
            return Some(json!({ "num": 0, "parse": 0, "store": 0, "newest": null }));
        };
        let num = letters.count_letters(&all, None).await.ok()?;
        let parse = letters
            .count_letters(&of(Some(Stage::Parse)), None)
            .await
            .ok()?;
        let store = num.saturating_sub(parse);
        Some(json!({ "num": num, "parse": parse, "store": store, "newest": newest.last_seen }))
    }

    fn retention(&self, pipeline: Option<&PipelineStatus>, numbers: &Numbers) -> Value {
        let removed = numbers.value("event_persister_trimmed_events_total");
        let Some((keeps, every)) = self.settings.retention else {
            return json!({ "is_on": false, "removed": removed });
        };
        let warnings = pipeline
            .map(|pipeline| &pipeline.warnings[..])
            .unwrap_or_default();
        let waits = warnings.iter().any(|warning| warning.starts_with("trim"));
        let passes = pipeline.map(|pipeline| pipeline.retention.clone());
        let RetentionStatus {
            next_pass,
            last_pass,
        } = passes.unwrap_or_default();
        let last_pass = last_pass.map(|pass| {
            json!({
                "at": pass.began,
                "outcome": pass.outcome.as_ref(),
                "events": pass.removed.events,
                "resources": pass.removed.resources,
                "seconds": pass.took.as_secs_f64(),
            })
        });
        json!({
            "is_on": true,
            "keeps": keeps.as_secs_f64(),
            "every": every.as_secs_f64(),
            "next_pass": next_pass,
            "next_before": next_pass.and_then(|next| next.checked_sub_signed(TimeDelta::from_std(keeps).ok()?)),
            "waits_for_person": waits,
            "last_pass": last_pass,
            "removed": removed,
            "archive": self.archive(numbers),
        })
    }

    /// Where events go before they are removed; `null` where they go nowhere.
    fn archive(&self, numbers: &Numbers) -> Value {
        let of_archive = |name: &str| numbers.value(&format!("event_persister_archive_{name}"));
        self.settings.archive.as_ref().map_or(Value::Null, |place| {
            json!({
                "place": place,
                "files": of_archive("files_total"),
                "events": of_archive("events_total"),
                "bytes": of_archive("bytes_total"),
                "is_failing": of_archive("failing") == Some(1.0),
            })
        })
    }

    fn stream(&self, numbers: &Numbers) -> Value {
        let Some(ShownBus {
            kind,
            stream,
            group,
        }) = &self.settings.bus
        else {
            return Value::Null;
        };
        let [length, group_pending, taken] = match *kind {
            "nats" => ["stream_messages", "consumer_pending", "redelivered_total"],
            _ => ["stream_length", "group_pending", "claimed_total"],
        };
        let of_bus = |name: &str| numbers.value(&format!("event_persister_{kind}_{name}"));
        json!({
            "kind": kind,
            "name": stream,
            "group": group,
            "length": of_bus(length),
            "lag": of_bus("lag"),
            "lag_seconds": of_bus("lag_seconds"),
            "own_pending": of_bus("own_pending"),
            "group_pending": of_bus(group_pending),
            "claimed": of_bus(taken),
            "lost": of_bus("lost_total"),
            "rejoined": of_bus("rejoined_total"),
        })
    }

    fn guard(&self, numbers: &Numbers) -> Value {
        if !self.settings.has_guard {
            return Value::Null;
        }
        let of_guard = |name: &str| numbers.value(&format!("event_persister_redis_guard{name}"));
        let position = of_guard("_position_seconds")
            .and_then(|seconds| DateTime::from_timestamp_millis((seconds * 1000.0) as i64));
        json!({
            "is_there": of_guard("") == Some(1.0),
            "position_time": position,
            "age": of_guard("_age_seconds"),
            "max_entries": of_guard("_max_entries"),
            "is_too_long": of_guard("_alarm") == Some(1.0),
        })
    }
}

pub(super) async fn status(request: HttpRequest, shared: web::Data<Shared>) -> HttpResponse {
    if let Some(refused) = shared.refuse_reader(&request) {
        return refused;
    }
    let access = &shared.access;
    let told = shared
        .state
        .tell(access.wants_auth(), access.is_signed_in(&request));
    fresh(&told.await)
}

/// A pipeline that does not answer.
fn gone() -> Value {
    json!({
        "ready": false, "reason": "the pipeline does not answer", "generation": 0, "draining": false,
        "components": [], "degraded": null, "warnings": [], "oldest_unflushed": null,
        "ledger": event_persister_actors::metrics::LedgerCounts::default(),
    })
}

/// The numbers of `/metrics`, by their names.
struct Numbers(HashMap<String, MetricFamily>);

impl Numbers {
    fn of(registry: &Registry) -> Self {
        let families = registry.gather();
        let named = families
            .into_iter()
            .map(|family| (family.name().to_owned(), family));
        Self(named.collect())
    }

    fn all(&self, name: &str) -> Option<&[Metric]> {
        self.0.get(name).map(MetricFamily::get_metric)
    }

    /// `None` where it is not known.
    fn value(&self, name: &str) -> Option<f64> {
        self.all(name)?.first().map(number)
    }

    /// Over all labels.
    fn sum(&self, name: &str) -> Option<f64> {
        Some(self.all(name)?.iter().map(number).sum())
    }

    fn times(&self, name: &str) -> Times {
        let metric = self.all(name).and_then(<[Metric]>::first);
        metric.map_or_else(Times::default, |metric| metric.get_histogram().into())
    }
}

/// A counter's or a gauge's; the other one is zero.
fn number(metric: &Metric) -> f64 {
    metric.get_counter().get_value() + metric.get_gauge().get_value()
}
