//! Takes connections in and puts the routes behind them: `HttpServer` of actix-web from the same
//! parts, with [`Connection`] between socket and protocol, and a bound on how many there are.
//! HTTP/1.1 only.

use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_http::error::DispatchError;
use actix_http::{HttpService, KeepAlive};
use actix_server::{Server, ServerBuilder};
use actix_service::{IntoServiceFactory as _, ServiceFactoryExt as _, fn_service, map_config};
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{AppConfig, Payload, Service, ServiceRequest, ServiceResponse};
use actix_web::http::header::{
    CONTENT_LENGTH, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING, UPGRADE, X_FORWARDED_PROTO,
};
use actix_web::middleware::from_fn;
use actix_web::{App, HttpMessage as _, HttpResponse, rt::net::TcpStream};
use bytes::Bytes;
use futures_util::future::{Either, ready};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::binding::bind;
use super::connection::{Connection, RequestGuard, Requests, Signals, Stream, Timeouts, silent};
use super::framing::Body;
use super::tls::Certificate;
use super::{HEALTH_PATHS, ListenAddress, ListenerParts, RunningListener, configure, refuse};
use crate::config::Http;

/// Requests are small work beside the database's; two threads keep one slow client from holding
/// up the others.
const NUM_WORKERS: usize = 2;
/// How long answers that are there may take to be sent once the pipeline has drained.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections beyond the limit that are told so, or asked for health. Each is gone after one
/// answer.
const NUM_BEYOND: usize = 64;
/// How long a connection may be silent while all places are taken. Shorter makes the clients that
/// fill them come back more often, longer keeps others waiting.
const CROWDED_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the rest of a refused request is read: cut off at once, a client often does not see
/// why.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// Files that the rest of the process may have open: databases, Redis, the runtime's own.
const NUM_OTHER_FILES: u64 = 256;

pub(super) fn start(
    address: &ListenAddress,
    http: &Http,
    certificate: Option<&Arc<Certificate>>,
    listener: &ListenerParts,
) -> anyhow::Result<RunningListener> {
    let is_open = address.is_open(&listener.access);
    let max_connections = http.listener.max_connections.get();
    allow_files(max_connections + NUM_BEYOND);
    let (closing, closes) = watch::channel(false);
    let acceptor = Acceptor {
        places: Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS))),
        tls: certificate.map(Certificate::acceptor).transpose()?,
        timeouts: Timeouts {
            idle: http.listener.idle_timeout,
            crowded: CROWDED_TIMEOUT.min(http.listener.idle_timeout),
            unread: http.routes.request_timeout,
        },
        crowd: watch::Sender::new(false),
        closing: closes,
    };
    let mut server = Server::build()
        .workers(NUM_WORKERS)
        .max_concurrent_connections((max_connections + NUM_BEYOND).div_ceil(NUM_WORKERS))
        .disable_signals()
        .shutdown_timeout(SHUTDOWN_TIMEOUT.as_secs());
    let mut addresses = Vec::new();
    for bound in bind(&address.addresses)? {
        addresses.push(bound.local_addr()?);
        server = listen(server, bound, &acceptor, listener, is_open)?;
    }
    let server = server.run();
    Ok(RunningListener {
        addresses,
        scheme: match certificate {
            Some(_) => "https",
            None => "http",
        },
        is_open,
        handle: server.handle(),
        closing,
        server: actix_rt::spawn(server),
    })
}

fn listen(
    server: ServerBuilder,
    bound: TcpListener,
    acceptor: &Acceptor,
    listener: &ListenerParts,
    is_open: bool,
) -> std::io::Result<ServerBuilder> {
    let (acceptor, listener) = (acceptor.clone(), listener.clone());
    server.listen("http", bound, move || {
        let (acceptor, listener) = (acceptor.clone(), listener.clone());
        let refusals = listener.refusals.clone();
        let is_encrypted = acceptor.tls.is_some();
        let app = App::new()
            .wrap_fn(move |mut request, service| {
                if is_encrypted {
                    note_encryption(&mut request);
                }
                service.call(request)
            })
            .wrap_fn(track_request)
            .wrap(from_fn(move |request, next| {
                refusals.clone().watch(request, next)
            }))
            .configure(move |config| configure(config, &listener, is_open))
            .into_factory()
            .map_err(|error: actix_web::Error| error.error_response());
        let http = HttpService::build()
            .keep_alive(KeepAlive::Os)
            .client_request_timeout(Duration::ZERO)
            .client_disconnect_timeout(LINGER_TIMEOUT)
            .on_connect_ext(|connection: &Connection, data| {
                data.insert(connection.requests());
            })
            .h1(map_config(app, |()| AppConfig::default()));
        fn_service(move |stream| acceptor.clone().open(stream)).and_then(http)
    })
}

#[derive(Clone)]
struct Acceptor {
    places: Arc<Semaphore>,
    tls: Option<TlsAcceptor>,
    timeouts: Timeouts,
    crowd: watch::Sender<bool>,
    closing: watch::Receiver<bool>,
}

impl Acceptor {
    async fn open(
        self,
        stream: TcpStream,
    ) -> Result<(Connection, Option<SocketAddr>), DispatchError> {
        let peer = stream.peer_addr().ok();
        // Answers are written whole, so there is nothing to gather.
        stream.set_nodelay(true).map_err(DispatchError::Io)?;
        let places = self.places;
        let place = Arc::clone(&places).try_acquire_owned().ok();
        // Once nobody can be let in any more, nobody comes to say so: the last place counts.
        let is_full = places.available_permits() == 0;
        self.crowd
            .send_if_modified(|crowded| std::mem::replace(crowded, is_full) != is_full);
        let signals = Signals {
            crowded: self.crowd.subscribe(),
            closing: self.closing,
        };
        let stream: Box<dyn Stream> = match self.tls {
            None => Box::new(stream),
            Some(tls) => tokio::select! {
                shaken = tls.accept(stream) => Box::new(shaken.map_err(DispatchError::Io)?),
                () = silent(self.timeouts, signals.clone()) => {
                    return Err(DispatchError::SlowRequestTimeout);
                }
            },
        };
        let connection = Connection::new(stream, self.timeouts, place, signals);
        Ok((connection, peer))
    }
}

/// Wraps every request: its connection hears that it is at work, and it is refused where the connection
/// has no place.
fn track_request<S, B>(
    mut request: ServiceRequest,
    service: &S,
) -> impl Future<Output = Result<ServiceResponse<AnswerBody>, actix_web::Error>> + use<S, B>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error>,
    B: MessageBody + 'static,
{
    let requests = request.conn_data::<Rc<Requests>>().map(Rc::clone);
    let is_beyond = (requests.as_ref()).is_some_and(|requests| requests.are_beyond_the_limit());
    let busy = requests.map(|requests| {
        let payload = request.take_payload();
        let busy = Rc::clone(&requests).begin(body_kind(&request, &payload));
        request.set_payload(requests.watch(payload));
        busy
    });
    let answer = if is_beyond && !HEALTH_PATHS.contains(&request.path()) {
        let refused = request.into_response(too_many());
        Either::Left(ready(Ok(refused.map_into_boxed_body())))
    } else {
        let answer = service.call(request);
        Either::Right(async { answer.await.map(ServiceResponse::map_into_boxed_body) })
    };
    async move {
        let mut answer = answer.await?;
        if is_beyond {
            let head = answer.response_mut().head_mut();
            head.set_connection_type(actix_http::ConnectionType::Close);
        }
        Ok(answer.map_body(|_, body| AnswerBody { body, _busy: busy }))
    }
}

/// Says, as a proxy that ends TLS does, by which scheme the client knows us. Where a proxy says so, that stays.
fn note_encryption(request: &mut ServiceRequest) {
    let headers = request.headers_mut();
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("https"));
    }
}

/// How the body ends, as the head says and actix-http takes it.
fn body_kind(request: &ServiceRequest, payload: &Payload) -> Body {
    if matches!(payload, Payload::None) {
        return Body::NONE;
    }
    let headers = request.headers();
    let of_header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    // In this order, for a body in chunks may also be that of an upgrade, and that have a length.
    if headers.contains_key(TRANSFER_ENCODING) {
        return Body::CHUNKED;
    }
    if of_header(UPGRADE).is_some_and(|to| to.trim().eq_ignore_ascii_case("websocket")) {
        return Body::Endless;
    }
    let length = of_header(CONTENT_LENGTH).and_then(|length| length.trim().parse().ok());
    length.map_or(Body::Endless, Body::Length)
}

fn too_many() -> HttpResponse {
    let mut refused = refuse(
        actix_web::http::StatusCode::SERVICE_UNAVAILABLE,
        "there are as many connections as http.max_connections allows",
    );
    let soon = HeaderValue::from_static("1");
    refused.headers_mut().insert(RETRY_AFTER, soon);
    refused
}

/// The body of an answer; its request is at work until it is sent.
struct AnswerBody {
    body: BoxBody,
    _busy: Option<RequestGuard>,
}

impl MessageBody for AnswerBody {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_next(cx)
    }
}

/// Systems often begin with 1,024 files for a process, and let it have more.
fn allow_files(num_connections: usize) {
    let wanted = u64::try_from(num_connections).unwrap_or(u64::MAX) + NUM_OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    let Some(current) = limit.current.filter(|current| *current < wanted) else {
        return;
    };
    let raised = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let new = Rlimit {
        current: Some(raised),
        ..limit
    };
    let allowed = setrlimit(Resource::Nofile, new).map_or(current, |()| raised);
    if allowed < wanted {
        log::warn!(
            "at most {allowed} files may be open, and http.max_connections needs {wanted}: raise \
             the limit (ulimit -n, LimitNOFILE=) or lower the setting"
        );
    }
}
