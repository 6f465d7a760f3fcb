//! The table of all settings: the one place that knows their names, defaults and meanings.
//!
//! File keys, variable names, the output of `check` and the README's table all follow from it.

use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::database_url::DatabaseUrl;
use super::value::{
    Input, Listen, LogFilter, LogFormat, NonZeroDuration, Overrides, RedisUrl, Secret,
    SettingValue, Size, Switchable,
};

/// What every environment variable of ours begins with.
pub(crate) const PREFIX: &str = "EVENT_PERSISTER_";

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
    /// Known, so that it can be refused with a reason, but not offered.
    pub(crate) hidden: bool,
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
                hidden: false,
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

    const fn hidden(mut self) -> Self {
        self.setting.hidden = true;
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
        "Where events go. `sqlite://` and a path, relative or absolute; SQLAlchemy's `sqlite+aiosqlite:///` works too.",
    ).flag("--database-url");
    DATABASE_BUSY_TIMEOUT: NonZeroDuration = Key::new(
        "database", "busy_timeout", Some("10s"),
        "How long a write waits for another process that holds the SQLite file before it backs off; longer hides contention, shorter reports it sooner.",
    );
    REDIS_URL: RedisUrl = Key::new("redis", "url", None, "Not built in yet.")
        .flag("--redis-url").secret().hidden();

    HTTP_LISTEN: Listen = Key::new(
        "http", "listen", Some("127.0.0.1:4280"),
        "Where the listener listens, or `off`. Beyond loopback without an auth string it serves only the two health paths.",
    ).flag("--listen").short_variable("EVENT_PERSISTER_LISTEN");
    HTTP_AUTH_STRING: Secret = Key::new(
        "http", "auth_string", None,
        "`user:password` that clients must send (Basic, or in the WebSocket's first message); guards all but the two health paths.",
    ).secret();
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
        "Request bodies that are being received, all together; beyond it requests get 503. Bounds memory under many large requests.",
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

    PIPELINE_WRITERS: NonZeroUsize = Key::new(
        "pipeline", "writers", Some("2"),
        "Connections that write, each on a thread of its own. More helps a database with cores to spare; SQLite writes one at a time.",
    ).flag("--writers").short_variable("EVENT_PERSISTER_WRITERS");
    PIPELINE_MAX_BYTES_IN_FLIGHT: Size = Key::new(
        "pipeline", "max_bytes_in_flight", Some("64MiB"),
        "Bytes of events between source and commit; the bound on memory. One event larger than this still passes, alone.",
    );
    PIPELINE_DRAIN_TIMEOUT: Duration = Key::new(
        "pipeline", "drain_timeout", Some("30s"),
        "How long a shutdown may take to write what is held; what is left then stays with its source. Keep it below your supervisor's kill time.",
    );

    BATCH_MAX_EVENTS: NonZeroUsize = Key::new(
        "batch", "max_events", Some("1000"),
        "Events in one transaction; more is faster up to a few thousand, and repeats more after a failure.",
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
        "trim", "batch_size", Some("500"),
        "Events deleted in one transaction; fewer lets writers in sooner, more finishes earlier.",
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
        let rows: Vec<String> = ALL
            .iter()
            .filter(|setting| !setting.hidden)
            .map(|setting| readme_row(setting))
            .collect();
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
