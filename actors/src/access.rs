//! Access to what is stored: for programs that send the auth string with every request, and people who have signed in
//! with it.
//!
//! A session is a cookie that says until when it lasts, with a code that only who knows the auth string can
//! make. So every replica takes it, nothing is kept, and another auth string ends all sessions.

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::http::header::{COOKIE, HOST, ORIGIN, SET_COOKIE};
use actix_web::{HttpRequest, HttpResponse};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use hmac::{Hmac, Mac as _};
use serde_json::json;
use sha2::Sha256;

use crate::clock::Clock;
use crate::source::http::AuthString;

/// The cookie's name.
const SESSION: &str = "event_persister_session";

/// How long a session lasts: a day's work, so that nobody signs in twice a day, and a cookie that was copied is
/// worth nothing the day after.
const LASTS: chrono::TimeDelta = chrono::TimeDelta::hours(16);

/// The code of a session says this besides its end, so that it can never be taken for anything else.
const PURPOSE: &[u8] = b"event-persister session 1 until ";

/// The rules by which a request is answered or refused.
#[derive(Clone)]
pub struct Access {
    auth: Option<AuthString>,
    clock: Arc<dyn Clock>,
}

impl Access {
    /// Those who know the auth string; everybody, where there is none.
    pub fn new(auth: Option<AuthString>, clock: Arc<dyn Clock>) -> Self {
        Self { auth, clock }
    }

    /// Whether an auth string is wanted.
    pub fn wants_auth(&self) -> bool {
        self.auth.is_some()
    }

    /// Whether this request may be answered.
    pub fn allows(&self, request: &HttpRequest) -> bool {
        let Some(auth) = &self.auth else {
            return true;
        };
        auth.allows(request.headers()) || self.is_signed_in(request)
    }

    /// The same for a WebSocket whose first message holds this token.
    pub(crate) fn allows_token(&self, request: &HttpRequest, token: Option<&str>) -> bool {
        let auth = self.auth.as_ref().zip(token);
        auth.is_some_and(|(auth, token)| auth.is(token.as_bytes())) || self.allows(request)
    }

    /// Whether it comes with a session that goes on.
    pub fn is_signed_in(&self, request: &HttpRequest) -> bool {
        let (Some(auth), Some(session)) = (&self.auth, session(request)) else {
            return false;
        };
        let Some((until, code)) = session.split_once('.') else {
            return false;
        };
        let moment = until
            .parse()
            .ok()
            .and_then(|until| DateTime::from_timestamp(until, 0));
        let code = BASE64_URL_SAFE_NO_PAD.decode(code).unwrap_or_default();
        let is_ours = mac(auth, until).verify_slice(&code).is_ok();
        is_ours && moment.is_some_and(|until| self.clock.now() < until)
    }

    /// Signs in whoever knows the auth string: 204 with the session's cookie, or 401.
    pub fn sign_in(&self, request: &HttpRequest, user: &str, password: &str) -> HttpResponse {
        let Some(auth) = &self.auth else {
            return HttpResponse::NoContent().finish();
        };
        // One without a user is a password alone.
        let is_right = match user {
            "" => auth.is(password.as_bytes()) | auth.is(format!(":{password}").as_bytes()),
            user => auth.is(format!("{user}:{password}").as_bytes()),
        };
        if !is_right {
            return AuthString::unauthorized();
        }
        let until: DateTime<Utc> = self.clock.now() + LASTS;
        let until = until.timestamp().to_string();
        let code = mac(auth, &until).finalize().into_bytes();
        let value = format!("{until}.{}", BASE64_URL_SAFE_NO_PAD.encode(code));
        with_cookie(request, &value, LASTS.num_seconds())
    }

    /// Takes the cookie away.
    pub fn sign_out(request: &HttpRequest) -> HttpResponse {
        with_cookie(request, "", 0)
    }

    /// The answer to a request that comes from a page of another origin: a browser would send it on that page's
    /// behalf. `None` where it does not.
    pub fn refuse_foreign(request: &HttpRequest) -> Option<HttpResponse> {
        let origin = request.headers().get(ORIGIN)?;
        let origin = origin.to_str().unwrap_or_default();
        let host = request
            .headers()
            .get(HOST)
            .and_then(|host| host.to_str().ok());
        let at = origin.split_once("://").map_or("", |(_, at)| at);
        if host.is_some_and(|host| !at.is_empty() && at.eq_ignore_ascii_case(host)) {
            return None;
        }
        let reason = "this was asked by a page of another origin";
        let refused = json!({ "exception_message": reason });
        Some(HttpResponse::build(StatusCode::FORBIDDEN).json(refused))
    }
}

/// The session that a request comes with.
fn session(request: &HttpRequest) -> Option<&str> {
    let cookies = request.headers().get_all(COOKIE);
    let mut pairs = cookies
        .filter_map(|cookies| cookies.to_str().ok())
        .flat_map(|cookies| cookies.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='));
    let (_, value) = pairs.find(|(name, _)| *name == SESSION)?;
    Some(value)
}

fn with_cookie(request: &HttpRequest, value: &str, max_age: i64) -> HttpResponse {
    let is_secure = request.app_config().secure() || request.connection_info().scheme() == "https";
    let secure = if is_secure { "; Secure" } else { "" };
    let cookie =
        format!("{SESSION}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={max_age}{secure}");
    HttpResponse::NoContent()
        .insert_header((SET_COOKIE, cookie))
        .finish()
}

fn mac(auth: &AuthString, until: &str) -> Hmac<Sha256> {
    let mut mac = auth.mac();
    mac.update(PURPOSE);
    mac.update(until.as_bytes());
    mac
}
