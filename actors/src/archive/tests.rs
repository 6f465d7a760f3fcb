//! Passes over a real database into a real folder, and files read back.

use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;

use super::schema::{RowReader, RowWriter};
use crate::store::archivable::{EventRow, Position};

fn row(number: i64, event: &str, related: &str, payload: &str, follows: bool) -> EventRow {
    EventRow {
        position: Position {
            occurred: 1_700_000_000_000_000 + number,
            id: uuid::Uuid::from_u128(number.unsigned_abs().into()).to_string(),
        },
        received: number,
        recorded: -number,
        event: event.to_owned(),
        follows: follows.then(|| uuid::Uuid::nil().to_string()),
        resource: r#"{"prefect.resource.id": "a,]\"[b", "n": "é"}"#.to_owned(),
        related: related.to_owned(),
        payload: payload.to_owned(),
    }
}

fn written(groups: &[Vec<EventRow>]) -> Bytes {
    let mut bytes = Vec::new();
    let mut writer = RowWriter::new(&mut bytes, "an-archive").unwrap();
    for group in groups {
        writer.write_group(group).unwrap();
    }
    writer.finish().unwrap();
    drop(writer);
    bytes.into()
}

/// As a list of objects is written without spaces between its elements.
fn compact(mut row: EventRow) -> EventRow {
    row.related = row.related.replace("}, {", "},{");
    row
}

#[test]
fn a_file_holds_every_column_and_says_whose_it_is() {
    let related = r#"[{"prefect.resource.id": "x", "prefect.resource.role": "flow", "odd": "]},{\\"}, {"prefect.resource.id": "y"}]"#;
    let groups = [
        vec![
            row(1, "one", "[]", "{}", false),
            row(2, "two", related, r#"{"text": "\u00e9", "n": 1.50}"#, true),
        ],
        vec![row(
            3,
            "",
            r#"[{"prefect.resource.id": "z"}]"#,
            r#"{"a": [1, {}]}"#,
            false,
        )],
    ];
    let reader = RowReader::new(written(&groups)).unwrap();
    assert_eq!(reader.archive_id, "an-archive");
    assert_eq!((reader.num_events, reader.num_groups()), (3, 2));
    let read: Vec<EventRow> = (0..2)
        .flat_map(|number| reader.rows(number).unwrap())
        .collect();
    let expected: Vec<EventRow> = groups.concat().into_iter().map(compact).collect();
    assert!(read == expected, "{read:?}");
    let positions: Vec<Position> = expected.into_iter().map(|row| row.position).collect();
    assert_eq!(reader.positions().unwrap(), positions);
}

#[test]
fn what_somebody_else_wrote_is_not_lost() {
    let mut odd = row(1, "odd", "null", "1", false);
    odd.resource = "[]".to_owned();
    let reader = RowReader::new(written(&[vec![odd.clone()]])).unwrap();
    let read = reader.rows(0).unwrap().remove(0);
    assert_eq!(read.resource, "[]");
    assert_eq!(read.related, "[null]");
}

#[test]
fn before_all_time_is_the_year_one() {
    let mut first = row(1, "first", "[]", "{}", false);
    first.position.occurred = i64::MIN;
    let reader = RowReader::new(written(&[vec![first]])).unwrap();
    let occurred = reader.positions().unwrap()[0].occurred;
    let occurred = chrono::DateTime::from_timestamp_micros(occurred).unwrap();
    assert_eq!(occurred.to_string(), "0001-01-01 00:00:00 UTC");
}

#[test]
fn a_file_that_is_cut_off_is_no_file() {
    let whole = written(&[vec![row(1, "one", "[]", "{}", false)]]);
    for length in [0, 4, whole.len() / 2, whole.len() - 1] {
        assert!(RowReader::new(whole.slice(..length)).is_err(), "{length}");
    }
}

proptest! {
    #[test]
    fn whatever_stands_in_the_tables_comes_back(
        rows in prop::collection::vec(
            (".{0,20}", prop::collection::vec("[^\"\\\\]{0,10}", 0..4), ".{0,50}", any::<bool>()),
            1..30,
        ),
    ) {
        let rows: Vec<EventRow> = rows.into_iter().zip(1..).map(|((event, related, payload, follows), number)| {
            let related: Vec<String> = related
                .into_iter()
                .map(|text| serde_json::json!({ "prefect.resource.id": text }).to_string())
                .collect();
            row(number, &event, &format!("[{}]", related.join(",")), &payload, follows)
        }).collect();
        let (one, other) = rows.split_at(rows.len() / 2);
        let groups: Vec<Vec<EventRow>> = [one, other].into_iter()
            .filter(|group| !group.is_empty()).map(<[EventRow]>::to_vec).collect();
        let reader = RowReader::new(written(&groups)).unwrap();
        let read: Vec<EventRow> =
            (0..reader.num_groups()).flat_map(|number| reader.rows(number).unwrap()).collect();
        prop_assert!(read == rows);
    }
}

#[cfg(feature = "sqlite")]
mod passes {
    use std::num::NonZeroUsize;
    use std::sync::Arc;

    use chrono::{DateTime, TimeDelta, Utc};
    use tempfile::TempDir;

    use super::*;
    use crate::archive::{Archive, ArchiveSettings, ArchiveUrl, ArchivingStore};
    use crate::clock::{Clock, SystemClock};
    use crate::delivery::{Batch, BatchId, Entry};
    use crate::event::{EventLimits, ReceivedEvent, Resource};
    use crate::store::archivable::{ArchivableRows, FileState};
    use crate::store::sqlite::{SqliteSettings, SqliteStore};
    use crate::store::{Cutoffs, EventStore, Outcome, StoreError, TrimStep};

    const MAX: NonZeroUsize = NonZeroUsize::new(3).unwrap();

    struct Case {
        directory: TempDir,
        store: Arc<SqliteStore>,
        archiving: ArchivingStore,
    }

    impl Case {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let settings = SqliteSettings::new(directory.path().join("events.db"));
            let store = Arc::new(SqliteStore::new(settings, Arc::new(SystemClock)));
            let archiving = archiving(&store, &directory.path().join("archive"));
            Self {
                directory,
                store,
                archiving,
            }
        }

        async fn write(&self, events: &[ReceivedEvent]) -> Vec<Outcome> {
            let entries = events
                .iter()
                .map(|event| Arc::new(Entry::of_event(Arc::from("test"), event.clone())));
            self.store
                .write(Arc::new(Batch::new(BatchId(0), entries.collect())))
                .await
                .unwrap()
        }

        async fn pass(&self, cutoffs: &Cutoffs) -> u64 {
            pass(&self.archiving, cutoffs).await.unwrap()
        }

        async fn num_left(&self) -> u64 {
            let all = cutoffs(SystemClock.now() + TimeDelta::days(10_000));
            self.store
                .count_events(&all, all.default)
                .await
                .unwrap()
                .num_events
        }

        /// The ids in all files that readers see, sorted; each file has a manifest that is right.
        async fn archived(&self) -> Vec<String> {
            let place = self.archiving_place();
            let manifests = ArchivableRows::manifests(&*self.store, false)
                .await
                .unwrap();
            let mut ids = Vec::new();
            for listed in place.visible().await.unwrap() {
                let manifest = manifests
                    .iter()
                    .find(|manifest| manifest.file == listed.path)
                    .unwrap();
                assert_eq!(manifest.state, FileState::Archived);
                let file = place
                    .open(&listed.path, manifest.content.as_ref())
                    .await
                    .unwrap();
                ids.extend(
                    file.positions()
                        .unwrap()
                        .into_iter()
                        .map(|position| position.id),
                );
            }
            ids.sort();
            ids
        }

        fn archiving_place(&self) -> Arc<crate::archive::Place> {
            archive(&self.directory.path().join("archive")).place()
        }
    }

    fn archive(folder: &std::path::Path) -> Archive {
        let settings = ArchiveSettings {
            url: Some(ArchiveUrl::Folder(folder.to_owned())),
            file_events: NonZeroUsize::new(7).unwrap(),
            ..ArchiveSettings::default()
        };
        Archive::new(&settings).unwrap()
    }

    fn archiving(store: &Arc<SqliteStore>, folder: &std::path::Path) -> ArchivingStore {
        let rows = Arc::clone(store) as Arc<dyn ArchivableRows>;
        ArchivingStore::new(
            Arc::clone(store) as Arc<dyn EventStore>,
            rows,
            archive(folder),
        )
    }

    async fn pass(store: &dyn EventStore, cutoffs: &Cutoffs) -> Result<u64, StoreError> {
        let mut num_removed = 0;
        loop {
            match store.trim(cutoffs, MAX).await? {
                TrimStep::Removed(removed) => num_removed += removed.rows.events,
                TrimStep::Finished => return Ok(num_removed),
                TrimStep::TakenByAnother => panic!("nobody else is there"),
            }
        }
    }

    fn cutoffs(default: DateTime<Utc>) -> Cutoffs {
        Cutoffs {
            default,
            overrides: [("kept".to_owned(), default - TimeDelta::days(30))].into(),
        }
    }

    fn now() -> DateTime<Utc> {
        "2026-03-01T00:00:00Z".parse().unwrap()
    }

    fn event(name: &str, occurred: DateTime<Utc>) -> ReceivedEvent {
        ReceivedEvent::builder(name, Resource::new("a"))
            .related(Resource::new("b").with_role("flow"))
            .occurred(occurred)
            .build(&EventLimits::default(), occurred)
            .unwrap()
    }

    /// Events of three days before now, each an hour apart, every tenth of them kept longer.
    fn events() -> Vec<ReceivedEvent> {
        (1..=72)
            .map(|hours| {
                let name = if hours % 10 == 0 { "kept" } else { "other" };
                event(name, now() - TimeDelta::hours(hours))
            })
            .collect()
    }

    fn ids<'a>(events: impl IntoIterator<Item = &'a ReceivedEvent>) -> Vec<String> {
        let ids: BTreeSet<String> = events
            .into_iter()
            .map(|event| event.id.to_string())
            .collect();
        ids.into_iter().collect()
    }

    #[tokio::test]
    async fn what_is_removed_is_archived_and_nothing_else() {
        let case = Case::new();
        let events = events();
        case.write(&events).await;
        let cutoff = now() - TimeDelta::hours(30);
        let expired = events
            .iter()
            .filter(|event| event.event != "kept" && event.occurred < cutoff);
        let expired = ids(expired);
        assert_eq!(case.pass(&cutoffs(cutoff)).await, expired.len() as u64);
        assert_eq!(case.archived().await, expired);
        assert_eq!(case.num_left().await, 72 - expired.len() as u64);
        assert_eq!(case.pass(&cutoffs(cutoff)).await, 0);
        let later = now() + TimeDelta::days(100);
        case.pass(&cutoffs(later.min(SystemClock.now()))).await;
        let files = case.archiving_place().visible().await.unwrap();
        assert!(
            files
                .iter()
                .all(|file| file.path.starts_with("occurred_date=2026-02-2"))
        );
    }

    #[tokio::test]
    async fn an_event_that_comes_back_is_not_archived_twice() {
        let case = Case::new();
        let events = events();
        case.write(&events).await;
        let all = cutoffs(now());
        case.pass(&all).await;
        let archived = case.archived().await;
        let late = event("other", now() - TimeDelta::minutes(90));
        case.write(&events).await;
        case.write(std::slice::from_ref(&late)).await;
        case.pass(&all).await;
        let mut expected = archived;
        expected.push(late.id.to_string());
        expected.sort();
        assert_eq!(case.archived().await, expected);
    }

    #[tokio::test]
    async fn a_database_that_went_back_adopts_what_its_archive_has() {
        let case = Case::new();
        let events = events();
        case.write(&events).await;
        let backup = case.directory.path().join("backup.db");
        let all = cutoffs(now());
        // Notes the archive, and archives nothing yet.
        case.pass(&cutoffs(now() - TimeDelta::days(50))).await;
        assert!(!case.directory.path().join("archive").exists());
        case.store.close().await.unwrap();
        std::fs::copy(case.directory.path().join("events.db"), &backup).unwrap();
        case.pass(&all).await;
        let archived = case.archived().await;
        case.store.close().await.unwrap();
        std::fs::copy(&backup, case.directory.path().join("events.db")).unwrap();
        let store = Arc::new(SqliteStore::new(
            SqliteSettings::new(case.directory.path().join("events.db")),
            Arc::new(SystemClock),
        ));
        let again = Case {
            archiving: archiving(&store, &case.directory.path().join("archive")),
            store,
            directory: case.directory,
        };
        assert!(again.pass(&all).await > 0, "the rows were back");
        assert_eq!(again.archived().await, archived);
    }

    #[tokio::test]
    async fn a_copy_of_a_file_is_not_taken_in() {
        let case = Case::new();
        case.write(&events()).await;
        case.pass(&cutoffs(now())).await;
        let known = case.store.manifests(false).await.unwrap();
        let archive = case.directory.path().join("archive");
        for manifest in &known {
            let (folder, _) = manifest.file.split_once('/').unwrap();
            let copy = archive.join(folder).join("copy.parquet");
            std::fs::copy(archive.join(&manifest.file), copy).unwrap();
        }
        // An event for each day, so that its folder is looked through.
        for manifest in &known {
            let occurred = manifest.content.as_ref().unwrap().first.occurred;
            let occurred = DateTime::from_timestamp_micros(occurred).unwrap();
            case.write(&[event("late", occurred)]).await;
        }
        assert!(case.pass(&cutoffs(now())).await > 0);
        let manifests = case.store.manifests(false).await.unwrap();
        assert!(manifests.len() > known.len());
        assert!(
            manifests
                .iter()
                .all(|one| !one.file.ends_with("/copy.parquet"))
        );
    }

    #[tokio::test]
    async fn another_archive_and_another_database_are_refused() {
        let case = Case::new();
        case.write(&events()).await;
        case.pass(&cutoffs(now())).await;
        let elsewhere = case.directory.path().join("elsewhere");
        case.write(&[event("other", now() - TimeDelta::days(9))])
            .await;
        let moved = archiving(&case.store, &elsewhere);
        let error = pass(&moved, &cutoffs(now())).await.unwrap_err().to_string();
        assert!(error.contains("holds no archive"), "{error}");
        let other = Case::new();
        other.write(&events()).await;
        other.pass(&cutoffs(now())).await;
        let swapped = archiving(&case.store, &other.directory.path().join("archive"));
        let error = pass(&swapped, &cutoffs(now()))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("another archive than before"), "{error}");
        let third = Case::new();
        third.write(&events()).await;
        let shared = archiving(&third.store, &other.directory.path().join("archive"));
        let error = pass(&shared, &cutoffs(now()))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("the archive of another database"), "{error}");
        assert_eq!(third.num_left().await, 72);
    }

    #[tokio::test]
    async fn while_the_archive_is_away_nothing_is_removed() {
        let case = Case::new();
        case.write(&events()).await;
        case.pass(&cutoffs(now() - TimeDelta::hours(60))).await;
        let num_left = case.num_left().await;
        let archive = case.directory.path().join("archive");
        std::fs::rename(&archive, case.directory.path().join("away")).unwrap();
        pass(&case.archiving, &cutoffs(now())).await.unwrap_err();
        assert_eq!(case.num_left().await, num_left);
        std::fs::rename(case.directory.path().join("away"), &archive).unwrap();
        case.pass(&cutoffs(now())).await;
        assert_eq!(case.num_left().await, 7);
    }
}
