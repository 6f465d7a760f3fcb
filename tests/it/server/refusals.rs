//! The database refuses everything: somebody made a trigger.

use super::*;

#[tokio::test]
async fn reading_pauses_and_goes_on_by_itself_once_the_database_is_mended() {
    let folder = Folder::new();
    let patience = ("EVENT_PERSISTER_HTTP_REQUEST_TIMEOUT", "60s");
    let server = Server::start(&folder, &[patience]).ready().await;
    server.database().execute(
        "CREATE TRIGGER no BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'not today'); END",
    );
    assert_eq!(server.post_status(list(&events(600))).await, 204);
    let not_ready = server.until_ready_is(503).await;
    let reason = not_ready["reason"].as_str().unwrap();
    assert!(
        reason.contains("the database refused 600 of the last 600"),
        "{reason}"
    );
    assert!(
        reason.contains("dead-letters list --stage store"),
        "{reason}"
    );
    assert_eq!(server.metrics().await.count("reading_paused"), 1);
    // One that probes: a dead letter too, and the pause lasts.
    assert_eq!(server.post_status(list(&events(1))).await, 204);
    assert_eq!(server.readiness().await.0, 503);

    server.database().execute("DROP TRIGGER no");
    let good = events(3);
    assert_eq!(server.post_status(list(&good)).await, 204);
    server.until_ready_is(200).await;
    assert_eq!(server.metrics().await.count("reading_paused"), 0);
    server.database().has_all(&ids(&good));
    let ended = server.terminate().in_good_order();
    assert_eq!(ended.ledger()("refused_by_store"), 601);
    let letters = "messages were refused and are kept as dead letters";
    assert!(ended.log.contains(letters), "{}", ended.log);
    for said in ["reading pauses: ", "reading goes on: "] {
        assert_eq!(ended.log.matches(said).count(), 1, "{}", ended.log);
    }
}

#[tokio::test]
async fn an_import_of_what_is_refused_comes_to_its_end() {
    let folder = Folder::new();
    let file = folder.path().join("events");
    std::fs::write(&file, lines(&events(1))).unwrap();
    assert_eq!(folder.run(&["import", "events"]).code, Some(0));
    folder.database().execute(
        "CREATE TRIGGER no BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'not today'); END",
    );
    std::fs::write(&file, lines(&events(20_000))).unwrap();
    // With a pause this would be 20 batches, most of them three seconds apart.
    let ran = folder.run(&["import", "events"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stdout.contains("dead letters 20000"), "{}", ran.stdout);
    assert!(!ran.stderr.contains("reading pauses"), "{}", ran.stderr);
}
