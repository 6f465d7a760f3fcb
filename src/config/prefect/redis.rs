//! Prefect's event bus, if it is one that other processes can read.

use event_persister_actors::address::encode;
use event_persister_actors::finding::Finding;
use serde_json::Value;

use super::{Reader, database, host, pydantic};

pub(super) const BROKER: [&str; 2] = [
    "PREFECT_SERVER_EVENTS_MESSAGING_BROKER",
    "PREFECT_MESSAGING_BROKER",
];
/// The package whose modules carry messages through Redis.
const OF_REDIS: &str = "prefect_redis";

const URL: &str = "PREFECT_REDIS_MESSAGING_URL";
const HOST: &str = "PREFECT_REDIS_MESSAGING_HOST";
const PORT: &str = "PREFECT_REDIS_MESSAGING_PORT";
const DB: &str = "PREFECT_REDIS_MESSAGING_DB";
const USERNAME: &str = "PREFECT_REDIS_MESSAGING_USERNAME";
const PASSWORD: &str = "PREFECT_REDIS_MESSAGING_PASSWORD";
const SSL: &str = "PREFECT_REDIS_MESSAGING_SSL";
const DISCRETE: [&str; 6] = [HOST, PORT, DB, USERNAME, PASSWORD, SSL];

pub(super) fn read(reader: &mut Reader<'_>) {
    let setting = "redis.url";
    let variables = reader.variables;
    let broker = variables.first(&BROKER);
    if let Some(reason) = reader.is_set_elsewhere(setting) {
        reader.see_all(&[URL], &reason);
        reader.see_all(&DISCRETE, &reason);
        return;
    }
    if let Some((name, broker)) = broker
        && !broker.is_string()
    {
        reader.refuse(name, Some(broker), "give the name of a module");
        return;
    }
    let broker = broker.and_then(|(name, broker)| Some((name, broker.as_str()?)));
    let broker_is_redis = broker.is_some_and(|(_, broker)| broker.contains(OF_REDIS));
    if let Some(url) = variables.get(URL) {
        reader.set(setting, url.clone(), URL);
        reader.see_all(&DISCRETE, &format!("{URL} comes before it"));
    } else if broker_is_redis || variables.get(HOST).is_some() {
        match from_parts(reader) {
            Ok(url) => {
                let broker = broker.filter(|_| broker_is_redis).map(|(name, _)| name);
                reader.set_from_parts(setting, url, broker.into_iter().chain(DISCRETE));
            }
            Err((name, value, expected)) => {
                reader.refuse(name, Some(&value), expected);
                return;
            }
        }
    } else {
        let [_, name] = BROKER;
        reader.see_all(
            &DISCRETE,
            &format!("none of {URL}, {HOST} and {name}=prefect_redis.messaging is set"),
        );
    }
    warn_of_another_bus(reader, broker, broker_is_redis);
}

fn from_parts(reader: &Reader<'_>) -> Result<String, (&'static str, Value, &'static str)> {
    let integer = |name: &'static str, default: i64, max: i64, expected: &'static str| {
        let Some(value) = reader.variables.get(name) else {
            return Ok(default);
        };
        pydantic::integer(value)
            .and_then(|number| i64::try_from(number).ok())
            .filter(|number| (0..=max).contains(number))
            .ok_or_else(|| (name, value.clone(), expected))
    };
    let port = integer(PORT, 6379, i64::from(u16::MAX), "give the number of a port")?;
    let database = integer(DB, 0, i64::MAX, "give the number of a database")?;
    let is_tls = match reader.variables.get(SSL) {
        None => false,
        Some(value) => {
            pydantic::boolean(value).ok_or((SSL, value.clone(), "give true or false"))?
        }
    };
    let text = |name, default| {
        let value = reader.variables.get(name).and_then(Value::as_str);
        value.unwrap_or(default)
    };
    let login = match (text(USERNAME, "default"), text(PASSWORD, "")) {
        // Without a login it is this user as well.
        ("default", "") => String::new(),
        (user, "") => format!("{}@", encode(user)),
        (user, password) => format!("{}:{}@", encode(user), encode(password)),
    };
    let scheme = if is_tls { "rediss" } else { "redis" };
    let host = host(text(HOST, "localhost"));
    Ok(format!("{scheme}://{login}{host}:{port}/{database}"))
}

/// A Redis that Prefect publishes nothing to, or events that nobody can read.
fn warn_of_another_bus(
    reader: &mut Reader<'_>,
    broker: Option<(&'static str, &str)>,
    broker_is_redis: bool,
) {
    if broker_is_redis {
        return;
    }
    let [_, name] = BROKER;
    let how = broker.map_or_else(
        || format!("{name} is not set, and the default is memory"),
        |(name, broker)| format!("{} is {broker:?}", reader.variables.place(name)),
    );
    let name = broker.map_or(name, |(given, _)| reader.variables.place(given));
    let (what, remedy) = if reader.layer.get("redis.url").is_some() {
        (
            format!("a Prefect server with this environment publishes no events to Redis ({how})"),
            format!("set {name}=prefect_redis.messaging for it"),
        )
    } else if database::is_taken_over(reader) {
        (
            format!(
                "the events of a Prefect server with this environment cannot be read by another \
                 process ({how})"
            ),
            format!("set {name}=prefect_redis.messaging for it, and where Redis is"),
        )
    } else {
        return;
    };
    let warning = Finding::warning("prefect.broker", what, remedy);
    reader.prefect.warnings.push(warning);
}
