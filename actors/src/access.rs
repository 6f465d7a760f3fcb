//! Access to what is stored: for programs that send the auth string with every request, and people who have signed in
//! with it.
//!
//! A session is a cookie that says until when it lasts, with a code that only who knows the auth string can
//! make. So every replica takes it, nothing is kept, and another auth string ends all sessions.
//!
//! Without an auth string everybody on this machine may ask, and a browser on it runs pages of strangers. Such a page
//! can have its own name lead to this machine (*DNS rebinding*), and is then of the same origin as this service. Its
//! requests name that name. So without an auth string only `localhost` and IP addresses are answered: no page can
//! have those.
//!
//! Routes that take events in do not ask for a name. They tell nothing of what is stored, and a proxy that passes its
//! own name on must not lose events. They do refuse a page of another origin.

use std::net::{IpAddr, Ipv6Addr};
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

/// What a request by a name is told.
const NAMED: &str = "without an auth string only requests to localhost or to an IP address are answered, since any web \
                     page could have a name of its own lead here; set http.auth_string \
                     (EVENT_PERSISTER_HTTP_AUTH_STRING), or open this address as http://localhost";

/// The rules by which a request is answered or refused.
#[derive(Clone)]
pub struct Access {
    auth: Option<AuthString>,
    clock: Arc<dyn Clock>,
    by_any_name: bool,
}

impl Access {
    /// Those who know the auth string. Where there is none: everybody who asks `localhost` or an IP address.
    pub fn new(auth: Option<AuthString>, clock: Arc<dyn Clock>) -> Self {
        Self {
            auth,
            clock,
            by_any_name: false,
        }
    }

    /// Whatever name is asked: for a host whose app decides before who may ask.
    #[must_use]
    pub fn by_any_name(mut self) -> Self {
        self.by_any_name = true;
        self
    }

    /// Whether an auth string is wanted.
    pub fn wants_auth(&self) -> bool {
        self.auth.is_some()
    }

    /// The answer to a request that must not be answered otherwise.
    pub fn refuse(&self, request: &HttpRequest) -> Option<HttpResponse> {
        self.refuse_name(request)
            .or_else(|| (!self.knows(request)).then(AuthString::unauthorized))
    }

    /// The same before a WebSocket has sent its token.
    pub(crate) fn refuse_name(&self, request: &HttpRequest) -> Option<HttpResponse> {
        let is_safe = self.wants_auth() || self.by_any_name || !asks_a_name(request);
        (!is_safe).then(|| forbidden(NAMED))
    }

    /// Whether a WebSocket whose first message holds this token is let in.
    pub(crate) fn allows_token(&self, request: &HttpRequest, token: Option<&str>) -> bool {
        let auth = self.auth.as_ref().zip(token);
        auth.is_some_and(|(auth, token)| auth.is(token.as_bytes())) || self.knows(request)
    }

    /// Whether it comes from somebody who knows the auth string, where one is wanted.
    fn knows(&self, request: &HttpRequest) -> bool {
        let auth = self.auth.as_ref();
        auth.is_none_or(|auth| auth.allows(request.headers())) || self.is_signed_in(request)
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
        Some(forbidden("this was asked by a page of another origin"))
    }
}

fn forbidden(reason: &str) -> HttpResponse {
    let refused = json!({ "exception_message": reason });
    HttpResponse::build(StatusCode::FORBIDDEN).json(refused)
}

/// Whether a request is for a host that is neither `localhost` nor an IP address. A browser always says which host;
/// a client of HTTP/1.0 may not.
fn asks_a_name(request: &HttpRequest) -> bool {
    let hosts = request.headers().get_all(HOST);
    let hosts = hosts.map(|host| host.to_str().unwrap_or_default());
    // A request for a whole URL names the host there too.
    let of_target = request.uri().authority().map(|host| host.as_str());
    hosts.chain(of_target).any(|host| !is_address(host))
}

/// Whether this is `localhost` or an IP address, perhaps with a port.
fn is_address(host: &str) -> bool {
    let bracketed = host.strip_prefix('[');
    if let Some((ip, port)) = bracketed.and_then(|host| host.split_once(']')) {
        return (port.is_empty() || port.starts_with(':')) && ip.parse::<Ipv6Addr>().is_ok();
    }
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
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

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;
    use crate::clock::SystemClock;

    fn access(auth: Option<&str>) -> Access {
        Access::new(auth.map(AuthString::new), Arc::new(SystemClock))
    }

    fn refused(access: &Access, hosts: &[&str]) -> Option<u16> {
        let mut request = TestRequest::get();
        for host in hosts {
            request = request.append_header((HOST, *host));
        }
        let refused = access.refuse(&request.to_http_request());
        refused.map(|answer| answer.status().as_u16())
    }

    #[test]
    fn without_an_auth_string_no_name_is_answered_that_a_page_could_have() {
        let open = access(None);
        for host in [
            "localhost",
            "localhost:4280",
            "LocalHost:80",
            "127.0.0.1",
            "127.0.0.1:4280",
            "10.1.2.3:4280",
            "[::1]",
            "[::1]:4280",
        ] {
            assert_eq!(refused(&open, &[host]), None, "{host}");
        }
        for host in [
            "rebound.example",
            "rebound.example:4280",
            "localhost.example:4280",
            "127.0.0.1.example",
            "example:127.0.0.1",
            "[::1].example",
            "[rebound.example]",
            "2130706433:4280",
            "[::1",
            "",
        ] {
            assert_eq!(refused(&open, &[host]), Some(403), "{host}");
        }
        assert_eq!(refused(&open, &[]), None, "HTTP/1.0");
        let two = ["localhost", "rebound.example"];
        assert_eq!(refused(&open, &two), Some(403));
        let of_target = TestRequest::get().uri("http://rebound.example/api/status");
        let of_target = of_target.insert_header((HOST, "localhost"));
        assert!(open.refuse(&of_target.to_http_request()).is_some());
        let of_an_app = open.by_any_name();
        assert_eq!(refused(&of_an_app, &["events.example"]), None);
    }

    #[test]
    fn with_an_auth_string_any_name_is_answered_to_who_knows_it() {
        let closed = access(Some("ada:hush"));
        assert_eq!(refused(&closed, &["events.example"]), Some(401));
        let header = base64::prelude::BASE64_STANDARD.encode("ada:hush");
        let request = TestRequest::get()
            .insert_header((HOST, "events.example"))
            .insert_header(("authorization", format!("Basic {header}")));
        assert!(closed.refuse(&request.to_http_request()).is_none());
    }
}
