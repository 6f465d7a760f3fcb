//! The command `dead-letters`: one file for each of its commands.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use anyhow::{Context as _, bail};
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::store::operator::{LetterFilter, LetterVersion, StoreOperator};
use indicatif::MultiProgress;

use crate::cli::{DeadLettersCommand, LetterFlags, Letters};
use crate::config::Config;
use crate::wiring::{self, Missing};

mod list;
mod purge;
mod replay;
mod show;

// For the tests that play odd letters.
#[cfg(test)]
pub(crate) use {list::page, show::describe};

/// Letters that are read, or removed in one transaction, at a time.
pub(crate) const PAGE: NonZeroUsize = NonZeroUsize::new(1_000).unwrap();

/// Runs one of the commands; whether it did all that it was asked.
pub(crate) async fn run(
    config: &Config,
    screen: &MultiProgress,
    command: &DeadLettersCommand,
) -> anyhow::Result<bool> {
    let letters = wiring::operator(config, Missing::Ignore);
    match command {
        DeadLettersCommand::List {
            limit,
            before,
            filter,
            output,
        } => {
            let filter = filter_of(filter);
            list::run(&*letters, &filter, *before, *limit, output.json).await?;
        }
        DeadLettersCommand::Show { id, raw, output } => {
            show::run(&*letters, *id, *raw, output.json).await?;
        }
        DeadLettersCommand::Replay {
            letters: meant,
            output,
        } => {
            let meant = Meant::find(&*letters, meant).await?;
            return replay::run(config, screen, letters, meant, output.json).await;
        }
        DeadLettersCommand::Purge {
            letters: meant,
            yes,
            output,
        } => {
            let meant = Meant::find(&*letters, meant).await?;
            let shown = meant.versions(&*letters).await?;
            return purge::run(&*letters, &shown, *yes, output.json).await;
        }
    }
    Ok(true)
}

fn filter_of(flags: &LetterFlags) -> LetterFilter {
    let now = SystemClock.now();
    LetterFilter {
        ids: None,
        source: flags.source.clone(),
        stage: flags.stage,
        reason: flags.reason.clone(),
        code: flags.code.clone(),
        since: flags.since.map(|since| since.at(now)),
        until: flags.until.map(|until| until.at(now)),
    }
}

/// The letters that something is to be done to, as they were found.
struct Meant {
    filter: LetterFilter,
    /// Larger ids came later, and are not meant.
    before: Option<i64>,
}

impl Meant {
    /// Fails, naming them, if there are ids that no letter has.
    async fn find(letters: &dyn StoreOperator, meant: &Letters) -> anyhow::Result<Self> {
        let mut filter = filter_of(&meant.filter);
        if !meant.ids.is_empty() {
            filter.ids = Some(meant.ids.clone());
            all_are_there(letters, &filter, &meant.ids).await?;
        }
        let newest = letters.list_letters(&filter, None, NonZeroUsize::MIN).await;
        let newest = newest.context("cannot look for the dead letters")?;
        let before = newest.first().map(|letter| letter.id.saturating_add(1));
        Ok(Self { filter, before })
    }

    async fn count(&self, letters: &dyn StoreOperator) -> anyhow::Result<u64> {
        let count = letters.count_letters(&self.filter, self.before).await;
        count.context("cannot count the dead letters")
    }

    /// Each of them as it is now.
    async fn versions(&self, letters: &dyn StoreOperator) -> anyhow::Result<Vec<LetterVersion>> {
        let mut versions: Vec<LetterVersion> = Vec::new();
        loop {
            let before = versions.last().map(|last| last.id).or(self.before);
            let page = letters.list_letters(&self.filter, before, PAGE).await;
            let page = page.context("cannot look for the dead letters")?;
            if page.is_empty() {
                return Ok(versions);
            }
            versions.extend(page.iter().map(|letter| LetterVersion {
                id: letter.id,
                attempts: letter.attempts,
            }));
        }
    }
}

async fn all_are_there(
    letters: &dyn StoreOperator,
    filter: &LetterFilter,
    ids: &[i64],
) -> anyhow::Result<()> {
    let limit = NonZeroUsize::new(ids.len()).unwrap_or(NonZeroUsize::MIN);
    let found = letters.list_letters(filter, None, limit).await;
    let found = found.context("cannot look for the dead letters")?;
    let found: BTreeSet<_> = found.iter().map(|letter| letter.id).collect();
    let missing: BTreeSet<_> = ids.iter().filter(|id| !found.contains(id)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<_> = missing.into_iter().map(ToString::to_string).collect();
    bail!(
        "there is no dead letter {}, and nothing was done; `event-persister dead-letters list` shows \
         which there are",
        missing.join(", ")
    );
}
