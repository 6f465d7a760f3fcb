//! The sentinels' message that there is another master: it is asked for at once, instead of at the next turn.
//!
//! Nothing relies on it. A user may not be allowed to subscribe, and a connection may be gone without a sign; then the
//! next turn finds the new master half a second later.

use std::sync::Weak;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use redis::RedisResult;
use redis::aio::PubSub;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::source::redis::connection::greeting;
use crate::source::redis::failure::{self, timed_out};
use crate::source::redis::member::Member;
use crate::source::redis::reach::reach;

use super::{ANSWERS_WITHIN, within};

const CHANNEL: &str = "+switch-master";

/// Between two tries to subscribe.
const RETRY: Duration = Duration::from_secs(10);

/// A connection that was silent for so long is tried.
const PING_AFTER: Duration = Duration::from_secs(30);

/// Listens to all listed sentinels until nobody needs it any more.
pub(in crate::source::redis) async fn listen(member: &Weak<Member>, hint: &Notify) {
    let num = member.upgrade().and_then(|member| {
        let watch = member.connections.watch.as_ref()?;
        Some(watch.sentinels.members.len())
    });
    let listening = (0..num.unwrap_or_default()).map(|index| listen_to(member, index, hint));
    join_all(listening).await;
}

async fn listen_to(member: &Weak<Member>, index: usize, hint: &Notify) {
    loop {
        match hear(member, index, hint).await {
            Ok(()) => return,
            Err(error) if failure::code(&error).as_deref() == Some("NOPERM") => {
                log::debug!("a sentinel does not let us subscribe: {error}");
                return;
            }
            Err(_) => sleep(RETRY).await,
        }
    }
}

/// Passes on what one of them says; returns without an error when nobody needs it any more.
async fn hear(member: &Weak<Member>, index: usize, hint: &Notify) -> RedisResult<()> {
    let (settings, sentinels) = {
        let Some(member) = member.upgrade() else {
            return Ok(());
        };
        let Some(watch) = &member.connections.watch else {
            return Ok(());
        };
        (watch.settings.clone(), watch.sentinels.clone())
    };
    let Some((host, port)) = sentinels.members.get(index) else {
        return Ok(());
    };
    let subscribe = |stream| async {
        let mut subscribed = PubSub::new(&greeting(sentinels.login(), 0), stream).await?;
        subscribed.subscribe(CHANNEL).await?;
        Ok(subscribed)
    };
    let subscribed = reach(&settings, host, *port, ANSWERS_WITHIN, subscribe).await?;
    let (mut sink, mut messages) = subscribed.split();
    loop {
        let heard = timeout(PING_AFTER, messages.next()).await;
        if member.strong_count() == 0 {
            return Ok(());
        }
        match heard {
            Ok(Some(_)) => hint.notify_one(),
            Ok(None) => return Err(timed_out("the connection is gone")),
            Err(_) => drop(within(sink.ping::<redis::Value>()).await?),
        }
    }
}
