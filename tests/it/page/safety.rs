//! Those who may not look, and those who would run something in the browser of somebody who may.

use std::io::Read as _;
use std::net::TcpListener;

use super::*;

#[tokio::test]
async fn it_is_signed_in_to_with_the_auth_string() {
    let settings = [("EVENT_PERSISTER_HTTP_AUTH_STRING", "ada:hush")];
    let Some(page) = Page::of(&settings).await else {
        return;
    };
    let browser = &page.browser;
    page.open("").await;
    browser
        .until("document.querySelector('dialog[open] #password')")
        .await;
    browser.picture("sign-in").await;
    let give = async |user: &str, password: &str| {
        for (field, text) in [("#user", user), ("#password", password)] {
            browser.click(field).await;
            browser
                .script(&format!("document.querySelector('{field}').value = ''"))
                .await;
            browser.keys(text).await;
        }
        browser.click("dialog button[type=submit]").await;
    };
    give("ada", "wrong").await;
    browser
        .until("document.querySelector('.wrong').innerText")
        .await;
    browser.picture("sign-in-refused").await;
    give("ada", "hush").await;
    browser
        .until("!document.querySelector('dialog') && document.querySelector('.empty')")
        .await;
    let cookie = browser.cookie("event_persister_session").await;
    assert_eq!(cookie["httpOnly"], true, "{cookie}");
    assert_eq!(cookie["sameSite"], "Strict", "{cookie}");
    assert_eq!(browser.value("document.cookie").await, "");
    // It is told how to send events, and follows what comes.
    browser.until(LIVE).await;
    assert!(browser.text(".snippet").await.contains("-u user:password"));
    let sent = page
        .server
        .post(json!([event("order.placed", "order.1", 0)]).to_string());
    let sent = sent.basic_auth("ada", Some("hush")).send().await.unwrap();
    assert_eq!(sent.status(), 204);
    assert!(
        browser
            .until(&format!("{SEEN}[0] === 'order.placed'"))
            .await
            < SOON
    );
    // A page that is opened again is signed in still, until it signs out.
    page.open("").await;
    browser.until(ROWS).await;
    browser.click("#sign-out").await;
    browser
        .until("document.querySelector('dialog[open] #password')")
        .await;
    assert_eq!(
        browser
            .value("document.body.innerText.includes('order.placed')")
            .await,
        false
    );
}

/// Texts that would do something if they became markup, an attribute or an address.
const HOSTILE: [&str; 8] = [
    "<script>window.ran = 1</script>",
    "<img src=x onerror=\"window.ran = 2\">",
    "javascript:window.ran=3",
    "\"><svg onload=\"window.ran = 4\">",
    "'-window.ran-'${window.ran=5}",
    "</style><iframe srcdoc=\"<script>parent.ran=6</script>\">",
    "data:text/html,<script>window.ran=7</script>",
    "a\u{202e}b\u{0}\u{2028}<b>c",
];

#[tokio::test]
async fn no_name_and_no_payload_runs_anything() {
    let Some(page) = Page::of(&[]).await else {
        return;
    };
    let browser = &page.browser;
    let without_nul = HOSTILE.map(|text| text.replace('\0', ""));
    let events: Vec<_> = without_nul
        .iter()
        .map(|text| {
            json!({
                "id": Uuid::new_v4(), "occurred": SystemClock.now(), "event": text,
                "resource": { "prefect.resource.id": text, "prefect.resource.name": text, text: text },
                "related": [{ "prefect.resource.id": text, "prefect.resource.name": text, "prefect.resource.role": text, text: text }],
                "payload": { text: text, "__proto__": { "ran": text }, "list": [text, { text: [text] }], "html": text },
            })
        })
        .collect();
    page.send(&events).await;
    // Refused, so that reason, position and message hold them too.
    page.folder
        .write("<img src=x onerror=window.ran=8>.jsonl", HOSTILE.join("\n"));
    page.folder
        .run(&["import", "<img src=x onerror=window.ran=8>.jsonl"])
        .exits(1);
    let harmless = async |what: &str| {
        let found = "[window.ran ?? null, document.querySelectorAll('img, iframe, object, embed, b, [onerror], [onload], [srcdoc], .sizer script').length, \
            [...document.querySelectorAll('a')].filter((a) => !['http:', 'https:'].includes(a.protocol) || a.host !== location.host).map((a) => a.href), \
            document.scripts.length, noted.violations, noted.errors]";
        let found = browser.value(found).await;
        assert_eq!(found, json!([null, 0, [], 2, [], []]), "{what}");
    };
    page.open("").await;
    browser
        .until(&format!("{SEEN}.length === {}", events.len()))
        .await;
    harmless("the list").await;
    browser.picture("hostile").await;
    for (number, event) in events.iter().enumerate() {
        let id = event["id"].as_str().unwrap();
        page.open(&format!("#events?id={id}")).await;
        browser
            .until(&format!(
                "document.querySelector('#detail .mono')?.innerText === '{id}'"
            ))
            .await;
        browser
            .script(
                "for (const details of document.querySelectorAll('details')) details.open = true",
            )
            .await;
        harmless(id).await;
        if number == 1 {
            browser.picture("hostile-opened").await;
        }
        // Every link of it is followed, within the page.
        browser.click(".related-list a").await;
        browser.until("location.hash.includes('resource=')").await;
        harmless("a link").await;
    }
    for text in &without_nul {
        for word in ["text", "event", "resource", "label", "id"] {
            let text = browser
                .value(&format!(
                    "new URLSearchParams({{ {word}: {} }}).toString()",
                    json!(text)
                ))
                .await;
            page.open(&format!("#events?{}", text.as_str().unwrap()))
                .await;
        }
        harmless("an address").await;
    }
    page.open("#letters").await;
    browser
        .until("document.querySelectorAll('.reason').length >= 8")
        .await;
    for _ in 0..8 {
        browser.click(".reason[aria-expanded=false]").await;
    }
    browser
        .until("document.querySelectorAll('.payload pre').length >= 8")
        .await;
    harmless("the letters").await;
    browser.picture("hostile-letters").await;
    page.open("#service").await;
    browser.until("document.querySelector('.card')").await;
    harmless("the service").await;
    page.is_calm().await;
}

#[tokio::test]
async fn its_policy_lets_it_ask_nobody_else() {
    let Some(page) = Page::with_events(5).await else {
        return;
    };
    let browser = &page.browser;
    page.is_calm().await;
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    other.set_nonblocking(true).unwrap();
    let at = other.local_addr().unwrap();
    // As a script would that somebody had slipped in.
    let tried = format!(
        "const at = 'http://{at}/';
        const tried = [fetch(at).then(() => 'fetched', () => 'refused')];
        const load = (element, attribute) => new Promise((done) => {{
            element.onload = () => done('loaded');
            element.onerror = () => done('refused');
            element[attribute] = at;
            document.head.append(element);
        }});
        tried.push(load(document.createElement('img'), 'src'), load(document.createElement('script'), 'src'));
        tried.push(load(Object.assign(document.createElement('link'), {{ rel: 'stylesheet' }}), 'href'));
        tried.push(new Promise((done) => {{
            try {{ new WebSocket('ws://{at}/').onerror = () => done('refused'); }} catch {{ done('refused'); }}
        }}));
        navigator.sendBeacon(at, 'x');
        const inline = document.createElement('script');
        inline.textContent = 'window.ran = 1';
        document.head.append(inline);
        const form = Object.assign(document.createElement('form'), {{ action: at, method: 'post' }});
        document.body.append(form);
        form.submit();
        // What is run from outside may do so; what comes later is the page's own.
        tried.push(new Promise((done) => setTimeout(() => {{
            try {{ done(String(eval('1 + 1'))); }} catch {{ done('refused'); }}
        }})));
        return Promise.all(tried);"
    );
    let outcomes = browser.script(&tried).await;
    assert_eq!(outcomes, json!(vec!["refused"; 6]));
    assert_eq!(browser.value("window.ran ?? null").await, Value::Null);
    let violations = browser.value("noted.violations").await.to_string();
    for directive in [
        "connect-src",
        "img-src",
        "script-src-elem",
        "style-src-elem",
        "form-action",
        "script-src",
    ] {
        assert!(
            violations.contains(directive),
            "{directive} in {violations}"
        );
    }
    // Nor may another page hold it in a frame, and lend its buttons a meaning.
    let answer = page.server.get("/").await;
    let policy = answer.headers()["content-security-policy"]
        .to_str()
        .unwrap();
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    // For a form Chromium connects before it asks the policy, and sends nothing.
    while let Ok((mut stream, _)) = other.accept() {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(SOON / 4)).unwrap();
        let num_bytes = stream.read(&mut [0]).unwrap_or_default();
        assert_eq!(num_bytes, 0, "it was asked");
    }
}
