//! Masters that come and go, as the sentinels say.

use std::time::Duration;

use event_persister_actors::source::EventSource as _;
use event_persister_actors::source::operator::BusOperator as _;
use event_persister_actors::source::redis::{RedisOperator, RedisSettings, consumer_name};
use event_persister_actors::status::error_chain;

use super::publishing::{publish, publisher};
use super::{
    GUARD, acknowledge, consume_all, next_error, numbered, raws, read_num, receipts, source, until,
};
use crate::support::redis::TestStream;
use crate::support::sentinels::{PASSWORDS, Sentinels, Wanted};

fn settings(url: &str) -> RedisSettings {
    RedisSettings {
        consumer_name: consumer_name("test"),
        block: Duration::from_millis(100),
        ..RedisSettings::from_url(url).unwrap()
    }
}

/// Waits until the replicas have all that the master has. `WAIT` speaks of the writes of its own connection,
/// so one is made there.
fn replicated(stream: &TestStream) {
    let (num,): (usize,) = redis::pipe()
        .cmd("SET")
        .arg("written-before-waiting")
        .arg(1)
        .ignore()
        .cmd("WAIT")
        .arg(2)
        .arg(5_000)
        .query(&mut stream.connect())
        .unwrap();
    assert_eq!(num, 2, "the replicas follow");
}

#[actix_web::test]
async fn goes_on_with_the_next_master_after_a_kill() {
    let mut sentinels = Sentinels::start().await;
    let first = sentinels.master().unwrap();
    let source = source(settings(&sentinels.url()));
    let stream = sentinels.stream(first);
    stream.publish(&numbered(0..100));
    let held = read_num(&source, 100).await;
    acknowledge(&source, &held[..40]).await;
    replicated(&stream);
    sentinels.kill(first);
    let error = error_chain(&next_error(&source).await);
    assert!(
        error.contains(&format!("(master 127.0.0.1:{first}): ")),
        "{error}"
    );
    let second = sentinels.until_replaced(first).await;
    let stream = sentinels.stream(second);
    stream.publish(&numbered(100..200));
    // What was not acknowledged comes again, and what the old one was given means nothing here.
    acknowledge(&source, &held[40..]).await;
    let wanted = numbered(40..200);
    assert_eq!(consume_all(&source, &wanted).await, 160, "each once");
    assert_eq!(stream.num_pending(), 0);
    // The old one comes back, as a master at first.
    sentinels.launch(first);
    sentinels.until_settled().await;
    let third = numbered(200..210);
    stream.publish(&third);
    consume_all(&source, &third).await;
    source.close().await.unwrap();
}

#[actix_web::test]
async fn a_master_that_was_frozen_and_wakes_is_none() {
    let mut sentinels = Sentinels::start().await;
    let first = sentinels.master().unwrap();
    let source = source(settings(&sentinels.url()));
    sentinels.stream(first).publish(&numbered(0..10));
    consume_all(&source, &numbered(0..10)).await;
    sentinels.stall(first);
    let second = sentinels.until_replaced(first).await;
    let stream = sentinels.stream(second);
    stream.publish(&numbered(10..20));
    consume_all(&source, &numbered(10..20)).await;
    sentinels.resume(first);
    stream.publish(&numbered(20..30));
    consume_all(&source, &numbered(20..30)).await;
    until("told to follow: the old master", || {
        sentinels.role(first) == "slave"
    })
    .await;
    stream.publish(&numbered(30..40));
    assert_eq!(consume_all(&source, &numbered(30..40)).await, 10);
}

#[actix_web::test]
async fn goes_on_after_failovers_without_a_reason() {
    let sentinels = Sentinels::start().await;
    let source = source(settings(&sentinels.url()));
    let mut master = sentinels.master().unwrap();
    for round in 0..3 {
        let events = numbered(10 * round..10 * (round + 1));
        let stream = sentinels.stream(master);
        stream.publish(&events);
        consume_all(&source, &events).await;
        replicated(&stream);
        master = sentinels.fail_over(master).await;
        sentinels.until_settled().await;
    }
}

/// Clients that were connected to the old one go on publishing there until it is told to follow.
#[actix_web::test]
async fn what_an_old_master_still_takes_is_read_too() {
    let mut sentinels = Sentinels::start().await;
    let first = sentinels.master().unwrap();
    let source = source(settings(&sentinels.url()));
    let old = sentinels.stream(first);
    old.publish(&numbered(0..10));
    let held = read_num(&source, 10).await;
    acknowledge(&source, &held).await;
    replicated(&old);
    sentinels.leave_old_masters_alone();
    let second = sentinels.fail_over(first).await;
    let new = sentinels.stream(second);
    new.publish(&numbered(10..20));
    old.publish(&numbered(20..1_520));
    consume_all(&source, &numbered(10..1_520)).await;
    assert_eq!(sentinels.role(first), "master");
    assert_eq!((new.len(), new.num_pending()), (20, 0));
    // A second one, which is frozen, and has something when it wakes.
    let third_events = numbered(1_520..1_530);
    sentinels.stall(second);
    let third = sentinels.until_replaced(second).await;
    sentinels.stream(third).publish(&third_events);
    consume_all(&source, &third_events).await;
    sentinels.resume(second);
    new.publish(&numbered(1_530..1_540));
    consume_all(&source, &numbered(1_530..1_540)).await;
    source.close().await.unwrap();
}

#[actix_web::test]
async fn what_is_published_is_with_the_master_that_the_sentinels_name() {
    let mut sentinels = Sentinels::start().await;
    let first = sentinels.master().unwrap();
    let publisher = publisher(settings(&sentinels.url()));
    publish(&publisher, &numbered(0..10)).await.unwrap();
    let old = sentinels.stream(first);
    replicated(&old);
    sentinels.leave_old_masters_alone();
    let second = sentinels.fail_over(first).await;
    let new = sentinels.stream(second);
    // The old one takes it too, and nobody reads it there.
    publish(&publisher, &numbered(10..20)).await.unwrap();
    assert_eq!((old.len(), new.len()), (20, 20));
    publish(&publisher, &numbered(20..30)).await.unwrap();
    assert_eq!((old.len(), new.len()), (20, 30));
    // Nobody can confirm that it is still the master: that is found once, and then nothing is sent.
    for index in 0..3 {
        sentinels.kill_sentinel(index);
    }
    for _ in 0..3 {
        let error = publish(&publisher, &numbered(30..40)).await.unwrap_err();
        let error = error_chain(&error);
        assert!(error.contains("the sentinels name no master"), "{error}");
    }
    assert_eq!(new.len(), 40);
}

/// The id that is held means another event to the next master: that one is handed out, and an
/// acknowledgement of the first never reaches it.
#[actix_web::test]
async fn ids_that_are_given_again_are_other_entries() {
    let mut sentinels = Sentinels::start().await;
    let first = sentinels.master().unwrap();
    let source = source(settings(&sentinels.url()));
    let add = |stream: &TestStream, text: &str| {
        stream.command::<String>(&format!("XADD events 9000000000000-1 data {text}"));
    };
    sentinels.cut_off_replicas(first);
    add(&sentinels.stream(first), "old");
    let old = read_num(&source, 1).await;
    assert_eq!(raws(&old), ["old"]);
    sentinels.kill(first);
    for port in sentinels.replicas(first) {
        sentinels.resume(port);
    }
    // Whether it can be sent or not: it is for the old one.
    drop(source.acknowledge(&receipts(&old)).await);
    let second = sentinels.until_replaced(first).await;
    let stream = sentinels.stream(second);
    assert_eq!(stream.len(), 0, "it was never replicated");
    add(&stream, "new");
    let new = read_num(&source, 1).await;
    assert_eq!(raws(&new), ["new"]);
    assert!(
        stream.last_delivered(GUARD).is_some(),
        "before the first read"
    );
    acknowledge(&source, &old).await;
    drop(source.acknowledge(&[]).await);
    assert_eq!(stream.num_pending(), 1, "it is the new one that is pending");
    acknowledge(&source, &new).await;
    assert_eq!(stream.num_pending(), 0);
}

#[actix_web::test]
async fn tls_and_passwords_hold_for_servers_and_sentinels() {
    let mut sentinels = Sentinels::start_with(Wanted {
        tls: true,
        passwords: true,
    })
    .await;
    let first = sentinels.master().unwrap();
    let url = sentinels.url();
    let source = source(settings(&url));
    sentinels.stream(first).publish(&numbered(0..10));
    consume_all(&source, &numbered(0..10)).await;
    until("listened to: every sentinel", || {
        sentinels.num_listened_to() == 3
    })
    .await;
    sentinels.kill(first);
    let second = sentinels.until_replaced(first).await;
    sentinels.stream(second).publish(&numbered(10..20));
    consume_all(&source, &numbered(10..20)).await;
    source.close().await.unwrap();

    let [of_servers, of_sentinels] = PASSWORDS;
    let ca = format!("ssl_ca_certs={}", sentinels.ca_file().display());
    let without_login = url.replace(&format!(":{of_servers}@"), "");
    for (wrong, told) in [
        (
            url.replace(of_sentinels, "wrong"),
            "the sentinels name no master",
        ),
        (
            url.replace(&format!("&sentinel_password={of_sentinels}"), ""),
            "NOAUTH",
        ),
        (
            url.replace(of_servers, "wrong"),
            "user or password is wrong",
        ),
        (without_login, "it wants a password"),
        (url.replace(&ca, ""), "certificate"),
        (
            url.replace("rediss", "redis").replace(&ca, ""),
            "the sentinels name no master",
        ),
    ] {
        let error = error_chain(&next_error(&super::source(settings(&wrong))).await);
        assert!(error.contains(told), "{wrong}: {error}");
        assert!(!error.contains("of-the-"), "{error}");
    }
}

#[actix_web::test]
async fn one_sentinel_that_is_left_is_enough_and_those_that_are_away_are_named() {
    let mut sentinels = Sentinels::start().await;
    let master = sentinels.master().unwrap();
    let url = sentinels.url();
    let stream = sentinels.stream(master);
    let source = source(settings(&url));
    sentinels.kill_sentinel(0);
    // It takes connections, and says nothing.
    sentinels.stall_sentinel(1);
    stream.publish(&numbered(0..10));
    consume_all(&source, &numbered(0..10)).await;
    let findings = RedisOperator::new(settings(&url))
        .unwrap()
        .inspect(None)
        .await;
    let away = findings
        .iter()
        .filter(|finding| finding.id == "redis.sentinels");
    let away: Vec<&str> = away.map(|finding| &finding.what[..]).collect();
    assert_eq!(away.len(), 2, "{away:?}");
    assert!(away[1].contains("nothing was heard of"), "{away:?}");
    sentinels.kill_sentinel(2);
    // Nobody else knows a master, so the one that is known goes on being read.
    stream.publish(&numbered(10..20));
    consume_all(&source, &numbered(10..20)).await;
}

/// Python's client asks for nothing else.
#[actix_web::test]
async fn a_user_who_may_only_list_the_masters_finds_the_next_one_too() {
    let mut sentinels = Sentinels::start().await;
    let rights = "-@all +auth +hello +ping +client +sentinel|masters";
    sentinels.tell_sentinels(&format!("ACL SETUSER small on >pw {rights}"));
    let login = "sentinel_username=small&sentinel_password=pw";
    let url = format!("{}{login}", sentinels.url());
    let first = sentinels.master().unwrap();
    let source = source(settings(&url));
    sentinels.stream(first).publish(&numbered(0..10));
    consume_all(&source, &numbered(0..10)).await;
    let operator = RedisOperator::new(settings(&url)).unwrap();
    let findings = operator.inspect(None).await;
    let agreed = format!("3 sentinels name the master 127.0.0.1:{first}");
    let what = findings.iter().map(|finding| &finding.what);
    assert!(what.clone().any(|what| *what == agreed), "{findings:?}");
    sentinels.kill(first);
    let second = sentinels.until_replaced(first).await;
    sentinels.stream(second).publish(&numbered(10..20));
    consume_all(&source, &numbered(10..20)).await;
    let third = sentinels.fail_over(second).await;
    sentinels.stream(third).publish(&numbered(20..30));
    consume_all(&source, &numbered(20..30)).await;
}

#[actix_web::test]
async fn says_that_no_sentinel_answers() {
    let nobody = settings("redis+sentinel://:hush@127.0.0.1:1,127.0.0.1:2/events");
    let source = source(nobody);
    let error = error_chain(&next_error(&source).await);
    assert!(error.contains("the sentinels name no master"), "{error}");
    assert!(error.contains("127.0.0.1:2"), "{error}");
    assert!(!error.contains("hush"), "{error}");
}

#[actix_web::test]
async fn check_looks_at_the_sentinels_too() {
    let sentinels = Sentinels::start().await;
    let operator = RedisOperator::new(settings(&sentinels.url())).unwrap();
    let findings = operator.inspect(None).await;
    let what = |id: &str| {
        let finding = findings.iter().find(|finding| finding.id == id);
        finding
            .unwrap_or_else(|| panic!("{id}: {findings:?}"))
            .what
            .clone()
    };
    let master = sentinels.master().unwrap();
    let agreed = what("redis.sentinels");
    assert_eq!(
        agreed,
        format!("3 sentinels name the master 127.0.0.1:{master}")
    );
    assert!(what("redis.min_replicas").contains("no replica gets them"));
}
