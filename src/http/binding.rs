//! Why an address cannot be listened at, and what to do about it.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};

use rustix::io::Errno;

/// From here on ports are for everybody.
const FIRST_FREE_PORT: u16 = 1024;

#[derive(Debug)]
pub(crate) struct Unbindable {
    address: SocketAddr,
    error: io::Error,
}

impl Error for Unbindable {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.error)
    }
}

impl fmt::Display for Unbindable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what(), self.remedy())
    }
}

impl Unbindable {
    pub(crate) fn new(address: SocketAddr, error: io::Error) -> Self {
        Self { address, error }
    }

    /// The failure and its reason, for people.
    pub(crate) fn what(&self) -> String {
        let (why, _) = self.why_and_remedy();
        format!("cannot listen on {}, since {why}", self.address)
    }

    pub(crate) fn remedy(&self) -> &'static str {
        self.why_and_remedy().1
    }

    fn why_and_remedy(&self) -> (Cow<'static, str>, &'static str) {
        match self.error.kind() {
            ErrorKind::AddrInUse => (
                "another process listens there".into(),
                "stop it, or choose another address with --listen or EVENT_PERSISTER_LISTEN",
            ),
            ErrorKind::PermissionDenied if self.address.port() < FIRST_FREE_PORT => (
                "this user may not".into(),
                "choose a port above 1023, or give the process CAP_NET_BIND_SERVICE",
            ),
            ErrorKind::PermissionDenied => (
                "this user may not".into(),
                "see what denies it, such as SELinux or a sandbox, or choose another address with --listen",
            ),
            ErrorKind::AddrNotAvailable => (
                "this machine has no such address".into(),
                "name an address of this machine in http.listen, or 0.0.0.0 for all that it has",
            ),
            _ if self.is_of_unknown_kind() => (
                "this machine has no IPv6".into(),
                "name an IPv4 address in http.listen, such as 127.0.0.1:4280",
            ),
            _ => (
                self.error.to_string().into(),
                "choose another address with --listen or EVENT_PERSISTER_LISTEN",
            ),
        }
    }

    /// Whether the machine has nothing of this kind, such as IPv6 where that is off: no fault where a
    /// name has other addresses.
    pub(crate) fn is_not_here(&self) -> bool {
        self.error.kind() == ErrorKind::AddrNotAvailable || self.is_of_unknown_kind()
    }

    fn is_of_unknown_kind(&self) -> bool {
        self.error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error())
    }
}

/// Binds every address that this machine has; at least one.
pub(super) fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, Unbindable> {
    let mut bound = Vec::new();
    let mut not_here = None;
    for address in addresses {
        match TcpListener::bind(address).map_err(|error| Unbindable::new(*address, error)) {
            Ok(listener) => bound.push(listener),
            Err(error) if error.is_not_here() => not_here = Some(error),
            Err(error) => return Err(error),
        }
    }
    match not_here {
        Some(error) if bound.is_empty() => Err(error),
        Some(error) => {
            log::warn!("{error}; it listens at the other addresses of that name");
            Ok(bound)
        }
        None => Ok(bound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(address: &str, error: io::Error) -> String {
        Unbindable::new(address.parse().unwrap(), error).to_string()
    }

    #[test]
    fn each_reason_is_told_as_what_it_is() {
        let of = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for (address, errno, parts) in [
            (
                "127.0.0.1:4280",
                Errno::ADDRINUSE,
                ["another process", "--listen"],
            ),
            ("127.0.0.1:80", Errno::ACCESS, ["may not", "above 1023"]),
            ("127.0.0.1:8080", Errno::PERM, ["may not", "SELinux"]),
            (
                "192.0.2.1:80",
                Errno::ADDRNOTAVAIL,
                ["no such address", "of this machine"],
            ),
            ("[::1]:80", Errno::AFNOSUPPORT, ["has no IPv6", "127.0.0.1"]),
            ("127.0.0.1:80", Errno::MFILE, ["open files", "--listen"]),
        ] {
            let told = told(address, of(errno));
            for part in parts.iter().chain([&address]) {
                assert!(told.contains(part), "{told}");
            }
        }
    }

    #[test]
    fn of_several_addresses_those_are_bound_that_there_are() {
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let both = bind(&addresses(&["192.0.2.1:0", "127.0.0.1:0"])).unwrap();
        assert_eq!(both.len(), 1);
        let none = bind(&addresses(&["192.0.2.1:0"])).unwrap_err();
        assert!(none.is_not_here(), "{none}");
        let taken = both[0].local_addr().unwrap().to_string();
        let in_use = bind(&addresses(&["127.0.0.1:0", &taken])).unwrap_err();
        assert!(in_use.to_string().contains("another process"), "{in_use}");
    }
}
