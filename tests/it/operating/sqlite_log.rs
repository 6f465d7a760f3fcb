//! SQLite's write-ahead log, which a reader keeps and which is given back once it has gone.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::support::binary::Folder;
use crate::support::events::{event, list};
use crate::support::server::Server;

/// A log that is larger is worth a warning, and what is more is given back.
const LIMIT: u64 = 32 << 20;

/// Another program in the middle of a read transaction; ended when it is dropped.
struct Reader(Child);

impl Reader {
    fn of(database: &Path) -> Self {
        let mut child = Command::new("sqlite3")
            .arg(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sqlite3 is installed");
        let input = child.stdin.as_mut().unwrap();
        input
            .write_all(b"BEGIN; SELECT count(*) FROM events;\n")
            .unwrap();
        let mut answer = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut answer)
            .unwrap();
        answer.trim().parse::<u64>().expect("a number of events");
        Self(child)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn post(server: &Server, num_mib: usize) {
    for _ in 0..num_mib {
        let mut event = event();
        event["payload"] = json!({ "text": "x".repeat(1 << 20) });
        assert_eq!(server.post_status(list(&[event])).await, 204);
    }
}

fn num_bytes(database: &Path) -> u64 {
    let log = format!("{}-wal", database.display());
    std::fs::metadata(log).map_or(0, |log| log.len())
}

/// A service of whose file another program reads while as much was written as the log may keep, and more.
async fn with_a_long_log(folder: &Folder) -> (Server, Reader) {
    let server = Server::start(folder, &[]).ready().await;
    let database = folder.database_path();
    post(&server, 1).await;
    let reader = Reader::of(&database);
    post(&server, 40).await;
    assert!(num_bytes(&database) > LIMIT, "{}", num_bytes(&database));
    (server, reader)
}

#[tokio::test]
async fn a_log_that_a_reader_keeps_is_told_with_its_process_and_given_back_when_it_has_gone() {
    let folder = Folder::new();
    let (server, reader) = with_a_long_log(&folder).await;
    let database = folder.database_path();
    let process = format!("process {} (sqlite3)", reader.0.id());
    let told = server
        .until_readiness(|status, told| status == 200 && !told["warnings"][0].is_null())
        .await;
    let warning = told["warnings"][0].as_str().unwrap();
    assert!(
        warning.starts_with("store: the write-ahead log has "),
        "{told}"
    );
    assert!(warning.contains(&process), "{told}");
    // While events go on coming as well.
    post(&server, 1).await;
    let said = server.logged("write-ahead log has");
    assert!(said.contains(" WARN ") && said.contains(&process), "{said}");
    let checked = folder.run(&["check", "--json"]).json();
    let findings = checked["findings"].as_array().unwrap();
    let found = findings
        .iter()
        .find(|found| found["id"] == "sqlite.log")
        .unwrap();
    assert_eq!(found["severity"], "warning", "{found}");
    assert!(
        found["what"].as_str().unwrap().contains(&process),
        "{found}"
    );

    drop(reader);
    // Nobody has to write for it.
    server
        .until_readiness(|status, told| status == 200 && told["warnings"] == json!([]))
        .await;
    server
        .until("given back: the log", || num_bytes(&database) <= LIMIT)
        .await;
    assert!(server.logged("log is given back").contains(" INFO "));
    server.terminate().in_good_order();
}

#[tokio::test]
async fn a_log_is_given_back_by_those_who_write() {
    let folder = Folder::new();
    let (server, reader) = with_a_long_log(&folder).await;
    let database = folder.database_path();
    drop(reader);
    // One whose checkpoint reaches the end, one that begins the log anew, and what comes in between.
    post(&server, 4).await;
    assert!(num_bytes(&database) <= LIMIT, "{}", num_bytes(&database));
    server.terminate().in_good_order();
}
