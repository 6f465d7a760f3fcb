//! To watch, to search, to open: by mouse and by keys.

use crate::support::browser::{DOWN, ENTER, ESCAPE, LEFT, SHIFT, TAB};

use super::*;

const TOTAL: &str = "Number(document.querySelector('.total').textContent.replace(/\\D/g, ''))";

#[tokio::test]
async fn an_event_that_is_sent_is_seen_soon_and_without_a_reload() {
    let Some(page) = Page::with_events(120).await else {
        return;
    };
    let browser = &page.browser;
    browser.until(&format!("{TOTAL} === 120")).await;
    browser.script("window.sameDocument = true").await;
    page.send(&[event("order.refunded", "order.17", 0)]).await;
    let first = format!("{SEEN}[0] === 'order.refunded'");
    let took = browser.until(&first).await;
    assert!(took < SOON, "{took:?}");
    // The bars and the way of the events tell of it as well.
    browser.until(&format!("{TOTAL} === 121")).await;
    browser
        .until("document.querySelector('#flow-database').innerText.includes('121 events')")
        .await;
    assert_eq!(browser.value("window.sameDocument").await, true);
    browser.picture("events").await;
    page.is_calm().await;
}

#[tokio::test]
async fn words_names_and_resources_narrow_what_is_seen_and_an_address_says_it_all() {
    let Some(page) = Page::with_events(140).await else {
        return;
    };
    let browser = &page.browser;
    browser.click("#f-text").await;
    browser.keys("payment").await;
    browser
        .until(&format!(
            "{SEEN}.length && {SEEN}.every((name) => name === 'order.payment.failed')"
        ))
        .await;
    browser.until(&format!("{TOTAL} === 20")).await;
    browser.picture("searched").await;
    // Somebody else who is given the address sees the same.
    let address = browser.value("location.href").await;
    browser.open("about:blank").await;
    browser.open(address.as_str().unwrap()).await;
    browser.until(&format!("{TOTAL} === 20")).await;
    assert_eq!(
        browser
            .value("document.querySelector('#f-text').value")
            .await,
        "payment"
    );

    page.open("#events?event=order.p*&resource=order.7").await;
    let all = "[...document.querySelectorAll('.sizer .row:not([data-blank])')].every((row) => \
        row.querySelector('.event').textContent.startsWith('order.p') && row.querySelector('.res-id').textContent === 'order.7')";
    browser.until(&format!("{SEEN}.length && {all}")).await;
    page.open("#events?text=nothing+has+this").await;
    browser
        .until("document.querySelector('.note').checkVisibility() && document.querySelector('.note').innerText.includes('No event')")
        .await;
    browser.picture("nothing-found").await;
    page.is_calm().await;
}

#[tokio::test]
async fn a_span_is_drawn_over_the_histogram_and_left_again() {
    let Some(page) = Page::with_events(300).await else {
        return;
    };
    let browser = &page.browser;
    browser.until(&format!("{TOTAL} === 300")).await;
    browser.drag(".plot", 0.3, 0.6).await;
    browser.until("location.hash.includes('since=')").await;
    browser
        .until(&format!(
            "document.querySelector('.custom').innerText && {TOTAL} > 0 && {TOTAL} < 300"
        ))
        .await;
    let inside = "(() => { const given = new URLSearchParams(location.hash.split('?')[1]); \
        const times = [...document.querySelectorAll('.sizer .row:not([data-blank]) time')].map((time) => Date.parse(time.dateTime)); \
        return times.length && times.every((time) => time >= Date.parse(given.get('since')) && time <= Date.parse(given.get('until'))); })()";
    browser.until(inside).await;
    browser.picture("zoomed").await;
    browser.click(".out").await;
    browser
        .until(&format!(
            "!location.hash.includes('since=') && {TOTAL} === 300"
        ))
        .await;
    page.is_calm().await;
}

#[tokio::test]
async fn what_occurred_in_the_first_year_is_counted() {
    let Some(page) = Page::of(&[]).await else {
        return;
    };
    let browser = &page.browser;
    let mut first = event("order.placed", "order.1", 0);
    first["occurred"] = json!("0001-01-01T00:00:00Z");
    page.send(&[first, event("order.sent", "order.2", 60)])
        .await;
    page.open("#events?last=all").await;
    browser
        .until(&format!(
            "{TOTAL} === 2 && document.querySelectorAll('#names [data-name]').length === 2"
        ))
        .await;
    browser
        .until(&format!("{SEEN}.join() === 'order.sent,order.placed'"))
        .await;
    page.is_safe().await;
}

#[tokio::test]
async fn a_search_that_is_refused_is_not_tried_again() {
    let Some(page) = Page::with_events(30).await else {
        return;
    };
    let browser = &page.browser;
    browser
        .until("document.querySelector('#names [data-name]')")
        .await;
    browser
        .script("location.hash = `#events?text=${'x'.repeat(201)}`")
        .await;
    let refused = "document.querySelector('.note').innerText.includes('at most 200 characters') \
        && document.querySelector('.readout').innerText.includes('could not be counted') \
        && !document.querySelector('#names [data-name]')";
    browser.until(refused).await;
    let note = browser.text(".note").await;
    assert!(note.starts_with("These events cannot be read: "), "{note}");
    assert!(!note.contains("tried again"), "{note}");
    browser.picture("search-refused").await;
    const ASKED: &str = "performance.getEntriesByType('resource') \
        .filter(({ name }) => name.includes('/api/events/')).length";
    let asked = browser.value(ASKED).await;
    // An outage is tried again after three.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(browser.value(ASKED).await, asked);
    browser
        .script("location.hash = '#events?text=payment'")
        .await;
    browser
        .until(&format!("{SEEN}[0] === 'order.payment.failed'"))
        .await;
    browser.until(LIVE).await;
    page.is_safe().await;
}

#[tokio::test]
async fn one_event_is_opened_with_its_json() {
    let Some(page) = Page::with_events(30).await else {
        return;
    };
    let browser = &page.browser;
    browser.click(".sizer .row:not([data-blank])").await;
    browser.until("document.querySelector('.json')").await;
    let text = browser.text("#detail").await;
    for part in [
        "order.", "customer", "Ada", "shop.3", "items", "\"A-1\"", "9.5", "null",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let id = browser.text(".facts .mono").await;
    assert!(
        browser
            .value("location.hash")
            .await
            .as_str()
            .unwrap()
            .contains(&id)
    );
    browser.picture("opened").await;
    // What comes meanwhile moves nothing, and is told of.
    let top = browser.value(&format!("{SEEN}[0]")).await;
    page.send(&[event("order.refunded", "order.17", 0)]).await;
    browser
        .until("!document.querySelector('.pill').hidden && document.querySelector('.pill').innerText.includes('1 new event')")
        .await;
    assert_eq!(browser.value(&format!("{SEEN}[0]")).await, top);
    browser.picture("one-has-come").await;
    // A label leads to all that has it.
    browser
        .click(".labels a[title='Events with this label']")
        .await;
    browser
        .until("document.querySelector('#f-label').value === 'customer=Ada'")
        .await;
    browser
        .until("document.querySelector('#detail').hidden")
        .await;
    page.is_calm().await;
}

#[tokio::test]
async fn numbers_are_shown_and_copied_to_the_last_digit() {
    const NUMBERS: [&str; 4] = ["9007199254740993", "12345678901234567890123", "1.0", "17"];
    let Some(page) = Page::of(&[]).await else {
        return;
    };
    let payload = format!(r#"{{"exact":[{}]}}"#, NUMBERS.join(","));
    let event = json!([event("order.paid", "order.1", 0)]).to_string();
    let usual = json!(self::event("", "", 0)["payload"]).to_string();
    let event = event.replace(&usual, &payload);
    assert_eq!(page.server.post_status(event).await, 204);
    page.open("").await;
    let browser = &page.browser;
    browser.until(ROWS).await;
    browser.click(".sizer .row:not([data-blank])").await;
    browser.until("document.querySelector('.json')").await;
    let shown =
        "[...document.querySelectorAll('.json .number')].map((number) => number.textContent)";
    assert_eq!(browser.value(shown).await, json!(NUMBERS));
    browser
        .script("navigator.clipboard.writeText = async (text) => { window.copied = text; };")
        .await;
    browser.click(".actions button").await;
    browser.until("window.copied").await;
    let copied = browser.value("window.copied").await;
    let copied = copied.as_str().unwrap().replace([' ', '\n'], "");
    assert!(copied.contains(&payload), "{copied}");
    page.is_safe().await;
}

#[tokio::test]
async fn what_comes_is_followed_while_it_is_live() {
    let Some(page) = Page::with_events(30).await else {
        return;
    };
    let browser = &page.browser;
    browser
        .until("document.querySelector('#live').dataset.state === 'open'")
        .await;
    for number in 0..5 {
        page.send(&[event(&format!("tick.{number}"), "clock", 0)])
            .await;
        let took = browser
            .until(&format!("{SEEN}[0] === 'tick.{number}'"))
            .await;
        assert!(took < SOON, "{took:?}");
    }
    // So are the most frequent names: of six kinds five are shown.
    page.send(&[event("order.placed", "order.1", 0)]).await;
    let counted = "document.querySelector('#names [data-name=\"order.placed\"] .count').textContent === '10' \
        && document.querySelector('#names .rest').textContent === 'and 6 more kinds'";
    let took = browser.until(counted).await;
    assert!(took < SOON, "{took:?}");
    browser.click("#live").await;
    browser
        .until("document.querySelector('#live').ariaPressed === 'false'")
        .await;
    page.send(&[event("tick.unseen", "clock", 0)]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(browser.value(&format!("{SEEN}[0]")).await, "order.placed");
    browser.click("#live").await;
    browser.until(&format!("{SEEN}[0] === 'tick.unseen'")).await;
    // A service that is started again is found again.
    page.is_calm().await;
}

#[tokio::test]
async fn the_keyboard_is_enough() {
    let Some(page) = Page::with_events(60).await else {
        return;
    };
    let browser = &page.browser;
    let focused = async |selector: &str| {
        browser
            .until(&format!("document.activeElement.matches('{selector}')"))
            .await;
    };
    browser.keys(TAB).await;
    focused(".skip").await;
    browser.picture("skip-link").await;
    browser.keys(ENTER).await;
    focused("#main").await;
    browser.keys("/").await;
    focused("#f-text").await;
    browser.keys("paid").await;
    browser.keys(ENTER).await;
    focused(".grid").await;
    browser
        .until(&format!(
            "{SEEN}.length && {SEEN}.every((name) => name === 'order.paid')"
        ))
        .await;
    browser.keys(DOWN).await;
    browser.keys(DOWN).await;
    browser
        .until("document.querySelector('.sizer [aria-selected=true]')?.ariaRowIndex === '3'")
        .await;
    let active = "document.getElementById(document.activeElement.getAttribute('aria-activedescendant'))?.ariaRowIndex === '3'";
    browser.until(active).await;
    browser.keys(ENTER).await;
    browser.until("document.querySelector('.json')").await;
    browser.picture("by-keys").await;
    browser.keys("k").await;
    browser
        .until("document.querySelector('.sizer [data-open]')?.ariaRowIndex === '2'")
        .await;
    browser.keys(ESCAPE).await;
    browser
        .until("document.querySelector('#detail').hidden")
        .await;
    focused(".grid").await;
    browser.keys("x").await;
    browser
        .until("document.querySelector('#f-text').value === ''")
        .await;
    // The histogram: choose a span, zoom into it, and out again.
    browser.keys("h").await;
    focused(".plot").await;
    browser.keys(LEFT).await;
    browser.keys_with(SHIFT, &LEFT.repeat(40)).await;
    browser
        .until("Number(document.querySelector('.chosen').getAttribute('width')) > 100")
        .await;
    browser.picture("span-by-keys").await;
    browser.keys(ENTER).await;
    browser.until("location.hash.includes('since=')").await;
    browser.keys("-").await;
    browser.until("!location.hash.includes('since=')").await;
    browser.keys("2").await;
    browser
        .until("document.querySelector('#view-letters').checkVisibility()")
        .await;
    browser.keys("3").await;
    browser
        .until("document.querySelector('#view-service').checkVisibility()")
        .await;
    browser.keys("1").await;
    browser
        .until("document.querySelector('#view-events').checkVisibility()")
        .await;
    browser.keys("?").await;
    browser
        .until("document.querySelector('dialog[open]')")
        .await;
    browser.picture("keys").await;
    browser.keys(ESCAPE).await;
    browser.until("!document.querySelector('dialog')").await;
    // Whatever has the focus shows it, and the focus comes round.
    let mut places = Vec::new();
    for _ in 0..70 {
        browser.keys(TAB).await;
        let place = "(() => { const at = document.activeElement; if (at === document.body) return null; \
            const style = getComputedStyle(at), around = getComputedStyle(at.closest('.field, .list-frame') ?? at); \
            const shows = [style, around].some((one) => one.outlineStyle !== 'none' || one.boxShadow !== 'none'); \
            return [at.id || at.className || at.tagName, shows]; })()";
        let place = browser.value(place).await;
        if place.is_null() {
            // From the end it goes on at the beginning.
            continue;
        }
        assert_eq!(place[1], true, "{} shows no focus", place[0]);
        places.push(place[0].as_str().unwrap().to_owned());
    }
    for wanted in ["tab-letters", "theme", "f-text", "live", "plot", "grid"] {
        assert!(
            places.iter().any(|place| place == wanted),
            "no {wanted} in {places:?}"
        );
    }
    page.is_calm().await;
}
