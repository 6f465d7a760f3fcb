//! The parts of URLs, as people write them, and percent-encoding.

/// Splits at the `@`. People do not always escape what stands before it, so the password ends at
/// the last `@` before the host.
pub(super) fn split_userinfo(text: &str) -> (Option<&str>, &str) {
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

/// Decodes a part; `None` if it is empty.
pub(super) fn part(text: &str) -> Result<Option<String>, String> {
    let decoded = decode(text).ok_or("a part of it is not UTF-8 once it is decoded")?;
    if decoded.contains('\0') {
        return Err("it cannot hold a NUL character".to_owned());
    }
    Ok((!decoded.is_empty()).then_some(decoded))
}

/// A host with its port: `host`, `host:port`, `[::1]:port`, `/folder`.
pub(super) fn host_and_port(text: &str, default: u16) -> Result<(String, u16), String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest
                .split_once(']')
                .ok_or("an IPv6 address ends with a bracket")?;
            (host, rest.strip_prefix(':').unwrap_or_default())
        }
        // A second colon belongs to a folder or an address, not to a port.
        None => match text
            .rsplit_once(':')
            .filter(|(host, _)| !host.contains(':'))
        {
            Some((host, port)) => (host, port),
            None => (text, ""),
        },
    };
    let port = match port {
        "" => default,
        port => port.parse().map_err(|_| wrong_port(port))?,
    };
    let host = part(host)?.ok_or("the host is missing")?;
    Ok((host, port))
}

pub(super) fn wrong_port(port: &str) -> String {
    format!("{port:?} is not a port; a `:`, `/` or `@` in a password is written as %3A, %2F, %40")
}

/// Decodes `%xx`; what is not such a code stays as it is. `None` if the result is not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

/// Encodes all but letters, digits and `-._~`, so that the result may stand in any part.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_decodes_to_itself() {
        for text in ["plain", "p@ss/w:rd?#%", "ä €", "a+b c", ""] {
            assert_eq!(decode(&encode(text)).as_deref(), Some(text));
        }
    }

    #[test]
    fn what_is_no_code_stays() {
        assert_eq!(decode("100%").as_deref(), Some("100%"));
        assert_eq!(decode("%zz%4").as_deref(), Some("%zz%4"));
        assert_eq!(decode("%+1").as_deref(), Some("%+1"));
        assert_eq!(decode("%ff"), None);
    }
}
