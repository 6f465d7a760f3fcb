//! One suite for every `EventSource`: what the pipeline relies on.
//!
//! A subject is a source that already holds some messages, handed out in order and told apart by
//! their raw bytes.

use std::any::Any;
use std::io::Cursor;
use std::sync::Arc;

use event_persister_actors::delivery::{
    Batch, BatchId, Content, Entry, Position, Receipt, Rejection,
};
use event_persister_actors::event::EventLimits;
use event_persister_actors::source::file::FileSource;
use event_persister_actors::source::intake::{IntakeSettings, IntakeSource};
use event_persister_actors::source::letters::LetterSource;
use event_persister_actors::source::{Body, EventSource, Message, More, Permit};
use event_persister_actors::store::EventStore as _;
use event_persister_actors::store::operator::LetterFilter;
use event_persister_actors::testing::{MemorySource, MemoryStore, rejected_entry};
use futures_util::FutureExt as _;

const WIDE: Permit = Permit {
    max_messages: 1000,
    max_bytes: 1_000_000,
};

/// A source that holds `messages`, and what must stay alive with it.
struct Subject {
    source: Arc<dyn EventSource>,
    _alive: Box<dyn Any>,
}

fn memory(messages: &[String]) -> Subject {
    let source = MemorySource::default();
    for message in messages {
        source.push(message.clone());
    }
    Subject {
        source: Arc::new(source),
        _alive: Box::new(()),
    }
}

fn intake(messages: &[String]) -> Subject {
    let (source, intake) = IntakeSource::new("intake", IntakeSettings::default());
    for message in messages {
        let entry = Entry {
            source: "intake".into(),
            position: Position::new("here"),
            content: Content::Rejected(Rejection {
                raw: message.clone().into(),
                reason: "no event".into(),
                event_id: None,
            }),
        };
        drop(intake.submit(vec![entry]).expect("there is room"));
    }
    Subject {
        source,
        _alive: Box::new(intake),
    }
}

fn file(messages: &[String]) -> Subject {
    let text = messages.join("\n");
    let source = FileSource::new(Box::new(Cursor::new(text)), "in", 1_000_000).expect("a thread");
    Subject {
        source: Arc::new(source),
        _alive: Box::new(()),
    }
}

/// The newest letter comes first.
fn letters(messages: &[String]) -> Subject {
    let store = MemoryStore::new();
    let oldest_first = messages.iter().rev().zip(0..);
    let entries = oldest_first
        .map(|(message, at)| rejected_entry(&format!("{at}"), message.as_bytes(), "no event"));
    let batch = Batch::new(BatchId(0), entries.collect());
    let write = store.write(Arc::new(batch));
    write.now_or_never().expect("at once").expect("written");
    let everything = LetterFilter::default();
    let source = LetterSource::new(Arc::new(store), everything, None, EventLimits::default());
    Subject {
        source: Arc::new(source),
        _alive: Box::new(()),
    }
}

fn numbered(num: usize) -> Vec<String> {
    (0..num).map(|number| format!("message {number}")).collect()
}

fn raw(message: &Message) -> String {
    let bytes = match &message.body {
        Body::Raw { data, .. } => data.to_vec(),
        Body::Entry(entry) => entry.raw().to_vec(),
    };
    String::from_utf8(bytes).expect("tests send text")
}

fn raws(messages: &[Message]) -> Vec<String> {
    messages.iter().map(raw).collect()
}

fn receipts(messages: &[Message]) -> Vec<Receipt> {
    messages.iter().map(|message| message.receipt).collect()
}

async fn read_num(source: &dyn EventSource, num: usize) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    while messages.len() < num {
        let permit = Permit {
            max_messages: num - messages.len(),
            ..WIDE
        };
        let chunk = source.read(permit).await.expect("the source works");
        assert!(chunk.messages.len() <= permit.max_messages);
        messages.extend(chunk.messages);
    }
    messages
}

async fn respects_permits(new: fn(&[String]) -> Subject) {
    let mut all = numbered(20);
    all[7] = "x".repeat(500);
    let subject = new(&all);
    let source = Arc::clone(&subject.source);
    let permit = Permit {
        max_messages: 3,
        max_bytes: 100,
    };
    let mut seen = Vec::new();
    while seen.len() < all.len() {
        let chunk = source.read(permit).await.expect("the source works");
        let sizes: Vec<usize> = chunk
            .messages
            .iter()
            .map(|message| raw(message).len())
            .collect();
        assert!(sizes.len() <= permit.max_messages, "{sizes:?}");
        assert!(
            sizes.iter().sum::<usize>() <= permit.max_bytes || sizes.len() == 1,
            "{sizes:?}"
        );
        seen.extend(raws(&chunk.messages));
        if seen.len() < all.len() {
            assert_ne!(chunk.more, More::Ended);
        }
    }
    assert_eq!(seen, all, "in order, each once");
}

async fn forgets_what_is_acknowledged(new: fn(&[String]) -> Subject) {
    let subject = new(&numbered(6));
    let source = Arc::clone(&subject.source);
    let messages = read_num(&*source, 6).await;
    assert!(messages.iter().all(|message| !message.redelivered));
    let [first, second, third, fourth, fifth, _] = receipts(&messages)[..] else {
        panic!("six messages");
    };
    source
        .acknowledge(&[fifth, second])
        .await
        .expect("acknowledged");
    source
        .acknowledge(&[second])
        .await
        .expect("twice does no harm");
    source.acknowledge(&[first]).await.expect("acknowledged");
    source.acknowledge(&[]).await.expect("nothing is fine");
    source
        .acknowledge(&[Receipt(123_456), Receipt(u64::MAX)])
        .await
        .expect("unknown receipts are ignored");
    source.rewind().await.expect("rewound");
    let again = read_num(&*source, 3).await;
    assert_eq!(raws(&again), ["message 2", "message 3", "message 5"]);
    assert_eq!(receipts(&again)[..2], [third, fourth]);
}

async fn hands_out_again_before_anything_new(new: fn(&[String]) -> Subject) {
    let subject = new(&numbered(8));
    let source = Arc::clone(&subject.source);
    let first = read_num(&*source, 4).await;
    source
        .acknowledge(&receipts(&first)[1..2])
        .await
        .expect("acknowledged");
    source.rewind().await.expect("rewound");
    let again = read_num(&*source, 5).await;
    assert_eq!(
        raws(&again),
        [
            "message 0",
            "message 2",
            "message 3",
            "message 4",
            "message 5"
        ]
    );
    let redelivered: Vec<bool> = again.iter().map(|message| message.redelivered).collect();
    assert_eq!(redelivered, [true, true, true, false, false]);
    source.rewind().await.expect("rewound");
    source.rewind().await.expect("twice does no harm");
    let again = read_num(&*source, 7).await;
    assert_eq!(raws(&again)[5..], ["message 6", "message 7"]);
    assert!(again[..5].iter().all(|message| message.redelivered));
    assert!(again[5..].iter().all(|message| !message.redelivered));
}

async fn takes_receipts_from_before_a_rewind(new: fn(&[String]) -> Subject) {
    let subject = new(&numbered(4));
    let source = Arc::clone(&subject.source);
    let first = read_num(&*source, 3).await;
    source.rewind().await.expect("rewound");
    source
        .acknowledge(&receipts(&first)[..2])
        .await
        .expect("acknowledged");
    let again = read_num(&*source, 2).await;
    assert_eq!(raws(&again), ["message 2", "message 3"]);
}

async fn loses_nothing_when_a_read_is_dropped(new: fn(&[String]) -> Subject) {
    let all = numbered(50);
    let subject = new(&all);
    let source = Arc::clone(&subject.source);
    let mut seen = Vec::new();
    let mut round = 0;
    while seen.len() < all.len() {
        round += 1;
        let permit = Permit {
            max_messages: 3,
            ..WIDE
        };
        let read = source.read(permit);
        // Polled a few times, and dropped at every other turn unless it is done.
        let patience = async {
            for _ in 0..round % 3 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            chunk = read => seen.extend(raws(&chunk.expect("the source works").messages)),
            () = patience => {}
        }
    }
    assert_eq!(seen, all);
    source.rewind().await.expect("rewound");
    assert_eq!(raws(&read_num(&*source, 50).await), all);
}

async fn lets_go_when_closed(new: fn(&[String]) -> Subject) {
    let subject = new(&numbered(4));
    let source = Arc::clone(&subject.source);
    let first = read_num(&*source, 2).await;
    source.close().await.expect("closed");
    source.close().await.expect("twice does no harm");
    source
        .acknowledge(&receipts(&first))
        .await
        .expect("too late does no harm");
    source.rewind().await.expect("too late does no harm");
    let chunk = source.read(WIDE).await.expect("a closed source has ended");
    assert_eq!((chunk.messages.len(), chunk.more), (0, More::Ended));
}

/// Every test of the suite, for one kind of subject.
macro_rules! source_contract_tests {
    ($subject:path) => {
        $crate::source_contract::source_contract_tests!(@ $subject;
            respects_permits forgets_what_is_acknowledged hands_out_again_before_anything_new
            takes_receipts_from_before_a_rewind loses_nothing_when_a_read_is_dropped
            lets_go_when_closed);
    };
    (@ $subject:path; $($test:ident)*) => {$(
        #[actix_web::test]
        async fn $test() {
            $crate::source_contract::$test($subject).await;
        }
    )*};
}
use source_contract_tests;

mod of_memory {
    super::source_contract_tests!(super::memory);
}

mod of_intake {
    super::source_contract_tests!(super::intake);
}

mod of_file {
    super::source_contract_tests!(super::file);
}

mod of_letters {
    super::source_contract_tests!(super::letters);
}

#[cfg(all(feature = "service-tests", feature = "nats"))]
mod nats;
#[cfg(feature = "service-tests")]
mod redis;
