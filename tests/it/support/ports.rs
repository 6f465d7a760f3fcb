//! Ports that nobody listens on.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below those that the system gives to whoever connects, or a connection could take one before its
/// server has it.
const FIRST: u16 = 10_000;
const NUM: u16 = 20_000;

/// A port that nobody listens on, and that no test of this process is given again soon.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Another run of the tests begins elsewhere.
    let start = (std::process::id() % u32::from(NUM)) as u16;
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(number) % NUM;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
