//! When rows become visible to others, as PostgreSQL itself tells it.
//!
//! A trigger for each statement on `events` notifies with what its rows have in the column `updated`,
//! which all rows of a batch share. PostgreSQL delivers that only once the commit is on the disk and
//! everybody sees the rows. It costs a little, and lets transactions that notify commit only one after
//! the other: what is measured is, if anything, too long. A commit's own timestamp would leave out the
//! flush to the disk.

use std::collections::HashMap;
use std::future::poll_fn;
use std::thread::JoinHandle;
use std::time::Duration;

use chrono::{DateTime, Utc};
use event_persister_actors::clock::{Clock as _, SystemClock};
use tokio::sync::oneshot;
use tokio_postgres::{AsyncMessage, NoTls};

use super::postgres::Database;

const TRIGGER: &str = "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS \
     $$ BEGIN PERFORM pg_notify('stored', extract(epoch FROM updated)::text) \
     FROM (SELECT DISTINCT updated FROM inserted) AS batches; RETURN NULL; END $$; \
     CREATE TRIGGER tell AFTER INSERT ON events REFERENCING NEW TABLE AS inserted \
     FOR EACH STATEMENT EXECUTE FUNCTION tell()";

/// When the batches of one database became visible, by what their rows have in `updated`.
type Moments = HashMap<String, DateTime<Utc>>;

/// Listens on a thread of its own, from its start to its end.
pub(crate) struct Listener {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Moments>,
}

impl Listener {
    /// Returns once it listens.
    pub(crate) fn start(database: &Database) -> Self {
        database.execute(TRIGGER);
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let url = database.url.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(listen(url, || ready.send(()).unwrap(), stopped))
        });
        is_ready.recv().unwrap();
        Self { stop, thread }
    }

    pub(crate) fn stop(self) -> Moments {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap()
    }
}

async fn listen(url: String, ready: impl Fn(), stopped: oneshot::Receiver<()>) -> Moments {
    let (client, mut connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let mut moments = Moments::new();
    let receive = async {
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(notification) = message.unwrap() {
                let now = SystemClock.now();
                moments.insert(notification.payload().to_owned(), now);
            }
        }
    };
    let work = async {
        client.batch_execute("LISTEN stored").await.unwrap();
        ready();
        stopped.await.unwrap();
        // An answer comes after all that was notified before the question.
        client.batch_execute("").await.unwrap();
    };
    tokio::select! {
        () = receive => panic!("the connection that listens has ended"),
        () = work => {}
    }
    moments
}

/// For each of these events the time from when it was sent to when others saw its row.
pub(crate) fn latencies(
    database: &Database,
    moments: &Moments,
    sent: &HashMap<String, DateTime<Utc>>,
) -> Vec<Duration> {
    let rows = database.execute("SELECT id, extract(epoch FROM updated)::text FROM events");
    let latencies: Vec<Duration> = (rows.iter())
        .filter_map(|row| {
            let sent = sent.get(row[0].as_deref()?)?;
            let updated = row[1].as_deref()?;
            let visible = moments.get(updated);
            let visible = visible.unwrap_or_else(|| panic!("nobody told of rows of {updated}"));
            Some((*visible - *sent).to_std().unwrap_or_default())
        })
        .collect();
    assert_eq!(latencies.len(), sent.len(), "not all rows are there");
    latencies
}
