//! From what the layers say to right values.

use event_persister_actors::event::EventLimits;
use event_persister_actors::pipeline::PipelineSettings;
use event_persister_actors::retention::Retention;
use event_persister_actors::settings::{ByEvent, Spelling as _};
use event_persister_actors::source::redis::{RedisSettings, RedisUrl};
use event_persister_actors::trim::TrimSettings;

use super::error::ConfigError;
use super::keys::{self, Setting};
use super::layer::{Layer, Layers, Origin, quote};
use super::sections::{Shutdown, WhichDatabase, WhichRedis};
use super::{Config, Database, DatabaseUrl, Effective, Http, Prefect};

/// SQLite gains more from larger batches: each writes the pages that it touched once. Those of a quarter
/// more events still fit into its cache, and into 64 MiB all in all.
const MAX_EVENTS_ON_SQLITE: usize = 1_250;

/// Two files of which neither is of use without the other.
const PAIRS: [[&str; 2]; 3] = [
    ["database.tls_cert_file", "database.tls_key_file"],
    ["redis.cert_file", "redis.key_file"],
    ["http.tls_cert_file", "http.tls_key_file"],
];

/// Everything that is wrong in any layer: a value that others hide would count once the other is gone.
pub(super) fn check(layers: &Layers) -> Result<(), ConfigError> {
    let mut errors = ConfigError::default();
    for setting in keys::all() {
        for (value, origin) in layers.0.iter().filter_map(|layer| layer.get(&setting.name)) {
            if let Err(expected) = setting.show(value) {
                let name = &setting.name;
                // A file that was meant for something else may hold any secret.
                let hides = keys::is_secret(name) || matches!(origin, Origin::SecretFile { .. });
                errors.add(if hides {
                    format!("{origin}: wrong value for {name}: {expected}")
                } else {
                    let value = quote(value);
                    format!("{origin}: {value} is not right for {name}: {expected}")
                });
            }
        }
    }
    errors.into_result()
}

/// The configuration; the layers are right, each for itself.
pub(super) fn compose(mut layers: Layers, prefect: Prefect) -> Result<Config, ConfigError> {
    let WhichDatabase { url } = layers.read("database")?;
    let WhichRedis { url: redis } = layers.read("redis")?;
    let follows = consequences(&layers, &url, redis.as_ref())?;
    layers.0.push(follows);
    for pair in PAIRS {
        let [has_cert, has_key] = pair.map(|name| layers.find(name).is_some());
        let is_used = redis.is_some() || !pair[0].starts_with("redis.");
        if has_cert != has_key && is_used {
            let [cert, key] = pair;
            return Err(ConfigError::new(format!(
                "{cert} and {key} are used together; set both or neither"
            )));
        }
    }
    check_auth_string(&layers)?;
    let trim: TrimSettings = layers.read("trim")?;
    let Shutdown { drain_timeout } = layers.read("pipeline")?;
    Ok(Config {
        database: Database {
            url,
            is_prefects: matches!(layers.origin("database.url"), Origin::Prefect(_)),
            sqlite: layers.read("database")?,
            postgres: layers.read("database")?,
        },
        redis: match redis {
            None => None,
            Some(url) => Some(RedisSettings {
                url,
                ..layers.read("redis")?
            }),
        },
        http: Http {
            listener: layers.read("http")?,
            routes: layers.read("http")?,
            intake: layers.read("http")?,
        },
        pipeline: PipelineSettings {
            batch: layers.read("batch")?,
            retention: trim.every.map(|_| Retention::from(&trim)),
            trim: trim.every.map(|_| trim.clone()),
            ..layers.read("pipeline")?
        },
        drain_timeout,
        trim,
        events: layers.read::<EventLimits>("events")?,
        log: layers.read("log")?,
        effective: effective(&layers),
        prefect,
    })
}

/// What follows from other settings, and counts where nothing is said.
fn consequences(
    layers: &Layers,
    database: &DatabaseUrl,
    redis: Option<&RedisUrl>,
) -> Result<Layer, ConfigError> {
    let mut layer = Layer::default();
    let mut by_url = |section: &str, said: &[(&'static str, String)]| {
        let origin = layers.origin(&format!("{section}.url"));
        for (key, value) in said {
            let name = format!("{section}.{key}");
            layer.set(&name, value.as_str(), origin.clone());
        }
    };
    if let DatabaseUrl::Postgres { url, .. } = database {
        by_url("database", url.settings());
    }
    if let Some(redis) = redis {
        by_url("redis", redis.settings());
        let RedisSettings { group, .. } = layers.read("redis")?;
        // One for each group: two groups that moved the same guard would let others trim what the slower
        // of them has not committed.
        let guard_group = format!("{group}-guard");
        layer.set("redis.guard_group", guard_group, Origin::Default);
    }
    if matches!(database, DatabaseUrl::Sqlite { .. }) {
        layer.set("batch.max_events", MAX_EVENTS_ON_SQLITE, Origin::Default);
    }
    // A shorter retention is meant for all events: a default override must not keep some longer.
    let trim: TrimSettings = layers.read("trim")?;
    let mut overrides = TrimSettings::default().overrides;
    for kept in overrides.values_mut() {
        *kept = trim.retention.min(*kept);
    }
    let overrides = ByEvent::write(&overrides);
    layer.set("trim.overrides", overrides, Origin::Default);
    Ok(layer)
}

/// A client sends a name and a password, which are told apart by the colon between them. Prefect's own
/// setting is taken as it is: its clients send the same text, whatever that is.
fn check_auth_string(layers: &Layers) -> Result<(), ConfigError> {
    match layers.find("http.auth_string") {
        Some((secret, origin))
            if !secret.as_str().unwrap_or_default().contains(':')
                && !matches!(origin, Origin::Prefect(_)) =>
        {
            Err(ConfigError::new(format!(
                "{origin}: wrong value for http.auth_string: there is no colon in it; give name and \
                 password as `user:password`"
            )))
        }
        _ => Ok(()),
    }
}

fn effective(layers: &Layers) -> Vec<Effective> {
    let show = |setting: &'static Setting| Effective {
        name: &setting.name,
        value: match layers.find(&setting.name) {
            Some((value, _)) => setting.show(value).ok(),
            None => setting.shown_default(),
        },
        origin: layers.origin(&setting.name),
        variable: setting.variable(),
        help: &setting.help,
    };
    keys::all().iter().map(show).collect()
}
