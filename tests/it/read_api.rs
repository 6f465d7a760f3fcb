//! Stored events, read by HTTP: the lists, who may ask, the page, dead letters, and what is told live.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Child;
use std::sync::mpsc::Receiver;

use event_persister_actors::clock::{Clock as _, SystemClock};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::support::binary::Folder;
use super::support::server::Server;
use super::support::socket::{self, Socket};
use super::support::wait;

const AUTH: (&str, &str) = ("EVENT_PERSISTER_HTTP_AUTH_STRING", "ada:hush");
const FOREIGN: (&str, &str) = ("origin", "http://elsewhere.example");

/// A client of a service.
struct Client<'a> {
    server: &'a Server,
    client: reqwest::Client,
}

impl<'a> Client<'a> {
    fn of(server: &'a Server) -> Self {
        let client = crate::support::client::client();
        Self { server, client }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.server.url(path))
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.request(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.json().await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self
            .request(Method::POST, path)
            .json(&body)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path} {body}");
        answer.json().await.unwrap()
    }

    async fn status(&self, method: Method, path: &str) -> StatusCode {
        self.request(method, path).send().await.unwrap().status()
    }

    async fn send(&self, events: &[Value]) {
        let sent = self.request(Method::POST, "/api/events").json(&events);
        let sent = sent.basic_auth("ada", Some("hush")).send().await.unwrap();
        assert_eq!(sent.status(), StatusCode::NO_CONTENT);
    }
}

fn event(number: usize) -> Value {
    json!({
        "id": format!("00000000-0000-4000-8000-{number:012}"),
        "occurred": SystemClock.now() - chrono::TimeDelta::seconds(100 - number as i64),
        "event": if number.is_multiple_of(2) { "even" } else { "odd" },
        "resource": { "prefect.resource.id": format!("number.{number}"), "name": "<script>alert(1)</script>" },
        "related": [], "payload": { "number": number },
    })
}

fn events(numbers: std::ops::Range<usize>) -> Vec<Value> {
    numbers.map(event).collect()
}

fn ids(page: &Value) -> Vec<String> {
    let events = page["events"].as_array().unwrap();
    events
        .iter()
        .map(|event| event["id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_method_that_means_nothing_is_answered_with_those_that_do() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    for (path, allowed) in [
        ("/api/events/filter", "POST"),
        ("/api/events/count-by/day", "POST"),
        ("/api/events/filter/next", "GET, HEAD"),
        ("/api/status", "GET, HEAD"),
    ] {
        let asked = crate::support::client::client().put(server.url(path));
        let answer = asked.send().await.unwrap();
        assert_eq!(answer.status(), 405, "{path}");
        assert_eq!(answer.headers()["allow"], allowed, "{path}");
    }
}

#[tokio::test]
async fn what_was_sent_is_listed_counted_and_shown() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let client = Client::of(&server);
    client.send(&events(0..23)).await;
    let filter = json!({ "event": { "name": ["even"] } });
    let mut page = client
        .post(
            "/api/events/filter",
            json!({ "filter": filter, "limit": 5 }),
        )
        .await;
    let (mut all, mut num_pages) = (ids(&page), 1);
    assert_eq!(page["total"], 12);
    while let Some(next) = page["next_page"].as_str() {
        let path = next.strip_prefix(&server.url("")).unwrap().to_owned();
        page = client.get(&path).await;
        all.extend(ids(&page));
        num_pages += 1;
    }
    let expected: Vec<_> = (0_usize..23)
        .rev()
        .filter(|number| number.is_multiple_of(2))
        .map(event)
        .collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|event| event["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((all, num_pages), (expected, 3));

    let by_name = client
        .post("/api/events/count-by/event", json!({ "filter": {} }))
        .await;
    assert_eq!(
        (&by_name[0]["label"], &by_name[0]["count"]),
        (&json!("even"), &json!(12))
    );
    let one = client
        .get("/api/events/00000000-0000-4000-8000-000000000007")
        .await;
    assert_eq!(one["payload"], json!({ "number": 7 }));
    for (method, path, status) in [
        (
            Method::GET,
            "/api/events/00000000-0000-4000-8000-999999999999",
            StatusCode::NOT_FOUND,
        ),
        (
            Method::GET,
            "/api/events/filter/next?page-token=x",
            StatusCode::FORBIDDEN,
        ),
        (
            Method::GET,
            "/api/events/filter/next",
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            Method::GET,
            "/api/events/filter",
            StatusCode::METHOD_NOT_ALLOWED,
        ),
        (
            Method::POST,
            "/api/events/count-by/nothing",
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
    ] {
        assert_eq!(client.status(method, path).await, status, "{path}");
    }
    let refused = client
        .request(Method::POST, "/api/events/filter")
        .body("{\"filter\":{\"surplus\":1}}");
    let refused: Value = refused.send().await.unwrap().json().await.unwrap();
    let problem = &refused["exception_detail"][0];
    assert_eq!(problem["loc"], json!(["body", "filter", "surplus"]));
    assert_eq!(problem["type"], "extra_forbidden");
    let too_large = client
        .request(Method::POST, "/api/events/filter")
        .body(" ".repeat(70_000));
    assert_eq!(
        too_large.send().await.unwrap().status(),
        StatusCode::PAYLOAD_TOO_LARGE
    );

    let status = client.get("/api/status").await;
    assert_eq!(status["pipeline"]["ready"], true);
    let database = &status["flow"]["database"];
    assert_eq!(
        (&database["events"], &database["is_estimate"]),
        (&json!(23), &json!(false))
    );
    assert_eq!(status["flow"]["sources"][0]["name"], "http");
    assert_eq!(status["flow"]["sources"][0]["received"], 23.0);
    assert_eq!(status["service"]["has_auth"], false);
    let flow = &status["flow"];
    assert_eq!(
        (&flow["writers"]["busy"], &flow["in_flight"]["bytes"]),
        (&json!(0.0), &json!(0.0))
    );
    let next = status["retention"]["next_pass"].as_str().unwrap();
    let next = next.parse::<chrono::DateTime<chrono::Utc>>().unwrap() - SystemClock.now();
    assert!((600..=900).contains(&next.num_seconds()), "{next}");
}

#[tokio::test]
async fn the_last_retention_pass_is_told() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[("EVENT_PERSISTER_TRIM_EVERY", "100ms")]);
    let client = Client::of(&server);
    let mut old = event(1);
    old["occurred"] = json!("2026-01-01T00:00:00Z");
    client.send(&[old]).await;
    let started = tokio::time::Instant::now();
    loop {
        let retention = client.get("/api/status").await["retention"].take();
        let last = &retention["last_pass"];
        if retention["removed"] == 1.0 && !last.is_null() {
            assert_eq!(last["outcome"], "done");
            assert!(last["seconds"].as_f64().unwrap() < 60.0);
            assert!(last["at"].is_string() && last["events"].is_u64());
            break;
        }
        assert!(
            started.elapsed() < super::support::wait::PATIENCE,
            "{retention}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_page_is_served_with_a_policy_and_switched_off_by_a_setting() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let client = Client::of(&server);
    let page = client.request(Method::GET, "/").send().await.unwrap();
    let policy = page.headers()["content-security-policy"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(
        policy.contains("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    let tag = page.headers()["etag"].to_str().unwrap().to_owned();
    assert!(page.text().await.unwrap().contains("page/main.js"));
    let again = client
        .request(Method::GET, "/")
        .header("if-none-match", tag);
    assert_eq!(
        again.send().await.unwrap().status(),
        StatusCode::NOT_MODIFIED
    );
    assert_eq!(
        client.status(Method::GET, "/page/main.js").await,
        StatusCode::OK
    );
    assert_eq!(
        client.status(Method::GET, "/page/other.js").await,
        StatusCode::NOT_FOUND
    );
    drop(server);
    for (setting, page, api) in [
        (
            "EVENT_PERSISTER_HTTP_PAGE",
            StatusCode::NOT_FOUND,
            StatusCode::OK,
        ),
        (
            "EVENT_PERSISTER_HTTP_READ_API",
            StatusCode::NOT_FOUND,
            StatusCode::NOT_FOUND,
        ),
    ] {
        let folder = Folder::new();
        let server = Server::start(&folder, &[(setting, "off")]);
        let client = Client::of(&server);
        client.send(&events(0..1)).await;
        assert_eq!(client.status(Method::GET, "/").await, page, "{setting}");
        assert_eq!(
            client.status(Method::GET, "/api/status").await,
            api,
            "{setting}"
        );
        assert_eq!(
            client.status(Method::POST, "/api/events/filter").await,
            api,
            "{setting}"
        );
    }
}

/// A page of a stranger can have its own name lead to this machine, and is of our origin then.
#[tokio::test]
async fn without_an_auth_string_only_this_machine_s_own_names_are_answered() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let client = Client::of(&server);
    let port = server.address().rsplit_once(':').unwrap().1.to_owned();
    let rebound = format!("rebound.example:{port}");
    let all = READS
        .into_iter()
        .chain(CHANGES.map(|path| (Method::POST, path)))
        .chain([
            (Method::GET, "/metrics"),
            (Method::GET, "/api/openapi.json"),
        ]);
    for (method, path) in all {
        let by_name = |name: &str| {
            let request = client
                .request(method.clone(), path)
                .json(&json!({ "ids": [] }));
            request
                .header("host", name.to_owned())
                .header("origin", format!("http://{name}"))
        };
        let refused = by_name(&rebound).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{path}");
        let why: Value = refused.json().await.unwrap();
        let why = why["exception_message"].as_str().unwrap();
        assert!(why.contains("http.auth_string"), "{why}");
        let local = by_name(&format!("localhost:{port}")).send().await.unwrap();
        assert_ne!(local.status(), StatusCode::FORBIDDEN, "{path}");
    }
    let by_name = [
        ("host", &*rebound),
        ("origin", &format!("http://{rebound}")),
    ];
    let refused = socket::connect_to(
        server.address(),
        "/api/events/out",
        Some("prefect"),
        &by_name,
    );
    assert!(refused.await.is_err());
    // A proxy that passes its own name on loses no event, and is told how it is.
    let sent = client
        .request(Method::POST, "/api/events")
        .header("host", &rebound);
    let sent = sent.json(&events(0..1)).send().await.unwrap();
    assert_eq!(sent.status(), StatusCode::NO_CONTENT);
    let ready = client
        .request(Method::GET, "/api/ready")
        .header("host", &rebound);
    assert_eq!(ready.send().await.unwrap().status(), StatusCode::OK);
    drop(server);
    let server = Server::start(&folder, &[AUTH]);
    let client = Client::of(&server);
    let named = client
        .request(Method::GET, "/api/status")
        .header("host", "events.example");
    let named = named.basic_auth("ada", Some("hush")).send().await.unwrap();
    assert_eq!(named.status(), StatusCode::OK);
}

const READS: [(Method, &str); 7] = [
    (Method::GET, "/api/status"),
    (Method::POST, "/api/events/filter"),
    (Method::GET, "/api/events/filter/next"),
    (Method::POST, "/api/events/count-by/event"),
    (
        Method::GET,
        "/api/events/00000000-0000-4000-8000-000000000007",
    ),
    (Method::GET, "/api/dead-letters"),
    (Method::GET, "/api/dead-letters/1"),
];
const CHANGES: [&str; 2] = ["/api/dead-letters/replay", "/api/dead-letters/purge"];

#[tokio::test]
async fn the_auth_string_or_a_session_is_needed() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[AUTH]);
    let client = Client::of(&server);
    let refuses_all = async |cookie: Option<&str>| {
        let all = READS
            .into_iter()
            .chain(CHANGES.map(|path| (Method::POST, path)));
        for (method, path) in all {
            let mut request = client.request(method, path).json(&json!({ "ids": [] }));
            if let Some(cookie) = cookie {
                request = request.header("cookie", cookie);
            }
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
            assert!(!answer.headers().contains_key("www-authenticate"), "{path}");
        }
    };
    refuses_all(None).await;
    let sign_in = |user: &str, password: &str| {
        let body = json!({ "user": user, "password": password });
        client.request(Method::POST, "/api/session").json(&body)
    };
    for (user, password) in [("ada", "wrong"), ("eve", "hush"), ("", "hush"), ("", "")] {
        let refused = sign_in(user, password).send().await.unwrap();
        assert_eq!(
            refused.status(),
            StatusCode::UNAUTHORIZED,
            "{user}:{password}"
        );
    }
    let foreign = sign_in("ada", "hush")
        .header(FOREIGN.0, FOREIGN.1)
        .send()
        .await
        .unwrap();
    assert_eq!(foreign.status(), StatusCode::FORBIDDEN);
    let signed_in = sign_in("ada", "hush").send().await.unwrap();
    assert_eq!(signed_in.status(), StatusCode::NO_CONTENT);
    let cookie = signed_in.headers()["set-cookie"]
        .to_str()
        .unwrap()
        .to_owned();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let session = cookie.split(';').next().unwrap().to_owned();
    let with_session =
        |method: Method, path: &str| client.request(method, path).header("cookie", &session);
    let status: Value = with_session(Method::GET, "/api/status")
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(status["service"]["has_session"], true);
    let changed = with_session(Method::POST, CHANGES[1])
        .json(&json!({ "ids": ["1"] }))
        .send()
        .await
        .unwrap();
    assert_eq!(changed.status(), StatusCode::OK);
    for path in CHANGES {
        let foreign = with_session(Method::POST, path).header(FOREIGN.0, FOREIGN.1);
        let foreign = foreign.json(&json!({ "ids": ["1"] })).send().await.unwrap();
        assert_eq!(foreign.status(), StatusCode::FORBIDDEN, "{path}");
    }
    // One that lasts longer than it was given, or is of another string, is none.
    let (name, value) = session.split_once('=').unwrap();
    let (until, code) = value.split_once('.').unwrap();
    let later = until.parse::<i64>().unwrap() + 1;
    refuses_all(Some(&format!("{name}={later}.{code}"))).await;
    refuses_all(Some(&format!("{name}={until}.x"))).await;
    refuses_all(Some(&format!("{name}={until}."))).await;
    // The page itself is there for everybody, to sign in with.
    assert_eq!(client.status(Method::GET, "/").await, StatusCode::OK);
}

#[tokio::test]
async fn nothing_is_read_from_beyond_this_machine_without_an_auth_string() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[("EVENT_PERSISTER_LISTEN", "0.0.0.0:0")]);
    let client = Client::of(&server);
    let paths = [
        (Method::GET, "/"),
        (Method::GET, "/page/main.js"),
        (Method::POST, "/api/session"),
    ];
    for (method, path) in READS.into_iter().chain(paths) {
        assert_eq!(
            client.status(method, path).await,
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
    assert_eq!(
        client.status(Method::GET, "/api/health").await,
        StatusCode::OK
    );
}

#[tokio::test]
async fn dead_letters_are_listed_shown_replayed_and_purged() {
    let folder = Folder::new();
    let long = json!({ "occurred": "2026-11-20T00:00:00Z", "event": "too long a name", "id": uuid::Uuid::new_v4(),
        "resource": { "prefect.resource.id": "r" } });
    folder.write("letters.jsonl", format!("{{}}\nno event\n{long}\n"));
    let short = ("EVENT_PERSISTER_EVENTS_MAX_EVENT_NAME_LENGTH", "5");
    folder
        .run_with(&["import", "letters.jsonl"], &[short])
        .exits(1);
    let server = Server::start(&folder, &[]);
    let client = Client::of(&server);
    let first = client.get("/api/dead-letters?limit=2").await;
    assert_eq!(
        (&first["total"], first["letters"].as_array().unwrap().len()),
        (&json!(3), 2)
    );
    let next = first["next"].as_str().unwrap();
    let second = client
        .get(&format!("/api/dead-letters?limit=2&before={next}"))
        .await;
    assert_eq!(
        (second["letters"].as_array().unwrap().len(), &second["next"]),
        (1, &Value::Null)
    );
    let letter = &first["letters"][0];
    assert_eq!(
        (&letter["stage"], &letter["attempts"]),
        (&json!("parse"), &json!(1))
    );
    let id = letter["id"].as_str().unwrap();
    for unknown in ["4711", "9999999999999999999", "99999999999999999999999"] {
        let path = format!("/api/dead-letters/{unknown}");
        let answer = client.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
        let refused: Value = answer.json().await.unwrap();
        assert!(refused["exception_message"].is_string(), "{refused}");
    }
    let shown = client.get(&format!("/api/dead-letters/{id}")).await;
    assert_eq!(shown["message"]["text"], long.to_string());
    let status = client.get("/api/status").await;
    assert_eq!(status["flow"]["dead_letters"]["parse"], 3);

    let all = json!({ "through": id });
    let replayed = client.post("/api/dead-letters/replay", all.clone()).await;
    assert_eq!(
        replayed,
        json!({ "replayed": 3, "stored": 1, "duplicates": 0, "still_refused": 2 })
    );
    assert_eq!(server.database().num_events(), 1);
    let left = client.get("/api/dead-letters").await;
    assert_eq!(left["total"], 2);
    let one = left["letters"][1]["id"].as_str().unwrap();
    let purged = client
        .post("/api/dead-letters/purge", json!({ "ids": [one, "999"] }))
        .await;
    assert_eq!(purged, json!({ "purged": 1 }));
    assert_eq!(
        client.post("/api/dead-letters/purge", all).await,
        json!({ "purged": 1 })
    );
    for wrong in [
        json!({}),
        json!({ "ids": ["x"] }),
        json!({ "ids": [], "through": "1" }),
    ] {
        let refused = client
            .request(Method::POST, CHANGES[1])
            .json(&wrong)
            .send()
            .await
            .unwrap();
        assert_eq!(
            refused.status(),
            StatusCode::UNPROCESSABLE_ENTITY,
            "{wrong}"
        );
    }
    let nothing = client
        .request(Method::POST, CHANGES[1])
        .json(&json!([]))
        .send()
        .await
        .unwrap();
    assert_eq!(nothing.status(), StatusCode::BAD_REQUEST);
}

/// Whether a value is of a schema's kind, and has what it requires; members that it does not name are wrong.
fn check(schema: &Value, value: &Value, components: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return check(&components[name], value, components, at);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        if !value.is_null() {
            check(&choices[0], value, components, at);
        }
        return;
    }
    match schema["type"].as_str() {
        Some("object") => {
            let object = value.as_object().unwrap_or_else(|| panic!("{at}: {value}"));
            for key in schema["required"].as_array().into_iter().flatten() {
                assert!(
                    object.contains_key(key.as_str().unwrap()),
                    "{at} lacks {key}"
                );
            }
            let known = schema["properties"].as_object();
            for (key, value) in object {
                let schema = known.map_or(Some(&Value::Null), |known| known.get(key));
                let schema = schema.unwrap_or_else(|| panic!("{at}.{key} is not documented"));
                check(schema, value, components, &format!("{at}.{key}"));
            }
        }
        Some("array") => {
            for value in value.as_array().unwrap_or_else(|| panic!("{at}: {value}")) {
                check(&schema["items"], value, components, at);
            }
        }
        Some("string") => assert!(value.is_string(), "{at}: {value}"),
        Some("integer") => assert!(value.is_u64(), "{at}: {value}"),
        Some("boolean") => assert!(value.is_boolean(), "{at}: {value}"),
        _ => {}
    }
}

#[tokio::test]
async fn the_document_says_what_is_mounted_and_what_it_answers() {
    let folder = Folder::new();
    folder.write("letters.jsonl", "no event\n");
    folder.run(&["import", "letters.jsonl"]).exits(1);
    let server = Server::start(&folder, &[]);
    let client = Client::of(&server);
    client.send(&events(0..60)).await;
    let document = client.get("/api/openapi.json").await;
    let components = &document["components"]["schemas"];
    let next = client.post("/api/events/filter", json!({})).await;
    let token = next["next_page"]
        .as_str()
        .unwrap()
        .split_once("page-token=")
        .unwrap()
        .1
        .to_owned();
    let mut num_answers = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in ["get", "post", "delete"] {
            let documented = &methods[method];
            let url = path
                .replace("count-by/{countable}", "count-by/event")
                .replace("dead-letters/{id}", "dead-letters/1")
                .replace("{id}", "00000000-0000-4000-8000-000000000007")
                .replace("filter/next", &format!("filter/next?page-token={token}"));
            let name = method.to_uppercase().parse::<Method>().unwrap();
            let mut request = client.request(name, &url);
            if method == "post" {
                let body = match path.as_str() {
                    "/api/session" => json!({ "password": "x" }),
                    path if path.contains("dead-letters") => json!({ "ids": ["99"] }),
                    _ => json!({ "filter": {} }),
                };
                request = request.json(&body);
            }
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16().to_string();
            if documented.is_null() {
                assert!(
                    ["404", "405"].contains(&&*status),
                    "{method} {path} answers {status}"
                );
                continue;
            }
            let said = &documented["responses"][&status];
            assert!(!said.is_null(), "{method} {path} answers {status}");
            let schema = &said["content"]["application/json"]["schema"];
            if !schema.is_null() {
                let answer: Value = answer.json().await.unwrap();
                let all_of = schema["allOf"].as_array();
                if all_of.is_none() {
                    check(schema, &answer, components, path);
                }
                num_answers += 1;
            }
        }
    }
    assert_eq!(num_answers, 9);
}

#[tokio::test]
async fn a_body_that_is_not_said_to_be_json_is_refused_with_what_to_send() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[AUTH]);
    let client = Client::of(&server);
    for path in [CHANGES[0], CHANGES[1], "/api/session"] {
        let request = client.request(Method::POST, path).body("{}");
        let answer = request.basic_auth("ada", Some("hush")).send().await;
        let answer = answer.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{path}");
        let why = "send JSON, with the header content-type: application/json";
        assert_eq!(
            answer.json::<Value>().await.unwrap(),
            json!({ "exception_message": why })
        );
    }
}

#[tokio::test]
async fn dead_letters_that_cannot_be_read_are_not_said_to_be_none() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    let rename = "ALTER TABLE event_persister_dead_letters RENAME COLUMN reason TO other";
    server.database().execute(rename);
    let status = Client::of(&server).get("/api/status").await;
    let unknown = json!({ "num": null, "parse": null, "store": null, "newest": null });
    assert_eq!(status["flow"]["dead_letters"], unknown);
}

/// Rates are made of them, also while the database lets the answer wait.
#[cfg(feature = "service-tests")]
#[tokio::test]
async fn uptime_and_counters_are_of_one_moment() {
    let database = super::support::postgres::Server::shared().database();
    let folder = Folder::new();
    let url = ("EVENT_PERSISTER_DATABASE_URL", database.url.as_str());
    folder.run_with(&["migrate"], &[url]).exits(0);
    let server = Server::start(&folder, &[url]).ready().await;
    let uptime = async || {
        let status = Client::of(&server).get("/api/status").await;
        status["service"]["uptime"].as_f64().unwrap()
    };
    let started = tokio::time::Instant::now();
    let before = uptime().await;
    let connected = tokio_postgres::connect(&database.url, tokio_postgres::NoTls).await;
    let (holder, connection) = connected.unwrap();
    let connection = tokio::spawn(connection);
    let lock = "BEGIN; LOCK TABLE event_persister_dead_letters";
    holder.batch_execute(lock).await.unwrap();
    let release = async {
        let waiting = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database \
            WHERE datname = current_database() AND NOT granted";
        wait::until("asked", || database.value(waiting) != "0").await;
        let asked = started.elapsed();
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        holder.batch_execute("ROLLBACK").await.unwrap();
        asked
    };
    let answered = async {
        // The first answer is kept for so long.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        uptime().await
    };
    let (asked, after) = tokio::join!(release, answered);
    assert!(
        after - before <= asked.as_secs_f64(),
        "{before} {after} {asked:?}"
    );
    connection.abort();
}

async fn watch(server: &Server, filter: Value, backfill: bool) -> Socket {
    let mut socket = connect_out(server, &[]).await;
    socket::authenticate(&mut socket, Value::Null).await;
    let filter = json!({ "type": "filter", "filter": filter, "backfill": backfill });
    socket::send(&mut socket, filter.to_string().into()).await;
    if !backfill {
        // Once it is answered, the filter has been read.
        socket::ping(&mut socket, "now").await;
    }
    socket
}

async fn connect_out(server: &Server, headers: &[(&'static str, &str)]) -> Socket {
    let connected = socket::connect_to(
        server.address(),
        "/api/events/out",
        Some("prefect"),
        headers,
    );
    connected.await.unwrap()
}

/// The numbers of the next events that are told.
async fn told(socket: &mut Socket, num: usize) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.len() < num {
        // Pings of the server come between.
        if let tokio_tungstenite::tungstenite::Message::Text(text) = socket::next(socket).await {
            let message: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(message["type"], "event", "{message}");
            numbers.push(message["event"]["payload"]["number"].as_u64().unwrap());
        }
    }
    numbers
}

#[tokio::test]
async fn watchers_are_told_what_is_committed_here_and_by_others() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let client = Client::of(&server);
    client.send(&events(0..4)).await;
    let mut all = watch(&server, json!({}), true).await;
    assert_eq!(told(&mut all, 4).await, [0, 1, 2, 3]);
    let mut odd = watch(&server, json!({ "event": { "name": ["odd"] } }), false).await;
    client.send(&events(4..8)).await;
    assert_eq!(told(&mut all, 4).await, [4, 5, 6, 7]);
    assert_eq!(told(&mut odd, 2).await, [5, 7]);
    let other = Server::start(&folder, &[]);
    Client::of(&other).send(&events(8..12)).await;
    let mut found = told(&mut all, 4).await;
    found.sort();
    assert_eq!(found, [8, 9, 10, 11]);
    client.send(&events(12..13)).await;
    assert_eq!(told(&mut all, 1).await, [12], "each of them once");
}

#[tokio::test]
async fn what_is_told_is_for_those_who_may_ask() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[AUTH]);
    let mut socket = connect_out(&server, &[]).await;
    socket::send_auth(&mut socket, "ada:wrong".into()).await;
    assert_eq!(u16::from(socket::closed(&mut socket).await.code), 1008);
    let mut socket = connect_out(&server, &[]).await;
    socket::authenticate(&mut socket, "ada:hush".into()).await;
    socket::send(
        &mut socket,
        "{\"type\":\"filter\",\"filter\":{\"surplus\":1}}".into(),
    )
    .await;
    let closed = socket::closed(&mut socket).await;
    assert_eq!(u16::from(closed.code), 1002, "{}", closed.reason);
    let foreign = [FOREIGN];
    let refused = socket::connect_to(
        server.address(),
        "/api/events/out",
        Some("prefect"),
        &foreign,
    );
    assert!(refused.await.is_err());
    let without = socket::connect_to(server.address(), "/api/events/out", None, &[]);
    assert!(without.await.is_err());
}

#[tokio::test]
async fn watchers_are_told_that_the_service_stops() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let mut idle = watch(&server, json!({}), false).await;
    // Nobody has sent its auth message yet.
    let mut silent = connect_out(&server, &[]).await;
    server.signal("TERM");
    for socket in [&mut idle, &mut silent] {
        let closed = socket::closed(socket).await;
        assert_eq!(u16::from(closed.code), 1001);
        assert_eq!(closed.reason, "the service is stopping; connect again");
    }
    server.ended().in_good_order();
}

/// Lines as they are sent: no server has received them yet.
fn lines(events: &[Value]) -> String {
    events.iter().map(|event| format!("{event}\n")).collect()
}

#[test]
fn events_are_listed_shown_and_exported_at_a_terminal() {
    let folder = Folder::new();
    for command in ["list", "export", "tail"] {
        folder
            .run(&["events", command])
            .exits(1)
            .complains(&["cannot read the events", "there is no SQLite database"]);
    }
    folder.write("events.jsonl", lines(&events(0..130)));
    folder.run(&["import", "events.jsonl"]).exits(0);
    let list = |flags: &[&str]| {
        let arguments = [&["events", "list", "--json"], flags].concat();
        let listed = folder.run(&arguments).exits(0).json();
        let numbers = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["payload"]["number"].as_u64());
        numbers.collect::<Option<Vec<u64>>>().unwrap()
    };
    assert_eq!(
        list(&["--limit", "120"]),
        (10..130).rev().collect::<Vec<_>>()
    );
    assert_eq!(
        list(&["--oldest-first", "--limit", "2", "--event", "odd"]),
        [1, 3]
    );
    assert_eq!(
        list(&["--resource", "number.12*"]),
        [129, 128, 127, 126, 125, 124, 123, 122, 121, 120, 12]
    );
    assert_eq!(list(&["--resource", "number.12", "--event", "e*"]), [12]);
    assert_eq!(list(&["--text", "nowhere"]), [0_u64; 0]);
    assert_eq!(list(&["--since", "1h", "--limit", "999"]).len(), 130);
    assert_eq!(list(&["--until", "1h"]), [0_u64; 0]);
    let shown = folder
        .run(&["events", "show", "00000000-0000-4000-8000-000000000007"])
        .exits(0)
        .json();
    assert_eq!(shown["payload"], json!({ "number": 7 }));
    folder
        .run(&["events", "show", "00000000-0000-4000-8000-999999999999"])
        .exits(1)
        .complains(&["there is no event"]);
    folder
        .run(&["events", "list", "--limit", "1"])
        .exits(0)
        .prints(&["OCCURRED", "number.129"]);

    let exported = folder.run(&["events", "export"]).exits(0);
    let other = Folder::new();
    other.write("exported.jsonl", &exported.stdout);
    other
        .run(&["import", "exported.jsonl"])
        .exits(0)
        .prints(&["stored 130"]);
    let again = other.run(&["events", "export"]).exits(0);
    assert_eq!(again.stdout, exported.stdout);
}

#[cfg(feature = "service-tests")]
#[test]
fn a_database_without_tables_is_told_of() {
    let database = super::support::postgres::Server::shared().database();
    let url = [("EVENT_PERSISTER_DATABASE_URL", database.url.as_str())];
    let show = &["show", "00000000-0000-4000-8000-000000000007"][..];
    for command in [&["list"][..], &["export"], &["tail"], show] {
        let ran = Folder::new().run_with(&[&["events"], command].concat(), &url);
        let ran = ran
            .exits(1)
            .complains(&["there are no tables", "run `event-persister migrate`"]);
        assert!(!ran.stderr.contains("again"), "{ran:?}");
    }
}

/// The lines of a command that goes on, as it prints them.
fn tail(
    folder: &Folder,
    arguments: &[&str],
    settings: &[(&str, &str)],
) -> (Ended, Receiver<String>) {
    let arguments = [&["events", "tail", "--jsonl", "--url"], arguments].concat();
    let mut child = folder.spawn(&arguments, settings);
    let (told, lines) = std::sync::mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || {
        stdout
            .lines()
            .map_while(Result::ok)
            .try_for_each(|line| told.send(line))
    });
    (Ended(child), lines)
}

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The number of the next event that is printed.
fn printed(lines: &Receiver<String>) -> u64 {
    let line = lines.recv_timeout(super::support::wait::PATIENCE).unwrap();
    let event: Value = serde_json::from_str(&line).unwrap();
    event["payload"]["number"].as_u64().unwrap()
}

/// As large and as deep as is accepted, with spaces of the sender's.
fn extreme() -> String {
    let deep = format!("{}{}", "[".repeat(198), "]".repeat(198));
    format!("{{\"whole\":123456789012345678901234567890,\r\n\t\"price\": 1.0,\"deep\":{deep}}}")
}

#[tokio::test]
async fn numbers_are_printed_as_they_were_sent_and_no_depth_is_too_deep() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let client = Client::of(&server);
    let url = server.url("");
    let (_by_service, by_service) = tail(&folder, &[&url, "--event", "extreme"], &[]);
    let id = "00000000-0000-4000-8000-000000000001";
    let (occurred, payload) = (SystemClock.now().to_rfc3339(), extreme());
    let send = |id: &str| {
        let event = format!(
            r#"[{{"id":"{id}","occurred":"{occurred}","event":"extreme","related":[],
                "resource":{{"prefect.resource.id":"r"}},"payload":{payload}}}]"#
        );
        server.post_status(event)
    };
    assert_eq!(send(id).await, 204);
    client.send(&events(2..3)).await;
    let mut sent = 1;
    let told = loop {
        if let Ok(told) = by_service.recv_timeout(std::time::Duration::from_millis(100)) {
            break told;
        }
        assert_eq!(send(&uuid::Uuid::new_v4().to_string()).await, 204);
        sent += 1;
        assert!(sent < 300, "nothing is told");
    };
    let without_spaces = |text: &str| text.replace([' ', '\r', '\n', '\t'], "");
    let payload = format!("\"payload\":{}", without_spaces(&payload));
    let run = |arguments: &[&str]| folder.run(arguments).exits(0).stdout;
    let lines = run(&["events", "list", "--jsonl", "--limit", "999"]);
    for (what, printed) in [
        ("tail", &*told),
        ("show", &run(&["events", "show", id])),
        (
            "list",
            &run(&["events", "list", "--json", "--limit", "999"]),
        ),
        ("lines", &lines),
        ("export", &run(&["events", "export"])),
    ] {
        assert!(
            without_spaces(printed).contains(&payload),
            "{what}: {printed}"
        );
    }
    for line in lines.lines() {
        let whole = serde_json::from_str::<serde::de::IgnoredAny>(line);
        assert!(whole.is_ok(), "{line}");
    }
}

#[tokio::test]
async fn tail_follows_a_service_and_finds_it_again() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[AUTH]);
    let listen = server.address().to_owned();
    let settings = [AUTH, ("EVENT_PERSISTER_LISTEN", &*listen)];
    let url = server.url("");
    let (mut configured, all) = tail(&folder, &[], &settings);
    let (_named, odd) = tail(&folder, &[&url, "--event", "odd"], &[AUTH]);
    // Once both are told what comes, no more are sent for that.
    let client = Client::of(&server);
    let mut sent = 0;
    let first = loop {
        client.send(&events(sent..sent + 2)).await;
        sent += 2;
        std::thread::sleep(std::time::Duration::from_millis(100));
        if let (Ok(all), Ok(odd)) = (all.try_recv(), odd.try_recv()) {
            break (all, odd);
        }
        assert!(sent < 1_000, "nothing is told");
    };
    assert!(first.0.contains("\"number\":") && first.1.contains("\"event\":\"odd\""));
    while all.try_recv().is_ok() {}
    while odd.try_recv().is_ok() {}
    drop(client);
    server.terminate().in_good_order();
    let (mut errors, mut why) = (
        BufReader::new(configured.0.stderr.take().unwrap()),
        String::new(),
    );
    errors.read_line(&mut why).unwrap();
    assert!(why.contains("the service is stopping"), "{why}");
    let server = Server::start(&folder, &settings);
    // One may be stored before they are back: it is asked for.
    let client = Client::of(&server);
    client.send(&events(2_000..2_004)).await;
    let numbers = |lines, num: usize| -> Vec<u64> {
        let mut numbers =
            std::iter::repeat_with(|| printed(lines)).filter(|number| *number >= 2_000);
        numbers.by_ref().take(num).collect()
    };
    assert_eq!(numbers(&all, 4), [2_000, 2_001, 2_002, 2_003]);
    assert_eq!(numbers(&odd, 2), [2_001, 2_003]);

    let wrong = [("EVENT_PERSISTER_HTTP_AUTH_STRING", "ada:wrong")];
    let refused = folder.run_with(&["events", "tail", "--url", &url], &wrong);
    refused.exits(1).complains(&["the token is wrong"]);
    let nobody = [("EVENT_PERSISTER_LISTEN", "127.0.0.1:1")];
    let refused = folder.run_with(&["events", "tail", "--url"], &nobody);
    refused
        .exits(1)
        .complains(&["no service answers at 127.0.0.1:1"]);
}

/// An event of this moment, but for when it occurred.
fn event_at(number: usize, seconds_from_now: i64) -> Value {
    let mut event = event(number);
    event["occurred"] = json!(SystemClock.now() + chrono::TimeDelta::seconds(seconds_from_now));
    event
}

#[tokio::test]
async fn tail_prints_what_is_stored_during_a_restart_and_nothing_else_again() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let listen = server.address().to_owned();
    let settings = [("EVENT_PERSISTER_LISTEN", &*listen)];
    let client = Client::of(&server);
    // Stored before anybody follows; one of them occurs in the future.
    client.send(&[event_at(1, -5), event_at(2, 400)]).await;
    let (_process, all) = tail(&folder, &[], &settings);
    let mut sent = 10;
    while all
        .recv_timeout(std::time::Duration::from_millis(100))
        .is_err()
    {
        client.send(&[event_at(sent, 0)]).await;
        sent += 1;
        assert!(sent < 1_000, "nothing is told");
    }
    client.send(&[event_at(1_000, 300)]).await;
    while printed(&all) != 1_000 {}
    drop(client);
    server.terminate().in_good_order();
    let server = Server::start(&folder, &settings);
    let client = Client::of(&server);
    client
        .send(&[event_at(3_000, -180), event_at(3_001, 0)])
        .await;
    let mut numbers = vec![printed(&all), printed(&all)];
    client.send(&[event_at(3_002, 0)]).await;
    while numbers.last() != Some(&3_002) {
        numbers.push(printed(&all));
    }
    let later = all.recv_timeout(std::time::Duration::from_millis(500));
    assert_eq!((numbers, later.ok()), (vec![3_000, 3_001, 3_002], None));
}

#[tokio::test]
async fn a_reader_that_has_gone_ends_what_prints_for_it() {
    let folder = Folder::new();
    folder.write("events.jsonl", lines(&events(0..3_000)));
    folder.run(&["import", "events.jsonl"]).exits(0);
    let server = Server::start(&folder, &[]);
    let url = server.url("");
    for arguments in [
        &["events", "tail"][..],
        &["events", "tail", "--url", &url],
        &["events", "export"],
        &["events", "list", "--jsonl", "--limit", "3000"],
    ] {
        let mut child = folder.spawn(arguments, &[]);
        drop(child.stdout.take());
        let mut ended = Ended(child);
        let mut status = None;
        wait::until(arguments.join(" "), || {
            status = ended.0.try_wait().unwrap();
            status.is_some()
        })
        .await;
        let mut said = String::new();
        let stderr = ended.0.stderr.take().unwrap();
        BufReader::new(stderr).read_to_string(&mut said).unwrap();
        let code = status.and_then(|status| status.code());
        assert_eq!((code, &*said), (Some(0), ""), "{arguments:?}");
    }
}
