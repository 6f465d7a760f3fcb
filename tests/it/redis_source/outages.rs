//! What happens to the server and to the line, and that the source goes on by itself.

use std::path::PathBuf;
use std::time::Duration;

use event_persister_actors::source::EventSource as _;
use event_persister_actors::source::redis::{RedisSettings, RedisUrl, consumer_name};
use event_persister_actors::status::error_chain;
use tokio::time::{Instant, sleep};

use super::{
    GUARD, WIDE, acknowledge, consume_all, join, next_error, numbered, raws, read_num, receipts,
    source, until,
};
use crate::support::proxy::Proxy;
use crate::support::redis::{RedisServer, ServerOptions, TestStream};

#[actix_web::test]
async fn goes_on_after_a_restart_of_the_server() {
    let mut server = RedisServer::start_with(ServerOptions {
        durable: true,
        ..ServerOptions::default()
    });
    let stream = server.stream();
    let source = source(stream.settings());
    let first = numbered(0..100);
    stream.publish(&first);
    let held = read_num(&source, 100).await;
    acknowledge(&source, &held[..40]).await;
    server.kill();
    let error = next_error(&source).await;
    assert!(
        error_chain(&error).contains("Redis at 127.0.0.1:"),
        "{error}"
    );
    source
        .acknowledge(&receipts(&held[40..70]))
        .await
        .expect_err("it is down");
    server.launch();
    let since = Instant::now();
    stream.publish(&numbered(100..200));
    assert_eq!(raws(&read_num(&source, 100).await), numbered(100..200));
    assert!(since.elapsed() < Duration::from_secs(5));
    // What could not be acknowledged then was acknowledged since.
    assert_eq!(stream.num_pending(), 130);
    acknowledge(&source, &held[70..]).await;
    assert_eq!(stream.num_pending(), 100);
}

#[actix_web::test]
async fn goes_on_after_everything_was_deleted() {
    let server = RedisServer::start();
    let stream = server.stream();
    let source = source(stream.settings());
    stream.publish(&numbered(0..10));
    let held = read_num(&source, 10).await;
    let (chunk, ()) = tokio::join!(source.read(WIDE), async {
        sleep(Duration::from_millis(30)).await;
        stream.command::<()>("FLUSHALL");
    });
    drop(chunk);
    let since = Instant::now();
    let events = numbered(10..60);
    stream.publish(&events);
    assert_eq!(consume_all(&source, &events).await, 50);
    assert!(since.elapsed() < Duration::from_secs(5));
    acknowledge(&source, &held).await;
    assert_eq!(source.stats().status().num_rejoined, 1);
    assert_eq!(stream.num_pending(), 0);
    assert!(stream.last_delivered(GUARD).is_some());
}

#[actix_web::test]
async fn goes_on_after_the_groups_were_destroyed() {
    let server = RedisServer::start();
    let stream = server.stream();
    let source = source(stream.settings());
    let events = numbered(0..10);
    stream.publish(&events);
    let held = read_num(&source, 10).await;
    stream.command::<()>("XGROUP DESTROY events event-persister");
    stream.command::<()>("XGROUP DESTROY events event-persister-guard");
    // What is still in the stream comes again; the store knows what it has.
    assert_eq!(consume_all(&source, &events).await, 10);
    acknowledge(&source, &held).await;
    assert_eq!(stream.num_pending(), 0);
    assert!(stream.last_delivered(GUARD).is_some());
}

#[actix_web::test]
async fn makes_the_guard_again_while_nobody_reads() {
    let server = RedisServer::start();
    let stream = server.stream();
    let source = source(stream.settings());
    join(&source).await;
    stream.command::<()>("XGROUP DESTROY events event-persister-guard");
    until("the guard is back", || {
        stream.last_delivered(GUARD).is_some()
    })
    .await;
}

#[actix_web::test]
async fn goes_on_after_the_server_was_stalled() {
    let server = RedisServer::start();
    let stream = server.stream();
    let source = source(stream.settings());
    stream.publish(&numbered(0..50));
    let held = read_num(&source, 50).await;
    stream.publish(&numbered(50..100));
    server.stall();
    let since = Instant::now();
    let error = next_error(&source).await;
    assert!(
        error.to_string().contains("does not answer in time"),
        "{error}"
    );
    assert!(
        since.elapsed() < Duration::from_secs(6),
        "{:?}",
        since.elapsed()
    );
    source
        .acknowledge(&receipts(&held))
        .await
        .expect_err("it is stalled");
    sleep(Duration::from_secs(1)).await;
    server.resume();
    let since = Instant::now();
    assert_eq!(
        consume_all(&source, &numbered(50..100)).await,
        50,
        "each once"
    );
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "{:?}",
        since.elapsed()
    );
    acknowledge(&source, &held).await;
    assert_eq!(stream.num_pending(), 0);
}

#[actix_web::test]
async fn what_a_lost_answer_took_comes_again() {
    let server = RedisServer::start();
    let stream = server.stream();
    let proxy = Proxy::to(server.port());
    let source = source(RedisSettings {
        url: proxy.url(&server.url()).parse().unwrap(),
        ..stream.settings()
    });
    join(&source).await;
    // The next answer never arrives: what it brings is pending for us, and we do not know.
    proxy.lose_answers();
    let events = numbered(0..100);
    stream.publish(&events);
    tokio::select! {
        read = source.read(WIDE) => {
            assert!(read.is_ok_and(|chunk| chunk.messages.is_empty()));
        }
        () = until("answered: the read", || stream.num_pending() > 0) => {}
    }
    assert!(stream.num_pending() > 0, "the server has answered");
    proxy.refuse();
    proxy.pass();
    let since = Instant::now();
    assert_eq!(consume_all(&source, &events).await, 100, "each once");
    assert!(since.elapsed() < Duration::from_secs(5));
    assert_eq!(stream.num_pending(), 0);
}

#[actix_web::test]
async fn a_dropped_connection_in_the_middle_of_reads_loses_and_doubles_nothing() {
    let server = RedisServer::start();
    let stream = server.stream();
    let proxy = Proxy::to(server.port());
    let source = source(RedisSettings {
        url: proxy.url(&server.url()).parse().unwrap(),
        ..stream.settings()
    });
    let events = numbered(0..5000);
    let publisher = stream.clone();
    let published = events.clone();
    let publishing = std::thread::spawn(move || {
        for part in published.chunks(50) {
            publisher.publish(part);
        }
    });
    let cutting = async {
        for _ in 0..10 {
            sleep(Duration::from_millis(60)).await;
            proxy.refuse();
            sleep(Duration::from_millis(5)).await;
            proxy.pass();
        }
    };
    let (num, ()) = tokio::join!(consume_all(&source, &events), cutting);
    publishing.join().unwrap();
    assert_eq!(num, 5000);
    until("all is acknowledged", || stream.num_pending() == 0).await;
}

#[actix_web::test]
async fn errors_name_the_server_and_the_remedy_and_no_secret() {
    let server = RedisServer::start_with(ServerOptions {
        password: Some("right".to_owned()),
        ..ServerOptions::default()
    });
    let stream = server.stream();
    let at = format!("127.0.0.1:{}", server.port());
    let says = async |url: String| {
        let source = source(RedisSettings {
            url: url.parse().unwrap(),
            ..stream.settings()
        });
        let error = error_chain(&next_error(&source).await);
        assert!(!error.contains("secret"), "{error}");
        error
    };
    let error = says(format!("redis://:secret@{at}/0")).await;
    assert!(
        error.starts_with(&format!("Redis at {at}/0: connecting failed")),
        "{error}"
    );
    assert!(error.contains("password is wrong"), "{error}");
    let error = says(format!("redis://{at}/0")).await;
    assert!(error.contains("wants a password"), "{error}");
    let error = says(format!("redis://:right@{at}/99")).await;
    assert!(error.contains("no database of that number"), "{error}");
    let error = says(format!("rediss://:secret@{at}/0")).await;
    assert!(error.contains("TLS"), "{error}");
    let nobody = crate::support::ports::free_port();
    let error = says(format!("redis://127.0.0.1:{nobody}/0")).await;
    assert!(error.contains("nothing listens there"), "{error}");
    let source = source(stream.settings());
    stream.command::<()>("SET events text");
    let error = error_chain(&next_error(&source).await);
    assert!(error.contains("something other than a stream"), "{error}");
    stream.command::<()>("DEL events");
    let events = numbered(0..3);
    stream.publish(&events);
    consume_all(&source, &events).await;
}

#[actix_web::test]
async fn speaks_tls_and_checks_the_certificate() {
    let server = RedisServer::start_with(ServerOptions {
        tls: true,
        password: Some("right".to_owned()),
        ..ServerOptions::default()
    });
    let stream = server.stream();
    let with = |url: RedisUrl, ca_file: Option<PathBuf>| {
        source(RedisSettings {
            url,
            ca_file,
            ..stream.settings()
        })
    };
    let url = || stream.settings().url;
    let trusting = with(url(), Some(server.ca_file()));
    join(&trusting).await;
    trusting.close().await.unwrap();
    let careless = format!("{}?ssl_cert_reqs=none", server.url());
    let careless = with(careless.parse().unwrap(), None);
    join(&careless).await;
    let distrusting = with(url(), None);
    let error = error_chain(&next_error(&distrusting).await);
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    let missing = with(url(), Some("/nowhere/ca.pem".into()));
    let error = error_chain(&next_error(&missing).await);
    assert!(error.contains("/nowhere/ca.pem cannot be read"), "{error}");
}

#[actix_web::test]
async fn shows_a_certificate_where_the_server_wants_one() {
    let server = RedisServer::start_with(ServerOptions {
        tls: true,
        wants_certificate: true,
        ..ServerOptions::default()
    });
    let stream = server.stream();
    let with = |identity: Option<[PathBuf; 2]>| {
        let [cert_file, key_file] = match identity {
            Some(files) => files.map(Some),
            None => [None, None],
        };
        source(RedisSettings {
            ca_file: Some(server.ca_file()),
            cert_file,
            key_file,
            ..stream.settings()
        })
    };
    let [cert_file, key_file] = server.certificate();
    let known = with(Some([cert_file.clone(), key_file]));
    join(&known).await;
    known.close().await.unwrap();
    next_error(&with(None)).await;
    let without_key = with(Some([cert_file, "/nowhere/key.pem".into()]));
    let error = error_chain(&next_error(&without_key).await);
    assert!(error.contains("/nowhere/key.pem cannot be read"), "{error}");
}

#[actix_web::test]
async fn a_certificate_of_another_name_is_trusted_where_the_name_is_left_out() {
    let server = RedisServer::start_with(ServerOptions {
        tls: true,
        has_other_name: true,
        ..ServerOptions::default()
    });
    let ca = server.ca_file();
    let with = |parameters: &str| {
        let url = format!("{}?{parameters}", server.url());
        source(RedisSettings {
            consumer_name: consumer_name("test"),
            ..RedisSettings::from_url(&url).unwrap()
        })
    };
    let ca = format!("ssl_ca_certs={}", ca.display());
    let nameless = with(&format!("{ca}&ssl_check_hostname=false"));
    join(&nameless).await;
    nameless.close().await.unwrap();
    let error = error_chain(&next_error(&with(&ca)).await);
    assert!(error.contains("not valid for name"), "{error}");
    // The authority is still one that must be known.
    let error = error_chain(&next_error(&with("ssl_check_hostname=false")).await);
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    assert!(!error.contains("name"), "{error}");
}

/// A script that may not do something fails in another way, which depends on the server's version.
#[actix_web::test]
async fn what_the_user_may_not_do_is_told_with_all_that_is_needed() {
    let server = RedisServer::start();
    let stream = server.stream();
    let url = server.url().replace("redis://", "redis://ann:hush@");
    let allow = |rights: &str| {
        stream.command::<()>(&format!("ACL SETUSER ann reset on >hush ~events {rights}"));
    };
    let source = source(RedisSettings {
        url: url.parse().unwrap(),
        ..stream.settings()
    });
    for too_little in ["+@stream", "+@stream +eval"] {
        allow(too_little);
        let error = error_chain(&next_error(&source).await);
        assert!(error.contains("+@stream +eval +exists +time"), "{error}");
    }
    allow("+@stream +eval +exists +time +info");
    stream.publish(&numbered(0..10));
    assert_eq!(consume_all(&source, &numbered(0..10)).await, 10);
}

#[actix_web::test]
async fn a_socket_is_used_with_the_database_and_the_login_of_its_url() {
    let server = RedisServer::start();
    let stream = server.stream();
    stream.command::<()>("ACL SETUSER ann on >p@ss/word ~* +@all");
    stream.command::<()>("CONFIG SET requirepass right");
    let stream = TestStream::at(format!("redis://:right@127.0.0.1:{}/3", server.port()));
    let socket = server.socket();
    let socket = socket.display();
    let by = |url: String| {
        source(RedisSettings {
            consumer_name: consumer_name("test"),
            block: Duration::from_millis(100),
            ..RedisSettings::from_url(&url).unwrap()
        })
    };
    for (number, url) in [
        format!("unix://{socket}?db=3&username=ann&password=p%40ss%2Fword"),
        format!("unix://ann:p%40ss%2Fword@{socket}?db=3"),
        format!("unix://{socket}?db=3&password=right"),
    ]
    .into_iter()
    .enumerate()
    {
        let events = numbered(number..number + 1);
        stream.publish(&events);
        let source = by(url);
        assert_eq!(consume_all(&source, &events).await, 1);
        source.close().await.unwrap();
    }
    for (url, told) in [
        (
            format!("unix://{socket}?db=3&username=ann&password=hush"),
            "user or password is wrong",
        ),
        (format!("unix://{socket}"), "it wants a password"),
        (
            "unix:///nowhere/redis.sock?password=hush".to_owned(),
            "/nowhere/redis.sock",
        ),
    ] {
        let error = error_chain(&next_error(&by(url)).await);
        assert!(error.contains(told), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }
}
