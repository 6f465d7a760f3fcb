//! What the stores of one database that were opened together know of each other.

use std::sync::Arc;

use super::encoded::Prepared;
use super::rate::Rate;
use crate::store::lately::Writing;

/// Shared by them.
#[derive(Default)]
pub(super) struct Together {
    pub(super) prepared: Arc<Prepared>,
    /// What the batches of all of them tell.
    pub(super) writing: Writing,
    /// What all of them have stored.
    pub(super) rate: Rate,
}
