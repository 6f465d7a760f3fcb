//! `events tail --url`: events as a running service tells them, by its WebSocket `/api/events/out`.
//!
//! A service that was there once is waited for when it is gone. It is asked for what it stored meanwhile.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use event_persister_actors::backoff::Backoff;
use event_persister_actors::reader::EventFilter;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::{Error, Message};
use uuid::Uuid;

use super::document::{self, Head};
use super::known::Known;
use super::row_of;
use crate::cli::{Followed, ServiceUrl};
use crate::config::Config;
use crate::http::client::{self, SafeStream, reachable};
use crate::http::{CertificateFiles, Listen, ListenAddress};
use crate::output::Unread;
use crate::signals::Signals;
use crate::{output, wiring};

/// A service pings every 20 s.
const SILENT_FOR: Duration = Duration::from_secs(60);
const CONNECTS_WITHIN: Duration = Duration::from_secs(10);

/// Why a service does not tell us anything, and would not the next time either.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

pub(super) async fn run(
    config: &Config,
    followed: &Followed,
    filter: EventFilter,
    jsonl: bool,
) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let service = Service::find(config, followed).await?;
    let mut tail = Tail {
        filter,
        jsonl,
        known: Known::new(wiring::clock().now()),
        num_told: 0,
        looks_back: false,
        heard: None,
    };
    tokio::select! {
        _ = signals.next() => Ok(()),
        unread = output::unread() => unread,
        ended = tail.follow(&service) => ended,
    }
}

struct Tail {
    filter: EventFilter,
    jsonl: bool,
    known: Known,
    num_told: u64,
    /// Whether this connection tells what was stored before it, too.
    looks_back: bool,
    /// When the service was last heard of.
    heard: Option<DateTime<Utc>>,
}

impl Tail {
    async fn follow(&mut self, service: &Service) -> anyhow::Result<()> {
        let mut failures = 0;
        loop {
            let before = self.heard;
            let Err(error) = self.listen(service).await;
            if error.is::<Unread>() {
                return Err(error);
            }
            if self.heard.is_none() || error.is::<Refused>() {
                return Err(error.context("cannot follow the service"));
            }
            if self.heard != before {
                failures = 0;
            }
            if failures == 0 {
                log::warn!(
                    "the service is gone; it is asked again until it is back error=\"{error:#}\""
                );
            }
            failures += 1;
            sleep(Backoff::default().random_delay(failures)).await;
        }
    }

    /// One connection, to its end.
    async fn listen(&mut self, service: &Service) -> anyhow::Result<std::convert::Infallible> {
        let connected = timeout(CONNECTS_WITHIN, service.connect()).await;
        let mut socket = connected.context("it does not answer")??;
        let auth = json!({ "type": "auth", "token": service.token });
        socket.send(Message::text(auth.to_string())).await?;
        let welcome = next(&mut socket).await?;
        if Told::read(&welcome).kind != "auth_success" {
            bail!("it speaks another protocol: {}", output::one_line(&welcome));
        }
        let since = self.heard.map(|heard| self.known.look_back(heard));
        self.looks_back = since.is_some();
        let filter = json!({
            "type": "filter",
            "filter": asked(&self.filter, since)?,
            "backfill": self.looks_back,
        });
        socket.send(Message::text(filter.to_string())).await?;
        loop {
            self.heard = Some(wiring::clock().now());
            let message = next(&mut socket).await?;
            self.print(&message)?;
        }
    }

    fn print(&mut self, message: &str) -> anyhow::Result<()> {
        let told = Told::read(message);
        match &*told.kind {
            "event" => {}
            "missed" => {
                let missed = told.count;
                log::warn!("events came faster than they were printed missed={missed}");
                return Ok(());
            }
            _ => return Ok(()),
        }
        self.num_told += 1;
        let json = json_of(message);
        let read = json.map(serde_json::from_str::<Head>);
        let (Some(json), Some(Ok(event))) = (json, read) else {
            let (number, num_bytes) = (self.num_told, message.len());
            log::warn!("an event cannot be read event.number={number} event.bytes={num_bytes}");
            return Ok(());
        };
        let received = event.received.unwrap_or_else(|| wiring::clock().now());
        let is_old = self.looks_back && self.known.is_old(received);
        let id = Uuid::try_parse(&event.id);
        if is_old || id.is_ok_and(|id| !self.known.insert(id, received)) {
            return Ok(());
        }
        output::line_of_many(&match self.jsonl {
            true => document::one_line(json),
            false => output::one_line(&row_of(&event).join("  ")),
        })
    }
}

/// The event in a message, as a service writes it.
fn json_of(message: &str) -> Option<&str> {
    let event = message.strip_prefix(r#"{"type":"event","event":"#)?;
    event.strip_suffix('}')
}

/// The filter that a service is sent, with the times alone that were given.
fn asked(filter: &EventFilter, looked_back: Option<DateTime<Utc>>) -> anyhow::Result<Value> {
    let mut json = serde_json::to_value(filter)?;
    let occurred = &filter.occurred;
    let since = looked_back.map_or(occurred.since, |since| occurred.since.max(since));
    json["occurred"] = json!({});
    for (name, moment) in [("since", since), ("until", occurred.until)] {
        if ![DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC].contains(&moment) {
            json["occurred"][name] = json!(moment);
        }
    }
    Ok(json)
}

/// A message of a service, but for the event in it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Told {
    #[serde(rename = "type")]
    kind: String,
    count: u64,
}

impl Told {
    fn read(message: &str) -> Self {
        serde_json::from_str(message).unwrap_or_default()
    }
}

struct Service {
    place: Place,
    token: Option<String>,
}

enum Place {
    /// On this machine, with the certificate that it shows.
    Here(Vec<SocketAddr>, Option<CertificateFiles>),
    There(ServiceUrl),
}

type Socket = WebSocketStream<SafeStream>;

impl Service {
    async fn find(config: &Config, followed: &Followed) -> anyhow::Result<Self> {
        let place = match followed {
            Followed::At(url) => Place::There(url.clone()),
            Followed::Configured => {
                let Listen::At(address) = config.http.listener.listen.clone() else {
                    bail!(
                        "http.listen is off, so no service can be followed: leave --url out, or name one"
                    );
                };
                let found = tokio::task::spawn_blocking(move || ListenAddress::resolve(&address));
                let addresses = found.await??.addresses;
                let addresses = addresses.into_iter().flat_map(reachable).collect();
                Place::Here(addresses, config.http.listener.certificate())
            }
        };
        let token = config.http.routes.auth.as_ref();
        let token = token.map(|auth| auth.reveal().to_owned());
        Ok(Self { place, token })
    }

    async fn connect(&self) -> anyhow::Result<Socket> {
        match &self.place {
            Place::There(url) => {
                let ServiceUrl {
                    host, port, path, ..
                } = url;
                let name = host.trim_start_matches('[').trim_end_matches(']');
                let connected = client::connect(name, *port, url.encrypted).await;
                let stream = connected.with_context(|| format!("cannot reach {host}:{port}"))?;
                greet(stream, &format!("{host}:{port}{path}")).await
            }
            Place::Here(addresses, certificate) => {
                let mut failure = anyhow::anyhow!("it has no address");
                for at in addresses {
                    match client::connect_here(*at, certificate.as_ref()).await {
                        Ok(stream) => return greet(stream, &at.to_string()).await,
                        Err(error) => {
                            failure = error.context(format!("no service answers at {at}"))
                        }
                    }
                }
                Err(failure)
            }
        }
    }
}

/// Makes a WebSocket of a connection.
async fn greet(stream: SafeStream, place: &str) -> anyhow::Result<Socket> {
    // Whether it is encrypted is decided already.
    let mut request = format!("ws://{place}/api/events/out").into_client_request()?;
    let protocol = HeaderValue::from_static("prefect");
    request
        .headers_mut()
        .insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(answer)) => {
            let body = answer.body().as_deref().unwrap_or_default();
            let said: Value = serde_json::from_slice(body).unwrap_or_default();
            let why = said["exception_message"].as_str().unwrap_or_default();
            let why = match answer.status().as_u16() {
                404 => "it does not tell what is stored (http.read_api)",
                _ => why,
            };
            let refused = format!("{place} answers {}: {why}", answer.status());
            Err(Refused(refused).into())
        }
        Err(error) => Err(error).context(format!("{place} opens no WebSocket")),
    }
}

/// The next message that is a text; pings are answered by the way.
async fn next(socket: &mut Socket) -> anyhow::Result<String> {
    loop {
        let message = timeout(SILENT_FOR, socket.next()).await;
        let message = message.context("it has not been heard of for a minute")?;
        match message.context("the connection is closed")?? {
            Message::Text(text) => return Ok(text.to_string()),
            Message::Close(Some(frame)) => {
                let why = format!("it ends the connection: {}", frame.reason);
                // Of the auth string, and of the filter.
                match u16::from(frame.code) {
                    1002 | 1008 => bail!(Refused(why)),
                    _ => bail!(why),
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_sent_with_the_times_that_were_given() {
        let now = wiring::clock().now();
        let mut filter = EventFilter::all(now);
        filter.occurred.since = DateTime::<Utc>::MIN_UTC;
        filter.occurred.until = DateTime::<Utc>::MAX_UTC;
        let first = asked(&filter, None).unwrap();
        assert_eq!(first["occurred"], json!({}));
        let again = asked(&filter, Some(now)).unwrap();
        assert_eq!(again["occurred"]["since"], json!(now));
        filter.occurred.since = now;
        let earlier = now - chrono::TimeDelta::minutes(1);
        let given = asked(&filter, Some(earlier)).unwrap();
        assert_eq!(given["occurred"]["since"], json!(now));
    }
}
