//! What the reply subject of a delivered message tells of it.

/// One message of a stream. The numbers of a stream that was made anew begin again, so a number alone tells
/// nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) sequence: u64,
    /// When it was stored, in nanoseconds since 1970.
    pub(super) stored_at: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Delivered {
    pub(super) identity: Identity,
    /// 1 at the first time.
    pub(super) num_deliveries: u64,
    /// Where an acknowledgement goes.
    pub(super) reply: String,
}

impl Delivered {
    /// From `$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<sequence of the consumer>.<time>.<pending>`,
    /// with a domain and an account before the stream, and one more word behind, from newer servers.
    pub(super) fn of(reply: &str) -> Option<Self> {
        let words: Vec<&str> = reply.split('.').collect();
        let numbers = match (words.get(..2)?, words.len()) {
            (["$JS", "ACK"], 9) => words.get(4..)?,
            (["$JS", "ACK"], 11..) => words.get(6..)?,
            _ => return None,
        };
        let number = |at: usize| numbers.get(at)?.parse::<u64>().ok();
        Some(Self {
            num_deliveries: number(0)?,
            identity: Identity {
                sequence: number(1)?,
                stored_at: number(3)?,
            },
            // A copy: a part of what was read would keep all of it in memory.
            reply: reply.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_forms_tell_the_same() {
        let old = "$JS.ACK.events.persister.2.17.33.1795927043621851846.19";
        let new = "$JS.ACK._.hash.events.persister.2.17.33.1795927043621851846.19.word";
        for reply in [old, new] {
            let delivered = Delivered::of(reply).unwrap();
            assert_eq!(delivered.num_deliveries, 2);
            let identity = Identity {
                sequence: 17,
                stored_at: 1_795_927_043_621_851_846,
            };
            assert_eq!(delivered.identity, identity);
            assert_eq!(delivered.reply, reply);
        }
        for wrong in [
            "",
            "_INBOX.a",
            "$JS.ACK.a.b.c.d.e.f.g",
            "$JS.ACK.a.b.1.2.3.4",
        ] {
            assert_eq!(Delivered::of(wrong), None, "{wrong}");
        }
    }
}
