//! What can be set, section by section, with right values only.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use super::database_url::DatabaseUrl;
use super::redis_url::RedisAddress;
use super::value::{Listen, LogFormat, Overrides, Secret, TlsMode};

/// `[database]`
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) url: DatabaseUrl,
    /// Whether Prefect's environment named it: then Prefect's own migrations make its tables.
    pub(crate) is_prefects: bool,
    pub(crate) busy_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) statement_timeout: Duration,
    pub(crate) lock_timeout: Duration,
    pub(crate) search_path: Option<String>,
    pub(crate) application_name: String,
    pub(crate) prepared_statements: bool,
    pub(crate) tls: Tls,
}

/// `[database] tls…`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) mode: TlsMode,
    pub(crate) check_hostname: bool,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) cert_file: Option<PathBuf>,
    pub(crate) key_file: Option<PathBuf>,
}

/// `[redis]`
#[derive(Debug)]
pub(crate) struct Redis {
    pub(crate) address: RedisAddress,
    pub(crate) stream: String,
    pub(crate) group: String,
    pub(crate) claim_idle: Duration,
    pub(crate) guard: bool,
    pub(crate) guard_group: String,
    pub(crate) guard_max_entries: NonZeroU64,
    pub(crate) trim_stream: bool,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) certificate: Option<CertificateFiles>,
}

/// `[http]`
#[derive(Debug)]
pub(crate) struct Http {
    pub(crate) listen: Listen,
    pub(crate) auth_string: Option<Secret>,
    pub(crate) tls: Option<CertificateFiles>,
    pub(crate) max_connections: NonZeroUsize,
    pub(crate) idle_timeout: Duration,
    pub(crate) body_timeout: Duration,
    pub(crate) max_body_bytes: NonZeroUsize,
    pub(crate) max_event_bytes: NonZeroUsize,
    pub(crate) max_buffered_bytes: NonZeroUsize,
    pub(crate) request_timeout: Duration,
    pub(crate) max_waiting_events: NonZeroUsize,
    pub(crate) max_waiting_bytes: NonZeroUsize,
}

/// A certificate and its key, both as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// `[pipeline]`
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) writers: NonZeroUsize,
    pub(crate) max_bytes_in_flight: NonZeroUsize,
    pub(crate) drain_timeout: Duration,
}

/// `[batch]`
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) max_events: NonZeroUsize,
    pub(crate) max_bytes: NonZeroUsize,
    pub(crate) linger: Duration,
    pub(crate) max_age: Duration,
}

/// `[trim]`
#[derive(Debug)]
pub(crate) struct Trim {
    /// `None` when it is off.
    pub(crate) every: Option<Duration>,
    pub(crate) retention: Duration,
    pub(crate) overrides: Overrides,
    pub(crate) batch_size: NonZeroUsize,
}

/// `[events]`
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) max_labels_per_resource: NonZeroUsize,
    pub(crate) max_related_resources: NonZeroUsize,
    pub(crate) max_event_name_length: NonZeroUsize,
}

/// `[log]`
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    pub(crate) level: String,
}
