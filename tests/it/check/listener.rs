//! Where the service would listen.

use std::net::TcpListener;

use super::*;
use crate::support::certificates;
use crate::support::server::Server;
use crate::support::tls::{FILES, until_ready};

#[test]
fn a_port_that_somebody_else_has() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // It answers as no event persister does.
    let answering = std::thread::spawn(move || {
        drop(taken.accept());
    });
    let ran = check(&Folder::new(), &[("EVENT_PERSISTER_LISTEN", &address)]);
    answering.join().unwrap();
    finds_only(&ran, "http.listen", "error", "--listen");
}

#[test]
fn an_address_of_another_machine() {
    let elsewhere = ("EVENT_PERSISTER_LISTEN", "192.0.2.1:4280");
    let secret = ("EVENT_PERSISTER_HTTP_AUTH_STRING", "a:b");
    let ran = check(&Folder::new(), &[elsewhere, secret]);
    finds_only(&ran, "http.listen", "error", "of this machine");
}

#[test]
fn open_to_the_network_without_an_auth_string() {
    let open = ("EVENT_PERSISTER_LISTEN", "0.0.0.0:0");
    let ran = check(&Folder::new(), &[open]);
    let variable = "EVENT_PERSISTER_HTTP_AUTH_STRING";
    finds_only(&ran, "http.auth", "warning", variable);
    finds_nothing(&check(&Folder::new(), &[open, (variable, "a:b")]));
}

#[tokio::test]
async fn a_service_of_ours_at_work_is_no_fault() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    let address = server.url("").replace("http://", "");
    let listen = ("EVENT_PERSISTER_LISTEN", address.as_str());
    let checked = check(&folder, &[listen]);
    finds_nothing(&checked);
    checked.prints(&["listens at", "already, without TLS"]);
    server.terminate().in_good_order();
}

/// Whoever checks has not always the same settings, and trusts no authority of a test.
#[tokio::test]
async fn one_that_speaks_tls_is_no_fault_either() {
    let folder = Folder::new();
    certificates::make(folder.path());
    let server = Server::start(&folder, &FILES);
    until_ready(&folder, &server).await;
    let listen = ("EVENT_PERSISTER_LISTEN", server.address());
    for variables in [&[listen][..], &[listen, FILES[0], FILES[1]]] {
        let checked = check(&folder, variables);
        finds_nothing(&checked);
        checked.prints(&["already, with TLS"]);
    }
    server.terminate().in_good_order();
}
