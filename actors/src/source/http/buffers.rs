//! The bound on the memory for bodies and messages while they arrive.
//!
//! Room is taken as bytes come, never for an announced length. Messages that each hold a part of
//! the room and wait for more would wait for each other. So as much as the largest message takes is
//! kept apart as a *reserve*, and lent to one message at a time: that one comes to its end, and the
//! next gets the reserve.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};

/// Every connection may hold so much without asking. Larger lets larger messages through while the
/// room is taken; smaller saves memory.
pub(super) const SMALL_BYTES: usize = 16 * 1024;

/// How long the rest of a large message may keep still while others wait for room: on a bad line
/// some seconds may pass without a byte.
const CROWDED_STALL: Duration = Duration::from_secs(5);

pub(super) struct Buffers {
    common: Arc<Semaphore>,
    common_bytes: usize,
    reserve: Arc<Semaphore>,
    waiting: watch::Sender<usize>,
    /// Somebody was refused for want of room, who cannot wait but may come again.
    refused: Notify,
}

impl Buffers {
    /// Room for this many bytes, of which the largest message may take so many.
    pub(super) fn new(num_bytes: usize, largest: usize) -> Arc<Self> {
        let common_bytes = num_bytes
            .saturating_sub(largest)
            .min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            common: Arc::new(Semaphore::new(common_bytes)),
            common_bytes,
            reserve: Arc::new(Semaphore::new(1)),
            waiting: watch::Sender::new(0),
            refused: Notify::new(),
        })
    }

    /// Resolves when somebody waits for room, or is refused for want of it.
    async fn wanted(&self) {
        let mut waiting = self.waiting.subscribe();
        tokio::select! {
            // The sender lives as long as `self`.
            Ok(_) = waiting.wait_for(|num| *num > 0) => {}
            () = self.refused.notified() => {}
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoom {
    Now,
    /// There would be none if nobody else were there.
    Ever,
}

/// The part of the room that one message or body has; given back when dropped.
pub(super) struct Share {
    buffers: Arc<Buffers>,
    num_bytes: usize,
    common: Option<OwnedSemaphorePermit>,
    reserve: Option<OwnedSemaphorePermit>,
}

impl Share {
    pub(super) fn none(buffers: &Arc<Buffers>) -> Self {
        Self {
            buffers: Arc::clone(buffers),
            num_bytes: 0,
            common: None,
            reserve: None,
        }
    }

    /// Room for this many bytes in all, if there is at once.
    pub(super) fn try_grow(&mut self, num_bytes: usize) -> bool {
        let Some(more) = self.lacking(num_bytes) else {
            return true;
        };
        if let Ok(common) = Arc::clone(&self.buffers.common).try_acquire_many_owned(more) {
            self.take_common(common, num_bytes);
            return true;
        }
        match Arc::clone(&self.buffers.reserve).try_acquire_owned() {
            Ok(reserve) => {
                self.take_reserve(reserve, num_bytes);
                true
            }
            Err(_) => false,
        }
    }

    /// As [`Share::try_grow`]; where there is no room, a message that keeps still makes way as for one that
    /// waits.
    pub(super) fn grow_or_refuse(&mut self, num_bytes: usize) -> Result<(), NoRoom> {
        if self.try_grow(num_bytes) {
            return Ok(());
        }
        self.buffers.refused.notify_waiters();
        Err(NoRoom::Now)
    }

    /// Room for this many bytes more, to be given back on its own.
    pub(super) fn beside(&self, num_bytes: usize) -> Result<Self, NoRoom> {
        let mut beside = Self::none(&self.buffers);
        // With the reserve lent to this share, the other can only have what it left of the common room.
        let of_common = self
            .common
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        if self.reserve.is_some() && num_bytes > self.buffers.common_bytes - of_common {
            return Err(NoRoom::Ever);
        }
        beside.grow_or_refuse(num_bytes)?;
        Ok(beside)
    }

    /// Room for this many bytes in all, once there is. Dropped before, nothing has changed.
    pub(super) async fn grow(&mut self, num_bytes: usize) {
        if self.try_grow(num_bytes) {
            return;
        }
        let Some(more) = self.lacking(num_bytes) else {
            return;
        };
        let _waiter = Waiter::among(&self.buffers);
        let common = Arc::clone(&self.buffers.common).acquire_many_owned(more);
        let reserve = Arc::clone(&self.buffers.reserve).acquire_owned();
        // Neither is ever closed.
        tokio::select! {
            Ok(common) = common => self.take_common(common, num_bytes),
            Ok(reserve) = reserve => self.take_reserve(reserve, num_bytes),
            else => {}
        }
    }

    /// How many bytes have to be asked for; `None` if there are enough.
    fn lacking(&mut self, num_bytes: usize) -> Option<u32> {
        let more = num_bytes
            .checked_sub(self.num_bytes)
            .filter(|more| *more > 0)?;
        if self.reserve.is_some() {
            self.num_bytes = num_bytes;
            return None;
        }
        Some(u32::try_from(more).unwrap_or(u32::MAX))
    }

    fn take_common(&mut self, more: OwnedSemaphorePermit, num_bytes: usize) {
        match &mut self.common {
            Some(common) => common.merge(more),
            None => self.common = Some(more),
        }
        self.num_bytes = num_bytes;
    }

    fn take_reserve(&mut self, reserve: OwnedSemaphorePermit, num_bytes: usize) {
        self.reserve = Some(reserve);
        self.num_bytes = num_bytes;
    }
}

struct Waiter(Arc<Buffers>);

impl Waiter {
    fn among(buffers: &Arc<Buffers>) -> Self {
        buffers.waiting.send_modify(|num| *num += 1);
        Self(Arc::clone(buffers))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0
            .waiting
            .send_modify(|num| *num = num.saturating_sub(1));
    }
}

/// How large a buffer becomes that has to hold `needed` bytes: twice what it was, within its need.
pub(super) fn grown(capacity: usize, needed: usize, at_most: usize) -> usize {
    let doubled = capacity.saturating_mul(2).min(at_most);
    doubled.max(needed)
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) stall: Duration,
    /// In all, however steadily it trickles.
    pub(super) whole: Duration,
}

/// Why the rest is not awaited any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Late {
    #[error("stopped in its middle for {0:?}")]
    Stalled(Duration),
    #[error("was not there after {0:?}")]
    Slow(Duration),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    began: Instant,
    last: Instant,
}

impl Arrival {
    pub(super) fn now() -> Self {
        let now = Instant::now();
        Self {
            began: now,
            last: now,
        }
    }

    pub(super) fn came(&mut self) {
        self.last = Instant::now();
    }

    /// It had to wait for us since then, when the client could not send.
    pub(super) fn waited(&mut self, since: Instant) {
        let now = Instant::now();
        self.began = (self.began + now.saturating_duration_since(since)).min(now);
        self.last = now;
    }

    /// Resolves when no more should be awaited: a client that stops or trickles must not keep its
    /// room.
    pub(super) async fn late(self, patience: Patience, share: &Share) -> Late {
        let Patience { stall, whole } = patience;
        let crowded = async {
            if share.num_bytes == 0 || CROWDED_STALL >= stall {
                return pending().await;
            }
            sleep_until(self.last + CROWDED_STALL).await;
            share.buffers.wanted().await;
        };
        tokio::select! {
            biased;
            () = sleep_until(self.began + whole) => Late::Slow(whole),
            () = sleep_until(self.last + stall) => Late::Stalled(stall),
            () = crowded => Late::Stalled(CROWDED_STALL),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;
    use tokio::time::sleep;

    use super::*;

    const PATIENCE: Patience = Patience {
        stall: Duration::from_secs(30),
        whole: Duration::from_secs(120),
    };

    #[test]
    fn what_is_given_back_is_there_again() {
        let buffers = Buffers::new(300, 100);
        let mut first = Share::none(&buffers);
        assert!(first.try_grow(150) && first.try_grow(200) && first.try_grow(10));
        let mut second = Share::none(&buffers);
        assert!(second.try_grow(1), "the reserve");
        assert!(second.try_grow(100), "all that it needs");
        assert!(!Share::none(&buffers).try_grow(1));
        drop(second);
        drop(first);
        assert!(Share::none(&buffers).try_grow(200));
    }

    #[test]
    fn a_wait_that_is_given_up_changes_nothing() {
        let buffers = Buffers::new(200, 100);
        let mut first = Share::none(&buffers);
        let mut second = Share::none(&buffers);
        let mut third = Share::none(&buffers);
        assert!(first.try_grow(100) && second.try_grow(100));
        assert!(third.grow(50).now_or_never().is_none());
        assert_eq!((third.num_bytes, *buffers.waiting.borrow()), (0, 0));
        drop(second);
        assert!(third.grow(50).now_or_never().is_some());
        assert_eq!(third.num_bytes, 50);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_keeps_still_is_given_up_sooner_while_others_wait() {
        let buffers = Buffers::new(100, 100);
        let mut still = Share::none(&buffers);
        assert!(still.try_grow(10));
        let arrival = Arrival::now();
        let late = arrival.late(PATIENCE, &still).await;
        assert_eq!(late, Late::Stalled(PATIENCE.stall));
        assert_eq!(arrival.began.elapsed(), PATIENCE.stall);

        let arrival = Arrival::now();
        let mut other = Share::none(&buffers);
        tokio::select! {
            () = other.grow(10) => panic!("there is no room"),
            late = arrival.late(PATIENCE, &still) => assert_eq!(late, Late::Stalled(CROWDED_STALL)),
        }
        assert_eq!(arrival.began.elapsed(), CROWDED_STALL);
        // A message that holds nothing is in nobody's way.
        let holds_nothing = Share::none(&buffers);
        let arrival = Arrival::now();
        tokio::select! {
            () = other.grow(10) => panic!("there is no room"),
            late = arrival.late(PATIENCE, &holds_nothing) => {
                assert_eq!(late, Late::Stalled(PATIENCE.stall));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_request_counts_as_one_that_waits() {
        let buffers = Buffers::new(100, 100);
        let mut still = Share::none(&buffers);
        assert!(still.try_grow(10));
        let arrival = Arrival::now();
        let refused = async {
            // A refusal that comes too early changes nothing; the client comes again.
            for _ in 0..8 {
                let mut other = Share::none(&buffers);
                assert_eq!(other.grow_or_refuse(10), Err(NoRoom::Now));
                sleep(Duration::from_secs(1)).await;
            }
        };
        let (late, ()) = tokio::join!(
            async {
                let late = arrival.late(PATIENCE, &still).await;
                (late, arrival.began.elapsed())
            },
            refused
        );
        let (late, after) = late;
        assert_eq!(late, Late::Stalled(CROWDED_STALL));
        assert!(after <= CROWDED_STALL + Duration::from_secs(1), "{after:?}");
    }

    #[test]
    fn what_there_is_no_room_for_beside_a_body_is_told_from_what_others_have() {
        let buffers = Buffers::new(150, 100);
        let mut body = Share::none(&buffers);
        assert!(body.try_grow(20) && body.try_grow(80), "the reserve");
        assert!(body.beside(30).is_ok());
        assert_eq!(body.beside(31).err(), Some(NoRoom::Ever));
        let other = body.beside(10).unwrap();
        assert_eq!(body.beside(30).err(), Some(NoRoom::Now));
        drop(other);
        drop(body);
        let mut body = Share::none(&buffers);
        assert!(body.try_grow(50));
        assert!(body.beside(100).is_ok(), "the reserve is free");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_for_which_a_message_waits_for_us_is_not_its_own() {
        let buffers = Buffers::new(100, 100);
        let share = Share::none(&buffers);
        let mut arrival = Arrival::now();
        sleep(PATIENCE.stall / 2).await;
        let since = Instant::now();
        sleep(PATIENCE.whole * 10).await;
        arrival.waited(since);
        let resumed = Instant::now();
        let late = arrival.late(PATIENCE, &share).await;
        assert_eq!(late, Late::Stalled(PATIENCE.stall));
        assert_eq!(resumed.elapsed(), PATIENCE.stall);
        let trickle = async {
            loop {
                sleep(PATIENCE.stall / 2).await;
                arrival.came();
                let late = arrival.late(PATIENCE, &share).now_or_never();
                if let Some(late) = late {
                    return late;
                }
            }
        };
        assert_eq!(trickle.await, Late::Slow(PATIENCE.whole));
        let whole = PATIENCE.whole - PATIENCE.stall / 2;
        assert_eq!(resumed.elapsed(), whole);
    }

    /// One message on its way: how large it is, and how much of it is there.
    struct Message {
        share: Share,
        length: usize,
        capacity: usize,
    }

    proptest! {
        /// Messages of any sizes grow in any order; those that have to, wait. All come to their end, and
        /// never is more in memory than the bound.
        #[test]
        fn all_come_to_their_end_within_the_bound(
            lengths in prop::collection::vec(1_usize..=100, 1..20),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..400),
            total in 100_usize..400,
        ) {
            let buffers = Buffers::new(total, 100);
            let mut messages: Vec<Message> = lengths
                .iter()
                .map(|&length| Message { share: Share::none(&buffers), length, capacity: 0 })
                .collect();
            let mut order = order.into_iter();
            while !messages.is_empty() {
                let first = order.next().map_or(0, |index| index.index(messages.len()));
                let num = messages.len();
                // One that cannot go on leaves it to the next.
                let moved = (0..num).map(|step| (first + step) % num).find(|&index| {
                    let message = &mut messages[index];
                    let capacity = grown(message.capacity, message.capacity + 1, message.length);
                    let grows = message.share.grow(capacity).now_or_never().is_some();
                    if grows {
                        message.capacity = capacity;
                    }
                    grows
                });
                let moved = moved.expect("somebody can go on");
                let held: usize = messages.iter().map(|message| message.capacity).sum();
                prop_assert!(held <= total, "{held} of {total}");
                if messages[moved].capacity == messages[moved].length {
                    messages.swap_remove(moved);
                }
            }
        }
    }
}
