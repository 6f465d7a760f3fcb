//! `dead-letters list`: one line a letter.

use std::num::NonZeroUsize;

use anyhow::Context as _;
use event_persister_actors::store::operator::{DeadLetter, LetterFilter, StoreOperator};

use crate::output;

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

pub(super) async fn run(
    letters: &dyn StoreOperator,
    filter: &LetterFilter,
    before: Option<i64>,
    limit: NonZeroUsize,
    json: bool,
) -> anyhow::Result<()> {
    let listed = letters
        .list_letters(filter, before, limit)
        .await
        .context("cannot list the dead letters")?;
    if json {
        return output::json(&listed);
    }
    output::line(&page(&listed, limit))
}

pub(crate) fn page(listed: &[DeadLetter], limit: NonZeroUsize) -> String {
    let Some(last) = listed.last() else {
        return "no dead letters".to_owned();
    };
    let rows: Vec<Vec<String>> = listed.iter().map(row).collect();
    let mut page = output::format_table(&HEADER, &rows);
    if listed.len() == limit.get() {
        page.push_str(&format!("\nthere may be more: --before {}", last.id));
    }
    page
}

fn row(letter: &DeadLetter) -> Vec<String> {
    vec![
        letter.id.to_string(),
        output::time(letter.last_seen),
        output::one_line(&letter.position),
        letter.stage.as_str().to_owned(),
        output::one_line(letter.sqlstate.as_deref().unwrap_or("-")),
        letter.attempts.to_string(),
        letter.num_bytes.to_string(),
        output::one_line(&letter.reason),
    ]
}
