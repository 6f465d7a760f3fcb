//! The two connections, and the commands that are sent, each with its reply parsed.
//!
//! A read that waits holds up everything behind it on its connection, so acknowledgements and
//! heartbeats have their own. After any failure both are made anew: the reply to a read that nobody waits
//! for any more must not be mistaken for the reply to something else.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::{Either, select};
use redis::aio::MultiplexedConnection;
use redis::streams::{
    StreamClaimOptions, StreamPendingCountReply, StreamReadOptions, StreamTrimOptions,
    StreamTrimmingMode,
};
use redis::{
    AsyncConnectionConfig, Cmd, FromRedisValue, RedisConnectionInfo, RedisError, RedisResult,
    Value, from_redis_value,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::delivery::Entry;
use crate::primary::Primary;
use crate::source::{SourceError, lock};

use super::entry_reader::{EntriesRead, EntryReader, Reply, Room};
use super::failure::{self, timed_out};
use super::idleness::{Observed, PendingEntry};
use super::reach::reach;
use super::scripts;
use super::sentinel::{Master, Watch};
use super::settings::{OWN_PREFIX, RedisSettings};
use super::snapshot::{StreamSnapshot, ids};
use super::stream_id::StreamId;
use super::url::Place;

/// How long each address of the server may take, its greeting included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an answer may take, beyond the time for which the command itself waits. Shorter takes
/// a pause of a busy server for an outage; longer notices an outage later.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes a second that a line to Redis carries at least, for a large event to pass. Less notices an outage later while
/// such an event is published; more keeps it from passing.
const SLOWEST_LINE: f64 = 256.0 * 1024.0;

pub(super) const LIBRARY: &str = "event-persister";

/// Ids in one command at most: more would hold up the server's other clients.
pub(super) const IDS_AT_ONCE: usize = 1000;

pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

pub(super) struct Connections {
    pub(super) settings: RedisSettings,
    /// Where others say who the master is.
    pub(super) watch: Option<Watch>,
    open: Mutex<OpenConnections>,
    /// Held while connecting, so that one connection is made and not several.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct OpenConnections {
    commands: Option<Connection>,
    /// With its epoch; unless it is in use.
    reader: Option<(EntryReader, u64)>,
    reader_id: Option<i64>,
    /// Tells those that were let go of from the present ones.
    generation: u64,
}

#[derive(Clone)]
pub(super) struct Connection {
    pub(super) redis: MultiplexedConnection,
    /// Of the master that it leads to; 0 where nobody names one.
    epoch: u64,
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
    pub(super) fn new(settings: RedisSettings) -> Self {
        let watch = match &settings.url.place {
            Place::Sentinels(sentinels) => Some(Watch::new(&settings, sentinels)),
            Place::Host(..) | Place::Socket(_) => None,
        };
        Self {
            settings,
            watch,
            open: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    pub(super) async fn commands(&self) -> RedisResult<Commands<'_>> {
        let current = || {
            let connection = self.lock().commands.clone()?;
            Some(Commands {
                connection,
                settings: &self.settings,
            })
        };
        if let Some(commands) = current() {
            return Ok(commands);
        }
        let _connecting = self.connecting.lock().await;
        if let Some(commands) = current() {
            return Ok(commands);
        }
        let connection = self.open("commands", self.connect_for_commands()).await?;
        self.lock().commands = Some(connection.clone());
        Ok(Commands {
            connection,
            settings: &self.settings,
        })
    }

    /// Reads entries, of one epoch or of any, through the connection for that, opened if need be. One caller at a
    /// time.
    ///
    /// The connection is kept unless nobody can tell what is under way on it, as after a future that was
    /// dropped.
    pub(super) async fn read(
        &self,
        command: &Cmd,
        reply: Reply,
        room: &mut Room,
        patience: Duration,
        epoch: Option<u64>,
    ) -> RedisResult<EntriesRead> {
        let (mut reader, epoch, generation) = self.reader(epoch).await?;
        let read = {
            let reading = pin!(reader.read(command, reply, room, patience));
            match select(reading, pin!(self.another_master())).await {
                Either::Left((read, _)) => read,
                // A master that is no more may be silent, or wait for what nobody will send it.
                Either::Right(_) => return Err(failure::another_master()),
            }
        };
        let mut open = self.lock();
        let is_sound = read.as_ref().err().is_none_or(failure::is_answer);
        if is_sound && open.generation == generation {
            open.reader = Some((reader, epoch));
        }
        read
    }

    async fn reader(&self, epoch: Option<u64>) -> RedisResult<(EntryReader, u64, u64)> {
        let is_right = |of: u64| epoch.is_none_or(|epoch| epoch == of);
        let generation = {
            let mut open = self.lock();
            if let Some((reader, of)) = open.reader.take_if(|(_, of)| is_right(*of)) {
                return Ok((reader, of, open.generation));
            }
            open.generation
        };
        let (reader, of) = self.open("reads", self.connect_for_reads()).await?;
        if !is_right(of) {
            // Its groups are looked at first.
            return Err(failure::another_master());
        }
        let mut open = self.lock();
        if open.generation == generation {
            open.reader_id = reader.id;
        }
        Ok((reader, of, generation))
    }

    async fn open<T>(
        &self,
        used_for: &str,
        connecting: impl Future<Output = RedisResult<T>>,
    ) -> RedisResult<T> {
        // Boxed: it is rare, and would make everything large that may connect.
        let connection = Box::pin(connecting).await?;
        log::debug!(
            "connected to Redis redis.server={} redis.use={used_for}",
            self.settings.url
        );
        Ok(connection)
    }

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

    /// Asks who the master is, and returns its epoch. If it is another one the connections are made anew.
    pub(super) async fn follow(&self) -> RedisResult<u64> {
        let Some(watch) = &self.watch else {
            return Ok(0);
        };
        let master = watch.master().await?;
        let epoch = self.lock().commands.as_ref().map(|open| open.epoch);
        if epoch.is_some_and(|epoch| epoch != master.epoch) {
            self.reset();
        }
        Ok(master.epoch)
    }

    /// Returns when there is another master than now.
    async fn another_master(&self) {
        match &self.watch {
            Some(watch) => watch.renewed.notified().await,
            None => std::future::pending().await,
        }
    }

    /// After a failure: new connections, and the error of the port.
    pub(super) fn failed(&self, doing: &str, error: RedisError) -> SourceError {
        self.reset();
        self.unavailable(doing, error)
    }

    /// The error of the port. It names the master, too, where the URL names sentinels.
    pub(super) fn unavailable(&self, doing: &str, error: RedisError) -> SourceError {
        let url = &self.settings.url;
        let server = match self.watch.as_ref().and_then(Watch::known) {
            Some(master) => format!("{url} (master {master})"),
            None => url.to_string(),
        };
        failure::unavailable(&server, doing, error)
    }

    /// The same for what was sent and not answered, which less of it may be.
    pub(super) fn not_sent(&self, doing: &str, error: RedisError) -> SourceError {
        let is_late = error.is_timeout();
        match self.failed(doing, error) {
            SourceError::Unavailable { what, source } if is_late => {
                SourceError::TimedOut { what, source }
            }
            failed => failed,
        }
    }

    async fn connect_for_commands(&self) -> RedisResult<Connection> {
        let url = &self.settings.url;
        let greet = |stream| Connection::greet(stream, url.login(), url.database);
        let (mut connection, epoch) = self.connect(greet).await?;
        connection.epoch = epoch;
        if epoch > 0 {
            let role: RedisResult<Value> =
                redis::cmd("ROLE").query_async(&mut connection.redis).await;
            must_be_master(role)?;
        }
        Ok(connection)
    }

    async fn connect_for_reads(&self) -> RedisResult<(EntryReader, u64)> {
        // A replica refuses to read for a group.
        self.connect(|stream| EntryReader::greet(stream, &self.settings.url))
            .await
    }

    /// To the server, or to the master of the moment, with its epoch.
    async fn connect<T, G>(&self, greet: impl Fn(Box<dyn Stream>) -> G) -> RedisResult<(T, u64)>
    where
        G: Future<Output = RedisResult<T>>,
    {
        let settings = &self.settings;
        let greeted = match (&settings.url.place, &self.watch) {
            (Place::Host(host, port), _) => {
                reach(settings, host, *port, CONNECT_TIMEOUT, greet).await?
            }
            (Place::Socket(path), _) => {
                let connecting = async { greet(Box::new(UnixStream::connect(path).await?)).await };
                timeout(CONNECT_TIMEOUT, connecting)
                    .await
                    .unwrap_or_else(|_| Err(timed_out("no greeting within the connect time-out")))?
            }
            (Place::Sentinels(_), Some(watch)) => {
                let Master {
                    host, port, epoch, ..
                } = watch.master().await?;
                let greeted = reach(settings, &host, port, CONNECT_TIMEOUT, greet).await?;
                return Ok((greeted, epoch));
            }
            (Place::Sentinels(_), None) => return Err(failure::another_master()),
        };
        Ok((greeted, 0))
    }

    fn lock(&self) -> MutexGuard<'_, OpenConnections> {
        lock(&self.open)
    }
}

impl Connection {
    pub(super) async fn greet(
        stream: Box<dyn Stream>,
        login: Option<(Option<&str>, &str)>,
        database: i64,
    ) -> RedisResult<Self> {
        let info = greeting(login, database);
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(RESPONSE_TIMEOUT));
        let (redis, driver) = MultiplexedConnection::new_with_config(&info, stream, config).await?;
        let driver = Arc::new(Driver(tokio::spawn(driver).abort_handle()));
        Ok(Self {
            redis,
            epoch: 0,
            _driver: driver,
        })
    }
}

/// What a connection says first.
pub(super) fn greeting(login: Option<(Option<&str>, &str)>, database: i64) -> RedisConnectionInfo {
    let mut info = RedisConnectionInfo::default()
        .set_db(database)
        .set_lib_name(LIBRARY, env!("CARGO_PKG_VERSION"));
    if let Some((username, password)) = login {
        info = info.set_password(password);
        if let Some(username) = username {
            info = info.set_username(username);
        }
    }
    info
}

/// Where a user may not ask, the sentinels are believed: on a replica every command fails that changes anything.
fn must_be_master(role: RedisResult<Value>) -> RedisResult<()> {
    let role = match role {
        Err(error) if failure::code(&error).as_deref() == Some("NOPERM") => return Ok(()),
        role => role?,
    };
    let name = match &role {
        Value::Array(parts) => parts.first(),
        _ => None,
    };
    match name {
        Some(Value::BulkString(name)) if name == b"master" => Ok(()),
        Some(Value::SimpleString(name)) if name == "master" => Ok(()),
        _ => Err(failure::another_master()),
    }
}

pub(super) struct Made {
    pub(super) guard: bool,
    pub(super) group: bool,
    pub(super) moved: bool,
}

pub(super) struct Commands<'a> {
    connection: Connection,
    pub(super) settings: &'a RedisSettings,
}

impl Commands<'_> {
    pub(super) fn epoch(&self) -> u64 {
        self.connection.epoch
    }

    pub(super) async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        let mut reply: Value = command.query_async(&mut self.connection.redis).await?;
        make_text(&mut reply);
        Ok(from_redis_value(reply)?)
    }

    /// Whether entries may be added. The id is none, so nothing changes: Redis looks at rights, at its role and at
    /// its memory before.
    pub(super) async fn may_add(&mut self) -> RedisResult<()> {
        let mut command = redis::cmd("XADD");
        command.arg(&self.settings.stream).arg("no-id");
        command.arg("data").arg("");
        match self.query::<Value>(&command).await {
            Err(error) if failure::is_about_the_id(&error) => Ok(()),
            added => added.map(drop),
        }
    }

    /// Adds events to the stream, in the form of Prefect's own messages.
    pub(super) async fn add(&mut self, entries: &[&Entry]) -> RedisResult<()> {
        let mut pipe = redis::pipe();
        for entry in entries {
            let command = pipe.cmd("XADD").arg(&self.settings.stream).arg("*");
            command.arg("data").arg(entry.raw());
            if let Some(event) = entry.event() {
                let attributes = serde_json::json!({ "id": event.id, "event": event.event });
                command.arg("attributes").arg(attributes.to_string());
            }
            command.ignore();
        }
        let Some(largest) = entries.iter().map(|entry| entry.num_bytes()).max() else {
            return Ok(());
        };
        let mut redis = self.connection.redis.clone();
        redis.set_response_timeout(patience(largest));
        pipe.query_async(&mut redis).await
    }

    pub(super) fn about(self, settings: &RedisSettings) -> Commands<'_> {
        Commands {
            connection: self.connection,
            settings,
        }
    }

    pub(super) fn script(&self, script: &str) -> Cmd {
        script_command(self.settings, script)
    }

    /// Ends the wait of another connection, as if its time were over. It still gets what the read took.
    pub(super) async fn unblock(&mut self, connection_id: i64) -> RedisResult<()> {
        let mut command = redis::cmd("CLIENT");
        command.arg("UNBLOCK").arg(connection_id);
        self.query(&command).await
    }

    pub(super) async fn own_pending(&mut self) -> RedisResult<Vec<StreamId>> {
        let consumer = Some(self.settings.consumer_name.as_str());
        self.pending(StreamId::ZERO, usize::MAX, consumer).await
    }

    /// The ids of pending entries from an id on, in order, so many at most; of one consumer or all.
    pub(super) async fn pending(
        &mut self,
        from: StreamId,
        max: usize,
        consumer: Option<&str>,
    ) -> RedisResult<Vec<StreamId>> {
        let mut all: Vec<StreamId> = Vec::new();
        let mut start = from.to_string();
        loop {
            let count = IDS_AT_ONCE.min(max - all.len());
            let RedisSettings { stream, group, .. } = self.settings;
            let command = Cmd::xpending_consumer_count(stream, group, &start, "+", count, consumer);
            let page: StreamPendingCountReply = self.query(&command).await?;
            all.extend(ids(page.ids.iter().map(|entry| &entry.id))?);
            match all.last() {
                Some(last) if page.ids.len() == count && all.len() < max => {
                    start = format!("({last}");
                }
                _ => return Ok(all),
            }
        }
    }

    /// What is pending for others, as far as it may be left.
    pub(super) async fn look_at_others(&mut self, late: Duration) -> RedisResult<Observed> {
        type Entries = Vec<(StreamId, String, i64)>;
        let mut command = self.script(scripts::LOOK_AT_OTHERS);
        command.arg(&self.settings.consumer_name).arg(OWN_PREFIX);
        command.arg(millis(late));
        let (now, firsts, late): (i64, Entries, Entries) = self.query(&command).await?;
        let pending = |entries: Entries| {
            let entries = entries.into_iter();
            let entry = |(id, consumer, idle)| PendingEntry { id, consumer, idle };
            entries.map(entry).collect()
        };
        Ok(Observed {
            now,
            first_of_replicas: pending(firsts),
            late: pending(late),
        })
    }

    /// Takes over entries that are left, of a dead replica or one by one: the ids, and those whose text is gone,
    /// which are pending for nobody any more.
    pub(super) async fn claim(
        &mut self,
        dead: Option<&str>,
        ids: &[StreamId],
    ) -> RedisResult<(Vec<StreamId>, Vec<StreamId>)> {
        let mut command = self.script(scripts::CLAIM);
        command.arg(&self.settings.consumer_name);
        command.arg(millis(self.settings.claim_idle));
        command.arg(dead.unwrap_or_default()).arg(ids);
        self.query(&command).await
    }

    /// Marks entries as ours and in work, without transferring them.
    pub(super) async fn keep(&mut self, ids: &[StreamId]) -> RedisResult<()> {
        let RedisSettings { stream, group, .. } = self.settings;
        let consumer = &self.settings.consumer_name;
        for ids in ids.chunks(IDS_AT_ONCE) {
            let options = StreamClaimOptions::default().with_justid();
            let command = Cmd::xclaim_options(stream, group, consumer, 0, ids, options);
            self.query::<Value>(&command).await?;
        }
        Ok(())
    }

    /// Acknowledges one portion of ids; returns how many it took.
    pub(super) async fn acknowledge(&mut self, ids: &[StreamId]) -> RedisResult<usize> {
        let portion = portion(ids);
        let command = Cmd::xack(&self.settings.stream, &self.settings.group, portion);
        self.query::<Value>(&command).await?;
        Ok(portion.len())
    }

    /// The same for entries that were written to a primary, unless replicas have agreed on another, which is
    /// the error then.
    pub(super) async fn acknowledge_on(
        &mut self,
        primary: Primary,
        ids: &[StreamId],
    ) -> RedisResult<Result<usize, Primary>> {
        let portion = portion(ids);
        let mut command = self.script(scripts::ACKNOWLEDGE);
        command.arg(self.settings.primary_prefix());
        command.arg(primary.system).arg(primary.timeline);
        command.arg(portion);
        let other = self.query(&command).await.map(as_primary)?;
        Ok(other.map_or(Ok(portion.len()), Err))
    }

    /// Tells the other replicas which primary we write to, if any; the one that all have agreed on.
    pub(super) async fn agree(&mut self, own: Option<Primary>) -> RedisResult<Option<Primary>> {
        let mut command = self.script(scripts::AGREE);
        command.arg(self.settings.primary_prefix());
        command.arg(own.map(|own| own.system));
        command.arg(own.map(|own| own.timeline));
        self.query(&command).await.map(as_primary)
    }

    /// The stream and its groups at one moment; without the stream's end where nothing is ahead of the known.
    pub(super) async fn look(
        &mut self,
        known_end: Option<StreamId>,
    ) -> RedisResult<StreamSnapshot> {
        let mut command = self.script(scripts::LOOK);
        command.arg(&self.settings.guard_group).arg(known_end);
        self.query(&command).await
    }

    /// How many entries there are behind one id and up to another; of very many only some.
    pub(super) async fn count_entries(
        &mut self,
        mut behind: StreamId,
        last: StreamId,
    ) -> RedisResult<u64> {
        const STEPS: usize = 100;
        let mut num = 0;
        for _ in 0..STEPS {
            let mut command = self.script(scripts::COUNT_ENTRIES);
            command.arg(behind).arg(last);
            let (counted_up_to, counted): (StreamId, u64) = self.query(&command).await?;
            if counted == 0 {
                break;
            }
            num += counted;
            behind = counted_up_to;
        }
        Ok(num)
    }

    pub(super) async fn first_behind(&mut self, last: StreamId) -> RedisResult<Option<StreamId>> {
        let mut command = self.script(scripts::FIRST_BEHIND);
        command.arg(last);
        self.query(&command).await
    }

    /// Sets the guard; answers where it stands then, which is nowhere ahead of the stream.
    pub(super) async fn set_guard(
        &mut self,
        position: StreamId,
        known_end: Option<StreamId>,
    ) -> RedisResult<StreamId> {
        let mut command = self.script(scripts::MOVE_GUARD);
        command.arg(&self.settings.guard_group);
        command.arg(position).arg(known_end);
        self.query(&command).await
    }

    pub(super) async fn trim(&mut self, position: StreamId) -> RedisResult<u64> {
        // In whole nodes, and not too much at once: exact trimming holds up everyone else.
        let options = StreamTrimOptions::minid(StreamTrimmingMode::Approx, position.to_string());
        let command = Cmd::xtrim_options(&self.settings.stream, &options.limit(100_000));
        self.query(&command).await
    }

    /// How many of these ids, in their order, are not in the stream, of those that were not trimmed.
    pub(super) async fn count_missing(&mut self, ids: &[StreamId]) -> RedisResult<usize> {
        let mut num = 0;
        for ids in ids.chunks(IDS_AT_ONCE) {
            let mut command = self.script(scripts::COUNT_MISSING);
            command.arg(ids);
            num += self.query::<usize>(&command).await?;
        }
        Ok(num)
    }

    pub(super) async fn make_groups(&mut self) -> RedisResult<Made> {
        let mut command = self.script(scripts::MAKE_GROUPS);
        command.arg(self.settings.guard.then_some(&self.settings.guard_group));
        let (guard, group, moved) = self.query(&command).await?;
        Ok(Made {
            guard,
            group,
            moved,
        })
    }

    pub(super) async fn count_losses(&mut self) -> RedisResult<usize> {
        let command = self.script(scripts::COUNT_LOSSES);
        self.query(&command).await
    }

    /// Has Redis write down how many entries the group has read. If that is known beyond doubt, answers how
    /// many fewer it was in Redis.
    pub(super) async fn record_read(
        &mut self,
        known_end: Option<StreamId>,
    ) -> RedisResult<Option<usize>> {
        let mut command = self.script(scripts::RECORD_READ);
        command.arg(known_end);
        let (is_known, missing): (bool, usize) = self.query(&command).await?;
        Ok(is_known.then_some(missing))
    }

    /// Shows that our consumer lives. A read that waits is no sign of life, a question for pending entries is.
    pub(super) async fn show_life(&mut self) -> RedisResult<()> {
        let behind_all = StreamId {
            millis: u64::MAX,
            number: 0,
        };
        let command = read_pending(self.settings, behind_all, 1);
        self.query(&command).await
    }

    pub(super) async fn remove_dead_consumers(&mut self) -> RedisResult<usize> {
        let mut command = self.script(scripts::REMOVE_CONSUMERS);
        command.arg(millis(self.settings.consumer_idle_removal));
        command.arg(&self.settings.consumer_name).arg("");
        command.arg(millis(self.settings.dead_after()));
        command.arg(OWN_PREFIX);
        self.query(&command).await
    }

    pub(super) async fn remove_own_consumer(&mut self) -> RedisResult<bool> {
        let mut command = self.script(scripts::REMOVE_CONSUMERS);
        command.arg(0).arg("").arg(&self.settings.consumer_name);
        command.arg(0).arg(OWN_PREFIX);
        let num_removed: usize = self.query(&command).await?;
        Ok(num_removed > 0)
    }
}

pub(super) fn read_new(settings: &RedisSettings, count: usize, waits: bool) -> Cmd {
    let mut options = read_group(settings, count);
    if waits {
        options = options.block(millis(settings.block));
    }
    Cmd::xread_options(&[&settings.stream], &[">"], &options)
}

pub(super) fn read_pending(settings: &RedisSettings, behind: StreamId, count: usize) -> Cmd {
    Cmd::xread_options(&[&settings.stream], &[behind], &read_group(settings, count))
}

fn read_group(settings: &RedisSettings, count: usize) -> StreamReadOptions {
    let options = StreamReadOptions::default().count(count);
    options.group(&settings.group, &settings.consumer_name)
}

pub(super) fn script_command(settings: &RedisSettings, script: &str) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(1).arg(&settings.stream);
    command.arg(&settings.group);
    command
}

/// How long the answer to entries that are sent at once may take, by the largest of them: many can be sent in smaller
/// portions, and a single one cannot.
fn patience(largest: usize) -> Duration {
    RESPONSE_TIMEOUT + Duration::from_secs_f64(largest as f64 / SLOWEST_LINE)
}

/// One command for a batch; only what is far larger than any batch is split.
fn portion(ids: &[StreamId]) -> &[StreamId] {
    &ids[..ids.len().min(10 * IDS_AT_ONCE)]
}

fn as_primary(recorded: Option<(u64, u32)>) -> Option<Primary> {
    recorded.map(|(system, timeline)| Primary { system, timeline })
}

/// Names of groups and consumers may be any bytes, and are only compared and shown.
fn make_text(reply: &mut Value) {
    match reply {
        Value::BulkString(bytes) if std::str::from_utf8(bytes).is_err() => {
            *bytes = String::from_utf8_lossy(bytes).into_owned().into();
        }
        Value::Array(values) => values.iter_mut().for_each(make_text),
        _ => {}
    }
}

fn millis(time: Duration) -> usize {
    usize::try_from(time.as_millis()).unwrap_or(usize::MAX)
}
