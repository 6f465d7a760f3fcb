//! What the network does to whoever speaks through a proxy.

use std::time::Duration;

use tokio::time::sleep;

use super::case::for_seconds;
use crate::support::proxy::Proxy;

/// Cuts all connections, twenty times.
pub(crate) async fn cuts_at_random_moments(proxy: &Proxy) {
    for _ in 0..20 {
        sleep(Duration::from_millis(fastrand::u64(0..150))).await;
        proxy.cut();
    }
}

/// Lets nothing through for 30 s, and then cuts.
pub(crate) async fn swallows_everything(proxy: &Proxy) {
    proxy.stall();
    for_seconds(30).await;
    proxy.refuse();
    proxy.pass();
}
