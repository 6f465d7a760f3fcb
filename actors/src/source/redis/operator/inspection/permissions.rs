//! Whether the user may send everything that a source sends.
//!
//! Redis looks whether a command is allowed before it looks whether it makes sense, so each is sent
//! in a form that changes nothing: with a group that does not exist, or a number that is none.

use redis::{Cmd, Value};

use crate::finding::Finding;
use crate::source::redis::connection::Commands;
use crate::source::redis::failure::{self, RIGHTS};
use crate::source::redis::settings::RedisSettings;

const NO_GROUP: &str = "event-persister-check-no-such-group";
const NOBODY: &str = "nobody";
const NO_ID: &str = "no-id";

/// The commands that are needed, each as its name and its words, with `*` for the stream.
const NEEDED: [(&str, &[&str]); 14] = [
    ("EXISTS", &["*"]),
    ("XLEN", &["*"]),
    ("XRANGE", &["*", "-", "-"]),
    ("XINFO", &["GROUPS", "*"]),
    ("XPENDING", &["*", NO_GROUP]),
    (
        "XREADGROUP",
        &["GROUP", NO_GROUP, NOBODY, "STREAMS", "*", "0"],
    ),
    ("XACK", &["*", NO_GROUP, "0-0"]),
    ("XCLAIM", &["*", NO_GROUP, NOBODY, "0", "0-0", "JUSTID"]),
    ("XGROUP", &["SETID", "*", NO_GROUP, "0-1"]),
    ("XGROUP", &["CREATE", "*", NO_GROUP, NO_ID]),
    ("XGROUP", &["DELCONSUMER", "*", NO_GROUP, NOBODY]),
    ("XGROUP", &["DESTROY", "*", NO_GROUP]),
    ("EVAL", &["return 0", "1", "*"]),
    ("TIME", &[]),
];

const TRIM: (&str, &[&str]) = ("XTRIM", &["*", "MAXLEN", NO_ID]);

fn command(name: &str, words: &[&str], stream: &str) -> Cmd {
    let mut command = redis::cmd(name);
    for word in words {
        command.arg(if *word == "*" { stream } else { *word });
    }
    command
}

pub(super) async fn forbidden(commands: &mut Commands<'_>) -> Vec<&'static str> {
    let settings = commands.settings;
    let trim = settings.trim_stream.then_some(TRIM);
    let mut forbidden = Vec::new();
    for (name, words) in NEEDED.into_iter().chain(trim) {
        let command = command(name, words, &settings.stream);
        let is_refused = commands
            .query::<Value>(&command)
            .await
            .is_err_and(|error| failure::is_forbidden(&error));
        if is_refused && !forbidden.contains(&name) {
            forbidden.push(name);
        }
    }
    forbidden
}

pub(super) fn judge(forbidden: &[&str], settings: &RedisSettings) -> Finding {
    const ID: &str = "redis.permissions";
    let user = settings.url.username.as_deref().unwrap_or("default");
    if forbidden.is_empty() {
        return Finding::ok(ID, format!("the user {user} may do all that is needed"));
    }
    let stream = &settings.stream;
    Finding::error(
        ID,
        format!(
            "the user {user} may not do this with {stream}: {}",
            forbidden.join(", ")
        ),
        format!("ACL SETUSER {user} ~{stream} {RIGHTS}, then ACL SAVE"),
    )
}
