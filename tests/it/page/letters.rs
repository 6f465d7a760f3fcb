//! Dead letters: looked at, tried again, thrown away.

use super::*;

const LETTERS: &str = "document.querySelectorAll('.letters tbody .reason').length";

/// Three that are no events, and one whose name was too long for the rules of that time.
fn refused(folder: &Folder) {
    let long = event("too.long.a.name", "order.1", 5);
    let lines = format!("{{}}\nno event\n{long}\n{{\"event\": 7}}\n");
    folder.write("letters.jsonl", lines);
    let short = ("EVENT_PERSISTER_EVENTS_MAX_EVENT_NAME_LENGTH", "5");
    folder
        .run_with(&["import", "letters.jsonl"], &[short])
        .exits(1);
}

#[tokio::test]
async fn letters_that_cannot_be_read_are_not_said_to_be_none() {
    let Some(page) = Page::with_events(1).await else {
        return;
    };
    let browser = &page.browser;
    browser.until(&says("nothing was refused")).await;
    let rename = "ALTER TABLE event_persister_dead_letters RENAME COLUMN reason TO other";
    page.server.database().execute(rename);
    browser.until(&says("not known now")).await;
    let badge = browser.text("#letters-badge").await;
    assert_eq!(badge, "–");
}

/// Whether the way of the events says so of dead letters.
fn says(words: &str) -> String {
    format!("document.querySelector('#flow-letters').innerText.includes('{words}')")
}

#[tokio::test]
async fn letters_are_replayed_and_purged_behind_a_question() {
    let Some(page) = Page::with_events(10).await else {
        return;
    };
    let browser = &page.browser;
    refused(&page.folder);
    browser
        .until("document.querySelector('#letters-badge').textContent === '4'")
        .await;
    browser.click("#tab-letters").await;
    browser.until(&format!("{LETTERS} === 4")).await;
    browser.picture("letters").await;
    browser.click(".letters tbody .reason").await;
    browser
        .until("document.querySelector('.payload pre')")
        .await;
    assert!(browser.text(".payload pre").await.contains("\"event\": 7"));
    browser.picture("letter-opened").await;

    // The way out has the focus, and leaves all as it is.
    let ask = async |button: &str, words: &str| {
        browser.click(button).await;
        browser
            .until(&format!(
                "document.querySelector('dialog[open] h2')?.innerText.includes('{words}')"
            ))
            .await;
        let focus = browser.value("document.activeElement.innerText").await;
        assert_eq!(focus, "Cancel");
    };
    ask(".toolbar .primary", "Replay all 4").await;
    browser.picture("question").await;
    browser.click("dialog button[value=no]").await;
    browser.until("!document.querySelector('dialog')").await;
    assert_eq!(page.folder.dead_letters().len(), 4);

    ask(".toolbar .primary", "Replay all 4").await;
    browser.click("dialog button[value=yes]").await;
    browser.until(&format!("{LETTERS} === 3")).await;
    browser
        .until("document.querySelector('#toast').innerText.startsWith('1 stored')")
        .await;
    assert_eq!(page.server.database().num_events(), 11);

    // One that is chosen, then all.
    browser.click(".letters tbody input").await;
    ask(".toolbar .danger", "Purge 1").await;
    browser.click("dialog button[value=yes]").await;
    browser.until(&format!("{LETTERS} === 2")).await;
    assert_eq!(page.folder.dead_letters().len(), 2);
    ask(".toolbar .danger", "Purge all 2").await;
    browser.click("dialog button[value=yes]").await;
    browser.until(&format!("{LETTERS} === 0")).await;
    browser
        .until("document.querySelector('#view-letters').innerText.includes('No dead letters')")
        .await;
    assert_eq!(page.folder.dead_letters().len(), 0);
    browser
        .until("document.querySelector('#letters-badge').textContent === '0'")
        .await;
    browser.picture("no-letters").await;
    page.is_calm().await;
}
