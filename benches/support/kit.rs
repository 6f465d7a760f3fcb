//! What the benchmarks of the way from the bus to PostgreSQL share: servers, load, contestants, tables.
//!
//! The servers are plain ones: PostgreSQL as `initdb` leaves it, apart from where it listens, the
//! number of connections and TLS, which no contestant uses. So fsync is on, and a commit is one that
//! survives a power cut on the disk of the temporary folder (`TMPDIR`). Redis does not save its data,
//! so that no snapshot of it falls into one turn and not into the other. NATS keeps its streams in files, and has them
//! on the disk every two minutes, as it does by itself.

#[path = "bus.rs"]
pub(crate) mod bus;
#[path = "../../tests/it/support/certificates.rs"]
pub(crate) mod certificates;
#[path = "copy.rs"]
pub(crate) mod copy;
#[path = "fill.rs"]
pub(crate) mod fill;
#[path = "generated.rs"]
pub(crate) mod generated;
#[path = "load.rs"]
pub(crate) mod load;
#[cfg(feature = "nats")]
#[path = "../../tests/it/support/nats.rs"]
pub(crate) mod nats;
#[cfg(feature = "nats")]
#[path = "../../tests/it/support/network.rs"]
pub(crate) mod network;
#[path = "persister.rs"]
pub(crate) mod persister;
#[path = "../../tests/it/support/ports.rs"]
pub(crate) mod ports;
#[path = "../../tests/it/support/postgres.rs"]
pub(crate) mod postgres;
#[path = "prefect.rs"]
pub(crate) mod prefect;
#[path = "../../tests/it/support/redis.rs"]
pub(crate) mod redis;
#[path = "reference.rs"]
pub(crate) mod reference;
#[path = "servers.rs"]
pub(crate) mod servers;
#[path = "settings.rs"]
pub(crate) mod settings;
#[path = "stats.rs"]
pub(crate) mod stats;
#[path = "usage.rs"]
pub(crate) mod usage;
#[path = "visible.rs"]
pub(crate) mod visible;
#[path = "watch.rs"]
pub(crate) mod watch;
