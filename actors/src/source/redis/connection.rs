//! The two connections: one for reads that wait, one for everything else.
//!
//! A read that waits holds up everything behind it on its connection, so acknowledgements and
//! heartbeats have their own. After any failure both are made anew: the reply to a read that nobody waits
//! for any more must not be mistaken for the reply to something else.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, RedisConnectionInfo, RedisError, RedisResult};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::entry_reader::EntryReader;
use super::failure::{self, timed_out};
use super::settings::RedisSettings;
use super::url::Place;
use crate::tls;

/// How long reaching the server and greeting it may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an answer may take, beyond the time for which the command itself waits. Shorter takes
/// a pause of a busy server for an outage; longer notices an outage later.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The name of this client in the server's list of clients.
pub(super) const LIBRARY: &str = "event-persister";

/// A connection, encrypted or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Makes connections, and makes them anew.
pub(super) struct Connections {
    settings: RedisSettings,
    open: Mutex<OpenConnections>,
    /// Held while connecting, so that one connection is made and not several.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct OpenConnections {
    commands: Option<Connection>,
    /// Unless it is in use.
    reader: Option<EntryReader>,
    /// The server's id of the one for reads.
    reader_id: Option<i64>,
    /// Tells those that were let go of from the present ones.
    generation: u64,
}

/// An open connection for commands; cheap to clone.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) redis: MultiplexedConnection,
    _driver: Arc<Driver>,
}

/// The connection for reads while it is in use; it ends unless it is given back.
pub(super) struct ReaderInUse {
    pub(super) reader: EntryReader,
    generation: u64,
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
        Self {
            settings: settings.clone(),
            open: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    /// The open connection for commands, or a new one.
    pub(super) async fn commands(&self) -> RedisResult<Connection> {
        let current = || self.lock().commands.clone();
        if let Some(connection) = current() {
            return Ok(connection);
        }
        let _connecting = self.connecting.lock().await;
        if let Some(connection) = current() {
            return Ok(connection);
        }
        // Boxed: it is rare, and would make everything large that may connect.
        let connection = Box::pin(within_time(self.connect_for_commands())).await?;
        log::debug!(
            "connected to Redis redis.server={} redis.use=commands",
            self.settings.url
        );
        self.lock().commands = Some(connection.clone());
        Ok(connection)
    }

    /// The connection for reads, or a new one. One caller at a time.
    pub(super) async fn reader(&self) -> RedisResult<ReaderInUse> {
        let generation = {
            let mut open = self.lock();
            let generation = open.generation;
            if let Some(reader) = open.reader.take() {
                return Ok(ReaderInUse { reader, generation });
            }
            generation
        };
        let reader = Box::pin(within_time(self.connect_for_reads())).await?;
        log::debug!(
            "connected to Redis redis.server={} redis.use=reads",
            self.settings.url
        );
        let mut open = self.lock();
        if open.generation == generation {
            open.reader_id = reader.id();
        }
        Ok(ReaderInUse { reader, generation })
    }

    /// Gives the connection for reads back after a read, unless nobody can tell what is under way on it.
    /// A future that is dropped instead ends it.
    pub(super) fn give_back<T>(&self, in_use: ReaderInUse, read: RedisResult<T>) -> RedisResult<T> {
        let mut open = self.lock();
        let is_sound = read.as_ref().err().is_none_or(failure::is_answer);
        if is_sound && open.generation == in_use.generation {
            open.reader = Some(in_use.reader);
        }
        read
    }

    /// The server's id of the open connection for reads.
    pub(super) fn reader_id(&self) -> Option<i64> {
        self.lock().reader_id
    }

    pub(super) fn reset(&self) {
        let mut open = self.lock();
        *open = OpenConnections {
            generation: open.generation + 1,
            ..OpenConnections::default()
        };
    }

    async fn connect_for_commands(&self) -> RedisResult<Connection> {
        let url = &self.settings.url;
        let mut info = RedisConnectionInfo::default()
            .set_db(url.database)
            .set_lib_name(LIBRARY, env!("CARGO_PKG_VERSION"));
        if let Some((username, password)) = url.login() {
            info = info.set_password(password);
            if let Some(username) = username {
                info = info.set_username(username);
            }
        }
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(RESPONSE_TIMEOUT));
        let stream = self.connect().await?;
        let (redis, driver) = MultiplexedConnection::new_with_config(&info, stream, config).await?;
        let driver = Arc::new(Driver(tokio::spawn(driver).abort_handle()));
        Ok(Connection {
            redis,
            _driver: driver,
        })
    }

    async fn connect_for_reads(&self) -> RedisResult<EntryReader> {
        EntryReader::greet(self.connect().await?, &self.settings.url).await
    }

    async fn connect(&self) -> RedisResult<Box<dyn Stream>> {
        let url = &self.settings.url;
        let (host, port) = match &url.place {
            Place::Host(host, port) => (host, *port),
            Place::Socket(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            Place::Sentinels(_) => {
                return Err(refused_by_tls("sentinels are not asked yet"));
            }
        };
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        stream.set_nodelay(true)?;
        if !url.tls {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(host.clone()).map_err(refused_by_tls)?;
        let (check, files) = self.settings.encryption();
        let config = tls::client(check, files, url.tls_versions).map_err(refused_by_tls)?;
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
        Ok(Box::new(connecting.await.map_err(refused_by_tls)?))
    }

    fn lock(&self) -> MutexGuard<'_, OpenConnections> {
        // Every change is complete before anything that could panic.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn within_time<T>(connecting: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    timeout(CONNECT_TIMEOUT, connecting)
        .await
        .unwrap_or_else(|_| Err(timed_out("no greeting within the connect time-out")))
}

fn refused_by_tls(error: impl std::fmt::Display) -> RedisError {
    let what = "no encrypted connection";
    RedisError::from((ErrorKind::InvalidClientConfig, what, error.to_string()))
}
