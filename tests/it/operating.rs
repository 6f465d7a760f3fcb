//! What an operator sees of a service that has been broken: numbers and log lines.

mod logs;
mod numbers;
mod positions;
mod scrape;
mod sqlite_log;
