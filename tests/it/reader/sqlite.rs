//! SQLite, in a file of its own.

use std::sync::Arc;

use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::store::sqlite::{SqliteSettings, SqliteStore};
use serde_json::json;

use super::{CountRequest, Countable, EventReader as _, PageRequest, Uuid};

#[actix::test]
async fn sqlite_answers_as_prefect_does() {
    let folder = tempfile::tempdir().unwrap();
    let settings = SqliteSettings::new(folder.path().join("events.db"));
    let store = SqliteStore::new(settings, Arc::new(SystemClock));
    let reader = store.reader();
    super::promises("sqlite", &store, &reader).await;
}

#[actix::test]
async fn a_label_of_any_name_may_be_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let settings = SqliteSettings::new(folder.path().join("events.db"));
    let store = SqliteStore::new(settings, Arc::new(SystemClock));
    let reader = store.reader();
    let labels = [r"a\b", "a\\", "a\tb", "a\u{7f}é\n", "a", "n\0b"];
    let events = labels.iter().enumerate().map(|(number, label)| {
        super::event(&json!({
            "id": Uuid::from_u128(number as u128), "event": "labelled",
            "occurred": "2020-01-01T00:00:00Z",
            "resource": { "prefect.resource.id": "its", *label: "primary" },
            "related": [{
                "prefect.resource.id": "its", "prefect.resource.role": "kin", *label: "related",
            }],
        }))
    });
    super::store(&store, &events.collect::<Vec<_>>()).await;
    for (number, label) in labels.iter().enumerate() {
        for (part, value) in [
            ("resource", "primary"),
            ("any_resource", "primary"),
            ("any_resource", "related"),
            ("related", "related"),
        ] {
            let body = json!({
                "filter": {
                    "occurred": { "since": "2020-01-01T00:00:00Z", "until": "2020-01-02T00:00:00Z" },
                    part: { "labels": { *label: value } },
                },
            });
            let body = body.to_string();
            let now = SystemClock.now();
            let page = PageRequest::parse(body.as_bytes(), now).unwrap();
            let (total, pages, _) = super::pages(&reader, page, 1).await.unwrap();
            // No path of SQLite leads to a label with a NUL, and none of Prefect's to one with a backslash.
            let expected: Vec<_> = (!label.contains(['\0', '\\']))
                .then(|| Uuid::from_u128(number as u128))
                .into_iter()
                .collect();
            assert_eq!(pages.concat(), expected, "{part} {label:?}");
            assert_eq!(total, expected.len() as u64, "{part} {label:?}");
            let counted = CountRequest::parse("event", body.as_bytes(), now).unwrap();
            let counts = reader.count(&counted.filter, &Countable::Event).await;
            let counts: Vec<_> = counts.unwrap().iter().map(|count| count.count).collect();
            assert_eq!(counts, vec![1; expected.len()], "{part} {label:?}");
        }
    }
}
