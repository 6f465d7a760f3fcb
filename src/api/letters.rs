//! Dead letters by HTTP: listed, shown, replayed, purged.

use std::num::NonZeroUsize;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use event_persister_actors::store::StoreError;
use event_persister_actors::store::operator::{
    DeadLetter, LetterFilter, LetterVersion, StoreOperator,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Shared, fresh, refuse};
use crate::dead_letters::PAGE;

/// The most letters of one answer.
const MAX_PAGE: usize = 1_000;
/// Of a message so much is shown.
const SHOWN_BYTES: usize = 64 * 1024;

#[derive(Deserialize)]
pub(super) struct Listed {
    limit: Option<usize>,
    before: Option<i64>,
}

pub(super) async fn list(request: HttpRequest, shared: web::Data<Shared>) -> HttpResponse {
    if let Some(refused) = shared.refuse_reader(&request) {
        return refused;
    }
    let Ok(asked) = web::Query::<Listed>::from_query(request.query_string()) else {
        let reason = "give `limit`, a number, and `before`, the id of a letter";
        return refuse(StatusCode::UNPROCESSABLE_ENTITY, reason);
    };
    let limit = asked.limit.unwrap_or(50).clamp(1, MAX_PAGE);
    // One more tells whether there are more.
    let limit_and_one = NonZeroUsize::MIN.saturating_add(limit);
    let all = LetterFilter::default();
    let listed = shared
        .letters
        .list_letters(&all, asked.before, limit_and_one)
        .await;
    let counted = shared.letters.count_letters(&all, None).await;
    let (mut letters, total) = match (listed, counted) {
        (Ok(letters), Ok(total)) => (letters, total),
        (Err(error), _) | (_, Err(error)) => return unavailable(&error),
    };
    let has_more = letters.len() > limit;
    letters.truncate(limit);
    let next = letters
        .last()
        .filter(|_| has_more)
        .map(|letter| letter.id.to_string());
    let letters: Vec<_> = letters.iter().map(shown).collect();
    fresh(&json!({ "letters": letters, "total": total, "next": next }))
}

pub(super) async fn show(
    request: HttpRequest,
    id: web::Path<i64>,
    shared: web::Data<Shared>,
) -> HttpResponse {
    if let Some(refused) = shared.refuse_reader(&request) {
        return refused;
    }
    let (letter, beginning) = match shared.letters.peek_letter(*id, SHOWN_BYTES).await {
        Ok(Some(letter)) => letter,
        Ok(None) => return refuse(StatusCode::NOT_FOUND, "there is no such letter any more"),
        Err(error) => return unavailable(&error),
    };
    let mut answer = shown(&letter);
    let is_cut = letter.num_bytes > beginning.len() as u64;
    answer["message"] = message(&beginning, is_cut);
    fresh(&answer)
}

/// Which letters are meant: these, or all up to one that was seen.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Meant {
    ids: Option<Vec<String>>,
    through: Option<String>,
}

impl Meant {
    /// `None` if it names no letters.
    fn find(&self) -> Option<(LetterFilter, Option<i64>)> {
        let number = |id: &String| id.parse::<i64>().ok();
        let (ids, before) = match (&self.ids, &self.through) {
            (Some(ids), None) => (Some(ids.iter().map(number).collect::<Option<_>>()?), None),
            (None, Some(through)) => (None, Some(number(through)?.saturating_add(1))),
            _ => return None,
        };
        let filter = LetterFilter {
            ids,
            ..LetterFilter::default()
        };
        Some((filter, before))
    }
}

fn names_no_letters() -> HttpResponse {
    let reason = "give `ids`, a list of letters' ids, or `through`, the newest that is meant";
    refuse(StatusCode::UNPROCESSABLE_ENTITY, reason)
}

pub(super) async fn replay(
    request: HttpRequest,
    meant: web::Json<Meant>,
    shared: web::Data<Shared>,
) -> HttpResponse {
    if let Some(refused) = shared.refuse_writer(&request) {
        return refused;
    }
    let Some((filter, before)) = meant.find() else {
        return names_no_letters();
    };
    match shared.replays.replay(filter, before).await {
        Ok(ledger) => fresh(&json!({
            "replayed": ledger.stored + ledger.duplicates + ledger.dead_lettered,
            "stored": ledger.stored,
            "duplicates": ledger.duplicates,
            "still_refused": ledger.dead_lettered,
        })),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

pub(super) async fn purge(
    request: HttpRequest,
    meant: web::Json<Meant>,
    shared: web::Data<Shared>,
) -> HttpResponse {
    if let Some(refused) = shared.refuse_writer(&request) {
        return refused;
    }
    let Some((filter, before)) = meant.find() else {
        return names_no_letters();
    };
    match remove(&*shared.letters, &filter, before).await {
        Ok(num_removed) => fresh(&json!({ "purged": num_removed })),
        Err(error) => unavailable(&error),
    }
}

/// Removes the letters as they are now, page by page.
async fn remove(
    letters: &dyn StoreOperator,
    filter: &LetterFilter,
    mut before: Option<i64>,
) -> Result<u64, StoreError> {
    let mut num_removed = 0;
    loop {
        let page = letters.list_letters(filter, before, PAGE).await?;
        let Some(last) = page.last() else {
            return Ok(num_removed);
        };
        before = Some(last.id);
        let versions = page.iter().map(|letter| LetterVersion {
            id: letter.id,
            attempts: letter.attempts,
        });
        let versions: Vec<_> = versions.collect();
        num_removed += letters.remove_letters(&versions).await?;
    }
}

/// A browser's numbers do not hold every id.
fn shown(letter: &DeadLetter) -> Value {
    json!({
        "id": letter.id.to_string(),
        "source": letter.source,
        "position": letter.position,
        "event_id": letter.event_id,
        "stage": letter.stage,
        "code": letter.sqlstate,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "first_seen": letter.first_seen,
        "last_seen": letter.last_seen,
        "bytes": letter.num_bytes,
    })
}

/// The beginning of a message. Bytes that are no text are written as `\x00`.
fn message(beginning: &[u8], is_cut: bool) -> Value {
    let is_text = match std::str::from_utf8(beginning) {
        Ok(_) => true,
        // A character that was cut says nothing.
        Err(error) => is_cut && error.error_len().is_none(),
    };
    let mut text = String::new();
    for chunk in beginning.utf8_chunks() {
        text.push_str(chunk.valid());
        if !is_text {
            chunk
                .invalid()
                .iter()
                .for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
        }
    }
    json!({ "text": text, "is_text": is_text, "is_cut": is_cut })
}

fn unavailable(error: &StoreError) -> HttpResponse {
    refuse(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_shown_whatever_it_holds() {
        assert_eq!(
            message(b"{}", false),
            json!({ "text": "{}", "is_text": true, "is_cut": false })
        );
        assert_eq!(
            message(b"a\xff\x00b", false),
            json!({ "text": "a\\xff\u{0}b", "is_text": false, "is_cut": false })
        );
        let half = &"é".as_bytes()[..1];
        assert_eq!(
            message(&[b"a", half].concat(), true),
            json!({ "text": "a", "is_text": true, "is_cut": true })
        );
        assert_eq!(message(half, false)["text"], "\\xc3");
    }
}
