//! Which processes hold locks of a database, where the system shows it.
//!
//! Only `stat` and `/proc` are used; a system without the latter names nobody. The database's own files must
//! never be opened here: closing any descriptor of a file gives up all POSIX locks that the process has on it,
//! SQLite's included.

use std::fmt;
use std::path::Path;

use super::in_place::numbers;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pid: u32,
    name: Option<String>,
}

impl Holder {
    pub(super) fn new(pid: u32) -> Self {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
        Self {
            pid,
            name: name.map(|name| name.trim_end().to_owned()),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == HIDDEN {
            return f
                .write_str("a process that is not seen from here, in another container perhaps");
        }
        if self.pid == std::process::id() {
            return write!(f, "process {} (this one, on another connection)", self.pid);
        }
        match &self.name {
            Some(name) => write!(f, "process {} ({name})", self.pid),
            None => write!(f, "process {}", self.pid),
        }
    }
}

const HIDDEN: u32 = 0;

/// The bytes of the `-shm` file of which each reader in WAL mode locks one for its transaction.
const WAL_READ_LOCKS: std::ops::RangeInclusive<u64> = 123..=127;
/// The byte of the `-shm` file that a writer to a database in WAL mode locks.
const WAL_WRITE_LOCK: u64 = 120;
/// The byte of the database itself that a writer in another mode locks.
const RESERVED_LOCK: u64 = 0x4000_0001;

/// The process that holds the write lock at this moment; `None` where nobody does or the system does not tell.
pub(super) fn find(database: &Path) -> Option<Holder> {
    // SQLite puts its files beside what a symbolic link points to.
    let database = std::fs::canonicalize(database).ok()?;
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let shm = shm_of(&database);
    let places = [
        (shm.as_path(), WAL_WRITE_LOCK),
        (database.as_path(), RESERVED_LOCK),
    ];
    places.into_iter().find_map(|(file, byte)| {
        let (device, inode) = numbers(file)?;
        let pids = pids_of_locks(&locks, device, inode, "WRITE", byte..=byte);
        let pid = pids.into_iter().find(|pid| *pid != HIDDEN)?;
        Some(Holder::new(pid))
    })
}

pub(super) fn readers(database: &Path) -> Vec<Holder> {
    let find = || {
        let database = std::fs::canonicalize(database).ok()?;
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        let (device, inode) = numbers(&shm_of(&database))?;
        let mut pids = pids_of_locks(&locks, device, inode, "READ", WAL_READ_LOCKS);
        pids.sort_unstable();
        pids.dedup();
        Some(pids)
    };
    let pids = find().unwrap_or_default().into_iter();
    let others = pids.filter(|pid| *pid != std::process::id());
    others.map(Holder::new).collect()
}

fn shm_of(database: &Path) -> std::path::PathBuf {
    let mut shm = database.to_owned().into_os_string();
    shm.push("-shm");
    shm.into()
}

/// The processes with a POSIX lock of this kind on any of these bytes of a file, both as they stand in
/// `/proc/locks`.
///
/// Some file systems report another device to `stat` than the kernel's list shows; then the only
/// process with a lock on those bytes of a file with that inode is taken for it.
fn pids_of_locks(
    locks: &str,
    device: u64,
    inode: u64,
    kind: &str,
    bytes: std::ops::RangeInclusive<u64>,
) -> Vec<u32> {
    let major = (device >> 8 & 0xfff) | (device >> 32 & !0xfff);
    let minor = (device & 0xff) | (device >> 12 & 0xffff_ff00);
    let device = format!("{major:02x}:{minor:02x}");
    let candidates: Vec<(bool, u32)> = locks
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let is_posix = fields.next()? == "POSIX";
            let is_kind = fields.nth(1)? == kind;
            // Another namespace's process is shown as 0 or -1.
            let pid = fields.next()?.parse().unwrap_or(HIDDEN);
            let (at, file) = fields.next()?.rsplit_once(':')?;
            let first: u64 = fields.next()?.parse().ok()?;
            let last = fields.next()?;
            let last = if last == "EOF" {
                u64::MAX
            } else {
                last.parse().ok()?
            };
            let covers = first <= *bytes.end() && *bytes.start() <= last;
            let is_file = file.parse() == Ok(inode);
            (is_posix && is_kind && covers && is_file).then_some((at == device, pid))
        })
        .collect();
    let on_device: Vec<u32> = (candidates.iter())
        .filter_map(|(same_device, pid)| same_device.then_some(*pid))
        .collect();
    match candidates.as_slice() {
        [(_, first), others @ ..]
            if on_device.is_empty() && others.iter().all(|(_, pid)| pid == first) =>
        {
            vec![*first]
        }
        _ => on_device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &str = "\
1: POSIX  ADVISORY  READ 11 08:01:77 123 123
2: POSIX  ADVISORY  WRITE 12 08:01:77 120 120
3: FLOCK  ADVISORY  WRITE 13 08:01:77 0 EOF
4: POSIX  ADVISORY  WRITE 14 08:02:77 120 120
4: -> POSIX  ADVISORY  WRITE 15 08:02:77 120 120
5: POSIX  ADVISORY  WRITE 16 08:02:88 0 EOF
6: POSIX  ADVISORY  WRITE 0 08:02:99 120 120
";

    fn pid_of_lock(locks: &str, device: u64, inode: u64, byte: u64) -> Option<u32> {
        let pids = pids_of_locks(locks, device, inode, "WRITE", byte..=byte);
        pids.into_iter().find(|pid| *pid != HIDDEN)
    }

    #[test]
    fn finds_all_readers_of_the_same_file_and_those_that_are_hidden() {
        const LOCKS: &str = "\
1: POSIX  ADVISORY  READ 11 08:01:77 123 123
2: POSIX  ADVISORY  READ 12 08:01:77 124 127
3: POSIX  ADVISORY  READ -1 08:01:77 127 127
4: POSIX  ADVISORY  WRITE 13 08:01:77 125 125
5: POSIX  ADVISORY  READ 14 08:01:77 128 128
6: POSIX  ADVISORY  READ 15 08:02:77 124 124
7: OFDLCK ADVISORY  READ 16 08:01:77 124 124
";
        let of = |device, inode| pids_of_locks(LOCKS, device, inode, "READ", WAL_READ_LOCKS);
        assert_eq!(of(0x801, 77), [11, 12, HIDDEN]);
        assert_eq!(of(0x802, 77), [15]);
        assert_eq!(of(0x801, 78), [] as [u32; 0]);
    }

    #[test]
    fn finds_the_writer_of_the_same_file() {
        assert_eq!(pid_of_lock(LOCKS, 0x801, 77, 120), Some(12));
        assert_eq!(pid_of_lock(LOCKS, 0x802, 77, 120), Some(14));
        assert_eq!(pid_of_lock(LOCKS, 0x802, 88, 120), Some(16));
    }

    #[test]
    fn names_nobody_where_it_does_not_know() {
        assert_eq!(pid_of_lock(LOCKS, 0x801, 77, 123), None, "a reader");
        assert_eq!(pid_of_lock(LOCKS, 0x803, 77, 120), None, "two candidates");
        assert_eq!(
            pid_of_lock(LOCKS, 0x802, 99, 120),
            None,
            "another namespace"
        );
        assert_eq!(pid_of_lock("", 0x801, 77, 120), None);
    }

    #[test]
    fn trusts_the_only_lock_on_that_byte_of_that_inode() {
        assert_eq!(pid_of_lock(LOCKS, 0x2b, 88, 120), Some(16));
    }
}
