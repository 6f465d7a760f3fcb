//! Log lines: for people or for machines, on standard error, beside a progress bar if there is one.

use std::io::{self, Write};

use anyhow::Context as _;
use env_logger::fmt::Formatter;
use indicatif::MultiProgress;
use log::Record;
use serde::Serialize;

mod settings;

pub(crate) use settings::{Log, LogFormat};

/// Starts logging. What is drawn with the returned value and log lines do not disturb each other.
pub(crate) fn start(settings: &Log) -> anyhow::Result<MultiProgress> {
    let progress = MultiProgress::new();
    let mut builder = env_logger::Builder::new();
    if settings.level.eq_ignore_ascii_case("info") {
        // What it does with its threads is news only to those who ask for more.
        builder.filter_module("actix_server", log::LevelFilter::Warn);
    }
    // To it a client's mistake is an error, and anybody who can connect could fill the disk.
    builder.filter_module("actix_http", log::LevelFilter::Off);
    // Whatever comes of its connections is told by the source.
    builder.filter_module("async_nats", log::LevelFilter::Off);
    builder
        .parse_filters(&settings.level)
        .target(env_logger::Target::Pipe(Box::new(Lines {
            progress: progress.clone(),
        })));
    match settings.format {
        LogFormat::Text => builder.format(write_text),
        LogFormat::Json => builder.format(write_json),
    };
    builder.try_init().context("cannot start logging")?;
    Ok(progress)
}

/// Whether a line may hold what came with an event: a library tells the parameters of its statements.
fn may_hold_payloads(record: &Record<'_>) -> bool {
    record.level() > log::Level::Info && record.target().starts_with("tokio_postgres")
}

fn write_text(line: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    if may_hold_payloads(record) {
        return Ok(());
    }
    let time = line.timestamp_millis();
    // One record stays one line, and nothing in it reaches the terminal as a command.
    let message = crate::output::one_line(&record.args().to_string());
    writeln!(line, "{time} {:<5} {message}", record.level())
}

fn write_json(line: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    if may_hold_payloads(record) {
        return Ok(());
    }
    let object = serde_json::to_string(&Line {
        timestamp: line.timestamp_millis().to_string(),
        level: record.level().as_str(),
        target: record.target(),
        message: record.args().to_string(),
    })?;
    // Some readers of lines end one at U+0085 or U+2028 too.
    writeln!(line, "{}", crate::output::plain_json(&object))
}

#[derive(Serialize)]
struct Line<'a> {
    timestamp: String,
    level: &'a str,
    target: &'a str,
    message: String,
}

/// Standard error, with the progress bar lifted while a line is written.
struct Lines {
    progress: MultiProgress,
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.progress
            .suspend(|| io::stderr().lock().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use log::Log as _;

    use super::*;

    /// What a name from outside may hold, and some reader takes for the end of a line or a command.
    const ODD: &str = "\r\u{1b}\u{85}\u{2028}\u{202e}";

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: fn(&mut Formatter, &Record<'_>) -> io::Result<()>) -> String {
        logged_by("here", log::Level::Info, format)
    }

    fn logged_by(
        target: &str,
        level: log::Level,
        format: fn(&mut Formatter, &Record<'_>) -> io::Result<()>,
    ) -> String {
        let sink = Sink::default();
        env_logger::Builder::new()
            .parse_filters("trace")
            .format(format)
            .target(env_logger::Target::Pipe(Box::new(sink.clone())))
            .build()
            .log(
                &Record::builder()
                    .level(level)
                    .target(target)
                    .args(format_args!("two\nlines{ODD}"))
                    .build(),
            );
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_record_is_one_line_of_text() {
        let line = logged(write_text);
        let (time, rest) = line.split_once(' ').unwrap();
        assert_eq!(time.len(), "2026-11-24T03:00:00.123Z".len());
        assert_eq!(
            rest,
            "INFO  two\\nlines\\r\\u{1b}\\u{85}\\u{2028}\\u{202e}\n"
        );
    }

    #[test]
    fn statements_are_not_told_since_their_parameters_are_payloads() {
        for format in [write_text, write_json] {
            let told = |level| logged_by("tokio_postgres::query", level, format);
            assert_eq!(told(log::Level::Debug), "");
            assert_ne!(told(log::Level::Warn), "");
        }
    }

    #[test]
    fn a_record_is_one_object_of_json() {
        let line = logged(write_json);
        let object: serde_json::Value = serde_json::from_str(line.trim_end()).unwrap();
        assert_eq!(object["level"], "INFO");
        assert_eq!(object["target"], "here");
        assert_eq!(object["message"], format!("two\nlines{ODD}"));
        let is_odd = |c| c != '\n' && crate::output::is_obeyed(c);
        assert!(!line.contains(is_odd), "{line:?}");
        assert!(object["timestamp"].as_str().unwrap().ends_with('Z'));
    }
}
