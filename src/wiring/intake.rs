//! What comes in by HTTP and WebSocket.

use std::sync::Arc;

use event_persister_actors::source::EventSource;
use event_persister_actors::source::http::{EventRoutes, HttpSettings};
use event_persister_actors::source::intake::{self, IntakeSource};

use super::clock;
use crate::config::Config;
use crate::http::Publish;

/// The intake that the listener fills, as seen from each of its sides.
pub(crate) struct Intake {
    pub(crate) source: Arc<dyn EventSource>,
    /// Knows how much waits, and can be told to take nothing more.
    pub(crate) handle: intake::Intake,
    /// The listener's side: `POST /api/events` and the WebSocket `/api/events/in`.
    pub(crate) routes: EventRoutes,
}

pub(crate) fn intake(config: &Config) -> Intake {
    let (source, handle) = IntakeSource::new("http", config.http.intake);
    let routes = config.http.routes.clone();
    let settings = HttpSettings {
        // A frame beyond its limit ends the connection, and the client sends it again for ever; an
        // event beyond its own becomes a dead letter. So a lower limit on events moves no frames.
        max_frame_bytes: routes.max_event_bytes.max(routes.max_frame_bytes),
        retention: match config.http.listener.publish {
            // The services that store it have one of their own.
            Publish::Only => None,
            Publish::On | Publish::Off => config.pipeline.retention.clone(),
        },
        keeps_letters: config.http.listener.publish == Publish::Off,
        ..routes
    };
    let limits = config.events.clone();
    Intake {
        routes: EventRoutes::new(handle.clone(), settings, limits, clock()),
        source,
        handle,
    }
}
