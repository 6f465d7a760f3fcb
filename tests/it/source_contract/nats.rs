//! NATS JetStream, on a server of its own for each test.

use std::sync::Arc;

use event_persister_actors::source::nats::NatsSource;

use super::Subject;
use crate::support::nats::NatsServer;

fn nats(messages: &[String]) -> Subject {
    let server = NatsServer::start();
    let stream = server.with_stream();
    stream.publish(messages);
    let source = NatsSource::new(stream.settings()).expect("settings that work");
    Subject {
        source: Arc::new(source),
        _alive: Box::new(server),
    }
}

super::source_contract_tests!(nats);
