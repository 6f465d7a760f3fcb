//! What it looks like: at first, with nothing in it, broken, in the dark, on a phone, to a screen reader.

use std::process::Command;

use crate::support::browser::{left_out, setting};

use super::*;

#[tokio::test]
async fn the_first_paint_waits_for_nothing_but_the_page() {
    let Some(page) = Page::of(&[]).await else {
        return;
    };
    let browser = &page.browser;
    browser.develop("Network.enable", json!({})).await;
    let all_else = json!({ "urls": ["*/page/*", "*/api/*"] });
    browser.develop("Network.setBlockedURLs", all_else).await;
    page.open("").await;
    browser
        .until("performance.getEntriesByName('first-contentful-paint').length")
        .await;
    let style = "[getComputedStyle(document.querySelector('.bar')).display, document.querySelector('.flow').offsetHeight >= 100]";
    assert_eq!(browser.value(style).await, json!(["flex", true]));
    browser.picture("first-paint").await;
    // Nothing is where it was not a moment later.
    let places = "['.bar', '.flow', '#filters', '.over-time', '#events'].map((part) => \
        Math.round(document.querySelector(part).getBoundingClientRect().top))";
    let before = browser.value(places).await;
    browser
        .develop("Network.setBlockedURLs", json!({ "urls": [] }))
        .await;
    page.send(&orders(50)).await;
    page.open("").await;
    browser.until(ROWS).await;
    assert_eq!(browser.value(places).await, before);
    page.is_calm().await;
}

#[tokio::test]
async fn an_empty_database_says_how_to_send_the_first_event() {
    let Some(page) = Page::of(&[]).await else {
        return;
    };
    let browser = &page.browser;
    page.open("").await;
    browser
        .until("document.querySelector('.snippet code')")
        .await;
    browser.picture("empty").await;
    let command = browser.text(".snippet code").await;
    let readme = include_str!("../../../README.md");
    let of_readme = readme
        .split("curl -i http://127.0.0.1:4280")
        .nth(1)
        .unwrap();
    let of_readme = of_readme.split("}]'").next().unwrap();
    let of_page = command.strip_prefix("curl -i ").unwrap();
    let of_page = of_page.strip_prefix(&page.server.url("")).unwrap();
    assert_eq!(of_page.strip_suffix("}]'").unwrap(), of_readme);
    browser.until(LIVE).await;
    let ran = Command::new("sh").args(["-c", &command]).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(said.contains("204 No Content"), "{ran:?}");
    let took = browser
        .until(&format!("{SEEN}[0] === 'order.placed'"))
        .await;
    assert!(took < SOON, "{took:?}");
    assert_eq!(
        browser.value("document.querySelector('.empty')").await,
        Value::Null
    );
    browser.picture("first-event").await;
    page.is_calm().await;
}

#[tokio::test]
async fn a_broken_one_says_what_readiness_says() {
    let Some(page) = Page::with_events(20).await else {
        return;
    };
    let browser = &page.browser;
    let lock = page.server.database().lock();
    let waiting = json!([event("order.late", "order.1", 0)]).to_string();
    let waiting = tokio::spawn(page.server.post(waiting).send());
    let ready = page.server.until_ready_is(503).await;
    let reason = ready["reason"].as_str().unwrap();
    let (why, _) = reason.split_once(':').unwrap();
    let notice = "document.querySelector('#notices').innerText";
    browser
        .until(&format!("{notice}.includes({})", json!(why)))
        .await;
    // It changes while it lasts; what the page says is what readiness says at that moment.
    let said = async || browser.value(notice).await.as_str().unwrap().to_owned();
    let started = tokio::time::Instant::now();
    loop {
        let (_, ready) = page.server.readiness().await;
        if said().await.contains(ready["reason"].as_str().unwrap()) {
            break;
        }
        assert!(
            started.elapsed() < crate::support::wait::PATIENCE,
            "{} {ready}",
            said().await
        );
    }
    assert_eq!(browser.text("#state-text").await, "Not ready");
    browser.picture("broken").await;
    page.open("#service").await;
    browser
        .until("document.querySelector('.card[data-state=failing]')")
        .await;
    browser.picture("broken-service").await;
    page.open("#events").await;
    lock.release();
    assert_eq!(waiting.await.unwrap().unwrap().status(), 204);
    browser
        .until("document.querySelector('#state-text').innerText === 'Ready'")
        .await;
    browser
        .until(&format!("!{notice} && {SEEN}[0] === 'order.late'"))
        .await;
    page.is_safe().await;
}

#[tokio::test]
async fn a_service_that_is_gone_is_told_and_found_again() {
    let Some(page) = Page::with_events(20).await else {
        return;
    };
    let browser = &page.browser;
    let listen = page.server.address().to_owned();
    page.server.terminate().in_good_order();
    browser
        .until("document.querySelector('#state').dataset.state === 'lost' && document.querySelector('.flow[data-stale]')")
        .await;
    browser.picture("connection-lost").await;
    let again = [("EVENT_PERSISTER_LISTEN", &*listen)];
    let server = Server::start(&page.folder, &again).ready().await;
    assert_eq!(server.address(), listen);
    // Before the page follows it again.
    let sent = json!([event("order.meanwhile", "order.1", 0)]).to_string();
    assert_eq!(server.post_status(sent).await, 204);
    browser
        .until("document.querySelector('#state').dataset.state === 'ready'")
        .await;
    browser
        .until(&format!("{SEEN}[0] === 'order.meanwhile'"))
        .await;
    browser.until(LIVE).await;
    let sent = json!([event("order.again", "order.1", 0)]).to_string();
    assert_eq!(server.post_status(sent).await, 204);
    browser.until(&format!("{SEEN}[0] === 'order.again'")).await;
}

#[tokio::test]
async fn it_is_dark_where_the_system_is_or_somebody_says_so() {
    let Some(page) = Page::with_events(120).await else {
        return;
    };
    let browser = &page.browser;
    let dark =
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((part) => part < 60)";
    assert_eq!(browser.value(dark).await, false);
    browser.prefers("dark").await;
    browser.until(dark).await;
    browser.click(".sizer .row:not([data-blank])").await;
    browser.until("document.querySelector('.json')").await;
    browser.picture("dark").await;
    browser.click("#theme").await;
    browser.until(&format!("!({dark})")).await;
    // It is kept, and there before anything is painted.
    page.open("").await;
    browser.until(ROWS).await;
    assert_eq!(browser.value(dark).await, false);
    browser.click("#theme").await;
    browser.until(dark).await;
    browser.click("#tab-service").await;
    browser.until("document.querySelector('.card')").await;
    browser.picture("dark-service").await;
    page.is_calm().await;
}

#[tokio::test]
async fn a_screen_of_360_pixels_is_wide_enough() {
    let Some(page) = Page::of(&[]).await else {
        return;
    };
    let browser = &page.browser;
    let fits = async |what: &str| {
        let width = "[innerWidth, document.documentElement.scrollWidth, document.body.scrollWidth, scrollX]";
        assert_eq!(
            browser.value(width).await,
            json!([360, 360, 360, 0]),
            "{what}"
        );
        browser.picture(&format!("narrow-{what}")).await;
    };
    browser.resize(360, 740).await;
    page.open("").await;
    browser
        .until("document.querySelector('.snippet code')")
        .await;
    fits("empty").await;
    page.send(&orders(90)).await;
    page.folder.write("letters.jsonl", "{}\nno event at all\n");
    page.folder.run(&["import", "letters.jsonl"]).exits(1);
    page.open("").await;
    browser.until(ROWS).await;
    browser
        .until("document.querySelector('#letters-badge').textContent === '2'")
        .await;
    fits("events").await;
    browser.click("#more").await;
    browser
        .until("document.querySelector('#f-label').checkVisibility()")
        .await;
    fits("filters").await;
    browser.click(".sizer .row:not([data-blank])").await;
    browser.until("document.querySelector('.json')").await;
    fits("opened").await;
    browser.click("#detail [aria-label=Close]").await;
    browser.click("#tab-letters").await;
    browser
        .until("document.querySelectorAll('.reason').length === 2")
        .await;
    fits("letters").await;
    browser.click(".reason").await;
    browser
        .until("document.querySelector('.payload pre')")
        .await;
    fits("letter-opened").await;
    browser.click("#tab-service").await;
    browser.until("document.querySelector('.card')").await;
    fits("service").await;
    browser.keys("?").await;
    browser
        .until("document.querySelector('dialog[open]')")
        .await;
    fits("keys").await;
}

/// Judges a page by the rules for people who do not see, hear or move as others do.
async fn is_accessible(page: &Page, axe: &str, what: &str) {
    // It is run from outside, and asked for nothing by the page: its policy does not hold for it.
    page.browser
        .script(&format!("if (!window.axe) {{ {axe} }}"))
        .await;
    let found = page
        .browser
        .script("return axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations)")
        .await;
    let told: Vec<_> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let nodes = one["nodes"].as_array().unwrap().iter();
            let nodes: Vec<_> = nodes.map(|node| node["html"].clone()).collect();
            format!("{} {}: {} {nodes:?}", one["impact"], one["id"], one["help"])
        })
        .collect();
    assert!(told.is_empty(), "{what}: {}", told.join("\n"));
}

#[tokio::test]
async fn axe_finds_nothing_wrong() {
    let Some(path) = setting("TEST_AXE") else {
        left_out("TEST_AXE names no axe.min.js (tests/run.sh fetches it)");
        return;
    };
    let axe = std::fs::read_to_string(path).unwrap();
    let Some(page) = Page::of(&[]).await else {
        return;
    };
    let browser = &page.browser;
    for theme in ["light", "dark"] {
        browser.prefers(theme).await;
        page.open("").await;
        if theme == "light" {
            browser.until("document.querySelector('.snippet')").await;
            is_accessible(&page, &axe, "empty").await;
            page.send(&orders(90)).await;
            page.folder.write("letters.jsonl", "{}\nno event\n");
            page.folder.run(&["import", "letters.jsonl"]).exits(1);
        }
        browser.until(ROWS).await;
        browser
            .until("document.querySelector('.names button')")
            .await;
        is_accessible(&page, &axe, &format!("{theme} events")).await;
        browser.click(".sizer .row:not([data-blank])").await;
        browser.until("document.querySelector('.json')").await;
        is_accessible(&page, &axe, &format!("{theme} opened")).await;
        browser.click("#tab-letters").await;
        browser
            .until("document.querySelectorAll('.reason').length === 2")
            .await;
        browser.click(".reason").await;
        browser
            .until("document.querySelector('.payload pre')")
            .await;
        is_accessible(&page, &axe, &format!("{theme} letters")).await;
        browser.click(".toolbar .danger").await;
        browser
            .until("document.querySelector('dialog[open]')")
            .await;
        is_accessible(&page, &axe, &format!("{theme} question")).await;
        browser.click("dialog button[value=no]").await;
        browser.click("#tab-service").await;
        browser.until("document.querySelector('.card')").await;
        is_accessible(&page, &axe, &format!("{theme} service")).await;
        browser.resize(360, 740).await;
        browser.click("#tab-events").await;
        browser.until(ROWS).await;
        is_accessible(&page, &axe, &format!("{theme} narrow")).await;
        browser.resize(1280, 800).await;
    }
}
