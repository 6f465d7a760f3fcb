//! What an old master has that the new one lacks, read for as long as it calls itself a master.
//!
//! The sentinels tell the old master last that it is a replica now: about ten seconds after a failover on demand, and
//! as long after one that was frozen has woken. Until then it takes what is published through connections that were
//! open before, and drops all of it as soon as it follows. One that was killed and has a file may have, for as long,
//! what its replicas never got.
//!
//! So it is read beside the new one, by the same group: first what it has pending for us, since the reply to the last
//! read may have been lost with the change; then what is new there. Nothing is acknowledged: that goes with it, and
//! the new master's entries may have the same ids. A message that was handed out before the pipeline began anew is not
//! handed out again.

use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::RedisResult;
use tokio::time::{Instant, sleep, timeout};

use crate::source::Permit;

use super::connection::{RESPONSE_TIMEOUT, read_new, read_pending};
use super::entry_reader::{EntriesRead, EntryReader, Reply, Room};
use super::failure;
use super::member::Member;
use super::reach::reach;
use super::sentinel::{Master, Watch};
use super::stream_id::StreamId;

/// How long it is tried and read: longer than a server takes to come back and the sentinels to tell it, and not for
/// ever where somebody keeps it for another use.
const READ_FOR: Duration = Duration::from_secs(120);

/// Between two tries to connect, and at most for one at each address.
const RETRY: Duration = Duration::from_secs(1);

/// Read at once. As long as less than that waits to be handed out, more is asked for, so that a read waits there
/// already for what it takes last.
const ROOM: Permit = Permit {
    max_messages: 500,
    max_bytes: 8 << 20,
};

impl Member {
    /// Begins to read the masters that were replaced since the last time.
    pub(super) fn read_old_masters(self: &Arc<Self>) {
        let watch = self.connections.watch.as_ref();
        for master in watch.map(Watch::take_replaced).unwrap_or_default() {
            tokio::spawn(read_until_it_follows(Arc::downgrade(self), master));
        }
    }

    /// Whether there is nobody to read it for, or it is the master again.
    fn is_done_with(&self, old: &Master) -> bool {
        let reading = self.reading();
        if reading.is_stopping || reading.is_closed {
            return true;
        }
        drop(reading);
        let known = self.connections.watch.as_ref();
        let known = known.and_then(Watch::known);
        known.is_some_and(|known| known.is_at_the_place_of(old))
    }

    /// Takes in what was read, and returns how much that was.
    fn take_of_old_master(&self, read: EntriesRead, redelivered: bool) -> usize {
        let bodies = read.entries.into_iter().filter_map(|entry| entry.body);
        let mut num = 0;
        let mut reading = self.reading();
        for body in bodies {
            reading.pending.add_of_old_master(body, redelivered);
            num += 1;
        }
        drop(reading);
        self.changed.notify_one();
        num
    }
}

async fn read_until_it_follows(member: Weak<Member>, old: Master) {
    let mut num = 0;
    let until = Instant::now() + READ_FOR;
    while Instant::now() < until {
        match read(&member, &old, until, &mut num).await {
            // A server that loads its file is not there yet; any other refusal is its last word.
            Err(error) => match failure::code(&error).as_deref() {
                None | Some("LOADING") => sleep(RETRY).await,
                Some(_) => break,
            },
            Ok(()) => break,
        }
    }
    if num > 0
        && let Some(member) = member.upgrade()
    {
        log::warn!(
            "an old master was read until it followed the new one; what only it had is stored or will be \
             num_entries={num} redis.server={} redis.old_master={old}",
            member.server
        );
    }
}

/// Returns when nobody wants it any more.
async fn read(
    member: &Weak<Member>,
    old: &Master,
    until: Instant,
    num: &mut usize,
) -> RedisResult<()> {
    let Some(settings) = member.upgrade().map(|member| member.settings.clone()) else {
        return Ok(());
    };
    let greet = |stream| EntryReader::greet(stream, &settings.url);
    let mut reader = reach(&settings, &old.host, old.port, RETRY, greet).await?;
    // Behind it is what is pending for us and still to be read; of new entries only those without room are.
    let mut behind = Some(StreamId::ZERO);
    loop {
        loop {
            let wanted = member
                .upgrade()
                .filter(|member| !member.is_done_with(old) && Instant::now() < until);
            let Some(member) = wanted else {
                return Ok(());
            };
            let handed_out = Arc::clone(&member.handed_out);
            let mut room_was_made = pin!(handed_out.notified());
            room_was_made.as_mut().enable();
            if member.reading().pending.has_room_of_old_master(ROOM) {
                break;
            }
            drop(member);
            // Whoever wants nothing any more says so nowhere.
            timeout(RETRY, room_was_made).await.unwrap_or_default();
        }
        let count = ROOM.max_messages;
        let command = match behind {
            Some(behind) => read_pending(&settings, behind, count),
            None => read_new(&settings, count, true),
        };
        let mut room = Room::new(ROOM);
        let patience = settings.block + RESPONSE_TIMEOUT;
        let reading = reader.read(&command, Reply::Streams, &mut room, patience);
        let read = reading.await?;
        let redelivered = behind.is_some();
        let skipped = read.skipped.first().map(|(id, _)| id.previous());
        let last = read.entries.last().map(|entry| entry.id);
        behind = skipped.or(last.filter(|_| redelivered));
        let Some(member) = member.upgrade() else {
            return Ok(());
        };
        *num += member.take_of_old_master(read, redelivered);
    }
}
