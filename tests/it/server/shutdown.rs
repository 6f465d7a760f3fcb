//! How a service ends when it is told to.

use super::*;

/// The service gives up soon, so that the test learns of it soon.
const IMPATIENT: (&str, &str) = ("EVENT_PERSISTER_DATABASE_BUSY_TIMEOUT", "50ms");

#[tokio::test]
async fn told_to_end_under_load_it_has_stored_what_it_acknowledged() {
    const NUM_CLIENTS: usize = 8;
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    let answers = Answers::default();
    let mut clients = std::pin::pin!(join_all(
        (0..NUM_CLIENTS).map(|_| answers.post_until_gone(&server))
    ));
    tokio::select! {
        _ = &mut clients => panic!("gone before its time: {}", server.log()),
        () = answers.until(100) => server.signal("TERM"),
    }
    clients.await;
    let database = server.database().clone();
    let ledger = server.ended().in_good_order().ledger();
    answers.told(|told| {
        database.has_all(&told.acknowledged);
        assert!(
            told.others.iter().all(|status| *status == 503),
            "{:?}",
            told.others
        );
        // Nothing was left in doubt: every event in the tables was acknowledged.
        assert_eq!(ledger("stored"), told.acknowledged.len() as u64);
        assert_eq!(database.num_events(), told.acknowledged.len());
    });
}

/// Requests that wait for a store that is away, one event each, and a WebSocket that waits for its
/// pong.
async fn with_waiting<T>(
    server: &Server,
    posted: &[Value],
    then: impl Future<Output = T>,
) -> (Vec<u16>, T) {
    let posts = join_all(
        posted
            .iter()
            .map(|event| server.post_status(list(from_ref(event)))),
    );
    tokio::join!(posts, async {
        // All of them are in the service's hands.
        while server.readiness().await.1["ledger"]["in_flight"] != posted.len() {
            tokio::task::yield_now().await;
        }
        server.until_ready_is(503).await;
        then.await
    })
}

#[tokio::test]
async fn told_to_end_it_waits_for_the_store_and_answers_everybody() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[IMPATIENT]).ready().await;
    let lock = server.database().lock();
    let posted = events(8);
    let (statuses, ()) = with_waiting(&server, &posted, async {
        server.signal("TERM");
        server.logged("SIGTERM");
        lock.release();
    })
    .await;
    assert_eq!(statuses, [204; 8]);
    server.database().has_all(&ids(&posted));
    let ledger = server.ended().in_good_order().ledger();
    assert_eq!(ledger("stored"), 8);
}

#[tokio::test]
async fn told_to_end_with_the_store_away_it_leaves_the_rest_to_those_who_sent_it() {
    let folder = Folder::new();
    let patience = ("EVENT_PERSISTER_PIPELINE_DRAIN_TIMEOUT", "300ms");
    let server = Server::start(&folder, &[IMPATIENT, patience]).ready().await;
    let lock = server.database().lock();
    let posted = events(8);
    let (statuses, ()) = with_waiting(&server, &posted, async {
        server.signal("TERM");
    })
    .await;
    assert_eq!(statuses, [503; 8]);
    let database = server.database().clone();
    let ledger = server.ended().in_good_order().ledger();
    assert_eq!(ledger("released"), 8);
    lock.release();
    assert_eq!(database.num_events(), 0);
}

#[tokio::test]
async fn told_twice_it_ends_at_once() {
    for (name, code) in [("TERM", 143), ("INT", 130)] {
        let folder = Folder::new();
        // It would wait for the store for an hour.
        let patience = ("EVENT_PERSISTER_PIPELINE_DRAIN_TIMEOUT", "1h");
        let server = Server::start(&folder, &[IMPATIENT, patience]).ready().await;
        let lock = server.database().lock();
        let mut post = std::pin::pin!(server.post(list(&events(1))).send());
        tokio::select! {
            biased;
            _ = &mut post => panic!("answered although nothing can be committed"),
            _ = server.until_ready_is(503) => {}
        }
        server.signal(name);
        server.logged("writing what is held");
        // A second signal that comes within a moment is taken for an echo of the first.
        while !server.has_ended() {
            server.signal(name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(post.await.is_err());
        let ended = server.ended();
        assert_eq!(ended.status.code(), Some(code), "{}", ended.log);
        lock.release();
    }
}
