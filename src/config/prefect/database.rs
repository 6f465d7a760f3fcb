//! Prefect's database.

use event_persister_actors::address::encode;
use serde_json::Value;

use super::{Reader, Reading, host, ours, pydantic, text};

/// Where Prefect keeps its SQLite file, in a folder of its own, if nothing says otherwise.
pub(super) const HOME: &str = "HOME";

const URL: [&str; 2] = [
    "PREFECT_SERVER_DATABASE_CONNECTION_URL",
    "PREFECT_API_DATABASE_CONNECTION_URL",
];
const DRIVER: [&str; 2] = [
    "PREFECT_SERVER_DATABASE_DRIVER",
    "PREFECT_API_DATABASE_DRIVER",
];
const HOST: [&str; 2] = ["PREFECT_SERVER_DATABASE_HOST", "PREFECT_API_DATABASE_HOST"];
const PORT: [&str; 2] = ["PREFECT_SERVER_DATABASE_PORT", "PREFECT_API_DATABASE_PORT"];
const USER: [&str; 2] = ["PREFECT_SERVER_DATABASE_USER", "PREFECT_API_DATABASE_USER"];
const NAME: [&str; 2] = ["PREFECT_SERVER_DATABASE_NAME", "PREFECT_API_DATABASE_NAME"];
const PASSWORD: [&str; 2] = [
    "PREFECT_SERVER_DATABASE_PASSWORD",
    "PREFECT_API_DATABASE_PASSWORD",
];

/// Settings with several names.
pub(super) const ALIASED: [&[&str]; 7] = [&URL, &DRIVER, &HOST, &PORT, &USER, &NAME, &PASSWORD];

const TLS_ENABLED: &str = "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_ENABLED";
const TLS_CA_FILE: &str = "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_CA_FILE";
const TLS_CERT_FILE: &str = "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_CERT_FILE";
const TLS_KEY_FILE: &str = "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_KEY_FILE";
const TLS_CHECK_HOSTNAME: &str =
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_CHECK_HOSTNAME";
const SEARCH_PATH: &str = "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_SEARCH_PATH";
const STATEMENT_CACHES: [&str; 2] = [
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_STATEMENT_CACHE_SIZE",
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_PREPARED_STATEMENT_CACHE_SIZE",
];

pub(super) fn read(reader: &mut Reader<'_>) {
    url(reader);
    tls(reader);
    reader.take("database.search_path", &[SEARCH_PATH], text);
    prepared_statements(reader);
}

/// The parts of a URL, each of which may be a variable of its own.
fn parts() -> impl Iterator<Item = &'static &'static str> {
    [&DRIVER, &HOST, &PORT, &USER, &NAME, &PASSWORD]
        .into_iter()
        .flatten()
}

fn url(reader: &mut Reader<'_>) {
    let setting = "database.url";
    let variables = reader.variables;
    if let Some((name, value)) = variables.first(&URL) {
        let url = value.as_str().unwrap_or_default();
        let uses_password = PASSWORD.iter().any(|password| url.contains(password));
        reader.see_all(
            parts().filter(|part| !(uses_password && PASSWORD.contains(part))),
            &reader.comes_before(name),
        );
        let password = variables.first(&PASSWORD);
        let password = password.and_then(|(_, password)| password.as_str());
        reader.take(setting, &URL, |value| with_password(value, password));
    } else if let Some((name, driver)) = variables.first(&DRIVER) {
        if let Some(reason) = reader.is_set_elsewhere(setting) {
            reader.see_all(parts(), &reason);
            return;
        }
        match from_parts(reader, driver) {
            Ok(url) => reader.set_from_parts(setting, url, parts().copied()),
            Err(expected) => reader.refuse(name, Some(driver), &expected),
        }
    } else {
        let [driver, _] = DRIVER;
        let [url, _] = URL;
        let reason = format!("neither {url} nor {driver} is set");
        reader.see_all(parts(), &reason);
    }
}

/// Prefect puts the password where the URL names its variable, as it is: it was escaped before.
fn with_password(url: &Value, password: Option<&str>) -> Result<Reading, String> {
    let [server, api] = PASSWORD;
    let mut url = url.as_str().ok_or("give a text")?.to_owned();
    if PASSWORD.iter().any(|name| url.contains(name)) {
        let password = password.ok_or_else(|| format!("{server} is named in it and not set"))?;
        for name in [api, server] {
            url = url.replace(&format!("${{{name}}}"), password);
        }
    }
    ours(&url)
}

fn from_parts(reader: &Reader<'_>, driver: &Value) -> Result<String, String> {
    let part = |names: &[&'static str]| match reader.variables.first(names) {
        None => Ok(None),
        Some((_, Value::String(text))) => Ok(Some(text.as_str())),
        Some((name, _)) => Err(format!("{} is not a text", reader.variables.place(name))),
    };
    match driver.as_str().unwrap_or_default() {
        "postgresql+asyncpg" => {
            let required = |names: &[&'static str; 2]| {
                part(names)?.ok_or_else(|| format!("it needs {} as well", names[0]))
            };
            let port = match reader.variables.first(&PORT) {
                None => 5432,
                Some((name, port)) => pydantic::integer(port)
                    .and_then(|port| u16::try_from(port).ok())
                    .ok_or_else(|| {
                        let place = reader.variables.place(name);
                        format!("{place} is not the number of a port")
                    })?,
            };
            let host = host(required(&HOST)?);
            Ok(format!(
                "postgresql+asyncpg://{}{}@{host}:{port}/{}",
                encode(required(&USER)?),
                part(&PASSWORD)?
                    .map_or_else(String::new, |password| format!(":{}", encode(password))),
                encode(required(&NAME)?)
            ))
        }
        "sqlite+aiosqlite" => {
            let home = || match (part(&["PREFECT_HOME"])?, part(&[HOME])?) {
                (Some(home), _) => Ok(format!("{home}/prefect.db")),
                (None, Some(home)) => Ok(format!("{home}/.prefect/prefect.db")),
                (None, None) => Err(format!("{} says which file is meant", NAME[0])),
            };
            let path = part(&NAME)?.map_or_else(home, |name| Ok(name.to_owned()))?;
            Ok(format!("sqlite+aiosqlite:///{path}"))
        }
        _ => Err("give postgresql+asyncpg or sqlite+aiosqlite".to_owned()),
    }
}

fn tls(reader: &mut Reader<'_>) {
    if !matches!(reader.switch(&[TLS_ENABLED]), Some((_, true))) {
        let files = [
            TLS_ENABLED,
            TLS_CA_FILE,
            TLS_CERT_FILE,
            TLS_KEY_FILE,
            TLS_CHECK_HOSTNAME,
        ];
        let reason = "without TLS_ENABLED=true Prefect asks for none of it";
        reader.see_all(&files, reason);
        return;
    }
    // Prefect then believes no server whose certificate it cannot verify.
    reader.take("database.tls", &[TLS_ENABLED], |_| ours("verify-full"));
    reader.take(
        "database.tls_check_hostname",
        &[TLS_CHECK_HOSTNAME],
        |value| {
            pydantic::boolean(value)
                .ok_or_else(|| "give true or false".to_owned())
                .and_then(|checks| ours(if checks { "on" } else { "off" }))
        },
    );
    reader.take("database.tls_ca_file", &[TLS_CA_FILE], text);
    certificate_of_ours(reader);
}

fn certificate_of_ours(reader: &mut Reader<'_>) {
    let [cert, key] = [TLS_CERT_FILE, TLS_KEY_FILE].map(|name| reader.variables.get(name));
    if cert.is_some() && key.is_some() {
        reader.take("database.tls_cert_file", &[TLS_CERT_FILE], text);
        reader.take("database.tls_key_file", &[TLS_KEY_FILE], text);
    } else {
        reader.see_all(
            &[TLS_CERT_FILE, TLS_KEY_FILE],
            "a certificate and its key are used together, and the other one is not set",
        );
    }
}

/// Operators set one of the caches to 0 behind a PgBouncer, where nothing can be prepared.
fn prepared_statements(reader: &mut Reader<'_>) {
    for name in STATEMENT_CACHES {
        let setting = "database.prepared_statements";
        if reader.layer.get(setting).is_some() {
            reader.see_all(&[name], "the other cache of statements is off already");
            continue;
        }
        reader.take(setting, &[name], |value| match pydantic::integer(value) {
            None => Err("give a whole number".to_owned()),
            Some(0) => ours("off"),
            Some(_) => Ok(Reading::Unusable(
                "there is one statement for a batch, which needs no cache; 0 would mean \
                 database.prepared_statements=off"
                    .to_owned(),
            )),
        });
    }
}

pub(super) fn is_taken_over(reader: &Reader<'_>) -> bool {
    reader.layer.get("database.url").is_some()
}
