//! A TCP proxy that can do what networks do: cut connections, swallow what is sent, be slow, refuse, and
//! lead somewhere else.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// Bytes a second.
const SLOW: f64 = 512.0 * 1024.0;

/// How it treats connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Lets through [`SLOW`] bytes a second to the target, on each connection.
    SlowDown,
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
    num_accepted: usize,
    /// Of so many connections, the earliest, the answers are lost.
    num_deaf: usize,
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
    fn next_mode(&self, connection: usize) -> Mode {
        let state = self.state();
        let stalled = |state: &mut State| state.mode == Mode::Stall;
        let state = self.changed.wait_while(state, stalled).unwrap();
        match state.mode {
            Mode::Pass if connection < state.num_deaf => Mode::LoseAnswers,
            mode => mode,
        }
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
                num_accepted: 0,
                num_deaf: 0,
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

    /// Connections stay, and what is sent takes its time.
    pub(crate) fn slow_down(&self) {
        self.shared.turn(Mode::SlowDown);
    }

    /// Connections stay, and what the target answers is lost.
    pub(crate) fn lose_answers(&self) {
        self.shared.turn(Mode::LoseAnswers);
    }

    /// The same for those that are there now; new connections are whole.
    pub(crate) fn lose_answers_to_these(&self) {
        let mut state = self.shared.state();
        state.num_deaf = state.num_accepted;
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
        let (mode, target, connection) = {
            let mut state = shared.state();
            state.num_accepted += 1;
            (state.mode, state.target, state.num_accepted - 1)
        };
        match mode {
            Mode::Closed => return,
            Mode::Refuse => continue,
            Mode::Pass | Mode::SlowDown | Mode::Stall | Mode::LoseAnswers => {}
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
            continue;
        };
        for (from, to, is_answer) in [(&client, &server, false), (&server, &client, true)] {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let shared = Arc::clone(shared);
            std::thread::spawn(move || copy([from, to], connection, is_answer, &shared));
        }
        let mut state = shared.state();
        if !matches!(state.mode, Mode::Refuse | Mode::Closed) {
            state.connections.extend([client, server]);
        } else {
            client.shutdown(Shutdown::Both).ok();
        }
    }
}

fn copy([mut from, mut to]: [TcpStream; 2], connection: usize, is_answer: bool, shared: &Shared) {
    let mut buffer = [0; 64 << 10];
    while let Ok(num @ 1..) = from.read(&mut buffer) {
        match shared.next_mode(connection) {
            Mode::LoseAnswers if is_answer => continue,
            Mode::SlowDown if !is_answer => {
                std::thread::sleep(Duration::from_secs_f64(num as f64 / SLOW));
            }
            Mode::Pass | Mode::SlowDown | Mode::LoseAnswers => {}
            Mode::Refuse | Mode::Stall | Mode::Closed => break,
        }
        if to.write_all(&buffer[..num]).is_err() {
            break;
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}
