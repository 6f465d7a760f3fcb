//! What end-to-end tests need: the binary in a folder of its own, a served process, its database as
//! somebody else sees it, events, a WebSocket client, and servers that are thrown away.

pub(crate) mod abuse;
pub(crate) mod binary;
pub(crate) mod browser;
#[cfg(feature = "service-tests")]
pub(crate) mod bus;
pub(crate) mod certificates;
pub(crate) mod client;
pub(crate) mod database;
pub(crate) mod events;
#[cfg(feature = "service-tests")]
pub(crate) mod logs;
pub(crate) mod metrics;
#[cfg(all(feature = "service-tests", feature = "nats"))]
pub(crate) mod nats;
#[cfg(all(feature = "service-tests", feature = "nats"))]
pub(crate) mod network;
#[cfg(feature = "service-tests")]
pub(crate) mod ports;
#[cfg(feature = "service-tests")]
pub(crate) mod postgres;
#[cfg(feature = "service-tests")]
pub(crate) mod proxy;
#[cfg(feature = "service-tests")]
pub(crate) mod redis;
#[cfg(feature = "service-tests")]
pub(crate) mod sentinels;
pub(crate) mod server;
pub(crate) mod socket;
#[cfg(feature = "service-tests")]
pub(crate) mod stored;
pub(crate) mod tls;
pub(crate) mod wait;
