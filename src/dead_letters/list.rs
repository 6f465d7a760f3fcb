//! `dead-letters list`: one line a letter.

use std::num::NonZeroUsize;

use anyhow::Context as _;
use event_persister_actors::store::{DeadLetter, DeadLetters, LetterFilter};

use super::time;
use crate::output;

/// Which letters are listed.
pub(super) struct Page {
    pub(super) filter: LetterFilter,
    pub(super) before: Option<i64>,
    pub(super) limit: NonZeroUsize,
}

const HEADER: [&str; 8] = [
    "ID",
    "LAST SEEN",
    "POSITION",
    "STAGE",
    "CODE",
    "ATTEMPTS",
    "BYTES",
    "REASON",
];

pub(super) async fn run(letters: &dyn DeadLetters, page: &Page, json: bool) -> anyhow::Result<()> {
    let listed = letters
        .list(&page.filter, page.before, page.limit)
        .await
        .context("cannot list the dead letters")?;
    if json {
        return output::json(&listed);
    }
    if listed.is_empty() {
        return output::line("no dead letters");
    }
    let rows: Vec<Vec<String>> = listed.iter().map(row).collect();
    output::table(&HEADER, &rows)?;
    match listed.last() {
        Some(last) if listed.len() == page.limit.get() => {
            output::line(&format!("there may be more: --before {}", last.id))
        }
        _ => Ok(()),
    }
}

fn row(letter: &DeadLetter) -> Vec<String> {
    vec![
        letter.id.to_string(),
        time(letter.last_seen),
        output::one_line(&letter.position),
        letter.stage.as_str().to_owned(),
        letter.sqlstate.clone().unwrap_or_else(|| "-".to_owned()),
        letter.attempts.to_string(),
        letter.num_bytes.to_string(),
        output::one_line(&letter.reason),
    ]
}
