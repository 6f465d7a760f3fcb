//! The two connections: one for reads that wait, one for everything else.
//!
//! A read that waits holds up everything behind it on its connection, so acknowledgements and
//! heartbeats have their own. After any failure both are made anew: what is left of an old one,
//! such as a read that nobody waits for, must not be mistaken for the answer to something else.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, RedisConnectionInfo, RedisError, RedisResult};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::failure::timed_out;
use super::settings::{RedisSettings, RedisTls};
use super::tls;
use super::url::RedisUrl;

/// How long reaching the server and greeting it may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an answer may take, beyond the time for which the command itself waits. Shorter takes
/// a pause of a busy server for an outage; longer notices an outage later.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Reads,
    Commands,
}

/// Makes connections, and makes them anew.
pub(super) struct Connections {
    url: RedisUrl,
    tls: RedisTls,
    block: Duration,
    reads: Link,
    commands: Link,
}

#[derive(Default)]
struct Link {
    current: Mutex<Option<Connection>>,
    /// Held while connecting, so that one connection is made and not several.
    connecting: tokio::sync::Mutex<()>,
}

/// An open connection; cheap to clone.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) redis: MultiplexedConnection,
    /// What the server calls it; `None` if it does not say, or not to us.
    id: Option<i64>,
    _driver: Arc<Driver>,
}

/// Ends the task that drives a connection, whatever it still waits for.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connections {
    pub(super) fn new(settings: &RedisSettings) -> Self {
        let mut tls = settings.tls.clone();
        tls.ca_file = tls.ca_file.or_else(|| settings.url.ca_file.clone());
        tls.insecure |= settings.url.insecure;
        Self {
            url: settings.url.clone(),
            tls,
            block: settings.block,
            reads: Link::default(),
            commands: Link::default(),
        }
    }

    /// The open connection, or a new one; and whether it is new.
    pub(super) async fn get(&self, r#use: Use) -> RedisResult<(Connection, bool)> {
        let link = match r#use {
            Use::Reads => &self.reads,
            Use::Commands => &self.commands,
        };
        if let Some(connection) = link.current() {
            return Ok((connection, false));
        }
        let _connecting = link.connecting.lock().await;
        if let Some(connection) = link.current() {
            return Ok((connection, false));
        }
        let patience = match r#use {
            Use::Reads => self.block + RESPONSE_TIMEOUT,
            Use::Commands => RESPONSE_TIMEOUT,
        };
        // Boxed: it is rare, and would make everything large that may connect.
        let connection = Box::pin(self.connect(patience)).await?;
        *link.lock() = Some(connection.clone());
        Ok((connection, true))
    }

    /// What the server calls the open connection for reads.
    pub(super) fn id_for_reads(&self) -> Option<i64> {
        self.reads.current()?.id
    }

    /// Lets go of both.
    pub(super) fn reset(&self) {
        drop(self.reads.lock().take());
        drop(self.commands.lock().take());
    }

    async fn connect(&self, patience: Duration) -> RedisResult<Connection> {
        timeout(CONNECT_TIMEOUT, self.greet(patience))
            .await
            .unwrap_or_else(|_| Err(timed_out("no greeting within the connect time-out")))
    }

    async fn greet(&self, patience: Duration) -> RedisResult<Connection> {
        let stream = TcpStream::connect((self.url.host.as_str(), self.url.port)).await?;
        stream.set_nodelay(true)?;
        if self.url.tls {
            let stream = tls::encrypt(stream, &self.url.host, &self.tls)
                .await
                .map_err(refused_by_tls)?;
            self.set_up(stream, patience).await
        } else {
            self.set_up(stream, patience).await
        }
    }

    async fn set_up<S>(&self, stream: S, patience: Duration) -> RedisResult<Connection>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut info = RedisConnectionInfo::default()
            .set_db(self.url.database)
            .set_lib_name("event-persister", env!("CARGO_PKG_VERSION"));
        if let Some(username) = &self.url.username {
            info = info.set_username(username);
        }
        if let Some(password) = &self.url.password {
            info = info.set_password(password);
        }
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(patience));
        let (mut redis, driver) =
            MultiplexedConnection::new_with_config(&info, stream, config).await?;
        let driver = Arc::new(Driver(tokio::spawn(driver).abort_handle()));
        // A connection that breaks here breaks at its first command as well.
        let id = redis::cmd("CLIENT").arg("ID").query_async(&mut redis).await;
        Ok(Connection {
            redis,
            id: id.ok(),
            _driver: driver,
        })
    }
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Option<Connection>> {
        // Every change is complete before anything that could panic.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<Connection> {
        self.lock().clone()
    }
}

fn refused_by_tls(error: std::io::Error) -> RedisError {
    let what = "no encrypted connection";
    RedisError::from((ErrorKind::InvalidClientConfig, what, error.to_string()))
}
