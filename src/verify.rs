//! Holds what the stream was acknowledged for against the tables and the dead letters.
//!
//! The stream is read first and the database afterwards, page by page: what is acknowledged was
//! committed before. Whatever looks wrong is looked at once more at the end.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, TimeDelta, Utc};
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::delivery::Entry;
use event_persister_actors::event::Received;
use event_persister_actors::source::Body;
use event_persister_actors::store::Cutoffs;
use event_persister_actors::store::audit::{Audit, Strays};
use event_persister_actors::trim::cutoffs;

use self::reconciliation::{Held, Kind, MAX_SUSPECTS, Reconciliation, Wanted};
use self::report::{Report, Stream};
use crate::config::Config;
use crate::wiring::{self, BusAudit};

mod reconciliation;
mod report;

/// From the last look to the second one. Prefect's own persister acknowledges what it may write only
/// 5 s later; our own transactions are over long before.
const SECOND_LOOK_AFTER: Duration = Duration::from_secs(6);

/// Events or entries in one question to the database.
const AT_ONCE: usize = 500;

/// Clocks differ: what retention is about to remove may be gone already.
const CLOCKS_DIFFER_BY: TimeDelta = TimeDelta::minutes(1);

/// What to look at, beside the configuration, and how much to show.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wishes {
    /// How far back the tables are looked at; all of them if not set.
    pub(crate) since: Option<Duration>,
    /// Findings that are shown.
    pub(crate) limit: usize,
    pub(crate) json: bool,
}

/// Verifies; whether all is well.
pub(crate) async fn run(config: &Config, wishes: Wishes) -> anyhow::Result<bool> {
    let since = wishes.since.map(moment_before_now).transpose()?;
    let bus = wiring::bus_audit(config)?;
    let mut verification = Verification {
        config,
        tables: wiring::audit(config)?,
        state: Reconciliation::new(wishes.limit),
    };
    let misplaced = match &bus {
        Some(bus) => verification.look_at_stream(bus).await?,
        None => None,
    };
    let num_events = verification.look_at_tables(since).await?;
    verification.look_again().await?;
    let letters = verification.tables.count_letters(wishes.limit).await;
    let report = Report {
        since,
        stream: bus.as_ref().map(|bus| Stream {
            stream: bus.stream(),
            group: bus.group(),
            misplaced: misplaced.as_deref(),
        }),
        num_events,
        letters: letters.context("cannot count the dead letters")?,
        state: &verification.state,
    };
    report.print(wishes.json)?;
    Ok(report.all_is_well())
}

fn moment_before_now(span: Duration) -> anyhow::Result<DateTime<Utc>> {
    TimeDelta::from_std(span)
        .ok()
        .and_then(|span| SystemClock.now().checked_sub_signed(span))
        .context("--since reaches back beyond all time; make it shorter")
}

struct Verification<'a> {
    config: &'a Config,
    tables: Arc<dyn Audit>,
    state: Reconciliation,
}

impl Verification<'_> {
    /// Looks up every entry that the group has acknowledged; what is wrong with its position, if
    /// anything.
    async fn look_at_stream(&mut self, bus: &BusAudit) -> anyhow::Result<Option<String>> {
        let mut walk = bus.walk().await.context("cannot read the stream")?;
        while let Some(page) = walk.next_page().await.context("cannot read the stream")? {
            self.state.stream.pending += page.num_pending;
            let wanted = self.wanted(page.acknowledged);
            for wanted in wanted.chunks(AT_ONCE) {
                let held = self.look_up(wanted).await?;
                let cutoffs = self.cutoffs()?;
                for wanted in wanted {
                    self.state.judge(wanted.clone(), &held, &cutoffs);
                }
            }
            if self.state.is_full() {
                self.look_again().await?;
            }
        }
        self.state.stream.unread = walk.num_unread();
        Ok(walk.misplaced().map(str::to_owned))
    }

    /// What the entries must have become, parsed as they were when they were taken.
    fn wanted(&mut self, acknowledged: Vec<Body>) -> Vec<Wanted> {
        let limits = wiring::event_limits(self.config);
        let source: Arc<str> = Arc::from(wiring::BUS_NAME);
        let received = Received::FromText {
            default: SystemClock.now(),
        };
        let mut wanted = Vec::with_capacity(acknowledged.len());
        for body in acknowledged {
            match body {
                Body::Raw { data, .. } if data.is_empty() => self.state.ignore(),
                Body::Raw { position, data } => {
                    let source = Arc::clone(&source);
                    let entry = Entry::parse(source, position, data, &limits, received);
                    wanted.push(Wanted::of(&entry));
                }
                Body::Entry(entry) => wanted.push(Wanted::of(&entry)),
            }
        }
        wanted
    }

    /// Before which moment events may be gone, at this moment.
    fn cutoffs(&self) -> anyhow::Result<Cutoffs> {
        let now = SystemClock.now() + CLOCKS_DIFFER_BY;
        Ok(cutoffs(&wiring::trim_settings(self.config), now)?)
    }

    async fn look_up(&self, wanted: &[Wanted]) -> anyhow::Result<Held> {
        let event_ids = wanted.iter().filter_map(|wanted| wanted.event_id.clone());
        let positions = wanted.iter().map(|wanted| wanted.stream_id.clone());
        let rows = self.tables.look_up(event_ids.collect()).await;
        let rows = rows.context("cannot look events up")?;
        let letters = (self.tables).letters_at(wiring::BUS_NAME, positions.collect());
        let letters = letters.await.context("cannot look dead letters up")?;
        Ok(Held::new(rows, letters))
    }

    /// Looks at the tables themselves; how many events were looked at.
    async fn look_at_tables(&mut self, since: Option<DateTime<Utc>>) -> anyhow::Result<u64> {
        const WHAT: &str = "cannot look through the tables";
        let tables = Arc::clone(&self.tables);
        let (mut num_events, mut cursor) = (0, None);
        loop {
            let page = tables.walk(since, cursor.as_ref()).await.context(WHAT)?;
            num_events += page.num_events;
            self.suspect(page.suspects).await?;
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        let limit = NonZeroUsize::MIN.saturating_add(MAX_SUSPECTS - 1);
        let orphans = tables.orphans(since, limit).await.context(WHAT)?;
        self.suspect_strays(orphans, Kind::HalfWritten).await?;
        let repeated = tables.repeated(since, limit).await.context(WHAT)?;
        self.suspect_strays(repeated, Kind::Doubled).await?;
        Ok(num_events)
    }

    async fn suspect_strays(&mut self, strays: Strays, kind: Kind) -> anyhow::Result<()> {
        let num_named = strays.event_ids.len() as u64;
        self.state
            .count(kind, strays.total.saturating_sub(num_named));
        self.suspect(strays.event_ids).await
    }

    async fn suspect(&mut self, event_ids: Vec<String>) -> anyhow::Result<()> {
        for event_id in event_ids {
            self.state.suspect(event_id);
        }
        if self.state.is_full() {
            self.look_again().await?;
        }
        Ok(())
    }

    /// The second look at all suspects, if there are any.
    async fn look_again(&mut self) -> anyhow::Result<()> {
        let suspects = self.state.take_suspects();
        if suspects.missing.is_empty() && suspects.flawed.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(SECOND_LOOK_AFTER).await;
        for missing in suspects.missing.chunks(AT_ONCE) {
            let held = self.look_up(missing).await?;
            let cutoffs = self.cutoffs()?;
            for wanted in missing {
                self.state.settle_missing(wanted.clone(), &held, &cutoffs);
            }
        }
        for flawed in suspects.flawed.chunks(AT_ONCE) {
            let event_ids = flawed.iter().map(|(event_id, _)| event_id.clone());
            let rows = self.tables.look_up(event_ids.collect()).await;
            let held = Held::new(rows.context("cannot look events up")?, Vec::new());
            for flawed in flawed {
                self.state.settle_flawed(flawed.clone(), &held);
            }
        }
        Ok(())
    }
}
