//! From what the layers say to right values.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::database_url::{DatabaseUrl, Parameters};
use super::error::ConfigError;
use super::layer::{Layer, Origin};
use super::redis_url::RedisUrl;
use super::settings::{self, ALL, Key, Setting};
use super::value::{Input, NonZeroDuration, Overrides, Secret, SettingValue, Size, Toggle};
use super::{
    Batch, CertificateFiles, Config, Database, Effective, Events, Http, Log, Pipeline, Prefect,
    Redis, Tls, Trim,
};

/// From the one that counts most to the one that counts least.
pub(super) struct Layers(pub(super) Vec<Layer>);

impl Layers {
    fn find(&self, setting: &Setting) -> Option<(Input, Origin)> {
        self.0
            .iter()
            .find_map(|layer| layer.get(setting).cloned())
            .or_else(|| {
                let default = setting.default?;
                Some((Input::Text(default.to_owned()), Origin::Default))
            })
    }

    /// Shows the values that count; checks also those that others hide, since they would count
    /// once the other is gone.
    pub(super) fn effective(&self) -> Result<Vec<Effective>, ConfigError> {
        let mut effective = Vec::new();
        let mut errors = ConfigError::default();
        for setting in ALL {
            for (input, origin) in self.0.iter().filter_map(|layer| layer.get(setting)) {
                if let Err(expected) = (setting.show)(input) {
                    errors.add(wrong_value(setting, input, origin, &expected));
                }
            }
            let found = self.find(setting);
            effective.push(Effective {
                name: setting.name(),
                value: found
                    .as_ref()
                    .and_then(|(input, _)| (setting.show)(input).ok()),
                origin: found.map_or(Origin::Default, |(_, origin)| origin),
                variable: setting.variable(),
                help: setting.help,
            });
        }
        errors.into_result().map(|()| effective)
    }

    fn get<T: SettingValue>(&self, key: &Key<T>) -> Result<T, ConfigError> {
        self.get_optional(key)?
            .ok_or_else(|| ConfigError::new(format!("{} has no value; set it", key.setting.name())))
    }

    fn get_optional<T: SettingValue>(&self, key: &Key<T>) -> Result<Option<T>, ConfigError> {
        self.find(&key.setting)
            .map(|(input, origin)| {
                T::read(&input).map_err(|expected| {
                    ConfigError::new(wrong_value(&key.setting, &input, &origin, &expected))
                })
            })
            .transpose()
    }

    fn duration(&self, key: &Key<NonZeroDuration>) -> Result<Duration, ConfigError> {
        self.get(key).map(|duration| duration.0)
    }

    fn size(&self, key: &Key<Size>) -> Result<NonZeroUsize, ConfigError> {
        self.get(key).map(|size| size.0)
    }

    pub(super) fn typed(
        &self,
        mut effective: Vec<Effective>,
        prefect: Prefect,
    ) -> Result<Config, ConfigError> {
        let retention = self.duration(&settings::TRIM_RETENTION)?;
        let database = self.database(&mut effective)?;
        let max_events = self.max_events(&database.url, &mut effective)?;
        Ok(Config {
            database,
            redis: self.redis(&mut effective)?,
            http: self.http()?,
            pipeline: Pipeline {
                writers: self.get(&settings::PIPELINE_WRITERS)?.0,
                max_bytes_in_flight: self.size(&settings::PIPELINE_MAX_BYTES_IN_FLIGHT)?,
                drain_timeout: self.get(&settings::PIPELINE_DRAIN_TIMEOUT)?,
            },
            batch: Batch {
                max_events,
                max_bytes: self.size(&settings::BATCH_MAX_BYTES)?,
                linger: self.get(&settings::BATCH_LINGER)?,
                max_age: self.duration(&settings::BATCH_MAX_AGE)?,
            },
            trim: Trim {
                every: self.get(&settings::TRIM_EVERY)?.0,
                retention,
                overrides: self.overrides(retention, &mut effective)?,
                batch_size: self.get(&settings::TRIM_BATCH_SIZE)?,
            },
            events: Events {
                max_labels_per_resource: self.get(&settings::EVENTS_MAX_LABELS_PER_RESOURCE)?,
                max_related_resources: self.get(&settings::EVENTS_MAX_RELATED_RESOURCES)?,
                max_event_name_length: self.get(&settings::EVENTS_MAX_EVENT_NAME_LENGTH)?,
            },
            log: Log {
                format: self.get(&settings::LOG_FORMAT)?,
                level: self.get(&settings::LOG_LEVEL)?.0,
            },
            effective,
            prefect,
        })
    }

    fn origin(&self, setting: &Setting) -> Origin {
        self.find(setting)
            .map_or(Origin::Default, |(_, origin)| origin)
    }

    fn database(&self, effective: &mut [Effective]) -> Result<Database, ConfigError> {
        let url = self.get(&settings::DATABASE_URL)?;
        let said = match &url {
            DatabaseUrl::Sqlite { .. } => Parameters::default(),
            DatabaseUrl::Postgres { url, .. } => url.parameters.clone(),
        };
        let place = &settings::DATABASE_URL.setting;
        let mut get = Merge {
            layers: self,
            url: place,
            effective,
        };
        let database = Database {
            is_prefects: matches!(self.origin(place), Origin::Prefect(_)),
            url,
            busy_timeout: self.duration(&settings::DATABASE_BUSY_TIMEOUT)?,
            connect_timeout: get
                .required(
                    &settings::DATABASE_CONNECT_TIMEOUT,
                    said.connect_timeout.map(NonZeroDuration),
                )?
                .0,
            statement_timeout: self.duration(&settings::DATABASE_STATEMENT_TIMEOUT)?,
            lock_timeout: self.duration(&settings::DATABASE_LOCK_TIMEOUT)?,
            search_path: self.get_optional(&settings::DATABASE_SEARCH_PATH)?,
            application_name: get
                .required(&settings::DATABASE_APPLICATION_NAME, said.application_name)?,
            prepared_statements: get
                .required(
                    &settings::DATABASE_PREPARED_STATEMENTS,
                    said.prepared_statements.map(Toggle),
                )?
                .0,
            tls: Tls {
                mode: get.required(&settings::DATABASE_TLS, said.tls)?,
                check_hostname: self.get(&settings::DATABASE_TLS_CHECK_HOSTNAME)?.0,
                ca_file: get.optional(&settings::DATABASE_TLS_CA_FILE, said.tls_ca_file)?,
                cert_file: get.optional(&settings::DATABASE_TLS_CERT_FILE, said.tls_cert_file)?,
                key_file: get.optional(&settings::DATABASE_TLS_KEY_FILE, said.tls_key_file)?,
            },
        };
        if database.tls.cert_file.is_some() != database.tls.key_file.is_some() {
            return Err(ConfigError::new(
                "database.tls_cert_file and database.tls_key_file are used together; set both or \
                 neither",
            ));
        }
        Ok(database)
    }

    fn redis(&self, effective: &mut [Effective]) -> Result<Option<Redis>, ConfigError> {
        let Some(RedisUrl::At(address)) = self.get_optional(&settings::REDIS_URL)? else {
            return Ok(None);
        };
        let mut get = Merge {
            layers: self,
            url: &settings::REDIS_URL.setting,
            effective,
        };
        let [cert, key] = address.certificate.clone();
        let cert = get.optional(&settings::REDIS_CERT_FILE, cert)?;
        let key = get.optional(&settings::REDIS_KEY_FILE, key)?;
        let ca_file = get.optional(&settings::REDIS_CA_FILE, address.ca_file.clone())?;
        let group = self.get(&settings::REDIS_GROUP)?;
        Ok(Some(Redis {
            ca_file,
            certificate: certificate(
                [&settings::REDIS_CERT_FILE, &settings::REDIS_KEY_FILE],
                [cert, key],
            )?,
            address,
            stream: self.get(&settings::REDIS_STREAM)?,
            guard_group: self.guard_group(&group, effective)?,
            group,
            claim_idle: self.duration(&settings::REDIS_CLAIM_IDLE)?,
            guard: self.get(&settings::REDIS_GUARD)?.0,
            guard_max_entries: self.get(&settings::REDIS_GUARD_MAX_ENTRIES)?,
            trim_stream: self.get(&settings::REDIS_TRIM_STREAM)?.0,
        }))
    }

    /// One for each group: two groups that moved the same guard would let others trim what the slower
    /// of them has not committed.
    fn guard_group(&self, group: &str, effective: &mut [Effective]) -> Result<String, ConfigError> {
        let setting = &settings::REDIS_GUARD_GROUP.setting;
        if self.origin(setting) != Origin::Default {
            return self.get(&settings::REDIS_GUARD_GROUP);
        }
        let name = format!("{group}-guard");
        correct(effective, setting, name.clone(), Origin::Default);
        Ok(name)
    }

    /// SQLite gains more from larger batches: each writes the pages that it touched once. Those of a
    /// quarter more events still fit into its cache, and into 64 MiB all in all.
    fn max_events(
        &self,
        database: &DatabaseUrl,
        effective: &mut [Effective],
    ) -> Result<NonZeroUsize, ConfigError> {
        const ON_SQLITE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1_249);
        let setting = &settings::BATCH_MAX_EVENTS.setting;
        if self.origin(setting) != Origin::Default
            || !matches!(database, DatabaseUrl::Sqlite { .. })
        {
            return self.get(&settings::BATCH_MAX_EVENTS);
        }
        correct(effective, setting, ON_SQLITE.to_string(), Origin::Default);
        Ok(ON_SQLITE)
    }

    /// Whoever shortens retention means all events: a default override must not keep some longer.
    fn overrides(
        &self,
        retention: Duration,
        effective: &mut [Effective],
    ) -> Result<Overrides, ConfigError> {
        let mut overrides = self.get(&settings::TRIM_OVERRIDES)?;
        let setting = &settings::TRIM_OVERRIDES.setting;
        if self.origin(setting) == Origin::Default {
            for kept in overrides.0.values_mut() {
                *kept = retention.min(*kept);
            }
            correct(effective, setting, overrides.show(), Origin::Default);
        }
        Ok(overrides)
    }

    /// A client sends a name and a password, which are told apart by the colon between them. Prefect's
    /// own setting is taken as it is: its clients send the same text, whatever that is.
    fn auth_string(&self) -> Result<Option<Secret>, ConfigError> {
        let secret = self.get_optional(&settings::HTTP_AUTH_STRING)?;
        let origin = self.origin(&settings::HTTP_AUTH_STRING.setting);
        let has_colon = |secret: &Secret| secret.reveal().contains(':');
        if secret.as_ref().is_none_or(has_colon) || matches!(origin, Origin::Prefect(_)) {
            return Ok(secret);
        }
        Err(ConfigError::new(format!(
            "{origin}: wrong value for http.auth_string: there is no colon in it; give name and password \
             as `user:password`"
        )))
    }

    fn http(&self) -> Result<Http, ConfigError> {
        let cert = self.get_optional(&settings::HTTP_TLS_CERT_FILE)?;
        let key = self.get_optional(&settings::HTTP_TLS_KEY_FILE)?;
        Ok(Http {
            listen: self.get(&settings::HTTP_LISTEN)?,
            auth_string: self.auth_string()?,
            tls: certificate(
                [&settings::HTTP_TLS_CERT_FILE, &settings::HTTP_TLS_KEY_FILE],
                [cert, key],
            )?,
            max_connections: self.get(&settings::HTTP_MAX_CONNECTIONS)?,
            idle_timeout: self.duration(&settings::HTTP_IDLE_TIMEOUT)?,
            body_timeout: self.duration(&settings::HTTP_BODY_TIMEOUT)?,
            max_body_bytes: self.size(&settings::HTTP_MAX_BODY_BYTES)?,
            max_event_bytes: self.size(&settings::HTTP_MAX_EVENT_BYTES)?,
            max_buffered_bytes: self.size(&settings::HTTP_MAX_BUFFERED_BYTES)?,
            request_timeout: self.duration(&settings::HTTP_REQUEST_TIMEOUT)?,
            max_waiting_events: self.get(&settings::HTTP_MAX_WAITING_EVENTS)?,
            max_waiting_bytes: self.size(&settings::HTTP_MAX_WAITING_BYTES)?,
        })
    }
}

/// Two files of which neither is of use without the other.
fn certificate(
    settings: [&Key<PathBuf>; 2],
    files: [Option<PathBuf>; 2],
) -> Result<Option<CertificateFiles>, ConfigError> {
    match files.into() {
        (Some(cert), Some(key)) => Ok(Some(CertificateFiles { cert, key })),
        (None, None) => Ok(None),
        _ => {
            let [cert, key] = settings.map(|key| key.setting.name());
            Err(ConfigError::new(format!(
                "{cert} and {key} are used together; set both or neither"
            )))
        }
    }
}

/// Shows what is in effect where it is not what a layer says.
fn correct(effective: &mut [Effective], setting: &Setting, value: String, origin: Origin) {
    let name = setting.name();
    for shown in effective.iter_mut().filter(|shown| shown.name == name) {
        shown.value = Some(value.clone());
        shown.origin = origin.clone();
    }
}

/// Reads settings that a URL may answer as well; their own answer comes first.
struct Merge<'a> {
    layers: &'a Layers,
    url: &'static Setting,
    effective: &'a mut [Effective],
}

impl Merge<'_> {
    fn optional<T: SettingValue>(
        &mut self,
        key: &Key<T>,
        of_url: Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match of_url {
            Some(value) if self.layers.origin(&key.setting) == Origin::Default => {
                let origin = self.layers.origin(self.url);
                correct(self.effective, &key.setting, value.show(), origin);
                Ok(Some(value))
            }
            _ => self.layers.get_optional(key),
        }
    }

    fn required<T: SettingValue>(
        &mut self,
        key: &Key<T>,
        of_url: Option<T>,
    ) -> Result<T, ConfigError> {
        self.optional(key, of_url)?
            .map_or_else(|| self.layers.get(key), Ok)
    }
}

fn wrong_value(setting: &Setting, input: &Input, origin: &Origin, expected: &str) -> String {
    let name = setting.name();
    // A file that was meant for something else may hold any secret.
    if setting.secret || matches!(origin, Origin::SecretFile { .. }) {
        format!("{origin}: wrong value for {name}: {expected}")
    } else {
        format!(
            "{origin}: {} is not right for {name}: {expected}",
            input.quote()
        )
    }
}
