//! The SQLite file is kept from us, or has no room.

use super::case::{Case, SmallDisk, Store, for_seconds};
use crate::support::bus::Bus;
use crate::support::database::Database;

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
