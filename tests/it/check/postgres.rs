//! PostgreSQL servers, databases and roles that are not as they should be.

use std::sync::{Arc, OnceLock};

use chrono::{DateTime, TimeDelta, Utc};
use event_persister_actors::finding::Severity;
use event_persister_actors::store::EventStore as _;
use event_persister_actors::store::operator::{Needs, StoreOperator as _};
use event_persister_actors::store::postgres::PostgresStore;
use event_persister_actors::testing::ManualClock;

use super::*;
use crate::postgres_store::connect::Bouncer;
use crate::support::ports::free_port;
use crate::support::postgres::{Database, Server};
use crate::support::wait::until_blocking;

/// Unlike the one of the other tests, this server keeps what it commits.
fn server() -> &'static Server {
    static DURABLE: OnceLock<Server> = OnceLock::new();
    DURABLE.get_or_init(|| Server::start(""))
}

struct Postgres {
    database: Database,
    folder: Folder,
}

impl Postgres {
    /// With all tables.
    fn new() -> Self {
        let postgres = Self::empty(server());
        postgres.migrate();
        postgres
    }

    fn empty(server: &Server) -> Self {
        Self {
            database: server.database(),
            folder: Folder::new(),
        }
    }

    fn migrate(&self) {
        let url = ["migrate", "--database-url", &self.database.url];
        self.folder.run(&url).exits(0);
    }

    /// As the superuser who made it.
    fn check(&self) -> Ran {
        self.check_at(&self.database.url)
    }

    fn check_at(&self, url: &str) -> Ran {
        self.check_with(url, &[])
    }

    fn check_with(&self, url: &str, variables: &[(&str, &str)]) -> Ran {
        let url = [("EVENT_PERSISTER_DATABASE_URL", url)];
        check(&self.folder, &[&url, variables].concat())
    }

    /// As a role that may do everything but this, which is put behind `REVOKE`.
    fn check_without(&self, privilege: &str) -> Ran {
        let (role, url) = self.database.for_a_role();
        self.database.execute(&format!(
            "REVOKE {privilege} FROM {role}; REVOKE {privilege} FROM PUBLIC"
        ));
        self.check_at(&url)
    }
}

#[test]
fn a_database_with_all_tables_is_good_for_a_role_of_its_own_too() {
    let postgres = Postgres::new();
    finds_nothing(&postgres.check());
    let (_, url) = postgres.database.for_a_role();
    finds_nothing(&postgres.check_at(&url));
}

#[test]
fn events_that_prefect_cannot_read() {
    let postgres = Postgres::new();
    let insert = |payload: &str| {
        postgres.database.execute(&format!(
            "INSERT INTO events (occurred, event, resource_id, resource, payload, received, recorded) \
             VALUES (now(), 'e', 'r', '{{}}', '{payload}', now(), now())"
        ))
    };
    insert(r#"{"k": 1e4299}"#);
    finds_nothing(&postgres.check());
    insert(r#"{"k": 1e4300}"#);
    let ran = postgres.check();
    finds_only(
        &ran,
        "postgres.unreadable",
        "warning",
        "event-persister verify",
    );
    assert!(ran.json().to_string().contains("1 of the newest 2 events"));
}

#[test]
fn events_of_any_size_are_looked_at_as_far_as_there_is_time() {
    let postgres = Postgres::new();
    postgres.database.execute(
        "INSERT INTO events (occurred, event, resource_id, resource, payload, received, recorded) \
         SELECT now(), 'e', 'r', '{}', (SELECT jsonb_agg(m) FROM generate_series(1, 200000) AS m), \
         now(), now() FROM generate_series(1, 60)",
    );
    let timeout = ("EVENT_PERSISTER_DATABASE_STATEMENT_TIMEOUT", "2s");
    let ran = postgres.check_with(&postgres.database.url, &[timeout]);
    finds_nothing(&ran);
    let document = ran.json().to_string();
    assert!(document.contains("events can be read"), "{document}");
    assert!(!document.contains("newest 60 events"), "all at once");
    assert!(!document.contains("newest 0 events"), "none");
}

#[test]
fn nobody_there() {
    let url = format!("postgresql://postgres@127.0.0.1:{}/d", free_port());
    let ran = check(&Folder::new(), &[("EVENT_PERSISTER_DATABASE_URL", &url)]);
    finds_only(&ran, "postgres.reachable", "error", "is the server running");
}

#[test]
fn tables_that_prefect_has_yet_to_make() {
    let postgres = Postgres::empty(server());
    let ran = postgres.check();
    let remedy = "waiting for Prefect's migrations";
    finds_only(&ran, "postgres.schema", "error", remedy);
}

#[test]
fn a_commit_that_a_crash_undoes() {
    let postgres = Postgres::new();
    let name = &postgres.database.name;
    postgres.database.execute(&format!(
        "ALTER DATABASE {name} SET synchronous_commit = off"
    ));
    let ran = postgres.check();
    let remedy = "set synchronous_commit to on";
    finds_only(&ran, "postgres.durability", "warning", remedy);
}

#[test]
fn a_server_that_does_not_wait_for_its_disk() {
    let Some(_) = Server::shared().directory() else {
        eprintln!("not run: the server is not ours");
        return;
    };
    let postgres = Postgres::empty(Server::shared());
    postgres.migrate();
    let remedy = "set fsync to on";
    finds_only(&postgres.check(), "postgres.durability", "warning", remedy);
}

#[test]
fn transactions_that_only_read() {
    let postgres = Postgres::new();
    let name = &postgres.database.name;
    postgres.database.execute(&format!(
        "ALTER DATABASE {name} SET default_transaction_read_only = on"
    ));
    let ran = postgres.check();
    let remedy = "RESET default_transaction_read_only";
    finds_only(&ran, "postgres.writable", "error", remedy);
}

#[test]
fn a_standby() {
    let server = Server::start("fsync = off\n");
    let postgres = Postgres::empty(&server);
    postgres.migrate();
    server.stop("fast");
    let signal = server.directory().unwrap().join("data/standby.signal");
    std::fs::write(signal, "").unwrap();
    server.start_again();
    finds(&postgres.check(), "postgres.writable", "error", "primary");
}

/// Waits until the server has this many standbys in this state.
fn until_there_are(database: &Database, state: &str, num: usize) {
    let count = format!("SELECT count(*) FROM pg_stat_replication WHERE sync_state = '{state}'");
    let num = num.to_string();
    until_blocking(format!("{num} standbys that are {state}"), || {
        database.value(&count) == num
    });
}

#[test]
fn standbys_of_every_kind() {
    const ID: &str = "postgres.replication";
    let server = Server::start("");
    let postgres = Postgres::empty(&server);
    postgres.migrate();
    let database = &postgres.database;
    let (_, url) = database.for_a_role();
    let ran = postgres.check();
    finds_nothing(&ran);
    ran.prints(&["no standby is connected"]);
    let standby = server.standby(server.port());
    until_there_are(database, "async", 1);
    for url in [&database.url, &url] {
        let ran = postgres.check_at(url);
        finds_only(&ran, ID, "warning", "after each failover");
    }
    let set = |setting: &str| {
        database.execute(&format!("ALTER SYSTEM SET {setting}"));
        database.execute("SELECT pg_reload_conf()");
    };
    set("synchronous_standby_names = 'FIRST 1 (*)'");
    until_there_are(database, "sync", 1);
    let ran = postgres.check();
    finds_nothing(&ran);
    ran.prints(&["on the disk of 1 of the standbys FIRST 1 (*)"]);
    let ran = postgres.check_at(&url);
    finds_nothing(&ran);
    ran.prints(&["only a role with pg_read_all_stats"]);
    let name = &database.name;
    for (level, remedy) in [
        ("remote_write", "set synchronous_commit to on"),
        ("local", "RESET synchronous_commit"),
    ] {
        database.execute(&format!(
            "ALTER DATABASE {name} SET synchronous_commit = {level}"
        ));
        finds_only(&postgres.check(), ID, "warning", remedy);
    }
    database.execute(&format!("ALTER DATABASE {name} RESET synchronous_commit"));
    standby.stop("fast");
    until_there_are(database, "sync", 0);
    for url in [&database.url, &url] {
        finds_only(&postgres.check_at(url), ID, "error", "start the standby");
    }
}

#[test]
fn a_server_that_does_not_say_which_it_is() {
    let server = Server::start("");
    let postgres = Postgres::empty(&server);
    postgres.migrate();
    let (_, url) = postgres.database.for_a_role();
    let ran = postgres.check_at(&url);
    finds_nothing(&ran);
    ran.prints(&["is on timeline 1 of system "]);
    let revoke = "REVOKE EXECUTE ON FUNCTION pg_control_system FROM PUBLIC";
    postgres.database.execute(revoke);
    let ran = postgres.check_at(&url);
    finds_only(&ran, "postgres.primary", "warning", "GRANT EXECUTE");
}

#[test]
fn privileges_that_are_missing() {
    for (privilege, severity) in [
        ("INSERT ON events", "error"),
        ("SELECT ON event_resources", "error"),
        ("DELETE ON event_resources", "error"),
        ("UPDATE ON event_persister_dead_letters", "error"),
        ("DELETE ON event_persister_dead_letters", "warning"),
        ("EXECUTE ON FUNCTION event_persister_store_v1", "error"),
    ] {
        let ran = Postgres::new().check_without(privilege);
        let remedy = format!("GRANT {privilege} TO");
        finds_only(&ran, "postgres.privileges", severity, &remedy);
    }
}

#[test]
fn a_record_in_the_log_that_may_not_be_written() {
    let postgres = Postgres::new();
    let function = postgres.database.value(
        "SELECT 'FUNCTION ' || oid::regprocedure FROM pg_proc \
         WHERE proname = 'pg_logical_emit_message' AND proargtypes[2] = 'text'::regtype",
    );
    let ran = postgres.check_without(&format!("EXECUTE ON {function}"));
    let remedy = format!("GRANT EXECUTE ON {function} TO");
    finds_only(&ran, "postgres.privileges", "error", &remedy);
}

#[test]
fn whoever_keeps_events_for_ever_need_not_delete_them() {
    let postgres = Postgres::new();
    let (role, url) = postgres.database.for_a_role();
    postgres
        .database
        .execute(&format!("REVOKE DELETE ON events FROM {role}"));
    let off = [("EVENT_PERSISTER_TRIM_EVERY", "off")];
    finds_nothing(&postgres.check_with(&url, &off));
}

#[test]
fn tables_of_our_own_that_may_not_be_made() {
    let postgres = Postgres::new();
    postgres.database.execute(
        "DROP TABLE event_persister_dead_letters, __diesel_schema_migrations; \
         DROP FUNCTION event_persister_store_v1",
    );
    finds_nothing(&postgres.check());
    let ran = postgres.check_without("CREATE ON SCHEMA public");
    finds_only(
        &ran,
        "postgres.own_tables",
        "error",
        "GRANT CREATE ON SCHEMA",
    );
}

#[test]
fn a_column_that_is_missing() {
    let postgres = Postgres::new();
    postgres
        .database
        .execute("ALTER TABLE events DROP COLUMN follows");
    let remedy = "bring the schema up to date";
    finds_only(&postgres.check(), "postgres.schema", "error", remedy);
}

#[test]
fn indexes_that_are_missing() {
    let postgres = Postgres::new();
    postgres.database.execute(
        "DROP INDEX ix_events__occurred, ix_events__occurred_id; \
             CREATE INDEX partial ON events (occurred) WHERE follows IS NULL",
    );
    let remedy = "CREATE INDEX CONCURRENTLY ON events (occurred)";
    finds_only(&postgres.check(), "postgres.indexes", "warning", remedy);
    // The remedy is one.
    postgres.database.execute(remedy);
    finds_nothing(&postgres.check());
    postgres
        .database
        .execute("ALTER TABLE events DROP CONSTRAINT pk_events");
    let remedy = "ADD PRIMARY KEY (id)";
    finds_only(&postgres.check(), "postgres.indexes", "error", remedy);
}

/// What a store says that is about to write.
async fn refusal(postgres: &Postgres) -> String {
    let clock = Arc::new(ManualClock::at(DateTime::UNIX_EPOCH));
    let store = PostgresStore::new(postgres.database.settings(), clock);
    let refused = store.check().await;
    let error = refused.expect_err("nothing can be written here");
    error.to_string()
}

#[actix::test]
async fn what_keeps_a_store_from_writing_is_found_by_it_and_by_check() {
    let recorded = "DELETE FROM __diesel_schema_migrations WHERE version =";
    let letters = "event_persister_dead_letters";
    for (change, id, remedy) in [
        (
            "DROP FUNCTION event_persister_store_v1".to_owned(),
            "postgres.own_tables",
            "DELETE FROM __diesel_schema_migrations WHERE version IN ('00000000000102', '00000000000103')",
        ),
        (
            format!("DROP TABLE {letters}"),
            "postgres.own_tables",
            recorded,
        ),
        (
            format!("ALTER TABLE {letters} DROP COLUMN stage"),
            "postgres.schema",
            "bring the schema up to date",
        ),
        (
            format!("ALTER TABLE {letters} ALTER COLUMN id DROP IDENTITY"),
            "postgres.schema",
            "GENERATED ALWAYS AS IDENTITY",
        ),
        (
            format!("ALTER TABLE {letters} DROP CONSTRAINT uq_{letters}"),
            "postgres.indexes",
            "ADD UNIQUE (position, raw_hash, source)",
        ),
        (
            "ALTER TABLE events DROP CONSTRAINT pk_events".to_owned(),
            "postgres.indexes",
            "ADD PRIMARY KEY (id)",
        ),
        (
            "ALTER TABLE events ALTER COLUMN payload TYPE text".to_owned(),
            "postgres.schema",
            "make it jsonb",
        ),
        (
            "ALTER TABLE events ADD COLUMN tenant integer NOT NULL".to_owned(),
            "postgres.schema",
            "upgrade",
        ),
        (
            "ALTER TABLE event_resources DROP COLUMN created, \
             ADD COLUMN created timestamptz GENERATED ALWAYS AS (updated) STORED"
                .to_owned(),
            "postgres.schema",
            "DROP EXPRESSION",
        ),
        // As somebody does who wants to mend it.
        (
            "DO $$ BEGIN EXECUTE replace(pg_get_functiondef('event_persister_store_v1'::regproc), \
             'num_parts CONSTANT integer := 8', 'num_parts CONSTANT integer := 2'); END $$"
                .to_owned(),
            "postgres.own_tables",
            "DROP FUNCTION event_persister_store_v1",
        ),
    ] {
        let postgres = Postgres::new();
        postgres.database.execute(&change);
        let ran = postgres.check();
        finds_only(&ran, id, "error", remedy);
        let told = refusal(&postgres).await;
        assert!(told.contains(remedy), "{change}: {told}");
    }
}

#[test]
fn the_remedy_for_what_is_ours_is_one() {
    for change in [
        "DROP FUNCTION event_persister_store_v1; \
         DELETE FROM __diesel_schema_migrations WHERE version IN ('00000000000102', '00000000000103')",
        "DROP TABLE event_persister_dead_letters; \
         DELETE FROM __diesel_schema_migrations WHERE version = '00000000000101'",
    ] {
        let postgres = Postgres::new();
        postgres.database.execute(change);
        // `serve` makes it, and so does this.
        postgres.migrate();
        finds_nothing(&postgres.check());
    }
}

/// The tables of a version before its last migration: they serve, and `serve` brings them up to date.
#[test]
fn a_function_that_is_out_of_date_is_brought_up_to_date() {
    let postgres = Postgres::new();
    const UNDO: &str = include_str!(
        "../../../migrations/postgres/own/00000000000103_tell_failed_asserts/down.sql"
    );
    const FORGET: &str = "DELETE FROM __diesel_schema_migrations WHERE version = '00000000000103'";
    postgres.database.execute(UNDO);
    postgres.database.execute(FORGET);
    finds_nothing(&postgres.check());
    postgres.migrate();
    let told = "SELECT count(*) FROM pg_proc WHERE proname = 'event_persister_store_v1' \
                AND prosrc LIKE '%assert_failure%'";
    assert_eq!(postgres.database.value(told), "1");
    finds_nothing(&postgres.check());
}

#[test]
fn what_else_has_a_say_in_what_is_inserted() {
    let postgres = Postgres::new();
    let database = &postgres.database;
    database.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER no_events BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    let remedy = "DROP TRIGGER no_events ON events";
    finds_only(&postgres.check(), "postgres.triggers", "warning", remedy);
    database.execute("ALTER TABLE events DISABLE TRIGGER no_events");
    finds_nothing(&postgres.check());
    let (_, url) = database.for_a_role();
    database.execute("ALTER TABLE event_resources ENABLE ROW LEVEL SECURITY");
    let ran = postgres.check_at(&url);
    finds_only(&ran, "postgres.row_security", "warning", "BYPASSRLS");
}

#[test]
fn tables_of_a_newer_version() {
    let postgres = Postgres::new();
    postgres.database.execute(
        "INSERT INTO __diesel_schema_migrations (version) VALUES ('00000000000999'), ('20260101')",
    );
    let ran = postgres.check();
    finds_only(&ran, "postgres.migrations", "warning", "upgrade");
    ran.prints(&["(00000000000999)"]);
}

#[test]
fn connections_that_do_not_suffice() {
    let postgres = Postgres::new();
    let (role, url) = postgres.database.for_a_role();
    postgres
        .database
        .execute(&format!("ALTER ROLE {role} CONNECTION LIMIT 6"));
    let many = [("EVENT_PERSISTER_WRITERS", "8")];
    let ran = postgres.check_with(&url, &many);
    finds_only(&ran, "postgres.connections", "warning", "CONNECTION LIMIT");
}

#[actix::test]
async fn clocks_that_are_apart() {
    let postgres = Postgres::new();
    #[expect(
        clippy::disallowed_methods,
        reason = "what the server's clock shows too"
    )]
    let ahead = Utc::now() + TimeDelta::hours(1);
    let clock = Arc::new(ManualClock::at(ahead));
    let store = PostgresStore::new(postgres.database.settings(), clock);
    let needs = Needs {
        writers: 2,
        trims: true,
        archives: false,
        reads: true,
    };
    let findings = store.inspect(needs).await;
    let bad: Vec<_> = (findings.iter())
        .filter(|finding| finding.severity > Severity::Ok)
        .collect();
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert_eq!(bad[0].id, "postgres.clock");
    assert!(bad[0].what.contains("behind ours"), "{bad:?}");
    assert!(bad[0].remedy.as_deref().unwrap().contains("NTP"));
}

#[actix::test]
async fn a_pooler_that_loses_prepared_statements() {
    let postgres = Postgres::new();
    let bouncer = Bouncer::start(server(), 4).await;
    let (direct, pooled) = (
        format!(":{}/", server().port()),
        format!(":{}/", bouncer.port),
    );
    let url = postgres.database.url.replace(&direct, &pooled);
    let ran = postgres.check_at(&url);
    let version = std::process::Command::new("pgbouncer")
        .arg("--version")
        .output();
    let version = String::from_utf8(version.unwrap().stdout).unwrap();
    let minor = version.split(['.', '\n']).nth(1).unwrap();
    // Since then they stay, unless its own settings say otherwise.
    if minor.parse::<u32>().unwrap() < 21 {
        let remedy = "database.prepared_statements to off";
        finds_only(&ran, "postgres.pooler", "error", remedy);
    } else {
        ran.prints(&["a pooler"]);
    }
    let off = [("EVENT_PERSISTER_DATABASE_PREPARED_STATEMENTS", "off")];
    let ran = postgres.check_with(&url, &off);
    finds_nothing(&ran);
    ran.prints(&["a pooler stands between, and nothing is prepared"]);
}

impl Postgres {
    /// With partitioned tables.
    fn partitioned() -> Self {
        let postgres = Self::empty(server());
        postgres.partition().exits(0);
        postgres
    }

    fn partition(&self) -> Ran {
        let url = &self.database.url;
        let arguments = ["migrate", "--partition-by", "day", "--database-url", url];
        self.folder.run(&arguments)
    }
}

#[test]
fn partitions_that_nobody_makes() {
    let postgres = Postgres::partitioned();
    finds_nothing(&postgres.check());
    let ahead = "SELECT string_agg(relname, ', ') FROM (SELECT relname FROM pg_inherits \
        JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = $::regclass \
        AND relname ~ '_p2' ORDER BY relname DESC LIMIT 2) AS last";
    for table in ["events", "event_resources"] {
        let last = postgres
            .database
            .value(&ahead.replace('$', &format!("'{table}'")));
        postgres.database.execute(&format!("DROP TABLE {last}"));
    }
    let remedy = "migrate --partition-by";
    finds_only(&postgres.check(), "postgres.partitions", "warning", remedy);
    postgres.partition().exits(0);
    finds_nothing(&postgres.check());
    let (_, url) = postgres.database.for_a_role();
    let remedy = "a role that owns both tables";
    finds_only(
        &postgres.check_at(&url),
        "postgres.partitions",
        "warning",
        remedy,
    );
    postgres
        .database
        .execute("DROP TABLE event_resources_default");
    let remedy = "PARTITION OF events DEFAULT";
    finds_only(&postgres.check(), "postgres.partitions", "error", remedy);
}

#[test]
fn a_default_partition_that_fills() {
    let postgres = Postgres::partitioned();
    postgres.database.execute(
        "INSERT INTO events (occurred, event, resource_id, resource, payload, received, recorded) \
         SELECT now() - interval '2000 days', 'e', 'r', '{}', '{}', now(), now() \
         FROM generate_series(1, 20001)",
    );
    let remedy = "migrate --partition-by";
    finds_only(&postgres.check(), "postgres.partitions", "warning", remedy);
}

#[test]
fn tables_that_are_half_way_to_partitions() {
    let postgres = Postgres::new();
    postgres.database.execute(
        "INSERT INTO events (occurred, event, resource_id, resource, payload, received, recorded) \
         VALUES (now(), 'e', 'r', '{}', '{}', now(), now())",
    );
    let variables = [
        (
            "EVENT_PERSISTER_DATABASE_URL",
            postgres.database.url.as_str(),
        ),
        ("FAILPOINTS", "partitioning::bound=return"),
    ];
    let arguments = ["migrate", "--partition-by", "day"];
    let ran = postgres.folder.run_with(&arguments, &variables);
    assert_eq!(ran.code, None, "{ran:?}");
    let remedy = "run `event-persister migrate --partition-by day` again";
    finds_only(&postgres.check(), "postgres.partitions", "warning", remedy);
    let passed = "UPDATE event_persister_partitioning SET bound = current_date";
    postgres.database.execute(passed);
    finds_only(&postgres.check(), "postgres.partitions", "error", remedy);
    postgres.partition().exits(0);
    finds_nothing(&postgres.check());
}

#[test]
fn a_function_that_is_not_made_for_partitions() {
    let postgres = Postgres::partitioned();
    postgres.database.execute(
        "DROP FUNCTION event_persister_store_v1; \
         DELETE FROM __diesel_schema_migrations WHERE version IN ('00000000000102', '00000000000103')",
    );
    postgres.migrate();
    finds_nothing(&postgres.check());
    let of_partitions = "SELECT prosrc LIKE '%times_moved%' FROM pg_proc \
        WHERE proname = 'event_persister_store_v1'";
    assert_eq!(postgres.database.value(of_partitions), "t");
    postgres.database.execute(
        "DO $$ BEGIN EXECUTE replace(pg_get_functiondef('event_persister_store_v1'::regproc), \
         'times_moved < 5', 'times_moved < 6'); END $$",
    );
    let remedy = "DROP FUNCTION event_persister_store_v1";
    finds_only(&postgres.check(), "postgres.own_tables", "error", remedy);
}

#[test]
fn dead_rows_that_pile_up() {
    let postgres = Postgres::new();
    let dead_rows = |num: u32| {
        postgres.database.execute(&format!(
            "INSERT INTO events (occurred, event, resource_id, resource, payload, received, recorded) \
             SELECT now(), 'e', 'r', '{{}}', '{{}}', now(), now() FROM generate_series(1, {num}); \
             DELETE FROM events"
        ));
    };
    let num_dead = || -> u32 {
        let num = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'events'";
        postgres.database.value(num).parse().unwrap()
    };
    let off = "ALTER TABLE events SET (autovacuum_enabled = off)";
    postgres.database.execute(off);
    dead_rows(99_000);
    // Sessions report when they end.
    until_blocking("the first are reported", || num_dead() == 99_000);
    finds_nothing(&postgres.check());
    dead_rows(1_000);
    until_blocking("all are reported", || num_dead() == 100_000);
    let remedy = "switch autovacuum on";
    finds_only(&postgres.check(), "postgres.dead_rows", "warning", remedy);
    postgres.database.execute("VACUUM events");
    until_blocking("they are gone", || num_dead() == 0);
    finds_nothing(&postgres.check());
}
