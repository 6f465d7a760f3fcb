//! `dead-letters purge`: letters that nobody needs any more are removed.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context as _, bail};
use event_persister_actors::store::DeadLetters;
use serde_json::json;

use super::Meant;
use crate::output;

/// Removes the letters; whether that was allowed.
pub(super) async fn run(
    letters: &dyn DeadLetters,
    meant: &Meant,
    yes: bool,
    json: bool,
) -> anyhow::Result<bool> {
    let is_allowed = yes || meant.num_letters == 0 || ask(meant.num_letters).await?;
    let num_removed = if is_allowed {
        let removed = letters.remove(&meant.filter, meant.before).await;
        removed.context("cannot remove the dead letters")?
    } else {
        0
    };
    if json {
        output::json(&json!({ "matching": meant.num_letters, "removed": num_removed }))?;
    } else {
        output::line(&format!("removed {}", num_letters(num_removed)))?;
    }
    Ok(is_allowed)
}

/// Asks whoever sits at the terminal; the question goes where results do not.
async fn ask(num: u64) -> anyhow::Result<bool> {
    let would = format!("this would remove {} for good", num_letters(num));
    if !io::stdin().is_terminal() {
        bail!("{would}; nothing was removed: to do so without being asked, give --yes");
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

fn num_letters(num: u64) -> String {
    match num {
        1 => "1 dead letter".to_owned(),
        num => format!("{num} dead letters"),
    }
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
