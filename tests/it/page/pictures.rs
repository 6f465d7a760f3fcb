//! The pictures of the README, from events that really were: `.assets/screenshots.sh` makes them.

use std::io::Read as _;

use crate::support::browser::setting;

use super::*;

/// The span that the captured events are laid out over: a little less than the page shows at first.
const SPAN: f64 = 57.0 * 60.0;
/// So many come while somebody looks, so that rates are seen.
const NUM_LIVE: usize = 600;

/// The events of the file that `TEST_EVENTS` names, one JSON text a line, perhaps compressed; the oldest first.
fn captured() -> Vec<Value> {
    let path = setting("TEST_EVENTS").expect("TEST_EVENTS names a file of events");
    let bytes = std::fs::read(&path).unwrap();
    let mut text = String::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        flate2::read::GzDecoder::new(&*bytes)
            .read_to_string(&mut text)
            .unwrap();
    } else {
        text = String::from_utf8(bytes).unwrap();
    }
    let lines = text.split('\n').filter(|line| !line.is_empty());
    let events = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut events: Vec<_> = events
        .filter_map(|event| {
            let occurred = event["occurred"]
                .as_str()?
                .parse::<chrono::DateTime<chrono::Utc>>();
            Some((occurred.ok()?, event))
        })
        .collect();
    events.sort_by_key(|(occurred, _)| *occurred);
    // Without those that a test of the capture had occur long before or after.
    let num = events.len();
    let burst: Vec<_> = events
        .into_iter()
        .skip(num / 6)
        .take(num * 4 / 5 - num / 6)
        .collect();
    let (first, last) = (burst[0].0, burst[burst.len() - 1].0);
    let width = (last - first).as_seconds_f64().max(1.0);
    let now = SystemClock.now();
    let laid_out = burst.into_iter().map(|(occurred, mut event)| {
        let share = (occurred - first).as_seconds_f64() / width;
        let ago = chrono::TimeDelta::milliseconds(((1.0 - share) * SPAN * 1e3) as i64);
        event["occurred"] = json!(now - ago);
        event["id"] = json!(Uuid::new_v4());
        event
    });
    laid_out.collect()
}

#[tokio::test]
#[ignore = "makes the README's pictures; see .assets/screenshots.sh"]
async fn of_the_readme() {
    let Some(page) = Page::of(&[]).await else {
        panic!("pictures need a browser");
    };
    let browser = &page.browser;
    let mut events = captured();
    let live = events.split_off(events.len() - NUM_LIVE);
    for events in events.chunks(100) {
        page.send(events).await;
    }
    page.folder
        .write("orders.jsonl", "{\"event\": \"order.sent\"}\nno event\n");
    page.folder.run(&["import", "orders.jsonl"]).exits(1);
    browser.resize(1280, 760).await;
    page.open("").await;
    browser.until(ROWS).await;
    // As on a desktop, where the system has a font of its own.
    let font =
        "document.documentElement.style.setProperty('--sans', 'Inter, system-ui, sans-serif')";
    browser.script(font).await;
    let come = async |live: &[Value]| {
        for events in live.chunks(4) {
            let mut events = events.to_vec();
            for event in &mut events {
                event["occurred"] = json!(SystemClock.now());
            }
            page.send(&events).await;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    };
    let (first, rest) = live.split_at(NUM_LIVE - 60);
    come(first).await;
    browser.picture("readme-events").await;
    browser.prefers("dark").await;
    let failed = "[...document.querySelectorAll('.sizer .row')].find((row) => row.querySelector('.res-name').textContent)";
    browser.script(&format!("{failed}.click()")).await;
    browser
        .until("document.querySelector('.json, .detail-body p.soft')")
        .await;
    come(rest).await;
    browser
        .script("document.querySelectorAll('.detail h3')[1].scrollIntoView()")
        .await;
    browser.picture("readme-event").await;
}
