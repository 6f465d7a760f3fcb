//! Questions to the tables, against what a real Prefect answered: the same events in the same order, page by
//! page, and the same counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::delivery::Entry;
use event_persister_actors::delivery::{Batch, BatchId};
use event_persister_actors::event::{EventLimits, Received, ReceivedEvent};
use event_persister_actors::reader::{
    CountRequest, Countable, EventCount, EventFilter, EventReader, PageRequest, PageToken, Part,
};
use event_persister_actors::store::{EventStore, StoreError};
use serde_json::{Value, json};
use uuid::Uuid;

use super::support::binary::data;

mod by_prefects_client;
mod on_a_database_of_prefect;
#[cfg(feature = "service-tests")]
mod postgres;
mod sqlite;

/// Prefect's answers, and the events that it was asked for.
struct Recorded {
    now: DateTime<Utc>,
    events: Vec<ReceivedEvent>,
    cases: Vec<Value>,
}

fn event(value: &Value) -> ReceivedEvent {
    let received = Received::FromText {
        default: DateTime::UNIX_EPOCH,
    };
    ReceivedEvent::parse(value.to_string().into(), &EventLimits::default(), received).unwrap()
}

fn lines(file: &str) -> Vec<Value> {
    let text = String::from_utf8(data(file)).unwrap();
    let lines = text.split_terminator('\n');
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

impl Recorded {
    fn read() -> Self {
        let mut cases = lines("filters.jsonl.gz");
        let head = cases.remove(0);
        let odd = head["odd_events"].as_array().unwrap().clone();
        // Of those of one moment only the first: in Prefect they have no order.
        let (mut seen, mut events) = (BTreeSet::new(), Vec::new());
        for value in lines("prefect-events-dev.jsonl.gz").iter().chain(&odd) {
            let keys = ["occurred", "id"].map(|key| value[key].as_str().unwrap().to_owned());
            if keys.iter().all(|key| !seen.contains(key)) {
                seen.extend(keys);
                events.push(event(value));
            }
        }
        Self {
            now: head["now"].as_str().unwrap().parse().unwrap(),
            events,
            cases,
        }
    }
}

async fn store(store: &dyn EventStore, events: &[ReceivedEvent]) {
    for (number, events) in (0..).zip(events.chunks(500)) {
        let entry = |event: &ReceivedEvent| Arc::new(Entry::of_event("test".into(), event.clone()));
        let entries = events.iter().map(entry).collect();
        let batch = Batch::new(BatchId(number), entries);
        store.write(Arc::new(batch)).await.unwrap();
    }
}

/// All pages of a list, as the routes make them.
async fn pages(
    reader: &dyn EventReader,
    request: PageRequest,
    max_pages: usize,
) -> Result<(u64, Vec<Vec<Uuid>>, bool), StoreError> {
    let part = Part {
        limit: request.limit,
        after: None,
        counts: true,
    };
    let mut page = reader.page(&request.filter, part).await?;
    let total = page.total.unwrap();
    let mut token = Some(PageToken {
        filter: request.filter,
        limit: request.limit,
        total,
        num_shown: 0,
        after: None,
    });
    let mut pages = Vec::new();
    loop {
        pages.push(page.events.iter().map(|event| event.id).collect());
        token = token.and_then(|token| token.behind(&page));
        let Some(next) = token
            .as_ref()
            .filter(|_| !page.events.is_empty() && pages.len() < max_pages)
        else {
            return Ok((total, pages, token.is_some()));
        };
        let next = PageToken::parse(next.to_json().as_bytes()).unwrap();
        page = reader.page(&next.filter, next.part()).await?;
        assert_eq!(page.total, None);
    }
}

/// The body of a case.
fn body_of(case: &Value) -> String {
    match case.get("text") {
        Some(text) => text.as_str().unwrap().to_owned(),
        None => case["body"].to_string(),
    }
}

/// The counts as they are recorded.
fn recorded_counts(counts: &[EventCount]) -> Vec<Value> {
    let counts = counts.iter().map(|count| {
        let count = serde_json::to_value(count).unwrap();
        let keys = ["value", "label", "count", "start_time", "end_time"];
        keys.map(|key| count[key].clone()).to_vec().into()
    });
    counts.collect()
}

/// How our answer to a case that Prefect answered with 200 differs, if it does.
async fn difference(
    reader: &dyn EventReader,
    (case, expected): (&Value, &Value),
    now: DateTime<Utc>,
    places: &BTreeMap<Uuid, usize>,
    max_pages: usize,
) -> Option<String> {
    let body = body_of(case);
    let path = case["path"].as_str().unwrap();
    let Some(what) = path.strip_prefix("count-by/") else {
        let request = PageRequest::parse(body.as_bytes(), now).unwrap();
        let (total, pages, has_next) = match pages(reader, request, max_pages).await {
            Ok(pages) => pages,
            Err(error) => return Some(format!("{case}\n  ours {error}\n  theirs {expected}")),
        };
        let num_pages = pages.len();
        let events: Vec<usize> = pages.iter().flatten().map(|id| places[id]).collect();
        let ours = json!({
            "status": 200, "total": total, "events": events, "pages": num_pages, "next": has_next,
        });
        return (ours != *expected).then(|| format!("{case}\n  ours {ours}\n  theirs {expected}"));
    };
    let request = CountRequest::parse(what, body.as_bytes(), now).unwrap();
    let countable = request.countable(now).unwrap();
    let counts = match reader.count(&request.filter, &countable).await {
        Ok(counts) => counts,
        Err(error) => return Some(format!("{case}\n  ours {error}\n  theirs {expected}")),
    };
    let mut counts = recorded_counts(&counts);
    let mut theirs = expected["counts"].as_array().unwrap().clone();
    let is_of_time = path.ends_with("time") || path.ends_with("day");
    let by_number = |count: &Value| std::cmp::Reverse(count[2].as_u64());
    assert!(is_of_time || counts.is_sorted_by_key(by_number), "{case}");
    if is_of_time && is_at_the_other_end(&counts, &theirs) {
        return None;
    }
    // Of as many events with the same label either may come first in Prefect.
    let key = |count: &Value| (by_number(count), count[1].to_string(), count[0].to_string());
    theirs.sort_by_key(key);
    counts.sort_by_key(key);
    (counts != theirs).then(|| format!("{case}\n  ours {counts:?}\n  theirs {theirs:?}"))
}

/// Whether the counts are the same but for events of the first bucket, which Prefect has in the last one: it rounds
/// some to the bucket before the first, and that is the last one to an index of Python.
fn is_at_the_other_end(ours: &[Value], theirs: &[Value]) -> bool {
    let counts = |buckets: &[Value]| -> Vec<u64> {
        let counts = buckets.iter().map(|bucket| bucket[2].as_u64());
        counts.collect::<Option<_>>().unwrap()
    };
    let (ours, mut theirs) = (counts(ours), counts(theirs));
    let [first, .., last] = &mut theirs[..] else {
        return false;
    };
    let num_moved = ours[0].saturating_sub(*first);
    *first += num_moved;
    *last = last.saturating_sub(num_moved);
    ours == theirs
}

/// The answers of a database called `name` in the record.
async fn answers_as_prefect_does(name: &str, reader: &dyn EventReader, recorded: &Recorded) {
    let places: BTreeMap<Uuid, usize> = recorded
        .events
        .iter()
        .enumerate()
        .map(|(place, event)| (event.id, place))
        .collect();
    let (mut num_lists, mut num_counts) = (0, 0);
    let mut wrong = Vec::new();
    for line in &recorded.cases {
        let case = &line["case"];
        let expected = line.get("prefect").unwrap_or(&line[name]);
        let path = case["path"].as_str().unwrap();
        if let Some(body_of_prefect) = expected.get("body") {
            let request = PageRequest::parse(body_of(case).as_bytes(), recorded.now).unwrap();
            let part = Part {
                limit: request.limit,
                after: None,
                counts: true,
            };
            let page = reader.page(&request.filter, part).await.unwrap();
            let events: Vec<_> = page.events.iter().map(|event| event.to_json()).collect();
            // Prefect's JSON has no spaces between its tokens, and the tables' text has; nothing else differs.
            let ours = format!("[{}]", events.join(","));
            let body_of_prefect: Value =
                serde_json::from_str(body_of_prefect.as_str().unwrap()).unwrap();
            let ours: Value = serde_json::from_str(&ours).unwrap();
            assert_eq!(ours, body_of_prefect["events"]);
            continue;
        }
        if expected["status"] != 200 {
            continue;
        }
        match path.starts_with("count-by/") {
            true => num_counts += 1,
            false => num_lists += 1,
        }
        wrong.extend(difference(reader, (case, expected), recorded.now, &places, 12).await);
    }
    let num_wrong = wrong.len();
    wrong.truncate(10);
    assert!(
        num_wrong == 0,
        "{num_wrong} answers differ:\n{}",
        wrong.join("\n")
    );
    // Counts by seconds are recorded of PostgreSQL alone.
    let num_of_seconds = if name == "sqlite" { 4 } else { 0 };
    assert_eq!((num_lists, num_counts), (361, 114 - num_of_seconds));
}

async fn finds_one_event_and_the_newest(reader: &dyn EventReader, recorded: &Recorded) {
    let event = &recorded.events[7];
    let found = reader.event(event.id).await.unwrap().unwrap();
    assert_eq!(
        (found.id, found.occurred, &found.event),
        (event.id, event.occurred, &event.event)
    );
    assert!(reader.event(Uuid::nil()).await.unwrap().is_none());
    let all = reader
        .written_since(DateTime::UNIX_EPOCH, 5_000)
        .await
        .unwrap();
    assert_eq!(all.len(), recorded.events.len());
    assert_eq!(
        reader
            .written_since(DateTime::UNIX_EPOCH, 3)
            .await
            .unwrap()
            .len(),
        3
    );
    let later = SystemClock.now() + chrono::TimeDelta::hours(1);
    assert!(reader.written_since(later, 3).await.unwrap().is_empty());
}

/// A list goes on behind the last event that was shown, whatever comes in meanwhile.
async fn pages_stay_as_they_are_while_events_come_in(
    store_of_events: &dyn EventStore,
    reader: &dyn EventReader,
    recorded: &Recorded,
) {
    let filter = EventFilter::all(recorded.now);
    let part = Part {
        limit: 10,
        after: None,
        counts: true,
    };
    let first = reader.page(&filter, part).await.unwrap();
    let token = PageToken {
        filter: filter.clone(),
        limit: 10,
        total: first.total.unwrap(),
        num_shown: 0,
        after: None,
    };
    let token = token.behind(&first).unwrap();
    let second = reader.page(&filter, token.part()).await.unwrap();
    let newest = json!({
        "id": Uuid::new_v4(), "occurred": recorded.now, "event": "newest",
        "resource": { "prefect.resource.id": "newest" },
    });
    store(store_of_events, &[event(&newest)]).await;
    assert_eq!(reader.page(&filter, token.part()).await.unwrap(), second);
    let again = reader.page(&filter, part).await.unwrap();
    assert_eq!(again.events[0].event, "newest");
    assert_eq!(again.events[1..], first.events[..9]);
}

/// Large events make pages of fewer, and none is left out.
async fn a_page_has_room_for_so_many_bytes(
    store_of_events: &dyn EventStore,
    reader: &dyn EventReader,
) {
    let large = |number: usize| {
        json!({
            "id": Uuid::from_u128(number as u128 + 1), "event": "large",
            "occurred": format!("2020-01-01T00:00:{number:02}Z"),
            "resource": { "prefect.resource.id": "large" },
            "payload": { "text": "x".repeat(if number == 3 { 20 << 20 } else { 3 << 19 }) },
        })
    };
    let events: Vec<_> = (0..6).map(|number| event(&large(number))).collect();
    store(store_of_events, &events).await;
    let filter = json!({
        "filter": {
            "event": { "name": ["large"] }, "order": "ASC",
            "occurred": { "since": "2020-01-01T00:00:00Z", "until": "2020-01-02T00:00:00Z" },
        },
    });
    let request = PageRequest::parse(filter.to_string().as_bytes(), SystemClock.now()).unwrap();
    let (total, pages, has_next) = pages(reader, request, 12).await.unwrap();
    let lengths: Vec<_> = pages.iter().map(Vec::len).collect();
    assert_eq!((total, lengths, has_next), (6, vec![2, 1, 1, 2], false));
    let ids: Vec<_> = pages.into_iter().flatten().collect();
    assert_eq!(ids, (1..=6).map(Uuid::from_u128).collect::<Vec<_>>());
}

/// The most frequent come first, and what there is no room for is left out.
async fn a_count_has_room_for_so_many_bytes(
    store_of_events: &dyn EventStore,
    reader: &dyn EventReader,
) {
    let counted = async |name: &str, labels: &[String]| {
        let named = |(number, label): (usize, &String)| {
            event(&json!({
                "id": Uuid::new_v4(), "event": name, "occurred": "2020-01-03T00:00:00Z",
                "resource": { "prefect.resource.id": format!("{number}"), "prefect.resource.name": label },
            }))
        };
        let events: Vec<_> = labels.iter().enumerate().map(named).collect();
        store(store_of_events, &events).await;
        let mut filter = EventFilter::all(SystemClock.now());
        filter.occurred.since = DateTime::UNIX_EPOCH;
        filter.event.name = vec![name.to_owned()];
        let counts = reader.count(&filter, &Countable::Resource).await.unwrap();
        counts
            .into_iter()
            .map(|count| count.value)
            .collect::<Vec<_>>()
    };
    let labels: Vec<_> = ["a", "b", "c", "d", "e"]
        .map(|label| label.repeat(1 << 20))
        .into();
    assert_eq!(counted("named", &labels).await, ["0", "1", "2"]);
    let labels = ["a".repeat(5 << 20), "b".to_owned()];
    assert_eq!(counted("named.larger", &labels).await, ["0"]);
}

/// Prefect's first moment is `-infinity` in PostgreSQL.
async fn the_first_moment_of_all_is_a_moment(
    store_of_events: &dyn EventStore,
    reader: &dyn EventReader,
) {
    const FIRST: &str = "0001-01-01T00:00:00Z";
    let events = [FIRST, "0001-01-02T00:00:00Z"].map(|occurred| {
        event(&json!({
            "id": Uuid::new_v4(), "event": "first", "occurred": occurred,
            "resource": { "prefect.resource.id": "first" },
        }))
    });
    store(store_of_events, &events).await;
    let [first, second] = &events;
    let shown = reader.event(first.id).await.unwrap().unwrap();
    assert_eq!(shown.occurred, first.occurred);
    assert_eq!(
        reader.overview().await.unwrap().oldest,
        Some(first.occurred)
    );
    let asked = json!({
        "filter": {
            "event": { "name": ["first"] }, "order": "ASC",
            "occurred": { "since": FIRST, "until": "0001-01-03T00:00:00Z" },
        },
        "limit": 1,
    });
    let request = PageRequest::parse(asked.to_string().as_bytes(), SystemClock.now()).unwrap();
    let filter = request.filter.clone();
    let (total, pages, _) = pages(reader, request, 3).await.unwrap();
    assert_eq!((total, pages.concat()), (2, vec![first.id, second.id]));
    let of_names = reader.count(&filter, &Countable::Event).await.unwrap();
    assert_eq!(
        (of_names[0].count, of_names[0].start_time),
        (2, first.occurred)
    );
    let by_day = json!({ "filter": asked["filter"], "time_unit": "day", "time_interval": 1 });
    let by_day = by_day.to_string();
    let asked = CountRequest::parse("time", by_day.as_bytes(), SystemClock.now()).unwrap();
    let countable = asked.countable(SystemClock.now()).unwrap();
    let by_day = reader.count(&filter, &countable).await.unwrap();
    assert_eq!(
        by_day.iter().map(|day| day.count).collect::<Vec<_>>(),
        [1, 1]
    );
}

async fn promises(name: &str, store_of_events: &dyn EventStore, reader: &dyn EventReader) {
    let recorded = Recorded::read();
    assert_eq!(recorded.events.len(), 2_716);
    store(store_of_events, &recorded.events).await;
    answers_as_prefect_does(name, reader, &recorded).await;
    finds_one_event_and_the_newest(reader, &recorded).await;
    pages_stay_as_they_are_while_events_come_in(store_of_events, reader, &recorded).await;
    a_page_has_room_for_so_many_bytes(store_of_events, reader).await;
    tells_in_a_few_numbers_what_is_there(reader).await;
    a_count_has_room_for_so_many_bytes(store_of_events, reader).await;
    the_first_moment_of_all_is_a_moment(store_of_events, reader).await;
    reader.close().await.unwrap();
    finds_nothing_of(reader, "odd.none").await;
}

async fn tells_in_a_few_numbers_what_is_there(reader: &dyn EventReader) {
    let overview = reader.overview().await.unwrap();
    assert_eq!(
        (overview.num_events, overview.is_estimate),
        (2_716 + 1 + 6, false)
    );
    assert!(overview.num_bytes > 1_000_000, "{}", overview.num_bytes);
    let moment = |text: &str| Some(text.parse::<DateTime<Utc>>().unwrap());
    assert_eq!(overview.oldest, moment("1970-01-01T00:00:00Z"));
    assert_eq!(overview.newest, moment("2100-01-01T00:00:00Z"));
}

async fn finds_nothing_of(reader: &dyn EventReader, name: &str) {
    let mut filter = EventFilter::all(SystemClock.now());
    filter.event.name = vec![name.to_owned()];
    let part = Part {
        limit: 5,
        after: None,
        counts: true,
    };
    let page = reader.page(&filter, part).await.unwrap();
    assert_eq!((page.total, page.events.len()), (Some(0), 0));
    let part = Part {
        counts: false,
        ..part
    };
    assert_eq!(reader.page(&filter, part).await.unwrap().total, None);
}
