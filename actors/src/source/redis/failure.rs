//! Failures of Redis as errors of the port, with what to do about them.

use std::{fmt, io};

use redis::{ErrorKind, RedisError};

use crate::source::SourceError;

/// All that a source, a publisher and the commands of an operator need, for ACL SETUSER.
pub(super) const RIGHTS: &str = "+@stream +eval +exists +time +info";

/// A failed command as the port's error: where, what and the remedy; the cause is its source.
pub(super) fn unavailable(server: &str, doing: &str, error: RedisError) -> SourceError {
    let remedy = remedy(&error);
    let what = format!("Redis at {server}: {doing} failed; {remedy}");
    SourceError::unavailable(what, Cause(error))
}

/// The client's error without its own source, whose text it repeats.
#[derive(Debug)]
struct Cause(RedisError);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        // The client puts the name of its kind behind our own words.
        f.write_str(&match self.0.kind() {
            ErrorKind::Client => text.replacen(" - Client", "", 1),
            _ => text,
        })
    }
}

impl std::error::Error for Cause {}

/// A time-out of ours as the client's error, so that all failures look alike.
pub(super) fn timed_out(what: &'static str) -> RedisError {
    io::Error::new(io::ErrorKind::TimedOut, what).into()
}

/// What was asked for belongs to a master that is no more, or that is none yet.
pub(super) fn another_master() -> RedisError {
    RedisError::from((ErrorKind::Client, ANOTHER_MASTER))
}

const ANOTHER_MASTER: &str = "another server becomes the master";

pub(super) fn unexpected(wanted: &'static str) -> RedisError {
    let what = "the answer has another form than Redis documents";
    RedisError::from((
        ErrorKind::UnexpectedReturnType,
        what,
        format!("wanted {wanted}"),
    ))
}

/// The code of the server's first error, in a transaction too.
pub(super) fn code(error: &RedisError) -> Option<String> {
    if let Some(code) = error.code()
        && code != "EXECABORT"
    {
        return Some(code.to_owned());
    }
    let errors = error.clone().into_server_errors()?;
    errors.first().map(|(_, error)| error.code().to_owned())
}

pub(super) fn is_answer(error: &RedisError) -> bool {
    code(error).is_some()
}

/// Whether it is no use to connect anew. A server that has become a replica may have a successor
/// under the same name.
pub(super) fn leaves_connections_sound(error: &RedisError) -> bool {
    code(error).is_some_and(|code| code != "READONLY" && code != "MASTERDOWN")
}

pub(super) fn has_vanished(error: &RedisError) -> bool {
    // `UNBLOCKED`: the stream was deleted while a read waited for it.
    matches!(code(error).as_deref(), Some("NOGROUP" | "UNBLOCKED"))
}

/// Before Redis 7.2 a script that may not do something fails with the code of any other error.
pub(super) fn is_forbidden(error: &RedisError) -> bool {
    match code(error).as_deref() {
        Some("NOPERM") => true,
        Some("ERR") => says(error, "The user executing the script"),
        _ => false,
    }
}

/// Whether nothing is wrong with XADD but an id that is none.
pub(super) fn is_about_the_id(error: &RedisError) -> bool {
    code(error).as_deref() == Some("ERR") && says(error, "stream ID")
}

fn says(error: &RedisError, words: &str) -> bool {
    error.detail().is_some_and(|text| text.contains(words))
}

pub(super) fn remedy(error: &RedisError) -> String {
    if is_forbidden(error) {
        return format!(
            "the user may not do this: allow it the stream's key and {RIGHTS} (ACL SETUSER)"
        );
    }
    other_remedy(error).to_owned()
}

fn other_remedy(error: &RedisError) -> &'static str {
    match code(error).as_deref() {
        Some("NOAUTH") => "it wants a password: add it to the URL",
        Some("WRONGPASS") => "user or password is wrong: correct the URL",
        Some("LOADING") => "it is loading its data and will answer when it is done",
        Some("READONLY") => {
            "this is a replica, which takes no writes: give the URL of the primary, or of its sentinels"
        }
        Some("MASTERDOWN") => "this is a replica without its primary: give the URL of the primary",
        Some("MISCONF") => {
            "it cannot save to its disk and takes no writes: see its log, free its disk"
        }
        Some("OOM") => "its memory is full: raise its maxmemory, or trim what nobody reads",
        Some("WRONGTYPE") => "the key holds something other than a stream: name another stream",
        Some("MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN") => {
            "it is a node of a Redis Cluster, which is not supported yet: use a single server"
        }
        Some("BUSY") => "it is busy with a script of someone else: wait, or SCRIPT KILL",
        Some("ERR") if says(error, "DB index") || says(error, "invalid DB") => {
            "it has no database of that number: correct the URL"
        }
        Some("ERR") if says(error, "unknown command") => {
            "it is older than Redis 6.2, or the command is disabled there: use 6.2 or newer"
        }
        Some(_) => "see what it answered",
        None => without_answer(error),
    }
}

fn without_answer(error: &RedisError) -> &'static str {
    if error.is_connection_refusal() {
        return "nothing listens there: start it, or correct host and port of the URL";
    }
    if error.is_timeout() {
        return "it does not answer in time: see whether it is stalled, the network is down, or the URL is \
                wrong about TLS";
    }
    match error.kind() {
        ErrorKind::AuthenticationFailed => "user or password is wrong: correct the URL",
        ErrorKind::InvalidClientConfig => "see the settings of TLS",
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => {
            "the answer is not one of Redis: see what listens there, and whether it wants TLS"
        }
        ErrorKind::Client if error.to_string().starts_with(ANOTHER_MASTER) => {
            "it is tried again there"
        }
        ErrorKind::Client => {
            "it is tried again; if it goes on, see the sentinels, their log, and their login: sentinel_username and \
                sentinel_password in the URL"
        }
        _ => "see that it runs and that host, port and TLS of the URL are right",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::error_chain;

    #[test]
    fn says_where_what_and_what_to_do() {
        let refused: RedisError = io::Error::from(io::ErrorKind::ConnectionRefused).into();
        let error = unavailable("host:6379/0", "connecting", refused);
        assert_eq!(
            error_chain(&error),
            "Redis at host:6379/0: connecting failed; nothing listens there: start it, or correct \
             host and port of the URL: connection refused"
        );
        let slow = unavailable("host:6379/0", "reading", timed_out("no answer"));
        assert!(slow.to_string().contains("does not answer in time"));
        let replaced = unavailable("sentinels", "reading", another_master());
        assert_eq!(
            error_chain(&replaced),
            "Redis at sentinels: reading failed; it is tried again there: another server becomes the master"
        );
    }
}
