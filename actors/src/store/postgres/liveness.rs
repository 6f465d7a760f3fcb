//! Whether a server is still there while it works for us.
//!
//! A server that hangs, or that the network lost, says nothing, and neither does one that has much to do. So
//! while a call takes long, somebody else logs in there. A server that does not answer that either is given
//! up, long before `statement_timeout` has passed twice. Any answer counts, a refusal too: work on a live
//! server is never cut.

use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::time::{Instant, sleep_until};

use super::failure::Failure;
use super::reach::{self, Resolved};
use super::settings::PostgresSettings;

/// So long nobody has heard of the server before it is asked. With the limit of a connection this is how late
/// it is given up. Shorter asks servers that only have much to do.
const ASK_AFTER: Duration = Duration::from_secs(1);

/// Between two questions during the same call: each costs the server a login.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// What `work` at a server gives, unless the server falls silent.
pub(super) async fn while_heard_of<T>(
    settings: &PostgresSettings,
    server: &Resolved,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    match select(pin!(work), pin!(silence(settings, server))).await {
        Either::Left((worked, _)) => Ok(worked),
        Either::Right((lasted, _)) => {
            settings.servers.found_silent(server);
            Err(Failure::Silent {
                server: server.clone(),
                lasted,
            })
        }
    }
}

/// Ends once the server is silent; how long it has been.
async fn silence(settings: &PostgresSettings, server: &Resolved) -> Duration {
    let mut heard = Instant::now();
    let mut patience = ASK_AFTER;
    loop {
        sleep_until(heard + patience).await;
        // What others hear of it is as good as an answer.
        let others = settings.servers.heard_at(server);
        if let Some(at) = others.filter(|at| *at > heard) {
            heard = at;
            continue;
        }
        // Boxed: it is rare, and would make every call large.
        if Box::pin(reach::is_silent(settings, server)).await {
            return heard.elapsed();
        }
        heard = Instant::now();
        patience = ASK_AGAIN_AFTER;
    }
}
