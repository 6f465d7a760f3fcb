//! Whether the next retention pass would wait for a person.

use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::trim::cutoffs;

use super::within;
use crate::config::Config;
use crate::wiring::{self, Finding, Missing};

pub(super) async fn judge(config: &Config) -> Option<Finding> {
    const ID: &str = "retention.pass";
    config.trim.every?;
    // A pass that cannot be made says so itself.
    let cutoffs = cutoffs(&config.trim, SystemClock.now());
    let held_back = match cutoffs {
        Ok(cutoffs) if wiring::not_there_yet(config).is_none() => {
            let store = wiring::open_store(config, Missing::Ignore)();
            let caution = wiring::caution(config);
            let looked = within(caution.look(store.as_ref(), &cutoffs)).await;
            wiring::close(store.as_ref()).await;
            match looked {
                Ok(looked) => looked.err(),
                Err(error) => {
                    // The other checks tell what stands in the way.
                    log::debug!("cannot look at retention error={error}");
                    return None;
                }
            }
        }
        _ => None,
    };
    Some(match held_back {
        None => Finding::ok(ID, "the next pass waits for nobody"),
        Some(held_back) => Finding::warning(
            ID,
            held_back.to_string(),
            "if the clock is right, run `event-persister trim --yes` once; if it is not, set it",
        ),
    })
}
