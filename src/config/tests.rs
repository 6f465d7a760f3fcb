mod addresses;
mod deployment;

use std::io::Write as _;
use std::time::Duration;

use tempfile::NamedTempFile;

use event_persister_actors::settings::plain;
use event_persister_actors::source::http::AuthString;
use event_persister_actors::store::postgres::TlsMode;

use super::keys::PREFIX;
use super::*;
use crate::http::Listen;
use crate::logging::LogFormat;

impl Config {
    /// Of nothing but the defaults.
    pub(crate) fn of_defaults() -> Result<Self, ConfigError> {
        Self::from_parts(&Flags::default(), [])
    }

    /// Of these variables and the defaults.
    pub(crate) fn of_variables(variables: &[(&str, &str)]) -> Result<Self, ConfigError> {
        let variables = variables.iter();
        Self::from_parts(
            &Flags::default(),
            variables.map(|(name, value)| (name.into(), value.into())),
        )
    }
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::with_suffix(".toml").unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

pub(super) fn load(flags: &Flags, environment: &[(&str, &str)]) -> Result<Config, String> {
    Config::from_parts(
        flags,
        environment
            .iter()
            .map(|(name, value)| (name.into(), value.into())),
    )
    .map_err(|error| error.to_string())
}

pub(super) fn effective<'a>(config: &'a Config, name: &str) -> &'a Effective {
    config
        .effective
        .iter()
        .find(|effective| effective.name == name)
        .unwrap()
}

#[test]
fn without_any_settings_the_defaults_count() {
    let config = load(&Flags::default(), &[("PATH", "/bin")]).unwrap();
    assert_eq!(
        config.http.listener.listen,
        Listen::At("127.0.0.1:4280".to_owned())
    );
    assert_eq!(config.pipeline.writers.get(), 2);
    assert_eq!(config.pipeline.batch.linger, Duration::from_millis(5));
    assert_eq!(config.trim.every, Some(Duration::from_secs(900)));
    assert_eq!(config.trim.overrides.len(), 1);
    assert_eq!(config.http.routes.auth, None);
    assert!(config.effective.iter().all(|e| e.origin == Origin::Default));
    assert_eq!(effective(&config, "http.auth_string").value, None);
}

#[test]
fn batches_are_larger_on_sqlite_unless_told() {
    let postgres = ("EVENT_PERSISTER_DATABASE_URL", "postgresql://db/events");
    let told = ("EVENT_PERSISTER_BATCH_MAX_EVENTS", "1000");
    for (environment, expected) in [
        (vec![], 1_250),
        (vec![postgres], 1_000),
        (vec![told], 1_000),
    ] {
        let config = load(&Flags::default(), &environment).unwrap();
        assert_eq!(config.pipeline.batch.max_events.get(), expected);
        let shown = effective(&config, "batch.max_events").value.clone();
        assert_eq!(shown, Some(expected.to_string()));
    }
}

#[test]
fn flags_come_before_variables_before_the_file_before_defaults() {
    let file = file("[pipeline]\nwriters = 3\n[batch]\nmax_events = 30\nmax_bytes = 300\n");
    let path = file.path().to_owned();
    let flags = Flags {
        config: Some(path.clone()),
        writers: Some("5".to_owned()),
        ..Flags::default()
    };
    let environment = [
        ("EVENT_PERSISTER_WRITERS", "4"),
        ("EVENT_PERSISTER_BATCH_MAX_EVENTS", "40"),
        ("EVENT_PERSISTER_BATCH_MAX_BYTES", ""),
    ];
    let config = load(&flags, &environment).unwrap();
    assert_eq!(config.pipeline.writers.get(), 5);
    assert_eq!(config.pipeline.batch.max_events.get(), 40);
    assert_eq!(config.pipeline.batch.max_bytes.get(), 300);
    let origin = |name| effective(&config, name).origin.clone();
    assert_eq!(origin("pipeline.writers"), Origin::Flag("--writers"));
    assert_eq!(
        origin("batch.max_events"),
        Origin::Variable("EVENT_PERSISTER_BATCH_MAX_EVENTS".to_owned())
    );
    assert_eq!(origin("batch.max_bytes"), Origin::File { path, line: 5 });
    assert_eq!(origin("batch.linger"), Origin::Default);
}

#[test]
fn the_file_can_be_named_by_a_variable() {
    let file = file("[log]\nformat = \"json\"\n");
    let name = file.path().to_str().unwrap();
    let config = load(&Flags::default(), &[("EVENT_PERSISTER_CONFIG", name)]).unwrap();
    assert_eq!(config.log.format, LogFormat::Json);

    let missing = load(
        &Flags::default(),
        &[("EVENT_PERSISTER_CONFIG", "/no/such.toml")],
    );
    assert!(
        missing
            .unwrap_err()
            .contains("cannot read the configuration file /no/such.toml")
    );
}

#[test]
fn every_setting_is_a_key_of_the_file_and_a_variable() {
    for setting in keys::all() {
        let value = match &setting.default {
            serde_json::Value::Null => plain(&setting.schema["examples"][0]),
            default => plain(default),
        };
        let value = value.as_str();
        let file = file(&format!(
            "[{}]\n{} = {value:?}\n",
            setting.section, setting.key
        ));
        let flags = Flags {
            config: Some(file.path().to_owned()),
            ..Flags::default()
        };
        // Two that stand together have to.
        let variable = setting.variable();
        let other = variable
            .strip_suffix("CERT_FILE")
            .map(|start| format!("{start}KEY_FILE"))
            .or_else(|| Some(format!("{}CERT_FILE", variable.strip_suffix("KEY_FILE")?)));
        let mut variables: Vec<(&str, &str)> =
            other.iter().map(|other| (other.as_str(), "x")).collect();
        let config = load(&flags, &variables).unwrap();
        assert!(
            matches!(
                effective(&config, &setting.name).origin,
                Origin::File { line: 2, .. }
            ),
            "{}",
            setting.name
        );
        variables.push((&variable, value));
        let config = load(&flags, &variables).unwrap();
        assert_eq!(
            effective(&config, &setting.name).origin,
            Origin::Variable(setting.variable())
        );
    }
}

#[test]
fn a_wrong_value_is_named_with_its_place_and_what_would_be_right() {
    let flags = Flags {
        writers: Some("none".to_owned()),
        ..Flags::default()
    };
    assert_eq!(
        load(&flags, &[]).unwrap_err(),
        "--writers: \"none\" is not right for pipeline.writers: give a whole number of at least 1 and \
         at most 64"
    );
    let variables = [("EVENT_PERSISTER_WRITERS", "65")];
    let variable = load(&Flags::default(), &variables).unwrap_err();
    assert!(
        variable.ends_with("at least 1 and at most 64"),
        "{variable}"
    );
    let config = load(&Flags::default(), &[("EVENT_PERSISTER_WRITERS", "64")]).unwrap();
    assert_eq!(config.pipeline.writers.get(), 64);
    let variable = load(&Flags::default(), &[("EVENT_PERSISTER_LISTEN", "4280")]).unwrap_err();
    assert!(variable.starts_with("EVENT_PERSISTER_LISTEN: \"4280\" is not right for http.listen"));
    let file = file("[batch]\nlinger = 5\n");
    let flags = Flags {
        config: Some(file.path().to_owned()),
        ..Flags::default()
    };
    let wrong = load(&flags, &[]).unwrap_err();
    assert!(
        wrong.contains(".toml:2: 5 is not right for batch.linger"),
        "{wrong}"
    );
    assert!(wrong.contains("\"5s\""), "{wrong}");
}

#[test]
fn faults_of_all_places_are_named_together() {
    let file = file("[batch]\nlingr = \"5ms\"\n");
    let flags = Flags {
        config: Some(file.path().to_owned()),
        listen: Some("nowhere".to_owned()),
        ..Flags::default()
    };
    let error = load(&flags, &[("EVENT_PERSISTER_WRITERZ", "1")]).unwrap_err();
    for part in ["lingr", "--listen", "EVENT_PERSISTER_WRITERZ"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_wrong_value_is_an_error_even_where_another_hides_it() {
    let flags = Flags {
        writers: Some("2".to_owned()),
        ..Flags::default()
    };
    let error = load(&flags, &[("EVENT_PERSISTER_WRITERS", "many")]).unwrap_err();
    assert!(
        error.starts_with("EVENT_PERSISTER_WRITERS: \"many\""),
        "{error}"
    );
}

#[test]
fn secrets_stay_secret() {
    let config = load(
        &Flags::default(),
        &[("EVENT_PERSISTER_HTTP_AUTH_STRING", "admin:hunter2")],
    )
    .unwrap();
    assert_eq!(
        config.http.routes.auth,
        Some(AuthString::new("admin:hunter2"))
    );
    assert_eq!(
        effective(&config, "http.auth_string").value.as_deref(),
        Some("***")
    );
    assert!(!format!("{config:?}").contains("hunter2"));

    let flags = Flags {
        database_url: Some("postgresql://u:hunter2@db:x/x".to_owned()),
        redis_url: Some("redis:/:hunter2@r".to_owned()),
        ..Flags::default()
    };
    let error = load(&flags, &[]).unwrap_err();
    assert!(
        error.contains("--database-url: \"postgresql://u:***@db:x/x\""),
        "{error}"
    );
    assert!(
        error.contains("--redis-url: wrong value for redis.url: give redis://"),
        "{error}"
    );
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn what_a_url_says_counts_unless_its_own_setting_says_something() {
    let url = "postgresql://h/d?sslmode=require&connect_timeout=3&application_name=mine";
    let pairs = [
        ("EVENT_PERSISTER_DATABASE_URL", url),
        ("EVENT_PERSISTER_DATABASE_CONNECT_TIMEOUT", "9s"),
    ];
    let config = load(&Flags::default(), &pairs).unwrap();
    assert_eq!(config.database.postgres.tls, TlsMode::Require);
    assert_eq!(config.database.postgres.application_name, "mine");
    assert_eq!(
        config.database.postgres.connect_timeout,
        Duration::from_secs(9)
    );
    let tls = effective(&config, "database.tls");
    assert_eq!(tls.value.as_deref(), Some("require"));
    assert_eq!(tls.origin.to_string(), "EVENT_PERSISTER_DATABASE_URL");
}

#[test]
fn tls_may_begin_at_once_where_any_setting_says_that_it_must_begin() {
    let url = (
        "EVENT_PERSISTER_DATABASE_URL",
        "postgresql://h/d?direct_tls=1",
    );
    let error = load(&Flags::default(), &[url]).unwrap_err().to_string();
    assert!(error.contains("needs sslmode=require"), "{error}");
    for required in [
        ("PGSSLMODE", "verify-full"),
        ("EVENT_PERSISTER_DATABASE_TLS", "require"),
    ] {
        load(&Flags::default(), &[url, required]).unwrap();
    }
}

#[test]
fn what_may_be_a_password_without_a_host_behind_it_is_not_told() {
    let url = ("EVENT_PERSISTER_DATABASE_URL", "postgresql://app:hush/d");
    let error = load(&Flags::default(), &[url]).unwrap_err().to_string();
    assert!(
        error.contains("not a port") && !error.contains("hush"),
        "{error}"
    );
}

#[test]
fn a_certificate_without_its_key_is_an_error() {
    let redis = ("EVENT_PERSISTER_REDIS_URL", "rediss://r");
    for [cert, key] in [
        ["database.tls_cert_file", "database.tls_key_file"],
        ["http.tls_cert_file", "http.tls_key_file"],
        ["redis.cert_file", "redis.key_file"],
    ] {
        let variable = |name: &str| format!("{PREFIX}{}", name.replace('.', "_").to_uppercase());
        for [one, other] in [[cert, key], [key, cert]] {
            let variable = variable(one);
            let pairs = [redis, (variable.as_str(), "/one.pem")];
            let error = load(&Flags::default(), &pairs).unwrap_err();
            assert!(error.contains(other), "{error}");
        }
    }
}

#[test]
fn every_group_has_a_guard_of_its_own() {
    let guard_group = |more: &[(&str, &str)]| {
        let mut environment = vec![("EVENT_PERSISTER_REDIS_URL", "redis://localhost")];
        environment.extend(more);
        let config = load(&Flags::default(), &environment).unwrap();
        let shown = effective(&config, "redis.guard_group").value.clone();
        let guard_group = config.redis.unwrap().guard_group;
        assert_eq!(shown, Some(guard_group.clone()));
        guard_group
    };
    let group = ("EVENT_PERSISTER_REDIS_GROUP", "other");
    assert_eq!(guard_group(&[]), "event-persister-guard");
    assert_eq!(guard_group(&[group]), "other-guard");
    let named = ("EVENT_PERSISTER_REDIS_GUARD_GROUP", "mine");
    assert_eq!(guard_group(&[group, named]), "mine");
}

#[test]
fn the_readmes_example_is_right() {
    let readme = include_str!("../../README.md");
    let example = readme.split("```toml\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let file = file(example);
    let flags = Flags {
        config: Some(file.path().to_owned()),
        ..Flags::default()
    };
    let config = load(&flags, &[]).unwrap();
    assert_eq!(
        config.http.listener.listen,
        Listen::At("0.0.0.0:4280".to_owned())
    );
    assert!(config.http.routes.auth.is_some());
    let days = |count: u64| Duration::from_secs(count * 24 * 60 * 60);
    assert_eq!(config.trim.retention, days(30));
    assert_eq!(
        config.trim.overrides.get("prefect.flow-run.heartbeat"),
        Some(&days(1))
    );
}
