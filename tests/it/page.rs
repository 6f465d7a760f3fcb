//! The page in a real browser: looked at, searched, followed, and attacked.

use std::time::Duration;

use event_persister_actors::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};
use uuid::Uuid;

use super::support::binary::Folder;
use super::support::browser::Browser;
use super::support::server::Server;

mod letters;
mod looking;
mod pictures;
mod safety;
mod shape;

/// What comes in has to be seen within this time.
const SOON: Duration = Duration::from_secs(2);

/// A service, and a browser that can look at it.
struct Page {
    browser: Browser,
    server: Server,
    folder: Folder,
}

impl Page {
    /// `None` where there is no browser; see [`Browser::start`].
    async fn of(settings: &[(&str, &str)]) -> Option<Self> {
        let browser = Browser::start().await?;
        let folder = Folder::new();
        let server = Server::start(&folder, settings).ready().await;
        Some(Self {
            browser,
            server,
            folder,
        })
    }

    /// The same with so many events in it, and opened.
    async fn with_events(num: usize) -> Option<Self> {
        let page = Self::of(&[]).await?;
        page.send(&orders(num)).await;
        page.open("").await;
        page.browser.until(ROWS).await;
        page.browser.until(LIVE).await;
        Some(page)
    }

    async fn open(&self, place: &str) {
        self.browser
            .open(&self.server.url(&format!("/{place}")))
            .await;
    }

    async fn send(&self, events: &[Value]) {
        let body = json!(events).to_string();
        assert_eq!(self.server.post_status(body).await, 204);
    }

    /// Nothing went wrong that nobody sees, nobody else was asked, and nothing has jumped.
    async fn is_calm(&self) {
        self.is_safe().await;
        let shift = self.browser.value("window.noted.shift").await;
        let shift = shift.as_f64().unwrap();
        assert!(shift < 0.05, "what is seen has jumped by {shift}");
    }

    /// The same, but that something may have come in between.
    async fn is_safe(&self) {
        let noted = self.browser.value("window.noted").await;
        assert_eq!(noted["errors"], json!([]));
        assert_eq!(noted["violations"], json!([]));
        let ours = self.server.address();
        for url in self.browser.requests().await {
            let (scheme, rest) = url.split_once(':').unwrap();
            let at = rest.trim_start_matches('/').split('/').next().unwrap();
            // Others than these go nowhere.
            let is_sent = ["http", "https", "ws", "wss", "ftp"].contains(&scheme);
            assert!(!is_sent || at == ours, "it asked for {url}");
        }
    }
}

/// What comes from now on is told.
const LIVE: &str = "document.querySelector('#live').dataset.state === 'open'";

/// There is a row with an event in it.
const ROWS: &str = "document.querySelector('.sizer .row:not([data-blank]) .leaf')?.textContent";

/// The events that are seen, from top to bottom: the last part of each name.
const SEEN: &str = "[...document.querySelectorAll('.sizer .row:not([data-blank])')] \
    .sort((a, b) => a.ariaRowIndex - b.ariaRowIndex).map((row) => row.querySelector('.event').textContent)";

fn event(name: &str, resource: &str, seconds_ago: i64) -> Value {
    json!({
        "id": Uuid::new_v4(),
        "occurred": SystemClock.now() - chrono::TimeDelta::seconds(seconds_ago),
        "event": name,
        "resource": { "prefect.resource.id": resource, "customer": "Ada" },
        "related": [{ "prefect.resource.id": "shop.3", "prefect.resource.role": "shop" }],
        "payload": { "items": 2, "lines": [{ "sku": "A-1", "price": 9.5 }, { "sku": "B-2", "price": null }] },
    })
}

/// What a shop does, over the last three quarters of an hour.
fn orders(num: usize) -> Vec<Value> {
    const NAMES: [&str; 7] = [
        "order.placed",
        "order.paid",
        "order.placed",
        "order.packed",
        "order.payment.failed",
        "order.sent",
        "shop.stock.low",
    ];
    let made = (0..num).map(|number| {
        let name = NAMES[number % NAMES.len()];
        // A wave rather than a wall.
        let ago = 30 + (number * number * 7 + number * 13) % 2_600;
        event(name, &format!("order.{}", number % 40), ago as i64)
    });
    made.collect()
}
