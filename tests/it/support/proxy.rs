//! A TCP proxy that can do what networks do: cut connections, swallow what is sent, refuse, and lead
//! somewhere else.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// How it treats connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Closes those that come.
    Refuse,
    /// Keeps what it is given to itself until it passes things on again.
    Stall,
    /// Throws away what the target says.
    LoseAnswers,
    /// The proxy has come to its end.
    Closed,
}

struct State {
    target: u16,
    mode: Mode,
    connections: Vec<TcpStream>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Waits while it is held back; how what was held back is treated then.
    fn next_mode(&self) -> Mode {
        let state = self.state();
        let stalled = |state: &mut State| state.mode == Mode::Stall;
        self.changed.wait_while(state, stalled).unwrap().mode
    }

    fn turn(&self, mode: Mode) {
        self.state().mode = mode;
        self.changed.notify_all();
    }
}

/// Listens on a port of its own and leads to another on this machine.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    pub(crate) fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                target,
                mode: Mode::Pass,
                connections: Vec::new(),
            }),
            changed: Condvar::new(),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || serve(&listener, &serving));
        Self { port, shared }
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A URL of the target, as it is through the proxy.
    pub(crate) fn url(&self, url: &str) -> String {
        let target = self.shared.state().target;
        url.replace(
            &format!("127.0.0.1:{target}"),
            &format!("127.0.0.1:{}", self.port),
        )
    }

    /// From now on it leads there.
    pub(crate) fn lead_to(&self, target: u16) {
        self.shared.state().target = target;
    }

    /// Ends all connections; new ones are let through.
    pub(crate) fn cut(&self) {
        for connection in self.shared.state().connections.drain(..) {
            connection.shutdown(Shutdown::Both).ok();
        }
    }

    /// Ends all connections and takes no new ones.
    pub(crate) fn refuse(&self) {
        self.shared.turn(Mode::Refuse);
        self.cut();
    }

    /// Connections stay, and nothing comes through.
    pub(crate) fn stall(&self) {
        self.shared.turn(Mode::Stall);
    }

    /// Connections stay, and what the target answers is lost.
    pub(crate) fn lose_answers(&self) {
        self.shared.turn(Mode::LoseAnswers);
    }

    /// Everything comes through again, what was held back included.
    pub(crate) fn pass(&self) {
        self.shared.turn(Mode::Pass);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.turn(Mode::Closed);
        self.cut();
        // Wakes the listener, which then sees that it is over.
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming().flatten() {
        let (mode, target) = {
            let state = shared.state();
            (state.mode, state.target)
        };
        match mode {
            Mode::Closed => return,
            Mode::Refuse => continue,
            Mode::Pass | Mode::Stall | Mode::LoseAnswers => {}
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
            continue;
        };
        for (from, to, is_answer) in [(&client, &server, false), (&server, &client, true)] {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let shared = Arc::clone(shared);
            std::thread::spawn(move || copy(from, to, is_answer, &shared));
        }
        let mut state = shared.state();
        if !matches!(state.mode, Mode::Refuse | Mode::Closed) {
            state.connections.extend([client, server]);
        } else {
            client.shutdown(Shutdown::Both).ok();
        }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, is_answer: bool, shared: &Shared) {
    let mut buffer = [0; 64 << 10];
    while let Ok(num @ 1..) = from.read(&mut buffer) {
        match shared.next_mode() {
            Mode::LoseAnswers if is_answer => continue,
            Mode::Pass | Mode::LoseAnswers => {}
            Mode::Refuse | Mode::Stall | Mode::Closed => break,
        }
        if to.write_all(&buffer[..num]).is_err() {
            break;
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}
