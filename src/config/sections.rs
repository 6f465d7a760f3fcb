//! The settings of the composition itself: which database, which bus, and how the process ends.

use std::fmt::Display;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use event_persister_actors::settings::{As, Period, Spelling};
#[cfg(feature = "nats")]
use event_persister_actors::source::nats::NatsUrl;
use event_persister_actors::source::redis::RedisUrl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::database_url::DatabaseUrl;

/// Which database it is; how it is reached is the adapters' affair.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct WhichDatabase {
    /// Where events go. `sqlite://` and a path, relative or absolute, or
    /// `postgresql://user:password@host:port/database`; SQLAlchemy's `sqlite+aiosqlite:///` and
    /// `postgresql+asyncpg://` work too.
    #[serde(with = "As::<DatabaseUrl>")]
    pub(crate) url: DatabaseUrl,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct WhichRedis {
    /// A Redis whose stream is read: `redis://user:password@host:port/database`, `rediss://` for TLS,
    /// `unix:///path?db=0`, or `redis+sentinel://user:password@sentinel:port,sentinel:port/service/database`
    /// (`rediss+sentinel://`); `off` reads none, whatever Prefect's environment says.
    #[serde(with = "As::<UrlOrOff<RedisUrl>>")]
    pub(crate) url: Option<RedisUrl>,
}

#[cfg(feature = "nats")]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct WhichNats {
    /// NATS servers, a stream of whose JetStream is read: `nats://user:password@host:port,host:port`, or `tls://`;
    /// a login without a password is a token. `off` reads none. A service reads one bus: Redis or NATS.
    #[serde(with = "As::<UrlOrOff<NatsUrl>>")]
    pub(crate) url: Option<NatsUrl>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Shutdown {
    /// How long a shutdown may take to write what is held; what is left then stays with its source. Keep it
    /// below your supervisor's kill time.
    #[serde(with = "As::<Period>")]
    pub(crate) drain_timeout: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            drain_timeout: Duration::from_secs(20),
        }
    }
}

struct UrlOrOff<T>(PhantomData<T>);

/// A URL that can be shown.
trait Masked {
    fn shown(&self) -> String;
}

impl Masked for RedisUrl {
    fn shown(&self) -> String {
        self.masked()
    }
}

#[cfg(feature = "nats")]
impl Masked for NatsUrl {
    fn shown(&self) -> String {
        self.masked()
    }
}

impl<T> Spelling for UrlOrOff<T>
where
    T: Masked + FromStr,
    T::Err: Display,
{
    type Value = Option<T>;

    fn read(given: &Value) -> Result<Self::Value, String> {
        match given.as_str().unwrap_or_default().trim() {
            "off" => Ok(None),
            url => url
                .parse()
                .map(Some)
                .map_err(|error| format!("{error}; off reads none")),
        }
    }

    fn write(value: &Self::Value) -> Value {
        value
            .as_ref()
            .map_or_else(|| "off".into(), |url| url.shown().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown<S: Spelling>(text: &str) -> Result<Value, String> {
        S::read(&text.into()).map(|value| S::write(&value))
    }

    #[test]
    fn redis_can_be_off() {
        assert_eq!(shown::<UrlOrOff<RedisUrl>>("off"), Ok("off".into()));
        assert_eq!(
            shown::<UrlOrOff<RedisUrl>>("redis://:p@r"),
            Ok("redis://:***@r:6379/0".into())
        );
        let error = shown::<UrlOrOff<RedisUrl>>("redis+cluster://a,b").unwrap_err();
        assert!(error.contains("Cluster"), "{error}");
    }
}
