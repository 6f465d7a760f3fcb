//! What is published to a stream, and what may keep it from being.

use event_persister_actors::delivery::Entry;
use event_persister_actors::publisher::EventPublisher as _;
use event_persister_actors::source::SourceError;
use event_persister_actors::source::redis::{RedisPublisher, RedisSettings};
use event_persister_actors::status::error_chain;
use event_persister_actors::testing::rejected_entry;
use futures_util::future::join;

use crate::support::proxy::Proxy;
use crate::support::redis::{RedisServer, TestStream};

pub(super) fn publisher(settings: RedisSettings) -> RedisPublisher {
    RedisPublisher::new(settings).expect("settings that work")
}

/// Publishes messages at once; all of them are on the stream then, or it is an error.
pub(super) async fn publish(
    publisher: &RedisPublisher,
    messages: &[String],
) -> Result<(), SourceError> {
    let entries = messages.iter();
    let entries: Vec<_> = entries
        .map(|text| rejected_entry("1", text.as_bytes(), "a test"))
        .collect();
    let entries: Vec<&Entry> = entries.iter().map(|entry| &**entry).collect();
    let published = publisher.publish(&entries).await?;
    assert_eq!(published, vec![Ok(()); messages.len()]);
    Ok(())
}

fn settings(stream: &TestStream, url: &str) -> RedisSettings {
    RedisSettings {
        url: url.parse().unwrap(),
        ..stream.settings()
    }
}

/// On a line that carries half a MiB a second, four MiB do not arrive in time. Many messages can be sent in smaller
/// portions; a single one cannot, and is waited for.
#[actix_web::test]
async fn a_slow_line_is_told_from_an_outage_and_carries_what_is_large() {
    let server = RedisServer::start();
    let stream = server.stream();
    let proxy = Proxy::to(server.port());
    proxy.slow_down();
    let settings = settings(&stream, &proxy.url(&server.url()));
    let message = |kib: usize| "x".repeat(kib << 10);
    let [first, second] = [(); 2].map(|()| publisher(settings.clone()));
    let many = vec![message(64); 64];
    let large = [message(2048)];
    let (many, large) = join(publish(&first, &many), publish(&second, &large)).await;
    let late = many.expect_err("they take longer than any of them may");
    assert!(matches!(late, SourceError::TimedOut { .. }), "{late:?}");
    large.expect("it is waited for");

    proxy.refuse();
    let away = publish(&second, &["away".to_owned()]).await.unwrap_err();
    assert!(matches!(away, SourceError::Unavailable { .. }), "{away:?}");
}

#[actix_web::test]
async fn a_look_finds_what_keeps_events_from_being_published_and_changes_nothing() {
    let server = RedisServer::start();
    let stream = server.stream();
    let look = async |url: &str| publisher(settings(&stream, url)).check().await;
    let ann = server.url().replace("redis://", "redis://ann:hush@");
    let allow = |rights: &str| {
        stream.command::<()>(&format!("ACL SETUSER ann reset on >hush {rights}"));
    };
    look(&server.url()).await.expect("all is well");
    allow("~events +xadd");
    look(&ann).await.expect("that is all that it takes");
    for too_little in ["~events +@stream -xadd", "~other +@stream"] {
        allow(too_little);
        let error = error_chain(&look(&ann).await.unwrap_err());
        assert!(error.contains("the stream's key and +@stream"), "{error}");
    }
    assert_eq!(stream.command::<usize>("EXISTS events"), 0);
    stream.command::<()>("REPLICAOF 127.0.0.1 1");
    let error = error_chain(&look(&server.url()).await.unwrap_err());
    assert!(error.contains("give the URL of the primary"), "{error}");
}
