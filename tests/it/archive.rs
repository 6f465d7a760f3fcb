//! Retention that archives: archive and tables together hold every event exactly once, whatever happens.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use event_persister_actors::archive::{Archive, ArchiveSettings, ArchiveUrl, Place, Wanted};
use event_persister_actors::clock::{Clock as _, SystemClock};
use serde_json::Value;

use crate::support::binary::{Folder, Ran};
use crate::support::database::Database as File;
use crate::support::events;
use crate::support::postgres::{self, Database};
use crate::support::server::Server;

mod azure;
mod changes;
mod commands;
mod kills;
mod readers;
mod restored;
mod s3;
mod tools;
mod whole;

/// Where events are before they are archived.
enum Tables {
    Postgres(Database),
    Sqlite,
}

struct Case {
    folder: Folder,
    tables: Tables,
    url: String,
    /// Beside those that every process here has.
    variables: Vec<(String, String)>,
}

/// Small files and small steps, so that a pass makes several of each.
const SIZES: [(&str, &str); 3] = [
    ("EVENT_PERSISTER_ARCHIVE_FILE_EVENTS", "40"),
    ("EVENT_PERSISTER_TRIM_BATCH_SIZE", "15"),
    ("EVENT_PERSISTER_TRIM_OVERRIDES", "kept=20000d"),
];

impl Case {
    fn sqlite() -> Self {
        let folder = Folder::new();
        Self {
            url: format!("sqlite://{}", folder.database_path().display()),
            folder,
            tables: Tables::Sqlite,
            variables: Vec::new(),
        }
        .migrated()
    }

    fn postgres() -> Self {
        Self::on(postgres::Server::shared())
    }

    fn on(server: &postgres::Server) -> Self {
        let database = server.database();
        Self {
            folder: Folder::new(),
            url: database.url.clone(),
            tables: Tables::Postgres(database),
            variables: Vec::new(),
        }
        .migrated()
    }

    fn partitioned(self) -> Self {
        self.run(&["migrate", "--partition-by", "day"]).exits(0);
        self
    }

    /// Partitions of which nothing is kept.
    fn whole(self) -> Self {
        let mut case = self.partitioned();
        let overrides = "EVENT_PERSISTER_TRIM_OVERRIDES".to_owned();
        case.variables.push((overrides, String::new()));
        case
    }

    fn database(&self) -> &Database {
        match &self.tables {
            Tables::Postgres(database) => database,
            Tables::Sqlite => panic!("it is SQLite"),
        }
    }

    fn migrated(self) -> Self {
        self.run(&["migrate"]).exits(0);
        self
    }

    fn archive_path(&self) -> PathBuf {
        self.folder.path().join("archive")
    }

    fn all_variables(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let archive = format!("file://{}", self.archive_path().display());
        let mut all: BTreeMap<String, String> = BTreeMap::from([
            ("EVENT_PERSISTER_DATABASE_URL".to_owned(), self.url.clone()),
            ("EVENT_PERSISTER_ARCHIVE_URL".to_owned(), archive),
        ]);
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        all.extend(SIZES.iter().map(owned));
        all.extend(self.variables.iter().cloned());
        all.extend(more.iter().map(owned));
        all.into_iter().collect()
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, &[])
    }

    fn run_with(&self, arguments: &[&str], more: &[(&str, &str)]) -> Ran {
        let mut command = self.folder.command(arguments);
        command.envs(self.all_variables(more));
        Ran::new(command.output().unwrap())
    }

    fn serve(&self, more: &[(&str, &str)]) -> Server {
        let mut variables = self.all_variables(more);
        variables.push((
            "EVENT_PERSISTER_LISTEN".to_owned(),
            "127.0.0.1:0".to_owned(),
        ));
        let mut command = self.folder.command(&[]);
        command.envs(variables);
        Server::spawn(command, &self.folder.database_path())
    }

    /// Stores events of several days long ago, some of them kept longer, and some of yesterday; their ids.
    fn store_events(&self, num_old: usize) -> BTreeSet<String> {
        let mut list = events::events(num_old + 20);
        let now = SystemClock.now();
        for (number, event) in list.iter_mut().enumerate().take(num_old) {
            let days = chrono::TimeDelta::days(10 + i64::try_from(number % 3).unwrap());
            let seconds = chrono::TimeDelta::seconds(i64::try_from(number).unwrap());
            event["occurred"] = (now - days + seconds).to_rfc3339().into();
            if number % 7 == 0 {
                event["event"] = "kept".into();
            }
        }
        self.import(&list);
        events::ids(&list).into_iter().collect()
    }

    fn import(&self, list: &[Value]) {
        self.folder.write("events.jsonl", events::lines(list));
        self.run(&["import", "events.jsonl"]).exits(0);
    }

    /// A pass by hand. The first one after a long time needs a person's word.
    fn trim(&self) -> Ran {
        self.run(&["trim", "--yes", "--json"])
    }

    /// A pass that goes on in the background.
    fn trimming(&self, more: &[(&str, &str)]) -> std::thread::JoinHandle<Ran> {
        let mut command = self.folder.command(&["trim", "--yes"]);
        command.envs(self.all_variables(more));
        std::thread::spawn(move || Ran::new(command.output().unwrap()))
    }

    fn place(&self) -> Arc<Place> {
        let settings = ArchiveSettings {
            url: Some(ArchiveUrl::Folder(self.archive_path())),
            ..ArchiveSettings::default()
        };
        Archive::new(&settings).unwrap().place()
    }

    /// Archives and restores, twice: more than so many events leave the tables and are there again.
    async fn comes_and_goes(&self, all: &BTreeSet<String>, more_than: usize) {
        for _ in 0..2 {
            self.trim().exits(0);
            assert!(self.holds_once(all).await > more_than);
            self.is_in_order();
            self.run(&["archive", "restore"]).exits(0);
            assert_eq!(self.in_tables().len(), all.len());
        }
    }

    fn in_tables(&self) -> BTreeSet<String> {
        match &self.tables {
            Tables::Sqlite => self.folder.database().complete_events(),
            Tables::Postgres(database) => {
                let strays = "SELECT count(*) FROM event_resources \
                    WHERE event_id NOT IN (SELECT id FROM events)";
                assert_eq!(database.value(strays), "0");
                let rows = database.execute("SELECT id::text FROM events");
                rows.into_iter().flatten().flatten().collect()
            }
        }
    }

    fn execute(&self, sql: &str) {
        match &self.tables {
            Tables::Sqlite => File::new(&self.folder.database_path()).execute(sql),
            Tables::Postgres(database) => drop(database.execute(sql)),
        }
    }

    /// Every event is in the tables or in the archive, and none in both or twice in either.
    async fn holds_once(&self, expected: &BTreeSet<String>) -> usize {
        let archived = archived(&self.place()).await;
        self.are_once(archived.iter().map(events::id).collect(), expected)
    }

    /// The same of events that another reader found in the archive.
    fn are_once(&self, archived: Vec<String>, expected: &BTreeSet<String>) -> usize {
        let num_archived = archived.len();
        let mut all = self.in_tables();
        for id in archived {
            assert!(all.insert(id.clone()), "{id} is there twice");
        }
        assert!(
            all == *expected,
            "{} of {} are there",
            all.len(),
            expected.len()
        );
        num_archived
    }

    /// `check` has nothing to say against the archive.
    fn archive_is_fit(&self) {
        let checked = self.run(&["check", "--json"]).json();
        let findings = checked["findings"].as_array().unwrap().iter();
        let is_of_archive =
            |finding: &&Value| finding["id"].as_str().unwrap().starts_with("archive.");
        let severities: Vec<&Value> = findings
            .filter(is_of_archive)
            .map(|finding| &finding["severity"])
            .collect();
        assert_eq!(severities, ["ok"; 5], "{checked}");
    }

    /// The archive is right by its own command, and nothing is left over in it.
    fn is_in_order(&self) {
        let verified = self.run(&["archive", "verify", "--json"]).exits(0).json();
        assert_eq!(verified["problems"], Value::Array(Vec::new()), "{verified}");
        assert_eq!(verified["unfinished"], 0);
        let incoming = std::fs::read_dir(self.archive_path().join("_incoming"));
        assert_eq!(
            incoming.map_or(0, Iterator::count),
            0,
            "nothing is left over"
        );
    }
}

/// All events that a reader finds.
async fn archived(place: &Place) -> Vec<Value> {
    let mut events = Vec::new();
    for listed in place.visible().await.unwrap_or_default() {
        let file = place.open(&listed.path, None).await.unwrap();
        for group in 0..file.num_groups() {
            let lines = file.lines(group, &Wanted::default()).unwrap();
            let parsed = lines
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap());
            events.extend(parsed);
        }
    }
    events
}

async fn passes(case: Case) {
    let all = case.store_events(200);
    let trimmed = case.trim().exits(0).json();
    let num_archived = case.holds_once(&all).await;
    assert_eq!(trimmed["events"], num_archived);
    assert!((150..200).contains(&num_archived), "{num_archived}");
    case.is_in_order();
    let files = case.run(&["archive", "list", "--json"]).exits(0).json();
    let num_events = |file: &Value| file["events"].as_u64().unwrap();
    let files = files.as_array().unwrap();
    assert!(files.iter().all(|file| num_events(file) <= 40), "{files:?}");
    assert!(files.len() > 4 && files.iter().map(num_events).sum::<u64>() == num_archived as u64);
    case.trim().exits(0);
    assert_eq!(case.holds_once(&all).await, num_archived);
}

#[tokio::test]
async fn a_pass_moves_events_from_sqlite() {
    passes(Case::sqlite()).await;
}

#[tokio::test]
async fn a_pass_moves_events_from_postgresql() {
    passes(Case::postgres()).await;
}

#[tokio::test]
async fn a_pass_moves_events_from_partitions() {
    passes(Case::postgres().partitioned()).await;
}

/// The service does it by itself, and tells of it.
async fn serves(case: Case) {
    let all = case.store_events(100);
    case.trim().exits(0);
    let late = events::events(30);
    let mut list = late.clone();
    for event in &mut list {
        event["occurred"] = (SystemClock.now() - chrono::TimeDelta::days(9))
            .to_rfc3339()
            .into();
    }
    case.import(&list);
    let all: BTreeSet<String> = all.into_iter().chain(events::ids(&list)).collect();
    let num_before = archived(&case.place()).await.len();
    let server = case
        .serve(&[("EVENT_PERSISTER_TRIM_EVERY", "1s")])
        .ready()
        .await;
    let place = case.place();
    loop {
        if archived(&place).await.len() == num_before + 30 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    server
        .until("the pass has ended", || {
            case.in_tables().len() + num_before + 30 == all.len()
        })
        .await;
    let metrics = server.metrics().await;
    assert_eq!(metrics.count("archive_files_total"), 1);
    assert_eq!(metrics.count("archive_events_total"), 30);
    assert!(metrics.count("archive_bytes_total") > 1_000);
    assert_eq!(metrics.count("archive_known_events_total"), 0);
    assert_eq!(metrics.count("archive_failures_total"), 0);
    assert_eq!(metrics.count("archive_failing"), 0);
    server.signal("TERM");
    server.ended();
    case.trim().exits(0);
    case.holds_once(&all).await;
    case.is_in_order();
}

#[tokio::test]
async fn the_service_archives_from_sqlite() {
    serves(Case::sqlite()).await;
}

#[tokio::test]
async fn the_service_archives_from_postgresql() {
    serves(Case::postgres()).await;
}

/// While the archive is away nothing is removed, and retention says so; events are taken all the same.
#[tokio::test]
async fn nothing_is_removed_while_the_archive_is_away() {
    let case = Case::postgres();
    let all = case.store_events(60);
    case.trim().exits(0);
    let more = case.store_events(60);
    let all: BTreeSet<String> = all.union(&more).cloned().collect();
    let away = case.folder.path().join("away");
    std::fs::rename(case.archive_path(), &away).unwrap();
    let num_before = case.in_tables().len();
    let parts = ["nothing is removed until then", "mount it"];
    case.trim().exits(1).complains(&parts);
    let server = case
        .serve(&[("EVENT_PERSISTER_TRIM_EVERY", "1s")])
        .ready()
        .await;
    server.logged("a retention pass failed");
    let ready = server.until_ready_is(200).await;
    assert!(ready.to_string().contains("holds no archive"), "{ready}");
    let posted = events::event();
    assert_eq!(
        server
            .post_status(events::list(std::slice::from_ref(&posted)))
            .await,
        204
    );
    let metrics = server.metrics().await;
    assert_eq!(metrics.count("archive_failing"), 1);
    assert!(metrics.count("archive_failures_total") > 0);
    assert_eq!(case.in_tables().len(), num_before + 1);
    std::fs::rename(&away, case.archive_path()).unwrap();
    server.logged("retention works again");
    server.signal("TERM");
    server.ended();
    case.trim().exits(0);
    let all = all.into_iter().chain([events::id(&posted)]).collect();
    case.holds_once(&all).await;
    case.is_in_order();
}

/// Two that trim at once share the work, and archive nothing twice.
async fn two_at_once(case: Case) {
    let all = case.store_events(400);
    let trimmers = [case.trimming(&[]), case.trimming(&[])];
    for trimmer in trimmers {
        let ran = trimmer.join().unwrap();
        if ran.code != Some(0) {
            ran.exits(1).complains(&["another process is trimming"]);
        }
    }
    case.trim().exits(0);
    case.holds_once(&all).await;
    case.is_in_order();
}

#[tokio::test]
async fn two_trim_sqlite_at_once() {
    two_at_once(Case::sqlite()).await;
}

#[tokio::test]
async fn two_trim_postgresql_at_once() {
    two_at_once(Case::postgres()).await;
}

/// Two replicas trim again and again while events come in that are expired already; one of them is killed now
/// and then.
async fn two_replicas(case: Case) {
    let variables = [("EVENT_PERSISTER_TRIM_EVERY", "300ms")];
    let mut all = case.store_events(60);
    case.trim().exits(0);
    let num_before = case.holds_once(&all).await;
    let mut replicas = [
        case.serve(&variables).ready().await,
        case.serve(&variables).ready().await,
    ];
    for round in 0..6 {
        all.extend(case.store_events(60));
        tokio::time::sleep(std::time::Duration::from_millis(fastrand::u64(..700))).await;
        if round % 3 == 2 {
            let index = fastrand::usize(..2);
            replicas[index].kill_9();
            replicas[index] = case.serve(&variables).ready().await;
        }
    }
    let expired = "event <> 'kept' AND occurred < ";
    let is_expired = |case: &Case| match &case.tables {
        Tables::Sqlite => {
            let old = format!(
                "SELECT count(*) AS number FROM events WHERE {expired} datetime('now', '-8 days')"
            );
            case.folder.database().number(&old) > 0
        }
        Tables::Postgres(database) => {
            let old =
                format!("SELECT count(*) FROM events WHERE {expired} now() - interval '8 days'");
            database.value(&old) != "0"
        }
    };
    crate::support::wait::until("all that is expired is archived", || !is_expired(&case)).await;
    for replica in &replicas {
        let metrics = replica.metrics().await;
        assert_eq!(metrics.count("archive_known_events_total"), 0);
        replica.terminate().in_good_order();
    }
    case.trim().exits(0);
    // Which of them archived it is chance, and one that was killed cannot be asked.
    assert!(case.holds_once(&all).await > num_before);
    case.is_in_order();
}

#[tokio::test]
async fn two_replicas_archive_from_sqlite() {
    two_replicas(Case::sqlite()).await;
}

#[tokio::test]
async fn two_replicas_archive_from_postgresql() {
    two_replicas(Case::postgres()).await;
}

#[tokio::test]
async fn two_replicas_archive_whole_partitions() {
    two_replicas(Case::postgres().whole()).await;
}

/// One that has looked for what is expired, and goes on after another has archived all of it.
async fn comes_late(case: Case) {
    let all = case.store_events(100);
    let late = case.trimming(&[("FAILPOINTS", "archive::after-search=1*sleep(4000)")]);
    let has_begun = || {
        case.archive_path()
            .join("_event_persister_archive.json")
            .exists()
    };
    crate::support::wait::until("the late one has begun", has_begun).await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    case.trim().exits(0);
    let num_archived = case.holds_once(&all).await;
    assert!(!late.is_finished(), "it is still asleep");
    late.join().unwrap().exits(0);
    assert_eq!(case.holds_once(&all).await, num_archived);
    case.is_in_order();
}

#[tokio::test]
async fn one_comes_late_to_sqlite() {
    comes_late(Case::sqlite()).await;
}

#[tokio::test]
async fn one_comes_late_to_postgresql() {
    comes_late(Case::postgres()).await;
}

/// Resources without an event hold none: they go as they do without an archive. An event without resources is
/// archived as any other.
#[tokio::test]
async fn halves_of_events() {
    let case = Case::postgres();
    let all = case.store_events(30);
    let halved = "SELECT id FROM events WHERE event <> 'kept' ORDER BY occurred, id LIMIT 1";
    case.execute(&format!(
        "DELETE FROM event_resources WHERE event_id = ({halved})"
    ));
    case.execute(
        "INSERT INTO event_resources (occurred, resource_id, resource_role, resource, event_id) \
         SELECT '1960-01-01', 'stray', '', '{}', gen_random_uuid() FROM generate_series(1, 20)",
    );
    case.trim().exits(0);
    case.holds_once(&all).await;
    let database = case.database();
    let strays = "SELECT count(*) FROM event_resources WHERE resource_id = 'stray'";
    assert_eq!(database.value(strays), "0");
}
