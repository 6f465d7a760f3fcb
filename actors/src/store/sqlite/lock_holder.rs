//! Which process holds the write lock of a database, where the system shows it.
//!
//! Only `stat` and `/proc` are used. The database's own files must never be opened here: closing any
//! descriptor of a file gives up all POSIX locks that the process has on it, SQLite's included.

use std::fmt;
use std::path::Path;

/// A process that holds the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pid: u32,
    name: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == std::process::id() {
            return write!(f, "process {} (this one, on another connection)", self.pid);
        }
        match &self.name {
            Some(name) => write!(f, "process {} ({name})", self.pid),
            None => write!(f, "process {}", self.pid),
        }
    }
}

/// The byte of the `-shm` file that is locked by whoever writes to a database in WAL mode.
const WAL_WRITE_LOCK: u64 = 120;
/// The byte of the database itself that is locked by whoever writes in another mode.
const RESERVED_LOCK: u64 = 0x4000_0001;

/// Who holds the write lock at this moment; `None` where nobody does or the system does not tell.
#[cfg(target_os = "linux")]
pub(super) fn find(database: &Path) -> Option<Holder> {
    use std::os::unix::fs::MetadataExt;

    // SQLite puts its files beside what a symbolic link points to.
    let database = std::fs::canonicalize(database).ok()?;
    let mut shm = database.clone().into_os_string();
    shm.push("-shm");
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let places = [
        (Path::new(&shm), WAL_WRITE_LOCK),
        (database.as_path(), RESERVED_LOCK),
    ];
    let pid = places.into_iter().find_map(|(file, byte)| {
        let metadata = std::fs::metadata(file).ok()?;
        pid_of_lock(&locks, metadata.dev(), metadata.ino(), byte)
    })?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    Some(Holder {
        pid,
        name: name.map(|name| name.trim_end().to_owned()),
    })
}

/// Other systems do not show it.
#[cfg(not(target_os = "linux"))]
pub(super) fn find(_database: &Path) -> Option<Holder> {
    None
}

/// The process with a POSIX write lock on `byte` of a file, from the text of `/proc/locks`.
///
/// Some file systems report another device to `stat` than the kernel's list shows; then the only
/// lock on that byte of a file with that inode is taken for it.
#[cfg(target_os = "linux")]
fn pid_of_lock(locks: &str, device: u64, inode: u64, byte: u64) -> Option<u32> {
    let major = (device >> 8 & 0xfff) | (device >> 32 & !0xfff);
    let minor = (device & 0xff) | (device >> 12 & 0xffff_ff00);
    let device = format!("{major:02x}:{minor:02x}");
    let candidates: Vec<(bool, u32)> = locks
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let is_posix = fields.next()? == "POSIX";
            let is_write = fields.nth(1)? == "WRITE";
            // Another namespace's process is shown as 0 or -1.
            let pid = fields.next()?.parse().ok().filter(|pid| *pid != 0)?;
            let (at, file) = fields.next()?.rsplit_once(':')?;
            let first: u64 = fields.next()?.parse().ok()?;
            let last = fields.next()?;
            let covers = first <= byte && (last == "EOF" || byte <= last.parse().ok()?);
            let is_file = file.parse() == Ok(inode);
            (is_posix && is_write && covers && is_file).then_some((at == device, pid))
        })
        .collect();
    match candidates.as_slice() {
        [(_, pid)] => Some(*pid),
        several => several
            .iter()
            .find_map(|(same_device, pid)| same_device.then_some(*pid)),
    }
}

#[cfg(all(test, target_os = "linux"))]
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
