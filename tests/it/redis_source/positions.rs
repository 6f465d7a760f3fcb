//! A guard that somebody set ahead of what is stored.

use event_persister_actors::source::redis::RedisSettings;

use super::{
    GROUP, GUARD, acknowledge, guard_position, numbered, read_num, source, until,
    until_the_guard_is_at,
};
use crate::support::redis::{RedisServer, TestStream};

const FAR: &str = "99999999999999-0";

fn set(stream: &TestStream, group: &str, id: &str) {
    stream.command::<()>(&format!("XGROUP SETID events {group} {id}"));
}

#[actix_web::test]
async fn a_guard_ahead_of_the_stream_is_set_back_to_what_is_not_stored() {
    let server = RedisServer::start();
    let stream = server.stream();
    let source = source(stream.settings());
    let ids = stream.publish(&numbered(0..10));
    let held = read_num(&source, 10).await;
    until_the_guard_is_at(&stream, &ids[0]).await;
    set(&stream, GUARD, FAR);
    until_the_guard_is_at(&stream, &ids[0]).await;
    acknowledge(&source, &held).await;
    until_the_guard_is_at(&stream, &ids[9]).await;
}

#[actix_web::test]
async fn nothing_is_trimmed_behind_a_guard_or_a_group_that_somebody_set_ahead() {
    let server = RedisServer::start();
    let stream = server.stream();
    // So that whole nodes, which are all that is trimmed, are small.
    stream.command::<()>("CONFIG SET stream-node-max-entries 1");
    let source = source(RedisSettings {
        trim_stream: true,
        ..stream.settings()
    });
    let ids = stream.publish(&numbered(0..10));
    let held = read_num(&source, 10).await;
    until_the_guard_is_at(&stream, &ids[0]).await;
    for moved in [GUARD, GROUP] {
        set(&stream, moved, FAR);
        stream.publish(&numbered(10..11));
        until("it is seen", || {
            source.stats().status().stream_length == stream.len() as u64
        })
        .await;
    }
    // Both ahead: the guard goes back to where it stood, and all is still there.
    set(&stream, GUARD, FAR);
    until_the_guard_is_at(&stream, &ids[0]).await;
    assert_eq!(stream.len(), 12);
    set(&stream, GROUP, &guard_position(&ids[0]));
    let rest = read_num(&source, 2).await;
    acknowledge(&source, &held).await;
    acknowledge(&source, &rest).await;
    until("all that is stored may go", || stream.len() <= 2).await;
}
