//! `dead-letters replay`: letters go through the pipeline once more.

use std::sync::Arc;

use anyhow::bail;
use event_persister_actors::metrics::LedgerCounts;
use event_persister_actors::store::operator::StoreOperator;
use indicatif::{MultiProgress, ProgressBar};
use serde::Serialize;

use super::Meant;
use crate::config::Config;
use crate::finite_run::{Destination, End, FiniteRun, Words};
use crate::output;
use crate::signals::Signals;
use crate::wiring::{self, Missing};

const AGAIN: &str = "run replay again: it removes the letters whose events are stored";

pub(super) async fn run(
    config: &Config,
    screen: &MultiProgress,
    letters: Arc<dyn StoreOperator>,
    meant: Meant,
    json: bool,
) -> anyhow::Result<bool> {
    // With nothing to replay nothing is made either.
    let (end, summary) = match meant.count(&*letters).await? {
        0 => (End::Finished, Summary::default()),
        num_letters => replay(config, screen, letters, meant, num_letters).await?,
    };
    if json {
        output::json(&summary)?;
    } else {
        output::table(&Summary::HEADER, &[summary.row()])?;
    }
    judge(&end, &summary)
}

async fn replay(
    config: &Config,
    screen: &MultiProgress,
    letters: Arc<dyn StoreOperator>,
    meant: Meant,
    num_letters: u64,
) -> anyhow::Result<(End, Summary)> {
    let mut signals = Signals::listen()?;
    let bar = screen.add(ProgressBar::new(num_letters));
    let source = wiring::letter_source(&config.events, letters, meant.filter, meant.before);
    let destination = Destination {
        open_store: wiring::open_store(config, Missing::Create),
        event_limits: config.events.clone(),
        words: Words {
            again: AGAIN,
            place: "the database",
        },
    };
    let run = FiniteRun::start(config, source, destination, None)?;
    let show = |ledger: &LedgerCounts| {
        bar.set_position(ledger.stored + ledger.duplicates + ledger.dead_lettered);
        None
    };
    let end = run.to_end(&mut signals, show).await?;
    bar.finish_and_clear();
    Ok((end, Summary::new(&run.ledger())))
}

fn judge(end: &End, summary: &Summary) -> anyhow::Result<bool> {
    match end {
        End::Failed(failure) => bail!("{failure}"),
        // Not with unlimited patience.
        End::GaveUp(_, error) => bail!("{error}; {AGAIN}"),
        End::Interrupted(stop, _) => {
            bail!("stopped by {stop}; the letters that were not stored by then are kept; {AGAIN}")
        }
        End::Finished if summary.still_refused > 0 => {
            log::warn!(
                "some letters were refused again; `event-persister dead-letters list` shows why \
                 letters={}",
                summary.still_refused
            );
            Ok(false)
        }
        End::Finished => Ok(true),
    }
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Summary {
    replayed: u64,
    stored: u64,
    /// Their events had been there already.
    duplicates: u64,
    still_refused: u64,
}

impl Summary {
    const HEADER: [&str; 4] = ["REPLAYED", "STORED", "DUPLICATES", "STILL REFUSED"];

    fn new(ledger: &LedgerCounts) -> Self {
        Self {
            replayed: ledger.stored + ledger.duplicates + ledger.dead_lettered,
            stored: ledger.stored,
            duplicates: ledger.duplicates,
            still_refused: ledger.dead_lettered,
        }
    }

    fn row(&self) -> Vec<String> {
        [
            self.replayed,
            self.stored,
            self.duplicates,
            self.still_refused,
        ]
        .map(|count| count.to_string())
        .into()
    }
}
