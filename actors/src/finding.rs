//! The findings of a check that looks for trouble before it comes.

use std::error::Error;

use serde::Serialize;
use strum::AsRefStr;

use crate::status::error_chain;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, AsRefStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Severity {
    Ok,
    Warning,
    /// It does not work, or what is acknowledged, unread or stored may be lost.
    Error,
}

/// One thing that was looked at. Holds no secrets and no payloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check, such as `redis.eviction`: for machines, and the same in every version.
    pub id: &'static str,
    pub severity: Severity,
    pub what: String,
    /// The remedy; `None` where nothing is to be done.
    pub remedy: Option<String>,
}

impl Finding {
    pub fn ok(id: &'static str, what: impl Into<String>) -> Self {
        Self {
            id,
            severity: Severity::Ok,
            what: what.into(),
            remedy: None,
        }
    }

    pub fn warning(id: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::bad(Severity::Warning, id, what, remedy)
    }

    pub fn error(id: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::bad(Severity::Error, id, what, remedy)
    }

    pub fn bad(
        severity: Severity,
        id: &'static str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            id,
            severity,
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }

    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn of_newer_migrations(id: &'static str, newer: &[String]) -> Self {
        if newer.is_empty() {
            return Self::ok(id, "no newer version of event-persister has been here");
        }
        Self::warning(
            id,
            format!(
                "a newer version of event-persister has changed the tables ({})",
                newer.join(", ")
            ),
            "upgrade event-persister to that version, everywhere",
        )
    }

    /// What an error of a port says: these tell what failed, a colon, and what to do about it.
    pub fn of_error(id: &'static str, error: &dyn Error) -> Self {
        let text = error.to_string();
        let (what, remedy) = text
            .split_once(": ")
            .unwrap_or((&text, "see what it says, and look again"));
        let what = match error.source() {
            None => what.to_owned(),
            Some(cause) => format!("{what} ({})", error_chain(cause)),
        };
        Self::error(id, what, remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot write to it: make room")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn an_error_tells_what_failed_and_what_to_do() {
        let error = Outer(std::io::Error::other("no space"));
        assert_eq!(
            Finding::of_error("x", &error),
            Finding::error("x", "cannot write to it (no space)", "make room")
        );
    }
}
