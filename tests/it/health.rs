//! `event-persister health`, as a container asks it.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use tokio::time::Instant;

use super::support::binary::{Folder, Ran};
use super::support::certificates;
use super::support::server::Server;
use super::support::tls::FILES;
use super::support::wait::PATIENCE;

const LISTEN: &str = "EVENT_PERSISTER_HTTP_LISTEN";

/// Asks as it is told to, and gets one line that begins so and has this in it.
#[track_caller]
fn ask(folder: &Folder, arguments: &[&str], variables: &[(&str, &str)], code: i32, parts: &[&str]) {
    let arguments = [&["health"], arguments].concat();
    let ran = folder.run_with(&arguments, variables).exits(code);
    assert_eq!(ran.stderr, "", "{ran:?}");
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:?}");
    ran.prints(parts);
}

/// A service that listens at every address, and what it is started with.
fn everywhere(folder: &Folder, variables: &[(&str, &str)]) -> (Server, String) {
    let mut command = folder.command(&[]);
    command.env(LISTEN, "0.0.0.0:0");
    command.envs(variables.iter().copied());
    let server = Server::spawn(command, &folder.database_path());
    let listen = server.address().replace("127.0.0.1", "0.0.0.0");
    (server, listen)
}

#[tokio::test]
async fn who_listens_everywhere_without_an_auth_string_is_alive_and_ready() {
    let folder = Folder::new();
    let (server, listen) = everywhere(&folder, &[]);
    let url = format!("http://{}/api", server.address());
    let listen = [(LISTEN, listen.as_str())];
    ask(
        &folder,
        &[],
        &listen,
        0,
        &["alive: ", &format!("{url}/health\n")],
    );
    server.until_ready_is(200).await;
    ask(
        &folder,
        &["--ready"],
        &listen,
        0,
        &["ready: ", &format!("{url}/ready\n")],
    );
    server.terminate().in_good_order();
    ask(&folder, &[], &listen, 1, &[&url, "does not answer"]);
}

#[test]
fn with_tls_and_an_auth_string_it_needs_neither_authority_nor_secret() {
    let folder = Folder::new();
    certificates::make(folder.path());
    let (server, listen) = everywhere(&folder, &FILES);
    let listen = (LISTEN, listen.as_str());
    // Neither signed by anybody whom this machine trusts, nor for this address.
    let secret = ("EVENT_PERSISTER_HTTP_AUTH_STRING", "admin:hunter2");
    let variables = [listen, FILES[0], FILES[1], secret];
    ask(&folder, &[], &variables, 0, &["alive: https://127.0.0.1:"]);
    // Without the service's settings it cannot be understood.
    ask(&folder, &[], &[listen], 1, &["answered by something else"]);
    server.terminate().in_good_order();
}

#[test]
fn a_service_without_its_database_is_alive_and_says_why_it_is_not_ready() {
    let folder = Folder::new();
    // Nobody listens there.
    let url = "postgresql://ann:hunter2@127.0.0.1:1/events?sslmode=disable";
    let database = ("EVENT_PERSISTER_DATABASE_URL", url);
    let (server, listen) = everywhere(&folder, &[database]);
    server.logged("the store is not ready");
    let variables = [(LISTEN, listen.as_str()), database];
    ask(&folder, &[], &variables, 0, &["alive: "]);
    // What else has to start may still be the reason.
    let is_told = |ran: &Ran| ran.stdout.starts_with("not ready: store: ");
    let started = Instant::now();
    let ran = loop {
        let ran = folder.run_with(&["health", "--ready"], &variables).exits(1);
        if is_told(&ran) {
            break ran;
        }
        assert!(started.elapsed() < PATIENCE, "{ran:?}");
    };
    assert!(!ran.stdout.contains("hunter2"), "{ran:?}");
    assert!(folder.is_empty());
    server.terminate().in_good_order();
}

#[test]
fn somebody_else_at_that_address_is_no_service_of_ours() {
    let folder = Folder::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // It is accepted by the system, and answered by nobody.
    let listen = [(LISTEN, address.as_str())];
    let impatient = ["--timeout", "50ms"];
    ask(&folder, &impatient, &listen, 1, &["no answer within 50ms"]);
    let answering = std::thread::spawn(move || {
        // The first has gone.
        drop(taken.accept().unwrap());
        let (mut client, _) = taken.accept().unwrap();
        let mut request = [0; 1000];
        let _ = client.read(&mut request).unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        client.write_all(answer).unwrap();
    });
    ask(&folder, &[], &listen, 1, &["answered by something else"]);
    answering.join().unwrap();
}

#[test]
fn where_nobody_is_to_listen_there_is_nobody_to_ask() {
    let folder = Folder::new();
    ask(&folder, &[], &[(LISTEN, "off")], 1, &["http.listen is off"]);
    let wrong: Ran = folder.run(&["health", "--writers", "0"]);
    wrong.exits(2).complains(&["pipeline.writers"]);
    folder.run(&["health", "--timeout", "soon"]).exits(2);
    assert!(folder.is_empty());
}
