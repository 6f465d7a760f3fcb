//! How fast stored events are found among many, what people who look cost those who write, and how soon
//! and how completely a subscriber is told what is committed.
//!
//! `cargo bench --features service-tests --bench reader`
//!
//! | variable | default | |
//! |---|---|---|
//! | `BENCH_PARTS` | postgresql,sqlite,beside,out,slow | which parts |
//! | `BENCH_EVENTS` | 1000000 | stored events that are searched |
//! | `BENCH_EXECUTIONS` | 1000 | of each question, but no longer than a minute |
//! | `BENCH_INGESTED` | 100000 | events that are taken in beside people who look |
//! | `BENCH_ROUNDS` | 5 | of that |
//! | `BENCH_SECONDS` | 60 | how long a subscriber is told 2,000 events a second |
//! | `BENCH_EVENTS_FILE` | generated | events to use, one a line, plain or gzipped |
//!
//! Twelve questions are asked as clients ask them, one after the other on one connection. The stored events
//! are spread over thirty days, in bursts of a thousand. The first five executions have plans of their own in
//! any case; PostgreSQL could take one for all values from the sixth on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::reader::{
    CountRequest, Countable, EventFilter, EventReader, PageRequest, Part, Place,
};
use event_persister_actors::store::postgres::{PostgresReader, PostgresSettings};
use event_persister_actors::store::sqlite::{SqliteReader, SqliteSettings};
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message as Frame;

#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/client.rs"]
mod client;

#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/binary.rs"]
mod binary;
#[allow(dead_code, reason = "other benchmarks and the tests need more of it")]
#[path = "support/kit.rs"]
mod kit;
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/light_client.rs"]
mod light_client;
#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/socket.rs"]
mod socket;

use binary::Folder;
use kit::load::{Load, Message};
use kit::persister::{self, Persister};
use kit::reference::{self, Way};
use kit::servers::Servers;
use kit::stats::{Samples, Table, shown, turns};
use kit::{copy, settings};

/// Stored events come in bursts of so many.
const BURST: usize = 1_000;
const DAYS: i64 = 30;
/// What is encoded at a time.
const STEP: usize = 50_000;
/// No question is asked for longer.
const LONGEST: Duration = Duration::from_secs(60);
/// Executions before PostgreSQL could take one plan for all.
const OWN_PLANS: usize = 5;
/// What an index serves takes no longer, 99 times of 100.
const WANTED: f64 = 0.1;

/// All messages that are stored before questions are asked, step by step.
fn stored(num_events: usize, since: DateTime<Utc>) -> impl Iterator<Item = Vec<Message>> {
    let pause = TimeDelta::days(DAYS) / i32::try_from(num_events.div_ceil(BURST)).unwrap();
    // The last burst is just over.
    let first = since + pause - TimeDelta::minutes(1);
    let mut load = Load::new(settings::events_file().as_deref(), first);
    let num_steps = num_events.div_ceil(STEP);
    (0..num_steps).map(move |_| {
        let mut messages = Vec::with_capacity(STEP);
        for _ in 0..STEP.div_ceil(BURST) {
            messages.extend(load.take(BURST));
            load.pause(pause);
        }
        messages
    })
}

/// What one is asked, and what is measured.
struct Question {
    name: &'static str,
    /// Whether an index leads to what is asked for, so that it must be fast.
    has_index: bool,
    asked: Asked,
}

enum Asked {
    Page(EventFilter, Option<Place>),
    Count(EventFilter, Countable),
}

impl Question {
    fn page(name: &'static str, has_index: bool, filter: Value, now: DateTime<Utc>) -> Self {
        let body = json!({ "filter": filter }).to_string();
        let request = PageRequest::parse(body.as_bytes(), now).unwrap();
        Self {
            name,
            has_index,
            asked: Asked::Page(request.filter, None),
        }
    }

    fn count(name: &'static str, what: &str, body: &Value, now: DateTime<Utc>) -> Self {
        let request = CountRequest::parse(what, body.to_string().as_bytes(), now).unwrap();
        let countable = request.countable(now).unwrap();
        Self {
            name,
            has_index: true,
            asked: Asked::Count(request.filter, countable),
        }
    }
}

/// Twelve of them, about what is in fact stored; `sample` is an event of a flow run.
fn questions(sample: &Value, now: DateTime<Utc>) -> Vec<Question> {
    let last = |hours: i64| json!({ "since": now - TimeDelta::hours(hours), "until": now });
    let run = &sample["resource"]["prefect.resource.id"];
    let flow = &sample["related"][0]["prefect.resource.id"];
    let page = |name, has_index, filter| Question::page(name, has_index, filter, now);
    let mut behind = page("the same, behind the middle", true, json!({}));
    if let Asked::Page(_, after) = &mut behind.asked {
        *after = Some(Place {
            occurred: now - TimeDelta::days(DAYS / 2),
            id: uuid::Uuid::max(),
        });
    }
    vec![
        // Their page has an index; all of them are counted.
        page("the newest of all", false, json!({})),
        behind,
        page("an hour", true, json!({ "occurred": last(1) })),
        page(
            "a name, in a day",
            true,
            json!({ "occurred": last(24), "event": { "name": ["prefect.flow-run.Failed"] } }),
        ),
        page(
            "a prefix of names, in a day",
            true,
            json!({ "occurred": last(24), "event": { "prefix": ["prefect.flow-run."] } }),
        ),
        page(
            "a resource, ever",
            true,
            json!({ "resource": { "id": [run] } }),
        ),
        page(
            "a related resource, in a day",
            true,
            json!({ "occurred": last(24), "related": { "id": [flow] } }),
        ),
        page(
            "any resource, ever",
            true,
            json!({ "any_resource": { "id": [run] }, "order": "ASC" }),
        ),
        page(
            "a label, in an hour",
            true,
            json!({ "occurred": last(1), "resource": { "labels": { "prefect.state-type": "FAIL*" } } }),
        ),
        page(
            // An index leads to the hour; what is written in its events is read.
            "a text, in an hour",
            false,
            json!({ "occurred": last(1), "text": { "query": "OperationalError -retries" } }),
        ),
        Question::count(
            "a histogram of a day",
            "time",
            &json!({ "filter": { "occurred": last(24) }, "time_unit": "minute", "time_interval": 15 }),
            now,
        ),
        Question::count(
            "the names of a day",
            "event",
            &json!({ "filter": { "occurred": last(24) } }),
            now,
        ),
    ]
}

/// Asks each question again and again, and shows how long that took.
async fn ask(title: &str, reader: &dyn EventReader, questions: &[Question]) {
    let num_executions = settings::number("BENCH_EXECUTIONS", 1_000);
    let mut table = Table::new(&[
        title,
        "found",
        "executions",
        "p50 ms",
        "p99 ms",
        "first 5 ms",
        "from the 7th ms",
        "",
    ]);
    for question in questions {
        let mut times = Vec::new();
        let mut num_found = 0;
        let started = Instant::now();
        while times.len() < num_executions
            && (times.len() <= OWN_PLANS + 1 || started.elapsed() < LONGEST)
        {
            let began = Instant::now();
            num_found = match &question.asked {
                Asked::Page(filter, after) => {
                    let part = Part {
                        limit: 50,
                        after: *after,
                        counts: after.is_none(),
                    };
                    let page = reader.page(filter, part).await.unwrap();
                    page.total.unwrap_or(page.events.len() as u64)
                }
                Asked::Count(filter, countable) => {
                    let counts = reader.count(filter, countable).await.unwrap();
                    counts.iter().map(|count| count.count).sum()
                }
            };
            times.push(began.elapsed().as_secs_f64());
        }
        let all: Samples = times.iter().copied().collect();
        let median_of = |times: &[f64]| times.iter().copied().collect::<Samples>().median();
        // The first one finds nothing in memory.
        let first = median_of(&times[1..OWN_PLANS]);
        let later = median_of(&times[OWN_PLANS + 1..]);
        let is_slow = question.has_index && all.quantile(0.99) > Some(WANTED);
        let is_slower = later > first.map(|first| first * 1.5 + 0.001);
        let remark = match (is_slow, is_slower, question.has_index) {
            (true, _, _) => "TOO SLOW",
            (_, true, _) => "SLOWER LATER",
            (_, _, false) => "no index",
            _ => "",
        };
        let millis = |seconds: Option<f64>| shown(seconds.map(|seconds| seconds * 1e3), 1);
        table.row(vec![
            question.name.to_owned(),
            num_found.to_string(),
            times.len().to_string(),
            millis(all.median()),
            millis(all.quantile(0.99)),
            millis(first),
            millis(later),
            remark.to_owned(),
        ]);
    }
    table.print();
}

fn print_plans(question: &Question, plans: &[String]) {
    println!("\n-- {}", question.name);
    println!("{}", plans.join("\n"));
}

/// An event of a flow run, of those that were stored somewhere in the middle.
fn sample_of(messages: &[Message]) -> Option<Value> {
    let events = messages
        .iter()
        .map(|message| serde_json::from_str::<Value>(&message.data).unwrap());
    events.into_iter().find(|event| {
        let is_of_run = event["event"]
            .as_str()
            .unwrap()
            .starts_with("prefect.flow-run.");
        is_of_run && event["related"][0].is_object()
    })
}

fn in_postgresql(num_events: usize) {
    let servers = Servers::start();
    let database = servers.fresh_database("reader");
    let now = SystemClock.now();
    let mut sample = None;
    for messages in stored(num_events, now - TimeDelta::days(DAYS)) {
        sample = sample.or_else(|| sample_of(&messages));
        reference::run(&database, Way::Copy, 2, &copy::encode(&messages));
    }
    database.execute("VACUUM (ANALYZE) events, event_resources");
    database.execute("CHECKPOINT");
    let questions = questions(&sample.unwrap(), now);
    actix_rt::System::new().block_on(async {
        let settings = PostgresSettings::from_url(&database.url).unwrap();
        let reader = PostgresReader::new(settings);
        ask("PostgreSQL", &reader, &questions).await;
        for question in &questions {
            let plans = match &question.asked {
                Asked::Page(filter, _) => reader.plans(filter, None).await,
                Asked::Count(filter, countable) => reader.plans(filter, Some(countable)).await,
            };
            print_plans(question, &plans.unwrap());
        }
    });
}

fn in_sqlite(num_events: usize) {
    let folder = Folder::new();
    let now = SystemClock.now();
    let mut sample = None;
    let mut import = folder.spawn(&["import", "-"], &[]);
    // What it says is not looked at, and must not fill its pipe.
    drop(import.stdout.take());
    drop(import.stderr.take());
    let mut stdin = import.stdin.take().unwrap();
    for messages in stored(num_events, now - TimeDelta::days(DAYS)) {
        sample = sample.or_else(|| sample_of(&messages));
        for message in messages {
            writeln!(stdin, "{}", message.data).unwrap();
        }
    }
    drop(stdin);
    assert!(import.wait().unwrap().success());
    let questions = questions(&sample.unwrap(), now);
    actix_rt::System::new().block_on(async {
        let settings = SqliteSettings::new(folder.database_path());
        let reader = SqliteReader::new(settings);
        ask("SQLite", &reader, &questions).await;
        for question in &questions {
            let plans = match &question.asked {
                Asked::Page(filter, _) => reader.plans(filter, None).await,
                Asked::Count(filter, countable) => reader.plans(filter, Some(countable)).await,
            };
            print_plans(question, &plans.unwrap());
        }
    });
}

/// People who look at the page, each as a browser does; gone when it is dropped.
struct Lookers {
    stop: tokio::sync::watch::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
    counts: Arc<LookedAt>,
}

#[derive(Default)]
struct LookedAt {
    num_answers: AtomicUsize,
    /// Other ones than 200.
    num_refused: AtomicUsize,
    /// What was told live.
    num_bytes: AtomicUsize,
}

impl Lookers {
    fn start(address: &str, company: &Company) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(());
        let counts = Arc::new(LookedAt::default());
        let (address, all) = (address.to_owned(), Arc::clone(&counts));
        let (num, num_searching) = (company.num, company.num_searching);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async {
                let one = |number: usize| {
                    let (mut stopped, address, all) = (stopped.clone(), &address, &all);
                    async move {
                        tokio::select! {
                            () = look(address, all), if number >= num_searching => {}
                            () = search(address, all), if number < num_searching => {}
                            _ = stopped.changed() => {}
                        }
                    }
                };
                futures_util::future::join_all((0..num).map(one)).await;
            });
        });
        Self {
            stop,
            thread: Some(thread),
            counts,
        }
    }
}

impl Drop for Lookers {
    fn drop(&mut self) {
        self.stop.send_replace(());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// The page, which shows the last hour and follows it: its state every 2 s, counts every 20 s.
async fn look(address: &str, counts: &LookedAt) {
    // It may not listen yet.
    while TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let live = async {
        let mut events = light_client::follow(address, Some(250)).await;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let num_bytes = events.read(&mut buffer).await.unwrap_or_default();
            if num_bytes == 0 {
                return std::future::pending().await;
            }
            counts.num_bytes.fetch_add(num_bytes, Ordering::Relaxed);
        }
    };
    let states = async {
        loop {
            http(address, "GET", "status", &Value::Null, counts).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    };
    let numbers = async {
        let hour = || {
            let now = SystemClock.now();
            json!({ "occurred": { "since": now - TimeDelta::hours(1), "until": now } })
        };
        http(
            address,
            "POST",
            "events/filter",
            &json!({ "filter": hour() }),
            counts,
        )
        .await;
        loop {
            let times = json!({ "filter": hour(), "time_unit": "second", "time_interval": 30 });
            let names = json!({ "filter": hour() });
            tokio::join!(
                http(address, "POST", "events/count-by/time", &times, counts),
                http(address, "POST", "events/count-by/event", &names, counts)
            );
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
    };
    tokio::join!(live, states, numbers);
}

/// Looks for a text that is nowhere, so that every stored event is read, and as soon as that is answered again.
async fn search(address: &str, counts: &LookedAt) {
    while TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let body = json!({ "filter": { "text": { "query": "written-in-no-event" } } });
    loop {
        http(address, "POST", "events/filter", &body, counts).await;
    }
}

/// Who asks while events are taken in.
struct Company {
    name: &'static str,
    num: usize,
    /// Of these, those who search all events without a pause, instead of looking at the page.
    num_searching: usize,
}

const COMPANY: [Company; 4] = [
    Company {
        name: "nobody",
        num: 0,
        num_searching: 0,
    },
    Company {
        name: "1 at the page",
        num: 1,
        num_searching: 0,
    },
    Company {
        name: "10 at the page",
        num: 10,
        num_searching: 0,
    },
    Company {
        name: "1 who reads all events, again and again",
        num: 1,
        num_searching: 1,
    },
];

async fn http(address: &str, method: &str, path: &str, body: &Value, counts: &LookedAt) {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let request = format!(
        "{method} /api/{path} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = asked.await.unwrap_or_default();
    counts.num_answers.fetch_add(1, Ordering::Relaxed);
    if !answer.starts_with(b"HTTP/1.0 200 ") && !answer.starts_with(b"HTTP/1.1 200 ") {
        counts.num_refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// From Redis into PostgreSQL beside nobody, and beside those who look and search.
fn beside() {
    let num_events = settings::number("BENCH_INGESTED", 100_000);
    let num_rounds = settings::number("BENCH_ROUNDS", 5);
    let servers = Servers::start();
    let file = settings::events_file();
    let mut rates = [(); COMPANY.len()].map(|()| Samples::default());
    let mut processor = [(); COMPANY.len()].map(|()| Samples::default());
    let mut looked = [[0; 3]; COMPANY.len()];
    for round in 0..num_rounds {
        for variant in turns(COMPANY.len(), round) {
            // Recent enough that the page is told of them live.
            let since = SystemClock.now() - TimeDelta::minutes(10);
            let messages = Load::new(file.as_deref(), since).take(num_events);
            let database = servers.fresh_database("bench");
            servers.filled_stream(&messages);
            database.execute("CHECKPOINT");
            let mut counts = None;
            let run = persister::run_beside(&servers.redis, &database, &[], |persister| {
                let lookers = Lookers::start(&persister.address(), &COMPANY[variant]);
                counts = Some(Arc::clone(&lookers.counts));
                lookers
            });
            rates[variant].push(num_events as f64 / run.took.as_secs_f64());
            processor[variant].push(run.processor.as_secs_f64() * 1e6 / num_events as f64);
            let counts = counts.unwrap();
            let of_now = [&counts.num_answers, &counts.num_refused, &counts.num_bytes];
            for (sum, count) in looked[variant].iter_mut().zip(of_now) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
    }
    let mut table = Table::new(&[
        "who look",
        "events/s",
        "of the rate alone",
        "own CPU µs",
        "answers",
        "not 200",
        "told MB",
    ]);
    for (variant, company) in COMPANY.iter().enumerate() {
        let [answers, refused, bytes] = looked[variant];
        table.row(vec![
            company.name.to_owned(),
            shown(rates[variant].median(), 0),
            shown(rates[variant].over(&rates[0]).median(), 3),
            shown(processor[variant].median(), 1),
            answers.to_string(),
            refused.to_string(),
            (bytes / 1_000_000).to_string(),
        ]);
    }
    table.print();
}

/// What a subscriber reads of a message.
#[derive(Deserialize)]
struct Told {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    count: u64,
    event: Option<ToldEvent>,
}

#[derive(Deserialize)]
struct ToldEvent {
    id: String,
}

/// What a subscriber was told.
#[derive(Default)]
struct Heard {
    events: HashMap<String, Vec<Instant>>,
    num_missed: u64,
}

async fn subscribed(address: &str) -> socket::Socket {
    let connected = socket::connect_to(address, "/api/events/out", Some("prefect"), &[]).await;
    let mut subscriber = connected.unwrap();
    socket::authenticate(&mut subscriber, Value::Null).await;
    let filter = json!({ "type": "filter", "filter": {}, "backfill": false, "missed": true });
    socket::send(&mut subscriber, filter.to_string().into()).await;
    socket::ping(&mut subscriber, "now").await;
    subscriber
}

/// Posts events to these services, so many a second in all, in lists; when each was sent, and to whom.
async fn publish(
    addresses: &[String],
    messages: &[Message],
    rate: usize,
) -> HashMap<String, (usize, Instant)> {
    const LISTS_A_SECOND: usize = 50;
    let size = (rate / LISTS_A_SECOND / addresses.len()).max(1);
    let client = client::client();
    let sent = Mutex::new(HashMap::new());
    let lists: Vec<_> = messages.chunks(size).collect();
    let started = Instant::now();
    let of_replica = |replica: usize| {
        let (client, sent, lists, address) = (&client, &sent, &lists, &addresses[replica]);
        async move {
            let own = lists.iter().skip(replica).step_by(addresses.len());
            for (number, list) in own.enumerate() {
                let due = Duration::from_secs(1) * u32::try_from(number).unwrap()
                    / u32::try_from(LISTS_A_SECOND).unwrap();
                tokio::time::sleep_until(started + due).await;
                let texts: Vec<&str> = list.iter().map(|message| message.data.as_str()).collect();
                let body = format!("[{}]", texts.join(","));
                let now = Instant::now();
                let answer = client
                    .post(format!("http://{address}/api/events"))
                    .header("content-type", "application/json")
                    .body(body);
                let ids = list
                    .iter()
                    .map(|message| (message.id.clone(), (replica, now)));
                sent.lock().unwrap().extend(ids);
                let status = answer.send().await.unwrap().status();
                assert_eq!(status, 204);
            }
        }
    };
    futures_util::future::join_all((0..addresses.len()).map(of_replica)).await;
    sent.into_inner().unwrap()
}

/// Two replicas write into one database; one subscriber of the first.
fn out() {
    const RATE: usize = 2_000;
    let seconds: usize = settings::number("BENCH_SECONDS", 60);
    let servers = Servers::start();
    let database = servers.fresh_database("bench");
    let replicas = [(); 2].map(|()| Persister::start(&servers.redis, &database, &[]));
    replicas.iter().for_each(Persister::until_ready);
    let addresses: Vec<_> = replicas.iter().map(Persister::address).collect();
    let file = settings::events_file();
    let messages = Load::new(file.as_deref(), SystemClock.now()).take(RATE * seconds);
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.enable_all().worker_threads(2).build().unwrap();
    let (sent, heard) = runtime.block_on(async {
        let mut subscriber = subscribed(&addresses[0]).await;
        // The look for events of others begins once somebody listens.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let num_events = messages.len();
        let listening = tokio::spawn(async move {
            let mut heard = Heard::default();
            let patience = Duration::from_secs(10);
            while heard.events.len() < num_events {
                let next = tokio::time::timeout(patience, subscriber.next()).await;
                let Ok(Some(Ok(frame))) = next else { break };
                let Frame::Text(text) = frame else { continue };
                let told: Told = serde_json::from_str(&text).unwrap();
                heard.num_missed += told.count;
                let Some(event) = told.event else { continue };
                assert_eq!(told.kind, "event");
                let moments = heard.events.entry(event.id).or_default();
                moments.push(Instant::now());
            }
            heard
        });
        let sent = publish(&addresses, &messages, RATE).await;
        (sent, listening.await.unwrap())
    });
    let mut delays = [Samples::default(), Samples::default()];
    let mut num_never = 0;
    for (id, (replica, sent)) in &sent {
        match heard.events.get(id) {
            Some(moments) => delays[*replica].push((moments[0] - *sent).as_secs_f64()),
            None => num_never += 1,
        }
    }
    let num_twice = heard
        .events
        .values()
        .filter(|moments| moments.len() > 1)
        .count();
    let mut table = Table::new(&["told of what was sent", "p50 ms", "p99 ms", "max ms"]);
    for (place, delays) in ["here", "to the other replica"].iter().zip(&delays) {
        let millis = |seconds: Option<f64>| shown(seconds.map(|one| one * 1e3), 0);
        table.row(vec![
            (*place).to_owned(),
            millis(delays.median()),
            millis(delays.quantile(0.99)),
            millis(delays.max()),
        ]);
    }
    table.print();
    println!(
        "{} events at {RATE} a second: {num_never} never told, {num_twice} told twice, {} missed; memory {} MiB at most",
        sent.len(),
        heard.num_missed,
        shown(Some(replicas[0].peak_memory()), 0)
    );
    replicas.into_iter().for_each(Persister::stop);
}

/// A hundred subscribers, of which half read less than they are told.
fn slow() {
    const RATE: usize = 400;
    const SECONDS: usize = 40;
    const NUM: usize = 100;
    let servers = Servers::start();
    let database = servers.fresh_database("bench");
    let persister = Persister::start(&servers.redis, &database, &[]);
    persister.until_ready();
    let address = persister.address();
    let file = settings::events_file();
    let messages = Load::new(file.as_deref(), SystemClock.now()).take(RATE * SECONDS);
    let num_events = messages.len() as u64;
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.enable_all().worker_threads(2).build().unwrap();
    let (over, is_over) = tokio::sync::watch::channel(false);
    let heard: Vec<(u64, u64)> = runtime.block_on(async {
        let mut tasks = Vec::new();
        for number in 0..NUM {
            let mut subscriber = subscribed(&address).await;
            let is_over = is_over.clone();
            tasks.push(tokio::spawn(async move {
                let (mut num_told, mut num_missed) = (0, 0);
                while num_told + num_missed < num_events {
                    if number % 2 == 1 && !*is_over.borrow() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    let next = tokio::time::timeout(Duration::from_secs(20), subscriber.next());
                    let Ok(Some(Ok(frame))) = next.await else {
                        break;
                    };
                    let Frame::Text(text) = frame else { continue };
                    match text.starts_with(r#"{"type":"event""#) {
                        true => num_told += 1,
                        false => {
                            let told: Told = serde_json::from_str(&text).unwrap();
                            num_missed += told.count;
                        }
                    }
                }
                (num_told, num_missed)
            }));
        }
        let addresses = [address.clone()];
        publish(&addresses, &messages, RATE).await;
        over.send_replace(true);
        let heard = futures_util::future::join_all(tasks).await;
        heard.into_iter().map(|heard| heard.unwrap()).collect()
    });
    let mut table = Table::new(&["subscribers", "told", "missed", "neither"]);
    for (name, first) in [("50 that read", 0), ("50 that are slow", 1)] {
        let of = |one: fn(&(u64, u64)) -> u64| {
            let all: Samples = heard
                .iter()
                .skip(first)
                .step_by(2)
                .map(|heard| one(heard) as f64)
                .collect();
            format!("{} – {}", shown(all.min(), 0), shown(all.max(), 0))
        };
        let all = heard.iter().skip(first).step_by(2);
        let num_neither = all
            .filter(|(told, missed)| told + missed != num_events)
            .count();
        table.row(vec![
            name.to_owned(),
            of(|heard| heard.0),
            of(|heard| heard.1),
            num_neither.to_string(),
        ]);
    }
    table.print();
    println!(
        "{num_events} events at {RATE} a second; memory {} MiB at most",
        shown(Some(persister.peak_memory()), 0)
    );
    persister.stop();
}

fn main() {
    let num_events = settings::number("BENCH_EVENTS", 1_000_000);
    let parts = settings::text("BENCH_PARTS");
    let parts = parts.unwrap_or_else(|| "postgresql,sqlite,beside,out,slow".to_owned());
    for part in parts.split(',') {
        println!("\n== {part}\n");
        match part {
            "postgresql" => in_postgresql(num_events),
            "sqlite" => in_sqlite(num_events),
            "beside" => beside(),
            "out" => out(),
            "slow" => slow(),
            other => panic!("there is no part {other:?}"),
        }
    }
}
