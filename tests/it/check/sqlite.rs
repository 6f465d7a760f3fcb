//! SQLite files that are not as they should be.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::cli::event;
use crate::support::database::Database;
use crate::support::server::Server;

/// A folder with the tables in its file.
fn migrated() -> (Folder, Database) {
    let folder = Folder::new();
    folder.run(&["migrate"]).exits(0);
    let database = folder.database();
    (folder, database)
}

#[test]
fn a_file_with_its_tables_is_good() {
    let (folder, _) = migrated();
    finds_nothing(&check(&folder, &[]));
}

#[test]
fn events_that_prefect_cannot_read() {
    let (folder, database) = migrated();
    let insert = |id: &str, num_digits: usize| {
        let payload = format!(r#"{{"k": {}}}"#, "9".repeat(num_digits));
        database.execute(&format!(
            "INSERT INTO events (id, occurred, event, resource_id, resource, payload, received, recorded) \
             VALUES ('{id}', '2026-01-01', 'e', 'r', '{{}}', '{payload}', '2026-01-01', '2026-01-01')"
        ));
    };
    insert("a", 4_300);
    finds_nothing(&check(&folder, &[]));
    insert("b", 4_301);
    let ran = check(&folder, &[]);
    finds_only(
        &ran,
        "sqlite.unreadable",
        "warning",
        "event-persister verify",
    );
    assert!(ran.json().to_string().contains("1 of the newest 2 events"));
}

#[test]
fn events_whose_time_is_no_text() {
    let (folder, database) = migrated();
    for (id, occurred) in [("a", "1767225600"), ("b", "x'00'"), ("c", "'2026-01-01'")] {
        database.execute(&format!(
            "INSERT INTO events (id, occurred, event, resource_id, resource, payload, received, recorded) \
             VALUES ('{id}', {occurred}, 'e', 'r', '{{}}', '{{}}', '2026-01-01', '2026-01-01')"
        ));
    }
    let ran = check(&folder, &[]);
    finds_only(&ran, "sqlite.times", "warning", "typeof(occurred)");
    assert!(ran.json().to_string().contains("2 rows of events"));
}

#[test]
fn a_file_that_another_keeps_locked() {
    let (folder, database) = migrated();
    let lock = database.lock();
    let impatient = ("EVENT_PERSISTER_DATABASE_BUSY_TIMEOUT", "100ms");
    let ran = check(&folder, &[impatient]);
    lock.release();
    finds_only(&ran, "sqlite.lock", "error", "end its transaction");
}

#[test]
fn a_file_that_is_no_database() {
    let folder = Folder::new();
    folder.write("event-persister.db", "no database, and never was one\n");
    let ran = check(&folder, &[]);
    finds_only(&ran, "sqlite.file", "error", "give another path");
}

#[test]
fn a_folder_that_is_not_there() {
    let url = ("EVENT_PERSISTER_DATABASE_URL", "sqlite://missing/e.db");
    let ran = check(&Folder::new(), &[url]);
    finds_only(&ran, "sqlite.file", "error", "create it");
}

#[test]
fn a_column_that_is_missing() {
    let (folder, database) = migrated();
    database.execute("ALTER TABLE events DROP COLUMN follows");
    let ran = check(&folder, &[]);
    finds_only(
        &ran,
        "sqlite.schema",
        "error",
        "bring the schema up to date",
    );
}

#[test]
fn an_index_that_is_missing() {
    let (folder, database) = migrated();
    database.execute("DROP INDEX ix_events__occurred; DROP INDEX ix_events__occurred_id");
    let ran = check(&folder, &[]);
    let remedy = "CREATE INDEX ix_events__occurred ON events (occurred)";
    finds_only(&ran, "sqlite.indexes", "warning", remedy);
    // The remedy is one.
    database.execute(remedy);
    finds_nothing(&check(&folder, &[]));
}

#[tokio::test]
async fn what_keeps_a_store_from_writing_is_found_by_it_and_by_check() {
    let letters = "event_persister_dead_letters";
    for (change, id, remedy) in [
        (
            format!("DROP TABLE {letters}"),
            "sqlite.schema",
            "DELETE FROM __diesel_schema_migrations",
        ),
        (
            format!("ALTER TABLE {letters} DROP COLUMN sqlstate"),
            "sqlite.schema",
            "bring the schema up to date",
        ),
        (
            "DROP TABLE events; CREATE TABLE events AS SELECT * FROM event_resources".to_owned(),
            "sqlite.schema",
            "bring the schema up to date",
        ),
        (
            "ALTER TABLE event_resources DROP COLUMN resource_role; \
             ALTER TABLE event_resources ADD COLUMN resource_role AS (id)"
                .to_owned(),
            "sqlite.schema",
            "plain column",
        ),
    ] {
        let (folder, database) = migrated();
        database.execute(&change);
        finds(&check(&folder, &[]), id, "error", remedy);
        let server = Server::start(&folder, &[]);
        let status = loop {
            let (code, status) = server.readiness().await;
            assert_eq!(code, 503, "{change}");
            if status["reason"].as_str().unwrap().starts_with("store: ") {
                break status;
            }
        };
        assert!(
            status["reason"].as_str().unwrap().contains(remedy),
            "{status}"
        );
        server.terminate().in_good_order();
    }
}

#[test]
fn a_key_by_which_what_comes_twice_is_told() {
    let (folder, database) = migrated();
    database.execute(
        "CREATE TABLE copy AS SELECT * FROM event_persister_dead_letters; \
         DROP TABLE event_persister_dead_letters; \
         ALTER TABLE copy RENAME TO event_persister_dead_letters",
    );
    let ran = check(&folder, &[]);
    let remedy = "CREATE UNIQUE INDEX uq_event_persister_dead_letters";
    finds_only(&ran, "sqlite.indexes", "error", remedy);
}

#[test]
fn a_trigger() {
    let (folder, database) = migrated();
    database.execute(
        "CREATE TRIGGER no_events BEFORE INSERT ON events BEGIN SELECT raise(FAIL, 'no'); END",
    );
    let ran = check(&folder, &[]);
    finds_only(&ran, "sqlite.triggers", "warning", "DROP TRIGGER");
    ran.prints(&["no_events on events"]);
}

#[test]
fn a_page_that_is_not_what_was_written() {
    let folder = Folder::new();
    let events: Vec<_> = (0..500).map(|_| event("2999-01-01T00:00:00Z")).collect();
    folder.write("events.jsonl", events.join("\n"));
    folder.run(&["import", "events.jsonl"]).exits(0);
    finds_nothing(&check(&folder, &[]));
    let path = folder.database_path();
    let mut bytes = std::fs::read(&path).unwrap();
    // One that holds rows or keys.
    let page = bytes.len() / 4096 * 3 / 4;
    bytes[page * 4096..(page + 1) * 4096].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let ran = check(&folder, &[]).exits(1);
    // Whether it is met at once or only when every page is looked at.
    let found = bad(&ran);
    let is_told = |(id, severity, remedy): &(String, String, String)| {
        severity == "error"
            && ["sqlite.integrity", "sqlite.file"].contains(&id.as_str())
            && (remedy.contains(".recover") || remedy.contains("restore a backup"))
    };
    assert!(found.iter().any(is_told), "{ran:?}");
}

#[test]
fn tables_of_a_newer_version() {
    let (folder, database) = migrated();
    database.execute(
        "INSERT INTO __diesel_schema_migrations (version) VALUES ('00000000000999'), ('20260101')",
    );
    let ran = check(&folder, &[]);
    finds_only(&ran, "sqlite.migrations", "warning", "upgrade");
    ran.prints(&["(00000000000999)"]);
}

#[test]
fn a_file_in_memory() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("not run: there is no file system in memory");
        return;
    };
    let url = format!("sqlite://{}/e.db", folder.path().display());
    let ran = check(&Folder::new(), &[("EVENT_PERSISTER_DATABASE_URL", &url)]).exits(0);
    let document = ran.json();
    let findings = document["findings"].as_array().unwrap();
    let found = findings.iter().find(|f| f["id"] == "sqlite.file_system");
    assert_eq!(found.unwrap()["severity"], "warning");
    assert_eq!(found.unwrap()["remedy"], "put the file on a disk");
}

#[test]
fn a_disk_without_room() {
    let folder = Folder::new();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"])
        .arg(folder.path())
        .output()
        .unwrap();
    if !mounted.status.success() {
        eprintln!("not run: only root can mount a small file system");
        return;
    }
    let ran = check(&folder, &[]);
    let unmounted = Command::new("umount").arg("-l").arg(folder.path()).status();
    assert!(unmounted.unwrap().success());
    finds_only(&ran, "sqlite.disk", "error", "make room");
}

#[test]
fn a_file_that_may_not_be_written() {
    let (folder, _) = migrated();
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set(&folder.database_path(), 0o444);
    set(folder.path(), 0o555);
    let ran = check_as_nobody(&folder);
    set(folder.path(), 0o755);
    finds(&ran, "sqlite.writable", "error", "chmod");
}

/// Root may write everything, so root does it as somebody else, with a binary where all may run it.
fn check_as_nobody(folder: &Folder) -> Ran {
    let id = Command::new("id").arg("-u").output().unwrap();
    if id.stdout != b"0\n" {
        return check(folder, &[]);
    }
    let place = tempfile::tempdir().unwrap();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.path(), open).unwrap();
    let binary = place.path().join("event-persister");
    std::fs::copy(env!("CARGO_BIN_EXE_event-persister"), &binary).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&binary)
        .args(["check", "--json"])
        .env_clear()
        .env("EVENT_PERSISTER_LISTEN", "127.0.0.1:0")
        .current_dir(folder.path())
        .output();
    Ran::new(output.unwrap())
}
