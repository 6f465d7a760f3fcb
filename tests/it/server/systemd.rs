//! The service as systemd sees it, by the socket that it is told of.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use super::*;
use crate::support::wait::PATIENCE;

/// Told at least every 100 ms.
const WATCHDOG: (&str, &str) = ("WATCHDOG_USEC", "200000");

/// The socket, and what came to it so far.
struct Systemd {
    socket: UnixDatagram,
    lines: Vec<String>,
}

impl Systemd {
    fn at(address: &SocketAddr) -> Self {
        let socket = UnixDatagram::bind_addr(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            socket,
            lines: Vec::new(),
        }
    }

    /// Listens until there was this line so often.
    fn until(&mut self, line: &str, times: usize) {
        while self.count(line) < times {
            let mut buffer = [0; 4096];
            let received = self.socket.recv(&mut buffer);
            let num = received.unwrap_or_else(|error| panic!("{error}: {:?}", self.lines));
            let text = std::str::from_utf8(&buffer[..num]).unwrap();
            self.lines.extend(text.lines().map(str::to_owned));
        }
    }

    fn count(&self, line: &str) -> usize {
        self.lines.iter().filter(|told| *told == line).count()
    }
}

#[test]
fn systemd_is_told_of_readiness_once_of_life_often_and_of_the_end() {
    let folder = Folder::new();
    let path = folder.path().join("notify");
    let mut systemd = Systemd::at(&SocketAddr::from_pathname(&path).unwrap());
    let socket = ("NOTIFY_SOCKET", path.to_str().unwrap());
    let server = Server::start(&folder, &[socket, WATCHDOG]);
    systemd.until("READY=1", 1);
    systemd.until("STATUS=ready", 1);
    let so_far = systemd.count("WATCHDOG=1");
    systemd.until("WATCHDOG=1", so_far + 5);
    assert_eq!(systemd.count("STOPPING=1"), 0);
    server.terminate().in_good_order();
    systemd.until("STOPPING=1", 1);
    assert_eq!(systemd.count("READY=1"), 1);
}

#[test]
fn a_socket_without_a_file_will_do() {
    let folder = Folder::new();
    let name = format!("event-persister-test-{}", uuid::Uuid::new_v4());
    let mut systemd = Systemd::at(&SocketAddr::from_abstract_name(&name).unwrap());
    let name = format!("@{name}");
    let server = Server::start(&folder, &[("NOTIFY_SOCKET", &name)]);
    systemd.until("READY=1", 1);
    server.terminate().in_good_order();
    systemd.until("STOPPING=1", 1);
    assert_eq!(systemd.count("WATCHDOG=1"), 0, "nobody asked for it");
}

#[test]
fn without_a_database_it_is_alive_and_not_ready_and_start_up_may_take_longer() {
    let folder = Folder::new();
    let path = folder.path().join("notify");
    let mut systemd = Systemd::at(&SocketAddr::from_pathname(&path).unwrap());
    let server = Server::start(
        &folder,
        &[
            ("NOTIFY_SOCKET", path.to_str().unwrap()),
            WATCHDOG,
            // Nobody listens there.
            ("EVENT_PERSISTER_DATABASE_URL", "postgresql://127.0.0.1:1/d"),
        ],
    );
    systemd.until("EXTEND_TIMEOUT_USEC=30000000", 5);
    systemd.until("WATCHDOG=1", 5);
    while !systemd
        .lines
        .iter()
        .any(|line| line.starts_with("STATUS=not ready: store: cannot connect"))
    {
        let so_far = systemd.count("WATCHDOG=1");
        systemd.until("WATCHDOG=1", so_far + 1);
    }
    server.terminate().in_good_order();
    systemd.until("STOPPING=1", 1);
    assert_eq!(systemd.count("READY=1"), 0);
}
