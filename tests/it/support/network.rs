//! A network inside this machine, whose hosts can be cut off. Only root can make one.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

/// Hosts on one switch. This machine is connected to it as well.
pub(crate) struct Network {
    switch: String,
    pub(crate) hosts: Vec<Host>,
}

/// A network namespace, and the cable to its switch.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) namespace: String,
    pub(crate) address: IpAddr,
    cable: String,
}

impl Network {
    /// `None` where only root could make one.
    pub(crate) fn of(num_hosts: u8) -> Option<Self> {
        // So that networks of tests that run at the same time do not meet.
        let [second, third] = fastrand::u16(..).to_be_bytes();
        let name = format!("ep{second:02x}{third:02x}");
        let at = |host| IpAddr::from(Ipv4Addr::new(10, second, third, host));
        let mut network = Self {
            switch: format!("{name}s"),
            hosts: Vec::new(),
        };
        let switch = network.switch.clone();
        let is_made = ip(&format!("link add {switch} type bridge"))
            && ip(&format!("addr add {}/24 dev {switch}", at(1)))
            && ip(&format!("link set {switch} up"));
        for number in 0..num_hosts {
            let host = Host {
                namespace: format!("{name}h{number}"),
                address: at(number + 2),
                cable: format!("{name}c{number}"),
            };
            network.hosts.push(host.clone());
            if !is_made || !host.make(&switch) {
                return None;
            }
        }
        Some(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            // The cable goes with one of its ends.
            ip(&format!("netns del {}", host.namespace));
        }
        ip(&format!("link del {}", self.switch));
    }
}

impl Host {
    fn make(&self, switch: &str) -> bool {
        let Self {
            namespace,
            address,
            cable,
        } = self;
        let inside = format!("-n {namespace}");
        ip(&format!("netns add {namespace}"))
            && ip(&format!(
                "link add {cable} type veth peer name eth0 netns {namespace}"
            ))
            && ip(&format!("link set {cable} master {switch} up"))
            && ip(&format!("{inside} link set lo up"))
            && ip(&format!("{inside} addr add {address}/24 dev eth0"))
            && ip(&format!("{inside} link set eth0 up"))
    }

    /// Pulls the cable: nothing goes in or out, and nobody is told.
    pub(crate) fn cut_off(&self) {
        assert!(ip(&format!("link set {} down", self.cable)));
    }

    pub(crate) fn connect(&self) {
        assert!(ip(&format!("link set {} up", self.cable)));
    }
}

/// Whether it could be done.
fn ip(words: &str) -> bool {
    let ran = Command::new("ip").args(words.split(' ')).output();
    ran.is_ok_and(|output| output.status.success())
}
