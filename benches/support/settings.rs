//! What the person who runs a benchmark may choose, all by environment variables.

use std::path::PathBuf;
use std::str::FromStr;

/// The value of a variable, or nothing where it is unset or empty.
pub(crate) fn text(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "the benchmarks' own settings")]
    let value = std::env::var(name);
    value.ok().filter(|value| !value.is_empty())
}

/// A number, such as `BENCH_EVENTS`.
pub(crate) fn number<T: FromStr>(name: &str, default: T) -> T {
    text(name).map_or(default, |value| parsed(name, &value))
}

/// Numbers with commas between, such as `BENCH_WRITERS`.
pub(crate) fn numbers(name: &str, default: &[usize]) -> Vec<usize> {
    text(name).map_or_else(
        || default.to_vec(),
        |value| {
            let values = value.split(',');
            values.map(|value| parsed(name, value.trim())).collect()
        },
    )
}

/// Events to use instead of generated ones: one a line, plain or gzipped.
pub(crate) fn events_file() -> Option<PathBuf> {
    text("BENCH_EVENTS_FILE").map(PathBuf::from)
}

fn parsed<T: FromStr>(name: &str, value: &str) -> T {
    let parsed = value.parse().ok();
    parsed.unwrap_or_else(|| panic!("{name}={value} is not a number"))
}
