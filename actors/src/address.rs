//! The parts of URLs as people write them.
//!
//! People put `/`, `@`, `?` and `#` into passwords without escaping them, and Python's libraries let
//! them. A strict parser of URLs refuses such a password or, worse, takes a part of it for the host.

use std::net::Ipv6Addr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
#[cfg(any(feature = "postgres", feature = "redis"))]
use serde::de::DeserializeOwned;
#[cfg(any(feature = "postgres", feature = "redis"))]
use serde_json::Value as Json;

use crate::settings::InvalidUrl;

pub(crate) struct Parts<'a> {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    /// One host with its port, or several between commas.
    pub(crate) hosts: &'a str,
    /// The rest up to the question mark, without the slash at its beginning.
    pub(crate) path: &'a str,
    query: &'a str,
}

impl<'a> Parts<'a> {
    #[cfg(any(feature = "nats", feature = "postgres"))]
    pub(crate) fn of(text: &'a str) -> Result<Self, InvalidUrl> {
        let (login, rest) = split_login(text);
        Self::behind(login, rest)
    }

    /// Of a text whose login has been split off.
    pub(crate) fn behind(login: Option<&str>, rest: &'a str) -> Result<Self, InvalidUrl> {
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
        let login = login.unwrap_or_default();
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        Ok(Self {
            user: decode(user)?,
            password: decode(password)?,
            hosts,
            path,
            query,
        })
    }

    /// Without a `#` and what stands behind it, and whether there was any.
    #[cfg(feature = "redis")]
    pub(crate) fn without_fragment(mut self) -> (Self, bool) {
        let mut is_behind = false;
        for part in [&mut self.hosts, &mut self.path, &mut self.query] {
            if is_behind {
                *part = "";
            } else if let Some((before, _)) = part.split_once('#') {
                *part = before;
                is_behind = true;
            }
        }
        (self, is_behind)
    }

    /// The parameters, names and values decoded; a value that is empty is none. A `+` is a blank, as in a form.
    pub(crate) fn parameters(
        &self,
    ) -> impl Iterator<Item = Result<(String, Option<String>), InvalidUrl>> + use<'a> {
        let pairs = self.query.split('&').filter(|pair| !pair.is_empty());
        pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = |text: &str| decode(&text.replace('+', " "));
            Ok((decoded(name)?.unwrap_or_default(), decoded(value)?))
        })
    }
}

#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) fn said<T: DeserializeOwned>(by_key: &[(&str, String)]) -> Result<T, InvalidUrl> {
    let pairs = by_key.iter();
    let pairs: Json = pairs.map(|(key, value)| (*key, value.as_str())).collect();
    serde_json::from_value(pairs).map_err(|error| error.to_string().into())
}

/// A parameter that would be ignored is an error, or a slip of the pen stays unnoticed. It is not told where it
/// may be the rest of a password.
pub(crate) fn unknown_parameter(name: &str) -> InvalidUrl {
    if name.contains(['@', ':', '/']) {
        return "what stands behind a question mark is no parameter; in a password a `?` is written as %3F"
            .into();
    }
    format!("the parameter {name:?} has no meaning here; remove it").into()
}

/// Splits before the host: the password ends at the last `@` before it.
pub(crate) fn split_login(text: &str) -> (Option<&str>, &str) {
    let Some(end) = text.find('@') else {
        return (None, text);
    };
    let user = text[..end].split(':').next().unwrap_or_default();
    if user.contains(['/', '?']) {
        return (None, text);
    }
    let host_end = text[end..]
        .find(['/', '?'])
        .map_or(text.len(), |length| end + length);
    let end = text[..host_end].rfind('@').unwrap_or(end);
    (Some(&text[..end]), &text[end + 1..])
}

/// Decodes a part; `None` if it is empty. A `%` without a code behind it stands for itself.
pub(crate) fn decode(text: &str) -> Result<Option<String>, InvalidUrl> {
    let decoded = percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| "a part of it is not UTF-8 once it is decoded")?;
    if decoded.contains('\0') {
        return Err("it cannot hold a NUL character".into());
    }
    Ok((!decoded.is_empty()).then(|| decoded.into_owned()))
}

/// Encodes all but letters, digits and `-._~`: the result may stand in any part of a URL.
pub fn encode(text: &str) -> String {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    utf8_percent_encode(text, RESERVED).to_string()
}

/// A host with its port: `host`, `host:port`, `[::1]:port`, `/folder`.
pub(crate) fn host_and_port(text: &str, default: u16) -> Result<(String, u16), InvalidUrl> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest
                .split_once(']')
                .ok_or("an IPv6 address ends with a bracket")?;
            if host.contains(char::is_whitespace) || !(rest.is_empty() || rest.starts_with(':')) {
                return Err("brackets stand around a whole IPv6 address".into());
            }
            (host, rest.strip_prefix(':').unwrap_or_default())
        }
        // A second colon belongs to a folder or an address, not to a port.
        None => match text.split_once(':') {
            Some((_, rest)) if rest.contains(':') && may_have_colons(text) => (text, ""),
            Some((host, port)) => (host, port),
            None => (text, ""),
        },
    };
    let port = match port {
        "" => default,
        port => self::port(port)?,
    };
    if host.contains(['[', ']']) {
        return Err("brackets stand around a whole IPv6 address".into());
    }
    Ok((decode(host)?.ok_or("the host is missing")?, port))
}

fn may_have_colons(host: &str) -> bool {
    let number = host.split('%').next().unwrap_or_default();
    host.starts_with('/')
        || host
            .get(..3)
            .is_some_and(|first| first.eq_ignore_ascii_case("%2f"))
        || number.parse::<Ipv6Addr>().is_ok()
}

/// The text is not told: it may be the rest of a password.
pub(crate) fn port(text: &str) -> Result<u16, InvalidUrl> {
    let not_a_port = "what stands in the place of the port is not a port; a `:`, `/` or `@` in a password is written as \
         %3A, %2F, %40, and an `@` stands before the host";
    text.parse().map_err(|_| not_a_port.into())
}

/// A URL without its password, for people and logs.
///
/// Everything between the first colon of the user part and the last `@` counts as the password, so that
/// nothing of one with such characters is shown.
pub fn mask(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // No URL, but perhaps meant for one, with its password.
        return match url.rsplit_once('@') {
            Some((_, host)) => format!("***@{}", mask_parameters(host)),
            None => mask_parameters(url),
        };
    };
    if scheme.to_ascii_lowercase().starts_with("sqlite") {
        return url.to_owned();
    }
    let login = rest.rsplit_once('@');
    let named = login.and_then(|(login, host)| Some((login.split_once(':')?.0, host)));
    let rest = if let Some((name, host)) = named {
        format!("{name}:***@{host}")
    } else if login.is_none()
        && let Some(name) = without_port(rest)
    {
        // Perhaps a password, behind which the host was forgotten.
        format!("{name}:***")
    } else {
        rest.to_owned()
    };
    format!("{scheme}://{}", mask_parameters(&rest))
}

/// What stands before the first colon behind which there is no port, in a text that begins with hosts.
fn without_port(text: &str) -> Option<&str> {
    let hosts = text.split(['/', '?']).next().unwrap_or_default();
    let mut at = 0;
    for host in hosts.split(',') {
        // IPv6 has colons of its own.
        let behind = host.rfind(']').map_or(0, |end| end + 1);
        if let Some((before, port)) = host[behind..].split_once(':')
            && !port.chars().all(|c| c.is_ascii_digit() || c == ':')
        {
            return text.get(..at + behind + before.len());
        }
        at += host.len() + 1;
    }
    None
}

fn mask_parameters(text: &str) -> String {
    let Some((place, query)) = text.split_once('?') else {
        return text.to_owned();
    };
    let query: Vec<String> = query.split('&').map(mask_parameter).collect();
    format!("{place}?{}", query.join("&"))
}

fn mask_parameter(pair: &str) -> String {
    let is_secret = |name: &str| {
        let name = percent_decode_str(name).decode_utf8_lossy();
        name.to_ascii_lowercase().contains("pass")
    };
    match pair.split_once('=') {
        Some((name, _)) if is_secret(name) => format!("{name}=***"),
        Some(_) => pair.to_owned(),
        // It may be the rest of a password with an `&`.
        None => "***".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_decodes_to_itself() {
        for text in ["plain", "p@ss/w:rd?#%", "ä €", "a+b c"] {
            assert_eq!(decode(&encode(text)), Ok(Some(text.to_owned())));
        }
        assert_eq!(decode(""), Ok(None));
        assert_eq!(encode("a-b.c_d~e@"), "a-b.c_d~e%40");
    }

    #[test]
    fn what_is_no_code_stays() {
        for text in ["100%", "%zz%4", "%+1"] {
            assert_eq!(decode(text), Ok(Some(text.to_owned())));
        }
        assert!(decode("%ff").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_spelling_of_a_name_shows_its_secret(
            name in proptest::sample::select(vec!["password", "passwd", "PassWord", "sentinel_password", "a pass"]),
            escaped in proptest::collection::vec(proptest::bool::ANY, 20),
        ) {
            let spelled = name.bytes().zip(escaped).map(|(byte, is_escaped)| match byte {
                _ if is_escaped => format!("%{byte:02x}"),
                b' ' => "+".to_owned(),
                byte => char::from(byte).to_string(),
            });
            let spelled: String = spelled.collect();
            for place in ["postgresql://h/d", "redis://h", "unix:/r.sock", "nats://me@h:1", "redis:/me@h"] {
                let url = format!("{place}?db=1&{spelled}=hush");
                assert!(!mask(&url).contains("hush"), "{url}");
                let parts = Parts::behind(None, &url).unwrap();
                let last = parts.parameters().last().unwrap().unwrap();
                assert_eq!(last, (name.to_owned(), Some("hush".to_owned())));
            }
        }
    }

    #[test]
    fn passwords_are_masked_wherever_they_stand() {
        for (url, expected) in [
            ("postgresql://u:p@db:5432/x", "postgresql://u:***@db:5432/x"),
            ("postgresql://u:p/a@s?s@db/x", "postgresql://u:***@db/x"),
            ("redis://:p@r:6379/0", "redis://:***@r:6379/0"),
            ("postgresql://u@db/x", "postgresql://u@db/x"),
            (
                "postgresql://db/x?user=u&password=p&sslmode=require",
                "postgresql://db/x?user=u&password=***&sslmode=require",
            ),
            (
                "postgresql://u@db/x?password=p&s&sslmode=require",
                "postgresql://u@db/x?password=***&***&sslmode=require",
            ),
            (
                "postgresql://db/x?user=u&p%61ssword=p&%50ASS=q",
                "postgresql://db/x?user=u&p%61ssword=***&%50ASS=***",
            ),
            (
                "unix:r.sock?password=p&db=1",
                "unix:r.sock?password=***&db=1",
            ),
            ("postgresql:/u@db?passwd=p", "***@db?passwd=***"),
            ("sqlite:///me:x@home.db", "sqlite:///me:x@home.db"),
            ("postgresql:/u:p@db/x", "***@db/x"),
            ("postgresql://u:p/x?y", "postgresql://u:***"),
            ("redis://a:1,b:p:2", "redis://a:1,b:***"),
            ("redis://[::1]:p/0", "redis://[::1]:***"),
            ("redis://a:1,[::1]:2/0?db=3", "redis://a:1,[::1]:2/0?db=3"),
            ("postgresql://::1/x", "postgresql://::1/x"),
        ] {
            assert_eq!(mask(url), expected);
        }
    }
}
