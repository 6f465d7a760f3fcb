//! What end-to-end tests need: the binary in a folder of its own, a served process, its database as
//! somebody else sees it, events, and a WebSocket client.

pub(crate) mod binary;
pub(crate) mod database;
pub(crate) mod events;
pub(crate) mod server;
pub(crate) mod socket;
