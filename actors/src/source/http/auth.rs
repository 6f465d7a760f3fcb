//! The secret that clients must know, and its comparison.

use std::fmt;

use actix_web::HttpResponse;
use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit as _};
use schemars::{Schema, json_schema};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use crate::settings::Spelling;

/// The auth string, such as `user:password`: sent as `Authorization: Basic` with every request, or
/// as the token of a WebSocket's first message.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthString(String);

impl AuthString {
    /// An auth string of any text, which is compared as it is.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The text itself, for a client that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether the headers of a request carry it.
    pub fn allows(&self, headers: &HeaderMap) -> bool {
        headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.trim().split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
            .and_then(|(_, credentials)| BASE64_STANDARD.decode(credentials.trim()).ok())
            .is_some_and(|credentials| self.is(&credentials))
    }

    /// Whether `token` is it; takes the same time wherever they differ.
    pub(crate) fn is(&self, token: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(token).into()
    }

    /// Begins a code that only who knows it can make.
    pub(crate) fn mac(&self) -> Hmac<Sha256> {
        // Its hash is shorter than the longest key, of which the rest is zeros.
        let mut key = [0; 64];
        key[..32].copy_from_slice(&Sha256::digest(self.0.as_bytes()));
        Hmac::new(&key.into())
    }

    /// The answer to a request that does not carry it.
    pub fn unauthorized() -> HttpResponse {
        HttpResponse::Unauthorized()
            .json(serde_json::json!({ "exception_message": "Unauthorized" }))
    }
}

impl Spelling for AuthString {
    type Value = Self;

    fn read(given: &Json) -> Result<Self, String> {
        // Secrets come out of files, whose last line end nobody means and nobody sees.
        let text = given.as_str().unwrap_or_default();
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err("give a text that is not empty".to_owned()),
            secret => Ok(Self::new(secret)),
        }
    }

    fn write(_: &Self) -> Json {
        "***".into()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "minLength": 1 })
    }
}

impl fmt::Debug for AuthString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthString(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::HeaderValue;

    fn allows(header: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_str(header).unwrap());
        AuthString::new("admin:pass:word").allows(&headers)
    }

    #[test]
    fn lets_in_only_who_knows_it() {
        let right = BASE64_STANDARD.encode("admin:pass:word");
        assert!(allows(&format!("Basic {right}")));
        assert!(allows(&format!("basic {right}")));
        assert!(!allows(&format!("Bearer {right}")));
        assert!(!allows(&right));
        assert!(!allows("Basic admin:pass:word"));
        assert!(!allows(&format!(
            "Basic {}",
            BASE64_STANDARD.encode("admin:pass:wor")
        )));
        assert!(!allows(&format!("Basic {}", BASE64_STANDARD.encode(""))));
        assert!(!AuthString::new("a").allows(&HeaderMap::new()));
    }

    #[test]
    fn is_never_printed() {
        let read = AuthString::read(&"user:password\n".into()).unwrap();
        assert_eq!(read, AuthString::new("user:password"));
        assert_eq!(AuthString::write(&read), "***");
        assert!(!format!("{:?}", AuthString::new("secret")).contains("secret"));
    }
}
