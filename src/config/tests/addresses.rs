//! Addresses and environments as Prefect, its drivers and we read them.
//!
//! `tests/addresses/record.py` has asked the others, and says what a line of the table is. ADDRESSES names another
//! table, such as one of 10,000 lines.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use event_persister_actors::settings::Named as _;
use event_persister_actors::source::redis::Place;
use event_persister_actors::store::postgres::{Address, Target};
use flate2::bufread::MultiGzDecoder;
use serde_json::{Value, json};

use super::*;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/addresses.jsonl.gz");

/// Why we may refuse what Prefect takes: each names the part.
const REFUSED_BY_NAME: [&str; 23] = [
    "one server is named, not a list",
    "a # in the name of the user is written as %23",
    "asks for a server that takes no events",
    "is not done here",
    "lists of revoked certificates are not read here",
    "given twice, and not the same",
    "the parameter \"dsn\" has no meaning here",
    "the parameter \"credential_provider\" has no meaning here",
    "the parameter \"connection_pool\" has no meaning here",
    "the parameter \"force_master_ip\" has no meaning here",
    "the parameter \"is_master\" has no meaning here",
    "the parameter \"check_connection\" has no meaning here",
    "the parameter \"connection_class\" has no meaning here",
    "the parameter \"server_settings\" has no meaning here",
    "is not a port",
    // Python puts other characters in the place of those bytes, and nobody's password has them.
    "a part of it is not UTF-8",
    "an IPv6 address ends with a bracket",
    "it cannot hold a NUL character",
    "what stands behind a question mark is no parameter",
    // Python drops what stands before an IPv6 address without an `@`, which was meant for a login.
    "brackets stand around a whole IPv6 address",
    // SQLAlchemy leaves out what stands between the host and its port.
    "the host is missing",
    // Python does not connect either.
    "no version of TLS that is safe",
    // It may be a part of a password, which Python takes for the port or for another host.
    "an @ stands behind the host",
];

/// Why lines like some are read otherwise than by Prefect, and which they are.
type Difference = (&'static str, fn(&Value) -> bool);

/// Those that stay.
const KNOWN: [Difference; 7] = [
    (
        "an empty PGPASSWORD is none, as to libpq, so that the file of passwords is read",
        |line| {
            let env = &line["env"];
            let has_file = env["PGPASSFILE"].is_string() || env["HOME"].is_string();
            env["PGPASSWORD"] == "" && (has_file || url(line).contains("passfile="))
        },
    ),
    (
        "a slash in a password of unix:// begins the path to redis-py; logs would show the rest of the password",
        |line| {
            let rest = url(line).strip_prefix("unix://");
            rest.and_then(|rest| rest.split_once('/'))
                .is_some_and(|(login, rest)| login.contains(':') && rest.contains('@'))
        },
    ),
    (
        "two values of ssl are none to asyncpg, which then does not encrypt",
        |line| line["kind"] == "postgres" && url(line).matches("ssl=").count() > 1,
    ),
    (
        "Prefect's own TLS settings replace the ssl of the URL unseen; one that is no mode may have been meant",
        |line| {
            let env = &line["env"];
            url(line).contains("ssl=")
                && env["PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_ENABLED"] == "true"
                && line["result"]["tls"]["mode"] == "context"
        },
    ),
    (
        "the % of an IPv6 zone is escaped in a URL (RFC 6874); SQLAlchemy leaves it, and no zone has that name",
        |line| {
            let in_brackets = url(line)
                .split_once('[')
                .and_then(|(_, rest)| rest.split_once(']'));
            line["kind"] == "postgres" && in_brackets.is_some_and(|(zone, _)| zone.contains('%'))
        },
    ),
    (
        "unescaped: SQLAlchemy ends a password at its first @, and lets a user's name hold a question mark",
        |line| {
            let login = url(line).split_once("://").map_or("", |(_, rest)| rest);
            let authority = login.split('/').next().unwrap_or_default();
            let user = login.split([':', '/']).next().unwrap_or_default();
            line["kind"] == "postgres"
                && (login.matches('@').count() > 1
                    || (user.contains('?') && authority.contains('@')))
        },
    ),
    (
        "a bracket that is not closed is no host, so that an @ behind it ends a login; prefect-redis closes it",
        |line| {
            let rest = url(line).split_once("+sentinel://[");
            rest.is_some_and(|(_, rest)| rest.contains('@') && !rest.contains(']'))
        },
    ),
];

fn url(line: &Value) -> &str {
    line["url"].as_str().unwrap_or_default()
}

/// What came of a line.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    same: usize,
    refused_by_both: usize,
    /// By name.
    refused_by_us: usize,
    /// One of [`KNOWN`].
    known: usize,
    /// Spellings of libpq, of other drivers, and with slips that leave no doubt.
    taken_by_us: usize,
    /// Nothing can be reached there, whatever is made of it.
    out_of_reach: usize,
}

fn lines() -> Box<dyn Iterator<Item = Value>> {
    #[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
    let path = std::env::var("ADDRESSES").unwrap_or_else(|_| TABLE.to_owned());
    let file = BufReader::new(File::open(&path).unwrap());
    let text: Box<dyn Read> = if path.ends_with(".gz") {
        Box::new(MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let lines = BufReader::new(text).lines();
    Box::new(lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()))
}

/// Makes the files that the lines name. A certificate is not read before there is a server.
fn write_files(folder: &Path) {
    let table = MultiGzDecoder::new(BufReader::new(File::open(TABLE).unwrap()));
    let first = BufReader::new(table).lines().next().unwrap().unwrap();
    let first: Value = serde_json::from_str(&first).unwrap();
    for (name, file) in first["files"].as_object().unwrap() {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, file["text"].as_str().unwrap_or("PEM")).unwrap();
        let mode = file["mode"].as_str().unwrap_or("0600");
        let mode = u32::from_str_radix(mode, 8).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// Our answer, and the configuration that it was taken from.
fn ours(line: &Value, folder: &str) -> Result<Config, String> {
    let is_postgres = line["kind"] == "postgres";
    let place = |text: &Value| text.as_str().unwrap().replace("{dir}", folder);
    let mut variables = vec![
        ("HOME".to_owned(), format!("{folder}/home")),
        ("LOGNAME".to_owned(), "operator".to_owned()),
    ];
    for (name, value) in line["env"].as_object().unwrap() {
        variables.retain(|(other, _)| other != name);
        variables.push((name.clone(), place(value)));
    }
    if !line["url"].is_null() {
        let variable = if is_postgres {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL"
        } else {
            "PREFECT_REDIS_MESSAGING_URL"
        };
        variables.push((variable.to_owned(), place(&line["url"])));
    }
    if !is_postgres {
        let broker = ("PREFECT_MESSAGING_BROKER", "prefect_redis.messaging");
        variables.push((broker.0.to_owned(), broker.1.to_owned()));
    }
    let variables: Vec<(&str, &str)> = variables
        .iter()
        .map(|(name, value)| (&name[..], &value[..]))
        .collect();
    load(&Flags::default(), &variables)
}

fn is_out_of_reach(line: &Value) -> bool {
    let expected = &line["result"];
    // Prefect takes a blank at the end for a part of the database's name.
    let url = line["url"].as_str().unwrap_or_default();
    if url != url.trim_end() || url.contains("]junk") {
        return true;
    }
    let addresses = ["addresses", "sentinels"].into_iter();
    let mut addresses = addresses.flat_map(|key| expected[key].as_array().into_iter().flatten());
    // No sentinel watches a name with a blank in it, and no server knows a user or a database that is a list.
    let service = expected["service"].as_str().unwrap_or_default();
    let lists = ["user", "password", "database"];
    expected["never"] == true
        || lists.iter().any(|key| expected[key].is_array())
        || service.contains(' ')
        || addresses.any(|address| address["never"] == true)
}

fn address(address: &Address) -> Value {
    let Address { host, port, .. } = address;
    if host.starts_with('/') {
        let folder = host.trim_end_matches('/');
        json!({ "path": format!("{folder}/.s.PGSQL.{port}") })
    } else {
        json!({ "host": host, "port": port })
    }
}

/// What counts of a line about PostgreSQL, in its words.
fn postgres(config: &Config, expected: &Value) -> (Value, Value) {
    let DatabaseUrl::Postgres { url, .. } = &config.database.url else {
        panic!("it is not PostgreSQL");
    };
    let settings = &config.database.postgres;
    let (user, password, database) = url.login();
    let password = password.map(|password| String::from_utf8_lossy(password));
    let tls = &expected["tls"];
    let is_context = tls["mode"] == "context";
    let has_hosts = url.addresses().iter().any(|a| !a.host.starts_with('/'));
    let (mode, _) = TlsMode::ALL
        .iter()
        .find(|(_, mode)| *mode == settings.tls)
        .unwrap();
    let is_asked_for = !matches!(
        settings.tls,
        TlsMode::Disable | TlsMode::Allow | TlsMode::Prefer
    );
    let verifies = matches!(settings.tls, TlsMode::VerifyCa | TlsMode::VerifyFull)
        || (is_asked_for && settings.tls_ca_file.is_some());
    let checks_name = settings.tls == TlsMode::VerifyFull && settings.tls_check_hostname;
    let ca = settings.tls_ca_file.as_ref().filter(|_| verifies);
    let encryption = json!({
        "mode": if is_context { "context" } else { *mode },
        "verify": if verifies { "required" } else { "none" },
        "hostname": checks_name,
        "ca": ca,
        "certificate": settings.tls_cert_file,
        "key": settings.tls_key_file,
    });
    let no_encryption = json!({ "mode": "disable" });
    let given = json!({
        "addresses": url.addresses().iter().map(address).collect::<Vec<_>>(),
        "user": user,
        "password": password.filter(|password| !password.is_empty()),
        "database": database.or(user),
        "tls": if !has_hosts || settings.tls == TlsMode::Disable { no_encryption.clone() } else { encryption },
        "target": match url.target() {
            Target::Any => "any",
            Target::Primary => "primary",
            Target::ReadWrite => "read-write",
        },
        "search_path": settings.search_path,
        "prepares": settings.prepared_statements,
    });
    let options = &expected["options"];
    let caches = ["statement_cache_size", "prepared_statement_cache_size"];
    let target = &expected["target_session_attrs"];
    let of_tls = ["mode", "verify", "hostname", "ca", "certificate", "key"];
    let mut encryption: Value = of_tls
        .map(|key| (key.to_owned(), tls[key].clone()))
        .into_iter()
        .collect();
    if is_context {
        // Read before the driver is asked, so that the table does not tell.
        encryption["ca"] = json!(ca);
    }
    let password = &expected["password"];
    let wanted = json!({
        "addresses": expected["addresses"],
        "user": expected["user"],
        "password": if password == "" { &Value::Null } else { password },
        // Without a name the server takes the user's.
        "database": if expected["database"] == "" { &expected["user"] } else { &expected["database"] },
        "tls": if !has_hosts || tls["mode"] == "disable" { no_encryption } else { encryption },
        "target": if target == "prefer-standby" { "primary".into() } else { target.clone() },
        "search_path": expected["server_settings"]["search_path"],
        "prepares": caches.iter().all(|cache| options[cache] != 0),
    });
    (given, wanted)
}

/// A password alone is this user's.
fn with_user(login: &Value) -> Value {
    match login.as_array().map(Vec::as_slice) {
        Some([password]) => json!(["default", password]),
        _ => login.clone(),
    }
}

/// The same about Redis.
fn redis(config: &Config, expected: &Value) -> (Value, Value) {
    let settings = config.redis.as_ref().unwrap();
    let url = &settings.url;
    let auth = |login: Option<(Option<&str>, &str)>| match login {
        None => Value::Null,
        Some((None, password)) => with_user(&json!([password])),
        Some((Some(user), password)) => json!([user, password]),
    };
    let tls = url.encryption().map(|(verifies, checks_name)| {
        json!({
            "verify": verifies,
            "hostname": checks_name,
            "ca": settings.ca_file,
            "certificate": settings.cert_file,
            "key": settings.key_file,
        })
    });
    let mut given = json!({ "db": url.database(), "auth": auth(url.login()), "tls": tls });
    let place = match url.place() {
        Place::Host(host, port) => json!({ "host": host, "port": port }),
        Place::Socket(path) => json!({ "path": path }),
        Place::Sentinels(sentinels) => {
            let members = sentinels.members.iter();
            let members = members.map(|(host, port)| json!({ "host": host, "port": port }));
            json!({
                "sentinels": members.collect::<Vec<_>>(),
                "service": sentinels.service,
                "sentinel_auth": auth(sentinels.login()),
            })
        }
    };
    given["place"] = place;
    let tls = &expected["tls"];
    let of_tls = ["ca", "certificate", "key"];
    let mut encryption: Value = of_tls
        .map(|key| (key.to_owned(), tls[key].clone()))
        .into_iter()
        .collect();
    encryption["verify"] = json!(tls["verify"] != "none");
    encryption["hostname"] = tls["hostname"].clone();
    let mut of_place = json!({});
    for key in [
        "host",
        "port",
        "path",
        "sentinels",
        "service",
        "sentinel_auth",
    ] {
        if let Some(value) = expected.get(key) {
            of_place[key] = if key == "sentinel_auth" {
                with_user(value)
            } else {
                value.clone()
            };
        }
    }
    // Without a password this user is who one is without a login.
    let nobody = json!(["default", ""]);
    let login = Some(with_user(&expected["auth"])).filter(|login| *login != nobody);
    let wanted = json!({
        "db": expected["db"],
        "auth": login,
        "tls": if tls.is_null() { Value::Null } else { encryption },
        "place": of_place,
    });
    (given, wanted)
}

/// Whether each host of this variable names its port.
fn has_own_ports(hosts: &Value) -> bool {
    let has_port = |host: &str| match host.rsplit_once(':') {
        Some((name, port)) => {
            port.parse::<u16>().is_ok() && (name.ends_with(']') || !name.contains(':'))
        }
        None => false,
    };
    hosts
        .as_str()
        .is_some_and(|hosts| hosts.split(',').all(has_port))
}

/// Whether we take more than Prefect for a reason.
fn may_be_taken(line: &Value, config: &Config) -> bool {
    let url = line["url"].as_str().unwrap_or_default();
    let says = line["result"]["says"].as_str().unwrap();
    let mut variables = line["env"].as_object().unwrap().values();
    match line["result"]["error"].as_str().unwrap() {
        // Another driver of the same database.
        "driver" => true,
        // Of libpq, or of a client that takes it with another kind of connection.
        "option" => true,
        // Files are read when there is a server; the system's authorities stand in for missing ones.
        "file" => {
            let postgres = &config.database.postgres;
            let of_postgres = [
                &postgres.tls_ca_file,
                &postgres.tls_cert_file,
                &postgres.tls_key_file,
            ];
            let redis = config.redis.as_ref();
            let of_redis = redis.map(|redis| [&redis.ca_file, &redis.cert_file, &redis.key_file]);
            let mut files = of_postgres
                .into_iter()
                .chain(of_redis.into_iter().flatten());
            files.any(Option::is_some) || says.contains("root certificate")
        }
        // Settings of Prefect that are not taken over are not read.
        "settings" => true,
        _ => {
            let slips = [
                // Empty is unset, and blanks around the whole are none of it.
                url.is_empty() || url != url.trim(),
                // Of settings of Prefect's client that are not taken over.
                says.contains("protocol must be") && !url.contains("protocol="),
                says.contains("not supported between instances of 'str' and 'int'"),
                // The driver's name says nothing here.
                url.starts_with("postgres") && !url.starts_with("postgresql+asyncpg://"),
                // A port that is not needed is not read, nor a host before the path of a socket.
                says.contains("base 10: 'x'") && line["env"]["PGPORT"] == "x",
                (says.contains("Invalid IPv6") || says.contains("IPv4 or IPv6"))
                    && url.starts_with("unix://"),
                // So is an empty variable.
                variables.any(|value| value == ""),
                // A library that is not used here.
                says.contains("gsslib"),
                // One parameter twice, with one value.
                says.contains("not tuple") || says.contains("not 'tuple'"),
                // Ports may be missing or alone, as with libpq.
                says.contains("base 10: \'\'"),
                says.contains("ports"),
                // Hosts that name their own ports need none of the variable.
                says.contains("port numbers")
                    && (has_own_ports(&line["env"]["PGHOST"]) || url.contains("host=[::1]:6000")),
                says.contains("non-integer port"),
                says.contains("multihost"),
                // A password may hold anything.
                url.contains('@'),
                // As libpq takes them.
                url.contains(','),
            ];
            slips.contains(&true)
        }
    }
}

#[test]
fn an_address_means_the_same_to_prefect_and_to_us() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path());
    let folder = folder.path().to_str().unwrap();
    let mut seen = Seen::default();
    let mut wrong = Vec::new();
    for line in lines().filter(|line| line["kind"] != "files") {
        let expected = &line["result"];
        let told = format!("{} {}", line["url"], line["env"]);
        let difference = match (ours(&line, folder), expected.get("error")) {
            (Err(_), Some(_)) => {
                seen.refused_by_both += 1;
                None
            }
            (_, None) if is_out_of_reach(&line) => {
                seen.out_of_reach += 1;
                None
            }
            (Err(error), None) => {
                seen.refused_by_us += 1;
                // Prefect goes to localhost, whatever stands behind the colon.
                let text = url(&line);
                let behind = text.split_once(':').map(|(_, behind)| behind);
                let is_no_url = text.starts_with("redis")
                    && !behind.is_some_and(|behind| behind.starts_with("//"));
                let has_name = REFUSED_BY_NAME.iter().any(|name| error.contains(name));
                (!has_name && !is_no_url).then(|| format!("refused: {error}"))
            }
            (Ok(config), Some(_)) => {
                seen.taken_by_us += 1;
                (!may_be_taken(&line, &config))
                    .then(|| format!("taken, and Prefect says {expected}"))
            }
            (Ok(config), None) => {
                seen.same += 1;
                let placed = expected.to_string().replace("{dir}", folder);
                let expected: Value = serde_json::from_str(&placed).unwrap();
                let (given, wanted) = if line["kind"] == "postgres" {
                    postgres(&config, &expected)
                } else {
                    redis(&config, &expected)
                };
                (given != wanted).then(|| format!("\n  ours  {given}\n  their {wanted}"))
            }
        };
        match difference {
            Some(_) if KNOWN.iter().any(|(_, is_so)| is_so(&line)) => seen.known += 1,
            Some(difference) => wrong.push(format!("{told}: {difference}")),
            None => {}
        }
    }
    let num_wrong = wrong.len();
    assert!(
        wrong.is_empty(),
        "{num_wrong} of {seen:?}:\n{}",
        wrong.join("\n")
    );
    assert!(seen.same > 250 && seen.refused_by_both > 50, "{seen:?}");
    assert!(seen.known * 50 < seen.same, "such are rare: {seen:?}");
}
