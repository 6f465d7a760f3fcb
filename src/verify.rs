//! Compares the stream with the tables and the dead letters, and the tables with themselves.
//!
//! A page of the stream is read before the database: its acknowledged entries were committed by then. The
//! rows of an event are those of any of its copies in the stream. So a second look at all that seems wrong
//! also reads the stream again.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, TimeDelta, Utc};
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::delivery::Entry;
use event_persister_actors::source::Body;
use event_persister_actors::store::operator::{Compared, StoreOperator, Strays};

use self::reconciliation::{Copies, FoundRows, Kind, MAX_SUSPECTS, Reconciliation, Wanted};
use self::report::{Report, Stream};
use crate::cli::VerifyFlags;
use crate::comparing;
use crate::config::Config;
use crate::wiring::{self, BusOperator, Missing};

mod reconciliation;
mod report;

/// Before the second look: Prefect's own persister may write an event 5 s after it acknowledged it.
const SECOND_LOOK_AFTER: Duration = Duration::from_secs(6);

/// A build for tests can be told that nobody writes, and then need not wait.
fn second_look_after() -> Duration {
    #[cfg(feature = "failpoints")]
    fail::fail_point!("verify::nobody-writes", |_| Duration::ZERO);
    SECOND_LOOK_AFTER
}

/// Events or entries in one question to the database.
const AT_ONCE: usize = 500;

const NO_STREAM: &str = "cannot read the stream";

pub(crate) async fn run(config: &Config, flags: VerifyFlags) -> anyhow::Result<bool> {
    let since = flags.since.map(moment_before_now).transpose()?;
    let bus = wiring::bus_operator(config)?;
    let mut verification = Verification {
        config,
        bus: bus.as_deref(),
        tables: wiring::operator(config, Missing::Ignore),
        state: Reconciliation::new(flags.limit),
    };
    let walked = verification.look_at_stream().await?;
    let num_events = verification.look_at_tables(since).await?;
    verification.look_again().await?;
    let first_missing = verification.state.first_missing.as_deref();
    let read_again = bus.as_deref().zip(first_missing);
    let read_again = read_again.and_then(|(bus, first)| bus.read_again(first));
    let letters = verification.tables.count_curable_letters(flags.limit).await;
    let report = Report {
        server: wiring::server_asked(config),
        since,
        stream: bus.as_deref().map(|bus| Stream {
            stream: bus.stream(),
            group: bus.group(),
            misplaced: walked.misplaced.as_deref(),
            shows_nothing: walked.shows_nothing,
            read_again,
        }),
        num_events,
        letters: letters.context("cannot count the dead letters")?,
        state: &verification.state,
    };
    report.print(flags.output.json)?;
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
    bus: Option<&'a dyn BusOperator>,
    tables: Arc<dyn StoreOperator>,
    state: Reconciliation,
}

/// What is to be said of the stream as a whole.
#[derive(Default)]
struct Walked {
    misplaced: Option<String>,
    shows_nothing: Option<&'static str>,
}

impl Verification<'_> {
    async fn look_at_stream(&mut self) -> anyhow::Result<Walked> {
        let Some(bus) = self.bus else {
            return Ok(Walked::default());
        };
        let mut walk = bus.walk().await.context(NO_STREAM)?;
        while let Some(page) = walk.next_page().await.context(NO_STREAM)? {
            self.state.stream.pending += page.pending.len() as u64;
            let entries = self.entries(&page.acknowledged);
            self.state.ignore(page.acknowledged.len() - entries.len());
            for entries in entries.chunks(AT_ONCE) {
                self.look_at_entries(entries).await?;
            }
            if self.state.is_full() {
                self.look_again().await?;
            }
        }
        self.state.stream.unread = walk.num_unread();
        Ok(Walked {
            misplaced: walk.misplaced().map(str::to_owned),
            shows_nothing: walk.shows_nothing(),
        })
    }

    async fn look_at_entries(&mut self, entries: &[Arc<Entry>]) -> anyhow::Result<()> {
        let compared = self.compare(entries).await?;
        let mut wanted = Vec::new();
        for (entry, compared) in entries.iter().zip(compared) {
            match compared {
                Compared::Identical => self.state.is_stored(),
                compared => wanted.push(Wanted::of(entry, compared)),
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let found = self.look_up(&wanted).await?;
        let cutoffs = comparing::cutoffs(self.config)?;
        for wanted in wanted {
            self.state.judge(wanted, &found, &cutoffs);
        }
        Ok(())
    }

    /// What Prefect itself would have written is as good as what we would.
    async fn compare(&self, entries: &[Arc<Entry>]) -> anyhow::Result<Vec<Compared>> {
        const WHAT: &str = "cannot compare entries with the tables";
        let mut compared = self.tables.compare(entries).await.context(WHAT)?;
        let is_rounded = |compared: &Compared| match compared {
            Compared::Differing(columns) => columns.iter().any(|column| column == "payload"),
            _ => false,
        };
        let rounded = entries.iter().zip(&compared);
        let rounded: Vec<Arc<Entry>> = rounded
            .filter(|(_, compared)| is_rounded(compared))
            .map(|(entry, _)| Arc::clone(entry))
            .collect();
        if !rounded.is_empty() {
            let again = self.tables.compare_as_prefect(&rounded).await;
            let differing = compared.iter_mut().filter(|compared| is_rounded(compared));
            for (compared, again) in differing.zip(again.context(WHAT)?) {
                *compared = again;
            }
        }
        Ok(compared)
    }

    /// The source's name in dead letters.
    fn source(&self) -> &'static str {
        self.bus.map_or("", |bus| bus.name())
    }

    fn entries(&self, messages: &[Body]) -> Vec<Arc<Entry>> {
        let messages = messages.iter().filter(|body| !comparing::is_empty(body));
        messages
            .map(|body| comparing::entry(self.source(), body, &self.config.events))
            .collect()
    }

    async fn look_up(&self, wanted: &[Wanted]) -> anyhow::Result<FoundRows> {
        let event_ids = wanted.iter().filter_map(|wanted| wanted.event_id.clone());
        let positions = wanted.iter().map(|wanted| wanted.stream_id.clone());
        let rows = self.tables.look_up(event_ids.collect()).await;
        let rows = rows.context("cannot look events up")?;
        let letters = self.tables.letters_at(self.source(), positions.collect());
        let letters = letters.await.context("cannot look dead letters up")?;
        Ok(FoundRows::new(rows, letters))
    }

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

    async fn look_again(&mut self) -> anyhow::Result<()> {
        // An event that was missing at the first look and is there at the second has not been compared yet.
        while self.state.has_suspects() {
            let suspects = self.state.take_suspects();
            tokio::time::sleep(second_look_after()).await;
            for missing in suspects.missing.chunks(AT_ONCE) {
                let found = self.look_up(missing).await?;
                let cutoffs = comparing::cutoffs(self.config)?;
                for wanted in missing {
                    self.state.settle_missing(wanted.clone(), &found, &cutoffs);
                }
            }
            let mut flawed = suspects.flawed;
            let copies = self.look_for_copies(Copies::of(&flawed)).await?;
            for flawed in &mut flawed {
                flawed.compared(&copies);
            }
            for flawed in flawed.chunks(AT_ONCE) {
                let event_ids = flawed.iter().map(|flawed| flawed.event_id.clone());
                let rows = self.tables.look_up(event_ids.collect()).await;
                let found = FoundRows::new(rows.context("cannot look events up")?, Vec::new());
                for flawed in flawed {
                    self.state.settle_flawed(flawed, &found);
                }
            }
        }
        Ok(())
    }

    async fn look_for_copies(&mut self, mut copies: Copies) -> anyhow::Result<Copies> {
        let (Some(bus), false) = (self.bus, copies.is_empty()) else {
            return Ok(copies);
        };
        let mut walk = bus.walk().await.context(NO_STREAM)?;
        while let Some(page) = walk.next_page().await.context(NO_STREAM)? {
            let mut entries = self.entries(&page.acknowledged);
            entries.extend(self.entries(&page.pending));
            entries.retain(|entry| copies.are_about(entry));
            for entries in entries.chunks(AT_ONCE) {
                let compared = self.compare(entries).await?;
                for (entry, compared) in entries.iter().zip(compared) {
                    copies.learn(entry, compared);
                }
            }
        }
        Ok(copies)
    }
}
