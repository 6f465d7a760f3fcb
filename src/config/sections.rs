//! The settings of the composition itself: which database, which Redis, and how the process ends.

use std::time::Duration;

use event_persister_actors::settings::{As, Period, Spelling};
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
    #[serde(with = "As::<UrlOrOff>")]
    pub(crate) url: Option<RedisUrl>,
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

struct UrlOrOff;

impl Spelling for UrlOrOff {
    type Value = Option<RedisUrl>;

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
            .map_or_else(|| "off".into(), |url| url.masked().into())
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
        assert_eq!(shown::<UrlOrOff>("off"), Ok("off".into()));
        assert_eq!(
            shown::<UrlOrOff>("redis://:p@r"),
            Ok("redis://:***@r:6379/0".into())
        );
        let error = shown::<UrlOrOff>("redis+cluster://a,b").unwrap_err();
        assert!(error.contains("Cluster"), "{error}");
    }
}
