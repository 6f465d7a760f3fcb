//! Events from a file or standard input, through the same pipeline as the service's.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use event_persister_actors::metrics::LedgerCounts;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::time::Instant;

use crate::cli::{Command, ImportFlags};
use crate::config::Config;
use crate::finite_run::{Destination, End, FiniteRun, Words};
use crate::output;
use crate::signals::Signals;
use crate::wiring::{self, FileProgress, Missing};

mod compressed;

use compressed::Unpacked;

const STORING: Words = Words {
    again: "import the file again: events that are stored count as duplicates",
    place: "the database",
};
const PUBLISHING: Words = Words {
    again: "import the file again: an event that is published twice is stored once",
    place: "the bus",
};
const NO_BUS: &str = "no bus is configured: give its address as --to nats://… or --to redis://…";

/// How often a log says how far it is, where nobody sees a bar.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// A bus that is to be published to must be known.
pub(crate) fn validate(command: &Command, config: &Config) -> anyhow::Result<()> {
    match command {
        Command::Import(flags) if flags.to.is_some() && !config.has_bus() => bail!("{NO_BUS}"),
        _ => Ok(()),
    }
}

pub(crate) async fn run(
    config: &Config,
    screen: &MultiProgress,
    flags: &ImportFlags,
) -> anyhow::Result<bool> {
    let input = Input::open(&flags.file)?;
    let (open_store, words) = match flags.to {
        None => (wiring::open_store(config, Missing::Create), STORING),
        Some(_) => (wiring::open_publisher(config)?, PUBLISHING),
    };
    let destination = Destination {
        open_store,
        event_limits: config.events.clone(),
        words,
    };
    let how = How {
        publishes: flags.to.is_some(),
        wait: flags.wait,
        json: flags.output.json,
    };
    run_on(config, screen, input, destination, how).await
}

/// How an input is written.
pub(crate) struct How {
    /// To a bus, instead of storing.
    pub(crate) publishes: bool,
    /// For how long the destination may be away; `None` for ever.
    pub(crate) wait: Option<Duration>,
    pub(crate) json: bool,
}

/// Writes the events of an input; whether it held nothing else.
pub(crate) async fn run_on(
    config: &Config,
    screen: &MultiProgress,
    input: Input,
    destination: Destination,
    how: How,
) -> anyhow::Result<bool> {
    let mut signals = Signals::listen()?;
    let bar = screen.add(progress_bar(input.num_bytes));
    let unpacked = Unpacked::new(input.reader);
    let num_raw = unpacked.num_raw();
    let source = wiring::file_source(Box::new(unpacked), input.position)?;
    let import = Import {
        name: input.name,
        publishes: how.publishes,
        words: destination.words,
        progress: source.progress(),
        num_raw,
        run: FiniteRun::start(config, source, destination, how.wait)?,
        bar,
        told: Cell::new(Instant::now()),
    };
    let look = |ledger: &LedgerCounts| import.look(ledger);
    let end = import.run.to_end(&mut signals, look).await?;
    import.bar.finish_and_clear();
    let summary = Summary::new(
        &import.run.ledger(),
        import.run.older_than_retention(),
        import.run.elapsed(),
    );
    if how.json {
        output::json(&summary)?;
    } else {
        output::line(&import.line(&summary))?;
    }
    if let Some(warning) = summary.warning().filter(|_| !import.publishes) {
        log::warn!("{warning}");
    }
    import.judge(&end, &summary)
}

/// Events to be read, and what to say of them.
pub(crate) struct Input {
    pub(crate) reader: Box<dyn Read + Send>,
    pub(crate) name: String,
    /// The same by whatever path the file is named: a dead letter is known by its position.
    pub(crate) position: String,
    pub(crate) num_bytes: Option<u64>,
}

impl Input {
    fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self {
                reader: Box::new(io::stdin()),
                name: "stdin".to_owned(),
                position: "stdin".to_owned(),
                num_bytes: None,
            });
        }
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
        let metadata = file
            .metadata()
            .with_context(|| format!("cannot look at {name}"))?;
        if metadata.is_dir() {
            bail!("{name} is a directory; name a file with one event a line");
        }
        Ok(Self {
            reader: Box::new(file),
            position: canonical(path, metadata.is_file()),
            name,
            // A pipe or a device has a length of zero and is longer than that.
            num_bytes: metadata.is_file().then_some(metadata.len()),
        })
    }
}

/// A pipe has no path of its own.
fn canonical(path: &Path, is_file: bool) -> String {
    let canonical = is_file.then(|| std::fs::canonicalize(path).ok()).flatten();
    canonical.as_deref().unwrap_or(path).display().to_string()
}

/// Drawn on standard error, and only if that is a terminal.
fn progress_bar(num_bytes: Option<u64>) -> ProgressBar {
    let template = match num_bytes {
        Some(_) => "{wide_bar} {bytes}/{total_bytes} {msg} {eta}",
        None => "{spinner} {bytes} {msg} {elapsed}",
    };
    let bar = num_bytes.map_or_else(ProgressBar::no_length, ProgressBar::new);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        // A plainer bar is no reason to stop.
        Err(_) => bar,
    }
}

struct Import {
    name: String,
    /// To a bus, instead of storing.
    publishes: bool,
    words: Words,
    run: FiniteRun,
    progress: Arc<FileProgress>,
    /// Bytes of the file, before they are decompressed.
    num_raw: Arc<AtomicU64>,
    bar: ProgressBar,
    told: Cell<Instant>,
}

impl Import {
    fn line(&self, summary: &Summary) -> String {
        match self.publishes {
            true => summary.to_line_of_published(),
            false => summary.to_line(),
        }
    }

    /// Shows progress. Returns why the file cannot be read further, once all lines before are received.
    fn look(&self, ledger: &LedgerCounts) -> Option<String> {
        self.bar.set_position(self.num_raw.load(Ordering::Relaxed));
        self.bar.set_message(format!(
            "{} events, {} dead letters, {}/s",
            ledger.stored + ledger.duplicates,
            ledger.dead_lettered,
            rate(ledger, self.run.elapsed())
        ));
        if self.bar.is_hidden() && self.told.get().elapsed() >= TELL_EVERY {
            self.told.set(Instant::now());
            let summary = Summary::new(ledger, 0, self.run.elapsed());
            log::info!("importing {}: {}", self.name, self.line(&summary));
        }
        let failure = self.progress.failure()?;
        (ledger.received >= self.progress.num_lines()).then_some(failure)
    }

    fn judge(&self, end: &End, summary: &Summary) -> anyhow::Result<bool> {
        let Words { again, place } = self.words;
        match end {
            End::Failed(failure) => bail!("{failure}"),
            End::GaveUp(waited, error) => bail!(
                "gave up after {} without {place}: {error}. Of {} {} written; {again}",
                humantime::format_duration(*waited),
                self.name,
                match summary.stored + summary.duplicates {
                    0 => "nothing is".to_owned(),
                    num => are(num, "event"),
                }
            ),
            End::Interrupted(stop, drained) if drained.released > 0 => bail!(
                "stopped by {stop} after {} of {}, of which {} could not be written in time; {again}",
                output::counted(summary.read, "event"),
                self.name,
                drained.released
            ),
            End::Interrupted(stop, _) if summary.read == 0 => bail!(
                "stopped by {stop} before anything of {} was read; {again}",
                self.name
            ),
            End::Interrupted(stop, _) => bail!(
                "stopped by {stop} after {} of {}, all of which are written; for the rest, {again}",
                output::counted(summary.read, "event"),
                self.name
            ),
            End::Finished if summary.dead_letters > 0 && self.publishes => {
                log::warn!(
                    "{} no event, or refused by the bus, and not published",
                    are(summary.dead_letters, "message")
                );
                Ok(false)
            }
            End::Finished if summary.dead_letters > 0 => {
                log::warn!(
                    "{} no event or refused by the database; `event-persister dead-letters list` shows \
                     why",
                    are(summary.dead_letters, "message")
                );
                Ok(false)
            }
            End::Finished => Ok(true),
        }
    }
}

fn are(num: u64, what: &str) -> String {
    let verb = if num == 1 { "is" } else { "are" };
    format!("{} {verb}", output::counted(num, what))
}

fn rate(ledger: &LedgerCounts, elapsed: Duration) -> u64 {
    let durable = ledger.stored + ledger.duplicates + ledger.dead_lettered + ledger.ignored;
    let millis = u64::try_from(elapsed.as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    durable.saturating_mul(1000) / millis
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Summary {
    read: u64,
    stored: u64,
    duplicates: u64,
    dead_letters: u64,
    older_than_retention: u64,
    released: u64,
    events_per_second: u64,
}

impl Summary {
    fn new(ledger: &LedgerCounts, older_than_retention: u64, elapsed: Duration) -> Self {
        Self {
            read: ledger.received,
            stored: ledger.stored,
            duplicates: ledger.duplicates,
            dead_letters: ledger.dead_lettered,
            older_than_retention,
            released: ledger.released,
            events_per_second: rate(ledger, elapsed),
        }
    }

    fn to_line(&self) -> String {
        let older = match self.older_than_retention {
            0 => String::new(),
            num => format!("older than retention {num}, "),
        };
        format!(
            "read {}, stored {}, duplicates {}, dead letters {}, {older}{} events/s",
            self.read, self.stored, self.duplicates, self.dead_letters, self.events_per_second
        )
    }

    /// The same where they went to a bus.
    fn to_line_of_published(&self) -> String {
        format!(
            "read {}, published {}, refused {}, {} events/s",
            self.read, self.stored, self.dead_letters, self.events_per_second
        )
    }

    /// Where events will not stay.
    fn warning(&self) -> Option<String> {
        let has_any = self.stored + self.duplicates > 0;
        (has_any && self.older_than_retention > 0).then(|| {
            format!(
                "{} older than retention keeps; a service deletes such events with its next pass. Keep \
                 them longer with trim.retention (EVENT_PERSISTER_TRIM_RETENTION=365d), or for ever with \
                 trim.every = \"off\"",
                are(self.older_than_retention, "event")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_one_line() {
        let ledger = LedgerCounts {
            received: 3126,
            stored: 3000,
            duplicates: 120,
            dead_lettered: 6,
            ..LedgerCounts::default()
        };
        let summary = Summary::new(&ledger, 0, Duration::from_millis(500));
        assert_eq!(
            summary.to_line(),
            "read 3126, stored 3000, duplicates 120, dead letters 6, 6252 events/s"
        );
    }

    #[test]
    fn nothing_in_no_time_is_no_division_by_zero() {
        assert_eq!(rate(&LedgerCounts::default(), Duration::ZERO), 0);
    }
}
