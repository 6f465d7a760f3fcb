//! The table of all settings: the one place that knows their names, defaults and meanings.
//!
//! File keys, variable names, the output of `check` and the README's table all follow from it.

use std::marker::PhantomData;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use super::database_url::DatabaseUrl;
use super::redis_url::RedisUrl;
use super::value::{
    Input, Listen, LogFilter, LogFormat, NonZeroDuration, NumWriters, Overrides, Secret,
    SettingValue, Size, Switchable, TlsMode, Toggle,
};

/// What every environment variable of ours begins with.
pub(crate) const PREFIX: &str = "EVENT_PERSISTER_";

/// What the variable ends with that names a file instead of holding the value.
const FILE_SUFFIX: &str = "_FILE";

/// One setting, whatever its type.
pub(crate) struct Setting {
    /// The file's section.
    pub(crate) section: &'static str,
    /// The key in that section.
    pub(crate) key: &'static str,
    /// The default, as one would write it; `None` where there is none.
    pub(crate) default: Option<&'static str>,
    /// What it does and what it trades, in one line.
    pub(crate) help: &'static str,
    /// Its flag, if it has one.
    pub(crate) flag: Option<&'static str>,
    /// A second, shorter variable.
    pub(crate) short_variable: Option<&'static str>,
    /// Whether the value must not be repeated, not even in an error.
    pub(crate) secret: bool,
    /// Whether a variable may name a file to read the value from.
    pub(crate) may_be_a_file: bool,
    /// Reads a value only to show it.
    pub(crate) show: fn(&Input) -> Result<String, String>,
}

impl Setting {
    /// Such as `http.listen`.
    pub(crate) fn name(&self) -> String {
        format!("{}.{}", self.section, self.key)
    }

    /// Such as `EVENT_PERSISTER_HTTP_LISTEN`.
    pub(crate) fn variable(&self) -> String {
        format!("{PREFIX}{}_{}", self.section, self.key).to_ascii_uppercase()
    }

    /// The variable that names a file with the value, if there may be one.
    pub(crate) fn file_variable(&self) -> Option<String> {
        self.may_be_a_file
            .then(|| format!("{}{FILE_SUFFIX}", self.variable()))
    }

    /// All variables that set it, the full name first.
    pub(crate) fn variables(&self) -> impl Iterator<Item = String> {
        std::iter::once(self.variable()).chain(self.short_variable.map(str::to_owned))
    }
}

/// A setting whose values have type `T`.
pub(crate) struct Key<T> {
    pub(crate) setting: Setting,
    value: PhantomData<fn() -> T>,
}

impl<T: SettingValue> Key<T> {
    const fn new(
        section: &'static str,
        key: &'static str,
        default: Option<&'static str>,
        help: &'static str,
    ) -> Self {
        Self {
            setting: Setting {
                section,
                key,
                default,
                help,
                flag: None,
                short_variable: None,
                secret: false,
                may_be_a_file: false,
                show: show::<T>,
            },
            value: PhantomData,
        }
    }

    const fn flag(mut self, flag: &'static str) -> Self {
        self.setting.flag = Some(flag);
        self
    }

    const fn short_variable(mut self, variable: &'static str) -> Self {
        self.setting.short_variable = Some(variable);
        self
    }

    const fn secret(mut self) -> Self {
        self.setting.secret = true;
        self
    }

    const fn may_be_a_file(mut self) -> Self {
        self.setting.may_be_a_file = true;
        self
    }
}

fn show<T: SettingValue>(input: &Input) -> Result<String, String> {
    T::read(input).map(|value| value.show())
}

/// Declares each key once, and the list of all of them with it.
macro_rules! settings {
    ($($name:ident: $type:ty = $key:expr;)+) => {
        $(pub(crate) static $name: Key<$type> = $key;)+

        /// All settings, in the order in which people read them.
        pub(crate) static ALL: &[&Setting] = &[$(&$name.setting),+];
    };
}

settings! {
    DATABASE_URL: DatabaseUrl = Key::new(
        "database", "url", Some("sqlite://event-persister.db"),
        "Where events go. `sqlite://` and a path, relative or absolute, or `postgresql://user:password@host:port/database`; SQLAlchemy's `sqlite+aiosqlite:///` and `postgresql+asyncpg://` work too.",
    ).flag("--database-url").may_be_a_file();
    DATABASE_BUSY_TIMEOUT: NonZeroDuration = Key::new(
        "database", "busy_timeout", Some("4s"),
        "How long a write waits for another process that holds the SQLite file before it backs off; longer hides contention, shorter reports it sooner.",
    );
    DATABASE_CONNECT_TIMEOUT: NonZeroDuration = Key::new(
        "database", "connect_timeout", Some("4s"),
        "PostgreSQL: how long a connection may take to be made before it is tried again.",
    );
    DATABASE_STATEMENT_TIMEOUT: NonZeroDuration = Key::new(
        "database", "statement_timeout", Some("30s"),
        "PostgreSQL: how long one statement may take before the batch is tried again; longer suits a slow server, shorter finds a hung one sooner.",
    );
    DATABASE_LOCK_TIMEOUT: NonZeroDuration = Key::new(
        "database", "lock_timeout", Some("4s"),
        "PostgreSQL: how long a statement waits for a lock before it backs off; longer hides contention, shorter reports it sooner.",
    );
    DATABASE_SEARCH_PATH: String = Key::new(
        "database", "search_path", None,
        "PostgreSQL: the schemas to look for tables in, such as `prefect, public`; the server's own if not set.",
    );
    DATABASE_APPLICATION_NAME: String = Key::new(
        "database", "application_name", Some("event-persister"),
        "PostgreSQL: how the connections are called in `pg_stat_activity`.",
    );
    DATABASE_PREPARED_STATEMENTS: Toggle = Key::new(
        "database", "prepared_statements", Some("on"),
        "PostgreSQL: `off` behind a PgBouncer in transaction mode that knows no prepared statements (older than 1.21, or `max_prepared_statements` is 0), or whose version keeps a server connection busy after a COPY that failed; costs some speed, since nothing is copied then.",
    );
    DATABASE_TLS: TlsMode = Key::new(
        "database", "tls", Some("prefer"),
        "PostgreSQL: `disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`, as libpq's `sslmode`. Only the last two know whom they talk to.",
    );
    DATABASE_TLS_CHECK_HOSTNAME: Toggle = Key::new(
        "database", "tls_check_hostname", Some("on"),
        "PostgreSQL: `off` makes `verify-full` a `verify-ca`.",
    );
    DATABASE_TLS_CA_FILE: PathBuf = Key::new(
        "database", "tls_ca_file", None,
        "PostgreSQL: the authorities that may sign the server's certificate (PEM); the system's if not set.",
    );
    DATABASE_TLS_CERT_FILE: PathBuf = Key::new(
        "database", "tls_cert_file", None,
        "PostgreSQL: the certificate to log in with (PEM), with `tls_key_file`.",
    );
    DATABASE_TLS_KEY_FILE: PathBuf = Key::new(
        "database", "tls_key_file", None,
        "PostgreSQL: the key of `tls_cert_file` (PEM).",
    );

    REDIS_URL: RedisUrl = Key::new(
        "redis", "url", None,
        "A Redis whose stream is read, `redis://user:password@host:port/database` or `rediss://` for TLS; `off` reads none, whatever Prefect's environment says.",
    ).flag("--redis-url").secret().may_be_a_file();
    REDIS_STREAM: String = Key::new(
        "redis", "stream", Some("events"),
        "The stream to read. Prefect's own name.",
    );
    REDIS_GROUP: String = Key::new(
        "redis", "group", Some("event-persister"),
        "The consumer group to read as; all replicas share one. Prefect's own name, so that it goes on where Prefect's persister stopped.",
    );
    REDIS_CLAIM_IDLE: NonZeroDuration = Key::new(
        "redis", "claim_idle", Some("20s"),
        "After how long without a sign of life another replica's entries are taken over; shorter takes them from one that only stalls.",
    );
    REDIS_GUARD: Toggle = Key::new(
        "redis", "guard", Some("on"),
        "Whether a second group keeps Prefect from trimming entries that are not committed; `off` loses events in outages. `event-persister guard remove` removes it.",
    );
    REDIS_GUARD_GROUP: String = Key::new(
        "redis", "guard_group", Some("event-persister-guard"),
        "That group's name; by default `redis.group` with `-guard`, since groups that share a stream need one each (`guard remove` before you give a group up). Must not begin with `ephemeral`, which Prefect deletes.",
    );
    REDIS_GUARD_MAX_ENTRIES: NonZeroU64 = Key::new(
        "redis", "guard_max_entries", Some("1000000"),
        "Entries in the stream above which the log says that it grows; nothing is let go.",
    );
    REDIS_TRIM_STREAM: Toggle = Key::new(
        "redis", "trim_stream", Some("off"),
        "Whether committed entries are removed from the stream. For a stream without Prefect, which trims its own.",
    );
    REDIS_CA_FILE: PathBuf = Key::new(
        "redis", "ca_file", None,
        "With `rediss://`: the authorities that may sign the server's certificate (PEM); the system's if not set.",
    );
    REDIS_CERT_FILE: PathBuf = Key::new(
        "redis", "cert_file", None,
        "With `rediss://`: the certificate to show (PEM), with `key_file`.",
    );
    REDIS_KEY_FILE: PathBuf = Key::new(
        "redis", "key_file", None,
        "The key of `cert_file` (PEM).",
    );

    HTTP_LISTEN: Listen = Key::new(
        "http", "listen", Some("127.0.0.1:4280"),
        "Where the listener listens, or `off`. Beyond loopback without an auth string it serves only the two health paths.",
    ).flag("--listen").short_variable("EVENT_PERSISTER_LISTEN");
    HTTP_AUTH_STRING: Secret = Key::new(
        "http", "auth_string", None,
        "`user:password` that clients must send (Basic, or in the WebSocket's first message); guards all but the two health paths.",
    ).secret().may_be_a_file();
    HTTP_TLS_CERT_FILE: PathBuf = Key::new(
        "http", "tls_cert_file", None,
        "The certificate to show, with those that vouch for it (PEM): then the listener speaks `https` and `wss` alone. Read again when the file changes.",
    );
    HTTP_TLS_KEY_FILE: PathBuf = Key::new(
        "http", "tls_key_file", None,
        "The key of `tls_cert_file` (PEM).",
    );
    HTTP_MAX_CONNECTIONS: NonZeroUsize = Key::new(
        "http", "max_connections", Some("1024"),
        "Connections at a time; 64 more are only told so (503) or asked for health, the rest wait. Raise it for more clients, at up to 256 KiB each.",
    );
    HTTP_IDLE_TIMEOUT: NonZeroDuration = Key::new(
        "http", "idle_timeout", Some("10s"),
        "How long a client may take for the head of its first or next request before its connection is closed; Prefect's client gives an idle one up after 5s. WebSockets may idle.",
    );
    HTTP_BODY_TIMEOUT: NonZeroDuration = Key::new(
        "http", "body_timeout", Some("2m"),
        "How long a body, or a large message on a WebSocket, may take from its first byte to its last; longer suits slow links, shorter gives the room for buffers back sooner.",
    );
    HTTP_MAX_BODY_BYTES: Size = Key::new(
        "http", "max_body_bytes", Some("64MiB"),
        "The largest request body; larger ones are refused with 413. Raise it for larger lists, at that much memory a request.",
    );
    HTTP_MAX_EVENT_BYTES: Size = Key::new(
        "http", "max_event_bytes", Some("64MiB"),
        "The largest single event by HTTP or WebSocket. Lower it to refuse what your database should not hold.",
    );
    HTTP_MAX_BUFFERED_BYTES: Size = Key::new(
        "http", "max_buffered_bytes", Some("128MiB"),
        "Request bodies and WebSocket messages beyond 16 KiB that are being received, all together, by what has come of them; beyond it requests get 503 and WebSockets are read no further. At least the largest single one.",
    );
    HTTP_REQUEST_TIMEOUT: NonZeroDuration = Key::new(
        "http", "request_timeout", Some("30s"),
        "How long a request waits for its commit before it gets 503; longer rides out longer outages, with more clients waiting.",
    );
    HTTP_MAX_WAITING_EVENTS: NonZeroUsize = Key::new(
        "http", "max_waiting_events", Some("10000"),
        "Events that were taken in and are not committed yet; beyond it requests get 503 and WebSockets are read no further.",
    );
    HTTP_MAX_WAITING_BYTES: Size = Key::new(
        "http", "max_waiting_bytes", Some("128MiB"),
        "The same bound in bytes: the memory that an outage of the database may take.",
    );

    PIPELINE_WRITERS: NumWriters = Key::new(
        "pipeline", "writers", Some("2"),
        "How many write at the same time, each on a thread of its own, at most 64; on PostgreSQL over two connections, one of them to copy large batches. More helps a database with cores to spare; SQLite writes one at a time.",
    ).flag("--writers").short_variable("EVENT_PERSISTER_WRITERS");
    PIPELINE_MAX_BYTES_IN_FLIGHT: Size = Key::new(
        "pipeline", "max_bytes_in_flight", Some("64MiB"),
        "Bytes of events between source and commit; the bound on memory. One event larger than this still passes, alone.",
    );
    PIPELINE_DRAIN_TIMEOUT: Duration = Key::new(
        "pipeline", "drain_timeout", Some("20s"),
        "How long a shutdown may take to write what is held; what is left then stays with its source. Keep it below your supervisor's kill time.",
    );

    BATCH_MAX_EVENTS: NonZeroUsize = Key::new(
        "batch", "max_events", Some("1000"),
        "Events in one transaction, 1,250 by default on SQLite; more is faster up to a few thousand, takes memory for four times as many, and repeats more after a failure.",
    );
    BATCH_MAX_BYTES: Size = Key::new(
        "batch", "max_bytes", Some("8MiB"),
        "Bytes in one transaction; a larger event goes alone.",
    );
    BATCH_LINGER: Duration = Key::new(
        "batch", "linger", Some("5ms"),
        "How long an idle writer waits for company when an event arrives alone; longer means fewer, larger transactions and later commits.",
    );
    BATCH_MAX_AGE: NonZeroDuration = Key::new(
        "batch", "max_age", Some("1s"),
        "No event waits longer than this for its batch to fill.",
    );

    TRIM_EVERY: Switchable = Key::new(
        "trim", "every", Some("15m"),
        "How often events beyond their retention are deleted, or `off`. Shorter means smaller passes.",
    );
    TRIM_RETENTION: NonZeroDuration = Key::new(
        "trim", "retention", Some("7d"),
        "How long events are kept, by the time at which they occurred.",
    );
    TRIM_OVERRIDES: Overrides = Key::new(
        "trim", "overrides", Some("prefect.flow-run.heartbeat=7d"),
        "Retention of single event names, shorter or longer: a table in the file, `name=30d,other=1h` or JSON in a variable. Replaces the default.",
    );
    TRIM_BATCH_SIZE: NonZeroUsize = Key::new(
        "trim", "batch_size", Some("5000"),
        "Events deleted in one transaction; fewer let SQLite's writers in sooner, more finish earlier. SQLite takes up to four times as many while nobody else writes; while this process writes to PostgreSQL at most 1,000, and a second four times what it writes, or 5,000 if that is more.",
    );

    EVENTS_MAX_LABELS_PER_RESOURCE: NonZeroUsize = Key::new(
        "events", "max_labels_per_resource", Some("500"),
        "Labels of one resource; an event with more is refused. Prefect's own limit.",
    );
    EVENTS_MAX_RELATED_RESOURCES: NonZeroUsize = Key::new(
        "events", "max_related_resources", Some("100"),
        "Related resources of one event; an event with more is refused. Prefect's own limit.",
    );
    EVENTS_MAX_EVENT_NAME_LENGTH: NonZeroUsize = Key::new(
        "events", "max_event_name_length", Some("1024"),
        "Characters of an event's name; an event with more is refused. Prefect's own limit.",
    );

    LOG_FORMAT: LogFormat = Key::new(
        "log", "format", Some("text"),
        "`text` for people, `json` for one object a line.",
    ).flag("--log-format");
    LOG_LEVEL: LogFilter = Key::new(
        "log", "level", Some("info"),
        "`error`, `warn`, `info`, `debug`, `trace` or `off`, also by module: `info,event_persister_actors=debug`.",
    );
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_default_is_a_right_value_written_as_it_is_shown() {
        for setting in ALL {
            if let Some(default) = setting.default {
                let shown = (setting.show)(&Input::Text(default.to_owned()));
                assert_eq!(shown.as_deref(), Ok(default), "{}", setting.name());
            }
        }
    }

    #[test]
    fn no_two_settings_share_a_name() {
        let names: BTreeSet<String> = ALL.iter().map(|setting| setting.name()).collect();
        let variables: Vec<String> = ALL.iter().flat_map(|setting| setting.variables()).collect();
        assert_eq!(names.len(), ALL.len());
        assert_eq!(
            variables.iter().collect::<BTreeSet<_>>().len(),
            variables.len()
        );
    }

    #[test]
    fn every_setting_says_what_it_does() {
        for setting in ALL {
            assert!(setting.help.ends_with('.'), "{}", setting.name());
        }
    }

    #[test]
    fn the_readmes_table_is_this_one() {
        let rows: Vec<String> = ALL.iter().map(|setting| readme_row(setting)).collect();
        let readme = include_str!("../../README.md");
        let found: Vec<&str> = readme
            .lines()
            .skip_while(|line| *line != "| setting | default | what it does |")
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        assert_eq!(found, rows, "copy these rows:\n{}", rows.join("\n"));
    }

    fn readme_row(setting: &Setting) -> String {
        let default = setting
            .default
            .map_or_else(|| "none".to_owned(), |default| format!("`{default}`"));
        let flag = setting
            .flag
            .map_or_else(String::new, |flag| format!(" (`{flag}`)"));
        format!(
            "| `{}`{flag} | {default} | {} |",
            setting.name(),
            setting.help
        )
    }
}
