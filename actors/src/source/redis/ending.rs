//! The end of the reads: whatever a read that is under way takes is heard of, and soon.
//!
//! A read that waits in Redis cannot be taken back: what it takes in the meantime would be pending
//! for a consumer that is gone. So its answer is awaited, and Redis is told to answer at once.

use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::select;
use redis::RedisResult;
use tokio::time::sleep;

use super::shared::Shared;

/// How often Redis is told, since the read may still have been on its way there the last time.
const UNBLOCK_EVERY: Duration = Duration::from_millis(20);

impl Shared {
    /// Waits for a change, such as the end of the fetch that is under way, and hastens that.
    pub(super) async fn hastened_change(&self) {
        let changed = pin!(self.changed.notified());
        select(changed, pin!(self.unblock_reads())).await;
    }

    /// A user may be forbidden to do this, and Redis may be away: then the read takes its time.
    async fn unblock_reads(&self) {
        while self.unblock_read().await.is_ok() {
            sleep(UNBLOCK_EVERY).await;
        }
        pending().await
    }

    async fn unblock_read(&self) -> RedisResult<()> {
        let Some(id) = self.connections.id_for_reads() else {
            return Ok(());
        };
        self.commands().await?.unblock(id).await
    }
}
