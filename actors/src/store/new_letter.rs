//! The dead letters of a batch, in either database.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::Stage;
use crate::delivery::{Content, Entry};

pub(super) struct NewLetter<'a> {
    pub(super) entry: &'a Entry,
    pub(super) stage: Stage,
    pub(super) reason: &'a str,
    /// The database's own, where the database refused it.
    pub(super) code: Option<&'a str>,
    pub(super) raw_hash: [u8; 32],
}

impl<'a> NewLetter<'a> {
    pub(super) fn refused(entry: &'a Entry, reason: &'a str, code: Option<&'a str>) -> Self {
        Self {
            entry,
            stage: Stage::Store,
            reason,
            code,
            raw_hash: Sha256::digest(entry.raw()).into(),
        }
    }

    pub(super) fn rejected(entries: &'a [Arc<Entry>]) -> impl Iterator<Item = Self> {
        entries.iter().filter_map(|entry| match &entry.content {
            Content::Event(_) => None,
            Content::Rejected(rejection) => Some(Self {
                stage: Stage::Parse,
                ..Self::refused(entry, &rejection.reason, None)
            }),
        })
    }
}
