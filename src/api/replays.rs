//! Replays that are asked for by HTTP: one at a time, each a pipeline of its own beside the service's, into the same
//! stores.

use std::sync::Arc;
use std::time::Duration;

use actix::Actor as _;
use anyhow::{Context as _, anyhow, bail};
use event_persister_actors::messages::{Drain, Finish};
use event_persister_actors::metrics::{LedgerCounts, Metrics};
use event_persister_actors::pipeline::PipelineActor;
use event_persister_actors::store::OpenStore;
use event_persister_actors::store::operator::{LetterFilter, StoreOperator};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::config::Config;
use crate::wiring;

/// How long one may take. The letters that it has not come to by then stay, and another one takes them up.
const LONGEST: Duration = Duration::from_secs(300);
/// Messages that it holds when it is given up are not waited for.
const NOT_WAITED_FOR: Duration = Duration::from_millis(200);

/// Asks for replays from any thread.
#[derive(Clone)]
pub(crate) struct Replays(mpsc::Sender<Asked>);

struct Asked {
    filter: LetterFilter,
    before: Option<i64>,
    done: oneshot::Sender<anyhow::Result<LedgerCounts>>,
}

impl Replays {
    /// Makes them on this thread, which must be an arbiter's.
    pub(crate) fn start(
        config: &Config,
        letters: Arc<dyn StoreOperator>,
        open_store: OpenStore,
    ) -> Self {
        let (sender, mut asked) = mpsc::channel::<Asked>(1);
        let settings = wiring::finite_settings(config);
        let limits = config.events.clone();
        actix_rt::spawn(async move {
            while let Some(Asked {
                filter,
                before,
                done,
            }) = asked.recv().await
            {
                let letters = Arc::clone(&letters);
                let source = wiring::letter_source(&limits, letters, filter, before);
                let made = wiring::parts_of(&limits, source, Arc::clone(&open_store));
                let replayed = match made {
                    Ok((parts, metrics)) => {
                        run(PipelineActor::new(settings.clone(), parts), &metrics).await
                    }
                    Err(error) => Err(error),
                };
                // The client may have gone.
                drop(done.send(replayed));
            }
        });
        Self(sender)
    }

    /// Replays these letters, and says what became of them.
    pub(crate) async fn replay(
        &self,
        filter: LetterFilter,
        before: Option<i64>,
    ) -> anyhow::Result<LedgerCounts> {
        let (done, replayed) = oneshot::channel();
        let asked = Asked {
            filter,
            before,
            done,
        };
        self.0
            .try_send(asked)
            .map_err(|_| anyhow!("a replay is at work; ask again when it is done"))?;
        replayed.await.context("the replay was given up")?
    }
}

async fn run(pipeline: PipelineActor, metrics: &Metrics) -> anyhow::Result<LedgerCounts> {
    let pipeline = pipeline.start();
    let finished = timeout(LONGEST, pipeline.send(Finish)).await;
    let gone = "the replay stopped by itself";
    if let Ok(finished) = finished {
        finished.context(gone)?;
        return Ok(metrics.ledger());
    }
    let drain = Drain {
        timeout: NOT_WAITED_FOR,
    };
    pipeline.send(drain).await.context(gone)?;
    let ledger = metrics.ledger();
    bail!(
        "the replay took longer than {} s and was given up; {} letters are stored, the others are kept",
        LONGEST.as_secs(),
        ledger.stored + ledger.duplicates
    )
}
