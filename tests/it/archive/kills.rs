//! Killed at every moment of a pass, and finished by the next one.

use super::s3::Bucket;
use super::*;
use crate::faults::SmallDisk;

async fn dies_at(case: Case, moment: &str, num_before: usize) {
    let all = case.store_events(150);
    let failpoints = format!("{moment}={num_before}*off->return");
    let died = case.run_with(&["trim", "--yes"], &[("FAILPOINTS", &failpoints)]);
    assert_eq!(died.code, None, "it was killed: {died:?}");
    // What a reader sees is in no table any more, and nothing is there twice.
    let in_tables = case.in_tables();
    for event in archived(&case.place()).await {
        assert!(
            !in_tables.contains(&events::id(&event)),
            "{moment}: in both"
        );
    }
    case.trim().exits(0);
    let num_archived = case.holds_once(&all).await;
    assert!(num_archived > 100, "{num_archived}");
    case.is_in_order();
}

macro_rules! dies {
    ($($name:ident, $moment:literal, $num_before:literal;)*) => {
        mod sqlite {
            use super::*;

            $(#[tokio::test]
            async fn $name() {
                dies_at(Case::sqlite(), $moment, $num_before).await;
            })*
        }

        mod postgresql {
            use super::*;

            $(#[tokio::test]
            async fn $name() {
                dies_at(Case::postgres(), $moment, $num_before).await;
            })*
        }

        mod partitions {
            use super::*;

            $(#[tokio::test]
            async fn $name() {
                dies_at(Case::postgres().partitioned(), $moment, $num_before).await;
            })*
        }
    };
}

dies! {
    after_the_manifest_was_opened, "archive::after-beginning", 0;
    after_a_later_manifest_was_opened, "archive::after-beginning", 2;
    after_the_upload, "archive::after-upload", 1;
    before_the_claim_commits, "archive::before-commit", 0;
    after_the_claim, "archive::after-removal", 0;
    between_removals, "archive::before-commit", 1;
    after_the_last_removal, "archive::after-removal", 2;
    after_the_renaming, "archive::after-publishing", 0;
}

/// Where the store removes and reads at once.
#[tokio::test]
async fn while_the_next_file_is_written() {
    dies_at(Case::postgres(), "archive::after-writing-ahead", 1).await;
}

#[tokio::test]
async fn the_next_file_is_opened_as_the_one_before_closes() {
    let case = Case::postgres();
    let all = case.store_events(150);
    // A file has three removals.
    let killed = [("FAILPOINTS", "archive::after-removal=2*off->return")];
    case.run_with(&["trim", "--yes"], &killed);
    let states = "SELECT string_agg(state, ' ' ORDER BY file) FROM event_persister_archives";
    assert_eq!(case.database().value(states), "removed writing");
    case.trim().exits(0);
    case.holds_once(&all).await;
}

mod whole_partitions {
    use super::*;

    /// Each has two files.
    const MOMENTS: [(&str, usize); 10] = [
        ("archive::after-beginning", 0),
        ("archive::after-upload", 0),
        ("archive::after-upload", 1),
        ("archive::after-upload", 2),
        ("retention::before-drop", 0),
        ("retention::after-drop", 0),
        ("archive::before-commit", 0),
        ("archive::before-commit", 1),
        ("archive::after-removal", 0),
        ("archive::after-publishing", 0),
    ];

    async fn die(moments: &[(&str, usize)]) {
        for (moment, num_before) in moments {
            dies_at(Case::postgres().whole(), moment, *num_before).await;
        }
    }

    #[tokio::test]
    async fn while_they_are_written() {
        die(&MOMENTS[..4]).await;
    }

    #[tokio::test]
    async fn while_they_are_dropped() {
        die(&MOMENTS[4..8]).await;
    }

    #[tokio::test]
    async fn after_they_are_dropped() {
        die(&MOMENTS[8..]).await;
    }
}

/// As many kills as somebody has asked for.
fn num_kills() -> Option<usize> {
    #[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
    let number = std::env::var("TEST_ARCHIVE_KILLS").ok()?;
    Some(number.parse().unwrap())
}

/// Without the first each pass would wait for the one before, which was killed, until it is killed itself. A pause at
/// each step makes it as long as those between them.
const SLOWLY: (&str, &str) = (
    "FAILPOINTS",
    "archive::nobody-is-at-work=return;archive::after-beginning=sleep(30);archive::after-upload=sleep(30);\
     archive::after-writing-ahead=sleep(30);\
     archive::before-commit=sleep(30);archive::after-removal=sleep(30);archive::after-copy=sleep(30);\
     archive::after-publishing=sleep(30);retention::before-drop=sleep(30);retention::after-drop=sleep(30)",
);

/// The next pass that is not disturbed.
async fn recovers(case: &Case) {
    let at_once = [("FAILPOINTS", "archive::nobody-is-at-work=return")];
    let has_passed = || {
        let ran = case.run_with(&["trim", "--yes"], &at_once);
        // The server may not have noticed yet that one who trimmed is gone.
        ran.code == Some(0) || {
            ran.exits(1).complains(&["another process is trimming"]);
            false
        }
    };
    crate::support::wait::until("a pass", has_passed).await;
}

/// A pass that takes its time, to be killed.
fn trimmer(case: &Case) -> std::process::Child {
    let mut command = case.folder.command(&["trim", "--yes"]);
    command.envs(case.all_variables(&[SLOWLY]));
    command
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null());
    command.spawn().unwrap()
}

/// The same, by SIGKILL at random moments, of one or two that trim while events come in.
async fn at_random(case: Case) {
    let mut all = BTreeSet::new();
    for round in 1..=num_kills().unwrap_or(6) {
        all.extend(case.store_events(60));
        let mut children: Vec<_> = (0..1 + round % 2).map(|_| trimmer(&case)).collect();
        tokio::time::sleep(std::time::Duration::from_millis(fastrand::u64(10..700))).await;
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        if round % 10 == 0 {
            recovers(&case).await;
            case.holds_once(&all).await;
        }
    }
    // This one waits for those that were killed, until it is sure that they are not there any more.
    case.trim().exits(0);
    case.holds_once(&all).await;
    case.is_in_order();
}

#[tokio::test]
async fn killed_at_random_on_sqlite() {
    at_random(Case::sqlite()).await;
}

#[tokio::test]
async fn killed_at_random_on_postgresql() {
    at_random(Case::postgres()).await;
}

/// A file system of its own for the archive, on which there is no room for a while.
async fn the_disk_is_full(case: Case) {
    let Some(disk) = SmallDisk::of(16) else {
        #[expect(clippy::print_stderr, reason = "a test that does not run must say so")]
        {
            eprintln!("not run: only root can mount a small file system");
        }
        return;
    };
    std::fs::create_dir(disk.path("archive")).unwrap();
    std::os::unix::fs::symlink(disk.path("archive"), case.archive_path()).unwrap();
    let all = case.store_events(90);
    case.trim().exits(0);
    let num_archived = case.holds_once(&all).await;
    let more = case.store_events(90);
    let all: BTreeSet<String> = all.union(&more).cloned().collect();
    disk.fill();
    let parts = ["nothing is removed until it can", "No space left on device"];
    for _ in 0..2 {
        case.trim().exits(1).complains(&parts);
        assert_eq!(case.holds_once(&all).await, num_archived);
    }
    disk.clear();
    case.trim().exits(0);
    assert!(case.holds_once(&all).await > num_archived);
    case.is_in_order();
}

#[tokio::test]
async fn the_disk_is_full_for_sqlite() {
    the_disk_is_full(Case::sqlite()).await;
}

#[tokio::test]
async fn the_disk_is_full_for_postgresql() {
    the_disk_is_full(Case::postgres()).await;
}

#[tokio::test]
async fn the_disk_is_full_for_whole_partitions() {
    the_disk_is_full(Case::postgres().whole()).await;
}

/// PostgreSQL itself is killed while rows are removed.
#[tokio::test]
async fn postgresql_is_killed_during_a_pass() {
    let server = postgres::Server::start("");
    let case = Case::on(&server);
    let all = case.store_events(300);
    let mut command = case.folder.command(&["trim", "--yes"]);
    command.envs(case.all_variables(&[("FAILPOINTS", "archive::after-removal=sleep(100)")]));
    let trimmer = std::thread::spawn(move || Ran::new(command.output().unwrap()));
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    server.kill_9();
    let ran = trimmer.join().unwrap();
    assert_ne!(ran.code, Some(0), "it noticed: {ran:?}");
    server.start_again();
    case.trim().exits(0);
    case.holds_once(&all).await;
    case.is_in_order();
}

/// So many rounds are made with one database and one bucket: each look at them takes longer than the one before.
const ROUNDS: usize = 40;

/// Those who trim, PostgreSQL and the object store are killed again and again, at any moment. After each
/// recovery, archive and tables hold every event once.
#[expect(clippy::print_stderr, reason = "half an hour is long without a word")]
async fn everything_is_killed(make: impl Fn(&postgres::Server) -> Case) {
    let num = num_kills().unwrap_or(8);
    let (mut kills, mut left) = ([0; 3], BTreeMap::new());
    while kills.iter().sum::<usize>() < num {
        let server = postgres::Server::start("fsync = off\n");
        let Some(mut bucket) = Bucket::new(make(&server)).await else {
            return;
        };
        bucket.case.trim().exits(0);
        let mut all = BTreeSet::new();
        for round in 1..=ROUNDS {
            kill(&server, &mut bucket, &mut all, &mut kills).await;
            let unfinished = "SELECT state FROM event_persister_archives WHERE state <> 'archived'";
            for state in bucket.case.database().execute(unfinished).concat() {
                *left.entry(state.unwrap()).or_insert(0) += 1;
            }
            let is_enough = kills.iter().sum::<usize>() >= num;
            if round % 8 == 0 || is_enough {
                recover(&bucket, &all).await;
            }
            if is_enough {
                break;
            }
        }
        eprintln!(
            "of those who trim, PostgreSQL and the object store were killed: {kills:?}, and left {left:?}"
        );
    }
    let is_left = |state: &&str| left.contains_key(*state);
    assert!(num < 100 || ["writing", "removed"].iter().all(is_left));
}

async fn kill(
    server: &postgres::Server,
    bucket: &mut Bucket,
    all: &mut BTreeSet<String>,
    kills: &mut [usize; 3],
) {
    let pause =
        |millis: u64| tokio::time::sleep(std::time::Duration::from_millis(fastrand::u64(..millis)));
    let case = &bucket.case;
    all.extend(case.store_events(30));
    let mut trimmers: Vec<_> = (0..fastrand::usize(1..=2)).map(|_| trimmer(case)).collect();
    pause(1_500).await;
    let (mut is_server_down, mut is_bucket_down) = (false, false);
    // Now and then two at the same time.
    for _ in 0..=usize::from(fastrand::u8(..) < 40) {
        match fastrand::usize(..3) {
            0 => {
                if let Some(mut trimmer) = trimmers.pop() {
                    kills[0] += 1;
                    trimmer.kill().unwrap();
                    trimmer.wait().unwrap();
                }
            }
            1 if !is_server_down => {
                kills[1] += 1;
                server.kill_9();
                is_server_down = true;
            }
            2 if !is_bucket_down => {
                kills[2] += 1;
                bucket.moto.kill_9();
                is_bucket_down = true;
            }
            _ => {}
        }
    }
    // Whoever is left goes on without the others.
    pause(500).await;
    if is_server_down {
        server.start_again();
    }
    if is_bucket_down {
        bucket.moto.start_again().await;
    }
    pause(300).await;
    for mut trimmer in trimmers {
        kills[0] += usize::from(trimmer.try_wait().unwrap().is_none());
        trimmer.kill().unwrap();
        trimmer.wait().unwrap();
    }
}

async fn recover(bucket: &Bucket, all: &BTreeSet<String>) {
    recovers(&bucket.case).await;
    assert!(bucket.holds_once(all) > 0);
    bucket.is_in_order();
}

#[tokio::test]
async fn everything_is_killed_while_events_are_archived() {
    everything_is_killed(Case::on).await;
}

#[tokio::test]
async fn everything_is_killed_while_partitions_are_archived() {
    everything_is_killed(|server| Case::on(server).whole()).await;
}
