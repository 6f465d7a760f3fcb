//! One fault: what it is, what was published meanwhile, and the questions at its end.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::table::{self, Row};
use crate::support::bus::{Bus, Publisher, TestBus, has_exactly_beside_letters};
use crate::support::database::Database as SqliteFile;
use crate::support::events;
use crate::support::postgres::Database;
use crate::support::server::Server;
use crate::support::wait::{PATIENCE, until};

/// What a replica may have resident, in MiB, whatever happens to events of usual sizes. It is a debug build.
const MAX_MEMORY: u64 = 256;

/// How much of what was published is needed before something is broken, or after.
const ENOUGH: usize = 200;

/// Where the events end up.
pub(crate) enum Store<'a> {
    Postgres(&'a Database),
    Sqlite(SqliteFile),
}

impl Store<'_> {
    pub(crate) fn ids(&self) -> BTreeSet<String> {
        match self {
            Self::Postgres(database) => {
                let rows = database.execute("SELECT id FROM events");
                rows.into_iter().flatten().flatten().collect()
            }
            Self::Sqlite(file) => file.complete_events(),
        }
    }

    fn num_events(&self) -> usize {
        match self {
            Self::Postgres(database) => {
                let number = database.value("SELECT count(*) FROM events");
                number.parse().unwrap()
            }
            Self::Sqlite(file) => file.num_events(),
        }
    }

    pub(crate) fn num_letters(&self) -> usize {
        let query = "SELECT count(*) AS number FROM event_persister_dead_letters";
        match self {
            Self::Postgres(database) => database.value(query).parse().unwrap(),
            Self::Sqlite(file) => usize::try_from(file.number(query)).unwrap(),
        }
    }

    #[track_caller]
    fn has_exactly(&self, ids: &[String]) {
        match self {
            Self::Postgres(database) => has_exactly_beside_letters(database, ids),
            Self::Sqlite(file) => {
                assert_eq!(file.complete_events(), ids.iter().cloned().collect());
            }
        }
    }
}

/// A fault, with everything around it.
pub(crate) struct Case<'a, B: TestBus = Bus> {
    pub(crate) bus: B,
    pub(crate) store: Store<'a>,
    publisher: Option<Publisher>,
    /// What was published besides.
    ids: Vec<String>,
    /// What may be lost, since the fault itself threw it away.
    forgivable: Vec<String>,
    /// Events that retention has removed.
    pub(crate) num_trimmed: u64,
    /// What a replica may have resident, in MiB.
    pub(crate) max_memory: u64,
    /// How soon what comes with a culprit must be stored.
    pub(crate) stored_within: Duration,
    /// How soon a culprit must be a letter.
    pub(crate) found_out_within: Duration,
    cured: Instant,
    row: Row,
}

impl<'a> Case<'a> {
    /// Between a Redis of its own and this database, which must be empty.
    pub(crate) fn postgres(fault: &'static str, database: &'a Database) -> Self {
        Self::new(
            fault,
            Bus::into_postgres(database),
            Store::Postgres(database),
        )
    }

    /// Between a Redis of its own and an SQLite file.
    pub(crate) fn sqlite(fault: &'static str) -> Self {
        let bus = Bus::into_sqlite();
        let file = bus.folder.database();
        Self::new(fault, bus, Store::Sqlite(file))
    }

    /// Publishes this many good events, at once.
    pub(crate) fn publish(&mut self, num: usize) {
        let events = events::events(num);
        self.bus.stream.publish(&events::texts(&events));
        self.ids.extend(events::ids(&events));
    }
}

impl<'a, B: TestBus> Case<'a, B> {
    pub(crate) fn new(fault: &'static str, bus: B, store: Store<'a>) -> Self {
        Self {
            bus,
            store,
            publisher: None,
            ids: Vec::new(),
            forgivable: Vec::new(),
            num_trimmed: 0,
            max_memory: MAX_MEMORY,
            stored_within: Duration::from_secs(10),
            found_out_within: PATIENCE,
            cured: Instant::now(),
            row: Row::new(fault),
        }
    }

    /// A replica that is ready.
    pub(crate) async fn start(&self) -> Server {
        self.bus.start().ready().await
    }

    /// A replica under load gets into trouble, out of which the cause is gone in the end: it becomes
    /// ready unaided, stores what comes, and ends well.
    pub(crate) async fn survives(mut self, trouble: impl AsyncFnOnce(&mut Self, &Server)) {
        let server = self.start().await;
        self.load().await;
        trouble(&mut self, &server).await;
        self.cured();
        server.until_ready_is(200).await;
        self.until_more_is_stored().await;
        self.ends_well(vec![server]).await;
    }

    /// Publishes from now on; returns once some of it is stored.
    pub(crate) async fn load(&mut self) {
        self.load_in_copies(1).await;
    }

    /// Publishes each event this often from now on; returns once some of it is stored.
    pub(crate) async fn load_in_copies(&mut self, num_copies: usize) {
        self.publish_in_copies(num_copies);
        self.until_more_is_stored().await;
    }

    /// Publishes each event this often from now on.
    pub(crate) fn publish_in_copies(&mut self, num_copies: usize) {
        self.publisher = Some(Publisher::to(self.bus.stream(), num_copies, 50));
    }

    /// Publishes a few at a time from now on, for cases that take long.
    pub(crate) fn publish_some(&mut self) {
        self.publisher = Some(Publisher::to(self.bus.stream(), 1, 10));
    }

    /// These events were published by hand.
    pub(crate) fn expect(&mut self, ids: impl IntoIterator<Item = String>) {
        self.ids.extend(ids);
    }

    /// Waits until more is stored than there is now.
    pub(crate) async fn until_more_is_stored(&self) {
        let before = self.store.num_events();
        until(MoreIsStored(self.publisher.as_ref()), || {
            self.store.num_events() >= before + ENOUGH
        })
        .await;
    }

    /// Stops publishing; what was published so far may be lost with what is done next.
    pub(crate) fn forgive(&mut self) {
        if let Some(publisher) = self.publisher.take() {
            self.forgivable.extend(publisher.stop());
        }
    }

    /// The cause is gone: how long does it take from here?
    pub(crate) fn cured(&mut self) {
        self.cured = Instant::now();
    }

    /// Publishes nothing more, waits until all is settled, and asks the questions.
    pub(crate) async fn ends_well(self, servers: Vec<Server>) {
        self.ends_with_letters(servers, 0).await;
    }

    /// The same, with this many dead letters.
    pub(crate) async fn ends_with_letters(mut self, servers: Vec<Server>, num_letters: usize) {
        if let Some(publisher) = self.publisher.take() {
            self.ids.extend(publisher.stop());
        }
        self.bus.until_settled(&servers[0]).await;
        self.row.settled_after = self.cured.elapsed();
        // The operator's own judge, before ours; on a busy machine Redis may keep it waiting.
        until("found to be well by `verify`", || {
            let verify = self
                .bus
                .folder()
                .run_with(&["verify"], &self.bus.variables());
            verify.code == Some(0)
        })
        .await;
        let stored = self.store.ids();
        let mut expected = self.ids.clone();
        let survived = self.forgivable.iter().filter(|id| stored.contains(*id));
        expected.extend(survived.cloned());
        self.store.has_exactly(&expected);
        assert_eq!(self.store.num_letters(), num_letters);
        assert!(expected.len() > 1, "nothing was tried");
        let mut counted_as_stored = 0;
        for server in servers {
            server.until_ready_is(200).await;
            self.row.peak_memory = self.row.peak_memory.max(server.peak_memory());
            let ended = server.terminate().in_good_order();
            self.row.redelivered += ended.ledger()("redelivered");
            counted_as_stored += ended.ledger()("stored");
        }
        assert!(
            self.row.peak_memory < self.max_memory,
            "{} MiB",
            self.row.peak_memory
        );
        // Retention may have removed some, but nothing else has: rows never fall below what is counted.
        let num_ever = stored.len() as u64 + self.num_trimmed;
        assert!(
            counted_as_stored <= num_ever,
            "{counted_as_stored} of {num_ever}"
        );
        self.row.published = self.ids.len() + self.forgivable.len() + num_letters;
        self.row.stored = stored.len();
        self.row.letters = num_letters;
        table::record(&self.row);
    }
}

/// What is waited for; in vain, it tells whether anything was published at all.
struct MoreIsStored<'a>(Option<&'a Publisher>);

impl fmt::Display for MoreIsStored<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let num_published = self.0.map_or(0, Publisher::num_published);
        write!(f, "more is stored, and {num_published} were published")
    }
}

impl<B: TestBus> Drop for Case<'_, B> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.row.failed = true;
            table::record(&self.row);
        }
    }
}

/// How long a fault may last at most, if somebody has said so.
pub(crate) fn trouble() -> Option<Duration> {
    #[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
    let seconds = std::env::var("TEST_SECONDS_OF_TROUBLE").ok()?;
    Some(Duration::from_secs(seconds.parse().unwrap()))
}

/// A fault of this many seconds, or as much of it as everybody can wait for.
pub(crate) async fn for_seconds(seconds: u64) {
    let at_most = trouble().unwrap_or(Duration::from_secs(2));
    sleep(at_most.min(Duration::from_secs(seconds))).await;
}

/// A small file system of its own, gone when it is dropped; `None` where only root could make one.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub(crate) fn of(mebibytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m,mode=777");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(folder.path())
            .output()
            .unwrap();
        mounted.status.success().then_some(Self(folder))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Leaves no room.
    pub(crate) fn fill(&self) {
        let mut file = std::fs::File::create(self.path("ballast")).unwrap();
        let block = [1; 4096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }

    /// Makes room again.
    pub(crate) fn clear(&self) {
        std::fs::remove_file(self.path("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
        assert!(unmounted.is_ok() || std::thread::panicking());
    }
}
