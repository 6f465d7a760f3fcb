//! What abuse of the listener costs those who mean well: how many events a second two of them post
//! into SQLite without it and with it, in turns. The ratio should be at least 0.9.
//!
//! `cargo bench --bench abuse`; those who abuse run on the same machine, and their own work counts
//! against the ratio.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support"]
mod support {
    pub(crate) mod abuse;
    pub(crate) mod binary;
    pub(crate) mod database;
    pub(crate) mod events;
    pub(crate) mod server;
    pub(crate) mod socket;
}

use support::abuse::Abuse;
use support::binary::Folder;
use support::events::{events, list};
use support::server::Server;

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(6);
const NUM_CLIENTS: usize = 2;
const EVENTS_IN_A_LIST: usize = 200;

/// Posts one list after the other on a connection of its own; the number of events stored.
async fn post_until(server: &Server, until: Instant) -> usize {
    let client = reqwest::Client::new();
    let mut num = 0;
    while Instant::now() < until {
        let body = list(&events(EVENTS_IN_A_LIST));
        loop {
            let request = client.post(server.url("/api/events")).body(body.clone());
            let request = request.basic_auth("admin", Some("right"));
            match request.send().await.map(|answer| answer.status().as_u16()) {
                Ok(204) => break,
                Ok(503) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                Ok(other) => panic!("{other}"),
            }
        }
        num += EVENTS_IN_A_LIST;
    }
    num
}

/// Events a second.
async fn measure(server: &Server) -> f64 {
    let started = Instant::now();
    let clients = (0..NUM_CLIENTS).map(|_| post_until(server, started + ROUND));
    let num: usize = join_all(clients).await.iter().sum();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let num = num as f64;
    num / started.elapsed().as_secs_f64()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let folder = Folder::new();
    let secret = ("EVENT_PERSISTER_HTTP_AUTH_STRING", "admin:right");
    let server = Arc::new(Server::start(&folder, &[secret]).ready().await);
    let mut ratios = Vec::new();
    println!("round      without         with   ratio");
    // The first round warms up.
    for round in 0..=ROUNDS {
        let without = measure(&server).await;
        let abuse = Abuse::of(server.address());
        let with = measure(&server).await;
        if round > 0 {
            let refused = &abuse.refused;
            println!(
                "{round:>5} {without:>10.0}/s {with:>10.0}/s {:>7.2}  {refused:?}",
                with / without
            );
            ratios.push(with / without);
        }
        drop(abuse);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.2}", ratios[ratios.len() / 2]);
    println!("peak memory  {} MiB", server.peak_memory());
    server.terminate().in_good_order();
}
