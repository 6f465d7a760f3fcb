//! The store is away: another program holds the write lock for longer than the service waits.

use std::future::Future;
use std::pin::Pin;

use super::*;

/// The service gives up soon, so that the test learns of it soon.
const IMPATIENT: (&str, &str) = ("EVENT_PERSISTER_DATABASE_BUSY_TIMEOUT", "50ms");

/// Polls a future once, which must not be done.
async fn waits<F: Future>(mut future: Pin<&mut F>, what: &str) {
    tokio::select! {
        biased;
        _ = &mut future => panic!("{what} although nothing can be committed"),
        () = tokio::task::yield_now() => {}
    }
}

#[tokio::test]
async fn while_the_store_is_away_nothing_is_confirmed_and_afterwards_all_is_stored() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[IMPATIENT]).ready().await;
    let mut client = server.authenticated().await;
    let lock = server.database().lock();

    let posted = event_with(2);
    let mut post = std::pin::pin!(server.post_status(list(from_ref(&posted))));
    let framed = event_with(1);
    send(&mut client, Message::text(framed.to_string())).await;
    send_ping(&mut client, "stored?").await;
    let not_ready = tokio::select! {
        biased;
        status = &mut post => panic!("{status} although nothing can be committed"),
        not_ready = server.until_ready_is(503) => not_ready,
    };
    assert_eq!(not_ready["ready"], false);
    let reason = not_ready["reason"].as_str().unwrap();
    let store = not_ready["components"].as_array().unwrap();
    let store = store.iter().find(|part| part["name"] == "store").unwrap();
    let error = store["last_error"].as_str().unwrap();
    assert!(!reason.is_empty(), "{not_ready}");
    assert!(error.contains("locked"), "{not_ready}");
    assert!(error.contains("event-persister.db"), "{not_ready}");
    // The process itself is well.
    assert_eq!(server.get("/api/health").await.status(), 200);
    // A client that tries its connection is answered at once.
    let mut other = server.connect().await;
    socket::ping(&mut other, "there?").await;
    // By now the service has had every chance to answer the others wrongly.
    waits(post.as_mut(), "204").await;
    waits(std::pin::pin!(client.next()), "a pong").await;
    assert_eq!(server.database().num_events(), 0);

    lock.release();
    assert_eq!(post.await, 204);
    assert_eq!(
        socket::next(&mut client).await,
        Message::Pong("stored?".into())
    );
    server.database().has_all(&[id(&posted), id(&framed)]);
    server.until_ready_is(200).await;
    server.terminate().in_good_order();
}

#[tokio::test]
async fn a_request_that_waits_too_long_is_told_to_come_again_and_its_repetition_joins() {
    let folder = Folder::new();
    let timeout = ("EVENT_PERSISTER_HTTP_REQUEST_TIMEOUT", "100ms");
    let server = Server::start(&folder, &[IMPATIENT, timeout]).ready().await;
    let lock = server.database().lock();
    let body = list(&events(3));
    for _ in 0..3 {
        let response = server.post(body.clone()).send().await.expect("answered");
        assert_eq!(response.status(), 503);
        let retry_after = response.headers()["retry-after"].to_str().unwrap();
        assert!(retry_after.parse::<u32>().unwrap() > 0);
        let detail: Value = response.json().await.expect("a JSON body");
        assert!(detail["detail"].is_string(), "{detail}");
    }
    lock.release();
    server.until_ready_is(200).await;
    assert_eq!(server.post_status(body).await, 204);
    assert_eq!(server.database().complete_events().len(), 3);
    // The repetitions took no room of their own; only the last may have come after the commit.
    let ledger = server.terminate().in_good_order().ledger();
    assert_eq!(ledger("stored"), 3);
    assert!(ledger("received") <= 6, "received {}", ledger("received"));
}

/// More than there is room for is not taken, and what was taken is not dropped for it.
#[tokio::test]
async fn a_full_intake_refuses_and_loses_nothing() {
    let folder = Folder::new();
    let room = ("EVENT_PERSISTER_HTTP_MAX_WAITING_EVENTS", "10");
    let server = Server::start(&folder, &[IMPATIENT, room]).ready().await;
    let lock = server.database().lock();
    let taken = events(10);
    let mut taken_post = std::pin::pin!(server.post_status(list(&taken)));
    let refused = tokio::select! {
        biased;
        status = &mut taken_post => panic!("{status} although nothing can be committed"),
        refused = async {
            // Until the first list is in, this one is; then there is no room for it.
            server.until_ready_is(503).await;
            server.post(list(&events(1))).send().await.expect("answered")
        } => refused,
    };
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    lock.release();
    assert_eq!(taken_post.await, 204);
    server.database().has_all(&ids(&taken));
    assert_eq!(server.database().num_events(), 10);
    server.terminate().in_good_order();
}

#[tokio::test]
async fn killed_while_the_store_is_away_it_has_acknowledged_nothing() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[IMPATIENT]).ready().await;
    let lock = server.database().lock();
    let body = list(&events(5));
    let mut post = std::pin::pin!(server.post(body.clone()).send());
    tokio::select! {
        biased;
        _ = &mut post => panic!("answered although nothing can be committed"),
        _ = server.until_ready_is(503) => {}
    }
    server.signal("KILL");
    assert!(post.await.is_err());
    lock.release();
    drop(server);
    // So the client sends it again.
    let server = Server::start(&folder, &[IMPATIENT]).ready().await;
    assert_eq!(server.database().num_events(), 0);
    assert_eq!(server.post_status(body).await, 204);
    assert_eq!(server.database().complete_events().len(), 5);
    server.terminate().in_good_order();
}
