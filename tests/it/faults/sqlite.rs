//! The SQLite file is kept from us, or has no room.

use super::case::{Case, SmallDisk, Store, for_seconds};
use crate::support::bus::Bus;
use crate::support::database::Database;
use crate::support::events;
use crate::support::wait::until;

#[tokio::test]
async fn locked() {
    let mut case = Case::sqlite("SQLite: locked for 30 s");
    case.bus
        .set("EVENT_PERSISTER_DATABASE_BUSY_TIMEOUT", "500ms");
    case.survives(async |_, server| {
        let lock = server.database().lock();
        server.until_ready_is(503).await;
        for_seconds(30).await;
        lock.release();
    })
    .await;
}

#[tokio::test]
async fn the_disk_is_full() {
    let Some(disk) = SmallDisk::of(16) else {
        eprintln!("not run: only root can mount a small file system");
        return;
    };
    let mut bus = Bus::into_sqlite();
    let path = disk.path("events.db");
    bus.set(
        "EVENT_PERSISTER_DATABASE_URL",
        format!("sqlite://{}", path.display()),
    );
    let store = Store::Sqlite(Database::new(&path));
    let mut case = Case::new("SQLite: out of disk", bus, store);
    let server = case.start().await;
    case.load().await;
    disk.fill();
    server.until_ready_is(503).await;
    for_seconds(5).await;
    disk.clear();
    case.cured();
    server.until_ready_is(200).await;
    case.ends_well(vec![server]).await;
}

/// What a trigger may run into, and the result code that comes of it.
const HARMS: [(&str, &str); 7] = [
    ("SELECT abs(-9223372036854775808)", "SQLITE_ERROR"),
    ("SELECT json('{')", "SQLITE_ERROR"),
    (
        "INSERT INTO other (filled) VALUES (NULL)",
        "SQLITE_CONSTRAINT_NOTNULL",
    ),
    (
        "INSERT INTO other (id, filled) VALUES (1, 'again')",
        "SQLITE_CONSTRAINT_PRIMARYKEY",
    ),
    (
        "INSERT INTO other (id, filled) VALUES ('no number', 'x')",
        "SQLITE_MISMATCH",
    ),
    ("SELECT zeroblob(2000000000)", "SQLITE_TOOBIG"),
    (
        "SELECT RAISE(ROLLBACK, 'never this one')",
        "SQLITE_CONSTRAINT_TRIGGER",
    ),
];

/// Each of these befalls one event among others, which are stored at once.
#[tokio::test]
async fn a_trigger_that_fails_for_one_event() {
    let mut case = Case::sqlite("culprit: a trigger of SQLite fails for one event, with any code");
    let server = case.start().await;
    let file = server.database();
    file.execute(
        "CREATE TABLE other (id INTEGER PRIMARY KEY, filled TEXT NOT NULL); \
         INSERT INTO other VALUES (1, 'there')",
    );
    for (num_before, (harm, code)) in HARMS.into_iter().enumerate() {
        file.execute(&format!(
            "DROP TRIGGER IF EXISTS harm; CREATE TRIGGER harm BEFORE INSERT ON events \
             WHEN NEW.event = 'culprit' BEGIN {harm}; END"
        ));
        let mut list = events::events(21);
        list[10]["event"] = "culprit".into();
        let good = list.iter().filter(|event| event["event"] != "culprit");
        case.expect(good.map(events::id));
        let stored_before = file.num_events();
        case.bus.stream.publish(&events::texts(&list));
        until(format!("{harm}: the good ones are stored"), || {
            file.num_events() >= stored_before + 20
        })
        .await;
        let letters = format!(
            "SELECT count(*) AS number FROM event_persister_dead_letters WHERE sqlstate = '{code}'"
        );
        let of_this_code = HARMS[..=num_before]
            .iter()
            .filter(|(_, other)| *other == code);
        let expected = i64::try_from(of_this_code.count()).unwrap();
        until(format!("{harm}: a letter with {code}"), || {
            file.number(&letters) == expected
        })
        .await;
    }
    server.until_ready_is(200).await;
    case.cured();
    case.ends_with_letters(vec![server], HARMS.len()).await;
}
