//! `dead-letters purge`: letters that nobody needs any more are removed.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context as _, bail};
use event_persister_actors::store::operator::{LetterVersion, StoreOperator};
use serde_json::json;

use super::PAGE;
use crate::output;

/// Removes the letters that have not come again since they were looked at; whether that was allowed.
pub(super) async fn run(
    letters: &dyn StoreOperator,
    shown: &[LetterVersion],
    yes: bool,
    json: bool,
) -> anyhow::Result<bool> {
    let matching = shown.len() as u64;
    let is_allowed = yes || matching == 0 || ask(matching).await?;
    let mut num_removed = 0;
    if is_allowed {
        for page in shown.chunks(PAGE.get()) {
            let removed = letters.remove_letters(page).await;
            num_removed += removed.context("cannot remove the dead letters")?;
        }
    }
    if json {
        output::json(&json!({ "matching": matching, "removed": num_removed }))?;
    } else {
        output::line(&format!(
            "removed {}",
            output::counted(num_removed, "dead letter")
        ))?;
    }
    Ok(is_allowed)
}

/// Asks the person at the terminal; the question goes where results do not.
async fn ask(num: u64) -> anyhow::Result<bool> {
    let would = format!(
        "this would remove {} for good",
        output::counted(num, "dead letter")
    );
    if !io::stdin().is_terminal() {
        bail!("{would}; nothing was removed. Give --yes to remove them without a question");
    }
    // A signal must be able to end the process while nobody answers.
    let asked = actix_rt::task::spawn_blocking(move || {
        write!(io::stderr(), "{would}; go on? [y/N] ")?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        io::Result::Ok(is_yes(&answer))
    });
    asked.await?.context("cannot ask whether to go on")
}

fn is_yes(answer: &str) -> bool {
    ["y", "yes"].contains(&answer.trim().to_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        assert!(["y\n", "Y", " yes\r\n"].into_iter().all(is_yes));
        assert!(
            ["", "\n", "n\n", "yesterday\n"]
                .into_iter()
                .all(|answer| !is_yes(answer))
        );
    }
}
