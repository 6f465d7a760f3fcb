//! The listener's numbers: what waits in the intake, and which requests were refused.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::middleware::Next;
use event_persister_actors::source::intake::IntakeUsage;
use prometheus::{IntCounterVec, Opts};

use super::looked_up::LookedUp;
use crate::wiring::IntakeHandle;

/// Counts requests that were refused, by the status of the answer.
#[derive(Clone)]
pub(crate) struct Refusals(IntCounterVec);

impl Refusals {
    /// What the listener answers; a status that is none of these counts as `other`.
    const STATUSES: [&str; 12] = [
        "400", "401", "403", "404", "405", "408", "413", "415", "422", "431", "500", "503",
    ];
    const OTHER: &str = "other";

    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let refused = IntCounterVec::new(
            Opts::new(
                "event_persister_http_refused_total",
                "Requests that were answered with an error, by its status; questions about \
                 health do not count.",
            ),
            &["status"],
        )?;
        for status in Self::STATUSES.into_iter().chain([Self::OTHER]) {
            refused.get_metric_with_label_values(&[status])?;
        }
        Ok(Self(refused))
    }

    pub(crate) async fn watch<B: MessageBody>(
        self,
        request: ServiceRequest,
        next: Next<B>,
    ) -> actix_web::Result<ServiceResponse<B>> {
        let about_health = matches!(request.path(), "/api/health" | "/api/ready");
        let answered = next.call(request).await;
        if !about_health {
            self.count(match &answered {
                Ok(response) => response.status(),
                Err(error) => error.as_response_error().status_code(),
            });
        }
        answered
    }

    fn count(&self, status: StatusCode) {
        if !status.is_client_error() && !status.is_server_error() {
            return;
        }
        let known = Self::STATUSES
            .into_iter()
            .find(|known| *known == status.as_str());
        let label = known.unwrap_or(Self::OTHER);
        self.0.with_label_values(&[label]).inc();
    }

    pub(crate) fn collector(&self) -> IntCounterVec {
        self.0.clone()
    }
}

pub(super) fn of_intake(intake: IntakeHandle) -> Result<LookedUp<IntakeUsage>, prometheus::Error> {
    LookedUp::new(move || intake.usage())
        .gauge(
            "event_persister_intake_events",
            "Events that came by HTTP or WebSocket and are not committed yet.",
            |usage| Some(usage.num_events as f64),
        )?
        .gauge(
            "event_persister_intake_bytes",
            "The bytes of the events that came by HTTP or WebSocket and are not committed yet.",
            |usage| Some(usage.num_bytes as f64),
        )
}

#[cfg(test)]
mod tests {
    use prometheus::core::Collector as _;

    use super::*;

    #[test]
    fn only_errors_count_and_no_status_is_a_label_of_its_own() {
        let refusals = Refusals::new().unwrap();
        for status in [204, 101, 200, 302, 422, 422, 503, 418, 599] {
            refusals.count(StatusCode::from_u16(status).unwrap());
        }
        let count = |status| refusals.0.with_label_values(&[status]).get();
        assert_eq!(
            ["422", "503", "401", Refusals::OTHER].map(count),
            [2, 1, 0, 2]
        );
        let num_series = refusals.0.collect()[0].get_metric().len();
        assert_eq!(num_series, Refusals::STATUSES.len() + 1);
    }
}
