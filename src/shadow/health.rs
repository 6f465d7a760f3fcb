//! How the shadow is doing, for the log and for whoever asks whether it is ready.

use std::error::Error;

use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::status::{Component, ComponentState, ComponentStatus, error_chain};

/// Something did not answer; it was noted and is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed;

#[derive(Debug, Clone)]
pub(crate) struct Health {
    bus: Component,
    group: Component,
    tables: Component,
}

impl Health {
    pub(crate) fn new() -> Self {
        Self {
            bus: Component::new("source.redis"),
            group: Component::new("group"),
            tables: Component::new("store"),
        }
    }

    pub(crate) fn bus_answered<T>(&self, answer: Result<T, impl Error>) -> Result<T, Failed> {
        noted(&self.bus, answer)
    }

    pub(crate) fn tables_answered<T>(&self, answer: Result<T, impl Error>) -> Result<T, Failed> {
        noted(&self.tables, answer)
    }

    pub(crate) fn group_is_there(&self, is_there: bool, name: &str) {
        if is_there {
            if self.group.succeeded().is_some() {
                log::info!("the consumer group {name} is there; what it acknowledges is compared");
            }
            return;
        }
        let what = format!(
            "there is no consumer group {name}: nobody persists this stream yet; start Prefect's \
             persister, or name its group (redis.group)"
        );
        if self.group.failed(what.clone(), SystemClock.now()) {
            log::warn!("{what}");
        }
    }

    /// All that works is worth nothing without the rest.
    pub(crate) fn is_ready(&self) -> bool {
        let mut components = self.components().into_iter();
        components.all(|component| component.state == ComponentState::Ok)
    }

    pub(crate) fn failure(&self) -> Option<String> {
        let failing = |component: &ComponentStatus| component.state == ComponentState::Failing;
        let failing = self.components().into_iter().find(failing)?;
        failing.last_error
    }

    pub(crate) fn components(&self) -> [ComponentStatus; 3] {
        [&self.bus, &self.group, &self.tables].map(Component::snapshot)
    }
}

/// The first failure and the end of failures are logged; between them it is only tried again.
fn noted<T>(component: &Component, answer: Result<T, impl Error>) -> Result<T, Failed> {
    match answer {
        Ok(answer) => {
            if component.succeeded().is_some() {
                log::info!("{} answers again", component.snapshot().name);
            }
            Ok(answer)
        }
        Err(error) => {
            let error = error_chain(&error);
            if component.failed(error.clone(), SystemClock.now()) {
                log::warn!("{error}");
            }
            Err(Failed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_ready_once_everything_has_answered() {
        let health = Health::new();
        let broken = || Err::<(), _>(std::io::Error::other("broken"));
        let well = || Ok::<(), std::io::Error>(());
        assert!(!health.is_ready() && health.failure().is_none());
        health.bus_answered(well()).unwrap();
        health.tables_answered(well()).unwrap();
        health.group_is_there(false, "g");
        assert!(!health.is_ready());
        assert!(health.failure().unwrap().contains("no consumer group g"));
        health.group_is_there(true, "g");
        assert!(health.is_ready());
        assert_eq!(health.tables_answered(broken()), Err(Failed));
        assert_eq!(health.failure().as_deref(), Some("broken"));
        health.tables_answered(well()).unwrap();
        assert!(health.is_ready());
    }
}
