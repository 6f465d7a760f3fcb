//! How tables become partitioned.

use chrono::Datelike as _;

use super::*;
use crate::support::binary::Folder;

fn migrate(database: &Database, period: &str) -> crate::support::binary::Ran {
    let arguments = ["migrate", "--partition-by", period, "--database-url"];
    Folder::new().run(&[&arguments[..], &[&database.url]].concat())
}

/// Columns with their types and defaults, in their order.
fn columns(database: &Database, table: &str) -> Vec<String> {
    let rows = database.execute(&format!(
        "SELECT attname || ' ' || format_type(atttypid, atttypmod) || ' ' || attnotnull || ' ' \
         || coalesce(pg_get_expr(adbin, adrelid), '') FROM pg_attribute \
         LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum \
         WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    ));
    rows.into_iter().flatten().flatten().collect()
}

/// The indexes of a table, without their names.
fn indexes(database: &Database, table: &str) -> Vec<String> {
    let rows = database.execute(&format!(
        "SELECT regexp_replace(pg_get_indexdef(indexrelid), '^CREATE (UNIQUE )?INDEX .* USING', '\\1') \
         FROM pg_index WHERE indrelid = '{table}'::regclass AND indisvalid ORDER BY 1"
    ));
    rows.into_iter().flatten().flatten().collect()
}

fn names_of_indexes(database: &Database, table: &str) -> Vec<String> {
    let rows = database.execute(&format!(
        "SELECT indexrelid::regclass FROM pg_index WHERE indrelid = '{table}'::regclass ORDER BY 1::text"
    ));
    let mut names: Vec<String> = rows.into_iter().flatten().flatten().collect();
    names.sort();
    names
}

#[actix::test]
async fn a_new_database_has_prefects_columns_and_indexes_in_each_partition() {
    let (of_prefect, _) = plain().await;
    for period in ["day", "week", "month"] {
        let database = Server::shared().database();
        migrate(&database, period)
            .exits(0)
            .prints(&["partitioned by"]);
        for table in ["events", "event_resources"] {
            let keyed = |index: &String| match index.strip_prefix("UNIQUE ") {
                Some(_) => "UNIQUE  btree (id, occurred)".to_owned(),
                None => index.clone(),
            };
            let mut expected: Vec<String> = indexes(&of_prefect, table).iter().map(keyed).collect();
            expected.sort();
            let partitions = partitions_of(&database, table);
            // The present one, three ahead, and the default.
            assert_eq!(partitions.len(), 5, "{partitions:?}");
            for partition in partitions.iter().map(String::as_str).chain([table]) {
                assert_eq!(columns(&database, partition), columns(&of_prefect, table));
                assert_eq!(indexes(&database, partition), expected, "{partition}");
            }
            assert_eq!(
                names_of_indexes(&database, table),
                names_of_indexes(&of_prefect, table)
            );
        }
        migrate(&database, period).exits(0);
        assert_eq!(partitions_of(&database, "events").len(), 5, "again");
    }
}

#[actix::test]
async fn what_is_there_becomes_a_partition_and_no_row_of_it_is_touched() {
    let (database, store) = plain().await;
    database.execute("ALTER TABLE events SET (fillfactor = 90)");
    let of_any_time = ["0001-01-01T00:00:00Z", "9999-12-31T23:00:00Z"];
    let mut events: Vec<_> = of_any_time
        .map(|text| occurred(text.parse().unwrap()).build())
        .to_vec();
    events.extend((-30..300).map(|days| occurred(days_ago(days)).build()));
    store.write(batch(&events)).await.unwrap();
    let before = rows(&database);
    let place = "SELECT pg_relation_filenode(to_regclass($))";
    let place = |table: &str| database.value(&place.replace('$', &format!("'{table}'")));
    let places = ["events", "event_resources"].map(place);
    migrate(&database, "week")
        .exits(0)
        .prints(&["made both tables partitioned"]);
    assert_eq!(rows(&database), before);
    assert_eq!(
        ["events_before", "event_resources_before"].map(place),
        places
    );
    // Its end is at least a week ahead, and behind it are partitions for what is there, as far as they are made.
    let ahead = |weeks: i64| days_until_monday() + 7 * weeks;
    let partitions = partitions_of(&database, "events");
    assert_eq!(
        partitions,
        [
            "events_before".to_owned(),
            "events_default".to_owned(),
            of_day("events", days_ago(-ahead(1))),
            of_day("events", days_ago(-ahead(2))),
        ]
    );
    assert_eq!(partitions_of(&database, "event_resources").len(), 4);
    let in_default = "SELECT count(*) FROM events_default";
    // Those further ahead, and the last one of all.
    let expected = (ahead(3)..=30).count() + 1;
    assert_eq!(database.value(in_default), expected.to_string());
    assert_eq!(store.half_events().await.unwrap().unwrap().events, 0);
    let again = store.write(batch(&events)).await.unwrap();
    assert!(
        again.iter().all(|outcome| *outcome == Outcome::Duplicate),
        "{again:?}"
    );
    assert_eq!(rows(&database), before);
    let constraints = "SELECT count(*) FROM pg_constraint WHERE conname = 'event_persister_bound'";
    assert_eq!(database.value(constraints), "0");
}

#[actix::test]
async fn it_is_refused_where_prefect_has_been() {
    for table in ["alembic_version", "flow_run"] {
        let database = Server::shared().database();
        database.execute(&format!("CREATE TABLE {table} (id integer)"));
        let complaint = ["Prefect has been in", table];
        migrate(&database, "day").exits(1).complains(&complaint);
        let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace \
            AND relkind IN ('r', 'p')";
        assert_eq!(database.value(tables), "1", "something was made");
    }
    let database = Server::shared().database();
    let url = database.url.replace("postgresql:", "postgresql+asyncpg:");
    let url = url.replace("?sslmode=disable", "?ssl=disable");
    let variables = [("PREFECT_API_DATABASE_CONNECTION_URL", url.as_str())];
    let ran = Folder::new().run_with(&["migrate", "--partition-by", "day"], &variables);
    ran.exits(1).complains(&["the database is Prefect's"]);
}

#[actix::test]
async fn it_is_refused_where_something_would_be_left_behind() {
    let obstacles = [
        (
            "CREATE VIEW seen AS SELECT id FROM events",
            "the view or rule seen",
        ),
        (
            "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
             CREATE TRIGGER ours BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION nothing()",
            "the trigger ours on events",
        ),
        (
            "CREATE TABLE noted (id uuid REFERENCES events)",
            "the foreign key noted_id_fkey",
        ),
        (
            "CREATE UNIQUE INDEX one_each ON event_resources (event_id, resource_id)",
            "the unique index one_each",
        ),
        (
            "CREATE PUBLICATION ours FOR TABLE events",
            "the publication ours of events",
        ),
        (
            "ALTER TABLE events ENABLE ROW LEVEL SECURITY",
            "row-level security on events",
        ),
    ];
    for (statement, complaint) in obstacles {
        let (database, _) = plain().await;
        database.execute(statement);
        migrate(&database, "day").exits(1).complains(&[complaint]);
        let plans = "SELECT to_regclass('event_persister_partitioning') IS NULL";
        assert_eq!(database.value(plans), "t", "{statement}");
    }
}

#[actix::test]
async fn it_is_refused_for_another_period_and_by_sqlite() {
    let (database, _) = partitioned(Period::Week).await;
    let complaint = "partitioned by week already";
    migrate(&database, "day").exits(1).complains(&[complaint]);
    let ran = Folder::new().run(&["migrate", "--partition-by", "day"]);
    ran.exits(1)
        .complains(&["for a PostgreSQL database of our own"]);
    let ran = Folder::new().run(&["migrate", "--partition-by", "year"]);
    ran.exits(2).complains(&["day, week, month"]);
}

/// Holds the lock of a migration, as long as what it returns is there.
async fn as_if_migrating(database: &Database) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&database.url, tokio_postgres::NoTls)
        .await
        .unwrap();
    actix::spawn(connection);
    let lock = "BEGIN; SELECT pg_advisory_xact_lock(x'6576656e746d6967'::bigint)";
    client.batch_execute(lock).await.unwrap();
    client
}

#[actix::test]
async fn one_at_a_time() {
    let (database, store) = plain().await;
    let client = as_if_migrating(&database).await;
    let error = store.partition(Period::Day).await.unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    client.batch_execute("COMMIT").await.unwrap();
    store.partition(Period::Day).await.unwrap();
}

#[actix::test]
async fn owner_and_privileges_stay() {
    let (database, _) = plain().await;
    let (role, url) = database.for_a_role();
    database.execute(&format!(
        "ALTER TABLE events OWNER TO {role}; GRANT SELECT ON events TO PUBLIC"
    ));
    migrate(&database, "day").exits(0);
    let owner = "SELECT relowner::regrole FROM pg_class WHERE oid = 'events'::regclass";
    assert_eq!(database.value(owner), role);
    let at_role = store(&database.at(url));
    let event = occurred(days_ago(1)).build();
    let outcomes = at_role.write(batch(&[event])).await.unwrap();
    assert_eq!(outcomes, [Outcome::Stored]);
    let public = "SELECT has_table_privilege('public', 'events', 'SELECT') \
        AND NOT has_table_privilege('public', 'event_resources', 'SELECT')";
    assert_eq!(database.value(public), "t");
}

/// How many days from today the next Monday is.
fn days_until_monday() -> i64 {
    let today = SystemClock.now().date_naive().weekday();
    7 - i64::from(today.num_days_from_monday())
}

/// A run that was killed as soon as it had set its bound.
fn cut_off(database: &Database) {
    let variables = [
        ("EVENT_PERSISTER_DATABASE_URL", database.url.as_str()),
        ("FAILPOINTS", "partitioning::bound=return"),
    ];
    let arguments = ["migrate", "--partition-by", "day"];
    let ran = Folder::new().run_with(&arguments, &variables);
    assert_eq!(ran.code, None, "{ran:?}");
}

/// As if time had passed since the bound was set.
fn bound_at(database: &Database, day: DateTime<Utc>) {
    let day = day.format("%Y-%m-%d");
    for table in ["events", "event_resources"] {
        database.execute(&format!(
            "ALTER TABLE {table} DROP CONSTRAINT event_persister_bound; \
             ALTER TABLE {table} ADD CONSTRAINT event_persister_bound \
             CHECK (occurred < '{day} 00:00:00+00') NOT VALID"
        ));
    }
    database.execute(&format!(
        "UPDATE event_persister_partitioning SET bound = '{day}'"
    ));
}

/// Else all that is new would be stored where nobody reads it, once the bound has passed.
#[actix::test]
async fn a_bound_that_comes_near_is_lifted_by_a_writer() {
    let (database, first) = plain().await;
    add_generated_columns(&database);
    let before = [1, -50].map(|days| occurred(days_ago(days)).build());
    first.write(batch(&before)).await.unwrap();
    cut_off(&database);
    let ahead = [-60, -70].map(|days| occurred(days_ago(days)).build());
    first.write(batch(&ahead)).await.unwrap();
    let in_default = "SELECT count(*) FROM events_default";
    assert_eq!(database.value(in_default), "2");
    // One that is far away is none of a writer's business.
    let new = [0, 0].map(|days| occurred(days_ago(days)).build());
    store(&database).write(batch(&new[..1])).await.unwrap();
    assert_eq!(database.value(in_default), "2");
    bound_at(&database, days_ago(0));
    let owner = store(&database);
    owner.write(batch(&new[1..])).await.unwrap();
    owner.check().await.unwrap();
    assert_eq!(owner.warnings(), [""; 0]);
    assert_eq!(database.value(in_default), "0");
    assert_eq!(database.value("SELECT count(*) FROM events"), "6");
    assert_eq!(database.value("SELECT count(*) FROM event_resources"), "12");
    let all = [&before[..], &ahead, &new].concat();
    let again = owner.write(batch(&all)).await.unwrap();
    assert_eq!(again, [(); 6].map(|()| Outcome::Duplicate));
    migrate(&database, "day").exits(0);
    assert_eq!(ids(&database).len(), 6);
    assert_eq!(
        database.value("SELECT count(kind) FROM events_default"),
        "3"
    );
}

#[actix::test]
async fn a_bound_that_a_writer_must_not_lift_is_told_of() {
    let (database, first) = plain().await;
    let event = || occurred(days_ago(0)).build();
    first.write(batch(&[event()])).await.unwrap();
    cut_off(&database);
    bound_at(&database, days_ago(-1));
    let writer = store(&database.at(database.for_a_role().1));
    writer.write(batch(&[event()])).await.unwrap();
    writer.check().await.unwrap();
    let warnings = writer.warnings().concat();
    assert!(warnings.contains("has not come to its end"), "{warnings}");
    assert_eq!(database.value("SELECT count(*) FROM events"), "2");
    // Nor does anybody while a migration is at work.
    let client = as_if_migrating(&database).await;
    store(&database).write(batch(&[event()])).await.unwrap();
    let bound = "SELECT bound IS NOT NULL FROM event_persister_partitioning";
    assert_eq!(database.value(bound), "t");
    client.batch_execute("COMMIT").await.unwrap();
    migrate(&database, "day").exits(0);
    writer.check().await.unwrap();
    assert_eq!(writer.warnings(), [""; 0]);
}

/// Tables, their indexes and their constraints.
fn relations(database: &Database) -> Vec<String> {
    let rows = database.execute(
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace \
         UNION ALL SELECT conname::text FROM pg_constraint ORDER BY 1",
    );
    rows.into_iter().flatten().flatten().collect()
}

/// By the statements in the handbook.
#[actix::test]
async fn it_can_be_given_up() {
    const HANDBOOK: &str = include_str!("../../../deploy/README.md");
    let (database, store) = plain().await;
    let before = relations(&database);
    let events = [0, -50].map(|days| occurred(days_ago(days)).build());
    store.write(batch(&events[..1])).await.unwrap();
    cut_off(&database);
    store.write(batch(&events[1..])).await.unwrap();
    assert_eq!(database.value("SELECT count(*) FROM events"), "1");
    let (_, recipe) = HANDBOOK.split_once("To give it up").unwrap();
    let (_, recipe) = recipe.split_once("```sql").unwrap();
    let (recipe, _) = recipe.split_once("```").unwrap();
    let (transaction, rest) = recipe.split_once("COMMIT;").unwrap();
    database.execute(&format!("{transaction} COMMIT;"));
    for statement in rest.split(';').filter(|text| !text.trim().is_empty()) {
        database.execute(statement);
    }
    assert_eq!(ids(&database).len(), 2);
    assert_eq!(relations(&database), before);
    let again = store.write(batch(&events)).await.unwrap();
    assert_eq!(again, [(); 2].map(|()| Outcome::Duplicate));
    store.check().await.unwrap();
    migrate(&database, "day").exits(0);
    assert_eq!(ids(&database).len(), 2);
}

/// A run that was cut off for so long that its bound has passed sets another one.
#[actix::test]
async fn a_bound_that_has_passed_is_set_anew() {
    let (database, store) = plain().await;
    let before = [1, 2].map(|days| occurred(days_ago(days)).build());
    store.write(batch(&before)).await.unwrap();
    cut_off(&database);
    bound_at(&database, days_ago(0));
    let behind = [0, 0, -50].map(|days| occurred(days_ago(days)).build());
    let all = [&before[..], &behind].concat();
    let outcomes = store.write(batch(&all)).await.unwrap();
    let (stored, duplicate) = (Outcome::Stored, Outcome::Duplicate);
    let expected = [&duplicate, &duplicate, &stored, &stored, &stored];
    assert_eq!(outcomes.iter().collect::<Vec<_>>(), expected);
    let again = store.write(batch(&behind)).await.unwrap();
    assert_eq!(again, [(); 3].map(|()| Outcome::Duplicate));
    let seen = "SELECT (SELECT count(*) FROM events) || ' ' || count(*) FROM events_default";
    assert_eq!(database.value(seen), "2 3");
    migrate(&database, "day")
        .exits(0)
        .prints(&["bound both tables"]);
    assert_eq!(ids(&database).len(), 5);
    assert_eq!(database.value("SELECT count(*) FROM event_resources"), "10");
    // Those of today came back, and only the last one lies behind all partitions.
    let seen = "SELECT (SELECT count(*) FROM events_before) || ' ' || count(*) FROM events_default";
    assert_eq!(database.value(seen), "4 1");
    let again = store.write(batch(&all)).await.unwrap();
    assert_eq!(again, [(); 5].map(|()| Outcome::Duplicate));
}
