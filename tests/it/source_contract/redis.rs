//! Redis Streams, on a server of its own for each test.

use std::sync::Arc;

use event_persister_actors::source::redis::RedisSource;

use super::Subject;
use crate::support::redis::TestStream;

fn redis(messages: &[String]) -> Subject {
    let (stream, server) = TestStream::anywhere();
    stream.publish(messages);
    let source = RedisSource::new(stream.settings()).expect("settings that work");
    Subject {
        source: Arc::new(source),
        _alive: Box::new(server),
    }
}

super::source_contract_tests!(redis);
