//! Sections of Prefect's settings, each as JSON in one variable. What Prefect 3.9.1 makes of them.

use super::*;

const SERVER: &str = "PREFECT_SERVER";
const DATABASE: &str = "PREFECT_SERVER_DATABASE";
const EVENTS: &str = "PREFECT_SERVER_EVENTS";
const VACUUM: &str = "PREFECT_SERVER_SERVICES_DB_VACUUM";
const URL: &str = "PREFECT_SERVER_DATABASE_CONNECTION_URL";

/// What a section sets, and that it names itself.
#[track_caller]
fn set_by(section: &str, json: &str, setting: &str) -> String {
    let (value, origin) = shown(&[(section, json)], setting);
    assert_eq!(origin, section, "{json}");
    value
}

#[test]
fn every_section_sets_its_settings() {
    let connect_args = "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS";
    let tls = "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS";
    for (section, json, setting, expected) in [
        (
            DATABASE,
            r#"{"connection_url": "postgresql+asyncpg://u:s3cret@db/x"}"#,
            "database.url",
            "postgresql+asyncpg://u:***@db/x",
        ),
        (
            SERVER,
            r#"{"database": {"connection_url": "sqlite+aiosqlite:////p.db"}}"#,
            "database.url",
            "sqlite+aiosqlite:////p.db",
        ),
        (
            DATABASE,
            r#"{"driver": "postgresql+asyncpg", "host": "db", "port": 6432, "user": "u", "name": "x",
                "password": "s3cret"}"#,
            "database.url",
            "postgresql+asyncpg://u:***@db:6432/x",
        ),
        (
            DATABASE,
            r#"{"sqlalchemy": {"connect_args": {"tls": {"enabled": true}}}}"#,
            "database.tls",
            "verify-full",
        ),
        (
            "PREFECT_SERVER_DATABASE_SQLALCHEMY",
            r#"{"connect_args": {"search_path": "mine"}}"#,
            "database.search_path",
            "mine",
        ),
        (
            connect_args,
            r#"{"statement_cache_size": 0}"#,
            "database.prepared_statements",
            "off",
        ),
        (
            connect_args,
            r#"{"tls": {"enabled": "yes", "ca_file": "/ca.pem"}}"#,
            "database.tls_ca_file",
            "/ca.pem",
        ),
        (
            tls,
            r#"{"enabled": 1, "check_hostname": false}"#,
            "database.tls_check_hostname",
            "off",
        ),
        (
            EVENTS,
            r#"{"retention_period": "P30D"}"#,
            "trim.retention",
            "30d",
        ),
        (
            EVENTS,
            r#"{"retention_period": 7200}"#,
            "trim.retention",
            "2h",
        ),
        (
            EVENTS,
            r#"{"messaging_broker": "prefect_redis.messaging"}"#,
            "redis.url",
            "redis://localhost:6379/0",
        ),
        (
            EVENTS,
            r#"{"maximum_size_bytes": 1024.0}"#,
            "http.max_event_bytes",
            "1KiB",
        ),
        (
            EVENTS,
            r#"{"maximum_event_name_length": "200"}"#,
            "events.max_event_name_length",
            "200",
        ),
        (
            "PREFECT_SERVER_SERVICES",
            r#"{"db_vacuum": {"event_retention_overrides": {"a": "P60D", "b": 60}}}"#,
            "trim.overrides",
            "a=60d,b=1m",
        ),
        (VACUUM, r#"{"loop_seconds": 60}"#, "trim.every", "1m"),
        (VACUUM, r#"{"enabled": ["flow_runs"]}"#, "trim.every", "off"),
        (VACUUM, r#"{"enabled": null}"#, "trim.every", "off"),
        (
            "PREFECT_SERVER_API",
            r#"{"auth_string": "a:s3cret"}"#,
            "http.auth_string",
            "***",
        ),
    ] {
        assert_eq!(set_by(section, json, setting), expected, "{json}");
        let lower = section.to_ascii_lowercase();
        assert_eq!(shown(&[(&lower, json)], setting).0, expected, "{json}");
    }
}

#[test]
fn a_section_comes_before_the_variables_of_its_fields_and_an_outer_one_before_an_inner() {
    let json = r#"{"retention_period": "2d"}"#;
    let alias = "PREFECT_EVENTS_RETENTION_PERIOD";
    let name = "PREFECT_SERVER_EVENTS_RETENTION_PERIOD";
    let pairs = [(EVENTS, json), (name, "3d"), (alias, "4d")];
    assert_eq!(
        shown(&pairs, "trim.retention"),
        ("2d".into(), EVENTS.into())
    );
    for variable in [name, alias] {
        let expected = "PREFECT_SERVER_EVENTS (retention_period) comes before it";
        assert_eq!(reason(&pairs, variable), expected);
    }
    let pairs = [
        (EVENTS, json),
        (SERVER, r#"{"events": {"retention_period": "5d"}}"#),
    ];
    assert_eq!(
        shown(&pairs, "trim.retention"),
        ("5d".into(), SERVER.into())
    );
    assert_eq!(
        reason(&pairs, "PREFECT_SERVER_EVENTS (retention_period)"),
        "PREFECT_SERVER (events.retention_period) comes before it"
    );
    let parts = [
        (SERVER, r#"{"database": {"host": "outer"}}"#),
        (
            DATABASE,
            r#"{"driver": "postgresql+asyncpg", "host": "inner", "user": "u"}"#,
        ),
        ("PREFECT_API_DATABASE_NAME", "x"),
    ];
    let (url, origin) = shown(&parts, "database.url");
    assert_eq!(url, "postgresql+asyncpg://u@outer:5432/x");
    assert_eq!(origin, format!("{DATABASE}, {SERVER}, {}", parts[2].0));
}

#[test]
fn null_hides_the_variables() {
    let pairs = [(DATABASE, r#"{"connection_url": null}"#), (URL, PG)];
    assert_eq!(shown(&pairs, "database.url").1, "default");
    assert!(reason(&pairs, URL).contains("comes before it"));
    let api = "PREFECT_API_DATABASE_CONNECTION_URL";
    assert_eq!(shown(&[pairs[0], (api, PG)], "database.url").1, "default");
    // A whole section that is null is none.
    assert_eq!(
        shown(&[(DATABASE, "null"), (URL, PG)], "database.url").1,
        URL
    );
}

#[test]
fn the_name_of_a_variable_within_a_section_counts_least() {
    let alias = r#"{"PREFECT_API_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///json.db"}"#;
    assert!(set_by(DATABASE, alias, "database.url").contains("json.db"));
    for name in [URL, "PREFECT_API_DATABASE_CONNECTION_URL"] {
        assert_eq!(
            shown(&[(DATABASE, alias), (name, PG)], "database.url").1,
            name
        );
    }
    // Elsewhere it means nothing.
    assert_eq!(shown(&[(SERVER, alias)], "database.url").1, "default");
    let joined = r#"{"database_connection_url": "sqlite+aiosqlite:///json.db"}"#;
    assert_eq!(shown(&[(SERVER, joined)], "database.url").1, "default");
}

#[test]
fn capitals_count_only_in_settings_that_have_another_name() {
    let tls = r#"{"CONNECT_ARGS": {"TLS": {"Enabled": true}}}"#;
    let section = "PREFECT_SERVER_DATABASE_SQLALCHEMY";
    assert_eq!(set_by(section, tls, "database.tls"), "verify-full");
    let retention = [(EVENTS, r#"{"Retention_Period": "2d"}"#)];
    assert_eq!(shown(&retention, "trim.retention").1, "default");
}

#[test]
fn overrides_are_put_together() {
    let variable = "PREFECT_SERVER_SERVICES_DB_VACUUM_EVENT_RETENTION_OVERRIDES";
    let pairs = [
        (VACUUM, r#"{"event_retention_overrides": {"a": 60}}"#),
        (variable, r#"{"a": 3600, "b": 3600}"#),
    ];
    assert_eq!(
        shown(&pairs, "trim.overrides"),
        ("a=1m,b=1h".to_owned(), format!("{VACUUM}, {variable}"))
    );
}

#[test]
fn what_tunes_prefect_alone_is_seen() {
    let json = r#"{"timeout": 5, "sqlalchemy": {"pool_size": 3}}"#;
    for place in ["timeout", "sqlalchemy.pool_size"] {
        let seen = reason(&[(DATABASE, json)], &format!("{DATABASE} ({place})"));
        assert!(seen.contains("chosen for Prefect's"), "{seen}");
    }
    let pairs = [
        (
            DATABASE,
            r#"{"connection_url": "sqlite+aiosqlite:///p.db"}"#,
        ),
        ("EVENT_PERSISTER_DATABASE_URL", "sqlite://own.db"),
    ];
    let seen = reason(&pairs, "PREFECT_SERVER_DATABASE (connection_url)");
    assert_eq!(seen, "database.url is set by EVENT_PERSISTER_DATABASE_URL");
}

#[test]
fn prefects_persister_may_be_off_in_a_section() {
    let redis = ("PREFECT_MESSAGING_BROKER", "prefect_redis.messaging");
    let section = "PREFECT_SERVER_SERVICES_EVENT_PERSISTER";
    let off = (section, r#"{"enabled": false}"#);
    assert_eq!(warnings(&[redis, off]), "");
    let on = (section, r#"{"enabled": true, "flush_interval": 9}"#);
    assert!(warnings(&[redis, on]).contains(&format!("({section} (enabled) is on)")));
    // A variable would change nothing.
    assert!(warnings(&[redis, on]).contains(&format!("set {section} (enabled)=false")));
    let flush_interval = config(&[redis, on]).prefect.flush_interval;
    assert_eq!(flush_interval, Some(Duration::from_secs(9)));
}

/// Prefect's own messages would show them.
#[test]
fn faults_name_the_variable_and_nothing_that_stands_in_it() {
    for json in [
        r#"{"connection_url": "postgresql+asyncpg://u:s3cret@db/x""#,
        r#"{'password': 's3cret'}"#,
        r#"["s3cret"]"#,
        r#""s3cret""#,
        "s3cret",
        "5",
        r#"{"sqlalchemy": "s3cret"}"#,
        r#"{"sqlalchemy": {"connect_args": ["s3cret"]}}"#,
        r#"{"connection_url": {"s3cret": 1}}"#,
        r#"{"connection_url": ["s3cret"]}"#,
        r#"{"driver": ["s3cret"]}"#,
        r#"{"driver": "postgresql+asyncpg", "host": "h", "user": "u", "name": "x", "password": {"s3cret": 1}}"#,
        r#"{"driver": "postgresql+asyncpg", "host": 5, "user": "u", "name": "x", "password": "s3cret"}"#,
        r#"{"driver": "postgresql+asyncpg", "host": "h", "port": 5.5, "user": "u", "name": "s3cret"}"#,
        r#"{"connection_url": "postgresql+asyncpg://u:s3cret@db:x/x"}"#,
    ] {
        let error = error(&[(DATABASE, json)]);
        assert!(error.contains(DATABASE), "{json}: {error}");
        assert!(!error.contains("s3cret"), "{json}: {error}");
    }
    let error = error(&[("PREFECT_SERVER_API", r#"{"auth_string": ["s3cret"]}"#)]);
    assert!(
        error.contains("PREFECT_SERVER_API (auth_string)"),
        "{error}"
    );
    assert!(!error.contains("s3cret"), "{error}");
}

#[test]
fn secrets_in_sections_stay_secret() {
    let json = r#"{"api": {"auth_string": "admin:s3cret"}, "database": {"driver": "postgresql+asyncpg",
        "host": "db", "user": "u", "name": "x", "password": "s3cret", "timeout": "s3cret"}}"#;
    let config = config(&[(SERVER, json)]);
    assert_eq!(
        effective(&config, "http.auth_string").origin.to_string(),
        SERVER
    );
    assert!(!format!("{config:?}").contains("s3cret"));
}

#[test]
fn values_of_json_are_pydantics() {
    let retention = |value: &str| {
        let json = format!(r#"{{"retention_period": {value}}}"#);
        load(&Flags::default(), &[(EVENTS, &json)])
            .map(|config| effective(&config, "trim.retention").value.clone().unwrap())
    };
    assert_eq!(retention("86400.5"), Ok("86400500ms".to_owned()));
    assert_eq!(retention("true"), Ok("1s".to_owned()));
    for refused in [r#""604800""#, "1e30", "[]", "{}"] {
        assert!(retention(refused).is_err(), "{refused}");
    }
    let length = |value: &str| {
        let json = format!(r#"{{"maximum_event_name_length": {value}}}"#);
        load(&Flags::default(), &[(EVENTS, &json)]).is_ok()
    };
    for taken in [
        "5",
        "5.0",
        "1e3",
        r#"" 5 ""#,
        "true",
        "99999999999999999999999999",
    ] {
        assert!(length(taken), "{taken}");
    }
    for refused in ["5.5", "0", "-1", "false", "[5]", r#""5.5""#] {
        assert!(!length(refused), "{refused}");
    }
}

/// Prefect has no setting that would hold its settings of Redis.
#[test]
fn redis_has_no_sections() {
    let json = [("PREFECT_REDIS_MESSAGING", r#"{"url": "redis://r"}"#)];
    assert_eq!(shown(&json, "redis.url").1, "default");
}
