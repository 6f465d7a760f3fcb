//! Whether the next retention pass would wait for a person.

use event_persister_actors::status::error_chain;

use super::within;
use crate::config::Config;
use crate::wiring::{self, Finding};

pub(super) async fn judge(config: &Config) -> Option<Finding> {
    const ID: &str = "retention.pass";
    config.trim.every?;
    let looked = async {
        let looked = wiring::look_at_retention(config).await;
        looked.map_err(|error| error_chain(error.as_ref()))
    };
    match within(looked).await {
        Ok(None) => Some(Finding::ok(ID, "the next pass waits for nobody")),
        Ok(Some(held_back)) => Some(Finding::warning(
            ID,
            held_back.to_string(),
            "if the clock is right, run `event-persister trim --yes` once; if it is not, set it",
        )),
        Err(error) => {
            // The other checks tell what stands in the way.
            log::debug!("cannot look at retention error={error}");
            None
        }
    }
}
