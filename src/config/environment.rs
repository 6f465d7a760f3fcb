//! The layer of the environment variables.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use super::error::{ConfigError, nearest};
use super::keys::{self, PREFIX, Setting};
use super::layer::{Layer, Origin};
use super::secret_file;

pub(super) const CONFIG_VARIABLE: &str = "EVENT_PERSISTER_CONFIG";

/// Our variables, the empty ones left out: an empty variable is unset.
pub(super) type Variables = BTreeMap<String, String>;

pub(super) fn ours(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Variables, ConfigError> {
    let mut variables = Variables::new();
    let mut errors = ConfigError::default();
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
            continue;
        };
        match value.into_string() {
            Ok(value) if value.is_empty() => {}
            Ok(value) => drop(variables.insert(name.to_owned(), value)),
            Err(_) => errors.add(format!("{name}: the value is not UTF-8")),
        }
    }
    errors.into_result().map(|()| variables)
}

pub(super) fn read(variables: &Variables) -> Result<Layer, ConfigError> {
    let mut layer = Layer::default();
    let mut errors = ConfigError::default();
    let mut known = BTreeSet::from([CONFIG_VARIABLE.to_owned()]);
    for setting in keys::all() {
        match value_or_file(setting, variables) {
            Ok(Some((value, origin))) => layer.set(&setting.name, value, origin),
            Ok(None) => {}
            Err(problem) => errors.add(problem),
        }
        known.extend(setting.variables().chain(setting.file_variable()));
    }
    for (name, value) in variables {
        if !known.contains(name) && !is_injected(name, value) {
            errors.add(unknown(name, &known));
        }
    }
    errors.into_result().map(|()| layer)
}

/// The value of a setting's variable, or what the file holds that another variable names.
fn value_or_file(
    setting: &Setting,
    variables: &Variables,
) -> Result<Option<(String, Origin)>, String> {
    let given: Vec<(String, &String)> = (setting.variables())
        .filter_map(|name| variables.get(&name).map(|value| (name, value)))
        .collect();
    if let [(one, value), (other, another), ..] = given.as_slice()
        && value != another
    {
        let name = &setting.name;
        return Err(format!(
            "{one} and {other} both set {name} and differ; keep one"
        ));
    }
    let file = setting.file_variable();
    let file = file.and_then(|name| variables.get_key_value(&name));
    match (given.into_iter().next(), file) {
        (None, None) => Ok(None),
        (Some((name, value)), None) => Ok(Some((value.clone(), Origin::Variable(name)))),
        (None, Some((name, path))) => {
            let origin = Origin::SecretFile {
                variable: name.clone(),
                path: path.into(),
            };
            secret_file::read(name, path.as_ref()).map(|text| Some((text, origin)))
        }
        (Some((name, _)), Some((file, _))) => Err(format!(
            "{name} and {file} both set {}; keep one",
            setting.name
        )),
    }
}

fn unknown(name: &str, known: &BTreeSet<String>) -> String {
    if cfg!(not(feature = "nats")) && name.starts_with("EVENT_PERSISTER_NATS_") {
        return format!("{name}: {}", keys::WITHOUT_NATS);
    }
    // All begin with the prefix, so it makes no name a nearer one.
    let rest = |name: &str| name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
    let rests: Vec<String> = known.iter().map(|name| rest(name)).collect();
    let hint = match nearest(&rest(name), rests.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {PREFIX}{near}?"),
        None => "`event-persister config show` lists all settings, and the variable of \
                 `section.key` is EVENT_PERSISTER_<SECTION>_<KEY>"
            .to_owned(),
    };
    format!("unknown variable {name}; {hint}")
}

/// Whether Kubernetes or Docker put it there, for a service or container of our name. They give ports as
/// URLs, unlike the mistake `EVENT_PERSISTER_HTTP_PORT=8080`.
fn is_injected(name: &str, value: &str) -> bool {
    let rest = name.strip_prefix(PREFIX).unwrap_or(name);
    let is_or_ends = |suffix: &str| {
        rest.strip_suffix(suffix)
            .is_some_and(|before| before.is_empty() || before.ends_with('_'))
    };
    let is_url = ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme));
    is_or_ends("SERVICE_HOST")
        || is_or_ends("SERVICE_PORT")
        || format!("_{rest}").contains("_SERVICE_PORT_")
        || (is_or_ends("PORT") && is_url)
        || is_single_port(rest)
        || (rest == "NAME" && value.starts_with('/'))
        || rest.starts_with("ENV_")
}

/// `PORT_4280_TCP` and its `_PROTO`, `_PORT`, `_ADDR`; also behind the rest of a service's name.
fn is_single_port(rest: &str) -> bool {
    let rest = format!("_{rest}");
    let Some((_, port)) = rest.rsplit_once("_PORT_") else {
        return false;
    };
    let parts: Vec<&str> = port.split('_').collect();
    let (number, protocol) = match parts[..] {
        [number, protocol] | [number, protocol, "PROTO" | "PORT" | "ADDR"] => (number, protocol),
        _ => return false,
    };
    number.parse::<u16>().is_ok() && ["TCP", "UDP", "SCTP"].contains(&protocol)
}

#[cfg(test)]
mod tests {
    use super::*;
    fn layer(pairs: &[(&str, &str)]) -> Result<Layer, String> {
        ours(
            pairs
                .iter()
                .map(|(name, value)| (name.into(), value.into())),
        )
        .and_then(|variables| read(&variables))
        .map_err(|error| error.to_string())
    }

    #[test]
    fn a_short_variable_sets_the_same_as_the_full_one() {
        for name in ["EVENT_PERSISTER_LISTEN", "EVENT_PERSISTER_HTTP_LISTEN"] {
            let layer = layer(&[(name, "off")]).unwrap();
            let (input, origin) = layer.get("http.listen").unwrap();
            assert_eq!(*input, "off");
            assert_eq!(origin.to_string(), name);
        }
        let differ = [
            ("EVENT_PERSISTER_WRITERS", "2"),
            ("EVENT_PERSISTER_PIPELINE_WRITERS", "3"),
        ];
        assert!(layer(&differ).unwrap_err().contains("keep one"));
    }

    #[test]
    fn an_empty_variable_is_unset() {
        let empty = [
            ("EVENT_PERSISTER_WRITERS", ""),
            ("EVENT_PERSISTER_NONSENSE", ""),
        ];
        assert_eq!(layer(&empty), Ok(Layer::default()));
    }

    #[test]
    fn an_unknown_variable_is_an_error_that_suggests_the_nearest() {
        assert_eq!(
            layer(&[("EVENT_PERSISTER_WRITTERS", "2")]).unwrap_err(),
            "unknown variable EVENT_PERSISTER_WRITTERS; did you mean EVENT_PERSISTER_WRITERS?"
        );
        let far = layer(&[("EVENT_PERSISTER_COLOUR", "red")]).unwrap_err();
        assert!(far.contains("EVENT_PERSISTER_<SECTION>_<KEY>"), "{far}");
        let port = layer(&[("EVENT_PERSISTER_HTTP_PORT", "8080")]).unwrap_err();
        assert!(
            port.contains("unknown variable EVENT_PERSISTER_HTTP_PORT"),
            "{port}"
        );
    }

    #[test]
    fn what_kubernetes_and_docker_inject_is_let_be() {
        let injected = [
            ("EVENT_PERSISTER_SERVICE_HOST", "10.0.0.1"),
            ("EVENT_PERSISTER_SERVICE_PORT", "4280"),
            ("EVENT_PERSISTER_SERVICE_PORT_HTTP", "4280"),
            ("EVENT_PERSISTER_PORT", "tcp://10.0.0.1:4280"),
            ("EVENT_PERSISTER_PORT_4280_TCP", "tcp://10.0.0.1:4280"),
            ("EVENT_PERSISTER_PORT_4280_TCP_PROTO", "tcp"),
            ("EVENT_PERSISTER_PORT_4280_TCP_PORT", "4280"),
            ("EVENT_PERSISTER_PORT_4280_TCP_ADDR", "10.0.0.1"),
            ("EVENT_PERSISTER_METRICS_SERVICE_HOST", "10.0.0.1"),
            ("EVENT_PERSISTER_METRICS_PORT", "tcp://10.0.0.1:9090"),
            ("EVENT_PERSISTER_METRICS_PORT_9090_TCP_ADDR", "10.0.0.1"),
            ("EVENT_PERSISTER_NAME", "/web/event-persister"),
            ("EVENT_PERSISTER_ENV_PATH", "/bin"),
            ("PATH", "/bin"),
        ];
        assert_eq!(layer(&injected), Ok(Layer::default()));
    }

    #[test]
    fn a_variable_may_name_a_file_with_the_secret() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "redis://:hunter2@r\n").unwrap();
        let path = file.path().to_str().unwrap();
        let name = "EVENT_PERSISTER_REDIS_URL_FILE";
        let layer_of_file = layer(&[(name, path)]).unwrap();
        let (input, origin) = layer_of_file.get("redis.url").unwrap();
        assert_eq!(*input, "redis://:hunter2@r");
        assert_eq!(origin.to_string(), format!("{name} ({path})"));
        let both = [(name, path), ("EVENT_PERSISTER_REDIS_URL", "redis://r")];
        let error = layer(&both).unwrap_err();
        assert!(error.contains("keep one"), "{error}");
        let none = layer(&[("EVENT_PERSISTER_WRITERS_FILE", path)]).unwrap_err();
        assert!(none.contains("unknown variable"), "{none}");
    }
}
