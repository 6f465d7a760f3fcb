//! What comes in by HTTP and WebSocket.

use std::sync::Arc;

use event_persister_actors::source::EventSource;
use event_persister_actors::source::http::{AuthString, EventRoutes, HttpSettings};
use event_persister_actors::source::intake::{self, IntakeSettings, IntakeSource};

use super::{clock, event_limits, retention};
use crate::config::Config;

/// The intake that the listener fills, as seen from each of its sides.
pub(crate) struct Intake {
    source: Arc<IntakeSource>,
    handle: intake::Intake,
    routes: EventRoutes,
}

/// What requests have to carry.
pub(crate) fn auth(config: &Config) -> Option<AuthString> {
    let secret = config.http.auth_string.as_ref()?;
    Some(AuthString::new(secret.reveal()))
}

/// An empty intake.
pub(crate) fn intake(config: &Config) -> Intake {
    let http = &config.http;
    let (source, handle) = IntakeSource::new(
        "http",
        IntakeSettings {
            max_events: http.max_waiting_events,
            max_bytes: http.max_waiting_bytes,
        },
    );
    let defaults = HttpSettings::default();
    let settings = HttpSettings {
        auth: auth(config),
        max_body_bytes: http.max_body_bytes,
        // A frame beyond its limit ends the connection, and the client sends it again for ever; an
        // event beyond its own becomes a dead letter. So a lower limit on events moves no frames.
        max_frame_bytes: http.max_event_bytes.max(defaults.max_frame_bytes),
        max_buffered_bytes: http.max_buffered_bytes,
        max_event_bytes: Some(http.max_event_bytes),
        retention: retention(config),
        request_timeout: http.request_timeout,
        body_timeout: http.body_timeout,
        ..defaults
    };
    Intake {
        routes: EventRoutes::new(handle.clone(), settings, event_limits(config), clock()),
        source,
        handle,
    }
}

impl Intake {
    /// The pipeline's side.
    pub(crate) fn source(&self) -> Arc<dyn EventSource> {
        Arc::clone(&self.source) as Arc<dyn EventSource>
    }

    /// The listener's side: `POST /api/events` and the WebSocket `/api/events/in`.
    pub(crate) fn routes(&self) -> EventRoutes {
        self.routes.clone()
    }

    /// What knows how much waits.
    pub(crate) fn handle(&self) -> intake::Intake {
        self.handle.clone()
    }

    /// Takes nothing more; what is here still becomes durable.
    pub(crate) fn stop_accepting(&self) {
        self.handle.stop_accepting();
    }
}
