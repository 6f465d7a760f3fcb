//! What was logged, by any test: look for what only yours can say.

use std::sync::{Mutex, Once};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Capture;

impl log::Log for Capture {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("event_persister") {
            let line = format!("{} {}", record.level(), record.args());
            LINES.lock().unwrap().push(line);
        }
    }

    fn flush(&self) {}
}

/// From here on everything is remembered.
pub(crate) fn capture() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Capture).expect("no test has a logger of its own");
        log::set_max_level(log::LevelFilter::Info);
    });
}

/// The one line that holds all of these.
pub(crate) fn find(parts: &[&str]) -> String {
    let lines = LINES.lock().unwrap();
    let mut found = lines
        .iter()
        .filter(|line| parts.iter().all(|part| line.contains(part)));
    let line = found
        .next()
        .unwrap_or_else(|| panic!("no line has {parts:?}"));
    assert_eq!(found.next(), None, "said more than once");
    line.clone()
}

/// Whether any line holds all of these.
pub(crate) fn has(parts: &[&str]) -> bool {
    let lines = LINES.lock().unwrap();
    (lines.iter()).any(|line| parts.iter().all(|part| line.contains(part)))
}
