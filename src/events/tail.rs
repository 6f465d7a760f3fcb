//! `events tail`: events as they are stored, found by looking into the database.

use std::pin::pin;
use std::sync::Arc;

use anyhow::Context as _;
use event_persister_actors::live::{Live, LiveEvents};
use event_persister_actors::reader::{EventFilter, StoredEvent};

use super::{Reader, document, row};
use crate::signals::Signals;
use crate::{output, wiring};

pub(super) async fn run(reader: Reader, filter: EventFilter, jsonl: bool) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    // Looks that fail are silent: one that failed now would fail the next time too.
    reader
        .written_since(wiring::clock().now(), 1)
        .await
        .context("cannot read the events")?;
    let live = LiveEvents::default();
    let mut watching = live.watch();
    let looking = live.clone();
    let look =
        actix_rt::spawn(async move { looking.look(Arc::clone(&reader), wiring::clock()).await });
    let mut unread = pin!(output::unread());
    loop {
        let told = tokio::select! {
            _ = signals.next() => break,
            unread = &mut unread => return unread,
            told = watching.next() => told,
        };
        match told {
            Live::Event(live) => {
                let Some(event) = live.event() else {
                    log::warn!("an event cannot be read event.id={}", live.id);
                    continue;
                };
                if !filter.matches(event) {
                    continue;
                }
                let line = match jsonl {
                    true => document::one_line(live.json()),
                    false => output::one_line(&row(&StoredEvent::from(event)).join("  ")),
                };
                output::line_of_many(&line)?;
            }
            Live::Missed(count) => {
                log::warn!("events came faster than they were printed missed={count}")
            }
        }
    }
    look.abort();
    Ok(())
}
