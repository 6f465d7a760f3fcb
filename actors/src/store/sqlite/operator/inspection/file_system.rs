//! The file system beneath the file.

use std::path::Path;

use rustix::fs::{Access, access, statvfs};

use crate::finding::Finding;

const MIB: u64 = 1 << 20;

/// With less, the next log of a busy writer may not fit.
const TOO_LITTLE: u64 = 64 * MIB;

/// With less than this and a tenth of the disk, somebody should look.
const LITTLE: u64 = 1024 * MIB;

pub(super) fn writable(path: &Path, directory: &Path) -> Finding {
    const ID: &str = "sqlite.writable";
    let mut refused = Vec::new();
    if path.exists() && access(path, Access::READ_OK | Access::WRITE_OK).is_err() {
        refused.push(path);
    }
    if access(directory, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        refused.push(directory);
    }
    let shown: Vec<String> = refused
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    if shown.is_empty() {
        return Finding::ok(ID, "the file and its directory may be written");
    }
    let shown = shown.join(" and ");
    Finding::error(
        ID,
        format!("this user may not write {shown}"),
        format!(
            "let it: chown or chmod {shown}, or mount it for writing; SQLite writes -wal and -shm \
             files beside the file"
        ),
    )
}

pub(super) fn space(directory: &Path) -> Finding {
    const ID: &str = "sqlite.disk";
    match statvfs(directory) {
        Ok(found) => of_space(
            found.f_bavail.saturating_mul(found.f_frsize),
            found.f_blocks.saturating_mul(found.f_frsize),
        ),
        Err(error) => Finding::warning(
            ID,
            format!(
                "the free space of {} is unknown ({error})",
                directory.display()
            ),
            "see that there is room: df",
        ),
    }
}

fn of_space(free: u64, total: u64) -> Finding {
    const ID: &str = "sqlite.disk";
    const REMEDY: &str = "make room, or keep events for a shorter time: trim.retention";
    let what = format!("{} MiB of {} MiB are free", free / MIB, total / MIB);
    if free < TOO_LITTLE {
        return Finding::error(ID, format!("the disk is full: {what}"), REMEDY);
    }
    if free < LITTLE && free < total / 10 {
        return Finding::warning(ID, format!("the disk is nearly full: {what}"), REMEDY);
    }
    Finding::ok(ID, what)
}

pub(super) fn kind(directory: &Path) -> Finding {
    // Other systems than Linux have no such list.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    of_kind(kind_of(&mounts, directory))
}

fn kind_of<'a>(mounts: &'a str, directory: &Path) -> Option<&'a str> {
    mounts
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let at = unescaped(before.split(' ').nth(4)?);
            let kind = after.split(' ').next()?;
            directory.starts_with(&at).then_some((at.len(), kind))
        })
        // A later mount covers an earlier one.
        .max_by_key(|(length, _)| *length)
        .map(|(_, kind)| kind)
}

/// The kernel writes spaces and the like in octal.
fn unescaped(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

fn of_kind(kind: Option<&str>) -> Finding {
    const ID: &str = "sqlite.file_system";
    match kind {
        None => Finding::ok(ID, "unknown"),
        Some(
            kind @ ("9p" | "afs" | "beegfs" | "ceph" | "cifs" | "fuse.glusterfs" | "fuse.sshfs"
            | "lustre" | "ncpfs" | "nfs" | "nfs4" | "smb3"),
        ) => Finding::error(
            ID,
            format!(
                "the file is on {kind}, whose locks SQLite cannot rely on: two writers may destroy it"
            ),
            "put the file on a local disk, or use PostgreSQL",
        ),
        Some("tmpfs" | "ramfs") => Finding::warning(
            ID,
            "the file is in memory: it is gone when the machine restarts",
            "put the file on a disk",
        ),
        Some("overlay" | "overlayfs" | "aufs") => Finding::warning(
            ID,
            "the file is on an overlay: it is gone with the container",
            "mount a volume, and put the file there",
        ),
        Some(kind) if kind.starts_with("fuse") => Finding::warning(
            ID,
            format!("the file is on {kind}, whose locks and syncs may not be what SQLite needs"),
            "put the file on a local disk",
        ),
        Some(kind) => Finding::ok(ID, kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    const MOUNTS: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:30 / /mnt/share\\040one rw shared:5 - nfs4 server:/x rw,vers=4.2
31 22 0:31 / /mnt rw - tmpfs tmpfs rw
32 31 0:32 / /mnt/o rw master:2 shared:7 - overlay overlay rw,lowerdir=/a - b
33 22 8:2 / /mnt/o rw - xfs /dev/sdb rw
";

    fn severity(directory: &str) -> Severity {
        of_kind(kind_of(MOUNTS, Path::new(directory))).severity
    }

    #[test]
    fn the_nearest_mount_counts_and_the_last_of_several() {
        let kind = |directory| kind_of(MOUNTS, Path::new(directory)).unwrap();
        assert_eq!(kind("/var/lib"), "ext4");
        assert_eq!(kind("/mnt/share one/deep"), "nfs4");
        assert_eq!(kind("/mnt/share"), "tmpfs");
        assert_eq!(kind("/mntx"), "ext4");
        assert_eq!(kind("/mnt/o"), "xfs");
    }

    #[test]
    fn only_a_local_disk_is_good() {
        assert_eq!(severity("/var"), Severity::Ok);
        assert_eq!(severity("/mnt/share one"), Severity::Error);
        assert_eq!(severity("/mnt"), Severity::Warning);
        assert_eq!(of_kind(Some("overlay")).severity, Severity::Warning);
        assert_eq!(of_kind(Some("fuse.rclone")).severity, Severity::Warning);
        assert_eq!(of_kind(None).severity, Severity::Ok);
    }

    #[test]
    fn room_is_counted_in_bytes_and_in_shares() {
        assert_eq!(of_space(63 * MIB, 100 * MIB).severity, Severity::Error);
        assert_eq!(of_space(80 * MIB, 100 * MIB).severity, Severity::Ok);
        assert_eq!(
            of_space(900 * MIB, 100_000 * MIB).severity,
            Severity::Warning
        );
        assert_eq!(of_space(2000 * MIB, 100_000 * MIB).severity, Severity::Ok);
    }
}
