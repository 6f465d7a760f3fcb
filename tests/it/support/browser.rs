//! A real Chromium, driven by Debian's chromedriver.
//!
//! The WebDriver protocol is JSON over HTTP, so no crate is needed for it. Of the crates that there are, one makes
//! serde_json keep the order of keys, in the program under test too; another brings a licence of its own, and knows
//! neither emulation nor logs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::wait::PATIENCE;

/// Keys that are no characters, as the protocol writes them.
pub(crate) const TAB: &str = "\u{e004}";
pub(crate) const ENTER: &str = "\u{e007}";
pub(crate) const ESCAPE: &str = "\u{e00c}";
pub(crate) const LEFT: &str = "\u{e012}";
pub(crate) const DOWN: &str = "\u{e015}";
pub(crate) const SHIFT: &str = "\u{e008}";

/// How soon it is looked again whether something shows.
const POLL: Duration = Duration::from_millis(20);

/// One at a time: a browser is a dozen processes, and the tests measure how soon something is seen.
static TURN: Mutex<()> = Mutex::const_new(());

/// Runs in every page before its own scripts: notes what a person would not see.
const NOTES: &str = r#"
    window.noted = { violations: [], errors: [], shift: 0 };
    addEventListener("securitypolicyviolation", (e) => noted.violations.push(`${e.effectiveDirective} ${e.blockedURI}`));
    addEventListener("error", (e) => noted.errors.push(String(e.message ?? e.target)), true);
    addEventListener("unhandledrejection", (e) => noted.errors.push(String(e.reason)));
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) if (!entry.hadRecentInput) noted.shift += entry.value;
    }).observe({ type: "layout-shift", buffered: true });
"#;

/// How often chromedriver is started before it must have found a port.
const MAX_STARTS: usize = 5;

/// A window of a browser of its own; gone when it is dropped.
pub(crate) struct Browser {
    client: reqwest::Client,
    driver: Driver,
    _profile: TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// The program that drives it, and its session.
struct Driver {
    process: Child,
    port: u16,
    session: String,
}

/// The value of a variable, where it has one.
#[expect(clippy::disallowed_methods, reason = "the tests' own settings")]
pub(crate) fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Says that a test is left out; fails it where that must not be.
#[expect(
    clippy::print_stderr,
    reason = "the only word of a test that is left out"
)]
pub(crate) fn left_out(why: &str) {
    let is_demanded = setting("TEST_BROWSER").is_some_and(|value| value == "required");
    assert!(!is_demanded, "TEST_BROWSER=required, but {why}");
    eprintln!("LEFT OUT, for {why}");
}

impl Browser {
    /// A window of 1280 by 800. `None`, and a word of it, where there is no Chromium and nobody demands one.
    pub(crate) async fn start() -> Option<Self> {
        let turn = TURN.lock().await;
        let driver = match Driver::start() {
            Ok(driver) => driver,
            Err(error) => {
                left_out(&format!("there is no chromedriver here: {error}"));
                return None;
            }
        };
        let profile = tempfile::tempdir().unwrap();
        let mut browser = Self {
            client: super::client::client(),
            driver,
            _profile: profile,
            _turn: turn,
        };
        browser.begin().await;
        Some(browser)
    }

    async fn begin(&mut self) {
        let profile = format!("--user-data-dir={}", self._profile.path().display());
        let arguments = [
            "--headless=new",
            // What it opens is ours, and as root it has no sandbox.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--force-color-profile=srgb",
            "--lang=en-GB",
            "--window-size=1280,800",
            &profile,
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "performance": "ALL", "browser": "ALL" },
        } } });
        let session = self.command(Method::POST, "", wanted).await;
        let id = session["sessionId"].as_str().unwrap();
        self.driver.session = format!("/{id}");
        self.resize(1280, 800).await;
        let notes = json!({ "source": NOTES });
        self.develop("Page.addScriptToEvaluateOnNewDocument", notes)
            .await;
    }

    async fn command(&self, method: Method, path: &str, body: Value) -> Value {
        let (port, session) = (self.driver.port, &self.driver.session);
        let url = format!("http://127.0.0.1:{port}/session{session}{path}");
        let mut request = self.client.request(method.clone(), url);
        if method == Method::POST {
            request = request.json(&body);
        }
        let answer = request.timeout(PATIENCE).send().await.unwrap();
        let is_done = answer.status().is_success();
        let mut answer: Value = answer.json().await.unwrap();
        let why = &answer["value"]["message"];
        assert!(
            is_done,
            "{path}: {}\n{body}",
            why.as_str().unwrap_or_default()
        );
        answer["value"].take()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.command(Method::POST, path, body).await
    }

    /// A command of the protocol of the developer tools.
    pub(crate) async fn develop(&self, command: &str, parameters: Value) -> Value {
        let command = json!({ "cmd": command, "params": parameters });
        self.post("/goog/cdp/execute", command).await
    }

    pub(crate) async fn open(&self, url: &str) {
        self.post("/url", json!({ "url": url })).await;
    }

    /// Makes the part of the window that shows the page so large; a narrow one is a phone.
    pub(crate) async fn resize(&self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.develop("Emulation.setDeviceMetricsOverride", size)
            .await;
    }

    /// What the system says that its user prefers.
    pub(crate) async fn prefers(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.develop(
            "Emulation.setEmulatedMedia",
            json!({ "features": features }),
        )
        .await;
    }

    /// What a script returns, which may be a promise.
    pub(crate) async fn script(&self, script: &str) -> Value {
        let script = json!({ "script": script, "args": [] });
        self.post("/execute/sync", script).await
    }

    /// What an expression is.
    pub(crate) async fn value(&self, expression: &str) -> Value {
        self.script(&format!("return {expression};")).await
    }

    /// Waits until an expression is true; how long that took.
    pub(crate) async fn until(&self, expression: &str) -> Duration {
        let started = Instant::now();
        while self.value(&format!("Boolean({expression})")).await != true {
            if started.elapsed() > PATIENCE {
                self.picture("not-yet").await;
                let text = self.value("document.body.innerText").await;
                panic!(
                    "not yet: {expression}\n{}",
                    text.as_str().unwrap_or_default()
                );
            }
            tokio::time::sleep(POLL).await;
        }
        started.elapsed()
    }

    /// The text of the first element that a selector finds, as it is seen.
    pub(crate) async fn text(&self, selector: &str) -> String {
        let selector = Value::from(selector);
        let text = format!("document.querySelector({selector})?.innerText");
        let text = self.value(&text).await;
        text.as_str()
            .unwrap_or_else(|| panic!("no {selector}"))
            .to_owned()
    }

    /// Presses the first element that a selector finds, where a person could.
    pub(crate) async fn click(&self, selector: &str) {
        let quoted = Value::from(selector);
        self.until(&format!("document.querySelector({quoted})"))
            .await;
        let wanted = json!({ "using": "css selector", "value": selector });
        let element = self.post("/element", wanted).await;
        let id = element.as_object().unwrap().values().next().unwrap();
        let path = format!("/element/{}/click", id.as_str().unwrap());
        self.post(&path, json!({})).await;
    }

    /// Presses keys one after the other, wherever the focus is.
    pub(crate) async fn keys(&self, keys: &str) {
        let pressed = keys.chars().flat_map(|key| [down(key), up(key)]);
        self.act(pressed.collect()).await;
    }

    /// The same while a key is held.
    pub(crate) async fn keys_with(&self, held: &str, keys: &str) {
        let held = held.chars().next().unwrap();
        let mut pressed = vec![down(held)];
        pressed.extend(keys.chars().flat_map(|key| [down(key), up(key)]));
        pressed.push(up(held));
        self.act(pressed).await;
    }

    async fn act(&self, keys: Vec<Value>) {
        let keys = json!({ "type": "key", "id": "keyboard", "actions": keys });
        self.post("/actions", json!({ "actions": [keys] })).await;
    }

    /// Draws the mouse over an element, from one part of its width to another.
    pub(crate) async fn drag(&self, selector: &str, from: f64, to: f64) {
        let selector = Value::from(selector);
        let at = self
            .value(&format!(
                "(({{ left, top, width, height }}) => [left, width, top + height / 3])(document.querySelector({selector}).getBoundingClientRect())"
            ))
            .await;
        let [left, width, y] = [0, 1, 2].map(|part| at[part].as_f64().unwrap());
        let go = |share: f64, duration: u32| {
            json!({ "type": "pointerMove", "duration": duration, "origin": "viewport",
                "x": (left + share * width).round(), "y": y.round() })
        };
        let actions = json!([
            go(from, 0),
            { "type": "pointerDown", "button": 0 },
            go((from + to) / 2.0, 60),
            go(to, 60),
            { "type": "pointerUp", "button": 0 },
        ]);
        let mouse = json!({ "type": "pointer", "id": "mouse", "actions": actions });
        self.post("/actions", json!({ "actions": [mouse] })).await;
    }

    /// The browser's own view of a cookie, which scripts may not have.
    pub(crate) async fn cookie(&self, name: &str) -> Value {
        self.command(Method::GET, &format!("/cookie/{name}"), Value::Null)
            .await
    }

    /// Every address that it has asked for since this was asked last.
    pub(crate) async fn requests(&self) -> Vec<String> {
        let log = self.post("/se/log", json!({ "type": "performance" })).await;
        let mut asked = Vec::new();
        for entry in log.as_array().unwrap() {
            let message: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
            let message = &message["message"];
            let parameters = &message["params"];
            let url = match message["method"].as_str().unwrap() {
                "Network.requestWillBeSent" => &parameters["request"]["url"],
                "Network.webSocketCreated" => &parameters["url"],
                _ => continue,
            };
            asked.push(url.as_str().unwrap().to_owned());
        }
        asked
    }

    /// Keeps what it shows as a file, for people to look at.
    pub(crate) async fn picture(&self, name: &str) -> PathBuf {
        let png = self.command(Method::GET, "/screenshot", Value::Null).await;
        let png = BASE64_STANDARD.decode(png.as_str().unwrap()).unwrap();
        let folder = setting("TEST_SCREENSHOTS").map(PathBuf::from);
        let folder = folder.unwrap_or_else(|| {
            PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/screenshots"))
        });
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{name}.png"));
        std::fs::write(&path, png).unwrap();
        path
    }
}

fn down(key: char) -> Value {
    json!({ "type": "keyDown", "value": key })
}

fn up(key: char) -> Value {
    json!({ "type": "keyUp", "value": key })
}

impl Driver {
    /// One without a session yet.
    ///
    /// It takes a free port of IPv4, then the same of IPv6, and ends where somebody has that one: tests that
    /// run beside it have servers there.
    fn start() -> std::io::Result<Self> {
        let mut said = Vec::new();
        for _ in 0..MAX_STARTS {
            let mut process = chromedriver()?;
            let output = BufReader::new(process.stdout.take().unwrap());
            let mut lines = output.lines().map_while(Result::ok);
            let mut noted = lines.by_ref().inspect(|line| said.push(line.clone()));
            if let Some(port) = noted.find_map(|line| port_of(&line)) {
                // Or it would stop at a full pipe.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self {
                    process,
                    port,
                    session: String::new(),
                });
            }
            process.wait()?;
        }
        panic!("chromedriver never says its port: {said:#?}");
    }
}

/// In the line that says that it has started.
fn port_of(line: &str) -> Option<u16> {
    let (_, port) = line.split_once("successfully on port ")?;
    port.trim_end_matches('.').parse().ok()
}

fn chromedriver() -> std::io::Result<Child> {
    Command::new("chromedriver")
        .arg("--port=0")
        // Times are shown in the zone of the person who looks.
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

impl Drop for Driver {
    /// The end of the session ends the browser, also when a test has failed.
    fn drop(&mut self) {
        let request = format!(
            "DELETE /session{} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
            self.session
        );
        if let Ok(mut driver) = TcpStream::connect(("127.0.0.1", self.port)) {
            drop(driver.set_read_timeout(Some(Duration::from_secs(10))));
            if driver.write_all(request.as_bytes()).is_ok() {
                drop(driver.read(&mut [0; 512]));
            }
        }
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
