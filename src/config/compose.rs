//! From what the layers say to right values.

use event_persister_actors::event::EventLimits;
use event_persister_actors::pipeline::PipelineSettings;
use event_persister_actors::primary::KnownPrimary;
use event_persister_actors::retention::Retention;
use event_persister_actors::settings::{ByEvent, OneOf, Spelling as _};
use event_persister_actors::source::redis::{RedisSettings, RedisUrl};
use event_persister_actors::store::postgres::{
    PgEnvironment, PostgresSettings, PostgresUrl, TlsMode,
};
use event_persister_actors::trim::TrimSettings;

use super::error::ConfigError;
use super::keys::{self, Setting};
use super::layer::{Layer, Layers, Origin, quote};
use super::prefect::Seen;
use super::sections::{Shutdown, WhichDatabase, WhichRedis};
use super::{Config, Database, DatabaseUrl, Effective, Http, NatsSettings, Prefect};

/// SQLite gains more from larger batches: each writes the pages that it touched once. A quarter more still
/// fits into its cache.
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
pub(super) fn compose(
    mut layers: Layers,
    mut prefect: Prefect,
    mut of_drivers: PgEnvironment,
) -> Result<Config, ConfigError> {
    let WhichDatabase { mut url } = layers.read("database")?;
    let WhichRedis { url: redis } = layers.read("redis")?;
    if matches!(layers.origin("database.tls"), Origin::Prefect(_)) {
        // Prefect then tells its driver everything about encryption.
        of_drivers = of_drivers.without_tls();
    }
    if let DatabaseUrl::Postgres { text, url } = &mut url {
        let read = PostgresUrl::in_environment(text, &of_drivers);
        **url = read.map_err(|error| wrong(&layers, "database.url", &error))?;
    }
    let mut follows = consequences(&layers, &url, redis.as_ref())?;
    if let DatabaseUrl::Postgres { .. } = url {
        certificates(&layers, &mut follows, &of_drivers)?;
    }
    layers.0.push(follows);
    ignored(&layers, &url, redis.as_ref(), &mut prefect);
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
    let postgres: PostgresSettings = layers.read("database")?;
    if let DatabaseUrl::Postgres { url, .. } = &url {
        let fits = url.goes_with(postgres.tls);
        fits.map_err(|error| wrong(&layers, "database.url", &error))?;
    }
    let primary = postgres.servers.primary();
    let nats = nats(&layers, &primary)?;
    if redis.is_some() && nats.is_some() {
        let [of_redis, of_nats] = ["redis.url", "nats.url"].map(|url| layers.origin(url));
        return Err(ConfigError::new(format!(
            "redis.url ({of_redis}) and nats.url ({of_nats}) both name a bus, and a service reads one; remove one of \
             them, or set it to off"
        )));
    }
    Ok(Config {
        database: Database {
            url,
            is_prefects: matches!(layers.origin("database.url"), Origin::Prefect(_)),
            sqlite: layers.read("database")?,
            postgres,
        },
        redis: match redis {
            None => None,
            Some(url) => Some(RedisSettings {
                url,
                primary,
                ..layers.read("redis")?
            }),
        },
        nats,
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
        archive: layers.read("archive")?,
        events: layers.read::<EventLimits>("events")?,
        log: layers.read("log")?,
        effective: effective(&layers),
        prefect,
    })
}

#[cfg(feature = "nats")]
fn nats(layers: &Layers, primary: &KnownPrimary) -> Result<Option<NatsSettings>, ConfigError> {
    let super::sections::WhichNats { url } = layers.read("nats")?;
    let Some(url) = url else { return Ok(None) };
    Ok(Some(NatsSettings {
        url,
        primary: primary.clone(),
        ..layers.read("nats")?
    }))
}

#[cfg(not(feature = "nats"))]
fn nats(_: &Layers, _: &KnownPrimary) -> Result<Option<NatsSettings>, ConfigError> {
    Ok(None)
}

fn wrong(layers: &Layers, setting: &str, error: &dyn std::fmt::Display) -> ConfigError {
    let origin = layers.origin(setting);
    ConfigError::new(format!("{origin}: wrong value for {setting}: {error}"))
}

/// The files of TLS where the drivers of PostgreSQL look for them.
fn certificates(
    layers: &Layers,
    follows: &mut Layer,
    environment: &PgEnvironment,
) -> Result<(), ConfigError> {
    let mode = layers.find("database.tls").or(follows.get("database.tls"));
    let mode = match mode {
        Some((mode, _)) => OneOf::<TlsMode>::read(mode).map_err(ConfigError::new)?,
        None => PostgresSettings::default().tls,
    };
    let files = environment.tls_files(mode).map_err(ConfigError::new)?;
    for (key, value, by) in files {
        let name = format!("database.{key}");
        if follows.get(&name).is_none() {
            follows.set(&name, value, Origin::Variable(by));
        }
    }
    Ok(())
}

/// Notes the parameters of the URLs that change nothing here.
fn ignored(
    layers: &Layers,
    database: &DatabaseUrl,
    redis: Option<&RedisUrl>,
    prefect: &mut Prefect,
) {
    let database = match database {
        DatabaseUrl::Postgres { url, .. } => url.ignored(),
        DatabaseUrl::Sqlite { .. } => &[],
    };
    let redis = redis.map_or(&[][..], RedisUrl::ignored);
    for (setting, ignored) in [("database.url", database), ("redis.url", redis)] {
        let origin = layers.origin(setting);
        prefect
            .not_taken_over
            .extend(ignored.iter().map(|name| Seen {
                variable: origin.to_string(),
                reason: format!("{name} in it tunes another client, and changes nothing here"),
            }));
    }
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
        // Two groups that moved the same guard would let others trim what the slower has not committed.
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

/// Clients send a name, a colon and a password. Those of Prefect send Prefect's setting, whatever it is.
fn check_auth_string(layers: &Layers) -> Result<(), ConfigError> {
    if let Some((secret, origin)) = layers.find("http.auth_string")
        && !matches!(origin, Origin::Prefect(_))
        && !secret.as_str().unwrap_or_default().contains(':')
    {
        return Err(ConfigError::new(format!(
            "{origin}: wrong value for http.auth_string: there is no colon in it; give name and \
             password as `user:password`"
        )));
    }
    Ok(())
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
