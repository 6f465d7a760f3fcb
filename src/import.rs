//! Events from a file or standard input, through the same pipeline as the service's.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use event_persister_actors::metrics::LedgerCounts;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::config::Config;
use crate::finite_run::{End, FiniteRun};
use crate::output;
use crate::signals::Signals;
use crate::wiring::{self, FileProgress};

const AGAIN: &str = "import the file again, events that are stored are recognised";

/// Imports; whether all of it arrived as events.
pub(crate) async fn run(
    config: &Config,
    screen: &MultiProgress,
    path: &Path,
    json: bool,
) -> anyhow::Result<bool> {
    let mut signals = Signals::listen()?;
    let input = Input::open(path)?;
    let bar = screen.add(progress_bar(input.num_bytes));
    let source = wiring::file_source(input.reader, input.name.clone())?;
    let import = Import {
        name: input.name,
        progress: source.progress(),
        run: FiniteRun::start(config, source, AGAIN)?,
        bar,
    };
    let look = |ledger: &LedgerCounts| import.look(ledger);
    let end = import.run.to_end(&mut signals, look).await?;
    import.bar.finish_and_clear();
    let summary = Summary::new(&import.run.ledger(), import.run.elapsed());
    if json {
        output::json(&summary)?;
    } else {
        output::line(&summary.to_line())?;
    }
    import.judge(&end, &summary)
}

struct Input {
    reader: Box<dyn Read + Send>,
    name: String,
    /// Where that is known.
    num_bytes: Option<u64>,
}

impl Input {
    fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self {
                reader: Box::new(io::stdin()),
                name: "stdin".to_owned(),
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
            name,
            // A pipe or a device has a length of zero and is longer than that.
            num_bytes: metadata.is_file().then_some(metadata.len()),
        })
    }
}

/// Drawn on standard error, and only if that is a terminal.
fn progress_bar(num_bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match num_bytes {
        Some(num_bytes) => (
            ProgressBar::new(num_bytes),
            "{wide_bar} {bytes}/{total_bytes} {msg} {eta}",
        ),
        None => (
            ProgressBar::no_length(),
            "{spinner} {bytes} {msg} {elapsed}",
        ),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        // A plainer bar is no reason to stop.
        Err(_) => bar,
    }
}

struct Import {
    name: String,
    run: FiniteRun,
    progress: Arc<FileProgress>,
    bar: ProgressBar,
}

impl Import {
    /// Moves the bar; says why the file cannot be read further, once all that was read of it is in the
    /// pipeline.
    fn look(&self, ledger: &LedgerCounts) -> Option<String> {
        self.bar.set_position(self.progress.num_bytes());
        self.bar.set_message(format!(
            "{} events, {} dead letters, {}/s",
            ledger.stored + ledger.duplicates,
            ledger.dead_lettered,
            rate(ledger, self.run.elapsed())
        ));
        let failure = self.progress.failure()?;
        (ledger.received >= self.progress.num_lines()).then_some(failure)
    }

    fn judge(&self, end: &End, summary: &Summary) -> anyhow::Result<bool> {
        match end {
            End::Failed(failure) => bail!("{failure}"),
            End::Interrupted(stop, drained) if drained.released > 0 => bail!(
                "stopped by {stop} after line {} of {} (blank lines not counted), and {} of the lines before \
                 could not be written in time; import it again, events that are stored are \
                 recognised",
                summary.read,
                self.name,
                drained.released
            ),
            End::Interrupted(stop, _) => bail!(
                "stopped by {stop}; {} is written up to line {} (blank lines not counted); import it again \
                 for the rest, events that are stored are recognised",
                self.name,
                summary.read
            ),
            End::Finished if summary.dead_letters > 0 => {
                log::warn!(
                    "some lines are no events, or the database refused them; \
                     `event-persister dead-letters list` shows why lines={}",
                    summary.dead_letters
                );
                Ok(false)
            }
            End::Finished => Ok(true),
        }
    }
}

fn rate(ledger: &LedgerCounts, elapsed: Duration) -> u64 {
    let durable = ledger.stored + ledger.duplicates + ledger.dead_lettered + ledger.ignored;
    let millis = u64::try_from(elapsed.as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    durable.saturating_mul(1000) / millis
}

/// What is told at the end.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Summary {
    read: u64,
    stored: u64,
    duplicates: u64,
    dead_letters: u64,
    released: u64,
    events_per_second: u64,
}

impl Summary {
    fn new(ledger: &LedgerCounts, elapsed: Duration) -> Self {
        Self {
            read: ledger.received,
            stored: ledger.stored,
            duplicates: ledger.duplicates,
            dead_letters: ledger.dead_lettered,
            released: ledger.released,
            events_per_second: rate(ledger, elapsed),
        }
    }

    fn to_line(&self) -> String {
        format!(
            "read {}, stored {}, duplicates {}, dead letters {}, {} events/s",
            self.read, self.stored, self.duplicates, self.dead_letters, self.events_per_second
        )
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
        let summary = Summary::new(&ledger, Duration::from_millis(500));
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
